package uplink

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/vmstest/chaos"
)

const bitrate = 250_000 // bytes/s: 2 Mbit/s

// endless is a backlog that no test brings to its end.
const endless = 1 << 30

// TestGovernorSharesABottleneck: a router with one deep queue for both lanes.
func TestGovernorSharesABottleneck(t *testing.T) {
	for _, tt := range []struct {
		name  string
		rate  float64       // of the uplink
		share float64       // of what live leaves, that backfill gets at least
		most  float64       // of the uplink, that backfill gets at most
		lag   time.Duration // of live at most, after the first seconds
	}{
		// A keyframe alone takes 550 ms here.
		{"1.5 times the bitrate", 1.5 * bitrate, 0.7, 1, time.Second},
		{"5 times the bitrate", 5 * bitrate, 0.6, DefaultShare, 400 * time.Millisecond},
		{"20 times the bitrate", 20 * bitrate, 0.7, 0.8, 200 * time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				b := &bottleneck{latency: 20 * time.Millisecond, window: 1 << 20, rate: tt.rate}
				g := NewGovernor(GovernorConfig{})
				simulate(t, b, &camera{bitrate: bitrate, left: endless}, g, func(a *arrivals) {
					time.Sleep(5 * time.Second)
					from := time.Now()
					live0, backfill0 := a.bytes()
					time.Sleep(20 * time.Second)
					live, backfill := a.bytes()
					ofLive, ofBackfill := float64(live-live0)/20, float64(backfill-backfill0)/20
					lag, n := a.lag(from)
					t.Logf("live %.0f bytes/s, lag at most %v; backfill %.0f bytes/s of %.0f; %+v", ofLive, lag, ofBackfill, tt.rate, g.Stats())
					if lag > tt.lag || n < 99 {
						t.Errorf("%d live chunks came, with a lag of up to %v; want all of 100 within %v", n, lag, tt.lag)
					}
					if ofBackfill < tt.share*(tt.rate-bitrate) || ofBackfill > tt.most*tt.rate {
						t.Errorf("backfill got %.0f bytes/s, want at least %.0f, at most %.0f", ofBackfill, tt.share*(tt.rate-bitrate), tt.most*tt.rate)
					}
				})
			})
		})
	}
}

// TestGovernorIsQuick: most of a fast uplink is used after 3 s, and without much
// of a queue on the way there.
func TestGovernorIsQuick(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := &bottleneck{latency: 20 * time.Millisecond, window: 4 << 20, rate: 15e6}
		simulate(t, b, &camera{bitrate: bitrate, left: endless}, NewGovernor(GovernorConfig{}), func(a *arrivals) {
			from := time.Now()
			time.Sleep(3 * time.Second)
			_, before := a.bytes()
			time.Sleep(time.Second)
			_, after := a.bytes()
			if after-before < 10e6 {
				t.Errorf("backfill has %d bytes/s of 15e6 after 3 s", after-before)
			}
			if lag, _ := a.lag(from); lag > 500*time.Millisecond {
				t.Errorf("live lagged by %v", lag)
			}
		})
	})
}

// TestGovernorFollowsTheUplink: it becomes slower and faster again by an order
// of magnitude.
func TestGovernorFollowsTheUplink(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const bitrate = bitrate / 5
		b := &bottleneck{latency: 20 * time.Millisecond, window: 256 << 10, rate: 20 * bitrate}
		simulate(t, b, &camera{bitrate: bitrate, left: endless}, NewGovernor(GovernorConfig{}), func(a *arrivals) {
			for _, rate := range []float64{20 * bitrate, 2 * bitrate, 20 * bitrate} {
				b.set(rate)
				time.Sleep(40 * time.Second)
				from := time.Now()
				_, before := a.bytes()
				time.Sleep(20 * time.Second)
				_, after := a.bytes()
				if got, want := float64(after-before)/20, 0.6*(rate-bitrate); got < want {
					t.Errorf("at %.0f bytes/s backfill gets %.0f, want %.0f", rate, got, want)
				}
				if lag, _ := a.lag(from); lag > time.Second {
					t.Errorf("at %.0f bytes/s live lags by %v", rate, lag)
				}
			}
		})
	})
}

// TestGovernorBelowTheBitrate: at 64 kbit/s live jumps by previews and has most
// of the line, backfill goes on all the same, and the queue stays short.
func TestGovernorBelowTheBitrate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := &bottleneck{latency: 20 * time.Millisecond, window: 256 << 10, rate: 8000}
		cam := &camera{bitrate: bitrate, left: endless}
		simulate(t, b, cam, NewGovernor(GovernorConfig{}), func(a *arrivals) {
			time.Sleep(time.Minute)
			live0, backfill0 := a.bytes()
			var longest time.Duration
			for range 600 {
				time.Sleep(time.Second)
				longest = max(longest, b.queued())
			}
			live, backfill := a.bytes()
			ofLive, ofBackfill := float64(live-live0)/600, float64(backfill-backfill0)/600
			t.Logf("live %.0f bytes/s, %d jumps, backfill %.0f bytes/s, queue at most %v", ofLive, cam.jumps, ofBackfill, longest)
			if ofLive < 0.6*8000 || ofBackfill < 0.1*8000 || cam.jumps < 10 {
				t.Errorf("live has %.0f bytes/s and backfill %.0f of 8000, %d jumps", ofLive, ofBackfill, cam.jumps)
			}
			if longest > 4*time.Second {
				t.Errorf("bytes wait up to %v in the queue", longest)
			}
		})
	})
}

