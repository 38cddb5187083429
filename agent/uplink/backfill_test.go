package uplink

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// asBackfill makes the lane bring items as its backlog.
func asBackfill(items ...wire.Outgoing) func(*laneTest) {
	return func(l *laneTest) {
		l.lane.Kind = vms.LaneBackfill
		l.src.backlog = items
	}
}

// storing acknowledges every 5 s, with what was stored.
func storing(c *worker) {
	over := make(chan struct{})
	defer close(over)
	go func() {
		for {
			select {
			case <-over:
				return
			case <-time.After(5 * time.Second):
				c.send(&wire.Ack{Credit: plenty, Durable: c.stored()})
			}
		}
	}()
	c.takeQuietly()
}

// TestBackfillComesAndGoes: it dials when there is a backlog, stays until all of
// it is durable, and comes back for more.
func TestBackfillComesAndGoes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var c *worker
		l, stop, _ := newLaneTest(t, nil, func(l *laneTest, _ int, w http.ResponseWriter, r *http.Request) {
			c = l.greet(t, w, r, welcome())
			storing(c)
		}, asBackfill())
		time.Sleep(time.Hour)
		l.want(t) // nothing
		add := func(items ...wire.Outgoing) { l.src.put(func() { l.src.backlog = append(l.src.backlog, items...) }) }
		add(chunks(1, 2, 10)...)
		time.Sleep(time.Minute)
		add(chunk(3, 10)) // live jumped: the same connection takes it along
		time.Sleep(time.Minute)
		first := []string{"ticket t1", backfillHello, "init 1", "chunk 1", "chunk 2", "chunk 3"}
		l.want(t, first...)
		c.store(span(1, 3))
		time.Sleep(10 * time.Second)
		first = append(first, "closed 1000")
		l.want(t, first...)
		add(chunk(4, 10))
		time.Sleep(10 * time.Second)
		l.want(t, append(first, "ticket t1", backfillHello, "init 1", "chunk 4")...)
		if err := stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
		if got := l.states.all(); !slices.Equal(got, []string{"up", "down: " + ErrIdle.Error(), "up"}) {
			t.Errorf("states %q", got)
		}
	})
}

func TestBackfillNewestFirst(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, stop, _ := newLaneTest(t, nil, func(l *laneTest, _ int, w http.ResponseWriter, r *http.Request) {
			l.greet(t, w, r, welcome()).takeAll()
		}, asBackfill(chunk(1, 10)), func(l *laneTest) { l.lane.NewestFirst = true })
		synctest.Wait()
		if err := stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
		if l.src.count("newest []") != 1 {
			t.Errorf("source was told %q", l.src.all())
		}
	})
}

// TestBackfillSurvivesAPoisonChunk: the refused one is skipped, the rest comes.
func TestBackfillSurvivesAPoisonChunk(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, stop, _ := newLaneTest(t, nil, func(l *laneTest, n int, w http.ResponseWriter, r *http.Request) {
			c := l.greet(t, w, r, welcome())
			if n == 1 {
				for range 3 {
					c.take()
				}
				c.refuse(&wire.ErrorMessage{Class: wire.ClassSkip, Code: wire.CodeMalformed, Epoch: 0xe, Seq: 2})
				return
			}
			c.takeAll()
		}, asBackfill(chunks(1, 4, 10)...))
		time.Sleep(10 * time.Second)
		if err := stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
		if l.src.count("skip 2") != 1 || l.got.count("chunk 4") != 1 {
			t.Errorf("source %q, worker %q", l.src.all(), l.got.all())
		}
	})
}

