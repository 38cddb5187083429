package mux

import "encoding/binary"

// inspectJPEG is inspect for MJPEG: every picture is a keyframe, and says its
// own size.
func (p *params) inspectJPEG(au [][]byte) accessUnit {
	if len(au) != 1 {
		return accessUnit{}
	}
	width, height := jpegSize(au[0])
	if width == 0 || height == 0 {
		return accessUnit{}
	}
	changed := width != p.Width || height != p.Height
	p.Width, p.Height = width, height
	return accessUnit{nalus: au, key: true, changed: changed}
}

// jpegSize finds the frame header of a JPEG file, which has to stand before its
// first scan (ITU-T T.81, B.2). Zero: there is none, or it leaves the height open.
func jpegSize(b []byte) (width, height int) {
	if len(b) < 2 || b[0] != 0xff || b[1] != 0xd8 { // SOI
		return 0, 0
	}
	for b = b[2:]; len(b) >= 4 && b[0] == 0xff; {
		marker := b[1]
		if marker == 0xff { // fill
			b = b[1:]
			continue
		}
		n := 2 + int(binary.BigEndian.Uint16(b[2:]))
		if n < 4 || n > len(b) {
			break
		}
		switch {
		case marker == 0xda: // SOS
			return width, height
		case marker == 0xc4, marker == 0xc8, marker == 0xcc: // DHT, JPG, DAC
		case marker>>4 == 0xc: // SOFn
			if n < 9 {
				return 0, 0
			}
			height, width = int(binary.BigEndian.Uint16(b[5:])), int(binary.BigEndian.Uint16(b[7:]))
		case marker <= 0xd9: // RSTn, SOI, EOI and the like have no place here
			return 0, 0
		}
		b = b[n:]
	}
	return 0, 0
}
