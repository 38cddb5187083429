package chaos

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vmstest"
)

// echo starts a server that sends back what it gets, until the client has
// finished sending.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	return l.Addr().String()
}

func dial(t *testing.T, p *Proxy) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(10 * time.Second))
	return c.(*net.TCPConn)
}

// tryNew makes a connection and a round trip over it. A reset may come as early
// as in the dial.
func tryNew(t *testing.T, p *Proxy) error {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	return roundTrip(c)
}

// roundTrip says hello and wants to hear it back.
func roundTrip(c net.Conn) error {
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 5))
	return err
}

func TestForwardsEveryByteAndHalfClose(t *testing.T) {
	vmstest.NoLeaks(t)
	p := New(t, echo(t))
	c := dial(t, p)
	sent := make([]byte, 3<<20)
	rand.Read(sent)
	go func() {
		c.Write(sent)
		c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d bytes came back of %d, err = %v", len(got), len(sent), err)
	}
	if p.Up() != int64(len(sent)) || p.Down() != int64(len(sent)) || p.Accepted() != 1 {
		t.Errorf("up %d, down %d, accepted %d", p.Up(), p.Down(), p.Accepted())
	}
}

func TestCutResetsAndRestoreHeals(t *testing.T) {
	vmstest.NoLeaks(t)
	p := New(t, echo(t))
	c := dial(t, p)
	if err := roundTrip(c); err != nil {
		t.Fatal(err)
	}
	p.Cut()
	if err := roundTrip(c); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("after the cut: %v, want a reset", err)
	}
	if err := tryNew(t, p); err == nil {
		t.Error("a new connection works while the link is cut")
	}
	p.Restore()
	if err := tryNew(t, p); err != nil {
		t.Errorf("after Restore: %v", err)
	}
}

func TestStallIsSilentAndResumeDelivers(t *testing.T) {
	vmstest.NoLeaks(t)
	p := New(t, echo(t))
	old := dial(t, p)
	if err := roundTrip(old); err != nil {
		t.Fatal(err)
	}
	p.Stall()
	for name, c := range map[string]*net.TCPConn{"old": old, "new": dial(t, p)} {
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Errorf("%s connection: write: %v", name, err)
		}
		c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if _, err := c.Read(make([]byte, 5)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s connection: read: %v, want silence", name, err)
		}
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		defer func() {
			if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
				t.Errorf("%s connection after Resume: %v", name, err)
			}
		}()
	}
	p.Resume()
}

func TestRateAndLatency(t *testing.T) {
	vmstest.NoLeaks(t)
	p := New(t, echo(t))
	c := dial(t, p)
	p.SetLatency(30 * time.Millisecond)
	start := time.Now()
	if err := roundTrip(c); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d < 60*time.Millisecond {
		t.Errorf("round trip took %v, want at least 60 ms", d)
	}
	p.SetLatency(0)
	p.SetRate(100_000)
	start = time.Now()
	go c.Write(make([]byte, 30_000))
	if _, err := io.ReadFull(c, make([]byte, 30_000)); err != nil {
		t.Fatal(err)
	}
	// The first read may have begun before the limit: a piece or two are free.
	if d := time.Since(start); d < 200*time.Millisecond {
		t.Errorf("30 kB at 100 kB/s took %v", d)
	}
}

func TestCloseEndsStalledConnections(t *testing.T) {
	vmstest.NoLeaks(t)
	p, err := Listen(echo(t))
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, p)
	if err := roundTrip(c); err != nil {
		t.Fatal(err)
	}
	p.Stall()
	c.Write([]byte("never arrives"))
	p.Close()
	if n := p.Open(); n != 0 {
		t.Errorf("%d connections open after Close", n)
	}
}

func TestDeadTargetResetsTheClient(t *testing.T) {
	vmstest.NoLeaks(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	if err := tryNew(t, New(t, addr)); err == nil {
		t.Error("no error though nobody listens at the target")
	}
}
