package querier

import (
	"errors"
	"fmt"
	"net/http"
	"sync"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/prompb"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/storage/remote"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"

	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
)

// maxFrameBytes is how large a frame of streamed remote read becomes, roughly; it is
// Prometheus's default, and far below the limit of its client.
const maxFrameBytes = 1 << 20

// remoteRead serves Prometheus's remote read, as samples or as streamed chunks. It is
// not Prometheus's own handler since that knows neither limits of tenants nor errors
// that may be tried again, and ends a stream that breaks as if it were complete.
func (q *Querier) remoteRead(w http.ResponseWriter, r *http.Request) {
	req, err := remote.DecodeReadRequest(r) // it bounds the body, also decompressed
	if err != nil {
		http.Error(w, fmt.Sprintf("decode the remote read request: %s", err), http.StatusBadRequest)
		return
	}
	kind, err := remote.NegotiateResponseType(req.AcceptedResponseTypes)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if kind == prompb.ReadRequest_STREAMED_XOR_CHUNKS {
		err = q.streamChunks(w, r, req)
	} else {
		err = q.readSamples(w, r, req)
	}
	if err != nil {
		status, known := statusOf(err)
		if !known {
			status = wire.HTTPStatus(err)
		}
		http.Error(w, err.Error(), status)
	}
}

// readSamples answers with all samples at once, as many as the tenant may have in
// memory. Nothing is written if there is an error.
func (q *Querier) readSamples(w http.ResponseWriter, r *http.Request, req *prompb.ReadRequest) error {
	id, err := tenant.FromContext(r.Context())
	if err != nil {
		return err
	}
	limit := q.limits(id).MaxQuerySamples
	left := limit
	var listed listing
	resp := prompb.ReadResponse{Results: make([]*prompb.QueryResult, len(req.Queries))}
	for i, query := range req.Queries {
		if limit > 0 && left <= 0 {
			return tooManySamples(id, limit, nil)
		}
		if resp.Results[i], err = q.readQuery(r, query, left, &listed); err != nil {
			var overLimit remote.HTTPError
			if errors.As(err, &overLimit) {
				return tooManySamples(id, limit, err)
			}
			return err
		}
		for _, series := range resp.Results[i].Timeseries {
			left -= len(series.Samples) + len(series.Histograms)
		}
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
	w.Header().Set("Content-Encoding", "snappy")
	if err := remote.EncodeReadResponse(&resp, w); err != nil {
		panic(http.ErrAbortHandler) // a part may have been sent
	}
	return nil
}

// readQuery answers one query of a request; limit 0 is no limit.
func (q *Querier) readQuery(r *http.Request, query *prompb.Query, limit int, listed *listing) (_ *prompb.QueryResult, err error) {
	matchers, hints, err := parseReadQuery(query)
	if err != nil {
		return nil, err
	}
	querier, err := q.Queryable().Querier(query.StartTimestampMs, query.EndTimestampMs)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, querier.Close()) }()
	result, _, err := remote.ToQueryResult(listed.bound(querier.Select(r.Context(), false, hints, matchers...)), limit)
	return result, err
}

// streamChunks answers series by series. An error before the first byte is returned;
// after that the connection is cut, for only then the client knows that the answer
// is not whole.
func (q *Querier) streamChunks(w http.ResponseWriter, r *http.Request, req *prompb.ReadRequest) error {
	out := &startedWriter{ResponseWriter: w}
	flusher, ok := w.(http.Flusher)
	if !ok {
		return errors.New("BUG: the connection cannot be flushed")
	}
	w.Header().Set("Content-Type", "application/x-streamed-protobuf; proto=prometheus.ChunkedReadResponse")
	stream := remote.NewChunkedWriter(out, flusher)
	buffers := &sync.Pool{}
	for i, query := range req.Queries {
		if err := q.streamQuery(stream, r, int64(i), query, buffers); err != nil {
			if out.started {
				q.logger.Warn("A remote read broke off; its client sees an incomplete stream", "err", err)
				panic(http.ErrAbortHandler)
			}
			return err
		}
		stream.Close() // sends what is buffered; the writer can be used on
	}
	return nil
}

