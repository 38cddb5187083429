package uplink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sync/errgroup"

	"github.com/zipato/vms/pkg/retry"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

const (
	// pressureEvery spaces the messages that say that the buffer is nearly full.
	pressureEvery = 3 * time.Second
	pressureLook  = 500 * time.Millisecond
)

var (
	// errHandedOver: the cursor's successor goes on.
	errHandedOver = errors.New("handed over")
	// errMoved: the lane has another connection, and this one has done its part.
	errMoved = errors.New("moved to another worker")
)

// quiet is how long a worker that is there never says nothing: it acknowledges
// every 5 s.
const quiet = 6 * time.Second

// laneConn is one connection of a lane.
type laneConn struct {
	lane *Lane
	as   *wire.Assign // that it was opened for
	conn *websocket.Conn
	flow *flow
	// socket is below conn and its TLS, raw its descriptor; nil: none.
	socket net.Conn
	raw    syscall.RawConn

	instance vms.Instance // of the welcome, as are the next two
	have     []vms.ChunkRange
	maxChunk int64
	since    time.Time
	heard    atomic.Int64 // when the worker said something last, in ns since since
	spaced   bool         // of the lane's goroutine: its end was taken into account for the next dial
	// patience is how long the durable mark may stand still.
	patience time.Duration
	inits    map[initKey]bool // sent on this connection

	// ctx ends with the connection, and stop ends it in order. hand ends when no
	// more is to be handed out: letGo ends it.
	ctx, hand   context.Context
	stop, letGo context.CancelFunc
	granted     chan struct{} // credit grew
	settled     chan struct{} // all that was sent is durable
	released    chan struct{} // the cursor is at its end, or closed
	done        chan struct{} // it is over, and err says why
	err         error

	mu        sync.Mutex
	cursor    Cursor       // nil when closed
	handed    bool         // the cursor was handed over and is at its end
	retired   bool         // it does not speak for the lane any more
	watched   bool         // somebody looks on, as the worker said last
	credit    int64        // absolute, as granted
	sent      int64        // bytes of binary messages
	moved     time.Time    // when the durable mark moved last, or nothing was outstanding
	unsettled vms.ChunkSet // sent and not durable; previews never will be
	durable   vms.ChunkSet // as acknowledged here
	preview   bool         // the last chunk was one

	// What was in the messages from number received on.
	underway []receipt
	received uint64

	probing
}

// receipt is what a message had in it: zero for a preview.
type receipt struct {
	chunk vms.ChunkRange // one
	end   time.Time      // of its footage
}

type initKey struct {
	epoch vms.Epoch
	id    uint32
}

func newLaneConn(l *Lane, as *wire.Assign, conn *websocket.Conn, socket net.Conn) *laneConn {
	now := time.Now()
	return &laneConn{
		lane: l, as: as, conn: conn, socket: socket, raw: tighten(socket), since: now, moved: now, patience: patience(as), inits: make(map[initKey]bool),
		granted: make(chan struct{}, 1), settled: make(chan struct{}, 1), released: make(chan struct{}), done: make(chan struct{}),
		probing: probing{answered: make(chan struct{}, 1), window: firstWindow},
	}
}

// greet exchanges hello and welcome.
func (c *laneConn) greet(ctx context.Context) (*wire.Welcome, error) {
	ctx, cancel := context.WithTimeout(ctx, silence)
	defer cancel()
	epochs := c.lane.Source.Epochs()
	epochs = epochs[max(0, len(epochs)-wire.MaxRanges):]
	err := c.write(ctx, &wire.Hello{Agent: c.lane.Agent, Lane: c.lane.Kind, Epochs: epochs})
	if err != nil {
		return nil, err
	}
	m, err := c.read(ctx)
	if err != nil {
		return nil, err
	}
	switch m := m.(type) {
	case *wire.Welcome:
		c.credit, c.maxChunk, c.have = m.Credit, m.MaxChunk, m.Have
		return m, nil
	case *wire.ErrorMessage:
		return nil, &CloseError{*m}
	}
	return nil, fmt.Errorf("the worker did not begin with a welcome")
}

