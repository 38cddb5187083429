package worker_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zipato/vms/cloud/worker"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// stopped ends an epoch.
func stopped(e vms.Epoch, seq uint64) *wire.End {
	return &wire.End{Epoch: e, Seq: seq, Cause: "stopped"}
}

func TestChunksBecomeDurableRecordings(t *testing.T) {
	inBubble(t, func(r *rig) {
		a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		if len(a.welcome.Have) != 0 || a.welcome.MaxChunk < wire.MinMaxChunk || a.welcome.Credit == 0 || a.welcome.Generation != 1 || a.welcome.Instance != r.w.Instance() {
			r.t.Errorf("welcome %+v", a.welcome)
		}
		a.init(1, 1)
		a.chunks(tape(r.t, 1, 1, 25, 1000)...)
		a.isDurable(span(1, 1, 20))
		time.Sleep(10 * time.Second)
		a.take()
		if a.durable.Has(1, 21) {
			r.t.Error("chunks of an unfinished recording were called durable")
		}
		a.send(stopped(1, 25))
		a.isDurable(span(1, 1, 25))
		time.Sleep(10 * time.Second)
		a.take()
		if a.last.Received != 25 || a.last.Hold != wire.HoldNone {
			r.t.Errorf("ack %+v", a.last)
		}
		r.store.expect(r.t, span(1, 1, 10), span(1, 11, 20), span(1, 21, 25))
		a.hangUp()
		time.Sleep(2 * time.Second)
		r.nvr.expect(r.t, "started ch live 1", "recording ch 1-10", "recording ch 11-20", "recording ch 21-25", "ended ch live 1 stopped")
	})
}

// TestDurableMeansStored: not a moment earlier.
func TestDurableMeansStored(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.store.set(func(s *store) { s.delay = 40 * time.Second })
		a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		a.init(1, 1)
		a.chunks(tape(r.t, 1, 1, 11, 1000)...)
		time.Sleep(39 * time.Second)
		a.take()
		if a.durable.Len() != 0 {
			r.t.Error("called durable before Put had returned")
		}
		if a.last.Hold != wire.HoldStore {
			r.t.Errorf("hold %q while the store is slow", a.last.Hold)
		}
		time.Sleep(2 * time.Second)
		a.take()
		if !a.durable.Covers(span(1, 1, 10)) || a.last.Hold != wire.HoldNone {
			r.t.Errorf("after Put returned: durable %v, hold %q", a.durable.Ranges(), a.last.Hold)
		}
		a.hangUp()
	})
}

func TestAStoreThatFailsHoldsAndRecovers(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.store.set(func(s *store) { s.fail = errors.New("out of order") })
		a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		a.init(1, 1)
		for from := uint64(1); from < 300; from += 10 {
			a.chunks(tape(r.t, 1, from, from+9, 1000)...)
			time.Sleep(2 * time.Second)
		}
		time.Sleep(6 * time.Second)
		a.take()
		if a.last.Hold != wire.HoldStore || a.durable.Len() != 0 || a.last.Received != 300 {
			r.t.Errorf("while the store fails: %+v, durable %v", a.last, a.durable.Ranges())
		}
		r.store.set(func(s *store) { s.fail = nil })
		a.isDurable(span(1, 1, 290))
		a.send(stopped(1, 300))
		a.isDurable(span(1, 1, 300))
		time.Sleep(10 * time.Second)
		a.take()
		if a.last.Hold != wire.HoldNone {
			r.t.Errorf("hold %q after the store has recovered", a.last.Hold)
		}
		a.hangUp()
	})
}

