package worker_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zipato/vms/cloud/worker"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// TestAKilledWorkerGoesOn: killed behind any chunk, the next process makes the
// same objects, and has all but what came in the last second.
func TestAKilledWorkerGoesOn(t *testing.T) {
	cs := tape(t, 1, 1, 24, 300)
	want := alone(t, cs)
	for at := 1; at <= 24; at++ {
		for _, wait := range []time.Duration{0, 1500 * time.Millisecond} {
			inBubble(t, func(r *rig) {
				h := newHub(r, cs)
				h.connect(r)
				h.push(at)
				time.Sleep(wait)
				b := r.restart(true, 0)
				defer b.shutdown()
				h.connect(b)
				var have vms.ChunkSet
				for _, x := range h.a.welcome.Have {
					have.Add(x)
				}
				if wait > 0 && !have.Has(1, uint64(at)) || !have.Has(1, uint64(at-1)/10*10+1) {
					r.t.Errorf("killed %v behind chunk %d: the next process has %v", wait, at, have.Ranges())
				}
				h.finish(b)
				time.Sleep(time.Minute)
				b.store.same(r.t, want)
				b.settled(want)
			})
		}
	}
}

// TestWhatWasCompleteIsStored: with no agent, and although the store was away.
func TestWhatWasCompleteIsStored(t *testing.T) {
	cs := tape(t, 1, 1, 25, 300)
	want := alone(t, cs)
	for name, kill := range map[string]bool{"killed": true, "told to stop": false} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(r *rig) {
				r.store.set(func(s *store) { s.fail = errors.New("out of order") })
				a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
				a.init(1, 1)
				a.chunks(cs...)
				a.send(stopped(1, 25))
				synctest.Wait()
				a.hangUp()
				b := r.restart(kill, time.Minute)
				defer b.shutdown()
				b.nvr.set(func(n *nvr) { n.failParts = errors.New("away") })
				b.store.set(func(s *store) { s.fail = nil })
				time.Sleep(5 * time.Second)
				b.store.expect(r.t) // nothing is stored before it was asked what is there
				b.nvr.set(func(n *nvr) { n.failParts = nil })
				time.Sleep(15 * time.Second)
				b.store.same(r.t, want)
				b.settled(want)
				b.tmpfsIsEmpty()
				c := b.open(b.ticket("ch", 2), vms.LaneLive, 1)
				c.isDurable(span(1, 1, 25))
				c.hangUp()
			})
		})
	}
}

// TestWhatIsFoundAndNotContinuedIsStoredInParts: after the grace time, as when
// the link is lost; not what is stored in parts already.
func TestWhatIsFoundAndNotContinuedIsStoredInParts(t *testing.T) {
	for _, tt := range []struct{ parted, all int }{{0, 7}, {3, 7}, {5, 7}, {5, 5}} {
		inBubble(t, func(r *rig) {
			cs := tape(r.t, 1, 1, uint64(tt.all), 300)
			h := newHub(r, cs)
			h.connect(r)
			want := []vms.ChunkRange{}
			if tt.parted > 0 {
				h.push(tt.parted)
				h.pressure()
				want = append(want, span(1, 1, uint64(tt.parted)))
			}
			h.push(tt.all)
			time.Sleep(1500 * time.Millisecond)
			b := r.restart(true, 0)
			defer b.shutdown()
			h.leave()
			time.Sleep(25 * time.Second)
			b.store.expect(r.t, want...)
			time.Sleep(10 * time.Second)
			if tt.parted < tt.all {
				want = append(want, span(1, uint64(tt.parted)+1, uint64(tt.all)))
			}
			b.store.expect(r.t, want...)
			if b.nvr.parts() != len(want) {
				r.t.Errorf("%d parts", b.nvr.parts())
			}
			time.Sleep(11 * time.Minute)
			b.tmpfsIsEmpty()
			b.nvr.set(func(n *nvr) { n.gone = true })
			time.Sleep(time.Hour)
			b.settled(alone(r.t, cs))
		})
	}
}

// TestAnotherWorkerWasFaster: what another one has stored in the meantime is left.
func TestAnotherWorkerWasFaster(t *testing.T) {
	cs := tape(t, 1, 1, 30, 300)
	want := alone(t, cs)
	for _, at := range []int{7, 10, 17} {
		for _, end := range []bool{false, true} {
			inBubble(t, func(r *rig) {
				b := r.another()
				r.store.set(func(s *store) { s.fail = errors.New("out of order") })
				h := newHub(r, cs)
				h.connect(r)
				h.push(at)
				if end {
					h.tell(stopped(1, uint64(at)))
				}
				time.Sleep(1500 * time.Millisecond)
				r.store.set(func(s *store) { s.fail = nil })
				c := r.restart(true, time.Minute, func(c *worker.Config) { c.Grace = 5 * time.Minute })
				defer c.shutdown()
				// Nobody knows when it starts; the hub went elsewhere.
				h.finish(b)
				time.Sleep(15 * time.Minute)
				b.shutdown()
				time.Sleep(time.Minute)
				c.settled(want)
				c.tmpfsIsEmpty()
			})
		}
	}
}

