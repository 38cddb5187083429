package nvrtest

import (
	"cmp"
	"context"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/vms"
)

// PutRecording implements nvr.Store.
func (s *Store) PutRecording(_ context.Context, r vms.Recording, now time.Time, keep time.Duration) (nvr.Verdict, error) {
	if err := s.lock(); err != nil {
		return nvr.Verdict{}, err
	}
	defer s.mu.Unlock()
	c := s.channels[r.Channel]
	switch {
	case c == nil:
		return nvr.Verdict{}, vms.ErrNotFound
	case s.isGarbage(r.Key):
		return nvr.Verdict{}, nil
	case c.deleted:
		s.discard(r.Key, time.Time{})
		return nvr.Verdict{}, nil
	}
	if old, ok := s.recs[r.Key]; ok {
		switch {
		case old.Chunks == r.Chunks && old.SHA256 == r.SHA256:
			return nvr.Verdict{}, nil
		case old.Chunks == r.Chunks || !r.Chunks.Contains(old.Chunks):
			return nvr.Verdict{Conflict: r.Key}, nil
		}
	}
	near := func(t vms.TimeRange) (others []vms.Recording) {
		for _, o := range s.of(r.Channel) {
			if o.Key != r.Key && o.Start.Before(t.End) && t.Start.Before(o.End) {
				others = append(others, o)
			}
		}
		return others
	}
	p := nvr.Place(r, near(nvr.Reach(r, near(vms.TimeRange{Start: r.Start, End: r.End}))))
	if p.Drop {
		s.discard(r.Key, time.Time{})
		return nvr.Verdict{}, nil
	}
	for _, key := range p.Superseded {
		var notBefore time.Time
		if keep > 0 {
			notBefore = now.Add(keep)
		}
		s.discard(key, notBefore)
	}
	s.recs[r.Key], s.came[r.Key] = r, now
	return nvr.Verdict{News: true, Conflict: p.Conflict}, nil
}

func (s *Store) isGarbage(key string) bool {
	return slices.ContainsFunc(s.garbage, func(g garbage) bool { return g.key == key })
}

func (s *Store) discard(key string, notBefore time.Time) {
	delete(s.recs, key)
	delete(s.came, key)
	if !s.isGarbage(key) {
		s.garbage = append(s.garbage, garbage{key, notBefore})
	}
}

// of lists the recordings of a channel by start.
func (s *Store) of(ch vms.ChannelID) (out []vms.Recording) {
	for _, r := range s.recs {
		if r.Channel == ch {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b vms.Recording) int { return cmp.Or(a.Start.Compare(b.Start), cmp.Compare(a.Key, b.Key)) })
	return out
}

// Recordings implements nvr.Store.
func (s *Store) Recordings(_ context.Context, ch vms.ChannelID, from, to time.Time, first nvr.Cursor, limit int) (out []vms.Recording, err error) {
	if err := s.lock(); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	for _, r := range s.of(ch) {
		late := first == (nvr.Cursor{}) || r.Start.After(first.At) || (r.Start.Equal(first.At) && r.Key >= first.ID)
		if late && r.Start.Before(to) && r.End.After(from) && len(out) < limit {
			out = append(out, r)
		}
	}
	return out, nil
}

// Neighbours implements nvr.Store.
func (s *Store) Neighbours(_ context.Context, ch vms.ChannelID, from, to time.Time) (before, after *vms.Recording, err error) {
	if err := s.lock(); err != nil {
		return nil, nil, err
	}
	defer s.mu.Unlock()
	for _, r := range s.of(ch) {
		if !r.End.After(from) {
			before = &r
		}
		if after == nil && !r.Start.Before(to) {
			after = &r
		}
	}
	return before, after, nil
}

// RecordedChunks implements nvr.Store.
func (s *Store) RecordedChunks(_ context.Context, ch vms.ChannelID, c vms.ChunkRange, limit int) (out []vms.ChunkRange, err error) {
	if err := s.lock(); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	for _, r := range s.of(ch) {
		if r.Chunks.Epoch == c.Epoch && r.Chunks.First <= c.Last && c.First <= r.Chunks.Last && len(out) < limit {
			out = append(out, r.Chunks)
		}
	}
	return out, nil
}

// HasRecording implements nvr.Store.
func (s *Store) HasRecording(_ context.Context, key string) (bool, error) {
	if err := s.lock(); err != nil {
		return false, err
	}
	defer s.mu.Unlock()
	_, ok := s.recs[key]
	return ok || s.isGarbage(key), nil
}

// Parts implements nvr.Store.
func (s *Store) Parts(_ context.Context, ch vms.ChannelID, epochs []vms.Epoch) (out []vms.Recording, err error) {
	if err := s.lock(); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	for _, r := range s.of(ch) {
		if r.Provisional() && slices.Contains(epochs, r.Chunks.Epoch) {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b vms.Recording) int {
		return cmp.Or(cmp.Compare(a.Chunks.Epoch, b.Chunks.Epoch), cmp.Compare(a.Chunks.First, b.Chunks.First), cmp.Compare(a.Chunks.Last, b.Chunks.Last))
	})
	return out, nil
}

