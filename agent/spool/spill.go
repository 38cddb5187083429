package spool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

const (
	// look is how often Run looks for gaps that have to be saved.
	look = time.Second
	// countEvery is how often the count of written bytes is saved, while it grows.
	countEvery = time.Minute
	// Flash that cannot be written to is tried again after so long.
	leastRest, longestRest = 30 * time.Second, 5 * time.Minute
)

// errFull: the policy leaves no room for more on flash.
var errFull = errors.New("the hub's share of the flash memory is full")

// flashState is how the flash is. It stands under Store.flashMu.
type flashState struct {
	limit   int64
	problem string
	rest    time.Duration // after the newest failure
	retry   time.Time

	written, writtenToday int64
	day                   string
	uncounted             map[string]int64 // by day
	counted               time.Time
}

// Run moves chunks to flash while RAM is short, deletes files that nobody needs
// any more, and saves gaps that the NVR does not commit, until ctx ends.
func (st *Store) Run(ctx context.Context) error {
	t := time.NewTicker(look)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-st.kicked:
		case <-t.C:
			if err := st.countWritten(false); err != nil {
				st.cfg.Log.Warn("cannot save how much was written to flash", "err", err)
			}
		}
		st.saveGaps(true)
		st.work(ctx)
	}
}

// work brings RAM and flash in order.
func (st *Store) work(ctx context.Context) {
	st.io.Lock()
	defer st.io.Unlock()
	st.savePlacements()
	if st.cfg.Dir == "" {
		return
	}
	if st.spills() && float64(st.used.Load()) > spillFrom*float64(st.cfg.RAM) && st.writable() {
		for ctx.Err() == nil && float64(st.used.Load()) > spillTo*float64(st.cfg.RAM) {
			s := st.fullest()
			if s == nil {
				break
			}
			if err := st.spill(s, false); err != nil {
				st.failed(err)
				break
			}
		}
	}
	for _, s := range st.all() {
		st.sweep(s)
	}
}

// fullest returns the spool that holds most in RAM.
func (st *Store) fullest() (most *Spool) {
	var bytes int64
	for _, s := range st.all() {
		s.mu.Lock()
		if s.bytes > bytes {
			most, bytes = s, s.bytes
		}
		s.mu.Unlock()
	}
	return most
}

// writable reports whether flash may be tried.
func (st *Store) writable() bool {
	st.flashMu.Lock()
	defer st.flashMu.Unlock()
	return st.flash.problem == "" || !time.Now().Before(st.flash.retry)
}

// failed takes flash out of use for a while.
func (st *Store) failed(err error) {
	st.flashMu.Lock()
	f := &st.flash
	news := f.problem != err.Error()
	f.problem = err.Error()
	f.rest = min(max(leastRest, 2*f.rest), longestRest)
	if errors.Is(err, errFull) {
		f.rest = leastRest // what becomes durable makes room
	}
	rest := f.rest
	f.retry = time.Now().Add(rest)
	st.flashMu.Unlock()
	if news {
		st.cfg.Log.Error("flash cannot take footage; what RAM has no room for is dropped", "err", err, "again_in", rest)
	}
}

// spill writes the oldest chunks in RAM of a spool to flash, in one transaction;
// whole GOPs unless all, where they are not larger than a transaction.
// Store.io is held.
func (st *Store) spill(s *Spool, all bool) error {
	chunks, inits := s.takeBatch(st.cfg.BatchBytes, all)
	if len(chunks) == 0 {
		return nil
	}
	b, err := st.write(s, inits, chunks)
	freed := s.landed(b)
	st.used.Add(-freed)
	if err != nil {
		return err
	}
	st.flashMu.Lock()
	defer st.flashMu.Unlock()
	if st.flash.problem != "" {
		st.cfg.Log.Info("flash takes footage again")
	}
	st.flash.problem, st.flash.rest = "", 0
	return nil
}

func (st *Store) write(s *Spool, inits []vms.Init, chunks []*vms.Chunk) (*block, error) {
	need := int64(overhead)
	for _, c := range chunks {
		need += size(c)
	}
	if err := st.makeRoom(need); err != nil {
		return nil, err
	}
	s.mu.Lock()
	sh := s.shelf
	s.mu.Unlock()
	if sh == nil {
		var err error
		if !vms.ValidID(s.channel) {
			return nil, fmt.Errorf("%w: channel %q names no folder", vms.ErrInvalid, s.channel)
		}
		if sh, _, err = openShelf(filepath.Join(st.cfg.Dir, string(s.channel)), st.shelfOpts); err != nil {
			return nil, err
		}
		s.mu.Lock()
		s.shelf = sh
		s.mu.Unlock()
	}
	st.savePlacements() // what it is about to write may be of no use without
	b, written, err := sh.write(inits, chunks)
	st.wrote(written)
	return b, err
}

