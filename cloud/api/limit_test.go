package api

import (
	"fmt"
	"testing"
	"time"
)

func TestLimiter(t *testing.T) {
	now := at
	l := newLimiter(3, time.Second, func() time.Time { return now })
	take := func(addr string) bool { _, ok := l.allow(addr); return ok }
	for range 3 {
		if !take("192.0.2.1:1000") {
			t.Fatal("refused within the burst")
		}
	}
	if wait, ok := l.allow("192.0.2.1:2000"); ok || wait != time.Second {
		t.Errorf("after the burst: %v, %v, want a wait of 1 s", wait, ok)
	}
	if !take("192.0.2.2:1000") {
		t.Error("another client was refused")
	}
	now = now.Add(time.Second)
	if !take("192.0.2.1:1000") || take("192.0.2.1:1000") {
		t.Error("want one more after the interval, and only one")
	}
	for range 3 {
		take("[2001:db8::1]:1")
	}
	if take("[2001:db8::2:3]:1") {
		t.Error("a second address of the same /64 is another client")
	}
	if !take("[2001:db8:0:1::1]:1") {
		t.Error("another /64 is the same client")
	}
}

func TestLimiterIsBounded(t *testing.T) {
	now := at
	l := newLimiter(1, time.Second, func() time.Time { return now })
	for i := range 2 * maxClients {
		l.allow(fmt.Sprintf("10.%d.%d.1:1", i/250, i%250))
	}
	if n := len(l.buckets); n > maxClients+1 {
		t.Errorf("%d clients are remembered, want at most %d", n, maxClients)
	}
	now = now.Add(time.Minute)
	if _, ok := l.allow("192.0.2.1:1"); !ok {
		t.Error("a new client was refused after a quiet minute")
	}
	if n := len(l.buckets); n > 2 {
		t.Errorf("%d clients are remembered after a quiet minute", n)
	}
}
