package stream

import (
	"time"

	"github.com/zipato/vms/agent/mux"
	"github.com/zipato/vms/agent/preroll"
	"github.com/zipato/vms/pkg/cmaf"
	"github.com/zipato/vms/pkg/vms"
)

const (
	// DefaultPostRoll is how long an event is recorded where nothing is said.
	DefaultPostRoll = 30 * time.Second
	// What an event may ask for at most: memory bounds the one, and that nobody
	// is recorded by mistake for long the other.
	maxPreRoll, maxPostRoll = time.Minute, 10 * time.Minute
	// lastGOP is how long an event's recording may go on beyond its end, to the
	// next keyframe: what is cut off a GOP could not be decoded, and would be
	// missing in the pre-roll of the next event.
	lastGOP = 10 * time.Second
)

// gate stands before the muxer in mode event: while nothing happens, what the
// camera sends stays in a ring, and from an event until it is over it is
// recorded. Its fields stand under Stream.mu.
type gate struct {
	ring *preroll.Ring[mux.Sound]
	// The camera's session: nil, while there is none.
	peek  *mux.Peek
	audio *mux.Sound
	met   bool // a picture of the session was seen while nothing happened

	recording bool
	until     time.Time // the end of the event, with a monotonic reading
	// blind: the event began in a GOP whose keyframe was not kept.
	blind bool
}

// Event records what was before now and what comes after it, in mode event; in
// the other modes all is recorded anyway. pre is how far back at least, to the
// beginning of a GOP, but no further than Config.PreRoll and memory reach; post
// how long from now on. nil: as Config says. While an event is recorded another
// one makes it longer, never shorter.
func (s *Stream) Event(pre, post *time.Duration) {
	if s.begin(pre, post) {
		s.recordingChanged()
	}
}

// begin reports whether the event begins a recording.
func (s *Stream) begin(pre, post *time.Duration) bool {
	now := time.Now()
	length, after := s.cfg.PreRoll, s.cfg.PostRoll
	if pre != nil {
		length = max(0, *pre)
	}
	if post != nil {
		after = max(0, *post)
	}
	until := now.Add(min(after, maxPostRoll))
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.gate
	if g == nil || s.over {
		return false
	}
	if g.recording {
		if until.After(g.until) {
			g.until = until
		}
		return false
	}
	g.recording, g.until = true, until
	s.settle()
	s.replay(now.Add(-min(length, maxPreRoll)))
	return true
}

// Recording reports whether what the camera sends is recorded: always while it
// is pulled, but in mode event only from an event until that is over.
func (s *Stream) Recording() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.over && (s.gate == nil || s.gate.recording)
}

// recordingChanged tells who asks for it. s.mu is not held.
func (s *Stream) recordingChanged() {
	s.cfg.Log.Info("event", "recording", s.Recording())
	if s.cfg.OnRecording != nil {
		s.cfg.OnRecording()
	}
}

// replay feeds the muxer what the ring holds from a time on, and opens it for
// what follows. s.mu is held.
func (s *Stream) replay(from time.Time) {
	g := s.gate
	// What is fed is older than what was seen, and explains no absence: that the
	// camera was away meanwhile was said when it came back.
	away, end, at, utc := s.away, s.lastEnd, s.lastAt, s.lastUTC
	s.away, s.replaying = nil, true
	session := 0
	short := g.ring.Take(from, func(gop *preroll.GOP[mux.Sound]) {
		if gop.Session != session {
			if session > 0 {
				s.mux.Flush()
				s.end(string(vms.CauseCameraOffline))
			}
			session = gop.Session
			s.openMux(gop.Video, gop.Audio)
		}
		for i := range gop.Units {
			u := &gop.Units[i]
			utc, uncertain := s.utc(u.Arrival)
			if u.Audio {
				s.mux.Audio(u.PTS, utc, u.Data[0])
			} else {
				s.mux.Video(u.PTS, utc, uncertain, u.Camera, u.Data)
			}
		}
	})
	if short {
		s.cfg.Log.Warn("the time before the event is cut short: the hub's RAM has no room for more")
	}
	switch open := g.ring.Session(); {
	case open == 0 && session > 0: // the camera is away since
		s.mux.Flush()
		s.end(string(vms.CauseCameraOffline))
	case open != session:
		if session > 0 {
			s.mux.Flush()
			s.end(string(vms.CauseCameraOffline))
		}
		s.openMux(g.peek.Params(), g.audio)
		g.blind = true
	}
	s.away, s.replaying = away, false
	s.lastEnd, s.lastAt, s.lastUTC = end, at, utc
}

