package agent

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/zipato/vms/agent/clocktls"
	"github.com/zipato/vms/agent/lan"
	"github.com/zipato/vms/pkg/problem"
	"github.com/zipato/vms/pkg/seal"
	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/wire"
)

// cloudStub enrols hubs, and answers handshakes as the test says.
type cloudStub struct {
	t      *testing.T
	srv    *httptest.Server
	signer *token.Signer
	// refuse is the problem that a stream's proof is answered with; empty: it is let in.
	refuse string
	status int
	proofs atomic.Int32 // of streams
	ahead  time.Duration

	worker worker
	mute   atomic.Bool // gaps are heard and not committed
	conns  conns

	mu     sync.Mutex
	states []string // that streams told
	gaps   []vms.Gap
	hubKey ed25519.PublicKey // of the hub that was enrolled last
	line   chan wire.SessionMessage
	toHub  chan wire.SessionMessage // over the control line
}

func newCloud(t *testing.T) *cloudStub {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := token.NewSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	c := &cloudStub{t: t, signer: signer, line: make(chan wire.SessionMessage, 100), toHub: make(chan wire.SessionMessage)}
	c.srv = httptest.NewServer(http.HandlerFunc(c.serve))
	t.Cleanup(func() {
		c.srv.CloseClientConnections()
		c.srv.Close()
		http.DefaultClient.CloseIdleConnections()
	})
	return c
}

func (c *cloudStub) nvrURL() string {
	return "ws" + strings.TrimPrefix(c.srv.URL, "http") + "/session/v1"
}

func (c *cloudStub) serve(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/api/v1/enroll" {
		var in struct {
			PublicKey string `json:"public_key"`
		}
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			c.t.Errorf("enrolment: %v", err)
		}
		key, err := base64.RawURLEncoding.DecodeString(in.PublicKey)
		if err != nil {
			c.t.Errorf("enrolment: %v", err)
		}
		c.mu.Lock()
		c.hubKey = key
		c.mu.Unlock()
		w.WriteHeader(201)
		_ = json.NewEncoder(w).Encode(map[string]any{"hub_id": "hub_1", "nvr_url": c.nvrURL(), "token_keys": c.signer.JWKS()})
		return
	}
	if r.URL.Path == clocktls.Path {
		_ = json.NewEncoder(w).Encode(map[string]any{"server_time": time.Now().UTC()})
		return
	}
	if r.URL.Path == pushPath {
		c.worker.serve(c.t, &c.conns, w, r)
		return
	}
	if _, ok, _ := wire.ParseProof(r.Header); !ok {
		w.Header().Set("WWW-Authenticate", wire.Challenge("n"))
		problem.Write(w, &problem.Problem{Type: wire.ProblemNonce, Status: 401, Title: "Prove"})
		return
	}
	sid := vms.SID(r.URL.Query().Get("sid"))
	stream := sid != ""
	if stream {
		c.proofs.Add(1)
		if c.refuse != "" {
			problem.Write(w, &problem.Problem{Type: c.refuse, Status: c.status, Title: "Refused", Detail: "The test says no."})
			return
		}
	}
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{wire.SessionProtocol}})
	if err != nil {
		return
	}
	defer c.conns.add(ws)()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	send := func(m wire.SessionMessage) {
		if data, err := wire.EncodeSession(m); err == nil {
			_ = ws.Write(ctx, websocket.MessageText, data)
		}
	}
	stopPings := every(5*time.Second, func() { send(&wire.Ping{}) })
	defer stopPings()
	if !stream {
		wg.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case m := <-c.toHub:
					send(m)
				}
			}
		})
	}
	for {
		_, data, err := ws.Read(ctx)
		if err != nil {
			return
		}
		m, err := wire.DecodeSession(data)
		if err != nil {
			c.t.Errorf("message of the agent: %v", err)
			return
		}
		switch m := m.(type) {
		case *wire.TimeQuery:
			send(&wire.TimeAnswer{Sent: m.Sent, ServerTime: time.Now().Add(c.ahead)})
		case *wire.StreamState:
			c.mu.Lock()
			c.states = append(c.states, m.State)
			c.mu.Unlock()
		case *wire.SessionHello:
			if stream && c.worker.there.Load() {
				send(c.assign(sid))
			}
		case *wire.Gaps:
			answer := &wire.Committed{}
			c.mu.Lock()
			for _, g := range m.Gaps {
				c.gaps = append(c.gaps, g)
				answer.IDs = append(answer.IDs, g.ID)
			}
			c.mu.Unlock()
			if !c.mute.Load() {
				send(answer)
			}
		}
		if !stream {
			c.line <- m
		}
	}
}

// desired is a document for the hub that was enrolled last.
func (c *cloudStub) desired(rev int64, streams ...wire.DesiredStream) *wire.Desired {
	return &wire.Desired{Hub: "hub_1", Revision: rev, Issued: time.Now(), Streams: streams}
}

