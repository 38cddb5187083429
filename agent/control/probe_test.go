package control

import (
	"context"
	"errors"
	"net"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/wire"
)

// TestProbeTakesNothing of what waits for the hub, and says nothing of it.
func TestProbeTakesNothing(t *testing.T) {
	vmstest.NoLeaks(t)
	b := mosquitto(t, acl, "")
	c := newCloud(t, b.addr)
	h := startHub(t, "h1", "b1", b.addr)
	h.Report(report("h1", "b1", 1))
	eventually(t, "the report at the cloud", func() bool { return c.last().Serial == 1 })
	h.stop()
	eventually(t, "the offline report at the cloud", func() bool { return !c.last().Online })
	c.publish("h1", wire.LeafCommand, command("c1"))
	for range 3 {
		if err := Probe(t.Context(), Config{Hub: "h1"}, to(b.addr)); err != nil {
			t.Errorf("the broker lets the hub in: %v", err)
		}
	}
	next := startHub(t, "h1", "b2", b.addr)
	eventually(t, "the command at the hub", func() bool { return slices.Equal(next.heardCommands(), []string{"c1"}) })
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.reported); n != 2 {
		t.Errorf("%d reports, want the hub's two", n)
	}
}

func TestProbeSaysWhy(t *testing.T) {
	vmstest.NoLeaks(t)
	b := mosquitto(t, acl, "")
	wrong := to(b.addr)
	wrong.Password = "not it"
	if err := Probe(t.Context(), Config{Hub: "h1"}, wrong); !errors.Is(err, ErrRefused) {
		t.Errorf("with a wrong password: %v", err)
	}
	if err := Probe(t.Context(), Config{Hub: "h1"}, wire.Broker{URL: "mqtt://192.0.2.1:1883"}); !errors.Is(err, ErrNoBroker) {
		t.Errorf("without TLS off the loopback: %v", err)
	}
	b.stop(t, syscall.SIGKILL)
	if err := Probe(t.Context(), Config{Hub: "h1"}, to(b.addr)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("where nobody listens: %v", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := Probe(ctx, Config{Hub: "h1"}, to(l.Addr().String())); err == nil || ctx.Err() == nil {
		t.Errorf("where nobody answers: %v, %v", err, ctx.Err())
	}
}
