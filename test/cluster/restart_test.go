package cluster

import (
	"fmt"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/stretchr/testify/require"
)

// restart stops an ingester and starts it again.
func (w *world) restart(n *node) {
	w.t.Helper()
	w.kill(n)
	n.end()
	n.rec.Incarnation++
	n.rec.Epoch++
	w.serve(n)
	w.net.publish(w.t, n.rec)
	require.NoError(w.t, eventually(func() error {
		if w.metric("hundredfold_distributor_replica_connected", "instance", n.rec.ID) != 1 {
			return fmt.Errorf("%s is not connected", n.rec.ID)
		}
		return nil
	}))
}

// metric returns what a metric of the distributor shows.
func (w *world) metric(name, label, value string) float64 {
	w.t.Helper()
	families, err := w.metrics.Gather()
	require.NoError(w.t, err)
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			for _, pair := range m.GetLabel() {
				if pair.GetName() == label && pair.GetValue() == value {
					return m.GetCounter().GetValue() + m.GetGauge().GetValue()
				}
			}
		}
	}
	return 0
}

// labelBytes returns the bytes of labels that were sent, but for those that check.
func (w *world) labelBytes(reasons ...string) (sum float64) {
	for _, reason := range reasons {
		sum += w.metric("hundredfold_distributor_replica_label_bytes_total", "reason", reason)
	}
	return sum
}

// sizeOfLabels is that of the series that write writes, once.
func sizeOfLabels() (size float64) {
	for i := range 40 {
		for _, name := range []string{"requests_total", "latency"} {
			ls := labels.FromStrings("__name__", name, "pod", fmt.Sprint(i))
			size += float64(ls.ByteSize())
		}
	}
	return size
}

func TestARestartedIngesterIsSentNoLabelsAgain(t *testing.T) {
	w := newWorld(t)
	w.write(0, 20)
	require.InDelta(t, 3*sizeOfLabels(), w.labelBytes("new", "unacknowledged", "unknown"), 0)
	for _, n := range w.nodes {
		w.restart(n)
		w.write(20, 30) // for the second and third one: nothing new
	}
	require.InDelta(t, 3*sizeOfLabels(), w.labelBytes("new", "unacknowledged", "unknown"), 0)
	for _, n := range w.nodes {
		require.Zero(t, w.metric("hundredfold_distributor_replica_unknown_series_total", "instance", n.rec.ID))
	}
	w.requireSame()
}

func TestAnIngesterThatLostItsDiskIsSentEachLabelOnce(t *testing.T) {
	w := newWorld(t)
	w.write(0, 20)
	lost := w.nodes[1]
	lost.dir = t.TempDir()
	lost.rec.Generation++
	w.restart(lost)
	at := int64(20)
	require.NoError(t, eventually(func() error {
		w.write(at, at+1)
		at++
		for _, s := range lost.Summaries() {
			if s.Series == 80 {
				return nil
			}
		}
		return fmt.Errorf("it does not hold all series: %v", lost.Summaries())
	}))
	told := w.labelBytes("unknown", "unacknowledged")
	require.GreaterOrEqual(t, told, sizeOfLabels())
	// If an answer was late the labels went to all three.
	require.LessOrEqual(t, told, 3*sizeOfLabels())
	w.write(at, at+5)
	require.InDelta(t, told, w.labelBytes("unknown", "unacknowledged"), 0)
	w.requireSame()
}
