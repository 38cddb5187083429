package agent

import (
	"context"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/agent/lan"
	"github.com/zipato/vms/pkg/problem"
	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/vmstest/camtest"
	"github.com/zipato/vms/pkg/wire"
)

func TestStartListStop(t *testing.T) {
	vmstest.NoLeaks(t)
	c := newCloud(t)
	cam := camtest.Start(t, camtest.Options{Loop: true, Username: "admin", Password: "pa55"})
	h := runHub(t, c)
	tok := c.token(t, nil)
	code, body := h.start(tok, cam.Camera())
	if code != 201 || strings.Contains(body, "pa55") {
		t.Fatalf("start: %d %s", code, body)
	}
	first := h.until("frames come and no worker is there", func(s lan.Stream) bool { return s.State == wire.StateBuffering && s.HeldChunks > 3 })
	if first.Channel != "ch_1" || first.Origin != "lan" || first.CapturedUntil.IsZero() || first.CameraSessions != 1 {
		t.Errorf("stream %+v", first)
	}
	// The same again changes nothing.
	if code, body := h.start(c.token(t, nil), cam.Camera()); code != 201 || !strings.Contains(body, string(first.ID)) {
		t.Errorf("start again: %d %s", code, body)
	}
	if n := cam.Plays(); n != 1 {
		t.Errorf("the camera was opened %d times", n)
	}
	// Another camera replaces it.
	other := camtest.Start(t, camtest.Options{Loop: true})
	if code, body := h.start(tok, other.Camera()); code != 201 {
		t.Errorf("start with another camera: %d %s", code, body)
	}
	second := h.until("the other camera", func(s lan.Stream) bool { return s.ID != first.ID && s.CameraSessions == 1 })
	if code, body := h.call("DELETE", "/v1/streams/"+string(first.ID), nil); code != 404 {
		t.Errorf("stop what was replaced: %d %s", code, body)
	}
	if code, body := h.call("DELETE", "/v1/streams/"+string(second.ID), nil); code != 204 {
		t.Errorf("stop: %d %s", code, body)
	}
	// There is no worker: the footage waits.
	h.until("stopped", func(s lan.Stream) bool { return s.State == wire.StateStopped && s.Delivering && s.HeldChunks > 3 })
	h.stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.states); n == 0 || c.states[n-1] != wire.StateStopped {
		t.Errorf("the NVR heard %q, want the stop at the end", c.states)
	}
}

func TestTokensOfOthersAreRefused(t *testing.T) {
	vmstest.NoLeaks(t)
	c, foreign := newCloud(t), newCloud(t)
	h := runHub(t, c)
	cam := vms.Camera{URL: "rtsp://192.0.2.1/"}
	good := c.token(t, nil)
	for name, tt := range map[string]struct {
		token string
		cam   vms.Camera
		want  int
	}{
		"foreign cloud":  {foreign.token(t, func(s *token.Stream) { s.NVR = c.nvrURL() }), cam, 401},
		"foreign NVR":    {c.token(t, func(s *token.Stream) { s.NVR = foreign.nvrURL() }), cam, 403},
		"another hub":    {c.token(t, func(s *token.Stream) { s.Hub = "hub_2" }), cam, 403},
		"expired":        {c.token(t, func(s *token.Stream) { s.Expires = time.Now().Add(-time.Hour) }), cam, 401},
		"tampered":       {good[:len(good)-10] + "AAAAAAAAAA", cam, 401},
		"none":           {"", cam, 400},
		"too long":       {strings.Repeat("x", 10_000), cam, 400},
		"no camera":      {good, vms.Camera{}, 400},
		"a file":         {good, vms.Camera{URL: "file:///etc/passwd"}, 400},
		"an HTTP server": {good, vms.Camera{URL: "http://192.0.2.1/"}, 400},
	} {
		if code, body := h.start(tt.token, tt.cam); code != tt.want || !strings.Contains(body, "detail") {
			t.Errorf("%s: %d %s, want %d", name, code, body, tt.want)
		}
	}
	if got := h.streams(); len(got) != 0 || c.proofs.Load() != 0 {
		t.Errorf("streams %+v, %d handshakes", got, c.proofs.Load())
	}
	if code, body := h.start(c.token(t, func(s *token.Stream) { s.Hub = "" }), cam); code != 201 {
		t.Errorf("a token for any hub of the account: %d %s", code, body)
	}
}

