// Package ui is the pages that a person sees: "/", which says what runs, what
// it holds and how to point Prometheus and Grafana at it, "/graph", which
// runs a query and draws it, "/cluster", which says who belongs to the cluster
// and how it fares, and "/compactor", which says the same of compaction. They use nothing but what is in the binary, and no
// markup or script in them is built from data.
//
// It is no dashboard: Grafana is.
package ui

import (
	"bytes"
	"embed"
	"fmt"
	"html/template"
	"io/fs"
	"log/slog"
	"net/http"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/hundredfold/hundredfold/internal/backlog"
	"github.com/hundredfold/hundredfold/internal/cluster"
	"github.com/hundredfold/hundredfold/internal/tenant"
)

//go:embed assets
var assets embed.FS

// contentSecurityPolicy lets the pages load their own files and ask their own
// API, and nothing else; neither inline scripts nor inline styles run.
const contentSecurityPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"

// Config says what the pages show of the process.
type Config struct {
	Version     string
	Role        string
	MultiTenant bool
	// SelfMonitoring says that the process's own metrics are there to be queried.
	SelfMonitoring bool
	Started        time.Time
}

// Summary says what the process holds.
type Summary struct {
	Tenants      int
	Series       uint64 // in memory
	LocalBlocks  int
	BucketBlocks int
	Oldest       time.Time // zero if there is no sample
	Newest       time.Time
}

// Deps is what the pages ask. The functions are safe for concurrent use.
type Deps struct {
	// Summary MAY return ok false while the process does not know yet, and an error
	// beside what it knows. It MUST NOT block.
	Summary func() (s Summary, ok bool, err error)
	// Waiting returns what the process waits for, and whether it waits.
	Waiting func() (reason string, waiting bool)
	// Cluster is nil in a process that is no node of a cluster.
	Cluster func() cluster.Status
	// Compactor is nil in a process without one. It MAY return ok false before that has
	// started.
	Compactor func() (s backlog.Status, ok bool)
	Logger    *slog.Logger
}

// UI serves the pages. Safe for concurrent use.
type UI struct {
	cfg    Config
	deps   Deps
	pages  *template.Template
	static http.Handler
}

// New returns a UI.
func New(cfg Config, deps Deps) (*UI, error) {
	if deps.Logger == nil {
		deps.Logger = slog.New(slog.DiscardHandler)
	}
	pages, err := template.New("").Funcs(template.FuncMap{"count": count}).ParseFS(assets, "assets/*.html")
	if err != nil {
		return nil, fmt.Errorf("parse the pages: %w", err)
	}
	files, err := fs.Sub(assets, "assets")
	if err != nil {
		return nil, fmt.Errorf("open the assets: %w", err)
	}
	return &UI{cfg: cfg, deps: deps, pages: pages, static: http.FileServerFS(files)}, nil
}

// Home serves "/".
func (u *UI) Home() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u.render(w, "home.html", u.home(r))
	})
}

// Graph serves "/graph".
func (u *UI) Graph() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		u.render(w, "graph.html", struct {
			Config
			TenantHeader string
			Clustered    bool
			Compacts     bool
		}{u.cfg, tenant.Header, u.deps.Cluster != nil, u.deps.Compactor != nil})
	})
}

// Static serves the files that the pages load, by their names below prefix.
func (u *UI) Static(prefix string) http.Handler {
	return http.StripPrefix(prefix, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch path.Ext(r.URL.Path) {
		case ".css", ".js", ".svg":
		default: // neither templates nor listings
			http.NotFound(w, r)
			return
		}
		setHeaders(w)
		u.static.ServeHTTP(w, r)
	}))
}

func setHeaders(w http.ResponseWriter) {
	w.Header().Set("Content-Security-Policy", contentSecurityPolicy)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Referrer-Policy", "no-referrer")
	// The files change with the binary, which has no other way to say so.
	w.Header().Set("Cache-Control", "no-cache")
}

func (u *UI) render(w http.ResponseWriter, name string, data any) {
	var page bytes.Buffer
	if err := u.pages.ExecuteTemplate(&page, name, data); err != nil {
		u.deps.Logger.Error("A page cannot be rendered; the API is not affected.", "page", name, "err", err)
		http.Error(w, "this page cannot be rendered; the log of the server has the details", http.StatusInternalServerError)
		return
	}
	setHeaders(w)
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	// The client may have gone; there is nobody to tell.
	_, _ = page.WriteTo(w)
}

// home is what home.html shows.
type home struct {
	Config
	Clustered bool
	Compacts  bool
	Uptime    string
	Ready     bool
	Reason    string
	Known     bool // whether Summary is
	Problem   string
	Summary   Summary
	Span      string
	Snippets  []snippet
}

