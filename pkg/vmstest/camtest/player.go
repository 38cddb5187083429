package camtest

import (
	"context"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bluenviron/gortsplib/v5"
	"github.com/bluenviron/gortsplib/v5/pkg/description"
	"github.com/bluenviron/gortsplib/v5/pkg/format"
	"github.com/bluenviron/gortsplib/v5/pkg/format/rtplpcm"
	"github.com/bluenviron/gortsplib/v5/pkg/format/rtpmpeg4audio"
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

	again atomic.Bool // the pictures shall begin anew
	gate  gate        // shut while the client pauses

	// Held while a unit is sent.
	sending sync.Mutex
	full    bool   // the packet just written did not fit into the session's queue
	before  uint64 // what the session's connection had sent when the player began
	bytes   uint64 // written to the session's connection, framing included
}

// track is how one kind of media goes out.
type track struct {
	media   *description.Media
	rate    int64
	encode  func(au [][]byte) ([]*rtp.Packet, error)
	ssrc    uint32
	packets uint32
	octets  uint32
	nth     int    // packets since the last one left out
	jumped  uint32 // what JumpOnPlay added to the timestamps
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
	var f format.Format
	switch m.Codec {
	case "mjpeg":
		jpeg := &format.MJPEG{}
		enc, err := jpeg.CreateEncoder()
		if err != nil {
			return nil, err
		}
		f, t.encode = jpeg, func(au [][]byte) ([]*rtp.Packet, error) { return enc.Encode(au[0]) }
	case "h265":
		h265 := &format.H265{PayloadTyp: 96, VPS: m.VPS, SPS: m.SPS, PPS: m.PPS}
		if o.NoSDPSets {
			h265.VPS, h265.SPS, h265.PPS = nil, nil, nil
		}
		enc, err := h265.CreateEncoder()
		if err != nil {
			return nil, err
		}
		f, t.encode = h265, enc.Encode
	default:
		h264 := &format.H264{PayloadTyp: 96, PacketizationMode: 1, SPS: m.SPS, PPS: m.PPS}
		if o.NoSDPSets {
			h264.SPS, h264.PPS = nil, nil
		}
		enc, err := h264.CreateEncoder()
		if err != nil {
			return nil, err
		}
		f, t.encode = h264, enc.Encode
	}
	t.media = &description.Media{Type: description.MediaTypeVideo, Formats: []format.Format{f}}
	return t, nil
}

func audioTrack(o Options) (*track, error) {
	m := o.Source
	t := &track{rate: int64(m.SampleRate)}
	var f format.Format
	var pcm *rtplpcm.Encoder // of G711 too: one byte a sample
	var err error
	switch m.AudioCodec {
	case "lpcm":
		lpcm := &format.LPCM{PayloadTyp: 97, BitDepth: m.BitDepth, SampleRate: m.SampleRate, ChannelCount: m.Channels}
		f = lpcm
		pcm, err = lpcm.CreateEncoder()
	case "pcma", "pcmu":
		g711 := &format.G711{PayloadTyp: 97, MULaw: m.AudioCodec == "pcmu", SampleRate: m.SampleRate, ChannelCount: m.Channels}
		if m.SampleRate == 8000 && m.Channels == 1 { // the types that need no description, RFC 3551, section 6
			g711.PayloadTyp = 8
			if g711.MULaw {
				g711.PayloadTyp = 0
			}
		}
		f = g711
		pcm, err = g711.CreateEncoder()
	default:
		aac := &format.MPEG4Audio{
			PayloadTyp: 97, Config: m.AudioConfig,
			SizeLength: 13, IndexLength: 3, IndexDeltaLength: 3, // AAC-hbr, RFC 3640
		}
		f = aac
		var enc *rtpmpeg4audio.Encoder
		if enc, err = aac.CreateEncoder(); err == nil {
			t.encode = enc.Encode
		}
	}
	if err != nil {
		return nil, err
	}
	if pcm != nil {
		t.encode = func(au [][]byte) ([]*rtp.Packet, error) { return pcm.Encode(au[0]) }
	}
	t.media = &description.Media{Type: description.MediaTypeAudio, Formats: []format.Format{f}}
	return t, nil
}

// run plays until the clip or ctx ends.
func (p *player) run() {
	defer p.cancel()
	if p.conn != nil {
		p.sending.Lock()
		p.before = p.conn.Stats().OutboundBytes
		p.sending.Unlock()
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
	for u := range o.Source.units(o.Loop, func() bool { return p.again.Swap(false) }) {
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
		held, ok := p.admit()
		if !ok {
			return
		}
		begin = begin.Add(held)
		if u.at >= report && !o.NoReports {
			p.report(u.at, clock)
			report = u.at + reportEvery
		}
		ok = p.send(t, u, clock)
		p.sending.Unlock()
		if !ok {
			return
		}
	}
	if o.HangUp && p.session != nil {
		p.drain(p.ctx)
		p.session.Close()
		return
	}
	<-p.ctx.Done()
}

// admit waits until neither the camera is frozen nor the client pauses, takes
// the lock for sending, and reports how long that took. It returns false,
// without the lock, when the player shall end.
func (p *player) admit() (held time.Duration, ok bool) {
	for {
		for _, g := range []*gate{&p.cam.gate, &p.gate} {
			waited, ok := g.pass(p.ctx)
			if !ok {
				return 0, false
			}
			held += waited
		}
		p.sending.Lock()
		if p.gate.isOpen() {
			return held, true
		}
		p.sending.Unlock() // shut in between
	}
}

// pause returns when the unit that was being sent, and all before it, have left
// for the client. A client that does not read is waited for a moment only: what
// waits here is its session, which must notice when it is gone.
func (p *player) pause() {
	p.gate.shut()
	ctx, cancel := context.WithTimeout(p.ctx, 5*time.Second)
	defer cancel()
	for !p.sending.TryLock() {
		if !sleepUntil(ctx, time.Now().Add(time.Millisecond)) {
			return
		}
	}
	defer p.sending.Unlock()
	p.drain(ctx)
}

// resume goes on with a keyframe.
func (p *player) resume() {
	p.again.Store(true)
	if p.cam.opts.JumpOnPlay {
		p.sending.Lock()
		// Each track by its own amount, as cameras do that begin anew at random.
		for i, t := range []*track{p.video, p.audio} {
			if t != nil {
				t.jumped += 0x9e3779b9 >> (4 * i)
			}
		}
		p.sending.Unlock()
	}
	p.gate.open()
}

// paused reports whether the client pauses.
func (p *player) paused() bool { return !p.gate.isOpen() }

func (p *player) sleepUntil(due time.Time) bool { return sleepUntil(p.ctx, due) }

func sleepUntil(ctx context.Context, due time.Time) bool {
	wait := time.Until(due)
	if wait <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
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
	case p.cam.opts.Source.AudioCodec == "aac": // samples have no room for a number
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
			Number: number, At: time.Now(), PTS: ticks(u.pts, t.rate), AU: au,
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
	return uint32(uint64(firstTimestamp)+uint64(pts)) + t.jumped
}

// drain waits until all packets have left the queue for the socket. What else
// the connection carries (reports, responses) can only make it return a little
// early, hence the second look.
func (p *player) drain(ctx context.Context) {
	for range 2 {
		for p.conn.Stats().OutboundBytes < p.before+p.bytes {
			if !sleepUntil(ctx, time.Now().Add(5*time.Millisecond)) {
				return
			}
		}
		if !sleepUntil(ctx, time.Now().Add(50*time.Millisecond)) {
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
