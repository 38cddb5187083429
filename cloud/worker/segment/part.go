package segment

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"

	"github.com/zipato/vms/pkg/cmaf"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// A part is an object like a recording, playable by itself from time zero, with
// one box more, between moov and sidx, that says how its chunks came:
//
//	uint32  size, "uuid", 16 bytes partType
//	uint8   version, 1; 3 bytes 0
//	uint64  zero: ticks that were subtracted from every decode time
//	uint64  begin: number of the chunk that the whole recording begins with
//	uint32  length of the tracks; the tracks as they stand in an init message (JSON)
//	uint32  number of chunks; for each the 64 bytes of its header (PROTOCOL.md)
//
// Numbers are big-endian. With zero added back, each moof+mdat is the payload
// that its header's checksum is of.
var partType = [16]byte{0x6f, 0x1c, 0x5e, 0x2a, 0x93, 0x0d, 0x4b, 0x77, 0xa8, 0x41, 0x7d, 0x36, 0xc2, 0x58, 0xe0, 0x19}

const (
	partVersion = 1
	partFixed   = 8 + 16 + 4 + 8 + 8 + 4 // up to the tracks
	maxTracks   = 64 << 10               // JSON
	maxHead     = wire.MaxInit + partFixed + maxTracks + 4 + maxChunks*wire.ChunkHeaderLen + 1<<20
)

// ErrBroken is wrapped when an object is not the part that it should be: no
// retry can help.
var ErrBroken = errors.New("broken part")

func broken(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrBroken, fmt.Sprintf(format, args...))
}

// Part is a run of the chunks of an open recording, to be made an object of
// its own. The recording may grow meanwhile.
type Part struct {
	channel vms.ChannelID
	init    vms.Init
	path    string
	zero    uint64
	begin   uint64
	chunks  []entry
}

// Pending returns the bytes of the chunks behind number after, and the last
// number and the bytes of them up to the last keyframe, 0 when there is none.
func (w *Writer) Pending(after uint64) (bytes int64, cut uint64, cutBytes int64) {
	for i, e := range w.chunks {
		seq := w.first.Seq + uint64(i)
		if seq <= after {
			continue
		}
		if e.key && bytes > 0 {
			cut, cutBytes = seq-1, bytes
		}
		bytes += e.size
	}
	return bytes, cut, cutBytes
}

// Part returns the chunks behind number after up to number last.
func (w *Writer) Part(after, last uint64) *Part {
	from := 0
	if after >= w.first.Seq {
		from = int(after - w.first.Seq + 1)
	}
	// Entries that were written never change: the slice may be shared.
	to := int(last - w.first.Seq + 1)
	return &Part{channel: w.channel, init: w.init, path: w.path, zero: w.zero, begin: w.first.Seq, chunks: w.chunks[from:to:to]}
}

// Chunks is the range of the part.
func (p *Part) Chunks() vms.ChunkRange {
	be := binary.BigEndian
	first, last := &p.chunks[0].header, &p.chunks[len(p.chunks)-1].header
	return vms.ChunkRange{Epoch: vms.Epoch(be.Uint64(first[8:])), First: be.Uint64(first[16:]), Last: be.Uint64(last[16:])}
}

