package control

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/zipato/vms/pkg/wire"
)

var (
	// errClosed: the broker has closed the connection.
	errClosed = errors.New("the broker closed the connection")
	// errSilent: it has not, but neither does it answer.
	errSilent = errors.New("the broker does not answer")
	// errNoMQTT: what it says is not what a broker says to this client.
	errNoMQTT = errors.New("the broker does not speak MQTT 3.1.1 as it should")
)

const (
	// maxTopic is more than topic and packet id of a message to a hub take.
	maxTopic = 1 << 10
	// maxPacket is the longest packet that paho gets to see. It would allocate what
	// a packet's head announces, up to 256 MiB.
	maxPacket = wire.MaxControl + maxTopic
	// writePiece is what has to get through within the time of silence.
	writePiece = 16 << 10
)

// pingreq is the packet that asks for a sign of life.
var pingreq = []byte{packets.Pingreq << 4, 0}

// conn is the connection below paho. It knows where packets begin, and
//
//   - cuts a message that is too long: paho gets its beginning, with a head that
//     says so, so that it can be acknowledged and does not come again for ever;
//   - takes a connection that moves no byte for silence for dead, however long a
//     message takes. paho's own measure, that a ping is answered in time, would
//     give up a slow line on which the answer waits behind a long message, and
//     none of its measures covers a write that hangs;
//   - knows first, and says in open, when and why it is over.
type conn struct {
	net.Conn
	silence time.Duration
	limit   int // of a packet that brings a message
	subs    int // filters of the one SUBSCRIBE

	// Of the reader, which is one goroutine.
	r    *bufio.Reader
	head []byte // of a packet, to be handed out
	left int    // bytes of the packet, to be handed out
	skip int    // bytes of the packet that nobody gets

	wmu   sync.Mutex
	wrote time.Time

	// open ends with the connection; its cause says why.
	open context.Context
	end  context.CancelCauseFunc
}

func newConn(c net.Conn, silence time.Duration, limit, subs int) *conn {
	k := &conn{Conn: c, silence: silence, limit: limit, subs: subs, wrote: time.Now()}
	k.open, k.end = context.WithCancelCause(context.Background())
	k.r = bufio.NewReader(readerFunc(k.read))
	return k
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// kill ends the connection without a word. Only the first reason counts.
func (c *conn) kill(why error) {
	c.end(why)
	c.Conn.Close()
}

// why returns why the connection is over.
func (c *conn) why() error { return context.Cause(c.open) }

// over returns why the connection ended after err, which may only be its result.
// Never the error of the socket: paho takes "use of closed network connection" for
// a wish of its own, and then nobody ends its goroutines.
func (c *conn) over(err error) error {
	var timeout net.Error
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		err = errClosed
	case errors.As(err, &timeout) && timeout.Timeout():
		err = errSilent
	}
	c.kill(err)
	return c.why()
}

// Close is called by paho.
func (c *conn) Close() error {
	c.kill(errors.New("given up by the MQTT library"))
	return nil
}

// SetDeadline does nothing, as the next two: Read and Write have their own.
func (c *conn) SetDeadline(time.Time) error { return nil }

// SetReadDeadline does nothing.
func (c *conn) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline does nothing.
func (c *conn) SetWriteDeadline(time.Time) error { return nil }

// read reads from the socket.
func (c *conn) read(p []byte) (int, error) {
	if err := c.Conn.SetReadDeadline(time.Now().Add(c.silence)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

// Read hands out packets.
func (c *conn) Read(p []byte) (int, error) {
	if len(c.head) == 0 && c.left == 0 {
		if err := c.begin(); err != nil {
			return 0, c.over(err)
		}
	}
	if len(c.head) > 0 {
		n := copy(p, c.head)
		c.head = c.head[n:]
		return n, nil
	}
	n, err := c.r.Read(p[:min(len(p), c.left)])
	c.left -= n
	if err != nil {
		return n, c.over(err)
	}
	return n, nil
}

// begin reads the head of the next packet (MQTT 3.1.1, section 2.2).
func (c *conn) begin() error {
	for c.skip > 0 {
		n, err := c.r.Discard(min(c.skip, maxPacket))
		c.skip -= n
		if err != nil {
			return err
		}
	}
	kind, err := c.r.ReadByte()
	if err != nil {
		return err
	}
	length := 0
	for shift := 0; ; shift += 7 {
		b, err := c.r.ReadByte()
		if err != nil {
			return err
		}
		if shift > 21 {
			return fmt.Errorf("%w: a length without end", errNoMQTT)
		}
		length |= int(b&0x7f) << shift
		if b&0x80 == 0 {
			break
		}
	}
	c.left = length
	// What else a broker may send, it sends to those who ask for it.
	right := false
	switch kind >> 4 {
	case packets.Publish:
		right = true
		c.left = min(length, c.limit)
	case packets.Connack, packets.Puback:
		right = length == 2
	case packets.Suback:
		// With more answers than filters paho would bring the whole agent down.
		right = length == 2+c.subs
	case packets.Pingresp:
		right = length == 0
	}
	if !right {
		return fmt.Errorf("%w: a packet of type %d with %d bytes", errNoMQTT, kind>>4, length)
	}
	c.skip = length - c.left
	c.head = appendHead(c.head[:0], kind, c.left)
	return nil
}

// appendHead appends the head of a packet with length bytes.
func appendHead(to []byte, kind byte, length int) []byte {
	to = append(to, kind)
	for length > 0x7f {
		to = append(to, byte(length)|0x80)
		length >>= 7
	}
	return append(to, byte(length))
}

// Write sends one packet. paho's goroutines write at the same time.
func (c *conn) Write(p []byte) (int, error) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	sent := 0
	for sent < len(p) {
		if err := c.Conn.SetWriteDeadline(time.Now().Add(c.silence)); err != nil {
			return sent, c.over(err)
		}
		n, err := c.Conn.Write(p[sent:min(len(p), sent+writePiece)])
		sent += n
		if err != nil {
			return sent, c.over(err)
		}
	}
	c.wrote = time.Now()
	return sent, nil
}

// ping asks the broker for a sign of life if nothing was sent for idle. paho
// pings too, but not again before the answer: behind a long message that would
// be too late for the broker.
func (c *conn) ping(idle time.Duration) {
	c.wmu.Lock()
	due := time.Since(c.wrote) >= idle
	c.wmu.Unlock()
	if due {
		_, _ = c.Write(pingreq) // an error ends the connection, which says so itself
	}
}
