package spool

import (
	"math"
	"slices"
	"sync"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

// Spool holds the chunks of one channel, over all its epochs: the oldest ones
// on flash, the others in RAM. It comes from Store.Spool. All methods may be
// called at the same time.
type Spool struct {
	store   *Store
	channel vms.ChannelID

	mu      sync.Mutex
	entries []entry    // in RAM, ascending by key
	blocks  []*shelved // on flash, ascending by key; all before entries
	ends    []end      // ascending by key
	epochs  []epochState
	ords    int // given out
	last    key // of the newest chunk that came, and when it ends
	lastEnd time.Time
	bytes   int64 // of RAM
	// flight is what is being written to flash: it is in RAM until that is done.
	flight      run
	flightOrd   int
	flightBytes int64
	shelf       *shelf
	discarded   bool // nothing is kept any more
	files       map[*file]*fileState
	// starving says why a GOP was dropped up to its newest chunk, so that what
	// follows of it cannot be decoded either; empty when it was not.
	starving vms.Cause
	// What the camera's clock showed at a chunk whose time is certain.
	camera, cameraAt time.Time
	durable          time.Time // end of the newest chunk known to be durable
	lost             uint64    // chunks dropped and declared
	changed          chan struct{}

	holes []hole
	gaps  []*gapState
	drops []vms.GapID // committed, and to be taken from Facts

	lanes
}

// end says that nothing of its epoch follows for now.
type end struct {
	key
	cause string
	said  bool // handed out once by the lane that owns its place
}

type epochState struct {
	ord   int
	epoch vms.Epoch
	inits map[uint32]vms.Init
	time  *timing
}

// fileState is what of a file is still wanted.
type fileState struct {
	epoch   vms.Epoch
	blocks  int
	dropped bool // it held what was dropped: the gap has to outlive it
}

func newSpool(st *Store, ch vms.ChannelID) *Spool {
	s := &Spool{store: st, channel: ch, files: map[*file]*fileState{}}
	s.bounded = true // what is appended is live's, unless it stays away
	return s
}

// ordinal returns the place of epoch e, which it adds when it is new.
func (s *Spool) ordinal(e vms.Epoch) int {
	if i := s.epochIndex(e); i >= 0 {
		return s.epochs[i].ord
	}
	s.epochs = append(s.epochs, epochState{ord: s.ords, epoch: e, inits: map[uint32]vms.Init{}, time: new(timing)})
	s.ords++
	s.tidy()
	return s.ords - 1
}

func (s *Spool) epochIndex(e vms.Epoch) int {
	return slices.IndexFunc(s.epochs, func(x epochState) bool { return x.epoch == e })
}

// named returns the epoch at ord; zero when it is forgotten.
func (s *Spool) named(ord int) vms.Epoch {
	for i := range s.epochs {
		if s.epochs[i].ord == ord {
			return s.epochs[i].epoch
		}
	}
	return 0
}

// newest is the epoch that is written now; ord -1 when there is none.
func (s *Spool) newest() epochState {
	if n := len(s.epochs); n > 0 {
		return s.epochs[n-1]
	}
	return epochState{ord: -1}
}

// notify wakes all that wait for a change.
func (s *Spool) notify() {
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

func (s *Spool) wait() <-chan struct{} {
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	return s.changed
}

// Changed returns a channel that is closed at the next change.
func (s *Spool) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wait()
}

// PutInit keeps an init for the chunks that will name it.
func (s *Spool) PutInit(i vms.Init) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ordinal(i.Epoch)
	s.epochs[s.epochIndex(i.Epoch)].inits[i.ID] = i
}

// Init returns the init that a chunk names.
func (s *Spool) Init(e vms.Epoch, id uint32) (vms.Init, bool) {
	s.mu.Lock()
	var init vms.Init
	ok := false
	if i := s.epochIndex(e); i >= 0 {
		init, ok = s.epochs[i].inits[id]
	}
	sh := s.shelf
	s.mu.Unlock()
	if !ok && sh != nil {
		return sh.init(e, id)
	}
	return init, ok
}

