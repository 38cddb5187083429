package api

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

func TestLoginCodeWorksOnce(t *testing.T) {
	r := newRig(t)
	a := r.call("POST", "/api/v1/login-codes", "")
	var code LoginCode
	a.decode(t, &code)
	if a.StatusCode != 201 || code.Code == "" {
		t.Fatalf("%d %s", a.StatusCode, a.body)
	}
	body := `{"code":"` + code.Code + `"}`
	a = r.do("POST", "/api/v1/login", body)
	if a.StatusCode != 200 {
		t.Fatalf("first use: %d %s", a.StatusCode, a.body)
	}
	c := a.Cookies()[0]
	if c.Name != "vms_session" || !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Path != "/" || c.Secure || c.MaxAge != 12*3600 {
		t.Errorf("cookie %v", c)
	}
	second := r.do("POST", "/api/v1/login", body)
	wantProblem(t, second, 401)
	if len(second.Cookies()) != 0 {
		t.Error("a refused login got a cookie")
	}

	cookie := c.Name + "=" + c.Value
	var me Me
	a = r.do("GET", "/api/v1/me", "", "Cookie", cookie)
	a.decode(t, &me)
	if me.Account != "demo" || me.Via != "session" || me.ExpiresAt == nil {
		t.Errorf("me = %s", a.body)
	}
	wantProblem(t, r.do("POST", "/api/v1/login-codes", "", "Cookie", cookie), 403) // a session makes no sessions

	a = r.do("DELETE", "/api/v1/login", "", "Cookie", cookie)
	if a.StatusCode != 204 || len(a.Cookies()) != 1 || a.Cookies()[0].MaxAge >= 0 {
		t.Errorf("logout: %d, cookies %v", a.StatusCode, a.Cookies())
	}
	wantProblem(t, r.do("GET", "/api/v1/me", "", "Cookie", cookie), 401)
}

func TestLoginWantsExactlyOneProof(t *testing.T) {
	r := newRig(t)
	for _, body := range []string{`{}`, `{"code":"x","token":"y"}`} {
		wantProblem(t, r.do("POST", "/api/v1/login", body), 422)
	}
	wantProblem(t, r.do("POST", "/api/v1/login", `{"token":"wrong"}`), 401)
}

func TestLoginAndEnrollAreRateLimited(t *testing.T) {
	for path, body := range map[string]string{
		"/api/v1/login":  `{"code":"wrong"}`,
		"/api/v1/enroll": routes[14].body,
	} {
		r := newRig(t)
		r.nvr.fail(vms.ErrUnauthorized)
		for range 10 {
			wantProblem(t, r.do("POST", path, body), 401)
		}
		a := r.do("POST", path, body)
		wantProblem(t, a, 429)
		if a.Header.Get("Retry-After") != "6" {
			t.Errorf("Retry-After = %q, want 6", a.Header.Get("Retry-After"))
		}
		if a := r.call("GET", "/api/v1/me", ""); a.StatusCode != 200 {
			t.Errorf("the limit of %s holds elsewhere: %d", path, a.StatusCode)
		}
	}
}