// TestAFullDirectoryStopsCredit: and nothing is dropped.
func TestAFullDirectoryStopsCredit(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.w.Leave(19 << 20)
		hold := make(chan struct{})
		r.store.set(func(s *store) { s.hold = hold })
		a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		a.init(1, 1)
		cs := tape(r.t, 1, 1, 20, 1<<20)
		n := a.paced(cs...)
		if n == len(cs) {
			r.t.Fatalf("%d bytes were taken, more than there is room", a.sent)
		}
		if a.last.Hold != wire.HoldTmpfs || int(a.last.Received) != n {
			r.t.Errorf("with a full directory: %+v", a.last)
		}
		close(hold)
		a.isDurable(span(1, 1, 10))
		time.Sleep(6 * time.Second)
		a.take()
		if a.last.Hold != wire.HoldNone || a.last.Credit <= a.sent {
			r.t.Errorf("with room again: %+v, %d sent", a.last, a.sent)
		}
		if a.paced(cs[n:]...) != len(cs)-n {
			r.t.Errorf("no credit for the rest: %+v", a.last)
		}
		a.send(stopped(1, 20))
		a.isDurable(span(1, 1, 20))
		a.hangUp()
	})
}

func smallest(c *worker.Config) { c.DirBytes = 64<<20 + 2*(wire.MinMaxChunk+wire.ChunkHeaderLen) }

func TestADirectoryThatIsTooSmallIsRefused(t *testing.T) {
	cfg := worker.Config{ID: "w", Dir: t.TempDir(), Store: newStore(), NVR: &nvr{}}
	r := newTickets()
	cfg.CheckPush, cfg.CheckView = r.push, r.view
	smallest(&cfg)
	cfg.DirBytes--
	if _, err := worker.New(cfg); !errors.Is(err, vms.ErrInvalid) {
		t.Errorf("New = %v", err)
	}
}

// TestOpenRecordingsNeverBlockForEver: when they alone fill the directory, none
// could be completed. The youngest is given up, and comes again later.
func TestOpenRecordingsNeverBlockForEver(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.w.Leave(41 << 19) // for twelve chunks and a largest one
		older, younger := r.open(r.ticket("a", 1), vms.LaneLive, 1), r.open(r.ticket("b", 1), vms.LaneLive, 1)
		older.init(1, 1)
		younger.init(1, 1)
		cs := tape(r.t, 1, 1, 11, 1<<20)
		for i := range 7 {
			older.paced(cs[i])
			time.Sleep(300 * time.Millisecond)
			if i < 6 {
				younger.paced(cs[i])
				time.Sleep(300 * time.Millisecond)
			}
		}
		if m, _ := younger.closed(); m.Class != wire.ClassReassign || m.RetryAfterMS == 0 {
			r.t.Errorf("the younger one was told %+v", m)
		}
		time.Sleep(6 * time.Second)
		for _, c := range cs[7:] {
			older.paced(c)
			time.Sleep(300 * time.Millisecond)
		}
		older.isDurable(span(1, 1, 10))
		older.send(stopped(1, 11))
		older.isDurable(span(1, 1, 11))
		again := r.open(younger.welcome.ResumeTicket, vms.LaneLive, 1)
		if len(again.welcome.Have) != 0 {
			r.t.Errorf("have %v of what was given up", again.welcome.Have)
		}
		if again.welcome.Credit == 0 {
			r.t.Error("no credit although there is room again")
		}
		older.hangUp()
		again.hangUp()
	})
}

func TestResumeAfterALostLink(t *testing.T) {
	inBubble(t, func(r *rig) {
		cs := tape(r.t, 1, 1, 30, 1000)
		a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		a.init(1, 1)
		a.chunks(cs[:17]...)
		synctest.Wait()
		a.hangUp()
		b := r.open(a.welcome.ResumeTicket, vms.LaneLive, 1)
		if want := []vms.ChunkRange{span(1, 1, 17)}; !slices.Equal(b.welcome.Have, want) {
			r.t.Errorf("have %v, want %v", b.welcome.Have, want)
		}
		b.isDurable(span(1, 1, 10)) // what was durable before is said again
		b.init(1, 1)
		b.chunks(cs[10:]...) // eight of them were taken before
		b.send(stopped(1, 30))
		b.isDurable(span(1, 1, 30))
		if b.last.Received != 20 {
			r.t.Errorf("received %d, want duplicates too", b.last.Received)
		}
		r.store.expect(r.t, span(1, 1, 10), span(1, 11, 20), span(1, 21, 30))
		b.hangUp()
		r.nvr.expect(r.t, "started ch live 1", "recording ch 1-10", "recording ch 11-20", "recording ch 21-30")
	})
}