// takeBatch chooses what goes to flash next: an unbroken run from the oldest
// chunk in RAM on, up to most bytes, at least one chunk. It ends with a GOP,
// unless all of it, or where there is more and that would be less than
// leastBatch, or half of most. What is chosen is in flight until landed.
func (s *Spool) takeBatch(most int64, all bool) (chunks []*vms.Chunk, inits []vms.Init) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var bytes int64
	n, gops, least := 0, 0, min(leastBatch, most/2)
	for n < len(s.entries) {
		e := s.entries[n]
		if n > 0 && !s.entries[n-1].follows(e) {
			gops = n // nothing of what was begun will follow
			break
		}
		if n > 0 && e.chunk.Flags.Has(vms.FlagKey) && bytes >= least {
			gops = n
		}
		if n > 0 && bytes+size(e.chunk) > most {
			break
		}
		bytes += size(e.chunk)
		n++
	}
	if n == len(s.entries) && all {
		gops = n
	}
	if gops > 0 {
		n = gops
	}
	bytes = 0
	seen := map[uint32]bool{}
	for _, e := range s.entries[:n] {
		bytes += size(e.chunk)
		chunks = append(chunks, cmp.Or(e.raw, e.chunk))
		if id := e.chunk.Init; !seen[id] {
			seen[id] = true
			if i := s.epochIndex(e.chunk.Epoch); i >= 0 {
				if init, ok := s.epochs[i].inits[id]; ok {
					inits = append(inits, init)
				}
			}
		}
	}
	if n > 0 {
		s.flightOrd, s.flightBytes = s.entries[0].ord, bytes
		s.flight = run{chunks[0].Seq, chunks[n-1].Seq}
	}
	return chunks, inits
}

// landed ends the flight: b is what was written, nil when nothing was. It
// returns the bytes of RAM that are free now.
func (s *Spool) landed(b *block) (freed int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.notify()
	if b == nil {
		s.flight, s.flightBytes = run{}, 0
		return 0
	}
	sh := &shelved{block: b, ord: s.flightOrd, time: s.timed(s.flightOrd)}
	s.flight, s.flightBytes = run{}, 0
	s.fileOf(b).blocks++
	// What became durable or was dropped meanwhile is not in RAM any more.
	at := b.First
	i := s.ram(key{ord: sh.ord, seq: b.First})
	j := i
	for ; j < len(s.entries) && s.entries[j].ord == sh.ord && s.entries[j].chunk.Seq <= b.Last; j++ {
		c := s.entries[j].chunk
		sh.gone.add(at, c.Seq-1)
		at = c.Seq + 1
		freed += size(c)
	}
	sh.gone.add(at, b.Last)
	sh.dropped = len(sh.gone) > 0 // perhaps: its gap is saved before the file goes
	s.cut(i, j)
	s.bytes -= freed
	if sh.held() == 0 {
		s.emptied(sh)
		return freed
	}
	s.blocks = append(s.blocks, sh)
	return freed
}

// fileOf returns the state of the file that has a block.
func (s *Spool) fileOf(b *block) *fileState {
	if s.files[b.file] == nil {
		s.files[b.file] = &fileState{epoch: b.Epoch}
	}
	return s.files[b.file]
}

// sweep deletes the files of which nothing is wanted any more. Store.io is held.
func (st *Store) sweep(s *Spool) {
	s.mu.Lock()
	var files []*file
	dropped := false
	for f, fs := range s.files {
		if fs.blocks == 0 {
			files = append(files, f)
			dropped = dropped || fs.dropped
		}
	}
	sh := s.shelf
	s.mu.Unlock()
	if len(files) == 0 {
		return
	}
	if dropped {
		if err := s.save(false); err != nil {
			st.cfg.Log.Error("cannot save gaps; the files that they stand for stay", "channel", s.channel, "err", err)
			return
		}
	}
	for _, f := range files {
		if err := sh.remove(f); err != nil {
			st.cfg.Log.Error("cannot delete a file of the spool", "channel", s.channel, "err", err)
			continue
		}
		s.mu.Lock()
		delete(s.files, f)
		s.mu.Unlock()
		st.roomAgain()
	}
}

// roomAgain ends the rest of a flash that was full.
func (st *Store) roomAgain() {
	st.flashMu.Lock()
	defer st.flashMu.Unlock()
	if st.flash.problem == errFull.Error() {
		st.flash.retry = time.Time{}
	}
}

