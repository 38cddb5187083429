package obs

import (
	"math"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
)

func TestExposition(t *testing.T) {
	r := NewRegistry()
	r.Counter("vms_chunks_total", "Chunks taken over.").Add(3)
	r.Gauge("vms_held_bytes", "Back\\slash and\nnew line, \"quotes\" stay.").Set(1.5e9)
	r.GaugeFunc("vms_up", "", func() float64 { return 1 })
	r.CounterFunc("vms_inf_total", "", func() float64 { return math.Inf(1) })
	v := r.CounterVec("vms_errors_total", "Errors.", "channel", "code")
	v.With("b", `say "no"`+"\n").Inc()
	v.With("a", `c:\x`).Add(2)
	r.GaugeVec("vms_empty", "Has no series yet.", "x")

	rec := httptest.NewRecorder()
	r.ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	const want = `# HELP vms_chunks_total Chunks taken over.
# TYPE vms_chunks_total counter
vms_chunks_total 3
# HELP vms_errors_total Errors.
# TYPE vms_errors_total counter
vms_errors_total{channel="a",code="c:\\x"} 2
vms_errors_total{channel="b",code="say \"no\"\n"} 1
# HELP vms_held_bytes Back\\slash and\nnew line, "quotes" stay.
# TYPE vms_held_bytes gauge
vms_held_bytes 1.5e+09
# TYPE vms_inf_total counter
vms_inf_total +Inf
# TYPE vms_up gauge
vms_up 1
`
	if got := rec.Body.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got := rec.Header().Get("Content-Type"); got != expositionType {
		t.Errorf("Content-Type %q", got)
	}
}

func TestHistogramExposition(t *testing.T) {
	r := NewRegistry()
	h := r.Histogram("vms_upload_seconds", "Time of a try.", []float64{0.5, 2})
	for _, v := range []float64{0.25, 0.5, 1, 2.5, math.NaN()} { // a bound belongs to its bucket
		h.Observe(v)
	}
	v := r.HistogramVec("vms_tries", "", []float64{1}, "result", "store")
	v.With("ok", "a").Observe(math.Inf(1))
	v.With("bad", "a").Observe(-1)
	v.Delete("bad", "a")
	r.HistogramVec("vms_none", "Has no series yet.", nil, "x")
	var b strings.Builder
	if err := r.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	const want = `# TYPE vms_tries histogram
vms_tries_bucket{result="ok",store="a",le="1"} 0
vms_tries_bucket{result="ok",store="a",le="+Inf"} 1
vms_tries_sum{result="ok",store="a"} +Inf
vms_tries_count{result="ok",store="a"} 1
# HELP vms_upload_seconds Time of a try.
# TYPE vms_upload_seconds histogram
vms_upload_seconds_bucket{le="0.5"} 2
vms_upload_seconds_bucket{le="2"} 3
vms_upload_seconds_bucket{le="+Inf"} 4
vms_upload_seconds_sum 4.25
vms_upload_seconds_count 4
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
	if h.Count() != 4 || h.Sum() != 4.25 {
		t.Errorf("count %d, sum %v", h.Count(), h.Sum())
	}
}

func TestHistogramCountsFromManyGoroutines(t *testing.T) {
	r := NewRegistry()
	v := r.HistogramVec("h", "", []float64{1, 2, 3}, "l")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 1000 {
				v.With("x").Observe(float64(i % 4))
			}
			_ = r.WriteText(&strings.Builder{})
		})
	}
	wg.Wait()
	if h := v.With("x"); h.Count() != 8000 || h.Sum() != 2*1000*(0+1+2+3) {
		t.Errorf("count %d, sum %v", h.Count(), h.Sum())
	}
}

func TestInvalidUTF8InALabel(t *testing.T) {
	r := NewRegistry()
	r.GaugeVec("g", "", "l").With("\xc3(").Set(math.NaN())
	var b strings.Builder
	if err := r.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	if want := "# TYPE g gauge\ng{l=\"\uFFFD(\"} NaN\n"; b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}

func TestCountersOnlyGrow(t *testing.T) {
	c := NewRegistry().Counter("c_total", "")
	for _, v := range []float64{2, -1, math.NaN(), math.Inf(1), 0.5} {
		c.Add(v)
	}
	if c.Value() != 2.5 {
		t.Errorf("counter at %v, want 2.5", c.Value())
	}
}

func TestCountsFromManyGoroutines(t *testing.T) {
	r := NewRegistry()
	c, g := r.CounterVec("c_total", "", "l"), r.Gauge("g", "")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				c.With("x").Inc()
				g.Add(1)
				g.Add(-1)
			}
			_ = r.WriteText(&strings.Builder{})
		})
	}
	wg.Wait()
	if c.With("x").Value() != 8000 || g.Value() != 0 {
		t.Errorf("counter %v and gauge %v, want 8000 and 0", c.With("x").Value(), g.Value())
	}
}

func TestSeriesAreBounded(t *testing.T) {
	r := NewRegistry()
	v := r.CounterVec("c_total", "", "hub")
	for i := range 2 * maxSeries {
		v.With(strconv.Itoa(i)).Inc()
	}
	if n := len(v.f.series); n > maxSeries+1 {
		t.Errorf("%d series, want at most %d", n, maxSeries+1)
	}
	if got := v.With("other").Value(); got != maxSeries {
		t.Errorf("other counts %v, want %d", got, maxSeries)
	}
	v.Delete("0")
	v.Delete("other")
	if v.With("new").Inc(); v.With("new").Value() != 1 {
		t.Error("no room after a series was deleted")
	}
}

func TestMistakesPanic(t *testing.T) {
	for name, f := range map[string]func(*Registry){
		"twice":       func(r *Registry) { r.Gauge("a", ""); r.Counter("a", "") },
		"bad name":    func(r *Registry) { r.Gauge("a-b", "") },
		"bad label":   func(r *Registry) { r.GaugeVec("a", "", "__x") },
		"same labels": func(r *Registry) { r.GaugeVec("a", "", "x", "x") },
		"falling":     func(r *Registry) { r.Histogram("a", "", []float64{2, 1}) },
		"no bound":    func(r *Registry) { r.Histogram("a", "", []float64{math.Inf(1)}) },
		"label le":    func(r *Registry) { r.HistogramVec("a", "", nil, "le") },
		"few values":  func(r *Registry) { r.GaugeVec("a", "", "x", "y").With("1") },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f(NewRegistry())
		}()
	}
}
