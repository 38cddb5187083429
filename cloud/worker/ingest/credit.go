package ingest

import (
	"slices"
	"sync"
	"time"
)

// How far ahead of what it brought a connection may send.
const (
	// leastWindow covers 200 ms of pace, as long a round trip and a second of 2 Mbit/s.
	leastWindow = 512 << 10
	// A window that is used up faster than busy is doubled, one that lasts longer
	// than idle is halved: an acknowledgement every second or so is what it takes.
	busy = time.Second
	idle = 5 * time.Second
	// A connection that brings nothing for leastPatience may wait with a chunk
	// that is larger than its window. One whose chunks come seldom gets more, up to
	// mostPatience, before that is believed.
	leastPatience = time.Second
	mostPatience  = 5 * time.Second
	// After lastPatience it is given credit for a largest chunk even if others have
	// all that there is room for, and keep still: nothing takes it back from those.
	lastPatience = 10 * time.Second
)

// ownMemory is what a connection may always have in memory of a message: agents
// cut at 64 KiB of media, where they can.
const ownMemory = 64<<10 + 8<<10

// ledger is what the connections share: room on tmpfs, and memory.
//
// Credit is given from free room, and altogether never more than that: a largest
// chunk is left over, for one that waits with it. Two things may still make
// more come than there is room for: see lastPatience, and the room may shrink. So
// each message that begins asks again, with enter, and waits without being read
// until there is room: what was promised twice is taken one after the other.
//
// Memory is lent for messages above ownMemory, first come, first served: whoever
// waits holds none, so that those who hold some can finish.
type ledger struct {
	room     func() int64
	maxChunk int64

	mu       sync.Mutex
	conns    int
	promised int64 // credit that is not used up, of all
	coming   int64 // bytes of messages that were let in and are not dealt with
	memory   int64 // left for messages above ownMemory
	waiting  []*waiter
}

// waiter is a connection at whose message the ledger looks again.
type waiter struct {
	size  int64
	ready chan struct{} // closed when it was let in
}

// account is what one connection has, under the ledger's mutex.
type account struct {
	bytes  int64 // of messages that were dealt with
	credit int64 // absolute
	window int64 // how far ahead it is given

	largest int64 // message
	raised  time.Time
	brought time.Time     // when something came last
	pause   time.Duration // the longest between two chunks, not long ago
	// expected: it has begun to send, and did not say that it ends.
	expected bool
	inside   bool // in a message, or waiting to be let in
}

// open adds a connection.
func (l *ledger) open(a *account, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns++
	a.window, a.brought = min(leastWindow, l.maxChunk), now
	l.raise(a, now)
}

// close takes it out again.
func (l *ledger) close(a *account) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns--
	l.promised -= a.credit - a.bytes
}

// free is the room that nothing is on its way to.
func (l *ledger) free() int64 { return l.room() - l.coming }

// raise gives a what its window lacks, as far as there is room, and reports
// whether that was anything.
func (l *ledger) raise(a *account, now time.Time) bool {
	free := l.free()
	if free < l.maxChunk {
		return false // near the limit nobody gets any
	}
	ahead := a.credit - a.bytes
	lacks, most := a.window-ahead, free-l.promised
	// Where windows would not all fit, everybody has the same. What comes late
	// finds enough for a chunk, at least, though others have all and keep still.
	conns := int64(max(l.conns, 1))
	spare := free - l.maxChunk - conns*ownMemory
	more := max(min(lacks, spare/conns-ahead, most-l.maxChunk-conns*ownMemory), min(lacks, ownMemory-ahead, most))
	if more <= 0 {
		return false
	}
	switch d := now.Sub(a.raised); {
	case a.raised.IsZero():
	case d < busy && more == lacks:
		a.window = min(2*a.window, l.maxChunk)
	case d > idle:
		a.window = max(a.window/2, min(max(leastWindow, 4*a.largest), l.maxChunk))
	}
	a.raised = now
	a.credit += more
	l.promised += more
	return true
}

// low reports whether half of a's window is used up.
func (l *ledger) low(a *account) bool { return a.credit-a.bytes <= a.window/2 }

