package camera

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/bluenviron/gortsplib/v5/pkg/format"
	"github.com/pion/rtp"
)

// h264Packet is one NAL unit in a packet of its own; nal tells it from others.
func h264Packet(seq uint16, ts uint32, marker bool, nal byte) *rtp.Packet {
	return &rtp.Packet{
		Header:  rtp.Header{Version: 2, SequenceNumber: seq, Timestamp: ts, Marker: marker},
		Payload: []byte{0x41, nal},
	}
}

type picture struct {
	ts   uint32
	nals []byte
}

func assemble(t *testing.T, packets ...*rtp.Packet) (got []picture) {
	t.Helper()
	d, err := (&format.H264{PayloadTyp: 96, PacketizationMode: 1}).CreateDecoder()
	if err != nil {
		t.Fatal(err)
	}
	a := assembler{nalus: d.Decode, out: func(ts uint32, au [][]byte) {
		p := picture{ts: ts}
		for _, n := range au {
			p.nals = append(p.nals, n[1])
		}
		got = append(got, p)
	}}
	for _, pkt := range packets {
		if err := a.push(pkt); err != nil {
			t.Errorf("packet %d: %v", pkt.SequenceNumber, err)
		}
	}
	return got
}

func same(a, b []picture) bool {
	return slices.EqualFunc(a, b, func(a, b picture) bool { return a.ts == b.ts && slices.Equal(a.nals, b.nals) })
}

func TestMarkerEndsAPicture(t *testing.T) {
	got := assemble(t,
		h264Packet(1, 100, false, 1), h264Packet(2, 100, true, 2),
		h264Packet(3, 200, true, 3))
	if want := []picture{{100, []byte{1, 2}}, {200, []byte{3}}}; !same(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestALostMarkerDoesNotMakeOnePictureOfTwo(t *testing.T) {
	got := assemble(t,
		h264Packet(1, 100, false, 1), // 2, the marked one, is lost
		h264Packet(3, 200, true, 3),
		h264Packet(4, 300, true, 4))
	want := []picture{{100, []byte{1}}, {200, []byte{3}}, {300, []byte{4}}}
	if !same(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestACameraThatNeverMarks(t *testing.T) {
	got := assemble(t,
		h264Packet(1, 100, false, 1), h264Packet(2, 100, false, 2),
		h264Packet(3, 200, false, 3), h264Packet(4, 300, false, 4))
	// The last one is complete only when the next begins.
	if want := []picture{{100, []byte{1, 2}}, {200, []byte{3}}}; !same(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestAccessUnitsAreBounded(t *testing.T) {
	var out int
	a := assembler{
		nalus: func(*rtp.Packet) ([][]byte, error) { return [][]byte{make([]byte, 1<<20)}, nil },
		out:   func(uint32, [][]byte) { out++ },
	}
	var failed int
	for i := range 20 {
		if a.push(h264Packet(uint16(i), 1, false, 0)) != nil {
			failed++
		}
		if a.size > maxUnitBytes {
			t.Fatalf("holds %d bytes", a.size)
		}
	}
	if failed == 0 {
		t.Error("20 MiB without a mark are no error")
	}
}

// FuzzAssembler feeds packets as a hostile camera might make them. Each is two
// bytes of length, one of marker and timestamp, and a payload.
func FuzzAssembler(f *testing.F) {
	f.Add(byte(0), []byte{2, 0, 1, 0x65, 0x88, 3, 0, 0, 0x7c, 0x85, 1, 3, 0, 1, 0x7c, 0x45, 2})
	f.Add(byte(1), []byte{4, 0, 1, 0x26, 1, 2, 3, 5, 0, 0, 0x62, 1, 0x93, 1, 2})
	f.Add(byte(2), []byte{6, 0, 1, 0, 16, 0, 16, 1, 2})
	f.Fuzz(func(t *testing.T, codec byte, data []byte) {
		var decode func(*rtp.Packet) ([][]byte, error)
		switch codec % 3 {
		case 0:
			d, _ := (&format.H264{PacketizationMode: 1}).CreateDecoder()
			decode = d.Decode
		case 1:
			d, _ := (&format.H265{}).CreateDecoder()
			decode = d.Decode
		default:
			d, _ := (&format.MPEG4Audio{SizeLength: 13, IndexLength: 3, IndexDeltaLength: 3}).CreateDecoder()
			decode = d.Decode
		}
		a := assembler{nalus: decode, out: func(_ uint32, au [][]byte) {
			if len(au) == 0 {
				t.Error("empty access unit")
			}
		}}
		for seq := uint16(0); len(data) > 3; seq++ {
			n := min(int(binary.LittleEndian.Uint16(data)), len(data)-3)
			pkt := &rtp.Packet{
				Header:  rtp.Header{Version: 2, SequenceNumber: seq, Marker: data[2]&1 == 1, Timestamp: uint32(data[2] >> 1)},
				Payload: data[3 : 3+n],
			}
			_ = a.push(pkt) // an error is fine, a panic is not
			data = data[3+n:]
		}
	})
}
