package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/zipato/vms/agent/snapshot"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

const (
	// keptCommands is how many ids are remembered. The cloud repeats a command for
	// a minute or so, and brokers bring again what they brought before.
	keptCommands = 256
	// parallelCommands bounds those that run at the same time.
	parallelCommands = 16
	// longestCommand bounds one whose deadline is far off, or cannot be told.
	longestCommand = 10 * time.Minute
	unknownCommand = time.Minute
	// keptResults is how many bytes of results are kept on flash, newest first:
	// each command rewrites all of it. An answer that lost its result says so.
	keptResults = 8 << 10

	docCommands = "commands"
)

// documents keeps documents on flash (agent/state).
type documents interface {
	Document(name string) ([]byte, error)
	PutDocument(name string, data []byte) error
}

// commandFunc carries a command out. The result goes to the cloud as JSON; the
// error is a sentence for people.
type commandFunc func(context.Context, *wire.Command) (result any, err error)

// commands carries out one-off orders of the cloud, each at most once: its id is
// on flash before it begins. They come over two ways, and again, and are
// answered each time.
type commands struct {
	kinds map[wire.CommandKind]commandFunc
	now   func() (utc time.Time, known bool)
	store documents
	// background runs f unless the agent ends, with a context that ends with it.
	background func(f func(context.Context))
	reply      func(*wire.CommandReply)
	log        *slog.Logger

	storeMu sync.Mutex // taken before mu; orders what is put on flash

	mu      sync.Mutex
	orders  []*order // oldest first
	running int
}

// order is a command that was begun.
type order struct {
	wire.CommandReply
	Done bool `json:"done"`
	// Lost: its result was too long to be kept.
	Lost bool `json:"lost,omitempty"`

	ours bool // it was begun in this run of the agent
}

// load reads which commands earlier runs of the agent have begun.
func (c *commands) load() {
	data, err := c.store.Document(docCommands)
	if err == nil && data != nil {
		err = json.Unmarshal(data, &c.orders)
	}
	if err != nil || slices.Contains(c.orders, nil) {
		c.log.Error("it cannot be read which commands were carried out", "err", err)
		c.orders = nil
	}
}

// take carries m out, or answers it again. It returns when the id is on flash.
func (c *commands) take(m *wire.Command) {
	c.storeMu.Lock()
	defer c.storeMu.Unlock()
	if again, known := c.known(m.ID); known {
		if again != nil {
			c.reply(again)
		}
		return
	}
	run := c.kinds[m.Kind]
	utc, clock := c.now()
	c.mu.Lock()
	busy := c.running >= parallelCommands
	c.mu.Unlock()
	why := ""
	switch {
	case clock && utc.After(m.Deadline):
		why = "The command came too late."
	case run == nil:
		why = fmt.Sprintf("This agent knows no command %q; update it.", m.Kind)
	case busy:
		why = "The hub has too many commands under way."
	}
	if why != "" {
		c.log.Warn("command refused", "id", m.ID, "kind", m.Kind, "why", why)
		c.reply(&wire.CommandReply{ID: m.ID, Problem: why})
		return
	}
	limit := unknownCommand // a hub that does not know the time obeys
	if clock {
		limit = min(m.Deadline.Sub(utc), longestCommand)
	}
	o := &order{CommandReply: wire.CommandReply{ID: m.ID}, ours: true}
	c.mu.Lock()
	c.orders = append(c.orders, o)
	c.orders = c.orders[max(0, len(c.orders)-keptCommands):]
	c.running++
	c.mu.Unlock()
	c.keep()
	c.log.Info("command", "id", m.ID, "kind", m.Kind, "channel", m.Channel)
	c.background(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		result, err := run(ctx, m)
		if ctx.Err() != nil && err != nil {
			err = fmt.Errorf("the command was not done in time: %w", err)
		}
		c.done(o, result, err)
	})
}

// known returns the answer to a command that was begun before; nil while it runs.
func (c *commands) known(id string) (*wire.CommandReply, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.orders, func(o *order) bool { return o.ID == id })
	if i < 0 {
		return nil, false
	}
	o := c.orders[i]
	answer := o.CommandReply
	switch {
	case !o.Done && o.ours:
		return nil, true
	case !o.Done:
		answer.Problem = "The agent restarted while the command ran."
	case o.Lost:
		answer.Problem = "It was done; the agent has restarted since and has not kept the result."
	}
	return &answer, true
}

