package e2e

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"image"
	"image/jpeg"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/vmstest/camtest"
)

// cameraKind is a kind of camera, which makes a kind of recording.
type cameraKind struct {
	name    string
	spec    vmstest.ClipSpec
	faults  camtest.Options // NoSDPSets and the like; the rest is filled in
	cameras int             // how many of the kind TestRecordingBoundaries has, 1 by default
	// leads: a recording may begin with pictures that only the one before
	// explains (open GOP); no decoder shows them.
	leads bool
}

// round is how long a clip lasts before it begins anew: a whole number of
// pictures and of access units of AAC.
const round = 12800 * time.Millisecond

// cameraKinds are all kinds of recording that there are.
var cameraKinds = []cameraKind{
	{name: "h264", spec: vmstest.ClipSpec{Audio: "aac", GOP: 25}, cameras: 2},
	{name: "h264_bframes", spec: vmstest.ClipSpec{BFrames: 3, Audio: "aac", GOP: 25}, cameras: 2},
	{name: "h264_open_gop", spec: vmstest.ClipSpec{BFrames: 3, OpenGOP: true, Audio: "aac", GOP: 20}, cameras: 2, leads: true},
	{name: "h264_sets_in_band", spec: vmstest.ClipSpec{FPS: 10, GOP: 10}, faults: camtest.Options{NoSDPSets: true}},
	{name: "h264_sets_in_sdp", spec: vmstest.ClipSpec{FPS: 10, GOP: 10}, faults: camtest.Options{NoInBandSets: true}},
	{name: "h264_1fps", spec: vmstest.ClipSpec{FPS: 1, GOP: 2, Duration: 16 * time.Second, Audio: "aac"}, cameras: 2},
	{name: "h264_long_gop", spec: vmstest.ClipSpec{FPS: 10, GOP: 100, Duration: 32 * time.Second, Audio: "aac"}},
	{name: "h264_sps_change", spec: vmstest.ClipSpec{GOP: 25, Audio: "aac", Then: &vmstest.ClipSpec{GOP: 50, Size: "256x144"}}, cameras: 2},
	{name: "h264_sound_at_times", spec: vmstest.ClipSpec{GOP: 25, Audio: "aac", Quiet: []vmstest.Span{{From: 0, To: 3 * time.Second}, {From: 7 * time.Second, To: 9 * time.Second}}}, cameras: 2},
	{name: "h264_pcmu", spec: vmstest.ClipSpec{FPS: 15, GOP: 15, Audio: "pcmu"}, cameras: 2},
	{name: "h264_pcma", spec: vmstest.ClipSpec{FPS: 15, GOP: 10, Audio: "pcma"}, cameras: 2},
	{name: "h264_pcma_at_times", spec: vmstest.ClipSpec{FPS: 15, GOP: 15, Audio: "pcma", Quiet: []vmstest.Span{{From: 5 * time.Second, To: time.Hour}}}},
	{name: "h264_lpcm8", spec: vmstest.ClipSpec{FPS: 10, GOP: 10, Audio: "lpcm", BitDepth: 8, SampleRate: 8000}},
	{name: "h264_lpcm16", spec: vmstest.ClipSpec{FPS: 10, GOP: 10, Audio: "lpcm", BitDepth: 16, SampleRate: 16000}},
	{name: "h264_lpcm24", spec: vmstest.ClipSpec{FPS: 10, GOP: 10, Audio: "lpcm", BitDepth: 24, SampleRate: 48000, Channels: 2}},
	{name: "h265", spec: vmstest.ClipSpec{Codec: "h265", BFrames: 2, Audio: "aac", FPS: 15, GOP: 15}},
	{name: "h265_open_gop", spec: vmstest.ClipSpec{Codec: "h265", BFrames: 2, OpenGOP: true, FPS: 15, GOP: 15}, leads: true},
	{name: "h265_sets_in_band", spec: vmstest.ClipSpec{Codec: "h265", FPS: 10, GOP: 10, Audio: "pcmu"}, faults: camtest.Options{NoSDPSets: true}},
	{name: "h265_sps_change", spec: vmstest.ClipSpec{Codec: "h265", FPS: 15, GOP: 15, Then: &vmstest.ClipSpec{GOP: 20, Size: "256x144"}}},
	{name: "mjpeg", spec: vmstest.ClipSpec{Codec: "mjpeg", FPS: 5}},
	{name: "mjpeg_size_change", spec: vmstest.ClipSpec{Codec: "mjpeg", FPS: 5, Then: &vmstest.ClipSpec{Size: "256x144"}}},
	{name: "mjpeg_pcmu", spec: vmstest.ClipSpec{Codec: "mjpeg", FPS: 5, Audio: "pcmu"}},
}

