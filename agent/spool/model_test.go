package spool

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// facts is Facts in memory.
type facts struct {
	mu   sync.Mutex
	gaps map[vms.ChannelID][]vms.Gap
	puts int
	fail error
	days map[string]int64
}

var _ Facts = (*facts)(nil)

func (f *facts) Gaps(ch vms.ChannelID) ([]vms.Gap, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return copyGaps(f.gaps[ch]), nil
}

func copyGaps(in []vms.Gap) []vms.Gap {
	out := slices.Clone(in)
	for i := range out {
		if r := out[i].Chunks; r != nil {
			c := *r
			out[i].Chunks = &c
		}
	}
	return out
}

func (f *facts) PutGaps(ch vms.ChannelID, gaps []vms.Gap) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return f.fail
	}
	f.puts++
	if f.gaps == nil {
		f.gaps = map[vms.ChannelID][]vms.Gap{}
	}
	for _, g := range copyGaps(gaps) {
		f.gaps[ch] = append(slices.DeleteFunc(f.gaps[ch], func(o vms.Gap) bool { return o.ID == g.ID }), g)
	}
	return nil
}

func (f *facts) DropGaps(ch vms.ChannelID, ids []vms.GapID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gaps[ch] = slices.DeleteFunc(f.gaps[ch], func(o vms.Gap) bool { return slices.Contains(ids, o.ID) })
	return nil
}

func (f *facts) FlashWritten(day string, n int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.days == nil {
		f.days = map[string]int64{}
	}
	f.days[day] += n
	return nil
}

// fate is what became of a chunk, as far as anybody was told.
type fate int

const (
	kept     fate = iota
	durable       // said to be in S3
	rebooted      // only in RAM when the agent was killed: the NVR derives the gap
)

// recorder is an instance of a worker: what it has, by either lane, and what it
// was told not to wait for.
type recorder struct {
	name                             vms.Instance
	have, explained, elsewhere, over runsOf
}

// connection is one of a lane, to a worker.
type connection struct {
	cur    *Cursor
	worker *recorder
	sent   runsOf          // in record mode
	way    []wire.Outgoing // what has not arrived
	sure   runsOf          // of the welcome, or called received
	loose  runsOf          // was under way on other connections meanwhile
	// Where the worker has the lane: the number that follows, 0 before the first
	// of the connection, and whether it may begin at another recording.
	epoch  vms.Epoch
	next   uint64
	free   bool
	moving bool // it hands over
	done   bool
}

// runsOf are chunks by epoch.
type runsOf map[vms.Epoch]*runs

func (r runsOf) has(e vms.Epoch, seq uint64) bool { return of(r, e).has(seq) }

// world is one spool, the camera that fills it, the worker that empties it and
// the NVR that hears of the gaps; and what each of them may rely on.
type world struct {
	t   *testing.T
	rnd *rand.Rand
	s   *Spool

	epoch  vms.Epoch
	seq    uint64
	initID uint32
	ended  bool
	// unsure: the hub does not know the time, what is appended is late by lateBy.
	unsure bool
	all    map[vms.ChunkRange]*vms.Chunk // by range of one
	order  []vms.ChunkRange
	fates  map[vms.ChunkRange]fate

	workers           [2]*recorder // the first one is assigned
	instances         int
	live, elder, back *connection
	newestFirst       bool

	declared  map[vms.GapID]vms.Gap
	committed map[vms.GapID]bool
	asked     []vms.GapID
	// weak gaps were neither committed nor saved when the agent was killed: flash
	// may have what they stand for.
	weak    map[vms.GapID]bool
	land    func() // ends a write to flash that is under way
	damaged bool
}

func one(e vms.Epoch, seq uint64) vms.ChunkRange {
	return vms.ChunkRange{Epoch: e, First: seq, Last: seq}
}

