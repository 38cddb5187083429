package wire

import (
	"encoding/binary"
	"hash/crc32"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

// ChunkHeaderLen is the fixed length of the header in front of a chunk's payload.
const ChunkHeaderLen = 64

// chunkVersion is the first byte of every binary message of push v1.
const chunkVersion = 1

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum is the CRC-32C (RFC 3720, appendix B.4) that a chunk carries of its payload.
func Checksum(payload []byte) uint32 { return crc32.Checksum(payload, castagnoli) }

// AppendChunkHeader appends the 64 bytes that stand in front of c.Payload in
// a binary message. Times are cut to microseconds.
func AppendChunkHeader(b []byte, c *vms.Chunk) []byte {
	b = append(b, chunkVersion, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(c.Flags))
	b = binary.BigEndian.AppendUint32(b, c.Init)
	b = binary.BigEndian.AppendUint64(b, uint64(c.Epoch))
	b = binary.BigEndian.AppendUint64(b, c.Seq)
	b = binary.BigEndian.AppendUint32(b, c.Recording)
	b = binary.BigEndian.AppendUint32(b, c.CRC)
	b = binary.BigEndian.AppendUint64(b, uint64(micros(c.Start)))
	b = binary.BigEndian.AppendUint64(b, uint64(micros(c.End)))
	b = binary.BigEndian.AppendUint64(b, uint64(micros(c.CameraTime)))
	b = binary.BigEndian.AppendUint32(b, uint32(c.MoofLen))
	b = binary.BigEndian.AppendUint32(b, uint32(len(c.Payload)))
	return b
}

// EncodeChunk returns one binary message: header and payload.
func EncodeChunk(c *vms.Chunk) []byte {
	b := make([]byte, 0, ChunkHeaderLen+len(c.Payload))
	return append(AppendChunkHeader(b, c), c.Payload...)
}

// PayloadLen is the length that a header of ChunkHeaderLen bytes gives its payload.
func PayloadLen(header []byte) int64 { return int64(binary.BigEndian.Uint32(header[60:])) }

// DecodeChunk reads one binary message. The chunk's Payload is a slice of msg.
// When only the header could be read, the chunk is returned with the error, so
// that the refusal can name its epoch and sequence number.
func DecodeChunk(msg []byte) (vms.Chunk, error) {
	if len(msg) < ChunkHeaderLen {
		return vms.Chunk{}, malformed("chunk message of %d bytes, shorter than its header", len(msg))
	}
	if msg[0] != chunkVersion {
		return vms.Chunk{}, malformed("chunk version %d, want %d", msg[0], chunkVersion)
	}
	if msg[1] != 0 {
		return vms.Chunk{}, malformed("chunk: reserved byte is %d, want 0", msg[1])
	}
	be := binary.BigEndian
	c := vms.Chunk{
		Flags:      vms.Flags(be.Uint16(msg[2:])),
		Init:       be.Uint32(msg[4:]),
		Epoch:      vms.Epoch(be.Uint64(msg[8:])),
		Seq:        be.Uint64(msg[16:]),
		Recording:  be.Uint32(msg[24:]),
		CRC:        be.Uint32(msg[28:]),
		Start:      fromMicros(int64(be.Uint64(msg[32:]))),
		End:        fromMicros(int64(be.Uint64(msg[40:]))),
		CameraTime: fromMicros(int64(be.Uint64(msg[48:]))),
		MoofLen:    int(be.Uint32(msg[56:])),
		Payload:    msg[ChunkHeaderLen:],
	}
	switch {
	case c.Flags&^vms.FlagsKnown != 0:
		return c, malformed("chunk: unknown flags %#x", uint16(c.Flags&^vms.FlagsKnown))
	case c.Flags.Has(vms.FlagDependent) && !c.Flags.Has(vms.FlagFirst):
		return c, malformed("chunk: dependent without first")
	case c.Flags.Has(vms.FlagFirst) && c.Flags&(vms.FlagKey|vms.FlagDependent) == 0:
		return c, malformed("chunk: first without key or dependent")
	case c.Flags.Has(vms.FlagKey | vms.FlagDependent):
		return c, malformed("chunk: dependent with a keyframe to begin at")
	case c.Flags.Has(vms.FlagFirst | vms.FlagPreview):
		return c, malformed("chunk: a preview cannot begin a recording")
	case c.Epoch == 0 || c.Seq == 0 || c.Init == 0:
		return c, malformed("chunk: epoch, sequence number and init count from 1")
	case c.Start.IsZero() || c.End.Before(c.Start) || c.End.After(maxTime) || c.CameraTime.After(maxTime):
		return c, malformed("chunk: ends before it starts, or its times are out of range")
	case int64(be.Uint32(msg[60:])) != int64(len(c.Payload)):
		return c, malformed("chunk: payload of %d bytes, header says %d", len(c.Payload), be.Uint32(msg[60:]))
	case c.MoofLen < 8 || c.MoofLen > len(c.Payload)-8:
		return c, malformed("chunk: moof of %d bytes in a payload of %d", c.MoofLen, len(c.Payload))
	case Checksum(c.Payload) != c.CRC:
		return c, malformed("chunk: checksum of the payload does not match")
	}
	return c, nil
}

// maxTime keeps years inside RFC 3339.
var maxTime = time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)

// micros is microseconds since 1970 UTC, 0 for the zero time.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

// fromMicros is the inverse of micros. What lies before 1970 is no time that
// anybody stamps: it becomes the zero time.
func fromMicros(us int64) time.Time {
	if us <= 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}
