package uplink

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/wire"
)

const w3 = "ws://w3.test/push/v1"

// lostTo is the assignment of a stream whose worker is gone.
func lostTo(generation vms.Generation, url, ticket string) *wire.Assign {
	as := assign(generation, url, ticket)
	as.Why = wire.WhyLost
	return as
}

// silentTest has a worker w1 that takes n messages behind the hello and then
// neither reads nor says anything; all others are well, and have chunk 1. Its
// connections are still open when the test ends: stop closes them.
func silentTest(t *testing.T, kind vms.Lane, n int, items ...wire.Outgoing) (*laneTest, func() error) {
	release := make(chan struct{})
	var begun sync.Map
	l, stop, _ := newLaneTest(t, nil, func(l *laneTest, _ int, w http.ResponseWriter, r *http.Request) {
		name := strings.TrimSuffix(r.Host, ".test")
		got := l.host(name)
		got.add("ticket %s", strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
		c := accept(t, w, r, got)
		if c == nil || c.take() != nil {
			return
		}
		m := welcome()
		m.ResumeTicket = "resume of " + name
		if _, again := begun.LoadOrStore(name, true); name == "w1" && !again {
			c.send(m)
			for range n {
				_ = c.take()
			}
			<-release
			return
		}
		m.Have = []vms.ChunkRange{span(1, 1)}
		c.send(m)
		c.takeAll()
	}, func(l *laneTest) {
		l.lane.Kind = kind
		l.src.items, l.src.backlog = items, items
	})
	return l, func() error { close(release); return stop() }
}

// TestAGoneWorkerIsLeftAtOnce: nothing of a connection that may be half open is
// waited for, in a chunk or between two, whoever is assigned: another worker, the
// next process of this one, or another one still in the same moment. It is gone on
// with all that is not there.
func TestAGoneWorkerIsLeftAtOnce(t *testing.T) {
	big, small := chunks(1, 3, 1<<20), chunks(1, 3, 10)
	for _, kind := range []vms.Lane{vms.LaneLive, vms.LaneBackfill} {
		for name, tt := range map[string]struct {
			items []wire.Outgoing
			takes int
			puts  []*wire.Assign
			to    string
		}{
			"in a chunk":            {big, 2, []*wire.Assign{lostTo(2, w2, "t2")}, "w2"},
			"between two":           {small, 4, []*wire.Assign{lostTo(2, w2, "t2")}, "w2"},
			"to the next process":   {big, 2, []*wire.Assign{lostTo(2, w1, "t2")}, "w1"},
			"and a ticket renewed":  {big, 2, []*wire.Assign{lostTo(2, w2, "t1"), assign(2, w2, "t2")}, "w2"},
			"and moved on":          {big, 2, []*wire.Assign{lostTo(2, w3, "t1"), assign(3, w2, "t2")}, "w2"},
			"and moved to and fro":  {big, 2, []*wire.Assign{lostTo(2, w2, "t1"), assign(3, w1, "t2")}, "w1"},
			"and the next gone too": {big, 2, []*wire.Assign{lostTo(2, w3, "t1"), lostTo(3, w2, "t2")}, "w2"},
		} {
			t.Run(string(kind)+" "+name, func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					l, stop := silentTest(t, kind, tt.takes, tt.items...)
					time.Sleep(time.Second)
					before := len(l.host(tt.to).all())
					for _, as := range tt.puts {
						l.as.Put(as)
					}
					time.Sleep(spread + time.Millisecond)
					want := []string{"ticket t2", "hello " + string(kind) + " [000000000000000e]", "init 1", "chunk 2", "chunk 3"}
					if got := l.host(tt.to).all()[before:]; !slices.Equal(got, want) {
						t.Errorf("the new worker saw %q, want %q", got, want)
					}
					if got := l.states.all(); len(got) != 3 || got[1] != "down: "+errGone.Error() {
						t.Errorf("states %q", got)
					}
					if err := stop(); err != nil {
						t.Errorf("Run = %v", err)
					}
				})
			})
		}
	}
}

