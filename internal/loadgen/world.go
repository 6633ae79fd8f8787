package loadgen

import (
	"fmt"
	"math/bits"
	"strings"
	"time"

	"github.com/hundredfold/hundredfold/internal/write"
)

// world is the fleet: pods, each with the same metrics, that live for a while and
// are then replaced by a pod of another name. It is immutable.
//
// Time is counted in ticks: tick k begins at k intervals after the epoch, and
// each pod is scraped at its own fixed offset into every tick.
type world struct {
	World
	hash     uint64 // of World: two worlds share no pod
	interval int64  // ms
	lifetime int64  // ticks that a pod lives; 0: for ever
	floats   []template
	natives  []template
	symbols  []string // what templates refer to
	apps     []app
	rates    [rateSteps]float64
}

// app is what the pods of one deployment share.
type app struct{ namespace, name string }

// instance is one life of a pod.
type instance struct {
	pod     int
	hash    uint64
	born    int64 // tick at which its counters were 0; it may lie before the epoch
	restart int64 // ticks from one reset of its counters to the next
	name    string
	values  [podLabels]string
	encoded []byte                // the labels in canonical form
	offsets [podLabels + 1]uint16 // label i is encoded[offsets[i]:offsets[i+1]]
}

// The labels that all series of a pod share, sorted by name.
const (
	labelCluster = iota
	labelContainer
	labelInstance
	labelJob
	labelNamespace
	labelNode
	labelPod
	labelService
	podLabels
)

func podLabelNames() [podLabels]string {
	return [podLabels]string{"cluster", "container", "instance", "job", "namespace", "node", "pod", "service"}
}

const (
	rateSteps   = 64
	podsPerNode = 25
	podsPerApp  = 8
	golden      = 0x9e3779b97f4a7c15
)

// mix is the finalizer of SplitMix64: a cheap bijection whose bits all depend on
// all bits of x.
func mix(x uint64) uint64 {
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9
	x = (x ^ (x >> 27)) * 0x94d049bb133111eb
	return x ^ (x >> 31)
}

func mixString(h uint64, s string) uint64 {
	for i := range len(s) {
		h = mix(h + golden*uint64(s[i]+1))
	}
	return h
}

// pods returns how many pods w has; the last one may have fewer series.
func (w World) pods() int { return (w.Series + seriesPerPod - 1) / seriesPerPod }

func newWorld(cfg World) *world {
	w := &world{
		World:    cfg,
		hash:     mixString(golden, fmt.Sprintf("%+v", cfg)),
		interval: cfg.Interval.Milliseconds(),
	}
	if cfg.Churn > 0 {
		w.lifetime = max(2, int64(float64(time.Hour.Milliseconds())/cfg.Churn)/w.interval)
	}
	most := 0
	for pod := range w.pods() {
		most = max(most, w.podHistograms(pod))
	}
	w.floats, w.natives, w.symbols = newTemplates(most)
	w.apps = newApps(w.pods()/podsPerApp + 1)
	w.rates = newRates()
	return w
}

func newApps(count int) []app {
	teams := []string{"checkout", "search", "catalog", "payments", "identity", "shipping", "billing", "media"}
	parts := []string{"api", "gateway", "worker", "cache", "frontend", "scheduler", "indexer", "store", "proxy", "events"}
	apps := make([]app, count)
	for i := range apps {
		team := teams[i%len(teams)]
		apps[i] = app{namespace: team, name: team + "-" + parts[i/len(teams)%len(parts)]}
		if round := i / (len(teams) * len(parts)); round > 0 {
			apps[i].namespace += fmt.Sprintf("-%d", round)
			apps[i].name += fmt.Sprintf("-%d", round)
		}
	}
	return apps
}

// podSeries returns how many series the pod has.
func (w World) podSeries(pod int) int {
	return min(seriesPerPod, w.Series-pod*seriesPerPod)
}

// podHistograms returns how many of the pod's series are native histograms:
// they are spread over the pods by their numbers of series.
func (w World) podHistograms(pod int) int {
	share := func(series int) int { return int(int64(series) * int64(w.Histograms) / int64(w.Series)) }
	from := pod * seriesPerPod
	return share(min(from+seriesPerPod, w.Series)) - share(from)
}

