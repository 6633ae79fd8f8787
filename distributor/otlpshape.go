package distributor

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// A message of OTLP may take a hundred times its size in memory, and its decoder
// follows any depth of nesting. So a request is measured first: one walk over
// the bytes, without memory, tells about how much decoding it takes.

const (
	// maxOTLPDepth is how deep messages may nest; values of attributes may contain values.
	maxOTLPDepth = 64
	// maxOTLPBytes bounds each string or packed array, and all attributes of a
	// thing together. It also keeps labels below the 16 MiB at which Prometheus's
	// label builders panic: several attributes may end up in one label.
	maxOTLPBytes = 1 << 20
	// nodeBytes and valueBytes are about what a message takes in memory.
	nodeBytes, valueBytes = 256, 64
)

var (
	errOTLPCorrupt = errors.New("it is no valid protobuf message")
	errOTLPDepth   = fmt.Errorf("its messages nest more than %d deep", maxOTLPDepth)
	errOTLPLong    = fmt.Errorf("a string, an array or the attributes of one thing take more than %d bytes", maxOTLPBytes)
)

// otlpKind is a message of OTLP, as far as nesting is concerned.
type otlpKind int

const (
	otlpScalar otlpKind = iota // no message: a string, bytes or packed numbers
	otlpPacked                 // packed numbers that take eight bytes each in memory
	otlpRequest
	otlpResourceMetrics
	otlpResource
	otlpScopeMetrics
	otlpScope
	otlpMetric
	otlpData // Gauge, Sum and so on: a list of data points
	otlpHistogramData
	otlpExponentialData
	otlpSummaryData
	otlpNumberPoint
	otlpHistogramPoint
	otlpExponentialPoint
	otlpSummaryPoint
	otlpBuckets
	otlpExemplar
	otlpNode // a message without messages of its own
	otlpKeyValue
	otlpValue
	otlpArray
	otlpMap
)

// child returns what field of kind contains.
func (kind otlpKind) child(field uint64) otlpKind {
	type at struct {
		kind  otlpKind
		field uint64
	}
	switch (at{kind, field}) {
	case at{otlpRequest, 1}:
		return otlpResourceMetrics
	case at{otlpResourceMetrics, 1}:
		return otlpResource
	case at{otlpResourceMetrics, 2}, at{otlpResourceMetrics, 1000}:
		return otlpScopeMetrics
	case at{otlpScopeMetrics, 1}:
		return otlpScope
	case at{otlpScopeMetrics, 2}:
		return otlpMetric
	case at{otlpMetric, 5}, at{otlpMetric, 7}:
		return otlpData
	case at{otlpMetric, 9}:
		return otlpHistogramData
	case at{otlpMetric, 10}:
		return otlpExponentialData
	case at{otlpMetric, 11}:
		return otlpSummaryData
	case at{otlpData, 1}:
		return otlpNumberPoint
	case at{otlpHistogramData, 1}:
		return otlpHistogramPoint
	case at{otlpExponentialData, 1}:
		return otlpExponentialPoint
	case at{otlpSummaryData, 1}:
		return otlpSummaryPoint
	case at{otlpExponentialPoint, 8}, at{otlpExponentialPoint, 9}:
		return otlpBuckets
	case at{otlpBuckets, 2}:
		return otlpPacked
	case at{otlpNumberPoint, 5}, at{otlpHistogramPoint, 8}, at{otlpExponentialPoint, 11}:
		return otlpExemplar
	case at{otlpSummaryPoint, 6}, at{otlpResource, 3}:
		return otlpNode
	case at{otlpResource, 1}, at{otlpScope, 3}, at{otlpMetric, 12}, at{otlpNumberPoint, 7}, at{otlpHistogramPoint, 9},
		at{otlpExponentialPoint, 1}, at{otlpSummaryPoint, 7}, at{otlpExemplar, 7}, at{otlpMap, 1}:
		return otlpKeyValue
	case at{otlpKeyValue, 2}, at{otlpArray, 1}:
		return otlpValue
	case at{otlpValue, 5}:
		return otlpArray
	case at{otlpValue, 6}:
		return otlpMap
	default:
		return otlpScalar
	}
}

// size returns about how much memory a message of kind takes by itself.
func (kind otlpKind) size() int64 {
	switch kind {
	case otlpScalar, otlpPacked:
		return 0
	case otlpKeyValue, otlpValue, otlpArray, otlpMap:
		return valueBytes
	default:
		return nodeBytes
	}
}

// measureProtobuf returns about how much memory decoding body takes.
func measureProtobuf(body []byte) (int64, error) { return measure(body, otlpRequest, 0) }

func measure(b []byte, kind otlpKind, depth int) (int64, error) {
	if depth > maxOTLPDepth {
		return 0, errOTLPDepth
	}
	total := kind.size()
	attributes := 0
	for len(b) > 0 {
		tag, n := binary.Uvarint(b)
		if n <= 0 {
			return 0, errOTLPCorrupt
		}
		value, rest, err := cutField(b[n:], tag&7)
		if err != nil {
			return 0, err
		}
		b = rest
		if tag&7 != 2 {
			total += 8 // An element of a repeated field that is not packed.
			continue
		}
		child := kind.child(tag >> 3)
		switch child {
		case otlpScalar:
			total += int64(len(value))
		case otlpPacked:
			total += 8 * int64(len(value))
		case otlpKeyValue:
			attributes += len(value)
		}
		if (child <= otlpPacked && len(value) > maxOTLPBytes) || attributes > maxOTLPBytes {
			return 0, errOTLPLong
		}
		if child <= otlpPacked {
			continue
		}
		size, err := measure(value, child, depth+1)
		if err != nil {
			return 0, err
		}
		total += size
	}
	return total, nil
}

// cutField cuts the value of a field of the wire type off b.
func cutField(b []byte, wireType uint64) (value, rest []byte, err error) {
	skip := 0
	switch wireType {
	case 0:
		_, skip = binary.Uvarint(b)
	case 1:
		skip = 8
	case 5:
		skip = 4
	case 2:
		size, n := binary.Uvarint(b)
		if n <= 0 || size > uint64(len(b)-n) {
			return nil, nil, errOTLPCorrupt
		}
		return b[n : n+int(size)], b[n+int(size):], nil
	}
	if skip <= 0 || skip > len(b) {
		return nil, nil, errOTLPCorrupt
	}
	return nil, b[skip:], nil
}

// measureJSON returns about how much memory decoding body takes: every message
// begins with a brace. It does not check that body is JSON.
func measureJSON(body []byte) (int64, error) {
	total := int64(len(body))
	depth, quoted := 0, false
	for i := 0; i < len(body); i++ {
		switch c := body[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{', c == '[':
			total += nodeBytes
			if depth++; depth > 4*maxOTLPDepth {
				return 0, errOTLPDepth
			}
		case c == '}', c == ']':
			depth--
		case c == ',':
			total += 8
		}
	}
	return total, nil
}
