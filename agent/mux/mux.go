// Package mux turns access units into numbered, stamped CMAF chunks, and
// decides where recordings begin. It is pure: it starts nothing, reads no
// clock and touches no file; the same calls give the same bytes.
//
// Presentation times are the camera's. Decode times are the presentation times
// in ascending order, so that the tracks of a chunk begin when its first
// picture is shown, the durations of a recording add up to exactly the time it
// shows, and one recording ends on the tick at which the next begins, with
// B-frames and open GOPs as without.
//
// A keyframe ends a chunk, and a recording begins with one; where all pictures
// are keyframes (MJPEG, and cameras that are set so) chunks end by time and size
// alone. Sound that MP4 or browsers cannot carry, G711 and LPCM, becomes FLAC: not
// a sample of it is changed. Where no sound came, a hole is left.
package mux

import (
	"time"

	"github.com/zipato/vms/pkg/cmaf"
	"github.com/zipato/vms/pkg/vms"
)

const (
	// soundWait is how long a chunk that ends a GOP waits for the sound before
	// the next keyframe; soundWaitWatched the same while somebody looks on.
	soundWait        = 500 * time.Millisecond
	soundWaitWatched = 100 * time.Millisecond
	// soundGone: a track that has been silent for so long is left out of the next span.
	soundGone = 5 * time.Second
	// soundLead is how much sound before the first picture of a span is kept.
	soundLead = 100 * time.Millisecond

	// maxSoundQueue bounds the samples that wait for a picture (21 s of AAC at 48
	// kHz), maxSoundBytes what they hold (20 s of LPCM in stereo).
	maxSoundQueue = 1000
	maxSoundBytes = 4 << 20

	// A recording that no keyframe ends is cut after so much.
	longestRecording = 120 * time.Second
	largestRecording = 64 << 20

	// jump: a timestamp further off than this is another clock, not a late frame.
	jump = 10 * time.Second
	// backJump is the same for timestamps that go back further than reordering explains.
	backJump = 2 * time.Second
	// longestPause is the most time that may lie between two pictures: sample
	// durations are 32-bit ticks.
	longestPause = time.Minute
)

// DefaultRecording is the length of recordings where none is given.
const DefaultRecording = 30 * time.Second

// Config is fixed for the life of a Mux.
type Config struct {
	Epoch vms.Epoch
	// NewEpoch names the epoch that goes on when the hub's clock was set back by
	// more than can be slewed, because UTC never goes back inside one. Nil: it
	// is slewed all the same.
	NewEpoch func() vms.Epoch
	// Recording is the time between two recordings. They begin where the hub's
	// UTC, in multiples of Recording, is at Phase: so streams of different phases
	// stay apart, whenever their cameras came back.
	Recording, Phase time.Duration
	// Chunk and ChunkBytes are where a chunk is cut, whichever comes first.
	Chunk      time.Duration
	ChunkBytes int
	// OnInit and OnChunk get what is muxed, in order. They must not block.
	OnInit  func(vms.Init)
	OnChunk func(vms.Chunk)
}

// Stats counts what came and what could not be muxed.
type Stats struct {
	Frames       uint64 // pictures muxed
	BeforeKey    uint64 // pictures before the first keyframe of a span
	SoundDropped uint64 // sound samples, or packets of PCM, for which no track or no place was left
	Unreadable   uint64 // MJPEG pictures that are no JPEG
}

// Sound is what a camera said about its sound. In MP4 an AAC frame, or a FLAC
// frame made of PCM, is one sample.
type Sound struct {
	// Codec is "aac" (also when empty), "pcma" or "pcmu" (the two laws of G711), or
	// "lpcm": big endian, and offset by 128 where it has 8 bits (RFC 3551, 4.5.10).
	Codec      string
	Config     []byte // of aac: the AudioSpecificConfig (ISO/IEC 14496-3)
	SampleRate int    // Hz
	Channels   int
	BitDepth   int // of lpcm: 8, 16 or 24
}

// Mux is one stream being muxed. It is not safe for concurrent use.
type Mux struct {
	cfg   Config
	stats Stats

	// The camera's session.
	params  *params
	sound   *cmaf.AudioParams // as it is written
	pcm     *pcm              // what makes FLAC of it, or nil
	ts      uint32            // ticks per second of all tracks
	watched bool
	vJump   unjump
	aJump   unjump

	// Pictures on their way: decode order, waiting for a decode time; then one
	// waiting for its duration; then in a chunk.
	reorder  reorder
	held     *frame
	cur      *building
	closed   []*building
	spanDue  bool      // the next keyframe begins a span
	started  bool      // a keyframe of this session was seen
	begun    time.Time // when the session was seen first: its first picture, or the first Tick
	pace     uint8     // of the newest four pictures, a bit each: it came no sooner than it had to
	lastDur  int64
	soundQ   []soundSample
	soundLen int       // bytes in soundQ
	soundNow time.Time // arrival of the newest sound
	keyless  keyless

	// What has been emitted.
	seq      uint64
	initID   uint32
	withA    bool             // the current init has a sound track
	coded    cmaf.VideoParams // the parameter sets in the current init
	span     span
	clock    mediaClock
	inSpan   bool
	lastInit vms.Init
	unsure   bool // the hub did not know the time when the newest picture came
}

