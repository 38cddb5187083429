package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/cmaf"
	"github.com/zipato/vms/pkg/problem"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest/chaos"
)

// bin holds the programs under test, built once for the test binary.
var bin string

func TestMain(m *testing.M) { os.Exit(runTests(m)) }

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "vms-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	bin = dir
	for name, pkg := range map[string]string{
		"vms-cloud": "cloud/cmd/vms-cloud", "vms-agent": "agent/cmd/vms-agent",
		"vms-demo-camera": "scripts/demo-camera", "vms-run": "scripts/run", "objectstore": "cloud/e2e/objectstore", "workerbench": "cloud/e2e/workerbench",
	} {
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, name), "github.com/zipato/vms/"+pkg)
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build %s: %v\n%s", name, err, out)
			return 1
		}
	}
	return m.Run()
}

// ports handed out by this test binary.
var ports struct {
	sync.Mutex
	used map[int]bool
}

// freePort returns an address on the loopback whose port stays free between two
// runs of a program: it lies below the range from which the kernel takes the
// ports of outgoing connections.
func freePort(t testing.TB) string {
	t.Helper()
	ports.Lock()
	defer ports.Unlock()
	if ports.used == nil {
		ports.used = make(map[int]bool)
	}
	for range 1000 {
		port := 15000 + rand.IntN(15000)
		addr := fmt.Sprintf("127.0.0.1:%d", port)
		if ports.used[port] {
			continue
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		l.Close()
		ports.used[port] = true
		return addr
	}
	t.Fatal("no free port on the loopback")
	return ""
}

// program is one process under test.
type program struct {
	t    testing.TB
	name string
	args []string
	env  []string
	cmd  *exec.Cmd
	out  *output
	done chan struct{}
}

// output keeps what a program prints, and lets a test wait for a line.
type output struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	more chan struct{}
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.more)
	o.more = make(chan struct{})
	return o.buf.Write(b)
}

func (o *output) get() (string, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String(), o.more
}

func startProgram(t testing.TB, name string, env []string, args ...string) *program {
	t.Helper()
	p := &program{t: t, name: name, args: args, env: env, out: &output{more: make(chan struct{})}}
	p.start()
	t.Cleanup(func() {
		p.signal(syscall.SIGTERM)
		select {
		case <-p.done:
		case <-time.After(30 * time.Second):
			t.Errorf("%s did not end within 30 s of SIGTERM", name)
			p.kill()
		}
		if t.Failed() {
			text, _ := p.out.get()
			t.Logf("--- %s ---\n%s", name, text)
		}
	})
	return p
}

func (p *program) start() {
	p.t.Helper()
	p.cmd = exec.Command(filepath.Join(bin, p.name), p.args...)
	p.cmd.Env = append(os.Environ(), p.env...)
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	done := make(chan struct{})
	p.done = done
	go func() {
		_ = p.cmd.Wait() // how it ended stands in ProcessState
		close(done)
	}()
}

func (p *program) signal(s os.Signal) { _ = p.cmd.Process.Signal(s) } // it may be gone already

// kill ends the program as a power cut would.
func (p *program) kill() {
	p.signal(syscall.SIGKILL)
	<-p.done
}

// line waits for the first line that begins with prefix, and returns the rest.
func (p *program) line(prefix string, within time.Duration) string {
	p.t.Helper()
	limit := time.After(within)
	for {
		text, more := p.out.get()
		for l := range strings.Lines(text) {
			if rest, ok := strings.CutPrefix(l, prefix); ok && strings.HasSuffix(l, "\n") {
				return strings.TrimSpace(rest)
			}
		}
		select {
		case <-more:
		case <-p.done:
			p.t.Fatalf("%s ended before it said %q:\n%s", p.name, prefix, text)
		case <-limit:
			p.t.Fatalf("%s did not say %q within %v:\n%s", p.name, prefix, within, text)
		}
	}
}

// stack is a cloud and a hub, each its own process.
type stack struct {
	t         testing.TB
	data      string
	url       string
	token     string
	cloud     *program
	agent     *program
	agentURL  string
	agentArgs []string // with which the agent runs
	hubDir    string
	lanKey    string
	hub       string
	recording time.Duration
	link      *chaos.Proxy // between the agent and the cloud, nil when there is none
}