// TestOnlyANewerWordThatAWorkerIsGoneCounts: one that is stale, or says again
// what was said, ends nothing.
func TestOnlyANewerWordThatAWorkerIsGoneCounts(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, stop := movingTest(t, chunks(1, 1, 10), vms.LaneLive, nil)
		synctest.Wait()
		l.as.Put(lostTo(1, w1, "t1"))
		l.as.Put(assign(5, w1, "t5"))
		l.as.Put(lostTo(4, w2, "t4"))
		l.as.Put(lostTo(5, w1, "t5"))
		time.Sleep(time.Minute)
		if err := stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
		if got := l.states.all(); !slices.Equal(got, []string{"up"}) {
			t.Errorf("states %q", got)
		}
	})
}

// TestADialIsGivenUpForAFreshAssignment: whether the lane comes from nowhere, or
// is to be moved; in the connect, before the upgrade, and in the greeting.
func TestADialIsGivenUpForAFreshAssignment(t *testing.T) {
	for _, fresh := range []*wire.Assign{lostTo(3, w2, "t3"), assign(3, w2, "t3")} {
		for name, hang := range map[string]func(t *testing.T, w http.ResponseWriter, r *http.Request, over <-chan struct{}){
			"before the upgrade": func(_ *testing.T, _ http.ResponseWriter, _ *http.Request, over <-chan struct{}) { <-over },
			"in the greeting": func(t *testing.T, w http.ResponseWriter, r *http.Request, over <-chan struct{}) {
				accept(t, w, r, &log{})
				<-over
			},
		} {
			for _, moves := range []bool{false, true} {
				t.Run(name+map[bool]string{false: ", down", true: ", moving"}[moves]+" "+fresh.Why, func(t *testing.T) {
					bubble(t, func(t *testing.T) {
						release := make(chan struct{})
						var at atomic.Int64 // ms of the bubble
						ms := func() int64 { return time.Now().UnixMilli() }
						l, stop, _ := newLaneTest(t, chunks(1, 1, 10), func(l *laneTest, _ int, w http.ResponseWriter, r *http.Request) {
							name := strings.TrimSuffix(r.Host, ".test")
							if name == "w3" || name == "w1" && !moves {
								hang(t, w, r, release)
								return
							}
							if name == "w2" {
								at.Store(ms())
							}
							l.greet(t, w, r, welcome()).takeAll()
						})
						synctest.Wait()
						if moves {
							l.as.Put(assign(2, w3, "t2"))
						}
						time.Sleep(time.Second)
						begin := ms()
						l.as.Put(fresh)
						time.Sleep(2 * time.Second)
						if d := at.Load() - begin; d < 0 || d > 1000 {
							t.Errorf("dialled %d ms after it was assigned", d)
						}
						if got := l.states.all(); moves && !slices.Equal(got, []string{"up"}) {
							t.Errorf("states %q", got)
						}
						close(release)
						if err := stop(); err != nil {
							t.Errorf("Run = %v", err)
						}
					})
				})
			}
		}
	}
}

// TestLanesOfAGoneWorkerAreNoStorm: they come within spread, and not together.
func TestLanesOfAGoneWorkerAreNoStorm(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const lanes = 100
		var mu sync.Mutex
		var at []time.Time
		client, stopServer := serve(t, func(w http.ResponseWriter, r *http.Request) {
			c := accept(t, w, r, &log{})
			if c == nil || c.take() != nil {
				return
			}
			if r.Host == "w2.test" {
				mu.Lock()
				at = append(at, time.Now())
				mu.Unlock()
			}
			c.send(welcome())
			c.takeAll()
		})
		var all []*Assigned
		var stops []func() error
		for range lanes {
			as := NewAssigned()
			as.Put(assign(1, w1, "t1"))
			stop, _ := running(lane(t, client, newSource(), as, &log{}).Run)
			all, stops = append(all, as), append(stops, stop)
		}
		time.Sleep(time.Minute)
		begin := time.Now()
		for _, as := range all {
			as.Put(lostTo(2, w2, "t2"))
		}
		time.Sleep(time.Minute)
		mu.Lock()
		defer mu.Unlock()
		slots := make([]int, 6)
		for _, t := range at {
			slots[min(int(t.Sub(begin)*6/spread), 5)]++
		}
		if len(at) != lanes || at[len(at)-1].Sub(begin) > spread+time.Millisecond {
			t.Errorf("%d of %d came, the last after %v", len(at), lanes, at[len(at)-1].Sub(begin))
		}
		if slices.Max(slots) > lanes/3 {
			t.Errorf("they came in slots of %v: %v", spread/6, slots)
		}
		for _, stop := range stops {
			if err := stop(); err != nil {
				t.Errorf("Run = %v", err)
			}
		}
		stopServer()
	})
}

