package nvr

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

const (
	// resendEvery is how often a command is sent until it is answered. A hub
	// runs it once and answers again when it hears it again.
	resendEvery = 2 * time.Second
	// MaxCommandWait bounds how long a command may take.
	MaxCommandWait = 2 * time.Minute
	// maxCommands bounds the commands that wait for one hub: it runs them one
	// after the other on a small machine.
	maxCommands = 8
)

// commandWaits are for how long each kind is waited for unless somebody says otherwise.
var commandWaits = map[wire.CommandKind]time.Duration{
	wire.CommandDoctor:        45 * time.Second, // it gives each camera time to answer
	wire.CommandSnapshot:      20 * time.Second,
	wire.CommandDrain:         time.Minute,
	wire.CommandRestartStream: 10 * time.Second,
	wire.CommandEvent:         10 * time.Second,
}

// CommandKinds lists what Command knows.
var CommandKinds = []wire.CommandKind{
	wire.CommandDoctor, wire.CommandRestartStream, wire.CommandDrain, wire.CommandEvent, wire.CommandSnapshot,
}

// commands are those that are waited for.
type commands struct {
	mu      sync.Mutex
	send    func(hub vms.HubID, c *wire.Command) error
	waiting map[string]waiter
	perHub  map[vms.HubID]int
}

type waiter struct {
	hub   vms.HubID
	reply chan *wire.CommandReply // one place: of all replies the first is taken
}

// SetCommander says how a command is sent over MQTT. It must not wait for the
// hub, and for the broker only briefly; an error is logged, and the command is
// sent again while somebody waits for its answer.
func (n *NVR) SetCommander(send func(hub vms.HubID, c *wire.Command) error) {
	n.commands.mu.Lock()
	defer n.commands.mu.Unlock()
	n.commands.send = send
}

// CommandReplied takes a hub's answer to a command. The caller has made sure
// that it is the hub's. One that nobody waits for any more is dropped.
func (n *NVR) CommandReplied(r *wire.CommandReply, hub vms.HubID) {
	c := &n.commands
	c.mu.Lock()
	w, ok := c.waiting[r.ID]
	ok = ok && w.hub == hub // nobody answers for another
	if ok {
		delete(c.waiting, r.ID)
	}
	c.mu.Unlock()
	if ok {
		w.reply <- r
	}
}

// Command gives a hub a one-off order and returns its answer, which may be that
// it cannot. c has no id, deadline and upload URL: they are filled in. It waits
// at most wait, 0: as long as the kind is worth. vms.ErrConflict: the hub is
// offline; context.DeadlineExceeded: it did not answer, and whether it obeyed is
// not known; vms.ErrUnavailable: too many wait already.
func (n *NVR) Command(ctx context.Context, acct vms.AccountID, hub vms.HubID, c wire.Command, wait time.Duration) (wire.CommandReply, error) {
	if wait == 0 {
		wait = commandWaits[c.Kind]
	}
	if err := n.checkCommand(ctx, acct, hub, &c, wait); err != nil {
		return wire.CommandReply{}, err
	}
	fail := func(err error) (wire.CommandReply, error) {
		return wire.CommandReply{}, fmt.Errorf("%s of hub %s: %w", c.Kind, hub, err)
	}
	if !n.online(hub) {
		return fail(fmt.Errorf("%w: the hub is offline", vms.ErrConflict))
	}
	c.ID, c.Deadline = vms.NewID[string]("cmd"), n.now().Add(wait)
	var key string
	if c.Kind == wire.CommandSnapshot {
		var err error
		if key, err = n.presignSnapshot(ctx, &c, wait); err != nil {
			return fail(err)
		}
	}
	w := waiter{hub: hub, reply: make(chan *wire.CommandReply, 1)}
	if !n.commands.begin(c.ID, w) {
		return fail(fmt.Errorf("%w: %d commands wait for the hub already", vms.ErrUnavailable, maxCommands))
	}
	defer n.commands.end(c.ID, w)
	reply, err := n.exchange(ctx, &c, w, wait)
	if err != nil {
		return fail(err)
	}
	if key != "" && reply.OK {
		if reply.Result, err = n.showSnapshot(ctx, key, reply.Result); err != nil {
			return fail(err)
		}
	}
	return *reply, nil
}