// openMux begins a session of the muxer. s.mu is held.
func (s *Stream) openMux(v cmaf.VideoParams, a *mux.Sound) {
	if err := s.mux.Open(v, a); err != nil {
		// The camera package offers only codecs that can be muxed.
		s.cfg.Log.Error("cannot record this camera", "err", err)
	}
}

// rest ends the recording of an event. s.mu is held.
func (s *Stream) rest() {
	s.mux.Flush()
	s.end("event_over")
	s.gate.recording, s.gate.blind = false, false
}

// pass takes a picture, and reports whether it is to be recorded and whether an
// event was over with it. s.mu is held.
func (s *Stream) pass(u preroll.Unit) (record, over bool) {
	g := s.gate
	if g == nil {
		return true, false
	}
	if g.peek == nil {
		return false, false
	}
	key := g.peek.Video(u.Arrival, u.Data)
	if g.recording {
		if !key || u.Arrival.Before(g.until) {
			return true, false
		}
		s.rest()
		over = true
	}
	s.saw(u.Arrival)
	if key {
		g.ring.Key(u, g.peek.Params())
	} else {
		g.ring.Add(u)
	}
	return false, over
}

// saw notes a picture that is not recorded: the camera is there. s.mu is held.
func (s *Stream) saw(arrival time.Time) {
	utc, _ := s.utc(arrival)
	first := !s.gate.met
	s.gate.met = true
	if s.away != nil || first && utc.Sub(s.absentSince()) >= startUp {
		s.explainAbsence(utc)
	}
	s.capturedUntil(utc)
}

// openGate begins a session of the camera, and reports whether the muxer is to
// begin one too. s.mu is held.
func (s *Stream) openGate(v cmaf.VideoParams, a *mux.Sound) bool {
	g := s.gate
	if g == nil {
		return true
	}
	peek, err := mux.NewPeek(v)
	if err != nil {
		s.cfg.Log.Error("cannot record this camera", "err", err)
		return false
	}
	g.peek, g.audio, g.met = peek, a, false
	g.ring.Open(a)
	return g.recording
}

// lost ends the camera's session.
func (s *Stream) lost() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g := s.gate; g != nil {
		g.ring.Lost()
		g.peek, g.blind = nil, false
	}
}

// unseen says why the muxer made nothing of the time before a chunk, and forgets
// it. s.mu is held.
func (s *Stream) unseen() vms.Cause {
	if g := s.gate; g != nil && g.blind {
		g.blind = false
		return vms.CauseUndecodable
	}
	return vms.CauseCameraOffline
}

// tickGate ends what is over, also while the camera sends nothing, and reports
// whether an event was. s.mu is held.
func (s *Stream) tickGate(now time.Time) bool {
	g := s.gate
	if g == nil {
		return false
	}
	if !g.recording {
		g.ring.Trim(now)
		return false
	}
	until := g.until
	if g.ring.Session() != 0 {
		until = until.Add(lastGOP)
	}
	if now.Before(until) {
		return false
	}
	s.rest()
	return true
}

// closeGate ends it all: the camera is released. s.mu is held.
func (s *Stream) closeGate() {
	if g := s.gate; g != nil {
		g.ring.Lost()
		g.ring.Clear()
		g.peek, g.recording = nil, false
	}
}