func newWorld(t *testing.T, rnd *rand.Rand, s *Spool) *world {
	w := &world{
		t: t, rnd: rnd, s: s, all: map[vms.ChunkRange]*vms.Chunk{}, fates: map[vms.ChunkRange]fate{},
		declared: map[vms.GapID]vms.Gap{}, committed: map[vms.GapID]bool{}, weak: map[vms.GapID]bool{},
		newestFirst: rnd.IntN(2) == 0,
	}
	w.forget(0)
	w.forget(1)
	w.restart()
	return w
}

// restart begins another epoch.
func (w *world) restart() {
	w.epoch, w.seq, w.initID, w.ended = vms.Epoch(w.rnd.Uint64()|1), 0, 0, true
	w.unsure = w.rnd.IntN(3) == 0
}

// lateBy is what the hub's clock is late by before it knows the time.
const lateBy = 1000 * time.Hour

// learn tells the hub the time, or what earlier epochs were late by.
func (w *world) learn() {
	p := Placement{Shift: lateBy, Sure: vms.TimeRange{End: time.Unix(3_000_000_000, 0)}}
	if w.rnd.IntN(2) == 0 {
		w.s.Place(w.epoch, p)
		w.unsure = false
	}
	current := w.epoch
	if w.rnd.IntN(4) == 0 && !w.unsure {
		current = 0
	}
	w.s.PlaceRest(current, Bridge{
		Place: func(o Origin, _ time.Duration) (Placement, bool) { return p, o.Boot != "" },
		Began: time.Unix(1_800_000_000, 0),
	})
}

func (w *world) append() {
	w.seq++
	c := vms.Chunk{Epoch: w.epoch, Seq: w.seq, MoofLen: 8, Payload: make([]byte, 100+w.rnd.IntN(900))}
	for i := range c.Payload {
		c.Payload[i] = byte(w.seq)
	}
	c.CRC = wire.Checksum(c.Payload)
	if w.ended || w.rnd.IntN(5) == 0 {
		c.Flags = vms.FlagKey
		if w.ended || w.rnd.IntN(3) == 0 {
			c.Flags |= vms.FlagFirst
		}
		if w.initID == 0 || w.rnd.IntN(8) == 0 {
			w.initID++
			w.s.PutInit(vms.Init{Epoch: w.epoch, ID: w.initID, Segment: []byte("segment")})
			c.Flags |= vms.FlagFirst
		}
	} else if w.rnd.IntN(40) == 0 {
		c.Flags = vms.FlagFirst | vms.FlagDependent
	}
	w.ended = false
	c.Init = w.initID
	c.Start = time.Unix(1_800_000_000+int64(len(w.order)), 0).UTC()
	c.End = c.Start.Add(time.Second)
	k := one(c.Epoch, c.Seq)
	w.all[k], w.fates[k] = &c, kept
	w.order = append(w.order, k)
	if late := c; w.unsure {
		late.Start, late.End = late.Start.Add(-lateBy), late.End.Add(-lateBy)
		late.Flags |= vms.FlagTimeUncertain
		w.s.Append(late)
		return
	}
	w.s.Append(c)
}

func (w *world) end() {
	if w.seq > 0 {
		w.s.End(w.epoch, w.seq, "test")
		w.ended = true
	}
}

func (r *recorder) ranges() []vms.ChunkRange {
	var out []vms.ChunkRange
	for e, set := range r.have {
		for _, r := range *set {
			out = append(out, vms.ChunkRange{Epoch: e, First: r.first, Last: r.last})
		}
	}
	slices.SortFunc(out, func(a, b vms.ChunkRange) int {
		if a.Epoch != b.Epoch {
			return int(int64(a.Epoch>>1) - int64(b.Epoch>>1))
		}
		return int(a.First) - int(b.First)
	})
	return out
}

// forget makes a worker another instance.
func (w *world) forget(i int) {
	for _, c := range w.connections() {
		if c.worker == w.workers[i] {
			c.cur.Close()
			c.done = true
		}
	}
	w.instances++
	w.workers[i] = &recorder{
		name: vms.Instance(fmt.Sprint("w", w.instances)),
		have: runsOf{}, explained: runsOf{}, elsewhere: runsOf{}, over: runsOf{},
	}
}

