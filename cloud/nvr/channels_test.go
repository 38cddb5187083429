package nvr_test

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"strings"
	"testing"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/cloud/nvr/nvrtest"
	"github.com/zipato/vms/pkg/seal"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

const acct = nvrtest.Account

func TestChannelValidation(t *testing.T) {
	w := nvrtest.New(t, nil)
	theirs, _ := w.Hub(t, "other")
	long := strings.Repeat("x", 3000)
	host := vms.Camera{Host: "10.0.0.7"}
	with := func(f func(*vms.Camera)) vms.Camera { c := host; f(&c); return c }
	template := func(k, v string) vms.Camera {
		return with(func(c *vms.Camera) { c.Templates = map[string]string{k: v} })
	}
	for _, tt := range []struct {
		field string
		spec  nvr.ChannelSpec
	}{
		{"name", nvr.ChannelSpec{Camera: host}},
		{"name", nvr.ChannelSpec{Name: long, Camera: host}},
		{"name", nvr.ChannelSpec{Name: "a\nb", Camera: host}},
		{"mode", nvr.ChannelSpec{Name: "x", Mode: "sometimes", Camera: host}},
		{"hub_id", nvr.ChannelSpec{Name: "x", Hub: "hub_none", Camera: host}},
		{"hub_id", nvr.ChannelSpec{Name: "x", Hub: theirs, Camera: host}},
		{"camera", nvr.ChannelSpec{Name: "x"}},
		{"camera.host", nvr.ChannelSpec{Name: "x", Camera: vms.Camera{Host: "a", URL: "rtsp://b/"}}},
		{"camera.host", nvr.ChannelSpec{Name: "x", Camera: vms.Camera{Host: "10.0.0.7:554"}}},
		{"camera.host", nvr.ChannelSpec{Name: "x", Camera: vms.Camera{Host: "a/b@c"}}},
		{"camera.port", nvr.ChannelSpec{Name: "x", Camera: with(func(c *vms.Camera) { c.Port = 65536 })}},
		{"camera.port", nvr.ChannelSpec{Name: "x", Camera: with(func(c *vms.Camera) { c.Port = -1 })}},
		{"camera.port", nvr.ChannelSpec{Name: "x", Camera: vms.Camera{URL: "rtsp://b/", Port: 1}}},
		{"camera.username", nvr.ChannelSpec{Name: "x", Camera: with(func(c *vms.Camera) { c.Username = long })}},
		{"camera.password", nvr.ChannelSpec{Name: "x", Camera: with(func(c *vms.Camera) { c.Password = "a\r\nb" })}},
		{"camera.url", nvr.ChannelSpec{Name: "x", Camera: vms.Camera{URL: "http://b/"}}},
		{"camera.url", nvr.ChannelSpec{Name: "x", Camera: vms.Camera{URL: "file:///etc/passwd"}}},
		{"camera.url", nvr.ChannelSpec{Name: "x", Camera: vms.Camera{URL: "rtsp://"}}},
		{"camera.url", nvr.ChannelSpec{Name: "x", Camera: vms.Camera{URL: "rtsp://b/" + long}}},
		{"camera.url", nvr.ChannelSpec{Name: "x", Camera: vms.Camera{URL: "rtsp://u:secret@b:x/"}}},
		{"camera.username", nvr.ChannelSpec{Name: "x", Camera: vms.Camera{URL: "rtsp://a@b/", Username: "c"}}},
		{"camera.templates", nvr.ChannelSpec{Name: "x", Camera: template("best", "rtsp://{host}/")}},
		{"camera.templates.high", nvr.ChannelSpec{Name: "x", Camera: template("high", "http://{host}/")}},
		{"camera.templates.high", nvr.ChannelSpec{Name: "x", Camera: template("high", "rtsp://evil/{host}")}},
		{"camera.templates.high", nvr.ChannelSpec{Name: "x", Camera: template("high", "rtsp://{host}/{user}")}},
		{"camera.templates.high", nvr.ChannelSpec{Name: "x", Camera: template("high", "rtsp://admin:secret@{host}/")}},
	} {
		_, err := w.CreateChannel(t.Context(), acct, tt.spec)
		var fe *nvr.FieldError
		if !errors.As(err, &fe) || fe.Field != tt.field || !errors.Is(err, vms.ErrInvalid) {
			t.Errorf("CreateChannel(%.120v) = %v, want an error of %s", tt.spec, err, tt.field)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("the error tells the password: %v", err)
		}
	}
	for _, c := range []vms.Camera{
		{Host: "fe80::1"}, {Host: "cam-7.local", Port: 8554},
		template("high", "rtsp://{username}:{password}@{host}:{port}/Streaming/Channels/101"),
		template("snapshot", "http://{host}/snap.jpg"),
	} {
		if _, err := w.CreateChannel(t.Context(), acct, nvr.ChannelSpec{Name: "Tür 1", Camera: c}); err != nil {
			t.Errorf("CreateChannel(%v) = %v", c, err)
		}
	}
}

