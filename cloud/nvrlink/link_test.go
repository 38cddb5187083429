package nvrlink

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/cloud/nvr/nvrtest"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/vmstest/chaos"
)

func testEvent() vms.StreamEvent {
	return vms.StreamEvent{
		Channel: "ch_1", SID: "sid_1", Hub: "hub_1", Generation: 1 << 60, Worker: testWorker.ID, Instance: testWorker.Instance,
		Lane: vms.LaneLive, Epoch: 0xfedcba9876543210, At: time.Date(2026, 11, 5, 12, 0, 0, 123456789, time.UTC), Cause: "stop",
	}
}

func testRecording(n uint32) vms.Recording {
	start := time.Date(2026, 11, 5, 12, 0, 0, 123456000, time.UTC).Add(time.Duration(n) * time.Second)
	r := vms.Recording{
		Channel: "ch_1", Chunks: vms.ChunkRange{Epoch: 0xab, First: 1 + 10*uint64(n), Last: 10 + 10*uint64(n)}, Number: n,
		Start: start, End: start.Add(time.Second + 1), Media: time.Second - 1, Bytes: 1 << 40, SHA256: [32]byte{0: 1, 31: byte(n)},
		HeadLen: 1400, InitLen: 1100, Codecs: "avc1.64001f,mp4a.40.2", Dependent: n%2 == 0, TimeUncertain: n%3 == 0,
	}
	r.Key = vms.PartKey(r.Channel, r.Chunks, r.Number)
	return r
}

