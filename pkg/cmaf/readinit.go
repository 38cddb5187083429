package cmaf

import (
	"slices"

	"github.com/bluenviron/mediacommon/v2/pkg/codecs/h265"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/mpeg4audio"
)

// maxTracks bounds the tracks that ReadInit takes from an outsider.
const maxTracks = 8

// InitTrack is what an init segment says of one track.
type InitTrack struct {
	ID        int
	Timescale uint32 // ticks per second
	Entry     string // name of the sample entry, such as "avc1"
	// Video or Audio is what BuildInit would need to write the track again; both
	// are nil when the entry is none that it writes. They share segment's memory.
	Video *VideoParams
	Audio *AudioParams
}

// ReadInit reads an init segment back, as far as BuildInit writes one. An error
// means that it is none, or says nothing that a decoder could begin with.
func ReadInit(segment []byte) ([]InitTrack, error) {
	if err := CheckInit(segment); err != nil {
		return nil, err
	}
	var tracks []InitTrack
	moov, err := child(segment, "moov")
	for err == nil && len(moov) > 0 {
		var name string
		var body []byte
		if name, body, moov, err = nextBox(moov); err != nil || name != "trak" {
			continue
		}
		if len(tracks) == maxTracks {
			return nil, invalid("more than %d tracks", maxTracks)
		}
		var t InitTrack
		if t, err = readTrak(body); err == nil {
			tracks = append(tracks, t)
		}
	}
	if err != nil {
		return nil, err
	}
	return tracks, nil
}

// child returns the body of the box at the end of path, the first where there
// are several.
func child(b []byte, path ...string) ([]byte, error) {
	for _, want := range path {
		for {
			name, body, rest, err := nextBox(b)
			if err != nil {
				return nil, err
			}
			if b = rest; name == want {
				b = body
				break
			}
			if len(b) == 0 {
				return nil, invalid("no %s box", want)
			}
		}
	}
	return b, nil
}

func readTrak(b []byte) (t InitTrack, err error) {
	tkhd, err := child(b, "tkhd")
	if err != nil {
		return t, err
	}
	mdhd, err := child(b, "mdia", "mdhd")
	if err != nil {
		return t, err
	}
	stsd, err := child(b, "mdia", "minf", "stbl", "stsd")
	if err != nil {
		return t, err
	}
	id, ok := afterTimes(tkhd)
	if !ok || int32(id) <= 0 {
		return t, invalid("track id %d", id)
	}
	t.ID = int(id)
	if t.Timescale, ok = afterTimes(mdhd); !ok || t.Timescale == 0 {
		return t, invalid("track %d has no timescale", t.ID)
	}
	if len(stsd) < 8 {
		return t, invalid("stsd of %d bytes", len(stsd))
	}
	name, entry, _, err := nextBox(stsd[8:]) // behind version, flags and a count
	if err != nil {
		return t, err
	}
	t.Entry = name
	switch name {
	case "avc1", "hvc1", "mp4v":
		t.Video, err = readVisual(name, entry)
	case "mp4a", "fLaC":
		t.Audio, err = readSound(name, entry)
	}
	return t, err
}

// afterTimes returns the number behind the times of creation and modification
// in a tkhd or mdhd, four bytes each in version 0 and eight in version 1.
func afterTimes(b []byte) (n uint32, ok bool) {
	c := cursor{b: b}
	width := 1 + int(c.u32()>>24)
	for range 2 * width {
		c.u32()
	}
	n = c.u32()
	return n, !c.short && width <= 2
}

// Lengths of what a sample entry says before its boxes (12.1.3, 12.2.3).
const (
	visualLen = 78
	soundLen  = 28
)

// readVisual reads the sample entry of a picture; nil: none that BuildInit writes.
func readVisual(name string, b []byte) (*VideoParams, error) {
	if len(b) < visualLen {
		return nil, invalid("%s of %d bytes", name, len(b))
	}
	v := &VideoParams{}
	switch boxes := b[visualLen:]; name {
	case "avc1":
		config, err := child(boxes, "avcC")
		if err != nil {
			return nil, err
		}
		v.Codec = "h264"
		return v, v.readAVC(config)
	case "hvc1":
		config, err := child(boxes, "hvcC")
		if err != nil {
			return nil, err
		}
		v.Codec = "h265"
		return v, v.readHEVC(config)
	default: // mp4v
		object, _, err := readESDS(boxes)
		if err != nil || object != objectJPEG {
			return nil, err
		}
		c := cursor{b: b[24:]}
		size := c.u32()
		v.Codec, v.Width, v.Height = "mjpeg", int(size>>16), int(size&0xffff)
		return v, nil
	}
}

