package chaos

import (
	"io"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vmstest"
)

// TestRateIsOneQueueForAll: who fills the line delays the others, by what fits
// into the queue and by no more.
func TestRateIsOneQueueForAll(t *testing.T) {
	vmstest.NoLeaks(t)
	p := New(t, echo(t))
	greedy, small := dial(t, p), dial(t, p)
	for _, c := range []io.ReadWriter{greedy, small} {
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
	}
	const rate = 40_000
	p.SetUpRate(rate)
	go greedy.Write(make([]byte, 8*rate))
	for limit := time.Now().Add(5 * time.Second); p.Up() < rate/4; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("nothing moves")
		}
	}
	start := time.Now()
	if err := roundTrip(small); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d < 700*time.Millisecond || d > 1500*time.Millisecond {
		t.Errorf("behind a full queue of a second a round trip took %v", d)
	}
	p.SetUpRate(0)
	start = time.Now()
	if _, err := io.ReadFull(greedy, make([]byte, 8*rate)); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d > time.Second {
		t.Errorf("the rest took %v though the limit is gone", d)
	}
}

// TestAFastLineQueuesLittle: the queue is bounded in bytes as well.
func TestAFastLineQueuesLittle(t *testing.T) {
	vmstest.NoLeaks(t)
	p := New(t, echo(t))
	c := dial(t, p)
	if err := roundTrip(c); err != nil {
		t.Fatal(err)
	}
	const rate = 1 << 20
	p.SetRate(rate)
	start := time.Now()
	go c.Write(make([]byte, rate))
	if _, err := io.ReadFull(c, make([]byte, rate)); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d < 800*time.Millisecond || d > 2*time.Second {
		t.Errorf("1 MiB at 1 MiB/s took %v", d)
	}
}
