// Package nvr is the rules of the cloud: which hub may open which session,
// which worker takes a stream, what is on the timeline of a channel and what
// retention takes off it again. It knows no HTTP, no SQL and no S3; it declares
// what it needs of them in ports.go.
//
// Promises that callers may rely on:
//   - Every method that takes an account answers vms.ErrNotFound for what
//     belongs to somebody else, as if it did not exist.
//   - Every notice may come late, twice and in any order.
//   - An object that retention or a deletion has taken is never listed again.
//   - Camera passwords go in and never come out, except to the hub that pulls
//     the camera.
package nvr

import (
	"context"
	"crypto/cipher"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// Config is what an NVR needs. Store, Objects, Tokens, SecretKey and NVRURL
// have no default.
type Config struct {
	Store   Store
	Objects Objects
	Tokens  *token.Signer
	// SecretKey encrypts camera passwords at rest (AES-256-GCM). Who loses it
	// loses the passwords, nothing else.
	SecretKey []byte
	// NVRURL is where hubs shake hands, such as ws://127.0.0.1:8080/session/v1.
	// It stands in every token.
	NVRURL string
	// Hosts are further host[:port] names under which hubs reach this NVR. A
	// proof made for any other host is refused: somebody passed it on.
	Hosts []string

	Clock func() time.Time // time.Now
	Log   *slog.Logger     // slog.Default

	Retention Retention
	Segment   wire.SegmentOptions // 30 s recordings of 200 ms chunks

	TokenTTL  time.Duration // of a stream token: 24 h
	TicketTTL time.Duration // of a push ticket: 5 min
	ViewTTL   time.Duration // of a view ticket: 5 min
	URLTTL    time.Duration // of a presigned URL: 1 h

	// HubRevoked, when set, is told of a hub whose connections to the MQTT broker
	// must end now. It must not block long.
	HubRevoked func(vms.HubID)
	// Broker, when set, says how a hub gets into the MQTT broker: hubs are told
	// whenever their control line comes up.
	Broker func(vms.HubID) wire.Broker

	// UnreachableAfter is for how long what a silent hub holds counts as pending,
	// and its unfinished recordings wait for the rest: 24 h.
	UnreachableAfter time.Duration

	WorkerGrace   time.Duration // a worker whose line broke may come back for so long: 2 s
	WorkerSilence time.Duration // a worker that says nothing for so long is dead: 4 s
	// WorkerSettle is for how long after our start a stream that runs waits for
	// its worker, which may not have found us again: 8 s.
	WorkerSettle   time.Duration
	RebalanceEvery time.Duration // 10 s
	RebalanceBatch int           // streams that are moved in that time: 10
	RebalanceRest  time.Duration // a stream that was moved stays for so long: 1 min
	DrainOver      time.Duration // the streams of a worker that drains are sent away over so long: 10 s

	SweepEvery     time.Duration // retention: 1 min
	ReconcileEvery time.Duration // listing the bucket: 1 h
}

// Retention is what a channel's recordings live under. Zero means without end.
type Retention struct {
	Age   time.Duration
	Bytes int64 // of all recordings together
}

// NVR holds the rules. Make it with New, then call Run for its background work.
type NVR struct {
	Config
	aead     cipher.AEAD
	verifier *token.Verifier
	nonces   *nonces
	enrols   *limiter
	bus      bus
	kicks    kicks         // hubs that Run must tell what to do
	changed  chan struct{} // one place: see DesiredChanged
	commands commands
	raises   raises
	kicked   chan struct{} // one place: see kick
	started  time.Time

	mu       sync.Mutex // guards what follows; never held across a call out
	workers  map[vms.WorkerID]*workerState
	waiting  map[*liveSession]struct{} // sessions that have no worker
	tended   time.Time                 // when the workers were last
	balanced time.Time                 // when streams were moved for balance last
	hubs     map[vms.HubID]*hubState
	viewed   map[vms.ChannelID]time.Time // when somebody looked on last
	sessions map[vms.SID]*liveSession
	streams  map[vms.ChannelID]*liveStream
	tidied   PartEpoch // the last one that AbandonedParts has come to
}

// New checks the configuration and returns an NVR.
func New(c Config) (*NVR, error) {
	if c.Store == nil || c.Objects == nil || c.Tokens == nil {
		return nil, fmt.Errorf("%w: nvr needs a store, objects and tokens", vms.ErrInvalid)
	}
	u, err := url.Parse(c.NVRURL)
	if err != nil || u.Host == "" || (u.Scheme != "ws" && u.Scheme != "wss") {
		return nil, fmt.Errorf("%w: NVR URL %q, want ws:// or wss://", vms.ErrInvalid, c.NVRURL)
	}
	hosts := []string{canonicalHost(u.Host)}
	for _, h := range c.Hosts {
		hosts = append(hosts, canonicalHost(h))
	}
	c.Hosts = hosts
	aead, err := newSeal(c.SecretKey)
	if err != nil {
		return nil, err
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Segment == (wire.SegmentOptions{}) {
		c.Segment = wire.SegmentOptions{RecordingMS: 30_000, ChunkMS: 200}
	}
	setDefault(&c.TokenTTL, 24*time.Hour)
	setDefault(&c.TicketTTL, 5*time.Minute)
	setDefault(&c.ViewTTL, 5*time.Minute)
	setDefault(&c.URLTTL, time.Hour)
	setDefault(&c.UnreachableAfter, 24*time.Hour)
	setDefault(&c.WorkerGrace, 2*time.Second)
	setDefault(&c.WorkerSilence, 4*time.Second)
	setDefault(&c.WorkerSettle, 8*time.Second)
	setDefault(&c.RebalanceEvery, 10*time.Second)
	setDefault(&c.RebalanceBatch, 10)
	setDefault(&c.RebalanceRest, time.Minute)
	setDefault(&c.DrainOver, 10*time.Second)
	setDefault(&c.SweepEvery, time.Minute)
	setDefault(&c.ReconcileEvery, time.Hour)
	return &NVR{
		Config:   c,
		aead:     aead,
		verifier: c.Tokens.Verifier(),
		nonces:   newNonces(c.Clock),
		enrols:   newLimiter(c.Clock, 10, 50),
		started:  c.Clock(),
		balanced: c.Clock(),
		kicks:    newKicks(),
		changed:  make(chan struct{}, 1),
		commands: commands{waiting: make(map[string]waiter), perHub: make(map[vms.HubID]int)},
		raises:   newRaises(),
		kicked:   make(chan struct{}, 1),
		workers:  make(map[vms.WorkerID]*workerState),
		waiting:  make(map[*liveSession]struct{}),
		hubs:     make(map[vms.HubID]*hubState),
		viewed:   make(map[vms.ChannelID]time.Time),
		sessions: make(map[vms.SID]*liveSession),
		streams:  make(map[vms.ChannelID]*liveStream),
	}, nil
}

func setDefault[T int | time.Duration](d *T, v T) {
	if *d == 0 {
		*d = v
	}
}

// now is UTC in microseconds: what the store keeps and what comes back equal.
func (n *NVR) now() time.Time { return n.Clock().UTC().Truncate(time.Microsecond) }

// Run does what no caller asks for, until ctx ends: it lists the bucket at the
// start and from time to time, sweeps what retention has no place for, renews
// tickets, tells hubs on their control lines what they should do, ends streams on
// demand that nobody wants any more, and moves streams away from workers that
// are dead, leave, or have more than others.
func (n *NVR) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { n.every(ctx, n.ReconcileEvery, "reconcile", n.Reconcile) })
	wg.Go(func() { n.every(ctx, n.SweepEvery, "sweep", n.Sweep) })
	wg.Go(func() { n.every(ctx, max(n.TicketTTL/20, time.Millisecond), "renew tickets", n.renewTickets) })
	wg.Go(func() { n.every(ctx, endEvery, "end streams on demand", n.EndTransient) })
	wg.Go(func() { n.tellLoop(ctx) })
	wg.Go(func() { n.tendLoop(ctx) })
	wg.Wait()
	return nil
}

// every calls f now and then once per period. A failure is logged and waits
// for the next turn: each job picks up where it stopped.
func (n *NVR) every(ctx context.Context, period time.Duration, what string, f func(context.Context) error) {
	t := time.NewTicker(period)
	defer t.Stop()
	for {
		if err := f(ctx); err != nil && ctx.Err() == nil {
			n.Log.Error("background work failed, will try again", "work", what, "in", period, "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// canonicalHost is how hosts are compared: lower case, no default port.
func canonicalHost(h string) string {
	h = strings.ToLower(h)
	h = strings.TrimSuffix(h, ":80")
	return strings.TrimSuffix(h, ":443")
}
