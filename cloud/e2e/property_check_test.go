package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"log"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

type chunkID struct {
	ch  vms.ChannelID
	e   vms.Epoch
	seq uint64
}

// held is what a run of the agent holds, as it says itself.
func (w *world) held(b *simBoot) map[chunkID]bool {
	out := make(map[chunkID]bool)
	for _, s := range b.streams {
		for _, h := range s.spool.Holding() {
			for seq := h.Chunks.First; seq <= h.Chunks.Last; seq++ {
				out[chunkID{s.ch, h.Chunks.Epoch, seq}] = true
			}
		}
	}
	return out
}

// declaredWithin is how long a gap may be known to the running agent alone: its
// flash is spared, so that one that grows is written once a minute.
const declaredWithin = 75 * time.Second

// declared is what the hub has declared missing, in its small state or to the NVR.
func (w *world) declared(ch vms.ChannelID) *vms.ChunkSet {
	var set vms.ChunkSet
	add := func(gaps []vms.Gap) {
		for _, g := range gaps {
			if g.Chunks != nil {
				set.Add(*g.Chunks)
			}
		}
	}
	w.hub.facts.mu.Lock()
	add(slices.Collect(maps.Values(w.hub.facts.gaps[ch])))
	w.hub.facts.mu.Unlock()
	gaps, err := w.cloud.peek(ch)
	if err != nil {
		w.violation("gaps of %s: %v", ch, err)
	}
	add(gaps)
	return &set
}

// checkReleased holds the hub to its promise: a chunk leaves it only when it is
// durable or declared missing.
func (w *world) checkReleased() {
	b := w.hub.boot
	if b == nil {
		return
	}
	held := w.held(b)
	for _, cam := range w.cameras {
		var declared *vms.ChunkSet
		for _, f := range cam.captured() {
			id := chunkID{cam.ch, f.epoch, f.seq}
			if f.released || f.crashed || held[id] {
				continue
			}
			if !w.bucket.stored(cam.ch, f.epoch, f.seq) {
				if declared == nil {
					declared = w.declared(cam.ch)
				}
				if !declared.Has(f.epoch, f.seq) {
					if f.missed.IsZero() {
						f.missed = time.Now()
					}
					if time.Since(f.missed) < declaredWithin {
						continue
					}
					w.violation("chunk %s:%d of %s left the hub, neither durable nor declared", f.epoch, f.seq, cam.ch)
				}
			}
			f.released = true
		}
	}
}

// afterStop: with flash, an agent that ends in order loses nothing.
func (w *world) afterStop(b *simBoot, before map[chunkID]bool) {
	w.forgotten = nil
	if b.dir == "" {
		w.lose(func(f *footage, _ vms.ChannelID) bool { return true })
		return
	}
	w.forgotten = before
}

// afterCrash notes nothing yet: the next run says what is left.
func (w *world) afterCrash(b *simBoot) {
	w.forgotten, w.crashed = nil, true
	if b.dir == "" {
		w.lose(func(f *footage, _ vms.ChannelID) bool { return true })
	}
}

// lose marks what was in the hub's memory only.
func (w *world) lose(lost func(*footage, vms.ChannelID) bool) {
	for _, cam := range w.cameras {
		for _, f := range cam.captured() {
			if !f.released && lost(f, cam.ch) {
				f.crashed = true
			}
		}
	}
}

// afterBoot compares what the agent finds with what it had.
func (w *world) afterBoot(b *simBoot) {
	held := w.held(b)
	if w.crashed {
		w.crashed = false
		w.lose(func(f *footage, ch vms.ChannelID) bool { return !held[chunkID{ch, f.epoch, f.seq}] })
	}
	for id := range w.forgotten {
		if !held[id] && !w.bucket.stored(id.ch, id.e, id.seq) && !w.declared(id.ch).Has(id.e, id.seq) {
			w.violation("boot %d: chunk %s:%d of %s was held before, and is not after an orderly end", b.n, id.e, id.seq, id.ch)
			break
		}
	}
	w.forgotten = nil
}

