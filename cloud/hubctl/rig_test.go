package hubctl

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"sync"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"github.com/zipato/vms/pkg/retry"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/wire"
)

// rules are the rules of the system as far as hubctl sees them.
type rules struct {
	changed chan struct{}

	mu        sync.Mutex
	revision  map[vms.HubID]int64 // 0: revoked
	published map[vms.HubID]int64
	notes     map[vms.HubID]int // how often something was published
	reports   map[vms.HubID][]*wire.Reported
	replies   map[string]vms.HubID
	send      func(vms.HubID, *wire.Command) error
	fail      error // of all that reads
	news      chan struct{}
}

func newRules() *rules {
	return &rules{
		changed: make(chan struct{}, 1), revision: make(map[vms.HubID]int64), published: make(map[vms.HubID]int64), notes: make(map[vms.HubID]int),
		reports: make(map[vms.HubID][]*wire.Reported), replies: make(map[string]vms.HubID), news: make(chan struct{}),
	}
}

var _ Rules = (*rules)(nil)

// tell wakes whoever waits; r.mu is held.
func (r *rules) tell() {
	close(r.news)
	r.news = make(chan struct{})
}

// set changes what a hub should do; 0 revokes it.
func (r *rules) set(hub vms.HubID, revision int64) {
	r.mu.Lock()
	r.revision[hub] = revision
	r.published[hub] = -1
	r.mu.Unlock()
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// bump is a commit.
func (r *rules) bump(hub vms.HubID) {
	r.mu.Lock()
	n := r.revision[hub] + 1
	r.mu.Unlock()
	r.set(hub, n)
}

func (r *rules) DirtyHubs(context.Context) (hubs []vms.HubID, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for h, n := range r.revision {
		if r.published[h] != n {
			hubs = append(hubs, h)
		}
	}
	return hubs, r.fail
}

func (r *rules) AllHubs(context.Context) (hubs []vms.HubID, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for h, n := range r.revision {
		if n != 0 {
			hubs = append(hubs, h)
		}
	}
	return hubs, r.fail
}

func (r *rules) Desired(_ context.Context, hub vms.HubID) (*wire.Desired, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		return nil, r.fail
	}
	if r.revision[hub] == 0 {
		return nil, fmt.Errorf("hub %s: %w", hub, vms.ErrNotFound)
	}
	return desired(hub, r.revision[hub]), nil
}

func desired(hub vms.HubID, revision int64) *wire.Desired {
	return &wire.Desired{Hub: hub, Revision: revision, Issued: time.Now().UTC(), Streams: []wire.DesiredStream{}}
}

func (r *rules) Published(_ context.Context, hub vms.HubID, revision int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.published[hub] = revision // an older one leaves it dirty
	r.notes[hub]++
	r.tell()
	return nil
}

func (r *rules) DesiredChanged() <-chan struct{} { return r.changed }

func (r *rules) Reported(_ context.Context, m *wire.Reported) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reports[m.Hub] = append(r.reports[m.Hub], m)
	r.tell()
}

func (r *rules) CommandReplied(m *wire.CommandReply, hub vms.HubID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.replies[m.ID] = hub
	r.tell()
}

func (r *rules) SetCommander(send func(vms.HubID, *wire.Command) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.send = send
	r.tell()
}

// until waits until ok, which is called with r.mu held.
func (r *rules) until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	late := time.After(patience)
	for {
		r.mu.Lock()
		done, news := ok(), r.news
		r.mu.Unlock()
		if done {
			return
		}
		select {
		case <-news:
		case <-late:
			r.mu.Lock()
			defer r.mu.Unlock()
			t.Fatalf("never: %s (published %v of %v)", what, r.published, r.revision)
		}
	}
}

// clean waits until everything is published.
func (r *rules) clean(t testing.TB) {
	t.Helper()
	r.until(t, "everything published", func() bool { return maps.Equal(r.revision, r.published) })
}

// last is the newest report of a hub; r.mu is held.
func (r *rules) last(hub vms.HubID) *wire.Reported {
	if n := len(r.reports[hub]); n > 0 {
		return r.reports[hub][n-1]
	}
	return &wire.Reported{}
}

