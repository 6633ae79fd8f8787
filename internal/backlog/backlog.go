// Package backlog knows what a compactor has to do, how far it is, and when it will be
// done: for metrics and for the page at /compactor. It decides nothing and is asked by
// nobody who does.
package backlog

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/hundredfold/hundredfold/internal/tenant"
)

const (
	// fade is what a job leaves of the weight of those before it in the rate.
	fade = 0.7
	// shownJobs bounds the planned jobs that are listed of a tenant. The rest is counted.
	shownJobs = 20
	// keptErrors bounds the errors that are remembered of a tenant.
	keptErrors = 5
)

// Job is a compaction.
type Job struct {
	Blocks int `json:"blocks"`
	// Results is how many blocks it makes; more than one are shards.
	Results int       `json:"results"`
	Start   time.Time `json:"start"`
	End     time.Time `json:"end"`
	// Samples is how many the blocks have, as they state it.
	Samples uint64 `json:"samples"`
}

// Quarantined is a block that is left alone.
type Quarantined struct {
	Block   ulid.ULID `json:"block"`
	Reason  string    `json:"reason"`
	Details string    `json:"details,omitempty"`
	// Since is zero if it is not known.
	Since time.Time `json:"since,omitzero"`
}

// Failure is something that failed and will be tried again.
type Failure struct {
	Time time.Time `json:"time"`
	Text string    `json:"error"`
}

// Tenant is what there is of a tenant's blocks and what is to be done with them.
type Tenant struct {
	Blocks int `json:"blocks"`
	// Marked are the blocks that will be deleted, the first of them at NextDeletion.
	Marked       int           `json:"marked_for_deletion"`
	NextDeletion time.Time     `json:"next_deletion,omitzero"`
	Jobs         []Job         `json:"-"`
	Quarantined  []Quarantined `json:"quarantined"`
	// Seen is when this was so.
	Seen time.Time `json:"seen"`
}

// samples returns how many are to be merged.
func (t Tenant) samples() (n uint64) {
	for _, job := range t.Jobs {
		n += job.Samples
	}
	return n
}

// Board is told what is planned and what is done. It is safe for concurrent use.
type Board struct {
	now func() time.Time

	mu struct {
		sync.Mutex
		tenants map[tenant.ID]Tenant
		errors  map[tenant.ID][]Failure
		running *running
		// samples were merged in seconds, those of long ago for little.
		samples, seconds float64
		pass             Pass
	}
}

// running is the job at work.
type running struct {
	tenant  tenant.ID
	job     Job
	started time.Time
	done    uint64
}

// New returns a Board. now is the clock; nil is that of the machine.
func New(now func() time.Time) *Board {
	if now == nil {
		now = time.Now
	}
	b := &Board{now: now}
	b.mu.tenants = make(map[tenant.ID]Tenant)
	b.mu.errors = make(map[tenant.ID][]Failure)
	return b
}

// Plan notes what there is of a tenant and what is planned. t must not change afterwards.
func (b *Board) Plan(id tenant.ID, t Tenant) {
	t.Seen = b.now()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.tenants[id] = t
}

// Keep forgets all tenants but those in present.
func (b *Board) Keep(present map[tenant.ID]struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	gone := func(id tenant.ID) bool { _, ok := present[id]; return !ok }
	maps.DeleteFunc(b.mu.tenants, func(id tenant.ID, _ Tenant) bool { return gone(id) })
	maps.DeleteFunc(b.mu.errors, func(id tenant.ID, _ []Failure) bool { return gone(id) })
}

// Knows tells whether a plan of the tenant was noted.
func (b *Board) Knows(id tenant.ID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ok := b.mu.tenants[id]
	return ok
}

// Begin notes that a job begins; there is one at a time.
func (b *Board) Begin(id tenant.ID, job Job) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.running = &running{tenant: id, job: job, started: b.now()}
}

// Progress notes that so many more samples of the job's blocks were merged.
func (b *Board) Progress(samples uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mu.running != nil {
		b.mu.running.done += samples
	}
}

// End notes that the job has ended. One that was completed counts for the rate.
func (b *Board) End(completed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.mu.running
	b.mu.running = nil
	if r == nil || !completed || r.done == 0 {
		return
	}
	b.mu.samples = fade*b.mu.samples + float64(r.job.Samples)
	b.mu.seconds = fade*b.mu.seconds + b.now().Sub(r.started).Seconds()
}

// Failed notes that something failed for a tenant.
func (b *Board) Failed(id tenant.ID, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	failures := append([]Failure{{Time: b.now(), Text: err.Error()}}, b.mu.errors[id]...)
	b.mu.errors[id] = failures[:min(len(failures), keptErrors)]
}

