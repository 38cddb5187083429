// Package control is the hub's side of MQTT: it turns messages of the hub
// protocol into Go values and back. It keeps one connection to one broker up,
// and knows nothing of what the values mean.
package control

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/zipato/vms/pkg/retry"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// What OnState and Connected say, wrapped in an error with the particulars.
var (
	// ErrNoBroker: none was set, or the one that was set cannot be used. Only
	// SetBroker helps.
	ErrNoBroker = errors.New("no usable MQTT broker")
	// ErrRefused: the broker does not let this hub in, or not to its topics. It is
	// tried again, slowly: passwords and permissions get corrected.
	ErrRefused = errors.New("the MQTT broker refuses this hub")
	// ErrTakenOver: the broker closed connection after connection soon after it
	// was made, as brokers do when another client comes with the same client id.
	ErrTakenOver = errors.New("another client seems to use this hub's identity at the MQTT broker: does a second agent run with a copy of its data directory?")
	// ErrStarting: nothing was tried yet.
	ErrStarting = errors.New("not connected to the MQTT broker yet")
)

// Config is what a Client is made of. The callbacks are called one at a time,
// all from the same goroutine, and not after Run has returned; nil ones are left
// out. A message is acknowledged when its callback has returned, so that what a
// callback has not dealt with when the agent dies comes again; also what it has
// dealt with may come again. While a callback blocks, no other message gets
// through, and after half a minute the broker ends the connection.
type Config struct {
	Hub  vms.HubID
	Boot string // names this run of the agent, as in wire.Reported
	// TLS is for mqtts:// brokers; nil: only mqtt:// can be used.
	TLS *tls.Config
	// Insecure allows mqtt://, which is without TLS, off the loopback.
	Insecure bool
	Log      *slog.Logger

	OnDesired func(*wire.Desired)
	OnCommand func(*wire.Command)
	// OnReported gets what the broker keeps as this hub's report: at each
	// connection, and whenever it changes, also when the hub itself changed it.
	OnReported func(*wire.Reported)
	// OnState gets nil when the client is connected and subscribed, and otherwise
	// why it is of no use. Of states that follow each other quickly it gets the last.
	OnState func(error)
}

// Client is a hub's connection to its broker. New makes it. All methods may be
// called from any goroutine, before and while Run runs.
type Client struct {
	cfg    Config
	timing timing
	// will is the report that this hub is offline: its last will, and its last word.
	will    []byte
	willErr error
	out     outbox

	inbox chan message
	room  *semaphore.Weighted // bytes of what is in inbox
	// stated rings when the state has changed, heard when something was heard of
	// the hub's own report.
	stated, heard chan struct{}
	dispatched    chan struct{} // closed when no callback is called any more

	mu     sync.Mutex
	broker wire.Broker
	moved  chan struct{} // closed when broker is another
	up     bool
	why    error // nil: all is well
	// echoed: on this connection the hub's own report came back. alien: what came
	// last as the hub's report is none of this run.
	echoed, alien bool
}

// timing are the client's times, which tests shorten.
type timing struct {
	keepAlive time.Duration // whole seconds: what the broker is told
	// silence is how long a connection may bring nothing, or take nothing, before it
	// is dead. The client pings, so that there is something to bring.
	silence time.Duration
	dial    time.Duration // bounds name, TCP and TLS, and then the answer to CONNECT
	ready   time.Duration // bounds the rest: what is waiting may come before the answer to SUBSCRIBE
	// ack is how long the broker may take to acknowledge a message, and slowest the
	// bytes a second that a line carries at least.
	ack     time.Duration
	slowest int
	goodbye time.Duration // bounds the last word
	// A report that is not ours is corrected when it has stood for settle, and not
	// more often than every correct.
	settle, correct time.Duration
	// echo is how long the hub's own report may take to come back.
	echo time.Duration
}

// inboxSize and inboxBytes bound what waits for the callbacks. Beyond them the
// connection is not read: the broker waits.
const (
	inboxSize  = 64
	inboxBytes = 1 << 20
)

func defaultTiming() timing {
	return timing{
		keepAlive: 20 * time.Second,
		silence:   40 * time.Second, // twice a ping's time
		dial:      15 * time.Second,
		ready:     2 * time.Minute,
		ack:       30 * time.Second,
		slowest:   2 << 10,
		goodbye:   3 * time.Second, // an agent ends within five seconds
		settle:    500 * time.Millisecond,
		correct:   5 * time.Second,
		echo:      30 * time.Second,
	}
}