// stackOptions are what a stack has beyond a plain one.
type stackOptions struct {
	recording           time.Duration
	link                bool // the agent reaches the cloud through a chaos proxy
	cloudArgs, cloudEnv []string
	agentArgs, agentEnv []string
	// front stands between hubs and what is at an address, and returns its own.
	front func(address string) string
	// enrolled is called between the hub's enrolment and its first start.
	enrolled func(*stack)
}

func newStack(t testing.TB, recording time.Duration) *stack {
	t.Helper()
	return startStack(t, stackOptions{recording: recording})
}

func startStack(t testing.TB, o stackOptions) *stack {
	t.Helper()
	s := &stack{t: t, data: t.TempDir(), recording: o.recording}
	listen := freePort(t)
	args := append([]string{"-data", s.data, "-listen", listen, "-s3-listen", freePort(t), "-recording", o.recording.String()}, o.cloudArgs...)
	if !slices.ContainsFunc(o.cloudArgs, func(a string) bool { return strings.HasPrefix(a, "-mqtt-") }) {
		args = append(args, "-mqtt-listen", freePort(t))
	}
	s.url = "http://" + listen
	public := s.url
	if o.link {
		s.link = chaos.New(t, listen)
		public = "http://" + s.link.Addr()
		args = append(args, "-public-url", public)
	}
	if o.front != nil {
		public = "http://" + o.front(strings.TrimPrefix(public, "http://"))
		args = append(args, "-public-url", public)
	}
	s.cloud = startProgram(t, "vms-cloud", o.cloudEnv, args...)
	s.cloud.line("listening ", 20*time.Second)
	token, err := os.ReadFile(filepath.Join(s.data, "admin-token"))
	if err != nil {
		t.Fatal(err)
	}
	s.token = strings.TrimSpace(string(token))
	s.hubDir = filepath.Join(s.data, "hub")
	s.addHub(o, public)
	return s
}

