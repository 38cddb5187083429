// Package live shows streams to browsers: the agent's fragments, as they are,
// over a WebSocket into Media Source Extensions. A viewer that is too slow
// loses whole GOPs; nobody else notices.
package live

import (
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

// Stream is one channel's live picture. The zero value is not ready: Server makes them.
type Stream struct {
	mu      sync.Mutex
	init    *vms.Init
	epoch   vms.Epoch    // of the newest chunk shown
	seq     uint64       // its number
	gop     []*vms.Chunk // from the last keyframe on; nil when it grew too large
	gopSize int
	cause   string // why it is offline, empty while it is not
	viewers map[*viewer]bool
}

// item is what waits for a viewer.
type item struct {
	init    *vms.Init // begins anew with this init
	chunk   *vms.Chunk
	jump    bool
	offline string
}

type viewer struct {
	queue []item
	size  int
	// blind: what comes is of no use before the next keyframe.
	blind bool
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

// Publish shows a chunk, which init decodes. It never blocks. Chunks may be
// shared with others: nobody writes to them.
func (s *Stream) Publish(init *vms.Init, c *vms.Chunk) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.epoch == c.Epoch && c.Seq <= s.seq {
		return // sent again, to be stored: viewers have seen it
	}
	key := c.Flags.Has(vms.FlagKey)
	// A keyframe that does not follow on what was shown, or needs another init,
	// begins anew: its times need not go on where the last ones ended.
	anew := s.cause != "" || !same(s.init, init) || s.epoch != c.Epoch || s.seq+1 != c.Seq ||
		c.Flags.Has(vms.FlagFirst) && c.Recording == 0
	if anew && !key {
		return
	}
	if key {
		s.gop, s.gopSize = make([]*vms.Chunk, 0, 16), 0
	}
	if s.gop != nil {
		s.gop, s.gopSize = append(s.gop, c), s.gopSize+len(c.Payload)
		if s.gopSize > maxGOP {
			s.gop = nil
		}
	}
	s.init, s.epoch, s.seq, s.cause = init, c.Epoch, c.Seq, ""
	for v := range s.viewers {
		v.push(init, c, anew)
	}
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
	s.cause, s.gop = cause, nil
	for v := range s.viewers {
		if len(v.queue) >= maxItems {
			v.drop()
		}
		v.queue = append(v.queue, item{offline: cause})
		v.blind = true
		v.signal()
	}
}

// push queues a chunk for one viewer, or makes it wait for the next keyframe.
func (v *viewer) push(init *vms.Init, c *vms.Chunk, anew bool) {
	if v.blind && !c.Flags.Has(vms.FlagKey) {
		return
	}
	if len(v.queue) > 0 && (v.size+len(c.Payload) > maxQueue || len(v.queue) >= maxItems) {
		// Too slow: nothing that waits will be seen in time.
		v.drop()
		if !c.Flags.Has(vms.FlagKey) {
			return
		}
	}
	switch {
	case anew || !same(v.init, init):
		v.queue = append(v.queue, item{init: init})
		v.init = init
	case v.blind:
		v.queue = append(v.queue, item{jump: true})
	}
	v.blind = false
	v.queue = append(v.queue, item{chunk: c})
	v.size += len(c.Payload)
	v.signal()
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

// join adds a viewer, who begins with the last keyframe.
func (s *Stream) join() *viewer {
	v := &viewer{wake: make(chan struct{}, 1), blind: true}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.cause != "" || s.init == nil:
		cause := s.cause
		if cause == "" {
			cause = "waiting for the camera"
		}
		v.queue = append(v.queue, item{offline: cause})
	case s.gop != nil:
		for i, c := range s.gop {
			v.push(s.init, c, i == 0)
		}
	} // else the GOP is too long: it waits for the next
	v.signal()
	if s.viewers == nil {
		s.viewers = make(map[*viewer]bool)
	}
	s.viewers[v] = true
	return v
}

func (s *Stream) leave(v *viewer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.viewers, v)
}

// take empties a viewer's queue.
func (s *Stream) take(v *viewer) []item {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := v.queue
	v.queue, v.size, v.sent = nil, 0, v.init
	return q
}
