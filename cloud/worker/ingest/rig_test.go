package ingest

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// raw is a peer that writes bytes as they are: a client of a library would be
// measured too.
type raw struct {
	conn net.Conn
	r    *bufio.Reader
}

// hello dials a Server and says hello, by hand.
func hello(t testing.TB, addr string) *raw {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c := &raw{conn, bufio.NewReader(conn)}
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: w\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"+
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: %s\r\nAuthorization: Bearer x\r\n\r\n", wire.PushProtocol)
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(resp.Status)
	}
	c.write(t, frame(1, []byte(`{"type":"hello","lane":"live"}`)))
	return c
}

func (c *raw) write(t testing.TB, b []byte) {
	t.Helper()
	if _, err := c.conn.Write(b); err != nil {
		t.Fatal(err)
	}
}

// frame is a whole message of a client, RFC 6455, 5.2; masked with zeros.
func frame(opcode byte, payload []byte) []byte {
	b := []byte{0x80 | opcode, 0x80 | 127}
	b = binary.BigEndian.AppendUint64(b, uint64(len(payload)))
	return append(append(b, 0, 0, 0, 0), payload...)
}

// piece is a chunk with a payload of n bytes.
func piece(n int) *vms.Chunk {
	c := &vms.Chunk{
		Epoch: 1, Seq: 1, Init: 1, Flags: vms.FlagKey, MoofLen: 8, Payload: make([]byte, n),
		Start: time.UnixMicro(1e15), End: time.UnixMicro(1e15 + 200_000),
	}
	for i := range c.Payload {
		c.Payload[i] = byte(i)
	}
	c.CRC = wire.Checksum(c.Payload)
	return c
}

// counter takes everything, and says how much.
type counter struct {
	conn *Conn
	came chan int
}

func (l *counter) Chunk(c *vms.Chunk) (bool, error) {
	l.came <- len(c.Payload)
	return false, nil
}
func (*counter) Have() []vms.ChunkRange                { return nil }
func (*counter) Init(vms.Init) error                   { return nil }
func (*counter) Gap(*wire.GapMessage) error            { return nil }
func (*counter) Pressure(*wire.Pressure) error         { return nil }
func (*counter) End(*wire.End) error                   { return nil }
func (*counter) Status() ([]vms.ChunkRange, wire.Hold) { return nil, "" }
func (*counter) Watched() bool                         { return false }
func (*counter) Detach(error)                          {}
func (l *counter) Attach(_ token.Push, _ *wire.Hello, c *Conn) (Lane, error) {
	c.srv.ledger.mu.Lock()
	defer c.srv.ledger.mu.Unlock()
	c.credit, l.conn = 1<<60, c
	return l, nil
}

// serve is a Server with all the room in the world, on an address of this machine.
func serve(t testing.TB, streams Streams) (s *Server, addr string) {
	t.Helper()
	s = &Server{
		Instance: "run_1",
		Check:    func(string) (token.Push, error) { return token.Push{Channel: "ch"}, nil },
		Revoked:  func(token.Push) bool { return false }, Fenced: func(token.Push) bool { return false },
		Streams: streams, Room: func() int64 { return 1 << 50 }, MaxChunk: wire.MinMaxChunk + wire.ChunkHeaderLen, MaxConns: 10,
		Log: slog.New(slog.DiscardHandler),
	}
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	return s, srv.Listener.Addr().String()
}
