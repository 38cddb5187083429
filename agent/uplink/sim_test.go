package uplink

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/wire"
)

// bottleneck is an uplink that sends one byte after the other, whichever
// connection it is of: a home router with a deep queue. It runs on fake time.
type bottleneck struct {
	latency time.Duration
	window  int // bytes that a connection has under way at most, as TCP's window

	mu   sync.Mutex
	rate float64   // bytes/s
	free time.Time // when the line has sent all that it was given
}

func (b *bottleneck) set(rate float64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rate = rate
}

// segment is how many bytes go at once: a packet, or a millisecond's worth.
func (b *bottleneck) segment() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return max(1448, int(b.rate/1000))
}

// queued is how long a byte would wait now.
func (b *bottleneck) queued() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return max(0, time.Until(b.free))
}

// through returns when n more bytes are on the other side.
func (b *bottleneck) through(n int) time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	if now := time.Now(); b.free.Before(now) {
		b.free = now
	}
	b.free = b.free.Add(time.Duration(float64(n) / b.rate * float64(time.Second)))
	return b.free.Add(b.latency)
}

// slowConn is the client's end of a connection through a bottleneck.
type slowConn struct {
	net.Conn // to the server's end, at once
	b        *bottleneck
	segments chan segment
	done     chan struct{}
	once     sync.Once

	mu       sync.Mutex
	underway int
	window   int
	moved    chan struct{}
}

type segment struct {
	data []byte
	due  time.Time
}

func (b *bottleneck) wrap(c net.Conn) net.Conn {
	s := &slowConn{Conn: c, b: b, window: 10 * 1448, segments: make(chan segment, 1<<16), done: make(chan struct{}), moved: make(chan struct{}, 1)}
	go func() {
		for {
			select {
			case <-s.done:
				return
			case p := <-s.segments:
				select {
				case <-time.After(time.Until(p.due)):
				case <-s.done:
					return
				}
				if _, err := s.Conn.Write(p.data); err != nil {
					s.Close()
					return
				}
				s.mu.Lock()
				s.underway -= len(p.data)
				s.window = min(s.window+len(p.data), b.window) // slow start
				s.mu.Unlock()
				signal(s.moved)
			}
		}
	}()
	return s
}

func (s *slowConn) Close() error {
	s.once.Do(func() { close(s.done) })
	return s.Conn.Close()
}

func (s *slowConn) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		part := p[:min(len(p), s.b.segment())]
		s.mu.Lock()
		full := s.underway+len(part) > s.window
		if !full {
			s.underway += len(part)
		}
		s.mu.Unlock()
		if full {
			select {
			case <-s.moved:
				continue
			case <-s.done:
				return n, net.ErrClosed
			}
		}
		select {
		case s.segments <- segment{append([]byte(nil), part...), s.b.through(len(part))}:
		case <-s.done:
			return n, net.ErrClosed
		}
		n += len(part)
		p = p[len(part):]
	}
	return n, nil
}

// camera is a Source that muxes a chunk every 200 ms and a keyframe every 2 s,
// and holds a backlog of the same.
type camera struct {
	bitrate int  // bytes/s
	silent  bool // without live

	mu      sync.Mutex
	chunks  []*vms.Chunk // of live
	changed chan struct{}
	next    int // of live's cursor
	preview bool
	jumps   int
	left    int // chunks of the backlog
	seq     uint64
}

const chunkTime = 200 * time.Millisecond

// make returns the chunk of one moment: keyframes are four times as large as
// the average.
func (s *camera) make(seq uint64, end time.Time) *vms.Chunk {
	n := s.bitrate / 5
	flags := vms.Flags(0)
	if seq%10 == 1 {
		n *= 4
		flags = vms.FlagKey
	} else {
		n = n * 6 / 9
	}
	if seq%150 == 1 {
		flags |= vms.FlagFirst
	}
	c := *chunk(1, n).Chunk
	c.Seq, c.Flags, c.Start, c.End = seq, flags, end.Add(-chunkTime), end
	return &c
}

// run muxes until ctx ends.
func (s *camera) run(ctx context.Context) {
	t := time.NewTicker(chunkTime)
	defer t.Stop()
	for seq := uint64(1); ; seq++ {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			c := s.make(seq, now)
			s.mu.Lock()
			s.chunks = append(s.chunks, c)
			close(s.changed)
			s.changed = make(chan struct{})
			s.mu.Unlock()
		}
	}
}

func (s *camera) lag() time.Duration {
	if s.next == len(s.chunks) {
		return 0
	}
	return s.chunks[len(s.chunks)-1].End.Sub(s.chunks[s.next].Start)
}

type liveCursor struct{ s *camera }

func (s *camera) Live(vms.Instance, []vms.ChunkRange) Cursor { return liveCursor{s} }

func (c liveCursor) Next(ctx context.Context) (wire.Outgoing, error) {
	s := c.s
	for {
		s.mu.Lock()
		if s.lag() > 10*time.Second {
			for i := len(s.chunks) - 1; ; i-- {
				if s.chunks[i].Flags.Has(vms.FlagKey) {
					s.next, s.preview = i, true
					s.jumps++
					break
				}
			}
		}
		if s.next < len(s.chunks) {
			out := *s.chunks[s.next]
			s.next++
			if s.preview = s.preview && !out.Flags.Has(vms.FlagFirst); s.preview {
				out.Flags |= vms.FlagPreview
			}
			s.mu.Unlock()
			return wire.Outgoing{Chunk: &out}, nil
		}
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-ctx.Done():
			return wire.Outgoing{}, ctx.Err()
		case <-changed:
		}
	}
}

