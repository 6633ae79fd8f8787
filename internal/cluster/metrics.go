package cluster

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Why a message was dropped, as the label reason.
const (
	badUndecodable = "undecodable" // of another release, or damaged
	badInvalid     = "invalid"     // a record that no instance writes
	badForeign     = "foreign"     // of another cluster, or under another secret
)

// How whole replica sets are, as the label health.
const (
	healthWhole      = "whole"       // all members are alive
	healthAtRisk     = "at_risk"     // some are not, and writes still find a quorum
	healthLostQuorum = "lost_quorum" // writes find none
)

type metrics struct {
	members       *prometheus.GaugeVec
	peers         *prometheus.GaugeVec
	disagreeing   prometheus.Gauge
	sets          *prometheus.GaugeVec
	bad           *prometheus.CounterVec
	forgotten     prometheus.Counter
	placements    prometheus.Counter
	saveFailures  prometheus.Counter
	exchangeFails prometheus.Counter
}

// newMetrics registers the metrics. age is how long ago another node was heard.
func newMetrics(reg prometheus.Registerer, age func() time.Duration) *metrics {
	f := promauto.With(reg)
	m := &metrics{
		members: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "hundredfold_cluster_members",
			Help: "Ingesters in the registry, by state.",
		}, []string{"state"}),
		peers: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "hundredfold_cluster_peers",
			Help: "Processes that are alive as far as this one knows, itself included, by role.",
		}, []string{"role"}),
		disagreeing: f.NewGauge(prometheus.GaugeOpts{
			Name: "hundredfold_cluster_disagreeing_peers",
			Help: "Live processes whose registry or replication factor differs from this one's.",
		}),
		sets: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "hundredfold_cluster_replica_sets",
			Help: "Replica sets by health: whole, at_risk (a member is dead) or lost_quorum (writes cannot be acknowledged).",
		}, []string{"health"}),
		bad: f.NewCounterVec(prometheus.CounterOpts{
			Name: "hundredfold_cluster_bad_messages_total",
			Help: "Messages of other nodes that were dropped, by reason: undecodable, invalid or foreign (another cluster's name or secret).",
		}, []string{"reason"}),
		forgotten: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_cluster_forgotten_instances_total",
			Help: "Dead ingesters that this node declared to have left.",
		}),
		placements: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_cluster_placement_changes_total",
			Help: "How often slots moved because the placing ingesters changed.",
		}),
		saveFailures: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_cluster_registry_save_failures_total",
			Help: "Failures to write the registry to the data directory.",
		}),
		exchangeFails: f.NewCounter(prometheus.CounterOpts{
			Name: "hundredfold_cluster_exchange_failures_total",
			Help: "Exchanges with listed peers that failed.",
		}),
	}
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "hundredfold_cluster_view_age_seconds",
		Help: "Time since another node was heard; 0 if this one knows of no others.",
	}, func() float64 { return age().Seconds() })
	for _, reason := range []string{badUndecodable, badInvalid, badForeign} {
		m.bad.WithLabelValues(reason)
	}
	return m
}

// show sets the gauges that follow the view.
func (m *metrics) show(v *View, sets []replicaSet) {
	states := map[State]int{}
	for _, rec := range v.Registry.Records() {
		states[rec.State]++
	}
	for state, name := range stateNames {
		m.members.WithLabelValues(name).Set(float64(states[state]))
	}
	for _, role := range roleBits {
		m.peers.WithLabelValues(string(role)).Set(float64(len(v.Running(role))))
	}
	disagreeing := 0
	for _, p := range v.Peers {
		if !v.agrees(p) {
			disagreeing++
		}
	}
	m.disagreeing.Set(float64(disagreeing))
	health := map[string]int{}
	for _, set := range sets {
		health[set.health(v)]++
	}
	for _, h := range []string{healthWhole, healthAtRisk, healthLostQuorum} {
		m.sets.WithLabelValues(h).Set(float64(health[h]))
	}
}
