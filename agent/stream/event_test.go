package stream

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zipato/vms/agent/camera"
	"github.com/zipato/vms/agent/mux"
	"github.com/zipato/vms/agent/preroll"
	"github.com/zipato/vms/agent/spool"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/vmstest/camtest"
	"github.com/zipato/vms/pkg/wire"
)

const (
	testPre, testPost = 2 * time.Second, 3 * time.Second
	frameTime         = 40 * time.Millisecond
	gopTime           = 480 * time.Millisecond
)

// film is a stream in mode event on the fake clock, and a camera whose frames
// the test sends one by one.
type film struct {
	t     *testing.T
	s     *Stream
	sp    *spool.Spool
	store *spool.Store
	clip  *camtest.Media
	sent  int // pictures of this session
	told  int // calls of OnRecording
	ticks int
}

// eventFilm runs f in a bubble. The hub knows the time unless unsure.
func eventFilm(t *testing.T, ram int64, f func(*film)) {
	t.Helper()
	clip := camtest.Clip(t, vmstest.ClipSpec{GOP: int(gopTime / frameTime), Duration: 4800 * time.Millisecond, Kbps: 400})
	synctest.Test(t, func(t *testing.T) {
		s, sp, store := newStreamOf(t, ram, func(c *Config) { c.Mode, c.PreRoll, c.PostRoll = wire.ModeEvent, testPre, testPost })
		m := &film{t: t, s: s, sp: sp, store: store, clip: clip}
		s.cfg.OnRecording = func() { m.told++ }
		learn(s, 30*365*24*time.Hour)
		f(m)
		s.leave()
		if n := m.reserved(); n != 0 {
			t.Errorf("%d bytes are reserved after the end", n)
		}
	})
}

// reserved is what of the RAM is no chunk.
func (m *film) reserved() int64 { return m.store.Stats().RAM - m.sp.Stats().RAM }

func (m *film) open() {
	m.sent = 0
	(*sink)(m.s).Open(camera.VideoFormat{Codec: m.clip.Codec, SPS: m.clip.SPS, PPS: m.clip.PPS}, nil)
}

func (m *film) lose() { (*sink)(m.s).Lost(errors.New("cut")) }

// roll sends pictures for d, from the one after the last on.
func (m *film) roll(d time.Duration) {
	for range int(d / frameTime) {
		time.Sleep(frameTime)
		v := m.clip.Video[m.sent%len(m.clip.Video)]
		(*sink)(m.s).Video(int64(m.sent)*3600, time.Time{}, time.Now(), v.AU)
		m.sent++
		m.tick()
	}
}

// wait lets d pass without a picture.
func (m *film) wait(d time.Duration) {
	for range int(d / tickEvery) {
		time.Sleep(tickEvery)
		m.tick()
		if m.ticks++; m.ticks%int(report/tickEvery) == 0 {
			m.s.growAbsence()
		}
	}
}

func (m *film) tick() { m.s.tick(time.Now()) }

func (m *film) event() time.Time {
	m.s.Event(nil, nil)
	return m.s.cfg.Clock.Now()
}

// span is what was recorded without a break.
type span struct {
	vms.TimeRange
	ended string // why nothing follows
}

// recorded returns what is held, after the time in which a live lane could have
// come, and checks that nothing overlaps and that spans are whole.
func (m *film) recorded() (out []span) {
	m.t.Helper()
	m.wait(11 * time.Second)
	cur := m.sp.Backfill("", nil, false)
	defer cur.Close()
	var last *vms.Chunk
	for {
		ctx, cancel := context.WithTimeout(m.t.Context(), time.Second)
		item, err := cur.Next(ctx)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			return out
		}
		if err != nil {
			m.t.Fatal(err)
		}
		c := item.Chunk
		switch {
		case item.End != nil:
			out[len(out)-1].ended = item.End.Cause
		case c == nil:
			m.t.Errorf("%+v handed out", item)
		case last == nil || c.Recording == 0 && c.Flags.Has(vms.FlagFirst):
			if last != nil && c.Start.Before(last.End) {
				m.t.Errorf("a span begins at %v, before the one before ended, %v", c.Start, last.End)
			}
			if !c.Flags.Has(vms.FlagFirst | vms.FlagKey) {
				m.t.Errorf("a span begins with a chunk of flags %b", c.Flags)
			}
			out, last = append(out, span{TimeRange: vms.TimeRange{Start: c.Start, End: c.End}}), c
		default:
			if !c.Start.Equal(last.End) || c.Seq != last.Seq+1 {
				m.t.Errorf("chunk %d begins at %v, chunk %d before it ended at %v", c.Seq, c.Start, last.Seq, last.End)
			}
			out[len(out)-1].End, last = c.End, c
		}
	}
}

