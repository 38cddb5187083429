package uplink

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// laneTest is a lane against a scripted worker: on is called for each request
// with its number, from 1.
type laneTest struct {
	src         *source
	as          *Assigned
	got, states log
	lane        *Lane

	hostMu   sync.Mutex
	requests int
	hosts    map[string]*log
	workers  []*worker
}

func newLaneTest(t *testing.T, items []wire.Outgoing, on func(l *laneTest, n int, w http.ResponseWriter, r *http.Request), setup ...func(*laneTest)) (l *laneTest, stop func() error, ended <-chan struct{}) {
	l = &laneTest{src: newSource(items...), as: NewAssigned()}
	client, stopServer := serve(t, func(w http.ResponseWriter, r *http.Request) {
		l.hostMu.Lock()
		l.requests++
		n := l.requests
		l.hostMu.Unlock()
		l.got.add("ticket %s", strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
		on(l, n, w, r)
	})
	l.lane = lane(t, client, l.src, l.as, &l.states)
	for _, f := range setup {
		f(l)
	}
	l.as.Put(assign(1, "ws://w1.test/push/v1", "t1"))
	stopLane, ended := running(l.lane.Run)
	return l, func() error {
		defer stopServer()
		return stopLane()
	}, ended
}

func (l *laneTest) want(t *testing.T, want ...string) {
	t.Helper()
	if got := l.got.all(); !slices.Equal(got, want) {
		t.Errorf("the worker saw\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// greet upgrades, takes the hello and welcomes.
func (l *laneTest) greet(t *testing.T, w http.ResponseWriter, r *http.Request, m *wire.Welcome) *worker {
	c := accept(t, w, r, &l.got)
	if c == nil || c.take() != nil {
		return nil
	}
	c.send(m)
	return c
}

func TestLaneSendsInOrderAndSaysGoodbye(t *testing.T) {
	bubble(t, func(t *testing.T) {
		items := append(chunks(1, 2, 10),
			wire.Outgoing{Gap: &wire.GapMessage{ID: "gap_1", Cause: vms.CauseBufferFull, Chunks: vms.ChunkRange{Epoch: 0xe, First: 3, Last: 5}}},
			chunk(6, 10), wire.Outgoing{End: &wire.End{Epoch: 0xe, Seq: 6, Cause: "stopped"}})
		l, stop, _ := newLaneTest(t, items, func(l *laneTest, _ int, w http.ResponseWriter, r *http.Request) {
			m := welcome()
			m.Watched = true
			if c := l.greet(t, w, r, m); c != nil {
				c.takeAll()
			}
		})
		synctest.Wait()
		if err := stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
		l.want(t, "ticket t1", "hello live [000000000000000e]", "init 1", "chunk 1", "chunk 2", "gap 3-5 buffer_full", "chunk 6", "end 6 stopped", "closed 1000")
		if got := l.states.all(); !slices.Equal(got, []string{"up", "watched"}) {
			t.Errorf("states %q", got)
		}
	})
}

// TestLaneResumesAfterWhatTheWorkerHas: with the resume ticket while it is good,
// with the assignment's when it is refused, and init again on each connection.
func TestLaneResumesAfterWhatTheWorkerHas(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, stop, _ := newLaneTest(t, chunks(1, 3, 10), func(l *laneTest, n int, w http.ResponseWriter, r *http.Request) {
			m := welcome()
			m.ResumeTicket = "resume"
			switch n {
			case 1:
				c := l.greet(t, w, r, m)
				for range 3 {
					c.take()
				}
				c.ws.CloseNow()
			case 2:
				m.Have = []vms.ChunkRange{{Epoch: 0xe, First: 1, Last: 2}}
				c := l.greet(t, w, r, m)
				for range 2 {
					c.take()
				}
				c.ws.CloseNow()
			case 3:
				refuse(w, 401, wire.ProblemTicketInvalid, 0)
			default:
				l.greet(t, w, r, m).takeAll()
			}
		})
		time.Sleep(time.Minute)
		if err := stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
		hello := "hello live [000000000000000e]"
		l.want(t, "ticket t1", hello, "init 1", "chunk 1", "chunk 2",
			"ticket resume", hello, "init 1", "chunk 3",
			"ticket resume", "ticket t1", hello, "init 1", "chunk 1", "chunk 2", "chunk 3", "closed 1000")
		if n := l.states.count("want ticket refused"); n != 0 {
			t.Errorf("asked for another worker because a resume ticket was refused")
		}
	})
}

func TestLaneAsksForATicketWhenItsOwnIsRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, stop, _ := newLaneTest(t, chunks(1, 1, 10), func(l *laneTest, _ int, w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") == "Bearer t1" {
				refuse(w, 401, wire.ProblemTicketExpired, 0)
				return
			}
			l.greet(t, w, r, welcome()).takeAll()
		})
		time.Sleep(10 * time.Minute)
		if n := l.states.count("want ticket refused"); n < 1 || n > 60 {
			t.Errorf("asked for a ticket %d times in 10 minutes", n)
		}
		l.as.Put(assign(2, "ws://w1.test/push/v1", "t2"))
		synctest.Wait()
		if l.got.count("chunk 1") != 1 {
			t.Error("the new ticket is not used at once")
		}
		if err := stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

func TestLaneNeverExceedsItsCredit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const size = wire.ChunkHeaderLen + 16 + 1000
		l, stop, _ := newLaneTest(t, chunks(1, 50, 1000), func(l *laneTest, _ int, w http.ResponseWriter, r *http.Request) {
			m := welcome()
			m.Credit = size - 1
			c := l.greet(t, w, r, m)
			var granted atomic.Int64
			granted.Store(m.Credit)
			over := make(chan struct{})
			go func() {
				for {
					select {
					case <-over:
						return
					case <-time.After(time.Second):
					}
					n := granted.Add(size / 3)
					c.send(&wire.Ack{Credit: n})
					c.send(&wire.Ack{Credit: n / 2}) // an old one: credit never goes down
				}
			}()
			for c.take() == nil {
				if n := granted.Load(); c.sent > n {
					t.Errorf("%d bytes sent, %d granted", c.sent, n)
				}
			}
			close(over)
		})
		synctest.Wait()
		if n := l.got.count("chunk 1"); n != 0 {
			t.Error("a chunk was sent without credit for all of it")
		}
		time.Sleep(170 * time.Second)
		if n := l.got.count("chunk 50"); n != 1 {
			t.Error("the credit is granted and the chunks do not come")
		}
		if err := stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

func TestLaneGivesUpASilentWorker(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var begun, ended time.Time
		l, stop, _ := newLaneTest(t, chunks(1, 1, 10), func(l *laneTest, n int, w http.ResponseWriter, r *http.Request) {
			c := l.greet(t, w, r, welcome())
			if n > 1 {
				c.takeAll()
				return
			}
			for range 5 {
				c.send(&wire.Ack{Credit: plenty})
				time.Sleep(14 * time.Second)
			}
			begun = time.Now().Add(-14 * time.Second)
			c.takeQuietly()
			ended = time.Now()
		})
		time.Sleep(2 * time.Minute)
		if err := stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
		if d := ended.Sub(begun); d != silence {
			t.Errorf("given up after %v of silence, want %v", d, silence)
		}
		if n := l.states.count("down: the worker said nothing for 15s"); n == 0 {
			t.Errorf("states %q", l.states.all())
		}
	})
}

