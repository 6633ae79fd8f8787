package querier

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/route"
	"github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/rules"
	"github.com/prometheus/prometheus/scrape"
	v1 "github.com/prometheus/prometheus/web/api/v1"
)

// prometheusVersion is the version of the Prometheus whose API and PromQL this is.
// Grafana picks the features it uses by it, and takes a server whose build
// information lists "features" for Mimir, so there are none.
const prometheusVersion = "3.15.0"

var errNotExposed = errors.New("BUG: a route of Prometheus is reached that is not exposed")

// newPrometheusAPI returns Prometheus's own API. It serves whatever it is asked: the
// allow-list is the caller's. What the routes on that list do not use is empty.
func (q *Querier) newPrometheusAPI() http.HandlerFunc {
	api := v1.NewAPI(
		q.engines,
		q.Queryable(),
		nil, nil, // no appendables
		q.ExemplarQueryable(),
		func(context.Context) v1.ScrapePoolsRetriever { return nothing{} },
		func(context.Context) v1.TargetRetriever { return nothing{} },
		func(context.Context) v1.AlertmanagerRetriever { return nothing{} },
		func() config.Config { return config.Config{} },
		nil, // flags
		v1.GlobalURLOptions{},
		func(f http.HandlerFunc) http.HandlerFunc { return f }, // admission is the caller's
		nil, "", // no TSDB
		false,    // no admin API
		false, 0, // no search API
		q.logger,
		func(context.Context) v1.RulesRetriever { return nothing{} },
		1, 1, 1, // its remote read is not used
		false, // not an agent
		anyOrigin,
		func() (v1.RuntimeInfo, error) { return v1.RuntimeInfo{}, errNotExposed },
		&v1.PrometheusVersion{
			Version:   prometheusVersion,
			Revision:  "hundredfold " + q.cfg.Version,
			GoVersion: runtime.Version(),
		},
		nil, nil, // no notifications
		prometheus.NewRegistry(), nil, // no metrics to show, none to add
		renderStats,
		false, nil, // no remote write
		false, false, false, // no OTLP
		false, // no zero samples at start timestamps
		lookbackDelta,
		false, false, // no type and unit labels, no metadata appended
		overrideStatus,
		nil, // no feature registry
		v1.OpenAPIOptions{IncludePaths: []string{"/none"}}, // its description is not served, and takes a second to make
		newParser(),
	)
	router := route.New()
	api.Register(router.WithPrefix(apiPrefix))
	return router.ServeHTTP
}

// overrideStatus is a v1.OverrideErrorCode. It is generic since the type of its first
// parameter, Prometheus's kind of the error, has no name outside of that package.
func overrideStatus[Kind any](_ Kind, err error) (status int, override bool) { return statusOf(err) }

// nothing is what Prometheus's API shows of parts that do not exist here: no targets,
// no Alertmanagers, no rules.
type nothing struct{}

func (nothing) ScrapePools() []string                                 { return nil }
func (nothing) TargetsActive() map[string][]*scrape.Target            { return nil }
func (nothing) TargetsDropped() map[string][]*scrape.Target           { return nil }
func (nothing) TargetsDroppedCounts() map[string]int                  { return nil }
func (nothing) ScrapePoolConfig(string) (*config.ScrapeConfig, error) { return nil, errNotExposed }
func (nothing) Alertmanagers() []*url.URL                             { return nil }
func (nothing) DroppedAlertmanagers() []*url.URL                      { return nil }
func (nothing) RuleGroups() []*rules.Group                            { return nil }
func (nothing) AlertingRules() []*rules.AlertingRule                  { return nil }