// connections are those that are open.
func (w *world) connections() (out []*connection) {
	for _, c := range []*connection{w.live, w.elder, w.back} {
		if c != nil && !c.done && !c.cur.closed {
			out = append(out, c)
		}
	}
	return out
}

// connect opens a connection to the worker that is assigned.
func (w *world) connect(old *connection, open func(vms.Instance, []vms.ChunkRange) *Cursor) *connection {
	if old != nil && w.rnd.IntN(2) == 0 {
		old.cur.Close()
	}
	c := &connection{worker: w.workers[0], sent: runsOf{}, sure: runsOf{}, loose: runsOf{}}
	for _, r := range c.worker.ranges() {
		add(c.sure, r.Epoch, run{r.First, r.Last})
	}
	for _, o := range w.connections() {
		for _, item := range o.way {
			if o.worker == c.worker && item.Chunk != nil {
				add(c.loose, item.Chunk.Epoch, run{item.Chunk.Seq, item.Chunk.Seq})
			}
		}
	}
	c.cur = open(c.worker.name, c.worker.ranges())
	return c
}

func (w *world) connectLive() {
	w.live = w.connect(w.live, w.s.Live)
}

func (w *world) connectBack() {
	w.back = w.connect(w.back, func(worker vms.Instance, have []vms.ChunkRange) *Cursor {
		return w.s.Backfill(worker, have, w.newestFirst)
	})
}

// handOver moves the live lane, mostly to the other worker.
func (w *world) handOver() {
	if w.live == nil || w.live.done || w.elder != nil && !w.elder.done && !w.elder.cur.parted {
		return
	}
	if w.rnd.IntN(3) > 0 {
		w.workers[0], w.workers[1] = w.workers[1], w.workers[0]
	}
	if w.elder != nil {
		w.elder.cur.Close()
	}
	w.elder = w.live
	w.elder.moving = true
	w.live = w.connect(nil, w.elder.cur.HandOver)
}

// pull takes what a cursor hands out. It is on its way then.
func (w *world) pull(c *connection) (more bool) {
	if c == nil || c.done {
		return false
	}
	_, changed := w.s.BackfillWanted()
	item, ok, err := pull(c.cur)
	if errors.Is(err, io.EOF) && c == w.back && !w.damaged {
		select {
		case <-changed:
			w.t.Error("a backfill at its end has changed something: it would be asked for ever")
		default:
		}
	}
	if errors.Is(err, ErrClosed) {
		c.done = true
		return false
	}
	if errors.Is(err, io.EOF) && c.moving {
		return false
	}
	if err != nil && (!errors.Is(err, io.EOF) || c != w.back) {
		w.t.Errorf("Next = %v", err)
	}
	if !ok {
		return false
	}
	c.way = append(c.way, item)
	switch {
	case item.Chunk != nil:
		w.handedOut(c, item.Chunk)
	case item.Gap != nil:
		r := item.Gap.Chunks
		if r.Epoch == 0 || r.First == 0 || r.First > r.Last {
			w.t.Errorf("gap over no chunks: %s", r)
			return true
		}
		for seq := r.First; seq <= r.Last; seq++ {
			if w.s.holds(r.Epoch, seq) {
				w.t.Errorf("chunk %d is held, and the lane says that it will not come (%s)", seq, r)
			}
		}
	case item.End != nil:
		if item.End.Epoch == 0 {
			w.t.Errorf("end of no epoch: %+v", item.End)
		}
	}
	if w.rnd.IntN(4) > 0 {
		w.arrive(c)
	}
	return true
}