func TestErrorsOfTheRules(t *testing.T) {
	secret := errors.New("sql: row 17 of /data/vms.db")
	for _, tc := range []struct {
		err    error
		status int
		detail string
	}{
		{fmt.Errorf("channel ch_1: %w", vms.ErrNotFound), 404, "channel ch_1: not found"},
		{fmt.Errorf("%w: the hub is offline", vms.ErrConflict), 409, "conflict: the hub is offline"},
		{vms.ErrForbidden, 403, "forbidden"},
		{vms.ErrRevoked, 410, "revoked"},
		{fmt.Errorf("%w: it does not stream", vms.ErrUnavailable), 503, "unavailable: it does not stream"},
		{fmt.Errorf("%w: the hub did not answer: %w", vms.ErrUnavailable, context.DeadlineExceeded), 504, "The hub did not answer in time. The order stands: the hub obeys it when it hears of it."},
		{context.DeadlineExceeded, 504, "The hub did not answer in time. The order stands: the hub obeys it when it hears of it."},
		{fmt.Errorf("start: %w", secret), 500, "Something went wrong inside the service; its log has the details."},
		{fmt.Errorf("name: %w", vms.ErrInvalid), 422, "name: invalid"},
	} {
		r := newRig(t)
		r.nvr.fail(tc.err)
		p := wantProblem(t, r.call("POST", "/api/v1/channels/ch_1/start", ""), tc.status)
		if p.Detail != tc.detail {
			t.Errorf("%v: detail %q, want %q", tc.err, p.Detail, tc.detail)
		}
		if logged := strings.Contains(r.log.String(), secret.Error()); logged != errors.Is(tc.err, secret) {
			t.Errorf("%v: log %q", tc.err, r.log.String())
		}
	}
	r := newRig(t)
	r.nvr.fail(fmt.Errorf("list: %w", context.DeadlineExceeded))
	if p := wantProblem(t, r.call("GET", "/api/v1/channels", ""), 504); p.Detail != "What the request waited for did not answer in time." {
		t.Errorf("detail %q", p.Detail)
	}
	r = newRig(t)
	r.nvr.fail(context.DeadlineExceeded)
	if p := wantProblem(t, r.call("POST", "/api/v1/hubs/hub_1/commands", `{"kind":"doctor"}`), 504); p.Detail != "The hub did not answer in time. Whether it obeyed is not known." {
		t.Errorf("detail %q", p.Detail)
	}
	r = newRig(t)
	r.nvr.fail(fmt.Errorf("channel ch_1: %w", nvr.ErrStarting))
	a := r.call("GET", "/api/v1/channels/ch_1/live", "")
	if p := wantProblem(t, a, 503); !strings.HasSuffix(p.Type, ":starting") || a.Header.Get("Retry-After") != "1" {
		t.Errorf("a stream that starts: %s, Retry-After %q", a.body, a.Header.Get("Retry-After"))
	}
	r = newRig(t)
	r.nvr.fail(&nvr.FieldError{Field: "camera.port", Problem: "must be 1 to 65535"})
	p := wantProblem(t, r.call("POST", "/api/v1/channels", routes[0].body), 422)
	if len(p.Errors) != 1 || p.Errors[0] != (FieldError{"body.camera.port", "must be 1 to 65535"}) {
		t.Errorf("errors %+v", p.Errors)
	}
}

func TestPanicIsA500WithoutDetail(t *testing.T) {
	r := newRig(t)
	r.nvr.panics = true
	a := r.call("GET", "/api/v1/channels", "")
	wantProblem(t, a, 500)
	if strings.Contains(string(a.body), "secret detail") {
		t.Errorf("the answer has the panic: %s", a.body)
	}
	if log := r.log.String(); !strings.Contains(log, "secret detail") || !strings.Contains(log, "fake_test.go") {
		t.Errorf("the log has not the panic and where it was: %q", log)
	}
	r.nvr.mu.Lock()
	r.nvr.panics = false
	r.nvr.mu.Unlock()
	if a := r.call("GET", "/api/v1/channels", ""); a.StatusCode != 200 {
		t.Errorf("after a panic: %d", a.StatusCode)
	}
}

func TestPasswordsNeverComeOut(t *testing.T) {
	r := newRig(t)
	r.nvr.channel.Camera = vms.Camera{
		URL: "rtsp://viewer:hunter2@192.0.2.4/user=viewer&password=hunter2&channel=1", Username: "viewer", Password: "hunter2",
		Templates: map[string]string{
			"high": "rtsp://viewer:hunter2@{host}:{port}/high?pwd=hunter2", "low": "rtsp://{username}:{password}@{host}/low?password={password}",
		},
	}
	var c Channel
	for _, a := range []answer{
		r.call("GET", "/api/v1/channels/ch_1", ""),
		r.call("GET", "/api/v1/channels", ""),
		r.call("PATCH", "/api/v1/channels/ch_1", `{"camera":{"password":"hunter2"}}`),
		r.call("POST", "/api/v1/channels", `{"name":"x","camera":{"url":"rtsp://viewer:hunter2@192.0.2.4/"}}`),
		// Requests that are refused: what was sent is not repeated.
		r.call("POST", "/api/v1/channels", `{"name":"x","camera":{"password":"hunter2"}`),
		r.call("POST", "/api/v1/channels", `{"camera":{"password":"hunter2"}}`),
		r.call("POST", "/api/v1/channels", `{"name":"x","camera":{"password":["hunter2"]}}`),
		r.call("POST", "/api/v1/channels", `{"name":"x","camera":{"passwort":"hunter2"}}`),
		r.call("POST", "/api/v1/channels", `{"name":"x","camera":{"password":"`+strings.Repeat("hunter2", 20)+`"}}`),
		r.call("POST", "/api/v1/login", `{"token":"hunter2","nonsense":1}`),
	} {
		if strings.Contains(string(a.body), "hunter2") {
			t.Errorf("%s %s: %s", a.Request.Method, a.Request.URL.Path, a.body)
		}
		if a.StatusCode == 200 && a.Request.Method == "GET" && strings.HasSuffix(a.Request.URL.Path, "ch_1") {
			a.decode(t, &c)
		}
	}
	if strings.Contains(r.log.String(), "hunter2") {
		t.Errorf("log: %s", r.log)
	}
	want := Camera{
		URL: "rtsp://192.0.2.4/user=viewer&password=***&channel=1", Username: "viewer", HasPassword: true,
		Templates: map[string]string{"high": "rtsp://{host}:{port}/high?pwd=***", "low": "rtsp://{username}:{password}@{host}/low?password={password}"},
	}
	if got := c.Camera; got.URL != want.URL || got.Username != want.Username || !got.HasPassword || !maps.Equal(got.Templates, want.Templates) {
		t.Errorf("camera %+v\n want  %+v", got, want)
	}
}

