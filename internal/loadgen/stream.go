package loadgen

import (
	"errors"
	"iter"

	"github.com/prometheus/prometheus/model/labels"
)

// Stream is one series of a World with the samples that a receiver stores of it, for
// those who write them without sending them. It is immutable.
type Stream struct {
	world    *world
	template *template
	instance *instance
	offset   int64 // ms into the tick
}

// errNoStreams says which Worlds have Streams.
var errNoStreams = errors.New("streams are floats of one tenant that never end: leave out histograms, churn and tenants")

// Streams returns the series of w, pod by pod, in the order in which each pod has them.
func (w World) Streams() (iter.Seq[Stream], error) {
	if err := w.Validate(); err != nil {
		return nil, err
	}
	if w.Histograms > 0 || w.Churn > 0 || w.Tenants > 0 {
		return nil, errNoStreams
	}
	return func(yield func(Stream) bool) {
		world := newWorld(w)
		for pod := range w.pods() {
			in := world.instance(pod, 0)
			for slot := range w.podSeries(pod) {
				if !yield(Stream{world: world, template: world.template(pod, slot), instance: in, offset: world.offset(pod)}) {
					return
				}
			}
		}
	}, nil
}

// Name returns the name of the metric.
func (s Stream) Name() string { return s.template.name }

// Pod returns the number of the pod, from 0.
func (s Stream) Pod() int { return s.instance.pod }

// Labels returns all labels, with the name.
func (s Stream) Labels() labels.Labels {
	b := labels.NewScratchBuilder(2 + podLabels + len(s.template.dims))
	s.template.labels(s.world, s.instance, b.Add)
	return b.Labels()
}

// Ticks returns the ticks [from, to) whose samples lie in the time [mint, maxt), in ms.
func (s Stream) Ticks(mint, maxt int64) (from, to int64) {
	first := func(t int64) int64 { return floorDiv(t-s.offset+s.world.interval-1, s.world.interval) }
	return first(mint), first(maxt)
}

// Sample returns the sample of a tick: its time in ms, and its value.
func (s Stream) Sample(tick int64) (t int64, v float64) {
	return tick*s.world.interval + s.offset, s.world.value(s.template, s.instance, tick)
}

// PodSeries is how many series each pod has, the last one perhaps fewer.
const PodSeries = seriesPerPod
