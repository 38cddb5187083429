package auth

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

const testToken = "vms_0123456789012345678901234567890123456789012"

// clock is a wall clock that tests wind forward.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func newAuth(t *testing.T, c *clock, edit func(*Config)) *Auth {
	t.Helper()
	cfg := Config{Account: "demo", Token: testToken, Listen: "127.0.0.1:8080", Now: c.Now}
	if edit != nil {
		edit(&cfg)
	}
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// login redeems a fresh code and returns the cookie that came back.
func login(t *testing.T, a *Auth) *http.Cookie {
	t.Helper()
	code, _ := a.NewLoginCode()
	w := httptest.NewRecorder()
	if _, err := a.Login(w, httptest.NewRequest("POST", "http://127.0.0.1:8080/", nil), code); err != nil {
		t.Fatal(err)
	}
	return w.Result().Cookies()[0]
}

// call authenticates a request with that cookie.
func call(a *Auth, c *http.Cookie) (Caller, *httptest.ResponseRecorder, error) {
	r := httptest.NewRequest("GET", "http://127.0.0.1:8080/", nil)
	r.AddCookie(&http.Cookie{Name: c.Name, Value: c.Value})
	w := httptest.NewRecorder()
	caller, err := a.Authenticate(w, r)
	return caller, w, err
}

func TestBearerTokenDecides(t *testing.T) {
	a := newAuth(t, newClock(), nil)
	cookie := login(t, a)
	for _, tc := range []struct {
		name   string
		header []string
		ok     bool
	}{
		{"right", []string{"Bearer " + testToken}, true},
		{"scheme in lower case", []string{"bearer " + testToken}, true},
		{"wrong", []string{"Bearer " + strings.Replace(testToken, "0", "1", 1)}, false},
		{"prefix", []string{"Bearer " + testToken[:40]}, false},
		{"empty", []string{"Bearer "}, false},
		{"other scheme", []string{"Basic " + testToken}, false},
		{"no scheme", []string{testToken}, false},
		{"twice", []string{"Bearer " + testToken, "Bearer " + testToken}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := httptest.NewRequest("GET", "/", nil)
			r.Header["Authorization"] = tc.header
			r.AddCookie(cookie) // must not mend a wrong token
			caller, err := a.Authenticate(httptest.NewRecorder(), r)
			if tc.ok {
				if err != nil || caller != (Caller{Account: "demo", Via: ViaBearer}) {
					t.Errorf("Authenticate = %+v, %v", caller, err)
				}
			} else if !errors.Is(err, vms.ErrUnauthorized) {
				t.Errorf("Authenticate = %+v, %v, want ErrUnauthorized", caller, err)
			}
		})
	}
}

func TestLoginCodeWorksOnceAndForTenMinutes(t *testing.T) {
	clk := newClock()
	a := newAuth(t, clk, nil)
	try := func(code string) error {
		_, err := a.Login(httptest.NewRecorder(), httptest.NewRequest("POST", "/", nil), code)
		return err
	}
	code, expires := a.NewLoginCode()
	if want := clk.Now().Add(10 * time.Minute); !expires.Equal(want) {
		t.Errorf("expires %v, want %v", expires, want)
	}
	if err := try(code); err != nil {
		t.Fatalf("first use: %v", err)
	}
	if err := try(code); !errors.Is(err, ErrBadCode) || !errors.Is(err, vms.ErrUnauthorized) {
		t.Errorf("second use: %v, want ErrBadCode", err)
	}
	code, _ = a.NewLoginCode()
	clk.Add(10 * time.Minute)
	if err := try(code); !errors.Is(err, ErrBadCode) {
		t.Errorf("after ten minutes: %v, want ErrBadCode", err)
	}
	if err := try(""); !errors.Is(err, ErrBadCode) {
		t.Errorf("empty code: %v, want ErrBadCode", err)
	}
}

func TestLoginCodeIsNotRedeemedTwiceAtOnce(t *testing.T) {
	a := newAuth(t, newClock(), nil)
	code, _ := a.NewLoginCode()
	var wg sync.WaitGroup
	won := make(chan Caller, 16)
	for range cap(won) {
		wg.Go(func() {
			if c, err := a.Login(httptest.NewRecorder(), httptest.NewRequest("POST", "/", nil), code); err == nil {
				won <- c
			}
		})
	}
	wg.Wait()
	if len(won) != 1 {
		t.Errorf("%d log-ins with one code, want 1", len(won))
	}
}

