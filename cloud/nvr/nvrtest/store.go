package nvrtest

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"slices"
	"sync"
	"time"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/vms"
)

// Store is an nvr.Store in memory, for tests of what stands on one. It passes
// the suite of every store.
type Store struct {
	mu       sync.Mutex
	hubs     map[vms.HubID]*hub
	channels map[vms.ChannelID]*channel
	sessions map[vms.SID]*nvr.Session
	recs     map[string]vms.Recording
	came     map[string]time.Time // when a recording was registered
	garbage  []garbage

	fail error
}

type hub struct {
	nvr.Hub
	code    *nvr.CodeHash
	expires time.Time
}

type channel struct {
	nvr.ChannelRow
	deleted    bool
	generation vms.Generation
	gaps       map[vms.GapID]vms.Gap
	idle       []vms.TimeRange // the last one may have no end
}

type garbage struct {
	key       string
	notBefore time.Time
}

var _ nvr.Store = (*Store)(nil)

// NewStore returns an empty store.
func NewStore() *Store {
	return &Store{hubs: map[vms.HubID]*hub{}, channels: map[vms.ChannelID]*channel{}, sessions: map[vms.SID]*nvr.Session{}, recs: map[string]vms.Recording{}, came: map[string]time.Time{}}
}

// Fail makes every method fail with err until it is called with nil.
func (s *Store) Fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = err
}

// lock begins a method: it returns with the lock held unless there is an error.
func (s *Store) lock() error {
	s.mu.Lock()
	if s.fail != nil {
		defer s.mu.Unlock()
		return s.fail
	}
	return nil
}

// CreateHub implements nvr.Store.
func (s *Store) CreateHub(_ context.Context, h nvr.Hub, code nvr.CodeHash, expires time.Time) error {
	if err := s.lock(); err != nil {
		return err
	}
	defer s.mu.Unlock()
	s.hubs[h.ID] = &hub{h, &code, expires}
	return nil
}

// EnrolHub implements nvr.Store.
func (s *Store) EnrolHub(_ context.Context, code nvr.CodeHash, key ed25519.PublicKey, name string, now time.Time) (nvr.Hub, error) {
	if err := s.lock(); err != nil {
		return nvr.Hub{}, err
	}
	defer s.mu.Unlock()
	for _, h := range s.hubs {
		if h.code == nil || *h.code != code {
			continue
		}
		if !now.Before(h.expires) {
			return nvr.Hub{}, vms.ErrExpired
		}
		h.code, h.PublicKey, h.EnrolledAt = nil, key, now
		h.Name = cmp.Or(h.Name, name)
		return h.Hub, nil
	}
	return nvr.Hub{}, vms.ErrNotFound
}

// Hub implements nvr.Store.
func (s *Store) Hub(_ context.Context, id vms.HubID) (nvr.Hub, error) {
	if err := s.lock(); err != nil {
		return nvr.Hub{}, err
	}
	defer s.mu.Unlock()
	if h := s.hubs[id]; h != nil {
		return h.Hub, nil
	}
	return nvr.Hub{}, vms.ErrNotFound
}

// Hubs implements nvr.Store.
func (s *Store) Hubs(_ context.Context, acct vms.AccountID, after nvr.Cursor, limit int) ([]nvr.Hub, error) {
	if err := s.lock(); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	var out []nvr.Hub
	for _, h := range s.hubs {
		if h.Account == acct && h.RevokedAt.IsZero() {
			out = append(out, h.Hub)
		}
	}
	return pageOf(out, func(h nvr.Hub) nvr.Cursor { return nvr.Cursor{At: h.CreatedAt, ID: string(h.ID)} }, after, limit), nil
}

// RevokeHub implements nvr.Store.
func (s *Store) RevokeHub(_ context.Context, acct vms.AccountID, id vms.HubID, now time.Time) ([]vms.SID, error) {
	if err := s.lock(); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	h := s.hubs[id]
	if h == nil || h.Account != acct || !h.RevokedAt.IsZero() {
		return nil, vms.ErrNotFound
	}
	h.RevokedAt, h.PublicKey, h.code = now, nil, nil
	for _, c := range s.channels {
		if c.Hub == id {
			c.Hub, c.SID = "", ""
		}
	}
	return s.revoke(func(x *nvr.Session) bool { return x.Hub == id }), nil
}

