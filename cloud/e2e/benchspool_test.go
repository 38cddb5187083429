package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/zipato/vms/agent/spool"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/vmstest/camtest"
)

// What the agent promises of its spool. `make bench-spool` fails when one is missed.
const (
	benchCameras   = 4
	benchKbps      = 2000
	benchFPS       = 25
	maxOutageFlash = 1.15                   // bytes written to flash per byte captured that leaves the RAM
	maxAnonRSS     = 40_000_000             // bytes
	minDrain       = 5                      // times real time
	maxAllocs      = 20                     // in the spool, from Append to Durable
	maxLiveLag     = 300 * time.Millisecond // and a chunk
)

// atEdge before the uplink is back is where the backlog counts as drained: what
// is newer is in recordings that are not complete yet.
const atEdge = 40 * time.Second

const (
	// shortestBacklog: the recording that holds its end has to be brought whole,
	// 30 s more, and of less than this that would be a large part.
	shortestBacklog = time.Minute
	// shortestReplay: it is looked at some ten times a second, and lanes come up
	// one after the other.
	shortestReplay = time.Second
)

// drainRate says how many times faster than it was captured a backlog drains,
// and false when it was gone before that could be measured.
func drainRate(backlog, replay time.Duration) (x float64, ok bool) {
	if backlog < shortestBacklog || replay < shortestReplay {
		return 0, false
	}
	return backlog.Seconds() / replay.Seconds(), true
}

func TestDrainRateIsMeasuredOrNot(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		backlog, replay time.Duration
		want            float64 // 0: not measured
	}{
		{200 * time.Second, 10 * time.Second, 20},
		{shortestBacklog, shortestReplay, 60},
		{200 * time.Second, 400 * time.Second, 0.5}, // too slow, and said so
		{-10 * time.Second, 3 * time.Microsecond, 0},
		{-10 * time.Second, 10 * time.Second, 0},
		{0, time.Second, 0},
		{shortestBacklog - 1, time.Second, 0},
		{200 * time.Second, 0, 0},
		{200 * time.Second, shortestReplay - 1, 0},
	} {
		if x, ok := drainRate(tt.backlog, tt.replay); x != tt.want || ok != (tt.want > 0) {
			t.Errorf("a backlog of %v in %v: %v, %v, want %v", tt.backlog, tt.replay, x, ok, tt.want)
		}
	}
}

// benchSpan reads how long a phase lasts from the environment.
func benchSpan(t *testing.T, name string, standard time.Duration) time.Duration {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		return standard
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < 30*time.Second {
		t.Fatalf("%s=%q: want a duration of at least 30s", name, v)
	}
	return d
}

