// Package remotewrite reads the messages of Prometheus's remote write protocol,
// versions 1.0 (prometheus.WriteRequest) and 2.0 (io.prometheus.write.v2.Request).
// The Decoder turns a request into a write.Batch in place: samples are copied out,
// labels are only located and hashed, and nothing is allocated per sample once its
// buffers have grown. The package knows nothing of HTTP or of snappy, and stores
// nothing.
//
// Specifications: https://prometheus.io/docs/specs/prw/remote_write_spec/ and
// https://prometheus.io/docs/specs/prw/remote_write_spec_2_0/.
package remotewrite

import (
	"errors"
	"fmt"
)

// Version is a version of the protocol. Its number is the major version.
type Version int

// The versions.
const (
	V1 Version = 1
	V2 Version = 2
)

// String implements fmt.Stringer.
func (v Version) String() string { return fmt.Sprintf("%d.0", int(v)) }

// Message returns the full name of the protobuf message of a request.
func (v Version) Message() string {
	if v == V2 {
		return "io.prometheus.write.v2.Request"
	}
	return "prometheus.WriteRequest"
}

// ContentType returns the media type of a request.
func (v Version) ContentType() string {
	if v == V2 {
		return "application/x-protobuf;proto=" + v.Message()
	}
	return "application/x-protobuf"
}

// Bounds on what a request may make the decoder hold. Elements may take two
// bytes on the wire and far more in memory, so their number is bounded apart
// from the size of the request. Real senders stay a hundredfold below.
const (
	maxRequestBytes   = 1<<31 - 1
	maxSeries         = 1 << 20
	maxSamples        = 1 << 21
	maxHistograms     = 1 << 17
	maxExemplars      = 1 << 19
	maxMetadata       = 1 << 19
	maxSymbols        = 1 << 21
	maxHistogramBytes = 64 << 10 // encoded, each
	maxExemplarBytes  = 4 << 10  // the labels of one exemplar
	// maxLabelsBytes bounds the labels of one series. It also keeps each label
	// below the 16 MiB at which labels.ScratchBuilder panics.
	maxLabelsBytes = 1 << 20
	// maxExpandedBytes bounds the labels of all series of a 2.0 request after
	// the symbols are put in: two bytes may refer to a symbol of a megabyte.
	maxExpandedBytes = 128 << 20
	// keptFamilies is how many metric families a Decoder keeps room for.
	keptFamilies = 1 << 14
)

// Faults of a message as a whole. A *DecodeError says where they are.
var (
	errTruncated       = errors.New("the message ends within the field")
	errVarint          = errors.New("a varint has more than ten bytes")
	errLength          = errors.New("the length exceeds what is left of the message")
	errFieldNum        = errors.New("the field number is not valid")
	errWireType        = errors.New("the wire type does not fit the field")
	errGroup           = errors.New("groups are not supported")
	errTooMany         = errors.New("the request has too many elements; send smaller requests")
	errTooLarge        = errors.New("the request exceeds 2 GiB")
	errExpanded        = errors.New("the labels of the request expand to more than 128 MiB; send smaller requests")
	errNoEmpty         = errors.New("the first symbol must be the empty string")
	errExemplarTooLong = errors.New("the labels of an exemplar have more than 4096 bytes")
	errOddRefs         = errors.New("the number of label references is odd")
	errNotVersion      = errors.New("the field belongs to another version of the protocol; check the proto parameter of the Content-Type")
)

// DecodeError says that a request is no message of its protocol, and where.
type DecodeError struct {
	Message string // the protobuf message, without its package
	Field   int    // the number of the field
	Offset  int    // of the field, in bytes from the start of the decompressed request
	Err     error
}

// Error implements error.
func (e *DecodeError) Error() string {
	return fmt.Sprintf("decode field %d of %s at offset %d: %s", e.Field, e.Message, e.Offset, e.Err)
}

// Unwrap returns the fault.
func (e *DecodeError) Unwrap() error { return e.Err }