// Append takes the next chunk of the newest epoch, or of a new one. It never
// waits; it may drop older chunks, of this or another stream, to keep the budget.
func (s *Spool) Append(c vms.Chunk) {
	s.mu.Lock()
	if s.discarded {
		s.mu.Unlock()
		return
	}
	ord := s.newest().ord
	if ord < 0 || s.epochs[len(s.epochs)-1].epoch != c.Epoch {
		ord = s.ordinal(c.Epoch)
	}
	e := s.stamped(ord, &c)
	if s.starving != "" && !c.Flags.Has(vms.FlagKey) {
		s.lost++
		s.dropped(ord, c.Epoch, run{c.Seq, c.Seq}, e.chunk.Start, e.chunk.End, s.starving)
		s.last, s.lastEnd = e.key(), e.chunk.End
		s.notify()
		s.mu.Unlock()
		return
	}
	s.starving = ""
	s.entries = append(s.entries, e)
	n := size(&c)
	s.bytes += n
	s.last, s.lastEnd = e.key(), e.chunk.End
	s.came(s.last, c.Flags)
	s.notify()
	s.mu.Unlock()
	s.store.add(n)
}

// size is what a chunk costs: its bytes and what keeps them.
func size(c *vms.Chunk) int64 { return int64(len(c.Payload)) + 256 }

// End notes that nothing of epoch e follows seq for now, so that the worker can
// complete the recording.
func (s *Spool) End(e vms.Epoch, seq uint64, cause string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := key{ord: s.ordinal(e), seq: seq, end: true}
	i, found := slices.BinarySearchFunc(s.ends, k, func(e end, k key) int { return e.compare(k) })
	if !found {
		s.ends = slices.Insert(s.ends, i, end{key: k, cause: cause})
		s.notify()
	}
}

// Durable frees what is in S3. The ranges may come in any order, and name more
// than is held.
func (s *Spool) Durable(ranges []vms.ChunkRange) {
	if len(ranges) == 0 {
		return
	}
	s.mu.Lock()
	var freed int64
	var n uint64
	for _, r := range ranges {
		i := s.epochIndex(r.Epoch)
		if i < 0 {
			continue
		}
		f, m, end := s.forget(s.epochs[i].ord, r.First, r.Last, false)
		freed, n = freed+f, n+m
		if end.After(s.durable) {
			s.durable = end
		}
	}
	if n > 0 {
		s.tidy()
		s.notify()
	}
	s.mu.Unlock()
	s.store.add(-freed)
}

// Skip drops the GOP of a chunk that the worker will never take.
func (s *Spool) Skip(e vms.Epoch, seq uint64) {
	s.mu.Lock()
	var freed int64
	if i := s.epochIndex(e); i >= 0 {
		if r, ok := s.heldAt(s.epochs[i].ord, seq); ok {
			freed = s.drop(s.gopStart(r), s.gopEnd(r), vms.CauseRejected)
			s.notify()
		}
	}
	s.mu.Unlock()
	s.store.add(-freed)
}

// drop removes the unbroken run of chunks from one to another, declares it
// missing, and returns the bytes of RAM that this frees.
func (s *Spool) drop(from, to ref, cause vms.Cause) (freed int64) {
	e, start, end := from.epoch(), from.start(), to.end()
	freed, n, _ := s.forget(from.ord, from.seq, to.seq, true)
	s.lost += n
	s.dropped(from.ord, e, run{from.seq, to.seq}, start, end, cause)
	if to.key == s.last && s.starving == "" {
		s.starving = cause
	}
	s.tidy()
	return freed
}

// choice says which GOP a spool is to give up when there is no room in RAM.
type choice int

const (
	// oldestWhole: the oldest one, unless that would tear it.
	oldestWhole choice = iota
	// nextWhole: the oldest one that is complete and would not be torn.
	nextWhole
	// oldestTorn: the oldest one, whatever becomes of it.
	oldestTorn
)

