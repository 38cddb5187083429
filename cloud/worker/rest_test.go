package worker_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zipato/vms/cloud/worker"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// heard keeps what a worker logs as a warning or worse.
type heard struct {
	mu    sync.Mutex
	lines []string
}

func (h *heard) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }
func (h *heard) WithGroup(string) slog.Handler                { return h }
func (h *heard) WithAttrs([]slog.Attr) slog.Handler           { return h }

func (h *heard) Handle(_ context.Context, r slog.Record) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lines = append(h.lines, r.Message)
	return nil
}

// count returns how many lines have s in them.
func (h *heard) count(s string) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, l := range h.lines {
		if strings.Contains(l, s) {
			n++
		}
	}
	return n
}

func (h *heard) of(c *worker.Config) { c.Log = slog.New(h) }

const inTheMiddle = "begins in its middle"

// rows lists the chunks of what the index has, and whether they are parts or
// depend on what comes before.
func (r *rig) rows() (out []string) {
	r.nvr.set(func(n *nvr) {
		for _, x := range n.rows {
			s := strings.TrimPrefix(x.Chunks.String(), "000000000000000")
			if x.Provisional() {
				s += " part"
			}
			if x.Dependent {
				s += " dependent"
			}
			out = append(out, s)
		}
	})
	slices.Sort(out)
	return out
}

func (r *rig) indexed(want ...string) {
	r.t.Helper()
	if got := r.rows(); !slices.Equal(got, want) {
		r.t.Errorf("the index has %q, want %q", got, want)
	}
}

// TestAPoisonChunkCostsNothingElse: what came before it stays, on every lane.
func TestAPoisonChunkCostsNothingElse(t *testing.T) {
	cs := tape(t, 1, 1, 30, 100)
	poison := cs[6]
	poison.Payload = bytes.Clone(poison.Payload)
	copy(poison.Payload[4:], "free")
	poison.CRC = wire.Checksum(poison.Payload)
	inBubble(t, func(r *rig) {
		live := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		live.init(1, 1)
		live.chunks(cs[:6]...)
		synctest.Wait()
		back := r.open(r.ticket("ch", 1), vms.LaneBackfill, 1)
		back.init(1, 1)
		if got := back.welcome.Have; !slices.Equal(got, []vms.ChunkRange{span(1, 1, 6)}) {
			r.t.Errorf("have %v", got)
		}
		live.chunks(poison)
		if m, _ := live.closed(); m.Class != wire.ClassSkip || m.Seq != 7 {
			r.t.Errorf("the agent was told %+v", m)
		}
		live = r.open(live.welcome.ResumeTicket, vms.LaneLive, 1)
		live.init(1, 1)
		if got := live.welcome.Have; !slices.Equal(got, []vms.ChunkRange{span(1, 1, 6)}) {
			r.t.Errorf("have %v after the refusal", got)
		}
		live.send(&wire.GapMessage{ID: "g", Chunks: span(1, 6, 10), Cause: "rejected"})
		live.chunks(cs[10:]...)
		live.send(stopped(1, 30))
		back.isDurable(span(1, 1, 6)) // it was never cut off
		live.isDurable(span(1, 11, 30))
		r.store.expect(r.t, span(1, 1, 6), span(1, 11, 20), span(1, 21, 30))
		live.hangUp()
		back.hangUp()
	})
}

// TestWhatIsLostIsToldOnEveryLane: a connection that was told of chunks which
// are not here any more cannot go on.
func TestWhatIsLostIsToldOnEveryLane(t *testing.T) {
	cs := tape(t, 1, 1, 30, 500)
	inBubble(t, func(r *rig) {
		live := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		live.init(1, 1)
		live.chunks(cs[:13]...)
		synctest.Wait()
		back := r.open(r.ticket("ch", 1), vms.LaneBackfill, 1)
		files, err := filepath.Glob(filepath.Join(r.dir, "*.body"))
		if err != nil || len(files) != 1 {
			r.t.Fatalf("files %v, %v", files, err)
		}
		if err := os.Truncate(files[0], 100); err != nil {
			r.t.Fatal(err)
		}
		live.send(&wire.GapMessage{ID: "g", Chunks: span(1, 14, 20), Cause: "buffer_full"}) // ends 11-13
		for _, a := range []*agent{live, back} {
			if m, _ := a.closed(); m.Class != wire.ClassRetry || m.Code != wire.CodeInternal {
				r.t.Errorf("the agent was told %+v", m)
			}
		}
		back = r.open(r.ticket("ch", 1), vms.LaneBackfill, 1)
		if got := back.welcome.Have; !slices.Equal(got, []vms.ChunkRange{span(1, 1, 10)}) {
			r.t.Errorf("have %v", got)
		}
		back.init(1, 1)
		back.chunks(cs[10:13]...)
		back.isDurable(span(1, 11, 13))
		back.hangUp()
	})
}

