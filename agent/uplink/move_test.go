package uplink

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

const (
	w1, w2 = "ws://w1.test/push/v1", "ws://w2.test/push/v1"
	down   = "ws://down.test/push/v1"
)

// host notes what the worker of one name sees apart from the other's.
func (l *laneTest) host(name string) *log {
	l.hostMu.Lock()
	defer l.hostMu.Unlock()
	if l.hosts == nil {
		l.hosts = map[string]*log{}
	}
	if l.hosts[name] == nil {
		l.hosts[name] = &log{}
	}
	return l.hosts[name]
}

// worker is the one of connection i, from 0.
func (l *laneTest) worker(i int) *worker {
	l.hostMu.Lock()
	defer l.hostMu.Unlock()
	return l.workers[i]
}

func (l *laneTest) wantHost(t *testing.T, name string, want ...string) {
	t.Helper()
	if got := l.host(name).all(); !slices.Equal(got, want) {
		t.Errorf("%s saw\n%s\nwant\n%s", name, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// movingTest has two workers that take everything; store says which ranges w1
// calls durable when it has taken a chunk.
func movingTest(t *testing.T, items []wire.Outgoing, kind vms.Lane, durable map[string]vms.ChunkRange) (*laneTest, func() error) {
	l, stop, _ := newLaneTest(t, nil, func(l *laneTest, _ int, w http.ResponseWriter, r *http.Request) {
		name := strings.TrimSuffix(r.Host, ".test")
		got := l.host(name)
		c := accept(t, w, r, got)
		if c == nil || c.take() != nil {
			return
		}
		m := welcome()
		m.ResumeTicket = "resume"
		m.Instance = vms.Instance("inst_" + name)
		c.send(m)
		l.hostMu.Lock()
		l.workers = append(l.workers, c)
		l.hostMu.Unlock()
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
		for c.take() == nil {
			all := got.all()
			if d, ok := durable[all[len(all)-1]]; ok && name == "w1" {
				c.store(d)
			}
		}
	}, func(l *laneTest) {
		l.lane.Kind = kind
		if kind == vms.LaneLive {
			l.src.items = items
		} else {
			l.src.backlog = items
		}
	})
	return l, stop
}

const liveHello, backfillHello = "hello live [000000000000000e]", "hello backfill [000000000000000e]"

func span(from, to uint64) vms.ChunkRange { return vms.ChunkRange{Epoch: 0xe, First: from, Last: to} }

// TestMoveIsMakeBeforeBreak: the old worker gets the rest of its recording and
// the end, the new one the next recording, and the old connection stays until
// what it brought is durable.
func TestMoveIsMakeBeforeBreak(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, stop := movingTest(t, chunks(1, 2, 10), vms.LaneLive, nil)
		synctest.Wait()
		l.as.Put(assign(1, w1, "t1 again")) // a fresh ticket is no reason to move
		l.as.Put(assign(2, w1, "t2"))       // nor is a newer generation at the same worker
		l.as.Put(assign(4, w2, "t4"))
		l.as.Put(assign(3, w1, "t3")) // late: stale
		time.Sleep(10 * time.Second)
		l.src.append(chunk(3, 10))
		synctest.Wait()
		l.wantHost(t, "w1", liveHello, "init 1", "chunk 1", "chunk 2", "chunk 3")
		l.wantHost(t, "w2", liveHello)
		l.src.append(chunks(11, 12, 10)...)
		synctest.Wait()
		l.wantHost(t, "w2", liveHello, "init 1", "chunk 11", "chunk 12")
		l.wantHost(t, "w1", liveHello, "init 1", "chunk 1", "chunk 2", "chunk 3", "end 3 moved")
		l.worker(0).store(span(1, 3))
		time.Sleep(6 * time.Second)
		l.wantHost(t, "w1", liveHello, "init 1", "chunk 1", "chunk 2", "chunk 3", "end 3 moved", "closed 1000")
		l.src.append(chunk(13, 10))
		synctest.Wait()
		if err := stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
		l.wantHost(t, "w2", liveHello, "init 1", "chunk 11", "chunk 12", "chunk 13", "closed 1000")
		if got := l.states.all(); !slices.Equal(got, []string{"up"}) {
			t.Errorf("states %q: the lane was never down", got)
		}
		if got := l.src.all(); !slices.Equal(got, []string{"live []", "successor []", "durable [000000000000000e:1-3]", "close live", "close successor"}) {
			t.Errorf("source was told %q", got)
		}
	})
}

// TestMoveGivesUpWaitingForDurable: a worker that stores nothing any more keeps
// the old connection for a minute, no longer.
func TestMoveGivesUpWaitingForDurable(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, stop := movingTest(t, chunks(1, 1, 10), vms.LaneLive, nil)
		synctest.Wait()
		l.as.Put(assign(2, w2, "t2"))
		synctest.Wait()
		time.Sleep(time.Second)
		l.src.append(chunk(11, 10))
		time.Sleep(settleTime - 2*time.Second)
		if n := l.host("w1").count("closed 1000"); n != 0 {
			t.Error("closed before what it brought could be durable")
		}
		time.Sleep(10 * time.Second)
		if n := l.host("w1").count("closed 1000"); n != 1 {
			t.Errorf("the old worker saw %q", l.host("w1").all())
		}
		if err := stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

// TestMoveReplaysWhenNoRecordingBegins: also when the old connection breaks.
func TestMoveReplaysWhenNoRecordingBegins(t *testing.T) {
	for _, breaks := range []bool{false, true} {
		t.Run(map[bool]string{false: "in time", true: "and the old worker goes"}[breaks], func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				l, stop := movingTest(t, chunks(1, 2, 10), vms.LaneLive, nil)
				synctest.Wait()
				l.as.Put(assign(2, w2, "t2"))
				time.Sleep(10 * time.Second)
				l.wantHost(t, "w2", liveHello)
				if breaks {
					l.worker(0).ws.CloseNow()
					time.Sleep(time.Second)
				} else {
					time.Sleep(handOver)
				}
				l.wantHost(t, "w2", liveHello, "init 1", "chunk 1", "chunk 2")
				l.src.append(chunk(3, 10), chunk(11, 10))
				synctest.Wait()
				if err := stop(); err != nil {
					t.Errorf("Run = %v", err)
				}
				l.wantHost(t, "w2", liveHello, "init 1", "chunk 1", "chunk 2", "chunk 3", "chunk 11", "closed 1000")
				if got := l.src.all(); !slices.Equal(got, []string{"live []", "successor []", "close live", "close successor", "live []", "close live"}) {
					t.Errorf("source was told %q", got)
				}
				if got := l.states.all(); !slices.Equal(got, []string{"up"}) {
					t.Errorf("states %q", got)
				}
			})
		})
	}
}