func (w *world) handedOut(c *connection, ch *vms.Chunk) {
	k := one(ch.Epoch, ch.Seq)
	was := w.all[k]
	if was == nil || was.Start != ch.Start || string(was.Payload) != string(ch.Payload) {
		w.t.Errorf("chunk %s is another one than was appended", k)
		return
	}
	if _, ok := w.s.Init(ch.Epoch, ch.Init); !ok {
		w.t.Errorf("chunk %s is handed out and its init %d is gone", k, ch.Init)
	}
	if ch.Flags.Has(vms.FlagPreview) {
		if c == w.back || ch.Flags.Has(vms.FlagFirst) {
			w.t.Errorf("preview %s: flags %b", k, ch.Flags)
		}
		return
	}
	if was.Flags != ch.Flags {
		w.t.Errorf("chunk %s has flags %b, want %b", k, ch.Flags, was.Flags)
	}
	for _, o := range w.connections() {
		if o.worker != c.worker {
			continue
		}
		if o == c && o.sent.has(ch.Epoch, ch.Seq) || o.sure.has(ch.Epoch, ch.Seq) && !o.cur.waiting {
			w.t.Errorf("chunk %s is handed out twice", k)
		}
		if o != c {
			add(o.loose, ch.Epoch, run{ch.Seq, ch.Seq})
		}
	}
	add(c.sent, ch.Epoch, run{ch.Seq, ch.Seq})
}

// arrive lets the worker take what is under way, which it may call received.
func (w *world) arrive(c *connection) {
	if c == nil || c.done || c.cur.closed {
		return
	}
	way, r := c.way, c.worker
	c.way = nil
	for _, item := range way {
		switch {
		case item.Gap != nil:
			g := item.Gap.Chunks
			add(r.explained, g.Epoch, run{g.First, g.Last})
			if item.Gap.Cause == wire.CauseDurable {
				add(r.elsewhere, g.Epoch, run{g.First, g.Last})
			}
		case item.End != nil:
			add(r.over, item.End.Epoch, run{item.End.Seq, item.End.Seq})
		case item.Chunk.Flags.Has(vms.FlagPreview):
			c.free = true
		case !w.place(c, item.Chunk):
			c.cur.Close()
			c.done = true
			return
		}
	}
	if w.rnd.IntN(2) == 0 {
		return
	}
	var taken []vms.ChunkRange
	for e, set := range c.sent {
		for _, r := range *set {
			taken = append(taken, vms.ChunkRange{Epoch: e, First: r.first, Last: r.last})
			add(c.sure, e, r)
		}
	}
	c.cur.Received(taken)
}

// place does with a chunk what a worker does (PROTOCOL.md, "Lanes"). False: it
// refuses, because something that was sent by another connection is not there.
func (w *world) place(c *connection, ch *vms.Chunk) bool {
	r, e, seq := c.worker, ch.Epoch, ch.Seq
	if r.have.has(e, seq) {
		c.epoch, c.next = e, seq+1
		return true
	}
	there := func(n uint64) bool { return r.have.has(e, n) || r.explained.has(e, n) }
	first, key, had := ch.Flags.Has(vms.FlagFirst), ch.Flags.Has(vms.FlagKey), r.have.has(e, seq-1)
	follows, excused := c.next == 0 || e != c.epoch || seq >= c.next, true
	if e == c.epoch {
		for n := c.next; n != 0 && n < seq; n++ {
			follows, excused = follows && there(n), excused && (there(n) || c.loose.has(e, n))
		}
	}
	refused := ""
	switch {
	case !follows && c != w.back && (!c.free || !first && !had):
		refused = "the lane cannot go there"
	case first || had || seq == 1:
	case r.explained.has(e, seq-1):
		if !key && !r.elsewhere.has(e, seq-1) {
			refused = "it needs a keyframe"
		}
	default:
		refused, excused = "its beginning is not there", c.loose.has(e, seq-1)
	}
	if refused != "" {
		if !excused {
			w.t.Errorf("back %v elder %v newest first %v: chunk %s:%d after %s:%d: %s; the worker has %v, explained %v", c == w.back, c == w.elder,
				w.newestFirst, e, seq, c.epoch, c.next, refused, of(r.have, e), of(r.explained, e))
		}
		return false
	}
	if c != w.back && !c.free && c.next != 0 && e != c.epoch {
		for n := c.next; w.all[one(c.epoch, n)] != nil; n++ {
			if w.s.holds(c.epoch, n) && !r.have.has(c.epoch, n) {
				w.t.Errorf("chunk %s:%d ends an epoch of which %d is still to come", e, seq, n)
			}
		}
	}
	c.epoch, c.next, c.free = e, seq+1, false
	add(r.have, e, run{seq, seq})
	return true
}

