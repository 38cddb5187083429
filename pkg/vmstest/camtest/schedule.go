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
func (m *Media) units(loop bool) iter.Seq[unit] {
	return func(yield func(unit) bool) {
		nextAudio, stop := iter.Pull(m.audioUnits(loop))
		defer stop()
		a, more := nextAudio()
		for v := range m.videoUnits(loop) {
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

func (m *Media) videoUnits(loop bool) iter.Seq[unit] {
	return func(yield func(unit) bool) {
		n := uint64(0)
		for base := int64(0); ; base += m.period {
			for _, v := range m.Video {
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
		if len(m.Audio) == 0 {
			return
		}
		rate := int64(m.AudioConfig.SampleRate)
		pos, n := m.Audio[0].PTS, uint64(0)
		for round := int64(1); ; round++ {
			// where the next round's first access unit wants to be
			end := m.Audio[0].PTS + round*m.period*rate/VideoRate
			for i := 0; ; i++ {
				if loop && pos >= end-samplesPerAU/2 {
					break
				}
				if i == len(m.Audio) && !loop {
					return
				}
				// A clip whose sound ends early stutters on its last access unit.
				au := m.Audio[min(i, len(m.Audio)-1)].AU
				if !yield(unit{n: n, at: ticks(pos, rate), pts: pos, au: [][]byte{au}}) {
					return
				}
				n++
				pos += samplesPerAU
			}
		}
	}
}

// ticks converts without overflow: a stream may loop for years.
func ticks(n, rate int64) time.Duration {
	return time.Duration(n/rate)*time.Second + time.Duration(n%rate)*time.Second/time.Duration(rate)
}