// TestTheNewerConnectionWins: with the same generation and with a higher one.
func TestTheNewerConnectionWins(t *testing.T) {
	for name, gen := range map[string]vms.Generation{"same generation": 1, "higher": 2} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(r *rig) {
				cs := tape(r.t, 1, 1, 20, 1000)
				a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
				a.init(1, 1)
				a.chunks(cs[:5]...)
				synctest.Wait()
				side := r.open(r.ticket("ch", 1), vms.LaneBackfill, 1) // another lane: not its business
				b := r.open(r.ticket("ch", gen), vms.LaneLive, 1)
				if m, ce := a.closed(); m.Code != wire.CodeFenced || m.Class != wire.ClassReassign || int(ce.Code) != 4001 {
					r.t.Errorf("the older one was told %+v, %v", m, ce)
				}
				b.init(1, 1)
				b.chunks(cs[5:]...)
				b.send(stopped(1, 20))
				b.isDurable(span(1, 1, 20))
				r.store.expect(r.t, span(1, 1, 10), span(1, 11, 20))
				if side.over != nil {
					r.t.Errorf("the other lane was closed: %v", side.over)
				}
				b.hangUp()
				side.hangUp()
			})
		})
	}
}

func TestAResumeTicketEndsWithTheStream(t *testing.T) {
	inBubble(t, func(r *rig) {
		a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		a.hangUp()
		time.Sleep(11 * time.Minute)
		if _, resp, err := r.dial(a.welcome.ResumeTicket, wire.PushProtocol); err == nil || resp == nil || resp.StatusCode != 401 {
			r.t.Errorf("dial = %v, %v", resp, err)
		}
	})
}

func TestANewEpochClosesTheOld(t *testing.T) {
	for name, tt := range map[string]func(r *rig, a *agent) *agent{
		"on the same connection": func(r *rig, a *agent) *agent { return a },
		"held no more": func(r *rig, a *agent) *agent {
			a.hangUp()
			b := r.open(r.ticket("ch", 2), vms.LaneLive, 2)
			if len(b.welcome.Have) != 0 {
				r.t.Errorf("have %v of an epoch that the agent does not hold", b.welcome.Have)
			}
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(r *rig) {
				a := r.open(r.ticket("ch", 1), vms.LaneLive, 1, 2)
				a.init(1, 1)
				a.chunks(tape(r.t, 1, 1, 13, 1000)...)
				synctest.Wait()
				a = tt(r, a)
				a.init(2, 1)
				a.chunks(tape(r.t, 2, 1, 3, 1000)...)
				a.isDurable(span(1, 11, 13))
				a.send(stopped(1, 13)) // of the old epoch, said again: changes nothing
				a.chunks(tape(r.t, 2, 4, 10, 1000)...)
				a.send(stopped(2, 10))
				a.isDurable(span(2, 1, 10))
				r.store.expect(r.t, span(1, 1, 10), span(1, 11, 13), span(2, 1, 10))
				a.hangUp()
			})
		})
	}
}

func TestADeclaredHoleClosesTheRecording(t *testing.T) {
	inBubble(t, func(r *rig) {
		cs := tape(r.t, 1, 1, 30, 1000)
		a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		a.init(1, 1)
		a.chunks(cs[:13]...)
		a.send(&wire.GapMessage{ID: "g", Chunks: span(1, 14, 15), Cause: "buffer_full"})
		a.isDurable(span(1, 11, 13))
		a.chunks(cs[15:]...)
		a.send(stopped(1, 30))
		a.isDurable(span(1, 16, 30))
		r.store.expect(r.t, span(1, 1, 10), span(1, 11, 13), span(1, 16, 20), span(1, 21, 30))
		a.hangUp()
	})
}

