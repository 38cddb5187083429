// Package live shows streams to browsers: the agent's fragments, as they are,
// over a WebSocket into Media Source Extensions. A viewer that is too slow
// loses whole GOPs; nobody else notices.
package live

import (
	"slices"
	"sync"

	"github.com/zipato/vms/pkg/vms"
)

const (
	// maxQueue bounds the bytes that wait for one viewer, and maxItems the
	// messages. A single chunk may be larger.
	maxQueue = 8 << 20
	maxItems = 10_000
	// maxGOP bounds the bytes kept for viewers that come, from the last keyframe
	// on: what fits a queue.
	maxGOP = maxQueue
)

// Stream is one channel's live picture. The zero value is ready; Server makes them.
//
// While nobody looks on it holds no bytes, but of previews, which are nowhere
// else: whoever comes first gets what came since the last keyframe from recent.
type Stream struct {
	// recent is Server.Recent for this channel; nil: nothing can be read back.
	recent func() []vms.Chunk
	// loading: one viewer at a time fetches what all need. It is held before mu.
	loading sync.Mutex

	mu    sync.Mutex
	init  *vms.Init
	epoch vms.Epoch // of the newest chunk shown
	seq   uint64    // its number
	// gop is the run of chunks up to the newest one that is in memory, empty: there
	// is none. whole: it begins with the last keyframe.
	gop     []*vms.Chunk
	gopSize int
	whole   bool
	// only: some of gop is not stored.
	only bool
	// huge: what came since the last keyframe is more than is kept.
	huge    bool
	cause   string // why it is offline, empty while it is not
	away    away
	viewers map[*viewer]bool

	claims int // under Server.mu: who else than viewers uses it
}

// item is what waits for a viewer.
type item struct {
	init    *vms.Init // begins anew with this init
	chunk   *vms.Chunk
	jump    bool
	offline string
	moved   bool // it goes on elsewhere, at url
	url     string
}

type viewer struct {
	queue []item
	size  int
	// blind: what comes is of no use before the next keyframe.
	blind bool
	// new: it is not told yet what there is.
	new bool
	// leave: it is to be told that the stream goes on elsewhere.
	leave bool
	// init is what the queue ends with, sent what was taken from it: a queue
	// that is thrown away may hold an init that the viewer never got.
	init, sent *vms.Init
	wake       chan struct{}
}

// Watched reports whether somebody looks on.
func (s *Stream) Watched() bool { return s.count() > 0 }

func (s *Stream) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.viewers)
}

// Publish shows a chunk, which init decodes. It never blocks. stored: it can be
// read back with recent from now on. When it is kept, nobody may write to its
// payload any more; c itself is not kept.
func (s *Stream) Publish(init *vms.Init, c *vms.Chunk, stored bool) (kept bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.epoch == c.Epoch && c.Seq <= s.seq {
		return false // sent again, to be stored: viewers have seen it
	}
	key := c.Flags.Has(vms.FlagKey)
	// A keyframe that does not follow on what was shown, or needs another init,
	// begins anew: its times need not go on where the last ones ended.
	anew := s.cause != "" || !same(s.init, init) || s.epoch != c.Epoch || s.seq+1 != c.Seq ||
		c.Flags.Has(vms.FlagFirst) && c.Recording == 0
	if anew && !key {
		return false
	}
	if key {
		s.drop()
		s.whole = true
	}
	s.init, s.epoch, s.seq, s.cause = init, c.Epoch, c.Seq, ""
	if len(s.viewers) > 0 || !stored || s.only {
		c := *c // the caller's
		kept = s.keep(&c, stored)
		for v := range s.viewers {
			kept = v.push(init, &c, anew) || kept
		}
	}
	s.whole = s.whole && len(s.gop) > 0
	return kept
}

// keep adds c to what is in memory.
func (s *Stream) keep(c *vms.Chunk, stored bool) bool {
	if s.gopSize += len(c.Payload); s.gopSize > maxGOP {
		s.drop()
		s.huge = true
	}
	if s.huge {
		return false
	}
	if s.gop == nil {
		s.gop = make([]*vms.Chunk, 0, 16)
	}
	s.gop = append(s.gop, c)
	s.only = s.only || !stored
	return true
}

// drop forgets what is in memory.
func (s *Stream) drop() {
	s.gop, s.gopSize, s.whole, s.only, s.huge = nil, 0, false, false, false
}

// same reports whether two inits are the same one, said again perhaps.
func same(a, b *vms.Init) bool {
	return a != nil && b != nil && a.Epoch == b.Epoch && a.ID == b.ID
}

