package distributor

import (
	"errors"
	"fmt"
)

// Config says how much a Distributor takes.
type Config struct {
	// MaxInflightBytes bounds the memory of the requests that are being received:
	// 6 times max_request_bytes or more. A tenant may use half of it. Requests
	// above it are answered 503, to be sent again.
	MaxInflightBytes int64 `yaml:"max_inflight_bytes"`
	// MaxRequestBytes bounds one request after decompression: 64 KiB to 1 GiB.
	// A larger one is answered 400 and lost, for senders do not split requests.
	MaxRequestBytes int64 `yaml:"max_request_bytes"`
}

const (
	minRequestBytes = 64 << 10
	maxRequestBytes = 1 << 30
	// inflightShare is how many of the largest requests must fit into the budget,
	// so that each fits into the half of it that a tenant may use: compressed
	// and decompressed, and incompressible requests are larger compressed.
	inflightShare = 6
)

// Default returns the configuration of a Distributor that nobody configured.
func Default() Config {
	return Config{
		MaxInflightBytes: 256 << 20,
		MaxRequestBytes:  32 << 20, // what Prometheus takes
	}
}

// Validate reports all faults of c.
func (c Config) Validate() error {
	var errs []error
	if c.MaxRequestBytes < minRequestBytes || c.MaxRequestBytes > maxRequestBytes {
		errs = append(errs, fmt.Errorf("max_request_bytes: %d is outside %d to %d", c.MaxRequestBytes, minRequestBytes, maxRequestBytes))
	}
	if c.MaxInflightBytes/inflightShare < c.MaxRequestBytes {
		errs = append(errs, fmt.Errorf("max_inflight_bytes: %d is below %d, which is %d times max_request_bytes", c.MaxInflightBytes, c.MaxRequestBytes*inflightShare, inflightShare))
	}
	return errors.Join(errs...)
}
