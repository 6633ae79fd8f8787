package importer

import (
	"log/slog"
	"time"
)

// progressEvery is the time between two reports.
const progressEvery = 5 * time.Second

// progress tells how far an import is. One goroutine reads and writes it at a time, but
// for bytes, which the import calls while it copies, in the same goroutine.
type progress struct {
	logger           *slog.Logger
	began, told      time.Time
	blocks, expected int
	done, total      int64 // bytes
}

func newProgress(logger *slog.Logger) *progress {
	return &progress{logger: logger, began: time.Now(), told: time.Now()}
}

func (p *progress) expect(jobs []job) {
	p.expected += len(jobs)
	for _, j := range jobs {
		p.total += j.bytes()
	}
}

func (p *progress) bytes(n int64) {
	p.done += n
	p.report()
}

func (p *progress) block() {
	p.blocks++
	p.report()
}

func (p *progress) report() {
	if time.Since(p.told) >= progressEvery {
		p.told = time.Now()
		p.tell()
	}
}

func (p *progress) stop() {
	if p.expected > 0 && p.blocks > 0 {
		p.tell()
	}
}

func (p *progress) tell() {
	took := time.Since(p.began)
	rate := float64(p.done) / max(took.Seconds(), 0.001)
	left := time.Duration(0)
	if rate > 0 {
		left = time.Duration(float64(max(0, p.total-p.done)) / rate * float64(time.Second))
	}
	p.logger.Info("Blocks are imported.", "blocks", p.blocks, "of_blocks", p.expected, "bytes", p.done, "of_bytes", p.total,
		"bytes_per_second", int64(rate), "took", took.Round(time.Millisecond), "left", left.Round(time.Second))
}
