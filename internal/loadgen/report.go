package loadgen

import (
	"fmt"
	"io"
	"maps"
	"math/bits"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Report is the outcome of a run.
type Report struct {
	Elapsed      time.Duration
	From, To     time.Time // of the samples that all senders have sent
	Series       int
	Acknowledged int64         // samples
	Refused      int64         // samples of requests that were answered 4xx
	Bytes        int64         // of request bodies, retries included
	Statuses     map[int]int64 // answers by status; 0: no answer
	Retries      int64         // requests that were answered 5xx or not at all
	LastRetry    string        // what such an answer said
	FirstRefusal string        // what the first answer of 4xx said
	Latency      Latency
	CPU          time.Duration // of this process
	Receiver     Usage         // of Config.Processes
}

// Latency is the time from request to answer.
type Latency struct{ P50, P90, P99, Max time.Duration }

// Usage is what processes have used.
type Usage struct {
	CPU       time.Duration
	Anonymous int64 // bytes of anonymous memory in RAM
}

// Clean reports whether nothing was refused.
func (r Report) Clean() bool { return r.Refused == 0 && r.FirstRefusal == "" }

// Print writes r for people.
func (r Report) Print(w io.Writer) error {
	var b strings.Builder
	millions := float64(r.Acknowledged) / 1e6
	fmt.Fprintf(&b, "acknowledged  %d samples of %d series from %s to %s\n", r.Acknowledged, r.Series,
		r.From.UTC().Format(time.RFC3339), r.To.UTC().Format(time.RFC3339))
	fmt.Fprintf(&b, "took          %s, %.0f samples/s, %.1f MB sent\n", r.Elapsed.Round(time.Millisecond),
		float64(r.Acknowledged)/r.Elapsed.Seconds(), float64(r.Bytes)/1e6)
	fmt.Fprintf(&b, "answers      ")
	for _, status := range slices.Sorted(maps.Keys(r.Statuses)) {
		name := fmt.Sprintf("%d %s", status, http.StatusText(status))
		if status == 0 {
			name = "none"
		}
		fmt.Fprintf(&b, " %d x %s;", r.Statuses[status], name)
	}
	fmt.Fprintf(&b, "\nlatency       p50 %s, p90 %s, p99 %s, max %s\n", r.Latency.P50, r.Latency.P90, r.Latency.P99, r.Latency.Max)
	if r.Acknowledged > 0 {
		fmt.Fprintf(&b, "sender        %.2f CPU s per million samples\n", r.CPU.Seconds()/millions)
		if r.Receiver.Anonymous > 0 {
			fmt.Fprintf(&b, "receiver      %.2f CPU s per million samples, %d bytes of anonymous memory per active series (%.1f MB)\n",
				r.Receiver.CPU.Seconds()/millions, r.Receiver.Anonymous/int64(r.Series), float64(r.Receiver.Anonymous)/1e6)
		}
	}
	if r.Retries > 0 {
		fmt.Fprintf(&b, "retries       %d; last: %s\n", r.Retries, r.LastRetry)
	}
	if !r.Clean() {
		fmt.Fprintf(&b, "refused       %d samples; first: %s\n", r.Refused, r.FirstRefusal)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// latencies is a histogram with 16 buckets for each power of two of
// microseconds: it is off by 6% at most.
type latencies struct {
	counts [40 * 16]int64
	total  int64
	max    time.Duration
}

func (l *latencies) add(d time.Duration) {
	l.counts[latencyBucket(d)]++
	l.total++
	l.max = max(l.max, d)
}

func latencyBucket(d time.Duration) int {
	us := uint64(max(d.Microseconds(), 0))
	if us < 16 {
		return int(us)
	}
	exponent := bits.Len64(us) - 5 // us>>exponent is in 16 to 31
	return min((exponent+1)*16+int(us>>exponent)-16, 40*16-1)
}

// latencyBound returns the upper bound of the bucket.
func latencyBound(bucket int) time.Duration {
	if bucket < 16 {
		return time.Duration(bucket+1) * time.Microsecond
	}
	exponent := bucket/16 - 1
	return time.Duration((bucket%16+16+1)<<exponent) * time.Microsecond
}

func (l *latencies) summary() Latency {
	return Latency{P50: l.quantile(0.5), P90: l.quantile(0.9), P99: l.quantile(0.99), Max: l.max}
}

func (l *latencies) quantile(q float64) time.Duration {
	rank := int64(q * float64(l.total))
	for bucket, count := range l.counts {
		if rank -= count; rank < 0 {
			return min(latencyBound(bucket), l.max)
		}
	}
	return l.max
}