// exchange sends a command until it is answered or wait is over.
func (n *NVR) exchange(ctx context.Context, c *wire.Command, w waiter, wait time.Duration) (*wire.CommandReply, error) {
	patience := time.NewTimer(wait)
	defer patience.Stop()
	again := time.NewTicker(resendEvery)
	defer again.Stop()
	for {
		n.sendCommand(w.hub, c)
		select {
		case r := <-w.reply:
			return r, nil
		case <-again.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-patience.C:
			return nil, fmt.Errorf("the hub did not answer within %s: %w", wait, context.DeadlineExceeded)
		}
	}
}

// sendCommand sends a command in every way that the hub may hear: it runs it once.
func (n *NVR) sendCommand(hub vms.HubID, c *wire.Command) {
	n.mu.Lock()
	var link HubLink
	mqtt := false
	if st := n.hubs[hub]; st != nil {
		link, mqtt = st.link, st.mqtt
	}
	n.mu.Unlock()
	if link != nil {
		link.Send(c)
	}
	n.commands.mu.Lock()
	send := n.commands.send
	n.commands.mu.Unlock()
	if mqtt && send != nil {
		if err := send(hub, c); err != nil {
			n.Log.Warn("a command was not handed to the broker", "hub", hub, "kind", c.Kind, "err", err)
		}
	}
}

func (c *commands) begin(id string, w waiter) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.perHub[w.hub] >= maxCommands {
		return false
	}
	c.perHub[w.hub]++
	c.waiting[id] = w
	return true
}

func (c *commands) end(id string, w waiter) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, id)
	if c.perHub[w.hub]--; c.perHub[w.hub] == 0 {
		delete(c.perHub, w.hub)
	}
}

// checkCommand refuses what the hub would refuse, and what is not the account's.
func (n *NVR) checkCommand(ctx context.Context, acct vms.AccountID, hub vms.HubID, c *wire.Command, wait time.Duration) error {
	if _, err := n.Hub(ctx, acct, hub); err != nil {
		return err
	}
	if _, ok := commandWaits[c.Kind]; !ok {
		return fieldError("kind", "must be one of %v", CommandKinds)
	}
	if wait < 0 || wait > MaxCommandWait {
		return fieldError("timeout_s", "must be 1 to %d", int(MaxCommandWait.Seconds()))
	}
	if c.Kind != wire.CommandEvent && (c.PreRoll != nil || c.PostRoll != nil) {
		return fieldError("pre_roll_s", "and post_roll_s are for %q only", wire.CommandEvent)
	}
	if err := validRoll(c.PreRoll, c.PostRoll); err != nil {
		return err
	}
	if c.Channel == "" {
		if c.Kind == wire.CommandRestartStream || c.Kind == wire.CommandSnapshot {
			return fieldError("channel_id", "is needed for %q", c.Kind)
		}
		return nil
	}
	row, err := n.row(ctx, acct, c.Channel)
	if errors.Is(err, vms.ErrNotFound) || err == nil && row.Hub != hub {
		return fieldError("channel_id", "names no channel of this hub")
	}
	return err
}

// A snapshot that a command asked for is there as long as its URL: nothing lists it.
const snapshotType = "image/jpeg"

// presignSnapshot chooses where the hub puts the picture, and has it swept later.
func (n *NVR) presignSnapshot(ctx context.Context, c *wire.Command, wait time.Duration) (key string, err error) {
	now := n.now()
	key = fmt.Sprintf("snapshots/%s/%s.%s.jpg", c.Channel, now.Format("2006-01-02/15-04-05.000000Z"), c.ID)
	// Some slack: the hub's upload may begin at the deadline.
	if c.UploadURL, _, err = n.Objects.PresignPut(ctx, key, wait+keepSlack, snapshotType); err != nil {
		return "", fmt.Errorf("presign %s: %w", key, err)
	}
	if err := n.Store.Discard(ctx, key, now, now.Add(wait+n.URLTTL+2*keepSlack)); err != nil {
		return "", fmt.Errorf("snapshot %s: %w", key, err)
	}
	return key, nil
}

// showSnapshot adds the URL of the picture to what the hub said.
func (n *NVR) showSnapshot(ctx context.Context, key string, said json.RawMessage) (json.RawMessage, error) {
	result := make(map[string]any)
	if json.Unmarshal(said, &result) != nil || result == nil {
		result = make(map[string]any) // no object: nothing that could be kept beside the URL
	}
	url, expires, err := n.Objects.PresignGet(ctx, key, n.URLTTL, "")
	if err != nil {
		return nil, fmt.Errorf("presign %s: %w", key, err)
	}
	result["url"], result["url_expires_at"] = url, expires.UTC().Format("2006-01-02T15:04:05.000Z")
	return json.Marshal(result)
}
