package distributor

import (
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/s2"

	"github.com/hundredfold/hundredfold/internal/remotewrite"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
	"github.com/hundredfold/hundredfold/internal/write"
)

// snappyRatio is more than the block format of snappy can compress: its densest
// element turns 3 bytes into 64. A header that promises more is a lie.
const snappyRatio = 22

// serveWrite serves remote write.
func (d *Distributor) serveWrite(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	version, err := negotiateWrite(r)
	var result write.Result
	if err == nil {
		result, err = d.receiveWrite(r, version)
	}
	if err == nil {
		err = result.Err()
	}
	protocol := "remote_write"
	if version != 0 {
		protocol = fmt.Sprintf("remote_write_%d", int(version))
	}
	if version == remotewrite.V2 {
		// The sender compares these with what it sent, on failure too. In 1.0 they
		// do not exist.
		const prefix = "X-Prometheus-Remote-Write-"
		w.Header().Set(prefix+"Samples-Written", strconv.Itoa(result.Written.Samples))
		w.Header().Set(prefix+"Histograms-Written", strconv.Itoa(result.Written.Histograms))
		w.Header().Set(prefix+"Exemplars-Written", strconv.Itoa(result.Written.Exemplars))
	}
	if err == nil {
		w.WriteHeader(http.StatusNoContent)
		d.metrics.answered(protocol, http.StatusNoContent, start)
		return
	}
	status := statusOf(err)
	d.logFailure(protocol, r, err, status)
	setErrorHeaders(w.Header(), err, status)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	io.WriteString(w, clipLine(err.Error())+"\n")
	d.metrics.answered(protocol, status, start)
}

// negotiateWrite says which protocol r speaks. Only the Content-Type tells: the
// version header of the protocol is known to be wrong at times.
func negotiateWrite(r *http.Request) (remotewrite.Version, error) {
	if r.Method != http.MethodPost {
		return 0, refuse(http.StatusMethodNotAllowed, "the method %.20s is not allowed; remote write uses POST", r.Method)
	}
	version, err := writeVersion(r.Header.Get("Content-Type"))
	if err != nil {
		return 0, err
	}
	switch encoding := r.Header.Get("Content-Encoding"); strings.ToLower(encoding) {
	case "", "snappy":
		return version, nil
	default:
		return version, refuse(http.StatusUnsupportedMediaType, "the Content-Encoding %.50q is not supported; remote write uses snappy", encoding)
	}
}

func writeVersion(contentType string) (remotewrite.Version, error) {
	if contentType == "" {
		return remotewrite.V1, nil
	}
	unsupported := func() (remotewrite.Version, error) {
		return 0, refuse(http.StatusUnsupportedMediaType, "the Content-Type %.150q is not supported; supported are %q and %q",
			contentType, remotewrite.V1.ContentType(), remotewrite.V2.ContentType())
	}
	mediaType, params, err := mime.ParseMediaType(contentType)
	if err != nil || mediaType != "application/x-protobuf" {
		return unsupported()
	}
	switch params["proto"] {
	case "", remotewrite.V1.Message():
		return remotewrite.V1, nil
	case remotewrite.V2.Message():
		return remotewrite.V2, nil
	default:
		return unsupported()
	}
}

// receiveWrite reads, decodes and stores a request.
func (d *Distributor) receiveWrite(r *http.Request, version remotewrite.Version) (write.Result, error) {
	id, err := tenant.FromContext(r.Context())
	if err != nil {
		return write.Result{}, err
	}
	res := d.budget.reserve(id)
	defer res.release()
	ws := d.getWorkspace()
	defer d.putWorkspace(ws)

	// What cannot be compressed grows: the bound is that of the format's authors.
	limit := d.cfg.MaxRequestBytes + d.cfg.MaxRequestBytes/6 + 32
	if ws.body, err = readBody(r, limit, res, ws.body); err != nil {
		return write.Result{}, err
	}
	if err := d.decompress(ws, res); err != nil {
		return write.Result{}, err
	}
	ws.decoder.Reserve = res.grow
	refused, err := ws.decoder.Decode(version, ws.decoded, &ws.batch)
	if err != nil {
		return write.Result{}, wire.Invalid(err)
	}
	res.force(footprint(&ws.batch))
	return d.push(r.Context(), id, &ws.batch, refused)
}

// decompress decompresses the body of ws, once its header says that this is within
// the limits.
func (d *Distributor) decompress(ws *workspace, res *reservation) error {
	n, err := s2.DecodedLen(ws.body)
	if err != nil || n > snappyRatio*len(ws.body) {
		return wire.Invalid(fmt.Errorf("decompress the request: %w", s2.ErrCorrupt))
	}
	size := int64(n)
	if size > d.cfg.MaxRequestBytes {
		return tooLarge("the decompressed request", size, d.cfg.MaxRequestBytes, res.id)
	}
	if err := res.grow(size); err != nil {
		return err
	}
	if int64(cap(ws.decoded)) < size {
		ws.decoded = make([]byte, size)
	}
	if ws.decoded, err = s2.Decode(ws.decoded[:size], ws.body); err != nil {
		return wire.Invalid(fmt.Errorf("decompress the request: %w", err))
	}
	return nil
}