// TestSpoolBench measures a hub with four cameras of 2 Mbit/s and 24 MiB of RAM
// for footage: online, during an outage, and while that is made up for.
func TestSpoolBench(t *testing.T) {
	if os.Getenv("BENCH_SPOOL") == "" {
		t.Skip("it takes minutes: make bench-spool")
	}
	online := benchSpan(t, "BENCH_ONLINE", 3*time.Minute)
	outage := benchSpan(t, "BENCH_OUTAGE", 4*time.Minute)
	s := startStack(t, stackOptions{
		recording: 30 * time.Second, link: true,
		agentArgs: []string{"-ram", strconv.Itoa(24 << 20)}, agentEnv: []string{"GOMEMLIMIT=36MiB"},
	})
	onDisk(t, s.hubDir)
	b := startBench(t, s)
	b.lasts(20 * time.Second) // until every stream has begun a recording of full length

	// Online.
	from, before := b.meter(), b.worker()
	b.lasts(online)
	to, after := b.meter(), b.worker()
	captured := float64(to.sent - from.sent)
	t.Logf("online: %d bytes captured, %d written", to.sent-from.sent, to.written-from.written)
	b.want("flash_bytes_per_byte_online", float64(to.written-from.written)/captured, "", func(v float64) bool { return v == 0 })
	recordings := after.recordings - before.recordings
	if recordings < benchCameras {
		t.Fatalf("%v recordings within %v", recordings, online)
	}
	b.figure("parts_per_recording", (after.parts-before.parts)/recordings, "")
	whole := after.recordingBytes - before.recordingBytes
	if whole < captured/2 {
		t.Errorf("%v bytes of whole recordings stored, %v captured", whole, captured)
	}
	b.figure("upload_amplification", (whole+after.partBytes-before.partBytes)/whole, "")

	// Offline.
	from = b.meter()
	s.link.Cut()
	cut := time.Now()
	b.lasts(outage)
	to = b.meter()
	leftRAM := float64(to.sent-from.sent) - float64(to.ram-from.ram)
	t.Logf("outage: %d bytes captured, RAM from %d to %d, %d written", to.sent-from.sent, from.ram, to.ram, to.written-from.written)
	b.want("flash_bytes_per_byte_outage", float64(to.written-from.written)/leftRAM, "", func(v float64) bool { return v > 0 && v <= maxOutageFlash })

	// Back: what was captured until shortly before is in whole recordings.
	s.link.Restore()
	back := time.Now()
	edge := back.Add(-atEdge)
	s.eventually(outage+time.Minute, "the backlog is brought", func() bool {
		for _, c := range b.cams {
			c.replays(edge)
		}
		return !slices.ContainsFunc(b.cams, func(c *benchCam) bool { return c.drained.IsZero() })
	})
	drained := time.Now()
	var slowest, lanesBack, liveBack time.Duration
	var lags []time.Duration
	chunk := 0
	for _, c := range b.cams {
		s.eventually(time.Minute, "the live picture is back", func() bool { _, ok := c.view.back(back); return ok })
		d, _ := c.view.back(back)
		lanesBack, liveBack = max(lanesBack, c.up.Sub(back)), max(liveBack, d)
		slowest = max(slowest, c.drained.Sub(c.up))
		lags = append(lags, c.view.between(back.Add(d), drained)...)
		chunk = max(chunk, c.view.chunk())
	}
	slices.Sort(lags)
	chunkTime := time.Duration(chunk) * time.Second / benchFPS
	b.figure("lanes_back_after_outage_ms", float64(lanesBack.Milliseconds()), "ms")
	b.figure("live_back_after_outage_ms", float64(liveBack.Milliseconds()), "ms")
	b.figure("chunk_ms", float64(chunkTime.Milliseconds()), "ms")
	if drain, ok := drainRate(edge.Sub(cut), slowest); ok {
		b.want("backlog_drain_x", drain, "(the slowest camera, from when its lane is up)", func(v float64) bool { return v >= minDrain })
		t.Logf("live lag during the replay: median %v, 95%% %v, 99%% %v, worst %v, of %d pictures",
			percentile(lags, 50), percentile(lags, 95), percentile(lags, 99), percentile(lags, 100), len(lags))
		b.want("live_lag_during_replay_ms", float64(percentile(lags, 99).Milliseconds()), "ms (99 of 100 pictures)", func(v float64) bool {
			return len(lags) > 0 && v <= float64((chunkTime+maxLiveLag).Milliseconds())
		})
	} else {
		t.Errorf("the backlog of an outage of %v was drained before backlog_drain_x and live_lag_during_replay_ms could be measured: "+
			"set longer phases, such as BENCH_OUTAGE=4m (BENCH_ONLINE is the phase before it)", outage)
	}

	// Everything is there.
	b.lasts(10 * time.Second)
	b.finish()
	b.want("agent_anon_rss_mb", float64(b.peakAnon)/1e6, "MB", func(v float64) bool { return v > 0 && v <= maxAnonRSS/1e6 })
	b.figure("agent_spool_mapped_mb", float64(b.peakMapped)/1e6, "MB")
	b.want("allocs_per_chunk", spoolAllocs(t), "", func(v float64) bool { return v <= maxAllocs })
}

// bench is a hub with cameras under measurement.
type bench struct {
	*stack
	cams []*benchCam

	mu                   sync.Mutex
	peakAnon, peakMapped int64 // bytes; read after finish
	stop                 chan struct{}
	sampled              sync.WaitGroup
}

type benchCam struct {
	*rig
	view *viewer

	up, drained time.Time // after an outage: a lane is back, the backlog is in the store
}

// replays looks how far the replay is: drained is when all that was captured
// before edge is in whole recordings.
func (c *benchCam) replays(edge time.Time) {
	if st, ok := c.peek(); ok && c.up.IsZero() && st.State == "streaming" {
		c.up = time.Now()
	}
	if c.up.IsZero() || !c.drained.IsZero() {
		return
	}
	if tl, err := c.tryTimeline(c.ch); err == nil && tl.toldUntil(edge) {
		c.drained = time.Now()
	}
}