func TestEverythingArrivesAsItWasSaid(t *testing.T) {
	s := startServer(t, nil)
	for n := range uint32(3*maxRecordings + 1) {
		s.rules.recordings = append(s.rules.recordings, testRecording(n))
	}
	for n := range uint64(3*maxChunkRuns + 1) {
		s.rules.ranges = append(s.rules.ranges, vms.ChunkRange{Epoch: ^vms.Epoch(0), First: 1 + 2*n, Last: 1 + 2*n})
	}
	c := startClient(t, s.url, nil)
	until(t, "the link is up", c.Up)
	if got := get(s.rules, func(r *rules) vms.WorkerInfo { return r.ups[0] }); got != testWorker {
		t.Errorf("the NVR knows %+v, want %+v", got, testWorker)
	}

	ctx := t.Context()
	ended := testEvent()
	ended.Epoch, ended.Lane = 0, vms.LaneBackfill
	for _, err := range []error{c.StreamStarted(ctx, testEvent()), c.StreamEnded(ctx, ended), c.RecordingUploaded(ctx, testRecording(5)), c.Viewers(ctx, "ch_1", 3)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	epochs := make([]vms.Epoch, 1024)
	for i := range epochs {
		epochs[i] = ^vms.Epoch(i)
	}
	if got, err := c.Parts(ctx, "ch_1", epochs); err != nil || !reflect.DeepEqual(got, s.rules.recordings) {
		t.Errorf("Parts = %d recordings, %v, want the %d that there are", len(got), err, len(s.rules.recordings))
	}
	all := vms.ChunkRange{Epoch: 1, First: 1, Last: 1 << 62}
	if got, err := c.Wholes(ctx, "ch_1", all); err != nil || !slices.Equal(got, s.rules.ranges) {
		t.Errorf("Wholes = %d ranges, %v, want the %d that there are", len(got), err, len(s.rules.ranges))
	}
	if got, err := c.AbandonedParts(ctx, 256); err != nil || !reflect.DeepEqual(got, s.rules.recordings) {
		t.Errorf("AbandonedParts = %d recordings, %v, want the %d that there are", len(got), err, len(s.rules.recordings))
	}
	want := []any{startedEvent{testEvent()}, endedEvent{ended}, testRecording(5), viewersNotice{3}, partsQuestion{1024}, wholesQuestion{all}, limitQuestion{256}}
	if got := get(s.rules, func(r *rules) []any { return r.said }); !reflect.DeepEqual(got, want) {
		t.Errorf("the NVR heard\n%+v, want\n%+v", got, want)
	}

	s.rules.set(func(r *rules) { r.recordings, r.ranges = nil, nil })
	if got, err := c.Parts(ctx, "ch_1", epochs[:1]); got != nil || err != nil {
		t.Errorf("Parts = %v, %v, want none", got, err)
	}
	if got, err := c.Wholes(ctx, "ch_1", all); got != nil || err != nil {
		t.Errorf("Wholes = %v, %v, want none", got, err)
	}
}

func TestErrorsTravelAsTheKindThatTheyAre(t *testing.T) {
	s := startServer(t, nil)
	c := startClient(t, s.url, nil)
	until(t, "the link is up", c.Up)
	for _, p := range append(problems, struct {
		word string
		kind error
	}{"unavailable", errors.New("the disk is full")}) {
		s.rules.set(func(r *rules) {
			r.onAsk = func(context.Context, any) error {
				return fmt.Errorf("stream %s: %w", strings.Repeat("ä", maxText), p.kind)
			}
		})
		want := p.kind
		if p.word == "unavailable" {
			want = vms.ErrUnavailable
		}
		if err := c.StreamStarted(t.Context(), testEvent()); !isKind(err, want) || !strings.Contains(err.Error(), "stream ää") {
			t.Errorf("StreamStarted = %v, want %v", err, want)
		}
		if got, err := c.Parts(t.Context(), "ch_1", []vms.Epoch{1}); !isKind(err, want) || got != nil {
			t.Errorf("Parts = %v, %v, want %v", got, err, want)
		}
	}
	s.rules.set(func(r *rules) { r.onAsk = nil })

	// What cannot be said is invalid, and does not harm the link.
	other := testEvent()
	other.Instance = "run_2"
	bad := testRecording(1)
	bad.Start = bad.Start.AddDate(10_000, 0, 0)
	strange := testRecording(1)
	strange.Key = "recordings/ch_1/\u2028"
	for what, err := range map[string]error{
		"event of another instance": c.StreamStarted(t.Context(), other),
		"no channel":                c.Viewers(t.Context(), "No Channel", 1),
		"the year 12026":            c.RecordingUploaded(t.Context(), bad),
		"key":                       c.RecordingUploaded(t.Context(), strange),
		"too many epochs":           func() error { _, err := c.Parts(t.Context(), "ch_1", make([]vms.Epoch, maxEpochs+1)); return err }(),
	} {
		if !errors.Is(err, vms.ErrInvalid) {
			t.Errorf("%s: %v, want %v", what, err, vms.ErrInvalid)
		}
	}
	// What the NVR cannot say it says so.
	s.rules.set(func(r *rules) { r.recordings = []vms.Recording{testRecording(1), bad} })
	if got, err := c.Parts(t.Context(), "ch_1", []vms.Epoch{1}); !isKind(err, vms.ErrUnavailable) {
		t.Errorf("Parts = %v, %v, want %v", got, err, vms.ErrUnavailable)
	}
	if err := c.StreamStarted(t.Context(), testEvent()); err != nil || s.rules.nUps() != 1 {
		t.Errorf("StreamStarted = %v, %d links, want the first one to be up still", err, s.rules.nUps())
	}
}

func TestOrdersArriveInOrder(t *testing.T) {
	var public atomic.Pointer[[]ed25519.PublicKey]
	public.Store(&testPublic)
	s := startServer(t, func(cfg *HandlerConfig) { cfg.Keys = func() []ed25519.PublicKey { return *public.Load() } })
	var mu sync.Mutex
	var got []any
	var known [][]ed25519.PublicKey
	note := func(x any) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, x)
	}
	var upFirst atomic.Bool
	c := startClient(t, s.url, func(cfg *ClientConfig) {
		cfg.OnUp = func(context.Context) {
			mu.Lock()
			defer mu.Unlock()
			upFirst.Store(len(known) == 0)
		}
		cfg.OnRevoke = func(sids []vms.SID) {
			for _, s := range sids {
				note(s)
			}
		}
		cfg.OnMoved = func(ch vms.ChannelID, u string) { note(string(ch) + " " + u) }
		cfg.OnDrain = func() { note("drain") }
		cfg.OnKeys = func(ks []ed25519.PublicKey) {
			mu.Lock()
			defer mu.Unlock()
			known = append(known, ks)
		}
	})
	until(t, "the link is up", c.Up)
	var want []any
	sids := make([]vms.SID, 2*maxSIDs+7)
	for i := range sids {
		sids[i] = vms.SID(fmt.Sprintf("sid_%d", i))
		want = append(want, sids[i])
	}
	l := s.rules.link()
	l.Revoke(sids)
	l.Moved("ch_1", "wss://b/live/v1?ticket=a&b=<c>")
	l.Drain()
	l.Moved("ch_2", "")
	want = append(want, "ch_1 wss://b/live/v1?ticket=a&b=<c>", "drain", "ch_2 ")
	until(t, "all orders have come", func() bool { mu.Lock(); defer mu.Unlock(); return len(got) >= len(want) })
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %d orders, want %d, in order", len(got), len(want))
	}
	if upFirst.Load() {
		t.Error("OnUp was called before the keys were known")
	}
	newer := []ed25519.PublicKey{testPublic[1]}
	public.Store(&newer)
	until(t, "the new keys are known", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return reflect.DeepEqual(known, [][]ed25519.PublicKey{testPublic, newer})
	})
}

func TestASlowOrderDoesNotHoldUpAnswers(t *testing.T) {
	s := startServer(t, nil)
	hold := make(chan struct{})
	obeying := make(chan struct{})
	c := startClient(t, s.url, func(cfg *ClientConfig) { cfg.OnDrain = func() { close(obeying); <-hold } })
	defer close(hold)
	until(t, "the link is up", c.Up)
	s.rules.link().Drain()
	<-obeying
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := c.Viewers(ctx, "ch_1", 1); err != nil {
		t.Error(err)
	}
}

