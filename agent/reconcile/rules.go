package reconcile

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/week"
	"github.com/zipato/vms/pkg/wire"
)

// document is a desired document that was read.
type document struct {
	wire.Desired
	zone    *time.Location
	streams map[vms.ChannelID]*declared
}

// declared is one stream of a document.
type declared struct {
	wire.DesiredStream
	camera vms.Camera
	week   week.Table
	// unreadable says why there is no camera; unplanned why the schedule cannot be kept.
	unreadable, unplanned string
}

// revision of a document; 0: there is none.
func (d *document) revision() int64 {
	if d == nil {
		return 0
	}
	return d.Revision
}

// stream returns what a document says of a channel, or nil.
func (d *document) stream(ch vms.ChannelID) *declared {
	if d == nil {
		return nil
	}
	return d.streams[ch]
}

// wish is what a channel is to do at one moment.
type wish struct {
	target *Target // nil: no camera is pulled
	local  *request
	// over is a request on the LAN that is obsolete, and why.
	over *request
	why  error
	// problem says why it cannot be as it should.
	problem string
	// gone: nobody knows the channel any more.
	gone   bool
	sid    vms.SID
	origin string
	mode   wire.Mode
}

// decide says what is to run now, and when that changes by itself (wake, zero:
// never). It is all rules and no state:
//
//   - What the cloud wants to run now goes before what was asked for on the LAN,
//     and ends that: who stops the channel in the cloud later wants it stopped.
//   - Who stops the channel in the cloud also ends a request on the LAN that was
//     made before this hub had seen the stop, whether the cloud ran the channel or
//     not, and in whichever later document the hub hears of it. One that is made
//     when the hub has seen the stop runs.
//   - A request on the LAN that borrows the cloud's camera ends with that.
//   - An on-demand stream ends at its Until.
//   - A scheduled one needs the time. As long as that is not certain it records
//     always, and so it does when the schedule cannot be read: better too much
//     than the night of a break-in missing.
//   - In mode event the camera is always pulled; the stream decides what it records.
func decide(doc *document, locals map[vms.ChannelID]*request, address func(vms.Camera) (string, error), now time.Time, certain bool) (wishes map[vms.ChannelID]wish, wake time.Time) {
	wishes = make(map[vms.ChannelID]wish)
	if doc != nil {
		for ch, s := range doc.streams {
			w, at := s.decide(now, certain, doc.zone)
			wishes[ch] = w
			if !at.IsZero() && (wake.IsZero() || at.Before(wake)) {
				wake = at
			}
		}
	}
	for ch, l := range locals {
		w, declared := wishes[ch]
		if s := doc.stream(ch); s != nil && l.Known < s.Stopped {
			w.over, w.why = l, fmt.Errorf("%w: the channel was stopped in the cloud meanwhile", vms.ErrConflict)
			wishes[ch] = w
			continue
		}
		if declared && w.target != nil {
			if certain || w.mode != wire.ModeScheduled {
				w.over, w.why = l, fmt.Errorf("%w: the cloud has started this channel meanwhile", vms.ErrConflict)
				wishes[ch] = w
			}
			continue
		}
		w = wish{local: l, sid: l.SID, origin: wire.OriginLAN, mode: wire.ModeOnDemand}
		cam, err := l.camera(doc, address)
		if err != nil { // the camera is the cloud's,
			w.problem = sentence(err)
			if doc != nil { // and it has taken it away, or the channel
				w.over, w.why = l, err
			}
		} else {
			w.target = &Target{Channel: ch, SID: l.SID, NVRURL: l.NVRURL, Token: l.Token, Camera: cam, Origin: wire.OriginLAN, Mode: wire.ModeOnDemand}
		}
		wishes[ch] = w
	}
	return wishes, wake
}

// decide is decide for one stream of the cloud.
func (s *declared) decide(now time.Time, certain bool, zone *time.Location) (w wish, wake time.Time) {
	w = wish{sid: s.SID, origin: wire.OriginCloud, mode: s.Mode}
	if !s.Active {
		return w, time.Time{}
	}
	switch s.Mode {
	case wire.ModeContinuous, wire.ModeEvent:
	case wire.ModeOnDemand:
		// A time that has certainly passed is enough to see that Until has.
		if !s.Until.IsZero() {
			if !now.Before(s.Until) {
				return w, time.Time{}
			}
			wake = s.Until
		}
	case wire.ModeScheduled:
		w.problem = s.unplanned
		if w.problem != "" || !certain {
			break
		}
		local := now.In(zone)
		if at, ok := s.week.Next(local); ok {
			wake = at
		}
		if !s.week.On(local) {
			return w, wake
		}
	default:
		w.problem = fmt.Sprintf("This agent does not know the mode %q; update it.", s.Mode)
		return w, time.Time{}
	}
	if s.unreadable != "" {
		w.problem = s.unreadable
		return w, wake
	}
	w.target = &Target{
		Channel: s.Channel, SID: s.SID, NVRURL: s.NVRURL, Camera: s.camera, Origin: wire.OriginCloud, Mode: s.Mode,
		PreRoll: time.Duration(s.PreRoll) * time.Second, PostRoll: time.Duration(s.PostRoll) * time.Second,
	}
	return w, wake
}

// runs reports whether the cloud wants it to run.
func (s *declared) runs(now time.Time, certain bool, zone *time.Location) bool {
	w, _ := s.decide(now, certain, zone)
	return w.target != nil
}

// same reports whether a stream of t is as good as one of o. A token only lets
// a session in; who asked, and in which of the modes that record all the time,
// is nothing that a stream would have to be torn apart for.
func (t Target) same(o Target) bool {
	event := t.Mode == wire.ModeEvent
	if event != (o.Mode == wire.ModeEvent) || event && (t.PreRoll != o.PreRoll || t.PostRoll != o.PostRoll) {
		return false
	}
	return t.Channel == o.Channel && t.SID == o.SID && t.NVRURL == o.NVRURL && sameCamera(t.Camera, o.Camera)
}

func sameCamera(a, b vms.Camera) bool {
	return a.URL == b.URL && a.Host == b.Host && a.Port == b.Port && a.Username == b.Username && a.Password == b.Password &&
		maps.Equal(a.Templates, b.Templates)
}

// channels returns the keys of wishes in order.
func channels(wishes map[vms.ChannelID]wish) []vms.ChannelID {
	return slices.Sorted(maps.Keys(wishes))
}