// addHub enrols the stack's hub at a cloud's public address, and starts its agent.
func (s *stack) addHub(o stackOptions, public string) {
	s.t.Helper()
	var made struct {
		ID   string `json:"id"`
		Code string `json:"enrolment_code"`
	}
	s.call("POST", "/hubs", map[string]string{"name": "test hub"}, &made)
	s.hub = made.ID
	if out, err := exec.Command(filepath.Join(bin, "vms-agent"), "-data", s.hubDir, "enroll", public, made.Code).CombinedOutput(); err != nil {
		s.t.Fatalf("enroll: %v\n%s", err, out)
	}
	key, err := os.ReadFile(filepath.Join(s.hubDir, "lan-key"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.lanKey = strings.TrimSpace(string(key))
	if o.enrolled != nil {
		o.enrolled(s)
	}
	address := freePort(s.t)
	s.agentURL = "http://" + address
	s.agentArgs = append([]string{"-data", s.hubDir, "-listen", address}, o.agentArgs...)
	s.agent = startProgram(s.t, "vms-agent", o.agentEnv, s.agentArgs...)
	s.eventually(20*time.Second, "the hub is online", s.online)
}

// online reports whether the cloud sees the hub.
func (s *stack) online() bool {
	var list struct {
		Hubs []struct {
			ID     string `json:"id"`
			Online bool   `json:"online"`
		} `json:"hubs"`
	}
	if s.try("GET", "/hubs", nil, &list) != nil {
		return false
	}
	for _, h := range list.Hubs {
		if h.ID == s.hub {
			return h.Online
		}
	}
	return false
}

// try calls the REST API.
func (s *stack) try(method, path string, in, out any) error {
	return request(method, s.url+"/api/v1"+path, s.token, in, out)
}

// call is try that must succeed.
func (s *stack) call(method, path string, in, out any) {
	s.t.Helper()
	if err := s.try(method, path, in, out); err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
}

func request(method, address, token string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, address, body)
	if err != nil {
		return err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := problem.ReadResponse(resp); err != nil {
		return err
	}
	if out == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(out)
}

// eventually waits until ok, or fails t saying what did not come true.
func (s *stack) eventually(within time.Duration, what string, ok func() bool) {
	s.t.Helper()
	s.eventuallyAt(50*time.Millisecond, within, what, ok)
}

// eventuallyAt is eventually that asks more or less often.
func (s *stack) eventuallyAt(pace, within time.Duration, what string, ok func() bool) {
	s.t.Helper()
	limit := time.Now().Add(within)
	for !ok() {
		if time.Now().After(limit) {
			s.t.Fatalf("not within %v: %s", within, what)
		}
		time.Sleep(pace) // of asking, not a wait for luck
	}
}

// addChannel makes a channel for a camera on the stack's hub.
func (s *stack) addChannel(name, cameraURL string) vms.ChannelID {
	s.t.Helper()
	var ch struct {
		ID vms.ChannelID `json:"id"`
	}
	s.call("POST", "/channels", map[string]any{"name": name, "hub_id": s.hub, "camera": map[string]string{"url": cameraURL}}, &ch)
	return ch.ID
}

func (s *stack) startChannel(ch vms.ChannelID) {
	s.t.Helper()
	s.call("POST", "/channels/"+string(ch)+"/start", nil, nil)
}

func (s *stack) stopChannel(ch vms.ChannelID) {
	s.t.Helper()
	s.call("POST", "/channels/"+string(ch)+"/stop", nil, nil)
}

// agentStream is a stream as the agent's local API shows it.
type agentStream struct {
	ID            string        `json:"id"`
	Channel       vms.ChannelID `json:"channel"`
	State         string        `json:"state"`
	Problem       string        `json:"problem"`
	Delivering    bool          `json:"delivering"`
	Frames        int           `json:"frames"`
	HeldChunks    int           `json:"held_chunks"`
	RAMBytes      int64         `json:"ram_bytes"`
	FlashBytes    int64         `json:"flash_bytes"`
	CapturedUntil time.Time     `json:"captured_until"`
	ReceivedUntil time.Time     `json:"received_until"`
	Dropped       int           `json:"dropped_chunks"`
	PacketsLost   int           `json:"packets_lost"`
}

// tryStreams asks the agent, which may be away.
func (s *stack) tryStreams() ([]agentStream, error) {
	var list struct {
		Streams []agentStream `json:"streams"`
	}
	err := request("GET", s.agentURL+"/v1/streams", s.lanKey, nil, &list)
	return list.Streams, err
}

func (s *stack) stream(ch vms.ChannelID) (agentStream, bool) {
	s.t.Helper()
	list, err := s.tryStreams()
	if err != nil {
		s.t.Fatalf("agent: %v", err)
	}
	for _, st := range list {
		if st.Channel == ch {
			return st, true
		}
	}
	return agentStream{}, false
}

type recording struct {
	ID      string    `json:"id"`
	Start   time.Time `json:"start"`
	End     time.Time `json:"end"`
	MediaMS int64     `json:"media_ms"`
	Bytes   int64     `json:"bytes"`
	SHA256  string    `json:"sha256"`
	Codecs  string    `json:"codecs"`
	URL     string    `json:"url"`
}

type timeline struct {
	Recordings []recording     `json:"recordings"`
	Gaps       []vms.Gap       `json:"gaps"`
	Pending    []vms.TimeRange `json:"pending"`
}

func (s *stack) timeline(ch vms.ChannelID) timeline {
	s.t.Helper()
	tl, err := s.tryTimeline(ch)
	if err != nil {
		s.t.Fatalf("timeline of %s: %v", ch, err)
	}
	return tl
}

// tryTimeline reads all pages of the last 24 hours.
func (s *stack) tryTimeline(ch vms.ChannelID) (timeline, error) {
	var all timeline
	now := time.Now().UTC()
	query := url.Values{"limit": {"1000"}}
	query.Set("from", now.Add(-24*time.Hour).Format(time.RFC3339))
	query.Set("to", now.Add(time.Second).Format(time.RFC3339))
	for {
		var page struct {
			timeline
			Next string `json:"next_cursor"`
		}
		if err := s.try("GET", "/channels/"+string(ch)+"/recordings?"+query.Encode(), nil, &page); err != nil {
			return all, err
		}
		all.Recordings = append(all.Recordings, page.Recordings...)
		all.Gaps = append(all.Gaps, page.Gaps...)
		all.Pending = append(all.Pending, page.Pending...)
		if page.Next == "" {
			return all, nil
		}
		query.Set("cursor", page.Next)
	}
}

// download fetches a recording from its presigned URL.
func download(t testing.TB, r recording, path string) {
	t.Helper()
	resp, err := http.Get(r.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || int64(len(body)) != r.Bytes {
		t.Fatalf("GET of recording %s: status %d, %d bytes of %d, %v", r.ID, resp.StatusCode, len(body), r.Bytes, err)
	}
	if err := os.WriteFile(path, body, 0o600); err != nil {
		t.Fatal(err)
	}
}

// settled waits until everything that a stopped channel had is in the store,
// and returns its timeline.
func (s *stack) settled(ch vms.ChannelID) timeline {
	s.t.Helper()
	return s.settledWithin(ch, 40*time.Second)
}

// settledWithin is settled of a hub that may have more to bring.
func (s *stack) settledWithin(ch vms.ChannelID, within time.Duration) timeline {
	s.t.Helper()
	s.eventually(within, "the hub has brought everything", func() bool {
		_, running := s.stream(ch)
		return !running
	})
	var tl timeline
	last := -1
	s.eventually(20*time.Second, "the timeline has settled", func() bool {
		tl = s.timeline(ch)
		ok := len(tl.Pending) == 0 && len(tl.Recordings) == last
		last = len(tl.Recordings)
		return ok && last > 0
	})
	return tl
}

// wantFrameExact proves that the recordings of a channel, one after the other,
// hold every packet of the clip once, unaltered and in order.
func wantFrameExact(t testing.TB, clip, codec string, sound bool, tl timeline) (captured, recorded int) {
	t.Helper()
	dir := t.TempDir()
	kinds := []string{"v"}
	if sound {
		kinds = append(kinds, "a")
	}
	got := map[string][]string{}
	for i, r := range tl.Recordings {
		path := filepath.Join(dir, fmt.Sprintf("%d.mp4", i))
		download(t, r, path)
		for _, k := range kinds {
			got[k] = append(got[k], hashes(t, path, k, codec)...)
		}
		if i > 0 && !r.Start.Equal(tl.Recordings[i-1].End) {
			t.Errorf("recording %d starts at %v, the one before ends at %v", i, r.Start, tl.Recordings[i-1].End)
		}
		if at := firstPresented(t, path); at != 0 {
			t.Errorf("recording %d starts at tick %d, want 0", i, at)
		}
	}
	for _, k := range kinds {
		want := hashes(t, clip, k, codec)
		if len(want) == 0 {
			t.Fatalf("the clip has no packets of kind %s", k)
		}
		if diff := firstDifference(want, got[k]); diff != "" {
			t.Errorf("stream %s: %s", k, diff)
		}
		captured, recorded = captured+len(want), recorded+len(got[k])
	}
	if len(tl.Gaps) != 0 {
		t.Errorf("gaps: %+v, want none", tl.Gaps)
	}
	return captured, recorded
}

// firstPresented returns the least presentation time, in ticks, of a recording's
// first fragment. ffprobe cannot tell: for fragments with signed composition
// offsets its demuxer shows the reordering delay as a late start.
func firstPresented(t testing.TB, path string) int64 {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var first []byte
	for len(data) >= 8 {
		n := int(binary.BigEndian.Uint32(data))
		switch name := string(data[4:8]); {
		case name == "moof":
			first = data[:n]
		case name == "mdat" && first != nil:
			frag, err := cmaf.ParseFragment(slices.Concat(first, data[:n]))
			if err != nil {
				t.Fatal(err)
			}
			at := int64(math.MaxInt64)
			for _, r := range frag.Runs {
				at = min(at, r.MinPTS)
			}
			return at
		}
		data = data[n:]
	}
	t.Fatalf("%s has no fragment", path)
	return 0
}

func firstDifference(want, got []string) string {
	for i := range max(len(want), len(got)) {
		switch {
		case i >= len(got):
			return fmt.Sprintf("%d packets recorded, the source has %d", len(got), len(want))
		case i >= len(want):
			return fmt.Sprintf("%d packets recorded, the source has only %d", len(got), len(want))
		case want[i] != got[i]:
			return fmt.Sprintf("packet %d of %d differs (%d recorded)", i, len(want), len(got))
		}
	}
	return ""
}
