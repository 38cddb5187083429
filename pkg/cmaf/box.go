package cmaf

import (
	"encoding/binary"

	"github.com/zipato/vms/pkg/vms"
)

// box joins parts to the body of a box (ISO/IEC 14496-12, 4.2). What is built
// from boxes is a few hundred bytes and rare: no care is taken of copies.
func box(name string, parts ...[]byte) []byte {
	n := 8
	for _, p := range parts {
		n += len(p)
	}
	b := appendBox(make([]byte, 0, n), n, name)
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

// fullBox is a box of version 0 with flags.
func fullBox(name string, flags uint32, parts ...[]byte) []byte {
	return box(name, append([][]byte{u32(flags)}, parts...)...)
}

func u16(values ...uint16) []byte {
	b := make([]byte, 0, 2*len(values))
	for _, v := range values {
		b = binary.BigEndian.AppendUint16(b, v)
	}
	return b
}

func u32(values ...uint32) []byte {
	b := make([]byte, 0, 4*len(values))
	for _, v := range values {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return b
}

// sized is b behind its length in two bytes; b is at most 65,535 bytes long.
func sized(b []byte) []byte { return append(u16(uint16(len(b))), b...) }

// identity is the matrix that neither turns nor scales a picture.
var identity = u32(1<<16, 0, 0, 0, 1<<16, 0, 0, 0, 1<<30)

// buildInit returns ftyp and moov for tracks, whose sample entries are entries.
// Durations are zero throughout: what plays is in the fragments (8.8).
func buildInit(tracks []vms.Track, entries [][]byte) []byte {
	// iso6 stands for what the fragments use: default-base-is-moof and signed
	// composition offsets; mp41 for esds (ISO/IEC 14496-14).
	ftyp := box("ftyp", []byte("iso6"), u32(0), []byte("iso6isommp41"))
	moov := [][]byte{fullBox("mvhd", 0,
		u32(0, 0, 1000, 0), // created, modified, ticks per second, duration
		u32(1<<16),         // normal speed
		u16(1<<8, 0),       // full volume
		u32(0, 0),
		identity,
		make([]byte, 24),
		u32(uint32(len(tracks))+1), // the next free track id: ours count from 1
	)}
	mvex := make([][]byte, len(tracks))
	for i, t := range tracks {
		moov = append(moov, trak(t, entries[i]))
		mvex[i] = fullBox("trex", 0, u32(uint32(t.ID), 1, 0, 0, 0)) // the first sample entry; fragments say the rest
	}
	return append(ftyp, box("moov", append(moov, box("mvex", mvex...))...)...)
}

// trak describes one track (8.3 to 8.7); its sample table is empty.
func trak(t vms.Track, entry []byte) []byte {
	handler, header, volume := "soun\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00SoundHandler\x00", fullBox("smhd", 0, u32(0)), uint16(1<<8)
	if t.Kind == "video" {
		handler, header, volume = "vide\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00VideoHandler\x00", fullBox("vmhd", 1, u32(0, 0)), 0
	}
	return box("trak",
		fullBox("tkhd", 3, // enabled, in the movie
			u32(0, 0, uint32(t.ID), 0, 0), // created, modified, id, reserved, duration
			u32(0, 0),
			u16(0, 0, volume, 0), // layer, alternate group
			identity,
			u32(uint32(t.Width)<<16, uint32(t.Height)<<16),
		),
		box("mdia",
			fullBox("mdhd", 0,
				u32(0, 0, t.Timescale, 0),
				u16(0x55c4, 0), // language "und"
			),
			fullBox("hdlr", 0, u32(0), []byte(handler)),
			box("minf",
				header,
				box("dinf", fullBox("dref", 0, u32(1), fullBox("url ", 1))), // the media is in this file
				box("stbl",
					fullBox("stsd", 0, u32(1), entry),
					fullBox("stts", 0, u32(0)),
					fullBox("stsc", 0, u32(0)),
					fullBox("stsz", 0, u32(0, 0)),
					fullBox("stco", 0, u32(0)),
				),
			),
		),
	)
}

// visualEntry is the sample entry of a video track (12.1.3).
func visualEntry(name string, width, height int, config []byte) []byte {
	return box(name,
		make([]byte, 6), u16(1), // the first data reference
		make([]byte, 16),
		u16(uint16(width), uint16(height)),
		u32(72<<16, 72<<16, 0), // dots per inch
		u16(1),                 // frame per sample
		make([]byte, 32),       // no compressor name
		u16(24, 0xffff),        // depth
		config,
	)
}

// audioEntry is the sample entry of an audio track (12.2.3). The rate of more
// than 65,535 Hz that its field cannot hold is written as the greatest that
// divides it evenly, after "Encapsulation of FLAC in ISO Base Media File
// Format"; decoders know the true one from config.
func audioEntry(name string, channels, bits, rate int, config []byte) []byte {
	for rate > 0xffff && rate%2 == 0 {
		rate /= 2
	}
	return box(name,
		make([]byte, 6), u16(1), // the first data reference
		u32(0, 0),
		u16(uint16(channels), uint16(bits), 0, 0),
		u32(uint32(min(rate, 0xffff))<<16),
		config,
	)
}

// Object types and stream types of ISO/IEC 14496-1, 7.2.6.6.
const (
	objectAAC  = 0x40
	objectJPEG = 0x6c

	streamVisual = 0x04
	streamAudio  = 0x05
)

// esds describes an elementary stream (ISO/IEC 14496-14, 5.6); specific may be
// empty. Bit rates are not known ahead and stay zero.
func esds(object, stream byte, specific []byte) []byte {
	config := append([]byte{object, stream<<2 | 1, 0, 0, 0}, u32(0, 0)...)
	if len(specific) > 0 {
		config = append(config, descriptor(0x05, specific)...)
	}
	es := append([]byte{0, 0, 0}, descriptor(0x04, config)...)                              // id zero inside a file; no flags
	return fullBox("esds", 0, descriptor(0x03, append(es, descriptor(0x06, []byte{2})...))) // 2: predefined for MP4
}

// descriptor is body behind tag and length (ISO/IEC 14496-1, 8.3.3). The length
// takes four bytes, which some readers expect although fewer would do.
func descriptor(tag byte, body []byte) []byte {
	n := len(body)
	return append([]byte{tag, byte(n>>21) | 0x80, byte(n>>14) | 0x80, byte(n>>7) | 0x80, byte(n) & 0x7f}, body...)
}