// media makes the clip of a kind.
func (k cameraKind) media(t testing.TB) *camtest.Media {
	t.Helper()
	spec := k.spec
	if spec.Duration == 0 {
		spec.Duration = round
	}
	if then := spec.Then; then != nil {
		spec.Duration = round / 2
		second := *then
		second.Codec, second.Audio, second.FPS, second.Duration = spec.Codec, spec.Audio, spec.FPS, round/2
		spec.Then = &second
	}
	return camtest.Clip(t, spec)
}

// source is a camera of a kind, and all that it sent.
type source struct {
	kind  cameraKind
	name  string
	media *camtest.Media
	cam   *camtest.Camera
	ch    vms.ChannelID

	mu     sync.Mutex
	client int64 // of the first unit; there must be no other
	others int   // units that went to other clients
	sent   map[string][]sentUnit
	jpegs  jpegSums
}

// sentUnit is one access unit as it went to the agent.
type sentUnit struct {
	pts  time.Duration // media time, one clock for picture and sound
	at   time.Time     // when it went
	no   uint64        // its number
	sum  unitSum
	sets [][]byte // parameter sets in it
	pcm  []byte   // of sound without compression: the samples, as ffmpeg's s16le or s32le
}

type unitSum = [sha256.Size]byte

func startSource(t testing.TB, k cameraKind, name string) *source {
	t.Helper()
	return startSourceOf(t, k, k.media(t), name)
}

// startSourceOf is startSource with the clip of the kind, which several may show.
func startSourceOf(t testing.TB, k cameraKind, media *camtest.Media, name string) *source {
	t.Helper()
	s := &source{kind: k, name: name, media: media, sent: map[string][]sentUnit{}}
	o := k.faults
	o.Source, o.Loop, o.OnSent = s.media, true, s.add
	o.Stamp = s.media.Codec != "mjpeg" // every round of the clip then has other bytes
	s.cam = camtest.Start(t, o)
	return s
}

// add is the camera's OnSent.
func (s *source) add(u camtest.Sent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client == 0 {
		s.client = u.Client
	}
	if s.client != u.Client {
		s.others++
		return
	}
	out := sentUnit{pts: u.PTS, at: u.At, no: u.Number}
	kind := "v"
	switch {
	case !u.Video && s.media.AudioCodec != "aac":
		kind, out.pcm = "a", decodePCM(s.media, u.AU[0])
	case !u.Video || s.media.Codec == "mjpeg":
		out.sum = sha256.Sum256(u.AU[0])
		if !u.Video {
			kind = "a"
		}
	default:
		out.sum, out.sets = sumNALs(s.media.Codec, u.AU)
	}
	s.sent[kind] = append(s.sent[kind], out)
}

// count returns how many units of a kind were sent.
func (s *source) count(kind string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sent[kind])
}

// sentAt is when a picture was sent; false: it was not.
func (s *source) sentAt(number uint64) (time.Time, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := slices.BinarySearchFunc(s.sent["v"], number, func(u sentUnit, n uint64) int { return cmp.Compare(u.no, n) })
	if !ok {
		return time.Time{}, false
	}
	return s.sent["v"][i].at, true
}

// sumNALs is the hash of an access unit without parameter sets and delimiters,
// which MP4 keeps elsewhere; and the parameter sets.
func sumNALs(codec string, au [][]byte) (sum unitSum, sets [][]byte) {
	h := sha256.New()
	for _, nal := range au {
		set, delimiter := false, false
		if codec == "h265" {
			switch nal[0] >> 1 & 0x3f {
			case 32, 33, 34:
				set = true
			case 35:
				delimiter = true
			}
		} else {
			switch nal[0] & 0x1f {
			case 7, 8:
				set = true
			case 9:
				delimiter = true
			}
		}
		switch {
		case set:
			sets = append(sets, nal)
		case !delimiter:
			h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(nal))))
			h.Write(nal)
		}
	}
	h.Sum(sum[:0])
	return sum, sets
}

// decodePCM returns the samples of a packet of G711 or LPCM, bytesPerSample
// little-endian bytes for each, the value in the upper bits.
func decodePCM(m *camtest.Media, packet []byte) []byte {
	var out []byte
	switch m.AudioCodec {
	case "pcma", "pcmu":
		for _, b := range packet {
			v := alaw(b)
			if m.AudioCodec == "pcmu" {
				v = mulaw(b)
			}
			out = binary.LittleEndian.AppendUint16(out, uint16(v))
		}
	case "lpcm":
		switch m.BitDepth {
		case 8: // unsigned (RFC 3551, 4.5.10)
			for _, b := range packet {
				out = append(out, 0, b^0x80)
			}
		case 16:
			for ; len(packet) >= 2; packet = packet[2:] {
				out = append(out, packet[1], packet[0])
			}
		case 24:
			for ; len(packet) >= 3; packet = packet[3:] {
				out = append(out, 0, packet[2], packet[1], packet[0])
			}
		}
	}
	return out
}

