package camtest

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/bluenviron/gortsplib/v5"
	"github.com/bluenviron/gortsplib/v5/pkg/description"
	"github.com/bluenviron/gortsplib/v5/pkg/format"
	"github.com/bluenviron/gortsplib/v5/pkg/ntp"
	"github.com/pion/rtcp"
	"github.com/pion/rtp"
)

// firstTimestamp is the RTP timestamp of media time zero. It lies 5 s before
// the 32 bits of a 90 kHz clock run over, so that each longer test sees it.
const firstTimestamp = 1<<32 - 5*VideoRate

// reportEvery is how often, in media time, sender reports tell the camera's clock.
const reportEvery = time.Second

// player plays the clip once or forever into one stream.
type player struct {
	cam    *Camera
	boot   *boot
	number int64 // counts playbacks, from 1
	stream *gortsplib.ServerStream
	ctx    context.Context
	cancel context.CancelFunc

	video, audio *track // nil when not offered

	// Set before run, nil for a shared stream.
	session *gortsplib.ServerSession
	conn    *gortsplib.ServerConn

	// Of the goroutine in run.
	full  bool   // the packet just written did not fit into the session's queue
	bytes uint64 // written to the session's connection, framing included
}

// track is how one kind of media goes out.
type track struct {
	media   *description.Media
	rate    int64
	encode  func(au [][]byte) ([]*rtp.Packet, error)
	ssrc    uint32
	packets uint32
	octets  uint32
	nth     int // packets since the last one left out
}

func newPlayer(b *boot) (*player, error) {
	p := &player{cam: b.cam, boot: b}
	o := b.cam.opts
	var desc description.Session
	if !o.NoVideo {
		v, err := videoTrack(o)
		if err != nil {
			return nil, fmt.Errorf("video track: %w", err)
		}
		p.video = v
		desc.Medias = append(desc.Medias, v.media)
	}
	if !o.NoAudio && len(o.Source.Audio) > 0 {
		a, err := audioTrack(o)
		if err != nil {
			return nil, fmt.Errorf("audio track: %w", err)
		}
		p.audio = a
		desc.Medias = append(desc.Medias, a.media)
	}
	p.stream = &gortsplib.ServerStream{Server: b.server, Desc: &desc}
	if err := p.stream.Initialize(); err != nil {
		return nil, err
	}
	for media, stats := range p.stream.Stats().Medias {
		for _, f := range stats.Formats {
			p.trackOf(media).ssrc = f.LocalSSRC
		}
	}
	p.ctx, p.cancel = context.WithCancel(b.ctx)
	return p, nil
}

func (p *player) trackOf(m *description.Media) *track {
	if p.video != nil && p.video.media == m {
		return p.video
	}
	return p.audio
}

func videoTrack(o Options) (*track, error) {
	m := o.Source
	t := &track{rate: VideoRate}
	if m.Codec == "h265" {
		f := &format.H265{PayloadTyp: 96, VPS: m.VPS, SPS: m.SPS, PPS: m.PPS}
		if o.NoSDPSets {
			f.VPS, f.SPS, f.PPS = nil, nil, nil
		}
		enc, err := f.CreateEncoder()
		if err != nil {
			return nil, err
		}
		t.encode = enc.Encode
		t.media = &description.Media{Type: description.MediaTypeVideo, Formats: []format.Format{f}}
		return t, nil
	}
	f := &format.H264{PayloadTyp: 96, PacketizationMode: 1, SPS: m.SPS, PPS: m.PPS}
	if o.NoSDPSets {
		f.SPS, f.PPS = nil, nil
	}
	enc, err := f.CreateEncoder()
	if err != nil {
		return nil, err
	}
	t.encode = enc.Encode
	t.media = &description.Media{Type: description.MediaTypeVideo, Formats: []format.Format{f}}
	return t, nil
}

func audioTrack(o Options) (*track, error) {
	f := &format.MPEG4Audio{
		PayloadTyp: 97, Config: o.Source.AudioConfig,
		SizeLength: 13, IndexLength: 3, IndexDeltaLength: 3, // AAC-hbr, RFC 3640
	}
	enc, err := f.CreateEncoder()
	if err != nil {
		return nil, err
	}
	return &track{
		rate:   int64(f.ClockRate()),
		encode: enc.Encode,
		media:  &description.Media{Type: description.MediaTypeAudio, Formats: []format.Format{f}},
	}, nil
}