func (s *Spool) holds(e vms.Epoch, seq uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.epochIndex(e)
	if i < 0 {
		return false
	}
	_, ok := s.heldAt(s.epochs[i].ord, seq)
	return ok
}

// store makes a run of chunks that the worker has durable.
func (w *world) store() {
	ranges := w.workers[w.rnd.IntN(2)].ranges()
	if len(ranges) == 0 {
		return
	}
	r := ranges[w.rnd.IntN(len(ranges))]
	n := r.Last - r.First + 1
	r.First += w.rnd.Uint64N(n)
	r.Last = r.First + w.rnd.Uint64N(r.Last-r.First+1)
	for seq := r.First; seq <= r.Last; seq++ {
		w.fates[one(r.Epoch, seq)] = durable
	}
	w.s.Durable([]vms.ChunkRange{r})
}

func (w *world) skip() {
	if len(w.order) == 0 {
		return
	}
	k := w.order[max(0, len(w.order)-1-w.rnd.IntN(60))]
	w.s.Skip(k.Epoch, k.First)
	if w.s.holds(k.Epoch, k.First) {
		w.t.Errorf("chunk %s is held after it was refused for ever", k)
	}
}

// report is the session: gaps go out, and are committed, or lost on the way.
func (w *world) report() {
	switch w.rnd.IntN(3) {
	case 0:
		w.s.Resend()
		w.asked = nil
	case 1:
		w.s.Committed(w.asked)
		for _, id := range w.asked {
			w.committed[id] = true
		}
		w.asked = nil
	}
	for _, g := range w.s.Gaps(1 + w.rnd.IntN(4)) {
		if old, ok := w.declared[g.ID]; ok && (*old.Chunks != *g.Chunks || old.TimeRange != g.TimeRange) {
			w.t.Errorf("gap %s was %v and is %v: what was said must not change", g.ID, old, g)
		}
		w.declared[g.ID] = g
		w.asked = append(w.asked, g.ID)
	}
}

// reopened is the agent that starts again: killed says that it was not asked to end.
func (w *world) reopened(s *Spool, inRAM map[vms.ChunkRange]bool) {
	w.s, w.asked = s, nil
	for id := range w.declared {
		w.weak[id] = w.weak[id] || !slices.ContainsFunc(s.gaps, func(g *gapState) bool { return g.gap.ID == id })
	}
	w.live, w.elder, w.back = nil, nil, nil
	for k := range inRAM {
		if w.fates[k] == kept && !s.holds(k.Epoch, k.First) {
			w.fates[k] = rebooted
		}
	}
	if w.damaged {
		// A file that cannot be read and was still written to does not say what it
		// ended with. The NVR sees that an epoch is over, and what came of it last.
		over := map[vms.Epoch]bool{}
		for _, k := range slices.Backward(w.order) {
			over[k.Epoch] = over[k.Epoch] || s.holds(k.Epoch, k.First)
			if !over[k.Epoch] && w.fates[k] == kept {
				w.fates[k] = rebooted
			}
		}
	}
	w.restart()
	var known []vms.ChunkRange
	for k, f := range w.fates {
		if f == durable {
			known = append(known, k)
		}
	}
	s.Durable(known) // as the NVR does at the handshake
}

