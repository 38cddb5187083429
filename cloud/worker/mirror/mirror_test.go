package mirror_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/worker/mirror"
	"github.com/zipato/vms/pkg/obs"
	"github.com/zipato/vms/pkg/retry"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
)

// soon tries again at once.
var soon = retry.Backoff{Min: time.Millisecond, Max: 10 * time.Millisecond, Steady: time.Minute}

// small is two seconds of H264, a keyframe every second, in ten chunks of five pictures.
func small(t testing.TB) *feed {
	t.Helper()
	f := makeFeed(t, vmstest.ClipSpec{GOP: 25, Duration: 2 * time.Second})
	if len(f.chunks) != 10 || !f.chunks[5].Flags.Has(vms.FlagKey) {
		t.Fatalf("%d chunks", len(f.chunks))
	}
	return f
}

func (f *feed) all(m *mirror.Mirror, ch vms.ChannelID) {
	for i := range f.chunks {
		f.chunk(m, ch, i)
	}
}

// TestPublishBeginsWithAKeyframe and brings each picture once, although the agent
// sends what it showed once more to have it stored.
func TestPublishBeginsWithAKeyframe(t *testing.T) {
	vmstest.NoLeaks(t)
	f, k := small(t), startTaker(t)
	m := start(t, mirror.Config{URL: k.url(""), Retry: soon})
	f.chunk(m, "cam", 3)
	f.chunk(m, "cam", 4)
	for i := 5; i < 8; i++ {
		f.chunk(m, "cam", i)
	}
	f.all(m, "cam")
	s := k.pictures(0, 25)
	if !s.aus[0].isKey() || len(s.aus) != 25 || s.path != "/live/cam" || !strings.Contains(s.sdp, "sprop-parameter-sets") {
		t.Errorf("%d pictures at %s, the first %x\n%s", len(s.aus), s.path, s.aus[0].nals[0][:1], s.sdp)
	}
	for i, a := range s.aus[1:] {
		if d := a.time - s.aus[i].time; d != 3600 {
			t.Errorf("picture %d comes %d ticks after the one before", i+1, d)
		}
	}
	m.Offline("cam", "ended")
	k.over(0)
	f.chunk(m, "cam", 9) // shown before
	g := f.later(t, 5*time.Second)
	g.chunk(m, "cam", 1) // of use to nobody
	g.chunk(m, "cam", 5)
	if s := k.pictures(1, 5); !s.aus[0].isKey() || s.over {
		t.Errorf("after a pause: %+v", s)
	}
}

// TestSessionOutlivesTheAgent: as long as the parameters stay the same, so does
// the session, and its time goes on by what passed in between.
func TestSessionOutlivesTheAgent(t *testing.T) {
	vmstest.NoLeaks(t)
	f, k := small(t), startTaker(t)
	m := start(t, mirror.Config{URL: k.url(""), Retry: soon})
	f.all(m, "cam")
	f.later(t, 5*time.Second).all(m, "cam")
	s := k.pictures(0, 100)
	if d := s.aus[50].time - s.aus[0].time; d != 5*90000 || k.session(1) != nil {
		t.Errorf("the agent's second run begins %d ticks after its first, want 5 s, in the same session", d)
	}
	// Other parameters: another session, with nothing lost between them.
	h := makeFeed(t, vmstest.ClipSpec{GOP: 25, Duration: 2 * time.Second, Size: "160x90"})
	h.init.Epoch = 3
	for i := range h.chunks {
		h.chunks[i].Epoch = 3
	}
	h.all(m, "cam")
	if s := k.over(0); len(s.aus) != 100 {
		t.Errorf("the first session brought %d pictures of 100", len(s.aus))
	}
	if s := k.pictures(1, 50); !s.aus[0].isKey() || s.sdp == k.session(0).sdp {
		t.Errorf("the second session brought %d pictures", len(s.aus))
	}
}

