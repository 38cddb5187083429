package session_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/cloud/nvr/nvrtest"
	"github.com/zipato/vms/cloud/session"
	"github.com/zipato/vms/pkg/problem"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/wire"
)

const acct = nvrtest.Account

var worker = vms.WorkerInfo{ID: "w1", Instance: "i1", PushURL: "ws://w1/push/v1", LiveURL: "ws://w1/live"}

// server is an NVR that listens.
type server struct {
	*nvrtest.World
	handler *session.Handler
	host    string
}

func start(t *testing.T, change func(*session.Config)) *server {
	t.Helper()
	vmstest.NoLeaks(t)
	hs := httptest.NewUnstartedServer(nil)
	s := &server{host: hs.Listener.Addr().String()}
	s.World = nvrtest.New(t, func(c *nvr.Config) { c.NVRURL = "ws://" + s.host + "/session/v1" })
	c := session.Config{NVR: s.NVR, Log: vmstest.Log(t)}
	if change != nil {
		change(&c)
	}
	s.handler = session.New(c)
	hs.Config.Handler = s.handler
	hs.Start()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		shut, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.handler.Shutdown(shut); err != nil {
			t.Errorf("Shutdown = %v", err)
		}
		hs.Close()
		stop()
		<-done
	})
	return s
}

// hub is an agent with the identity of an enrolled hub.
type hub struct {
	s   *server
	id  vms.HubID
	key ed25519.PrivateKey
}

func (s *server) hub(t *testing.T, account vms.AccountID) *hub {
	t.Helper()
	id, key := s.Hub(t, account)
	return &hub{s: s, id: id, key: key}
}

// request is one handshake; its zero fields are filled in as they should be.
type request struct {
	sid, token  string
	nonce       string
	host        string // what is signed
	header      string // what the Host header says
	auth        *string
	protocol    string
	plainHeader http.Header
}

