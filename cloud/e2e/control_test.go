package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/problem"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest/chaos"
)

// TestControl is a hub that is told what to do over a broker: the one inside the
// cloud, and Mosquitto with the permissions that hubctl/MOSQUITTO.md gives.
func TestControl(t *testing.T) {
	t.Parallel()
	for _, broker := range []string{"embedded", "mosquitto"} {
		t.Run(broker, func(t *testing.T) {
			t.Parallel()
			for _, tt := range []struct {
				name string
				test func(*testing.T, *controlled)
			}{
				{"answers", testHubAnswers},
				{"reboot offline", testRebootOffline},
				{"partition", testPartition},
				{"broker restarted", testBrokerRestarted},
				{"event", testEvent},
				{"commands", testCommands},
			} {
				t.Run(tt.name, func(t *testing.T) { tt.test(t, newControlled(t, broker)) })
			}
		})
	}
}

// controlled is a stack whose hub reaches broker and cloud over lines that can be
// cut, with one live camera.
type controlled struct {
	*rig
	broker   *chaos.Proxy // between hub and broker
	mosquito *mosquitto   // nil: the broker is the cloud's
	t        *testing.T
}

func newControlled(t *testing.T, broker string) *controlled {
	t.Helper()
	c := &controlled{t: t}
	o := stackOptions{recording: 4 * time.Second, link: true}
	listen := freePort(t)
	if broker == "mosquitto" {
		c.mosquito = &mosquitto{addr: listen}
		o.cloudArgs = append(o.cloudArgs, "-mqtt-url", "mqtt://"+listen)
	} else {
		o.cloudArgs = append(o.cloudArgs, "-mqtt-listen", listen)
	}
	c.broker = chaos.New(t, listen)
	o.cloudArgs = append(o.cloudArgs, "-mqtt-public-url", "mqtt://"+c.broker.Addr())
	if c.mosquito != nil {
		o.enrolled = c.mosquito.configure
	}
	c.rig = newRig(t, rigOptions{stackOptions: o, gop: 12, idle: true})
	c.eventually(20*time.Second, "the hub is on the broker", func() bool { return c.hubView().MQTT })
	return c
}

// hubView is a hub as the API shows it.
type hubView struct {
	Online   bool  `json:"online"`
	MQTT     bool  `json:"mqtt"`
	Revision int64 `json:"revision"`
	Reported struct {
		Revision int64  `json:"revision"`
		State    string `json:"state"`
	} `json:"reported"`
}

func (c *controlled) hubView() hubView {
	var v hubView
	_ = c.try("GET", "/hubs/"+c.hub, nil, &v) // zero is an answer too
	return v
}

// cut is a hub whose house has no internet.
func (c *controlled) cut() {
	c.link.Cut()
	c.broker.Cut()
}

func (c *controlled) restore() {
	c.link.Restore()
	c.broker.Restore()
}

type startAnswer struct {
	Revision int64  `json:"revision"`
	State    string `json:"state"`
	Problem  string `json:"problem"`
}

// order starts or stops the camera's channel.
func (c *controlled) order(what string, body map[string]any) (startAnswer, error) {
	var a startAnswer
	var in any
	if body != nil {
		in = body
	}
	err := c.try("POST", "/channels/"+string(c.ch)+"/"+what, in, &a)
	return a, err
}

func (c *controlled) mustOrder(what string, body map[string]any) startAnswer {
	c.t.Helper()
	a, err := c.order(what, body)
	if err != nil {
		c.t.Fatalf("%s %v: %v", what, body, err)
	}
	return a
}

func statusOf(err error) int {
	var p *problem.Problem
	if !errors.As(err, &p) {
		return 0
	}
	return p.Status
}

func testHubAnswers(t *testing.T, c *controlled) {
	a := c.mustOrder("start", nil)
	if a.Revision == 0 || a.Revision != c.hubView().Revision {
		t.Errorf("start answers revision %d, the hub's is %d", a.Revision, c.hubView().Revision)
	}
	c.flows()
	if a := c.mustOrder("start", map[string]any{"wait_s": 10}); a.State != "IN_SYNC" {
		t.Errorf("start that waits: %+v, want IN_SYNC", a)
	}
	if a := c.mustOrder("stop", map[string]any{"wait_s": 10}); a.State != "IN_SYNC" {
		t.Errorf("stop that waits: %+v, want IN_SYNC", a)
	}
	c.settled(c.ch)
}