// near checks that a span begins and ends when it should, but for a GOP each.
func (m *film) near(got span, from, to time.Time, ended string) {
	m.t.Helper()
	if d := from.Sub(got.Start); d < -frameTime || d > gopTime+frameTime {
		m.t.Errorf("recorded from %v, want at most a GOP before %v", got.Start, from)
	}
	if d := got.End.Sub(to); d < -frameTime || d > gopTime+frameTime {
		m.t.Errorf("recorded to %v, want at most a GOP after %v", got.End, to)
	}
	if got.ended != ended {
		m.t.Errorf("ended by %q, want %q", got.ended, ended)
	}
}

func (m *film) gaps() []vms.Gap {
	m.sp.Resend()
	return m.sp.Gaps(100)
}

// TestEventRecordsWhatWasBefore: nothing is recorded but from a pre-roll before
// an event to a post-roll after it, and the rest is no gap.
func TestEventRecordsWhatWasBefore(t *testing.T) {
	eventFilm(t, 8<<20, func(m *film) {
		m.open()
		m.roll(30 * time.Second)
		if st := m.sp.Stats(); st.Chunks != 0 || m.s.Recording() {
			t.Fatalf("%d chunks, recording %v, before the event", st.Chunks, m.s.Recording())
		}
		rate := m.reserved() * int64(time.Second) / int64(testPre)
		if rate < 20<<10 || rate > 200<<10 {
			t.Errorf("%d bytes a second are kept of a camera of 50 KB/s", rate)
		}
		at := m.event()
		if !m.s.Recording() || m.told != 1 || m.reserved() != 0 {
			t.Errorf("recording %v, told %d times, %d bytes reserved, after the event", m.s.Recording(), m.told, m.reserved())
		}
		m.roll(10 * time.Second)
		if m.s.Recording() || m.told != 2 {
			t.Errorf("recording %v, told %d times, 10 s after the event", m.s.Recording(), m.told)
		}
		got := m.recorded()
		if len(got) != 1 {
			t.Fatalf("recorded %v, want one span", got)
		}
		m.near(got[0], at.Add(-testPre), at.Add(testPost), "event_over")
		if g := m.gaps(); len(g) != 1 || !g[0].Start.After(at.Add(9*time.Second)) {
			t.Errorf("gaps %v, want only the one after the camera fell silent", g)
		}
	})
}

// TestEventsOneAfterAnother: one during an event makes it longer, but never
// shorter; one right after it loses nothing and repeats nothing.
func TestEventsOneAfterAnother(t *testing.T) {
	eventFilm(t, 8<<20, func(m *film) {
		m.open()
		m.roll(10 * time.Second)
		from := m.event()
		m.roll(2 * time.Second)
		to := m.event()
		short := time.Millisecond
		m.s.Event(nil, &short)
		m.roll(4 * time.Second)
		if m.s.Recording() || m.told != 2 {
			t.Fatalf("recording %v, told %d times, 4 s after the last event", m.s.Recording(), m.told)
		}
		again := m.event()
		m.roll(5 * time.Second)
		got := m.recorded()
		if len(got) != 2 {
			t.Fatalf("recorded %v, want two spans", got)
		}
		m.near(got[0], from.Add(-testPre), to.Add(testPost), "event_over")
		if got[1].Start.Sub(got[0].End) > frameTime {
			t.Errorf("%v are missing between two events that are less than a pre-roll apart", got[1].Start.Sub(got[0].End))
		}
		if d := got[1].End.Sub(again.Add(testPost)); d < 0 || d > gopTime+frameTime {
			t.Errorf("the second ended %v after its time", d)
		}
	})
}

// TestEventSaysHowMuch: the caller's times go before those of the channel, and
// there is no more of the past than was kept.
func TestEventSaysHowMuch(t *testing.T) {
	for _, test := range []struct{ pre, post, wantPre, wantPost time.Duration }{
		{0, time.Second, 0, time.Second},
		{time.Second, 0, time.Second, 0},
		{time.Hour, 5 * time.Second, testPre, 5 * time.Second},
		{-time.Second, time.Hour, 0, maxPostRoll},
	} {
		eventFilm(t, 64<<20, func(m *film) {
			m.open()
			m.roll(10 * time.Second)
			m.s.Event(&test.pre, &test.post)
			at := m.s.cfg.Clock.Now()
			m.roll(test.wantPost + time.Second)
			if got := m.recorded(); len(got) != 1 {
				t.Errorf("recorded %v, want one span", got)
			} else {
				m.near(got[0], at.Add(-test.wantPre), at.Add(test.wantPost), "event_over")
			}
		})
	}
}