// TestPressureGoesOverLive: again every 3 s while it lasts; over backfill while
// live is down.
func TestPressureGoesOverLive(t *testing.T) {
	for _, tt := range []struct {
		name      string
		kind      vms.Lane
		live, yes bool
		want      int // messages in 10 s
	}{
		{"live", vms.LaneLive, false, true, 4},
		{"no pressure", vms.LaneLive, false, false, 0},
		{"backfill while live is up", vms.LaneBackfill, true, true, 0},
		{"backfill while live is down", vms.LaneBackfill, false, true, 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				l, stop, _ := newLaneTest(t, nil, func(l *laneTest, _ int, w http.ResponseWriter, r *http.Request) {
					l.greet(t, w, r, welcome()).takeAll()
				}, asBackfill(chunk(1, 10)), func(l *laneTest) {
					l.lane.Kind = tt.kind
					l.lane.Pressure = func() (wire.Pressure, bool) { return wire.Pressure{Held: 7, Budget: 9}, tt.yes }
					if tt.live {
						l.as.liveUp(1)
					}
				})
				time.Sleep(10 * time.Second)
				if err := stop(); err != nil {
					t.Errorf("Run = %v", err)
				}
				if n := l.got.count("pressure 7/9"); n != tt.want {
					t.Errorf("%d messages in 10 s, want %d", n, tt.want)
				}
			})
		})
	}
}

// TestReceivedIsFootageOnly: previews count for the number, not for the time.
func TestReceivedIsFootageOnly(t *testing.T) {
	bubble(t, func(t *testing.T) {
		items := chunks(1, 2, 10)
		for seq := uint64(3); seq <= 4; seq++ {
			p := chunk(seq, 10)
			p.Chunk.Flags |= vms.FlagPreview
			items = append(items, p)
		}
		items = append(items, chunk(11, 10))
		var c *worker
		l, stop, _ := newLaneTest(t, items, func(l *laneTest, _ int, w http.ResponseWriter, r *http.Request) {
			c = l.greet(t, w, r, welcome())
			c.takeAll()
		}, func(l *laneTest) {
			l.lane.OnReceived = func(end time.Time) { l.states.add("received %d", end.Unix()-footage(0).Unix()) }
		})
		synctest.Wait()
		if got := l.lane.Pushing(); got != welcome().Instance {
			t.Errorf("pushing to %q", got)
		}
		for _, n := range []uint64{0, 1, 4, 4, 5, 5, 9} {
			c.send(&wire.Ack{Credit: plenty, Received: n})
			synctest.Wait()
		}
		if err := stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
		if got := l.lane.Pushing(); got != "" {
			t.Errorf("pushing to %q when the lane is down", got)
		}
		if got := l.states.all(); !slices.Equal(got, []string{"up", "received 2", "received 3", "received 12"}) {
			t.Errorf("states %q", got)
		}
		if got := fmt.Sprint(l.src.received.Ranges()); got != "[000000000000000e:1-2 000000000000000e:11-11]" {
			t.Errorf("the cursor was told of %s", got)
		}
	})
}

// TestPreviewsAreNotOutstanding: nothing of them can become durable.
func TestPreviewsAreNotOutstanding(t *testing.T) {
	bubble(t, func(t *testing.T) {
		p := chunk(2, 10)
		p.Chunk.Flags |= vms.FlagPreview
		l, stop, _ := newLaneTest(t, []wire.Outgoing{p}, func(l *laneTest, _ int, w http.ResponseWriter, r *http.Request) {
			l.greet(t, w, r, welcome()).takeAll()
		})
		time.Sleep(time.Hour)
		if err := stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
		if got := l.states.all(); !slices.Equal(got, []string{"up"}) {
			t.Errorf("states %q", got)
		}
	})
}

// TestHalfOpenLinkIsDead: the worker neither reads nor says anything, so that a
// write blocks for ever.
func TestHalfOpenLinkIsDead(t *testing.T) {
	for name, greets := range map[string]bool{"in the greeting": false, "in a chunk": true} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				release := make(chan struct{})
				var at []time.Time
				l, stop, _ := newLaneTest(t, chunks(1, 3, 1<<20), func(l *laneTest, n int, w http.ResponseWriter, r *http.Request) {
					at = append(at, time.Now())
					switch {
					case n > 1:
						l.greet(t, w, r, welcome()).takeAll()
					case greets:
						l.greet(t, w, r, welcome())
						<-release
					default:
						accept(t, w, r, &l.got)
						<-release
					}
				})
				time.Sleep(time.Minute)
				close(release)
				if err := stop(); err != nil {
					t.Errorf("Run = %v", err)
				}
				if len(at) != 2 || at[1].Sub(at[0]) < silence || at[1].Sub(at[0]) > silence+2*time.Second {
					t.Errorf("connections at %v", at)
				}
				if l.got.count("chunk 3") != 1 {
					t.Error("the chunks did not come")
				}
			})
		})
	}
}