// testRebootOffline: the hub starts what it was told to run, without the cloud,
// after a power cut; what it captured meanwhile is brought later.
func testRebootOffline(t *testing.T, c *controlled) {
	c.mustOrder("start", map[string]any{"wait_s": 10})
	c.flows()
	c.lasts(3 * time.Second)
	c.cut()
	c.agent.kill()
	c.agent.start()
	c.flows()
	c.lasts(3 * time.Second)
	c.restore()
	a := c.finish(60*time.Second, []vms.Cause{vms.CauseAgentRestarted, vms.CauseCameraOffline})
	report(t, "hub_rebooted_offline", a)
}

// testPartition: with either way to the hub the order arrives, with none it is
// refused or, if asked, kept until there is one; and then done once.
func testPartition(t *testing.T, c *controlled) {
	c.broker.Cut()
	if a := c.mustOrder("start", map[string]any{"wait_s": 20}); a.State != "IN_SYNC" {
		t.Errorf("start without the broker: %+v, want IN_SYNC over the control line", a)
	}
	c.broker.Restore()
	c.eventually(30*time.Second, "the hub is back on the broker", func() bool { return c.hubView().MQTT })
	c.link.Cut()
	if a := c.mustOrder("stop", map[string]any{"wait_s": 20}); a.State != "IN_SYNC" {
		t.Errorf("stop without the NVR: %+v, want IN_SYNC over MQTT", a)
	}
	c.broker.Cut()
	c.eventually(90*time.Second, "the cloud knows that the hub is offline", func() bool { return !c.hubView().Online })
	if _, err := c.order("start", nil); statusOf(err) != http.StatusConflict {
		t.Errorf("start of an offline hub: %v, want 409", err)
	}
	queued := c.mustOrder("start", map[string]any{"when_offline": "queue"})
	c.restore()
	c.eventually(60*time.Second, "the hub does what was ordered while it was offline", func() bool {
		v := c.hubView()
		return v.Reported.Revision >= queued.Revision && v.Reported.State == "IN_SYNC"
	})
	c.flows()
	if a := c.mustOrder("stop", map[string]any{"wait_s": 10}); a.State != "IN_SYNC" {
		t.Errorf("stop: %+v, want IN_SYNC", a)
	}
}

// testBrokerRestarted: orders given while the broker is away are not lost.
func testBrokerRestarted(t *testing.T, c *controlled) {
	c.mustOrder("start", map[string]any{"wait_s": 10})
	c.flows()
	c.link.Cut() // so that only the broker is left
	if c.mosquito == nil {
		c.cloud.kill()
		c.cloud.start()
		c.cloud.line("listening ", 20*time.Second)
	} else {
		c.mosquito.kill()
		c.lasts(time.Second)
		c.mosquito.start()
	}
	var a startAnswer
	c.eventually(90*time.Second, "a stop is taken again", func() (ok bool) {
		var err error
		a, err = c.order("stop", map[string]any{"when_offline": "queue"})
		return err == nil
	})
	c.eventually(90*time.Second, "the hub has stopped", func() bool {
		v := c.hubView()
		return v.Reported.Revision >= a.Revision && v.Reported.State == "IN_SYNC"
	})
	c.link.Restore()
	c.settled(c.ch)
}

// testEvent: pre-roll, event, post-roll; nothing else is recorded, and nothing
// else is a gap.
func testEvent(t *testing.T, c *controlled) {
	c.call("PATCH", "/channels/"+string(c.ch), map[string]any{"mode": "event", "pre_roll_s": 3, "post_roll_s": 4}, nil)
	c.eventually(20*time.Second, "the camera is watched", func() bool {
		st, ok := c.stream(c.ch)
		return ok && st.State != "starting"
	})
	c.lasts(6 * time.Second) // there is pre-roll now
	at := time.Now()
	if err := request("POST", c.agentURL+"/v1/events", c.lanKey, map[string]any{"channel": c.ch}, nil); err != nil {
		t.Fatal(err)
	}
	covers := func(at time.Time) func() bool {
		return func() bool {
			tl := c.timeline(c.ch)
			return slices.ContainsFunc(tl.Recordings, func(r recording) bool { return !r.Start.After(at) }) && tl.toldUntilFrom(at, at.Add(3500*time.Millisecond))
		}
	}
	c.eventually(40*time.Second, "the event is recorded", covers(at))
	tl := c.timeline(c.ch)
	first := tl.Recordings[0]
	if lead := at.Sub(first.Start); lead < 2500*time.Millisecond || lead > 5*time.Second {
		t.Errorf("the recording begins %v before the event, want 3 s and at most a GOP", lead)
	}
	var end time.Time
	c.eventually(30*time.Second, "the event is over", func() bool {
		st, ok := c.stream(c.ch)
		return ok && st.HeldChunks == 0
	})
	for _, r := range c.timeline(c.ch).Recordings {
		end = r.End
	}
	if tail := end.Sub(at); tail < 3500*time.Millisecond || tail > 8*time.Second {
		t.Errorf("the recording ends %v after the event, want 4 s", tail)
	}

	// Another one, from the cloud.
	c.lasts(4 * time.Second)
	at = time.Now()
	reply := c.command(map[string]any{"kind": "event", "channel_id": c.ch})
	if !reply.OK {
		t.Errorf("event: %+v", reply)
	}
	c.eventually(40*time.Second, "the second event is recorded", covers(at))
	if gaps := c.timeline(c.ch).Gaps; len(gaps) != 0 {
		t.Errorf("gaps between events: %+v, want none: nobody wanted that time", gaps)
	}
}

