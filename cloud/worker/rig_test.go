package worker_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	"github.com/zipato/vms/cloud/worker"
	"github.com/zipato/vms/cloud/worker/segment"
	"github.com/zipato/vms/cloud/worker/upload"
	"github.com/zipato/vms/pkg/cmaf"
	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/wire"
)

// rig is a worker with everything that it meets, on connections in memory: in
// a synctest bubble, where minutes cost nothing.
type rig struct {
	t      *testing.T
	w      *worker.Worker
	dir    string
	store  *store
	nvr    *nvr
	signer *token.Signer
	ln     *pipes
	srv    *http.Server
	stop   context.CancelFunc
	ended  chan error
	wg     sync.WaitGroup
	dead   atomic.Bool // its process was killed: nothing of it reaches anybody
	over   bool        // it was shut down, or there is another process in its place
}

// inBubble runs f with a rig, and ends the worker after it.
func inBubble(t *testing.T, f func(r *rig), options ...func(*worker.Config)) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, options...)
		defer synctest.Wait()
		defer r.shutdown()
		f(r)
	})
}

func newRig(t *testing.T, options ...func(*worker.Config)) *rig {
	t.Helper()
	signer, err := token.NewSigner(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)))
	if err != nil {
		t.Fatal(err)
	}
	v := signer.Verifier()
	r := &rig{t: t, dir: t.TempDir(), store: newStore(), nvr: &nvr{}, signer: signer, ended: make(chan error, 1), ln: newPipes()}
	cfg := worker.Config{
		ID: "w1", Dir: r.dir, Store: r.store, NVR: r.nvr, Log: vmstest.Log(t),
		CheckPush: func(s string) (token.Push, error) { return v.VerifyPush(s, "w1", time.Now()) },
		CheckView: func(s string) (token.View, error) { return v.VerifyView(s, "w1", time.Now()) },
	}
	for _, o := range options {
		o(&cfg)
	}
	r.dir = cfg.Dir
	cfg.Store, cfg.NVR = mortalStore{cfg.Store, &r.dead}, mortalNVR{cfg.NVR, &r.dead}
	if r.w, err = worker.New(cfg); err != nil {
		t.Fatal(err)
	}
	r.srv = &http.Server{Handler: r.w.PushHandler(), ReadHeaderTimeout: time.Minute}
	ctx, stop := context.WithCancel(t.Context())
	r.stop = stop
	r.wg.Go(func() { _ = r.srv.Serve(r.ln) })
	r.wg.Go(func() { r.ended <- r.w.Run(ctx) })
	return r
}

// shutdown tells the worker to go, and checks what it leaves behind.
func (r *rig) shutdown() {
	r.t.Helper()
	if r.over {
		return
	}
	r.over = true
	r.stop()
	r.wait()
	// Only recordings that nobody has stored, for the next start.
	found, dropped, err := segment.Recover(r.dir)
	if err != nil || len(dropped) > 0 {
		r.t.Errorf("left in the worker's directory: %v, %v", dropped, err)
	}
	for _, f := range found {
		r.store.set(func(s *store) {
			for _, o := range s.objects {
				if o.Channel == f.Channel() && o.Chunks.Contains(f.Range()) {
					r.t.Errorf("%s of %s is left in the worker's directory, and stored", f.Range(), f.Channel())
				}
			}
		})
		if err := f.Discard(); err != nil {
			r.t.Error(err)
		}
	}
	r.tmpfsIsEmpty()
}

func (r *rig) wait() {
	r.t.Helper()
	if err := <-r.ended; err != nil {
		r.t.Errorf("Run = %v", err)
	}
	_ = r.srv.Close()
	r.wg.Wait()
}

// tmpfsIsEmpty checks that there are no recordings.
func (r *rig) tmpfsIsEmpty() {
	r.t.Helper()
	fs, err := os.ReadDir(r.dir)
	fs = slices.DeleteFunc(fs, func(f os.DirEntry) bool { return f.Name() == "lock" })
	if err != nil || len(fs) > 0 {
		r.t.Errorf("left in the worker's directory: %v, %v", fs, err)
	}
}