func TestLaneAsksForAnotherWorkerWhenThisOneIsStuck(t *testing.T) {
	for name, tt := range map[string]struct {
		ack  wire.Ack
		want bool
	}{
		"nothing durable":           {wire.Ack{Credit: plenty}, true},
		"the store is slow":         {wire.Ack{Credit: plenty, Hold: wire.HoldStore}, false},
		"something becomes durable": {wire.Ack{Credit: plenty, Durable: []vms.ChunkRange{{Epoch: 9, First: 1, Last: 1}}}, false},
		"all is durable":            {wire.Ack{Credit: plenty, Durable: []vms.ChunkRange{{Epoch: 0xe, First: 1, Last: 1}}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				l, stop, _ := newLaneTest(t, chunks(1, 1, 10), func(l *laneTest, _ int, w http.ResponseWriter, r *http.Request) {
					c := l.greet(t, w, r, welcome())
					over := make(chan struct{})
					go func() { c.takeQuietly(); close(over) }()
					for i := 0; ; i++ {
						select {
						case <-over:
							return
						case <-time.After(5 * time.Second):
						}
						ack := tt.ack
						if name == "all is durable" && i > 0 {
							ack.Durable = nil
						}
						c.send(&ack)
					}
				})
				time.Sleep(stalled)
				if n := l.states.count("want stalled"); n != 0 {
					t.Error("asked for another worker too early")
				}
				time.Sleep(10 * time.Second)
				if n := l.states.count("want stalled"); (n > 0) != tt.want {
					t.Errorf("asked for another worker %d times: %q", n, l.states.all())
				}
				if err := stop(); err != nil {
					t.Errorf("Run = %v", err)
				}
			})
		})
	}
}