// want is a stream that the cloud wants.
func (c *cloudStub) want(t *testing.T, ch vms.ChannelID, mode wire.Mode, cam vms.Camera) wire.DesiredStream {
	t.Helper()
	data, err := json.Marshal(cam)
	if err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	sealed, err := seal.Seal(c.hubKey, "camera/"+string(ch), data)
	if err != nil {
		t.Fatal(err)
	}
	return wire.DesiredStream{Channel: ch, SID: vms.SID("sid_" + strings.TrimPrefix(string(ch), "ch_")), NVRURL: c.nvrURL(), Mode: mode, Active: true, Camera: sealed}
}

// unwanted is a stream that the cloud only declares.
func (c *cloudStub) unwanted(t *testing.T, ch vms.ChannelID, cam vms.Camera) wire.DesiredStream {
	t.Helper()
	s := c.want(t, ch, wire.ModeOnDemand, cam)
	s.Active = false
	return s
}

// reported reads what the hub says over the control line until ok.
func (c *cloudStub) reported(t *testing.T, what string, ok func(*wire.Reported) bool) *wire.Reported {
	t.Helper()
	return reported(t, c.line, what, ok)
}

// answer waits for the answer to a command over the control line.
func (c *cloudStub) answer(t *testing.T, id string) *wire.CommandReply {
	t.Helper()
	return answer(t, c.line, id)
}

func reported(t *testing.T, said <-chan wire.SessionMessage, what string, ok func(*wire.Reported) bool) *wire.Reported {
	t.Helper()
	var last *wire.Reported
	for {
		select {
		case m := <-said:
			if r, is := m.(*wire.Reported); is {
				if last = r; ok(r) {
					return r
				}
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: the hub said %+v last", what, last)
		}
	}
}

func answer(t *testing.T, said <-chan wire.SessionMessage, id string) *wire.CommandReply {
	t.Helper()
	for {
		select {
		case m := <-said:
			if r, ok := m.(*wire.CommandReply); ok && r.ID == id {
				return r
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("no answer to %s", id)
		}
	}
}

// item returns what a report says of a channel.
func item(r *wire.Reported, ch vms.ChannelID) wire.ReportedItem {
	for _, s := range r.Streams {
		if s.Channel == ch {
			return s
		}
	}
	return wire.ReportedItem{}
}

func (c *cloudStub) assign(sid vms.SID) *wire.Assign {
	now := time.Now()
	return &wire.Assign{
		SID: sid, Channel: "ch_1", Generation: vms.Generation(c.proofs.Load()), Worker: "wrk_1", Why: "start",
		WorkerURL: "ws" + strings.TrimPrefix(c.srv.URL, "http") + pushPath, Ticket: "ticket", TicketExpires: now.Add(time.Hour),
		Segment: wire.SegmentOptions{RecordingMS: 2000, ChunkMS: 200}, ServerTime: now,
	}
}

// conns are the WebSockets that are open.
type conns struct {
	mu  sync.Mutex
	all map[*websocket.Conn]bool
}

// add returns how to close and forget one.
func (c *conns) add(ws *websocket.Conn) func() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all == nil {
		c.all = make(map[*websocket.Conn]bool)
	}
	c.all[ws] = true
	return func() {
		c.mu.Lock()
		delete(c.all, ws)
		c.mu.Unlock()
		ws.CloseNow()
	}
}

// cut breaks all of them: agents come back, and hear how things are now.
func (c *conns) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for ws := range c.all {
		ws.CloseNow()
	}
}

const pushPath = "/push/v1"

// worker takes what the lanes bring. With store, all of it is durable at once.
type worker struct {
	there, store atomic.Bool

	mu   sync.Mutex
	have vms.ChunkSet // taken and not preview
	ends []wire.End
}

