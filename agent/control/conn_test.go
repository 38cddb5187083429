package control

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/zipato/vms/pkg/wire"
)

// tape is a connection that brings what is on it and takes nothing.
type tape struct {
	net.Conn
	*bytes.Reader
}

func (t tape) Read(p []byte) (int, error)      { return t.Reader.Read(p) }
func (t tape) Write(p []byte) (int, error)     { return len(p), nil }
func (t tape) Close() error                    { return nil }
func (t tape) SetReadDeadline(time.Time) error { return nil }

func encoded(t testing.TB, ps ...packets.ControlPacket) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, p := range ps {
		if err := p.Write(&b); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func message1(id uint16, payload []byte) *packets.PublishPacket {
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	p.Qos, p.MessageID, p.TopicName, p.Payload = 1, id, wire.Topic("h1", wire.LeafDesired), payload
	return p
}

func TestConnCutsMessagesThatAreTooLong(t *testing.T) {
	long := bytes.Repeat([]byte("x"), 5<<20)
	fits := bytes.Repeat([]byte("y"), wire.MaxControl)
	c := newConn(tape{Reader: bytes.NewReader(encoded(t,
		packets.NewControlPacket(packets.Connack), message1(1, fits), message1(2, long), packets.NewControlPacket(packets.Pingresp), message1(3, nil),
	))}, time.Minute, maxPacket, 3)
	var got []*packets.PublishPacket
	for {
		p, err := packets.ReadPacket(c)
		if err != nil {
			if !errors.Is(err, errClosed) {
				t.Errorf("the end is %v, want errClosed", err)
			}
			break
		}
		if p, ok := p.(*packets.PublishPacket); ok {
			got = append(got, p)
		}
	}
	if len(got) != 3 || got[0].MessageID != 1 || got[1].MessageID != 2 || got[2].MessageID != 3 {
		t.Fatalf("got %v, want messages 1 to 3", got)
	}
	if !bytes.Equal(got[0].Payload, fits) {
		t.Error("the longest message that is allowed was changed")
	}
	if n := len(got[1].Payload); n <= wire.MaxControl || n > maxPacket {
		t.Errorf("of a long message %d bytes arrive, want few more than %d", n, wire.MaxControl)
	}
}

// FuzzConn: whatever the broker sends, paho sees whole packets that are not too
// long, and those that are right unchanged.
func FuzzConn(f *testing.F) {
	const limit = 200
	f.Add([]byte{})
	f.Add([]byte{0x20, 2, 0, 0, 0x90, 5, 0, 1, 1, 1, 1, 0xd0, 0})
	f.Add([]byte{0x30, 0xff, 0xff, 0xff, 0x7f, 0, 1, 'a'})
	f.Add([]byte{0x30, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0x30, 0x80, 0x00, 0x20, 2, 0, 0})
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	f.Add(encoded(f, message1(1, bytes.Repeat([]byte("x"), limit)), message1(2, []byte("y"))))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := newConn(tape{Reader: bytes.NewReader(data)}, time.Minute, limit, 3)
		out, err := io.ReadAll(c)
		if err == nil || c.why() == nil {
			t.Fatal("an end without a reason")
		}
		in := data
		for len(out) > 0 {
			want, wantHead, ok := head(in)
			got, gotHead, _ := head(out)
			if !ok || got != min(want, limit) || out[0] != in[0] {
				t.Fatalf("a packet of %d bytes came as one of %d", want, got)
			}
			body := min(got, len(out)-gotHead)
			if !bytes.HasPrefix(in[wantHead:], out[gotHead:gotHead+body]) {
				t.Fatal("the bytes are others")
			}
			out, in = out[gotHead+body:], in[min(len(in), wantHead+want):]
		}
	})
}

// head returns the length that a packet announces and that of its head.
func head(p []byte) (length, size int, ok bool) {
	for i := 1; i < len(p) && i <= 4; i++ {
		length |= int(p[i]&0x7f) << (7 * (i - 1))
		if p[i]&0x80 == 0 {
			return length, i + 1, true
		}
	}
	return 0, 0, false
}

func TestConnThatIsSilentIsDead(t *testing.T) {
	for name, use := range map[string]func(*conn) error{
		"reading": func(c *conn) error { _, err := c.Read(make([]byte, 10)); return err },
		"writing": func(c *conn) error { _, err := c.Write(make([]byte, 10)); return err },
	} {
		there, here := net.Pipe() // takes nothing that nobody reads
		c := newConn(here, 20*time.Millisecond, maxPacket, 3)
		if err := use(c); !errors.Is(err, errSilent) || !errors.Is(c.why(), errSilent) {
			t.Errorf("%s = %v, the connection is over because of %v, want errSilent", name, err, c.why())
		}
		c.kill(errTold)
		if !errors.Is(c.why(), errSilent) {
			t.Errorf("a later reason counts: %v", c.why())
		}
		there.Close()
	}
}