func TestLaneObeysTheClassOfARefusal(t *testing.T) {
	for _, tt := range []struct {
		name  string
		error wire.ErrorMessage
		want  []string
		stops bool
		least time.Duration // before the next connection
	}{
		{"retry", wire.ErrorMessage{Class: wire.ClassRetry, Code: wire.CodeSequence}, nil, false, 0},
		{"retry after", wire.ErrorMessage{Class: wire.ClassRetry, Code: wire.CodeInternal, RetryAfterMS: 90_000}, nil, false, 90 * time.Second},
		{"reassign", wire.ErrorMessage{Class: wire.ClassReassign, Code: wire.CodeDraining}, []string{"want draining"}, false, 0},
		{"skip", wire.ErrorMessage{Class: wire.ClassSkip, Code: wire.CodeMalformed, Epoch: 0xe, Seq: 2}, []string{"skip 2"}, false, 0},
		{"stop", wire.ErrorMessage{Class: wire.ClassStop, Code: wire.CodeRevoked, Message: "the channel is gone"}, nil, true, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				var at []time.Time
				l, stop, ended := newLaneTest(t, chunks(1, 3, 10), func(l *laneTest, n int, w http.ResponseWriter, r *http.Request) {
					at = append(at, time.Now())
					c := l.greet(t, w, r, welcome())
					if n == 1 {
						for range 3 {
							c.take()
						}
						c.refuse(&tt.error)
						return
					}
					c.takeAll()
				})
				time.Sleep(2 * time.Minute)
				if tt.stops {
					<-ended
				}
				err := stop()
				if tt.stops != errors.Is(err, vms.ErrRevoked) || !tt.stops && err != nil {
					t.Errorf("Run = %v", err)
				}
				switch {
				case tt.stops && len(at) != 1:
					t.Errorf("%d connections after the stop", len(at)-1)
				case !tt.stops && len(at) != 2:
					t.Errorf("%d connections, want 2", len(at))
				case !tt.stops && at[1].Sub(at[0]) < tt.least:
					t.Errorf("came back after %v, want %v", at[1].Sub(at[0]), tt.least)
				}
				notes := slices.DeleteFunc(append(l.states.all(), l.src.all()...), func(s string) bool {
					return !strings.HasPrefix(s, "want") && !strings.HasPrefix(s, "skip")
				})
				if !slices.Equal(notes, tt.want) && len(notes)+len(tt.want) > 0 {
					t.Errorf("did %q, want %q", notes, tt.want)
				}
			})
		})
	}
}