// restart is the next process with the same directory, so long after this one was
// told to stop, or was killed in this moment.
func (r *rig) restart(kill bool, later time.Duration, options ...func(*worker.Config)) *rig {
	r.t.Helper()
	r.over = true
	dir := r.dir
	if kill {
		r.dead.Store(true)
		dir = r.t.TempDir()
		if err := os.CopyFS(dir, os.DirFS(r.dir)); err != nil {
			r.t.Fatal(err)
		}
	}
	r.stop()
	r.wait()
	time.Sleep(later)
	b := newRig(r.t, append([]func(*worker.Config){func(c *worker.Config) { c.Dir, c.Store, c.NVR = dir, r.store, r.nvr }}, options...)...)
	b.store, b.nvr = r.store, r.nvr
	return b
}

var errDead = errors.New("killed")

// mortalStore is the store of a process that may be killed.
type mortalStore struct {
	upload.Store
	dead *atomic.Bool
}

func (m mortalStore) Put(ctx context.Context, r vms.Recording, body io.ReadSeeker) error {
	if m.dead.Load() {
		return errDead
	}
	return m.Store.Put(ctx, r, body)
}

// mortalNVR is the NVR of a process that may be killed.
type mortalNVR struct {
	worker.NVR
	dead *atomic.Bool
}

func (m mortalNVR) StreamStarted(ctx context.Context, e vms.StreamEvent) error {
	if m.dead.Load() {
		return errDead
	}
	return m.NVR.StreamStarted(ctx, e)
}

func (m mortalNVR) StreamEnded(ctx context.Context, e vms.StreamEvent) error {
	if m.dead.Load() {
		return errDead
	}
	return m.NVR.StreamEnded(ctx, e)
}

func (m mortalNVR) RecordingUploaded(ctx context.Context, r vms.Recording) error {
	if m.dead.Load() {
		return errDead
	}
	return m.NVR.RecordingUploaded(ctx, r)
}

// ticket is the NVR's, for worker w1.
func (r *rig) ticket(ch vms.ChannelID, gen vms.Generation) string {
	r.t.Helper()
	return r.sign(token.Push{Worker: "w1", Channel: ch, SID: "sid_1", Hub: "hub_1", Generation: gen, Expires: time.Now().Add(time.Hour)})
}