// Build reads the chunks back and makes the object. The file must not be
// removed meanwhile; nothing is written.
func (p *Part) Build() (*Finished, error) {
	file, err := os.Open(p.path)
	if err != nil {
		return nil, fmt.Errorf("make part: %w", err)
	}
	defer file.Close()
	zero := p.chunks[0].zero
	for _, e := range p.chunks {
		zero = min(zero, e.zero) // sound in a later chunk may begin first
	}
	view := patched{at: p.chunks[0].at}
	var t content
	for i := range p.chunks {
		c, err := p.chunks[i].read(file, p.zero)
		if err != nil {
			return nil, fmt.Errorf("make part: %w", err)
		}
		frag, err := cmaf.ParseFragment(c.Payload)
		if err != nil {
			return nil, fmt.Errorf("make part: %w", err)
		}
		if i == 0 {
			t = begin(&c, &frag, zero)
		}
		moof, err := frag.Rebase(nil, c.Payload, zero)
		if err != nil {
			return nil, fmt.Errorf("make part: %w", err)
		}
		view.patches = append(view.patches, patch{at: t.bytes, data: moof})
		t.add(&c, &frag)
	}
	view.size = t.bytes
	box, err := p.box(zero)
	if err != nil {
		return nil, fmt.Errorf("make part: %w", err)
	}
	f, err := t.object(p.channel, &p.init, box)
	if err != nil {
		return nil, err
	}
	f.Path, f.Key = p.path, vms.PartKey(p.channel, f.Chunks, f.Number)
	f.View = func(r io.ReaderAt) io.ReaderAt {
		v := view
		v.file = r
		return &v
	}
	if err := f.sum(f.View(file)); err != nil {
		return nil, err
	}
	return f, nil
}

// read returns the chunk as it came, from a file in which zero was subtracted
// from its times.
func (e *entry) read(file io.ReaderAt, zero uint64) (vms.Chunk, error) {
	msg := make([]byte, wire.ChunkHeaderLen+e.size)
	copy(msg, e.header[:])
	if _, err := file.ReadAt(msg[wire.ChunkHeaderLen:], e.at); err != nil {
		return vms.Chunk{}, err
	}
	return restore(msg, zero)
}

// restore gives the chunk whose message is msg its time back, in place, and
// checks that it is what was muxed.
func restore(msg []byte, zero uint64) (vms.Chunk, error) {
	payload := msg[wire.ChunkHeaderLen:]
	frag, err := cmaf.ParseFragment(payload)
	if err != nil {
		return vms.Chunk{}, broken("%v", err)
	}
	if _, err := frag.Unbase(msg[:wire.ChunkHeaderLen], payload, zero); err != nil {
		return vms.Chunk{}, broken("%v", err)
	}
	c, err := wire.DecodeChunk(msg)
	if err != nil {
		return vms.Chunk{}, broken("%v", err)
	}
	return c, nil
}

func (p *Part) box(zero uint64) ([]byte, error) {
	tracks, err := json.Marshal(p.init.Tracks)
	if err != nil || len(tracks) > maxTracks {
		return nil, fmt.Errorf("%d bytes of tracks, %v", len(tracks), err)
	}
	be := binary.BigEndian
	n := partFixed + len(tracks) + 4 + len(p.chunks)*wire.ChunkHeaderLen
	b := be.AppendUint32(make([]byte, 0, n), uint32(n))
	b = append(b, "uuid"...)
	b = append(b, partType[:]...)
	b = append(b, partVersion, 0, 0, 0)
	b = be.AppendUint64(b, zero)
	b = be.AppendUint64(b, p.begin)
	b = be.AppendUint32(b, uint32(len(tracks)))
	b = append(b, tracks...)
	b = be.AppendUint32(b, uint32(len(p.chunks)))
	for i := range p.chunks {
		b = append(b, p.chunks[i].header[:]...)
	}
	return b, nil
}

// patched is a run of a file with some bytes replaced.
type patched struct {
	file     io.ReaderAt
	at, size int64
	patches  []patch // ascending, apart
}

type patch struct {
	at   int64
	data []byte
}

func (v *patched) ReadAt(p []byte, off int64) (n int, err error) {
	if off >= v.size {
		return 0, io.EOF
	}
	if rest := v.size - off; int64(len(p)) > rest {
		p, err = p[:rest], io.EOF
	}
	n, e := v.file.ReadAt(p, v.at+off)
	if n < len(p) {
		err = e
	}
	end := off + int64(n)
	i := sort.Search(len(v.patches), func(i int) bool { return v.patches[i].at+int64(len(v.patches[i].data)) > off })
	for ; i < len(v.patches) && v.patches[i].at < end; i++ {
		x := v.patches[i]
		from := max(off, x.at)
		copy(p[from-off:n], x.data[from-x.at:])
	}
	return n, err
}