// heal makes all well, and waits until the hub has brought everything. It
// reports false when the agent does not even start.
func (w *world) heal() bool {
	w.log.logger("STEP").Info("heal")
	w.calm()
	if w.hub.boot == nil {
		close(w.stopCams)
		return false
	}
	// Of a GOP whose keyframe was refused nothing can be taken.
	w.pause(2*time.Minute + time.Duration(slices.Max(w.gops))*w.chunk)
	for _, s := range w.hub.boot.streams {
		s.mu.Lock()
		received, up := s.received, s.liveUp
		s.mu.Unlock()
		cam := w.camera(s.ch)
		cam.mu.Lock()
		newest, away := cam.lastEnd, cam.awayFor > 0 || cam.away != nil
		cam.mu.Unlock()
		if !away && (!up || newest.Sub(received) > 15*time.Second) {
			w.violation("minutes after all is well, live of %s is up: %v, and brings %v of %v", s.ch, up, received.Format("04:05"), newest.Format("04:05"))
		}
	}
	for _, c := range w.cameras {
		c.detach(true)
	}
	close(w.stopCams)
	w.log.logger("STEP").Info("cameras stopped")
	limit := time.Now().Add(12 * time.Minute)
	for {
		w.pause(2 * time.Second)
		busy := w.cloud.busy.Load() > 0
		for _, s := range w.hub.boot.streams {
			st := s.spool.Stats()
			busy = busy || st.Chunks > 0 || st.Gaps > 0
		}
		if !busy {
			break
		}
		if time.Now().After(limit) {
			for _, s := range w.hub.boot.streams {
				st := s.spool.Stats()
				if st.Chunks > 0 || st.Gaps > 0 {
					w.violation("12 minutes after all is well, the hub still holds %d chunks and %d gaps of %s: %v", st.Chunks, st.Gaps, s.ch, s.spool.Holding())
				}
			}
			break
		}
	}
	n, err := w.cloud.reach()
	if err != nil {
		panic(err)
	}
	if err := n.Reconcile(context.Background()); err != nil {
		w.violation("reconcile: %v", err)
	}
	time.Sleep(10 * time.Second) // reports
	for _, c := range w.cameras {
		w.checkTimeline(n, c, false)
	}
	if w.hasParts() {
		// Nobody will bring the rest of these recordings: the hub is away for good.
		w.log.logger("STEP").Info("the hub stays away, parts are left")
		w.hub.stop()
		time.Sleep(simUnreachable + 5*time.Minute)
	}
	return true
}

func (w *world) hasParts() bool {
	for _, c := range w.cameras {
		for _, r := range w.recordings(c.ch) {
			if r.Provisional() {
				return true
			}
		}
	}
	return false
}

// finalCheck looks at what has become of everything.
func (w *world) finalCheck() {
	n, err := w.cloud.reach()
	if err != nil {
		panic(err)
	}
	for _, c := range w.cameras {
		w.checkTimeline(n, c, true)
	}
	w.checkObjects()
}

func (w *world) recordings(ch vms.ChannelID) []vms.Recording {
	rs, err := w.cloud.store.Recordings(context.Background(), ch, time.Unix(0, 0), time.Now().Add(time.Hour), nvr.Cursor{}, 100_000)
	if err != nil {
		w.violation("recordings of %s: %v", ch, err)
	}
	return rs
}

