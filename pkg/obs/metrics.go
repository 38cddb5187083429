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
	fn               func() float64 // instead of series

	mu     sync.Mutex
	series map[string]*series // by joined label values
}

// series is one number. The bits are a float64: atomic.Uint64 is aligned on
// 32-bit hubs too.
type series struct {
	values []string
	bits   atomic.Uint64
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
