package mirror

import (
	"errors"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// packet is an RTP packet between RTSP messages, of n bytes.
func packet(n int) []byte {
	b := make([]byte, n)
	copy(b, []byte{'$', 0, byte((n - 4) >> 8), byte(n - 4), 0x80, 0x80 | dynamic})
	return b
}

// TestConnGathersPackets: many are written at once, but none stays behind.
func TestConnGathersPackets(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	c := newConn(near)
	for range 30 {
		if !c.next(nil) {
			t.Fatal("no room")
		}
	}
	sizes := make(chan int, 30)
	go func() {
		defer close(sizes)
		b := make([]byte, 64<<10)
		for {
			n, err := far.Read(b) // of a pipe: what was written at once, or a part of it
			if err != nil {
				return
			}
			sizes <- n
		}
	}()
	for range 30 {
		if n, err := c.Write(packet(1400)); n != 1400 || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
	}
	c.drained(nil)
	if _, err := c.Write([]byte("TEARDOWN")); err != nil {
		t.Fatal(err)
	}
	c.Close()
	var got []int
	for n := range sizes {
		got = append(got, n)
	}
	if len(got) != 3 || got[0] != 24*1400 || got[1] != 6*1400 || got[2] != 8 {
		t.Errorf("wrote %d bytes at a time", got)
	}
}

// TestConnIsDrainedWhenAllIsWritten, and not before.
func TestConnIsDrainedWhenAllIsWritten(t *testing.T) {
	near, far := net.Pipe()
	c := newConn(near)
	defer c.Close()
	c.next(nil)
	go func() { _, _ = c.Write(packet(1400)) }()
	for c.pending.Load() > 0 {
		time.Sleep(time.Millisecond) // until it is being written
	}
	drained := make(chan struct{})
	go func() {
		c.drained(nil)
		close(drained)
	}()
	select {
	case <-drained:
		t.Error("drained while the packet waits for the peer")
	case <-time.After(20 * time.Millisecond): // nobody reads
	}
	if _, err := io.ReadFull(far, make([]byte, 1400)); err != nil {
		t.Fatal(err)
	}
	<-drained
}

// TestConnInAHurry: the last words to a server that does not listen take a second.
func TestConnInAHurry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, _ := net.Pipe()
		c := newConn(near)
		defer c.Close()
		c.hurry()
		if err := c.SetWriteDeadline(time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if _, err := c.Write([]byte("TEARDOWN")); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) > goodbye {
			t.Errorf("Write = %v after %s", err, time.Since(began))
		}
	})
}

// TestHide: credentials are hidden whatever an error makes of them.
func TestHide(t *testing.T) {
	m, err := New(Config{URL: "rtsp://me:pa%2Fss%20w@h/{channel}?token=s3cret&x={channel}"})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"pa/ss w", "pa%2Fss+w", url.PathEscape("pa/ss w"), "rtsp://me:x@h/", "/cam?token=s3cret&x=cam"} {
		got := m.hide(errors.New("cannot: " + s))
		if strings.Contains(got, "pa") || strings.Contains(got, "me:") || strings.Contains(got, "s3cret") || !strings.Contains(got, "[hidden]") {
			t.Errorf("hide(%q) = %q", s, got)
		}
	}
}
