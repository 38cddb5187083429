package doctor

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/zipato/vms/agent/control"
	"github.com/zipato/vms/agent/hubclock"
	"github.com/zipato/vms/pkg/seal"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/vmstest/camtest"
	"github.com/zipato/vms/pkg/wire"
)

// TestNothingIsWrong with a hub whose agent does not run.
func TestNothingIsWrong(t *testing.T) {
	vmstest.NoLeaks(t)
	a := newAuthority(t)
	cfg := healthy(t, "")
	cfg.NVRURL, cfg.Roots = serve(t, tellTime, a.sign(t, "127.0.0.1", -1, 30)), a.pool()
	cam := camtest.Start(t, camtest.Options{Loop: true})
	cfg.Cameras = []Camera{{Channel: "ch_1", Camera: cam.Camera()}}
	r := Run(t.Context(), cfg)
	var out bytes.Buffer
	if err := r.Print(&out); err != nil {
		t.Fatal(err)
	}
	if !r.OK || !strings.Contains(out.String(), "Nothing is wrong.") {
		t.Errorf("report:\n%s", out.String())
	}
	var checks []string
	for _, f := range r.Findings {
		checks = append(checks, f.Check)
		if f.State != Good || f.Finding == "" || f.Remedy != "" {
			t.Errorf("%+v", f)
		}
	}
	if got := strings.Join(checks, " "); got != "kernel memory flash clock dns nvr mqtt camera" {
		t.Errorf("checks %s", got)
	}
	if f := find(r, "camera")[0]; !strings.Contains(f.Finding, "sends H264") {
		t.Errorf("camera: %s", f.Finding)
	}
	if left, err := os.ReadDir(cfg.Dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	data, err := json.Marshal(r)
	if err != nil || len(data) > wire.MaxResult {
		t.Errorf("%d bytes of JSON, %v", len(data), err)
	}
}

// TestWhatIsWrongIsSaidWithARemedy, each in its own finding.
func TestWhatIsWrongIsSaidWithARemedy(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	login := func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "<html>Log in to the hotel's network</html>")
	}
	old := func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{"server_time": time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)})
	}
	full := t.TempDir()
	for name, tt := range map[string]struct {
		edit            func(*Config)
		check           string
		finding, remedy string
	}{
		"old kernel": {func(c *Config) {
			c.Root = fstest.MapFS{"proc/sys/kernel/osrelease": {Data: []byte("2.6.36.4brcmarm")}}
		}, "kernel", "Linux 2.6.36.4brcmarm is older than 3.14", "firmware"},
		"no proc":         {func(c *Config) { c.Root = fstest.MapFS{} }, "kernel", "/proc cannot be read", "Mount"},
		"little memory":   {func(c *Config) { c.Available = 30 << 20 }, "memory", "24.0 MiB for footage, which is more than there is", "set ram to 14MiB"},
		"flash too small": {func(c *Config) { c.LeastFlash = 1 << 60 }, "flash", "less than the", "set spool"},
		"flash in memory": {func(c *Config) { c.Spool = "/dev/shm/vms-spool" }, "flash", "in memory, not on flash", "flash to none"},
		"flash in the way": {func(c *Config) {
			c.Spool = filepath.Join(full, "file")
			if err := os.WriteFile(c.Spool, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "flash", "fails", "flash"},

		"unknown name":      {func(c *Config) { c.NVRURL = "wss://nvr.invalid/session/v1" }, "dns", "nvr.invalid", "name server"},
		"unknown authority": {func(c *Config) { c.NVRURL = serve(t, tellTime, other.sign(t, "127.0.0.1", -1, 30)) }, "nvr", "no authority known here", "set ca"},
		"other name":        {func(c *Config) { c.NVRURL = serve(t, tellTime, a.sign(t, "192.0.2.1", -1, 30)) }, "nvr", "certificate for another name", "right one"},
		"expired":           {func(c *Config) { c.NVRURL = serve(t, tellTime, a.sign(t, "127.0.0.1", -30, -1)) }, "nvr", "not valid at this time", "Renew"},
		"not yet valid":     {func(c *Config) { c.NVRURL = serve(t, tellTime, a.sign(t, "127.0.0.1", 1, 30)) }, "nvr", "not valid at this time", "clocks"},
		"no TLS there":      {func(c *Config) { c.NVRURL = "wss" + strings.TrimPrefix(serve(t, tellTime), "ws") }, "nvr", "does not speak TLS", "port"},
		"login page":        {func(c *Config) { c.NVRURL = serve(t, login) }, "nvr", "is not an NVR", "login page"},
		"nobody there":      {func(c *Config) { c.NVRURL = "ws://" + nobody(t) + "/session/v1" }, "nvr", "refuses the connection", "cloud runs"},
		"control line down": {func(c *Config) {
			c.NVRURL, c.Running = serve(t, tellTime), &Running{MQTTUp: true, Control: errors.New("the hub was revoked")}
		}, "nvr", "not to this hub: the hub was revoked", "enrol it again"},

		"time unknown": {func(c *Config) { c.NVRURL = "ws://" + nobody(t) + "/session/v1" }, "clock", "Nobody has told the hub what time it is", "set sntp"},
		"cloud in the past": {func(c *Config) {
			c.NVRURL, c.Built = serve(t, old), time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		}, "clock", "before this agent was built", "machine that the cloud runs on"},

		"broker without TLS": {func(c *Config) { c.Broker = &wire.Broker{URL: "mqtt://192.0.2.1"} }, "mqtt", "in the clear", "insecure"},
		"broker gone":        {func(c *Config) { c.Broker = &wire.Broker{URL: "mqtt://" + nobody(t)} }, "mqtt", "refuses the connection", "port"},
		"broker unknown":     {func(c *Config) { c.Broker = &wire.Broker{URL: "mqtts://broker.invalid"} }, "mqtt", "cannot be resolved", "name"},
		"taken over": {func(c *Config) {
			c.Broker, c.Running = &wire.Broker{URL: "mqtts://b"}, &Running{MQTTUp: true, MQTT: fmt.Errorf("%w", control.ErrTakenOver)}
		}, "mqtt", "second agent", "Stop the other"},
		"refused": {func(c *Config) {
			c.Broker, c.Running = &wire.Broker{URL: "mqtts://b"}, &Running{MQTT: fmt.Errorf("%w its topic", control.ErrRefused)}
		}, "mqtt", "refuses this hub", "vms-cloud mosquitto"},

		"camera away":       {func(c *Config) { c.Cameras = one(vms.Camera{URL: "rtsp://u:secret@" + nobody(t) + "/x"}) }, "camera", "refuses the connection.", "Check the port"},
		"camera's password": {func(c *Config) { c.Cameras = one(locked(t)) }, "camera", "refuses the user name or password.", "Correct them"},
		"camera's address":  {func(c *Config) { c.Cameras = one(vms.Camera{URL: "http://u:secret@x/"}) }, "camera", "rtsp://", "Correct"},
		"camera unreadable": {func(c *Config) { c.Cameras = []Camera{{Channel: "ch_1", Broken: "It is broken."}} }, "camera", "It is broken.", "Save the camera again"},
		"camera of a stream": {func(c *Config) {
			c.Cameras = one(vms.Camera{Host: "192.0.2.7"})
			c.Cameras[0].Stream = &Stream{State: wire.StateNoCamera, Problem: "The camera at 192.0.2.7 does not answer; check its power."}
		}, "camera", "The camera at 192.0.2.7 does not answer.", "Check its power."},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := healthy(t, "")
			cfg.NVRURL, cfg.Roots = serve(t, tellTime, a.sign(t, "127.0.0.1", -1, 30)), a.pool()
			tt.edit(&cfg)
			r := Run(t.Context(), cfg)
			all := find(r, tt.check)
			if r.OK || len(all) != 1 || all[0].State != Problem {
				t.Fatalf("%+v", r)
			}
			if f := all[0]; !strings.Contains(f.Finding, tt.finding) || !strings.Contains(f.Remedy, tt.remedy) {
				t.Errorf("%q -> %q, want %q and %q in it", f.Finding, f.Remedy, tt.finding, tt.remedy)
			}
			for _, f := range r.Findings {
				if f.State == Problem && (f.Remedy == "" || !strings.HasSuffix(f.Remedy, ".")) || !strings.HasSuffix(f.Finding, ".") {
					t.Errorf("no sentence and remedy: %+v", f)
				}
				if strings.Contains(f.Finding+f.Remedy, "secret") {
					t.Errorf("a password is told: %+v", f)
				}
			}
		})
	}
}