// PartReader gives the chunks of a part back.
type PartReader struct {
	// Begin is the number of the chunk that the whole recording begins with.
	Begin uint64
	Init  vms.Init

	r       io.Reader
	zero    uint64
	headers []byte // of the chunks to come
}

// OpenPart reads the head of a part, which row describes. What does not fit is
// ErrBroken; the checksum of the whole is the caller's to verify.
func OpenPart(r io.Reader, row *vms.Recording) (*PartReader, error) {
	if row.HeadLen > maxHead || row.InitLen < 16 || row.InitLen > wire.MaxInit || row.HeadLen < row.InitLen+partFixed+4 {
		return nil, broken("head of %d bytes, init of %d", row.HeadLen, row.InitLen)
	}
	head := make([]byte, row.HeadLen)
	if _, err := io.ReadFull(r, head); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, broken("it ends inside its head")
		}
		return nil, fmt.Errorf("read part: %w", err)
	}
	be := binary.BigEndian
	b := head[row.InitLen:]
	size := int64(be.Uint32(b))
	if size < partFixed+4 || size > int64(len(b)) || string(b[4:8]) != "uuid" || !bytes.Equal(b[8:24], partType[:]) || b[24] != partVersion {
		return nil, broken("no box that says how its chunks came")
	}
	p := &PartReader{r: r, zero: be.Uint64(b[28:]), Begin: be.Uint64(b[36:])}
	b = b[:size]
	tracks := int64(be.Uint32(b[44:]))
	if tracks > size-partFixed-4 {
		return nil, broken("%d bytes of tracks", tracks)
	}
	if err := json.Unmarshal(b[partFixed:partFixed+tracks], &p.Init.Tracks); err != nil {
		return nil, broken("tracks: %v", err)
	}
	b = b[partFixed+tracks:]
	n := int64(be.Uint32(b))
	p.headers = b[4:]
	if n == 0 || n > maxChunks || int64(len(p.headers)) != n*wire.ChunkHeaderLen || uint64(n-1) != row.Chunks.Last-row.Chunks.First {
		return nil, broken("%d chunks, %s in the index", n, row.Chunks)
	}
	p.Init.Epoch, p.Init.ID, p.Init.Segment = row.Chunks.Epoch, be.Uint32(p.headers[4:]), head[:row.InitLen:row.InitLen]
	if err := CheckInit(&p.Init); err != nil {
		return nil, broken("%v", err)
	}
	var total int64
	for i := range n {
		h := p.headers[i*wire.ChunkHeaderLen:]
		if be.Uint64(h[8:]) != uint64(row.Chunks.Epoch) || be.Uint64(h[16:]) != row.Chunks.First+uint64(i) ||
			be.Uint32(h[24:]) != row.Number || be.Uint32(h[4:]) != p.Init.ID {
			return nil, broken("the header of chunk %d is of another", i)
		}
		total += wire.PayloadLen(h[:wire.ChunkHeaderLen])
	}
	if row.HeadLen+total != row.Bytes || row.Bytes > MaxBytes+maxHead {
		return nil, broken("%d bytes, %d in the index", row.HeadLen+total, row.Bytes)
	}
	return p, nil
}

// Next returns the next chunk, as it came, or io.EOF.
func (p *PartReader) Next() (vms.Chunk, error) {
	if len(p.headers) == 0 {
		return vms.Chunk{}, io.EOF
	}
	h := p.headers[:wire.ChunkHeaderLen]
	msg := make([]byte, wire.ChunkHeaderLen+wire.PayloadLen(h))
	copy(msg, h)
	if _, err := io.ReadFull(p.r, msg[wire.ChunkHeaderLen:]); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return vms.Chunk{}, broken("it ends inside a chunk")
		}
		return vms.Chunk{}, fmt.Errorf("read part: %w", err)
	}
	p.headers = p.headers[wire.ChunkHeaderLen:]
	return restore(msg, p.zero)
}