func TestHeartbeatsTellTheLoad(t *testing.T) {
	s := startServer(t, nil)
	var load atomic.Pointer[vms.WorkerLoad]
	load.Store(&vms.WorkerLoad{
		Streams: 1, Lanes: 2, Viewers: 3, BytesPerSecond: 4, TmpfsUsed: 5, TmpfsLimit: 6, Lag: 7 * time.Second, UploadsWaiting: 8, Overloaded: true,
	})
	startClient(t, s.url, func(cfg *ClientConfig) { cfg.Load = func() vms.WorkerLoad { return *load.Load() } })
	heard := func(want *vms.WorkerLoad) {
		until(t, "the load is known", func() bool {
			return get(s.rules, func(r *rules) bool { return len(r.loads) > 0 && r.loads[len(r.loads)-1] == *want })
		})
	}
	heard(load.Load())
	load.Store(&vms.WorkerLoad{Draining: true})
	heard(load.Load())
}

func TestWrongKeyIsSaidOnBothSidesAndNothingElse(t *testing.T) {
	s := startServer(t, nil)
	c := startClient(t, s.url, func(cfg *ClientConfig) {
		cfg.Key = slices.Repeat([]byte{8}, MinKey)
		cfg.OnKeys = func([]ed25519.PublicKey) { t.Error("told before the proof") }
		cfg.OnUp = func(context.Context) { t.Error("up without a proof") }
	})
	until(t, "both have said it", func() bool {
		return len(c.log.lines("level=ERROR", "another cluster key", "-cluster-key-file", "VMS_CLUSTER_KEY_FILE")) > 0 &&
			len(s.log.lines("level=ERROR", "another cluster key", "-cluster-key-file", "VMS_CLUSTER_KEY_FILE", "worker=w1")) > 0
	})
	until(t, "it was tried some times", func() bool { return len(s.log.lines("worker not let in")) > 4 })
	c.stop()
	if n := len(c.log.lines("level=ERROR")) + len(c.log.lines("level=WARN")); n != 1 {
		t.Errorf("the worker said it %d times", n)
	}
	if n := len(s.log.lines("level=ERROR")); n != 1 {
		t.Errorf("the NVR said it %d times", n)
	}
	if s.rules.nUps() != 0 {
		t.Error("the worker was let in")
	}
	if err := c.Viewers(t.Context(), "ch_1", 1); !errors.Is(err, vms.ErrUnavailable) {
		t.Errorf("Viewers = %v, want %v", err, vms.ErrUnavailable)
	}
}

// TestOnlyAFreshProofLetsIn: a worker that goes on although the NVR's proof is
// wrong, one that repeats what another one sent, one that hands the NVR's own
// proof back.
func TestOnlyAFreshProofLetsIn(t *testing.T) {
	s := startServer(t, nil)
	if got := enterRaw(t, s.url, slices.Repeat([]byte{8}, MinKey)).closed(); got != statusWrongKey {
		t.Errorf("wrong key: closed with %d, want %d", got, statusWrongKey)
	}
	nonce := newNonce()
	handshake := func(answer func(first []byte, ch *challenge) hex32) *raw {
		r := dialRaw(t, s.url)
		first := r.say(newHello(testWorker, nonce))
		r.say(&proof{answer(first, r.hear(firstOfNVR).(*challenge))})
		return r
	}
	var good hex32
	r := handshake(func(first []byte, ch *challenge) hex32 {
		good = prove(testKey, byWorker, nonce, ch.Nonce, first)
		return good
	})
	r.hear(secondOfNVR)
	for what, answer := range map[string]func([]byte, *challenge) hex32{
		"repeated":       func([]byte, *challenge) hex32 { return good },
		"handed back":    func(_ []byte, ch *challenge) hex32 { return ch.Proof },
		"of other bytes": func(b []byte, ch *challenge) hex32 { return prove(testKey, byWorker, nonce, ch.Nonce, append(b, ' ')) },
	} {
		if got := handshake(answer).closed(); got != statusWrongKey {
			t.Errorf("%s: closed with %d, want %d", what, got, statusWrongKey)
		}
	}
	if n := s.rules.nUps(); n != 1 {
		t.Errorf("%d workers were let in, want one", n)
	}
}

// TestAnImpostorLearnsNothing: who has not the key gets a hello and a close.
func TestAnImpostorLearnsNothing(t *testing.T) {
	vmstest.NoLeaks(t)
	got := make(chan error, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{Protocol}})
		if err != nil {
			t.Error(err)
			return
		}
		defer ws.CloseNow()
		m, _, err := receive(r.Context(), ws, firstOfWorker)
		if err != nil {
			t.Error(err)
			return
		}
		send(r.Context(), ws, &challenge{newNonce(), prove(make([]byte, MinKey), byNVR, m.(*hello).Nonce, newNonce(), nil)})
		_, _, err = ws.Read(r.Context())
		select {
		case got <- err:
		default:
		}
	}))
	defer srv.Close()
	c := startClient(t, "ws"+strings.TrimPrefix(srv.URL, "http"), nil)
	if err := <-got; websocket.CloseStatus(err) != statusWrongKey {
		t.Errorf("the impostor read %v, want to be closed with %d", err, statusWrongKey)
	}
	c.stop()
}

