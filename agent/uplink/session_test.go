package uplink

import (
	"context"
	"crypto/ed25519"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	"github.com/zipato/vms/pkg/problem"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/wire"
)

// sessionTest is a session against a scripted NVR: on is called for each
// request that brings a proof.
type sessionTest struct {
	got, states log
	s           *Session
	tries       atomic.Int32 // requests of any kind
	proofs      atomic.Int32
}

const nonce = "bm9uY2U"

func newSessionTest(t *testing.T, on func(s *sessionTest, n int, w http.ResponseWriter, r *http.Request)) (st *sessionTest, stop func() error, ended <-chan struct{}) {
	st = &sessionTest{}
	client, stopServer := serve(t, func(w http.ResponseWriter, r *http.Request) {
		st.tries.Add(1)
		p, ok, err := wire.ParseProof(r.Header)
		if !ok {
			w.Header().Set("WWW-Authenticate", wire.Challenge(nonce))
			refuse(w, 401, wire.ProblemNonce, 0)
			return
		}
		if err != nil || p.Hub != "hub_1" || p.Nonce != nonce || !p.Verify(keyOf(1).Public().(ed25519.PublicKey), r.Host, "sid_1") {
			t.Errorf("proof %+v, %v", p, err)
		}
		on(st, int(st.proofs.Add(1)), w, r)
	})
	st.s = &Session{
		URL: "ws://nvr.test/session/v1", SID: "sid_1", Token: "token", Credential: Credential{Hub: "hub_1", Key: keyOf(1)},
		Log: vmstest.Log(t), Client: client,
		Hello:     func() *wire.SessionHello { return &wire.SessionHello{Agent: "test", Boot: "boot_1", Epoch: 0xe} },
		OnMessage: func(m wire.SessionMessage) { st.states.add("got %T", m) },
		OnState: func(err error) {
			if err == nil {
				st.states.add("up")
				return
			}
			st.states.add("down: %v", err)
		},
	}
	stopSession, ended := running(st.s.Run)
	return st, func() error {
		defer stopServer()
		return stopSession()
	}, ended
}

// open upgrades, and takes the hello.
func (st *sessionTest) open(t *testing.T, w http.ResponseWriter, r *http.Request) *websocket.Conn {
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{wire.SessionProtocol}})
	if err != nil {
		t.Errorf("accept: %v", err)
		return nil
	}
	st.take(t, ws)
	return ws
}

func (st *sessionTest) take(t *testing.T, ws *websocket.Conn) bool {
	_, data, err := ws.Read(context.Background())
	if err != nil {
		st.got.add("closed %d", websocket.CloseStatus(err))
		return false
	}
	m, err := wire.DecodeSession(data)
	if err != nil {
		t.Errorf("message: %v", err)
		return false
	}
	st.got.add("%T", m)
	return true
}

func tell(t *testing.T, ws *websocket.Conn, m wire.SessionMessage) {
	data, err := wire.EncodeSession(m)
	if err != nil {
		t.Errorf("encode: %v", err)
	}
	_ = ws.Write(context.Background(), websocket.MessageText, data)
}

// serveSession pings every 5 s and takes what comes, until the end.
func (st *sessionTest) serveSession(t *testing.T, ws *websocket.Conn) {
	over := make(chan struct{})
	defer close(over)
	go func() {
		for {
			select {
			case <-over:
				return
			case <-time.After(5 * time.Second):
				tell(t, ws, &wire.Ping{})
			}
		}
	}()
	for st.take(t, ws) {
	}
}

func TestSessionProvesItselfAndTalks(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st, stop, _ := newSessionTest(t, func(st *sessionTest, _ int, w http.ResponseWriter, r *http.Request) {
			if r.Header.Get(wire.TokenHeader) != "token" || r.URL.Query().Get("sid") != "sid_1" {
				t.Errorf("token %q, sid %q", r.Header.Get(wire.TokenHeader), r.URL.Query().Get("sid"))
			}
			ws := st.open(t, w, r)
			tell(t, ws, &wire.TimeAnswer{ServerTime: time.Now()})
			tell(t, ws, &wire.Ping{})
			for st.take(t, ws) {
			}
		})
		synctest.Wait()
		if err := st.s.Send(&wire.WantWorker{Why: "test"}); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		// A message that cannot be encoded is our own fault; the line stays up.
		if err := st.s.Send(&wire.StreamState{State: "streaming", Problem: strings.Repeat("x", 2000)}); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		// The last word before the end gets through.
		if err := st.s.Send(&wire.StreamState{State: "stopped"}); err != nil {
			t.Error(err)
		}
		if err := stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
		if got, want := st.got.all(), []string{"*wire.SessionHello", "*wire.Pong", "*wire.WantWorker", "*wire.StreamState", "closed 1000"}; !slices.Equal(got, want) {
			t.Errorf("the NVR saw %q, want %q", got, want)
		}
		if got, want := st.states.all(), []string{"up", "got *wire.TimeAnswer"}; !slices.Equal(got, want) {
			t.Errorf("the agent saw %q, want %q", got, want)
		}
		if n := st.tries.Load(); n != 2 {
			t.Errorf("%d requests, want 2", n)
		}
		if err := st.s.Send(&wire.Pong{}); !errors.Is(err, ErrNotConnected) {
			t.Errorf("Send = %v after the end", err)
		}
	})
}

