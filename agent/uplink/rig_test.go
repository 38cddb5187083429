package uplink

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	"github.com/zipato/vms/pkg/problem"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/wire"
)

// network is a listener and a client that meet in memory, so that a real HTTP
// server and real WebSockets run on the fake clock of a synctest bubble.
type network struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (n *network) Accept() (net.Conn, error) {
	select {
	case c := <-n.conns:
		return c, nil
	case <-n.done:
		return nil, net.ErrClosed
	}
}

func (n *network) Close() error { n.once.Do(func() { close(n.done) }); return nil }

func (*network) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 80} }

// client dials host names that begin with "down" in vain.
func (n *network) client() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, // nothing outlives its test
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			if addr == "down.test:80" {
				return nil, errors.New("no route to host")
			}
			a, b := net.Pipe()
			select {
			case n.conns <- b:
				return a, nil
			case <-n.done:
				return nil, errors.New("connection refused")
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		},
	}}
}

// serve runs handler until stop.
func serve(t *testing.T, handler http.HandlerFunc) (client *http.Client, stop func()) {
	n := &network{conns: make(chan net.Conn), done: make(chan struct{})}
	var handlers sync.WaitGroup // Close does not wait for those that upgraded
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handlers.Add(1)
		defer handlers.Done()
		handler(w, r)
	})}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := srv.Serve(n); !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
	}()
	return n.client(), func() { srv.Close(); <-ended; handlers.Wait() }
}

// bubble runs f on a fake clock with nothing left behind.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	vmstest.NoLeaks(t)
	synctest.Test(t, f)
}

func keyOf(seed byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(slices.Repeat([]byte{seed}, ed25519.SeedSize))
}

func refuse(w http.ResponseWriter, status int, typ string, after time.Duration) {
	problem.Write(w, &problem.Problem{Type: typ, Status: status, Title: "Refused", Detail: "Refused by the test.", RetryAfter: after})
}

// log collects what happened, from any goroutine.
type log struct {
	mu    sync.Mutex
	lines []string
}

func (l *log) add(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, fmt.Sprintf(format, args...))
}

func (l *log) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.lines)
}

func (l *log) count(line string) (n int) {
	for _, s := range l.all() {
		if s == line {
			n++
		}
	}
	return n
}

// source is a spool: items are live's region, backlog is what backfill brings.
// A cursor stands after what the worker has.
type source struct {
	log
	mu       sync.Mutex
	items    []wire.Outgoing
	backlog  []wire.Outgoing
	stored   vms.ChunkSet // of the backlog
	received vms.ChunkSet // as cursors were told
	changed  chan struct{}
	noInit   bool
	lag      time.Duration // of every live cursor
}

func newSource(items ...wire.Outgoing) *source {
	return &source{items: items, changed: make(chan struct{})}
}

// put changes the source, and wakes whoever waits for that.
func (s *source) put(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *source) append(items ...wire.Outgoing) {
	s.put(func() { s.items = append(s.items, items...) })
}

// chunk makes one of a second; each tenth from the first on begins a recording.
func chunk(seq uint64, size int) wire.Outgoing {
	payload := make([]byte, 16+size)
	payload[3] = 8
	copy(payload[4:], "moof")
	copy(payload[12:], "mdat")
	c := &vms.Chunk{Epoch: 0xe, Seq: seq, Init: 1, Start: footage(seq), End: footage(seq + 1), MoofLen: 8, Payload: payload, CRC: wire.Checksum(payload)}
	if seq%10 == 1 {
		c.Flags = vms.FlagFirst | vms.FlagKey
	}
	return wire.Outgoing{Chunk: c}
}

func footage(seq uint64) time.Time { return time.Unix(1_800_000_000+int64(seq), 0) }

func chunks(from, to uint64, size int) (out []wire.Outgoing) {
	for seq := from; seq <= to; seq++ {
		out = append(out, chunk(seq, size))
	}
	return out
}

// cursor hands out list[i] up to list[end], end -1 for never.
type cursor struct {
	s      *source
	name   string
	list   *[]wire.Outgoing
	have   vms.ChunkSet
	i, end int
	moved  bool // the end was said
	closed bool
	// A successor begins at the first chunk with FlagFirst from so many items on.
	after int
	pred  *cursor
}

func (s *source) cursor(name string, list *[]wire.Outgoing, have []vms.ChunkRange) *cursor {
	c := &cursor{s: s, name: name, list: list, end: -1, after: -1}
	for _, r := range have {
		c.have.Add(r)
	}
	s.add("%s %v", name, have)
	return c
}

