package wire

import (
	"encoding/binary"
	"math"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

// TestDecodeChunkRefuses breaks one thing at a time in a good message.
func TestDecodeChunkRefuses(t *testing.T) {
	be := binary.BigEndian
	put16 := func(at int, v uint16) func([]byte) []byte {
		return func(b []byte) []byte { be.PutUint16(b[at:], v); return b }
	}
	put32 := func(at int, v uint32) func([]byte) []byte {
		return func(b []byte) []byte { be.PutUint32(b[at:], v); return b }
	}
	put64 := func(at int, v uint64) func([]byte) []byte {
		return func(b []byte) []byte { be.PutUint64(b[at:], v); return b }
	}
	micros := func(t time.Time) uint64 { return uint64(t.UnixMicro()) }
	for _, tt := range []struct {
		name string
		edit func([]byte) []byte
		// header: enough could be read to name the chunk.
		header bool
	}{
		{"nothing", func([]byte) []byte { return nil }, false},
		{"a byte short of a header", func(b []byte) []byte { return b[:ChunkHeaderLen-1] }, false},
		{"version 0", func(b []byte) []byte { b[0] = 0; return b }, false},
		{"version 2", func(b []byte) []byte { b[0] = 2; return b }, false},
		{"reserved byte", func(b []byte) []byte { b[1] = 1; return b }, false},
		{"unknown flag", put16(2, uint16(vms.FlagsKnown)+1), true},
		{"highest flag", put16(2, 0x8000), true},
		{"dependent without first", put16(2, uint16(vms.FlagDependent)), true},
		{"first without key or dependent", put16(2, uint16(vms.FlagFirst)), true},
		{"init zero", put32(4, 0), true},
		{"epoch zero", put64(8, 0), true},
		{"seq zero", put64(16, 0), true},
		{"start zero", put64(32, 0), true},
		{"start before 1970", put64(32, math.MaxUint64), true},
		{"end before start", put64(40, micros(at(1, 249_999))), true},
		{"end zero", put64(40, 0), true},
		{"end after the year 9999", put64(40, micros(maxTime)+1), true},
		{"end at the end of int64", put64(40, math.MaxInt64), true},
		{"camera time after the year 9999", put64(48, math.MaxInt64), true},
		{"moof of 7 bytes", put32(56, 7), true},
		{"moof longer than the payload", put32(56, uint32(len(payload))+1), true},
		{"no room for mdat", put32(56, uint32(len(payload))-7), true},
		{"moof of 4 GiB", put32(56, math.MaxUint32), true},
		{"length one less", put32(60, uint32(len(payload))-1), true},
		{"length of 4 GiB", put32(60, math.MaxUint32), true},
		{"a byte missing", func(b []byte) []byte { return b[:len(b)-1] }, true},
		{"a byte too many", func(b []byte) []byte { return append(b, 0) }, true},
		{"header alone", func(b []byte) []byte { return b[:ChunkHeaderLen] }, true},
		{"a flipped bit of the checksum", func(b []byte) []byte { b[31] ^= 1; return b }, true},
		{"a flipped bit of the payload", func(b []byte) []byte { b[len(b)-1] ^= 0x10; return b }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			good := goldenChunk(vms.FlagKey)
			c, err := DecodeChunk(tt.edit(EncodeChunk(&good)))
			if err == nil {
				t.Fatal("taken")
			}
			wantMalformed(t, err)
			// The refusal must be able to name the chunk, so that the agent
			// can skip it; fields that are themselves wrong are as they came.
			if tt.header && c.Epoch != good.Epoch && c.Seq != good.Seq {
				t.Errorf("refused chunk is %s/%d, want %s/%d", c.Epoch, c.Seq, good.Epoch, good.Seq)
			}
		})
	}
}

func TestDecodeChunkTakes(t *testing.T) {
	for name, edit := range map[string]func(*vms.Chunk){
		"no time between start and end": func(c *vms.Chunk) { c.End = c.Start },
		"the least payload": func(c *vms.Chunk) {
			c.Payload = c.Payload[:16]
			c.CRC = Checksum(c.Payload)
		},
		"1970": func(c *vms.Chunk) { c.Start = time.UnixMicro(1).UTC() },
	} {
		t.Run(name, func(t *testing.T) {
			c := goldenChunk(vms.FlagKey)
			edit(&c)
			if _, err := DecodeChunk(EncodeChunk(&c)); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestChunkTimesAreMicroseconds: what is finer is cut, never rounded up, so
// that one chunk's End and the next one's Start stay equal.
func TestChunkTimesAreMicroseconds(t *testing.T) {
	c := goldenChunk(vms.FlagKey)
	c.Start = c.Start.Add(999 * time.Nanosecond)
	c.End = c.End.In(time.FixedZone("somewhere", 7200))
	got, err := DecodeChunk(EncodeChunk(&c))
	if err != nil {
		t.Fatal(err)
	}
	if want := at(1, 250_000); !got.Start.Equal(want) {
		t.Errorf("start %s, want %s", got.Start, want)
	}
	if got.End != at(1, 450_001) {
		t.Errorf("end %s, want %s in UTC", got.End, at(1, 450_001))
	}
}

func TestDecodeChunkDoesNotCopy(t *testing.T) {
	c := goldenChunk(vms.FlagKey)
	msg := EncodeChunk(&c)
	got, err := DecodeChunk(msg)
	if err != nil {
		t.Fatal(err)
	}
	if &got.Payload[0] != &msg[ChunkHeaderLen] {
		t.Error("payload is a copy")
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = DecodeChunk(msg) }); n != 0 {
		t.Errorf("%v allocations per chunk, want none", n)
	}
}

// TestChecksumIsCastagnoli pins the polynomial with the check value that
// catalogues of CRCs give for "123456789".
func TestChecksumIsCastagnoli(t *testing.T) {
	if got := Checksum([]byte("123456789")); got != 0xe3069283 {
		t.Errorf("checksum %#x, want 0xe3069283", got)
	}
}

func BenchmarkDecodeChunk(b *testing.B) {
	c := goldenChunk(vms.FlagKey)
	c.Payload = append([]byte("\x00\x00\x00\x08moof"), make([]byte, 64<<10)...)
	c.CRC = Checksum(c.Payload)
	msg := EncodeChunk(&c)
	b.SetBytes(int64(len(msg)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodeChunk(msg); err != nil {
			b.Fatal(err)
		}
	}
}