// toldUntilFrom reports whether recordings cover [from, to].
func (tl timeline) toldUntilFrom(from, to time.Time) bool {
	at := from
	for _, r := range tl.Recordings {
		if !r.Start.After(at.Add(time.Millisecond)) && r.End.After(at) {
			at = r.End
		}
	}
	return !at.Before(to)
}

type commandAnswer struct {
	OK      bool            `json:"ok"`
	Problem string          `json:"problem"`
	Result  json.RawMessage `json:"result"`
}

func (c *controlled) command(body map[string]any) commandAnswer {
	c.t.Helper()
	var a commandAnswer
	if err := c.try("POST", "/hubs/"+c.hub+"/commands", body, &a); err != nil {
		c.t.Fatalf("command %v: %v", body, err)
	}
	return a
}

func testCommands(t *testing.T, c *controlled) {
	// The camera's snapshot, as cameras serve it.
	picture := append([]byte{0xff, 0xd8, 0xff, 0xe0}, []byte(strings.Repeat("picture", 1000))...)
	picture = append(picture, 0xff, 0xd9)
	shots := 0
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		shots++
		w.Header().Set("Content-Type", "image/jpeg")
		_, _ = w.Write(picture)
	}))
	t.Cleanup(web.Close)
	u, err := url.Parse(c.cam.URL())
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(web.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c.call("PATCH", "/channels/"+string(c.ch), map[string]any{"camera": map[string]any{"url": nil, "host": u.Hostname(), "templates": map[string]string{
		"high": "rtsp://{host}:" + u.Port() + u.Path, "snapshot": "http://{host}:" + port + "/shot.jpg",
	}}}, nil)
	c.mustOrder("start", map[string]any{"wait_s": 10})
	c.flows()

	a := c.command(map[string]any{"kind": "snapshot", "channel_id": c.ch})
	var shot struct {
		URL string `json:"url"`
	}
	if err := json.Unmarshal(a.Result, &shot); !a.OK || err != nil || shot.URL == "" {
		t.Fatalf("snapshot: %+v, %v", a, err)
	}
	if got := fetch(t, shot.URL); string(got) != string(picture) {
		t.Errorf("the snapshot has %d bytes, want the camera's %d", len(got), len(picture))
	}
	if shots != 1 {
		t.Errorf("%d snapshots were taken, want 1", shots)
	}

	a = c.command(map[string]any{"kind": "doctor"})
	if !strings.Contains(string(a.Result), "flash") {
		t.Errorf("doctor: %+v", a)
	}

	before, _ := c.stream(c.ch)
	if a := c.command(map[string]any{"kind": "restart-stream", "channel_id": c.ch}); !a.OK {
		t.Errorf("restart-stream: %+v", a)
	}
	plays := c.cam.Plays()
	c.eventually(20*time.Second, "the camera is pulled anew", func() bool {
		st, ok := c.stream(c.ch)
		return ok && c.cam.Plays() >= plays && st.Frames > before.Frames
	})

	at := time.Now()
	if a := c.command(map[string]any{"kind": "drain", "timeout_s": 30}); !a.OK {
		t.Errorf("drain: %+v", a)
	}
	// It is stored; the row follows at once.
	c.eventually(5*time.Second, "what was captured before the drain is on the timeline", func() bool {
		return c.timeline(c.ch).toldUntil(at.Add(-time.Second))
	})
	err = c.try("POST", "/hubs/"+c.hub+"/commands", map[string]any{"kind": "restart-stream", "channel_id": "ch_nobody"}, nil)
	if statusOf(err) != http.StatusUnprocessableEntity {
		t.Errorf("restart of an unknown channel: %v, want 422", err)
	}
	c.mustOrder("stop", map[string]any{"wait_s": 10})
}