func (s *source) Live(_ vms.Instance, have []vms.ChunkRange) Cursor {
	return s.cursor("live", &s.items, have)
}

func (s *source) Backfill(_ vms.Instance, have []vms.ChunkRange, newestFirst bool) Cursor {
	if newestFirst {
		return s.cursor("newest", &s.backlog, have)
	}
	return s.cursor("backfill", &s.backlog, have)
}

func (s *source) BackfillWanted() (bool, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.backlog, func(o wire.Outgoing) bool {
		return o.Chunk != nil && !s.stored.Has(o.Chunk.Epoch, o.Chunk.Seq)
	}), s.changed
}

func (c *cursor) Next(ctx context.Context) (wire.Outgoing, error) {
	for {
		c.s.mu.Lock()
		item, ok, eof := c.next()
		changed := c.s.changed
		c.s.mu.Unlock()
		switch {
		case eof:
			return wire.Outgoing{}, io.EOF
		case ok:
			return item, nil
		}
		select {
		case <-ctx.Done():
			return wire.Outgoing{}, ctx.Err()
		case <-changed:
		}
	}
}

func (c *cursor) next() (item wire.Outgoing, ok, eof bool) {
	if c.after >= 0 { // a successor looks for its beginning
		i := first(*c.list, c.after)
		if i < 0 {
			return wire.Outgoing{}, false, false
		}
		c.i, c.after = i, -1
	}
	end := len(*c.list)
	if c.end >= 0 { // handed over
		if i := first(*c.list, c.end); i >= 0 {
			end = i
		}
	}
	for c.i < end {
		item := (*c.list)[c.i]
		c.i++
		if ch := item.Chunk; ch == nil || !c.have.Has(ch.Epoch, ch.Seq) && (c.list == &c.s.items || !c.s.stored.Has(ch.Epoch, ch.Seq)) {
			return item, true, false
		}
	}
	switch {
	case c.list == &c.s.backlog:
		return item, false, true
	case end == len(*c.list):
		return item, false, false
	case c.moved:
		return item, false, true
	}
	c.moved = true
	return wire.Outgoing{End: &wire.End{Epoch: 0xe, Seq: uint64(end), Cause: "moved"}}, true, false
}

func first(list []wire.Outgoing, from int) int {
	for i := from; i < len(list); i++ {
		if list[i].Chunk != nil && list[i].Chunk.Flags.Has(vms.FlagFirst) {
			return i
		}
	}
	return -1
}

func (c *cursor) Behind() (int64, time.Duration) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	return 0, c.s.lag
}

func (c *cursor) HandOver(_ vms.Instance, have []vms.ChunkRange) Cursor {
	succ := c.s.cursor("successor", c.list, have)
	c.s.put(func() {
		if c.end >= 0 && first(*c.list, c.end) >= 0 { // to another, which is gone
			succ.i = first(*c.list, c.end)
			return
		}
		c.end, succ.after, succ.pred = len(*c.list), len(*c.list), c
	})
	return succ
}

func (c *cursor) Received(ranges []vms.ChunkRange) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	for _, r := range ranges {
		c.s.received.Add(r)
	}
}

func (c *cursor) Close() {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.after >= 0 && first(*c.list, c.after) < 0 {
		c.pred.end = -1 // it goes on
	}
	if c.closed {
		c.s.add("closed twice: %s", c.name)
	}
	c.closed = true
	c.s.add("close %s", c.name)
}

func (s *source) Init(e vms.Epoch, id uint32) (vms.Init, bool) {
	return vms.Init{Epoch: e, ID: id, Segment: make([]byte, 16), Tracks: []vms.Track{{ID: 1, Kind: "video", Codec: "avc1.4d001f", Timescale: 90000}}}, !s.noInit
}

func (s *source) Durable(r []vms.ChunkRange) {
	if len(r) == 0 {
		return
	}
	s.add("durable %v", r)
	s.put(func() {
		for _, r := range r {
			s.stored.Add(r)
		}
	})
}

func (s *source) Skip(e vms.Epoch, seq uint64) {
	s.add("skip %d", seq)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.items = slices.DeleteFunc(s.items, func(o wire.Outgoing) bool { return o.Chunk != nil && o.Chunk.Epoch == e && o.Chunk.Seq == seq })
}