func TestCreateChannelPassesEverythingOn(t *testing.T) {
	r := newRig(t)
	a := r.call("POST", "/api/v1/channels", `{"name":"x","hub_id":"hub_1","camera":{"host":"192.0.2.4","port":8554,"username":"u","password":"p","templates":{"high":"rtsp://{host}/h"}}}`)
	if a.StatusCode != 201 {
		t.Fatalf("%d %s", a.StatusCode, a.body)
	}
	s := r.nvr.spec
	if s.Name != "x" || s.Hub != "hub_1" || s.Mode != nvr.ModeOnDemand || s.Camera.Host != "192.0.2.4" || s.Camera.Port != 8554 ||
		s.Camera.Username != "u" || s.Camera.Password != "p" || s.Camera.Templates["high"] != "rtsp://{host}/h" {
		t.Errorf("spec %+v", s)
	}
}

func TestPatchAbsentStaysNullClears(t *testing.T) {
	camera := vms.Camera{
		URL: "rtsp://192.0.2.4/s?password=hunter2", Username: "viewer",
		Templates: map[string]string{"high": "rtsp://{host}/h", "low": "rtsp://{host}/l"},
	}
	with := func(edit func(*vms.Camera)) *vms.Camera {
		c := camera
		c.Templates = maps.Clone(camera.Templates)
		edit(&c)
		return &c
	}
	str := func(s string) *string { return &s }
	num := func(n int) *int { return &n }
	mode := func(m nvr.Mode) *nvr.Mode { return &m }
	for _, tc := range []struct {
		body string
		want nvr.ChannelPatch
	}{
		{`{}`, nvr.ChannelPatch{}},
		{`{"name":"y"}`, nvr.ChannelPatch{Name: str("y")}},
		{`{"hub_id":null}`, nvr.ChannelPatch{Hub: new(vms.HubID)}},
		{`{"schedule":null,"pre_roll_s":null,"post_roll_s":7}`, nvr.ChannelPatch{Schedule: str(""), PreRoll: num(5), PostRoll: num(7)}},
		{`{"mode":"scheduled","schedule":"mon"}`, nvr.ChannelPatch{Mode: mode(nvr.ModeScheduled), Schedule: str("mon")}},
		{`{"camera":{}}`, nvr.ChannelPatch{Camera: with(func(*vms.Camera) {})}},
		{`{"camera":{"password":"new"}}`, nvr.ChannelPatch{Camera: with(func(c *vms.Camera) { c.Password = "new" })}},
		{`{"camera":{"username":null}}`, nvr.ChannelPatch{Camera: with(func(c *vms.Camera) { c.Username = "" })}},
		{`{"camera":{"url":null,"host":"192.0.2.5","port":8554}}`, nvr.ChannelPatch{Camera: with(func(c *vms.Camera) { c.URL, c.Host, c.Port = "", "192.0.2.5", 8554 })}},
		{`{"camera":{"url":"rtsp://192.0.2.4/s?password=***"}}`, nvr.ChannelPatch{Camera: with(func(*vms.Camera) {})}}, // what was shown
		{`{"camera":{"url":"rtsp://a:b@192.0.2.4/s"}}`, nvr.ChannelPatch{Camera: with(func(c *vms.Camera) { c.URL, c.Username = "rtsp://a:b@192.0.2.4/s", "" })}},
		{`{"camera":{"templates":{"low":null,"mid":"rtsp://{host}/m"}}}`, nvr.ChannelPatch{Camera: with(func(c *vms.Camera) {
			c.Templates = map[string]string{"high": "rtsp://{host}/h", "mid": "rtsp://{host}/m"}
		})}},
		{`{"camera":{"templates":null}}`, nvr.ChannelPatch{Camera: with(func(c *vms.Camera) { c.Templates = nil })}},
	} {
		r := newRig(t)
		r.nvr.channel.Camera = camera
		if a := r.call("PATCH", "/api/v1/channels/ch_1", tc.body); a.StatusCode != 200 {
			t.Errorf("%s: %d %s", tc.body, a.StatusCode, a.body)
			continue
		}
		if got, want := show(r.nvr.patch), show(tc.want); got != want {
			t.Errorf("%s:\n got %s\nwant %s", tc.body, got, want)
		}
	}
	for body, field := range map[string]string{
		`{"name":null}`:                      "body.name",
		`{"mode":null}`:                      "body.mode",
		`{"camera":null}`:                    "body.camera",
		`{"camera":{"password":null}}`:       "body.camera.password",
		`{"camera":{"port":0}}`:              "body.camera.port",
		`{"camera":{"port":"8554"}}`:         "body.camera.port",
		`{"mode":"always"}`:                  "body.mode",
		`{"pre_roll_s":61}`:                  "body.pre_roll_s",
		`{"post_roll_s":0}`:                  "body.post_roll_s",
		`{"schedule":7}`:                     "body.schedule",
		`{"NAME":"y"}`:                       "body.NAME",
		`{"camera":{"hots":"x"}}`:            "body.camera.hots",
		`{"camera":{"templates":{"low":1}}}`: "body.camera.templates.low",
	} {
		r := newRig(t)
		p := wantProblem(t, r.call("PATCH", "/api/v1/channels/ch_1", body), 422)
		if len(p.Errors) == 0 || p.Errors[0].Location != field {
			t.Errorf("%s: errors %+v, want %s", body, p.Errors, field)
		}
	}
}