// run pushes what the cursor hands out until the connection breaks, or is
// stopped. It ends what it started, and the cursor.
func (c *laneConn) run(instead *instead) error {
	defer c.conn.CloseNow()
	defer c.release()
	var verdict error // what the sender decided, before the closing made the rest fail
	g, gctx := errgroup.WithContext(context.WithoutCancel(c.ctx))
	defer context.AfterFunc(gctx, c.letGo)()
	g.Go(func() error { return c.receive(gctx) })
	g.Go(func() error { return c.probe(gctx) })
	g.Go(func() error { return c.press(gctx) })
	g.Go(func() error {
		// What is being written when the connection is stopped may still go out.
		wctx, cancel := context.WithCancel(gctx)
		defer cancel()
		defer context.AfterFunc(c.ctx, func() { retry.Sleep(wctx, lastWord); cancel() })()
		err := c.send(wctx, instead)
		switch {
		case gctx.Err() != nil:
			return err
		case c.ctx.Err() != nil:
			verdict = c.ctx.Err()
		case errors.Is(err, errHandedOver):
			c.releaseHanded()
			c.settle(gctx)
			verdict = errMoved
		case errors.Is(err, ErrIdle):
			verdict = ErrIdle
		case c.hand.Err() != nil:
			c.release()
			c.settle(gctx)
			verdict = errMoved
		default:
			return c.lastWord(gctx, err)
		}
		c.release()
		c.farewell()
		return verdict
	})
	err := g.Wait()
	c.pinging.Wait()
	if verdict != nil {
		return verdict
	}
	return err
}

// farewell closes in order. The library would wait 10 s for a peer that is gone.
func (c *laneConn) farewell() {
	if c.socket != nil {
		t := time.AfterFunc(lastWord, func() { c.socket.Close() })
		defer t.Stop()
	}
	c.conn.Close(websocket.StatusNormalClosure, "the agent is done")
}

// drop ends c at once. Nothing goes out any more, not even what the kernel has:
// it would be in the way of the next connection.
func (c *laneConn) drop() {
	if c.socket != nil {
		if s, ok := c.socket.(interface{ SetLinger(seconds int) error }); ok {
			_ = s.SetLinger(0) // where that fails the rest goes out
		}
		c.socket.Close()
	}
	c.stop()
}

// over reports whether c brings nothing any more.
func (c *laneConn) over() bool {
	select {
	case <-c.released:
		return true
	default:
		return false
	}
}

// isHanded reports whether c is at its end because another connection goes on.
func (c *laneConn) isHanded() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.handed
}

// quiet reports whether the worker has said nothing for longer than one does that
// is there.
func (c *laneConn) quiet() bool {
	return time.Since(c.since)-time.Duration(c.heard.Load()) > quiet
}

// settle waits until all that was sent is durable, for a while.
func (c *laneConn) settle(ctx context.Context) {
	t := time.NewTimer(settleTime)
	defer t.Stop()
	for {
		c.mu.Lock()
		all := c.unsettled.Len() == 0
		c.mu.Unlock()
		if all {
			return
		}
		select {
		case <-c.settled:
		case <-t.C:
			return
		case <-ctx.Done():
			return
		case <-c.ctx.Done():
			return
		}
	}
}

// release closes the cursor: the connection sends nothing more.
func (c *laneConn) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cursor == nil {
		return
	}
	c.cursor.Close()
	c.cursor = nil
	if !c.handed {
		close(c.released)
	}
}

// releaseHanded notes that the cursor is at its end. It is closed with the
// connection: what it handed out may still become durable here.
func (c *laneConn) releaseHanded() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.handed = true
	close(c.released)
}

// retire makes c silent: another connection speaks for the lane now.
func (c *laneConn) retire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.retired = true
}

// speaks reports whether c speaks for the lane, and whether its worker says that
// somebody looks on.
func (c *laneConn) speaks() (watched, speaks bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.watched, !c.retired
}

// broken is why c is over, which it is.
func (c *laneConn) broken() *errBroken {
	return &errBroken{c.err, c.as, true, time.Since(c.since)}
}

func (c *laneConn) write(ctx context.Context, m wire.PushMessage) error {
	data, err := wire.EncodePush(m)
	if err != nil {
		return err
	}
	return c.conn.Write(ctx, websocket.MessageText, data)
}