func (s *source) Epochs() []vms.Epoch { return []vms.Epoch{0xe} }

// worker is the server's side of one lane connection.
type worker struct {
	t    testing.TB
	ws   *websocket.Conn
	got  *log
	sent int64 // bytes of binary messages

	mu   sync.Mutex
	news []vms.ChunkRange
}

// store makes r durable with the next acknowledgement.
func (w *worker) store(r vms.ChunkRange) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.news = append(w.news, r)
}

func (w *worker) stored() []vms.ChunkRange {
	w.mu.Lock()
	defer w.mu.Unlock()
	news := w.news
	w.news = nil
	return news
}

// accept upgrades, and takes the hello.
func accept(t testing.TB, w http.ResponseWriter, r *http.Request, got *log) *worker {
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{wire.PushProtocol}})
	if err != nil {
		t.Errorf("accept: %v", err)
		return nil
	}
	ws.SetReadLimit(64 << 20)
	return &worker{t: t, ws: ws, got: got}
}

func (w *worker) send(m wire.PushMessage) {
	data, err := wire.EncodePush(m)
	if err != nil {
		w.t.Errorf("encode: %v", err)
		return
	}
	_ = w.ws.Write(context.Background(), websocket.MessageText, data) // the agent may be gone: that is its right
}

// take reads one message and notes it, or returns the end of the connection.
func (w *worker) take() error {
	typ, data, err := w.ws.Read(context.Background())
	if err != nil {
		w.got.add("closed %d", websocket.CloseStatus(err))
		return err
	}
	if typ == websocket.MessageBinary {
		c, err := wire.DecodeChunk(data)
		if err != nil {
			w.t.Errorf("chunk: %v", err)
		}
		w.sent += int64(len(data))
		w.got.add("chunk %d", c.Seq)
		return nil
	}
	m, err := wire.DecodePush(data)
	if err != nil {
		w.t.Errorf("message: %v", err)
		return nil
	}
	switch m := m.(type) {
	case *wire.Hello:
		w.got.add("hello %s %v", m.Lane, m.Epochs)
	case *wire.InitMessage:
		w.got.add("init %d", m.ID)
	case *wire.GapMessage:
		w.got.add("gap %d-%d %s", m.Chunks.First, m.Chunks.Last, m.Cause)
	case *wire.Pressure:
		w.got.add("pressure %d/%d", m.Held, m.Budget)
	case *wire.End:
		w.got.add("end %d %s", m.Seq, m.Cause)
	default:
		w.t.Errorf("unexpected %T", m)
	}
	return nil
}

// takeAll reads until the connection ends, and acknowledges every 5 s.
func (w *worker) takeAll() {
	over := make(chan struct{})
	defer close(over)
	go func() {
		for {
			select {
			case <-over:
				return
			case <-time.After(5 * time.Second):
				w.send(&wire.Ack{Credit: plenty})
			}
		}
	}()
	w.takeQuietly()
}

func (w *worker) takeQuietly() {
	for w.take() == nil {
	}
}

func (w *worker) refuse(m *wire.ErrorMessage) {
	w.send(m)
	w.ws.Close(websocket.StatusCode(m.Class.Code()), m.Code)
}

const plenty = 1 << 40

func welcome() *wire.Welcome {
	return &wire.Welcome{Instance: "inst_1", Generation: 1, MaxChunk: wire.MinMaxChunk, Credit: plenty}
}

// lane returns one with everything noted in states.
func lane(t *testing.T, client *http.Client, src *source, as *Assigned, states *log) *Lane {
	return &Lane{
		Kind: vms.LaneLive, Agent: "test", Source: src, Assigned: as, Log: vmstest.Log(t), Client: client,
		WantWorker: func(m wire.WantWorker) { states.add("want %s", m.Why) },
		OnState: func(err error) {
			if err == nil {
				states.add("up")
				return
			}
			states.add("down: %v", err)
		},
		OnWatched: func(on bool) {
			if on {
				states.add("watched")
			}
		},
	}
}

func assign(generation vms.Generation, url, ticket string) *wire.Assign {
	return &wire.Assign{Generation: generation, Worker: "w1", WorkerURL: url, Ticket: ticket}
}

// running runs f until stop; stop waits for it and returns its error.
func running(f func(context.Context) error) (stop func() error, ended <-chan struct{}) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	var err error
	go func() {
		defer close(done)
		err = f(ctx)
	}()
	return func() error { cancel(); <-done; return err }, done
}
