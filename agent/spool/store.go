// Package spool keeps the chunks that are not durable yet: in RAM, and what
// does not fit there on flash. It is the one place where the agent drops
// footage: when there is no room left, whole GOPs, oldest first, and every drop
// becomes a gap with a cause. Appending never waits.
package spool

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// Policy says what is lost when flash is full.
type Policy int

const (
	// DropOldest removes the oldest file of the stream that has most on flash.
	DropOldest Policy = iota
	// RefuseNew keeps what is on flash: what finds no room there any more stays
	// in RAM, and is dropped when that is full.
	RefuseNew
)

const (
	defaultFlash     = 512 << 20
	defaultFreeShare = 0.5
	defaultFile      = 32 << 20
	largestBatch     = 4 << 20
	// leastBatch is what a transaction has at least, where there is so much: it
	// costs some 35 KB beyond its footage.
	leastBatch = 256 << 10

	// A RAM fuller than spillFrom goes to flash, until it is emptier than spillTo.
	spillFrom, spillTo = 0.92, 0.60
	// pressureFrom is when workers are asked to make durable what they have. Four
	// cameras of 2 Mbit/s hold up to 20 MB of 24 MiB while nothing is wrong.
	pressureFrom = 0.86
)

// Config says how much may be kept, and where. Only RAM must be set: without
// Dir and Facts nothing outlives the process, and Run has nothing to do.
type Config struct {
	// RAM is how many bytes of it the chunks of all streams may take.
	RAM int64
	// Dir is where the files on flash are, a folder for each channel; empty: there is no flash.
	Dir string
	// Flash is how many bytes the files may take, 0: 512 MiB; and never more than
	// FreeShare, 0: half, of what is free and what they take together. Less than
	// 0: nothing is put there, but what an earlier run left is handed out, and its
	// files deleted when it is durable.
	Flash     int64
	FreeShare float64
	// FileBytes is how large a file gets, 0: 32 MiB, and at most an eighth of Flash.
	FileBytes int64
	// BatchBytes go into one transaction at most, 0: a twelfth of RAM, but 512 KiB
	// to 4 MiB, and never more than half of RAM.
	BatchBytes int64
	Policy     Policy
	Facts      Facts // nil: gaps do not outlive the process
	// Documents keeps what became of provisional times; nil: nobody knows after
	// the process has ended.
	Documents Documents
	// Origin is that of the provisional times of this run.
	Origin Origin
	Log    *slog.Logger // nil: nothing is logged
}

// Facts keeps what must outlive a lost spool. Methods return when it is on flash.
type Facts interface {
	// Gaps returns what was put and not dropped.
	Gaps(ch vms.ChannelID) ([]vms.Gap, error)
	// PutGaps replaces gaps that have the same id.
	PutGaps(ch vms.ChannelID, gaps []vms.Gap) error
	DropGaps(ch vms.ChannelID, ids []vms.GapID) error
	// FlashWritten adds to what was written to flash on a day (UTC, as "2026-11-22").
	FlashWritten(day string, bytes int64) error
}

// Store bounds the bytes of all streams of a hub together. Make it with Open.
// All methods may be called at the same time.
type Store struct {
	cfg  Config
	used atomic.Int64 // of RAM
	// reserved is what of it is for footage that is not recorded (Reserve).
	reserved atomic.Int64
	kicked   chan struct{}

	// io: one goroutine at a time works on flash. Taken before mu, mu before
	// Spool.mu, flashMu after all of them.
	io        sync.Mutex
	shelfOpts shelfOptions

	mu     sync.Mutex
	spools map[vms.ChannelID]*Spool
	list   []*Spool
	// kept is the document of placements, and keptData its bytes.
	kept     placements
	keptData []byte

	flashMu sync.Mutex
	flash   flashState
}