// inRAM lists what a crash would lose.
func (w *world) inRAM() map[vms.ChunkRange]bool {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	out := map[vms.ChunkRange]bool{}
	for _, e := range w.s.entries {
		out[one(e.chunk.Epoch, e.chunk.Seq)] = true
	}
	// Also gaps that were never saved: what they stand for was in RAM only, or is still on flash.
	for _, g := range w.s.gaps {
		if g.saved == g.version || g.gap.Chunks == nil {
			continue
		}
		for seq := g.gap.Chunks.First; seq <= g.gap.Chunks.Last; seq++ {
			out[one(g.gap.Chunks.Epoch, seq)] = true
		}
	}
	return out
}

// takeOff begins a write to flash, which lasts until land.
func (w *world) takeOff(st *Store) {
	chunks, inits := w.s.takeBatch(st.cfg.BatchBytes, w.rnd.IntN(2) == 0)
	if len(chunks) == 0 {
		return
	}
	s, failing := w.s, w.rnd.IntN(8) == 0
	w.land = func() {
		w.land = nil
		var b *block
		if !failing {
			var err error
			if b, err = st.write(s, inits, chunks); err != nil && !errors.Is(err, errFull) && !w.damaged {
				w.t.Error(err)
			}
		}
		st.used.Add(-s.landed(b))
	}
}