// TestCameraLostBeforeTheEvent: what it saw last is recorded; its absence is
// declared although nothing was recorded, and once.
func TestCameraLostBeforeTheEvent(t *testing.T) {
	eventFilm(t, 8<<20, func(m *film) {
		m.open()
		m.roll(10 * time.Second)
		m.lose()
		lost := m.s.cfg.Clock.Now()
		m.wait(time.Second)
		at := m.event()
		m.wait(20 * time.Second)
		if m.s.Recording() {
			t.Error("the event is not over")
		}
		back := m.s.cfg.Clock.Now()
		m.open()
		m.roll(time.Second)
		got := m.recorded()
		if len(got) != 1 {
			t.Fatalf("recorded %v, want one span", got)
		}
		m.near(got[0], at.Add(-testPre), lost, "camera_offline")
		g := m.gaps()
		if len(g) == 0 || g[0].Start.Sub(lost).Abs() > frameTime || g[0].End.Sub(back).Abs() > 2*frameTime {
			t.Errorf("gaps %v, want one from %v to %v", g, lost, back)
		}
	})
}

// TestEventWhileTheCameraIsLongAway: what it saw last is recorded, and its
// absence stays one gap, from there to where it is back.
func TestEventWhileTheCameraIsLongAway(t *testing.T) {
	eventFilm(t, 8<<20, func(m *film) {
		m.s.cfg.PreRoll = 30 * time.Second
		m.s.gate.ring = preroll.New[mux.Sound](m.s.cfg.PreRoll, m.sp.Reserve)
		m.open()
		m.roll(10 * time.Second)
		m.lose()
		lost := m.s.cfg.Clock.Now()
		m.wait(13 * time.Second)
		if g := m.gaps(); len(g) != 1 {
			t.Fatalf("gaps %v, want the camera's absence", g)
		}
		m.event()
		m.wait(13 * time.Second)
		back := m.s.cfg.Clock.Now()
		m.open()
		m.roll(time.Second)
		g := m.gaps()
		if len(g) != 1 || g[0].Start.Sub(lost).Abs() > frameTime || g[0].End.Sub(back).Abs() > 2*frameTime {
			t.Errorf("gaps %v, want one from %v to %v", g, lost, back)
		}
		if got := m.recorded(); len(got) != 1 || got[0].End.Sub(lost).Abs() > frameTime || got[0].ended != "camera_offline" {
			t.Errorf("recorded %v, want one span up to %v", got, lost)
		}
	})
}

// TestPreRollOverAnAbsence: the camera was away before the event, and is back;
// that was declared when it came back, and is not declared again.
func TestPreRollOverAnAbsence(t *testing.T) {
	eventFilm(t, 8<<20, func(m *film) {
		m.s.cfg.PreRoll = 30 * time.Second
		m.s.gate.ring = preroll.New[mux.Sound](m.s.cfg.PreRoll, m.sp.Reserve)
		m.open()
		m.roll(10 * time.Second)
		m.lose()
		m.wait(3 * time.Second)
		m.open()
		m.roll(2 * time.Second)
		had := m.gaps()
		m.event()
		m.roll(5 * time.Second)
		if g := m.gaps(); len(had) != 1 || len(g) != 1 || g[0].ID != had[0].ID || !g[0].End.Equal(had[0].End) {
			t.Errorf("gaps %v after the event, %v before it, want the same one", g, had)
		}
		if got := m.recorded(); len(got) != 2 {
			t.Errorf("recorded %v, want two spans", got)
		}
	})
}

// TestCameraHangsBetweenEvents: it sends nothing and stays connected; that is
// one gap, which ends when it goes on.
func TestCameraHangsBetweenEvents(t *testing.T) {
	eventFilm(t, 8<<20, func(m *film) {
		m.open()
		m.roll(10 * time.Second)
		from := m.s.cfg.Clock.Now()
		m.wait(13 * time.Second)
		to := m.s.cfg.Clock.Now()
		m.roll(9 * time.Second)
		if g := m.gaps(); len(g) != 1 || g[0].Start.Sub(from).Abs() > frameTime || g[0].End.Sub(to).Abs() > 2*frameTime {
			t.Errorf("gaps %v, want one from %v to %v", g, from, to)
		}
	})
}

// TestEventBeforeTheFirstKeyframe: the camera has just come back, in the middle
// of a GOP. What was seen before is recorded, and missing is only what lies
// between the event and the keyframe.
func TestEventBeforeTheFirstKeyframe(t *testing.T) {
	eventFilm(t, 8<<20, func(m *film) {
		m.open()
		m.roll(10 * time.Second)
		m.lose()
		lost := m.s.cfg.Clock.Now()
		m.wait(time.Second)
		m.open()
		m.sent = 5
		m.roll(3 * frameTime)
		at := m.event()
		m.roll(5 * time.Second)
		g := m.gaps()
		if len(g) != 1 || g[0].Cause != vms.CauseUndecodable || g[0].Start.Sub(at).Abs() > frameTime || g[0].Duration() > gopTime {
			t.Errorf("gaps %v, want one from %v to the next keyframe", g, at)
		}
		got := m.recorded()
		if len(got) != 2 || got[0].End.Sub(lost).Abs() > frameTime || got[1].Start.Sub(at) > gopTime {
			t.Errorf("recorded %v, want a span up to %v and one after %v", got, lost, at)
		}
	})
}

