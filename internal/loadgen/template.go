package loadgen

import (
	"fmt"
	"slices"
	"strings"

	"github.com/prometheus/prometheus/prompb"

	"github.com/hundredfold/hundredfold/internal/write"
)

// template is one of the series that every pod has: all of its labels that do
// not come from the pod, and what its values look like.
type template struct {
	name  string
	dims  [2]dimension // with __name__ and the pod's labels: 11 labels
	kind  kind
	scale float64 // per second for counters, the typical size for gauges
	group uint64  // series of one group follow one counter
	// fraction is the share of the group's counter that a bucket counts.
	fraction float64

	family     string // the name under which the type is announced
	metricType prompb.MetricMetadata_MetricType
	pieces     []piece  // the labels for remote write 1.0
	refs       []symbol // name, value, name, value ... for remote write 2.0
}

type dimension struct{ name, value string }

// kind says how a series' values come about; see value.go.
type kind int

const (
	kindCounter  kind = iota // whole numbers
	kindSeconds              // counts with two decimals
	kindBytes                // a gauge in multiples of 4096
	kindCount                // a gauge of whole numbers
	kindFraction             // a gauge with many digits
	kindConstant             // scale
	kindStart                // the time of the last reset, in seconds
	kindBucket               // fraction of the group's counter
	kindSum                  // sum of what the group's counter counted
	kindNative               // native histogram of the group's counter
)

// piece is a part of a label set in canonical form: either literal bytes or the
// labels [from, to) of the pod.
type piece struct {
	literal  []byte
	from, to int
}

// symbol refers to a string: of the pod's values if it is below podLabels, else
// to symbols[symbol-podLabels] of the world.
type symbol int

// seriesPerPod is how many series each pod has.
const seriesPerPod = 73

func bucketBounds() []string {
	return []string{"0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "+Inf"}
}

func bucketFractions() []float64 {
	return []float64{0.02, 0.09, 0.31, 0.55, 0.74, 0.88, 0.95, 0.98, 0.993, 0.998, 0.9995, 1}
}

// newTemplates returns the float series of a pod, as many native histograms as
// asked for, and the strings that they refer to.
func newTemplates(histograms int) (floats, natives []template, symbols []string) {
	floats = slices.Concat(requestTemplates(), durationTemplates(), runtimeTemplates(), containerTemplates())
	if len(floats) != seriesPerPod {
		panic(fmt.Sprintf("BUG: %d templates, not %d", len(floats), seriesPerPod))
	}
	for i := range histograms {
		natives = append(natives, template{
			name: "rpc_server_handling_seconds",
			dims: [2]dimension{{"grpc_method", fmt.Sprintf("Method%02d", i)}, {"grpc_service", "shop.v1.Service"}},
			kind: kindNative, scale: 8, group: uint64(1000 + i),
		})
	}
	known := map[string]symbol{}
	intern := func(s string) symbol {
		id, ok := known[s]
		if !ok {
			id = podLabels + symbol(len(symbols))
			known[s] = id
			symbols = append(symbols, s)
		}
		return id
	}
	for _, list := range [][]template{floats, natives} {
		for i := range list {
			if list[i].group == 0 {
				list[i].group = uint64(2000 + i)
			}
			list[i].announce()
			list[i].assemble(intern)
		}
	}
	return floats, natives, symbols
}

// assemble derives pieces and refs.
func (t *template) assemble(intern func(string) symbol) {
	type label struct {
		name, value string
		pod         int // index of the pod's label, -1 if the template's own
	}
	all := []label{{"__name__", t.name, -1}}
	for _, d := range t.dims {
		all = append(all, label{d.name, d.value, -1})
	}
	for i, name := range podLabelNames() {
		all = append(all, label{name, "", i})
	}
	slices.SortFunc(all, func(a, b label) int { return strings.Compare(a.name, b.name) })

	for _, l := range all {
		last := len(t.pieces) - 1
		switch {
		case l.pod < 0 && last >= 0 && t.pieces[last].literal != nil:
			t.pieces[last].literal = write.AppendCanonical(t.pieces[last].literal, l.name, l.value)
		case l.pod < 0:
			t.pieces = append(t.pieces, piece{literal: write.AppendCanonical(nil, l.name, l.value)})
		case last >= 0 && t.pieces[last].literal == nil && t.pieces[last].to == l.pod:
			t.pieces[last].to++
		default:
			t.pieces = append(t.pieces, piece{from: l.pod, to: l.pod + 1})
		}
		value := symbol(l.pod)
		if l.pod < 0 {
			value = intern(l.value)
		}
		t.refs = append(t.refs, intern(l.name), value)
	}
}

// labels calls f for every label of the series that in has of t, sorted by name.
func (t *template) labels(w *world, in *instance, f func(name, value string)) {
	lookup := func(s symbol) string {
		if s < podLabels {
			return in.values[s]
		}
		return w.symbols[s-podLabels]
	}
	for i := 0; i < len(t.refs); i += 2 {
		f(lookup(t.refs[i]), lookup(t.refs[i+1]))
	}
}

// announce derives family and metricType. The numbers of the types are the same
// in both protocols.
func (t *template) announce() {
	t.family = t.name
	switch t.kind {
	case kindCounter, kindSeconds:
		t.metricType = prompb.MetricMetadata_COUNTER
	case kindNative:
		t.metricType = prompb.MetricMetadata_HISTOGRAM
	case kindBucket, kindSum:
		t.metricType = prompb.MetricMetadata_HISTOGRAM
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			t.family = strings.TrimSuffix(t.family, suffix)
		}
	default:
		t.metricType = prompb.MetricMetadata_GAUGE
	}
}