// damage flips bits of a file behind the spool's back.
func (w *world) damage(dir string) {
	files, _ := filepath.Glob(filepath.Join(dir, string(w.s.channel), "*.db"))
	if len(files) == 0 {
		return
	}
	f, err := os.OpenFile(files[w.rnd.IntN(len(files))], os.O_RDWR, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	info, _ := f.Stat()
	var b [1]byte
	at := w.rnd.Int64N(info.Size())
	f.ReadAt(b[:], at)
	b[0] ^= 1 << w.rnd.IntN(8)
	f.WriteAt(b[:], at)
	w.damaged = true
}

// check compares what the spool counts with what it holds.
func (w *world) check() {
	s := w.s
	s.mu.Lock()
	defer s.mu.Unlock()
	var sum int64
	for i, e := range s.entries {
		sum += size(e.chunk)
		if i > 0 && !s.entries[i-1].key().before(e.key()) {
			w.t.Errorf("entry %v follows %v", e.key(), s.entries[i-1].key())
		}
	}
	if sum != s.bytes {
		w.t.Errorf("%d bytes in RAM, counted %d", sum, s.bytes)
	}
	var last key
	for _, b := range s.blocks {
		if !last.before(key{ord: b.ord, seq: b.First}) || b.held() == 0 {
			w.t.Errorf("block %d:%d-%d is out of place", b.ord, b.First, b.Last)
		}
		last = key{ord: b.ord, seq: b.Last}
	}
	if len(s.entries) > 0 && !last.before(s.entries[0].key()) {
		w.t.Errorf("chunk %v in RAM is older than %v on flash", s.entries[0].key(), last)
	}
}

// settle checks that each chunk is held, durable or in a gap that was declared.
func (w *world) settle() {
	for w.s.Withheld() || w.unsure || slices.ContainsFunc(w.s.gaps, func(g *gapState) bool { return g.raw }) {
		w.learn()
		w.s.store.savePlacements()
	}
	w.s.Resend()
	if err := w.s.save(false); err != nil {
		w.t.Error(err)
	}
	for {
		gaps := w.s.Gaps(wire.MaxGaps)
		for _, g := range gaps {
			w.declared[g.ID] = g
		}
		if len(gaps) == 0 {
			break
		}
	}
	gone := runsOf{}
	for _, g := range w.declared {
		add(gone, g.Chunks.Epoch, run{g.Chunks.First, g.Chunks.Last})
		first, last := w.all[one(g.Chunks.Epoch, g.Chunks.First)], w.all[one(g.Chunks.Epoch, g.Chunks.Last)]
		if g.Cause == vms.CauseStorageFailed {
			continue
		}
		if first == nil || last == nil || !g.Start.Equal(first.Start) || !g.End.Equal(last.End) {
			w.t.Errorf("gap %s covers %v to %v, which is not the time of its chunks %s", g.ID, g.Start, g.End, g.Chunks)
		}
	}
	for _, k := range w.order {
		inSpool, inGap := w.s.holds(k.Epoch, k.First), gone.has(k.Epoch, k.First)
		switch {
		case inSpool && inGap && !w.sentAgain(k):
			w.t.Errorf("chunk %s is held and declared missing", k)
		case !inSpool && !inGap && w.fates[k] == kept:
			w.t.Errorf("chunk %s is lost without a word", k)
		}
	}
	// A worker that has nothing gets all that is held, once, when both lanes run.
	w.forget(0)
	w.forget(1)
	worker := w.workers[0]
	if w.rnd.IntN(2) == 0 {
		w.connectLive()
		w.connectBack()
	} else {
		w.connectBack()
		w.pull(w.back)
		w.connectLive()
	}
	first := true
	for range 3 * (len(w.order) + 10) {
		a := w.rnd.IntN(2) == 0 && w.pull(w.live)
		b := w.pull(w.back)
		w.arrive(w.live)
		w.arrive(w.back)
		if !b && !a && !w.pull(w.live) {
			if !first {
				break
			}
			first, w.ended = false, true
			w.append() // begins a recording: now live knows where it records
		}
	}
	for _, k := range w.order {
		if w.s.holds(k.Epoch, k.First) && !worker.have.has(k.Epoch, k.First) {
			w.t.Errorf("chunk %s is held and no lane hands it out (bound %v %v)", k, w.s.bounded, w.s.bound)
		}
	}
	// And it knows that each recording is complete.
	for e, set := range worker.have {
		for _, r := range *set {
			next := w.all[one(e, r.last+1)]
			_, later := of(worker.have, e).above(r.last + 1)
			if next != nil && later && !worker.explained.has(e, r.last+1) && !worker.over.has(e, r.last) {
				w.t.Errorf("the worker waits for ever for chunk %s:%d of %v", e, r.last+1, *set)
			}
		}
	}
}

// sentAgain: a gap that was committed, and so forgotten, may be followed by
// footage that flash had kept in spite of it.
func (w *world) sentAgain(k vms.ChunkRange) bool {
	for id, g := range w.declared {
		if g.Chunks.Contains(k) && (w.committed[id] || w.weak[id]) {
			return true
		}
	}
	return false
}

// copyDir copies what is on flash now, as a power cut would leave it.
func copyDir(t *testing.T, from string) string {
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

// TestSpoolKeepsItsPromises does random things to two spools that share a store
// and compares each step with what was promised.
func TestSpoolKeepsItsPromises(t *testing.T) {
	runs := uint64(120)
	if testing.Short() {
		runs = 20
	}
	for seed := range runs {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { testModel(t, seed, false) })
	}
}

// TestSpoolKeepsItsPromisesOnFlash does so with flash, restarts and power cuts.
func TestSpoolKeepsItsPromisesOnFlash(t *testing.T) {
	runs := uint64(60)
	if testing.Short() {
		runs = 10
	}
	for seed := range runs {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { testModel(t, seed, true) })
	}
}