// TestRefusalsOfTheNVRAreSaid, with what to do, and are not repeated.
func TestRefusalsOfTheNVRAreSaid(t *testing.T) {
	for typ, status := range map[string]int{
		wire.ProblemProof: 401, wire.ProblemTokenInvalid: 401, wire.ProblemTokenExpired: 401, wire.ProblemHubUnknown: 403,
		wire.ProblemHubMismatch: 403, wire.ProblemSIDUnknown: 404, wire.ProblemRevoked: 410,
	} {
		t.Run(strings.TrimPrefix(typ, problem.TypePrefix), func(t *testing.T) {
			vmstest.NoLeaks(t)
			c := newCloud(t)
			c.refuse, c.status = typ, status
			h := runHub(t, c)
			if code, body := h.start(c.token(t, nil), vms.Camera{URL: "rtsp://127.0.0.1:1/"}); code != 201 {
				t.Fatalf("start: %d %s", code, body)
			}
			s := h.until("refused", func(s lan.Stream) bool { return s.State == wire.StateRefused })
			if !strings.Contains(s.Problem, "The test says no.") {
				t.Errorf("problem %q", s.Problem)
			}
			if strings.Contains(typ, "token") && !strings.Contains(s.Problem, "new token") {
				t.Errorf("problem %q does not say what to do", s.Problem)
			}
			if n := c.proofs.Load(); n != 1 {
				t.Errorf("%d handshakes", n)
			}
			// A new token starts it anew.
			if code, body := h.start(c.token(t, nil), vms.Camera{URL: "rtsp://127.0.0.1:1/"}); code != 201 || strings.Contains(body, string(s.ID)) {
				t.Errorf("start after the refusal: %d %s", code, body)
			}
		})
	}
}

func TestCameraProblemsAreSaid(t *testing.T) {
	off := camtest.Start(t, camtest.Options{Loop: true})
	off.PowerOff()
	locked := camtest.Start(t, camtest.Options{Loop: true, Username: "admin", Password: "pa55"})
	blind := camtest.Start(t, camtest.Options{Loop: true, NoVideo: true, Source: camtest.Clip(t, vmstest.ClipSpec{Audio: "aac"})})
	wrong := locked.Camera()
	wrong.URL = strings.Replace(wrong.URL, "pa55", "guess", 1)
	for name, tt := range map[string]struct {
		cam             vms.Camera
		state, sentence string
	}{
		"unreachable":    {off.Camera(), wire.StateNoCamera, "refuses the connection"},
		"wrong password": {wrong, wire.StateAuthFailed, "refuses the user name or password"},
		"no video":       {blind.Camera(), wire.StateBadCamera, "offers no H264 or H265 video"},
	} {
		t.Run(name, func(t *testing.T) {
			vmstest.NoLeaks(t)
			c := newCloud(t)
			h := runHub(t, c)
			if code, body := h.start(c.token(t, nil), tt.cam); code != 201 {
				t.Fatalf("start: %d %s", code, body)
			}
			s := h.until(tt.state, func(s lan.Stream) bool { return s.State == tt.state })
			if !strings.Contains(s.Problem, tt.sentence) || strings.Contains(s.Problem, "guess") || strings.Contains(s.Camera, "guess") {
				t.Errorf("problem %q of camera %q", s.Problem, s.Camera)
			}
		})
	}
}

func TestSecondAgentOnOneDirectoryIsRefused(t *testing.T) {
	vmstest.NoLeaks(t)
	c := newCloud(t)
	h := runHub(t, c)
	if _, err := New(Config{Dir: h.a.cfg.Dir}); err == nil || !strings.Contains(err.Error(), "another agent runs") {
		t.Errorf("New = %v", err)
	}
	h.stop()
	a, err := New(Config{Dir: h.a.cfg.Dir, Log: vmstest.Log(t)})
	if err != nil {
		t.Fatalf("New = %v after the first agent ended", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.Run(ctx); err != nil {
		t.Errorf("Run = %v", err)
	}
}

func TestTakenPortIsSaid(t *testing.T) {
	vmstest.NoLeaks(t)
	c := newCloud(t)
	dir := t.TempDir()
	if _, err := Enroll(t.Context(), c.srv.URL, "code", "test", dir); err != nil {
		t.Fatal(err)
	}
	a, err := New(Config{Dir: dir, Listen: strings.TrimPrefix(c.srv.URL, "http://"), Log: vmstest.Log(t)})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "VMS_AGENT_LISTEN") {
		t.Errorf("Run = %v", err)
	}
}

// TestPhasesAreSpread: four streams are a quarter of a recording apart, and any
// number is never closer than half of what is even.
func TestPhasesAreSpread(t *testing.T) {
	for n := 2; n <= maxStreams; n++ {
		for i := range n {
			for j := range i {
				d := math.Abs(share(i) - share(j))
				if d = min(d, 1-d); d < 1/float64(2*n) || n == 4 && d < 0.25 {
					t.Fatalf("streams %d and %d of %d are %v of a recording apart", i, j, n, d)
				}
			}
			if p := share(i); p < 0 || p >= 1 {
				t.Fatal(fmt.Sprint("share ", p))
			}
		}
	}
}

// TestPlacesAreTakenAgain: streams that come and go do not bunch.
func TestPlacesAreTakenAgain(t *testing.T) {
	a := &Agent{entries: map[vms.ChannelID]*entry{}}
	begin := func(ch vms.ChannelID) int {
		e := &entry{channel: ch, origin: wire.OriginCloud, place: a.freePlace(ch)}
		a.entries[ch] = e
		return e.place
	}
	for i, ch := range []vms.ChannelID{"a", "b", "c", "d"} {
		if got := begin(ch); got != i {
			t.Errorf("stream %s got place %d, want %d", ch, got, i)
		}
	}
	if got := begin("b"); got != 1 {
		t.Errorf("started again: place %d, want the one it had", got)
	}
	a.entries["c"].stopping = true // it only delivers
	if got := begin("e"); got != 2 {
		t.Errorf("place %d, want that of the stream that was stopped", got)
	}
}
