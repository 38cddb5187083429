package cmaf

import (
	"encoding/binary"
	"fmt"

	"github.com/bluenviron/mediacommon/v2/pkg/codecs/mpeg4audio"

	"github.com/zipato/vms/pkg/vms"
)

// soundEntry returns the track of a, its timescale yet to be set, and its
// sample entry.
func soundEntry(a *AudioParams) (vms.Track, []byte, error) {
	t := vms.Track{ID: AudioTrack, Kind: "audio", SampleRate: a.SampleRate, Channels: a.Channels}
	var entry []byte
	var err error
	switch a.Codec {
	case "", "aac":
		t.Codec, entry, err = aacEntry(a)
	case "flac":
		t.Codec = "flac" // browsers refuse "fLaC", the entry's name, or take it and fail later
		entry, err = flacEntry(a)
	default:
		err = fmt.Errorf("audio codec %q cannot be recorded; use AAC or FLAC", a.Codec)
	}
	return t, entry, err
}

// aacEntry returns the codec string and the sample entry of AAC (ISO/IEC
// 14496-14, 5.6).
func aacEntry(a *AudioParams) (codec string, entry []byte, err error) {
	var conf mpeg4audio.AudioSpecificConfig
	if err := conf.Unmarshal(a.Config); err != nil {
		return "", nil, fmt.Errorf("AAC configuration: %w", err)
	}
	if len(a.Config) > 1024 { // two to five bytes, some dozens with a program config element
		return "", nil, fmt.Errorf("AAC configuration of %d bytes", len(a.Config))
	}
	channels := int(conf.ChannelConfig)
	switch channels {
	case 0:
		channels = a.Channels // a program config element lists them
	case 7:
		channels = 8
	}
	if channels < 1 || channels > 255 {
		return "", nil, fmt.Errorf("AAC configuration: %d channels", channels)
	}
	// The string names the outermost object type: HE-AAC that is signalled as such
	// is 5 or 29, although a plain AAC stream is inside.
	object := conf.Type
	if conf.ExtensionType != 0 {
		object = conf.ExtensionType
	}
	return fmt.Sprintf("mp4a.40.%d", object), audioEntry("mp4a", channels, 16, conf.SampleRate, esds(objectAAC, streamAudio, a.Config)), nil
}

// streamInfoLen is the length of STREAMINFO (RFC 9639, 8.2).
const streamInfoLen = 34

// flacEntry is the sample entry of FLAC ("Encapsulation of FLAC in ISO Base
// Media File Format", 3.3).
func flacEntry(a *AudioParams) ([]byte, error) {
	if len(a.Config) != streamInfoLen {
		return nil, fmt.Errorf("FLAC stream info of %d bytes, want %d", len(a.Config), streamInfoLen)
	}
	be := binary.BigEndian
	least, most := be.Uint16(a.Config), be.Uint16(a.Config[2:])
	packed := be.Uint32(a.Config[10:]) // 20 bits of rate, 3 of channels, 5 of bits a sample, 4 of the length
	rate, channels, bits := int(packed>>12), int(packed>>9&7)+1, int(packed>>4&31)+1
	switch {
	case least < 16 || most < least:
		return nil, fmt.Errorf("FLAC stream info: blocks of %d to %d samples", least, most)
	case rate < 1 || bits < 4:
		return nil, fmt.Errorf("FLAC stream info: %d bits a sample, at %d Hz", bits, rate)
	case rate != a.SampleRate || channels != a.Channels:
		return nil, fmt.Errorf("FLAC stream info says %d channels at %d Hz, the stream %d at %d Hz", channels, rate, a.Channels, a.SampleRate)
	}
	dfLa := fullBox("dfLa", 0, u32(1<<31|streamInfoLen), a.Config) // the last metadata block, of type 0
	return audioEntry("fLaC", channels, bits, rate, dfLa), nil
}