func TestCutLinkComesBack(t *testing.T) {
	s := startServer(t, nil)
	p := chaos.New(t, s.addr)
	var ups atomic.Int32
	var over atomic.Int32
	c := startClient(t, "ws://"+p.Addr()+Path, func(cfg *ClientConfig) {
		cfg.OnUp = func(ctx context.Context) { ups.Add(1); <-ctx.Done(); over.Add(1) }
	})
	until(t, "the link is up", c.Up)
	asked := make(chan struct{})
	s.rules.set(func(r *rules) {
		r.onAsk = func(ctx context.Context, _ any) error { close(asked); <-ctx.Done(); return ctx.Err() }
	})
	answered := make(chan error)
	go func() { answered <- c.StreamStarted(context.Background(), testEvent()) }()
	<-asked
	p.Cut()
	if err := <-answered; !isKind(err, vms.ErrUnavailable) {
		t.Errorf("StreamStarted = %v over a link that broke, want %v", err, vms.ErrUnavailable)
	}
	until(t, "the NVR knows", func() bool { return s.rules.nDowns() == 1 })
	until(t, "the worker knows", func() bool { return !c.Up() && over.Load() == 1 })
	start := time.Now()
	if err := c.Viewers(t.Context(), "ch_1", 1); !isKind(err, vms.ErrUnavailable) || time.Since(start) > patience/2 {
		t.Errorf("Viewers = %v without a link, want %v at once", err, vms.ErrUnavailable)
	}
	s.rules.set(func(r *rules) { r.onAsk = nil })
	p.Restore()
	until(t, "the link is back", func() bool { return c.Up() && ups.Load() == 2 })
	if err := c.StreamStarted(t.Context(), testEvent()); err != nil {
		t.Error(err)
	}
	if got := get(s.rules, func(r *rules) bool { return r.downs[0] == r.links[0] && len(r.links) == 2 && r.ups[1] == testWorker }); !got {
		t.Error("another link than the one that broke is down")
	}
}

// TestStalledLinkIsNoticed by the worker, and by the NVR, each on its own.
func TestStalledLinkIsNoticed(t *testing.T) {
	const silence = 300 * time.Millisecond
	for _, byNVR := range []bool{false, true} {
		t.Run(fmt.Sprintf("NVR=%v", byNVR), func(t *testing.T) {
			s := startServer(t, func(cfg *HandlerConfig) {
				if byNVR {
					cfg.Silence = silence
				}
			})
			p := chaos.New(t, s.addr)
			c := startClient(t, "ws://"+p.Addr()+Path, func(cfg *ClientConfig) {
				if !byNVR {
					cfg.Silence = silence
				}
			})
			until(t, "the link is up", c.Up)
			p.Stall()
			answered := make(chan error)
			go func() { answered <- c.StreamStarted(context.Background(), testEvent()) }()
			// The other one is not told before something gets through again.
			until(t, "it is noticed, and said why", func() bool {
				if byNVR {
					return s.rules.nDowns() == 1 && len(s.log.lines("nothing heard for 300ms")) > 0
				}
				return !c.Up() && len(c.log.lines("the NVR said nothing for 300ms")) > 0
			})
			p.Resume()
			if err := <-answered; !isKind(err, vms.ErrUnavailable) {
				t.Errorf("StreamStarted = %v over a link that hangs, want %v", err, vms.ErrUnavailable)
			}
			until(t, "the link is back", func() bool {
				return s.rules.nDowns() > 0 && s.rules.nUps() > 1 && c.StreamStarted(t.Context(), testEvent()) == nil
			})
		})
	}
}

func TestReplacedLinkIsClosed(t *testing.T) {
	s := startServer(t, nil)
	r := enterRaw(t, s.url, testKey)
	r.hear(secondOfNVR)
	until(t, "it is up", func() bool { return s.rules.nUps() == 1 })
	s.rules.link().Replace()
	if got := r.closed(); got != websocket.StatusGoingAway {
		t.Errorf("closed with %d, want %d", got, websocket.StatusGoingAway)
	}
	until(t, "it is down", func() bool { return s.rules.nDowns() == 1 })

	// And one that does not answer is closed all the same.
	r = enterRaw(t, s.url, testKey)
	r.hear(secondOfNVR)
	until(t, "it is up", func() bool { return s.rules.nUps() == 2 })
	s.rules.link().Replace()
	until(t, "it is down", func() bool { return s.rules.nDowns() == 2 })
}

