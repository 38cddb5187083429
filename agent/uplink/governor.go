package uplink

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zipato/vms/pkg/retry"
	"github.com/zipato/vms/pkg/vms"
)

const (
	// DefaultShare is how much of the measured uplink backfill takes; the rest is
	// for the household.
	DefaultShare = 0.75
	// largestPiece is how much of a backfill chunk is written at once: what is in
	// a socket can no longer wait for live. Live's pieces are smaller, so that a
	// ping gets between them.
	largestPiece = 16 << 10
	livePiece    = 8 << 10
	// smallestPiece keeps the overhead of a WebSocket frame (14 bytes) small.
	smallestPiece = 1 << 10
	// activeFor is how long backfill counts as active after its last piece.
	activeFor = 2 * time.Second
	// nap is how long backfill sleeps at most before it looks at the rates again.
	nap = 50 * time.Millisecond
)

// GovernorConfig is what an operator chooses.
type GovernorConfig struct {
	// Schedule limits all that the hub sends over its lanes, live included.
	Schedule Schedule
	// Share is how much of the measured uplink backfill may take, above 0 and at
	// most 1; 0 is DefaultShare.
	Share float64
}

// Governor shares the uplink out among all lanes of a hub. Live goes first: it
// waits for the schedule only. Backfill gets what live leaves, and at most its
// share of what the uplink was measured to carry (control). A nil Governor
// limits nothing.
type Governor struct {
	schedule atomic.Pointer[Schedule]

	// Whoever waits for its bytes has the turn of its lane: first come, first
	// served, a piece at a time.
	liveTurn, backfillTurn chan struct{}

	mu       sync.Mutex
	control  control
	flows    map[*flow]bool
	waiting  int    // live pieces that wait for the schedule
	total    bucket // by the schedule
	link     bucket // what the uplink carries of live and backfill together
	own      bucket // what backfill may send
	floor    bucket // what backfill may send whatever happens
	lastTake time.Time
	begins   chan struct{} // closed when backfill begins
	sent     int64         // bytes that sockets have taken
}

// GovernorStats are its figures; rates in bytes/s.
type GovernorStats struct {
	Cap      int64         // of the schedule now; 0: none
	Uplink   int64         // as measured; 0: not yet
	Backfill int64         // what backfill may send now, when live leaves it
	Delay    time.Duration // how long bytes wait in the uplink's queue now
	Sent     int64         // bytes since the start
}

// NewGovernor returns the governor of a hub.
func NewGovernor(cfg GovernorConfig) *Governor {
	if cfg.Share <= 0 || cfg.Share > 1 {
		cfg.Share = DefaultShare
	}
	g := &Governor{
		liveTurn: make(chan struct{}, 1), backfillTurn: make(chan struct{}, 1),
		control: control{share: cfg.Share}, flows: make(map[*flow]bool), begins: make(chan struct{}),
	}
	g.SetSchedule(cfg.Schedule)
	return g
}

// SetSchedule limits what is sent from now on by another schedule.
func (g *Governor) SetSchedule(s Schedule) { g.schedule.Store(&s) }

// Stats returns the figures.
func (g *Governor) Stats() GovernorStats {
	if g == nil {
		return GovernorStats{}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	own, _, floor := g.control.limits()
	return GovernorStats{
		Cap: g.schedule.Load().At(now), Uplink: int64(g.control.capacity), Backfill: int64(max(own, floor)),
		Delay: g.view(now).delay, Sent: g.sent,
	}
}

// bucket fills at a rate; whoever takes from it may overdraw it and is waited for.
type bucket struct {
	level float64
	at    time.Time
}

// fill adds what came since the last time. It never holds more than 20 ms of
// rate (or two pieces), so that no burst is saved up, and never owes more than a
// second.
func (b *bucket) fill(now time.Time, rate float64) {
	b.level = min(b.level+rate*now.Sub(b.at).Seconds(), max(rate/50, 2*smallestPiece))
	b.level = max(b.level, min(-rate, -largestPiece))
	b.at = now
}

// wait is how long it takes until there is something again.
func (b *bucket) wait(rate float64) time.Duration {
	if b.level > 0 {
		return 0
	}
	if rate <= 0 {
		return nap
	}
	return time.Duration(-b.level/rate*float64(time.Second)) + time.Millisecond
}

// flow is one connection of a lane, as the governor sees it.
type flow struct {
	g    *Governor
	live bool
	sight
}

// join takes a new connection in, until it leaves.
func (g *Governor) join(kind vms.Lane) *flow {
	f := &flow{g: g, live: kind == vms.LaneLive}
	if g != nil {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.flows[f] = true
	}
	return f
}

func (f *flow) leave() {
	if f.g != nil {
		f.g.mu.Lock()
		defer f.g.mu.Unlock()
		delete(f.g.flows, f)
	}
}

// piece is how many bytes to write at once: about 30 ms of what is allowed.
func (f *flow) piece() int {
	most := largestPiece
	if f.live {
		most = livePiece
	}
	if f.g == nil {
		return most
	}
	f.g.mu.Lock()
	defer f.g.mu.Unlock()
	rate := float64(f.g.schedule.Load().At(time.Now()))
	if !f.live {
		own, _, floor := f.g.control.limits()
		if own = max(own, floor); rate == 0 || own < rate {
			rate = own
		}
	}
	if rate == 0 {
		return most
	}
	return int(min(max(rate*0.03, smallestPiece), float64(most)))
}

// take waits until n more bytes may be written.
func (f *flow) take(ctx context.Context, n int) error {
	g := f.g
	if g == nil {
		return ctx.Err()
	}
	turn, try := g.backfillTurn, g.tryBackfill
	if f.live {
		turn, try = g.liveTurn, g.tryLive
		if g.schedule.Load().At(time.Now()) == 0 {
			try(n, false)
			return ctx.Err()
		}
	}
	select {
	case turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-turn }()
	for again := false; ; again = true {
		wait := try(n, again)
		if wait <= 0 {
			return nil
		}
		if !retry.Sleep(ctx, min(wait, nap)) {
			g.giveUp(f.live)
			return ctx.Err()
		}
	}
}

// giveUp: who waited is gone.
func (g *Governor) giveUp(live bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if live {
		g.waiting = 0
	}
}

// tryLive takes n bytes, or returns how long to wait. Live waits for the
// schedule, and backfill for live.
func (g *Governor) tryLive(n int, _ bool) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if limit := float64(g.schedule.Load().At(now)); limit > 0 {
		g.total.fill(now, limit)
		if wait := g.total.wait(limit); wait > 0 {
			g.waiting = 1
			return wait
		}
		g.total.level -= float64(n)
	}
	g.waiting = 0
	g.link.level -= float64(n)
	return 0
}

