package camera

import (
	"errors"
	"fmt"

	"github.com/pion/rtp"
)

// Limits of RFC 2435.
const (
	jpegHeader     = 8   // main header, section 3.1
	jpegRestart    = 64  // from this type on, a restart header follows, section 3.1.7
	jpegTypes      = 2   // 0 is 4:2:2, 1 is 4:2:0, section 4.1
	jpegOwnTables  = 128 // from this Q on, the tables come with the picture, section 3.1.8
	jpegTable      = 64
	jpegMaxHeaders = 700 // what stands before the picture in a file that we make
)

// pictures puts JPEG files together from RTP (RFC 2435), which leaves out what
// most of them have in common: their header. The library's own decoder takes
// neither restart markers nor tables that are sent once, and makes one picture
// of two when the rest of the one fits behind the other.
type pictures struct {
	// out gets each picture with its RTP timestamp.
	out func(ts uint32, au [][]byte)

	file []byte // the file so far, nil between pictures and after a loss
	head int    // bytes of it that are not from the camera
	ts   uint32
	last int // length of the picture before
	// tables that were sent for a Q, which need not be repeated. Those of 255
	// change with each picture.
	tables [255 - jpegOwnTables][]byte
}

var errPictureLost = errors.New("a part of the picture is missing")

// push takes the next packet. An error means that a picture is lost; what comes
// before the first picture is none.
func (p *pictures) push(pkt *rtp.Packet) error {
	b := pkt.Payload
	if len(b) < jpegHeader {
		p.file = nil
		return errors.New("packet without the header of a picture")
	}
	offset := int(b[1])<<16 | int(b[2])<<8 | int(b[3])
	if offset == 0 {
		cut := p.reset()
		if err := p.begin(b); err != nil {
			return err
		}
		p.ts = pkt.Timestamp
		err := p.end(pkt.Marker)
		if cut && err == nil {
			return errPictureLost // the one before
		}
		return err
	}
	if p.file == nil {
		return nil // told already, or we joined in its middle
	}
	rest, _, err := restart(b)
	switch {
	case err != nil:
	case pkt.Timestamp != p.ts || offset != len(p.file)-p.head:
		err = errPictureLost
	case len(p.file)+len(rest) > maxUnitBytes:
		err = fmt.Errorf("picture of more than %d bytes", maxUnitBytes)
	}
	if err != nil {
		p.file = nil
		return err
	}
	p.file = append(p.file, rest...)
	return p.end(pkt.Marker)
}

// restart takes the headers off that each packet has. interval is not nil where
// the picture has restart markers.
func restart(b []byte) (rest, interval []byte, err error) {
	typ := b[4]
	rest = b[jpegHeader:]
	if typ >= jpegRestart && typ < 2*jpegRestart {
		if len(rest) < 4 {
			return nil, nil, errors.New("packet without its restart header")
		}
		interval, rest = rest[:2], rest[4:]
		typ -= jpegRestart
	}
	if typ >= jpegTypes {
		return nil, nil, fmt.Errorf("pictures of type %d are not supported", b[4])
	}
	return rest, interval, nil
}

// begin takes the first packet of a picture.
func (p *pictures) begin(b []byte) error {
	rest, interval, err := restart(b)
	if err != nil {
		return err
	}
	width, height := int(b[6])*8, int(b[7])*8
	if width == 0 || height == 0 { // more than 2040 pixels: the header does not say how many
		return errors.New("picture without a size")
	}
	tables, rest, err := p.quantizers(b[5], rest)
	if err != nil {
		return err
	}
	f := make([]byte, 0, jpegMaxHeaders+max(len(rest), p.last+p.last/8))
	f = append(f, 0xff, 0xd8) // SOI
	f = append(f, 0xff, 0xdb, 0, byte(2+len(tables)/jpegTable*(1+jpegTable)))
	for i := range len(tables) / jpegTable {
		f = append(f, byte(i))
		f = append(f, tables[i*jpegTable:(i+1)*jpegTable]...)
	}
	if interval != nil {
		f = append(f, 0xff, 0xdd, 0, 4, interval[0], interval[1])
	}
	luma, chroma := byte(0x21), byte(0)
	if b[4]%jpegRestart == 1 {
		luma = 0x22
	}
	if len(tables) > jpegTable {
		chroma = 1
	}
	f = append(f, 0xff, 0xc0, 0, 17, 8, byte(height>>8), byte(height), byte(width>>8), byte(width),
		3, 1, luma, 0, 2, 0x11, chroma, 3, 0x11, chroma)
	f = append(f, huffman...)
	f = append(f, 0xff, 0xda, 0, 12, 3, 1, 0x00, 2, 0x11, 3, 0x11, 0, 63, 0)
	p.head = len(f)
	p.file = append(f, rest...)
	return nil
}