func TestCameraPasswordNeverComesOut(t *testing.T) {
	w := nvrtest.New(t, nil)
	c := w.Channel(t, acct, "")
	if c.Camera.URL != "rtsp://10.0.0.7/stream" || c.Camera.Username != "admin" || c.Camera.Password != "" || !c.HasPassword {
		t.Errorf("channel shows camera %+v", c.Camera)
	}
	row, err := w.Store.Channel(t.Context(), c.ID)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(row.Secret, []byte("hunter2")) || strings.Contains(row.Camera.URL, "hunter2") {
		t.Error("the password is stored in clear")
	}
	// A sealed password opens on its own channel only.
	hub, key := w.Hub(t, acct)
	other, fine := w.Channel(t, acct, hub), w.Channel(t, acct, hub)
	if _, err := w.Store.UpdateChannel(t.Context(), acct, other.ID, w.Clock.Now(), func(r *nvr.ChannelRow) error { r.Secret = row.Secret; return nil }); err != nil {
		t.Fatal(err)
	}
	d := desired(t, w, hub)
	if cam := camera(t, key, order(d, other.ID)); cam.Password != "" || cam.URL != "rtsp://10.0.0.7/stream" {
		t.Errorf("the hub gets %+v, want no password of another channel", cam)
	}
	if cam := camera(t, key, order(d, fine.ID)); cam.Password != "hunter2" || cam.URL != "rtsp://admin:hunter2@10.0.0.7/stream" {
		t.Errorf("the hub gets %+v beside a broken one", cam)
	}
	// What is published is sealed to the hub, and for that channel.
	text, err := wire.EncodeSession(d)
	if err != nil || bytes.Contains(text, []byte("hunter2")) || bytes.Contains(text, []byte("10.0.0.7")) {
		t.Errorf("the document tells the camera: %s, %v", text, err)
	}
	_, theirs := w.Hub(t, acct)
	for _, open := range []struct {
		key ed25519.PrivateKey
		ch  vms.ChannelID
	}{{theirs, fine.ID}, {key, other.ID}} {
		if _, err := seal.Open(open.key, "camera/"+string(open.ch), order(d, fine.ID).Camera); !errors.Is(err, seal.ErrSealed) {
			t.Errorf("a camera opens for another hub or channel: %v", err)
		}
	}
}

func TestPatchKeepsThePasswordForTheSameCameraOnly(t *testing.T) {
	for _, tt := range []struct {
		name string
		cam  vms.Camera
		want string
	}{
		{"nothing changed", vms.Camera{URL: "rtsp://10.0.0.7/stream", Username: "admin"}, "hunter2"},
		{"another host", vms.Camera{URL: "rtsp://evil/stream", Username: "admin"}, ""},
		{"another user", vms.Camera{URL: "rtsp://10.0.0.7/stream", Username: "root"}, ""},
		{"new password", vms.Camera{URL: "rtsp://10.0.0.7/stream", Username: "admin", Password: "new"}, "new"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := nvrtest.New(t, nil)
			hub, key := w.Hub(t, acct)
			c := w.Channel(t, acct, hub)
			if _, err := w.UpdateChannel(t.Context(), acct, c.ID, nvr.ChannelPatch{Camera: &tt.cam}); err != nil {
				t.Fatal(err)
			}
			if got := camera(t, key, order(desired(t, w, hub), c.ID)).Password; got != tt.want {
				t.Errorf("the hub gets password %q, want %q", got, tt.want)
			}
		})
	}
}