// TestLaneHearsTheRefusalBehindABrokenWrite: a worker that has seen enough of a
// chunk says so and stops reading; the reason must not be lost with the write.
func TestLaneHearsTheRefusalBehindABrokenWrite(t *testing.T) {
	c := &laneConn{}
	bubble(t, func(t *testing.T) {
		begin := time.Now()
		if err := c.lastWord(t.Context(), errors.New("broken pipe")); err == nil || time.Since(begin) != lastWord {
			t.Errorf("%v after %v, want the error after %v", err, time.Since(begin), lastWord)
		}
		begin = time.Now()
		if err := c.lastWord(t.Context(), &CloseError{}); err == nil || time.Since(begin) != 0 {
			t.Errorf("%v after %v: there is no reason to wait for", err, time.Since(begin))
		}
	})
}

func TestLaneSkipsWhatTheWorkerWouldNotTake(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, stop, _ := newLaneTest(t, []wire.Outgoing{chunk(1, 10), chunk(2, wire.MinMaxChunk), chunk(3, 10)}, func(l *laneTest, _ int, w http.ResponseWriter, r *http.Request) {
			l.greet(t, w, r, welcome()).takeAll()
		})
		time.Sleep(time.Minute)
		if err := stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
		if l.src.count("skip 2") != 1 || l.got.count("chunk 2") != 0 || l.got.count("chunk 3") != 1 {
			t.Errorf("source %q, worker %q", l.src.all(), l.got.all())
		}
	})
}

// TestDurableComesFromAcksOnly: not from what a worker has, nor from received.
func TestDurableComesFromAcksOnly(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, stop, _ := newLaneTest(t, chunks(1, 3, 10), func(l *laneTest, _ int, w http.ResponseWriter, r *http.Request) {
			m := welcome()
			m.Have = []vms.ChunkRange{{Epoch: 0xe, First: 1, Last: 1}}
			c := l.greet(t, w, r, m)
			for range 3 {
				c.take()
			}
			c.send(&wire.Ack{Received: 3, Credit: plenty})
			c.send(&wire.Ack{Received: 3, Credit: plenty, Durable: []vms.ChunkRange{{Epoch: 0xe, First: 1, Last: 2}}})
			c.takeAll()
		})
		synctest.Wait()
		if got := l.src.all(); !slices.Equal(got, []string{"live [000000000000000e:1-1]", "durable [000000000000000e:1-2]"}) {
			t.Errorf("source was told %q", got)
		}
		if err := stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

// TestLaneBacksOff counts what a worker that is down, refuses, or accepts and
// drops at once has to bear in an hour.
func TestLaneBacksOff(t *testing.T) {
	for name, on := range map[string]func(t *testing.T, l *laneTest, w http.ResponseWriter, r *http.Request){
		"500": func(_ *testing.T, _ *laneTest, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) },
		"busy": func(_ *testing.T, _ *laneTest, w http.ResponseWriter, _ *http.Request) {
			refuse(w, 503, wire.ProblemBusy, 0)
		},
		"no magic": func(_ *testing.T, _ *laneTest, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200) },
		"drops": func(t *testing.T, l *laneTest, w http.ResponseWriter, r *http.Request) {
			l.greet(t, w, r, welcome()).ws.CloseNow()
		},
		"talks nonsense": func(t *testing.T, l *laneTest, w http.ResponseWriter, r *http.Request) {
			c := l.greet(t, w, r, welcome())
			c.send(&wire.Hello{Lane: vms.LaneLive})
			c.takeAll()
		},
		"skips again and again": func(t *testing.T, l *laneTest, w http.ResponseWriter, r *http.Request) {
			l.greet(t, w, r, welcome()).ws.Close(4002, "closed")
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				l, stop, _ := newLaneTest(t, nil, func(l *laneTest, _ int, w http.ResponseWriter, r *http.Request) { on(t, l, w, r) })
				time.Sleep(time.Hour)
				if err := stop(); err != nil {
					t.Errorf("Run = %v", err)
				}
				if l.requests < 60 || l.requests > 500 {
					t.Errorf("%d requests in an hour", l.requests)
				}
				if n := l.states.count("want unreachable"); name == "500" && n == 0 {
					t.Error("never asked for a worker that answers")
				}
			})
		})
	}
}