// run plays until the clip or ctx ends.
func (p *player) run() {
	defer p.cancel()
	var sentBefore uint64
	if p.conn != nil {
		sentBefore = p.conn.Stats().OutboundBytes
	}
	o := p.cam.opts
	p.number = p.cam.playback.Add(1)
	begin := time.Now() // of pacing: pushed back by Freeze
	joined := !o.Live
	var now time.Duration // in media time, when a live client joins
	if o.Live {
		now = time.Duration(float64(begin.Sub(p.boot.since)) * o.Speed)
		begin = p.boot.since
	}
	clock := begin.UTC() // of media time zero, as the camera's reports tell it
	report := time.Duration(math.MinInt64)
	for u := range o.Source.units(o.Loop) {
		t := p.audio
		if u.video {
			t = p.video
		}
		joined = joined || u.video && u.at >= now && o.Source.key(u.au)
		if t == nil || !joined {
			continue
		}
		if !p.sleepUntil(begin.Add(time.Duration(float64(u.at) / o.Speed))) {
			return
		}
		frozen, ok := p.cam.gate.pass(p.ctx)
		if !ok {
			return
		}
		begin = begin.Add(frozen)
		if u.at >= report && !o.NoReports {
			p.report(u.at, clock)
			report = u.at + reportEvery
		}
		if !p.send(t, u, clock) {
			return
		}
	}
	if o.HangUp && p.session != nil {
		p.drain(sentBefore)
		p.session.Close()
		return
	}
	<-p.ctx.Done()
}

func (p *player) sleepUntil(due time.Time) bool {
	wait := time.Until(due)
	if wait <= 0 {
		return p.ctx.Err() == nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-p.ctx.Done():
		return false
	}
}

// send packetizes one access unit and writes it.
func (p *player) send(t *track, u unit, clock time.Time) bool {
	au := u.au
	number := uint64(p.boot.number)<<bootBits | u.n
	switch {
	case !p.cam.opts.Stamp:
	case u.video:
		au = p.cam.opts.Source.stampVideo(au, number)
	default:
		au = [][]byte{stampAudio(au[0], number)}
	}
	if u.video && p.cam.opts.NoInBandSets {
		if au = p.cam.opts.Source.withoutSets(au); len(au) == 0 {
			return true
		}
	}
	packets, err := t.encode(au)
	if err != nil {
		return false // nothing in a loaded clip does this
	}
	ntpTime := clock.Add(ticks(u.pts, t.rate))
	for _, pkt := range packets {
		pkt.Timestamp += t.timestamp(u.pts)
		if n := p.cam.opts.DropEveryNth; n > 0 && u.video {
			if t.nth++; t.nth == n {
				t.nth = 0
				continue
			}
		}
		if !p.write(t, pkt, ntpTime) {
			return false
		}
		t.packets++
		t.octets += uint32(len(pkt.Payload))
	}
	if f := p.cam.opts.OnSent; f != nil {
		f(Sent{
			Client: p.number, Video: u.video, Key: u.video && p.cam.opts.Source.key(au),
			Number: number, At: time.Now(), AU: au,
		})
	}
	return true
}

// write hands pkt to the stream. A client with its own playback loses nothing:
// when its queue is full, write waits until it drains, and so does the clip.
func (p *player) write(t *track, pkt *rtp.Packet, ntpTime time.Time) bool {
	for {
		p.full = false
		if err := p.stream.WritePacketRTPWithNTP(t.media, pkt, ntpTime); err != nil {
			return false
		}
		if !p.full {
			p.bytes += uint64(pkt.MarshalSize()) + 4 // RFC 2326, section 10.12
			return true
		}
		if !p.sleepUntil(time.Now().Add(time.Millisecond)) {
			return false
		}
	}
}

// report tells, for each track, which RTP timestamp belongs to which UTC.
func (p *player) report(at time.Duration, clock time.Time) {
	for _, t := range []*track{p.video, p.audio} {
		if t == nil {
			continue
		}
		// An error means that the stream is closed, which send notices too.
		_ = p.stream.WritePacketRTCP(t.media, &rtcp.SenderReport{
			SSRC:        t.ssrc,
			NTPTime:     ntp.Encode(clock.Add(at)),
			RTPTime:     t.timestamp(int64(at/time.Second)*t.rate + int64(at%time.Second)*t.rate/int64(time.Second)),
			PacketCount: t.packets,
			OctetCount:  t.octets,
		})
	}
}

func (t *track) timestamp(pts int64) uint32 {
	return uint32(uint64(firstTimestamp) + uint64(pts))
}

// drain waits until all packets have left the queue for the socket. What else
// the connection carries (reports, responses) can only make it return a little
// early, hence the second look.
func (p *player) drain(before uint64) {
	for range 2 {
		for p.conn.Stats().OutboundBytes < before+p.bytes {
			if !p.sleepUntil(time.Now().Add(5 * time.Millisecond)) {
				return
			}
		}
		if !p.sleepUntil(time.Now().Add(50 * time.Millisecond)) {
			return
		}
	}
}

// withoutSets returns au without its parameter sets.
func (m *Media) withoutSets(au [][]byte) [][]byte {
	var rest [][]byte
	for _, nalu := range au {
		if m.parameterSet(nalu) == nil {
			rest = append(rest, nalu)
		}
	}
	return rest
}