// tick gives a what is due to it by now, and reports whether its credit rose.
func (l *ledger) tick(a *account, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a.inside {
		return false
	}
	raised := l.low(a) && l.raise(a, now)
	ahead, quiet := a.credit-a.bytes, now.Sub(a.brought)
	if ahead >= l.maxChunk || quiet < min(max(leastPatience, 2*a.pause), mostPatience) {
		return raised
	}
	// It may have nothing to say, or wait with a chunk for which this is not enough.
	free := l.free()
	more := min(max(2*ahead, a.window), l.maxChunk) - ahead
	switch promised := l.promised + more; {
	case free < l.maxChunk:
		return raised
	case promised <= free/2: // there is plenty
	case a.expected && quiet >= mostPatience && promised <= free:
	case a.expected && quiet >= lastPatience:
	default:
		return raised
	}
	a.credit += more
	l.promised += more
	return true
}

// account returns the credit of a, and whether a largest chunk might not be let
// in: for want of credit, or of room.
func (l *ledger) account(a *account) (credit int64, short bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return a.credit, l.room() < l.maxChunk
}

// enter asks for room and memory for a message that begins. granted: a's credit
// covers it. The waiter, if there is one, is ready when there is both; then, and
// after nil, leave must be called.
func (l *ledger) enter(a *account, size int64) (w *waiter, granted bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a.bytes+size > a.credit {
		return nil, false
	}
	a.inside = true
	if len(l.waiting) == 0 && l.fits(size) {
		l.take(size)
		return nil, true
	}
	w = &waiter{size: size, ready: make(chan struct{})}
	l.waiting = append(l.waiting, w)
	l.admit()
	return w, true
}

// large is the memory that a message needs beyond its connection's own.
func large(size int64) int64 {
	if size <= ownMemory {
		return 0
	}
	return size
}

func (l *ledger) fits(size int64) bool { return l.free() >= size && l.memory >= large(size) }

func (l *ledger) take(size int64) {
	l.coming += size
	l.memory -= large(size)
}

// leave ends what enter began: the message was dealt with, taken or thrown away,
// or it is not waited for any more.
// It reports whether a's credit rose.
func (l *ledger) leave(a *account, w *waiter, size int64, taken bool, now time.Time) (raised bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a.inside = false
	if i := slices.Index(l.waiting, w); w != nil && i >= 0 {
		l.waiting = slices.Delete(l.waiting, i, i+1)
	} else {
		l.coming -= size
		l.memory += large(size)
	}
	if taken {
		if d := now.Sub(a.brought); a.largest > 0 {
			a.pause = max(d, a.pause-a.pause/8)
		}
		a.bytes += size
		a.largest = max(a.largest, size)
		a.window = min(max(a.window, 4*a.largest), l.maxChunk)
		a.brought, a.expected = now, true
		l.promised -= size
		raised = l.low(a) && l.raise(a, now)
	}
	l.admit()
	return raised
}

// said notes a message of control: more is expected then, or nothing, after an end.
func (l *ledger) said(a *account, expected bool, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a.brought, a.expected = now, expected
}

// look lets in who waits, when there is room again.
func (l *ledger) look() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.admit()
}

// admit lets in, in the order in which they came, those that there is room for.
// Small ones pass a large one that has to wait, since what they complete makes
// room for it; and no credit is given until that is so. Memory is given strictly
// in order.
func (l *ledger) admit() {
	if len(l.waiting) == 0 {
		return
	}
	held := false // a message waits for memory
	l.waiting = slices.DeleteFunc(l.waiting, func(w *waiter) bool {
		if held && large(w.size) > 0 || !l.fits(w.size) {
			held = held || large(w.size) > l.memory
			return false
		}
		l.take(w.size)
		close(w.ready)
		return true
	})
}

// stats are for the metrics.
func (l *ledger) stats() (promised, coming int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.promised, max(l.coming, 0)
}

// lend is what is left of a memory budget for messages above ownMemory, when
// each of n connections, at most, has its own.
func lend(budget, maxChunk int64, n int) int64 {
	own := int64(n) * ownMemory
	if n <= 0 {
		own = budget / 2
	}
	return max(budget-own, 2*maxChunk)
}
