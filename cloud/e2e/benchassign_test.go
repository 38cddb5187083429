package e2e

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	mrand "math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/cloud/nvrlink"
	"github.com/zipato/vms/cloud/store"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/wire"
)

const (
	handHubs       = 200 // each with an address of its own, as households have
	handStreams    = 10  // of each
	handAtOnce     = 64  // handshakes under way
	joinsAndLeaves = 1000
	// churnStreams come and go: about half of them are there at any time, so that
	// ten per cent are a few.
	churnStreams = 200
)

// crowd is an NVR, a process with its real store, workers that take nothing and
// hubs that record nothing: what they say to the NVR is real.
type crowd struct {
	*stack
	t       *testing.T
	key     []byte
	streams []*handStream
	workers map[vms.WorkerID]*handWorker

	assigned atomic.Int64 // assignments that came
}

// handStream is the session of one stream.
type handStream struct {
	c      *crowd
	hub    vms.HubID
	ch     vms.ChannelID
	sid    vms.SID
	key    ed25519.PrivateKey
	client *http.Client // of the hub

	mu sync.Mutex
	at wire.Assign // of the highest generation

	stop func() // not nil while it has joined
}

// handWorker is the line of one worker.
type handWorker struct {
	id   vms.WorkerID
	stop func()
	load atomic.Pointer[vms.WorkerLoad]
}