func one(cam vms.Camera) []Camera { return []Camera{{Channel: "ch_1", Camera: cam}} }

// locked is a camera with another password.
func locked(t *testing.T) vms.Camera {
	cam := camtest.Start(t, camtest.Options{Loop: true, Username: "u", Password: "right"}).Camera()
	cam.URL = strings.Replace(cam.URL, "right", "secret", 1)
	return cam
}

// TestCameraOfARunningStreamIsNotPulled, and one without a stream is.
func TestCameraOfARunningStreamIsNotPulled(t *testing.T) {
	vmstest.NoLeaks(t)
	idle, busy := camtest.Start(t, camtest.Options{Loop: true}), camtest.Start(t, camtest.Options{Loop: true})
	cfg := healthy(t, serve(t, tellTime))
	cfg.Running = &Running{ControlUp: true, MQTTUp: true}
	cfg.Cameras = []Camera{
		{Channel: "ch_busy", Camera: busy.Camera(), Stream: &Stream{State: wire.StateStreaming}},
		{Channel: "ch_idle", Camera: idle.Camera()},
	}
	if r := Run(t.Context(), cfg); !r.OK {
		t.Errorf("%+v", r)
	}
	if busy.Plays() != 0 || idle.Plays() != 1 {
		t.Errorf("pulled %d and %d times, want 0 and 1", busy.Plays(), idle.Plays())
	}
}