func (r *rig) sign(p token.Push) string {
	r.t.Helper()
	s, err := r.signer.SignPush(p)
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

// pipes is a listener whose connections are in memory.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case p.conns <- there:
		return here, nil
	case <-p.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// agent is a scripted peer: it sends what it is told, and takes what comes.
type agent struct {
	t    *testing.T
	c    *websocket.Conn
	in   chan wire.PushMessage
	over error // why reading ended; after in was closed

	welcome *wire.Welcome
	durable vms.ChunkSet
	last    wire.Ack
	refused wire.ErrorMessage
	sent    int64 // of binary messages, by paced
}

func (r *rig) dial(ticket, protocol string) (*agent, *http.Response, error) {
	tr := &http.Transport{DialContext: r.ln.dial, DisableKeepAlives: true}
	header := http.Header{}
	if ticket != "" {
		header.Set("Authorization", "Bearer "+ticket)
	}
	opts := &websocket.DialOptions{HTTPClient: &http.Client{Transport: tr}, HTTPHeader: header}
	if protocol != "" {
		opts.Subprotocols = []string{protocol}
	}
	c, resp, err := websocket.Dial(r.t.Context(), "ws://worker/push/v1", opts)
	if err != nil {
		return nil, resp, err
	}
	c.SetReadLimit(wire.MaxControl)
	a := &agent{t: r.t, c: c, in: make(chan wire.PushMessage, 10_000)}
	r.wg.Go(func() {
		defer close(a.in)
		for {
			_, data, err := c.Read(context.Background())
			if err != nil {
				a.over = err
				_ = c.CloseNow()
				return
			}
			m, err := wire.DecodePush(data)
			if err != nil {
				r.t.Errorf("the worker sent %q: %v", data, err)
				continue
			}
			a.in <- m
		}
	})
	return a, resp, nil
}

// open dials and exchanges hello and welcome.
func (r *rig) open(ticket string, lane vms.Lane, epochs ...vms.Epoch) *agent {
	r.t.Helper()
	a, _, err := r.dial(ticket, wire.PushProtocol)
	if err != nil {
		r.t.Fatal(err)
	}
	a.send(&wire.Hello{Agent: "test", Lane: lane, Epochs: epochs})
	m := <-a.in
	w, ok := m.(*wire.Welcome)
	if !ok {
		r.t.Fatalf("the worker answered %#v (%v)", m, a.over)
	}
	a.welcome = w
	return a
}

func (a *agent) text(s string) {
	a.t.Helper()
	if err := a.c.Write(context.Background(), websocket.MessageText, []byte(s)); err != nil {
		a.t.Fatal(err)
	}
}

func (a *agent) send(m wire.PushMessage) {
	a.t.Helper()
	data, err := wire.EncodePush(m)
	if err != nil {
		a.t.Fatal(err)
	}
	a.text(string(data))
}

// binary sends what the worker may refuse before it has read it all.
func (a *agent) binary(b []byte) { _ = a.c.Write(context.Background(), websocket.MessageBinary, b) }

// tell says something, if the connection stands.
func (a *agent) tell(m wire.PushMessage) {
	if data, err := wire.EncodePush(m); err == nil {
		_ = a.c.Write(context.Background(), websocket.MessageText, data)
	}
}

func (a *agent) init(e vms.Epoch, id uint32) {
	a.t.Helper()
	i := testInit(a.t)
	a.send(&wire.InitMessage{Epoch: e, ID: id, Tracks: i.Tracks, Segment: i.Segment})
}

func (a *agent) chunks(cs ...vms.Chunk) {
	for i := range cs {
		a.binary(wire.EncodeChunk(&cs[i]))
	}
}

// paced sends as an agent does, never more than was granted, and returns how
// many chunks went before the worker granted nothing more for a while.
func (a *agent) paced(cs ...vms.Chunk) int {
	for i := range cs {
		size := int64(wire.ChunkHeaderLen + len(cs[i].Payload))
		for quiet := 0; a.sent+size > max(a.welcome.Credit, a.last.Credit); quiet++ {
			if quiet == 200 {
				return i
			}
			time.Sleep(100 * time.Millisecond)
			a.take()
		}
		a.chunks(cs[i])
		a.sent += size
	}
	return len(cs)
}

// take applies what has come so far.
func (a *agent) take() {
	for {
		select {
		case m, ok := <-a.in:
			if !ok {
				return
			}
			a.apply(m)
		default:
			return
		}
	}
}

func (a *agent) apply(m wire.PushMessage) {
	if ack, ok := m.(*wire.Ack); ok {
		a.last = *ack
		for _, r := range ack.Durable {
			a.durable.Add(r)
		}
	}
	if e, ok := m.(*wire.ErrorMessage); ok {
		a.refused = *e
	}
}

// isDurable waits, as long as it takes in the bubble's time, for r.
func (a *agent) isDurable(r vms.ChunkRange) {
	a.t.Helper()
	limit := time.After(time.Minute)
	for !a.durable.Covers(r) {
		select {
		case m, ok := <-a.in:
			if !ok {
				a.t.Fatalf("%s is not durable: %v", r, a.over)
			}
			a.apply(m)
		case <-limit:
			a.t.Fatalf("%s is not durable within a minute", r)
		}
	}
}

// closed waits for the end: the worker's last words and how it closed.
func (a *agent) closed() (wire.ErrorMessage, websocket.CloseError) {
	a.t.Helper()
	limit := time.After(2 * time.Minute)
	for {
		select {
		case m, ok := <-a.in:
			if !ok {
				var ce websocket.CloseError
				errors.As(a.over, &ce)
				return a.refused, ce
			}
			a.apply(m)
		case <-limit:
			a.t.Fatal("the worker did not close")
		}
	}
}

// hangUp is a lost link.
func (a *agent) hangUp() {
	_ = a.c.CloseNow()
	for range a.in {
	}
	synctest.Wait()
}

var testInit = func() func(t testing.TB) vms.Init {
	unhex := func(s string) []byte { b, _ := hex.DecodeString(s); return b }
	return func(t testing.TB) vms.Init {
		seg, tracks, err := cmaf.BuildInit(90000, cmaf.VideoParams{
			Codec: "h264", SPS: unhex("6764001facb402802dd808800000030080000019078c1950"), PPS: unhex("68ee0fcb"),
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return vms.Init{Epoch: 1, ID: 1, Tracks: tracks, Segment: seg}
	}
}()

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// tape is chunks from to to of an epoch, as an agent stamps them: 200 ms each,
// a keyframe every fifth, a recording every tenth.
func tape(t testing.TB, e vms.Epoch, from, to uint64, size int) (cs []vms.Chunk) {
	t.Helper()
	for seq := from; seq <= to; seq++ {
		i := seq - 1
		data := make([]byte, size)
		data[0], data[size-1] = byte(seq), byte(e)
		p, n, err := cmaf.BuildFragment(uint32(seq), []cmaf.Run{{Track: cmaf.VideoTrack, Base: 1000 + i*18000, Samples: []cmaf.Sample{
			{Duration: 18000, Sync: i%5 == 0, NALs: [][]byte{data}},
		}}})
		if err != nil {
			t.Fatal(err)
		}
		c := vms.Chunk{
			Epoch: e, Seq: seq, Recording: uint32(i / 10), Init: 1, MoofLen: n, Payload: p, CRC: wire.Checksum(p),
			Start: t0.Add(time.Duration(e)*time.Hour + time.Duration(i)*200*time.Millisecond),
		}
		c.End = c.Start.Add(200 * time.Millisecond)
		if i%5 == 0 {
			c.Flags |= vms.FlagKey
		}
		if i%10 == 0 {
			c.Flags |= vms.FlagFirst
		}
		cs = append(cs, c)
	}
	return cs
}

func span(e vms.Epoch, first, last uint64) vms.ChunkRange {
	return vms.ChunkRange{Epoch: e, First: first, Last: last}
}

// store keeps recordings in memory, and checks them as a real one does.
type store struct {
	mu      sync.Mutex
	objects map[string]vms.Recording
	bodies  map[string][]byte
	fail    error
	getFail error
	delay   time.Duration
	hold    chan struct{} // puts wait for it, while it is set
}

func newStore() *store {
	return &store{objects: map[string]vms.Recording{}, bodies: map[string][]byte{}}
}

func (s *store) Put(ctx context.Context, r vms.Recording, body io.ReadSeeker) error {
	data, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	s.mu.Lock()
	fail, delay, hold := s.fail, s.delay, s.hold
	s.mu.Unlock()
	select {
	case <-hold:
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(delay):
		if hold != nil {
			<-hold
		}
	}
	if fail != nil {
		return fail
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, taken := s.objects[r.Key]; taken {
		return vms.ErrConflict
	}
	if int64(len(data)) != r.Bytes || sha256.Sum256(data) != r.SHA256 {
		return errors.New("checksum mismatch")
	}
	s.objects[r.Key], s.bodies[r.Key] = r, data
	return nil
}

func (s *store) Stat(_ context.Context, key string) (vms.Recording, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.objects[key]
	if !ok {
		return r, vms.ErrNotFound
	}
	return r, nil
}

func (s *store) Get(_ context.Context, key string) (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.getFail != nil {
		return nil, s.getFail
	}
	b, ok := s.bodies[key]
	if !ok {
		return nil, vms.ErrNotFound
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

func (s *store) set(f func(*store)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s)
}

// ranges lists the chunks of the objects, by key.
func (s *store) ranges() (rs []vms.ChunkRange) {
	s.mu.Lock()
	defer s.mu.Unlock()
	keys := make([]string, 0, len(s.objects))
	for k := range s.objects {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		rs = append(rs, s.objects[k].Chunks)
	}
	return rs
}

func (s *store) expect(t *testing.T, want ...vms.ChunkRange) {
	t.Helper()
	if got := s.ranges(); !slices.Equal(got, want) {
		t.Errorf("objects hold %v, want %v", got, want)
	}
}

// same checks that the whole recordings are want, byte for byte, and no others.
func (s *store) same(t *testing.T, want map[string][]byte) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, b := range want {
		if got, ok := s.bodies[k]; !ok || !bytes.Equal(got, b) {
			t.Errorf("%s has %d bytes (there: %v), want %d, the same", k, len(got), ok, len(b))
		}
	}
	for k, r := range s.objects {
		if want[k] == nil && !r.Provisional() {
			t.Errorf("%s holds %s, and should not be there", k, r.Chunks)
		}
	}
}

// settled checks that the index names want and nothing else, each byte for byte.
func (r *rig) settled(want map[string][]byte) {
	r.t.Helper()
	synctest.Wait()
	r.nvr.mu.Lock()
	defer r.nvr.mu.Unlock()
	r.store.mu.Lock()
	defer r.store.mu.Unlock()
	for k, row := range r.nvr.rows {
		if want[k] == nil {
			r.t.Errorf("the index has %s, %s", k, row.Chunks)
		}
	}
	for k, b := range want {
		if _, ok := r.nvr.rows[k]; !ok || !bytes.Equal(r.store.bodies[k], b) {
			r.t.Errorf("%s has %d bytes (in the index: %v), want %d, the same", k, len(r.store.bodies[k]), ok, len(b))
		}
	}
}

// alone returns the objects that one undisturbed worker makes of cs.
func alone(t *testing.T, cs []vms.Chunk) map[string][]byte {
	t.Helper()
	dir, out := t.TempDir(), map[string][]byte{}
	var s segment.Segmenter
	var w *segment.Writer
	finish := func() {
		if w == nil {
			return
		}
		f, err := w.Finish()
		if err != nil {
			t.Fatal(err)
		}
		body, err := os.ReadFile(f.Path)
		if err != nil {
			t.Fatal(err)
		}
		out[f.Key] = append(f.Head, body...)
	}
	for i := range cs {
		var err error
		switch v := s.Next(&cs[i]); v {
		case segment.Begin:
			finish()
			w, err = segment.Create(dir, "ch", testInit(t), &cs[i])
		case segment.Append:
			err = w.Append(&cs[i])
		default:
			t.Fatalf("chunk %d: verdict %d", cs[i].Seq, v)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	finish()
	return out
}

// nvr notes what it is told, and keeps rows as a real one does: a whole
// recording takes the place of its parts.
type nvr struct {
	mu        sync.Mutex
	told      []string
	fail      error // of notices
	failParts error // of questions
	tries     int
	asked     int // calls of Parts
	rows      map[string]vms.Recording
	viewers   []string      // what was told of them
	gone      bool          // no hub continues any part
	hold      chan struct{} // registrations of parts wait for it, while it is set
}

func (n *nvr) note(s string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tries++
	if n.fail != nil {
		return n.fail
	}
	n.told = append(n.told, s)
	return nil
}

func (n *nvr) StreamStarted(_ context.Context, e vms.StreamEvent) error {
	return n.note(fmt.Sprintf("started %s %s %d", e.Channel, e.Lane, e.Generation))
}

func (n *nvr) StreamEnded(_ context.Context, e vms.StreamEvent) error {
	return n.note(fmt.Sprintf("ended %s %s %d %s", e.Channel, e.Lane, e.Generation, e.Cause))
}

func (n *nvr) RecordingUploaded(ctx context.Context, r vms.Recording) error {
	kind := "recording"
	if r.Provisional() {
		kind = "part"
		n.mu.Lock()
		hold := n.hold
		n.mu.Unlock()
		if hold != nil {
			select {
			case <-hold:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	if err := n.note(fmt.Sprintf("%s %s %d-%d", kind, r.Channel, r.Chunks.First, r.Chunks.Last)); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.rows == nil {
		n.rows = map[string]vms.Recording{}
	}
	for _, o := range n.rows {
		if o.Channel == r.Channel && o.Key != r.Key && o.Chunks.Contains(r.Chunks) && (r.Provisional() || !o.Provisional()) {
			return nil
		}
	}
	for k, o := range n.rows {
		if o.Channel == r.Channel && r.Chunks.Contains(o.Chunks) {
			delete(n.rows, k)
		}
	}
	n.rows[r.Key] = r
	for k, o := range n.rows { // and parts of which others together have all
		var all vms.ChunkSet
		for k2, x := range n.rows {
			if k2 != k && x.Channel == o.Channel {
				all.Add(x.Chunks)
			}
		}
		if o.Provisional() && all.Covers(o.Chunks) {
			delete(n.rows, k)
		}
	}
	return nil
}

func (n *nvr) Parts(_ context.Context, ch vms.ChannelID, epochs []vms.Epoch) (out []vms.Recording, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked++
	if n.failParts != nil {
		return nil, n.failParts
	}
	for _, r := range n.rows {
		if r.Channel == ch && r.Provisional() && slices.Contains(epochs, r.Chunks.Epoch) {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b vms.Recording) int {
		return cmp.Or(cmp.Compare(a.Chunks.Epoch, b.Chunks.Epoch), cmp.Compare(a.Chunks.First, b.Chunks.First), cmp.Compare(a.Chunks.Last, b.Chunks.Last))
	})
	return out, nil
}

func (n *nvr) Wholes(_ context.Context, ch vms.ChannelID, c vms.ChunkRange) (out []vms.ChunkRange, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked++
	if n.failParts != nil {
		return nil, n.failParts
	}
	for _, r := range n.rows {
		if r.Channel == ch && !r.Provisional() && r.Chunks.Epoch == c.Epoch && r.Chunks.First <= c.Last && c.First <= r.Chunks.Last {
			out = append(out, r.Chunks)
		}
	}
	slices.SortFunc(out, func(a, b vms.ChunkRange) int { return cmp.Compare(a.First, b.First) })
	return out, nil
}

func (n *nvr) AbandonedParts(_ context.Context, limit int) (out []vms.Recording, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.failParts != nil {
		return nil, n.failParts
	}
	for _, r := range n.rows {
		if n.gone && r.Provisional() && len(out) < limit {
			out = append(out, r)
		}
	}
	return out, nil
}

func (n *nvr) Viewers(_ context.Context, ch vms.ChannelID, viewers int) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.viewers = append(n.viewers, fmt.Sprintf("%s %d", ch, viewers))
	return n.fail
}

// heardViewers returns what was told of viewers since it was asked last.
func (n *nvr) heardViewers() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := n.viewers
	n.viewers = nil
	return out
}

func (n *nvr) set(f func(*nvr)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f(n)
}

// parts counts the rows of parts.
func (n *nvr) parts() (parts int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range n.rows {
		if r.Provisional() {
			parts++
		}
	}
	return parts
}

func (n *nvr) setFail(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fail = err
}

// expect compares what was told. Uploads finish in any order: recordings
// between two other notices may come in any.
func (n *nvr) expect(t *testing.T, want ...string) {
	t.Helper()
	n.mu.Lock()
	got := slices.Clone(n.told)
	n.mu.Unlock()
	for i := range got {
		for j := i; j > 0 && strings.HasPrefix(got[j], "recording ") && strings.HasPrefix(got[j-1], "recording ") && got[j] < got[j-1]; j-- {
			got[j], got[j-1] = got[j-1], got[j]
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("the NVR was told %q, want %q", got, want)
	}
}

// tickets is for workers that nobody connects to.
type tickets struct{}

func newTickets() tickets { return tickets{} }

func (tickets) push(string) (token.Push, error) { return token.Push{}, vms.ErrUnauthorized }
func (tickets) view(string) (token.View, error) { return token.View{}, vms.ErrUnauthorized }
