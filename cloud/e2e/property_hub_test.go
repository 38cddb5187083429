package e2e

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing/synctest"
	"time"

	"github.com/zipato/vms/agent/spool"
	"github.com/zipato/vms/agent/uplink"
	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// simFacts is the hub's small state, which outlives its crashes.
type simFacts struct {
	mu   sync.Mutex
	gaps map[vms.ChannelID]map[vms.GapID]vms.Gap
}

// simFactsOf is it as one run of the agent sees it.
type simFactsOf struct {
	*simFacts
	boot *simBoot
}

func (f simFactsOf) Gaps(ch vms.ChannelID) ([]vms.Gap, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.SortedFunc(maps.Values(f.gaps[ch]), func(a, b vms.Gap) int { return a.Start.Compare(b.Start) }), nil
}

func (f simFactsOf) PutGaps(ch vms.ChannelID, gaps []vms.Gap) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.boot.crashed {
		return errSimulated
	}
	if f.gaps[ch] == nil {
		f.gaps[ch] = make(map[vms.GapID]vms.Gap)
	}
	for _, g := range gaps {
		if g.Chunks != nil {
			r := *g.Chunks
			g.Chunks = &r
		}
		f.gaps[ch][g.ID] = g
	}
	return nil
}

func (f simFactsOf) DropGaps(ch vms.ChannelID, ids []vms.GapID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.boot.crashed {
		return errSimulated
	}
	for _, id := range ids {
		delete(f.gaps[ch], id)
	}
	return nil
}

func (simFactsOf) FlashWritten(string, int64) error { return nil }

// simHub is the hub across the runs of its agent.
type simHub struct {
	w     *world
	facts simFacts
	boots int
	boot  *simBoot // nil: it is off
}

// simBoot is one run of the agent.
type simBoot struct {
	hub     *simHub
	n       int
	dir     string // of flash; empty: none
	crashed bool   // under facts.mu
	store   *spool.Store
	streams []*simStream

	stopStore, stopLanes context.CancelFunc
	storeWait, laneWait  sync.WaitGroup
}

// simStream is what package stream does, without a camera and a real session.
type simStream struct {
	boot     *simBoot
	ch       vms.ChannelID
	spool    *spool.Spool
	assigned *uplink.Assigned
	wants    chan wire.WantWorker

	mu       sync.Mutex
	received time.Time
	worker   vms.WorkerID // assigned
	liveUp   bool
	sessUp   time.Time // since when there is a session; zero: there is none
}

// simSource is the spool as a lane sees it.
type simSource struct {
	*spool.Spool
	log *slog.Logger
}

func (s simSource) Live(worker vms.Instance, have []vms.ChunkRange) uplink.Cursor {
	return s.cursor("live", have, s.Spool.Live(worker, have))
}

func (s simSource) Backfill(worker vms.Instance, have []vms.ChunkRange, newestFirst bool) uplink.Cursor {
	return s.cursor("backfill", have, s.Spool.Backfill(worker, have, newestFirst))
}

func (s simSource) cursor(kind string, have []vms.ChunkRange, c *spool.Cursor) uplink.Cursor {
	if !propertyLog {
		return simCursor{c, s, nil}
	}
	n := new(simHanded)
	n.id = fmt.Sprintf("%s-%p", kind, c)
	s.log.Debug("cursor", "id", n.id, "have", have)
	return simCursor{c, s, n}
}

// simCursor notes what is handed out, when somebody wants to read that.
type simCursor struct {
	*spool.Cursor
	s simSource
	n *simHanded
}

type simHanded struct {
	id          string
	first, last *vms.Chunk
}

func (c simCursor) flush() {
	if f := c.n.first; f != nil {
		c.s.log.Debug("handed out", "id", c.n.id, "from", fmt.Sprintf("%s:%d %b", f.Epoch, f.Seq, f.Flags), "to", c.n.last.Seq)
	}
	c.n.first = nil
}