// Open loads what is on flash. What cannot be read there becomes gaps. The
// error is that the folder or Facts cannot be used now.
func Open(cfg Config) (*Store, error) {
	if cfg.RAM <= 0 {
		return nil, fmt.Errorf("%w: a spool needs RAM", vms.ErrInvalid)
	}
	cfg.Flash = cmp.Or(cfg.Flash, defaultFlash)
	cfg.FreeShare = cmp.Or(cfg.FreeShare, defaultFreeShare)
	cfg.BatchBytes = cmp.Or(cfg.BatchBytes, min(max(cfg.RAM/12, 2*leastBatch), largestBatch, cfg.RAM/2))
	cfg.FileBytes = cmp.Or(cfg.FileBytes, min(defaultFile, cfg.Flash/8))
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	st := &Store{
		cfg: cfg, kicked: make(chan struct{}, 1), shelfOpts: shelfOptions{FileBytes: cfg.FileBytes},
		spools: make(map[vms.ChannelID]*Spool),
	}
	st.loadPlacements()
	if cfg.Dir == "" {
		return st, nil
	}
	entries, err := os.ReadDir(cfg.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open spool: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() || e.Name() == setAsideDir || !vms.ValidID(vms.ChannelID(e.Name())) {
			continue
		}
		if _, err := st.open(vms.ChannelID(e.Name())); err != nil {
			return nil, errors.Join(err, st.Close())
		}
	}
	return st, nil
}

// open makes the spool of a channel with what is on flash.
func (st *Store) open(ch vms.ChannelID) (*Spool, error) {
	s := newSpool(st, ch)
	var gaps []vms.Gap
	if st.cfg.Facts != nil {
		var err error
		if gaps, err = st.cfg.Facts.Gaps(ch); err != nil {
			return nil, fmt.Errorf("gaps of %s: %w", ch, err)
		}
	}
	var lost []damage
	if st.cfg.Dir != "" {
		var err error
		if s.shelf, lost, err = openShelf(filepath.Join(st.cfg.Dir, string(ch)), st.shelfOpts); err != nil {
			return nil, fmt.Errorf("open spool of %s: %w", ch, err)
		}
	}
	s.load(gaps, lost, st.kept.of(ch))
	st.spools[ch] = s
	st.list = append(st.list, s)
	if len(lost) > 0 {
		if err := s.save(false); err != nil {
			return nil, fmt.Errorf("gaps of %s: %w", ch, err)
		}
		s.shelf.settle()
	}
	return s, nil
}

// Spool returns the one of a channel.
func (st *Store) Spool(ch vms.ChannelID) *Spool {
	st.mu.Lock()
	defer st.mu.Unlock()
	if s := st.spools[ch]; s != nil {
		return s
	}
	// Nothing of it is on flash but perhaps gaps. Its folder is made when it is needed.
	s := newSpool(st, ch)
	if st.cfg.Facts != nil {
		gaps, err := st.cfg.Facts.Gaps(ch)
		if err != nil {
			st.cfg.Log.Error("cannot read the gaps that the cloud has not heard of", "channel", ch, "err", err)
		}
		s.load(gaps, nil, st.kept.of(ch))
	}
	st.spools[ch] = s
	st.list = append(st.list, s)
	return s
}

// Channels lists those of which chunks or uncommitted gaps are held.
func (st *Store) Channels() []vms.ChannelID {
	var out []vms.ChannelID
	for _, s := range st.all() {
		s.mu.Lock()
		if _, held := s.heldFrom(key{}); held || len(s.gaps) > 0 {
			out = append(out, s.channel)
		}
		s.mu.Unlock()
	}
	slices.Sort(out)
	return out
}

func (st *Store) all() []*Spool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return slices.Clone(st.list)
}

// Discard forgets all of a channel, without a gap: it is revoked, and nobody
// will ever take it. Its spool must not be used any more.
func (st *Store) Discard(ch vms.ChannelID) error {
	st.io.Lock()
	defer st.io.Unlock()
	st.mu.Lock()
	s := st.spools[ch]
	delete(st.spools, ch)
	st.list = slices.DeleteFunc(st.list, func(o *Spool) bool { return o == s })
	st.kept.drop(ch)
	st.mu.Unlock()
	if s == nil {
		return nil
	}
	s.mu.Lock()
	freed := s.bytes
	s.discarded, s.bytes = true, 0
	s.entries, s.blocks, s.ends, s.holes = nil, nil, nil, nil
	var ids []vms.GapID
	for _, g := range s.gaps {
		if g.saved > 0 {
			ids = append(ids, g.factID())
		}
	}
	ids = append(ids, s.drops...)
	s.gaps, s.drops = nil, nil
	for _, f := range s.files {
		f.blocks = 0
	}
	files := slices.Collect(maps.Keys(s.files))
	sh := s.shelf
	s.notify()
	s.mu.Unlock()
	st.used.Add(-freed)
	var err error
	if st.cfg.Facts != nil && len(ids) > 0 {
		err = st.cfg.Facts.DropGaps(ch, ids)
	}
	for _, f := range files {
		err = errors.Join(err, sh.remove(f))
	}
	if sh != nil {
		err = errors.Join(err, sh.close())
	}
	return err
}

