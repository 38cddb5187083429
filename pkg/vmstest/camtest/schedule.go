package camtest

import (
	"iter"
	"time"
)

// unit is one access unit on its way out.
type unit struct {
	video bool
	n     uint64        // how many of its kind came before
	at    time.Duration // when to send it, in media time since the first DTS
	pts   int64         // in ticks of its track's clock, continuous over loops
	au    [][]byte      // for audio the one access unit
}

// units yields what a camera sends, in the order in which it sends it. With
// loop it never ends: times go on without a seam, and because the picture's
// length is rarely a whole number of audio access units, each round plays one
// more or one less, so that sound and picture never drift apart by more than
// half an access unit.
//
// again is asked before each picture: true begins the clip's pictures anew, with
// a keyframe, as soon as the pictures so far are all shown before it. Times go
// on without a seam, and the sound is not disturbed. It may be nil.
func (m *Media) units(loop bool, again func() bool) iter.Seq[unit] {
	return func(yield func(unit) bool) {
		nextAudio, stop := iter.Pull(m.audioUnits(loop))
		defer stop()
		a, more := nextAudio()
		for v := range m.videoUnits(loop, again) {
			for ; more && a.at <= v.at; a, more = nextAudio() {
				if !yield(a) {
					return
				}
			}
			if !yield(v) {
				return
			}
		}
		for ; more; a, more = nextAudio() {
			if !yield(a) {
				return
			}
		}
	}
}

func (m *Media) videoUnits(loop bool, again func() bool) iter.Seq[unit] {
	return func(yield func(unit) bool) {
		n := uint64(0)
		base, shown := int64(0), int64(-1) // shown is the highest PTS so far
		for asked := false; ; base += m.period {
			for i := 0; i < len(m.Video); i++ {
				asked = asked || again != nil && again()
				if next := base + m.Video[i].DTS; asked && next+m.Video[0].PTS > shown {
					base, i, asked = next, 0, false
				}
				v := m.Video[i]
				shown = max(shown, base+v.PTS)
				if !yield(unit{video: true, n: n, at: ticks(base+v.DTS, VideoRate), pts: base + v.PTS, au: v.AU}) {
					return
				}
				n++
			}
			if !loop {
				return
			}
		}
	}
}

func (m *Media) audioUnits(loop bool) iter.Seq[unit] {
	return func(yield func(unit) bool) {
		if len(m.sound) == 0 {
			return
		}
		rate := int64(m.SampleRate)
		first := m.sound[0]
		pos, n := first.PTS, uint64(0)
		for round := int64(1); ; round++ {
			// where the next round's first access unit wants to be
			end := first.PTS + round*m.period*rate/VideoRate
			for i := 0; ; i++ {
				if loop && pos >= end-first.Samples/2 {
					break
				}
				if i == len(m.sound) && !loop {
					return
				}
				// A clip whose sound ends early stutters on its last access unit.
				u := m.sound[min(i, len(m.sound)-1)]
				if !u.quiet {
					if !yield(unit{n: n, at: ticks(pos, rate), pts: pos, au: [][]byte{u.AU}}) {
						return
					}
					n++
				}
				pos += u.Samples
			}
		}
	}
}

// ticks converts without overflow: a stream may loop for years.
func ticks(n, rate int64) time.Duration {
	return time.Duration(n/rate)*time.Second + time.Duration(n%rate)*time.Second/time.Duration(rate)
}