// TestOneAttemptWithAWrongPassword: cameras lock accounts.
func TestOneAttemptWithAWrongPassword(t *testing.T) {
	vmstest.NoLeaks(t)
	cam := camtest.Start(t, camtest.Options{Loop: true, Username: "u", Password: "right"})
	wrong := cam.Camera()
	wrong.URL = strings.Replace(wrong.URL, "right", "wrong", 1)
	began := time.Now()
	f := timed(t.Context(), cameraTime, Camera{Channel: "ch_1", Camera: wrong}.look)
	// It does not wait for the next try either.
	if took := time.Since(began); f.State != Problem || cam.Refused() > 1 || took > cameraTime/2 {
		t.Errorf("%+v after %d refusals and %v", f, cam.Refused(), took)
	}
}

// TestHubInThePast: a hub that wakes up in 1970 has a certificate that is not
// valid yet, and nothing is wrong with it.
func TestHubInThePast(t *testing.T) {
	vmstest.NoLeaks(t)
	a := newAuthority(t)
	cfg := healthy(t, serve(t, tellTime, a.sign(t, "127.0.0.1", -1, 30)))
	cfg.Roots = a.pool()
	cfg.Clock = hubclock.New(hubclock.Config{Built: time.Now().AddDate(0, -6, 0), Wall: func() time.Time { return time.Unix(12, 0) }})
	r := Run(t.Context(), cfg)
	if !r.OK || find(r, "nvr")[0].State != Good || !strings.Contains(find(r, "clock")[0].Finding, "tells the time") {
		t.Errorf("%+v", r.Findings)
	}
}

// TestItEndsInTime although nothing answers. All its waits end with the context,
// and Run's own is shorter than the half minute that is promised.
func TestItEndsInTime(t *testing.T) {
	vmstest.NoLeaks(t)
	silent, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts, and nobody says a word
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	cfg := healthy(t, "wss://"+silent.Addr().String()+"/session/v1")
	cfg.Broker = &wire.Broker{URL: "mqtt://" + silent.Addr().String()}
	for i := range 8 {
		cfg.Cameras = append(cfg.Cameras, Camera{Channel: vms.ChannelID(fmt.Sprint("ch_", i)), Camera: vms.Camera{URL: "rtsp://" + silent.Addr().String() + "/x"}})
	}
	if limit >= 30*time.Second {
		t.Errorf("it may take %v", limit)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	began := time.Now()
	r := Run(ctx, cfg)
	if took := time.Since(began); took > 30*time.Second || r.OK {
		t.Errorf("%v: %+v", took, r)
	}
	for _, check := range []string{"nvr", "mqtt", "camera"} {
		if f := find(r, check)[0]; f.State != Problem || f.Remedy == "" {
			t.Errorf("%+v", f)
		}
	}
}

// documents are those of a hub.
type documents map[string][]byte

func (d documents) Document(name string) ([]byte, error) { return d[name], nil }

func TestCamerasAreThoseOfTheDocuments(t *testing.T) {
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	sealed := func(ch string, cam any) []byte {
		data, err := json.Marshal(cam)
		if err != nil {
			t.Fatal(err)
		}
		out, err := seal.Seal(pub, "camera/"+ch, data)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	desired, err := wire.EncodeSession(&wire.Desired{Hub: "hub_1", Revision: 1, Issued: time.Now(), Streams: []wire.DesiredStream{
		{Channel: "ch_1", NVRURL: "ws://x/session/v1", Mode: wire.ModeOnDemand, Camera: sealed("ch_1", vms.Camera{Host: "a"})},
		{Channel: "ch_2", NVRURL: "ws://x/session/v1", Mode: wire.ModeOnDemand, Camera: sealed("ch_9", vms.Camera{Host: "b"})},
		{Channel: "ch_3", NVRURL: "ws://x/session/v1", Mode: wire.ModeOnDemand, Camera: sealed("ch_3", "secret")},
	}})
	if err != nil {
		t.Fatal(err)
	}
	local := `[{"channel":"ch_4","sid":"s","nvr_url":"x","camera":{"host":"d"}},{"channel":"ch_1","camera":{},"borrows":true}]`
	cams, err := Cameras(documents{"desired": desired, "local": []byte(local)}, key)
	if err != nil || len(cams) != 4 {
		t.Fatalf("%+v, %v", cams, err)
	}
	if cams[0].Camera.Host != "a" || cams[0].Broken != "" || cams[3].Channel != "ch_4" || cams[3].Camera.Host != "d" {
		t.Errorf("%+v", cams)
	}
	for _, c := range cams[1:3] {
		if !strings.Contains(c.Broken, "cannot be read") || strings.Contains(c.Broken, "secret") {
			t.Errorf("%+v", c)
		}
	}
	if cams, err := Cameras(documents{}, key); err != nil || len(cams) != 0 {
		t.Errorf("of a new hub: %+v, %v", cams, err)
	}
	for name, d := range map[string]documents{"desired": {"desired": []byte("{}")}, "local": {"local": []byte("secret")}} {
		if _, err := Cameras(d, key); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("damaged %s: %v", name, err)
		}
	}
}