// TestWhatTmpfsLostIsAskedForAgain: whatever happens to the worker's files, no
// chunk is called durable that is not, and the agent is told to send again.
func TestWhatTmpfsLostIsAskedForAgain(t *testing.T) {
	for name, damage := range map[string]func(dir string) error{
		"files removed": func(dir string) error {
			fs, err := filepath.Glob(filepath.Join(dir, "*.body"))
			for _, f := range fs {
				err = errors.Join(err, os.Remove(f))
			}
			return err
		},
		"directory removed": os.RemoveAll,
		"files cut": func(dir string) error {
			fs, err := filepath.Glob(filepath.Join(dir, "*.body"))
			for _, f := range fs {
				err = errors.Join(err, os.Truncate(f, 100))
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(r *rig) {
				cs := tape(r.t, 1, 1, 40, 1000)
				r.store.set(func(s *store) { s.fail = errors.New("not now") })
				a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
				a.init(1, 1)
				a.chunks(cs[:25]...) // two recordings wait for the store, one is open
				synctest.Wait()
				if err := damage(r.dir); err != nil {
					r.t.Fatal(err)
				}
				r.store.set(func(s *store) { s.fail = nil })
				if m, _ := a.closed(); m.Class != wire.ClassRetry || m.Code != wire.CodeInternal {
					r.t.Errorf("the agent was told %+v", m)
				}
				if err := os.MkdirAll(r.dir, 0o700); err != nil {
					r.t.Fatal(err)
				}
				var b *agent
				for range 5 { // as an agent does, until it is through
					b = r.open(a.welcome.ResumeTicket, vms.LaneLive, 1)
					var have vms.ChunkSet
					for _, h := range b.welcome.Have {
						have.Add(h)
					}
					i := testInit(r.t)
					b.tell(&wire.InitMessage{Epoch: 1, ID: 1, Tracks: i.Tracks, Segment: i.Segment})
					from := 0
					for have.Has(1, cs[from].Seq) {
						from++
					}
					b.chunks(cs[from:]...)
					b.tell(stopped(1, 40)) // unless it is sent away again
					time.Sleep(time.Minute)
					b.take()
					if b.durable.Covers(span(1, 1, 40)) {
						break
					}
					b.hangUp()
				}
				if !b.durable.Covers(span(1, 1, 40)) {
					r.t.Errorf("durable %v", b.durable.Ranges())
				}
				r.store.expect(r.t, span(1, 1, 10), span(1, 11, 20), span(1, 21, 30), span(1, 31, 40))
				b.hangUp()
			})
		})
	}
}

func TestADirectoryThatVanishesIsAnError(t *testing.T) {
	inBubble(t, func(r *rig) {
		a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		a.init(1, 1)
		if err := os.RemoveAll(r.dir); err != nil {
			r.t.Fatal(err)
		}
		a.chunks(tape(r.t, 1, 1, 1, 100)...)
		if m, _ := a.closed(); m.Class != wire.ClassRetry || m.Code != wire.CodeInternal {
			r.t.Errorf("the agent was told %+v", m)
		}
		if err := os.Mkdir(r.dir, 0o700); err != nil {
			r.t.Fatal(err)
		}
	})
}

func TestShutdownFinishesWhatItCan(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.store.set(func(s *store) { s.delay = 3 * time.Second })
		a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		a.init(1, 1)
		a.chunks(tape(r.t, 1, 1, 15, 1000)...)
		synctest.Wait()
		begin := time.Now()
		r.stop()
		m, ce := a.closed()
		if m.Class != wire.ClassReassign || m.Code != wire.CodeDraining || int(ce.Code) != 4001 || ce.Reason != wire.CodeDraining {
			r.t.Errorf("the agent was told %+v, %v", m, ce)
		}
		if err := <-r.ended; err != nil {
			r.t.Errorf("Run = %v", err)
		}
		r.ended <- nil
		if d := time.Since(begin); d > 5*time.Second {
			r.t.Errorf("Run ended after %v", d)
		}
		r.store.expect(r.t, span(1, 1, 10)) // and not the unfinished one
		r.nvr.expect(r.t, "started ch live 1", "ended ch live 1 draining", "recording ch 1-10")
	})
}

func TestShutdownDoesNotWaitForABrokenStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.store.set(func(s *store) { s.fail = errors.New("out of order") })
		r.nvr.setFail(errors.New("away"))
		a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		a.init(1, 1)
		a.chunks(tape(t, 1, 1, 15, 1000)...)
		synctest.Wait()
		begin := time.Now()
		// The next process goes on where this one stopped.
		b := r.restart(false, 0)
		if d := time.Since(begin); d > 20*time.Second {
			t.Errorf("Run ended after %v", d)
		}
		r.store.set(func(s *store) { s.fail = nil })
		r.nvr.setFail(nil)
		defer synctest.Wait()
		defer b.shutdown()
		time.Sleep(10 * time.Second)
		b.store.expect(t, span(1, 1, 10))
		c := b.open(b.ticket("ch", 2), vms.LaneLive, 1)
		if want := []vms.ChunkRange{span(1, 1, 15)}; !slices.Equal(c.welcome.Have, want) {
			t.Errorf("have %v, want %v", c.welcome.Have, want)
		}
		c.hangUp()
	})
}

func TestSameChunksSameObjectsAtAnyWorker(t *testing.T) {
	run := func(disturb bool) (s *store) {
		inBubble(t, func(r *rig) {
			s = r.store
			cs := tape(r.t, 1, 1, 33, 5000)
			a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
			a.init(1, 1)
			if disturb { // two lost links, and everything sent twice
				a.chunks(cs[:14]...)
				synctest.Wait()
				a.hangUp()
				a = r.open(a.welcome.ResumeTicket, vms.LaneLive, 1)
				a.init(1, 1)
				a.chunks(cs[:29]...)
				a = r.open(r.ticket("ch", 2), vms.LaneLive, 1)
				a.init(1, 1)
			}
			a.chunks(cs...)
			a.send(stopped(1, 33))
			a.isDurable(span(1, 1, 33))
			a.hangUp()
		})
		return s
	}
	a, b := run(false), run(true)
	if !maps.Equal(a.objects, b.objects) || !maps.EqualFunc(a.bodies, b.bodies, bytes.Equal) || len(a.objects) != 4 {
		t.Errorf("objects %v and %v differ", a.ranges(), b.ranges())
	}
}

// TestNoticesAreRepeatedInOrder: while the NVR is away, and per channel.
func TestNoticesAreRepeatedInOrder(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.nvr.setFail(errors.New("away"))
		a := r.open(r.ticket("ch", 3), vms.LaneLive, 1)
		a.init(1, 1)
		a.chunks(tape(r.t, 1, 1, 20, 100)...)
		a.send(stopped(1, 20))
		a.isDurable(span(1, 1, 20)) // durable does not wait for the NVR
		a.hangUp()
		time.Sleep(5 * time.Minute)
		r.nvr.expect(r.t)
		r.nvr.setFail(nil)
		time.Sleep(20 * time.Second)
		r.nvr.expect(r.t, "started ch live 3", "recording ch 1-10", "recording ch 11-20", "ended ch live 3 stopped")
	})
}

func TestANoticeThatCannotWorkIsDropped(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.nvr.setFail(fmt.Errorf("no such channel: %w", vms.ErrNotFound))
		a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		synctest.Wait()
		r.nvr.setFail(nil)
		a.hangUp()
		time.Sleep(time.Minute)
		r.nvr.expect(r.t, "ended ch live 1 connection_lost")
	})
}