// done answers a command.
func (c *commands) done(o *order, result any, err error) {
	answer := wire.CommandReply{ID: o.ID}
	if err == nil && result != nil {
		answer.Result, err = json.Marshal(result)
	}
	if err == nil && len(answer.Result) > wire.MaxResult {
		err = fmt.Errorf("the result of %d bytes is longer than %d", len(answer.Result), wire.MaxResult)
	}
	answer.OK = err == nil
	if err != nil {
		answer.Result, answer.Problem = nil, sentence(err)
		c.log.Warn("command failed", "id", o.ID, "err", err)
	}
	c.mu.Lock()
	o.CommandReply, o.Done = answer, true
	c.running--
	c.mu.Unlock()
	c.reply(&answer) // somebody waits for it
	c.storeMu.Lock()
	defer c.storeMu.Unlock()
	c.keep()
}

// keep puts on flash what was begun and how it went. storeMu is held.
func (c *commands) keep() {
	c.mu.Lock()
	all := make([]order, 0, len(c.orders))
	results := 0
	for _, o := range slices.Backward(c.orders) {
		k := *o
		if results += len(k.Result); results > keptResults && k.Result != nil {
			k.Result, k.Lost = nil, true
		}
		all = append(all, k)
	}
	c.mu.Unlock()
	slices.Reverse(all)
	data, err := json.Marshal(all)
	if err == nil {
		err = c.store.PutDocument(docCommands, data)
	}
	if err != nil {
		// None does harm when it is done again after a restart, and a hub with worn
		// out flash needs its doctor.
		c.log.Error("cannot keep which commands were carried out", "err", err)
	}
}

// sentence is an error as an answer may have it.
func sentence(err error) string {
	s := err.Error()
	return strings.ToValidUTF8(s[:min(len(s), 1000)], "")
}

// newCommands makes the hub's commands.
func (a *Agent) newCommands() *commands {
	c := &commands{
		kinds: map[wire.CommandKind]commandFunc{
			wire.CommandRestartStream: a.restartStream,
			wire.CommandDrain:         a.drainStreams,
			wire.CommandEvent:         a.eventCommand,
			wire.CommandDoctor:        a.doctorCommand,
			wire.CommandSnapshot:      a.takeSnapshot,
		},
		now: func() (time.Time, bool) { return a.clock.Now(), a.clock.Known() }, store: a.state, reply: a.reply,
		background: a.background, log: a.cfg.Log,
	}
	c.load()
	return c
}

// restartStream leaves the camera of a channel and pulls it anew.
func (a *Agent) restartStream(_ context.Context, m *wire.Command) (any, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	e := a.entries[m.Channel]
	if e == nil || !e.pulls() {
		return nil, fmt.Errorf("%w: no stream of channel %s runs", vms.ErrNotFound, m.Channel)
	}
	e.stream.Restart()
	return nil, nil
}

// drainStreams waits until all that was captured so far, of a channel or of all,
// is stored in the cloud.
func (a *Agent) drainStreams(ctx context.Context, m *wire.Command) (any, error) {
	var g errgroup.Group
	found := false
	a.mu.Lock()
	for _, e := range a.entries {
		if m.Channel != "" && e.channel != m.Channel {
			continue
		}
		found = true
		g.Go(func() error {
			if err := e.stream.Drain(ctx); err != nil {
				return fmt.Errorf("channel %s: %w", e.channel, err)
			}
			return nil
		})
	}
	a.mu.Unlock()
	if !found && m.Channel != "" {
		return nil, fmt.Errorf("%w: no stream of channel %s", vms.ErrNotFound, m.Channel)
	}
	return nil, g.Wait()
}

// eventCommand says that something happens at a channel, or at all in mode event.
func (a *Agent) eventCommand(_ context.Context, m *wire.Command) (any, error) {
	return nil, a.Event(m.Channel, seconds(m.PreRoll), seconds(m.PostRoll))
}

func seconds(n *int) *time.Duration {
	if n == nil {
		return nil
	}
	d := time.Duration(*n) * time.Second
	return &d
}

// takeSnapshot takes one picture from a camera, which need not be running, and
// uploads it.
func (a *Agent) takeSnapshot(ctx context.Context, m *wire.Command) (any, error) {
	cam, err := a.reconciler.Camera(m.Channel)
	if err != nil {
		return nil, err
	}
	jpeg, err := snapshot.Take(ctx, cam)
	if err != nil {
		return nil, err
	}
	taken, uncertain := a.clock.UTC(time.Now())
	u := snapshot.Uploader{TLS: a.tls}
	if err := u.Upload(ctx, m.UploadURL, jpeg); err != nil {
		return nil, err
	}
	return struct {
		Bytes         int       `json:"bytes"`
		TakenAt       time.Time `json:"taken_at"`
		TimeUncertain bool      `json:"time_uncertain,omitempty"`
	}{len(jpeg), taken.Truncate(time.Millisecond), uncertain}, nil
}

// doctorCommand looks whether all is well.
func (a *Agent) doctorCommand(ctx context.Context, _ *wire.Command) (any, error) {
	return a.Doctor(ctx)
}
