package camera

import (
	"bytes"
	"image"
	"image/color"
	"image/jpeg"
	"maps"
	"reflect"
	"slices"
	"testing"

	"github.com/pion/rtp"
)

// picture64 is a JPEG file of 64 x 48 pixels by the standard library, which uses
// the Huffman tables of the standard and 4:2:0.
func picture64(t testing.TB, quality int, seed byte) []byte {
	t.Helper()
	img := image.NewRGBA(image.Rect(0, 0, 64, 48))
	for i := range 64 * 48 {
		x, y := i%64, i/64
		img.Set(x, y, color.RGBA{R: byte(4*x) ^ seed, G: byte(5 * y), B: byte(x*y) + seed, A: 255})
	}
	var b bytes.Buffer
	if err := jpeg.Encode(&b, img, &jpeg.Options{Quality: quality}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// segment returns the content of the first segment with that marker.
func segment(file []byte, marker byte) []byte {
	i := bytes.Index(file, []byte{0xff, marker})
	n := int(file[i+2])<<8 | int(file[i+3])
	return file[i+4 : i+2+n]
}

// asRTP packs a file of picture64 as a camera does, in packets of 200 bytes.
// tables are those that go along for a q of 128 and more.
func asRTP(file []byte, ts uint32, q byte, tables []byte, restart bool) []*rtp.Packet {
	i := bytes.Index(file, []byte{0xff, 0xda})
	data := file[i+2+(int(file[i+2])<<8|int(file[i+3])):]
	var packets []*rtp.Packet
	for offset := 0; offset < len(data); offset += 200 {
		typ := byte(1)
		if restart {
			typ += 64
		}
		b := []byte{0, byte(offset >> 16), byte(offset >> 8), byte(offset), typ, q, 64 / 8, 48 / 8}
		if restart { // an interval longer than the picture
			b = append(b, 0, 200, 0xff, 0xff)
		}
		if offset == 0 && q >= 128 {
			b = append(b, 0, 0, byte(len(tables)>>8), byte(len(tables)))
			b = append(b, tables...)
		}
		end := min(offset+200, len(data))
		packets = append(packets, &rtp.Packet{
			Header:  rtp.Header{Timestamp: ts, Marker: end == len(data)},
			Payload: append(b, data[offset:end]...),
		})
	}
	return packets
}

// tablesOf returns the two quantization tables of a file.
func tablesOf(file []byte) []byte {
	s := segment(file, 0xdb)
	return slices.Concat(s[1:65], s[66:130])
}

// huffmanTables returns a file's tables by class and number: their order is free.
func huffmanTables(file []byte) map[byte]string {
	tables := map[byte]string{}
	for s := segment(file, 0xc4); len(s) > 17; {
		n := 17
		for _, count := range s[1:17] {
			n += int(count)
		}
		tables[s[0]] = string(s[1:n])
		s = s[n:]
	}
	return tables
}

// push collects the pictures and counts the errors.
func push(p *pictures, packets ...*rtp.Packet) (files [][]byte, errs int) {
	p.out = func(_ uint32, au [][]byte) { files = append(files, au[0]) }
	for _, pkt := range packets {
		if p.push(pkt) != nil {
			errs++
		}
	}
	return files, errs
}

func samePixels(t *testing.T, got, want []byte) {
	t.Helper()
	a, err := jpeg.Decode(bytes.NewReader(got))
	if err != nil {
		t.Fatal(err)
	}
	b, err := jpeg.Decode(bytes.NewReader(want))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(a, b) {
		t.Error("another picture")
	}
}

func TestPicturesOfEveryKind(t *testing.T) {
	for _, quality := range []int{1, 20, 49, 50, 75, 99} {
		file := picture64(t, quality, 0)
		for name, packets := range map[string][]*rtp.Packet{
			"own tables":      asRTP(file, 1, 255, tablesOf(file), false),
			"restart markers": asRTP(file, 1, 255, tablesOf(file), true),
			// The standard library's encoder scales like the Independent JPEG Group's.
			"scaled tables": asRTP(file, 1, byte(quality), nil, false),
		} {
			got, errs := push(new(pictures), packets...)
			if len(got) != 1 || errs > 0 {
				t.Fatalf("quality %d, %s: %d pictures, %d errors", quality, name, len(got), errs)
			}
			samePixels(t, got[0], file)
			if interval := bytes.Contains(got[0], []byte{0xff, 0xdd, 0, 4, 0, 200}); interval != (name == "restart markers") {
				t.Errorf("%s: restart interval in the file: %v", name, interval)
			}
			if a, b := huffmanTables(got[0]), huffmanTables(file); len(a) != 4 || !maps.Equal(a, b) {
				t.Errorf("%s: Huffman tables %x, want %x", name, a, b)
			}
		}
	}
}

func TestTablesAreRemembered(t *testing.T) {
	file, other := picture64(t, 30, 0), picture64(t, 90, 0)
	var p pictures
	if got, errs := push(&p, asRTP(file, 1, 200, nil, false)...); len(got) != 0 || errs != 1 {
		t.Errorf("without tables: %d pictures, %d errors", len(got), errs)
	}
	push(&p, asRTP(file, 2, 200, tablesOf(file), false)...)
	push(&p, asRTP(other, 3, 255, tablesOf(other), false)...)
	got, errs := push(&p, asRTP(file, 4, 200, nil, false)...)
	if len(got) != 1 || errs != 0 {
		t.Fatalf("%d pictures, %d errors", len(got), errs)
	}
	samePixels(t, got[0], file)
	if got, errs := push(&p, asRTP(other, 5, 255, nil, false)...); len(got) != 0 || errs != 1 {
		t.Errorf("tables of 255 were kept: %d pictures, %d errors", len(got), errs)
	}
}

// TestALossCostsOnePicture: each packet in turn is lost, and all between two
// pictures that would fit together.
func TestALossCostsOnePicture(t *testing.T) {
	a, b := picture64(t, 75, 0), picture64(t, 75, 0x55)
	first, second := asRTP(a, 1, 75, nil, false), asRTP(b, 2, 75, nil, false)
	for lost := range first {
		got, errs := push(new(pictures), slices.Concat(first[:lost], first[lost+1:], second)...)
		if len(got) != 1 || (errs != 1) != (lost == 0) {
			t.Errorf("packet %d: %d pictures, %d errors", lost, len(got), errs)
		}
		samePixels(t, got[0], b)
	}
	for cut := 1; cut < min(len(first), len(second)); cut++ {
		if got, errs := push(new(pictures), slices.Concat(first[:cut], second[cut:])...); len(got) != 0 || errs != 1 {
			t.Errorf("cut %d: %d pictures, %d errors", cut, len(got), errs)
		}
	}
	p := new(pictures)
	push(p, first[:2]...)
	if !p.reset() || p.reset() {
		t.Error("reset does not know of the picture that was begun")
	}
}

func TestPicturesThatRTPCannotDescribe(t *testing.T) {
	for name, payload := range map[string][]byte{
		"nothing":           {},
		"a short header":    {0, 0, 0, 0, 1, 50, 8},
		"an unknown type":   {0, 0, 0, 0, 2, 50, 8, 6, 1, 2},
		"a dynamic type":    {0, 0, 0, 0, 128, 50, 8, 6, 1, 2},
		"no restart header": {0, 0, 0, 0, 65, 50, 8, 6, 1, 2},
		"Q of 0":            {0, 0, 0, 0, 1, 0, 8, 6, 1, 2},
		"Q of 100":          {0, 0, 0, 0, 1, 100, 8, 6, 1, 2},
		"no width":          {0, 0, 0, 0, 1, 50, 0, 6, 1, 2},
		"no tables":         {0, 0, 0, 0, 1, 255, 8, 6, 0, 0},
		"tables of 16 bits": append([]byte{0, 0, 0, 0, 1, 255, 8, 6, 0, 1, 0, 64}, make([]byte, 100)...),
		"tables cut off":    {0, 0, 0, 0, 1, 255, 8, 6, 0, 0, 0, 64, 1, 2},
		"no content":        {0, 0, 0, 0, 1, 50, 8, 6},
	} {
		got, errs := push(new(pictures), &rtp.Packet{Header: rtp.Header{Marker: true}, Payload: payload})
		if len(got) != 0 || errs != 1 {
			t.Errorf("%s: %d pictures, %d errors", name, len(got), errs)
		}
	}
}

func TestPictureWithoutEndIsGivenUp(t *testing.T) {
	var p pictures
	push(&p, &rtp.Packet{Payload: []byte{0, 0, 0, 0, 1, 50, 8, 6, 1, 2}})
	errs := 0
	for offset := 2; offset < 1<<24-60000; offset += 60000 {
		b := append([]byte{0, byte(offset >> 16), byte(offset >> 8), byte(offset), 1, 50, 8, 6}, make([]byte, 60000)...)
		_, n := push(&p, &rtp.Packet{Payload: b})
		errs += n
		if cap(p.file) > 2*maxUnitBytes {
			t.Fatalf("%d bytes are held", cap(p.file))
		}
	}
	if errs != 1 || p.file != nil {
		t.Errorf("%d errors, %d bytes held", errs, len(p.file))
	}
}

func FuzzPictures(f *testing.F) {
	file := picture64(f, 75, 0)
	for _, packets := range [][]*rtp.Packet{
		asRTP(file, 1, 75, nil, false), asRTP(file, 1, 255, tablesOf(file), true), asRTP(file, 1, 130, nil, true),
	} {
		f.Add(packets[0].Payload, packets[1].Payload, packets[len(packets)-1].Payload, uint8(0b100))
	}
	f.Fuzz(func(t *testing.T, a, b, c []byte, marks uint8) {
		var p pictures
		p.out = func(_ uint32, au [][]byte) {
			if len(au) != 1 || len(au[0]) > maxUnitBytes+jpegMaxHeaders || !bytes.HasPrefix(au[0], []byte{0xff, 0xd8, 0xff, 0xdb}) || !bytes.HasSuffix(au[0], []byte{0xff, 0xd9}) {
				t.Errorf("no JPEG file: %x", au)
			}
			if _, err := jpeg.DecodeConfig(bytes.NewReader(au[0])); err != nil {
				t.Errorf("headers: %v", err)
			}
		}
		for i, payload := range [][]byte{a, b, c, a, c} {
			_ = p.push(&rtp.Packet{Header: rtp.Header{Timestamp: uint32(marks >> 6 * uint8(i)), Marker: marks>>i&1 != 0}, Payload: payload})
		}
	})
}
