package uplink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/zipato/vms/pkg/problem"
	"github.com/zipato/vms/pkg/retry"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

const (
	// stalled: a durable mark that stands still for so long with nothing holding
	// it is a reason to ask for another worker.
	stalled = 3 * time.Minute
	// unreachable: so many dials in a row failed; perhaps another worker answers.
	unreachable = 3
	// askAgain is how long one request for another worker stands for both lanes.
	askAgain = 10 * time.Second
	// spread is the time over which the lanes of a worker that is gone come to
	// others: those of all hubs hear of it in one moment.
	spread = 300 * time.Millisecond
	// maxGone bounds the workers that are remembered as gone, far more than a lane
	// has connections to.
	maxGone = 16
)

// ErrIdle is told to OnState when a backfill lane closed because nothing is left
// for it to bring.
var ErrIdle = errors.New("nothing is left to bring")

// Source is where the lanes of a stream get their chunks from, and whom they
// tell of them.
type Source interface {
	// Live returns the cursor of the live lane, Backfill that of the backfill
	// lane, for a connection to a worker that has the chunks in have. There is one
	// of each at a time: the last was closed, or handed over.
	Live(worker vms.Instance, have []vms.ChunkRange) Cursor
	Backfill(worker vms.Instance, have []vms.ChunkRange, newestFirst bool) Cursor
	// BackfillWanted reports whether something is held that is backfill's to
	// bring, sent and not durable included. The channel is closed when that, or
	// what there is to hand out, may have changed.
	BackfillWanted() (bool, <-chan struct{})
	Init(e vms.Epoch, id uint32) (vms.Init, bool)
	Durable([]vms.ChunkRange)
	Skip(e vms.Epoch, seq uint64)
	Epochs() []vms.Epoch
}

// Cursor hands out what a lane sends, in order. Behind and HandOver may be
// called beside Next.
type Cursor interface {
	// Next waits for what follows. io.EOF: a backfill cursor has handed out all
	// there is, and may be asked again after a change; a live cursor was handed
	// over and is at its end.
	Next(ctx context.Context) (wire.Outgoing, error)
	// Behind is what is held and not handed out yet, and how old it is.
	Behind() (bytes int64, lag time.Duration)
	// HandOver makes a live cursor end before the next chunk that begins a
	// recording, and returns the one that begins there.
	HandOver(worker vms.Instance, have []vms.ChunkRange) Cursor
	// Received is told which of the chunks that were handed out the worker has
	// taken. It may be called beside Next, too.
	Received([]vms.ChunkRange)
	// Close says that the connection is gone.
	Close()
}

// Lane pushes one stream to its worker. Fill in the fields, then call Run once.
// The two lanes of a stream share Source and Assigned, all lanes of a hub the
// Governor.
type Lane struct {
	Kind vms.Lane
	// NewestFirst makes a backfill lane begin with the newest recording.
	NewestFirst bool
	Agent       string // name and version
	Source      Source
	Assigned    *Assigned
	Governor    *Governor // nil: no limits
	Log         *slog.Logger
	// Pressure reports whether the hub's buffer is nearly full; nil: never. It is
	// told to the worker over the live lane, and over backfill while live is down.
	Pressure func() (wire.Pressure, bool)
	// WantWorker asks the NVR for another worker. It must not block.
	WantWorker func(wire.WantWorker)
	// OnState is told when the lane is up (nil) and when it is lost (why; ErrIdle
	// when backfill is done).
	OnState func(error)
	// OnWatched is told whether somebody looks at the live picture.
	OnWatched func(bool)
	// OnReceived is told the end of the newest footage among the chunks that an
	// acknowledgement calls received; previews are none. nil: nobody asks.
	OnReceived func(end time.Time)

	// Client dials; nil: one that gives up a link that is down soon.
	Client *http.Client

	mu    sync.Mutex
	conns []*laneConn // that run, the youngest last

	// Of the goroutine in Run.
	pace     pace
	failures int          // dials in a row that brought no connection
	welcomed *wire.Assign // with which the lane was welcomed last; nil: never,
	instance vms.Instance // by whom,
	resume   string       // and the ticket to come back to it
	retiring *laneConn    // it was moved away from, and waits for its last acknowledgements
	running  sync.WaitGroup
}