// tryBackfill takes n bytes, or returns how long to wait.
func (g *Governor) tryBackfill(n int, again bool) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if pause := now.Sub(g.lastTake); pause > activeFor {
		close(g.begins)
		g.begins = make(chan struct{})
		if pause > restart {
			g.control.begin(now)
		}
	}
	if again {
		g.control.paced += now.Sub(g.lastTake)
	}
	g.lastTake = now
	g.control.step(now, g.view(now), g.sent)
	own, total, floor := g.control.limits()
	limit := float64(g.schedule.Load().At(now))
	g.own.fill(now, own)
	g.floor.fill(now, floor)
	wait := g.own.wait(own)
	if total > 0 {
		g.link.fill(now, total)
		wait = max(wait, g.link.wait(total))
	}
	if limit > 0 {
		g.total.fill(now, limit)
		wait = max(wait, g.total.wait(limit))
		if g.waiting > 0 {
			wait = max(wait, time.Millisecond)
		}
	}
	if wait = min(wait, g.floor.wait(floor)); wait > 0 {
		return wait
	}
	for _, b := range []*bucket{&g.own, &g.link, &g.total} {
		b.level -= float64(n)
	}
	g.floor.level = max(g.floor.level, 0) - float64(n)
	g.control.moved += int64(n)
	return 0
}

// wrote notes bytes that the socket has taken.
func (f *flow) wrote(n int) {
	if f.g != nil {
		f.g.mu.Lock()
		defer f.g.mu.Unlock()
		f.g.sent += int64(n)
	}
}

// active reports whether backfill is under way: then live is watched closely.
// Else the channel is closed when it begins.
func (f *flow) active() (bool, <-chan struct{}) {
	if f.g == nil {
		return false, nil
	}
	f.g.mu.Lock()
	defer f.g.mu.Unlock()
	if time.Since(f.g.lastTake) < activeFor {
		return true, nil
	}
	return false, f.g.begins
}

// pinged notes that a ping goes, behind all that was sent so far; ponged that it
// was answered, or never will be.
func (f *flow) pinged() (sent int64) {
	if f.g == nil {
		return 0
	}
	f.g.mu.Lock()
	defer f.g.mu.Unlock()
	f.sight.out = time.Now()
	return f.g.sent
}

func (f *flow) ponged(sent int64, rtt time.Duration, answered bool) {
	if f.g == nil {
		return
	}
	f.g.mu.Lock()
	defer f.g.mu.Unlock()
	f.sight.out = time.Time{}
	if answered {
		f.sight.pong(time.Now(), sent, rtt)
	}
}

// behind notes how far live lags, and whether it sends previews.
func (f *flow) behind(lag time.Duration, preview bool) {
	if f.g == nil {
		return
	}
	f.g.mu.Lock()
	defer f.g.mu.Unlock()
	f.sight.behind(time.Now(), lag, preview)
}

// view puts together what the flows see. g.mu is held.
func (g *Governor) view(now time.Time) view {
	var v view
	// The queue of the uplink is seen by all; what only some see is their own.
	// Backfill's own pings count when no live lane is there.
	for _, live := range []bool{true, false} {
		for f := range g.flows {
			if f.live != live {
				continue
			}
			delay, rtt, ok := f.sight.delay(now)
			if ok && (!v.seen || delay < v.delay) {
				v.seen, v.delay = true, delay
			}
			if ok {
				v.rtt = max(v.rtt, rtt)
				v.delivered = max(v.delivered, f.sight.delivered(now))
			}
			v.blind = v.blind || live && f.sight.silent(now)
			v.lagging = v.lagging || f.sight.lagging(now)
			v.starved = v.starved || f.sight.starved(now)
		}
		if v.seen {
			break
		}
	}
	return v
}