// TestGovernorKeepsToTheSchedule: of the total, and live before backfill.
func TestGovernorKeepsToTheSchedule(t *testing.T) {
	bubble(t, func(t *testing.T) {
		// The clock of a bubble begins at midnight UTC of a Saturday.
		s, err := ParseSchedule("00:00-00:01=4M, 00:01-00:02=1M, 8M", time.UTC)
		if err != nil {
			t.Fatal(err)
		}
		b := &bottleneck{latency: 20 * time.Millisecond, window: 1 << 20, rate: 50e6}
		cam := &camera{bitrate: bitrate, left: endless}
		g := NewGovernor(GovernorConfig{Schedule: s})
		simulate(t, b, cam, g, func(a *arrivals) {
			for i, limit := range []float64{500_000, 125_000, 1_000_000} {
				time.Sleep(time.Until(time.Date(2000, 1, 1, 0, i, 15, 0, time.UTC)))
				from := time.Now()
				live0, backfill0 := a.bytes()
				time.Sleep(40 * time.Second)
				live, backfill := a.bytes()
				ofLive, ofBackfill := float64(live-live0)/40, float64(backfill-backfill0)/40
				lag, _ := a.lag(from)
				t.Logf("of %.0f: live %.0f, lag %v, backfill %.0f", limit, ofLive, lag, ofBackfill)
				if all := ofLive + ofBackfill; all > 1.03*limit {
					t.Errorf("%.0f bytes/s of %.0f allowed", all, limit)
				}
				if g.Stats().Cap != int64(limit) {
					t.Errorf("stats %+v", g.Stats())
				}
				if limit < bitrate {
					if ofLive < 0.6*limit || ofBackfill < 0.05*limit {
						t.Errorf("of %.0f bytes/s live gets %.0f, backfill %.0f", limit, ofLive, ofBackfill)
					}
				} else if ofBackfill < 0.6*(limit-bitrate) || lag > time.Second {
					t.Errorf("of %.0f bytes/s backfill gets %.0f, live lags by %v", limit, ofBackfill, lag)
				}
			}
		})
	})
}

// TestGovernorWithoutLive: a hub that only has footage to bring.
func TestGovernorWithoutLive(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := &bottleneck{latency: 20 * time.Millisecond, window: 1 << 20, rate: 10 * bitrate}
		g := NewGovernor(GovernorConfig{Share: 0.5})
		simulate(t, b, &camera{bitrate: bitrate, left: endless, silent: true}, g, func(a *arrivals) {
			time.Sleep(5 * time.Second)
			_, before := a.bytes()
			time.Sleep(20 * time.Second)
			_, after := a.bytes()
			if got := float64(after-before) / 20; got < 4*bitrate || got > 6*bitrate {
				t.Errorf("backfill gets %.0f bytes/s, want about half of %d", got, 10*bitrate)
			}
		})
	})
}

func TestNoGovernorLimitsNothing(t *testing.T) {
	var g *Governor
	f := g.join(vms.LaneBackfill)
	defer f.leave()
	if err := f.take(t.Context(), 1<<30); err != nil || g.Stats() != (GovernorStats{}) {
		t.Errorf("take = %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if f.take(ctx, 1) == nil {
		t.Error("a stopped lane takes more")
	}
}

// overTCP runs both lanes over real sockets, through a link of so many bytes/s
// (0: no limit), and returns what the worker saw.
func overTCP(t testing.TB, cam *camera, rate int64, until func(a *arrivals) bool) (*arrivals, time.Duration) {
	got := &arrivals{}
	srv := httptest.NewServer(got.worker(t))
	defer srv.Close()
	addr := strings.TrimPrefix(srv.URL, "http://")
	if rate > 0 {
		link := chaos.New(t, addr)
		link.SetRate(rate)
		addr = link.Addr()
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	begin := time.Now()
	runLanes(t, client, "ws://"+addr, cam, NewGovernor(GovernorConfig{}), func() {
		for !until(got) && time.Since(begin) < 30*time.Second {
			time.Sleep(10 * time.Millisecond)
		}
	})
	return got, time.Since(begin)
}

// TestBacklogDrainsQuicklyOverTCP: two minutes of footage at five times real
// time would take 24 s.
func TestBacklogDrainsQuicklyOverTCP(t *testing.T) {
	vmstest.NoLeaks(t)
	cam := &camera{bitrate: bitrate, left: 600}
	_, took := overTCP(t, cam, 0, func(a *arrivals) bool {
		_, backfill := a.bytes()
		return backfill >= 600*bitrate/5*9/10
	})
	if took > 24*time.Second {
		t.Errorf("two minutes of footage took %v", took)
	}
}

// BenchmarkGovernor reports what an endless backlog gets over real sockets, and
// how far live lags meanwhile.
func BenchmarkGovernor(b *testing.B) {
	for name, rate := range map[string]int64{"loopback": 0, "1.5 times the bitrate": 1.5 * bitrate, "8 Mbit": 1e6} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				begin := time.Now()
				a, took := overTCP(b, &camera{bitrate: bitrate, left: endless}, rate, func(*arrivals) bool { return time.Since(begin) > 15*time.Second })
				_, backfill := a.bytes()
				lag, n := a.lag(begin)
				b.ReportMetric(float64(backfill)/took.Seconds()/1e6, "backfill-MB/s")
				b.ReportMetric(float64(lag.Milliseconds()), "live-lag-ms")
				b.ReportMetric(float64(n), "live-chunks")
			}
		})
	}
}