// command sends a command until it is answered, as the rules do.
func (r *rules) command(t testing.TB, hub vms.HubID, id string) {
	t.Helper()
	c := &wire.Command{ID: id, Kind: wire.CommandDrain, Deadline: time.Now().Add(time.Hour)}
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		r.mu.Lock()
		send := r.send
		r.mu.Unlock()
		if send != nil {
			if err := send(hub, c); err != nil {
				t.Log("command:", err)
			}
		}
		again := time.After(200 * time.Millisecond)
		for waiting := true; waiting; {
			r.mu.Lock()
			from, ok := r.replies[id]
			news := r.news
			r.mu.Unlock()
			if ok {
				if from != hub {
					t.Fatalf("%s answered a command of %s", from, hub)
				}
				return
			}
			select {
			case <-news:
			case <-again:
				waiting = false
			}
		}
	}
	t.Fatalf("no answer to %s", id)
}

// quick is the timing of tests.
var quick = timing{
	dial: 5 * time.Second, keepAlive: 2 * time.Second, silence: 4 * time.Second, ack: 5 * time.Second, command: time.Second,
	sweep: 200 * time.Millisecond, lag: 300 * time.Millisecond, gone: time.Hour,
	backoff: retry.Backoff{Min: 10 * time.Millisecond, Max: 200 * time.Millisecond, Steady: time.Second},
}

// cloud runs a Client with rules until the test ends, or stop is called.
type cloud struct {
	*Client
	stop func()
}

func startCloud(t testing.TB, r *rules, url string, change ...func(*Client)) *cloud {
	t.Helper()
	c, err := New(Config{NVR: r, Broker: url, Username: CloudUser, Password: Password(testKey, CloudUser), Log: vmstest.Log(t)})
	if err != nil {
		t.Fatal(err)
	}
	c.timing = quick
	for _, f := range change {
		f(c)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run = %v", err)
			}
		case <-time.After(patience):
			t.Error("Run does not end")
		}
	})
	t.Cleanup(stop)
	return &cloud{c, stop}
}

func (c *cloud) connected(t testing.TB, want bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); c.Connected() != want; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("Connected is %v, want %v", !want, want)
		}
	}
}

// hub is a hub on MQTT: it stays connected, obeys the highest revision and runs
// each command once.
type hub struct {
	id   vms.HubID
	boot string
	url  string
	mqtt mqtt.Client

	mu      sync.Mutex
	desired int64           // the highest
	stale   int             // how often an older one came
	cleared int             // how often an empty one came
	ran     map[string]int  // commands
	heard   []string        // topics
	asked   map[string]bool // subscriptions, granted or not
	news    chan struct{}
}

func (h *hub) options() *mqtt.ClientOptions {
	will := mustEncode(&wire.Reported{Hub: h.id, Boot: cmp.Or(h.boot, "none")})
	return mqtt.NewClientOptions().AddBroker(h.url).SetClientID(string(h.id)).SetUsername(string(h.id)).SetPassword(Password(testKey, string(h.id))).
		SetCleanSession(false).SetConnectTimeout(5*time.Second).SetKeepAlive(8*time.Second).SetPingTimeout(4*time.Second).SetWriteTimeout(2*time.Second).
		SetAutoReconnect(true).SetMaxReconnectInterval(200*time.Millisecond).SetConnectRetry(true).SetConnectRetryInterval(50*time.Millisecond).
		SetBinaryWill(wire.Topic(h.id, wire.LeafReported), will, 1, true)
}

// startHub connects a hub, with whatever subscriptions beside its own.
func startHub(t testing.TB, url string, id vms.HubID, more ...string) *hub {
	t.Helper()
	h := &hub{id: id, boot: "boot-1", url: url, ran: make(map[string]int), asked: make(map[string]bool), news: make(chan struct{})}
	h.start(t, more...)
	return h
}

