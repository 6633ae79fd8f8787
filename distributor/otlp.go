package distributor

import (
	"bytes"
	"fmt"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"go.opentelemetry.io/collector/pdata/pmetric/pmetricotlp"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
	"github.com/hundredfold/hundredfold/internal/write"
)

// OTLP over HTTP: https://opentelemetry.io/docs/specs/otlp/#otlphttp.

const protocolOTLP = "otlp"

// The encodings of OTLP messages.
const (
	otlpProtobuf = "application/x-protobuf"
	otlpJSON     = "application/json"
)

// otlpAnswer is what became of a request.
type otlpAnswer struct {
	result write.Result
	points int // data points in the request
}

// serveOTLP serves OTLP metrics.
func (d *Distributor) serveOTLP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	encoding, err := negotiateOTLP(r)
	var answer otlpAnswer
	if err == nil {
		answer, err = d.receiveOTLP(r, encoding)
	}
	status := http.StatusOK
	var body []byte
	if err == nil {
		body, err = answer.encode(encoding)
	}
	if err != nil {
		status = statusOf(err)
		d.logFailure(protocolOTLP, r, err, status)
		setErrorHeaders(w.Header(), err, status)
		body = encodeStatus(err, &encoding)
	}
	w.Header().Set("Content-Type", encoding)
	w.WriteHeader(status)
	w.Write(body)
	d.metrics.answered(protocolOTLP, status, start)
}

// negotiateOTLP returns the media type that r is encoded in.
func negotiateOTLP(r *http.Request) (string, error) {
	if r.Method != http.MethodPost {
		return "", refuse(http.StatusMethodNotAllowed, "the method %.20s is not allowed; OTLP uses POST", r.Method)
	}
	contentType := r.Header.Get("Content-Type")
	encoding, _, err := mime.ParseMediaType(contentType)
	if err != nil || (encoding != otlpProtobuf && encoding != otlpJSON) {
		return "", refuse(http.StatusUnsupportedMediaType, "the Content-Type %.150q is not supported; supported are %q and %q", contentType, otlpProtobuf, otlpJSON)
	}
	switch compression := r.Header.Get("Content-Encoding"); strings.ToLower(compression) {
	case "", "identity", "gzip":
		return encoding, nil
	default:
		return encoding, refuse(http.StatusUnsupportedMediaType, "the Content-Encoding %.50q is not supported; supported are gzip and identity", compression)
	}
}

// receiveOTLP reads, decodes, translates and stores a request. The error says
// that nothing was stored or that all of it has to be sent again.
func (d *Distributor) receiveOTLP(r *http.Request, encoding string) (otlpAnswer, error) {
	id, err := tenant.FromContext(r.Context())
	if err != nil {
		return otlpAnswer{}, err
	}
	res := d.budget.reserve(id)
	defer res.release()
	ws := d.getWorkspace()
	defer d.putWorkspace(ws)

	body, err := d.readOTLP(r, ws, res)
	if err != nil {
		return otlpAnswer{}, err
	}
	request, err := decodeOTLP(body, encoding, res)
	if err != nil {
		return otlpAnswer{}, err
	}
	answer := otlpAnswer{points: request.Metrics().DataPointCount()}
	refused, err := d.otlp.translate(r.Context(), request.Metrics(), ws, res)
	if err != nil {
		return otlpAnswer{}, err
	}
	if answer.result, err = d.push(r.Context(), id, &ws.batch, refused); err != nil {
		return otlpAnswer{}, err
	}
	if class, _ := answer.result.Class(); class == write.ClassUnavailable || answer.result.Written == (write.Counts{}) {
		return otlpAnswer{}, answer.result.Err()
	}
	return answer, nil
}

// readOTLP reads the body of r, and decompresses it if need be.
func (d *Distributor) readOTLP(r *http.Request, ws *workspace, res *reservation) ([]byte, error) {
	limit := d.cfg.MaxRequestBytes
	var err error
	if ws.body, err = readBody(r, limit, res, ws.body); err != nil {
		return nil, err
	}
	if !strings.EqualFold(r.Header.Get("Content-Encoding"), "gzip") {
		return ws.body, nil
	}
	zr, err := gzip.NewReader(bytes.NewReader(ws.body))
	if err == nil {
		ws.decoded, err = readAll(zr, limit, res, ws.decoded)
	}
	if isReadError(err) || zr == nil {
		return nil, wire.Invalid(fmt.Errorf("decompress the request: %w", err))
	}
	return ws.decoded, err
}

// decodeOTLP decodes a request, once its shape says that this is within the limits.
func decodeOTLP(body []byte, encoding string, res *reservation) (pmetricotlp.ExportRequest, error) {
	request := pmetricotlp.NewExportRequest()
	if encoding == otlpJSON {
		size, err := measureJSON(body)
		if err != nil {
			return request, wire.Invalid(fmt.Errorf("decode the request: %w", err))
		}
		if err := res.grow(size); err != nil {
			return request, err
		}
		if err := request.UnmarshalJSON(body); err != nil {
			return request, wire.Invalid(fmt.Errorf("decode the request: %w", err))
		}
		if body, err = request.MarshalProto(); err != nil {
			return request, fmt.Errorf("encode the request to check it: %w", err)
		}
	}
	size, err := measureProtobuf(body)
	if err != nil {
		return request, wire.Invalid(fmt.Errorf("decode the request: %w", err))
	}
	if encoding == otlpJSON {
		return request, nil
	}
	if err := res.grow(size); err != nil {
		return request, err
	}
	if err := request.UnmarshalProto(body); err != nil {
		return request, wire.Invalid(fmt.Errorf("decode the request: %w", err))
	}
	return request, nil
}

// encode returns the ExportMetricsServiceResponse. It counts rejected samples as
// data points, of which a histogram's are more than one.
func (a otlpAnswer) encode(encoding string) ([]byte, error) {
	response := pmetricotlp.NewExportResponse()
	if err := a.result.Err(); err != nil {
		rejected := 0
		for _, r := range a.result.Rejected {
			rejected += r.Count
		}
		response.PartialSuccess().SetRejectedDataPoints(int64(min(rejected, max(1, a.points))))
		response.PartialSuccess().SetErrorMessage(clipLine(err.Error()))
	}
	if encoding == otlpJSON {
		return response.MarshalJSON()
	}
	return response.MarshalProto()
}

// encodeStatus returns err as the message Status in the encoding of the request,
// or as plain text if that is unknown.
func encodeStatus(err error, encoding *string) []byte {
	text := clipLine(err.Error())
	status := &rpcstatus.Status{Message: text}
	var body []byte
	var encodeErr error
	switch *encoding {
	case otlpProtobuf:
		body, encodeErr = proto.Marshal(status)
	case otlpJSON:
		body, encodeErr = protojson.Marshal(status)
	}
	if body == nil || encodeErr != nil {
		*encoding = "text/plain; charset=utf-8"
		return []byte(text + "\n")
	}
	return body
}
