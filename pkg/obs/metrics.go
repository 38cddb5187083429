package obs

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// maxSeries bounds one metric: label values may come from outside, and memory
// may not grow with them. Past it everything counts into one series whose
// labels all say "other".
const maxSeries = 2000

var (
	metricName = regexp.MustCompile(`^[a-zA-Z_:][a-zA-Z0-9_:]*$`)
	labelName  = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`)
)

// Registry holds the metrics of one process, or of one part in a test; there
// is no global one. Registering a name twice, or a name that Prometheus cannot
// read, is a mistake of the programmer and panics.
type Registry struct {
	mu       sync.Mutex
	families map[string]*family
}

// NewRegistry returns an empty registry.
func NewRegistry() *Registry { return &Registry{families: make(map[string]*family)} }

// Counter registers a number that only grows. Its name ends in _total.
func (r *Registry) Counter(name, help string) *Counter {
	return &Counter{r.register(name, help, "counter", nil).get(nil)}
}

// Gauge registers a number that goes up and down.
func (r *Registry) Gauge(name, help string) *Gauge {
	return &Gauge{r.register(name, help, "gauge", nil).get(nil)}
}

// CounterFunc registers a counter that is read when somebody asks.
func (r *Registry) CounterFunc(name, help string, fn func() float64) {
	r.register(name, help, "counter", nil).fn = fn
}

// GaugeFunc registers a gauge that is read when somebody asks. fn is called
// from the goroutine of the request.
func (r *Registry) GaugeFunc(name, help string, fn func() float64) {
	r.register(name, help, "gauge", nil).fn = fn
}

// CounterVec registers a counter with labels.
func (r *Registry) CounterVec(name, help string, labels ...string) *CounterVec {
	return &CounterVec{r.register(name, help, "counter", labels)}
}

// GaugeVec registers a gauge with labels.
func (r *Registry) GaugeVec(name, help string, labels ...string) *GaugeVec {
	return &GaugeVec{r.register(name, help, "gauge", labels)}
}

// Histogram registers a distribution: how many observations were at most each
// of the bounds, their number and their sum. The bounds rise, and are finite.
func (r *Registry) Histogram(name, help string, bounds []float64) *Histogram {
	return r.HistogramVec(name, help, bounds).With()
}

// HistogramVec registers a distribution with labels; none of them may be "le",
// which says the bound.
func (r *Registry) HistogramVec(name, help string, bounds []float64, labels ...string) *HistogramVec {
	for i, b := range bounds {
		if math.IsNaN(b) || math.IsInf(b, 0) || i > 0 && b <= bounds[i-1] {
			panic(fmt.Sprintf("obs: bounds %v of metric %s", bounds, name))
		}
	}
	if slices.Contains(labels, "le") {
		panic(fmt.Sprintf("obs: label le of metric %s", name))
	}
	f := r.register(name, help, "histogram", labels)
	f.bounds = slices.Clone(bounds)
	return &HistogramVec{f}
}

func (r *Registry) register(name, help, kind string, labels []string) *family {
	if !metricName.MatchString(name) {
		panic(fmt.Sprintf("obs: metric name %q", name))
	}
	for i, l := range labels {
		if !labelName.MatchString(l) || strings.HasPrefix(l, "__") || slices.Contains(labels[:i], l) {
			panic(fmt.Sprintf("obs: label %q of metric %s", l, name))
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.families[name] != nil {
		panic(fmt.Sprintf("obs: metric %s registered twice", name))
	}
	f := &family{name: name, help: help, kind: kind, labels: slices.Clone(labels), series: make(map[string]*series)}
	r.families[name] = f
	return f
}

// family is one metric with all its series.
type family struct {
	name, help, kind string
	labels           []string
	bounds           []float64      // of a histogram
	fn               func() float64 // instead of series

	mu     sync.Mutex
	series map[string]*series // by joined label values
}

// series is one number. The bits are a float64: atomic.Uint64 is aligned on
// 32-bit hubs too.
type series struct {
	values []string
	bits   atomic.Uint64
	hist   *histogram // instead of bits
}

// histogram is a distribution. One lock keeps count, sum and buckets of one
// moment: a scraper computes with all three.
type histogram struct {
	mu     sync.Mutex
	counts []uint64 // by bound, and what is above all of them; not cumulative
	sum    float64
}

func (s *series) load() float64   { return math.Float64frombits(s.bits.Load()) }
func (s *series) store(v float64) { s.bits.Store(math.Float64bits(v)) }

func (s *series) add(v float64) {
	for {
		old := s.bits.Load()
		if s.bits.CompareAndSwap(old, math.Float64bits(math.Float64frombits(old)+v)) {
			return
		}
	}
}

// get returns the series of values, making it if there is room.
func (f *family) get(values []string) *series {
	if len(values) != len(f.labels) {
		panic(fmt.Sprintf("obs: metric %s has labels %q, got values %q", f.name, f.labels, values))
	}
	key := seriesKey(values)
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.series[key]; s != nil {
		return s
	}
	if len(f.series) >= maxSeries {
		other := slices.Repeat([]string{"other"}, len(values))
		values, key = other, seriesKey(other)
		if s := f.series[key]; s != nil {
			return s
		}
	}
	s := &series{values: slices.Clone(values)}
	if f.kind == "histogram" {
		s.hist = &histogram{counts: make([]uint64, len(f.bounds)+1)}
	}
	f.series[key] = s
	return s
}

func (f *family) delete(values []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.series, seriesKey(values))
}

// seriesKey joins with a byte that is in no UTF-8 text.
func seriesKey(values []string) string { return strings.Join(values, "\xff") }

// Counter only grows.
type Counter struct{ s *series }

// Inc adds one.
func (c *Counter) Inc() { c.s.add(1) }

// Add adds v; what is negative or no number is ignored, since a counter that
// falls reads as a restart.
func (c *Counter) Add(v float64) {
	if v > 0 && !math.IsInf(v, 1) {
		c.s.add(v)
	}
}

// Value returns the sum so far.
func (c *Counter) Value() float64 { return c.s.load() }

// Gauge goes up and down.
type Gauge struct{ s *series }

// Set replaces the number.
func (g *Gauge) Set(v float64) { g.s.store(v) }

// Add adds v, which may be negative.
func (g *Gauge) Add(v float64) { g.s.add(v) }

// Value returns the number.
func (g *Gauge) Value() float64 { return g.s.load() }

// CounterVec is a counter per combination of label values.
type CounterVec struct{ f *family }

// With returns the counter of these label values, in the order of registration.
func (v *CounterVec) With(values ...string) *Counter { return &Counter{v.f.get(values)} }

// Delete forgets the counter of these values: its channel or hub is gone.
func (v *CounterVec) Delete(values ...string) { v.f.delete(values) }

// GaugeVec is a gauge per combination of label values.
type GaugeVec struct{ f *family }

// With returns the gauge of these label values, in the order of registration.
func (v *GaugeVec) With(values ...string) *Gauge { return &Gauge{v.f.get(values)} }

// Delete forgets the gauge of these values: its channel or hub is gone.
func (v *GaugeVec) Delete(values ...string) { v.f.delete(values) }

// Histogram is a distribution.
type Histogram struct {
	h      *histogram
	bounds []float64
}

// Observe counts v; what is no number is ignored.
func (h *Histogram) Observe(v float64) {
	if math.IsNaN(v) {
		return
	}
	i, _ := slices.BinarySearch(h.bounds, v) // the first bound that is not below v
	h.h.mu.Lock()
	defer h.h.mu.Unlock()
	h.h.counts[i]++
	h.h.sum += v
}

// Count returns how many were observed.
func (h *Histogram) Count() uint64 {
	counts, _ := h.h.read()
	var n uint64
	for _, c := range counts {
		n += c
	}
	return n
}

// Sum returns what all observations add up to.
func (h *Histogram) Sum() float64 {
	_, sum := h.h.read()
	return sum
}

func (h *histogram) read() (counts []uint64, sum float64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.counts), h.sum
}

// HistogramVec is a histogram per combination of label values.
type HistogramVec struct{ f *family }

// With returns the histogram of these label values, in the order of registration.
func (v *HistogramVec) With(values ...string) *Histogram {
	return &Histogram{v.f.get(values).hist, v.f.bounds}
}

// Delete forgets the histogram of these values: its channel or hub is gone.
func (v *HistogramVec) Delete(values ...string) { v.f.delete(values) }