func (s *Store) revoke(which func(*nvr.Session) bool) (sids []vms.SID) {
	for _, x := range s.sessions {
		if which(x) && x.State != nvr.SessionRevoked {
			x.State = nvr.SessionRevoked
			sids = append(sids, x.SID)
		}
	}
	return sids
}

// CreateChannel implements nvr.Store.
func (s *Store) CreateChannel(_ context.Context, c nvr.ChannelRow) error {
	if err := s.lock(); err != nil {
		return err
	}
	defer s.mu.Unlock()
	if err := s.check(c); err != nil {
		return err
	}
	s.channels[c.ID] = &channel{ChannelRow: c, gaps: map[vms.GapID]vms.Gap{}}
	return nil
}

func (s *Store) check(c nvr.ChannelRow) error {
	if c.Camera.Password != "" {
		return vms.ErrInvalid
	}
	if h := s.hubs[c.Hub]; c.Hub != "" && (h == nil || h.Account != c.Account || !h.RevokedAt.IsZero()) {
		return vms.ErrNotFound
	}
	return nil
}

// live returns a channel that is not deleted, or nil.
func (s *Store) live(id vms.ChannelID) *channel {
	if c := s.channels[id]; c != nil && !c.deleted {
		return c
	}
	return nil
}

// Channel implements nvr.Store.
func (s *Store) Channel(_ context.Context, id vms.ChannelID) (nvr.ChannelRow, error) {
	if err := s.lock(); err != nil {
		return nvr.ChannelRow{}, err
	}
	defer s.mu.Unlock()
	if c := s.live(id); c != nil {
		return c.ChannelRow, nil
	}
	return nvr.ChannelRow{}, vms.ErrNotFound
}

func (s *Store) rows(which func(*channel) bool) (out []nvr.ChannelRow) {
	for _, c := range s.channels {
		if !c.deleted && which(c) {
			out = append(out, c.ChannelRow)
		}
	}
	return out
}

func rowCursor(c nvr.ChannelRow) nvr.Cursor { return nvr.Cursor{At: c.CreatedAt, ID: string(c.ID)} }

// Channels implements nvr.Store.
func (s *Store) Channels(_ context.Context, acct vms.AccountID, after nvr.Cursor, limit int) ([]nvr.ChannelRow, error) {
	if err := s.lock(); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	return pageOf(s.rows(func(c *channel) bool { return c.Account == acct }), rowCursor, after, limit), nil
}

// WantedChannels implements nvr.Store.
func (s *Store) WantedChannels(_ context.Context, id vms.HubID) ([]nvr.ChannelRow, error) {
	if err := s.lock(); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	return pageOf(s.rows(func(c *channel) bool { return c.Hub == id && c.Wanted }), rowCursor, nvr.Cursor{}, len(s.channels)), nil
}

// UpdateChannel implements nvr.Store.
func (s *Store) UpdateChannel(_ context.Context, acct vms.AccountID, id vms.ChannelID, change func(*nvr.ChannelRow) error) (nvr.ChannelRow, error) {
	if err := s.lock(); err != nil {
		return nvr.ChannelRow{}, err
	}
	defer s.mu.Unlock()
	c := s.live(id)
	if c == nil || c.Account != acct {
		return nvr.ChannelRow{}, vms.ErrNotFound
	}
	row := c.ChannelRow
	if err := change(&row); err != nil {
		return nvr.ChannelRow{}, err
	}
	if err := s.check(row); err != nil {
		return nvr.ChannelRow{}, err
	}
	c.ChannelRow = row
	return row, nil
}

// DeleteChannel implements nvr.Store.
func (s *Store) DeleteChannel(_ context.Context, acct vms.AccountID, id vms.ChannelID, _ time.Time) ([]vms.SID, error) {
	if err := s.lock(); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	c := s.live(id)
	if c == nil || c.Account != acct {
		return nil, vms.ErrNotFound
	}
	*c = channel{ChannelRow: nvr.ChannelRow{ID: id, Account: acct}, deleted: true}
	for key, r := range s.recs {
		if r.Channel == id {
			s.discard(key, time.Time{})
		}
	}
	for i, g := range s.garbage {
		if ch, ok := vms.KeyChannel(g.key); ok && ch == id {
			s.garbage[i].notBefore = time.Time{}
		}
	}
	return s.revoke(func(x *nvr.Session) bool { return x.Channel == id }), nil
}