func TestGraceAndForget(t *testing.T) {
	inBubble(t, func(r *rig) {
		cs := tape(r.t, 1, 1, 15, 100)
		a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		a.init(1, 1)
		a.chunks(cs...)
		a.isDurable(span(1, 1, 10))
		a.hangUp()
		time.Sleep(25 * time.Second)
		b := r.open(a.welcome.ResumeTicket, vms.LaneLive, 1) // within grace: the stream never ended
		b.hangUp()
		time.Sleep(time.Minute)
		want := []string{"started ch live 1", "recording ch 1-10", "ended ch live 1 connection_lost", "part ch 11-15"}
		r.nvr.expect(r.t, want...)
		b = r.open(a.welcome.ResumeTicket, vms.LaneLive, 1)
		if h := b.welcome.Have; len(h) != 1 || h[0] != span(1, 1, 15) {
			r.t.Errorf("have %v before it is forgotten", h)
		}
		// The hub was stolen, for all anybody knows: what it sent last is stored.
		r.store.expect(r.t, span(1, 11, 15), span(1, 1, 10))
		b.isDurable(span(1, 1, 15))
		b.hangUp()
		time.Sleep(11 * time.Minute)
		r.tmpfsIsEmpty()
		b = r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		if h := b.welcome.Have; len(h) != 1 || h[0] != span(1, 11, 15) {
			r.t.Errorf("have %v after it was forgotten, want what the NVR knows of", h)
		}
		b.init(1, 1)
		b.chunks(cs...) // also what another instance made durable
		b.send(stopped(1, 15))
		b.isDurable(span(1, 1, 15))
		r.store.expect(r.t, span(1, 11, 15), span(1, 1, 10), span(1, 11, 15))
		b.hangUp()
		time.Sleep(5 * time.Second)
		want = append(want, "started ch live 1", "ended ch live 1 connection_lost",
			"started ch live 1", "recording ch 1-10", "recording ch 11-15", "ended ch live 1 stopped")
		r.nvr.expect(r.t, want...)
	})
}

// TestAHubThatWasGivenUpComesBack: its recording goes on from the parts, and
// becomes the same whole object. Also when it sends everything again.
func TestAHubThatWasGivenUpComesBack(t *testing.T) {
	for _, from := range []int{0, 6} {
		inBubble(t, func(r *rig) {
			cs := tape(r.t, 1, 1, 10, 100)
			a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
			a.init(1, 1)
			a.chunks(cs[:6]...)
			synctest.Wait()
			a.hangUp()
			time.Sleep(11 * time.Minute)
			r.store.expect(r.t, span(1, 1, 6))
			r.tmpfsIsEmpty()
			b := r.open(r.ticket("ch", 2), vms.LaneLive, 1)
			b.init(1, 1)
			b.chunks(cs[from:]...)
			b.send(stopped(1, 10))
			b.isDurable(span(1, 1, 10))
			r.store.expect(r.t, span(1, 1, 6), span(1, 1, 10))
			r.store.same(r.t, alone(r.t, cs))
			b.hangUp()
		})
	}
}

// TestRevokedStreamsAreCutOff: at once, on the open connection, for the resume
// ticket and for the NVR's; what came before is stored.
func TestRevokedStreamsAreCutOff(t *testing.T) {
	inBubble(t, func(r *rig) {
		ticket := r.ticket("ch", 1)
		a := r.open(ticket, vms.LaneLive, 1)
		a.init(1, 1)
		a.chunks(tape(r.t, 1, 1, 6, 100)...)
		synctest.Wait()
		r.w.Revoke([]vms.SID{"sid_1"})
		m, ce := a.closed()
		if m.Code != wire.CodeRevoked || m.Class != wire.ClassStop || int(ce.Code) != wire.ClassStop.Code() {
			r.t.Errorf("closed with %+v, %v; want stop, revoked", m, ce)
		}
		for name, tk := range map[string]string{"the NVR's": ticket, "the resume": a.welcome.ResumeTicket} {
			_, resp, err := r.dial(tk, wire.PushProtocol)
			if err == nil || resp == nil || resp.StatusCode != 410 {
				r.t.Errorf("%s ticket: %v, %v; want 410", name, resp, err)
			}
		}
		time.Sleep(2 * time.Second) // far less than the grace of a lost link
		r.store.expect(r.t, span(1, 1, 6))
		r.nvr.expect(r.t, "started ch live 1", "recording ch 1-6", "ended ch live 1 revoked")
	})
}