// TestBackfillJumpsOverDeclaredHoles: newest first, the keyframe behind one
// begins the rest of a recording, wherever the lane was.
func TestBackfillJumpsOverDeclaredHoles(t *testing.T) {
	cs := tape(t, 1, 1, 50, 100)
	inBubble(t, func(r *rig) {
		a := r.open(r.ticket("ch", 1), vms.LaneBackfill, 1)
		a.init(1, 1)
		a.chunks(cs[40:50]...)
		a.send(&wire.GapMessage{ID: "g1", Chunks: span(1, 1, 3), Cause: "buffer_full"})
		a.send(&wire.GapMessage{ID: "g2", Chunks: span(1, 4, 5), Cause: "rejected"})
		a.chunks(cs[5:10]...) // backwards
		a.send(&wire.GapMessage{ID: "g3", Chunks: span(1, 21, 25), Cause: "storage_failed"})
		a.chunks(cs[25:30]...) // forwards
		a.chunks(cs[10:20]...)
		a.send(&wire.GapMessage{ID: "g4", Chunks: span(1, 31, 40), Cause: "buffer_full"})
		a.send(stopped(1, 50))
		for _, x := range []vms.ChunkRange{span(1, 6, 20), span(1, 26, 30), span(1, 41, 50)} {
			a.isDurable(x)
		}
		r.indexed("1:11-20", "1:26-30", "1:41-50", "1:6-10")
		a.hangUp()
	})
}

// TestLiveThatJumpsIntoANewEpoch leaves the old one to backfill.
func TestLiveThatJumpsIntoANewEpoch(t *testing.T) {
	old, cs := tape(t, 1, 1, 20, 300), tape(t, 2, 1, 20, 300)
	want := alone(t, old)
	for k, b := range alone(t, cs) {
		want[k] = b
	}
	inBubble(t, func(r *rig) {
		live := r.open(r.ticket("ch", 1), vms.LaneLive, 1, 2)
		live.init(1, 1)
		live.init(2, 1)
		live.chunks(old[:13]...)
		live.chunks(preview(cs[0])) // shown, then recorded
		live.chunks(cs[:12]...)
		synctest.Wait()
		r.store.expect(r.t, span(1, 1, 10), span(2, 1, 10))
		back := r.open(r.ticket("ch", 1), vms.LaneBackfill, 1, 2)
		back.init(1, 1)
		back.chunks(old[13:]...)
		back.send(stopped(1, 20))
		live.send(&wire.End{Epoch: 2, Seq: 0, Cause: "moved"}) // says nothing
		live.chunks(cs[12:]...)
		live.send(stopped(2, 20))
		live.isDurable(span(2, 1, 20))
		back.isDurable(span(1, 1, 20))
		r.settled(want)
		live.hangUp()
		back.hangUp()
	})
}

// TestAMiddleWithoutItsBeginningHasToWait: what another worker has taken is on
// the hub still, until it is durable.
func TestAMiddleWithoutItsBeginningHasToWait(t *testing.T) {
	cs := tape(t, 1, 1, 20, 300)
	inBubble(t, func(r *rig) {
		b := r.another()
		defer b.shutdown()
		h := newHub(r, cs)
		h.connect(r)
		h.push(12) // 11 and 12 are nowhere but here
		for _, lane := range []vms.Lane{vms.LaneLive, vms.LaneBackfill} {
			a := b.open(b.ticket("ch", 2), lane, 1)
			a.init(1, 1)
			a.chunks(cs[12:]...)
			if m, _ := a.closed(); m.Class != wire.ClassRetry || m.Code != wire.CodeSequence {
				r.t.Errorf("the agent was told %+v", m)
			}
		}
		b.tmpfsIsEmpty()
		h.pressure() // now they are durable
		h.leave()
		a := b.open(b.ticket("ch", 3), vms.LaneBackfill, 1)
		a.init(1, 1)
		a.chunks(cs[12:]...)
		a.send(stopped(1, 20))
		a.isDurable(span(1, 11, 20))
		r.store.same(r.t, alone(r.t, cs))
		a.hangUp()
	})
}

