package e2e

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"iter"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/cloud/nvr/nvrtest"
	"github.com/zipato/vms/cloud/worker"
	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

const simAccount vms.AccountID = "demo"

var errSimulated = errors.New("simulated failure")

// simSigner signs for all runs: keys cost time to make.
var simSigner = sync.OnceValue(func() *token.Signer {
	s, err := token.NewSigner(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)))
	if err != nil {
		panic(err)
	}
	return s
})

// simBucket is an object store in memory that may fail in every way.
type simBucket struct {
	created func(key string) // told of each new object; it must not block

	mu      sync.Mutex
	rng     *rand.Rand
	objects map[string]simObject
	ever    map[vms.ChannelID]*vms.ChunkSet // what was ever stored
	down    bool
	slow    time.Duration
	lies    int // so many puts succeed and say that they did not
	noRead  bool
}

type simObject struct {
	vms.Recording
	body []byte
}

func (b *simBucket) set(f func(*simBucket)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(b)
}

func (b *simBucket) failing(reading bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.down || reading && b.noRead {
		return errSimulated
	}
	return nil
}

// Stat implements nvr.Objects.
func (b *simBucket) Stat(_ context.Context, key string) (vms.Recording, error) {
	if err := b.failing(true); err != nil {
		return vms.Recording{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	o, ok := b.objects[key]
	if !ok {
		return vms.Recording{}, vms.ErrNotFound
	}
	return o.Recording, nil
}

// List implements nvr.Objects.
func (b *simBucket) List(_ context.Context, prefix, after string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		if err := b.failing(true); err != nil {
			yield("", err)
			return
		}
		b.mu.Lock()
		keys := slices.Sorted(maps.Keys(b.objects))
		b.mu.Unlock()
		for _, k := range keys {
			if k > after && strings.HasPrefix(k, prefix) && !yield(k, nil) {
				return
			}
		}
	}
}

// Delete implements nvr.Objects.
func (b *simBucket) Delete(_ context.Context, key string) error {
	if err := b.failing(false); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.objects, key)
	return nil
}

// PresignPut implements nvr.Objects.
func (b *simBucket) PresignPut(_ context.Context, key string, expiry time.Duration, _ string) (string, time.Time, error) {
	return "http://bucket.invalid/" + key + "?put", time.Now().Add(expiry), nil
}

// PresignGet implements nvr.Objects.
func (b *simBucket) PresignGet(_ context.Context, key string, expiry time.Duration, _ string) (string, time.Time, error) {
	return "http://bucket.invalid/" + key, time.Now().Add(expiry), nil
}

// stored reports whether a chunk was ever in an object.
func (b *simBucket) stored(ch vms.ChannelID, e vms.Epoch, seq uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.ever[ch]
	return s != nil && s.Has(e, seq)
}

// simStore is the bucket as one run of a worker sees it.
type simStore struct {
	*simBucket
	run *simRun
}

// Put implements upload.Store.
func (s simStore) Put(ctx context.Context, r vms.Recording, body io.ReadSeeker) error {
	data, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	s.mu.Lock()
	slow, late := s.slow, s.rng.IntN(2) == 0
	s.mu.Unlock()
	if slow > 0 {
		select {
		case <-time.After(slow):
		case <-ctx.Done():
			if late { // it was under way
				_ = s.put(r, data)
			}
			return ctx.Err()
		case <-s.run.killed:
			if late {
				_ = s.put(r, data)
			}
		}
	}
	if s.run.dead() {
		return errSimulated
	}
	return s.put(r, data)
}

func (b *simBucket) put(r vms.Recording, data []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.down {
		return errSimulated
	}
	if _, taken := b.objects[r.Key]; taken {
		return vms.ErrConflict
	}
	if int64(len(data)) != r.Bytes || sha256.Sum256(data) != r.SHA256 {
		return errors.New("checksum mismatch")
	}
	b.objects[r.Key] = simObject{r, data}
	if b.ever[r.Channel] == nil {
		b.ever[r.Channel] = new(vms.ChunkSet)
	}
	b.ever[r.Channel].Add(r.Chunks)
	b.created(r.Key)
	if b.lies > 0 {
		b.lies--
		return errSimulated
	}
	return nil
}

// Stat implements upload.Store.
func (s simStore) Stat(ctx context.Context, key string) (vms.Recording, error) {
	if s.run.dead() {
		return vms.Recording{}, errSimulated
	}
	return s.simBucket.Stat(ctx, key)
}