func (c simCursor) Next(ctx context.Context) (wire.Outgoing, error) {
	o, err := c.Cursor.Next(ctx)
	if c.n == nil {
		return o, err
	}
	const kinds = vms.FlagPreview | vms.FlagFirst
	if o.Chunk == nil || c.n.first == nil || o.Chunk.Epoch != c.n.last.Epoch || o.Chunk.Seq != c.n.last.Seq+1 || o.Chunk.Flags&kinds != c.n.last.Flags&kinds {
		c.flush()
		c.n.first = o.Chunk
	}
	c.n.last = o.Chunk
	switch {
	case err != nil:
		c.s.log.Debug("handed out", "id", c.n.id, "err", err)
	case o.Gap != nil:
		c.s.log.Debug("handed out", "id", c.n.id, "gap", fmt.Sprintf("%+v", *o.Gap))
	case o.End != nil:
		c.s.log.Debug("handed out", "id", c.n.id, "end", fmt.Sprintf("%+v", *o.End))
	}
	return o, err
}

func (c simCursor) Close() {
	if c.n != nil {
		c.flush()
		c.s.log.Debug("closed", "id", c.n.id)
	}
	c.Cursor.Close()
}

func (c simCursor) HandOver(worker vms.Instance, have []vms.ChunkRange) uplink.Cursor {
	return c.s.cursor("heir", have, c.Cursor.HandOver(worker, have))
}

// start begins a run of the agent.
func (h *simHub) start() {
	if h.boot != nil {
		return
	}
	h.boots++
	p := h.w.profile
	b := &simBoot{hub: h, n: h.boots}
	if p.flash > 0 {
		b.dir = filepath.Join(h.w.dir, "flash-"+strconv.Itoa(h.boots))
		if h.boots > 1 {
			if err := os.Rename(filepath.Join(h.w.dir, "flash-kept"), b.dir); err != nil && !errors.Is(err, os.ErrNotExist) {
				panic(err)
			}
		}
	}
	cfg := spool.Config{RAM: p.ram, Dir: b.dir, Flash: p.flash, FileBytes: p.fileBytes, BatchBytes: p.batchBytes,
		Policy: p.policy, Facts: simFactsOf{&h.facts, b}, Log: h.w.log.logger("spool")}
	var err error
	if b.store, err = spool.Open(cfg); err != nil {
		h.w.violation("boot %d: spool.Open: %v", b.n, err)
		return
	}
	h.boot = b
	sctx, stopStore := context.WithCancel(context.Background())
	lctx, stopLanes := context.WithCancel(context.Background())
	b.stopStore, b.stopLanes = stopStore, stopLanes
	b.storeWait.Go(func() {
		if err := b.store.Run(sctx); err != nil {
			h.w.violation("boot %d: Store.Run = %v", b.n, err)
		}
	})
	var gov *uplink.Governor
	if p.governed {
		schedule, err := uplink.ParseSchedule(p.schedule, nil)
		if err != nil {
			panic(err)
		}
		gov = uplink.NewGovernor(uplink.GovernorConfig{Schedule: schedule})
	}
	for _, cam := range h.w.cameras {
		s := &simStream{boot: b, ch: cam.ch, spool: b.store.Spool(cam.ch), assigned: uplink.NewAssigned(), wants: make(chan wire.WantWorker, 16)}
		b.streams = append(b.streams, s)
		for _, kind := range []vms.Lane{vms.LaneLive, vms.LaneBackfill} {
			l := s.lane(kind, gov)
			b.laneWait.Go(func() {
				if err := l.Run(lctx); err != nil {
					h.w.violation("boot %d: lane %s of %s: Run = %v", b.n, kind, s.ch, err)
				}
			})
		}
		b.laneWait.Go(func() { s.session(lctx) })
	}
	h.w.afterBoot(b)
	for i, cam := range h.w.cameras {
		cam.attach(b.streams[i].spool, b.n)
	}
}