// TestNothingIsForgottenThatIsBeingUploaded: its chunks need not come again.
func TestNothingIsForgottenThatIsBeingUploaded(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.store.set(func(s *store) { s.fail = errors.New("out of order") })
		a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		a.init(1, 1)
		a.chunks(tape(r.t, 1, 1, 11, 100)...)
		synctest.Wait()
		a.hangUp()
		time.Sleep(time.Hour)
		b := r.open(a.welcome.ResumeTicket, vms.LaneLive, 1)
		if h := b.welcome.Have; len(h) != 1 || h[0].First != 1 {
			r.t.Errorf("have %v", h)
		}
		r.store.set(func(s *store) { s.fail = nil })
		b.isDurable(span(1, 1, 10))
		b.hangUp()
	})
}

// TestEachLaneIsToldOfByItself: the end of one is not that of the other.
func TestEachLaneIsToldOfByItself(t *testing.T) {
	inBubble(t, func(r *rig) {
		live := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		back := r.open(r.ticket("ch", 1), vms.LaneBackfill, 1)
		live.hangUp()
		time.Sleep(time.Minute)
		r.nvr.expect(r.t, "started ch live 1", "started ch backfill 1", "ended ch live 1 connection_lost")
		back.hangUp()
		time.Sleep(time.Minute)
		r.nvr.expect(r.t, "started ch live 1", "started ch backfill 1", "ended ch live 1 connection_lost", "ended ch backfill 1 connection_lost")
	})
}

// TestLanesShareWhatTheyHave: a chunk that one lane brought is not recorded
// again when the other brings it too.
func TestLanesShareWhatTheyHave(t *testing.T) {
	inBubble(t, func(r *rig) {
		cs := tape(r.t, 1, 1, 30, 1000)
		live := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		live.init(1, 1)
		live.chunks(cs[10:15]...)
		synctest.Wait()
		back := r.open(r.ticket("ch", 1), vms.LaneBackfill, 1)
		back.init(1, 1)
		back.chunks(cs[:15]...)
		synctest.Wait()
		live.chunks(cs[15:25]...)
		synctest.Wait()
		back.chunks(cs[15:22]...)
		back.send(stopped(1, 22))
		back.isDurable(span(1, 1, 20))
		live.chunks(cs[25:]...)
		live.send(stopped(1, 30))
		live.isDurable(span(1, 1, 30))
		r.store.expect(r.t, span(1, 1, 10), span(1, 11, 20), span(1, 21, 30))
		live.hangUp()
		back.hangUp()
	})
}

// TestPreviewsAreShownOnly: neither stored nor acknowledged, and only on the live lane.
func TestPreviewsAreShownOnly(t *testing.T) {
	inBubble(t, func(r *rig) {
		p := tape(r.t, 1, 6, 8, 100)
		for i := range p {
			p[i].Flags |= vms.FlagPreview
		}
		a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		a.init(1, 1)
		a.chunks(p...)
		time.Sleep(6 * time.Second)
		a.take()
		if a.last.Received != 3 {
			r.t.Errorf("ack %+v", a.last)
		}
		r.tmpfsIsEmpty()
		b := r.open(r.ticket("ch", 1), vms.LaneBackfill, 1)
		if len(b.welcome.Have) != 0 {
			r.t.Errorf("have %v", b.welcome.Have)
		}
		b.init(1, 1)
		b.chunks(p[0])
		if m, _ := b.closed(); m.Code != wire.CodeMalformed || m.Class != wire.ClassRetry {
			r.t.Errorf("the backfill lane was told %+v", m)
		}
		a.hangUp()
	})
}