func (h *hub) dial(t *testing.T, r request) (*websocket.Conn, *http.Response, error) {
	t.Helper()
	u := "ws://" + h.s.host + "/session/v1"
	if r.sid != "" {
		u += "?sid=" + r.sid
	}
	if r.nonce == "" {
		r.nonce = h.s.Nonce()
	}
	if r.host == "" {
		r.host = h.s.host
	}
	if r.protocol == "" {
		r.protocol = wire.SessionProtocol
	}
	hd := http.Header{}
	for k, v := range r.plainHeader {
		hd[k] = v
	}
	auth := wire.Prove(h.key, r.nonce, h.id, r.host, vms.SID(r.sid)).Header()
	if r.auth != nil {
		auth = *r.auth
	}
	if auth != "" {
		hd.Set("Authorization", auth)
	}
	if r.token != "" {
		hd.Set(wire.TokenHeader, r.token)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	return websocket.Dial(ctx, u, &websocket.DialOptions{HTTPHeader: hd, Subprotocols: []string{r.protocol}, Host: r.header})
}

// open dials, says hello, and closes with the test.
func (h *hub) open(t *testing.T, r request, hello *wire.SessionHello) *websocket.Conn {
	t.Helper()
	c, _, err := h.dial(t, r)
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	t.Cleanup(func() { c.CloseNow() })
	send(t, c, hello)
	return c
}

func send(t *testing.T, c *websocket.Conn, m wire.SessionMessage) {
	t.Helper()
	data, err := wire.EncodeSession(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Write(t.Context(), websocket.MessageText, data); err != nil {
		t.Fatal(err)
	}
}

// next reads the next message that is no ping.
func next(t *testing.T, c *websocket.Conn) (wire.SessionMessage, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for {
		_, data, err := c.Read(ctx)
		if err != nil {
			return nil, err
		}
		m, err := wire.DecodeSession(data)
		if err != nil {
			t.Fatal(err)
		}
		if _, ping := m.(*wire.Ping); !ping {
			return m, nil
		}
	}
}

// expect reads a message of type M.
func expect[M wire.SessionMessage](t *testing.T, c *websocket.Conn) M {
	t.Helper()
	m, err := next(t, c)
	if err != nil {
		t.Fatal(err)
	}
	v, ok := m.(M)
	if !ok {
		t.Fatalf("got %T %+v, want %T", m, m, v)
	}
	return v
}

// closed waits for the end of a connection.
func closed(t *testing.T, c *websocket.Conn) websocket.StatusCode {
	t.Helper()
	for {
		if _, err := next(t, c); err != nil {
			return websocket.CloseStatus(err)
		}
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestHandshakeRefusals(t *testing.T) {
	s := start(t, nil)
	s.Worker(t, worker)
	mine, theirs, foreign := s.hub(t, acct), s.hub(t, acct), s.hub(t, "other")
	gone := s.hub(t, acct)
	if err := s.RevokeHub(t.Context(), acct, gone.id); err != nil {
		t.Fatal(err)
	}
	unknown := &hub{s: s, id: "hub_unknown", key: mine.key}
	impostor := &hub{s: s, id: mine.id, key: theirs.key}
	ch := s.Channel(t, acct, "")
	tok := func() nvr.StreamToken {
		st, err := s.StreamToken(t.Context(), acct, ch.ID)
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	fresh, expired, used := tok(), tok(), tok()
	mine.open(t, request{sid: string(used.SID), token: used.Token}, &wire.SessionHello{})
	dead := s.Channel(t, acct, "")
	revoked, err := s.StreamToken(t.Context(), acct, dead.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteChannel(t.Context(), acct, dead.ID); err != nil {
		t.Fatal(err)
	}
	bound := s.Channel(t, acct, theirs.id) // its tokens name its hub
	boundTok, err := s.StreamToken(t.Context(), acct, bound.ID)
	if err != nil {
		t.Fatal(err)
	}
	otherCloud := nvrtest.New(t, nil)
	alien, err := otherCloud.StreamToken(t.Context(), acct, otherCloud.Channel(t, acct, "").ID)
	if err != nil {
		t.Fatal(err)
	}
	tampered := fresh.Token[:len(fresh.Token)-10] + "AAAAAAAAAA"
	nothing, bad := "", wire.AuthScheme+` hub="x", nonce="y", sig="z"`
	replayed := s.Nonce()
	mine.open(t, request{sid: string(used.SID), nonce: replayed}, &wire.SessionHello{})

	for _, tt := range []struct {
		name    string
		hub     *hub
		r       request
		late    time.Duration // how much later
		status  int
		problem string
	}{
		{name: "no proof", hub: mine, r: request{auth: &nothing}, status: 401, problem: wire.ProblemNonce},
		{name: "another scheme", hub: mine, r: request{auth: new("Bearer x")}, status: 401, problem: wire.ProblemNonce},
		{name: "broken proof", hub: mine, r: request{auth: &bad}, status: 401, problem: wire.ProblemProof},
		{name: "made-up nonce", hub: mine, r: request{nonce: "AAAA"}, status: 401, problem: wire.ProblemNonce},
		{name: "nonce of another NVR", hub: mine, r: request{nonce: otherCloud.Nonce()}, status: 401, problem: wire.ProblemNonce},
		{name: "nonce used before", hub: mine, r: request{nonce: replayed}, status: 401, problem: wire.ProblemNonce},
		{name: "proof for another host", hub: mine, r: request{host: "evil.example"}, status: 401, problem: wire.ProblemProof},
		{name: "proof passed on by another NVR", hub: mine, r: request{host: "evil.example", header: "evil.example"}, status: 401, problem: wire.ProblemProof},
		{name: "another hub's key", hub: impostor, status: 401, problem: wire.ProblemProof},
		{name: "unknown hub", hub: unknown, status: 403, problem: wire.ProblemHubUnknown},
		{name: "revoked hub", hub: gone, status: 410, problem: wire.ProblemRevoked},
		{name: "unknown sid", hub: mine, r: request{sid: "sid_none"}, status: 404, problem: wire.ProblemSIDUnknown},
		{name: "sid that is none", hub: mine, r: request{sid: "A"}, status: 404, problem: wire.ProblemSIDUnknown},
		{name: "no token", hub: mine, r: request{sid: string(fresh.SID)}, status: 401, problem: wire.ProblemTokenInvalid},
		{name: "tampered token", hub: mine, r: request{sid: string(fresh.SID), token: tampered}, status: 401, problem: wire.ProblemTokenInvalid},
		{name: "token of another session", hub: mine, r: request{sid: string(fresh.SID), token: used.Token}, status: 401, problem: wire.ProblemTokenInvalid},
		{name: "token of another cloud", hub: mine, r: request{sid: string(alien.SID), token: alien.Token}, status: 401, problem: wire.ProblemTokenInvalid},
		{name: "huge token", hub: mine, r: request{sid: string(fresh.SID), token: strings.Repeat("A", 9000)}, status: 401, problem: wire.ProblemTokenInvalid},
		{name: "token of another hub", hub: mine, r: request{sid: string(boundTok.SID), token: boundTok.Token}, status: 403, problem: wire.ProblemHubMismatch},
		{name: "session of another hub", hub: theirs, r: request{sid: string(used.SID), token: used.Token}, status: 403, problem: wire.ProblemHubMismatch},
		{name: "session of another account", hub: foreign, r: request{sid: string(fresh.SID), token: fresh.Token}, status: 403, problem: wire.ProblemHubMismatch},
		{name: "revoked session", hub: mine, r: request{sid: string(revoked.SID), token: revoked.Token}, status: 410, problem: wire.ProblemRevoked},
		{name: "wrong subprotocol", hub: mine, r: request{protocol: wire.PushProtocol}, status: 400, problem: problem.TypeInvalid},
		{name: "a browser", hub: mine, r: request{plainHeader: http.Header{"Origin": {"http://" + s.host}}}, status: 403, problem: problem.TypeForbidden},
		{name: "expired token", hub: mine, late: 25 * time.Hour, r: request{sid: string(expired.SID), token: expired.Token}, status: 401, problem: wire.ProblemTokenExpired},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s.Clock.Add(tt.late)
			c, resp, err := tt.hub.dial(t, tt.r)
			if err == nil {
				c.CloseNow()
				t.Fatal("let in")
			}
			if resp == nil {
				t.Fatal(err)
			}
			p := problem.ReadResponse(resp)
			if resp.StatusCode != tt.status || problem.TypeOf(p) != tt.problem || resp.Header.Get("Content-Type") != problem.ContentType {
				t.Errorf("answer %d %s %q, want %d %s", resp.StatusCode, problem.TypeOf(p), p, tt.status, tt.problem)
			}
			if _, challenge := wire.ParseChallenge(resp.Header); challenge != (tt.status == 401) {
				t.Errorf("challenge in the answer: %v", challenge)
			}
		})
	}

	// Of all these only the clock went on: an expired token renews by the key.
	c := mine.open(t, request{sid: string(used.SID), token: used.Token}, &wire.SessionHello{})
	expect[*wire.Assign](t, c)
	// A token that was good all along still opens its session, and binds it.
	renewed := tok()
	theirs.open(t, request{sid: string(renewed.SID), token: renewed.Token}, &wire.SessionHello{})
	_, resp, err := mine.dial(t, request{sid: string(renewed.SID), token: renewed.Token})
	if err == nil || resp.StatusCode != http.StatusForbidden {
		t.Errorf("second hub with a good token: %v, want 403", err)
	}
}

func TestWhatIsNoHandshake(t *testing.T) {
	s := start(t, nil)
	resp, err := http.Get("http://" + s.host + "/session/v1")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if resp.StatusCode != http.StatusUpgradeRequired {
		t.Errorf("a plain GET = %d, want 426", resp.StatusCode)
	}
}

func TestNoWorkerAndStoreTrouble(t *testing.T) {
	s := start(t, nil)
	h := s.hub(t, acct)
	st, err := s.StreamToken(t.Context(), acct, s.Channel(t, acct, "").ID)
	if err != nil {
		t.Fatal(err)
	}
	r := request{sid: string(st.SID), token: st.Token}
	s.Store.Fail(errors.New("disk on fire"))
	_, resp, err := h.dial(t, r)
	if err == nil || resp.StatusCode != 503 {
		t.Errorf("without a store = %v, want 503", err)
	} else if p := problem.ReadResponse(resp); strings.Contains(p.Error(), "fire") {
		t.Errorf("the answer tells what is inside: %v", p)
	}
	s.Store.Fail(nil)

	// Without a worker the session is of use all the same.
	c := h.open(t, r, &wire.SessionHello{})
	now := s.Clock.Now()
	send(t, c, &wire.Gaps{Gaps: []vms.Gap{{ID: "g1", Cause: vms.CauseCameraOffline, TimeRange: vms.TimeRange{Start: now.Add(-time.Minute), End: now}}}})
	expect[*wire.Committed](t, c)
	s.Worker(t, worker)
	expect[*wire.Assign](t, c)
}

func TestStreamSession(t *testing.T) {
	s := start(t, func(c *session.Config) { c.PingEvery = 5 * time.Millisecond })
	s.Worker(t, worker)
	h := s.hub(t, acct)
	ch := s.Channel(t, acct, "")
	st, err := s.StreamToken(t.Context(), acct, ch.ID)
	if err != nil {
		t.Fatal(err)
	}
	c := h.open(t, request{sid: string(st.SID), token: st.Token}, &wire.SessionHello{Agent: "test", Epoch: 5})
	a := expect[*wire.Assign](t, c)
	if a.SID != st.SID || a.Channel != ch.ID || a.Generation != 1 || a.WorkerURL != worker.PushURL {
		t.Errorf("assigned %+v", a)
	}
	send(t, c, &wire.TimeQuery{Sent: 42})
	if m := expect[*wire.TimeAnswer](t, c); m.Sent != 42 || m.ServerTime.IsZero() {
		t.Errorf("time answer %+v", m)
	}
	now := s.Clock.Now()
	gap := vms.Gap{ID: "g1", Cause: vms.CauseCameraOffline, TimeRange: vms.TimeRange{Start: now.Add(-time.Minute), End: now}}
	send(t, c, &wire.Gaps{Gaps: []vms.Gap{gap}})
	if m := expect[*wire.Committed](t, c); len(m.IDs) != 1 || m.IDs[0] != "g1" {
		t.Errorf("committed %+v", m)
	}
	if err := s.RecordingUploaded(t.Context(), s.Recording(ch.ID, 5, 1, 30)); err != nil {
		t.Fatal(err)
	}
	expect[*wire.Durable](t, c)
	send(t, c, &wire.Holding{Ranges: []wire.HeldRange{{Chunks: vms.ChunkRange{Epoch: 5, First: 10, Last: 50}, Start: now, End: now.Add(time.Minute)}}})
	if m := expect[*wire.Durable](t, c); m.Ranges[0] != (vms.ChunkRange{Epoch: 5, First: 10, Last: 30}) {
		t.Errorf("durable %+v", m)
	}
	send(t, c, &wire.StreamState{State: wire.StateStreaming})
	eventually(t, "the channel streams", func() bool {
		got, err := s.NVR.Channel(t.Context(), acct, ch.ID)
		return err == nil && got.State == wire.StateStreaming
	})
	send(t, c, &wire.WantWorker{Why: "test"})
	if m := expect[*wire.Assign](t, c); m.Generation != 2 {
		t.Errorf("assigned generation %d, want 2", m.Generation)
	}
	if typ, data, err := c.Read(t.Context()); err != nil || typ != websocket.MessageText || string(data) != `{"type":"ping"}` {
		t.Errorf("next is %s, %v, want a ping", data, err)
	}

	// A newer connection of the session takes its place.
	c2 := h.open(t, request{sid: string(st.SID)}, &wire.SessionHello{})
	if m := expect[*wire.Assign](t, c2); m.Generation != 3 {
		t.Errorf("assigned generation %d, want 3", m.Generation)
	}
	if code := closed(t, c); code != websocket.StatusGoingAway {
		t.Errorf("the older connection was closed with %d", code)
	}
	if err := s.DeleteChannel(t.Context(), acct, ch.ID); err != nil {
		t.Fatal(err)
	}
	expect[*wire.Revoke](t, c2)
	if code := closed(t, c2); code != websocket.StatusPolicyViolation {
		t.Errorf("the revoked connection was closed with %d", code)
	}
}

// TestZoneOfTheHub: a stream goes to a worker of its hub's zone, although
// another one has less to do.
func TestZoneOfTheHub(t *testing.T) {
	s := start(t, nil)
	s.Worker(t, worker)
	far := vms.WorkerInfo{ID: "w2", Instance: "i2", PushURL: "ws://w2/push/v1", Zone: "eu-2"}
	s.Worker(t, far)
	h := s.hub(t, acct)
	if _, err := s.UpdateHub(t.Context(), acct, h.id, nvr.HubPatch{Zone: &far.Zone}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		st, err := s.StreamToken(t.Context(), acct, s.Channel(t, acct, "").ID)
		if err != nil {
			t.Fatal(err)
		}
		if a := expect[*wire.Assign](t, h.open(t, request{sid: string(st.SID), token: st.Token}, &wire.SessionHello{})); a.Worker != far.ID {
			t.Errorf("assigned to %s, want the worker of the hub's zone", a.Worker)
		}
	}
}

// A stream that was stopped while its hub was away: what the hub holds of it
// is taken all the same.
func TestEndedSessionStillDelivers(t *testing.T) {
	s := start(t, nil)
	s.Worker(t, worker)
	h := s.hub(t, acct)
	ch := s.Channel(t, acct, "")
	st, err := s.StreamToken(t.Context(), acct, ch.ID)
	if err != nil {
		t.Fatal(err)
	}
	expect[*wire.Assign](t, h.open(t, request{sid: string(st.SID), token: st.Token}, &wire.SessionHello{Boot: "boot_1"}))
	if err := s.Store.EndSession(t.Context(), st.SID); err != nil {
		t.Fatal(err)
	}
	now := s.Clock.Now()
	held := []wire.HeldRange{{Chunks: vms.ChunkRange{Epoch: 4, First: 1, Last: 50}, Start: now.Add(-2 * time.Minute), End: now.Add(-time.Minute), Lane: vms.LaneBackfill}}
	c := h.open(t, request{sid: string(st.SID)}, &wire.SessionHello{Boot: "boot_1", Holding: held}) // after a reboot: no token, no epoch
	if a := expect[*wire.Assign](t, c); a.Generation != 2 || a.WorkerURL != worker.PushURL {
		t.Errorf("assigned %+v", a)
	}
	p, err := s.Recordings(t.Context(), acct, ch.ID, nvr.RecordingQuery{})
	if err != nil || len(p.Pending) != 1 || !p.Pending[0].Start.Equal(held[0].Start) {
		t.Errorf("pending %+v, %v", p.Pending, err)
	}
}

func TestControlLine(t *testing.T) {
	s := start(t, func(c *session.Config) { c.ProbeWithin = 200 * time.Millisecond })
	s.NVR.Broker = func(hub vms.HubID) wire.Broker { return wire.Broker{URL: "mqtts://mq:8883", Username: string(hub)} }
	h := s.hub(t, acct)
	ch := s.Channel(t, acct, h.id)
	c := h.open(t, request{}, &wire.SessionHello{Boot: "boot_1"})
	online := func() bool {
		got, err := s.NVR.Hub(t.Context(), acct, h.id)
		return err == nil && got.Online
	}
	eventually(t, "the hub is online", online)

	// It is told where the broker is and what to do, and what changes.
	if b := expect[*wire.Broker](t, c); b.Username != string(h.id) {
		t.Errorf("broker %+v", b)
	}
	d := expect[*wire.Desired](t, c)
	if d.Hub != h.id || len(d.Streams) != 1 || d.Streams[0].Channel != ch.ID || d.Streams[0].Active {
		t.Errorf("desired %+v", d)
	}
	done := make(chan error)
	go func() {
		_, err := s.StartChannel(t.Context(), acct, ch.ID, nvr.StartOptions{Wait: 10 * time.Second})
		done <- err
	}()
	for !d.Streams[0].Active {
		d = expect[*wire.Desired](t, c)
	}
	report := &wire.Reported{Hub: h.id, Boot: "boot_1", Online: true, Serial: 1, Revision: d.Revision, State: wire.InSync, Streams: []wire.ReportedItem{
		{Channel: ch.ID, SID: d.Streams[0].SID, Origin: wire.OriginCloud, Mode: d.Streams[0].Mode, State: wire.InSync, Running: true},
	}}
	send(t, c, report)
	if err := <-done; err != nil {
		t.Fatal(err)
	}

	// A command is answered by whoever answers first.
	go func() {
		r, err := s.Command(t.Context(), acct, h.id, wire.Command{Kind: wire.CommandDrain}, 10*time.Second)
		if err == nil && r.Problem != "no" {
			err = fmt.Errorf("answered %+v", r)
		}
		done <- err
	}()
	cmd := expect[*wire.Command](t, c)
	send(t, c, &wire.CommandReply{ID: "cmd_other", OK: true}) // nobody waits for this
	send(t, c, &wire.CommandReply{ID: cmd.ID, Problem: "no"})
	send(t, c, &wire.CommandReply{ID: cmd.ID, OK: true})
	if err := <-done; err != nil {
		t.Fatal(err)
	}

	// While the first answers, a second agent with the same identity is refused.
	answering := make(chan struct{})
	go func() {
		defer close(answering)
		if _, data, err := c.Read(t.Context()); err == nil && strings.Contains(string(data), "ping") {
			_ = c.Write(t.Context(), websocket.MessageText, []byte(`{"type":"pong"}`))
		}
	}()
	_, resp, err := h.dial(t, request{})
	if err == nil || resp.StatusCode != http.StatusConflict {
		t.Errorf("second agent = %v, want 409", err)
	}
	<-answering

	// When the first does not answer any more, the second takes its place, and
	// is told what to do.
	c2 := h.open(t, request{}, &wire.SessionHello{Boot: "boot_2"})
	expect[*wire.Broker](t, c2)
	if again := expect[*wire.Desired](t, c2); again.Revision != d.Revision || again.Streams[0].SID != d.Streams[0].SID {
		t.Errorf("told %+v, want what the first was told", again)
	}
	if err := s.RevokeHub(t.Context(), acct, h.id); err != nil {
		t.Fatal(err)
	}
	expect[*wire.Revoke](t, c2)
	closed(t, c2)
	eventually(t, "the line is gone", func() bool {
		_, resp, err := h.dial(t, request{})
		return err != nil && resp.StatusCode == http.StatusGone
	})
}

// What time it is, anybody may ask, but not without end.
func TestTime(t *testing.T) {
	clock := nvrtest.NewClock()
	s := start(t, func(c *session.Config) { c.Clock = clock.Now })
	hs := httptest.NewServer(s.handler.TimeHandler())
	defer hs.Close()
	ask := func() *http.Response {
		t.Helper()
		resp, err := hs.Client().Get(hs.URL + "/time/v1")
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	resp := ask()
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if want := "{\"server_time\":\"2026-11-03T12:00:00.123456Z\"}\n"; err != nil || string(body) != want || resp.StatusCode != 200 ||
		resp.Header.Get("Content-Type") != "application/json" || resp.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("%d %s %v, want %s", resp.StatusCode, body, resp.Header, want)
	}
	for range 200 {
		resp := ask()
		resp.Body.Close()
		if resp.StatusCode == http.StatusServiceUnavailable {
			if resp.Header.Get("Retry-After") == "" || resp.Header.Get("Content-Type") != problem.ContentType {
				t.Errorf("refused with %v", resp.Header)
			}
			clock.Add(time.Minute) // and it has rested
			if resp := ask(); resp.StatusCode != 200 {
				t.Errorf("after a minute: %d", resp.StatusCode)
			} else {
				resp.Body.Close()
			}
			return
		}
	}
	t.Error("200 questions at once were all answered")
}

func TestBadPeersAreClosed(t *testing.T) {
	s := start(t, func(c *session.Config) { c.HelloWithin, c.Silence = 300*time.Millisecond, 300*time.Millisecond })
	hello := `{"type":"hello","agent":"a","boot":"b"}`
	for _, tt := range []struct {
		name string
		typ  websocket.MessageType
		msgs []string
		code websocket.StatusCode
	}{
		{"no hello", websocket.MessageText, []string{`{"type":"pong"}`}, websocket.StatusPolicyViolation},
		{"binary", websocket.MessageBinary, []string{hello}, websocket.StatusPolicyViolation},
		{"garbage", websocket.MessageText, []string{"}{"}, websocket.StatusPolicyViolation},
		{"unknown type", websocket.MessageText, []string{hello, `{"type":"launch"}`}, websocket.StatusPolicyViolation},
		{"hello twice", websocket.MessageText, []string{hello, hello}, websocket.StatusPolicyViolation},
		{"a report of another hub", websocket.MessageText, []string{hello, `{"type":"reported","hub":"hub_other","boot":"b","online":true,"serial":1}`}, websocket.StatusPolicyViolation},
		{"an order on the control line", websocket.MessageText, []string{hello, `{"type":"broker"}`}, websocket.StatusPolicyViolation},
		{"a stream's message on the control line", websocket.MessageText, []string{hello, `{"type":"state","state":"streaming"}`}, websocket.StatusPolicyViolation},
		{"too large", websocket.MessageText, []string{hello, `{"type":"pong","x":"` + strings.Repeat("x", wire.MaxControl) + `"}`}, websocket.StatusMessageTooBig},
		{"silent before hello", websocket.MessageText, nil, -1},
		{"silent after hello", websocket.MessageText, []string{hello}, -1},
		{"flood", websocket.MessageText, append([]string{hello}, slicesRepeat(`{"type":"pong"}`, 400)...), websocket.StatusPolicyViolation},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, _, err := s.hub(t, acct).dial(t, request{})
			if err != nil {
				t.Fatal(err)
			}
			defer c.CloseNow()
			for _, m := range tt.msgs {
				if err := c.Write(t.Context(), tt.typ, []byte(m)); err != nil {
					break // closed meanwhile
				}
			}
			if code := closed(t, c); code != tt.code {
				t.Errorf("closed with %d, want %d", code, tt.code)
			}
		})
	}
}

func slicesRepeat(s string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = s
	}
	return out
}

func TestHandshakesAreLimitedPerAddress(t *testing.T) {
	s := start(t, func(c *session.Config) { c.Clock = nvrtest.NewClock().Now })
	h := s.hub(t, acct)
	none := ""
	for range 500 {
		_, resp, err := h.dial(t, request{auth: &none})
		if err == nil || resp == nil {
			t.Fatalf("dial = %v", err)
		}
		if resp.StatusCode == http.StatusServiceUnavailable {
			return
		}
	}
	t.Error("500 handshakes at once were all answered")
}

func TestShutdownClosesPolitely(t *testing.T) {
	s := start(t, nil)
	h := s.hub(t, acct)
	c := h.open(t, request{}, &wire.SessionHello{})
	code := make(chan websocket.StatusCode)
	go func() { code <- closed(t, c) }()
	if err := s.handler.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := <-code; got != websocket.StatusGoingAway {
		t.Errorf("closed with %d, want going away", got)
	}
	if _, resp, err := h.dial(t, request{}); err == nil || resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a handshake after Shutdown = %v, want 503", err)
	}
}

// An agent that does not even answer the close does not hold Shutdown up.
func TestShutdownDoesNotWaitForTheDead(t *testing.T) {
	s := start(t, nil)
	h := s.hub(t, acct)
	h.open(t, request{}, &wire.SessionHello{}) // and never read from
	eventually(t, "the hub is online", func() bool {
		got, err := s.NVR.Hub(t.Context(), acct, h.id)
		return err == nil && got.Online
	})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if err := s.handler.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown = %v, want DeadlineExceeded", err)
	}
	if d := time.Since(begin); d > 2*time.Second {
		t.Errorf("Shutdown took %s", d)
	}
}