// startCrowd writes hubs, channels and sessions into the store of an NVR that
// is started then.
func startCrowd(t *testing.T) *crowd {
	t.Helper()
	c := &crowd{stack: &stack{t: t, data: t.TempDir()}, t: t, workers: make(map[vms.WorkerID]*handWorker)}
	db, err := store.OpenSQLite(t.Context(), filepath.Join(c.data, "vms.db"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range handHubs {
		c.addHub(t, db, i)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	address := freePort(t)
	c.url = "http://" + address
	c.cloud = startProgram(t, "vms-cloud", []string{"VMS_LOG_LEVEL=warn"}, "-roles", "api,nvr", "-data", c.data,
		"-listen", address, "-s3-listen", freePort(t), "-mqtt-listen", freePort(t))
	c.cloud.line("listening ", 20*time.Second)
	c.token = c.secret("admin-token")
	if c.key, err = hex.DecodeString(c.secret("cluster-key")); err != nil {
		t.Fatal(err)
	}
	return c
}

// addHub makes a hub that has enrolled, and its streams.
func (c *crowd) addHub(t *testing.T, db *store.Store, i int) {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	const account = vms.AccountID("acct_demo")
	now, hub := time.Now().UTC(), vms.HubID(fmt.Sprintf("hub_%d", i))
	code := nvr.CodeHash(sha256.Sum256([]byte(hub)))
	from := &net.TCPAddr{IP: net.IPv4(127, 77, byte(i>>8), byte(i)+1)}
	client := &http.Client{Transport: &http.Transport{DialContext: (&net.Dialer{LocalAddr: from}).DialContext, MaxIdleConnsPerHost: handStreams}}
	t.Cleanup(client.CloseIdleConnections)
	err = db.CreateHub(t.Context(), nvr.Hub{ID: hub, Account: account, Name: string(hub), CreatedAt: now}, code, now.Add(time.Hour))
	if err == nil {
		_, err = db.EnrolHub(t.Context(), code, pub, "", now)
	}
	for j := range handStreams {
		s := &handStream{c: c, hub: hub, key: key, client: client, ch: vms.ChannelID(fmt.Sprintf("ch_%d_%d", i, j)), sid: vms.SID(fmt.Sprintf("sid_%d_%d", i, j))}
		if err == nil {
			err = db.CreateChannel(t.Context(), nvr.ChannelRow{ID: s.ch, Account: account, Hub: hub, Name: string(s.ch), CreatedAt: now})
		}
		if err == nil {
			err = db.CreateSession(t.Context(), nvr.Session{SID: s.sid, Account: account, Channel: s.ch, Hub: hub, State: nvr.SessionOpen, CreatedAt: now})
		}
		c.streams = append(c.streams, s)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// join opens the session, as an agent does: without a proof first, for the
// nonce; and returns when it has a worker.
func (s *handStream) join(ctx context.Context) error {
	u := "ws" + strings.TrimPrefix(s.c.url, "http") + "/session/v1?sid=" + string(s.sid)
	options := &websocket.DialOptions{HTTPClient: s.client, Subprotocols: []string{wire.SessionProtocol}, CompressionMode: websocket.CompressionDisabled}
	ws, resp, err := websocket.Dial(ctx, u, options)
	if err == nil {
		ws.CloseNow()
		return errors.New("the NVR asked for no proof")
	}
	if resp == nil {
		return err
	}
	nonce, ok := wire.ParseChallenge(resp.Header)
	if !ok {
		return err
	}
	options.HTTPHeader = http.Header{"Authorization": {wire.Prove(s.key, nonce, s.hub, strings.TrimPrefix(s.c.url, "http://"), s.sid).Header()}}
	if ws, _, err = websocket.Dial(ctx, u, options); err != nil {
		return err
	}
	ws.SetReadLimit(wire.MaxControl)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	s.stop = func() {
		_ = ws.Close(websocket.StatusNormalClosure, "") // the NVR learns of it either way
		cancel()
		<-done
	}
	first := make(chan error, 1)
	go func() {
		defer close(done)
		defer ws.CloseNow()
		first <- s.serve(ctx, ws, func() { first <- nil })
	}()
	if err := <-first; err != nil {
		cancel()
		<-done
		s.stop = nil
		return err
	}
	return nil
}

// serve says hello, obeys, and calls assigned at the first assignment.
func (s *handStream) serve(ctx context.Context, ws *websocket.Conn, assigned func()) error {
	say := func(m wire.SessionMessage) error {
		data, err := wire.EncodeSession(m)
		if err != nil {
			return err
		}
		return ws.Write(ctx, websocket.MessageText, data)
	}
	if err := say(&wire.SessionHello{Agent: "bench", Boot: "boot_" + string(s.hub)}); err != nil {
		return err
	}
	for once := true; ; {
		_, data, err := ws.Read(ctx)
		if err != nil {
			return err
		}
		m, err := wire.DecodeSession(data)
		if err != nil {
			return err
		}
		switch m := m.(type) {
		case *wire.Ping:
			if err := say(&wire.Pong{}); err != nil {
				return err
			}
		case *wire.Assign:
			s.c.assigned.Add(1)
			s.mu.Lock()
			if m.Generation >= s.at.Generation {
				s.at = *m
			}
			s.mu.Unlock()
			if once {
				once = false
				assigned()
			}
		}
	}
}

// worker is where the stream was told to push.
func (s *handStream) worker() vms.WorkerID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at.Worker
}

// leave closes the session.
func (s *handStream) leave() {
	s.stop()
	s.stop = nil
}

// workerUp starts a worker's line, and waits until the NVR has it.
func (c *crowd) workerUp(id vms.WorkerID) {
	c.t.Helper()
	w := &handWorker{id: id}
	w.load.Store(&vms.WorkerLoad{TmpfsLimit: 1 << 30})
	ctx, cancel := context.WithCancel(c.t.Context())
	up := make(chan struct{}, 1)
	client, err := nvrlink.NewClient(nvrlink.ClientConfig{
		URL: "ws" + strings.TrimPrefix(c.url, "http") + nvrlink.Path, Key: c.key,
		Info: vms.WorkerInfo{
			ID: id, Instance: vms.NewID[vms.Instance]("run"), Version: "bench",
			PushURL: "ws://" + string(id) + "/push/v1", LiveURL: "ws://" + string(id) + "/live/v1/mse",
		},
		Load: func() vms.WorkerLoad { return *w.load.Load() },
		OnUp: func(context.Context) {
			select {
			case up <- struct{}{}:
			default:
			}
		},
		OnDrain: func() { w.load.Store(&vms.WorkerLoad{TmpfsLimit: 1 << 30, Draining: true}) },
		Log:     vmstest.Log(c.t),
	})
	if err != nil {
		c.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- client.Run(ctx) }()
	w.stop = func() {
		cancel()
		if err := <-done; err != nil {
			c.t.Errorf("the line of worker %s: %v", id, err)
		}
	}
	c.workers[id] = w
	c.t.Cleanup(func() {
		if c.workers[id] == w {
			w.stop()
		}
	})
	select {
	case <-up:
	case <-time.After(20 * time.Second):
		c.t.Fatalf("worker %s has no line to the NVR", id)
	}
}

// workerLeaves breaks a worker's line for good.
func (c *crowd) workerLeaves(id vms.WorkerID) {
	c.workers[id].stop()
	delete(c.workers, id)
}

// assignments has all streams come at once, and returns how many of them get a
// worker per second.
func (c *crowd) assignments() float64 {
	c.t.Helper()
	todo := make(chan *handStream)
	var wg sync.WaitGroup
	var failed atomic.Pointer[error]
	begin := time.Now()
	for range handAtOnce {
		wg.Go(func() {
			for s := range todo {
				if err := s.join(c.t.Context()); err != nil {
					failed.Store(&err)
				}
			}
		})
	}
	for _, s := range c.streams {
		todo <- s
	}
	close(todo)
	wg.Wait()
	took := time.Since(begin)
	if err := failed.Load(); err != nil {
		c.t.Fatalf("a stream got no worker: %v", *err)
	}
	return float64(len(c.streams)) / took.Seconds()
}

// counts is how many streams each worker has, by what the streams were told.
func (c *crowd) counts() map[vms.WorkerID]int {
	out := make(map[vms.WorkerID]int)
	for id := range c.workers {
		out[id] = 0
	}
	for _, s := range c.streams {
		if s.stop != nil {
			out[s.worker()]++
		}
	}
	return out
}

// imbalance is by how much the fullest worker has more than the emptiest, in per
// cent of the mean. A stream that is at a worker which is gone is counted for
// that one: there is no balance yet.
func (c *crowd) imbalance() (percent float64, counts map[vms.WorkerID]int) {
	counts = c.counts()
	all := slices.Collect(maps.Values(counts))
	sum := 0
	for _, n := range all {
		sum += n
	}
	return 100 * float64(slices.Max(all)-slices.Min(all)) * float64(len(all)) / float64(sum), counts
}

// emptied drains a worker, and waits until it has no stream any more.
func (c *crowd) emptied(id vms.WorkerID) {
	c.t.Helper()
	c.call("POST", "/workers/"+string(id)+"/drain", nil, nil)
	c.eventually(time.Minute, "worker "+string(id)+" is drained", func() bool { return c.workerList()[id].Assigned == 0 })
}

// churn has streams and workers come and go at random.
func (c *crowd) churn(r *mrand.Rand, streams []*handStream) {
	c.t.Helper()
	ids := []vms.WorkerID{"b1", "b2", "b3", "b4", "b5", "b6"}
	for range joinsAndLeaves {
		if r.IntN(50) == 0 { // it takes an NVR seconds to be sure that one is dead: so many are fast enough
			id := ids[r.IntN(len(ids))]
			switch {
			case c.workers[id] == nil:
				c.workerUp(id)
			case len(c.workers) > 2:
				if r.IntN(2) == 0 {
					c.emptied(id)
				}
				c.workerLeaves(id)
			}
			continue
		}
		s := streams[r.IntN(len(streams))]
		if s.stop != nil {
			s.leave()
		} else if err := s.join(c.t.Context()); err != nil {
			c.t.Fatalf("stream %s: %v", s.ch, err)
		}
		time.Sleep(10 * time.Millisecond) // the pace of a fleet, not a wait for luck
	}
}

// benchAssignments measures how fast an NVR hands out workers when everybody
// comes at once, and how evenly they are used after many have come and gone.
func benchAssignments(t *testing.T) {
	c := startCrowd(t)
	b := &bench{stack: c.stack}
	for _, id := range []vms.WorkerID{"b1", "b2", "b3"} {
		c.workerUp(id)
	}
	rate := c.assignments()
	b.want("scale_assignments_per_second", rate, "streams", func(v float64) bool { return v >= minAssignments })
	percent, counts := c.imbalance()
	t.Logf("%d streams: %v", len(c.streams), counts)
	b.figure("scale_imbalance_at_once_percent", percent, "%")

	seed := mrand.Uint64()
	t.Logf("seed %d", seed)
	r := mrand.New(mrand.NewPCG(seed, 0))
	for _, s := range c.streams[churnStreams:] {
		s.leave()
	}
	c.churn(r, c.streams[:churnStreams])
	percent, counts = c.imbalance()
	t.Logf("after %d joins and leaves: %v", joinsAndLeaves, counts)
	b.figure("scale_imbalance_before_moves_percent", percent, "%")
	begin := time.Now()
	limit := begin.Add(4 * time.Minute)
	for {
		percent, counts = c.imbalance()
		if percent <= maxImbalance || time.Now().After(limit) {
			break
		}
		time.Sleep(200 * time.Millisecond) // the pace of asking
	}
	t.Logf("in the end: %v", counts)
	b.want("scale_imbalance_percent", percent, "%", func(v float64) bool { return v <= maxImbalance })
	b.figure("scale_balanced_within_s", time.Since(begin).Seconds(), "s")
	for _, s := range c.streams {
		if s.stop != nil {
			s.leave()
		}
	}
	c.cloud.signal(syscall.SIGTERM)
}
