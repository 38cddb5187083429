package session_test

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/cloud/session"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// alive answers pings and hands on everything else until the connection ends.
func alive(t *testing.T, c *websocket.Conn) <-chan wire.SessionMessage {
	t.Helper()
	out := make(chan wire.SessionMessage, 100)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	t.Cleanup(func() { stop(); <-done })
	go func() {
		defer close(done)
		defer close(out)
		for {
			_, data, err := c.Read(ctx)
			if err != nil {
				return
			}
			m, err := wire.DecodeSession(data)
			if err != nil {
				t.Errorf("%s: %v", data, err)
				return
			}
			if _, ping := m.(*wire.Ping); ping {
				_ = c.Write(ctx, websocket.MessageText, []byte(`{"type":"pong"}`)) // it may be closed meanwhile
				continue
			}
			out <- m
		}
	}()
	return out
}

func told[M wire.SessionMessage](t *testing.T, ch <-chan wire.SessionMessage) M {
	t.Helper()
	select {
	case m, ok := <-ch:
		v, is := m.(M)
		if !ok || !is {
			t.Fatalf("told %T %+v, want %T", m, m, v)
		}
		return v
	case <-time.After(10 * time.Second):
		t.Fatal("told nothing within 10 s")
	}
	panic("unreachable")
}

// reason waits for the end of a connection and returns why it was closed.
func reason(t *testing.T, c *websocket.Conn) websocket.CloseError {
	t.Helper()
	for {
		if _, err := next(t, c); err != nil {
			ce := websocket.CloseError{Code: websocket.CloseStatus(err)}
			if i := strings.Index(err.Error(), "reason = "); i >= 0 {
				ce.Reason = err.Error()[i:]
			}
			return ce
		}
	}
}

// rig is a hub whose agent, of boot_1, runs a stream.
type rig struct {
	*server
	h      *hub
	ch     vms.ChannelID
	token  nvr.StreamToken
	stream *websocket.Conn
	first  *wire.Assign
}

func newRig(t *testing.T) *rig {
	t.Helper()
	s := start(t, func(c *session.Config) { c.ProbeWithin = 300 * time.Millisecond })
	s.Worker(t, worker)
	r := &rig{server: s, h: s.hub(t, acct)}
	r.ch = s.Channel(t, acct, "").ID
	var err error
	if r.token, err = s.StreamToken(t.Context(), acct, r.ch); err != nil {
		t.Fatal(err)
	}
	r.stream = r.open(t, "boot_1")
	r.first = expect[*wire.Assign](t, r.stream)
	return r
}

// open opens the stream's session as an agent of some boot.
func (r *rig) open(t *testing.T, boot string) *websocket.Conn {
	t.Helper()
	return r.h.open(t, request{sid: string(r.token.SID), token: r.token.Token}, &wire.SessionHello{Boot: boot})
}

func (r *rig) generation(t *testing.T) vms.Generation {
	t.Helper()
	s, err := r.Store.Session(t.Context(), r.token.SID)
	if err != nil {
		t.Fatal(err)
	}
	return s.Generation
}

// untouched checks that the first agent's stream goes on as if nothing had been.
func (r *rig) untouched(t *testing.T, stream <-chan wire.SessionMessage) {
	t.Helper()
	if g := r.generation(t); g != r.first.Generation {
		t.Errorf("the generation is %d, want still %d: the first agent's lanes are fenced", g, r.first.Generation)
	}
	send(t, r.stream, &wire.TimeQuery{Sent: 7})
	if m := told[*wire.TimeAnswer](t, stream); m.Sent != 7 {
		t.Errorf("time answer %+v", m)
	}
}

// TestSecondAgentIsRefused: on the control line, and on the stream's session,
// with a reason and without any effect on the first.
func TestSecondAgentIsRefused(t *testing.T) {
	r := newRig(t)
	control := r.h.open(t, request{}, &wire.SessionHello{Boot: "boot_1"})
	alive(t, control)
	stream := alive(t, r.stream)
	eventually(t, "the hub is online", func() bool {
		got, err := r.NVR.Hub(t.Context(), acct, r.h.id)
		return err == nil && got.Online
	})
	if _, resp, err := r.h.dial(t, request{}); err == nil || resp.StatusCode != http.StatusConflict {
		t.Errorf("control line of the second = %v, want 409", err)
	}
	for range 3 { // however often it comes
		why := reason(t, r.open(t, "boot_2"))
		if why.Code != websocket.StatusPolicyViolation || !strings.Contains(why.Reason, "another agent") {
			t.Errorf("session of the second closed with %+v", why)
		}
	}
	// Another channel's session, which nobody has yet, is not its either.
	tok, err := r.StreamToken(t.Context(), acct, r.Channel(t, acct, "").ID)
	if err != nil {
		t.Fatal(err)
	}
	why := reason(t, r.h.open(t, request{sid: string(tok.SID), token: tok.Token}, &wire.SessionHello{Boot: "boot_2"}))
	if why.Code != websocket.StatusPolicyViolation {
		t.Errorf("another session of the second closed with %+v", why)
	}
	r.untouched(t, stream)
	if s, err := r.Store.Session(t.Context(), tok.SID); err != nil || s.Generation != 0 {
		t.Errorf("the refused session has generation %d, %v", s.Generation, err)
	}
	// The first one itself comes back at any time.
	if a := expect[*wire.Assign](t, r.open(t, "boot_1")); a.Generation != r.first.Generation+1 {
		t.Errorf("generation %d when the first came back, want %d", a.Generation, r.first.Generation+1)
	}
}

// TestSecondAgentIsRefusedWithoutAControlLine: between two of them the session
// itself knows whose it is.
func TestSecondAgentIsRefusedWithoutAControlLine(t *testing.T) {
	r := newRig(t)
	stream := alive(t, r.stream)
	if why := reason(t, r.open(t, "boot_2")); why.Code != websocket.StatusPolicyViolation {
		t.Errorf("session of the second closed with %+v", why)
	}
	r.untouched(t, stream)
}

// TestRestartedAgentGetsIn: the connections of the run before it are half open,
// so that nothing answers on them.
func TestRestartedAgentGetsIn(t *testing.T) {
	r := newRig(t)
	r.h.open(t, request{}, &wire.SessionHello{Boot: "boot_1"}) // nobody reads from these two any more
	eventually(t, "the hub is online", func() bool {
		got, err := r.NVR.Hub(t.Context(), acct, r.h.id)
		return err == nil && got.Online
	})
	begin := time.Now()
	a := expect[*wire.Assign](t, r.open(t, "boot_2"))
	if a.Generation != r.first.Generation+1 {
		t.Errorf("generation %d, want %d", a.Generation, r.first.Generation+1)
	}
	control := r.h.open(t, request{}, &wire.SessionHello{Boot: "boot_2"})
	alive(t, control)
	if d := time.Since(begin); d > 5*time.Second { // two probes of 0.3 s
		t.Errorf("let in after %v", d)
	}
	// Whichever is faster: it is cut off, or told that a newer one is there.
	if code := closed(t, r.stream); code != -1 && code != websocket.StatusGoingAway {
		t.Errorf("the old connection was closed with %d, want cut off", code)
	}
	expect[*wire.Assign](t, r.open(t, "boot_2"))
}