// read waits for one message, at most as long as a worker may be silent.
func (c *laneConn) read(ctx context.Context) (wire.PushMessage, error) {
	rctx, cancel := context.WithTimeout(ctx, silence)
	defer cancel()
	typ, data, err := c.conn.Read(rctx)
	if err != nil {
		var ce websocket.CloseError
		switch {
		case rctx.Err() != nil && ctx.Err() == nil:
			return nil, fmt.Errorf("the worker said nothing for %v", silence)
		case errors.As(err, &ce) && ce.Code >= 4000:
			return nil, &CloseError{wire.ErrorMessage{Class: wire.ClassOf(int(ce.Code)), Code: "closed", Message: ce.Reason}}
		}
		return nil, err
	}
	if typ != websocket.MessageText {
		return nil, fmt.Errorf("the worker sent a binary message")
	}
	c.heard.Store(int64(time.Since(c.since)))
	m, err := wire.DecodePush(data)
	if err != nil {
		return nil, fmt.Errorf("message of the worker: %w", err)
	}
	return m, nil
}

// receive takes acknowledgements until the connection ends.
func (c *laneConn) receive(ctx context.Context) error {
	for {
		m, err := c.read(ctx)
		if err != nil {
			return err
		}
		switch m := m.(type) {
		case *wire.Ack:
			if err := c.ack(m); err != nil {
				return err
			}
		case *wire.ErrorMessage:
			return &CloseError{*m}
		default:
			return fmt.Errorf("the worker sent what only an agent sends")
		}
	}
}

func (c *laneConn) ack(m *wire.Ack) error {
	c.lane.Source.Durable(m.Durable) // this, and only this, frees chunks
	c.mu.Lock()
	if m.Credit > c.credit {
		c.credit = m.Credit
		signal(c.granted)
	}
	for _, r := range m.Durable {
		c.durable.Add(r)
		c.unsettled.Remove(r)
	}
	none := c.unsettled.Len() == 0
	if len(m.Durable) > 0 || m.Hold != wire.HoldNone || none {
		c.moved = time.Now()
	}
	if none {
		signal(c.settled)
	}
	stuck := time.Since(c.moved) > c.patience
	end, chunks := c.taken(m.Received)
	if c.cursor != nil && len(chunks) > 0 {
		c.cursor.Received(chunks)
	}
	c.watched = m.Watched
	c.mu.Unlock()
	if !end.IsZero() && c.lane.OnReceived != nil {
		c.lane.OnReceived(end)
	}
	c.lane.tellWatched()
	if stuck {
		return &CloseError{wire.ErrorMessage{Class: wire.ClassReassign, Code: "stalled",
			Message: fmt.Sprintf("nothing became durable for %v", c.patience)}}
	}
	return nil
}

// taken returns the chunks among the messages that were received since the
// last time, and the end of the newest footage, zero when there is none. c.mu is
// held.
func (c *laneConn) taken(received uint64) (end time.Time, chunks []vms.ChunkRange) {
	for len(c.underway) > 0 && c.received < received {
		m := c.underway[0]
		c.underway = c.underway[1:]
		c.received++
		if m.end.After(end) {
			end = m.end
		}
		if n := len(chunks); n > 0 && chunks[n-1].Epoch == m.chunk.Epoch && chunks[n-1].Last+1 == m.chunk.First {
			chunks[n-1].Last = m.chunk.Last
		} else if m.chunk.Epoch != 0 {
			chunks = append(chunks, m.chunk)
		}
	}
	return end, chunks
}

// signal wakes who waits on ch, now or next.
func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// press tells the worker when the hub's buffer is nearly full.
func (c *laneConn) press(ctx context.Context) error {
	if c.lane.Pressure == nil {
		return nil
	}
	t := time.NewTicker(pressureLook)
	defer t.Stop()
	var last time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
		if time.Since(last) < pressureEvery || c.lane.Kind == vms.LaneBackfill && !c.lane.Assigned.liveDown() {
			continue
		}
		if m, ok := c.lane.Pressure(); ok {
			last = time.Now()
			if err := c.write(ctx, &m); err != nil {
				return c.lastWord(ctx, err)
			}
		}
	}
}

// lastWord returns err, which ended the sending, but not before the worker's
// own reason could be read: a refusal that is lost would only come again.
func (c *laneConn) lastWord(ctx context.Context, err error) error {
	if closed := (*CloseError)(nil); !errors.As(err, &closed) {
		retry.Sleep(ctx, lastWord)
	}
	return err
}
