package spool

import (
	"context"
	"errors"
	"io"
	"math"
	"slices"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// ErrClosed is returned by a cursor that was closed, or replaced by a newer one
// of its lane.
var ErrClosed = errors.New("the cursor is closed")

const (
	// readTries is how often a chunk on flash is tried before it counts as lost,
	// when the reading fails for another reason than that it is damaged.
	readTries = 3
	readPause = time.Second
)

// Cursor hands out what one connection of a lane sends. It is used by one
// goroutine at a time, but for Behind, Received and Close.
type Cursor struct {
	s           *Spool
	lane        vms.Lane
	worker      vms.Instance // that the connection goes to
	newestFirst bool

	// All under Spool.mu.

	// got is what the worker has, or was sent on this connection, but for
	// previews; sure is what of it the worker has confirmed.
	got, sure map[vms.Epoch]*runs
	// hushed are holes that were explained on this connection.
	hushed map[vms.Epoch]*runs
	// hints are what was sent to the worker on connections that are closed: it may have it.
	hints  map[vms.Epoch]*runs
	ends   []key     // handed out
	pos    key       // of the chunk, or the end of the hole, that was handed out last; ord -1 before the first
	epoch  vms.Epoch // of pos
	max    key       // greatest chunk handed out; ord -1 before the first
	closed bool

	// of a backfill that goes newest first: the recording that it is at.
	run   struct{ from, to key }
	inRun bool

	previous struct { // before the chunk that is being read
		pos, max key
		epoch    vms.Epoch
		fresh    bool
	}

	// of a live cursor
	preview    bool
	at         key  // preview: what comes next
	wantKey    bool // preview: at must be a keyframe
	shown      key  // preview: what was handed out last; ord -1 before the first
	leap       bool // it has left its place, and the worker does not know yet
	fresh      bool // nothing was recorded since the last jump
	heir       *Cursor
	waiting    bool // the heir: for the first chunk of its own
	until      key  // what was handed over begins here; never when nothing was
	untilEpoch vms.Epoch
	from       key  // with until: what is still this cursor's begins here
	parted     bool // the end that goes with until was handed out
}

func (s *Spool) newCursor(lane vms.Lane, worker vms.Instance, have []vms.ChunkRange) *Cursor {
	c := &Cursor{s: s, lane: lane, worker: worker, got: map[vms.Epoch]*runs{}, sure: map[vms.Epoch]*runs{}, hushed: map[vms.Epoch]*runs{}, hints: map[vms.Epoch]*runs{},
		pos: key{ord: -1}, max: key{ord: -1}, shown: key{ord: -1}, until: never}
	for _, r := range have {
		add(c.got, r.Epoch, run{r.First, r.Last})
		add(c.sure, r.Epoch, run{r.First, r.Last})
	}
	return c
}

func add(m map[vms.Epoch]*runs, e vms.Epoch, r run) {
	if m[e] == nil {
		m[e] = new(runs)
	}
	m[e].add(r.first, r.last)
}

// of returns the runs of epoch e.
func of(m map[vms.Epoch]*runs, e vms.Epoch) runs {
	if r := m[e]; r != nil {
		return *r
	}
	return nil
}

// Next returns what follows, waiting until there is something or ctx ends. A
// backfill cursor returns io.EOF when all that is its lane's was handed out; it
// may be asked again after a change. A live cursor returns io.EOF when it has
// handed over.
func (c *Cursor) Next(ctx context.Context) (wire.Outgoing, error) {
	for tries := 0; ; {
		if ctx.Err() != nil {
			return wire.Outgoing{}, ctx.Err()
		}
		st := c.step()
		switch {
		case st.err != nil:
			return wire.Outgoing{}, st.err
		case st.read.at != nil:
			tries++
			chunk, retry := c.read(st.read, tries)
			if chunk != nil {
				return wire.Outgoing{Chunk: chunk}, nil
			}
			if retry {
				pause := time.NewTimer(readPause)
				select {
				case <-ctx.Done():
				case <-pause.C:
				}
				pause.Stop()
			} else {
				tries = 0
			}
			continue
		case st.out != (wire.Outgoing{}):
			return st.out, nil
		}
		select {
		case <-ctx.Done():
		case <-st.wait:
		}
	}
}

// step is what a cursor is to do: hand something out, read a chunk from flash
// first, wait, or give up.
type step struct {
	out  wire.Outgoing
	read ref
	wait <-chan struct{}
	err  error
}

func (st step) idle() bool { return st.out == (wire.Outgoing{}) && st.read.at == nil && st.err == nil }

func (c *Cursor) step() step {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	var st step
	switch {
	case c.closed:
		return step{err: ErrClosed}
	case c.waiting, c.lane == vms.LaneLive && c.s.withheld(c.s.newest().ord):
	case c.lane == vms.LaneBackfill && c.newestFirst:
		st = c.stepBack()
	case c.lane == vms.LaneBackfill:
		st = c.stepForth()
	default:
		st = c.stepLive()
	}
	if st.idle() {
		st.wait = c.s.wait()
	}
	return st
}

// read fetches a chunk from flash, without a lock. It returns nil when there is
// nothing to hand out; retry: not yet.
func (c *Cursor) read(r ref, tries int) (chunk *vms.Chunk, retry bool) {
	s := c.s
	s.mu.Lock()
	sh := s.shelf
	s.mu.Unlock()
	got, err := sh.read(r.at.block, r.seq)
	s.mu.Lock()
	now, held := s.heldAt(r.ord, r.seq)
	if err == nil && held {
		got = r.at.time.place(got)
		s.mu.Unlock()
		return &got, false
	}
	// It was not handed out after all.
	if set := c.got[r.epoch()]; set != nil {
		set.remove(r.seq, r.seq)
	}
	p := &c.previous
	c.pos, c.max, c.epoch, c.fresh = p.pos, p.max, p.epoch, p.fresh
	if !held || now.at == nil {
		s.mu.Unlock()
		return nil, false
	}
	if !errors.Is(err, errDamaged) && tries < readTries {
		s.mu.Unlock()
		return nil, true
	}
	s.store.cfg.Log.Error("footage on flash cannot be read; the rest of its GOP is lost",
		"channel", s.channel, "epoch", r.epoch(), "seq", r.seq, "err", err)
	freed := s.drop(now, s.gopEnd(now), vms.CauseStorageFailed)
	s.notify()
	s.mu.Unlock()
	s.store.add(-freed)
	return nil, false
}

// hand hands out a chunk.
func (c *Cursor) hand(r ref) step {
	p := &c.previous
	p.pos, p.max, p.epoch, p.fresh = c.pos, c.max, c.epoch, c.fresh
	add(c.got, r.epoch(), run{r.seq, r.seq})
	c.pos, c.epoch, c.fresh = r.key, r.epoch(), false
	if c.max.before(r.key) {
		c.max = r.key
	}
	if r.at != nil {
		return step{read: r}
	}
	return step{out: wire.Outgoing{Chunk: r.chunk}}
}

// brought is what c need not bring, because o does: all that o was sent when it
// is c itself, or c is nil. What is still under way on another connection does
// not count: what c sends next would overtake it.
func (c *Cursor) brought(o *Cursor, e vms.Epoch) runs {
	if c == nil || c == o {
		return of(o.got, e)
	}
	return of(o.sure, e)
}

// taken reports whether the worker that c goes to has the chunk or was sent it
// by c, and the last one of the run of which that holds; when c is nil, whether
// any worker was sent it. What only another worker was sent does not count:
// recordings are put together by one.
func (s *Spool) taken(c *Cursor, e vms.Epoch, seq uint64) (last uint64, ok bool) {
	for _, o := range s.peers(c) {
		if r := c.brought(o, e); r.has(seq) {
			last, ok = max(last, r.missing(seq)-1), true
		}
	}
	return last, ok
}

// sent reports whether the worker that c goes to has the chunk or was sent it on
// any connection that is open, and the last one of the run of which that holds;
// when c is nil, whether any worker has.
func (s *Spool) sent(c *Cursor, e vms.Epoch, seq uint64) (last uint64, ok bool) {
	for _, o := range s.peers(c) {
		if r := of(o.got, e); r.has(seq) {
			last, ok = max(last, r.missing(seq)-1), true
		}
	}
	return last, ok
}

// takenFirst is taken for the first one of the run.
func (s *Spool) takenFirst(c *Cursor, e vms.Epoch, seq uint64) (first uint64, ok bool) {
	for _, o := range s.peers(c) {
		if r := c.brought(o, e); r.has(seq) {
			if n := r.missingBelow(seq) + 1; !ok || n < first {
				first = n
			}
			ok = true
		}
	}
	return first, ok
}

// outstanding returns the first chunk in [from, to) that is held and not taken.
// What an elder live cursor still has to bring is passed over, unless it is c,
// and what is withheld.
func (s *Spool) outstanding(c *Cursor, from, to key) (ref, bool) {
	for k := from; ; {
		r, ok := s.heldFrom(k)
		if !ok || !r.key.before(to) {
			return ref{}, false
		}
		if s.elders(c, r.key) {
			k = s.elder.until
			continue
		}
		if s.withheld(r.ord) {
			k = key{ord: r.ord + 1}
			continue
		}
		last, taken := s.taken(c, r.epoch(), r.seq)
		if !taken {
			return r, true
		}
		k = key{ord: r.ord, seq: last}.next()
	}
}

// lastOutstanding returns the last one of which outstanding says the first.
func (c *Cursor) lastOutstanding(to key) (ref, bool) {
	for k := to; ; {
		r, ok := c.s.heldBefore(k)
		if !ok {
			return ref{}, false
		}
		if c.s.elders(c, r.key) {
			k = c.s.elder.from
			continue
		}
		if c.s.withheld(r.ord) {
			k = key{ord: r.ord}
			continue
		}
		first, taken := c.s.takenFirst(c, r.epoch(), r.seq)
		if !taken {
			return r, true
		}
		k = key{ord: r.ord, seq: first}
	}
}

// nextEnd returns the first end in [from, to) that was not handed out here.
func (c *Cursor) nextEnd(from, to key) *end {
	for i := range c.s.ends {
		e := &c.s.ends[i]
		if !e.key.before(from) && e.key.before(to) && !slices.Contains(c.ends, e.key) && !c.s.elders(c, e.key) && !c.s.withheld(e.ord) {
			return e
		}
	}
	return nil
}

// forth hands out what comes next in [from, to), in order; nothing when all was.
func (c *Cursor) forth(from, to key) step {
	r, ok := c.s.outstanding(c, from, to)
	if e := c.nextEnd(from, to); e != nil && (!ok || e.key.before(r.key)) {
		if g := c.hole(e.ord, e.seq, false); g != nil {
			return step{out: wire.Outgoing{Gap: g}}
		}
		return c.handEnd(e)
	}
	if !ok {
		return step{}
	}
	first := r.flags().Has(vms.FlagFirst)
	if c.newestFirst && first {
		return c.hand(r) // what is before it is explained behind the recording that it belongs to
	}
	// A worker begins in the middle of a recording only when it knows what became
	// of the beginning.
	if g := c.hole(r.ord, r.seq-1, !first); g != nil {
		return step{out: wire.Outgoing{Gap: g}}
	}
	return c.hand(r)
}

func (c *Cursor) handEnd(e *end) step {
	e.said = true
	c.ends = append(slices.DeleteFunc(c.ends, func(k key) bool {
		return !slices.ContainsFunc(c.s.ends, func(e end) bool { return e.key == k })
	}), e.key)
	out := wire.Outgoing{End: &wire.End{Epoch: c.s.named(e.ord), Seq: e.seq, Cause: e.cause}}
	c.s.tidy()
	return step{out: out}
}

// hole explains the next chunks up to last that will not come, if there are
// any behind what the worker has of the epoch. One that has nothing of it takes
// it from anywhere; unless whole, which explains all of the epoch then.
func (c *Cursor) hole(ord int, last uint64, whole bool) *wire.GapMessage {
	e := c.s.named(ord)
	if last == 0 || e == 0 {
		return nil
	}
	at, known := uint64(0), false
	behind := func(n uint64, ok bool) {
		if ok && (!known || n > at) {
			at, known = n, true
		}
	}
	if c.pos.ord == ord && c.pos.seq <= last {
		behind(c.pos.seq, !c.newestFirst) // what it has farther on explains nothing before that
	}
	if !known {
		behind(of(c.got, e).below(last))
		behind(of(c.hushed, e).below(last))
	}
	if c.newestFirst { // other recordings before this one may still come
		r, ok := c.s.heldBefore(key{ord: ord, seq: last}.next())
		behind(r.seq, ok && r.ord == ord)
	}
	if c.lane == vms.LaneLive {
		// What is before the region of live is explained by backfill.
		from, _ := c.region()
		r, ok := c.s.heldBefore(from)
		behind(from.seq-1, ok && r.ord == ord && from.ord == ord)
	}
	if !known {
		// Other connections may have brought what is before the hole.
		behind(of(c.hints, e).below(last))
		for _, o := range c.s.peers(c) {
			behind(of(o.got, e).below(last))
		}
	}
	if !known && !whole {
		return nil
	}
	return c.holeBehind(ord, e, at, last)
}

// holeBehind explains what will not come of (at, last].
func (c *Cursor) holeBehind(ord int, e vms.Epoch, at, last uint64) *wire.GapMessage {
	n := at + 1
	for n <= last {
		if to, ok := c.s.sent(c, e, n); ok {
			n = to + 1
		} else if _, ok := c.s.heldAt(ord, n); ok {
			n++
		} else {
			break
		}
		if n == 0 { // it was the greatest number there is
			return nil
		}
	}
	if n > last {
		return nil
	}
	r := run{n, last}
	if h, ok := c.s.heldFrom(key{ord: ord, seq: n}); ok && h.ord == ord && h.seq <= last {
		r.last = h.seq - 1
	}
	for _, o := range c.s.peers(c) {
		if m, ok := of(o.got, e).above(n); ok && m <= r.last {
			r.last = m - 1
		}
	}
	m := c.s.explain(ord, r)
	add(c.hushed, e, run{m.Chunks.First, m.Chunks.Last})
	c.pos, c.epoch = key{ord: ord, seq: m.Chunks.Last}, e
	return m
}

// stepForth is the next step of a backfill in order.
func (c *Cursor) stepForth() step {
	if st := c.forth(key{}, c.s.boundary()); !st.idle() {
		return st
	}
	return c.done()
}

// done is where a backfill cursor has nothing left.
func (c *Cursor) done() step {
	s := c.s
	if s.bounded && s.bound.seq > 1 {
		// What is before the region of live ends there, and not in silence.
		if g := c.hole(s.bound.ord, s.bound.seq-1, false); g != nil {
			return step{out: wire.Outgoing{Gap: g}}
		}
	}
	if _, held := s.heldFrom(key{}); s.bounded || !held {
		return step{err: io.EOF}
	}
	return step{}
}

// stepBack is the next step of a backfill that begins with the newest recording.
func (c *Cursor) stepBack() step {
	to := c.s.boundary()
	for {
		if c.inRun {
			end := c.run.to
			if to.before(end) {
				end = to
			}
			if st := c.forth(c.run.from, end); !st.idle() {
				return st
			}
			c.inRun = false
			if g := c.behind(end); g != nil {
				return step{out: wire.Outgoing{Gap: g}}
			}
		}
		r, ok := c.lastOutstanding(to)
		if !ok {
			if e := c.nextEnd(key{}, to); e != nil {
				return c.handEnd(e)
			}
			return c.done()
		}
		from := c.s.recordingStart(r)
		end, complete := c.s.recordingEnd(r)
		if !complete && !c.s.bounded {
			// It grows: what is complete comes before it.
			if o, ok := c.lastOutstanding(from); ok {
				from = c.s.recordingStart(o)
				end, _ = c.s.recordingEnd(o)
			}
		}
		c.run.from, c.run.to, c.inRun = from, end, true
	}
}

// behind explains the hole behind what was handed out last, when a recording
// that goes up to end is over.
func (c *Cursor) behind(end key) *wire.GapMessage {
	if c.pos.ord < 0 {
		return nil
	}
	e := c.s.named(c.pos.ord)
	if e == 0 {
		return nil
	}
	last := uint64(0)
	if end.ord == c.pos.ord && end.seq > 0 {
		last = end.seq - 1
	}
	if h, ok := c.s.heldFrom(c.pos.next()); ok && h.ord == c.pos.ord && (last == 0 || h.seq <= last) {
		last = h.seq - 1
	}
	if last <= c.pos.seq {
		return nil
	}
	return c.holeBehind(c.pos.ord, e, c.pos.seq, last)
}

// Behind is what is the lane's and was not handed out yet: about how many bytes,
// and how far what comes next lies behind the newest chunk.
func (c *Cursor) Behind() (bytes int64, lag time.Duration) {
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.closed || c.waiting || c.parted {
		return 0, 0
	}
	from, to := key{}, s.boundary()
	switch {
	case c.lane == vms.LaneLive && c.preview:
		from, to = c.at, c.until
	case c.lane == vms.LaneLive:
		from, to = c.region()
	}
	first := true
	for k := from; ; {
		var r ref
		var ok bool
		if c.preview {
			r, ok = s.heldFrom(k)
			ok = ok && r.key.before(to)
		} else {
			r, ok = s.outstanding(c, k, to)
		}
		if !ok {
			return bytes, lag
		}
		if first {
			first, lag = false, max(0, s.lastEnd.Sub(r.start()))
		}
		// Up to what the worker has again, or the end of the block.
		last := uint64(math.MaxUint64)
		if r.at != nil {
			last = r.at.Last
		}
		if to.ord == r.ord && to.seq <= last {
			last = to.seq - 1
		}
		if !c.preview {
			if e := s.elder; e != nil && e != c && e.from.ord == r.ord && r.seq < e.from.seq && e.from.seq <= last {
				last = e.from.seq - 1
			}
			for _, o := range s.peers(c) {
				if n, ok := c.brought(o, r.epoch()).above(r.seq); ok && n <= last {
					last = n - 1
				}
			}
		}
		if r.at != nil {
			bytes += r.at.share(last - r.seq + 1 - r.at.gone.count(r.seq, last))
		} else {
			for _, e := range s.entries[s.ram(r.key):] {
				if e.ord != r.ord || e.chunk.Seq > last {
					break
				}
				bytes += int64(len(e.chunk.Payload))
			}
		}
		k = key{ord: r.ord, seq: last}.next()
	}
}

// Received notes that the worker has taken chunks that were handed out.
func (c *Cursor) Received(ranges []vms.ChunkRange) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	for _, r := range ranges {
		if c.got[r.Epoch] != nil { // else forgotten
			add(c.sure, r.Epoch, run{r.First, r.Last})
		}
	}
}

// Close says that the connection is gone. What was sent on it and is not
// durable is sent again, by whichever lane it belongs to then.
func (c *Cursor) Close() {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.shut()
}