// checkTimeline compares the timeline of a channel with what its camera sent.
// last: the janitor has been here too.
func (w *world) checkTimeline(n *nvr.NVR, c *simCamera, last bool) {
	all := c.captured()
	if len(all) == 0 {
		return
	}
	where := "timeline of " + string(c.ch)
	from, to := all[0].start, all[len(all)-1].end
	q := nvr.RecordingQuery{From: from, To: to, Limit: 1000}
	page, err := n.Recordings(context.Background(), simAccount, c.ch, q)
	if err != nil || page.NextCursor != "" {
		w.violation("%s: %v %q", where, err, page.NextCursor)
		return
	}
	for _, p := range page.Pending {
		w.violation("%s: %v is still pending", where, p)
	}
	type piece struct {
		vms.TimeRange
		what string
	}
	var pieces []piece
	byChunk := make(map[chunkID]vms.Recording)
	twin := ""
	for _, r := range page.Recordings {
		pieces = append(pieces, piece{vms.TimeRange{Start: r.Start, End: r.End}, r.Key})
		if last && r.Provisional() {
			w.violation("%s: the part %s is still there", where, r.Key)
		}
		for seq := r.Chunks.First; seq <= r.Chunks.Last; seq++ {
			id := chunkID{c.ch, r.Chunks.Epoch, seq}
			if o, twice := byChunk[id]; twice && (last || !o.Provisional() || !r.Provisional()) {
				if twin != o.Key+r.Key {
					w.violation("%s: chunk %s:%d and more are in %s %s and in %s %s", where, id.e, seq, o.Key, o.Chunks, r.Key, r.Chunks)
				}
				twin = o.Key + r.Key
			}
			byChunk[id] = r.Recording
		}
	}
	for _, g := range page.Gaps {
		pieces = append(pieces, piece{g.TimeRange, "gap " + string(g.Cause)})
	}
	slices.SortStableFunc(pieces, func(a, b piece) int { return a.Start.Compare(b.Start) })
	unrecorded := to.Sub(from) // until the first recording
	if len(page.Recordings) > 0 {
		unrecorded = page.Recordings[0].Start.Sub(from)
	}
	at := from
	for i, p := range pieces {
		if p.Start.After(at) && p.Start.Sub(from) <= unrecorded && w.lostBetween(all, at, p.Start) {
			at = p.Start // nobody was ever told of it
		}
		if d := p.Start.Sub(at); d >= time.Millisecond {
			w.violation("%s: nothing covers %v to %v, before %s", where, at.Format("04:05.000"), p.Start.Format("04:05.000"), p.what)
		} else if d <= -time.Millisecond && i > 0 {
			w.violation("%s: %s and %s overlap by %v at %v", where, pieces[i-1].what, p.what, -d, p.Start.Format("04:05.000"))
		}
		if p.End.After(at) {
			at = p.End
		}
	}
	if to.Sub(at) >= time.Millisecond {
		w.violation("%s: nothing covers %v to %v, the end", where, at.Format("04:05.000"), to.Format("04:05.000"))
	}
	w.checkChunks(c, all, byChunk, page.Gaps, where)
	w.checkWholes(c, all, last, where)
}

// lostBetween reports whether all chunks between two times, if there are any,
// were lost with the hub's memory. Before anything is recorded the cloud has
// nothing to derive from that they existed.
func (w *world) lostBetween(all []*footage, from, to time.Time) bool {
	for _, f := range all {
		if f.start.Before(to) && f.end.After(from) && !f.crashed {
			return false
		}
	}
	return true
}

// checkChunks: each chunk is recorded, or missing for a reason that holds.
func (w *world) checkChunks(c *simCamera, all []*footage, recorded map[chunkID]vms.Recording, gaps []vms.Gap, where string) {
	poisoned := make(map[int]bool)
	for _, f := range all {
		if f.poison {
			poisoned[f.gop] = true
		}
	}
	lost := 0
	for _, f := range all {
		id := chunkID{c.ch, f.epoch, f.seq}
		if _, ok := recorded[id]; ok {
			if f.poison {
				w.violation("%s: the chunk %s:%d, which nobody can play, is recorded", where, f.epoch, f.seq)
			}
			continue
		}
		mid := f.start.Add(f.end.Sub(f.start) / 2)
		i := slices.IndexFunc(gaps, func(g vms.Gap) bool { return !mid.Before(g.Start) && mid.Before(g.End) })
		if i < 0 {
			if !f.crashed {
				w.violation("%s: chunk %s:%d at %v is neither recorded nor in a gap", where, f.epoch, f.seq, f.start.Format("04:05.000"))
			}
			continue
		}
		ok := f.crashed
		switch gaps[i].Cause {
		case vms.CauseBufferFull:
			ok = ok || !w.roomy
		case vms.CauseRejected, vms.CauseUndecodable:
			ok = ok || poisoned[f.gop]
		}
		if lost++; !ok && lost < 5 {
			w.violation("%s: chunk %s:%d at %v is missing, allegedly because of %s (stored once: %v, crashed: %v, roomy: %v)",
				where, f.epoch, f.seq, f.start.Format("04:05.000"), gaps[i].Cause, w.bucket.stored(c.ch, f.epoch, f.seq), f.crashed, w.roomy)
		}
	}
}

