package stream

import (
	"time"

	"github.com/zipato/vms/agent/hubclock"
	"github.com/zipato/vms/agent/spool"
	"github.com/zipato/vms/pkg/vms"
)

// bridgeWait is how long, after the time is known, the camera may take to come
// and tell what its clock shows: that may say when an earlier boot of the hub,
// which knew no time, captured what is left of it.
const bridgeWait = time.Minute

// utc is what the hub's clock shows at t, in the time that is being stamped
// with: provisional, also for the moment from when the hub learns the time until
// settle. s.mu is held.
func (s *Stream) utc(t time.Time) (utc time.Time, uncertain bool) {
	utc, uncertain = s.cfg.Clock.UTC(t)
	if s.timed || uncertain {
		return utc, uncertain
	}
	p, _ := s.cfg.Clock.Place(s.cfg.Clock.Origin(), 0)
	return utc.Add(-p.Shift), true
}

// settle gives what was captured before the hub knew the time its UTC, once it
// does: at one moment what was stamped, what is being muxed and what was noted
// here move by the same, so that nothing shows where it was. Whoever feeds the
// muxer calls it before. s.mu is held.
func (s *Stream) settle() {
	if s.placed || !s.cfg.Clock.Known() {
		return
	}
	if s.known.IsZero() {
		s.known = time.Now()
	}
	if !s.timed {
		s.timed = true
		s.move()
	}
	s.placed = s.cfg.Spool.PlaceRest(s.epoch, spool.Bridge{
		Place: func(o spool.Origin, stretch time.Duration) (spool.Placement, bool) {
			origin := hubclock.Origin(o)
			p, ok := s.cfg.Clock.Place(origin, s.cfg.Clock.Lag(origin, stretch))
			return spool.Placement(p), ok
		},
		Began: s.cfg.Clock.Began(), Floor: s.cfg.Clock.Built(), Wait: time.Since(s.known) < bridgeWait,
	})
}

// move is settle for what this stream has captured.
func (s *Stream) move() {
	origin := s.cfg.Clock.Origin()
	p, _ := s.cfg.Clock.Place(origin, 0)
	by, doubt := s.mux.Rebase(p.Shift)
	p, _ = s.cfg.Clock.Place(origin, doubt)
	if was := s.cfg.Spool.Place(s.epoch, spool.Placement{Shift: by, Sure: p.Sure}); was != by {
		// A stream that ends has placed all that it found.
		s.mux.Rebase(was - by)
		by = was
	}
	if s.lastEnd.IsZero() {
		return // it has not begun
	}
	s.lastEnd = s.lastEnd.Add(by)
	s.lastUTC, _ = s.utc(s.lastAt) // where an absence begins; s.away is told anew
	s.cfg.Log.Info("the hub knows the time; what was captured has its place", "by", by, "start", s.lastEnd)
}

// declare declares a gap in the time that is being stamped with.
func (s *Stream) declare(g vms.Gap) {
	if s.timed {
		s.cfg.Spool.Declare(g)
	} else {
		s.cfg.Spool.DeclareProvisional(g)
	}
}
