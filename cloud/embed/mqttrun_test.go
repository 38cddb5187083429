package embed

import (
	"context"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vmstest"
)

// A full disk makes the library give up storing; what there is room for again is
// stored again, at the same address.
func TestMQTTComesBackWhenItsStoreFailed(t *testing.T) {
	vmstest.NoLeaks(t)
	m, err := StartMQTT(t.Context(), MQTTConfig{
		Dir: t.TempDir(), Addr: "127.0.0.1:0", Log: vmstest.Log(t), Authenticate: func(string, string) (Access, bool) { return Access{}, false },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	url, first := m.URL(), m.server
	if err := first.DisableJetStream(); err != nil { // as it does itself
		t.Fatal(err)
	}
	deadline := time.Now().Add(time.Minute)
	for tick := time.NewTicker(10 * time.Millisecond); ; <-tick.C {
		m.mu.Lock()
		again := m.server != nil && m.server != first && m.server.JetStreamEnabled()
		m.mu.Unlock()
		if again {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it stays down")
		}
	}
	if m.URL() != url {
		t.Errorf("it is at %s now, was at %s", m.URL(), url)
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("Run = %v", err)
	}
}

func TestMQTTTopicFilters(t *testing.T) {
	for filter, want := range map[string]string{
		"vms/hub_1/desired": "vms.hub_1.desired", "vms/+/cmd": "vms.*.cmd", "vms/#": "vms.>", "#": ">", "+": "*",
		"": "", "/a": "", "a/": "", "a//b": "", "a/#/b": "", "a+/b": "", "a.b/c": "", "a/*": "", "a/>": "", "a b": "", "a/b\n": "",
	} {
		got, err := subjects([]string{filter})
		if (err == nil) != (want != "") || err == nil && got[0] != want {
			t.Errorf("%q: %q, %v, want %q", filter, got, err, want)
		}
	}
	p, err := permissions(Access{})
	if err != nil || p.Publish.Allow == nil || len(p.Subscribe.Deny) != 1 {
		t.Errorf("no permissions: %+v, %v", p, err)
	}
}