func (s *simStream) lane(kind vms.Lane, gov *uplink.Governor) *uplink.Lane {
	w := s.boot.hub.w
	return &uplink.Lane{
		Kind: kind, NewestFirst: w.profile.newestFirst, Agent: "simulated", Source: simSource{s.spool, w.log.logger(string(s.ch))}, Assigned: s.assigned,
		Governor: gov, Client: http.DefaultClient, Log: w.log.logger("agent").With("lane", kind), Pressure: s.boot.store.Pressure,
		WantWorker: func(m wire.WantWorker) {
			select {
			case s.wants <- m:
			default: // as a session that is down: it asks again
			}
		},
		OnState: func(err error) {
			if kind == vms.LaneLive {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.liveUp = err == nil
			}
		},
		OnWatched: func(bool) {},
		OnReceived: func(end time.Time) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if end.After(s.received) {
				s.received = end
			}
		},
	}
}

// stop ends the run in order: SIGTERM.
func (h *simHub) stop() {
	b := h.boot
	if b == nil {
		return
	}
	h.boot = nil
	for _, cam := range h.w.cameras {
		cam.detach(true)
	}
	b.endLanes()
	before := h.w.held(b)
	b.stopStore()
	if !h.w.within(time.Minute, &b.storeWait) {
		h.w.violation("boot %d: Store.Run does not end", b.n)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := b.store.Flush(ctx); err != nil {
		h.w.violation("boot %d: Flush = %v", b.n, err)
	}
	if err := b.store.Close(); err != nil {
		h.w.violation("boot %d: Close = %v", b.n, err)
	}
	h.w.afterStop(b, before)
	h.keep(b, false)
}

// crash ends the run at any moment: what is on flash stays, as it is.
func (h *simHub) crash() {
	b := h.boot
	if b == nil {
		return
	}
	h.boot = nil
	synctest.Wait()
	for _, cam := range h.w.cameras {
		cam.detach(false)
	}
	h.facts.mu.Lock()
	b.crashed = true
	h.facts.mu.Unlock()
	h.keep(b, true)
	noticed := h.w.chance(2)
	for _, wk := range h.w.workers {
		wk.net.bar(true)
		wk.net.cut(!noticed)
	}
	b.endLanes()
	for _, wk := range h.w.workers {
		wk.net.bar(false)
	}
	b.stopStore()
	if !h.w.within(time.Minute, &b.storeWait) {
		h.w.violation("boot %d: Store.Run does not end", b.n)
	}
	_ = b.store.Close()
	if b.dir != "" {
		os.RemoveAll(b.dir)
	}
	h.w.afterCrash(b)
}

// keep puts the flash away for the next run.
func (h *simHub) keep(b *simBoot, copied bool) {
	if b.dir == "" {
		return
	}
	kept := filepath.Join(h.w.dir, "flash-kept")
	if !copied {
		if err := os.Rename(b.dir, kept); err != nil && !errors.Is(err, os.ErrNotExist) {
			panic(err)
		}
		return
	}
	if _, err := os.Stat(b.dir); err != nil {
		return
	}
	if err := os.CopyFS(kept, os.DirFS(b.dir)); err != nil {
		panic(err)
	}
}

func (b *simBoot) endLanes() {
	b.stopLanes()
	if !b.hub.w.within(2*time.Minute, &b.laneWait) {
		b.hub.w.violation("boot %d: lanes do not end", b.n)
	}
}

// ask is for a move that nothing but the NVR's own reasons call for.
func (s *simStream) ask() {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case s.wants <- wire.WantWorker{Instance: s.boot.hub.w.cloud.instanceOf(s.worker), Why: "moved"}:
	default:
	}
}

// simSession is one connection to the NVR, as its StreamLink.
type simSession struct {
	queue chan wire.SessionMessage
	gone  chan struct{}
	once  sync.Once
}

func (s *simSession) Send(m wire.SessionMessage) {
	select {
	case <-s.gone:
	case s.queue <- m:
	default:
		s.cut() // a session that cannot take a message is broken
	}
}