// checkWholes: each whole recording is one unbroken run of chunks of one span,
// stamped with its number, and no other whole has any of them or of its time.
// last: no part is left over. Two wholes meet where the agent began a recording,
// or in and at the edges of what the hub has lost: workers may have had that, one
// more of it than another.
func (w *world) checkWholes(c *simCamera, all []*footage, last bool, where string) {
	sent := make(map[chunkID]*footage, len(all))
	for _, f := range all {
		sent[chunkID{c.ch, f.epoch, f.seq}] = f
	}
	in := make(map[chunkID]string, len(all)) // the key of the whole that has a chunk
	var wholes []vms.Recording
	for _, r := range w.recordings(c.ch) {
		switch {
		case !r.Provisional():
			wholes = append(wholes, r)
			w.checkWhole(r, sent, in, where)
		case last:
			w.violation("%s: the part %s is still there", where, r.Key)
		}
	}
	slices.SortFunc(wholes, func(a, b vms.Recording) int { return a.Start.Compare(b.Start) })
	for i := 1; i < len(wholes); i++ {
		if a, b := wholes[i-1], wholes[i]; b.Start.Before(a.End) {
			w.violation("%s: %s %s and %s %s overlap", where, a.Key, a.Chunks, b.Key, b.Chunks)
		}
	}
	declared := w.declared(c.ch)
	lost := func(f *footage) bool { return f.crashed || declared.Has(f.epoch, f.seq) }
	for i := 1; i < len(all); i++ {
		f, next := all[i-1], all[i]
		a, b := in[chunkID{c.ch, f.epoch, f.seq}], in[chunkID{c.ch, next.epoch, next.seq}]
		if a == "" || b == "" || a == b || f.epoch != next.epoch || next.flags.Has(vms.FlagFirst) {
			continue
		}
		if !lost(f) && !lost(next) {
			w.violation("%s: chunk %s:%d begins no recording; it is in %s and the one before in %s", where, next.epoch, next.seq, b, a)
		}
	}
}

// checkWhole checks one whole recording, and notes in in what it has.
func (w *world) checkWhole(r vms.Recording, sent map[chunkID]*footage, in map[chunkID]string, where string) {
	where += ": " + r.Key + " " + r.Chunks.String()
	var first, before *footage
	for seq := r.Chunks.First; seq <= r.Chunks.Last; seq++ {
		id := chunkID{r.Channel, r.Chunks.Epoch, seq}
		f := sent[id]
		if f == nil {
			w.violation("%s: chunk %d was never sent", where, seq)
			return
		}
		if other := in[id]; other != "" {
			w.violation("%s: chunk %d is in %s too", where, seq, other)
		}
		if f.recording != r.Number {
			w.violation("%s: chunk %d is of recording %d", where, seq, f.recording)
		}
		if before == nil {
			first = f
		} else if f.flags.Has(vms.FlagFirst) || !f.start.Equal(before.end) {
			w.violation("%s: chunk %d begins another recording (%v), %v behind the one before", where, seq, f.flags.Has(vms.FlagFirst), f.start.Sub(before.end))
		}
		in[id], before = r.Key, f
	}
	// Where its key is taken, by what was stored of it before, it begins a microsecond later.
	if d := r.Start.Sub(first.start); d < 0 || d > 10*time.Microsecond || !r.End.Equal(before.end) {
		w.violation("%s: it is from %v to %v, its chunks from %v to %v", where, r.Start, r.End, first.start, before.end)
	}
}

// checkObjects: each row has its object, each object a row or is garbage, and
// the objects hold the very chunks that the cameras sent.
func (w *world) checkObjects() {
	sums := make(map[chunkID]*footage)
	for _, c := range w.cameras {
		for _, f := range c.captured() {
			sums[chunkID{c.ch, f.epoch, f.seq}] = f
		}
	}
	w.bucket.mu.Lock()
	objects := maps.Clone(w.bucket.objects)
	w.bucket.mu.Unlock()
	for _, c := range w.cameras {
		for _, r := range w.recordings(c.ch) {
			o, ok := objects[r.Key]
			if !ok {
				w.violation("%s has a row and no object", r.Key)
				continue
			}
			if o.SHA256 != r.SHA256 || o.Bytes != r.Bytes || o.Chunks != r.Chunks {
				w.violation("%s is %v in the row and %v in the bucket", r.Key, r.Chunks, o.Chunks)
			}
			if err := compareObject(c.ch, o, sums); err != nil {
				w.violation("%s: %v", r.Key, err)
			}
		}
	}
	for key := range objects {
		if known, err := w.cloud.store.HasRecording(context.Background(), key); err != nil || !known {
			w.violation("object %s has no row (%v)", key, err)
		}
	}
}

