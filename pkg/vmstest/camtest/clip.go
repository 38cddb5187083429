package camtest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vmstest"
)

// Clip makes a clip by ffmpeg and loads it: the picture, the sound, what is
// quiet and what comes behind.
func Clip(t testing.TB, spec vmstest.ClipSpec) *Media {
	t.Helper()
	m := one(t, spec)
	for next := spec.Then; next != nil; next = next.Then {
		if err := m.join(one(t, *next)); err != nil {
			t.Fatalf("clip and the one behind it: %v", err)
		}
	}
	return m
}

// one loads a clip without what comes behind it.
func one(t testing.TB, spec vmstest.ClipSpec) *Media {
	t.Helper()
	var m *Media
	var err error
	if path := vmstest.MakeClip(t, spec); spec.Codec == "mjpeg" {
		m, err = loadJPEGs(path, max(spec.FPS, 0))
	} else {
		m, err = Load(path)
	}
	if err == nil && spec.Audio != "" && spec.Audio != "aac" {
		err = m.addPCM(vmstest.MakeSound(t, spec), spec.Audio)
	}
	if err != nil {
		t.Fatal(err)
	}
	m.silence(spec.Quiet)
	return m
}

// loadJPEGs reads one JPEG file behind the other. fps is 25 when zero.
func loadJPEGs(path string, fps int) (*Media, error) {
	if fps == 0 {
		fps = 25
	}
	all, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("load pictures: %w", err)
	}
	m := &Media{Codec: "mjpeg"}
	// A JPEG file ends with a marker that is nowhere else in it: inside the
	// picture each 0xff is followed by 0, and ffmpeg puts no thumbnail in front.
	for end := []byte{0xff, 0xd9}; len(all) > 0; {
		picture, rest, found := bytes.Cut(all, end)
		if !found || !bytes.HasPrefix(picture, []byte{0xff, 0xd8}) {
			return nil, fmt.Errorf("load pictures %s: picture %d is no whole JPEG file", path, len(m.Video))
		}
		at := int64(len(m.Video)) * VideoRate / int64(fps)
		m.Video = append(m.Video, VideoUnit{PTS: at, DTS: at, AU: [][]byte{slices.Concat(picture, end)}})
		all = rest
	}
	m.period = int64(len(m.Video)) * VideoRate / int64(fps)
	if len(m.Video) < 2 {
		return nil, fmt.Errorf("load pictures %s: there are only %d", path, len(m.Video))
	}
	return m, nil
}

// Limits of a packet of PCM: 20 ms is what RFC 3551, section 4.2, recommends,
// and it has to fit into an Ethernet frame.
const (
	packetsPerSecond = 50
	maxPacket        = 1400
)

// addPCM reads a WAV file as vmstest.MakeSound makes it.
func (m *Media) addPCM(path, codec string) error {
	file, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("load sound: %w", err)
	}
	format, data, err := readWAV(file)
	if err != nil {
		return fmt.Errorf("load sound %s: %w", path, err)
	}
	m.AudioCodec, m.Channels, m.SampleRate = codec, format.channels, format.rate
	width := format.bits / 8
	if codec == "lpcm" {
		m.BitDepth = format.bits
		if width > 1 {
			data = bytes.Clone(data)
			for i := 0; i+width <= len(data); i += width {
				slices.Reverse(data[i : i+width])
			}
		}
	}
	width *= m.Channels
	packet := min(m.SampleRate/packetsPerSecond, maxPacket/width)
	var units []AudioUnit
	at := int64(0)
	for p := range slices.Chunk(data[:len(data)/width*width], packet*width) {
		u := AudioUnit{PTS: at, Samples: int64(len(p) / width), AU: p}
		units = append(units, u)
		at += u.Samples
	}
	m.setSound(units)
	return nil
}

type wavFormat struct{ channels, rate, bits int }

// readWAV finds format and samples among the chunks of a RIFF file.
func readWAV(file []byte) (wavFormat, []byte, error) {
	var f wavFormat
	if len(file) < 12 || string(file[:4]) != "RIFF" || string(file[8:12]) != "WAVE" {
		return f, nil, errors.New("no WAV file")
	}
	for rest := file[12:]; len(rest) >= 8; {
		id, size := string(rest[:4]), int(binary.LittleEndian.Uint32(rest[4:]))
		rest = rest[8:]
		if size > len(rest) {
			return f, nil, fmt.Errorf("chunk %q is cut off", id)
		}
		switch {
		case id == "fmt " && size >= 16:
			f.channels = int(binary.LittleEndian.Uint16(rest[2:]))
			f.rate = int(binary.LittleEndian.Uint32(rest[4:]))
			f.bits = int(binary.LittleEndian.Uint16(rest[14:]))
		case id == "data" && f.channels > 0 && f.rate > 0 && f.bits >= 8:
			return f, rest[:size], nil
		}
		rest = rest[min(size+size%2, len(rest)):] // chunks are padded to even sizes
	}
	return f, nil, errors.New("no sound in it")
}

// setSound takes units that follow each other without a hole.
func (m *Media) setSound(units []AudioUnit) {
	m.Audio, m.sound = units, nil
	for _, u := range units {
		m.sound = append(m.sound, soundUnit{AudioUnit: u})
	}
}

// silence takes out the sound that begins inside one of the spans.
func (m *Media) silence(spans []vmstest.Span) {
	if len(spans) == 0 {
		return
	}
	m.Audio = nil
	for i := range m.sound {
		u := &m.sound[i]
		at := time.Duration(u.PTS) * time.Second / time.Duration(m.SampleRate)
		u.quiet = u.quiet || slices.ContainsFunc(spans, func(s vmstest.Span) bool { return s.From <= at && at < s.To })
		if !u.quiet {
			m.Audio = append(m.Audio, u.AudioUnit)
		}
	}
}

// join puts what b shows behind m, without a seam in either track.
func (m *Media) join(b *Media) error {
	if b.Codec != m.Codec {
		return fmt.Errorf("video is %s and then %s", m.Codec, b.Codec)
	}
	if b.AudioCodec != m.AudioCodec || b.SampleRate != m.SampleRate || b.Channels != m.Channels || b.BitDepth != m.BitDepth {
		return fmt.Errorf("sound is %s and then %s, or not the same", m.AudioCodec, b.AudioCodec)
	}
	// The pictures are shown one after the other, also where their order of
	// decoding runs ahead by another amount.
	by := m.period + m.Video[0].PTS - b.Video[0].PTS
	for _, v := range b.Video {
		m.Video = append(m.Video, VideoUnit{PTS: v.PTS + by, DTS: v.DTS + by, AU: v.AU})
	}
	m.period += b.period
	if len(m.sound) == 0 {
		return nil
	}
	last := m.sound[len(m.sound)-1]
	at := last.PTS + last.Samples
	for _, u := range b.sound {
		u.PTS = at
		at += u.Samples
		m.sound = append(m.sound, u)
		if !u.quiet {
			m.Audio = append(m.Audio, u.AudioUnit)
		}
	}
	return nil
}
