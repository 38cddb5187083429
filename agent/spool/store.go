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
	// FreeShare, 0: half, of what is free and what they take together.
	Flash     int64
	FreeShare float64
	// FileBytes is how large a file gets, 0: 32 MiB, and at most an eighth of Flash.
	FileBytes int64
	// BatchBytes go into one transaction, 0: 4 MiB, and at most a twelfth of RAM.
	BatchBytes int64
	Policy     Policy
	Facts      Facts        // nil: gaps do not outlive the process
	Log        *slog.Logger // nil: nothing is logged
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
	cfg    Config
	used   atomic.Int64 // of RAM
	kicked chan struct{}

	// io: one goroutine at a time works on flash. Taken before mu, mu before
	// Spool.mu, flashMu after all of them.
	io        sync.Mutex
	shelfOpts shelfOptions

	mu     sync.Mutex
	spools map[vms.ChannelID]*Spool
	list   []*Spool

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
	cfg.BatchBytes = cmp.Or(cfg.BatchBytes, min(largestBatch, cfg.RAM/12))
	cfg.FileBytes = cmp.Or(cfg.FileBytes, min(defaultFile, cfg.Flash/8))
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	st := &Store{
		cfg: cfg, kicked: make(chan struct{}, 1), shelfOpts: shelfOptions{FileBytes: cfg.FileBytes},
		spools: make(map[vms.ChannelID]*Spool),
	}
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
	s.load(gaps, lost)
	if len(lost) > 0 {
		if err := s.save(false); err != nil {
			return nil, fmt.Errorf("gaps of %s: %w", ch, err)
		}
		s.shelf.settle()
	}
	st.spools[ch] = s
	st.list = append(st.list, s)
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
		s.load(gaps, nil)
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
			ids = append(ids, g.gap.ID)
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

// add accounts for n bytes of RAM more or less, and makes room when there are
// too many: the stream that holds most gives its oldest GOP.
func (st *Store) add(n int64) {
	used := st.used.Add(n)
	if n <= 0 {
		return
	}
	if st.cfg.Dir != "" && float64(used) > spillFrom*float64(st.cfg.RAM) {
		st.kick()
	}
	if used <= st.cfg.RAM {
		return
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	for st.used.Load() > st.cfg.RAM {
		var most *Spool
		var bytes int64
		for _, s := range st.list {
			if n := s.droppable(); n > bytes {
				most, bytes = s, n
			}
		}
		if most == nil {
			return
		}
		freed := most.dropOldest()
		st.used.Add(-freed)
		if freed == 0 {
			return
		}
	}
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
	// newest look at what is free. Both 0 without flash.
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
		out.FlashLimit = st.cfg.Flash
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
