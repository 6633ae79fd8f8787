package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/hundredfold/hundredfold/internal/testcluster/history"
)

// query is a range query and what it must reach.
type query struct {
	name               string
	expr               string
	start, end         time.Time
	step               time.Duration
	cold, warm, cached time.Duration
}

// yearQueries returns the queries that dashboards of a year ask, with the goals of this
// project: cold from the object store, with the pages on local disk, and from the cache
// of results.
func yearQueries(c history.Config) ([]query, error) {
	pods, err := history.Pods(c, history.Counter)
	if err != nil {
		return nil, err
	}
	day := 24 * time.Hour
	ms := time.Millisecond
	return []query{
		{
			"buckets, year", "sum by (le) (rate(" + history.Buckets + "[6h]))",
			c.Start.Add(6 * time.Hour), c.End, 6 * time.Hour, 10 * time.Second, 9 * time.Second, 50 * ms,
		},
		{
			"9 counters, year", "sum by (pod) (rate(" + history.Counter + "[6h]))",
			c.Start.Add(6 * time.Hour), c.End, 6 * time.Hour, 1500 * ms, 200 * ms, 20 * ms,
		},
		{
			"9 gauges, year", "avg_over_time(" + history.Gauge + "[1d])",
			c.Start.Add(day), c.End, day, 1500 * ms, 200 * ms, 20 * ms,
		},
		{
			"one series, year", fmt.Sprintf("rate(%s{pod=%q}[6h])", history.Counter, pods[0]),
			c.Start.Add(6 * time.Hour), c.End, 6 * time.Hour, time.Second, 50 * ms, 10 * ms,
		},
		{
			"buckets, first day", "sum by (le) (rate(" + history.Buckets + "[5m]))",
			c.Start.Add(5 * time.Minute), c.Start.Add(day), time.Minute, 500 * ms, 80 * ms, 20 * ms,
		},
	}, nil
}

// answer is what a system said.
type answer struct {
	took   time.Duration
	series int
	points int
}

// ask sends the query. fresh asks for an answer that is not from the cache of results.
func (s *system) ask(ctx context.Context, q query, fresh bool) (answer, error) {
	form := url.Values{
		"query": {q.expr}, "start": {seconds(q.start)}, "end": {seconds(q.end)}, "step": {strconv.FormatFloat(q.step.Seconds(), 'f', -1, 64)},
	}
	if fresh {
		form.Set("nocache", "1")
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+"/api/v1/query_range", strings.NewReader(form.Encode()))
	if err != nil {
		return answer{}, err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if fresh {
		request.Header.Set("Cache-Control", "no-store")
	}
	client := &http.Client{Timeout: queryTimeout, Transport: &http.Transport{DisableKeepAlives: true}}
	started := time.Now()
	response, err := client.Do(request)
	if err != nil {
		return answer{}, fmt.Errorf("%s: %w", q.name, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	a := answer{took: time.Since(started)}
	if err != nil {
		return a, fmt.Errorf("%s: %w", q.name, err)
	}
	if response.StatusCode != http.StatusOK {
		return a, fmt.Errorf("%s: %s: %s", q.name, response.Status, body[:min(len(body), 500)])
	}
	var decoded struct {
		Data struct {
			Result []struct {
				Values []json.RawMessage `json:"values"`
			} `json:"result"`
		} `json:"data"`
		Warnings []string `json:"warnings"`
	}
	if err := json.Unmarshal(body, &decoded); err != nil {
		return a, fmt.Errorf("%s: %w", q.name, err)
	}
	if len(decoded.Warnings) > 0 {
		return a, fmt.Errorf("%s: the answer has warnings: %v", q.name, decoded.Warnings)
	}
	a.series = len(decoded.Data.Result)
	for _, series := range decoded.Data.Result {
		a.points += len(series.Values)
	}
	if a.points == 0 {
		return a, fmt.Errorf("%s: the answer is empty", q.name)
	}
	return a, nil
}

const queryTimeout = 5 * time.Minute

func seconds(t time.Time) string {
	return strconv.FormatFloat(float64(t.UnixMilli())/1000, 'f', -1, 64)
}