func TestCodesAndSessionsAreBounded(t *testing.T) {
	clk := newClock()
	a := newAuth(t, clk, nil)
	first, _ := a.NewLoginCode()
	for range maxCodes {
		clk.Add(time.Millisecond)
		a.NewLoginCode()
	}
	if n := len(a.codes.waiting); n != maxCodes {
		t.Errorf("%d codes wait, want %d", n, maxCodes)
	}
	if _, ok := a.codes.redeem(first); ok {
		t.Error("the oldest code did not make room")
	}
	cookie := login(t, a)
	for range maxSessions {
		clk.Add(time.Millisecond)
		login(t, a)
	}
	if n := len(a.sessions.open); n != maxSessions {
		t.Errorf("%d sessions, want %d", n, maxSessions)
	}
	if _, _, err := call(a, cookie); err == nil {
		t.Error("the oldest session did not make room")
	}
}

func TestCookieAttributes(t *testing.T) {
	for _, tc := range []struct {
		public, url string
		secure      bool
	}{
		{"", "http://127.0.0.1:8080/", false},
		{"", "https://127.0.0.1:8080/", true}, // httptest sets r.TLS
		{"https://vms.example.com", "http://vms.example.com/", true},
		{"https://vms.example.com", "http://127.0.0.1:8080/", false},
		{"http://vms.example.com", "http://vms.example.com/", false},
	} {
		a := newAuth(t, newClock(), func(c *Config) { c.PublicURL = tc.public })
		code, _ := a.NewLoginCode()
		w := httptest.NewRecorder()
		if _, err := a.Login(w, httptest.NewRequest("POST", tc.url, nil), code); err != nil {
			t.Fatal(err)
		}
		c := w.Result().Cookies()[0]
		if c.Name != "vms_session" || !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Path != "/" || c.MaxAge != 12*3600 {
			t.Errorf("cookie %v", c)
		}
		if c.Secure != tc.secure {
			t.Errorf("public %q, url %q: Secure = %v, want %v", tc.public, tc.url, c.Secure, tc.secure)
		}
	}
}

func TestLoginWithToken(t *testing.T) {
	a := newAuth(t, newClock(), nil)
	w := httptest.NewRecorder()
	r := httptest.NewRequest("POST", "/", nil)
	if _, err := a.LoginWithToken(w, r, testToken+"x"); !errors.Is(err, vms.ErrUnauthorized) || len(w.Result().Cookies()) != 0 {
		t.Errorf("wrong token: %v, cookies %v", err, w.Result().Cookies())
	}
	w = httptest.NewRecorder()
	if _, err := a.LoginWithToken(w, r, testToken); err != nil {
		t.Fatal(err)
	}
	if _, _, err := call(a, w.Result().Cookies()[0]); err != nil {
		t.Error(err)
	}
}

func TestSessionSlidesAndEnds(t *testing.T) {
	clk := newClock()
	a := newAuth(t, clk, nil)
	cookie := login(t, a)

	if _, w, err := call(a, cookie); err != nil || w.Header().Get("Set-Cookie") != "" {
		t.Fatalf("fresh session: %v, Set-Cookie %q, want none yet", err, w.Header().Get("Set-Cookie"))
	}
	for range 3 { // longer than 12 h in all, never 12 h unused
		clk.Add(11 * time.Hour)
		caller, w, err := call(a, cookie)
		if err != nil || caller.Via != ViaSession || !caller.Expires.Equal(clk.Now().Add(12*time.Hour)) {
			t.Fatalf("session in use: %+v, %v", caller, err)
		}
		if c := w.Result().Cookies(); len(c) != 1 || c[0].Value != cookie.Value || c[0].MaxAge != 12*3600 {
			t.Fatalf("renewed cookie: %v", c)
		}
	}
	clk.Add(12 * time.Hour)
	if _, _, err := call(a, cookie); !errors.Is(err, vms.ErrUnauthorized) {
		t.Errorf("unused for 12 h: %v, want ErrUnauthorized", err)
	}

	cookie = login(t, a)
	for range 30 * 24 / 10 {
		clk.Add(10 * time.Hour)
		_, _, _ = call(a, cookie)
	}
	if _, _, err := call(a, cookie); !errors.Is(err, vms.ErrUnauthorized) {
		t.Errorf("after 30 days: %v, want ErrUnauthorized", err)
	}
}

