package ingest

import (
	"bytes"
	"encoding/binary"
	"io"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/wire"
)

// keeper keeps every tenth payload, and says how it was detached.
type keeper struct {
	counter
	kept     []vms.Chunk
	lent     [][]byte
	detached chan error
}

func (l *keeper) Attach(t token.Push, h *wire.Hello, c *Conn) (Lane, error) {
	_, err := l.counter.Attach(t, h, c)
	return l, err
}

func (l *keeper) Chunk(c *vms.Chunk) (bool, error) {
	keep := c.Seq%10 == 0
	if keep {
		l.kept = append(l.kept, *c)
	} else {
		l.lent = append(l.lent, c.Payload)
	}
	l.came <- len(c.Payload)
	return keep, nil
}

func (l *keeper) Detach(err error) { l.detached <- err }

func newKeeper() *keeper {
	return &keeper{counter: counter{came: make(chan int, 1000)}, detached: make(chan error, 1)}
}

// numbered is a chunk whose payload says which it is, everywhere.
func numbered(seq uint64, n int) *vms.Chunk {
	c := piece(n)
	c.Seq = seq
	for i := range c.Payload {
		c.Payload[i] = byte(seq)
	}
	c.CRC = wire.Checksum(c.Payload)
	return c
}

// TestKeptPayloadsAreLeftAlone: and the others' memory is used again.
func TestKeptPayloadsAreLeftAlone(t *testing.T) {
	vmstest.NoLeaks(t)
	l := newKeeper()
	s, addr := serve(t, l)
	c := hello(t, addr)
	go func() { _, _ = io.Copy(io.Discard, c.r) }()
	const chunks = 200
	for seq := uint64(1); seq <= chunks; seq++ {
		c.write(t, frame(2, wire.EncodeChunk(numbered(seq, 20_000+int(seq)))))
		if n := <-l.came; n != 20_000+int(seq) {
			t.Fatalf("chunk %d has %d bytes", seq, n)
		}
	}
	for _, k := range l.kept {
		if wire.Checksum(k.Payload) != k.CRC || k.Payload[0] != byte(k.Seq) {
			t.Errorf("chunk %d was kept, and written over", k.Seq)
		}
	}
	again := map[*byte]bool{}
	for _, b := range l.lent {
		again[&b[0]] = true
	}
	if len(l.kept) != chunks/10 || len(again) > chunks/2 { // the race detector makes pools forget some
		t.Errorf("%d are kept; %d buffers for %d others", len(l.kept), len(again), len(l.lent))
	}
	_ = c.conn.Close()
	<-l.detached
	s.Shutdown(Refuse(wire.ClassReassign, wire.CodeDraining, "done"))
	if st := s.Stats(); st.Chunks != chunks || st.InFlight != 0 || st.Conns != 0 {
		t.Errorf("stats %+v", st)
	}
}

// TestChunksInPieces: however a chunk is cut into frames and segments, it is
// taken when its last byte has come, without waiting for more.
func TestChunksInPieces(t *testing.T) {
	vmstest.NoLeaks(t)
	l := newKeeper()
	s, addr := serve(t, l)
	c := hello(t, addr)
	go func() { _, _ = io.Copy(io.Discard, c.r) }()
	seq := uint64(0)
	for _, n := range []int{64, 4000, 4096, 9000, 70_000, 300_000} {
		for _, frames := range []int{1 << 30, 16 << 10, 5000} {
			for _, piece := range []int{1 << 30, 1400} {
				seq++
				var msg []byte
				opcode, rest := byte(2), wire.EncodeChunk(numbered(seq, n))
				for len(rest) > 0 {
					k := min(len(rest), frames)
					f := frame(opcode, rest[:k])
					if opcode, rest = 0, rest[k:]; len(rest) > 0 {
						f[0] &^= 0x80 // not the last
					}
					msg = append(msg, f...)
				}
				for len(msg) > 0 {
					k := min(len(msg), piece)
					c.write(t, msg[:k])
					msg = msg[k:]
				}
				select {
				case <-l.came:
				case <-time.After(10 * time.Second):
					t.Fatalf("a chunk of %d bytes in frames of %d and pieces of %d did not come", n, frames, piece)
				}
			}
		}
	}
	_ = c.conn.Close()
	<-l.detached
	s.Shutdown(Refuse(wire.ClassReassign, wire.CodeDraining, "done"))
}

// TestALostLinkIsNoticedInTheMiddleOfAChunk: and nothing of it stays lent.
func TestALostLinkIsNoticedInTheMiddleOfAChunk(t *testing.T) {
	vmstest.NoLeaks(t)
	l := newKeeper()
	s, addr := serve(t, l)
	c := hello(t, addr)
	msg := frame(2, wire.EncodeChunk(numbered(1, 100_000)))
	c.write(t, msg[:50_000])
	_ = c.conn.Close()
	select {
	case <-l.detached:
	case <-time.After(10 * time.Second):
		t.Fatal("nobody noticed")
	}
	s.Shutdown(Refuse(wire.ClassReassign, wire.CodeDraining, "done"))
	if st := s.Stats(); st.InFlight != 0 || st.Conns != 0 || s.ledger.memory != lend(defaultMemory, s.MaxChunk, s.MaxConns) {
		t.Errorf("left over: %+v", st)
	}
}

// TestRefusalsAreSaid: the last words, and then the close frame with the class.
func TestRefusalsAreSaid(t *testing.T) {
	vmstest.NoLeaks(t)
	l := newKeeper()
	s, addr := serve(t, l)
	c := hello(t, addr)
	c.write(t, frame(2, make([]byte, 63)))
	c.write(t, frame(2, wire.EncodeChunk(numbered(1, 1000)))) // nobody takes it any more
	var b []byte
	for end := binary.BigEndian.AppendUint16(nil, 4000); !bytes.HasSuffix(b, append(end, "malformed"...)); {
		x, err := c.r.ReadByte()
		if b = append(b, x); err != nil {
			t.Fatalf("the worker said %q, %v", b, err)
		}
	}
	if !bytes.Contains(b, []byte(`"code":"malformed"`)) {
		t.Errorf("the worker said %q", b)
	}
	_ = c.conn.Close()
	<-l.detached
	if len(l.came) > 0 {
		t.Error("a chunk behind a refusal was taken")
	}
	s.Shutdown(Refuse(wire.ClassReassign, wire.CodeDraining, "done"))
}
