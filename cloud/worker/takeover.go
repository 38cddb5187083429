package worker

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"time"

	"github.com/zipato/vms/cloud/worker/segment"
	"github.com/zipato/vms/pkg/cmaf"
	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
)

const (
	// surveyWait is how long the NVR may take to name parts before an agent,
	// which waits for its welcome, is told to come again.
	surveyWait = 8 * time.Second
	// restoreWait is how long a chunk waits for the beginning of its recording,
	// less than what makes a connection that is not read count as dead.
	restoreWait = 20 * time.Second
	// restoreTimeout ends the fetching of parts, whoever waits for it.
	restoreTimeout = 5 * time.Minute
	// lookPause is how long nobody looks again for parts when it failed and no
	// agent waits for them.
	lookPause = 10 * time.Second
	// maxRows bounds the parts of an epoch that are believed in.
	maxRows = 10_000
	// maxAside bounds the keys of parts that are remembered as useless.
	maxAside = 1000
)

// survey asks the NVR what other workers stored of the stream as parts. They
// can have had it only if there was another assignment since the last time.
func (s *stream) survey(t token.Push, epochs []vms.Epoch) error {
	s.mu.Lock()
	known := s.surveyed >= t.Generation
	s.mu.Unlock()
	if known {
		return nil
	}
	if len(epochs) > 0 {
		ctx, cancel := context.WithTimeout(s.w.work, surveyWait)
		defer cancel()
		rows, err := s.w.rows(ctx, s.ch, epochs)
		if err != nil {
			s.w.cfg.Log.Warn("cannot ask the NVR for parts; the agent has to wait", "channel", s.ch, "err", err)
			return refuseParts()
		}
		s.mu.Lock()
		for _, e := range epochs {
			s.merge(e, rows)
		}
		s.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.surveyed = max(s.surveyed, t.Generation)
	return nil
}

// rows returns the parts of some epochs of a channel.
func (w *Worker) rows(ctx context.Context, ch vms.ChannelID, epochs []vms.Epoch) ([]vms.Recording, error) {
	all, err := w.cfg.NVR.Parts(ctx, ch, epochs)
	if err != nil {
		return nil, err
	}
	rows := make([]vms.Recording, 0, min(len(all), maxRows))
	for _, r := range all {
		if r.Channel == ch && r.Provisional() && r.Chunks.First > 0 && r.Chunks.First <= r.Chunks.Last && len(rows) < maxRows {
			rows = append(rows, r)
		}
	}
	return rows, nil
}

// merge takes over what the NVR says of an epoch.
func (s *stream) merge(e vms.Epoch, rows []vms.Recording) {
	var usable []vms.Recording
	for _, r := range rows {
		if r.Chunks.Epoch != e {
			continue
		}
		s.seg.Durable(r.Chunks)
		if !s.durable.Covers(r.Chunks) {
			s.acknowledge(r.Chunks)
		}
		if !s.aside[r.Key] {
			usable = append(usable, r)
		}
	}
	s.seg.Parts(e, usable)
}

// fetch brings the recording that chunk seq of epoch is in, or would follow,
// back from parts as far as they go. Where there are none it learns whether seq,
// and what follows it, is in a whole recording.
type fetch struct {
	epoch vms.Epoch
	seq   uint64

	done chan struct{}
	err  error // after done: it may be tried again; nil also when there is nothing
}

// fetch begins one, or returns the one that is under way.
func (s *stream) fetch(e vms.Epoch, seq uint64) *fetch {
	if s.fetching != nil {
		return s.fetching
	}
	f := &fetch{epoch: e, seq: seq, done: make(chan struct{})}
	s.fetching = f
	s.w.jobs.Go(func() {
		ctx, cancel := context.WithTimeout(s.w.work, restoreTimeout)
		defer cancel()
		err := s.bring(ctx, f)
		if err != nil && s.w.work.Err() == nil {
			s.w.cfg.Log.Warn("cannot continue a recording from its parts, will try again", "channel", s.ch, "epoch", e.String(), "seq", seq, "err", err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		f.err, s.fetching = err, nil
		s.fetchNext = time.Now()
		if err != nil {
			s.fetchNext = s.fetchNext.Add(lookPause)
		}
		close(f.done)
		_ = s.settle() // it was logged
	})
	return f
}

// look begins a fetch for which no agent waits.
func (s *stream) look(e vms.Epoch, seq uint64) {
	if s.fetching == nil && !time.Now().Before(s.fetchNext) && s.w.work.Err() == nil {
		s.fetch(e, seq)
	}
}

// bring does the work of a fetch.
func (s *stream) bring(ctx context.Context, f *fetch) error {
	select {
	case s.w.restoring <- struct{}{}:
		defer func() { <-s.w.restoring }()
	case <-ctx.Done():
		return ctx.Err()
	}
	rows, err := s.w.rows(ctx, s.ch, []vms.Epoch{f.epoch})
	if err != nil {
		return err
	}
	src := source{w: s.w, files: map[string]*os.File{}}
	defer src.close()
	for {
		s.mu.Lock()
		s.merge(f.epoch, rows)
		src.rows = src.rows[:0]
		for _, r := range rows {
			if !s.aside[r.Key] {
				src.rows = append(src.rows, r)
			}
		}
		o, from := s.seg.Source(f.epoch, f.seq)
		if o == nil {
			s.mu.Unlock()
			return s.settled(ctx, f)
		}
		r := s.recs[o]
		o.Busy = true
		number, last := o.Recording, o.Chunks.Last
		s.mu.Unlock()
		if r != nil {
			err = s.extend(ctx, &src, r, from)
		} else {
			err = s.restore(ctx, &src, o, number, last)
		}
		s.mu.Lock()
		o.Busy = false
		var u *uselessError
		if errors.As(err, &u) && len(u.keys) > 0 {
			if len(s.aside) >= maxAside {
				clear(s.aside)
			}
			for _, key := range u.keys {
				s.aside[key] = true
			}
			s.mu.Unlock()
			if errors.Is(err, errClosed) {
				s.w.cfg.Log.Warn("parts of a recording that was closed before its end stay as they are", "channel", s.ch, "parts", u.keys, "err", u.err)
			} else {
				s.w.cfg.Log.Error("ALARM: parts of a recording cannot be continued; they stay as they are", "channel", s.ch, "parts", u.keys, "err", u.err)
			}
			continue
		}
		s.mu.Unlock()
		return err
	}
}

// settled ends a fetch for which there are no parts.
func (s *stream) settled(ctx context.Context, f *fetch) error {
	r := vms.ChunkRange{Epoch: f.epoch, First: max(f.seq, 1), Last: f.seq + 1}
	s.mu.Lock()
	known := s.seg.Covers(r)
	s.mu.Unlock()
	var wholes []vms.ChunkRange
	if !known {
		var err error
		if wholes, err = s.w.cfg.NVR.Wholes(ctx, s.ch, r); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range wholes {
		if x.Epoch == f.epoch && x.First > 0 && x.First <= x.Last {
			s.seg.Durable(x)
			if !s.durable.Covers(x) {
				s.acknowledge(x)
			}
		}
	}
	s.seg.Alone(f.epoch, f.seq)
	return nil
}

// errNext ends a replay: what follows is another recording, of another span, that
// has the same number.
var errNext = errors.New("the next recording")

// extend appends to a recording on tmpfs what other workers stored of it.
func (s *stream) extend(ctx context.Context, src *source, r *recording, from uint64) error {
	gone := errors.New("the recording is not open any more")
	last, err := src.replay(ctx, r.open.Recording, from, math.MaxUint64, func(_ *vms.Init, c *vms.Chunk) error {
		if c.Flags.Has(vms.FlagFirst) {
			return errNext
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.recs[r.open] != r {
			return gone
		}
		if err := r.w.Append(c); err != nil {
			return err
		}
		s.w.dir.used.Add(int64(len(c.Payload)))
		return nil
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.recs[r.open] != r {
		return nil
	}
	if last >= from {
		if r.parted == from-1 {
			r.parted = last
		}
		r.grown, r.gen = time.Now(), 0
		s.seg.Restored(r.open, vms.ChunkRange{Epoch: r.open.Chunks.Epoch, First: from, Last: last}, r.open.Init)
	}
	if err == nil {
		s.seg.Alone(r.open.Chunks.Epoch, r.open.Chunks.Last+1)
		return nil
	}
	return err // when tmpfs has failed, too, it will be tried again from here on
}

// restore puts a recording on tmpfs again that is in the store up to chunk last.
func (s *stream) restore(ctx context.Context, src *source, o *segment.Open, number uint32, last uint64) error {
	row := src.cover(number, last)
	if row == nil {
		return fmt.Errorf("no part holds chunk %d", last)
	}
	begin, err := src.begin(ctx, row)
	if err != nil {
		return err
	}
	s.mu.Lock()
	if !s.seg.Holds(o) {
		s.mu.Unlock()
		return nil
	}
	s.seg.Split(o, begin)
	lacks := vms.ChunkRange{Epoch: o.Chunks.Epoch, First: begin, Last: o.Chunks.First - 1}
	stored := lacks.First <= lacks.Last && s.seg.Covers(lacks)
	s.mu.Unlock()
	if lacks.First <= lacks.Last {
		if !stored {
			wholes, err := s.w.cfg.NVR.Wholes(ctx, s.ch, lacks)
			if err != nil {
				return err
			}
			var all vms.ChunkSet
			for _, x := range wholes {
				all.Add(x)
			}
			stored = all.Covers(lacks)
		}
		err := fmt.Errorf("they begin with chunk %d, the recording with %d", o.Chunks.First, begin)
		if stored {
			err = fmt.Errorf("%w: %w", errClosed, err)
		}
		return &uselessError{keys: src.touching(number, o.Chunks), err: err}
	}
	var w *segment.Writer
	var init vms.Init
	drop := func() {
		if w != nil {
			s.w.dir.used.Add(-w.Bytes())
			if err := w.Discard(); err != nil {
				s.w.cfg.Log.Error("cannot discard a restored recording", "channel", s.ch, "err", err)
			}
		}
	}
	end, err := src.replay(ctx, number, begin, math.MaxUint64, func(i *vms.Init, c *vms.Chunk) (err error) {
		if w == nil {
			init = *i
			w, err = segment.Create(s.w.cfg.Dir, s.ch, init, c)
		} else {
			err = w.Append(c)
		}
		if err == nil {
			s.w.dir.used.Add(int64(len(c.Payload)))
		}
		return err
	})
	if err != nil {
		drop()
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.seg.Holds(o) || s.forgotten {
		drop()
		return nil
	}
	now := time.Now()
	s.recs[o] = &recording{open: o, w: w, opened: now, grown: now, parted: end}
	s.seg.Restored(o, vms.ChunkRange{Epoch: o.Chunks.Epoch, First: begin, Last: end}, init.ID)
	s.w.cfg.Log.Info("recording continued from its parts", "channel", s.ch, "chunks", o.Chunks.String())
	return nil
}

// source gives the chunks of parts back. Each part is fetched once, whole, and
// believed when its checksum is that of the index.
type source struct {
	w     *Worker
	rows  []vms.Recording // of one epoch
	files map[string]*os.File
	bytes int64
}

// uselessError: nothing can be made of these parts, now or later.
type uselessError struct {
	keys []string
	err  error
}

func (e *uselessError) Error() string { return e.err.Error() }
func (e *uselessError) Unwrap() error { return e.err }

var (
	// errWrite: tmpfs failed.
	errWrite = errors.New("the worker's directory")
	// errClosed: what these parts go on from is stored as a recording already.
	errClosed = errors.New("the recording was closed before them")
)

// cover returns the part that holds chunk seq of a recording and reaches furthest.
func (p *source) cover(number uint32, seq uint64) (best *vms.Recording) {
	for i := range p.rows {
		if r := &p.rows[i]; r.Number == number && r.Chunks.First <= seq && seq <= r.Chunks.Last && (best == nil || r.Chunks.Last > best.Chunks.Last) {
			best = r
		}
	}
	return best
}

// touching lists the keys of the parts that hold something of c.
func (p *source) touching(number uint32, c vms.ChunkRange) (keys []string) {
	for _, r := range p.rows {
		if r.Number == number && r.Chunks.First <= c.Last && c.First <= r.Chunks.Last {
			keys = append(keys, r.Key)
		}
	}
	return keys
}

// begin returns the number of the first chunk of the recording that row is a part of.
func (p *source) begin(ctx context.Context, row *vms.Recording) (uint64, error) {
	r, err := p.open(ctx, row)
	if err != nil {
		return 0, err
	}
	return r.Begin, nil
}

// replay puts the chunks of a recording from number from on, up to number until,
// as far as parts go without a hole, and returns the last one, from-1 when there
// was none.
func (p *source) replay(ctx context.Context, number uint32, from, until uint64, put func(*vms.Init, *vms.Chunk) error) (last uint64, err error) {
	last = from - 1
	for {
		row := p.cover(number, last+1)
		if row == nil {
			return last, nil
		}
		r, err := p.open(ctx, row)
		if err != nil {
			return last, err
		}
		for {
			c, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return last, p.wrong(row, err)
			}
			if c.Seq <= last {
				continue
			}
			if c.Seq > until {
				return last, nil
			}
			if c.Seq > from && c.Flags.Has(vms.FlagFirst) {
				return last, nil // the next recording, of another span, has the same number
			}
			if p.w.dir.room() < 0 {
				return last, errors.New("no room in the worker's directory")
			}
			switch err := put(&r.Init, &c); {
			case errors.Is(err, errNext):
				return last, nil
			case errors.Is(err, cmaf.ErrInvalid):
				return last, &uselessError{keys: []string{row.Key}, err: err}
			case err != nil:
				p.w.dir.writeFailed(err)
				return last, fmt.Errorf("%w: %w", errWrite, err)
			}
			last = c.Seq
		}
	}
}

func (p *source) wrong(row *vms.Recording, err error) error {
	if errors.Is(err, segment.ErrBroken) {
		return &uselessError{keys: []string{row.Key}, err: err}
	}
	return err
}

// open returns the chunks of a part from its first on.
func (p *source) open(ctx context.Context, row *vms.Recording) (*segment.PartReader, error) {
	f := p.files[row.Key]
	if f == nil {
		var err error
		if f, err = p.get(ctx, row); err != nil {
			return nil, fmt.Errorf("part %s: %w", row.Key, err)
		}
	}
	r, err := segment.OpenPart(io.NewSectionReader(f, 0, row.Bytes), row)
	if err != nil {
		return nil, p.wrong(row, err)
	}
	return r, nil
}

// get fetches a part to tmpfs.
func (p *source) get(ctx context.Context, row *vms.Recording) (*os.File, error) {
	if p.w.dir.room() < row.Bytes {
		return nil, errors.New("no room in the worker's directory")
	}
	body, err := p.w.cfg.Store.Get(ctx, row.Key)
	if errors.Is(err, vms.ErrNotFound) {
		return nil, &uselessError{keys: []string{row.Key}, err: err}
	}
	if err != nil {
		return nil, err
	}
	defer body.Close()
	f, err := os.CreateTemp(p.w.cfg.Dir, "part.*.body")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errWrite, err)
	}
	p.files[row.Key] = f
	p.bytes += row.Bytes
	p.w.dir.used.Add(row.Bytes)
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, h), io.LimitReader(body, row.Bytes+1))
	switch {
	case err != nil:
	case n != row.Bytes || [sha256.Size]byte(h.Sum(nil)) != row.SHA256:
		err = &uselessError{keys: []string{row.Key}, err: fmt.Errorf("%d bytes of %d, or others than in the index", n, row.Bytes)}
	default:
		return f, nil
	}
	p.forget(row.Key)
	return nil, err
}

func (p *source) forget(key string) {
	f := p.files[key]
	delete(p.files, key)
	if err := errors.Join(f.Close(), os.Remove(f.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
		p.w.cfg.Log.Error("cannot remove a fetched part", "path", f.Name(), "err", err)
	}
}

func (p *source) close() {
	for key := range p.files {
		p.forget(key)
	}
	p.w.dir.used.Add(-p.bytes)
}