// PartEpochs implements nvr.Store.
func (s *Store) PartEpochs(context.Context) ([]nvr.PartEpoch, error) {
	if err := s.lock(); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	type id struct {
		ch vms.ChannelID
		e  vms.Epoch
	}
	all := make(map[id]nvr.PartEpoch)
	for _, r := range s.recs {
		if !r.Provisional() {
			continue
		}
		k := id{r.Channel, r.Chunks.Epoch}
		p := all[k]
		p.Channel, p.Epoch = k.ch, k.e
		if r.End.After(p.End) {
			p.End = r.End
		}
		if at := s.came[r.Key]; at.After(p.Registered) {
			p.Registered = at
		}
		all[k] = p
	}
	return slices.SortedFunc(maps.Values(all), func(a, b nvr.PartEpoch) int {
		return cmp.Or(cmp.Compare(a.Channel, b.Channel), cmp.Compare(a.Epoch, b.Epoch))
	}), nil
}

// PutGaps implements nvr.Store.
func (s *Store) PutGaps(_ context.Context, ch vms.ChannelID, gaps []vms.Gap) (news []vms.GapID, err error) {
	if err := s.lock(); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	c := s.live(ch)
	if c == nil {
		return nil, vms.ErrNotFound
	}
	for _, g := range gaps {
		if g.Chunks != nil && g.Chunks.Last > math.MaxInt64 {
			return nil, vms.ErrInvalid
		}
	}
	for _, g := range gaps {
		if _, known := c.gaps[g.ID]; !known {
			news = append(news, g.ID)
		}
		c.gaps[g.ID] = g
	}
	return news, nil
}

// Gaps implements nvr.Store.
func (s *Store) Gaps(_ context.Context, ch vms.ChannelID, from, to time.Time, limit int) (out []vms.Gap, err error) {
	if err := s.lock(); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	if c := s.live(ch); c != nil {
		for _, g := range c.gaps {
			if g.End.After(from) && g.Start.Before(to) {
				out = append(out, g)
			}
		}
	}
	slices.SortFunc(out, func(a, b vms.Gap) int { return cmp.Or(a.Start.Compare(b.Start), cmp.Compare(a.ID, b.ID)) })
	return out[:min(len(out), limit)], nil
}

// Expire implements nvr.Store.
func (s *Store) Expire(_ context.Context, cutoff time.Time, maxBytes int64, _ time.Time, limit int) (n int, err error) {
	if err := s.lock(); err != nil {
		return 0, err
	}
	defer s.mu.Unlock()
	var all []vms.Recording
	excess := -maxBytes
	for _, r := range s.recs {
		all = append(all, r)
		excess += r.Bytes
	}
	slices.SortFunc(all, func(a, b vms.Recording) int { return cmp.Or(a.End.Compare(b.End), cmp.Compare(a.Key, b.Key)) })
	for _, r := range all {
		if n == limit || !r.End.Before(cutoff) && (maxBytes == 0 || excess <= 0) {
			break
		}
		s.discard(r.Key, time.Time{})
		excess -= r.Bytes
		n++
	}
	return n, nil
}

// Forget implements nvr.Store.
func (s *Store) Forget(_ context.Context, cutoff, unclaimed time.Time) error {
	if err := s.lock(); err != nil {
		return err
	}
	defer s.mu.Unlock()
	for _, c := range s.channels {
		for id, g := range c.gaps {
			if g.End.Before(cutoff) {
				delete(c.gaps, id)
			}
		}
		for len(c.modes) > 1 && c.modes[1].Since.Before(cutoff) {
			c.modes = c.modes[1:]
		}
		c.idle = slices.DeleteFunc(c.idle, func(r vms.TimeRange) bool { return !r.End.IsZero() && r.End.Before(cutoff) })
	}
	for sid, x := range s.sessions {
		if x.Hub == "" && x.CreatedAt.Before(unclaimed) {
			delete(s.sessions, sid)
		}
	}
	for _, h := range s.hubs {
		if h.expires.Before(unclaimed) {
			h.code = nil
		}
	}
	return nil
}

// Discard implements nvr.Store.
func (s *Store) Discard(_ context.Context, key string, _, notBefore time.Time) error {
	if err := s.lock(); err != nil {
		return err
	}
	defer s.mu.Unlock()
	s.discard(key, notBefore)
	return nil
}

// Garbage implements nvr.Store.
func (s *Store) Garbage(_ context.Context, now time.Time, limit int) (keys []string, err error) {
	if err := s.lock(); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	for _, g := range s.garbage {
		if !g.notBefore.After(now) && len(keys) < limit {
			keys = append(keys, g.key)
		}
	}
	return keys, nil
}

// GarbageGone implements nvr.Store.
func (s *Store) GarbageGone(_ context.Context, key string) error {
	if err := s.lock(); err != nil {
		return err
	}
	defer s.mu.Unlock()
	s.garbage = slices.DeleteFunc(s.garbage, func(g garbage) bool { return g.key == key })
	return nil
}
