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
	code      *nvr.CodeHash
	expires   time.Time
	published int64
}

// raise raises the revision of what the hub should do.
func (h *hub) raise(now time.Time) { h.Revision = max(h.Revision+1, now.UnixMilli()) }

type channel struct {
	nvr.ChannelRow
	deleted    bool
	generation vms.Generation
	gaps       map[vms.GapID]vms.Gap
	idle       []vms.TimeRange // the last one may have no end
	modes      []nvr.ModeChange
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
	s.hubs[h.ID] = &hub{Hub: h, code: &code, expires: expires}
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
		h.raise(now)
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

// UpdateHub implements nvr.Store.
func (s *Store) UpdateHub(_ context.Context, acct vms.AccountID, id vms.HubID, now time.Time, change func(*nvr.Hub) error) (nvr.Hub, error) {
	if err := s.lock(); err != nil {
		return nvr.Hub{}, err
	}
	defer s.mu.Unlock()
	h := s.hubs[id]
	if h == nil || h.Account != acct || !h.RevokedAt.IsZero() {
		return nvr.Hub{}, vms.ErrNotFound
	}
	after := h.Hub
	if err := change(&after); err != nil {
		return nvr.Hub{}, err
	}
	revision, modes := nvr.HubEffectsOf(h.Hub, after)
	h.Name, h.TimeZone, h.Zone, h.Limits = after.Name, after.TimeZone, after.Zone, after.Limits
	if revision {
		h.raise(now)
	}
	for _, c := range s.channels {
		if modes && c.Hub == id && !c.deleted {
			s.putMode(c, now)
		}
	}
	return h.Hub, nil
}

// DesiredChannels implements nvr.Store.
func (s *Store) DesiredChannels(_ context.Context, id vms.HubID) (nvr.Hub, []nvr.ChannelRow, error) {
	if err := s.lock(); err != nil {
		return nvr.Hub{}, nil, err
	}
	defer s.mu.Unlock()
	h := s.hubs[id]
	if h == nil {
		return nvr.Hub{}, nil, vms.ErrNotFound
	}
	return h.Hub, pageOf(s.rows(func(c *channel) bool { return c.Hub == id }), rowCursor, nvr.Cursor{}, len(s.channels)), nil
}

// DirtyHubs implements nvr.Store.
func (s *Store) DirtyHubs(context.Context) (ids []vms.HubID, err error) {
	if err := s.lock(); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	for id, h := range s.hubs {
		if h.Revision > h.published && (len(h.PublicKey) > 0 || !h.RevokedAt.IsZero()) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// AllHubs implements nvr.Store.
func (s *Store) AllHubs(context.Context) (ids []vms.HubID, err error) {
	if err := s.lock(); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	for id, h := range s.hubs {
		if len(h.PublicKey) > 0 {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// Published implements nvr.Store.
func (s *Store) Published(_ context.Context, id vms.HubID, revision int64) error {
	if err := s.lock(); err != nil {
		return err
	}
	defer s.mu.Unlock()
	if h := s.hubs[id]; h != nil {
		h.published = max(h.published, revision)
	}
	return nil
}

// RaiseRevision implements nvr.Store.
func (s *Store) RaiseRevision(_ context.Context, id vms.HubID, seen int64, now time.Time) (bool, error) {
	if err := s.lock(); err != nil {
		return false, err
	}
	defer s.mu.Unlock()
	h := s.hubs[id]
	if h == nil || h.Revision >= seen {
		return false, nil
	}
	h.Revision = seen
	h.raise(now)
	return true, nil
}

// follow does what a change of a channel means for the rest.
func (s *Store) follow(before nvr.ChannelRow, c *channel, now time.Time) {
	e := nvr.EffectsOf(before, c.ChannelRow)
	for _, id := range e.Hubs {
		s.hubs[id].raise(now)
	}
	if e.Stopped {
		c.StoppedRevision = 0
		if h := s.hubs[c.Hub]; h != nil {
			c.StoppedRevision = h.Revision
		}
	}
	if x := s.sessions[e.End]; x != nil && x.State == nvr.SessionOpen {
		x.State = nvr.SessionEnded
	}
	if e.Open != "" {
		s.sessions[e.Open] = &nvr.Session{SID: e.Open, Account: c.Account, Channel: c.ID, Hub: c.Hub, State: nvr.SessionOpen, CreatedAt: now}
	}
	if e.BeginIdle || e.EndIdle {
		c.setIdle(e.BeginIdle, now)
	}
	if e.Mode {
		s.putMode(c, now)
	}
}

// putMode goes on with the history of a channel's modes.
func (s *Store) putMode(c *channel, now time.Time) {
	m := nvr.ModeChange{Since: now, Mode: c.Mode, Schedule: c.Schedule}
	if h := s.hubs[c.Hub]; h != nil {
		m.TimeZone = h.TimeZone
	}
	c.modes = slices.DeleteFunc(c.modes, func(o nvr.ModeChange) bool { return o.Since.Equal(now) })
	c.modes = append(c.modes, m)
}

// Modes implements nvr.Store.
func (s *Store) Modes(_ context.Context, id vms.ChannelID, from, to time.Time) (out []nvr.ModeChange, err error) {
	if err := s.lock(); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	if c := s.live(id); c != nil {
		for i, m := range c.modes {
			over := i+1 < len(c.modes) && !c.modes[i+1].Since.After(from)
			if m.Since.Before(to) && !over {
				out = append(out, m)
			}
		}
	}
	return out, nil
}

// Transient implements nvr.Store.
func (s *Store) Transient(context.Context) ([]nvr.ChannelRow, error) {
	if err := s.lock(); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	return s.rows(func(c *channel) bool {
		return c.Wanted && (c.WantedBy == nvr.WantedByViewer || !c.WantedUntil.IsZero())
	}), nil
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
	h.raise(now)
	for _, c := range s.channels {
		if c.Hub == id {
			c.Hub, c.SID, c.StoppedRevision = "", "", 0
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
	s.follow(nvr.ChannelRow{}, s.channels[c.ID], c.CreatedAt)
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

// UpdateChannel implements nvr.Store.
func (s *Store) UpdateChannel(_ context.Context, acct vms.AccountID, id vms.ChannelID, now time.Time, change func(*nvr.ChannelRow) error) (nvr.ChannelRow, error) {
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
	before := c.ChannelRow
	c.ChannelRow = row
	s.follow(before, c, now)
	return c.ChannelRow, nil
}

// DeleteChannel implements nvr.Store.
func (s *Store) DeleteChannel(_ context.Context, acct vms.AccountID, id vms.ChannelID, now time.Time) ([]vms.SID, error) {
	if err := s.lock(); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	c := s.live(id)
	if c == nil || c.Account != acct {
		return nil, vms.ErrNotFound
	}
	if h := s.hubs[c.Hub]; h != nil {
		h.raise(now)
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
	if c := s.live(id); c != nil {
		c.setIdle(idle, at)
	}
	return nil
}

func (c *channel) setIdle(idle bool, at time.Time) {
	k := len(c.idle) - 1
	is := k >= 0 && c.idle[k].End.IsZero()
	switch {
	case idle && !is:
		c.idle = append(c.idle, vms.TimeRange{Start: at})
	case !idle && is:
		c.idle[k].End = at
	}
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

// RevokeSession revokes a session behind the NVR's back.
func (s *Store) RevokeSession(sid vms.SID) error {
	if err := s.lock(); err != nil {
		return err
	}
	defer s.mu.Unlock()
	x := s.sessions[sid]
	if x == nil {
		return vms.ErrNotFound
	}
	x.State = nvr.SessionRevoked
	return nil
}

// NextGenerations implements nvr.Store.
func (s *Store) NextGenerations(_ context.Context, sids []vms.SID) ([]vms.Generation, error) {
	if err := s.lock(); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	gens := make([]vms.Generation, len(sids))
	for i, sid := range sids {
		x := s.sessions[sid]
		if x == nil || x.State == nvr.SessionRevoked {
			continue
		}
		c := s.live(x.Channel)
		c.generation++
		x.Generation = c.generation
		gens[i] = c.generation
	}
	return gens, nil
}

// pageOf sorts, and cuts what stands after the cursor to limit.
func pageOf[T any](all []T, at func(T) nvr.Cursor, after nvr.Cursor, limit int) []T {
	order := func(a, b nvr.Cursor) int { return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.ID, b.ID)) }
	all = slices.DeleteFunc(all, func(v T) bool { return after != (nvr.Cursor{}) && order(at(v), after) <= 0 })
	slices.SortFunc(all, func(a, b T) int { return order(at(a), at(b)) })
	return all[:min(len(all), limit)]
}