// spills reports whether anything may be put on flash.
func (st *Store) spills() bool { return st.cfg.Dir != "" && st.cfg.Flash > 0 }

// add accounts for n bytes of RAM more or less, and makes room when there are
// too many.
func (st *Store) add(n int64) {
	used := st.used.Add(n)
	if n <= 0 {
		return
	}
	if st.spills() && float64(used) > spillFrom*float64(st.cfg.RAM) {
		st.kick()
	}
	if used <= st.cfg.RAM {
		return
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	for st.used.Load() > st.cfg.RAM {
		freed := st.dropGOP()
		st.used.Add(-freed)
		if freed == 0 {
			return // all is on its way to flash
		}
	}
}

// dropGOP makes room in RAM by a GOP and returns the bytes that frees: the
// oldest one of the stream that holds most. One that a lane is in the middle of
// sending would be torn by that: the recording would have its beginning, and the
// rest be declared missing. While there are others that can go whole, the next
// oldest does, of another stream when need be. Only the GOP in which a lane
// stands is spared so, never what was sent whole and is not durable yet: that
// would fill the RAM of a hub whose cloud does not store, and the footage lost
// would be what nobody else has. st.mu is held.
func (st *Store) dropGOP() (freed int64) {
	type holder struct {
		*Spool
		bytes int64
	}
	var by []holder // what they hold, most first
	for _, s := range st.list {
		if n := s.droppable(); n > 0 {
			by = append(by, holder{s, n})
		}
	}
	if len(by) == 0 {
		return 0
	}
	slices.SortStableFunc(by, func(a, b holder) int { return cmp.Compare(b.bytes, a.bytes) })
	if freed = by[0].dropOldest(oldestWhole); freed > 0 {
		return freed
	}
	for _, s := range by {
		if freed = s.dropOldest(nextWhole); freed > 0 {
			return freed
		}
	}
	// What is left are GOPs that lanes are in the middle of, and those that the
	// cameras are. The budget is strict; and of the two the new one is worth more:
	// of the other a worker has the beginning, and without the newest keyframe
	// nothing could be captured up to the next.
	return by[0].dropOldest(oldestTorn)
}

// kick makes Run look whether there is something to do.
func (st *Store) kick() {
	select {
	case st.kicked <- struct{}{}:
	default:
	}
}

// Pressure says how full the RAM is, and whether that is reason enough to ask
// workers to make durable what they have of unfinished recordings.
func (st *Store) Pressure() (wire.Pressure, bool) {
	used := st.used.Load()
	return wire.Pressure{Held: max(0, used), Budget: st.cfg.RAM}, float64(used) >= pressureFrom*float64(st.cfg.RAM)
}

// StoreStats is what the store holds, in bytes.
type StoreStats struct {
	RAM, RAMLimit int64
	// Flash is what the files take; FlashLimit what they may take, as of the
	// newest look at what is free: 0 where nothing is put there.
	Flash, FlashLimit int64
	// FlashWritten is what was written to flash since Open, the database's own
	// included; FlashToday what of it was written on the present day (UTC).
	FlashWritten, FlashToday int64
	// FlashProblem says why flash is not written to; empty: it is, when needed.
	FlashProblem string
}

// Stats returns what the store holds.
func (st *Store) Stats() StoreStats {
	out := StoreStats{RAM: st.used.Load(), RAMLimit: st.cfg.RAM}
	if st.cfg.Dir == "" {
		return out
	}
	out.Flash = st.flashBytes()
	st.flashMu.Lock()
	defer st.flashMu.Unlock()
	f := &st.flash
	out.FlashLimit, out.FlashProblem, out.FlashWritten = f.limit, f.problem, f.written
	if out.FlashLimit == 0 {
		out.FlashLimit = max(0, st.cfg.Flash)
	}
	if f.day == today() {
		out.FlashToday = f.writtenToday
	}
	return out
}

func today() string { return time.Now().UTC().Format(time.DateOnly) }

// Close closes the files. What is only in RAM is lost: call Flush before.
func (st *Store) Close() error {
	st.io.Lock()
	defer st.io.Unlock()
	st.mu.Lock()
	defer st.mu.Unlock()
	var err error
	for _, s := range st.list {
		s.mu.Lock()
		s.stopAway()
		sh := s.shelf
		s.mu.Unlock()
		if sh != nil {
			err = errors.Join(err, sh.close())
		}
	}
	return errors.Join(err, st.countWritten(true))
}