func (s *simSession) Revoke(string) { s.cut() }
func (s *simSession) Replace()      { s.cut() }
func (s *simSession) cut()          { s.once.Do(func() { close(s.gone) }) }

// session keeps the stream's session with the NVR up, until ctx ends.
func (s *simStream) session(ctx context.Context) {
	w := s.boot.hub.w
	for ctx.Err() == nil {
		err := s.connected(ctx)
		s.mu.Lock()
		s.sessUp = time.Time{}
		s.mu.Unlock()
		w.log.logger("session").Debug("session over", "channel", s.ch, "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(500*time.Millisecond + w.upTo(3*time.Second)):
		}
	}
}

func (s *simStream) connected(ctx context.Context) error {
	w := s.boot.hub.w
	n, err := w.cloud.reach()
	if err != nil || w.noSession.Load() {
		return errSimulated
	}
	row, err := w.cloud.store.Session(ctx, w.cloud.sids[s.ch])
	if err != nil {
		return err
	}
	link := &simSession{queue: make(chan wire.SessionMessage, 256), gone: make(chan struct{})}
	w.cloud.mu.Lock()
	w.cloud.sessions[link] = true
	w.cloud.mu.Unlock()
	defer func() {
		w.cloud.mu.Lock()
		delete(w.cloud.sessions, link)
		w.cloud.mu.Unlock()
		link.cut()
	}()
	cam := w.camera(s.ch)
	cam.mu.Lock()
	epoch := cam.epoch
	cam.mu.Unlock()
	defer n.Detach(row, link)
	a, err := n.Assign(ctx, row, &wire.SessionHello{Agent: "simulated", Boot: strconv.Itoa(s.boot.n), Epoch: epoch, Holding: s.spool.Holding()}, link)
	if err != nil {
		return err
	}
	if a != nil {
		link.Send(a)
	}
	s.spool.Resend()
	s.mu.Lock()
	s.sessUp = time.Now()
	s.mu.Unlock()
	if err := s.sendGaps(ctx, n, row, link); err != nil {
		return err
	}
	report := time.NewTicker(5 * time.Second)
	defer report.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-link.gone:
			return errSimulated
		case m := <-link.queue:
			if err := s.message(ctx, m, n, row, link); err != nil {
				return err
			}
		case m := <-s.wants:
			a, err := n.WantWorker(ctx, row, &m, link)
			if err != nil {
				return err
			}
			if a != nil {
				link.Send(a)
			}
		case <-report.C:
			if err := s.sendGaps(ctx, n, row, link); err != nil {
				return err
			}
			st := s.spool.Stats()
			d, err := n.Holding(ctx, row, &wire.Holding{Ranges: s.spool.Holding(), RAM: st.RAM, Flash: st.Flash})
			if err != nil {
				return err
			}
			if d != nil {
				link.Send(d)
			}
		}
	}
}

func (s *simStream) message(ctx context.Context, m wire.SessionMessage, n *nvr.NVR, row nvr.Session, link *simSession) error {
	switch m := m.(type) {
	case *wire.Assign:
		s.spool.Durable(m.Durable)
		s.assigned.Put(m)
		s.mu.Lock()
		s.worker = m.Worker
		s.mu.Unlock()
	case *wire.Durable:
		s.spool.Durable(m.Ranges)
	case *wire.Committed:
		s.spool.Committed(m.IDs)
		return s.sendGaps(ctx, n, row, link)
	}
	return nil
}

func (s *simStream) sendGaps(ctx context.Context, n *nvr.NVR, row nvr.Session, link *simSession) error {
	for {
		gaps := s.spool.Gaps(wire.MaxGaps)
		if len(gaps) == 0 {
			return nil
		}
		for i := range gaps { // they go over a wire
			if gaps[i].Chunks != nil {
				r := *gaps[i].Chunks
				gaps[i].Chunks = &r
			}
		}
		c, err := n.Gaps(ctx, row, &wire.Gaps{Gaps: gaps})
		if err != nil {
			return err
		}
		link.Send(c)
	}
}