// quantizers returns the tables for Q, one behind the other, and what stands
// behind them in the packet.
func (p *pictures) quantizers(q byte, b []byte) (tables, rest []byte, err error) {
	switch {
	case q == 0, q >= 100 && q < jpegOwnTables:
		return nil, nil, fmt.Errorf("quantization %d is none", q)
	case q < jpegOwnTables:
		return scaled(int(q)), b, nil
	case len(b) < 4:
		return nil, nil, errors.New("packet without its tables")
	}
	wide, n := b[1], int(b[2])<<8|int(b[3])
	b = b[4:]
	switch {
	case n == 0 && q < 255 && p.tables[q-jpegOwnTables] != nil:
		return p.tables[q-jpegOwnTables], b, nil
	case wide != 0 || n != jpegTable && n != 2*jpegTable:
		return nil, nil, fmt.Errorf("tables of %d bytes are not supported", n)
	case n > len(b):
		return nil, nil, errors.New("packet without its tables")
	}
	if q < 255 {
		p.tables[q-jpegOwnTables] = append([]byte(nil), b[:n]...)
	}
	return b[:n], b[n:], nil
}

// scaled makes the tables of a Q below 100 as the library of the Independent
// JPEG Group does (RFC 2435, appendix A).
func scaled(q int) []byte {
	factor := 200 - 2*q
	if q < 50 {
		factor = 5000 / q
	}
	tables := make([]byte, 0, len(quantizers))
	for _, v := range []byte(quantizers) {
		tables = append(tables, byte(min(max((int(v)*factor+50)/100, 1), 255)))
	}
	return tables
}

// end passes the picture on if it is complete.
func (p *pictures) end(marker bool) error {
	if !marker {
		return nil
	}
	f := p.file
	p.file = nil // the sink owns it
	if len(f) < p.head+2 {
		return errors.New("picture without content")
	}
	p.last = len(f) - p.head
	if f[len(f)-2] != 0xff || f[len(f)-1] != 0xd9 {
		f = append(f, 0xff, 0xd9)
	}
	p.out(p.ts, [][]byte{f})
	return nil
}

// reset forgets a picture that is not complete, and reports whether there was one.
func (p *pictures) reset() bool {
	cut := p.file != nil
	p.file = nil
	return cut
}