func (k *worker) serve(t *testing.T, all *conns, w http.ResponseWriter, r *http.Request) {
	if !k.there.Load() {
		problem.Write(w, &problem.Problem{Type: wire.ProblemBusy, Status: 503, Title: "Not now"})
		return
	}
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{wire.PushProtocol}})
	if err != nil {
		return
	}
	defer all.add(ws)()
	ws.SetReadLimit(wire.MaxControl + 16<<20)
	ctx := context.Background()
	send := func(m wire.PushMessage) {
		if data, err := wire.EncodePush(m); err == nil {
			_ = ws.Write(ctx, websocket.MessageText, data)
		}
	}
	const credit = 1 << 30
	var received atomic.Uint64
	var greeted atomic.Bool
	ack := func() {
		if !greeted.Load() {
			return
		}
		m := &wire.Ack{Received: received.Load(), Credit: credit}
		if k.store.Load() {
			m.Durable = k.chunks()
		}
		send(m)
	}
	stop := every(200*time.Millisecond, ack)
	defer stop()
	for {
		typ, data, err := ws.Read(ctx)
		if err != nil {
			return
		}
		if typ == websocket.MessageBinary {
			c, err := wire.DecodeChunk(data)
			if err != nil {
				t.Errorf("chunk of the agent: %v", err)
				return
			}
			received.Add(1)
			if !c.Flags.Has(vms.FlagPreview) {
				k.mu.Lock()
				k.have.Add(vms.ChunkRange{Epoch: c.Epoch, First: c.Seq, Last: c.Seq})
				k.mu.Unlock()
			}
			continue
		}
		m, err := wire.DecodePush(data)
		if err != nil {
			t.Errorf("message of the agent: %v", err)
			return
		}
		switch m := m.(type) {
		case *wire.Hello:
			send(&wire.Welcome{Instance: "inst_1", Generation: 1, Have: k.chunks(), MaxChunk: 8 << 20, Credit: credit, ResumeTicket: "resume"})
			greeted.Store(true)
		case *wire.End:
			k.mu.Lock()
			k.ends = append(k.ends, *m)
			k.mu.Unlock()
		}
	}
}

// every calls f over and over until stop.
func every(d time.Duration, f func()) (stop func()) {
	t := time.NewTicker(d)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-t.C:
				f()
			}
		}
	})
	return func() {
		t.Stop()
		close(done)
		wg.Wait()
	}
}

// chunks returns what was taken over.
func (k *worker) chunks() []vms.ChunkRange {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.have.Ranges()
}

// token returns one for a channel, edited.
func (c *cloudStub) token(t *testing.T, edit func(*token.Stream)) string {
	t.Helper()
	s := token.Stream{NVR: c.nvrURL(), SID: "sid_1", Channel: "ch_1", Hub: "hub_1", Issued: time.Now(), Expires: time.Now().Add(time.Hour)}
	if edit != nil {
		edit(&s)
	}
	tok, err := c.signer.SignStream(s)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// tokenOf returns a token for another channel than the stub's own.
func (c *cloudStub) tokenOf(t *testing.T, ch vms.ChannelID) string {
	t.Helper()
	return c.token(t, func(s *token.Stream) { s.Channel, s.SID = ch, vms.SID("sid_lan_"+string(ch)) })
}

// hub is an agent that runs, and its local API.
type hub struct {
	t    *testing.T
	a    *Agent
	url  string
	key  string
	stop func()
}

// enrolled returns the directory of a hub that the cloud knows.
func enrolled(t *testing.T, c *cloudStub) string {
	t.Helper()
	dir := t.TempDir()
	if _, err := Enroll(t.Context(), c.srv.URL, "code", "test", dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func runHub(t *testing.T, c *cloudStub) *hub {
	t.Helper()
	return runHubWith(t, Config{Dir: enrolled(t, c), Drain: 50 * time.Millisecond})
}

func runHubWith(t *testing.T, cfg Config) *hub {
	t.Helper()
	key, err := os.ReadFile(filepath.Join(cfg.Dir, "lan-key"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Listener, cfg.Log = l, vmstest.Log(t)
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	h := &hub{t: t, a: a, url: "http://" + l.Addr().String(), key: strings.TrimSpace(string(key))}
	h.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	t.Cleanup(h.stop)
	return h
}

// call does one request and returns status and body.
func (h *hub) call(method, path string, body any) (int, string) {
	h.t.Helper()
	data, err := json.Marshal(body)
	if err != nil {
		h.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(h.t.Context(), method, h.url+path, bytes.NewReader(data))
	if err != nil {
		h.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+h.key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		h.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func (h *hub) start(tok string, cam vms.Camera) (int, string) {
	return h.call("POST", "/v1/streams", map[string]any{"token": tok, "camera": cam})
}

func (h *hub) streams() []lan.Stream {
	h.t.Helper()
	_, body := h.call("GET", "/v1/streams", nil)
	var out struct{ Streams []lan.Stream }
	if err := json.Unmarshal([]byte(body), &out); err != nil {
		h.t.Fatalf("%v: %s", err, body)
	}
	return out.Streams
}

// until polls the only stream until ok.
func (h *hub) until(what string, ok func(lan.Stream) bool) lan.Stream {
	h.t.Helper()
	var last []lan.Stream
	h.poll(func() bool {
		last = h.streams()
		return len(last) == 1 && ok(last[0])
	}, func() { h.t.Fatalf("%s: streams are %+v", what, last) })
	return last[0]
}

// empty polls until no stream is listed.
func (h *hub) empty() {
	h.t.Helper()
	var last []lan.Stream
	h.poll(func() bool {
		last = h.streams()
		return len(last) == 0
	}, func() { h.t.Fatalf("still there: %+v", last) })
}

func (h *hub) poll(ok func() bool, fail func()) {
	h.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			fail()
		}
		select {
		case <-h.t.Context().Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}