// Passed notes that a pass over all tenants ended.
func (b *Board) Passed(pass Pass) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.pass = pass
}

// Totals is what is to be done for all tenants.
type Totals struct {
	Compactions int `json:"compactions"`
	Quarantined int `json:"quarantined"`
	// Samples are yet to be merged.
	Samples uint64 `json:"samples"`
	// Rate is how many samples are merged in a second of work; 0: not known yet.
	Rate float64 `json:"samples_per_second"`
	// Seconds is the time until all that is planned now is done, in seconds; less than 0:
	// not known yet.
	Seconds float64 `json:"eta_seconds"`
}

// Totals sums up. It is cheap enough for each scrape.
func (b *Board) Totals() Totals {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.totalsLocked()
}

func (b *Board) totalsLocked() Totals {
	var t Totals
	for _, of := range b.mu.tenants {
		t.Compactions += len(of.Jobs)
		t.Quarantined += len(of.Quarantined)
		t.Samples += of.samples()
	}
	samples, seconds := b.mu.samples, b.mu.seconds
	if r := b.mu.running; r != nil {
		// What a job passes by may be more than its blocks state: duplicates.
		t.Samples -= min(r.done, r.job.Samples, t.Samples)
		samples += float64(min(r.done, r.job.Samples))
		seconds += b.now().Sub(r.started).Seconds()
	}
	if samples > 0 && seconds > 0 {
		t.Rate = samples / seconds
	}
	switch {
	case t.Samples == 0 && t.Compactions == 0:
	case t.Rate == 0:
		t.Seconds = -1
	default:
		t.Seconds = float64(t.Samples) / t.Rate
	}
	return t
}

// Fraction returns how far the running job is, from 0 to 1; running is false if there is none.
func (b *Board) Fraction() (fraction float64, running bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mu.running == nil {
		return 0, false
	}
	return b.mu.running.fraction(), true
}

func (r *running) fraction() float64 {
	if r.job.Samples == 0 {
		return 0
	}
	return math.Min(1, float64(r.done)/float64(r.job.Samples))
}

// Pass is the last pass over all tenants.
type Pass struct {
	Ended   time.Time `json:"ended"`
	Seconds float64   `json:"seconds"`
	// Error is empty if nothing failed.
	Error string `json:"error,omitempty"`
}

// Running is the job at work.
type Running struct {
	Tenant   tenant.ID `json:"tenant"`
	Job      Job       `json:"job"`
	Started  time.Time `json:"started"`
	Done     uint64    `json:"samples_done"`
	Fraction float64   `json:"fraction"`
}

// TenantStatus is what is known of a tenant.
type TenantStatus struct {
	ID tenant.ID `json:"tenant"`
	Tenant
	// Next are the first of the jobs that are planned, in their order.
	Next    []Job     `json:"next"`
	Planned int       `json:"compactions"`
	Samples uint64    `json:"samples_to_go"`
	Errors  []Failure `json:"errors"`
}

// Status is all that is known, for people and scripts.
type Status struct {
	// Pass is nil before the first has ended.
	Pass    *Pass          `json:"last_pass"`
	Running *Running       `json:"running"`
	Backlog Totals         `json:"backlog"`
	Tenants []TenantStatus `json:"tenants"`
}

// Status returns all that is known; tenants with most to do come first.
func (b *Board) Status() Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := Status{Backlog: b.totalsLocked(), Tenants: []TenantStatus{}}
	if pass := b.mu.pass; !pass.Ended.IsZero() {
		s.Pass = &pass
	}
	if r := b.mu.running; r != nil {
		s.Running = &Running{Tenant: r.tenant, Job: r.job, Started: r.started, Done: r.done, Fraction: r.fraction()}
	}
	for id, t := range b.mu.tenants {
		of := TenantStatus{ID: id, Tenant: t, Planned: len(t.Jobs), Samples: t.samples()}
		of.Next = append([]Job{}, t.Jobs[:min(len(t.Jobs), shownJobs)]...)
		of.Errors = append([]Failure{}, b.mu.errors[id]...)
		if of.Quarantined == nil {
			of.Quarantined = []Quarantined{}
		}
		s.Tenants = append(s.Tenants, of)
	}
	slices.SortFunc(s.Tenants, func(a, b TenantStatus) int {
		return cmp.Or(cmp.Compare(b.Samples, a.Samples), cmp.Compare(a.ID, b.ID))
	})
	return s
}