// show writes a patch with what its pointers point to.
func show(p nvr.ChannelPatch) string {
	var b strings.Builder
	if p.Name != nil {
		fmt.Fprintf(&b, "name=%q ", *p.Name)
	}
	if p.Hub != nil {
		fmt.Fprintf(&b, "hub=%q ", *p.Hub)
	}
	if p.Mode != nil {
		fmt.Fprintf(&b, "mode=%q ", *p.Mode)
	}
	if p.Schedule != nil {
		fmt.Fprintf(&b, "schedule=%q ", *p.Schedule)
	}
	if p.PreRoll != nil {
		fmt.Fprintf(&b, "pre=%d ", *p.PreRoll)
	}
	if p.PostRoll != nil {
		fmt.Fprintf(&b, "post=%d ", *p.PostRoll)
	}
	if p.Camera != nil {
		fmt.Fprintf(&b, "camera=%+v", *p.Camera)
	}
	return b.String()
}

func TestBodyWithTwinMembersIsRefused(t *testing.T) {
	r := newRig(t)
	p := wantProblem(t, r.call("PATCH", "/api/v1/channels/ch_1", `{"camera":{"port":99999},"camera":{}}`), 400)
	if len(p.Errors) != 1 || !strings.Contains(p.Errors[0].Message, `"camera" twice`) {
		t.Errorf("errors %+v", p.Errors)
	}
}