func fetch(t *testing.T, url string) []byte {
	t.Helper()
	path := t.TempDir() + "/x"
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadFrom(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("GET: status %d, %v", resp.StatusCode, err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// workerHolds reports whether a worker holds footage that is not stored yet.
func (c *controlled) workerHolds() bool {
	c.t.Helper()
	resp, err := http.Get(c.url + "/metrics")
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "vms_worker_tmpfs_bytes" {
			return f[1] != "0"
		}
	}
	c.t.Fatal("the worker does not say what it holds")
	return false
}

// TestControlBench measures how long it takes from the call of the REST API
// until a worker has the first chunk: `make bench-control`.
func TestControlBench(t *testing.T) {
	if os.Getenv("BENCH_CONTROL") == "" {
		t.Skip("it takes minutes: make bench-control")
	}
	const rounds = 60
	c := newControlled(t, "embedded")
	var took []time.Duration
	for range rounds {
		// At any moment of the camera's GOP.
		c.lasts(time.Duration(rand.IntN(500)) * time.Millisecond)
		begin := time.Now()
		c.mustOrder("start", nil)
		c.eventuallyAt(5*time.Millisecond, 20*time.Second, "a worker has the first chunk", c.workerHolds)
		took = append(took, time.Since(begin))
		c.mustOrder("stop", map[string]any{"wait_s": 10})
		c.eventually(20*time.Second, "the stream is brought", func() bool { _, running := c.stream(c.ch); return !running && !c.workerHolds() })
	}
	slices.Sort(took)
	at := func(p float64) int64 { return took[int(p*float64(len(took)-1))].Milliseconds() }
	fmt.Printf("figure start_to_first_chunk_p50_ms %d ms\n", at(0.5))
	fmt.Printf("figure start_to_first_chunk_p95_ms %d ms\n", at(0.95))
	fmt.Printf("figure start_to_first_chunk_max_ms %d ms\n", at(1))
	if at(0.95) > 1000 {
		t.Errorf("p95 is %d ms, want at most 1000", at(0.95))
	}
}

// mosquitto is Debian's broker, set up as MOSQUITTO.md says.
type mosquitto struct {
	t    testing.TB
	addr string
	conf string
	cmd  *exec.Cmd
	log  *output
	done chan struct{}
}

// configure writes what vms-cloud prints for Mosquitto, and starts it.
func (m *mosquitto) configure(s *stack) {
	m.t = s.t
	s.t.Helper()
	dir := s.t.TempDir()
	for _, what := range []string{"passwords", "acl"} {
		out, err := exec.Command(filepath.Join(bin, "vms-cloud"), "mosquitto", "-data", s.data, "-url", s.url, what).Output()
		if err != nil {
			s.t.Fatalf("vms-cloud mosquitto %s: %v", what, err)
		}
		if err := os.WriteFile(filepath.Join(dir, what), out, 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	_, port, err := net.SplitHostPort(m.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	m.conf = filepath.Join(dir, "mosquitto.conf")
	conf := fmt.Sprintf(`listener %s 127.0.0.1
user root
allow_anonymous false
password_file %s
acl_file %s
use_username_as_clientid true
persistence true
persistence_location %s/
message_size_limit 262144
max_packet_size 270000
max_queued_messages 0
max_queued_bytes 67108864
`, port, filepath.Join(dir, "passwords"), filepath.Join(dir, "acl"), dir)
	if err := os.WriteFile(m.conf, []byte(conf), 0o600); err != nil {
		s.t.Fatal(err)
	}
	m.start()
	s.t.Cleanup(func() {
		m.kill()
		if s.t.Failed() {
			text, _ := m.log.get()
			s.t.Logf("--- mosquitto ---\n%s", text)
		}
	})
}

func (m *mosquitto) start() {
	m.t.Helper()
	path, err := exec.LookPath("mosquitto")
	if err != nil {
		path = "/usr/sbin/mosquitto" // not in everybody's PATH
	}
	m.log = &output{more: make(chan struct{})}
	m.cmd = exec.Command(path, "-c", m.conf)
	m.cmd.Stdout, m.cmd.Stderr = m.log, m.log
	if err := m.cmd.Start(); err != nil {
		m.t.Fatalf("mosquitto: %v (scripts/setup installs it)", err)
	}
	cmd, done := m.cmd, make(chan struct{})
	m.done = done
	go func() {
		_ = cmd.Wait() // killed
		close(done)
	}()
}

// kill ends the broker as a power cut would.
func (m *mosquitto) kill() {
	_ = m.cmd.Process.Kill() // it may be gone already
	<-m.done
}