func (c liveCursor) Behind() (int64, time.Duration) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	return 0, c.s.lag()
}

func (liveCursor) HandOver(vms.Instance, []vms.ChunkRange) Cursor { panic("never moved") }
func (liveCursor) Received([]vms.ChunkRange)                      {}
func (liveCursor) Close()                                         {}

type backlogCursor struct{ s *camera }

func (s *camera) Backfill(vms.Instance, []vms.ChunkRange, bool) Cursor { return backlogCursor{s} }

func (c backlogCursor) Next(context.Context) (wire.Outgoing, error) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.s.left == 0 {
		return wire.Outgoing{}, io.EOF
	}
	c.s.left--
	c.s.seq++
	return wire.Outgoing{Chunk: c.s.make(c.s.seq, footage(c.s.seq))}, nil
}

func (backlogCursor) Behind() (int64, time.Duration)                 { return 0, 0 }
func (backlogCursor) HandOver(vms.Instance, []vms.ChunkRange) Cursor { return nil }
func (backlogCursor) Received([]vms.ChunkRange)                      {}
func (backlogCursor) Close()                                         {}

func (s *camera) BackfillWanted() (bool, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.left > 0, s.changed
}

func (s *camera) Init(e vms.Epoch, id uint32) (vms.Init, bool) {
	return newSource().Init(e, id)
}
func (s *camera) Durable([]vms.ChunkRange) {}
func (s *camera) Skip(vms.Epoch, uint64)   {}
func (s *camera) Epochs() []vms.Epoch      { return []vms.Epoch{0xe} }

// arrivals is what the worker saw.
type arrivals struct {
	mu       sync.Mutex
	lags     []sample // of live chunks
	live     int64    // bytes
	backfill int64
}

type sample struct {
	at  time.Time
	lag time.Duration
}

func (a *arrivals) bytes() (live, backfill int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.live, a.backfill
}

// lag is the longest since from, and how many live chunks came.
func (a *arrivals) lag(from time.Time) (longest time.Duration, n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range a.lags {
		if s.at.After(from) {
			longest = max(longest, s.lag)
			n++
		}
	}
	return longest, n
}

// worker takes what comes on both lanes.
func (a *arrivals) worker(t testing.TB) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c := accept(t, w, r, &log{})
		if c == nil {
			return
		}
		_, data, err := c.ws.Read(context.Background())
		if err != nil {
			return
		}
		m, err := wire.DecodePush(data)
		if err != nil {
			t.Error(err)
			return
		}
		live := m.(*wire.Hello).Lane == vms.LaneLive
		c.send(welcome())
		over := make(chan struct{})
		defer close(over)
		go func() {
			for {
				select {
				case <-over:
					return
				case <-time.After(5 * time.Second):
					c.send(&wire.Ack{Credit: plenty, Hold: wire.HoldStore}) // nothing becomes durable here
				}
			}
		}()
		for {
			typ, r, err := c.ws.Reader(context.Background())
			if err != nil {
				return
			}
			data, err := io.ReadAll(&counted{a, r, live})
			if err != nil {
				return
			}
			if ch, err := wire.DecodeChunk(data); err == nil && typ == websocket.MessageBinary && live {
				a.mu.Lock()
				a.lags = append(a.lags, sample{time.Now(), time.Since(ch.End)})
				a.mu.Unlock()
			}
		}
	}
}

// counted counts the bytes of a lane as they come.
type counted struct {
	a    *arrivals
	r    io.Reader
	live bool
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.a.mu.Lock()
	defer c.a.mu.Unlock()
	if c.live {
		c.a.live += int64(n)
	} else {
		c.a.backfill += int64(n)
	}
	return n, err
}

// simulate runs both lanes of a camera with a backlog through b.
func simulate(t *testing.T, b *bottleneck, cam *camera, g *Governor, script func(*arrivals)) {
	got := &arrivals{}
	client, stopServer := serve(t, got.worker(t))
	defer stopServer()
	transport := client.Transport.(*http.Transport)
	inner := transport.DialContext
	transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := inner(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return b.wrap(c), nil
	}
	runLanes(t, client, w1, cam, g, func() { script(got) })
}

// runLanes runs the camera and its lanes to the worker at url for as long as f.
func runLanes(t testing.TB, client *http.Client, url string, cam *camera, g *Governor, f func()) {
	cam.changed = make(chan struct{})
	as := NewAssigned()
	as.Put(assign(1, url, "t"))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { cam.run(ctx) })
	for _, kind := range []vms.Lane{vms.LaneBackfill, vms.LaneLive} {
		if cam.silent && kind == vms.LaneLive {
			continue
		}
		l := &Lane{
			Kind: kind, Agent: "test", Source: cam, Assigned: as, Governor: g, Log: vmstest.Log(t), Client: client,
			WantWorker: func(m wire.WantWorker) { t.Errorf("asked for a worker: %s", m.Why) },
			OnState:    func(error) {}, OnWatched: func(bool) {},
		}
		wg.Go(func() {
			if err := l.Run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	f()
}