// TestMirrorComesBack when the server does, and begins with a keyframe. What it
// missed is not kept.
func TestMirrorComesBack(t *testing.T) {
	vmstest.NoLeaks(t)
	f, k := small(t), startTaker(t)
	log := &lines{}
	reg := obs.NewRegistry()
	m := start(t, mirror.Config{URL: k.url(""), Retry: soon, Log: log.logger(), Metrics: reg})
	f.all(m, "cam")
	k.pictures(0, 50)
	addr := k.ln.Addr().String()
	k.stop()
	epochs := 0
	again := func() bool { // the camera goes on
		f = f.later(t, 2*time.Second)
		f.all(m, "cam")
		epochs++
		return k.session(1) != nil
	}
	for range 20 {
		again()
	}
	waitFor(t, "nothing waits for a server that is away", func() bool { return m.Queued() == 0 })
	k.listen(addr)
	waitFor(t, "a second session", again)
	if s := k.pictures(1, 25); !s.aus[0].isKey() {
		t.Errorf("begins with %x", s.aus[0].nals[0])
	}
	if n := len(log.with("cannot publish")); n != 1 {
		t.Errorf("%d lines say that the server is away, want 1:\n%s", n, log)
	}
	if n := len(log.with("publishing to the mirror")); n != 2 {
		t.Errorf("%d lines say that it is there, want 2:\n%s", n, log)
	}
	var b strings.Builder
	if err := reg.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"vms_worker_mirror_sessions 1\n", `vms_worker_mirror_chunks_total{result="dropped"}`, `vms_worker_mirror_chunks_total{result="sent"}`, "vms_worker_mirror_failures_total", "vms_worker_mirror_queue_bytes", "vms_worker_mirror_sent_bytes_total"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %s in\n%s", want, b.String())
		}
	}
}

// TestSlowServerCostsLittle: whoever publishes is not kept waiting, by a server
// that answers nothing, nor by one that takes the stream and reads none of it;
// what waits is bounded, per stream and in all; and everything ends soon.
func TestSlowServerCostsLittle(t *testing.T) {
	for name, set := range map[string]func(*taker){
		"mute":  func(k *taker) { k.mute.Store(true) },
		"stall": func(k *taker) { k.stall.Store(true) },
	} {
		t.Run(name, func(t *testing.T) {
			vmstest.NoLeaks(t)
			f, k := small(t), startTaker(t)
			// Three pictures large enough to fill the sockets of a server that stalls.
			big := *f
			big.chunks = nil
			for i, c := range f.chunks {
				c.Payload = pad(t, c.Payload, 400<<10)
				c.Flags |= vms.FlagKey
				c.Seq = uint64(i + 1)
				big.chunks = append(big.chunks, c)
			}
			set(k)
			log := &lines{}
			m, err := mirror.New(mirror.Config{URL: k.url(""), MaxQueue: 2 << 20, MaxTotal: 5 << 20, Log: log.logger()})
			if err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			ended := make(chan error, 1)
			go func() { ended <- m.Run(ctx) }()
			waitFor(t, "Run", m.Running)

			var longest time.Duration
			var most int64
			for round := range 3 {
				for i := range big.chunks {
					for ch := range 4 {
						c := big.chunks[i]
						c.Epoch = vms.Epoch(round + 1)
						began := time.Now()
						m.Publish(vms.ChannelID(fmt.Sprint("cam", ch)), &vms.Init{Epoch: c.Epoch, ID: 1, Segment: f.init.Segment}, &c)
						longest, most = max(longest, time.Since(began)), max(most, m.Queued())
					}
				}
			}
			if longest > time.Second { // a copy of 400 kB, on a busy machine
				t.Errorf("Publish took %s", longest)
			}
			if most > 5<<20 || most < 2<<20 {
				t.Errorf("up to %d bytes waited, of 5 MiB", most)
			}
			if len(log.with("too slow")) < 1 {
				t.Errorf("log %s", log)
			}
			began := time.Now()
			stop()
			if err := <-ended; err != nil || time.Since(began) > 5*time.Second {
				t.Errorf("Run = %v after %s", err, time.Since(began))
			}
			if n := m.Queued(); n != 0 {
				t.Errorf("%d bytes are left behind", n)
			}
			big.chunk(m, "cam9", 0)
			if n := m.Queued(); n != 0 {
				t.Errorf("%d bytes wait for a mirror that has ended", n)
			}
		})
	}
}