// TestTheRestOfAStoredRecording: a janitor has closed it, and the hub has more.
func TestTheRestOfAStoredRecording(t *testing.T) {
	cs := tape(t, 1, 1, 30, 300)
	for name, do := range map[string]func(a *agent){
		"as it comes":  func(a *agent) { a.chunks(cs[17:]...) },
		"newest first": func(a *agent) { a.chunks(cs[20:]...); a.chunks(cs[17:20]...) },
		"said to be durable": func(a *agent) {
			a.send(&wire.GapMessage{ID: "durable", Chunks: span(1, 1, 17), Cause: wire.CauseDurable})
			a.chunks(cs[17:]...)
		},
		"from before its end": func(a *agent) { a.chunks(cs[13:]...) }, // the hub has not heard yet
	} {
		t.Run(name, func(t *testing.T) {
			var log heard
			inBubble(t, func(r *rig) {
				h := newHub(r, cs)
				h.connect(r)
				h.push(17)
				h.leave()
				time.Sleep(11 * time.Minute)
				r.nvr.set(func(n *nvr) { n.gone = true })
				time.Sleep(time.Hour)
				r.indexed("1:1-10", "1:11-17")
				a := r.open(r.ticket("ch", 1), vms.LaneBackfill, 1)
				a.init(1, 1)
				r.nvr.set(func(n *nvr) { n.failParts = errors.New("away") })
				do(a) // nothing is decided while nobody can be asked
				if m, _ := a.closed(); m.Class != wire.ClassRetry {
					r.t.Errorf("the agent was told %+v", m)
				}
				r.nvr.set(func(n *nvr) { n.failParts = nil })
				a = r.open(r.ticket("ch", 1), vms.LaneBackfill, 1)
				a.init(1, 1)
				do(a)
				a.send(stopped(1, 30))
				a.isDurable(span(1, 18, 30))
				r.indexed("1:1-10", "1:11-17", "1:18-20 dependent", "1:21-30")
				if log.count(inTheMiddle) == 0 || log.count("ALARM") != 0 {
					r.t.Errorf("logged %q", log.lines)
				}
				a.hangUp()
			}, log.of)
		})
	}
}

// TestPartsBehindARecordingThatWasClosed: the hub crashed and said the end of
// what it still had, or declared a hole, and another worker had more of it.
func TestPartsBehindARecordingThatWasClosed(t *testing.T) {
	cs := tape(t, 1, 1, 40, 300)
	t.Run("an end", func(t *testing.T) {
		var log heard
		inBubble(t, func(r *rig) {
			b := r.another(log.of)
			defer b.shutdown()
			h := newHub(r, cs)
			h.connect(r)
			h.push(14)
			h.pressure()
			h.connect(b)
			h.push(19) // 15-19 are nowhere but here
			h.connect(r)
			h.push(16)
			h.tell(&wire.End{Epoch: 1, Seq: 16, Cause: "agent_restarted"})
			time.Sleep(time.Minute)
			r.indexed("1:1-10", "1:11-16", "1:15-19 part dependent")
			h.leave()
			r.nvr.set(func(n *nvr) { n.gone = true })
			time.Sleep(time.Hour)
			r.indexed("1:1-10", "1:11-16", "1:17-19 dependent")
			if log.count("ALARM") != 0 {
				r.t.Errorf("logged %q", log.lines)
			}
		}, log.of)
	})
	t.Run("a hole", func(t *testing.T) {
		var log heard
		inBubble(t, func(r *rig) {
			b := r.another(log.of)
			defer b.shutdown()
			h := newHub(r, cs)
			h.connect(r)
			h.push(13)
			h.pressure()
			hold := make(chan struct{})
			r.nvr.set(func(n *nvr) { n.hold = hold })
			h.push(17)
			h.leave()
			time.Sleep(40 * time.Second) // 14-17 is stored, and not registered
			a := b.open(b.ticket("ch", 2), vms.LaneLive, 1)
			a.init(1, 1)
			a.chunks(cs[13])
			a.send(&wire.GapMessage{ID: "g", Chunks: span(1, 15, 20), Cause: "buffer_full"})
			a.chunks(cs[20:25]...)
			a.isDurable(span(1, 11, 14))
			close(hold)
			synctest.Wait()
			r.nvr.set(func(n *nvr) { n.hold = nil })
			a.hangUp()
			a = b.open(b.ticket("ch", 3), vms.LaneLive, 1) // it learns of the part
			a.init(1, 1)
			a.chunks(cs[25:]...)
			a.send(stopped(1, 40))
			a.isDurable(span(1, 21, 40))
			time.Sleep(time.Minute)
			r.indexed("1:1-10", "1:11-14", "1:14-17 part dependent", "1:21-30", "1:31-40")
			a.hangUp()
			r.nvr.set(func(n *nvr) { n.gone = true })
			time.Sleep(time.Hour)
			r.indexed("1:1-10", "1:11-14", "1:15-17 dependent", "1:21-30", "1:31-40")
			if log.count("ALARM") != 0 || log.count("stay as they are") == 0 {
				r.t.Errorf("logged %q", log.lines)
			}
		}, log.of)
	})
}