func (h *hub) start(t testing.TB, more ...string) {
	t.Helper()
	topics := map[string]byte{}
	_, own := HubTopics(h.id)
	for _, f := range append(own, more...) {
		topics[f] = 1
	}
	opts := h.options().SetOrderMatters(true)
	opts.SetDefaultPublishHandler(func(_ mqtt.Client, m mqtt.Message) { h.take(m) })
	ready := make(chan struct{}, 100)
	opts.SetOnConnectHandler(func(c mqtt.Client) {
		if tok := c.SubscribeMultiple(topics, nil); tok.WaitTimeout(patience) {
			select {
			case ready <- struct{}{}:
			default:
			}
		}
	})
	h.mqtt = mqtt.NewClient(opts)
	h.mqtt.Connect()
	t.Cleanup(func() { h.mqtt.Disconnect(100) })
	select {
	case <-ready:
	case <-time.After(patience):
		t.Fatalf("hub %s does not get connected", h.id)
	}
}

func mustEncode(m wire.SessionMessage) []byte {
	data, err := wire.EncodeSession(m)
	if err != nil {
		panic(err)
	}
	return data
}

func (h *hub) take(m mqtt.Message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.heard = append(h.heard, m.Topic())
	defer func() {
		close(h.news)
		h.news = make(chan struct{})
	}()
	if len(m.Payload()) == 0 {
		h.cleared++
		return
	}
	switch m, _ := wire.DecodeSession(m.Payload()); m := m.(type) {
	case *wire.Desired:
		if m.Revision < h.desired {
			h.stale++
		}
		h.desired = max(h.desired, m.Revision)
	case *wire.Command:
		h.ran[m.ID]++ // a real one runs it the first time only, and answers each time
		h.mqtt.Publish(wire.Topic(h.id, wire.LeafReply), 1, false, mustEncode(&wire.CommandReply{ID: m.ID, OK: true}))
	}
}

func (h *hub) until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	late := time.After(patience)
	for {
		h.mu.Lock()
		done, news := ok(), h.news
		h.mu.Unlock()
		if done {
			return
		}
		select {
		case <-news:
		case <-late:
			h.mu.Lock()
			defer h.mu.Unlock()
			t.Fatalf("hub %s never: %s (revision %d, commands %v)", h.id, what, h.desired, h.ran)
		}
	}
}

func (h *hub) obeys(t testing.TB, revision int64) {
	t.Helper()
	h.until(t, fmt.Sprint("revision ", revision), func() bool { return h.desired == revision })
}

func (h *hub) publish(t testing.TB, topic string, retained bool, payload []byte) {
	t.Helper()
	if tok := h.mqtt.Publish(topic, 1, retained, payload); !tok.WaitTimeout(patience) || tok.Error() != nil {
		t.Fatalf("publish %s: %v", topic, tok.Error())
	}
}

func (h *hub) report(t testing.TB, serial int64) {
	t.Helper()
	h.mu.Lock()
	rev := h.desired
	h.mu.Unlock()
	h.publish(t, wire.Topic(h.id, wire.LeafReported), true, mustEncode(&wire.Reported{Hub: h.id, Boot: h.boot, Online: true, Serial: serial, Revision: rev}))
}

// kept returns the revision that the broker has retained for this hub, 0 when
// there is none. Every subscription brings it, and before what is published later.
func (h *hub) kept(t testing.TB) int64 {
	t.Helper()
	kept, done := make(chan int64, 10), make(chan struct{}, 10)
	desired, reported := wire.Topic(h.id, wire.LeafDesired), wire.Topic(h.id, wire.LeafReported)
	subscribe := func(topic string, f mqtt.MessageHandler) {
		if tok := h.mqtt.Subscribe(topic, 1, f); !tok.WaitTimeout(patience) || tok.Error() != nil {
			t.Fatalf("subscribe %s: %v", topic, tok.Error())
		}
	}
	subscribe(desired, func(_ mqtt.Client, m mqtt.Message) {
		h.take(m)
		if d, _ := wire.DecodeSession(m.Payload()); d != nil && m.Retained() {
			kept <- d.(*wire.Desired).Revision
		}
	})
	nonce := rand.Text()
	subscribe(reported, func(_ mqtt.Client, m mqtt.Message) {
		if string(m.Payload()) == nonce {
			done <- struct{}{}
		}
	})
	h.publish(t, reported, false, []byte(nonce)) // makes no sense to the cloud
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("the broker says nothing")
	}
	h.mqtt.AddRoute(desired, func(_ mqtt.Client, m mqtt.Message) { h.take(m) })
	select {
	case n := <-kept:
		return n
	default:
		return 0
	}
}
