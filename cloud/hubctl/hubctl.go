// Package hubctl is the cloud's side of MQTT: what hubs should do goes out of an
// outbox, what they say of themselves comes in.
//
// A document is published after the commit that changed it, retained, and counts
// as published when the broker has acknowledged it. Until then it is tried again.
// Whatever a broker may forget, it is told again whenever it is connected to.
package hubctl

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/zipato/vms/pkg/retry"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// Rules decide what hubs should do. They may be called from several goroutines.
type Rules interface {
	// DirtyHubs lists the hubs whose document is not published as it is now.
	DirtyHubs(ctx context.Context) ([]vms.HubID, error)
	// AllHubs lists all hubs that have a document.
	AllHubs(ctx context.Context) ([]vms.HubID, error)
	// Desired returns the document of a hub. vms.ErrNotFound: it has none, and
	// what was published for it is to be cleared.
	Desired(ctx context.Context, hub vms.HubID) (*wire.Desired, error)
	// Published notes that the broker has a document of this revision; 0: that
	// it was cleared.
	Published(ctx context.Context, hub vms.HubID, revision int64) error
	// DesiredChanged rings after a commit that changed a document.
	DesiredChanged() <-chan struct{}
	// Reported takes a hub's report or last will. The newest of a hub is told;
	// ones before it may be left out.
	Reported(ctx context.Context, r *wire.Reported)
	// CommandReplied takes a hub's answer to a command, perhaps not for the first time.
	CommandReplied(r *wire.CommandReply, hub vms.HubID)
	// SetCommander says how a command is sent: nil when the broker has it. It is
	// called with nil when there is no way any more.
	SetCommander(send func(hub vms.HubID, c *wire.Command) error)
}

// Config says which broker to use, and what the rules are.
type Config struct {
	NVR Rules
	// Broker is mqtt://host:port or mqtts://host:port.
	Broker             string
	Username, Password string
	// ClientID is Username by default. Of two clients with one id the broker
	// keeps the one that came last.
	ClientID string
	// TLS is for mqtts; nil: the system's roots.
	TLS *tls.Config
	Log *slog.Logger
}

// timing is what tests shorten.
type timing struct {
	dial      time.Duration // until connected and logged in
	keepAlive time.Duration // without a packet, after which the broker is asked for one
	silence   time.Duration // without a byte, after which the connection is dead
	ack       time.Duration // for the broker's acknowledgement of a message
	command   time.Duration // the same, while a caller waits
	sweep     time.Duration // between looks for what was not published
	lag       time.Duration // a hub that reports an old revision so long after a newer one was published has not got it
	gone      time.Duration // without a report, which comes every minute, after which a hub is offline
	backoff   retry.Backoff
}

var defaultTiming = timing{
	dial: 20 * time.Second, keepAlive: 20 * time.Second, silence: 45 * time.Second, ack: 30 * time.Second, command: 3 * time.Second,
	sweep: 30 * time.Second, lag: 45 * time.Second, gone: 150 * time.Second,
	backoff: retry.Backoff{Min: 100 * time.Millisecond, Max: 15 * time.Second, Steady: 30 * time.Second},
}

// Client is the cloud as a client of the broker. Make it with New, and call Run once.
type Client struct {
	cfg    Config
	at     *address
	timing timing
	in     *inbox
	out    *outbox

	mu   sync.Mutex
	link *link // nil while there is no connection
}

// New checks cfg; nothing is connected yet.
func New(cfg Config) (*Client, error) {
	cfg.ClientID = cmp.Or(cfg.ClientID, cfg.Username)
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	at, err := parseAddress(cfg.Broker, cfg.TLS)
	if err != nil {
		return nil, err
	}
	if cfg.ClientID == "" {
		return nil, fmt.Errorf("%w: no user name for the MQTT broker", vms.ErrInvalid)
	}
	c := &Client{cfg: cfg, at: at, timing: defaultTiming}
	c.out = newOutbox(cfg.NVR, cfg.Log)
	c.in = newInbox(cfg.NVR, cfg.Log, c.out.reported)
	return c, nil
}

// Connected reports whether the broker can be used now.
func (c *Client) Connected() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.link != nil
}

// Run works until ctx ends (nil).
func (c *Client) Run(ctx context.Context) error {
	c.cfg.NVR.SetCommander(c.command)
	defer c.cfg.NVR.SetCommander(nil)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.in.run(ctx, c.timing.gone) })
	g.Go(func() error { return c.connect(ctx) })
	return g.Wait()
}

// connect keeps one connection up.
func (c *Client) connect(ctx context.Context) error {
	log := c.cfg.Log.With("broker", c.at.url.Redacted())
	backoff, said := c.timing.backoff, ""
	for {
		held, err := c.runOnce(ctx, log)
		if ctx.Err() != nil {
			return nil
		}
		wait := backoff.Next(held)
		if held > 0 {
			said = ""
		}
		if text := err.Error(); text != said { // the same reason is said once
			said = text
			log.Warn("no connection to the MQTT broker", "err", err, "wait", wait)
		}
		if !retry.Sleep(ctx, wait) {
			return nil
		}
	}
}

// runOnce lives as long as one connection, and so does all that it starts. held
// is how long it was of use.
func (c *Client) runOnce(ctx context.Context, log *slog.Logger) (held time.Duration, err error) {
	l, err := c.open(ctx)
	if err != nil {
		return 0, err
	}
	defer l.end()
	log.Info("connected to the MQTT broker")
	begin := time.Now()
	c.setLink(l)
	defer c.setLink(nil)
	work, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(l.conn.open, stop)()
	var pings sync.WaitGroup
	defer pings.Wait()
	defer l.conn.kill(errTold)
	pings.Go(func() { l.conn.pings(c.timing.keepAlive) })
	err = c.out.run(work, l, &c.timing)
	switch {
	case ctx.Err() != nil:
		l.goodbye()
	case l.conn.open.Err() != nil:
		err = l.conn.why()
	}
	return max(1, time.Since(begin)), err
}

func (c *Client) setLink(l *link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.link = l
}

var errNotConnected = errors.New("no connection to the MQTT broker")

// command hands a command to the broker.
func (c *Client) command(hub vms.HubID, cmd *wire.Command) error {
	c.mu.Lock()
	l := c.link
	c.mu.Unlock()
	if l == nil {
		return fmt.Errorf("%w: %w", vms.ErrUnavailable, errNotConnected)
	}
	payload, err := wire.EncodeSession(cmd)
	if err != nil {
		return err
	}
	if err := l.publish(context.Background(), wire.Topic(hub, wire.LeafCommand), false, payload, c.timing.command); err != nil {
		return fmt.Errorf("%w: %w", vms.ErrUnavailable, err)
	}
	return nil
}