// TestIdleAndForget: a session does not outlast its stream.
func TestIdleAndForget(t *testing.T) {
	vmstest.NoLeaks(t)
	f, k := small(t), startTaker(t)
	m := start(t, mirror.Config{URL: k.url(""), Idle: 50 * time.Millisecond, Retry: soon})
	f.chunk(m, "cam", 0)
	k.over(0)
	f.chunk(m, "cam", 1) // goes on without a keyframe: nobody could begin there
	f.chunk(m, "cam", 5)
	if s := k.over(1); len(s.aus) != 5 || !s.aus[0].isKey() {
		t.Errorf("%d pictures after a pause", len(s.aus))
	}
	m = start(t, mirror.Config{URL: k.url(""), Retry: soon})
	f.chunk(m, "door", 0)
	k.pictures(2, 1)
	m.Forget("door")
	k.over(2)
	m.Forget("door")
	f.chunk(m, "door", 0) // a new stream
	k.pictures(3, 1)
}

// TestCredentialsAreNotLogged, however the server fails.
func TestCredentialsAreNotLogged(t *testing.T) {
	vmstest.NoLeaks(t)
	const credentials = "someone:pa$$w0rd%2F@"
	secret := func(s string) bool {
		return strings.Contains(s, "pa$$w0rd") || strings.Contains(s, "someone") || strings.Contains(s, "t0ken")
	}
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody.Close()
	f := small(t)
	for name, tt := range map[string]struct {
		url func(*taker) string
		set func(*taker)
	}{
		"no server":    {func(*taker) string { return "rtsp://" + credentials + nobody.Addr().String() + "/{channel}?pass=t0ken" }, nil},
		"no such host": {func(*taker) string { return "rtsp://" + credentials + "mirror.invalid/{channel}?pass=t0ken" }, nil},
		"no TLS": {func(k *taker) string {
			return strings.Replace(k.url(credentials), "rtsp://", "rtsps://", 1) + "?pass=t0ken"
		},
			func(k *taker) { k.mute.Store(true) }},
		"unauthorized": {func(k *taker) string { return k.url(credentials) + "?pass=t0ken" }, func(k *taker) { k.refuse.Store(401) }},
		"broken":       {func(k *taker) string { return k.url(credentials) + "?pass=t0ken" }, func(k *taker) { k.refuse.Store(500) }},
	} {
		t.Run(name, func(t *testing.T) {
			k, log := startTaker(t), &lines{}
			if tt.set != nil {
				tt.set(k)
			}
			m := start(t, mirror.Config{URL: tt.url(k), Log: log.logger()})
			f.chunk(m, "cam", 0)
			if name == "no TLS" {
				waitFor(t, "a connection", func() bool { k.mu.Lock(); defer k.mu.Unlock(); return len(k.conns) > 0 })
				k.cut()
			}
			waitFor(t, "a line", func() bool { return len(log.with("cannot publish")) > 0 })
			if secret(log.String()) {
				t.Errorf("log: %s", log)
			}
		})
	}
	for _, url := range []string{
		"", "host", "http://" + credentials + "h/{channel}", "rtsp://" + credentials + "h/live", "rtsp://" + credentials + "/{channel}",
		"rtsp://" + credentials + "{channel}:8554/x", "rtsp://someone{channel}:x@h/{channel}", "rtsp://" + credentials + "h:port/{channel}",
		"rtsp://" + credentials + "h/{channel}#x", "rtsp:someone@h/{channel}", "rtsp://someone:pa$$w0rd%zz@h/{channel}", "rtsp://h/a b\x00/{channel}",
	} {
		m, err := mirror.New(mirror.Config{URL: url})
		if err == nil || m != nil || !errors.Is(err, vms.ErrInvalid) || secret(err.Error()) || !strings.Contains(err.Error(), "{channel}") {
			t.Errorf("New(%q) = %v, %v", url, m, err)
		}
	}
	for _, url := range []string{"rtsp://h/{channel}", "rtsps://" + credentials + "[::1]:322/a/{channel}/b", "rtsp://h:8554/live?name={channel}"} {
		if _, err := mirror.New(mirror.Config{URL: url}); err != nil {
			t.Errorf("New(%q) = %v", url, err)
		}
	}
}