// huffman are the tables that RFC 2435 takes for granted: those of ITU-T T.81,
// annex K.3, as a segment of a file.
const huffman = "" +
	"\xff\xc4\x01\xa2\x00\x00\x01\x05\x01\x01\x01\x01\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x01\x02\x03\x04\x05\x06\x07\x08" +
	"\x09\x0a\x0b\x01\x00\x03\x01\x01\x01\x01\x01\x01\x01\x01\x01\x00\x00\x00\x00\x00\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09" +
	"\x0a\x0b\x10\x00\x02\x01\x03\x03\x02\x04\x03\x05\x05\x04\x04\x00\x00\x01\x7d\x01\x02\x03\x00\x04\x11\x05\x12\x21\x31\x41" +
	"\x06\x13\x51\x61\x07\x22\x71\x14\x32\x81\x91\xa1\x08\x23\x42\xb1\xc1\x15\x52\xd1\xf0\x24\x33\x62\x72\x82\x09\x0a\x16\x17" +
	"\x18\x19\x1a\x25\x26\x27\x28\x29\x2a\x34\x35\x36\x37\x38\x39\x3a\x43\x44\x45\x46\x47\x48\x49\x4a\x53\x54\x55\x56\x57\x58" +
	"\x59\x5a\x63\x64\x65\x66\x67\x68\x69\x6a\x73\x74\x75\x76\x77\x78\x79\x7a\x83\x84\x85\x86\x87\x88\x89\x8a\x92\x93\x94\x95" +
	"\x96\x97\x98\x99\x9a\xa2\xa3\xa4\xa5\xa6\xa7\xa8\xa9\xaa\xb2\xb3\xb4\xb5\xb6\xb7\xb8\xb9\xba\xc2\xc3\xc4\xc5\xc6\xc7\xc8" +
	"\xc9\xca\xd2\xd3\xd4\xd5\xd6\xd7\xd8\xd9\xda\xe1\xe2\xe3\xe4\xe5\xe6\xe7\xe8\xe9\xea\xf1\xf2\xf3\xf4\xf5\xf6\xf7\xf8\xf9" +
	"\xfa\x11\x00\x02\x01\x02\x04\x04\x03\x04\x07\x05\x04\x04\x00\x01\x02\x77\x00\x01\x02\x03\x11\x04\x05\x21\x31\x06\x12\x41" +
	"\x51\x07\x61\x71\x13\x22\x32\x81\x08\x14\x42\x91\xa1\xb1\xc1\x09\x23\x33\x52\xf0\x15\x62\x72\xd1\x0a\x16\x24\x34\xe1\x25" +
	"\xf1\x17\x18\x19\x1a\x26\x27\x28\x29\x2a\x35\x36\x37\x38\x39\x3a\x43\x44\x45\x46\x47\x48\x49\x4a\x53\x54\x55\x56\x57\x58" +
	"\x59\x5a\x63\x64\x65\x66\x67\x68\x69\x6a\x73\x74\x75\x76\x77\x78\x79\x7a\x82\x83\x84\x85\x86\x87\x88\x89\x8a\x92\x93\x94" +
	"\x95\x96\x97\x98\x99\x9a\xa2\xa3\xa4\xa5\xa6\xa7\xa8\xa9\xaa\xb2\xb3\xb4\xb5\xb6\xb7\xb8\xb9\xba\xc2\xc3\xc4\xc5\xc6\xc7" +
	"\xc8\xc9\xca\xd2\xd3\xd4\xd5\xd6\xd7\xd8\xd9\xda\xe2\xe3\xe4\xe5\xe6\xe7\xe8\xe9\xea\xf2\xf3\xf4\xf5\xf6\xf7\xf8\xf9\xfa"

// quantizers are the tables of ITU-T T.81, annex K.1, in the order in which a
// file has them.
const quantizers = "" +
	"\x10\x0b\x0c\x0e\x0c\x0a\x10\x0e\x0d\x0e\x12\x11\x10\x13\x18\x28\x1a\x18\x16\x16\x18\x31\x23\x25\x1d\x28\x3a\x33\x3d\x3c\x39\x33" +
	"\x38\x37\x40\x48\x5c\x4e\x40\x44\x57\x45\x37\x38\x50\x6d\x51\x57\x5f\x62\x67\x68\x67\x3e\x4d\x71\x79\x70\x64\x78\x5c\x65\x67\x63" +
	"\x11\x12\x12\x18\x15\x18\x2f\x1a\x1a\x2f\x63\x42\x38\x42\x63\x63\x63\x63\x63\x63\x63\x63\x63\x63\x63\x63\x63\x63\x63\x63\x63\x63" +
	"\x63\x63\x63\x63\x63\x63\x63\x63\x63\x63\x63\x63\x63\x63\x63\x63\x63\x63\x63\x63\x63\x63\x63\x63\x63\x63\x63\x63\x63\x63\x63\x63"