// Series with fewer than two dimensions of their own get one of these.
func endpoint() dimension { return dimension{"endpoint", "http-metrics"} }
func scraper() dimension  { return dimension{"prometheus", "monitoring/k8s"} }

func plain(name string, k kind, scale float64) template {
	return template{name: name, dims: [2]dimension{endpoint(), scraper()}, kind: k, scale: scale}
}

func dimensioned(name, label, value string, k kind, scale float64) template {
	return template{name: name, dims: [2]dimension{{label, value}, endpoint()}, kind: k, scale: scale}
}

func requestTemplates() []template {
	var out []template
	for _, r := range []struct {
		method, code string
		rate         float64
	}{
		{"GET", "200", 20},
		{"POST", "200", 5},
		{"DELETE", "204", 0.2},
		{"GET", "304", 3},
		{"POST", "400", 0.05},
		{"GET", "401", 0.02},
		{"GET", "404", 0.3},
		{"POST", "429", 0.01},
		{"GET", "500", 0.02},
		{"GET", "503", 0.005},
	} {
		out = append(out, template{
			name: "http_requests_total", dims: [2]dimension{{"code", r.code}, {"method", r.method}},
			kind: kindCounter, scale: r.rate,
		})
	}
	for _, method := range []string{"Get", "List", "Put", "Watch"} {
		out = append(out, dimensioned("grpc_client_started_total", "grpc_method", method, kindCounter, 2))
	}
	return out
}

// durationTemplates returns classic histograms. All series of one handler follow
// one counter, so that buckets and count agree.
func durationTemplates() []template {
	const name = "http_request_duration_seconds"
	fractions := bucketFractions()
	var out []template
	for i, handler := range []string{"/api/v1/items", "/api/v1/users"} {
		group := uint64(i + 1)
		for j, le := range bucketBounds() {
			out = append(out, template{
				name: name + "_bucket", dims: [2]dimension{{"handler", handler}, {"le", le}},
				kind: kindBucket, scale: 15, group: group, fraction: fractions[j],
			})
		}
		for _, end := range []struct {
			suffix string
			kind   kind
		}{{"_sum", kindSum}, {"_count", kindBucket}} {
			out = append(out, template{
				name: name + end.suffix, dims: [2]dimension{{"handler", handler}, endpoint()},
				kind: end.kind, scale: 15, group: group, fraction: 1,
			})
		}
	}
	return out
}

func runtimeTemplates() []template {
	return []template{
		plain("go_goroutines", kindCount, 180),
		plain("go_threads", kindCount, 14),
		plain("go_memstats_alloc_bytes_total", kindCounter, 4e6),
		plain("go_memstats_heap_alloc_bytes", kindBytes, 60e6),
		plain("go_memstats_heap_inuse_bytes", kindBytes, 80e6),
		plain("go_memstats_next_gc_bytes", kindBytes, 110e6),
		plain("go_gc_duration_seconds_sum", kindSeconds, 0.02),
		plain("go_gc_duration_seconds_count", kindCounter, 0.1),
		dimensioned("go_info", "version", "go1.26.0", kindConstant, 1),
		plain("process_cpu_seconds_total", kindSeconds, 0.4),
		plain("process_resident_memory_bytes", kindBytes, 150e6),
		plain("process_open_fds", kindCount, 40),
		plain("process_max_fds", kindConstant, 1048576),
		plain("process_start_time_seconds", kindStart, 0),
		plain("up", kindConstant, 1),
		plain("scrape_duration_seconds", kindFraction, 0.02),
		plain("scrape_samples_scraped", kindConstant, seriesPerPod),
	}
}

func containerTemplates() []template {
	out := []template{
		plain("container_memory_working_set_bytes", kindBytes, 140e6),
		plain("container_cpu_usage_seconds_total", kindSeconds, 0.5),
		plain("container_cpu_cfs_throttled_periods_total", kindCounter, 0.3),
		dimensioned("container_network_receive_bytes_total", "interface", "eth0", kindCounter, 2e5),
		dimensioned("container_network_transmit_bytes_total", "interface", "eth0", kindCounter, 1e5),
		dimensioned("container_fs_writes_bytes_total", "device", "/dev/nvme0n1", kindCounter, 3e4),
		plain("kube_pod_container_status_restarts_total", kindConstant, 0),
		dimensioned("kube_pod_container_resource_requests", "resource", "cpu", kindConstant, 0.5),
		dimensioned("kube_pod_container_resource_requests", "resource", "memory", kindConstant, 256<<20),
	}
	for _, phase := range []string{"Pending", "Running", "Succeeded", "Failed", "Unknown"} {
		value := 0.0
		if phase == "Running" {
			value = 1
		}
		out = append(out, dimensioned("kube_pod_status_phase", "phase", phase, kindConstant, value))
	}
	return out
}