// TestChunksThatAreThereTwice: a file that is as long or longer counts, a complete
// one before all.
func TestChunksThatAreThereTwice(t *testing.T) {
	cs := tape(t, 1, 1, 24, 300)
	want := alone(t, cs)
	for _, at := range [][2]int{{7, 7}, {7, 12}, {12, 9}, {3, 10}} {
		inBubble(t, func(r *rig) {
			r.store.set(func(s *store) { s.fail = errors.New("out of order") })
			b := r.another()
			h := newHub(r, cs)
			h.connect(r)
			h.push(at[0])
			h.connect(b)
			h.push(at[1])
			time.Sleep(1500 * time.Millisecond)
			h.leave()
			b.dead.Store(true)
			b.over = true
			b.stop()
			b.wait()
			files, err := filepath.Glob(filepath.Join(b.dir, "ch.*"))
			if err != nil {
				r.t.Fatal(err)
			}
			for _, f := range files {
				data, err := os.ReadFile(f)
				if err != nil {
					r.t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(r.dir, filepath.Base(f)), data, 0o600); err != nil {
					r.t.Fatal(err)
				}
			}
			r.store.set(func(s *store) { s.fail = nil })
			c := r.restart(true, 0)
			defer c.shutdown()
			h.connect(c)
			if have := h.a.welcome.Have; len(have) != 1 || have[0] != span(1, 1, uint64(max(at[0], at[1]))) {
				r.t.Errorf("chunks up to %d and %d were left, have is %v", at[0], at[1], have)
			}
			h.finish(c)
			time.Sleep(time.Minute)
			c.settled(want)
			c.tmpfsIsEmpty()
		})
	}
}

// TestWhatTheJanitorMakesIsNotFound: it will be made again.
func TestWhatTheJanitorMakesIsNotFound(t *testing.T) {
	cs := tape(t, 1, 1, 7, 300)
	inBubble(t, func(r *rig) {
		h := newHub(r, cs)
		h.connect(r)
		h.push(7)
		h.leave()
		time.Sleep(11 * time.Minute)
		hold := make(chan struct{})
		r.store.set(func(s *store) { s.hold = hold })
		r.nvr.set(func(n *nvr) { n.gone = true })
		for {
			if fs, err := filepath.Glob(filepath.Join(r.dir, "*.body")); err != nil {
				r.t.Fatal(err)
			} else if len(fs) > 0 {
				break
			}
			time.Sleep(time.Second)
		}
		r.store.set(func(s *store) { s.hold = nil })
		time.AfterFunc(5*time.Second, func() { close(hold) }) // the request was on its way
		b := r.restart(true, 0)
		defer b.shutdown()
		b.tmpfsIsEmpty()
		time.Sleep(time.Hour)
		b.settled(alone(r.t, cs))
	})
}

// TestPartsOfAnotherWorkerAreTold: what is found need not be stored once more, and
// the agent need not keep it.
func TestPartsOfAnotherWorkerAreTold(t *testing.T) {
	cs := tape(t, 1, 1, 10, 300)
	inBubble(t, func(r *rig) {
		c := r.another()
		defer c.shutdown()
		h := newHub(r, cs)
		h.connect(r)
		h.push(10)
		h.connect(c)
		h.push(10)
		time.Sleep(1500 * time.Millisecond)
		b := r.restart(true, 0)
		defer b.shutdown()
		h.connect(b)
		time.Sleep(40 * time.Second) // the other one has given the hub up
		b.store.expect(r.t, span(1, 1, 10))
		h.take()
		if h.durable.Len() != 0 {
			r.t.Fatalf("durable %v: nothing is to be learnt", h.durable.Ranges())
		}
		time.Sleep(40 * time.Second)
		h.take()
		if !h.durable.Covers(span(1, 1, 10)) {
			r.t.Errorf("durable %v", h.durable.Ranges())
		}
		b.store.expect(r.t, span(1, 1, 10))
		h.finish(b)
		b.settled(alone(r.t, cs))
	})
}

// TestWhatIsFoundGoesOnElsewhere: a part was made of it, another worker made the
// whole, and the hub comes back.
func TestWhatIsFoundGoesOnElsewhere(t *testing.T) {
	cs := tape(t, 1, 1, 35, 300)
	want := alone(t, cs)
	inBubble(t, func(r *rig) {
		h := newHub(r, cs)
		h.connect(r)
		h.push(13)
		time.Sleep(1500 * time.Millisecond)
		b := r.restart(true, 0)
		defer b.shutdown()
		c := b.another()
		defer c.shutdown()
		h.connect(b)
		h.pressure()
		h.pressure()
		h.connect(c)
		h.push(24)
		time.Sleep(5 * time.Second)
		h.connect(b)
		h.push(33)
		time.Sleep(time.Minute)
		h.finish(b)
		time.Sleep(15 * time.Minute)
		b.store.same(r.t, want)
		b.settled(want)
	})
}