// Every method hides what is another account's.
func TestAccountsAreApart(t *testing.T) {
	w := nvrtest.New(t, nil)
	hub, _ := w.Hub(t, acct)
	c := w.Channel(t, acct, hub)
	ctx, name := t.Context(), "mine now"
	for what, call := range map[string]func() error{
		"Hub":           func() error { _, err := w.NVR.Hub(ctx, "other", hub); return err },
		"RevokeHub":     func() error { return w.RevokeHub(ctx, "other", hub) },
		"Channel":       func() error { _, err := w.NVR.Channel(ctx, "other", c.ID); return err },
		"UpdateChannel": func() error { _, err := w.UpdateChannel(ctx, "other", c.ID, nvr.ChannelPatch{Name: &name}); return err },
		"DeleteChannel": func() error { return w.DeleteChannel(ctx, "other", c.ID) },
		"StreamToken":   func() error { _, err := w.StreamToken(ctx, "other", c.ID); return err },
		"StartChannel":  func() error { _, err := w.StartChannel(ctx, "other", c.ID, nvr.StartOptions{Queue: true}); return err },
		"StopChannel":   func() error { _, err := w.StopChannel(ctx, "other", c.ID, nvr.StartOptions{Queue: true}); return err },
		"UpdateHub":     func() error { _, err := w.UpdateHub(ctx, "other", hub, nvr.HubPatch{Name: &name}); return err },
		"Command": func() error {
			_, err := w.Command(ctx, "other", hub, wire.Command{Kind: wire.CommandDoctor}, 0)
			return err
		},
		"Recordings": func() error { _, err := w.Recordings(ctx, "other", c.ID, nvr.RecordingQuery{}); return err },
		"Live":       func() error { _, err := w.Live(ctx, "other", c.ID, true); return err },
	} {
		if err := call(); !errors.Is(err, vms.ErrNotFound) {
			t.Errorf("%s of another account = %v, want ErrNotFound", what, err)
		}
	}
	if hubs, _, err := w.Hubs(ctx, "other", "", 0); err != nil || len(hubs) != 0 {
		t.Errorf("Hubs = %v, %v", hubs, err)
	}
	if cs, _, err := w.Channels(ctx, "other", "", 0); err != nil || len(cs) != 0 {
		t.Errorf("Channels = %v, %v", cs, err)
	}
}

func TestChannelPages(t *testing.T) {
	w := nvrtest.New(t, nil)
	for range 5 {
		w.Channel(t, acct, "")
	}
	seen := map[vms.ChannelID]bool{}
	for cursor := ""; ; {
		cs, next, err := w.Channels(t.Context(), acct, cursor, 2)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range cs {
			seen[c.ID] = true
		}
		if cursor = next; cursor == "" {
			break
		}
	}
	if len(seen) != 5 {
		t.Errorf("pages show %d channels, want 5", len(seen))
	}
	for _, bad := range []string{"x", "!!!", strings.Repeat("A", 500)} {
		if _, _, err := w.Channels(t.Context(), acct, bad, 2); !errors.Is(err, vms.ErrInvalid) {
			t.Errorf("cursor %.10q = %v, want ErrInvalid", bad, err)
		}
	}
	if _, _, err := w.Channels(t.Context(), acct, "", 1001); !errors.Is(err, vms.ErrInvalid) {
		t.Errorf("limit 1001 = %v, want ErrInvalid", err)
	}
}

func TestEnrolment(t *testing.T) {
	w := nvrtest.New(t, nil)
	_, code, expires, err := w.CreateHub(t.Context(), acct, "Attic")
	if err != nil || !expires.Equal(w.Clock.Now().Add(15*60e9)) {
		t.Fatalf("CreateHub = %v, expires %s", err, expires)
	}
	pub, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Enroll(t.Context(), code, make([]byte, 32), ""); !errors.Is(err, vms.ErrInvalid) {
		t.Errorf("a key that nothing can be sealed to = %v, want ErrInvalid", err)
	}
	if _, err := w.Enroll(t.Context(), code, pub[:31], ""); !errors.Is(err, vms.ErrInvalid) {
		t.Errorf("a short key = %v, want ErrInvalid", err)
	}
	typed := strings.ToLower(strings.ReplaceAll(code, "-", " ")) // as people type it
	e, err := w.Enroll(t.Context(), typed, pub, "ignored")
	if err != nil || e.Hub.Name != "Attic" || e.NVRURL != w.NVRURL || len(e.TokenKeys.Keys) != 1 {
		t.Fatalf("Enroll = %+v, %v", e, err)
	}
	if _, err := w.Enroll(t.Context(), code, pub, ""); !errors.Is(err, vms.ErrUnauthorized) {
		t.Errorf("the second time = %v, want ErrUnauthorized", err)
	}
	_, late, _, err := w.CreateHub(t.Context(), acct, "Cellar")
	if err != nil {
		t.Fatal(err)
	}
	w.Clock.Add(15 * 60e9)
	if _, err := w.Enroll(t.Context(), late, pub, ""); !errors.Is(err, vms.ErrUnauthorized) {
		t.Errorf("an expired code = %v, want ErrUnauthorized", err)
	}
	limited := false
	for range 100 {
		_, err := w.Enroll(t.Context(), "guess", pub, "")
		limited = limited || errors.Is(err, vms.ErrUnavailable)
	}
	if !limited {
		t.Error("a hundred guesses at once are not slowed down")
	}
}
