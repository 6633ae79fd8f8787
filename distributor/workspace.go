package distributor

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"unsafe"

	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/hundredfold/hundredfold/internal/remotewrite"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
	"github.com/hundredfold/hundredfold/internal/write"
)

const (
	// keptBytes is how much memory a workspace may take back to the pool. Usual
	// requests need far less; the odd giant must not stay resident.
	keptBytes = 8 << 20
	// firstRead is the buffer for a body of unknown length.
	firstRead = 64 << 10
)

// workspace is what it takes to receive one request. One goroutine.
type workspace struct {
	body, decoded []byte
	decoder       *remotewrite.Decoder
	batch         write.Batch
	hasher        *write.Hasher
}

func (d *Distributor) getWorkspace() *workspace { return d.spaces.Get().(*workspace) }

// putWorkspace takes ws back. Nothing of its request may be in use any more.
func (d *Distributor) putWorkspace(ws *workspace) {
	ws.decoder.Forget()
	ws.decoder.Reserve = nil
	ws.batch.Reset()
	if cap(ws.body)+cap(ws.decoded)+ws.decoder.Retained()+int(capacityOf(&ws.batch)) > keptBytes {
		return
	}
	d.spaces.Put(ws)
}

// The sizes of the elements of a batch.
const (
	seriesSize    = int64(unsafe.Sizeof(write.Series{})) + int64(unsafe.Sizeof(labels.Labels{}))
	sampleSize    = int64(unsafe.Sizeof(write.Sample{}))
	histogramSize = int64(unsafe.Sizeof(write.Histogram{}))
	exemplarSize  = int64(unsafe.Sizeof(exemplar.Exemplar{}))
	metadataSize  = int64(unsafe.Sizeof(write.Metadata{}))
)

func sizeOf(series, samples, histograms, exemplars, metadata int) int64 {
	return int64(series)*seriesSize + int64(samples)*sampleSize + int64(histograms)*histogramSize +
		int64(exemplars)*exemplarSize + int64(metadata)*metadataSize
}

func capacityOf(b *write.Batch) int64 {
	return sizeOf(cap(b.Series), cap(b.Samples), cap(b.Histograms), cap(b.Exemplars), cap(b.Metadata))
}

// footprint returns about how much memory b takes besides the request it aliases
// and besides what its histograms hold, which is reserved when they are decoded.
func footprint(b *write.Batch) int64 {
	return sizeOf(len(b.Series), len(b.Samples), len(b.Histograms), len(b.Exemplars), len(b.Metadata))
}

// histogramFootprint returns about how much memory the histogram behind h takes.
func histogramFootprint(h write.Histogram) int64 {
	const fixed = 256
	n := 0
	if h.Int != nil {
		n = len(h.Int.PositiveBuckets) + len(h.Int.NegativeBuckets) + len(h.Int.PositiveSpans) + len(h.Int.NegativeSpans) + len(h.Int.CustomValues)
	} else if h.Float != nil {
		n = len(h.Float.PositiveBuckets) + len(h.Float.NegativeBuckets) + len(h.Float.PositiveSpans) + len(h.Float.NegativeSpans) + len(h.Float.CustomValues)
	}
	return fixed + 8*int64(n)
}

// readBody reads the body of r, at most limit bytes, into buf. Memory is
// reserved before it is taken.
func readBody(r *http.Request, limit int64, res *reservation, buf []byte) ([]byte, error) {
	size := r.ContentLength
	if size > limit {
		return buf, tooLarge("the body", size, limit, res.id)
	}
	if size < 0 {
		body, err := readAll(r.Body, limit, res, buf)
		if isReadError(err) {
			err = unreadable(err)
		}
		return body, err
	}
	if err := res.grow(size); err != nil {
		return buf, err
	}
	if int64(cap(buf)) < size {
		buf = make([]byte, size)
	}
	buf = buf[:size]
	if _, err := io.ReadFull(r.Body, buf); err != nil {
		return buf, unreadable(err)
	}
	return buf, nil
}

// unreadable says that a body did not arrive. Sending it again may help.
func unreadable(err error) error {
	return wire.Unavailable(fmt.Errorf("read the body of the request: %w", err), 0)
}

// readError is an error of the reader that readAll reads from.
type readError struct{ error }

func (e readError) Unwrap() error { return e.error }

func isReadError(err error) bool {
	var e readError
	return errors.As(err, &e)
}

// readAll reads all of r, at most limit bytes, into buf and reserves memory as
// the buffer grows. Errors of r itself are readErrors.
func readAll(r io.Reader, limit int64, res *reservation, buf []byte) ([]byte, error) {
	buf = buf[:0]
	charged := int64(0)
	for {
		if int64(len(buf)) == charged {
			next := min(max(firstRead, 2*charged), limit+1)
			if err := res.grow(next - charged); err != nil {
				return buf, err
			}
			charged = next
			if int64(cap(buf)) < charged {
				buf = append(make([]byte, 0, charged), buf...)
			}
		}
		n, err := r.Read(buf[len(buf):charged])
		buf = buf[:len(buf)+n]
		switch {
		case int64(len(buf)) > limit:
			return buf, tooLarge("the request", int64(len(buf)), limit, res.id)
		case errors.Is(err, io.EOF):
			return buf, nil
		case err != nil:
			return buf, readError{err}
		}
	}
}

// tooLarge says that something is larger than the limit that comes from
// max_request_bytes.
func tooLarge(what string, size, limit int64, id tenant.ID) error {
	return wire.Invalid(fmt.Errorf("%s of tenant %s has %d bytes or more, above the %d that max_request_bytes allows; send fewer samples per request", what, id, size, limit))
}