func startBench(t *testing.T, s *stack) *bench {
	t.Helper()
	b := &bench{stack: s, stop: make(chan struct{})}
	source := camtest.Clip(t, vmstest.ClipSpec{
		Audio: "aac", GOP: 2 * benchFPS, FPS: benchFPS, Size: "1280x720", Kbps: benchKbps, Duration: 12800 * time.Millisecond,
	})
	for i := range benchCameras {
		r := &rig{stack: s, book: newLedger()}
		r.cam = camtest.Start(t, camtest.Options{Source: source, Loop: true, Live: true, Stamp: true, OnSent: r.book.add})
		r.ch = s.addChannel(fmt.Sprintf("camera %d", i+1), r.cam.URL())
		s.startChannel(r.ch)
		b.cams = append(b.cams, &benchCam{rig: r})
	}
	for _, c := range b.cams {
		c.flows()
		c.view = s.watch(t, c.ch, c.book)
	}
	b.sampled.Go(b.sample)
	return b
}

// lasts lets real time pass.
func (b *bench) lasts(d time.Duration) { b.cams[0].lasts(d) }

// sample notes the peak of the agent's memory.
func (b *bench) sample() {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-b.stop:
			return
		}
		anon, mapped := b.memory()
		b.mu.Lock()
		b.peakAnon, b.peakMapped = max(b.peakAnon, anon), max(b.peakMapped, mapped)
		b.mu.Unlock()
	}
}

// memory reads the agent's resident memory: anonymous, and mapped files of the spool.
func (b *bench) memory() (anon, mapped int64) {
	proc := fmt.Sprintf("/proc/%d/", b.agent.cmd.Process.Pid)
	if text, err := os.ReadFile(proc + "smaps_rollup"); err == nil {
		anon = kilobytes(text, "Anonymous:")
	}
	text, err := os.ReadFile(proc + "smaps")
	if err != nil {
		return anon, mapped
	}
	spool := false
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		f := strings.Fields(lines.Text())
		switch {
		case len(f) >= 5 && strings.Contains(f[0], "-"): // a mapping: address, rights, ..., path
			spool = len(f) >= 6 && strings.HasPrefix(f[5], b.hubDir) && strings.HasSuffix(f[5], ".db")
		case spool && len(f) >= 2 && f[0] == "Rss:":
			n, _ := strconv.ParseInt(f[1], 10, 64) //nolint:errcheck // the kernel writes numbers
			mapped += n << 10
		}
	}
	return anon, mapped
}

// kilobytes returns the value of a line such as "Anonymous:  1234 kB", in bytes.
func kilobytes(text []byte, name string) int64 {
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == name {
			n, _ := strconv.ParseInt(f[1], 10, 64) //nolint:errcheck // the kernel writes numbers
			return n << 10
		}
	}
	return 0
}

// meter is a moment's readings.
type meter struct {
	sent    int64 // bytes of media that the cameras sent
	written int64 // bytes that the agent gave to block devices
	ram     int64 // bytes of footage in the agent's RAM
}

func (b *bench) meter() meter {
	b.t.Helper()
	var m meter
	for _, c := range b.cams {
		m.sent += c.book.sentBytes()
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", b.agent.cmd.Process.Pid))
	if err != nil {
		b.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "write_bytes: "); ok {
			if m.written, err = strconv.ParseInt(strings.TrimSpace(rest), 10, 64); err != nil {
				b.t.Fatal(err)
			}
		}
	}
	var status struct {
		RAM struct {
			Used int64 `json:"used"`
		} `json:"ram"`
	}
	if err := request("GET", b.agentURL+"/v1/status", b.lanKey, nil, &status); err != nil {
		b.t.Fatal(err)
	}
	m.ram = status.RAM.Used
	return m
}

// uploads is what the worker has brought to the store so far.
type uploads struct {
	parts, recordings         float64
	partBytes, recordingBytes float64
}