// compareObject finds the mdat boxes of an object and compares them with the source.
func compareObject(ch vms.ChannelID, o simObject, sums map[chunkID]*footage) error {
	seq := o.Chunks.First
	for at := o.HeadLen; at < int64(len(o.body)); {
		if at+8 > int64(len(o.body)) {
			return fmt.Errorf("ends inside a box")
		}
		n := int64(binary.BigEndian.Uint32(o.body[at:]))
		if n < 8 || at+n > int64(len(o.body)) {
			return fmt.Errorf("a box of %d bytes at %d", n, at)
		}
		if string(o.body[at+4:at+8]) == "mdat" {
			f := sums[chunkID{ch, o.Chunks.Epoch, seq}]
			if f == nil || crc32.ChecksumIEEE(o.body[at:at+n]) != f.sum {
				return fmt.Errorf("chunk %s:%d is not what the camera sent", o.Chunks.Epoch, seq)
			}
			seq++
		}
		at += n
	}
	if seq != o.Chunks.Last+1 {
		return fmt.Errorf("its chunks end before %d, not with %s", seq, o.Chunks)
	}
	return nil
}

// simLog keeps what was logged, and takes alarms for violations.
type simLog struct {
	w   *world
	std *log.Logger

	mu   sync.Mutex
	recs []simLine
}

type simLine struct {
	at    time.Time
	who   string
	msg   string
	level slog.Level
	attrs []slog.Attr
}

func newSimLog(w *world) *simLog {
	l := &simLog{w: w}
	l.std = log.New(simWriter{}, "", 0)
	return l
}

type simWriter struct{}

func (simWriter) Write(b []byte) (int, error) { return len(b), nil }

func (l *simLog) logger(who string) *slog.Logger { return slog.New(simHandler{l, who, nil}) }

type simHandler struct {
	l     *simLog
	who   string
	attrs []slog.Attr
}

func (h simHandler) Enabled(context.Context, slog.Level) bool { return true }
func (h simHandler) WithGroup(string) slog.Handler            { return h }

func (h simHandler) WithAttrs(as []slog.Attr) slog.Handler {
	h.attrs = append(slices.Clip(h.attrs), as...)
	return h
}

// alarms are messages that say that a promise was broken.
var alarms = []string{"ALARM", "recordings of a channel overlap", "cannot be registered", "will not hear a notice"}

// breaches are refusals that an agent which keeps to the protocol never meets.
var breaches = []string{wire.CodeSequence + " (retry)", wire.CodeCredit + " (retry)", wire.CodeNoInit + " (retry)"}

func (h simHandler) Handle(_ context.Context, r slog.Record) error {
	alarm := slices.ContainsFunc(alarms, func(s string) bool { return strings.Contains(r.Message, s) })
	if r.Message == "lane closed" {
		r.Attrs(func(a slog.Attr) bool {
			if err, ok := a.Value.Any().(error); ok {
				alarm = slices.ContainsFunc(breaches, func(s string) bool { return strings.HasPrefix(err.Error(), s) })
			}
			return !alarm
		})
	}
	if !alarm && !propertyLog {
		return nil
	}
	line := simLine{at: r.Time, who: h.who, msg: r.Message, level: r.Level, attrs: slices.Clone(h.attrs)}
	r.Attrs(func(a slog.Attr) bool { line.attrs = append(line.attrs, a); return true })
	if alarm {
		h.l.w.violation("%s", line)
	}
	h.l.mu.Lock()
	defer h.l.mu.Unlock()
	h.l.recs = append(h.l.recs, line)
	return nil
}

func (l simLine) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s: %s", l.at.Format("04:05.000"), l.level, l.who, l.msg)
	for _, a := range l.attrs {
		fmt.Fprintf(&b, " %s=%v", a.Key, a.Value)
	}
	return b.String()
}

func (l *simLog) lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]string, 0, len(l.recs))
	for _, r := range l.recs {
		out = append(out, r.String())
	}
	return out
}