// TestStopLetsAChunkOut: and the connection ends in order.
func TestStopLetsAChunkOut(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, stop, _ := newLaneTest(t, chunks(1, 1, 1<<20), func(l *laneTest, _ int, w http.ResponseWriter, r *http.Request) {
			c := l.greet(t, w, r, welcome())
			time.Sleep(time.Second) // the chunk is stuck in the pipe
			c.takeAll()
		})
		time.Sleep(500 * time.Millisecond)
		if err := stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
		if got := l.got.all(); got[len(got)-1] != "closed 1000" {
			t.Errorf("the worker saw %q", got)
		}
	})
}

// TestStopOnAHalfOpenLink does not take long, with a chunk on its way or not,
// nor while the lane moves.
func TestStopOnAHalfOpenLink(t *testing.T) {
	for name, tt := range map[string]struct {
		items []wire.Outgoing
		moves string
	}{
		"idle": {nil, ""}, "in a chunk": {chunks(1, 1, 1<<20), ""},
		"moving": {chunks(1, 1, 1<<20), w2}, "moving in vain": {chunks(1, 1, 1<<20), down},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				release := make(chan struct{})
				l, stop, ended := newLaneTest(t, tt.items, func(l *laneTest, _ int, w http.ResponseWriter, r *http.Request) {
					l.greet(t, w, r, welcome())
					<-release
				})
				time.Sleep(time.Second)
				if tt.moves != "" {
					l.as.Put(assign(2, tt.moves, "t2"))
					time.Sleep(10 * time.Second)
				}
				begin := time.Now()
				stopped := make(chan error)
				go func() { stopped <- stop() }()
				<-ended
				if d := time.Since(begin); d > 2*lastWord+time.Second {
					t.Errorf("stopping took %v", d)
				}
				close(release)
				if err := <-stopped; err != nil {
					t.Errorf("Run = %v", err)
				}
			})
		})
	}
}

// TestRevokedIsAnAnswer: also before the upgrade.
func TestRevokedIsAnAnswer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, stop, ended := newLaneTest(t, nil, func(_ *laneTest, _ int, w http.ResponseWriter, _ *http.Request) {
			refuse(w, 410, wire.ProblemRevoked, 0)
		})
		<-ended
		if err := stop(); err == nil || !strings.Contains(err.Error(), vms.ErrRevoked.Error()) {
			t.Errorf("Run = %v", err)
		}
		if l.requests != 1 {
			t.Errorf("%d requests", l.requests)
		}
	})
}

// TestBusyWorkerIsNotHurried: a refusal says when to come back.
func TestBusyWorkerIsNotHurried(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, stop, _ := newLaneTest(t, nil, func(_ *laneTest, _ int, w http.ResponseWriter, _ *http.Request) {
			refuse(w, 503, wire.ProblemBusy, time.Minute)
		})
		time.Sleep(10*time.Minute - time.Second)
		if err := stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
		if l.requests < 9 || l.requests > 10 {
			t.Errorf("%d requests in 10 minutes, want one a minute", l.requests)
		}
	})
}

// TestLanesAskOnce: both lanes of a stream lose the same worker.
func TestLanesAskOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		as := NewAssigned()
		first := assign(1, w1, "t1")
		as.Put(first)
		if !as.ask(first) || as.ask(first) {
			t.Error("two requests for one worker")
		}
		time.Sleep(askAgain)
		if !as.ask(first) {
			t.Error("no second request though nothing came of the first")
		}
		as.Put(assign(2, w2, "t2"))
		if as.ask(first) {
			t.Error("asked for what is there")
		}
	})
}

// TestWorkerThatAnswersNoPings does not stop live for ever.
func TestWorkerThatAnswersNoPings(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := &laneConn{lane: &Lane{Kind: vms.LaneLive}, probing: probing{answered: make(chan struct{}, 1), window: 10, written: 10}}
		c.hand = t.Context()
		c.out = time.Now()
		begin := time.Now()
		if err := c.room(t.Context()); err != nil || time.Since(begin) != deaf {
			t.Errorf("%v after %v, want %v", err, time.Since(begin), deaf)
		}
	})
}
