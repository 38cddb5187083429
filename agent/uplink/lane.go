package uplink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sync/errgroup"

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
)

// Source is where a lane gets its chunks from, and whom it tells of them.
type Source interface {
	// Cursor stands after the chunks that the worker has.
	Cursor(have []vms.ChunkRange) Cursor
	Init(e vms.Epoch, id uint32) (vms.Init, bool)
	Durable([]vms.ChunkRange)
	Skip(e vms.Epoch, seq uint64)
	Epochs() []vms.Epoch
}

// Cursor hands out what a lane sends, in order.
type Cursor interface {
	Next(ctx context.Context) (wire.Outgoing, error)
}

// Lane pushes one stream to its worker. Fill in the fields, then call Run once.
type Lane struct {
	Kind     vms.Lane
	Agent    string // name and version
	Source   Source
	Assigned *Assigned
	Log      *slog.Logger
	// WantWorker asks the NVR for another worker. It must not block.
	WantWorker func(wire.WantWorker)
	// OnState is told when the lane is up (nil) and when it is lost (why).
	OnState func(error)
	// OnWatched is told whether somebody looks at the live picture.
	OnWatched func(bool)

	client    *http.Client // of tests; nil: the default
	resume    string       // ticket of the worker instance that had the stream last
	resumeURL string
}

// Assigned holds the newest assignment. The zero value is not ready: use NewAssigned.
type Assigned struct {
	mu      sync.Mutex
	latest  *wire.Assign
	changed chan struct{}
}

// NewAssigned returns one that waits for its first assignment.
func NewAssigned() *Assigned { return &Assigned{changed: make(chan struct{})} }

// Put stores a, unless a newer generation is there.
func (a *Assigned) Put(as *wire.Assign) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.latest != nil && as.Generation < a.latest.Generation {
		return
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

// CloseError is how a worker ended a lane.
type CloseError struct{ wire.ErrorMessage }

func (e *CloseError) Error() string {
	return fmt.Sprintf("the worker closed the lane (%s, %s): %s", e.Class, e.Code, e.Message)
}

// errMoved: the NVR assigned another worker.
var errMoved = errors.New("assigned to another worker")

// Run keeps the lane up until ctx ends (nil), or until the worker says that
// the channel is revoked (vms.ErrRevoked).
func (l *Lane) Run(ctx context.Context) error {
	b := retry.Backoff{Min: 200 * time.Millisecond, Max: 30 * time.Second, Steady: 30 * time.Second}
	failures := 0
	for {
		as, changed := l.Assigned.Latest()
		if as == nil {
			select {
			case <-ctx.Done():
				return nil
			case <-changed:
			}
			continue
		}
		start := time.Now()
		up, err := l.runOnce(ctx, as)
		if ctx.Err() != nil {
			return nil
		}
		l.OnState(err)
		held := time.Duration(0)
		if up {
			held, failures = time.Since(start), 0
		} else {
			failures++
		}
		wait := b.Next(held)
		var closed *CloseError
		switch errors.As(err, &closed); {
		case errors.Is(err, errMoved):
			continue
		case closed != nil && closed.Class == wire.ClassStop:
			return fmt.Errorf("%w: %s", vms.ErrRevoked, closed.Message)
		case closed != nil && closed.Class == wire.ClassSkip && closed.Seq > 0: // else its name was lost on the way: it will come again
			l.Log.Error("the worker refused a chunk; its GOP becomes a gap", "epoch", closed.Epoch, "seq", closed.Seq, "err", err)
			l.Source.Skip(closed.Epoch, closed.Seq)
			wait = min(wait, time.Second)
		case closed != nil && closed.Class == wire.ClassReassign:
			l.want(as, closed.Code)
		case l.ticketRefused(err):
			l.want(as, "ticket refused")
		case failures >= unreachable:
			l.want(as, "unreachable")
			failures = 0
		}
		if closed != nil {
			wait = max(wait, closed.RetryAfter())
		}
		l.Log.Warn("uplink lost", "worker", as.Worker, "err", err, "wait", wait)
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		case <-changed: // a new assignment is no reason to wait
			t.Stop()
		}
	}
}

func (l *Lane) want(as *wire.Assign, why string) {
	l.resume = ""
	l.WantWorker(wire.WantWorker{Why: why})
	l.Log.Info("asked the NVR for a worker", "worker", as.Worker, "why", why)
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

// runOnce lives as long as one connection, and so does all that it starts. up
// says whether the worker welcomed the lane.
func (l *Lane) runOnce(ctx context.Context, as *wire.Assign) (up bool, err error) {
	ticket := as.Ticket
	if l.resume != "" && l.resumeURL == as.WorkerURL {
		ticket = l.resume
	} else {
		l.resume = ""
	}
	conn, _, err := dial(ctx, l.client, as.WorkerURL, wire.PushProtocol, http.Header{"Authorization": {"Bearer " + ticket}})
	if err != nil {
		return false, fmt.Errorf("dial worker %s: %w", as.Worker, err)
	}
	defer conn.CloseNow()
	conn.SetReadLimit(wire.MaxControl)
	c := &laneConn{lane: l, conn: conn, granted: make(chan struct{}, 1), inits: map[initKey]bool{}, moved: time.Now(), patience: patience(as)}
	welcome, err := c.greet(ctx)
	if err != nil {
		return false, err
	}
	l.resume, l.resumeURL = welcome.ResumeTicket, as.WorkerURL
	l.OnState(nil)
	l.OnWatched(welcome.Watched)
	// Being told to stop ends the sender, who closes, which ends the rest.
	g, gctx := errgroup.WithContext(context.WithoutCancel(ctx))
	g.Go(func() error { return c.receive(gctx) })
	g.Go(func() error {
		sctx, cancel := context.WithCancel(gctx)
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		err := c.send(sctx, l.Source.Cursor(welcome.Have))
		if ctx.Err() != nil {
			conn.Close(websocket.StatusNormalClosure, "the agent is done")
		}
		return err
	})
	g.Go(func() error { return l.watchAssignment(gctx, as) })
	return true, g.Wait()
}

// patience is how long a durable mark may stand still: stalled, or more where
// recordings are so long that it moves less often.
func patience(as *wire.Assign) time.Duration {
	return max(stalled, 2*time.Duration(as.Segment.RecordingMS)*time.Millisecond)
}

// watchAssignment ends the connection when the NVR moves the stream.
func (l *Lane) watchAssignment(ctx context.Context, as *wire.Assign) error {
	for {
		now, changed := l.Assigned.Latest()
		if now.WorkerURL != as.WorkerURL {
			return errMoved
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}