func (b *bench) worker() uploads {
	b.t.Helper()
	var u uploads
	text := b.metrics()
	for name, v := range map[string]*float64{
		"vms_worker_parts_total": &u.parts, "vms_worker_recordings_total": &u.recordings,
		`vms_worker_uploaded_bytes_total{kind="part"}`:      &u.partBytes,
		`vms_worker_uploaded_bytes_total{kind="recording"}`: &u.recordingBytes,
	} {
		for line := range strings.Lines(text) {
			f := strings.Fields(line)
			if len(f) != 2 || f[0] != name {
				continue // it may have none yet
			}
			var err error
			if *v, err = strconv.ParseFloat(f[1], 64); err != nil {
				b.t.Fatal(err)
			}
		}
	}
	return u
}

// metrics reads the cloud's figures.
func (b *bench) metrics() string {
	b.t.Helper()
	resp, err := http.Get(b.url + "/metrics")
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		b.t.Fatalf("metrics: status %d, %v", resp.StatusCode, err)
	}
	return string(text)
}

// figure prints one figure, to a thousandth.
func (b *bench) figure(name string, v float64, unit string) {
	v = math.Round(v*1000) / 1000
	fmt.Println(strings.TrimSpace(fmt.Sprintf("figure %s %s %s", name, strconv.FormatFloat(v, 'f', -1, 64), unit)))
}

// want is figure with a goal.
func (b *bench) want(name string, v float64, unit string, ok func(float64) bool) {
	b.t.Helper()
	b.figure(name, v, unit)
	if !ok(v) {
		b.t.Errorf("%s is %v: the goal is missed", name, v)
	}
}

// finish stops the cameras, and wants every unit they sent to be recorded.
func (b *bench) finish() {
	b.t.Helper()
	var all audit
	for _, c := range b.cams {
		c.quiet()
		c.stopped()
	}
	close(b.stop)
	b.sampled.Wait()
	for _, c := range b.cams {
		a := c.audited(2*time.Minute, nil)
		for _, w := range a.wrong {
			b.t.Error(w)
		}
		all.captured, all.recorded, all.declared, all.doubled = all.captured+a.captured, all.recorded+a.recorded, all.declared+a.declared, all.doubled+a.doubled
	}
	verdict := "ok"
	if all.recorded != all.captured || all.doubled > 0 {
		verdict = "FAIL"
		b.t.Errorf("%d units captured, %d recorded", all.captured, all.recorded)
	}
	fmt.Printf("fault outage_of_four_cameras captured %d recorded %d declared %d doubled %d verdict %s\n", all.captured, all.recorded, all.declared, all.doubled, verdict)
}

// spoolAllocs is how often the spool allocates for a chunk that goes through it
// while the uplink is up.
func spoolAllocs(t *testing.T) float64 {
	t.Helper()
	store, err := spool.Open(spool.Config{RAM: 24 << 20, Log: vmstest.Log(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	sp := store.Spool("ch")
	const epoch = vms.Epoch(7)
	sp.PutInit(vms.Init{Epoch: epoch, ID: 1})
	live := sp.Live("", nil)
	defer live.Close()
	payload := make([]byte, benchKbps*1000/8/5)
	seq, at := uint64(0), time.Now().UTC()
	return testing.AllocsPerRun(5000, func() {
		seq++
		c := vms.Chunk{Epoch: epoch, Seq: seq, Init: 1, Start: at, End: at.Add(200 * time.Millisecond), MoofLen: 8, Payload: payload}
		if seq%10 == 1 {
			c.Flags |= vms.FlagKey
		}
		if seq%150 == 1 {
			c.Flags |= vms.FlagFirst
		}
		at = c.End
		sp.Append(c)
		for {
			out, err := live.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if out.Chunk != nil {
				break
			}
		}
		sp.Durable([]vms.ChunkRange{{Epoch: epoch, First: seq, Last: seq}})
	})
}

// onDisk refuses what is no disk: there, writing costs nothing that counts.
func onDisk(t *testing.T, dir string) {
	t.Helper()
	const tmpfs, ramfs = 0x01021994, 0x858458f6
	var fs syscall.Statfs_t
	if err := syscall.Statfs(filepath.Clean(dir), &fs); err != nil {
		t.Fatal(err)
	}
	if typ := uint32(fs.Type); typ == tmpfs || typ == ramfs {
		t.Fatalf("%s is in memory: set TMPDIR to a folder on a disk", dir)
	}
}
