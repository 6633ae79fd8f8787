package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// codecVersion is the version of the encoding. A node reads its own version only; a
// field that is added to the end of a record needs no new one, since records carry
// their length and what follows the known fields is skipped.
const codecVersion = 1

// maxEncodedRecord bounds one record, so that a few fit into a gossip packet.
const maxEncodedRecord = 400

var errCodec = errors.New("undecodable registry records")

// Encode appends records to dst in the form in which they are gossiped:
//
//	version:byte { length:uvarint record }
//	record = id zone address:string rank:uvarint state:byte epoch:uvarint incarnation:8 bytes generation:8 bytes
//
// Strings are preceded by their length as a uvarint; the last two are big-endian.
// docs/formats.md describes it byte by byte.
func Encode(dst []byte, records ...Record) []byte {
	dst = append(dst, codecVersion)
	var body []byte
	for _, r := range records {
		body = body[:0]
		for _, s := range []string{r.ID, r.Zone, r.Address} {
			body = binary.AppendUvarint(body, uint64(len(s)))
			body = append(body, s...)
		}
		body = binary.AppendUvarint(body, uint64(r.Rank))
		body = append(body, byte(r.State))
		body = binary.AppendUvarint(body, r.Epoch)
		body = binary.BigEndian.AppendUint64(body, r.Incarnation)
		body = binary.BigEndian.AppendUint64(body, r.Generation)
		dst = binary.AppendUvarint(dst, uint64(len(body)))
		dst = append(dst, body...)
	}
	return dst
}

// Decode returns the records that Encode wrote. They alias nothing of data and are
// not validated beyond their form: Registry.Merge does that.
func Decode(data []byte) ([]Record, error) {
	if len(data) == 0 {
		return nil, fmt.Errorf("%w: there is nothing", errCodec)
	}
	if data[0] != codecVersion {
		return nil, fmt.Errorf("%w: version %d is unknown", errCodec, data[0])
	}
	var records []Record
	for rest := data[1:]; len(rest) > 0; {
		d := decoder{rest: rest}
		body := d.bytes(maxEncodedRecord)
		if d.failed {
			return nil, fmt.Errorf("%w: record %d is cut short or too long", errCodec, len(records))
		}
		rest = d.rest
		rec, ok := decodeRecord(body)
		if !ok {
			return nil, fmt.Errorf("%w: record %d is malformed", errCodec, len(records))
		}
		records = append(records, rec)
	}
	return records, nil
}

func decodeRecord(body []byte) (Record, bool) {
	d := decoder{rest: body}
	rec := Record{
		ID:      string(d.bytes(maxEncodedRecord)),
		Zone:    string(d.bytes(maxEncodedRecord)),
		Address: string(d.bytes(maxEncodedRecord)),
		Rank:    int(d.uvarint(1 << 16)),
	}
	if state := d.take(1); len(state) == 1 {
		rec.State = State(state[0])
	}
	rec.Epoch = d.uvarint(1<<64 - 1)
	rec.Incarnation = d.uint64()
	rec.Generation = d.uint64()
	return rec, !d.failed
}

// decoder reads fields until one is malformed; from then on all are empty.
type decoder struct {
	rest   []byte
	failed bool
}

func (d *decoder) uvarint(most uint64) uint64 {
	v, n := binary.Uvarint(d.rest)
	if d.failed || n <= 0 || v > most {
		d.failed = true
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

func (d *decoder) uint64() uint64 {
	b := d.take(8)
	if d.failed {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

func (d *decoder) bytes(most uint64) []byte { return d.take(d.uvarint(most)) }

func (d *decoder) take(n uint64) []byte {
	if d.failed || n > uint64(len(d.rest)) {
		d.failed = true
		return nil
	}
	b := d.rest[:n]
	d.rest = d.rest[n:]
	return b
}