// span is where the current span and its recording stand, in ticks.
type span struct {
	number    uint32
	recStart  int64
	recUTC    time.Time // of recStart
	recBytes  int64
	zero      int64 // of the recording: nothing in it may begin before
	uncertain bool  // so was the time when UTC was anchored
}

// New returns a Mux that waits for Open.
func New(cfg Config) *Mux {
	if cfg.Recording <= 0 {
		cfg.Recording = DefaultRecording
	}
	if cfg.Chunk <= 0 {
		cfg.Chunk = 200 * time.Millisecond
	}
	if cfg.ChunkBytes <= 0 {
		cfg.ChunkBytes = 64 << 10
	}
	return &Mux{cfg: cfg, ts: cmaf.VideoClock}
}

// Stats returns the counters.
func (m *Mux) Stats() Stats { return m.stats }

// SetOptions changes the cutting from the next recording on.
func (m *Mux) SetOptions(recording, phase, chunk time.Duration) {
	m.cfg.Recording, m.cfg.Phase, m.cfg.Chunk = recording, phase, chunk
}

// SetWatched says whether somebody looks at the live picture: then sound gets
// less time to catch up with it.
func (m *Mux) SetWatched(on bool) { m.watched = on }

// Open begins a session of the camera: what came before is flushed, and the
// next keyframe begins a span. a is nil when the camera offers no sound; one that
// cannot be written is as good as none.
func (m *Mux) Open(v cmaf.VideoParams, a *Sound) error {
	m.Flush()
	p, err := newParams(v)
	if err != nil {
		m.params, m.sound, m.pcm = nil, nil, nil
		return err
	}
	m.params = p
	m.sound, m.pcm = newSound(a)
	m.ts = cmaf.Timescale(m.sound)
	m.vJump, m.aJump = unjump{back: backJump}, unjump{back: backJump}
	if m.pcm != nil {
		m.aJump.back = pcmBackJump
	}
	m.reorder = reorder{depth: p.depth}
	m.started, m.lastDur, m.pace = false, 0, 0
	m.begun, m.soundNow = time.Time{}, time.Time{}
	return nil
}

// Video takes one access unit (of MJPEG: one slice, the JPEG file): pts in 90 kHz
// ticks, now in UTC of the hub when it arrived (uncertain if that is an
// estimate), camera in UTC of the camera or zero.
func (m *Mux) Video(pts int64, now time.Time, uncertain bool, camera time.Time, au [][]byte) {
	if m.params == nil {
		return
	}
	in := m.params.inspect(au)
	if in.changed {
		m.reorder.depth = max(m.reorder.depth, m.params.depth)
	}
	if len(in.nalus) == 0 {
		if m.params.Codec == "mjpeg" {
			m.stats.Unreadable++
		}
		return
	}
	m.keyless.saw(in.key, now)
	if m.begun.IsZero() {
		m.begun = now
	}
	// What comes before the first keyframe tells how late pictures are, too.
	t := m.vJump.place(pts*int64(m.ts/cmaf.VideoClock), now, m.ts)
	m.clock.observe(t, now, uncertain, m.ts)
	if !m.started {
		if !in.key || !m.params.complete() {
			m.stats.BeforeKey++
			return
		}
		m.started, m.spanDue = true, true
	}
	m.unsure = uncertain
	f := &frame{pts: t, key: in.key, camera: camera, now: now}
	if in.key {
		f.params = m.params.VideoParams
	}
	if m.params.Codec == "mjpeg" {
		f.raw = in.nalus[0]
	} else {
		f.nalus = in.nalus
	}
	for _, n := range in.nalus {
		f.size += 4 + len(n)
	}
	m.reorder.learn(f, m.params.known)
	m.reorder.push(f)
	for m.reorder.ready() {
		m.timed(m.reorder.pop())
	}
	m.release(now)
}

// Rebase tells the Mux that the hub knows the time at last: all that it was
// told before was off by delta, and from now on Video and Tick are told the
// truth. Nothing else changes: the span and the recording go on, the next chunk
// begins where the last one ends, and the next recording where UTC as it is now
// says, but never sooner after the last than any other.
//
// It returns by what the chunks of the epoch that were flagged uncertain have to
// be moved as well, which is delta and what UTC was behind the hub's clock; and
// by how much more those of earlier sessions of the camera may then be wrong
// than the hub's clock was. Call it once, before the first picture whose time is
// certain.
func (m *Mux) Rebase(delta time.Duration) (by, doubt time.Duration) {
	doubt = m.clock.left
	by = m.clock.rebase(delta)
	m.unsure, m.span.uncertain = false, false
	shift(&m.span.recUTC, by)
	// Arrivals are only compared with each other and with the hub's clock.
	shift(&m.begun, delta)
	shift(&m.vJump.lastNow, delta)
	shift(&m.aJump.lastNow, delta)
	shift(&m.soundNow, delta)
	shift(&m.keyless.since, delta)
	for _, f := range m.reorder.queue {
		shift(&f.now, delta)
	}
	if m.held != nil {
		shift(&m.held.now, delta)
	}
	for _, c := range m.closed {
		c.shift(delta)
	}
	if m.cur != nil {
		m.cur.shift(delta)
	}
	return by, doubt
}