// readAVC reads an AVCDecoderConfigurationRecord; see avcC.
func (v *VideoParams) readAVC(b []byte) error {
	if len(b) < 6 || b[4]&3 != 3 {
		return invalid("avcC of %d bytes, or of lengths that take other than four", len(b))
	}
	n, b := int(b[5]&31), b[6:]
	for i := range n {
		set, rest, ok := cutSized(b)
		if !ok {
			return invalid("avcC is cut short")
		}
		if b = rest; i == 0 {
			v.SPS = set
		}
	}
	if len(b) > 0 && b[0] > 0 {
		v.PPS, _, _ = cutSized(b[1:])
	}
	if len(v.SPS) < 4 || len(v.PPS) == 0 {
		return invalid("avcC without SPS or PPS")
	}
	return nil
}

// readHEVC reads an HEVCDecoderConfigurationRecord; see hvcC.
func (v *VideoParams) readHEVC(b []byte) error {
	if len(b) < 23 || b[21]&3 != 3 {
		return invalid("hvcC of %d bytes, or of lengths that take other than four", len(b))
	}
	arrays, b := int(b[22]), b[23:]
	for range arrays {
		if len(b) < 3 {
			return invalid("hvcC is cut short")
		}
		kind, n := h265.NALUType(b[0]&0x3f), int(b[1])<<8|int(b[2])
		b = b[3:]
		for range n {
			set, rest, ok := cutSized(b)
			if !ok {
				return invalid("hvcC is cut short")
			}
			b = rest
			switch {
			case kind == h265.NALUType_VPS_NUT && v.VPS == nil:
				v.VPS = set
			case kind == h265.NALUType_SPS_NUT && v.SPS == nil:
				v.SPS = set
			case kind == h265.NALUType_PPS_NUT && v.PPS == nil:
				v.PPS = set
			}
		}
	}
	if len(v.VPS) == 0 || len(v.SPS) == 0 || len(v.PPS) == 0 {
		return invalid("hvcC without VPS, SPS or PPS")
	}
	return nil
}

// cutSized takes bytes behind their length of two bytes off b; see sized.
func cutSized(b []byte) (set, rest []byte, ok bool) {
	if len(b) < 2 {
		return nil, nil, false
	}
	n := int(b[0])<<8 | int(b[1])
	if b = b[2:]; n > len(b) {
		return nil, nil, false
	}
	return b[:n:n], b[n:], true
}

// readSound reads the sample entry of sound; nil: none that BuildInit writes.
func readSound(name string, b []byte) (*AudioParams, error) {
	if len(b) < soundLen {
		return nil, invalid("%s of %d bytes", name, len(b))
	}
	boxes := b[soundLen:]
	if name == "fLaC" {
		dfLa, err := child(boxes, "dfLa")
		if err != nil {
			return nil, err
		}
		if len(dfLa) != 8+streamInfoLen || dfLa[4]&0x7f != 0 {
			return nil, invalid("dfLa of %d bytes", len(dfLa))
		}
		info := dfLa[8:]
		c := cursor{b: info[10:]}
		packed := c.u32() // see flacEntry
		return &AudioParams{Codec: "flac", Config: info, SampleRate: int(packed >> 12), Channels: int(packed>>9&7) + 1}, nil
	}
	object, config, err := readESDS(boxes)
	if err != nil || object != objectAAC {
		return nil, err
	}
	var conf mpeg4audio.AudioSpecificConfig
	if err := conf.Unmarshal(config); err != nil {
		return nil, invalid("AAC configuration: %v", err)
	}
	return &AudioParams{Codec: "aac", Config: config, SampleRate: conf.SampleRate, Channels: int(b[16])<<8 | int(b[17])}, nil
}

// readESDS returns the object type of an elementary stream, and what is specific
// to its decoder; see esds.
func readESDS(boxes []byte) (object byte, specific []byte, err error) {
	b, err := child(boxes, "esds")
	if err != nil {
		return 0, nil, err
	}
	bad := invalid("esds of %d bytes says nothing", len(b))
	if len(b) < 4 {
		return 0, nil, bad
	}
	es, ok := readDescriptor(b[4:], 0x03)
	if !ok || len(es) < 3 || es[2]&0xe0 != 0 { // none of the fields that only streams in pieces have
		return 0, nil, bad
	}
	config, ok := readDescriptor(es[3:], 0x04)
	if !ok || len(config) < 13 {
		return 0, nil, bad
	}
	specific, _ = readDescriptor(config[13:], 0x05) // MJPEG has none
	return config[0], slices.Clip(specific), nil
}

// readDescriptor returns the body of the descriptor that b begins with, if it
// has this tag; see descriptor.
func readDescriptor(b []byte, tag byte) (body []byte, ok bool) {
	if len(b) == 0 || b[0] != tag {
		return nil, false
	}
	n := 0
	for i := 1; i < len(b) && i <= 4; i++ {
		n = n<<7 | int(b[i]&0x7f)
		if b[i]&0x80 == 0 {
			if b = b[i+1:]; n > len(b) {
				return nil, false
			}
			return b[:n], true
		}
	}
	return nil, false
}