// TestLateQuestionIsNotOvertaken: what the link before asked for last must not
// happen after what is asked on this one.
func TestLateQuestionIsNotOvertaken(t *testing.T) {
	s := startServer(t, nil)
	p := chaos.New(t, s.addr)
	c := startClient(t, "ws://"+p.Addr()+Path, nil)
	until(t, "the link is up", c.Up)
	asked, hold := make(chan struct{}), make(chan struct{})
	release := sync.OnceFunc(func() { close(hold) })
	defer release()
	s.rules.set(func(r *rules) {
		r.onAsk = func(_ context.Context, what any) error {
			if _, ok := what.(startedEvent); ok { // a store that does not look at its context
				close(asked)
				<-hold
			}
			return nil
		}
	})
	answered := make(chan error, 1)
	go func() { answered <- c.StreamStarted(context.Background(), testEvent()) }()
	<-asked
	for n := range 2 { // also over a link on which nothing was asked
		p.CutOnce()
		if n == 0 {
			<-answered
		}
		until(t, "the link is back", func() bool { return c.Up() && s.rules.nUps() == n+2 })
	}
	go func() { answered <- c.StreamEnded(context.Background(), testEvent()) }()
	beats := get(s.rules, func(r *rules) int { return len(r.loads) })
	until(t, "heartbeats are heard meanwhile", func() bool { return get(s.rules, func(r *rules) int { return len(r.loads) }) > beats+3 })
	if n := s.rules.nSaid(); n != 0 {
		t.Fatalf("%d questions were put to the rules before the first one was through", n)
	}
	release()
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
	want := []any{startedEvent{testEvent()}, endedEvent{testEvent()}}
	if got := get(s.rules, func(r *rules) []any { return r.said }); !reflect.DeepEqual(got, want) {
		t.Errorf("the NVR heard %+v, want %+v", got, want)
	}
}