// Tick lets waits run out. Call it some ten times a second while a session is open.
func (m *Mux) Tick(now time.Time) {
	if m.begun.IsZero() {
		m.begun = now
	}
	m.release(now)
}

// WantsKeyframe reports whether the camera should be asked for a keyframe: once
// for every 60 s without one while pictures come. now is in UTC of the hub.
func (m *Mux) WantsKeyframe(now time.Time) bool { return m.keyless.wants(now) }

// Flush emits all that is pending, with the last picture as long as the one
// before it. The next keyframe begins a span.
func (m *Mux) Flush() {
	for m.reorder.pending() {
		m.timed(m.reorder.pop())
	}
	if m.held != nil {
		d := m.lastDur
		if d <= 0 {
			d = int64(m.ts) / 25
		}
		end := m.held.dts + d
		m.add(m.held, d)
		m.held = nil
		m.close(end, true, time.Time{})
	}
	m.flushPCM()
	if n := len(m.soundQ); n > 0 && m.soundQ[n-1].dur == 0 {
		m.soundQ[n-1].dur = m.soundFrame()
	}
	if n := len(m.closed); n > 0 {
		m.closed[n-1].last = true
	}
	for _, c := range m.closed {
		if c.last {
			m.emitLast(c)
		} else {
			m.emit(c)
		}
	}
	m.stats.SoundDropped += uint64(len(m.soundQ))
	m.closed, m.cur, m.soundQ, m.soundLen = nil, nil, nil, 0
	m.started, m.spanDue, m.inSpan, m.keyless = false, true, false, keyless{}
	m.clock.forget()
}

// timed takes a frame whose decode time is known: the one before it gets its
// duration and goes into a chunk.
func (m *Mux) timed(f *frame) {
	if m.held != nil {
		d := f.dts - m.held.dts
		m.lastDur = d
		m.pace = m.pace << 1 & 0xf
		if f.now.Sub(m.held.now) >= toDuration(d, m.ts)/2 {
			m.pace |= 1
		}
		m.add(m.held, d)
		// A keyframe among keyframes is nothing to begin a chunk with.
		m.cur.intra = m.cur.intra && f.key && f.params.Equal(m.cur.params)
		if f.key && !m.cur.intra || m.ticks(m.cfg.Chunk) <= f.dts-m.cur.start || m.cur.bytes >= m.cfg.ChunkBytes {
			m.close(f.dts, f.key, f.now)
		}
	}
	m.held = f
}

// add puts a picture into the chunk being built.
func (m *Mux) add(f *frame, d int64) {
	if m.cur == nil {
		m.cur = &building{start: f.dts, key: f.key, intra: f.key, params: f.params, camera: f.camera, spanDue: m.spanDue && f.key, firstNow: f.now}
		if m.cur.spanDue {
			m.spanDue = false
		}
	}
	m.cur.video = append(m.cur.video, cmaf.Sample{
		Duration: uint32(max(d, 1)), CTS: int32(f.pts - f.dts), Sync: f.key, NALs: f.nalus, Raw: f.raw,
	})
	m.cur.bytes += f.size
	m.stats.Frames++
}

// close ends the chunk being built at tick end.
func (m *Mux) close(end int64, gop bool, now time.Time) {
	c := m.cur
	m.cur = nil
	c.end, c.endsGOP, c.closed = end, gop, now
	m.closed = append(m.closed, c)
}

// release emits the closed chunks that need not wait for sound any longer.
func (m *Mux) release(now time.Time) {
	if m.pcm != nil && !within(now, m.soundNow, m.soundWait()) {
		m.flushPCM() // no more comes to fill the frame
	}
	for len(m.closed) > 0 {
		c := m.closed[0]
		if c.spanDue && !m.clock.ready && m.settling(c, now) || m.waitsForSound(c, now) {
			return
		}
		m.closed = m.closed[1:]
		m.emit(c)
	}
}

// settling reports whether the session's first chunk still waits: for settle from
// when the session was opened. While pictures come faster than they are to be
// shown it may be a burst, whose end tells more than all that came before: then
// from when the chunk was whole.
func (m *Mux) settling(c *building, now time.Time) bool {
	since := m.begun
	if m.pace&(m.pace-1) == 0 { // less than two of them
		since = c.closed
	}
	return within(now, since, settle)
}

func (m *Mux) ticks(d time.Duration) int64 {
	return int64(d/time.Second)*int64(m.ts) + int64(d%time.Second)*int64(m.ts)/int64(time.Second)
}