// Get implements upload.Store.
func (s simStore) Get(_ context.Context, key string) (io.ReadCloser, error) {
	if err := s.failing(true); err != nil || s.run.dead() {
		return nil, errSimulated
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.objects[key]
	if !ok {
		return nil, vms.ErrNotFound
	}
	return io.NopCloser(bytes.NewReader(o.body)), nil
}

// simWorker is a worker across its runs.
type simWorker struct {
	w   *world
	id  vms.WorkerID
	net *simNet

	mu   sync.Mutex
	n    int
	left string  // the directory of a run that was killed, for the next one
	run  *simRun // nil: it does not run
	wait sync.WaitGroup
}

// simRun is one run of a worker's process.
type simRun struct {
	worker *worker.Worker
	dir    string
	killed chan struct{}
	once   sync.Once
	ln     *simListener
	stop   context.CancelFunc
	line   simWorkerLine
}

func (r *simRun) dead() bool {
	select {
	case <-r.killed:
		return true
	default:
		return false
	}
}

// start begins a run, unless there is one.
func (s *simWorker) start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.run != nil {
		return
	}
	s.n++
	r := &simRun{dir: cmp.Or(s.left, filepath.Join(s.w.dir, string(s.id)+"-"+strconv.Itoa(s.n))), killed: make(chan struct{}), ln: newSimListener()}
	v := simSigner().Verifier()
	p := s.w.profile
	w, err := worker.New(worker.Config{
		ID: s.id, Dir: r.dir, Store: simStore{s.w.bucket, r}, NVR: simLinkToNVR{s.w, r}, Log: s.w.log.logger(string(s.id)),
		CheckPush: func(t string) (token.Push, error) { return v.VerifyPush(t, s.id, time.Now()) },
		CheckView: func(t string) (token.View, error) { return v.VerifyView(t, s.id, time.Now()) },
		Grace:     p.grace, Forget: p.forget, Janitor: time.Minute,
	})
	if err != nil {
		s.w.violation("worker %s does not start: %v", s.id, err)
		return
	}
	r.worker, r.line.w = w, w
	srv := &http.Server{Handler: w.PushHandler(), ReadHeaderTimeout: time.Minute, ErrorLog: s.w.log.std}
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	s.wait.Go(func() { _ = srv.Serve(r.ln) })
	s.wait.Go(func() {
		if err := w.Run(ctx); err != nil {
			s.w.violation("worker %s: Run = %v", s.id, err)
		}
		_ = r.ln.Close()
		_ = srv.Close()
		os.RemoveAll(r.dir)
	})
	s.run = r
	s.net.set(func(n *simNet) { n.server = r.ln })
	s.w.cloud.register(s, r)
}

// end ends the run: killed, or told to go.
func (s *simWorker) end(kill bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.run
	if r == nil {
		return
	}
	s.run = nil
	s.left = ""
	if kill {
		r.once.Do(func() { close(r.killed) })
		s.left = r.dir + "-left"
		s.w.cloud.must(copyTmpfs(s.left, r.dir))
	}
	s.net.set(func(n *simNet) { n.server = nil })
	if kill {
		s.net.cut(false)
		_ = r.ln.Close()
	}
	r.stop()
	s.w.cloud.unregister(s, r, kill)
}