// TestRestartedNVRLearnsOfOpenLanes, from OnUp.
func TestRestartedNVRLearnsOfOpenLanes(t *testing.T) {
	s := startServer(t, nil)
	var c *client
	ready := make(chan struct{})
	c = startClient(t, s.url, func(cfg *ClientConfig) {
		cfg.OnUp = func(ctx context.Context) {
			<-ready
			if err := c.StreamStarted(ctx, testEvent()); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
	})
	close(ready)
	until(t, "the NVR knows", func() bool { return s.rules.nSaid() == 1 })
	first := s.rules
	for range 3 {
		s.restart(nil)
		until(t, "the new NVR knows", func() bool { return s.rules.nSaid() == 1 && s.rules.nUps() == 1 })
		if got := get(s.rules, func(r *rules) any { return r.said[0] }); got != any(startedEvent{testEvent()}) {
			t.Errorf("it heard %+v", got)
		}
	}
	if first.nDowns() != 1 {
		t.Errorf("%d links of the first NVR were closed, want one", first.nDowns())
	}
}

func TestRefusedWorkerSaysWhyAndTriesAgain(t *testing.T) {
	s := startServer(t, nil)
	s.rules.set(func(r *rules) { r.upErr = fmt.Errorf("%w: another process has the worker id w1", vms.ErrConflict) })
	c := startClient(t, s.url, nil)
	until(t, "it is said", func() bool {
		return len(c.log.lines("level=ERROR", "another process has the worker id w1", "-worker-id")) == 1
	})
	s.rules.set(func(r *rules) { r.upErr = nil })
	until(t, "the link is up", c.Up)
	if s.rules.nUps() != 1 || s.rules.nDowns() != 0 {
		t.Errorf("%d up, %d down, want one up", s.rules.nUps(), s.rules.nDowns())
	}
}

func TestWorkerAsksNoMoreThanIsAllowed(t *testing.T) {
	s := startServer(t, nil)
	c := startClient(t, s.url, nil)
	until(t, "the link is up", c.Up)
	var asking, most atomic.Int32
	release := make(chan struct{})
	s.rules.set(func(r *rules) {
		r.onAsk = func(context.Context, any) error {
			n := asking.Add(1)
			defer asking.Add(-1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			<-release
			return nil
		}
	})
	// Who gives up does not free a place: the NVR is at it still.
	ctx, giveUp := context.WithCancel(t.Context())
	answered := make(chan error)
	for range maxAsking {
		go func() { answered <- c.Viewers(ctx, "ch_1", 1) }()
	}
	until(t, "all are asked", func() bool { return asking.Load() == maxAsking })
	giveUp()
	for range maxAsking {
		if err := <-answered; !errors.Is(err, context.Canceled) {
			t.Errorf("Viewers = %v, want %v", err, context.Canceled)
		}
	}
	for range 3 * maxAsking {
		go func() { answered <- c.Viewers(t.Context(), "ch_1", 1) }()
	}
	beats := get(s.rules, func(r *rules) int { return len(r.loads) })
	until(t, "heartbeats are heard meanwhile", func() bool { return get(s.rules, func(r *rules) int { return len(r.loads) }) > beats+3 })
	close(release)
	for range 3 * maxAsking {
		if err := <-answered; err != nil {
			t.Error(err)
		}
	}
	if n := most.Load(); n > maxAsking+1 || s.rules.nUps() != 1 { // the one that is just answered
		t.Errorf("%d questions at once, %d links; want %d and one", n, s.rules.nUps(), maxAsking)
	}
	if got := s.rules.nSaid(); got != 4*maxAsking {
		t.Errorf("%d questions were put, want %d", got, 4*maxAsking)
	}
}

func TestBadMessages(t *testing.T) {
	s := startServer(t, func(cfg *HandlerConfig) { cfg.AnswerWithin = time.Millisecond })
	for _, first := range []string{`{"type":"alive"}`, `{"type":"hello"}`, `x`, `{"type":"hello","version":"` + strings.Repeat("1", maxHello) + `"}`} {
		r := dialRaw(t, s.url)
		r.write(first)
		if got := r.closed(); got != websocket.StatusPolicyViolation && got != websocket.StatusMessageTooBig {
			t.Errorf("%.40s instead of hello: closed with %d", first, got)
		}
	}
	if s.rules.nUps() != 0 {
		t.Error("somebody was let in")
	}
	enter := func() *raw {
		r := enterRaw(t, s.url, testKey)
		r.hear(secondOfNVR)
		return r
	}
	for _, text := range []string{`x`, `{}`, `{"type":"heard"}`, `{"type":"alive","streams":-1}`, `{"type":"started","channel":"c"}`, `{"type":"alive"} {}`} {
		r := enter()
		r.write(text)
		if got := r.closed(); got != websocket.StatusPolicyViolation {
			t.Errorf("%s: closed with %d, want %d", text, got, websocket.StatusPolicyViolation)
		}
	}
	big := enter()
	big.write(`{"type":"alive","x":"` + strings.Repeat("x", maxMessage) + `"}`)
	if got := big.closed(); got != websocket.StatusMessageTooBig {
		t.Errorf("too big: closed with %d", got)
	}
	binary := enter()
	binary.ws.Write(binary.ctx, websocket.MessageBinary, []byte(`{"type":"alive"}`))
	if got := binary.closed(); got != websocket.StatusPolicyViolation {
		t.Errorf("binary: closed with %d", got)
	}

	// A question that makes no sense has an answer: its sender would only come back with it.
	r := enter()
	for id, text := range []string{
		`{"type":"started","id":1}`, `{"type":"what","id":2}`, `{"type":"wholes","id":3,"channel":"c","chunks":["00000000000000ab",2,1]}`,
		`{"type":"parts","id":4,"channel":"c","epochs":["0"]}`, `{"type":"abandoned","id":5,"limit":-1}`,
	} {
		r.write(text)
		if a := r.hear(ofNVR).(*answer); a.ID != uint64(id+1) || a.Problem != "invalid" {
			t.Errorf("%s: %+v, want invalid", text, a)
		}
	}
	// And what takes too long, too.
	s.rules.set(func(r *rules) {
		r.onAsk = func(ctx context.Context, _ any) error { <-ctx.Done(); return ctx.Err() }
	})
	r.write(`{"type":"viewers","id":6,"channel":"c","viewers":0}`)
	if a := r.hear(ofNVR).(*answer); a.ID != 6 || a.Problem != "unavailable" {
		t.Errorf("slow rules: %+v, want unavailable", a)
	}
}

func TestTooManyQuestionsCloseTheLink(t *testing.T) {
	s := startServer(t, nil)
	s.rules.onAsk = func(ctx context.Context, _ any) error { <-ctx.Done(); return ctx.Err() }
	r := enterRaw(t, s.url, testKey)
	r.hear(secondOfNVR)
	for id := range 2*maxAsking + 1 {
		r.say(&viewers{numbered{uint64(id + 1)}, "ch_1", 1})
	}
	if got := r.closed(); got != websocket.StatusPolicyViolation {
		t.Errorf("closed with %d, want %d", got, websocket.StatusPolicyViolation)
	}
}

func TestSilentPeersAreClosed(t *testing.T) {
	s := startServer(t, func(cfg *HandlerConfig) { cfg.Silence, cfg.HandshakeWithin = 50*time.Millisecond, 50*time.Millisecond })
	dialRaw(t, s.url).closed()
	half := dialRaw(t, s.url)
	half.say(newHello(testWorker, newNonce()))
	half.closed()
	if s.rules.nUps() != 0 {
		t.Error("somebody was let in")
	}
	r := enterRaw(t, s.url, testKey)
	r.closed()
	until(t, "it is down", func() bool { return s.rules.nUps() == 1 && s.rules.nDowns() == 1 })
}

// TestPlaceHoldersKeepNobodyOut: connections that prove nothing give way.
func TestPlaceHoldersKeepNobodyOut(t *testing.T) {
	s := startServer(t, func(cfg *HandlerConfig) { cfg.HandshakeWithin = patience })
	first := dialRaw(t, s.url)
	for range maxWaiting {
		dialRaw(t, s.url)
	}
	first.closed()
	h := s.current.Load()
	h.mu.Lock()
	if n := len(h.waiting); n > maxWaiting {
		t.Errorf("%d wait, more than %d", n, maxWaiting)
	}
	h.mu.Unlock()
	c := startClient(t, s.url, nil)
	until(t, "the worker is let in", c.Up)
}

func TestWorkerThatDoesNotReadIsCutOff(t *testing.T) {
	s := startServer(t, nil)
	r := enterRaw(t, s.url, testKey)
	r.hear(secondOfNVR)
	until(t, "it is up", func() bool { return s.rules.nUps() == 1 })
	l := s.rules.link()
	long := "wss://b/live/v1?ticket=" + strings.Repeat("x", 8000)
	for i := 0; s.rules.nDowns() == 0; i++ {
		if l.Moved("ch_1", long); i*len(long) > 200<<20 {
			t.Fatal("200 MiB wait for a worker that does not read")
		}
	}
}

// TestStopDoesNotWaitForAWriter that cannot write.
func TestStopDoesNotWaitForAWriter(t *testing.T) {
	s := startServer(t, nil)
	r := enterRaw(t, s.url, testKey)
	r.hear(secondOfNVR)
	until(t, "it is up", func() bool { return s.rules.nUps() == 1 })
	l := s.rules.link().(*link)
	long := "wss://b/live/v1?ticket=" + strings.Repeat("x", 8000)
	waiting := func() int { l.orders.mu.Lock(); defer l.orders.mu.Unlock(); return l.orders.bytes }
	for waiting() < maxOrders/2 { // what the sockets take is gone by then
		l.Moved("ch_1", long)
	}
	start := time.Now()
	l.Replace()
	until(t, "it is down", func() bool { return s.rules.nDowns() == 1 })
	if d := time.Since(start); d > patience/2 {
		t.Errorf("it took %s", d)
	}
}

func TestClientThatDoesNotObeyLosesTheLink(t *testing.T) {
	c, err := NewClient(ClientConfig{URL: "ws://nvr" + Path, Key: testKey, Info: testWorker, Load: func() (l vms.WorkerLoad) { return l }})
	if err != nil {
		t.Fatal(err)
	}
	l, order := newLine(), []byte(`{"type":"drain"}`)
	if !c.inbox.push(func() {}, maxInbox-len(order)) {
		t.Fatal("no room")
	}
	if err := c.take(l, order); err != nil {
		t.Errorf("take = %v while there is room", err)
	}
	if err := c.take(l, order); err == nil {
		t.Error("more orders are kept than there is room for")
	}
	c.inbox.pop()
	if err := c.take(l, order); err != nil {
		t.Errorf("take = %v when there is room again", err)
	}
}

func TestShutdownSaysSoAndLetsNobodyIn(t *testing.T) {
	s := startServer(t, nil)
	r := enterRaw(t, s.url, testKey)
	r.hear(secondOfNVR)
	until(t, "it is up", func() bool { return s.rules.nUps() == 1 })
	var wg sync.WaitGroup
	wg.Go(s.shutdown)
	if got := r.closed(); got != websocket.StatusGoingAway {
		t.Errorf("closed with %d, want %d", got, websocket.StatusGoingAway)
	}
	wg.Wait()
	if s.rules.nDowns() != 1 {
		t.Error("the rules do not know")
	}
	_, resp, err := websocket.Dial(r.ctx, s.url, &websocket.DialOptions{Subprotocols: []string{Protocol}})
	if err == nil || resp == nil || resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("Dial = %v, %v, want 503", resp, err)
	}
}

func TestHTTPRefusals(t *testing.T) {
	s := startServer(t, nil)
	keyless := httptest.NewServer(NewHandler(HandlerConfig{Key: []byte("short"), NVR: s.rules, Keys: testKeys, Log: s.log.logger(t)}))
	defer keyless.Close()
	if len(s.log.lines("level=ERROR", "5 bytes, want 32")) != 1 {
		t.Error("nobody says that the key is too short")
	}
	good := make(http.Header)
	for k, v := range map[string]string{
		"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
		"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Protocol": Protocol,
	} {
		good.Set(k, v)
	}
	with := func(k, v string) http.Header {
		h := good.Clone()
		if h.Set(k, v); v == "" {
			h.Del(k)
		}
		return h
	}
	for what, x := range map[string]struct {
		url    string
		h      http.Header
		status int
	}{
		"no upgrade":  {"http://" + s.addr + Path, with("Upgrade", ""), http.StatusUpgradeRequired},
		"subprotocol": {"http://" + s.addr + Path, with("Sec-WebSocket-Protocol", "vms.worker.v2"), http.StatusBadRequest},
		"a browser":   {"http://" + s.addr + Path, with("Origin", "http://"+s.addr), http.StatusForbidden},
		"no key":      {keyless.URL + Path, good, http.StatusServiceUnavailable},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, x.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header = x.h
		tr := &http.Transport{}
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		tr.CloseIdleConnections()
		if resp.StatusCode != x.status || resp.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: %d %s, want %d", what, resp.StatusCode, body, x.status)
		}
	}
}