func TestLogoutEndsTheSessionItself(t *testing.T) {
	clk := newClock()
	a := newAuth(t, clk, nil)
	cookie := login(t, a)
	r := httptest.NewRequest("DELETE", "/", nil)
	r.AddCookie(cookie)
	clk.Add(11 * time.Hour)
	if !a.Valid(r) {
		t.Error("Valid = false for an open session")
	}
	clk.Add(time.Hour)
	if a.Valid(r) {
		t.Error("Valid has prolonged a session")
	}
	clk.Add(-time.Hour)
	w := httptest.NewRecorder()
	a.Logout(w, r)
	if c := w.Result().Cookies(); len(c) != 1 || c[0].MaxAge >= 0 {
		t.Errorf("cookie after logging out: %v, want it deleted", c)
	}
	if _, _, err := call(a, cookie); err == nil || a.Valid(r) {
		t.Error("a kept cookie still works after logging out")
	}
}

func TestSessionsOutliveARestart(t *testing.T) {
	clk := newClock()
	file := filepath.Join(t.TempDir(), "sessions.json")
	stored := func(c *Config) { c.SessionsFile = file }
	a := newAuth(t, clk, stored)
	kept, ended := login(t, a), login(t, a)
	r := httptest.NewRequest("DELETE", "/", nil)
	r.AddCookie(ended)
	a.Logout(httptest.NewRecorder(), r)

	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(b), kept.Value) {
		t.Error("the file holds the cookie itself, want its hash")
	}
	if info, _ := os.Stat(file); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, want 0600", info.Mode())
	}

	clk.Add(time.Hour)
	a = newAuth(t, clk, stored)
	if _, _, err := call(a, kept); err != nil {
		t.Errorf("session after a restart: %v", err)
	}
	if _, _, err := call(a, ended); err == nil {
		t.Error("a restart brought an ended session back")
	}

	if err := os.WriteFile(file, []byte("{half"), 0o600); err != nil {
		t.Fatal(err)
	}
	a = newAuth(t, clk, stored) // must not fail
	if _, _, err := call(a, login(t, a)); err != nil {
		t.Errorf("log-in after a broken file: %v", err)
	}
}

func TestSessionsAreUsedFromManyGoroutines(t *testing.T) {
	clk := newClock()
	a := newAuth(t, clk, func(c *Config) { c.SessionsFile = filepath.Join(t.TempDir(), "s.json") })
	cookie := login(t, a)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 5 {
				clk.Add(11 * time.Minute)
				if _, _, err := call(a, cookie); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestLoadToken(t *testing.T) {
	file := filepath.Join(t.TempDir(), "admin-token")
	token, err := LoadToken(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(token) != len(tokenPrefix)+43 {
		t.Errorf("token %q, want 256 bits in base64url", token)
	}
	if info, _ := os.Stat(file); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, want 0600", info.Mode())
	}
	if again, err := LoadToken(file); err != nil || again != token {
		t.Errorf("second LoadToken = %q, %v, want the same", again, err)
	}
	if err := os.Chmod(file, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadToken(file); err == nil {
		t.Error("a token that others can read was taken")
	}
	for _, content := range []string{"", "short", strings.Repeat("x", 40) + " y", strings.Repeat("ü", 40)} {
		if err := errors.Join(os.WriteFile(file, []byte(content), 0o600), os.Chmod(file, 0o600)); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadToken(file); err == nil {
			t.Errorf("token %q was taken", content)
		}
	}
}

func TestNewRefusesBadConfig(t *testing.T) {
	for name, edit := range map[string]func(*Config){
		"account":    func(c *Config) { c.Account = "De mo" },
		"token":      func(c *Config) { c.Token = "x" },
		"listen":     func(c *Config) { c.Listen = "8080" },
		"public URL": func(c *Config) { c.PublicURL = "vms.example.com" },
	} {
		c := Config{Account: "demo", Token: testToken, Listen: "127.0.0.1:0"}
		edit(&c)
		if _, err := New(c); err == nil {
			t.Errorf("bad %s was taken", name)
		}
	}
}
