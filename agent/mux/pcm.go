package mux

import (
	"bytes"
	"math"
	"slices"
	"time"

	"github.com/zipato/vms/pkg/cmaf"
	"github.com/zipato/vms/pkg/flac"
)

const (
	// pcmSlack: cameras stamp PCM with a clock of their own or by arrival. Samples
	// that are to begin less than this after the ones before simply follow them.
	pcmSlack = 40 * time.Millisecond
	// pcmBackJump is backJump for PCM, which nothing reorders.
	pcmBackJump = 500 * time.Millisecond
	// pcmAhead: the samples of a camera that sends more than its timestamps have
	// room for follow each other until they are so far ahead of the picture; then
	// some are left out.
	pcmAhead = time.Second
	// leastBlock is the shortest FLAC frame that another may follow (RFC 9639, 8.2).
	leastBlock = 16
)

// newSound returns how a camera's sound is written and, where it has to be
// encoded for that, with what. Both are nil when it cannot be written.
func newSound(a *Sound) (*cmaf.AudioParams, *pcm) {
	if a == nil || a.SampleRate <= 0 {
		return nil, nil // no time could be told by it
	}
	// Eight bits are written as sixteen of which eight are wasted, which costs
	// nothing and is what all players take.
	p, depth := &pcm{bytes: 1}, 16
	switch a.Codec {
	case "", "aac":
		return &cmaf.AudioParams{Codec: "aac", Config: a.Config, SampleRate: a.SampleRate, Channels: a.Channels}, nil
	case "pcma":
		p.value = alaw
	case "pcmu":
		p.value = ulaw
	case "lpcm":
		switch a.BitDepth {
		case 8:
			p.value = func(b []byte) int32 { return (int32(b[0]) - 128) << 8 }
		case 16:
			p.bytes, p.value = 2, func(b []byte) int32 { return int32(int8(b[0]))<<8 | int32(b[1]) }
		case 24:
			depth = 24
			p.bytes, p.value = 3, func(b []byte) int32 { return int32(int8(b[0]))<<16 | int32(b[1])<<8 | int32(b[2]) }
		default:
			return nil, nil
		}
	default:
		return nil, nil
	}
	enc, err := flac.NewEncoder(a.SampleRate, a.Channels, depth)
	if err != nil {
		return nil, nil // more channels than FLAC has, or a rate of no use
	}
	p.enc, p.rate, p.channels = enc, int64(a.SampleRate), a.Channels
	return &cmaf.AudioParams{Codec: "flac", Config: enc.StreamInfo(), SampleRate: a.SampleRate, Channels: a.Channels}, p
}

// pcm makes FLAC frames of one session's PCM. A run of it is what is encoded
// without a hole: samples that are counted from where the run began.
type pcm struct {
	enc      *flac.Encoder
	bytes    int                  // of a value on the wire
	value    func(b []byte) int32 // what they mean
	rate     int64
	channels int

	running bool
	origin  int64   // tick at which the run began
	done    int64   // samples of the run, each of all channels, that are in frames
	wait    []int32 // and the ones that are not
	skip    bool    // samples are left out until they are no longer ahead
	frame   []byte  // the newest one
}

// tick is where a sample of the run begins.
func (p *pcm) tick(n int64, ts uint32) int64 {
	return p.origin + n/p.rate*int64(ts) + n%p.rate*int64(ts)/p.rate
}

// begins is where what waits begins; never, when nothing waits.
func (p *pcm) begins(ts uint32) int64 {
	if len(p.wait) == 0 {
		return math.MaxInt64
	}
	return p.tick(p.done, ts)
}

// ends is where the run ends so far.
func (p *pcm) ends(ts uint32) int64 { return p.tick(p.done+int64(len(p.wait)/p.channels), ts) }

// addPCM takes the samples that begin at tick t.
func (m *Mux) addPCM(t int64, data []byte) {
	p := m.pcm
	size := p.bytes * p.channels
	n := len(data) / size
	if n == 0 {
		return
	}
	if !p.running || t-p.ends(m.ts) > m.ticks(pcmSlack) {
		m.flushPCM() // a hole
		p.running, p.origin, p.done = true, t, 0
	}
	ahead := p.ends(m.ts) - t
	p.skip = ahead > m.ticks(pcmAhead) || p.skip && ahead > m.ticks(pcmSlack)
	if p.skip {
		m.stats.SoundDropped++
		return
	}
	for data = data[:n*size]; len(data) > 0; data = data[p.bytes:] {
		p.wait = append(p.wait, p.value(data))
	}
	// So much stays that what a hole or the end leaves is not too short.
	for block := p.enc.Block(); len(p.wait) >= (block+leastBlock)*p.channels; {
		m.encode(block)
	}
}

// flushPCM encodes what waits.
func (m *Mux) flushPCM() {
	if m.pcm == nil {
		return
	}
	n := len(m.pcm.wait) / m.pcm.channels
	if n > m.pcm.enc.Block() {
		m.encode(n / 2)
		n -= n / 2
	}
	if n > 0 {
		m.encode(n)
	}
}

// cutPCM encodes what waits if it begins before a tick.
func (m *Mux) cutPCM(before int64) {
	if m.pcm != nil && m.pcm.begins(m.ts) < before {
		m.flushPCM()
	}
}

// encode queues the first n samples that wait as one frame.
func (m *Mux) encode(n int) {
	p := m.pcm
	begin, end := p.tick(p.done, m.ts), p.tick(p.done+int64(n), m.ts)
	p.frame = p.enc.Frame(p.frame[:0], p.wait[:n*p.channels])
	p.wait = slices.Delete(p.wait, 0, n*p.channels)
	p.done += int64(n)
	m.queue(soundSample{pts: begin, dur: end - begin, data: bytes.Clone(p.frame)})
}

// alaw and ulaw decode the two laws of G711 (ITU-T G.711) to 16 bits.
func alaw(b []byte) int32 {
	v := b[0] ^ 0x55
	x := int32(v&0xf)<<4 | 8
	if exp := v >> 4 & 7; exp > 0 {
		x = (x | 0x100) << (exp - 1)
	}
	if v&0x80 == 0 {
		return -x
	}
	return x
}

func ulaw(b []byte) int32 {
	v := ^b[0]
	x := (int32(v&0xf)<<3|0x84)<<(v>>4&7) - 0x84
	if v&0x80 != 0 {
		return -x
	}
	return x
}
