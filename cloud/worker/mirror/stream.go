package mirror

import (
	"bytes"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/zipato/vms/pkg/retry"
	"github.com/zipato/vms/pkg/vms"
)

const (
	// itemCost is what a chunk takes beside its payload, about: a flood of tiny
	// ones is bounded by it.
	itemCost = 512
	// sayAgain is how often the log says of a stream that its mirror is still away
	// or too slow: all streams go to one server, and fail together.
	sayAgain = 5 * time.Minute
)

// stream is what waits to be published of one channel.
type stream struct {
	m   *Mirror
	ch  vms.ChannelID
	log *slog.Logger

	mu    sync.Mutex
	epoch vms.Epoch // of the newest chunk that was seen
	seq   uint64    // its number
	init  *vms.Init // and what decodes it
	// useless: chunks of this init hold nothing that can be published.
	useless *vms.Init
	// blind: what comes is of no use before the next keyframe.
	blind bool
	// deaf: the server is away, nothing is kept for it.
	deaf bool
	// queue is what waits, and size its bytes. busy: its head is being sent.
	queue []item
	size  int64
	busy  bool
	slow  time.Time // when the log said last that chunks are dropped
	// cancel ends run, once it runs; forgotten: it shall not.
	cancel    context.CancelFunc
	forgotten bool

	wake chan struct{}

	told bool // run's: the log knows that it is being published
}

// item is a chunk that waits or, without init, the end of what came so far.
type item struct {
	init  *vms.Init
	chunk vms.Chunk
	cause string
}

func (it *item) cost() int64 { return int64(len(it.chunk.Payload)) + itemCost }

func newStream(m *Mirror, ch vms.ChannelID) *stream {
	return &stream{m: m, ch: ch, log: m.cfg.Log.With("channel", ch), blind: true, wake: make(chan struct{}, 1)}
}

// publish queues a chunk, or drops what waits.
func (s *stream) publish(init *vms.Init, c *vms.Chunk) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.forgotten || s.epoch == c.Epoch && c.Seq <= s.seq {
		return // sent again, to be stored: it was published before
	}
	if s.epoch != c.Epoch || s.seq+1 != c.Seq || !same(s.init, init) {
		s.blind = true
	}
	s.epoch, s.seq, s.init = c.Epoch, c.Seq, init
	key := c.Flags.Has(vms.FlagKey)
	switch {
	case same(s.useless, init):
		return
	case s.deaf:
		s.blind = true
	case s.blind && !key:
	default:
		if !s.push(item{init: init, chunk: *c}) {
			s.tooSlow()
			if !key || !s.push(item{init: init, chunk: *c}) {
				break
			}
		}
		s.blind = false
		return
	}
	s.m.dropped.Inc()
}

// push copies a chunk into the queue, if there is room.
func (s *stream) push(it item) bool {
	n := it.cost()
	if s.size > 0 && s.size+n > s.m.cfg.MaxQueue || !s.m.reserve(n) {
		return false
	}
	it.chunk.Payload = bytes.Clone(it.chunk.Payload)
	s.queue, s.size = append(s.queue, it), s.size+n
	signal(s.wake)
	return true
}

// tooSlow throws away what waits: it will not be seen in time.
func (s *stream) tooSlow() {
	n := s.drop()
	s.blind = true
	if now := time.Now(); now.Sub(s.slow) >= sayAgain {
		s.slow = now
		s.log.Warn("the mirror is too slow: it misses what waits, up to the next keyframe", "server", s.m.server, "chunks", n)
	}
}

// drop throws away what waits, but for what is being sent.
func (s *stream) drop() (chunks int) {
	keep := 0
	if s.busy {
		keep = 1
	}
	for i := keep; i < len(s.queue); i++ {
		if it := &s.queue[i]; it.init != nil {
			chunks++
			s.release(it)
		}
	}
	clear(s.queue[min(keep, len(s.queue)):])
	s.queue = s.queue[:min(keep, len(s.queue))]
	s.m.dropped.Add(float64(chunks))
	return chunks
}