// bytesPerSample is the size of a sample as decodePCM makes it.
func bytesPerSample(m *camtest.Media) int {
	if m.BitDepth == 24 {
		return 4
	}
	return 2
}

// mulaw and alaw expand one octet to 16 bits (ITU-T G.711, tables 2a and 1a).
func mulaw(b byte) int16 {
	b = ^b
	v := (int16(b&0x0f)<<3+0x84)<<(b>>4&7) - 0x84
	if b&0x80 != 0 {
		return -v
	}
	return v
}

func alaw(b byte) int16 {
	b ^= 0x55
	v := int16(b&0x0f)<<4 + 8
	if e := b >> 4 & 7; e > 0 {
		v = (v + 0x100) << (e - 1)
	}
	if b&0x80 != 0 {
		return v
	}
	return -v
}

// sum is the hash of a recorded sample, to be compared with that of a sent unit.
func (s *source) sum(sm mp4Sample) (unitSum, error) {
	if sm.track.kind == "a" {
		return sha256.Sum256(sm.data), nil
	}
	if s.media.Codec == "mjpeg" {
		return s.jpegs.sum(sm.data)
	}
	nals, err := nalUnits(sm.data)
	if err != nil {
		return unitSum{}, err
	}
	sum, _ := sumNALs(s.media.Codec, nals)
	return sum, nil
}

// pictures is what was sent of the picture.
func (s *source) pictures(t *testing.T) []sentUnit {
	t.Helper()
	sent := slices.Clone(s.sent["v"])
	if s.media.Codec != "mjpeg" {
		return sent
	}
	for i := range sent {
		var err error
		if sent[i].sum, err = s.jpegs.sum(s.media.Video[i%len(s.media.Video)].AU[0]); err != nil {
			t.Fatal(err)
		}
	}
	return sent
}

// jpegSums are hashes of pictures: the header of a JPEG file does not travel
// over RTP (RFC 2435), so that a recorded file is never the one that was sent.
type jpegSums map[unitSum]unitSum // by the hash of the file

func (j *jpegSums) sum(file []byte) (unitSum, error) {
	if *j == nil {
		*j = make(jpegSums)
	}
	id := sha256.Sum256(file)
	if sum, ok := (*j)[id]; ok {
		return sum, nil
	}
	img, err := jpeg.Decode(bytes.NewReader(file))
	if err != nil {
		return unitSum{}, err
	}
	y, ok := img.(*image.YCbCr)
	if !ok {
		return unitSum{}, fmt.Errorf("a JPEG of kind %T", img)
	}
	h := sha256.New()
	fmt.Fprint(h, y.Rect, y.SubsampleRatio)
	for _, plane := range [][]byte{y.Y, y.Cb, y.Cr} {
		h.Write(plane)
	}
	var sum unitSum
	h.Sum(sum[:0])
	(*j)[id] = sum
	return sum, nil
}

// record lets all sources run for a while, then stops them all, so that the
// agent has everything that they sent.
func (s *stack) record(sources []*source, lasts time.Duration) {
	s.t.Helper()
	s.begin(sources)
	end := time.Now().Add(lasts)
	s.eventuallyAt(time.Second, lasts+5*time.Second, "the time is over", func() bool { return time.Now().After(end) })
	s.end(sources)
}

// begin starts the sources' channels, and waits until all of them play.
func (s *stack) begin(sources []*source) {
	s.t.Helper()
	for _, src := range sources {
		s.startChannel(src.ch)
	}
	for _, src := range sources {
		s.eventually(30*time.Second, src.name+" plays", func() bool { return src.count("v") > 0 })
	}
}

// end freezes the sources, and stops their channels when the agent has all that
// they sent.
func (s *stack) end(sources []*source) {
	s.t.Helper()
	for _, src := range sources {
		src.cam.Freeze()
	}
	last, since := map[vms.ChannelID]int{}, time.Now()
	s.eventually(8*time.Second, "the agent has what the cameras sent", func() bool {
		list, err := s.tryStreams()
		if err != nil {
			s.t.Fatalf("agent: %v", err)
		}
		for _, st := range list {
			if last[st.Channel] != st.Frames {
				last[st.Channel], since = st.Frames, time.Now()
			}
		}
		return time.Since(since) > 700*time.Millisecond
	})
	var wg sync.WaitGroup
	errs := make([]error, len(sources))
	for i, src := range sources {
		wg.Go(func() { errs[i] = s.try("POST", "/channels/"+string(src.ch)+"/stop", nil, nil) })
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			s.t.Fatalf("stop %s: %v", sources[i].name, err)
		}
	}
}