// dropOldest drops one GOP in RAM, none that is on its way to flash, and returns
// the bytes it freed, 0 when the choice leaves none.
func (s *Spool) dropOldest(c choice) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	from := 0
	for from < len(s.entries) && s.inFlight(s.entries[from]) {
		from++
	}
	for from < len(s.entries) {
		to := from + 1
		for to < len(s.entries) && s.entries[to-1].follows(s.entries[to]) && !s.entries[to].chunk.Flags.Has(vms.FlagKey) {
			to++
		}
		if c == oldestTorn || !s.tears(from, to) && (c == oldestWhole || !s.grows(to)) {
			first, last := s.entries[from], s.entries[to-1]
			freed := s.drop(ref{key: first.key(), chunk: first.chunk}, ref{key: last.key(), chunk: last.chunk}, vms.CauseBufferFull)
			s.notify()
			return freed
		}
		if c == oldestWhole {
			break
		}
		from = to
	}
	return 0
}

// tears reports whether dropping entries [from, to), which are a GOP or what RAM
// has of it, would leave another part of it somewhere: a worker that is about to
// get all of it over connections that are up, has all of it; else its beginning
// must be here, and nothing of it sent.
func (s *Spool) tears(from, to int) bool {
	sent := 0
	for _, e := range s.entries[from:to] {
		if _, ok := s.sent(nil, e.chunk.Epoch, e.chunk.Seq); ok {
			sent++
		}
	}
	if sent == to-from {
		return s.grows(to)
	}
	return sent > 0 || !s.entries[from].chunk.Flags.Has(vms.FlagKey)
}

// grows reports whether the GOP that ends before entry to is the one that is
// being captured: what follows of it would be lost with it.
func (s *Spool) grows(to int) bool {
	if s.entries[to-1].key() != s.last {
		return false
	}
	n := len(s.ends)
	return n == 0 || s.ends[n-1].key.before(s.last)
}

// droppable is how many bytes of RAM dropOldest could free.
func (s *Spool) droppable() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes - s.flightBytes
}

func (s *Spool) inFlight(e entry) bool {
	return s.flight.first != 0 && e.ord == s.flightOrd && s.flight.first <= e.chunk.Seq && e.chunk.Seq <= s.flight.last
}

// tidy forgets what nobody needs any more: epochs that are over and of which
// nothing is held, with their ends and holes, and inits of RAM that no chunk names.
func (s *Spool) tidy() {
	newest := s.newest().ord
	s.ends = slices.DeleteFunc(s.ends, func(e end) bool {
		if e.ord != newest && !s.holdsEpoch(e.ord) {
			return true
		}
		_, held := s.heldAt(e.ord, e.seq)
		return !held && e.said && e.key.before(s.last)
	})
	s.epochs = slices.DeleteFunc(s.epochs, func(e epochState) bool {
		if e.ord == newest || s.holdsEpoch(e.ord) || s.flight.first != 0 && s.flightOrd == e.ord {
			return false
		}
		s.forgetEpoch(e.epoch)
		return true
	})
	for _, e := range s.epochs {
		if len(e.inits) < 2 {
			continue
		}
		// Inits are named in the order of their ids: the first chunk has the least.
		least := uint32(0)
		if i := s.ram(key{ord: e.ord}); i < len(s.entries) && s.entries[i].ord == e.ord {
			least = s.entries[i].chunk.Init
		} else if e.ord == newest {
			for id := range e.inits { // the next chunk names the newest
				least = max(least, id)
			}
		} else {
			least = math.MaxUint32
		}
		for id := range e.inits {
			if id < least {
				delete(e.inits, id)
			}
		}
	}
	s.tidyHoles()
}

// Epochs lists the epochs of which chunks are held, oldest first, and the
// newest one even when nothing of it is.
func (s *Spool) Epochs() []vms.Epoch {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]vms.Epoch, 0, len(s.epochs))
	for i, e := range s.epochs {
		if i == len(s.epochs)-1 || s.holdsEpoch(e.ord) {
			out = append(out, e.epoch)
		}
	}
	return out
}