// TestAnotherWorkerHasStoredSomeOfIt: while its hub was elsewhere. Recordings
// never overlap, and nothing that one of them has alone is lost.
func TestAnotherWorkerHasStoredSomeOfIt(t *testing.T) {
	cs := tape(t, 1, 1, 20, 300)
	for name, tt := range map[string]struct {
		there func(a *agent) // what the other worker is told
		again func(a *agent) // what is said when the hub is back
		held  []vms.Epoch
		while []string // while the hub is there
		want  []string
	}{
		"the end of it, and the epoch is over": {
			there: func(a *agent) {
				a.send(&wire.GapMessage{ID: "g", Chunks: span(1, 11, 15), Cause: "buffer_full"})
				a.chunks(cs[15:]...)
			},
			held: []vms.Epoch{2}, again: func(*agent) {},
			while: []string{"1:1-10", "1:11-17 part", "1:16-20"},
			want:  []string{"1:1-10", "1:11-15", "1:16-20"},
		},
		"the end of it, and the hub says so": {
			there: func(a *agent) {
				a.send(&wire.GapMessage{ID: "g", Chunks: span(1, 11, 15), Cause: "buffer_full"})
				a.chunks(cs[15:]...)
			},
			held: []vms.Epoch{1}, again: func(a *agent) {
				a.send(&wire.GapMessage{ID: "durable", Chunks: span(1, 18, 20), Cause: wire.CauseDurable})
			},
			while: []string{"1:1-10", "1:11-17 part", "1:16-20"},
			want:  []string{"1:1-10", "1:11-15", "1:16-20"},
		},
		"all of it": {
			there: func(a *agent) { a.chunks(cs[10:]...) },
			held:  []vms.Epoch{2}, again: func(*agent) {},
			while: []string{"1:1-10", "1:11-20"},
			want:  []string{"1:1-10", "1:11-20"},
		},
		"less": {
			there: func(a *agent) { a.chunks(cs[10:15]...) },
			held:  []vms.Epoch{2}, again: func(*agent) {},
			while: []string{"1:1-10", "1:11-17"},
			want:  []string{"1:1-10", "1:11-17"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var log heard
			inBubble(t, func(r *rig) {
				b := r.another()
				defer b.shutdown()
				h := newHub(r, cs)
				h.connect(r)
				h.push(17)
				h.leave()
				a := b.open(b.ticket("ch", 2), vms.LaneLive, 1)
				a.init(1, 1)
				tt.there(a)
				for _, seq := range []uint64{15, 20} {
					a.send(&wire.End{Epoch: 1, Seq: seq, Cause: "agent_restarted"})
				}
				time.Sleep(2 * time.Second)
				a.hangUp()
				a = r.open(r.ticket("ch", 3), vms.LaneLive, tt.held...)
				r.nvr.set(func(n *nvr) { n.failParts = errors.New("away") })
				tt.again(a)
				time.Sleep(15 * time.Second) // nothing is decided while nobody can be asked
				if name == "the end of it, and the hub says so" {
					r.indexed("1:1-10", "1:16-20")
				}
				r.nvr.set(func(n *nvr) { n.failParts = nil })
				time.Sleep(15 * time.Second)
				r.indexed(tt.while...)
				r.tmpfsIsEmpty()
				a.hangUp()
				r.nvr.set(func(n *nvr) { n.gone = true })
				time.Sleep(time.Hour)
				r.indexed(tt.want...)
				if log.count("ALARM") != 0 {
					r.t.Errorf("logged %q", log.lines)
				}
			}, log.of)
		})
	}
}