// SetIdle implements nvr.Store.
func (s *Store) SetIdle(_ context.Context, id vms.ChannelID, idle bool, at time.Time) error {
	if err := s.lock(); err != nil {
		return err
	}
	defer s.mu.Unlock()
	c := s.live(id)
	if c == nil {
		return nil
	}
	k := len(c.idle) - 1
	is := k >= 0 && c.idle[k].End.IsZero()
	switch {
	case idle && !is:
		c.idle = append(c.idle, vms.TimeRange{Start: at})
	case !idle && is:
		c.idle[k].End = at
	}
	return nil
}

// Idle implements nvr.Store.
func (s *Store) Idle(_ context.Context, id vms.ChannelID, from, to time.Time) (out []vms.TimeRange, err error) {
	if err := s.lock(); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	if c := s.live(id); c != nil {
		for _, r := range c.idle {
			if r.End.IsZero() {
				r.End = to
			}
			if r.Overlaps(vms.TimeRange{Start: from, End: to}) {
				out = append(out, r)
			}
		}
	}
	return out, nil
}

// CreateSession implements nvr.Store.
func (s *Store) CreateSession(_ context.Context, x nvr.Session) error {
	if err := s.lock(); err != nil {
		return err
	}
	defer s.mu.Unlock()
	if c := s.live(x.Channel); c == nil || c.Account != x.Account {
		return vms.ErrNotFound
	}
	s.sessions[x.SID] = &x
	return nil
}

// Session implements nvr.Store.
func (s *Store) Session(_ context.Context, sid vms.SID) (nvr.Session, error) {
	if err := s.lock(); err != nil {
		return nvr.Session{}, err
	}
	defer s.mu.Unlock()
	if x := s.sessions[sid]; x != nil {
		return *x, nil
	}
	return nvr.Session{}, vms.ErrNotFound
}

// BindSession implements nvr.Store.
func (s *Store) BindSession(_ context.Context, sid vms.SID, id vms.HubID) (nvr.Session, error) {
	if err := s.lock(); err != nil {
		return nvr.Session{}, err
	}
	defer s.mu.Unlock()
	x := s.sessions[sid]
	switch {
	case x == nil:
		return nvr.Session{}, vms.ErrNotFound
	case (x.Hub != "" && x.Hub != id) || x.State != nvr.SessionOpen:
		return nvr.Session{}, vms.ErrConflict
	}
	x.Hub = id
	return *x, nil
}

// EndSession implements nvr.Store.
func (s *Store) EndSession(_ context.Context, sid vms.SID) error {
	if err := s.lock(); err != nil {
		return err
	}
	defer s.mu.Unlock()
	if x := s.sessions[sid]; x != nil && x.State == nvr.SessionOpen {
		x.State = nvr.SessionEnded
	}
	return nil
}

// NextGeneration implements nvr.Store.
func (s *Store) NextGeneration(_ context.Context, sid vms.SID) (vms.Generation, error) {
	if err := s.lock(); err != nil {
		return 0, err
	}
	defer s.mu.Unlock()
	x := s.sessions[sid]
	if x == nil || x.State == nvr.SessionRevoked {
		return 0, vms.ErrNotFound
	}
	c := s.live(x.Channel)
	c.generation++
	x.Generation = c.generation
	return c.generation, nil
}

// pageOf sorts, and cuts what stands after the cursor to limit.
func pageOf[T any](all []T, at func(T) nvr.Cursor, after nvr.Cursor, limit int) []T {
	order := func(a, b nvr.Cursor) int { return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.ID, b.ID)) }
	all = slices.DeleteFunc(all, func(v T) bool { return after != (nvr.Cursor{}) && order(at(v), after) <= 0 })
	slices.SortFunc(all, func(a, b T) int { return order(at(a), at(b)) })
	return all[:min(len(all), limit)]
}