// New returns a client without a broker.
func New(cfg Config) *Client {
	c := &Client{
		cfg:        cfg,
		timing:     defaultTiming(),
		inbox:      make(chan message, inboxSize),
		room:       semaphore.NewWeighted(inboxBytes),
		stated:     make(chan struct{}, 1),
		heard:      make(chan struct{}, 1),
		dispatched: make(chan struct{}),
		moved:      make(chan struct{}),
		why:        fmt.Errorf("%w is set", ErrNoBroker),
	}
	c.out.ring = make(chan struct{}, 1)
	if !vms.ValidID(cfg.Hub) {
		c.willErr = fmt.Errorf("%w: hub %.40q is no id", vms.ErrInvalid, cfg.Hub)
		return c
	}
	c.will, c.willErr = wire.EncodeSession(&wire.Reported{Hub: cfg.Hub, Boot: cfg.Boot})
	return c
}

// SetBroker says where the broker is. A connection to another one, or with
// another password, ends in order, and the new one is tried at once; the same one
// again changes nothing. With an empty URL the client disconnects and waits.
func (c *Client) SetBroker(b wire.Broker) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b == c.broker {
		return
	}
	c.broker = b
	close(c.moved)
	c.moved = make(chan struct{})
}

// Report has r published as the hub's report, in place of the one before, now
// and whenever a connection is made. It keeps nothing of r.
func (c *Client) Report(r *wire.Reported) {
	data, err := wire.EncodeSession(r)
	if err != nil {
		c.cfg.Log.Error("report not published", "err", err)
		return
	}
	c.out.setReport(data)
}

// Reply has r published, once the broker can be reached. It is kept until the
// broker has acknowledged it; when too many are kept the oldest are dropped,
// whose commands have long been given up. It keeps nothing of r.
func (c *Client) Reply(r *wire.CommandReply) {
	data, err := wire.EncodeSession(r)
	if err != nil {
		c.cfg.Log.Error("reply not published", "command", r.ID, "err", err)
		return
	}
	for _, id := range c.out.addReply(r.ID, data) {
		c.cfg.Log.Warn("reply dropped: too many wait for the MQTT broker", "command", id)
	}
}

// Connected reports whether the client is connected and subscribed, and what is
// wrong: always something when it is not, and sometimes when it is.
func (c *Client) Connected() (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.up, c.why
}

// Run keeps the connection up until ctx ends (nil). Then it has the broker keep
// a report that this hub is offline. It is called once.
func (c *Client) Run(ctx context.Context) error {
	if c.willErr != nil {
		return fmt.Errorf("MQTT client: %w", c.willErr)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		defer close(c.dispatched)
		c.dispatch(ctx)
	})
	for ctx.Err() == nil {
		b, moved := c.target()
		there, stop := context.WithCancelCause(ctx)
		wg.Go(func() {
			select {
			case <-moved:
				stop(errMoved)
			case <-there.Done():
			}
		})
		c.stay(there, b)
		stop(nil)
	}
	return nil
}

// target returns the broker, and what is closed when it is another.
func (c *Client) target() (wire.Broker, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.broker, c.moved
}

// stay keeps a connection to b up until ctx ends.
func (c *Client) stay(ctx context.Context, b wire.Broker) {
	a, err := parse(b, &c.cfg)
	if err != nil {
		c.setState(false, err)
		<-ctx.Done()
		return
	}
	c.setState(false, ErrStarting)
	log := c.cfg.Log.With("broker", a.host)
	p := newPace()
	said := ""
	for {
		held, err := c.runOnce(ctx, a, p.doubt(), log)
		if ctx.Err() != nil {
			return
		}
		wait, err := p.next(held, err)
		c.setState(false, err)
		// An outage of days is one line, and one more for each new reason.
		level := slog.LevelWarn
		if held == 0 && err.Error() == said {
			level = slog.LevelDebug
		}
		said = err.Error()
		log.Log(ctx, level, "MQTT connection lost", "err", err, "wait", wait)
		if !retry.Sleep(ctx, wait) {
			return
		}
	}
}

func (c *Client) setState(up bool, why error) {
	c.mu.Lock()
	c.up, c.why = up, why
	c.mu.Unlock()
	ring(c.stated)
}

// ring leaves a mark for whoever receives from bell, which has room for one.
func ring(bell chan<- struct{}) {
	select {
	case bell <- struct{}{}:
	default:
	}
}