func testModel(t *testing.T, seed uint64, flash bool) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	f := &facts{}
	cfg := Config{RAM: int64(3_000 + rnd.IntN(40_000)), Facts: f, Documents: &documents{}}
	runs := 0
	if flash {
		cfg.Dir = t.TempDir()
		cfg.Flash, cfg.FileBytes, cfg.BatchBytes = int64(300_000+rnd.IntN(3_000_000)), 150_000, int64(2_000+rnd.IntN(8_000))
		cfg.Policy = Policy(rnd.IntN(2))
	}
	open := func() *Store {
		runs++
		cfg.Origin = Origin{Boot: fmt.Sprint("boot", runs)}
		st, err := Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	st := open()
	defer func() { st.Close() }()
	worlds := []*world{newWorld(t, rnd, st.Spool("ch_a")), newWorld(t, rnd, st.Spool("ch_b"))}
	online := 1 + rnd.IntN(30)
	var trace []string
	for range 800 {
		w := worlds[rnd.IntN(2)]
		n := rnd.IntN(100)
		trace = append(trace, fmt.Sprint(n))
		switch {
		case n < 45:
			w.append()
			if u := st.used.Load(); u > cfg.RAM {
				t.Fatalf("%d bytes held of a budget of %d", u, cfg.RAM)
			}
		case n < 45+online/2:
			w.pull(w.live)
		case n < 45+online:
			w.pull(w.back)
		case n < 80:
			w.store()
		case n < 82:
			w.skip()
		case n < 85:
			w.connectLive()
		case n < 88:
			w.connectBack()
		case n < 89:
			w.forget(w.rnd.IntN(2))
		case n < 91:
			w.handOver()
		case n < 92:
			w.pull(w.elder)
		case n < 93:
			w.report()
		case n < 94:
			w.learn()
		case n < 95:
			w.end()
		case n < 96:
			w.end()
			w.restart()
		case n < 97:
			if w.live != nil {
				w.live.cur.Close()
				w.live = nil
			}
			w.s.mu.Lock()
			if w.s.live == nil {
				w.s.bounded = false // as after liveAway
			}
			w.s.mu.Unlock()
		case n < 99:
			switch {
			case w.land != nil:
				w.land()
			case flash && rnd.IntN(2) == 0:
				w.takeOff(st)
			case worlds[0].land == nil && worlds[1].land == nil:
				st.saveGaps(true)
				st.work(t.Context())
			}
		case flash && rnd.IntN(3) == 0:
			w.damage(cfg.Dir)
		case !flash || rnd.IntN(4) > 0:
			st.saveGaps(false)
		case worlds[0].land != nil || worlds[1].land != nil:
		case rnd.IntN(2) == 0: // SIGTERM
			flushed := st.Flush(t.Context()) == nil
			var lost []map[vms.ChunkRange]bool
			for _, w := range worlds {
				lost = append(lost, w.inRAM())
				if flushed && len(lost[len(lost)-1]) > 0 {
					t.Errorf("%d chunks are only in RAM after a flush", len(lost[len(lost)-1]))
				}
			}
			if err := st.Close(); err != nil {
				t.Error(err)
			}
			st = open()
			for i, w := range worlds {
				w.reopened(st.Spool(w.s.channel), lost[i])
			}
		default: // power cut
			var lost []map[vms.ChunkRange]bool
			for _, w := range worlds {
				lost = append(lost, w.inRAM())
			}
			cfg.Dir = copyDir(t, cfg.Dir)
			st.Close()
			st = open()
			for i, w := range worlds {
				w.reopened(st.Spool(w.s.channel), lost[i])
			}
		}
		if c := w.connections(); len(c) > 0 && w.rnd.IntN(6) == 0 {
			w.arrive(c[w.rnd.IntN(len(c))])
		}
		w.check()
		if t.Failed() {
			t.Logf("steps: %s", strings.Join(trace[max(0, len(trace)-40):], " "))
			return
		}
	}
	var sum int64
	for _, w := range worlds {
		if w.land != nil {
			w.land()
		}
		w.settle()
	}
	for _, w := range worlds {
		sum += w.s.Stats().RAM
	}
	if sum != st.used.Load() {
		t.Errorf("the spools hold %d bytes, the store counts %d", sum, st.used.Load())
	}
	if !flash {
		return
	}
	// What is left becomes durable: so do the files go.
	for _, w := range worlds {
		w.s.Durable(w.order)
	}
	st.work(t.Context())
	if n := st.flashBytes(); n != 0 {
		t.Errorf("%d bytes on flash of what is all durable", n)
	}
	files, _ := filepath.Glob(filepath.Join(cfg.Dir, "ch_*", "*.db"))
	if len(files) > 0 {
		t.Errorf("files are left: %v", files)
	}
}