// TestMoveToADeadWorker: the old one goes on while the new one does not answer,
// and the NVR may change its mind.
func TestMoveToADeadWorker(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, stop := movingTest(t, chunks(1, 1, 10), vms.LaneLive, nil)
		synctest.Wait()
		l.as.Put(assign(2, down, "t2"))
		time.Sleep(time.Minute)
		l.src.append(chunk(2, 10), chunk(11, 10))
		synctest.Wait()
		if n := l.states.count("want unreachable"); n == 0 {
			t.Error("never asked for a worker that answers")
		}
		l.as.Put(assign(3, w1, "t3"))
		time.Sleep(time.Minute)
		l.src.append(chunk(12, 10))
		synctest.Wait()
		if err := stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
		l.wantHost(t, "w1", liveHello, "init 1", "chunk 1", "chunk 2", "chunk 11", "chunk 12", "closed 1000")
	})
}

// TestMoveWhoseNewWorkerBreaks: the old one has the lane still, and the new one is
// tried again.
func TestMoveWhoseNewWorkerBreaks(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, stop := movingTest(t, chunks(1, 1, 10), vms.LaneLive, nil)
		synctest.Wait()
		l.as.Put(assign(2, w2, "t2"))
		time.Sleep(10 * time.Second)
		l.worker(1).ws.CloseNow()
		time.Sleep(time.Minute)
		if err := stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
		if got := slices.DeleteFunc(l.host("w2").all(), func(s string) bool { return s == "closed -1" }); // noted when it pleases
		!slices.Equal(got, []string{liveHello, liveHello, "init 1", "chunk 1", "closed 1000"}) {
			t.Errorf("the new worker saw %q", got)
		}
		if n := l.src.count("closed twice: live"); n != 0 {
			t.Errorf("source was told %q", l.src.all())
		}
		if got := l.states.all(); !slices.Equal(got, []string{"up"}) {
			t.Errorf("states %q: the lane was never down", got)
		}
	})
}