// TestCameraBackDuringTheEvent: the event goes on with a span of its own.
func TestCameraBackDuringTheEvent(t *testing.T) {
	eventFilm(t, 8<<20, func(m *film) {
		m.open()
		m.roll(10 * time.Second)
		at := m.event()
		m.roll(500 * time.Millisecond)
		m.lose()
		m.wait(time.Second)
		m.open()
		m.roll(4 * time.Second)
		got := m.recorded()
		if len(got) != 2 {
			t.Fatalf("recorded %v, want two spans", got)
		}
		m.near(got[0], at.Add(-testPre), at.Add(500*time.Millisecond), "camera_offline")
		m.near(got[1], at.Add(1500*time.Millisecond), at.Add(testPost), "event_over")
		if g := m.gaps(); len(g) == 0 || !g[0].Start.Equal(got[0].End) || !g[0].End.Equal(got[1].Start) {
			t.Errorf("gaps %v, want one from %v to %v", g, got[0].End, got[1].Start)
		}
	})
}

// TestCameraBackBeforeTheEvent: the pre-roll reaches over the interruption.
func TestCameraBackBeforeTheEvent(t *testing.T) {
	eventFilm(t, 8<<20, func(m *film) {
		m.open()
		m.roll(10 * time.Second)
		m.lose()
		lost := m.s.cfg.Clock.Now()
		m.wait(200 * time.Millisecond)
		m.open()
		m.roll(time.Second)
		at := m.event()
		m.roll(5 * time.Second)
		got := m.recorded()
		if len(got) != 2 {
			t.Fatalf("recorded %v, want two spans", got)
		}
		m.near(got[0], at.Add(-testPre), lost, "camera_offline")
		m.near(got[1], lost.Add(200*time.Millisecond), at.Add(testPost), "event_over")
	})
}

// TestPreRollIsCounted: it takes no more of the RAM than its share, then GOPs
// give way, oldest first; the event is recorded with what is left.
func TestPreRollIsCounted(t *testing.T) {
	const ram = 300 << 10
	eventFilm(t, ram, func(m *film) {
		m.open()
		m.roll(10 * time.Second)
		if n := m.reserved(); n == 0 || n > ram/3 {
			t.Errorf("%d bytes are reserved of %d", n, ram)
		}
		at := m.event()
		m.roll(500 * time.Millisecond)
		m.s.mu.Lock()
		m.s.rest()
		m.s.mu.Unlock()
		got := m.recorded()
		if len(got) != 1 || !got[0].Start.Before(at.Add(-gopTime)) {
			t.Errorf("recorded %v, want what was before %v", got, at)
		}
	})
}

// TestNoMemoryForAGOP: then an event is recorded from the next keyframe on, and
// why the time up to there is missing is not blamed on the camera.
func TestNoMemoryForAGOP(t *testing.T) {
	eventFilm(t, 40<<10, func(m *film) {
		m.open()
		m.roll(10 * time.Second)
		for m.sent%int(gopTime/frameTime) != 8 { // in the middle of a GOP
			m.roll(frameTime)
		}
		if held := m.reserved(); held != 0 {
			t.Fatalf("%d bytes are held where no GOP has room", held)
		}
		at := m.event()
		m.roll(2 * time.Second)
		g := m.gaps()
		if len(g) == 0 || g[0].Cause != vms.CauseUndecodable || g[0].Start.Sub(at).Abs() > frameTime || g[0].Duration() > gopTime {
			t.Errorf("gaps %v, want one from %v to the next keyframe", g, at)
		}
	})
}

// TestHubLearnsTheTimeBeforeTheEvent: the pre-roll is dated when it is recorded.
func TestHubLearnsTheTimeBeforeTheEvent(t *testing.T) {
	eventFilm(t, 8<<20, func(m *film) {
		m.open()
		m.roll(10 * time.Second)
		learn(m.s, 31*365*24*time.Hour)
		at := m.event()
		m.roll(5 * time.Second)
		got := m.recorded()
		if len(got) != 1 {
			t.Fatalf("recorded %v, want one span", got)
		}
		m.near(got[0], at.Add(-testPre), at.Add(testPost), "event_over")
	})
}