// TestASecondAssignmentDuringAMove: the old worker has the stream until one that
// is still wanted can take it, and each chunk goes to one of them.
func TestASecondAssignmentDuringAMove(t *testing.T) {
	old := []string{liveHello, "init 1", "chunk 1", "chunk 2"}
	for name, tt := range map[string]struct {
		then *wire.Assign // 10 s after the move began
		to   string
		dies bool // w2, a second before
	}{
		"to a third":                  {assign(3, w3, "t3"), "w3", false},
		"back":                        {assign(3, w1, "t3"), "w1", false},
		"the new one is gone":         {lostTo(3, w3, "t3"), "w3", false},
		"the new one broke":           {assign(3, w3, "t3"), "w3", true},
		"the new one broke, and back": {assign(3, w1, "t3"), "w1", true},
		"the new one broke, no word":  {nil, "w2", true},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				l, stop := movingTest(t, chunks(1, 2, 10), vms.LaneLive, nil)
				synctest.Wait()
				l.as.Put(assign(2, w2, "t2"))
				time.Sleep(9 * time.Second)
				if got := l.lane.Pushing(); got != "inst_w2" {
					t.Errorf("pushing to %q while it moves to w2", got)
				}
				if tt.dies {
					l.worker(1).ws.CloseNow()
				}
				time.Sleep(time.Second)
				if got := l.lane.Pushing(); tt.dies && tt.to != "w2" && got == "" {
					t.Error("pushing to nobody when the new worker died")
				}
				if tt.then != nil {
					l.as.Put(tt.then)
				}
				time.Sleep(10 * time.Second)
				l.src.append(chunk(3, 10))
				synctest.Wait()
				l.wantHost(t, "w1", append(old, "chunk 3")...)
				l.src.append(chunks(11, 12, 10)...)
				synctest.Wait()
				if tt.to == "w1" {
					l.wantHost(t, "w1", append(old, "chunk 3", "chunk 11", "chunk 12")...)
				} else {
					l.wantHost(t, "w1", append(old, "chunk 3", "end 3 moved")...)
					got := l.host(tt.to).all()
					if want := []string{liveHello, "init 1", "chunk 11", "chunk 12"}; !slices.Equal(got[max(0, len(got)-4):], want) {
						t.Errorf("%s saw %q", tt.to, got)
					}
				}
				if got := l.lane.Pushing(); got != vms.Instance("inst_"+tt.to) {
					t.Errorf("pushing to %q", got)
				}
				if n := l.host("w2").count("chunk 11"); tt.to != "w2" && n != 0 {
					t.Error("what is another's went to w2 as well")
				}
				if err := stop(); err != nil {
					t.Errorf("Run = %v", err)
				}
				if got := l.states.all(); !slices.Equal(got, []string{"up"}) {
					t.Errorf("states %q: the lane was never down", got)
				}
			})
		})
	}
}

// TestAMoveThatIsOverIsNotUndone: once the recording began at the new worker, a
// third one takes over from there.
func TestAMoveThatIsOverIsNotUndone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l, stop := movingTest(t, chunks(1, 2, 10), vms.LaneLive, nil)
		synctest.Wait()
		l.as.Put(assign(2, w2, "t2"))
		time.Sleep(10 * time.Second)
		l.src.append(chunk(11, 10))
		synctest.Wait()
		l.as.Put(assign(3, w3, "t3"))
		time.Sleep(10 * time.Second)
		l.src.append(chunk(12, 10), chunk(21, 10))
		synctest.Wait()
		if err := stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
		l.wantHost(t, "w2", liveHello, "init 1", "chunk 11", "chunk 12", "end 4 moved", "closed 1000")
		l.wantHost(t, "w3", liveHello, "init 1", "chunk 21", "closed 1000")
		if got := l.states.all(); !slices.Equal(got, []string{"up"}) {
			t.Errorf("states %q", got)
		}
	})
}