// Offline tells the viewers that nothing comes for now.
func (s *Stream) Offline(cause string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause == cause {
		return
	}
	s.cause = cause
	s.drop()
	for v := range s.viewers {
		if len(v.queue) >= maxItems {
			v.drop()
		}
		v.queue = append(v.queue, item{offline: cause})
		v.blind, v.new = true, false
		v.signal()
	}
}

// push queues a chunk for one viewer, or makes it wait for the next keyframe.
func (v *viewer) push(init *vms.Init, c *vms.Chunk, anew bool) bool {
	key := c.Flags.Has(vms.FlagKey)
	if v.blind && !key {
		return false
	}
	if len(v.queue) > 0 && (v.size+len(c.Payload) > maxQueue || len(v.queue) >= maxItems) {
		// Too slow: nothing that waits will be seen in time.
		v.drop()
		if !key {
			return false
		}
	}
	switch {
	case anew || !same(v.init, init):
		v.queue = append(v.queue, item{init: init})
		v.init = init
	case v.blind:
		v.queue = append(v.queue, item{jump: true})
	}
	v.blind, v.new = false, false
	v.queue = append(v.queue, item{chunk: c})
	v.size += len(c.Payload)
	v.signal()
	return true
}

// drop throws away what waits. The next keyframe goes on.
func (v *viewer) drop() {
	clear(v.queue)
	v.queue, v.size, v.blind, v.init = v.queue[:0], 0, true, v.sent
}

func (v *viewer) signal() {
	select {
	case v.wake <- struct{}{}:
	default:
	}
}

// join adds a viewer, who gets nothing before begin but what begins with a keyframe.
func (s *Stream) join() *viewer {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := &viewer{wake: make(chan struct{}, 1), blind: true, new: true, leave: s.away.moved}
	if s.viewers == nil {
		s.viewers = make(map[*viewer]bool)
	}
	s.viewers[v] = true // from now on chunks are kept
	return v
}

// begin shows a new viewer what there is: the last keyframe, and what came since.
func (s *Stream) begin(v *viewer) {
	s.loading.Lock()
	defer s.loading.Unlock()
	if s.lacks() {
		// Not under mu, since what is published comes with the lock held that
		// recent needs. What comes meanwhile is in gop, and may be read back too.
		s.restore(s.recent())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !v.new {
		return // it has begun with a keyframe that came meanwhile
	}
	v.new = false
	switch {
	case s.cause != "" || s.init == nil:
		cause := s.cause
		if cause == "" {
			cause = "waiting for the camera"
		}
		v.queue = append(v.queue, item{offline: cause})
	case s.whole:
		for i, c := range s.gop {
			v.push(s.init, c, i == 0)
		}
	} // else it waits for the next
	v.signal()
}

// lacks reports whether what came since the last keyframe has to be read back.
func (s *Stream) lacks() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.recent != nil && s.cause == "" && s.init != nil && !s.whole && !s.huge
}

// restore puts what was read back before what is in memory. What does not lead
// up to that is of no use.
func (s *Stream) restore(cs []vms.Chunk) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.whole || s.huge || s.cause != "" || len(cs) == 0 || !cs[0].Flags.Has(vms.FlagKey) || cs[0].Epoch != s.epoch || cs[0].Init != s.init.ID {
		return
	}
	next := s.seq + 1
	if len(s.gop) > 0 {
		next = s.gop[0].Seq
	}
	if next <= cs[0].Seq || next-cs[0].Seq > uint64(len(cs)) {
		return
	}
	cs = cs[:next-cs[0].Seq]
	gop, size := make([]*vms.Chunk, 0, len(cs)+len(s.gop)+16), s.gopSize
	for i := range cs {
		if cs[i].Seq != cs[0].Seq+uint64(i) || i > 0 && cs[i].Flags.Has(vms.FlagKey) {
			return
		}
		gop, size = append(gop, &cs[i]), size+len(cs[i].Payload)
	}
	if size > maxGOP {
		return
	}
	s.gop, s.gopSize, s.whole = append(gop, s.gop...), size, true
}

func (s *Stream) leave(v *viewer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.viewers, v)
	if len(s.viewers) == 0 && !s.only && !s.huge {
		s.drop()
	}
}

// take empties a viewer's queue. That it is to leave comes first: what waits may
// say that the stream is offline, and a queue that is thrown away must not take
// this with it.
func (s *Stream) take(v *viewer) []item {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := v.queue
	if v.leave {
		v.leave = false
		q = slices.Insert(q, 0, s.goTo())
	}
	v.queue, v.size, v.sent = nil, 0, v.init
	return q
}