// TestFinalRefusalsStop: what waiting cannot cure is tried once and said.
func TestFinalRefusalsStop(t *testing.T) {
	for typ, status := range map[string]int{
		wire.ProblemProof: 401, wire.ProblemTokenInvalid: 401, wire.ProblemTokenExpired: 401, wire.ProblemHubUnknown: 403,
		wire.ProblemHubMismatch: 403, wire.ProblemSIDUnknown: 404, wire.ProblemRevoked: 410,
	} {
		t.Run(strings.TrimPrefix(typ, problem.TypePrefix), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				st, stop, ended := newSessionTest(t, func(_ *sessionTest, _ int, w http.ResponseWriter, _ *http.Request) {
					w.Header().Set("WWW-Authenticate", wire.Challenge("another"))
					refuse(w, status, typ, 0)
				})
				<-ended
				time.Sleep(24 * time.Hour)
				err := stop()
				var refused Refused
				if !errors.As(err, &refused) || refused.Type != typ || refused.Detail != "Refused by the test." {
					t.Errorf("Run = %v", err)
				}
				if n := st.tries.Load(); n != 2 {
					t.Errorf("%d requests, want 2: one for the nonce, one with the proof", n)
				}
				if got := st.states.all(); !slices.Equal(got, []string{"down: Refused by the test."}) {
					t.Errorf("states %q", got)
				}
			})
		})
	}
}

// TestOutagesAreRetriedWithBackoff: also a 410 that is not ours.
func TestOutagesAreRetriedWithBackoff(t *testing.T) {
	for name, tt := range map[string]struct {
		on          func(*sessionTest, http.ResponseWriter, *http.Request)
		least, most int32 // proofs in an hour
	}{
		"500":                 {func(_ *sessionTest, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }, 60, 400},
		"410 of a middle box": {func(_ *sessionTest, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(410) }, 60, 400},
		"nonce too old":       {func(_ *sessionTest, w http.ResponseWriter, _ *http.Request) { refuse(w, 401, wire.ProblemNonce, 0) }, 60, 400},
		"no worker": {func(_ *sessionTest, w http.ResponseWriter, _ *http.Request) {
			refuse(w, 503, wire.ProblemNoWorker, 10*time.Minute)
		}, 5, 7},
		"conflict": {func(_ *sessionTest, w http.ResponseWriter, _ *http.Request) {
			refuse(w, 409, problem.TypeConflict, 10*time.Minute)
		}, 5, 7},
		"drops": {func(st *sessionTest, w http.ResponseWriter, r *http.Request) { st.open(nil, w, r).CloseNow() }, 60, 400},
		"silent": {func(st *sessionTest, w http.ResponseWriter, r *http.Request) {
			ws := st.open(nil, w, r)
			st.take(nil, ws)
		}, 60, 240},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				st, stop, _ := newSessionTest(t, func(st *sessionTest, _ int, w http.ResponseWriter, r *http.Request) { tt.on(st, w, r) })
				time.Sleep(time.Hour)
				if err := stop(); err != nil {
					t.Errorf("Run = %v", err)
				}
				if n := st.proofs.Load(); n < tt.least || n > tt.most {
					t.Errorf("%d handshakes in an hour, want %d to %d", n, tt.least, tt.most)
				}
				if name == "silent" && st.states.count("down: the NVR said nothing for 15s") == 0 {
					t.Errorf("states %q", st.states.all()[:2])
				}
			})
		})
	}
}

// TestSessionComesBackAfterAnOutage, and stays while it is pinged.
func TestSessionComesBackAfterAnOutage(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st, stop, _ := newSessionTest(t, func(st *sessionTest, n int, w http.ResponseWriter, r *http.Request) {
			if n%5 != 0 {
				w.WriteHeader(502)
				return
			}
			st.serveSession(t, st.open(t, w, r))
		})
		time.Sleep(10 * time.Minute)
		if err := stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
		if st.states.count("up") != 1 || st.proofs.Load() != 5 || st.got.count("*wire.Pong") < 80 {
			t.Errorf("up %d times after %d handshakes, %d pongs", st.states.count("up"), st.proofs.Load(), st.got.count("*wire.Pong"))
		}
	})
}

func TestRevokeOverTheLineIsFinal(t *testing.T) {
	bubble(t, func(t *testing.T) {
		st, stop, ended := newSessionTest(t, func(st *sessionTest, _ int, w http.ResponseWriter, r *http.Request) {
			ws := st.open(t, w, r)
			tell(t, ws, &wire.Revoke{Why: "the channel was deleted"})
			st.serveSession(t, ws)
		})
		<-ended
		err := stop()
		if !errors.Is(err, vms.ErrRevoked) || !strings.Contains(err.Error(), "the channel was deleted") {
			t.Errorf("Run = %v", err)
		}
		if n := st.proofs.Load(); n != 1 {
			t.Errorf("%d handshakes", n)
		}
	})
}

func TestSessionNeverTrustsAServerThatAsksNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		client, stopServer := serve(t, func(w http.ResponseWriter, r *http.Request) {
			ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{wire.SessionProtocol}})
			if err == nil {
				<-ws.CloseRead(context.Background()).Done()
			}
		})
		defer stopServer()
		s := &Session{URL: "ws://nvr.test/", Credential: Credential{Hub: "hub_1", Key: keyOf(1)}, Client: client}
		if _, err := s.dial(t.Context()); err == nil || !strings.Contains(err.Error(), "no proof") {
			t.Errorf("dial = %v", err)
		}
		for _, bad := range []string{"http://nvr.test/", "ws://", "::", ""} {
			s.URL = bad
			if _, err := s.dial(t.Context()); !errors.Is(err, vms.ErrInvalid) {
				t.Errorf("dial %q = %v", bad, err)
			}
		}
	})
}