// template returns the template of the pod's series in the given slot. Float
// series come first.
func (w *world) template(pod, slot int) *template {
	if floats := w.podSeries(pod) - w.podHistograms(pod); slot >= floats {
		return &w.natives[slot-floats]
	}
	return &w.floats[slot]
}

// tenant returns the name of the pod's tenant, "" if there are none.
func (w *world) tenant(pod int) string {
	if w.Tenants == 0 {
		return ""
	}
	return fmt.Sprintf("loadgen-%d", pod%w.Tenants)
}

// offset returns when in a tick the pod is scraped, in ms: below the interval.
func (w *world) offset(pod int) int64 {
	return int64(mix(w.hash+uint64(pod)*golden) % uint64(w.interval))
}

// generation returns which life of the pod goes on at tick k.
func (w *world) generation(pod int, k int64) int64 {
	if w.lifetime == 0 {
		return 0
	}
	return floorDiv(k+w.phase(pod), w.lifetime)
}

// phase spreads the ends of the pods' lives over time, evenly.
func (w *world) phase(pod int) int64 {
	hi, _ := bits.Mul64(uint64(pod)*golden, uint64(w.lifetime))
	return int64(hi)
}

// alive returns the ticks [from, to) of the life. Without churn it has no end.
func (w *world) alive(pod int, generation int64, within tickRange) tickRange {
	if w.lifetime == 0 {
		return within
	}
	from := generation*w.lifetime - w.phase(pod)
	return tickRange{from: max(from, within.from), to: min(from+w.lifetime, within.to)}
}

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

// instance returns the given life of the pod. It allocates: once per life.
func (w *world) instance(pod int, generation int64) *instance {
	hash := mix(w.hash ^ mix(uint64(pod)*golden+uint64(generation)))
	in := &instance{
		pod:     pod,
		hash:    hash,
		restart: (4*3600_000 + int64(hash>>20%(20*3600_000))) / w.interval,
	}
	in.restart = max(in.restart, 10)
	if w.lifetime == 0 {
		in.born = -int64(hash % uint64(in.restart))
	} else {
		in.born = generation*w.lifetime - w.phase(pod)
	}

	a := w.apps[pod/podsPerApp]
	in.name = fmt.Sprintf("%s-%s-%s", a.name,
		letters(mix(w.hash+uint64(generation))^mixString(golden, a.name), 9), letters(w.suffix(pod), 5))
	node := mix(w.hash + uint64(pod/podsPerNode))
	in.values = [podLabels]string{
		labelCluster:   "prod-eu-central-1",
		labelContainer: a.name,
		labelInstance:  fmt.Sprintf("10.%d.%d.%d:8080", hash>>8&0xff, hash>>16&0xff, hash>>24&0xff),
		labelJob:       a.namespace + "/" + a.name,
		labelNamespace: a.namespace,
		labelNode:      fmt.Sprintf("ip-10-%d-%d-%d.eu-central-1.compute.internal", node&0xff, node>>8&0xff, node>>16&0xff),
		labelPod:       in.name,
		labelService:   a.name,
	}
	for i, name := range podLabelNames() {
		in.encoded = write.AppendCanonical(in.encoded, name, in.values[i])
		in.offsets[i+1] = uint16(len(in.encoded))
	}
	return in
}

// suffix returns what makes the name of the pod unlike that of any other pod of
// the same app and generation: the pod times a constant, a bijection modulo
// suffixes.
func (w *world) suffix(pod int) uint64 {
	return (uint64(pod)*7919 + w.hash>>40) % suffixes
}

const (
	alphabet = "bcdfghjklmnpqrstvwxz2456789" // that of Kubernetes
	suffixes = 27 * 27 * 27 * 27 * 27        // not divisible by 7919
)

// letters writes h with n letters of Kubernetes' alphabet.
func letters(h uint64, n int) string {
	var b strings.Builder
	for range n {
		b.WriteByte(alphabet[h%uint64(len(alphabet))])
		h /= uint64(len(alphabet))
	}
	return b.String()
}