// makeRoom sees to it that need more bytes may be written. Store.io is held.
func (st *Store) makeRoom(need int64) error {
	for {
		used := st.flashBytes()
		limit := st.cfg.Flash
		if free, err := freeBytes(st.cfg.Dir); err == nil {
			limit = min(limit, int64(st.cfg.FreeShare*float64(free+used)))
		}
		st.flashMu.Lock()
		st.flash.limit = limit
		st.flashMu.Unlock()
		if used+need <= limit {
			return nil
		}
		if st.cfg.Policy == RefuseNew || used == 0 {
			return errFull
		}
		if err := st.dropFile(); err != nil {
			return fmt.Errorf("make room on flash: %w", err)
		}
	}
}

// dropFile drops the oldest file of the stream that has most on flash, also when
// a lane is in the middle of a GOP in it, which is torn then: to spare that would
// cost the next file, of which more is still to be sent.
func (st *Store) dropFile() error {
	var most *Spool
	var bytes int64
	for _, s := range st.all() {
		s.mu.Lock()
		sh := s.shelf
		s.mu.Unlock()
		if sh == nil {
			continue
		}
		if n := sh.bytes(); n > bytes {
			most, bytes = s, n
		}
	}
	if most == nil {
		return errFull
	}
	f := most.shelf.oldest()
	st.used.Add(-most.dropFile(f))
	if err := most.save(false); err != nil {
		return err
	}
	if err := most.shelf.remove(f); err != nil {
		return err
	}
	most.mu.Lock()
	defer most.mu.Unlock()
	delete(most.files, f)
	return nil
}

// dropFile drops all that a file holds, and the rest of the GOP that it ends in.
func (s *Spool) dropFile(f *file) (freed int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.notify()
	if fs := s.files[f]; fs != nil {
		fs.dropped = true
	}
	for {
		i := slices.IndexFunc(s.blocks, func(b *shelved) bool { return b.file == f })
		if i < 0 {
			return freed
		}
		b := s.blocks[i]
		first := b.gone.missing(b.First)
		last := b.Last
		if n, ok := b.gone.above(first); ok {
			last = min(last, n-1)
		}
		from := ref{key: key{ord: b.ord, seq: first}, at: b}
		to := from
		to.seq = last
		freed += s.drop(from, s.gopEnd(to), vms.CauseBufferFull)
	}
}

// flashBytes is what all files take.
func (st *Store) flashBytes() (n int64) {
	for _, s := range st.all() {
		s.mu.Lock()
		sh := s.shelf
		s.mu.Unlock()
		if sh != nil {
			n += sh.bytes()
		}
	}
	return n
}

// Flush puts everything that is not durable from RAM on flash, the oldest of
// each stream first, and saves all gaps: the end is near. The error says that
// not all could be; what is left is in RAM.
func (st *Store) Flush(ctx context.Context) error {
	st.io.Lock()
	defer st.io.Unlock()
	var errs []error
	for st.spills() {
		s := st.fullest()
		if s == nil {
			break
		}
		if err := ctx.Err(); err != nil {
			errs = append(errs, fmt.Errorf("flush spool: %w", err))
			break
		}
		if err := st.spill(s, true); err != nil {
			st.failed(err)
			errs = append(errs, fmt.Errorf("flush spool: %w", err))
			break
		}
	}
	st.savePlacements()
	for _, s := range st.all() {
		if err := s.save(false); err != nil {
			errs = append(errs, fmt.Errorf("save gaps of %s: %w", s.channel, err))
		}
	}
	errs = append(errs, st.countWritten(true))
	return errors.Join(errs...)
}

// saveGaps puts gaps into Facts; due: only those that wait for it long enough.
func (st *Store) saveGaps(due bool) {
	st.io.Lock()
	defer st.io.Unlock()
	for _, s := range st.all() {
		if err := s.save(due); err != nil {
			st.cfg.Log.Warn("cannot save gaps", "channel", s.channel, "err", err)
		}
	}
}

// wrote counts bytes that were written to flash.
func (st *Store) wrote(n int64) {
	st.flashMu.Lock()
	defer st.flashMu.Unlock()
	f := &st.flash
	if d := today(); f.day != d {
		f.day, f.writtenToday = d, 0
	}
	f.written += n
	f.writtenToday += n
	if f.uncounted == nil {
		f.uncounted = map[string]int64{}
	}
	f.uncounted[f.day] += n
}

// countWritten tells Facts how much was written, now or when it is time.
func (st *Store) countWritten(now bool) error {
	if st.cfg.Facts == nil {
		return nil
	}
	st.flashMu.Lock()
	f := &st.flash
	var days map[string]int64
	if now || time.Since(f.counted) >= countEvery {
		days, f.uncounted, f.counted = f.uncounted, nil, time.Now()
	}
	st.flashMu.Unlock()
	for d, n := range days {
		if err := st.cfg.Facts.FlashWritten(d, n); err != nil {
			return err
		}
	}
	return nil
}
