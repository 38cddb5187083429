package worker

import (
	"context"
	"time"

	"github.com/zipato/vms/cloud/worker/segment"
	"github.com/zipato/vms/cloud/worker/upload"
	"github.com/zipato/vms/pkg/vms"
)

// An agent repeats pressure every few seconds. What has come since the last
// part makes another when it is so large, or as soon as that is so long ago, and
// not more than so many: the rest waits for the end.
const (
	largePart = 1 << 20
	partPause = 10 * time.Second
	maxParts  = 64
)

// how says how much of an open recording becomes a part.
type how int

const (
	// all: everything there is, because nobody knows when more comes.
	all how = iota
	// some: as much as is worth it, because the agent runs out of room.
	some
)

// stored reports whether all of r is in the store as parts.
func (r *recording) stored() bool { return r.parted >= r.open.Chunks.Last }

// cut returns the last chunk of the part to be made of r now, 0 for none.
func (r *recording) cut(h how, now time.Time) uint64 {
	if r.part != nil || r.unwanted || r.open.Busy || r.stored() {
		return 0
	}
	if h == all {
		return r.open.Chunks.Last
	}
	last := r.partAt
	if r.opened.After(last) {
		last = r.opened
	}
	bytes, key, keyBytes := r.w.Pending(r.parted)
	if r.parts >= maxParts || bytes < largePart && now.Sub(last) < partPause {
		return 0
	}
	if 2*keyBytes >= bytes {
		return key // the next part begins where decoding can
	}
	return r.open.Chunks.Last
}

// pressure stores what can be of the open recordings, as parts.
func (s *stream) pressure() {
	s.mu.Lock()
	var open []*segment.Open
	for o := range s.recs {
		open = append(open, o)
	}
	s.mu.Unlock()
	for _, o := range open {
		s.sendPart(o, some)
	}
}

// sendPart makes a part of what o has beyond its last one and submits it, if
// it is time for that. The agent may free it once the NVR has it registered:
// whoever takes the stream over learns of it from there.
func (s *stream) sendPart(o *segment.Open, h how) {
	s.mu.Lock()
	r := s.recs[o]
	doubtful := r != nil && (r.found || s.elsewhere && !r.asked)
	if doubtful {
		s.ask(r) // it may be stored, all or some of it; then it is time for a part
	}
	if r == nil || doubtful {
		s.mu.Unlock()
		return
	}
	last := r.cut(h, time.Now())
	r.pressed = h == some && last == 0 && r.part == nil && !r.stored()
	if last == 0 {
		s.mu.Unlock()
		return
	}
	p := r.w.Part(r.parted, last)
	ctx, cancel := context.WithCancel(s.w.uploadCtx)
	u := &sending{since: time.Now(), cancel: cancel}
	r.part, r.partAt = u, u.since
	r.parts++
	s.uploads[u] = true
	s.mu.Unlock()

	f, err := p.Build() // while the recording grows
	if ctx.Err() != nil {
		return // the recording is complete, or given up
	}
	if err != nil {
		s.w.cfg.Log.Error("cannot read an open recording; the agent will send it again", "channel", s.ch, "chunks", p.Chunks().String(), "err", err)
		s.startOver(refuseTmpfs())
		return
	}
	j := job(f)
	j.Done = func(v vms.Recording) {
		s.w.notices.uploaded(s.w.cfg.NVR, s.ch, v, func(err error) { s.registered(r, u, v, err) })
	}
	j.Lost = func(err error) { s.registered(r, u, f.Recording, err) }
	s.w.uploader.Submit(ctx, j)
}

// registered ends a part: it is durable, or err says why it never will be.
func (s *stream) registered(r *recording, u *sending, v vms.Recording, err error) {
	u.cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.uploads, u)
	if r.part == u {
		r.part = nil
	}
	if err != nil {
		s.w.cfg.Log.Error("a part is not wanted; the recording waits for its end", "channel", s.ch, "key", v.Key, "err", err)
		r.unwanted = true
		return
	}
	s.w.cfg.Log.Info("part stored", "channel", s.ch, "key", v.Key, "bytes", v.Bytes)
	if s.recs[r.open] == r {
		r.parted = max(r.parted, v.Chunks.Last)
	}
	s.acknowledge(v.Chunks)
}

// park takes what is in the store as parts from tmpfs, if it has not grown for
// so long: room is needed for what does.
func (s *stream) park(quiet time.Duration) {
	for _, r := range s.recs {
		if r.stored() && !r.open.Busy && time.Since(r.grown) >= quiet {
			s.discard(r)
		}
	}
}

// job is the upload of a finished object.
func job(f *segment.Finished) upload.Job {
	return upload.Job{Recording: f.Recording, Head: f.Head, Path: f.Path, View: f.View}
}