// TestTheNewWorkerIsGoneAfterTheHandOver: the old one has its end, so that the
// next gets all that the new one was sent.
func TestTheNewWorkerIsGoneAfterTheHandOver(t *testing.T) {
	for name, then := range map[string]*wire.Assign{"word": lostTo(3, w3, "t3"), "no word": nil} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				l, stop := movingTest(t, chunks(1, 2, 10), vms.LaneLive, nil)
				synctest.Wait()
				l.as.Put(assign(2, w2, "t2"))
				time.Sleep(10 * time.Second)
				l.src.append(chunks(11, 12, 10)...)
				l.worker(1).ws.CloseNow()
				if then != nil {
					l.as.Put(then)
				}
				time.Sleep(10 * time.Second)
				l.src.append(chunk(13, 10))
				synctest.Wait()
				if err := stop(); err != nil {
					t.Errorf("Run = %v", err)
				}
				to := "w2"
				if then != nil {
					to = "w3"
				}
				got := slices.DeleteFunc(l.host(to).all(), func(s string) bool { return s == "closed -1" }) // noted when it pleases
				if want := []string{"chunk 11", "chunk 12", "chunk 13", "closed 1000"}; !slices.Equal(got[max(0, len(got)-4):], want) {
					t.Errorf("%s saw %q", to, got)
				}
				if got := l.host("w1").all(); !slices.Contains(got, "end 2 moved") || slices.Contains(got, "chunk 11") {
					t.Errorf("w1 saw %q", got)
				}
			})
		})
	}
}

// TestTheNewWorkerIsGoneWhileTheOldOneEnds: the old one gets the rest of its
// recording, and then nobody has the stream until somebody can be reached.
func TestTheNewWorkerIsGoneWhileTheOldOneEnds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		resume := make(chan struct{})
		var away atomic.Bool
		l, stop, _ := newLaneTest(t, chunks(1, 2, 10), func(l *laneTest, _ int, w http.ResponseWriter, r *http.Request) {
			if away.Load() {
				w.WriteHeader(http.StatusBadGateway)
				return
			}
			name := strings.TrimSuffix(r.Host, ".test")
			c := accept(t, w, r, l.host(name))
			if c == nil || c.take() != nil {
				return
			}
			c.send(welcome())
			l.hostMu.Lock()
			l.workers = append(l.workers, c)
			l.hostMu.Unlock()
			if name == "w1" {
				for range 3 {
					_ = c.take()
				}
				<-resume
			}
			c.takeAll()
		})
		synctest.Wait()
		l.as.Put(assign(2, w2, "t2"))
		time.Sleep(time.Second)
		l.src.append(chunk(3, 1<<20), chunk(11, 10))
		synctest.Wait()
		l.wantHost(t, "w2", liveHello, "init 1", "chunk 11")
		away.Store(true)
		l.worker(1).ws.CloseNow()
		time.Sleep(3 * time.Second)
		isDown := func(s string) bool { return strings.HasPrefix(s, "down") }
		if got := l.states.all(); slices.ContainsFunc(got, isDown) {
			t.Errorf("states %q while the old worker still gets something", got)
		}
		close(resume)
		time.Sleep(time.Second)
		l.wantHost(t, "w1", liveHello, "init 1", "chunk 1", "chunk 2", "chunk 3", "end 3 moved")
		if got := l.states.all(); !slices.ContainsFunc(got, isDown) {
			t.Errorf("states %q when nobody has the stream", got)
		}
		away.Store(false)
		time.Sleep(time.Minute) // the longest wait, and more
		l.src.append(chunk(12, 10))
		synctest.Wait()
		if got := l.host("w2").all(); !slices.Equal(got[max(0, len(got)-3):], []string{"chunk 3", "chunk 11", "chunk 12"}) {
			t.Errorf("w2 saw %q", got)
		}
		if err := stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

