package main

import (
	"encoding/json"
	"net/http"
	"strings"

	"github.com/hundredfold/hundredfold/distributor"
	"github.com/hundredfold/hundredfold/internal/audit"
	"github.com/hundredfold/hundredfold/internal/blockupload"
	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/tenant"
	"github.com/hundredfold/hundredfold/internal/wire"
	"github.com/hundredfold/hundredfold/querier"
)

const (
	routeWrite = "/api/v1/write"
	routePush  = "/api/v1/push" // as Cortex and Mimir call it
	routeOTLP  = "/api/v1/otlp/v1/metrics"
	routeAdmin = "/api/v1/admin/"
)

func writePatterns() []string { return []string{routeWrite, routePush, routeOTLP} }

// queryPatterns all lead to the querier. The router needs only the last two; the
// others are routes of their own in the metrics.
func queryPatterns() []string {
	return []string{
		"/api/v1/query", "/api/v1/query_range", "/api/v1/query_exemplars",
		"/api/v1/series", "/api/v1/labels", "/api/v1/label/{name}/values",
		"/api/v1/metadata", "/api/v1/read", "/api/v1/rules", "/api/v1/alerts",
		"/api/v1/", "/federate",
	}
}

// apiRoutes is what opens the gate: the tenant is in the requests' contexts. What the
// process's roles do not serve is answered 404 with a word on where it is served.
func (p *process) apiRoutes(d *distributor.Distributor, q *querier.Querier, deleter *querier.Deleter, uploads http.Handler) http.Handler {
	mux := http.NewServeMux()
	write, otlp := elsewhere(cluster.RoleDistributor), elsewhere(cluster.RoleDistributor)
	if p.has(cluster.RoleDistributor) {
		write, otlp = d.WriteHandler(), d.OTLPHandler()
	}
	mux.Handle(routeWrite, write)
	mux.Handle(routePush, write)
	mux.Handle(routeOTLP, otlp)
	mux.Handle(blockupload.Prefix, http.NewCrossOriginProtection().Handler(uploads))
	if q != nil {
		admin := querier.NewAdmin(p.cfg.AdminAPI.Enabled, deleter)
		// A page of another origin that a browser shows must not delete anything.
		mux.Handle(routeAdmin, http.NewCrossOriginProtection().Handler(admin))
		mux.Handle("/", q.Handler())
	} else {
		mux.Handle("/", elsewhere(cluster.RoleQuerier))
	}
	return mux
}

// audited returns a handler for administrators that leaves a line in the log for what they
// do, with the tenant that tenantOf names; nil: it concerns none.
func (p *process) audited(tenantOf func(*http.Request) string, h http.Handler) http.Handler {
	return audit.Handler(p.logger.With("component", "audit"), tenantOf, h)
}

// askedTenant is the tenant that a request asks for, which need not be a valid one.
func (p *process) askedTenant(r *http.Request) string {
	if p.cfg.Multitenancy.Enabled {
		return r.Header.Get(tenant.Header)
	}
	return string(tenant.Default)
}

// servePreview says what retention would do.
func (p *process) servePreview(w http.ResponseWriter, r *http.Request) {
	comp := p.compactor.Load()
	switch {
	case !p.has(cluster.RoleCompactor):
		elsewhere(cluster.RoleCompactor).ServeHTTP(w, r)
	case comp == nil:
		http.Error(w, "the compactor is still starting", http.StatusServiceUnavailable)
	default:
		comp.ServePreview(w, r)
	}
}

// elsewhere answers for a role that this process does not run.
func elsewhere(role cluster.Role) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "this process does not run the "+string(role)+"; ask one that does, /cluster lists them", http.StatusNotFound)
	})
}

// refuse answers a request that has no valid tenant: to queries in the form of
// Prometheus's API, to senders, who log it verbatim, in plain text.
func refuse(w http.ResponseWriter, r *http.Request, err error) {
	status := wire.HTTPStatus(err)
	text := err.Error() + "; multi-tenancy is on, so the header X-Scope-OrgID must name the tenant"
	for _, pattern := range writePatterns() {
		if r.URL.Path == pattern {
			http.Error(w, text, status)
			return
		}
	}
	if !strings.HasPrefix(r.URL.Path, "/api/") {
		http.Error(w, text, status)
		return
	}
	body, marshalErr := json.Marshal(map[string]string{"status": "error", "errorType": "bad_data", "error": text})
	if marshalErr != nil {
		http.Error(w, text, status)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body)
}