// Assigned holds the newest assignment of a stream, for both of its lanes. The
// zero value is not ready: use NewAssigned.
type Assigned struct {
	mu      sync.Mutex
	latest  *wire.Assign
	changed chan struct{}
	lost    []goneWorker // the newest last
	live    int          // connections of the live lane
	asked   vms.Generation
	askedAt time.Time
}

// goneWorker: what was opened to the worker before that generation leads nowhere.
type goneWorker struct {
	url    string
	before vms.Generation
}

// NewAssigned returns one that waits for its first assignment.
func NewAssigned() *Assigned { return &Assigned{changed: make(chan struct{})} }

// Put stores a, unless a newer generation is there.
func (a *Assigned) Put(as *wire.Assign) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.latest != nil {
		if as.Generation < a.latest.Generation {
			return
		}
		if as.Why == wire.WhyLost && as.Generation > a.latest.Generation {
			a.lost = append(a.lost, goneWorker{a.latest.WorkerURL, as.Generation})
			a.lost = a.lost[max(0, len(a.lost)-maxGone):]
		}
	}
	a.latest = as
	close(a.changed)
	a.changed = make(chan struct{})
}

// Latest returns the newest assignment, nil before the first, and a channel
// that is closed when there is another.
func (a *Assigned) Latest() (*wire.Assign, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.latest, a.changed
}

// gone reports whether the worker of as is gone since, whatever was assigned
// after that.
func (a *Assigned) gone(as *wire.Assign) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.ContainsFunc(a.lost, func(g goneWorker) bool { return g.url == as.WorkerURL && as.Generation < g.before })
}

// holds reports whether the worker of as is still the one to go to.
func (a *Assigned) holds(as *wire.Assign) bool {
	now, _ := a.Latest()
	return now.WorkerURL == as.WorkerURL && !a.gone(as)
}

// while returns a context that ends when as does not hold any more. The function
// must be called when it is not needed any more.
func (a *Assigned) while(ctx context.Context, as *wire.Assign) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	over := make(chan struct{})
	go func() {
		defer close(over)
		defer cancel()
		for {
			_, changed := a.Latest()
			if !a.holds(as) {
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-changed:
			}
		}
	}()
	return ctx, func() { cancel(); <-over }
}

// ask reports whether to ask for another worker than that of as: not when
// another was assigned already, nor when the other lane asked just now.
func (a *Assigned) ask(as *wire.Assign) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.latest.Generation > as.Generation || a.asked == as.Generation && time.Since(a.askedAt) < askAgain {
		return false
	}
	a.asked, a.askedAt = as.Generation, time.Now()
	return true
}

func (a *Assigned) liveUp(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.live += n
}

func (a *Assigned) liveDown() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.live == 0
}

// CloseError is how a worker ended a lane.
type CloseError struct{ wire.ErrorMessage }

func (e *CloseError) Error() string {
	return fmt.Sprintf("the worker closed the lane (%s, %s): %s", e.Class, e.Code, e.Message)
}

var (
	// errGone: the NVR says so.
	errGone = errors.New("the NVR says that the worker is gone")
	// errOvertaken: there is no need to go to that worker any more.
	errOvertaken = errors.New("another worker was assigned meanwhile")
)

// errBroken says why a lane lost its connection or could not open one, by which
// assignment, and how long it had it.
type errBroken struct {
	error
	as   *wire.Assign
	up   bool // there was a connection
	held time.Duration
}

func (e errBroken) Unwrap() error { return e.error }

