package hubctl

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

var (
	errClosed = errors.New("the broker closed the connection")
	errSilent = errors.New("the broker does not answer")
	errTold   = errors.New("told to disconnect")
	errGiven  = errors.New("given up by the MQTT library")
)

// conn is the connection below paho. One that moves no byte for silence is dead:
// paho has no measure for a write that hangs, and its own for a broker that does
// not answer counts the time in which an answer waits behind other messages.
type conn struct {
	net.Conn
	silence time.Duration

	wmu   sync.Mutex // one packet at a time: paho's goroutines write as they like
	wrote time.Time

	// open ends with the connection; its cause says why.
	open context.Context
	end  context.CancelCauseFunc
}

func newConn(c net.Conn, silence time.Duration) *conn {
	k := &conn{Conn: c, silence: silence}
	k.open, k.end = context.WithCancelCause(context.Background())
	return k
}

// kill ends the connection. Only the first reason counts.
func (c *conn) kill(why error) {
	c.end(why)
	c.Conn.Close()
}

func (c *conn) why() error { return context.Cause(c.open) }

// over returns why the connection ended after err. It is never the error of a
// closed socket: paho takes that for its own doing, and does not end its goroutines.
func (c *conn) over(err error) error {
	var timeout net.Error
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		err = errClosed
	case errors.As(err, &timeout) && timeout.Timeout():
		err = errSilent
	}
	c.kill(err)
	return c.why()
}

func (c *conn) Read(p []byte) (int, error) {
	if err := c.Conn.SetReadDeadline(time.Now().Add(c.silence)); err != nil {
		return 0, c.over(err)
	}
	n, err := c.Conn.Read(p)
	if err != nil {
		return n, c.over(err)
	}
	return n, nil
}

// writePiece is what has to get through within silence.
const writePiece = 64 << 10

func (c *conn) Write(p []byte) (n int, err error) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	for len(p) > 0 {
		if err := c.Conn.SetWriteDeadline(time.Now().Add(c.silence)); err != nil {
			return n, c.over(err)
		}
		m, err := c.Conn.Write(p[:min(len(p), writePiece)])
		n, p = n+m, p[m:]
		if err != nil {
			return n, c.over(err)
		}
	}
	c.wrote = time.Now()
	return n, nil
}

// pingreq is the packet that asks for a sign of life.
var pingreq = []byte{packets.Pingreq << 4, 0}

// pings asks for signs of life until the connection ends. paho does so too, but
// not again before the answer, and for short times not often enough for a broker
// that is strict.
func (c *conn) pings(keepAlive time.Duration) {
	tick := time.NewTicker(keepAlive / 4)
	defer tick.Stop()
	for {
		select {
		case <-c.open.Done():
			return
		case <-tick.C:
		}
		c.wmu.Lock()
		due := time.Since(c.wrote) >= keepAlive/2
		c.wmu.Unlock()
		if due {
			_, _ = c.Write(pingreq) // an error ends the connection
		}
	}
}

// Close is called by paho.
func (c *conn) Close() error {
	c.kill(errGiven)
	return nil
}

// SetDeadline does nothing, as the next two: Read and Write have their own.
func (c *conn) SetDeadline(time.Time) error { return nil }

// SetReadDeadline does nothing.
func (c *conn) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline does nothing.
func (c *conn) SetWriteDeadline(time.Time) error { return nil }