func (q *Querier) streamQuery(stream *remote.ChunkedWriter, r *http.Request, index int64, query *prompb.Query, buffers *sync.Pool) (err error) {
	matchers, hints, err := parseReadQuery(query)
	if err != nil {
		return err
	}
	querier, err := q.Queryable().ChunkQuerier(query.StartTimestampMs, query.EndTimestampMs)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, querier.Close()) }()
	set := querier.Select(r.Context(), true, hints, matchers...) // the protocol wants them sorted
	_, err = remote.StreamChunkedReadResponses(stream, index, plainChunkSet{set}, nil, maxFrameBytes, buffers)
	return err
}

func parseReadQuery(query *prompb.Query) ([]*labels.Matcher, *storage.SelectHints, error) {
	matchers, err := remote.FromLabelMatchers(query.Matchers)
	if err != nil {
		return nil, nil, wire.Invalid(fmt.Errorf("matchers of the remote read request: %w", err))
	}
	if query.Hints == nil {
		return matchers, nil, nil
	}
	return matchers, &storage.SelectHints{
		Start:    query.Hints.StartMs,
		End:      query.Hints.EndMs,
		Step:     query.Hints.StepMs,
		Func:     query.Hints.Func,
		Grouping: query.Hints.Grouping,
		Range:    query.Hints.RangeMs,
		By:       query.Hints.By,
	}, nil
}

// startedWriter knows whether anything has been sent.
type startedWriter struct {
	http.ResponseWriter
	started bool
}

func (w *startedWriter) Write(p []byte) (int, error) {
	w.started = true
	return w.ResponseWriter.Write(p)
}

// plainChunkSet offers chunks in the encodings that every client of streamed remote
// read knows. The protocol has no way to ask for others, and blocks may hold them:
// XOR2, and the encodings with start timestamps. Those timestamps are left out.
type plainChunkSet struct{ storage.ChunkSeriesSet }

func (s plainChunkSet) At() storage.ChunkSeries { return plainChunkSeries{s.ChunkSeriesSet.At()} }

type plainChunkSeries struct{ storage.ChunkSeries }

func (s plainChunkSeries) Iterator(chunks.Iterator) chunks.Iterator {
	return &plainChunks{labels: s.Labels(), in: s.ChunkSeries.Iterator(nil)}
}

// plainChunks turns each chunk that must be turned into one or more others.
type plainChunks struct {
	labels labels.Labels
	in     chunks.Iterator
	parts  chunks.Iterator // of the current chunk, if it is turned; else nil
	at     chunks.Meta
	err    error
}

func (p *plainChunks) Next() bool {
	for p.err == nil {
		if p.parts != nil {
			if p.parts.Next() {
				p.at = p.parts.At()
				return true
			}
			p.err, p.parts = p.parts.Err(), nil
			continue
		}
		if !p.in.Next() {
			p.err = p.in.Err()
			return false
		}
		p.at = p.in.At()
		if p.at.Chunk == nil {
			return true // the encoder reports it
		}
		switch p.at.Chunk.Encoding() {
		case chunkenc.EncXOR, chunkenc.EncHistogram, chunkenc.EncFloatHistogram:
			return true
		}
		chunk := p.at.Chunk
		p.parts = storage.NewSeriesToChunkEncoder(&storage.SeriesEntry{
			Lset: p.labels,
			SampleIteratorFn: func(chunkenc.Iterator) chunkenc.Iterator {
				return withoutStart{chunk.Iterator(nil)}
			},
		}).Iterator(nil)
	}
	return false
}

func (p *plainChunks) At() chunks.Meta { return p.at }
func (p *plainChunks) Err() error      { return p.err }

// withoutStart hides start timestamps: the encoder chooses its encoding by them.
type withoutStart struct{ chunkenc.Iterator }

func (withoutStart) AtST() int64 { return 0 }