// TestTicketsOfADeadProcessAreNothing: the next one asks for one of the NVR's.
func TestTicketsOfADeadProcessAreNothing(t *testing.T) {
	inBubble(t, func(r *rig) {
		a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		a.init(1, 1)
		a.chunks(tape(r.t, 1, 1, 3, 300)...)
		b := r.restart(true, 0)
		defer b.shutdown()
		a.hangUp()
		if _, resp, err := b.dial(a.welcome.ResumeTicket, wire.PushProtocol); err == nil || resp == nil || resp.StatusCode != 401 {
			r.t.Errorf("a resume ticket of the dead process: %v, %v", resp, err)
		}
		if a.welcome.Instance == b.w.Instance() {
			r.t.Error("two processes have one name")
		}
	})
}

// TestFoundRecordingsTakeRoom: credit is granted for what they leave.
func TestFoundRecordingsTakeRoom(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.store.set(func(s *store) { s.fail = errors.New("out of order") })
		cs := tape(r.t, 1, 1, 25, 1<<20)
		a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		a.init(1, 1)
		if n := a.paced(cs...); n != len(cs) {
			r.t.Fatalf("%d chunks were taken", n)
		}
		time.Sleep(2 * time.Second)
		a.hangUp()
		used, _ := r.w.Use()
		b := r.restart(true, 0, func(c *worker.Config) { c.DirBytes = 90 << 20 })
		defer b.shutdown()
		if got, _ := b.w.Use(); got != used || got < 25<<20 {
			r.t.Errorf("%d bytes are found, %d were used", got, used)
		}
		b.store.set(func(s *store) { s.fail = nil })
		time.Sleep(time.Minute)
		b.store.expect(r.t, span(1, 21, 25), span(1, 1, 10), span(1, 11, 20))
		if got, _ := b.w.Use(); got > used/4 {
			r.t.Errorf("%d bytes are used when most is stored", got)
		}
	})
}

// TestADirectoryHasOneWorker: a second process is told what to do.
func TestADirectoryHasOneWorker(t *testing.T) {
	inBubble(t, func(r *rig) {
		tk := newTickets()
		cfg := worker.Config{ID: "w2", Dir: r.dir, Store: r.store, NVR: r.nvr, CheckPush: tk.push, CheckView: tk.view}
		_, err := worker.New(cfg)
		if !errors.Is(err, vms.ErrConflict) || !strings.Contains(err.Error(), r.dir) || !strings.Contains(err.Error(), "VMS_WORKER_DIR") {
			r.t.Errorf("New = %v", err)
		}
		a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		a.init(1, 1)
		a.chunks(tape(r.t, 1, 1, 12, 300)...) // the first one has not noticed
		a.isDurable(span(1, 1, 10))
		a.hangUp()
	})
}

// TestDamagedFilesAreGivenUp: with a word in the log, and nothing is lost that
// the agent has.
func TestDamagedFilesAreGivenUp(t *testing.T) {
	cs := tape(t, 1, 1, 24, 300)
	want := alone(t, cs)
	for _, suffix := range []string{"*.journal", "*.body"} {
		for _, keep := range []int64{0, 100, 2000} {
			inBubble(t, func(r *rig) {
				h := newHub(r, cs)
				h.connect(r)
				h.push(18)
				time.Sleep(2 * time.Second)
				h.leave()
				r.dead.Store(true)
				files, err := filepath.Glob(filepath.Join(r.dir, suffix))
				if err != nil || len(files) != 1 {
					r.t.Fatalf("files %v, %v", files, err)
				}
				if err := os.Truncate(files[0], keep); err != nil {
					r.t.Fatal(err)
				}
				b := r.restart(true, 0)
				defer b.shutdown()
				h.finish(b)
				time.Sleep(time.Minute)
				b.settled(want)
			})
		}
	}
}

// TestFoundRecordingsAreNotGivenUp: a directory that they fill is emptied by
// storing them.
func TestFoundRecordingsAreNotGivenUp(t *testing.T) {
	inBubble(t, func(r *rig) {
		for _, ch := range []vms.ChannelID{"a", "b", "c"} {
			a := r.open(r.ticket(ch, 1), vms.LaneLive, 1)
			a.init(1, 1)
			a.chunks(tape(r.t, 1, 1, 7, 300)...)
			synctest.Wait()
			a.hangUp()
		}
		time.Sleep(1500 * time.Millisecond)
		b := r.restart(true, 0)
		defer b.shutdown()
		b.w.Leave(1 << 20)
		time.Sleep(40 * time.Second)
		b.nvr.mu.Lock()
		defer b.nvr.mu.Unlock()
		var got []string
		for _, x := range b.nvr.told {
			if strings.HasPrefix(x, "part ") {
				got = append(got, x)
			}
		}
		slices.Sort(got)
		if want := []string{"part a 1-7", "part b 1-7", "part c 1-7"}; !slices.Equal(got, want) {
			r.t.Errorf("stored %q, want %q", got, want)
		}
	})
}
