package mux

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/zipato/vms/pkg/cmaf"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// emit numbers and stamps a chunk. Everything that a worker obeys is decided here.
func (m *Mux) emit(c *building) {
	withA := m.wantSound(c.firstNow)
	if c.key && m.clock.ahead && m.cfg.NewEpoch != nil {
		m.cfg.Epoch = m.cfg.NewEpoch()
		m.seq, m.initID, m.lastInit, m.inSpan = 0, 0, vms.Init{}, false
		m.clock.rewind()
	}
	if c.key {
		m.cutPCM(c.start) // what begins before a recording cannot come later in it
	}
	if c.key && (c.spanDue || withA != m.withA || m.clock.stepped || !m.inSpan || !c.params.Equal(m.coded)) {
		m.inSpan = m.beginSpan(c, withA)
	}
	if !m.inSpan {
		m.stats.BeforeKey += uint64(len(c.video))
		return
	}
	flags := m.stamp(c)
	if flags.Has(vms.FlagFirst) && !c.key {
		m.cutPCM(c.start)
	}
	sound := m.takeSound(c, flags.Has(vms.FlagFirst))
	if flags.Has(vms.FlagFirst) {
		m.span.zero = zero(c, sound)
	}
	m.seq++
	m.span.recBytes += int64(c.bytes)
	payload, moofLen, err := cmaf.BuildFragment(uint32(m.seq), []cmaf.Run{
		{Track: cmaf.VideoTrack, Base: uint64(c.start), Samples: c.video}, sound,
	})
	if err != nil {
		// Only a chunk of 2 GiB or without a picture could do this; the byte limit forbids both.
		panic(fmt.Sprintf("mux: %v", err))
	}
	start, end := m.clock.advance(c.end)
	m.cfg.OnChunk(vms.Chunk{
		Epoch: m.cfg.Epoch, Seq: m.seq, Recording: m.span.number, Init: m.initID, Flags: flags,
		Start: start, End: end, CameraTime: c.camera,
		MoofLen: moofLen, CRC: wire.Checksum(payload), Payload: payload,
	})
}

// emitLast emits the last chunk of a session in as many as the sound that is left
// has stretches, as far as there are pictures: a chunk takes one of them.
func (m *Mux) emitLast(c *building) {
	stretches := 1
	for i := 1; i < len(m.soundQ); i++ {
		if m.soundQ[i].pts != m.soundQ[i-1].known() {
			stretches++
		}
	}
	for ; stretches > 1 && len(c.video) > 1 && m.sound != nil; stretches-- {
		one := *c
		one.video, c.video = c.video[:1], c.video[1:]
		one.end = one.start + int64(one.video[0].Duration)
		one.bytes = one.video[0].Size()
		c.start, c.bytes = one.end, c.bytes-one.bytes
		c.key, c.spanDue, c.camera = c.video[0].Sync, false, time.Time{}
		m.emit(&one)
	}
	m.emit(c)
}

// stamp decides whether c begins a recording.
func (m *Mux) stamp(c *building) vms.Flags {
	var flags vms.Flags
	if c.key {
		flags |= vms.FlagKey
	}
	if m.span.uncertain {
		flags |= vms.FlagTimeUncertain
	}
	begin := c.beginsSpan
	switch {
	case begin:
		m.span.number = 0
	case c.key && c.start >= m.boundary():
		begin = true
	case c.start-m.span.recStart >= m.ticks(longestRecording), m.span.recBytes >= largestRecording:
		begin = true
	}
	if !begin {
		return flags
	}
	flags |= vms.FlagFirst
	if !c.key {
		flags |= vms.FlagDependent
	}
	if !c.beginsSpan {
		m.span.number++
	}
	m.span.recStart, m.span.recUTC, m.span.recBytes = c.start, m.clock.utc(c.start), 0
	return flags
}

// boundary is the tick from which on a keyframe begins the next recording:
// where UTC, counted in recordings, is at the phase again. It lies at least a
// sixteenth of a recording ahead, because UTC is slewed: a keyframe that was on
// the boundary may find itself a moment before it.
func (m *Mux) boundary() int64 {
	d := m.cfg.Recording
	least := d / 16
	past := time.Duration(m.span.recUTC.Add(least).UnixNano()-int64(m.cfg.Phase)) % d
	if past <= 0 {
		past += d
	}
	return m.span.recStart + m.ticks(least+d-past)
}

// beginSpan starts a span with c, with a new init segment when the codecs
// changed. It returns false when the parameter sets make no init segment:
// nothing can decode c.
func (m *Mux) beginSpan(c *building, withA bool) bool {
	var a *cmaf.AudioParams
	if withA {
		a = m.sound
	}
	if p := &c.params; max(len(p.VPS), len(p.SPS), len(p.PPS)) > math.MaxUint16 {
		return false // MP4 has 16 bits for their lengths
	}
	segment, tracks, err := cmaf.BuildInit(m.ts, c.params, a)
	if err != nil {
		return false
	}
	_, err = wire.EncodePush(&wire.InitMessage{Epoch: m.cfg.Epoch, ID: m.initID + 1, Tracks: tracks, Segment: segment})
	if err != nil {
		return false // larger than can be sent, or of a size that no picture has
	}
	m.coded, m.withA = c.params, withA
	if !slices.Equal(segment, m.lastInit.Segment) {
		m.initID++
		m.lastInit = vms.Init{Epoch: m.cfg.Epoch, ID: m.initID, Tracks: tracks, Segment: segment}
		m.cfg.OnInit(m.lastInit)
	}
	start := c.start
	if withA {
		lead := c.start - m.ticks(soundLead)
		for len(m.soundQ) > 0 && m.soundQ[0].pts < lead {
			m.dropSound(1)
		}
		if len(m.soundQ) > 0 {
			start = min(start, max(m.soundQ[0].pts, 0))
		}
	}
	c.beginsSpan = true
	if m.clock.begin(start, m.ts) {
		m.span.uncertain = m.unsure
	}
	return true
}