// TestStopIsQuick, also when the NVR does not answer any more.
func TestStopIsQuick(t *testing.T) {
	s := startServer(t, nil)
	p := chaos.New(t, s.addr)
	for _, stall := range []bool{false, true} {
		c := startClient(t, "ws://"+p.Addr()+Path, nil)
		until(t, "the link is up", c.Up)
		if stall {
			p.Stall()
		}
		start := time.Now()
		c.stop()
		if d := time.Since(start); d > 3*goodbye {
			t.Errorf("stalled %v: Run took %s to return", stall, d)
		}
	}
	p.Resume()
	until(t, "both links are down", func() bool { return s.rules.nDowns() == 2 })
	// While it tries to connect, too.
	p.Stall()
	c := startClient(t, "ws://"+p.Addr()+Path, nil)
	start := time.Now()
	c.stop()
	if d := time.Since(start); d > 3*goodbye {
		t.Errorf("connecting: Run took %s to return", d)
	}
}

func TestClocksThatDifferAreTold(t *testing.T) {
	s := startServer(t, nil)
	c := startClient(t, s.url, nil)
	until(t, "the link is up", c.Up)
	if got := c.log.lines("clocks"); len(got) != 0 {
		t.Errorf("said %v", got)
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{Protocol}})
		if err != nil {
			return
		}
		defer ws.CloseNow()
		m, first, err := receive(r.Context(), ws, firstOfWorker)
		if err != nil {
			return
		}
		nonce := newNonce()
		send(r.Context(), ws, &challenge{nonce, prove(testKey, byNVR, m.(*hello).Nonce, nonce, first)})
		receive(r.Context(), ws, secondOfWorker)
		send(r.Context(), ws, &welcome{ServerTime: time.Now().Add(-time.Hour)})
		ws.Read(r.Context())
	}))
	defer srv.Close()
	far := startClient(t, "ws"+strings.TrimPrefix(srv.URL, "http"), nil)
	until(t, "it is said", func() bool { return len(far.log.lines("level=WARN", "clocks", "worker_is_ahead=1h0m")) > 0 })
	far.stop()
}