func TestRecordingsRange(t *testing.T) {
	now := at.UTC()
	for _, tc := range []struct {
		query    string
		from, to time.Time
		limit    int
	}{
		{"", now.Add(-24 * time.Hour), now, 100},
		{"?from=2026-11-22T10:00:00Z", time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC), now, 100},
		{"?to=2026-11-20T10:00:00.5%2B01:00&limit=1000&cursor=c", time.Date(2026, 11, 19, 9, 0, 0, 5e8, time.UTC), time.Date(2026, 11, 20, 9, 0, 0, 5e8, time.UTC), 1000},
	} {
		r := newRig(t)
		if a := r.call("GET", "/api/v1/channels/ch_1/recordings"+tc.query, ""); a.StatusCode != 200 {
			t.Fatalf("%s: %d %s", tc.query, a.StatusCode, a.body)
		}
		q := r.nvr.query
		if !q.From.Equal(tc.from) || !q.To.Equal(tc.to) || q.Limit != tc.limit || (q.Cursor == "c") != strings.Contains(tc.query, "cursor") {
			t.Errorf("%s: %+v", tc.query, q)
		}
	}
	for query, field := range map[string]string{
		"?from=2026-11-22T12:00:00Z&to=2026-11-22T11:00:00Z": "query.from",
		"?from=2026-11-22T12:00:00Z&to=2026-11-22T12:00:00Z": "query.from", // nothing is in it
		"?from=2026-11-23T12:00:00Z":                         "query.from", // after now
		"?from=yesterday":                                    "query.from",
		"?to=2026-11-22T12:00:00+01:00":                      "query.to", // the plus sign is a space
		"?to=0001-01-01T00:00:00Z":                           "query.to",
		"?limit=0":                                           "query.limit",
		"?limit=1001":                                        "query.limit",
		"?limit=many":                                        "query.limit",
		"?cursor=" + strings.Repeat("x", 401):                "query.cursor",
	} {
		p := wantProblem(t, newRig(t).call("GET", "/api/v1/channels/ch_1/recordings"+query, ""), 422)
		if len(p.Errors) != 1 || p.Errors[0].Location != field {
			t.Errorf("%s: errors %+v, want %s", query, p.Errors, field)
		}
	}
}

func TestTimelineJSON(t *testing.T) {
	r := newRig(t)
	a := r.call("GET", "/api/v1/channels/ch_1/recordings", "")
	for _, want := range []string{
		`"recordings":[{"id":"rec_1","start":"2026-11-22T11:00:00.123Z","end":"2026-11-22T11:00:30.123Z","media_ms":30000,"bytes":7,"sha256":"ab00`,
		`"codecs":"avc1.64001f","url":"http://127.0.0.1:9000/vms/x?X-Amz-Signature=1","url_expires_at":"2026-11-22T11:00:00.123Z"}]`,
		`"gaps":[{"id":"gap_1","start":"2026-11-22T11:00:00.123Z","end":"2026-11-22T11:00:01.123Z","cause":"camera_offline","sentence":"The camera did not answer or sent no video."}]`,
		`"pending":[{"start":"2026-11-22T11:00:00.123Z","end":"2026-11-22T11:00:01.123Z"}]`,
		`"next_cursor":"more"`,
	} {
		if !strings.Contains(string(a.body), want) {
			t.Errorf("no %s in\n%s", want, a.body)
		}
	}
	r.nvr.page = nvr.Page{From: at, To: at}
	a = r.call("GET", "/api/v1/channels/ch_1/recordings", "")
	if want := `"recordings":[],"gaps":[],"pending":[]}`; !strings.Contains(string(a.body), want) {
		t.Errorf("empty page: %s, want lists that are not null", a.body)
	}
}

func TestStartAndStopPassEverythingOn(t *testing.T) {
	for _, tc := range []struct {
		path, body string
		status     int
		want       nvr.StartOptions
		answer     string
	}{
		{"start", "", 202, nvr.StartOptions{}, `{"revision":7,"hub_online":true}`},
		{"start", `{}`, 202, nvr.StartOptions{}, `{"revision":7,"hub_online":true}`},
		{"start", `{"timeout_s":600,"when_offline":"queue"}`, 202, nvr.StartOptions{Timeout: 10 * time.Minute, Queue: true}, `{"revision":7,"hub_online":true}`},
		{"start", `{"wait_s":30,"when_offline":"refuse"}`, 200, nvr.StartOptions{Wait: 30 * time.Second}, `{"revision":7,"hub_online":true,"state":"IN_SYNC","running":true,"recording":false,"stream":"starting"}`},
		{"stop", "", 202, nvr.StartOptions{}, `{"revision":7,"hub_online":true}`},
		{"stop", `{"wait_s":1,"when_offline":"queue"}`, 200, nvr.StartOptions{Wait: time.Second, Queue: true}, `{"revision":7,"hub_online":true,"state":"IN_SYNC","running":true,"recording":false,"stream":"starting"}`},
	} {
		r := newRig(t)
		a := r.call("POST", "/api/v1/channels/ch_1/"+tc.path, tc.body)
		if a.StatusCode != tc.status || r.nvr.order != tc.want || strings.TrimSpace(string(a.body)) != tc.answer {
			t.Errorf("%s %s: %d %s with %+v, want %d %s with %+v", tc.path, tc.body, a.StatusCode, a.body, r.nvr.order, tc.status, tc.answer, tc.want)
		}
	}
	for body, field := range map[string]string{
		`{"timeout_s":-1}`:          "body.timeout_s",
		`{"wait_s":31}`:             "body.wait_s",
		`{"when_offline":"ignore"}`: "body.when_offline",
	} {
		p := wantProblem(t, newRig(t).call("POST", "/api/v1/channels/ch_1/start", body), 422)
		if len(p.Errors) == 0 || p.Errors[0].Location != field {
			t.Errorf("%s: errors %+v, want %s", body, p.Errors, field)
		}
	}
	wantProblem(t, newRig(t).call("POST", "/api/v1/channels/ch_1/stop", `{"timeout_s":1}`), 422)
}