// release gives back what push took.
func (s *stream) release(it *item) {
	if it.init != nil {
		n := it.cost()
		s.size -= n
		s.m.queued.Add(-n)
	}
}

// offline ends what came so far.
func (s *stream) offline(cause string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blind = true
	if n := len(s.queue); n > 0 && s.queue[n-1].init == nil || s.deaf {
		return
	}
	s.queue = append(s.queue, item{cause: cause})
	signal(s.wake)
}

// forget ends run.
func (s *stream) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgotten = true
	if s.cancel != nil {
		s.cancel()
	}
}

// head returns what is next to be sent, which stays until done or keep.
func (s *stream) head() (it item, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) == 0 {
		return item{}, false
	}
	s.busy = true
	return s.queue[0], true
}

// done takes the head off the queue.
func (s *stream) done() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy = false
	it := s.queue[0]
	s.release(&it)
	s.queue[0] = item{}
	if s.queue = s.queue[1:]; len(s.queue) == 0 {
		s.queue = nil // its memory was used up from the front
	}
}

// rest reports whether nothing waits; what comes begins with a keyframe then.
func (s *stream) rest() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queue) > 0 {
		return false
	}
	s.blind = true
	return true
}

// keep leaves the head to the next session.
func (s *stream) keep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy = false
}

// shut drops everything, and takes nothing until open.
func (s *stream) shut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy, s.deaf, s.blind = false, true, true
	s.drop()
}

func (s *stream) open() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deaf = false
}

// ignore drops what needs init, which the head does, now and from now on.
func (s *stream) ignore(init *vms.Init) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.useless, s.busy = init, false
	n := 0
	for n < len(s.queue) && same(s.queue[n].init, init) {
		s.release(&s.queue[n])
		n++
	}
	s.queue = slices.Delete(s.queue, 0, n)
}

// same reports whether two inits are the same one, said again perhaps.
func same(a, b *vms.Init) bool {
	return a == b || a != nil && b != nil && a.Epoch == b.Epoch && a.ID == b.ID
}

// run publishes one session after the other, until ctx ends or the stream is forgotten.
func (s *stream) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.mu.Lock()
	s.cancel = cancel
	if s.forgotten {
		cancel()
	}
	s.mu.Unlock()
	defer s.shut()

	b := s.m.cfg.Retry
	var said time.Time // when the log said last that it failed
	var lacked []byte  // the init of which it said that something is left out
	for {
		it, ok := s.wait(ctx)
		if !ok {
			return
		}
		if it.init == nil {
			s.done() // offline, with no session to close
			continue
		}
		tracks, lacks, err := tracksOf(it.init)
		if len(lacks) > 0 && !bytes.Equal(lacked, it.init.Segment) {
			lacked = it.init.Segment
			s.log.Info("the mirror leaves out what RTP cannot carry", "codecs", lacks)
		}
		if err != nil {
			s.log.Warn("the mirror shows nothing of this stream", "err", err)
			s.ignore(it.init)
			continue
		}
		began := time.Now()
		up, err := s.session(ctx, it.init, tracks)
		now := time.Now()
		held := time.Duration(0)
		if !up.IsZero() {
			held = now.Sub(up)
		}
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			s.log.Debug("the session with the mirror is closed", "server", s.m.server)
			// However often a camera changes its parameters, the server has its peace.
			if !retry.Sleep(ctx, b.Min-now.Sub(began)) {
				return
			}
			continue
		}
		s.m.failures.Inc()
		s.shut()
		wait := b.Next(held)
		if said.IsZero() || now.Sub(said) >= sayAgain || held >= b.Steady {
			s.log.Warn("cannot publish to the mirror, will try again", "server", s.m.server, "err", s.m.hide(err), "wait", wait)
			said, s.told = now, false
		}
		if !retry.Sleep(ctx, wait) {
			return
		}
		s.open()
	}
}

// wait returns the head once there is one; false: ctx has ended.
func (s *stream) wait(ctx context.Context) (item, bool) {
	for {
		if it, ok := s.head(); ok {
			return it, ctx.Err() == nil
		}
		select {
		case <-ctx.Done():
			return item{}, false
		case <-s.wake:
		}
	}
}