// TestNothingToPublish: a stream without a track that can be carried opens no
// session and holds nothing, and says so once.
func TestNothingToPublish(t *testing.T) {
	vmstest.NoLeaks(t)
	f, k := small(t), startTaker(t)
	log := &lines{}
	m := start(t, mirror.Config{URL: k.url(""), Log: log.logger()})
	f.init.Segment = bytes.Replace(bytes.Clone(f.init.Segment), []byte("avc1"), []byte("av01"), 1)
	f.all(m, "cam")
	waitFor(t, "a line", func() bool { return len(log.with("shows nothing")) > 0 })
	waitFor(t, "an empty queue", func() bool { return m.Queued() == 0 })
	for i := range f.chunks {
		f.chunks[i].Seq += 100
	}
	f.all(m, "cam")
	if n := m.Queued(); n != 0 || len(log.with("shows nothing")) != 1 || k.session(0) != nil {
		t.Errorf("%d bytes wait; log %s", n, log)
	}
}

// TestSoundThatRTPCannotCarry is left out, with one line however often the server fails.
func TestSoundThatRTPCannotCarry(t *testing.T) {
	vmstest.NoLeaks(t)
	f, k := makeFeed(t, vmstest.ClipSpec{GOP: 25, Duration: 1920 * time.Millisecond, Audio: "aac"}), startTaker(t)
	log := &lines{}
	k.refuse.Store(503)
	m := start(t, mirror.Config{URL: k.url(""), Log: log.logger(), Retry: soon})
	f.init.Segment = bytes.Replace(bytes.Clone(f.init.Segment), []byte("mp4a"), []byte("Opus"), 1)
	f.init.Tracks = nil
	epochs := 0
	next := func() bool {
		f = f.later(t, 2*time.Second)
		f.all(m, "cam")
		epochs++
		return epochs > 20
	}
	waitFor(t, "some attempts", next)
	k.refuse.Store(0)
	waitFor(t, "a session", func() bool { next(); return k.session(0) != nil })
	if s := k.pictures(0, 25); strings.Contains(s.sdp, "m=audio") || !strings.Contains(s.sdp, "m=video") {
		t.Errorf("announced\n%s", s.sdp)
	}
	if n := len(log.with("leaves out")); n != 1 || !strings.Contains(log.String(), "Opus") {
		t.Errorf("%d lines name the sound, want 1:\n%s", n, log)
	}
}

// TestBrokenChunkIsLeftOut, and what depends on it.
func TestBrokenChunkIsLeftOut(t *testing.T) {
	vmstest.NoLeaks(t)
	f, k := small(t), startTaker(t)
	m := start(t, mirror.Config{URL: k.url(""), Retry: soon})
	f.chunks[2].Payload = []byte("\x00\x00\x00\x08moof")
	f.all(m, "cam")
	if s := k.pictures(0, 35); len(s.aus) != 35 || !s.aus[10].isKey() {
		t.Errorf("%d pictures; want 10, and 25 from the next keyframe on", len(s.aus))
	}
}

func TestNoMirror(*testing.T) {
	var m *mirror.Mirror
	m.Publish("cam", &vms.Init{}, &vms.Chunk{})
	m.Offline("cam", "x")
	m.Forget("cam")
}

// lines is a log to look into.
type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// with returns the lines that hold s.
func (l *lines) with(s string) (found []string) {
	for line := range strings.Lines(l.String()) {
		if strings.Contains(line, s) {
			found = append(found, line)
		}
	}
	return found
}
