package pagefile

import "time"

// tuning is what measurements have chosen (BenchmarkLoad*), and tests change.
type tuning struct {
	// maxGap is how many bytes nobody asked for are fetched to spare a request. At
	// 200 MB/s and 64 requests of 20 ms at a time, a request costs what 64 KiB cost, and
	// processor time and, at some stores, money besides. 1,000 ranges of 2 KiB, scattered
	// over 256 MiB: 320 ms with no gaps, 260 with 64 KiB, 240 with 128, 880 with 512.
	maxGap int64
	// maxRequest bounds one request. Larger ones gain nothing, since the connection is
	// busy for as long as it takes; smaller ones run in parallel.
	maxRequest int64
	// maxInFlight bounds the memory of all requests that are under way.
	maxInFlight int64
	// requestWeight is what each request takes of maxInFlight at least, so that there
	// are never more than maxInFlight/requestWeight.
	requestWeight int64

	// attempts is how often a request is made that fails in passing; between them lie
	// backoff, 4 times backoff, and so on, less up to a half at random.
	attempts int
	backoff  time.Duration
	// attemptTimeout ends a request over a connection on which nothing moves.
	attemptTimeout time.Duration

	// A request is made a second time when it takes a quarter longer than hedgeQuantile
	// of the recent ones of about the same size did, if not more than hedgeShare of all
	// requests have been.
	hedgeQuantile float64
	hedgeShare    float64
	// hedgeAfter is the least time that a request is given: less is no outlier.
	hedgeAfter time.Duration
}

func defaultTuning() tuning {
	return tuning{
		maxGap:         128 << 10,
		maxRequest:     4 << 20,
		maxInFlight:    64 << 20,
		requestWeight:  1 << 20,
		attempts:       4,
		backoff:        100 * time.Millisecond,
		attemptTimeout: 30 * time.Second,
		hedgeQuantile:  0.95,
		hedgeShare:     0.05,
		hedgeAfter:     10 * time.Millisecond,
	}
}