// Run keeps the lane up until ctx ends (nil), or until the worker says that
// the channel is revoked (vms.ErrRevoked).
func (l *Lane) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer l.running.Wait()
	defer cancel()
	l.pace = newPace()
	var lost *wire.Assign // with which it did not work, last
	for {
		as, changed := l.ready(ctx)
		l.pace.wait(ctx, as != lost, changed)
		if ctx.Err() != nil {
			return nil
		}
		as, _ = l.Assigned.Latest()
		if as != lost && as.Why == wire.WhyLost {
			if !retry.Sleep(ctx, rand.N(spread)) {
				return nil
			}
			as, _ = l.Assigned.Latest()
		}
		err := l.runOnce(ctx, as)
		if ctx.Err() != nil {
			return nil
		}
		l.OnState(err)
		lost = err.as
		wait, final := l.lost(err)
		switch {
		case final != nil:
			return final
		case errors.Is(err, ErrIdle):
			l.Log.Info("the backlog is stored")
		default:
			l.Log.Warn("uplink lost", "lane", l.Kind, "worker", lost.Worker, "err", err, "wait", wait)
		}
	}
}

// ready waits for an assignment, and on the backfill lane for something to
// bring. It returns nil when ctx has ended.
func (l *Lane) ready(ctx context.Context) (*wire.Assign, <-chan struct{}) {
	for ctx.Err() == nil {
		as, changed := l.Assigned.Latest()
		wait := changed
		if as != nil {
			if l.Kind != vms.LaneBackfill {
				return as, changed
			}
			wanted, more := l.Source.BackfillWanted()
			if wanted {
				return as, changed
			}
			wait = more
		}
		select {
		case <-ctx.Done():
		case <-wait:
		}
	}
	return nil, nil
}

// runOnce has one connection, or one after the other as the NVR moves the
// stream, until it breaks, or its worker is gone.
func (l *Lane) runOnce(ctx context.Context, as *wire.Assign) *errBroken {
	c, err := l.open(ctx, as)
	if err != nil {
		return err
	}
	l.OnState(nil)
	l.start(ctx, c, l.cursor(c), nil)
	var failed *errBroken // the last move that did
	for {
		as, changed := l.Assigned.Latest()
		switch {
		case ctx.Err() != nil:
			<-c.done
			return c.broken()
		case l.gone(c, as):
			c.drop()
			<-c.done
			return &errBroken{errGone, c.as, true, time.Since(c.since)}
		case c.over():
			if c.isHanded() { // to a connection that is gone
				l.retire(c)
				return failed
			}
			<-c.done
			return c.broken()
		case as.WorkerURL == c.as.WorkerURL:
			c.as = as
			select {
			case <-c.released:
			case <-changed:
			}
		default:
			next, err := l.move(ctx, c, as)
			if next == nil {
				return err
			}
			if err != nil {
				failed = err
			}
			c = next
		}
	}
}

// gone reports whether c leads nowhere now that as is assigned: by its worker's
// being gone, or, when the NVR speaks of the one that the lane was about to go to
// from c, by c's silence: a line to the NVR that broke meanwhile may have hidden
// whom it means.
func (l *Lane) gone(c *laneConn, as *wire.Assign) bool {
	return l.Assigned.gone(c.as) || as.Why == wire.WhyLost && as.Generation > c.as.Generation && c.quiet()
}

// cursor makes the one of c.
func (l *Lane) cursor(c *laneConn) Cursor {
	if l.Kind == vms.LaneBackfill {
		return l.Source.Backfill(c.instance, c.have, l.NewestFirst)
	}
	return l.Source.Live(c.instance, c.have)
}

// Pushing names the worker instance that the lane's connection goes to, the
// new one while it moves; empty: there is none.
func (l *Lane) Pushing() vms.Instance {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range slices.Backward(l.conns) {
		if _, speaks := c.speaks(); speaks {
			return c.instance
		}
	}
	return ""
}

// tellWatched tells whether somebody looks on, at any worker that has the lane:
// while it moves, viewers are on their way.
func (l *Lane) tellWatched() {
	l.mu.Lock()
	on := slices.ContainsFunc(l.conns, func(c *laneConn) bool {
		watched, speaks := c.speaks()
		return watched && speaks
	})
	l.mu.Unlock()
	l.OnWatched(on)
}