func TestBadConfigIsRefused(t *testing.T) {
	good := ClientConfig{URL: "wss://nvr" + Path, Key: testKey, Info: testWorker, Load: func() (l vms.WorkerLoad) { return l }}
	for what, change := range map[string]func(*ClientConfig){
		"http URL":  func(c *ClientConfig) { c.URL = "http://nvr" + Path },
		"no host":   func(c *ClientConfig) { c.URL = Path },
		"short key": func(c *ClientConfig) { c.Key = c.Key[1:] },
		"no id":     func(c *ClientConfig) { c.Info.ID = "" },
		"no load":   func(c *ClientConfig) { c.Load = nil },
	} {
		cfg := good
		change(&cfg)
		if _, err := NewClient(cfg); !errors.Is(err, vms.ErrInvalid) {
			t.Errorf("%s: %v, want %v", what, err, vms.ErrInvalid)
		}
	}
	good.Info.Instance = ""
	c, err := NewClient(good)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Run(t.Context()); !errors.Is(err, vms.ErrInvalid) {
		t.Errorf("Run without an instance = %v, want %v", err, vms.ErrInvalid)
	}
	c.SetInstance("run_1")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Run(ctx); err != nil {
		t.Errorf("Run = %v, want nil", err)
	}
}

// TestRealRules: the NVR itself is at the other end.
func TestRealRules(t *testing.T) {
	vmstest.NoLeaks(t)
	w := nvrtest.New(t, nil)
	h := NewHandler(HandlerConfig{Key: testKey, NVR: w.NVR, Keys: testKeys, Log: vmstest.Log(t)})
	srv := httptest.NewServer(h)
	defer srv.Close()
	defer func() {
		if err := h.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	host := strings.TrimPrefix(srv.URL, "http://")
	drained := make(chan struct{}, 10)
	c := startClient(t, "ws://"+host+Path, func(cfg *ClientConfig) { cfg.OnDrain = func() { drained <- struct{}{} } })
	state := func() nvr.WorkerState {
		if all := w.Workers(); len(all) == 1 && all[0].WorkerInfo == testWorker {
			return all[0].State
		}
		return ""
	}
	until(t, "the NVR has a worker", func() bool { return state() == nvr.WorkerUp })
	until(t, "the link is up", c.Up)
	if err := c.StreamStarted(t.Context(), testEvent()); !isKind(err, vms.ErrNotFound) {
		t.Errorf("StreamStarted of no channel = %v, want %v", err, vms.ErrNotFound)
	}
	if got, err := c.Parts(t.Context(), "ch_1", []vms.Epoch{1}); got != nil || err != nil {
		t.Errorf("Parts = %v, %v, want none", got, err)
	}

	// A second process with its id is kept out; one that is killed leaves its place.
	second := startClient(t, "ws://"+host+Path, func(cfg *ClientConfig) { cfg.Info.Instance = "run_2" })
	until(t, "the second one is refused", func() bool { return len(second.log.lines("level=ERROR", "-worker-id")) > 0 })
	second.stop()

	if err := w.DrainWorker(t.Context(), testWorker.ID); err != nil {
		t.Fatal(err)
	}
	<-drained
	until(t, "it drains", func() bool { return state() == nvr.WorkerDraining })
	c.stop()
	until(t, "it is gone", func() bool { return state() == "" })
}

// dead is an address where nobody listens.
func dead(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// TestAnOutageIsSaidOnce: trying again is not news.
func TestAnOutageIsSaidOnce(t *testing.T) {
	vmstest.NoLeaks(t)
	c := startClient(t, "ws://"+dead(t)+Path, nil)
	until(t, "it is said", func() bool { return len(c.log.lines("no link to the NVR")) > 0 })
	before := time.Now()
	until(t, "it was tried again", func() bool { return time.Since(before) > 300*time.Millisecond })
	if got := c.log.lines("no link to the NVR"); len(got) != 1 {
		t.Errorf("said %d times", len(got))
	}
}