func TestCommandsPassEverythingOn(t *testing.T) {
	r := newRig(t)
	a := r.call("POST", "/api/v1/hubs/hub_1/commands", `{"kind":"event","channel_id":"ch_1","timeout_s":7,"pre_roll_s":0,"post_roll_s":60}`)
	if c := r.nvr.command; a.StatusCode != 200 || c.Kind != wire.CommandEvent || c.Channel != "ch_1" || *c.PreRoll != 0 || *c.PostRoll != 60 || r.nvr.wait != 7*time.Second {
		t.Errorf("%d, command %+v for %s", a.StatusCode, c, r.nvr.wait)
	}
	if want := `{"ok":true,"problem":"","result":{"findings":[]}}`; strings.TrimSpace(string(a.body)) != want {
		t.Errorf("answer %s, want %s", a.body, want)
	}
	for body, field := range map[string]string{
		`{"kind":"reboot"}`:                  "body.kind",
		`{}`:                                 "body",
		`{"kind":"doctor","timeout_s":0}`:    "body.timeout_s",
		`{"kind":"doctor","timeout_s":121}`:  "body.timeout_s",
		`{"kind":"event","post_roll_s":601}`: "body.post_roll_s",
	} {
		p := wantProblem(t, newRig(t).call("POST", "/api/v1/hubs/hub_1/commands", body), 422)
		if len(p.Errors) == 0 || p.Errors[0].Location != field {
			t.Errorf("%s: errors %+v, want %s", body, p.Errors, field)
		}
	}
}

func TestHubPatchAbsentStaysNullClears(t *testing.T) {
	for body, want := range map[string]string{
		`{}`:                         "- - - -",
		`{"name":"Cellar"}`:          `"Cellar" - - -`,
		`{"time_zone":"Asia/Tokyo"}`: `- "Asia/Tokyo" - -`,
		`{"time_zone":null}`:         `- "" - -`,
		`{"limits":{}}`:              "- - - -",
		`{"limits":null}`:            `- - "" -`,
		`{"limits":{"uplink":null}}`: `- - "" -`,
		`{"limits":{"uplink":"1M"}}`: `- - "1M" -`,
		`{"zone":"fra1"}`:            `- - - "fra1"`,
		`{"zone":null}`:              `- - - ""`,
	} {
		r := newRig(t)
		if a := r.call("PATCH", "/api/v1/hubs/hub_1", body); a.StatusCode != 200 {
			t.Errorf("%s: %d %s", body, a.StatusCode, a.body)
		}
		var got []string
		for _, p := range []*string{r.nvr.hubPatch.Name, r.nvr.hubPatch.TimeZone, r.nvr.hubPatch.Uplink, r.nvr.hubPatch.Zone} {
			if p == nil {
				got = append(got, "-")
			} else {
				got = append(got, fmt.Sprintf("%q", *p))
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %v, want %s", body, got, want)
		}
	}
	for body, field := range map[string]string{`{"name":null}`: "body.name", `{"limits":{"downlink":"1M"}}`: "body.limits.downlink"} {
		p := wantProblem(t, newRig(t).call("PATCH", "/api/v1/hubs/hub_1", body), 422)
		if len(p.Errors) == 0 || p.Errors[0].Location != field {
			t.Errorf("%s: errors %+v, want %s", body, p.Errors, field)
		}
	}
}

func TestLiveStartsUnlessToldNotTo(t *testing.T) {
	for query, want := range map[string]bool{"": true, "?start=true": true, "?start=false": false} {
		r := newRig(t)
		if a := r.call("GET", "/api/v1/channels/ch_1/live"+query, ""); a.StatusCode != 200 || r.nvr.start != want {
			t.Errorf("%q: %d, start %v, want %v", query, a.StatusCode, r.nvr.start, want)
		}
	}
}