// TestMoveOfBackfill: it starts over at the new worker with what is not durable.
func TestMoveOfBackfill(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, stop := movingTest(t, chunks(1, 3, 10), vms.LaneBackfill, map[string]vms.ChunkRange{"chunk 1": span(1, 1)})
		time.Sleep(6 * time.Second)
		l.as.Put(assign(2, w2, "t2"))
		time.Sleep(10 * time.Second)
		l.worker(0).store(span(2, 3))
		time.Sleep(10 * time.Second)
		l.wantHost(t, "w1", backfillHello, "init 1", "chunk 1", "chunk 2", "chunk 3", "closed 1000")
		l.wantHost(t, "w2", backfillHello, "init 1", "chunk 2", "chunk 3", "closed 1000")
		if err := stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
		if got := l.states.all(); !slices.Equal(got, []string{"up", "down: nothing is left to bring"}) {
			t.Errorf("states %q", got)
		}
		if got := l.src.all(); !slices.Equal(got, []string{"backfill []", "durable [000000000000000e:1-1]", "close backfill", "backfill []",
			"durable [000000000000000e:2-3]", "close backfill"}) {
			t.Errorf("source was told %q", got)
		}
	})
}

// TestReassigningIsNoStorm: an NVR that answers every want_worker at once with
// the other of two workers that are dead behind one store, or that changes its
// mind all the time.
func TestReassigningIsNoStorm(t *testing.T) {
	for name, on := range map[string]func(t *testing.T, l *laneTest, w http.ResponseWriter, r *http.Request){
		"tickets refused": func(_ *testing.T, _ *laneTest, w http.ResponseWriter, _ *http.Request) {
			refuse(w, 401, wire.ProblemTicketExpired, 0)
		},
		"draining": func(t *testing.T, l *laneTest, w http.ResponseWriter, r *http.Request) {
			l.greet(t, w, r, welcome()).refuse(&wire.ErrorMessage{Class: wire.ClassReassign, Code: wire.CodeDraining})
		},
		"500": func(_ *testing.T, _ *laneTest, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) },
		"taken and dropped": func(t *testing.T, l *laneTest, w http.ResponseWriter, r *http.Request) {
			l.greet(t, w, r, welcome()).ws.CloseNow()
		},
		"taken": func(t *testing.T, l *laneTest, w http.ResponseWriter, r *http.Request) {
			l.greet(t, w, r, welcome()).takeAll()
		},
		"taken and gone": func(t *testing.T, l *laneTest, w http.ResponseWriter, r *http.Request) {
			l.greet(t, w, r, welcome()).takeAll()
		},
		"busy": func(_ *testing.T, _ *laneTest, w http.ResponseWriter, _ *http.Request) {
			refuse(w, 503, wire.ProblemBusy, 2*time.Second)
		},
	} {
		for _, kind := range []vms.Lane{vms.LaneLive, vms.LaneBackfill} {
			t.Run(name+" "+string(kind), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					generation := vms.Generation(1)
					reassign := func(l *laneTest) {
						generation++
						as := assign(generation, []string{w1, w2}[generation%2], "t")
						if name == "taken and gone" {
							as.Why = wire.WhyLost
						}
						l.as.Put(as)
					}
					l, stop, _ := newLaneTest(t, nil, func(l *laneTest, _ int, w http.ResponseWriter, r *http.Request) { on(t, l, w, r) }, func(l *laneTest) {
						l.lane.Kind = kind
						l.src.backlog = chunks(1, 1, 10)
						l.lane.WantWorker = func(wire.WantWorker) { go reassign(l) }
					})
					for range 3600 { // of its own accord the NVR does it every second
						time.Sleep(time.Second)
						if name == "taken" || name == "taken and gone" {
							reassign(l)
						}
					}
					if err := stop(); err != nil {
						t.Errorf("Run = %v", err)
					}
					// One per 7 s: half of the longest wait, and as many again that a fresh
					// assignment is worth. Live that was taken waits for a recording to begin.
					if l.requests < 60 || l.requests > 600 {
						t.Errorf("%d requests in an hour", l.requests)
					}
				})
			})
		}
	}
}