// copyTmpfs keeps what a killed process leaves. Its files may go while they are
// copied: it was killed before that.
func copyTmpfs(to, from string) error {
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	list, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, f := range list {
		b, err := os.ReadFile(filepath.Join(from, f.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, f.Name()), b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// simLinkToNVR is the NVR as one run of a worker sees it.
type simLinkToNVR struct {
	w   *world
	run *simRun
}

// call runs f with the NVR if that is there. What it did may be lost on the way back.
func (l simLinkToNVR) call(f func(*nvr.NVR) error) error {
	n, err := l.w.cloud.reach()
	if err != nil || l.run.dead() {
		return errSimulated
	}
	err = f(n)
	if l.w.cloud.losesAnswer() || l.run.dead() {
		return errSimulated
	}
	return err
}

func (l simLinkToNVR) StreamStarted(ctx context.Context, e vms.StreamEvent) error {
	return l.call(func(n *nvr.NVR) error { return n.StreamStarted(ctx, e) })
}

func (l simLinkToNVR) StreamEnded(ctx context.Context, e vms.StreamEvent) error {
	return l.call(func(n *nvr.NVR) error { return n.StreamEnded(ctx, e) })
}

func (l simLinkToNVR) RecordingUploaded(ctx context.Context, r vms.Recording) error {
	return l.call(func(n *nvr.NVR) error { return n.RecordingUploaded(ctx, r) })
}

func (l simLinkToNVR) Parts(ctx context.Context, ch vms.ChannelID, epochs []vms.Epoch) (out []vms.Recording, err error) {
	err = l.call(func(n *nvr.NVR) error { out, err = n.Parts(ctx, ch, epochs); return err })
	return out, err
}

func (l simLinkToNVR) Wholes(ctx context.Context, ch vms.ChannelID, r vms.ChunkRange) (out []vms.ChunkRange, err error) {
	err = l.call(func(n *nvr.NVR) error { out, err = n.Wholes(ctx, ch, r); return err })
	return out, err
}

func (l simLinkToNVR) AbandonedParts(ctx context.Context, limit int) (out []vms.Recording, err error) {
	err = l.call(func(n *nvr.NVR) error { out, err = n.AbandonedParts(ctx, limit); return err })
	return out, err
}

func (l simLinkToNVR) Viewers(ctx context.Context, ch vms.ChannelID, viewers int) error {
	return l.call(func(n *nvr.NVR) error { return n.Viewers(ctx, ch, viewers) })
}

// simCloud is the NVR across its runs, and its database.
type simCloud struct {
	w     *world
	store *nvrtest.Store
	hub   vms.HubID
	sids  map[vms.ChannelID]vms.SID

	mu       sync.Mutex
	nvr      *nvr.NVR
	stop     context.CancelFunc
	down     bool
	muddle   bool // answers are lost now and then
	known    map[vms.WorkerID]vms.WorkerInfo
	lines    map[vms.WorkerID]*simWorkerLine
	sessions map[*simSession]bool
	wait     sync.WaitGroup
	busy     atomic.Int64 // events on their way
}

func (c *simCloud) config() nvr.Config {
	return nvr.Config{
		Store: c.store, Objects: c.w.bucket, Tokens: simSigner(), SecretKey: bytes.Repeat([]byte{7}, 32),
		NVRURL: "ws://nvr.simulated/session/v1", Clock: time.Now, Log: c.w.log.logger("nvr"),
		Segment:        wire.SegmentOptions{RecordingMS: int64(simRecording / time.Millisecond), ChunkMS: 500},
		URLTTL:         time.Minute,
		SweepEvery:     20 * time.Second,
		ReconcileEvery: c.w.profile.reconcile,
		// Long enough that nothing in a schedule looks like a hub that stays away.
		UnreachableAfter: simUnreachable,
	}
}

// simUnreachable is after how long a silent hub is given up.
const simUnreachable = 20 * time.Minute

// begin makes the account's hub and channels, and starts the NVR.
func (c *simCloud) begin(chs []vms.ChannelID) {
	ctx := context.Background()
	c.hub = "hub_1"
	c.must(c.store.CreateHub(ctx, nvr.Hub{ID: c.hub, Account: simAccount, CreatedAt: time.Now()}, nvr.CodeHash{1}, time.Now().Add(time.Hour)))
	for _, ch := range chs {
		sid := vms.SID("sid_" + string(ch))
		c.must(c.store.CreateChannel(ctx, nvr.ChannelRow{ID: ch, Account: simAccount, Hub: c.hub, CreatedAt: time.Now()}))
		c.must(c.store.CreateSession(ctx, nvr.Session{SID: sid, Account: simAccount, Channel: ch, Hub: c.hub, State: nvr.SessionOpen, CreatedAt: time.Now()}))
		c.sids[ch] = sid
	}
	c.start()
}

func (c *simCloud) must(err error) {
	if err != nil {
		panic(err)
	}
}

// start begins a run of the NVR.
func (c *simCloud) start() {
	n, err := nvr.New(c.config())
	c.must(err)
	ctx, stop := context.WithCancel(context.Background())
	c.mu.Lock()
	c.nvr, c.stop = n, stop
	for id, info := range c.known {
		c.must(n.WorkerUp(info, c.lines[id]))
	}
	c.mu.Unlock()
	c.wait.Go(func() {
		if err := n.Run(ctx); err != nil {
			c.w.violation("nvr: Run = %v", err)
		}
	})
}

// restart is a new process over the same database.
func (c *simCloud) restart() {
	c.mu.Lock()
	c.stop()
	c.mu.Unlock()
	c.cutSessions()
	c.start()
}

func (c *simCloud) setDown(down bool) {
	c.mu.Lock()
	c.down = down
	c.mu.Unlock()
	if down {
		c.store.Fail(errSimulated) // what is under way does not get through either
		c.cutSessions()
	} else {
		c.store.Fail(nil)
	}
}

func (c *simCloud) cutSessions() {
	c.mu.Lock()
	all := slices.Collect(maps.Keys(c.sessions))
	c.mu.Unlock()
	for _, s := range all {
		s.cut()
	}
}

// reach returns the NVR, unless it is away.
func (c *simCloud) reach() (*nvr.NVR, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down {
		return nil, errSimulated
	}
	return c.nvr, nil
}

func (c *simCloud) setMuddle(on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.muddle = on
}

// peek reads the gaps that the database has, also when the NVR is away.
func (c *simCloud) peek(ch vms.ChannelID) ([]vms.Gap, error) {
	c.mu.Lock()
	down := c.down
	c.mu.Unlock()
	if down {
		c.store.Fail(nil)
		defer c.store.Fail(errSimulated)
	}
	return c.store.Gaps(context.Background(), ch, time.Unix(0, 0), time.Now().Add(time.Hour), 100_000)
}

func (c *simCloud) losesAnswer() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.muddle && c.w.chance(3)
}

// instanceOf returns the present run of a worker.
func (c *simCloud) instanceOf(id vms.WorkerID) vms.Instance {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.known[id].Instance
}

func (c *simCloud) register(s *simWorker, r *simRun) {
	info := vms.WorkerInfo{ID: s.id, Instance: r.worker.Instance(), PushURL: "ws://" + s.net.host + "/push/v1"}
	c.mu.Lock()
	c.known[s.id], c.lines[s.id] = info, &r.line
	n := c.nvr
	c.mu.Unlock()
	up := n.WorkerUp(info, &r.line) == nil // else the run before was heard a moment ago
	s.wait.Go(func() { c.beat(info, r, up) })
}

// beat says every second that a run of a worker lives.
func (c *simCloud) beat(info vms.WorkerInfo, r *simRun, up bool) {
	for !r.dead() {
		c.mu.Lock()
		n, known := c.nvr, c.known[info.ID].Instance == info.Instance
		c.mu.Unlock()
		if !known {
			return
		}
		if !up {
			up = n.WorkerUp(info, &r.line) == nil
		}
		n.WorkerAlive(info.ID, info.Instance, vms.WorkerLoad{})
		select {
		case <-c.w.over:
			return
		case <-time.After(time.Second):
		}
	}
}

// simWorkerLine is the NVR's line to a run of a worker.
type simWorkerLine struct{ w *worker.Worker }

func (l *simWorkerLine) Revoke(sids []vms.SID)     { l.w.Revoke(sids) }
func (*simWorkerLine) Moved(vms.ChannelID, string) {}
func (*simWorkerLine) Drain()                      {}
func (*simWorkerLine) Replace()                    {}

// unregister forgets a run that goes, at once, or that was killed, when that is
// noticed.
func (c *simCloud) unregister(s *simWorker, r *simRun, killed bool) {
	forget := func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.known[s.id].Instance == r.worker.Instance() {
			delete(c.known, s.id)
			delete(c.lines, s.id)
		}
		c.nvr.WorkerDown(s.id, r.worker.Instance(), &r.line)
	}
	if !killed {
		forget()
		return
	}
	c.w.later(c.w.upTo(8*time.Second), forget)
}

// created is the bucket's notice of a new object: late, perhaps twice, and
// again until the NVR has heard it.
func (c *simCloud) created(key string) {
	if !c.w.profile.events {
		return
	}
	for range 1 + c.w.intn(5)/4 {
		c.busy.Add(1)
		wait := c.w.upTo(4 * time.Second)
		c.wait.Go(func() {
			defer c.busy.Add(-1)
			for {
				select {
				case <-c.w.over:
					return
				case <-time.After(wait):
				}
				n, err := c.reach()
				if err == nil && n.ObjectCreated(context.Background(), key) == nil {
					return
				}
				wait = 2 * time.Second
			}
		})
	}
}