// open dials the worker of as and is welcomed, unless as does not hold meanwhile.
func (l *Lane) open(ctx context.Context, as *wire.Assign) (*laneConn, *errBroken) {
	fail := func(err error) (*laneConn, *errBroken) { return nil, &errBroken{error: err, as: as} }
	ticket := as.Ticket
	if l.resume != "" && l.knows(as) {
		ticket = l.resume
	} else {
		l.resume = ""
	}
	valid, done := l.Assigned.while(ctx, as)
	defer done()
	var socket net.Conn
	conn, _, err := dial(withSocket(valid, &socket), l.Client, as.WorkerURL, wire.PushProtocol, http.Header{"Authorization": {"Bearer " + ticket}})
	if err != nil {
		if valid.Err() != nil {
			return fail(errOvertaken)
		}
		return fail(fmt.Errorf("dial worker %s: %w", as.Worker, err))
	}
	conn.SetReadLimit(wire.MaxControl)
	c := newLaneConn(l, as, conn, below(socket))
	welcome, err := c.greet(valid)
	if err != nil {
		conn.CloseNow()
		if valid.Err() != nil {
			return fail(errOvertaken)
		}
		return fail(err)
	}
	l.failures = 0
	l.welcomed, l.resume, l.instance = as, welcome.ResumeTicket, welcome.Instance
	c.instance, c.watched = welcome.Instance, welcome.Watched
	return c, nil
}

// knows reports whether the worker of as is the one that welcomed the lane last.
func (l *Lane) knows(as *wire.Assign) bool {
	return l.welcomed != nil && l.welcomed.WorkerURL == as.WorkerURL && !l.Assigned.gone(l.welcomed)
}

// start runs c in a goroutine of its own.
func (l *Lane) start(ctx context.Context, c *laneConn, cur Cursor, instead *instead) {
	c.ctx, c.stop = context.WithCancel(ctx)
	c.hand, c.letGo = context.WithCancel(c.ctx)
	c.flow = l.Governor.join(l.Kind)
	c.cursor = cur
	l.mu.Lock()
	l.conns = append(l.conns, c)
	l.mu.Unlock()
	l.tellWatched()
	if l.Kind == vms.LaneLive {
		l.Assigned.liveUp(1)
	}
	l.running.Go(func() {
		defer close(c.done)
		defer c.stop()
		c.err = c.run(instead)
		l.mu.Lock()
		l.conns = slices.DeleteFunc(l.conns, func(o *laneConn) bool { return o == c })
		l.mu.Unlock()
		c.flow.leave()
		if l.Kind == vms.LaneLive {
			l.Assigned.liveUp(-1)
		}
	})
}

// lost decides what follows from err, and returns how long to wait before the
// next connection; or an error when coming back is of no use.
func (l *Lane) lost(err *errBroken) (time.Duration, error) {
	overtaken := errors.Is(err, errOvertaken)
	if !err.up && !overtaken {
		l.failures++
	}
	var closed *CloseError
	var least time.Duration
	most := l.pace.b.Max
	switch errors.As(err, &closed); {
	case err.up && (overtaken || errors.Is(err, errGone)):
		return l.pace.space(err.held), nil
	case closed != nil && closed.Class == wire.ClassStop:
		return 0, fmt.Errorf("%w: %s", vms.ErrRevoked, closed.Message)
	case problem.TypeOf(err) == wire.ProblemRevoked:
		return 0, fmt.Errorf("%w: %w", vms.ErrRevoked, err)
	case closed != nil && closed.Class == wire.ClassSkip && closed.Seq > 0: // else its name was lost on the way: it will come again
		l.Log.Error("the worker refused a chunk; its GOP becomes a gap", "epoch", closed.Epoch, "seq", closed.Seq, "err", err)
		l.Source.Skip(closed.Epoch, closed.Seq)
		most = time.Second
	case closed != nil && closed.Class == wire.ClassReassign:
		l.want(err.as, closed.Code)
	case problem.TypeOf(err) == wire.ProblemBusy:
		l.want(err.as, "busy")
	case l.ticketRefused(err):
		l.want(err.as, "ticket refused")
	case l.failures >= unreachable:
		l.want(err.as, "unreachable")
		l.failures = 0
	}
	if closed != nil {
		least = closed.RetryAfter()
	}
	if p := (*problem.Problem)(nil); errors.As(err, &p) {
		least = p.RetryAfter
	}
	return l.pace.lost(err.held, linkDown(err, err.held) && !errors.Is(err, ErrIdle), least, most), nil
}