// snippet is a piece of configuration to copy.
type snippet struct {
	ID, Title, Where, Text string
}

func (u *UI) home(r *http.Request) home {
	h := home{Config: u.cfg, Clustered: u.deps.Cluster != nil, Compacts: u.deps.Compactor != nil, Uptime: duration(time.Since(u.cfg.Started)), Snippets: u.snippets(r)}
	var waiting bool
	h.Reason, waiting = u.deps.Waiting()
	h.Ready = !waiting

	s, ok, err := u.deps.Summary()
	if err != nil {
		h.Problem = err.Error()
	}
	h.Summary, h.Known = s, ok
	if !s.Oldest.IsZero() && s.Newest.After(s.Oldest) {
		h.Span = duration(s.Newest.Sub(s.Oldest))
	}
	return h
}

func (u *UI) snippets(r *http.Request) []snippet {
	base := baseURL(r)
	user, _, _ := r.BasicAuth()
	return []snippet{
		{ID: "rw1", Title: "Prometheus, remote write 1.0", Where: "prometheus.yml", Text: u.remoteWrite(base, user, "")},
		{ID: "rw2", Title: "Prometheus, remote write 2.0", Where: "prometheus.yml, Prometheus 3 or newer", Text: u.remoteWrite(base, user, "io.prometheus.write.v2.Request")},
		{ID: "grafana", Title: "Grafana data source", Where: "/etc/grafana/provisioning/datasources/hundredfold.yml", Text: u.grafana(base, user)},
	}
}

func (u *UI) remoteWrite(base, user, message string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "remote_write:\n  - url: %s/api/v1/write\n", base)
	if message != "" {
		fmt.Fprintf(&b, "    protobuf_message: %s\n", message)
	}
	b.WriteString("    send_exemplars: true\n    send_native_histograms: true\n")
	if u.cfg.MultiTenant {
		fmt.Fprintf(&b, "    headers:\n      %s: YOUR_TENANT\n", tenant.Header)
	}
	if user != "" {
		fmt.Fprintf(&b, "    basic_auth:\n      username: %s\n      password: YOUR_PASSWORD\n", strconv.Quote(user))
	}
	return b.String()
}

func (u *UI) grafana(base, user string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `apiVersion: 1
datasources:
  - name: Hundredfold
    type: prometheus
    access: proxy
    url: %s
    isDefault: true
`, base)
	if user != "" {
		fmt.Fprintf(&b, "    basicAuth: true\n    basicAuthUser: %s\n", strconv.Quote(user))
	}
	b.WriteString("    jsonData:\n      httpMethod: POST\n      timeInterval: 15s\n")
	if u.cfg.MultiTenant {
		fmt.Fprintf(&b, "      httpHeaderName1: %s\n", tenant.Header)
	}
	if u.cfg.MultiTenant || user != "" {
		b.WriteString("    secureJsonData:\n")
	}
	if u.cfg.MultiTenant {
		b.WriteString("      httpHeaderValue1: YOUR_TENANT\n")
	}
	if user != "" {
		b.WriteString("      basicAuthPassword: YOUR_PASSWORD\n")
	}
	return b.String()
}

var hostPattern = regexp.MustCompile(`^[A-Za-z0-9._:\[\]-]+$`)

// baseURL is where the client reached us, because that is where a Prometheus
// beside it will, too. What a header says is only used if it is plainly a host.
func baseURL(r *http.Request) string {
	scheme := "http"
	if r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https" {
		scheme = "https"
	}
	host := r.Host
	if !hostPattern.MatchString(host) {
		host = "HOST:PORT"
	}
	return scheme + "://" + host
}

// duration is d for people: its two largest units.
func duration(d time.Duration) string {
	units := []struct {
		size time.Duration
		name string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "min"}, {time.Second, "s"}}
	for i, u := range units {
		if d < u.size {
			continue
		}
		text := fmt.Sprintf("%d %s", d/u.size, u.name)
		if i+1 < len(units) {
			if rest := d % u.size / units[i+1].size; rest > 0 {
				text += fmt.Sprintf(" %d %s", rest, units[i+1].name)
			}
		}
		return text
	}
	return "under 1 s"
}

// count writes a whole number with its thousands apart.
func count(n any) string { return group(fmt.Sprint(n)) }

func group(digits string) string {
	if len(digits) <= 3 {
		return digits
	}
	// A thin, unbreakable space: what ISO 80000-1 puts between thousands.
	return group(digits[:len(digits)-3]) + "\u202f" + digits[len(digits)-3:]
}