// TestASilentWorkerIsNotHandedOverFrom: it is not known whom the NVR means when a
// move was under way; but a worker that says something is there.
func TestASilentWorkerIsNotHandedOverFrom(t *testing.T) {
	for name, to := range map[string]string{"before the new one was reached": down, "while the new one waits": w2} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				l, stop, _ := newLaneTest(t, chunks(1, 3, 10), func(l *laneTest, _ int, w http.ResponseWriter, r *http.Request) {
					name := strings.TrimSuffix(r.Host, ".test")
					c := accept(t, w, r, l.host(name))
					if c == nil || c.take() != nil {
						return
					}
					c.send(welcome())
					if name == "w1" { // as one whose kernel takes what comes still
						c.takeQuietly()
					} else {
						c.takeAll()
					}
				})
				synctest.Wait()
				l.as.Put(assign(2, to, "t2"))
				time.Sleep(quiet + time.Second)
				if got := l.host("w2").all(); slices.Contains(got, "chunk 3") {
					t.Errorf("w2 saw %q although the old worker may be there", got)
				}
				l.as.Put(lostTo(3, w3, "t3"))
				time.Sleep(3 * time.Second)
				if got := l.host("w3").all(); !slices.Contains(got, "chunk 3") {
					t.Errorf("w3 saw %q", got)
				}
				if err := stop(); err != nil {
					t.Errorf("Run = %v", err)
				}
			})
		})
	}
}

// TestAGoneWorkerThatWaitsIsLeftAtOnce: its connection may be half open, too.
func TestAGoneWorkerThatWaitsIsLeftAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		release := make(chan struct{})
		l, stop, _ := newLaneTest(t, chunks(1, 1, 10), func(l *laneTest, _ int, w http.ResponseWriter, r *http.Request) {
			name := strings.TrimSuffix(r.Host, ".test")
			c := accept(t, w, r, l.host(name))
			if c == nil || c.take() != nil {
				return
			}
			c.send(welcome())
			if name == "w2" {
				<-release
				return
			}
			c.takeAll()
		})
		synctest.Wait()
		l.as.Put(assign(2, w2, "t2"))
		time.Sleep(5 * time.Second)
		l.as.Put(lostTo(3, w3, "t3"))
		time.Sleep(time.Second)
		l.wantHost(t, "w3", liveHello)
		l.src.append(chunk(11, 10))
		synctest.Wait()
		l.wantHost(t, "w3", liveHello, "init 1", "chunk 11")
		l.wantHost(t, "w1", liveHello, "init 1", "chunk 1", "end 1 moved")
		close(release)
		if err := stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

// TestPushingIsToWhomTheLaneSends: one that only waits for what becomes durable
// does not have the stream.
func TestPushingIsToWhomTheLaneSends(t *testing.T) {
	old, young := &laneConn{instance: "old"}, &laneConn{instance: "young"}
	l := &Lane{conns: []*laneConn{old, young}}
	if got := l.Pushing(); got != "young" {
		t.Errorf("pushing to %q while it moves", got)
	}
	old.retire()
	l.conns = l.conns[:1]
	if got := l.Pushing(); got != "" {
		t.Errorf("pushing to %q, which was moved away from", got)
	}
}

// TestABusyWorkerIsLeftToOthers: the NVR is asked for another at once, and told
// that it is not the one before that is no good. A lane that has a worker keeps it.
func TestABusyWorkerIsLeftToOthers(t *testing.T) {
	for _, moves := range []bool{false, true} {
		t.Run(map[bool]string{false: "down", true: "moving"}[moves], func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				busy := map[bool]string{false: "w1.test", true: "w2.test"}[moves]
				var mu sync.Mutex
				var asked []wire.WantWorker
				l, stop, _ := newLaneTest(t, chunks(1, 1, 10), func(l *laneTest, _ int, w http.ResponseWriter, r *http.Request) {
					if r.Host == busy {
						refuse(w, 503, wire.ProblemBusy, 2*time.Second)
						return
					}
					l.greet(t, w, r, welcome()).takeAll()
				}, func(l *laneTest) {
					l.lane.WantWorker = func(m wire.WantWorker) {
						mu.Lock()
						defer mu.Unlock()
						asked = append(asked, m)
					}
				})
				synctest.Wait()
				if moves {
					l.as.Put(assign(2, w2, "t2"))
					time.Sleep(time.Second)
				}
				mu.Lock()
				if want := []wire.WantWorker{{Why: "busy"}}; !slices.Equal(asked, want) {
					t.Errorf("asked %+v, want %+v", asked, want)
				}
				mu.Unlock()
				l.as.Put(assign(3, w3, "t3"))
				time.Sleep(3 * time.Second)
				l.src.append(chunk(11, 10))
				synctest.Wait()
				if got := l.got.all(); !slices.Contains(got, "chunk 11") {
					t.Errorf("the workers saw %q", got)
				}
				if err := stop(); err != nil {
					t.Errorf("Run = %v", err)
				}
				if want := []string{"up"}; !moves && l.states.count("up") != 1 || moves && !slices.Equal(l.states.all(), want) {
					t.Errorf("states %q", l.states.all())
				}
			})
		})
	}
}

