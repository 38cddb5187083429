package mux

import (
	"math"
	"time"

	"github.com/zipato/vms/pkg/cmaf"
)

// Audio takes one AAC frame, or any number of whole PCM samples: pts in ticks of
// the sample rate.
func (m *Mux) Audio(pts int64, now time.Time, data []byte) {
	if m.sound == nil || len(data) == 0 {
		return
	}
	t := m.aJump.place(pts*int64(m.ts)/int64(m.sound.SampleRate), now, m.ts)
	if m.pcm != nil {
		m.addPCM(t, data)
	} else {
		m.addFrame(t, data)
	}
	if len(m.soundQ) >= maxSoundQueue || m.soundLen > maxSoundBytes {
		// No picture for long: keep the newest.
		m.dropSound(len(m.soundQ) / 2)
	}
	m.soundNow = now
	m.release(now)
}

// addFrame queues one AAC frame.
func (m *Mux) addFrame(t int64, data []byte) {
	if n := len(m.soundQ); n > 0 {
		last := &m.soundQ[n-1]
		if t <= last.pts {
			t = last.pts + 1
		}
		if last.dur == 0 {
			last.dur = t - last.pts
			if last.dur > 10*m.soundFrame() {
				last.dur = m.soundFrame() // a hole: nothing is stretched over it
			}
		}
	}
	m.queue(soundSample{pts: t, data: data})
}

func (m *Mux) queue(s soundSample) {
	m.soundQ = append(m.soundQ, s)
	m.soundLen += len(s.data)
}

// take removes the oldest n samples from the queue.
func (m *Mux) take(n int) {
	for i := range n {
		m.soundLen -= len(m.soundQ[i].data)
		m.soundQ[i] = soundSample{}
	}
	m.soundQ = m.soundQ[n:]
}

// dropSound gives up the oldest n samples.
func (m *Mux) dropSound(n int) {
	m.take(n)
	m.stats.SoundDropped += uint64(n)
}

// soundFrame is the nominal duration of one AAC frame (1,024 samples), ticks.
func (m *Mux) soundFrame() int64 {
	if m.sound == nil {
		return 0
	}
	return 1024 * int64(m.ts) / int64(m.sound.SampleRate)
}

// waitsForSound: the first chunk of a span waits for the first sample, to know
// whether there is a track; the last chunk of a GOP waits for the sound up to
// its end, so that a recording begins with picture and sound of the same time.
func (m *Mux) waitsForSound(c *building, now time.Time) bool {
	if m.sound == nil {
		return false
	}
	if c.spanDue && len(m.soundQ) == 0 && m.soundNow.IsZero() && within(now, c.firstNow, soundWait) {
		return true
	}
	if !c.endsGOP || !within(now, c.closed, m.soundWait()) || m.soundNow.IsZero() {
		return false
	}
	if !m.withA && !c.spanDue {
		return false
	}
	if !c.spanDue && m.endsNothing(c) {
		return false
	}
	n := len(m.soundQ)
	return (n == 0 || m.soundQ[n-1].known() < c.end) && now.Sub(m.soundNow) < soundGone
}

// soundWait is how long a picture waits for sound.
func (m *Mux) soundWait() time.Duration {
	if m.watched {
		return soundWaitWatched
	}
	return soundWait
}

// endsNothing reports whether the recording goes on behind c although it ends
// with a keyframe to come: where there are only keyframes, no GOP ends.
func (m *Mux) endsNothing(c *building) bool {
	return c.intra && m.inSpan && c.end < m.boundary()
}

// within reports whether less than d has passed since then. A clock that was
// set back since says nothing, and nobody waits for it.
func within(now, since time.Time, d time.Duration) bool {
	passed := now.Sub(since)
	return passed >= 0 && passed < d
}

// wantSound reports whether the next span should have a sound track.
func (m *Mux) wantSound(now time.Time) bool {
	return m.sound != nil && !m.soundNow.IsZero() && (len(m.soundQ) > 0 || now.Sub(m.soundNow) < soundGone)
}

// takeSound takes the sound that belongs into c out of the queue: all complete
// samples that begin before c ends. When sound lags behind the start of a new
// recording, its newest sample goes into the first chunk even so: the zero of
// the recording then lies before all that follows. When none was there, sound
// that comes from before that zero is too late for any recording.
func (m *Mux) takeSound(c *building, first bool) cmaf.Run {
	run := cmaf.Run{Track: cmaf.AudioTrack}
	earliest := int64(0)
	switch {
	case !m.withA:
		earliest = c.end // a span with a track may begin with what is later
	case !first:
		earliest = m.span.zero
	}
	if n := len(m.soundQ); n > 0 && c.key && m.soundQ[n-1].dur == 0 && m.soundQ[n-1].pts < c.start {
		m.soundQ[n-1].dur = m.soundFrame()
	}
	late := 0
	for late < len(m.soundQ) && m.soundQ[late].pts < earliest {
		late++
	}
	m.dropSound(late)
	if !m.withA {
		return run
	}
	i := 0
	for i < len(m.soundQ) {
		s := &m.soundQ[i]
		if s.dur == 0 || (s.pts >= c.end && !c.last) {
			break
		}
		if len(run.Samples) == 0 {
			run.Base = uint64(s.pts)
		} else if next := run.Base + uint64(sum(run.Samples)); int64(next) != s.pts {
			break // a hole in time needs a tfdt of its own: the next chunk
		}
		run.Samples = append(run.Samples, cmaf.Sample{Duration: uint32(s.dur), Sync: true, Raw: s.data})
		i++
	}
	m.take(i)
	return run
}

// zero is the earliest time in the first chunk of a recording: what a worker
// subtracts from all times in it (cmaf.Fragment.Zero).
func zero(c *building, sound cmaf.Run) int64 {
	t, shown := c.start, int64(math.MaxInt64)
	for i := range c.video {
		shown = min(shown, t+int64(c.video[i].CTS))
		t += int64(c.video[i].Duration)
	}
	z := c.start
	if shown >= 0 {
		z = min(z, shown)
	}
	if len(sound.Samples) > 0 {
		z = min(z, int64(sound.Base))
	}
	return z
}

func sum(samples []cmaf.Sample) (d int64) {
	for i := range samples {
		d += int64(samples[i].Duration)
	}
	return d
}
