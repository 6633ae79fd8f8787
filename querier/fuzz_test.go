package querier

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/prompb"

	"github.com/hundredfold/hundredfold/internal/blockstore/blocktest"
)

// Whatever the parameters say, the answer is an answer: nothing panics, and nothing
// that a client sends is an internal error.
func FuzzTheAPIAnswersAnyParameters(f *testing.F) {
	r := newRig(f, rigOption{})
	r.upload(alice, 0, hour, blocktest.Floats("x", 0, hour, minute))
	r.refresh()
	r.limits.MaxQueryDuration = model.Duration(time.Second) // a fuzzer finds queries that take long
	for _, params := range []string{
		"query=x&time=4", "query=rate(x[5m])&start=0&end=1e18&step=1e15", "match[]=x&start=-1e300&end=1e300&limit=0", "match[]=%7B%7D",
		"query=x&time=NaN&lookback_delta=-1s&timeout=1s&stats=all", "limit=-1&limit_per_metric=x&metric=%00", "%zz", "query=x@1e30%20offset%20-1y",
	} {
		f.Add("query", params)
		f.Add("query_range", params)
		f.Add("series", params)
		f.Add("label/x/values", params)
	}
	f.Fuzz(func(t *testing.T, path, params string) {
		for _, target := range []url.URL{{Path: "/api/v1/" + path, RawQuery: params}, {Path: "/federate", RawQuery: params}} {
			req := httptest.NewRequest(http.MethodGet, "/", http.NoBody)
			req.URL = &target
			rec := httptest.NewRecorder()
			r.Handler().ServeHTTP(rec, req.WithContext(as(alice)))
			if rec.Code == http.StatusInternalServerError {
				t.Fatalf("%s: %s", target.String(), rec.Body)
			}
		}
	})
}

func FuzzRemoteReadAnswersAnyBody(f *testing.F) {
	r := newRig(f, rigOption{})
	r.upload(alice, 0, hour, blocktest.Floats("x", 0, hour, minute))
	r.refresh()
	for _, accepted := range [][]prompb.ReadRequest_ResponseType{nil, {prompb.ReadRequest_STREAMED_XOR_CHUNKS}, {9}} {
		f.Add(encodeRead(f, &prompb.ReadRequest{AcceptedResponseTypes: accepted, Queries: []*prompb.Query{{
			EndTimestampMs: hour, Hints: &prompb.ReadHints{Func: "series", StepMs: -1},
			Matchers: []*prompb.LabelMatcher{{Name: "__name__", Value: "x"}, {Type: 9, Name: "a"}},
		}, {}}}))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		rec := httptest.NewRecorder()
		req := httptest.NewRequest(http.MethodPost, "/api/v1/read", bytes.NewReader(body))
		r.Handler().ServeHTTP(rec, req.WithContext(as(alice)))
		if rec.Code == http.StatusInternalServerError {
			t.Fatal(rec.Body)
		}
	})
}