// want asks for another worker than that of as.
func (l *Lane) want(as *wire.Assign, why string) {
	l.resume = ""
	if !l.Assigned.ask(as) {
		return
	}
	var instance vms.Instance // of one that it never got to it does not know it
	if l.knows(as) {
		instance = l.instance
	}
	l.WantWorker(wire.WantWorker{Instance: instance, Why: why})
	l.Log.Info("asked the NVR for a worker", "lane", l.Kind, "worker", as.Worker, "why", why)
}

// ticketRefused reports whether the worker does not take the assignment's
// ticket. A refused resume ticket only means that the instance is gone.
func (l *Lane) ticketRefused(err error) bool {
	switch problem.TypeOf(err) {
	case wire.ProblemTicketInvalid, wire.ProblemTicketExpired, wire.ProblemFenced:
		if l.resume != "" {
			l.resume = ""
			return false
		}
		return true
	}
	return false
}

// patience is how long a durable mark may stand still: stalled, or more where
// recordings are so long that it moves less often.
func patience(as *wire.Assign) time.Duration {
	return max(stalled, 2*time.Duration(as.Segment.RecordingMS)*time.Millisecond)
}

// pace spaces the dials of a lane: with jitter, and more and more until a
// connection held. A fresh assignment is worth one dial at once, but not a
// second one before a wait was waited out: an NVR that answers every
// want_worker with another dead worker must not be answered with a storm.
type pace struct {
	b, link retry.Backoff // after an answer, and while there is none
	next    time.Time
	hurried bool
}

// steady is how long a connection must have held to count as good.
const steady = 30 * time.Second

func newPace() pace {
	return pace{b: retry.Backoff{Min: 200 * time.Millisecond, Max: 30 * time.Second, Steady: steady}, link: linkPace()}
}

// lost notes that a connection ended that had held for so long, 0 when there was
// none, and returns the wait before the next. link: see linkDown.
func (p *pace) lost(held time.Duration, link bool, least, most time.Duration) time.Duration {
	p.earn(held)
	b := &p.b
	if link {
		b = &p.link
	}
	wait := max(min(b.Next(held), most), least)
	p.next = time.Now().Add(wait)
	return wait
}

// space notes that the lane is told to leave a connection that has held for so
// long, and returns the wait before the next: however often the NVR changes its
// mind, what it asks for is spaced like dials, from one connection's beginning to
// the next one's.
func (p *pace) space(held time.Duration) time.Duration {
	p.earn(held)
	wait := max(p.b.Next(held)-held, 0)
	p.next = time.Now().Add(wait)
	return wait
}

// earn starts over when a connection was good.
func (p *pace) earn(held time.Duration) {
	if held >= steady {
		*p = newPace()
	}
}

// wait waits until the lane may dial again. fresh: there is an assignment that
// was not tried yet; changed is closed when there is another.
func (p *pace) wait(ctx context.Context, fresh bool, changed <-chan struct{}) {
	left := time.Until(p.next)
	switch {
	case left <= 0:
		p.hurried = false
		return
	case p.hurried:
		changed = nil
	case fresh:
		p.hurried = true
		return
	}
	t := time.NewTimer(left)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
		p.hurried = false
	case <-changed:
		p.hurried = true
	}
}