// TestSomebodyLooksOnWhileTheLaneMoves: at the old worker or at the new one.
func TestSomebodyLooksOnWhileTheLaneMoves(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var mu sync.Mutex
		var watched bool
		is := func(want bool, when string) {
			t.Helper()
			mu.Lock()
			defer mu.Unlock()
			if watched != want {
				t.Errorf("watched: %v %s", watched, when)
			}
		}
		l, stop, _ := newLaneTest(t, chunks(1, 1, 10), func(l *laneTest, _ int, w http.ResponseWriter, r *http.Request) {
			m := welcome()
			m.Watched = r.Host == "w1.test"
			c := l.greet(t, w, r, m)
			over := make(chan struct{})
			defer close(over)
			go func() {
				for {
					select {
					case <-over:
						return
					case <-time.After(5 * time.Second):
						c.send(&wire.Ack{Credit: plenty, Watched: m.Watched})
					}
				}
			}()
			c.takeQuietly()
		}, func(l *laneTest) {
			l.lane.OnWatched = func(on bool) {
				mu.Lock()
				defer mu.Unlock()
				watched = on
			}
		})
		time.Sleep(time.Second)
		is(true, "at the old worker")
		l.as.Put(assign(2, w2, "t2"))
		time.Sleep(20 * time.Second)
		is(true, "while it moves")
		l.src.append(chunk(11, 10))
		synctest.Wait()
		is(false, "when it has moved")
		time.Sleep(10 * time.Second) // the old one acknowledges still
		is(false, "when it has moved")
		if err := stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

// TestAGoneWorkersConnectionIsReset: on real sockets. Nothing that the kernel
// holds is in the way of the next connection.
func TestAGoneWorkersConnectionIsReset(t *testing.T) {
	vmstest.NoLeaks(t)
	src := newSource(chunks(1, 9, 1<<20)...)
	ended := make(chan error, 1)
	release := make(chan struct{})
	w1 := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := accept(t, w, r, &log{})
		if c == nil || c.take() != nil {
			return
		}
		c.send(welcome())
		<-release
		var err error
		for err == nil {
			err = c.take()
		}
		ended <- err
	}))
	defer w1.Close()
	taken := make(chan struct{})
	w2 := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := accept(t, w, r, &log{})
		if c == nil || c.take() != nil {
			return
		}
		c.send(welcome())
		for c.got.count("chunk 9") == 0 && c.take() == nil {
		}
		close(taken)
		c.takeAll()
	}))
	defer w2.Close()
	as := NewAssigned()
	as.Put(assign(1, "ws"+strings.TrimPrefix(w1.URL, "http"), "t1"))
	l := lane(t, nil, src, as, &log{})
	stop, _ := running(l.Run)
	limit := time.After(20 * time.Second)
	for sent := int64(0); sent == 0; {
		l.mu.Lock()
		for _, c := range l.conns {
			c.pingMu.Lock()
			sent = c.written
			c.pingMu.Unlock()
		}
		l.mu.Unlock()
		select {
		case <-limit:
			t.Fatal("nothing was sent")
		case <-time.After(time.Millisecond):
		}
	}
	begin := time.Now()
	as.Put(lostTo(2, "ws"+strings.TrimPrefix(w2.URL, "http"), "t2"))
	for range 2 {
		select {
		case <-taken:
			taken = nil
			t.Logf("all is at the new worker after %v", time.Since(begin))
			close(release) // now the old one reads what has come
		case err := <-ended:
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the connection of the old worker ended with %v", err)
			}
		case <-limit:
			t.Fatal("the new worker did not get it all")
		}
	}
	if err := stop(); err != nil {
		t.Errorf("Run = %v", err)
	}
}
