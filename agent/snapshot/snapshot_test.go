package snapshot

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
)

var jpeg = append([]byte{0xff, 0xd8, 0xff, 0xe0}, bytes.Repeat([]byte{7}, 5000)...)

const (
	user   = "adminü"
	secret = `p"a\ss/w:örd`
)

// webcam is a camera with a web page for stills.
type webcam struct {
	*httptest.Server
	asked   atomic.Int64
	handler atomic.Pointer[http.HandlerFunc]
}

func (w *webcam) handle(h http.HandlerFunc) { w.handler.Store(&h) }

func newWebcam(t *testing.T, h http.HandlerFunc) *webcam {
	t.Helper()
	vmstest.NoLeaks(t)
	w := &webcam{}
	w.handle(h)
	w.Server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.asked.Add(1)
		(*w.handler.Load())(rw, r)
	}))
	t.Cleanup(w.Close)
	return w
}

// camera is the channel's camera, by a template with a path.
func (w *webcam) camera(path string) vms.Camera {
	u, _ := url.Parse(w.URL)
	return vms.Camera{
		Host: "127.0.0.1", Username: user, Password: secret,
		Templates: map[string]string{Template: "http://{host}:" + u.Port() + path},
	}
}

func show(rw http.ResponseWriter, _ *http.Request) { _, _ = rw.Write(jpeg) }

// guarded shows the picture to who answers its Digest challenge with MD5.
func guarded(nonce func() string, qop string) http.HandlerFunc {
	sum := func(s string) string { h := md5.Sum([]byte(s)); return hex.EncodeToString(h[:]) }
	return func(rw http.ResponseWriter, r *http.Request) {
		got := parse(r.Header.Get("Authorization"))
		n := nonce()
		stale := ""
		if len(got) == 1 && got[0].scheme == "digest" {
			p := got[0].params
			want := sum(user+":web cam:"+secret) + ":" + p["nonce"]
			if qop != "" {
				want += ":" + p["nc"] + ":" + p["cnonce"] + ":" + p["qop"]
			}
			want = sum(want + ":" + sum("GET:"+r.RequestURI))
			if p["response"] == want && p["uri"] == r.RequestURI {
				if p["nonce"] == n {
					show(rw, r)
					return
				}
				stale = ", stale=true"
			}
		}
		if qop != "" {
			qop = `, qop="auth-int,auth"`
		}
		rw.Header().Add("WWW-Authenticate", `Basic realm="web cam", Digest realm="web cam", nonce="`+n+`"`+qop+stale)
		rw.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(rw, "go away")
	}
}

func fixed() string { return "abc" }

func TestTake(t *testing.T) {
	basic := func(rw http.ResponseWriter, r *http.Request) {
		if u, p, ok := r.BasicAuth(); !ok || u != user || p != secret {
			rw.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			rw.WriteHeader(http.StatusUnauthorized)
			return
		}
		show(rw, r)
	}
	var n atomic.Int64
	for name, h := range map[string]http.HandlerFunc{
		"open":                 show,
		"basic":                basic,
		"digest":               guarded(fixed, "auth"),
		"digest of RFC 2069":   guarded(fixed, ""),
		"digest, stale nonces": guarded(func() string { return fmt.Sprint(n.Add(1) / 3) }, "auth"),
		"another path": func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/there" {
				http.Redirect(rw, r, "/there?x=1", http.StatusFound)
				return
			}
			guarded(fixed, "auth")(rw, r)
		},
	} {
		t.Run(name, func(t *testing.T) {
			cam := newWebcam(t, h)
			got, err := Take(t.Context(), cam.camera("/a/b.jpg?channel=1&size=big"))
			if err != nil || !bytes.Equal(got, jpeg) {
				t.Errorf("Take = %d bytes, %v, want %d", len(got), err, len(jpeg))
			}
		})
	}
}

// TestTakeFillsIn: name, password and port stand where the template wants them,
// whatever they look like; what only a URL is given of has them from there.
func TestTakeFillsIn(t *testing.T) {
	var asked atomic.Pointer[http.Request]
	cam := newWebcam(t, func(rw http.ResponseWriter, r *http.Request) { asked.Store(r); show(rw, r) })
	at, _ := url.Parse(cam.URL)
	var port int
	_, _ = fmt.Sscan(at.Port(), &port)
	c := vms.Camera{Host: "127.0.0.1", Port: port, Username: user, Password: secret,
		Templates: map[string]string{Template: "http://{host}:{port}/s?u={username}&p={password}"}}
	if _, err := Take(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if q := asked.Load().URL.Query(); q.Get("u") != user || q.Get("p") != secret || asked.Load().Header.Get("Authorization") != "" {
		t.Errorf("asked for %v", asked.Load().URL)
	}
	c = vms.Camera{URL: "rtsp://" + url.UserPassword(user, secret).String() + "@127.0.0.1:554/live",
		Templates: map[string]string{Template: "http://{username}:{password}@{host}:" + at.Port() + "/s"}}
	cam.handle(guarded(fixed, "auth"))
	if _, err := Take(t.Context(), c); err != nil {
		t.Error(err)
	}
	for template, want := range map[string]string{"http://{host}:{port}/": "10.1.2.3:80", "https://{host}:{port}/": "10.1.2.3:443", "http://{host}/": "10.1.2.3"} {
		got, err := aim(vms.Camera{Host: "10.1.2.3", Templates: map[string]string{Template: template}})
		if err != nil || got.url.Host != want {
			t.Errorf("%s: %+v, %v, want host %s", template, got, err, want)
		}
	}
	got, err := aim(vms.Camera{Host: "fe80::1", Templates: map[string]string{Template: "http://{host}/"}})
	if err != nil || got.url.Host != "[fe80::1]" {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestTakeRefuses: every failure is a sentence, of a kind, without a secret in it.
func TestTakeRefuses(t *testing.T) {
	other := newWebcam(t, show)
	elsewhere := strings.Replace(other.URL, "127.0.0.1", "localhost", 1)
	page := func(status int, body []byte, header ...string) http.HandlerFunc {
		return func(rw http.ResponseWriter, _ *http.Request) {
			for i := 0; i < len(header); i += 2 {
				rw.Header().Set(header[i], header[i+1])
			}
			rw.WriteHeader(status)
			_, _ = rw.Write(body)
		}
	}
	cut := func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Length", "10000")
		_, _ = rw.Write(jpeg)
	}
	for name, test := range map[string]struct {
		handler http.HandlerFunc
		change  func(*vms.Camera)
		kind    error
		says    string
		asked   int64
	}{
		"no template":           {show, func(c *vms.Camera) { c.Templates = nil }, vms.ErrInvalid, "template named snapshot", 0},
		"another host":          {show, func(c *vms.Camera) { c.Templates[Template] = elsewhere + "/?p={password}" }, vms.ErrInvalid, "another host", 0},
		"another scheme":        {show, func(c *vms.Camera) { c.Templates[Template] = "file:///etc/passwd" }, vms.ErrInvalid, "http://", 0},
		"userinfo as a host":    {show, func(c *vms.Camera) { c.Templates[Template] = "http://{host}@evil.test/" }, vms.ErrInvalid, "another host", 0},
		"a line break":          {show, func(c *vms.Camera) { c.Templates[Template] += "\r\nX: y" }, vms.ErrInvalid, "control", 0},
		"no host":               {show, func(c *vms.Camera) { c.Host = "" }, vms.ErrInvalid, "neither", 0},
		"wrong password":        {guarded(fixed, "auth"), func(c *vms.Camera) { c.Password = "wrong" }, vms.ErrForbidden, "password", 2},
		"no password":           {guarded(fixed, "auth"), func(c *vms.Camera) { c.Username, c.Password = "", "" }, vms.ErrForbidden, "password", 1},
		"an unknown way":        {page(401, nil, "WWW-Authenticate", "Negotiate"), nil, vms.ErrForbidden, "password", 1},
		"stale for ever":        {page(401, nil, "WWW-Authenticate", `Digest realm="x", nonce="y", stale=true`), nil, vms.ErrForbidden, "password", maxTries},
		"no picture there":      {page(404, nil), nil, vms.ErrUnavailable, "template", 1},
		"a broken camera":       {page(500, jpeg), nil, vms.ErrUnavailable, "500", 1},
		"a page":                {page(200, []byte("<html>")), nil, vms.ErrUnavailable, "no JPEG", 1},
		"nothing":               {page(200, nil), nil, vms.ErrUnavailable, "no JPEG", 1},
		"too large":             {page(200, append(bytes.Clone(jpeg), make([]byte, MaxBytes)...)), nil, vms.ErrUnavailable, "8 MiB", 1},
		"cut off":               {cut, nil, vms.ErrUnavailable, "EOF", 1},
		"redirect to a host":    {page(302, nil, "Location", elsewhere), nil, vms.ErrUnavailable, "another host", 1},
		"redirect in a circle":  {page(302, nil, "Location", "/again"), nil, vms.ErrUnavailable, "circle", maxRedirects + 1},
		"redirect to a file":    {page(302, nil, "Location", "file:///etc/passwd"), nil, vms.ErrUnavailable, "another host", 1},
		"redirect to no scheme": {page(302, nil, "Location", "//localhost/x"), nil, vms.ErrUnavailable, "another host", 1},
	} {
		t.Run(name, func(t *testing.T) {
			cam := newWebcam(t, test.handler)
			c := cam.camera("/s.jpg?pwd={password}")
			if test.change != nil {
				test.change(&c)
			}
			got, err := Take(t.Context(), c)
			if got != nil || !errors.Is(err, test.kind) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("Take = %d bytes, %v, want %v with %q", len(got), err, test.kind, test.says)
			}
			if err != nil && (strings.Contains(err.Error(), escape(secret)) || strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), "pwd")) {
				t.Errorf("the error %v says the password", err)
			}
			if n := cam.asked.Load(); n != test.asked {
				t.Errorf("asked %d times, want %d", n, test.asked)
			}
		})
	}
	if n := other.asked.Load(); n != 0 {
		t.Errorf("another host was asked %d times", n)
	}
}

func TestTakeGivesUp(t *testing.T) {
	never := make(chan struct{})
	cam := newWebcam(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-never:
		case <-r.Context().Done():
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Take(ctx, cam.camera("/")); !errors.Is(err, vms.ErrUnavailable) || !strings.Contains(err.Error(), "in time") {
		t.Errorf("Take = %v", err)
	}
	close(never)
	cam.Close()
	if _, err := Take(t.Context(), cam.camera("/?pwd={password}")); !errors.Is(err, vms.ErrUnavailable) || strings.Contains(err.Error(), "pwd") {
		t.Errorf("Take = %v of a camera that is off", err)
	}
}

// TestDigestOfTheRFC: the examples of RFC 7616, section 3.9.1, and of RFC 2617,
// section 3.5, whose answers it gives.
func TestDigestOfTheRFC(t *testing.T) {
	header := []string{
		`Digest realm="http-auth@example.org", qop="auth, auth-int", algorithm=SHA-256, nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"`,
		`Digest realm="http-auth@example.org", qop="auth, auth-int", algorithm=MD5, nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"`,
	}
	for i, want := range []string{"753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1", "8ca523f5e9506fed4657c9700eebdbec"} {
		c, ok := strongest(header[i:])
		if !ok {
			t.Fatalf("nothing to answer in %q", header[i:])
		}
		got := c.digest("Mufasa", "Circle of Life", "GET", "/dir/index.html", "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ")
		if !strings.Contains(got, `response="`+want+`"`) {
			t.Errorf("%s\nwant the response %s", got, want)
		}
	}
	c, _ := strongest([]string{`Digest realm="testrealm@host.com", qop="auth,auth-int", nonce="dcd98b7102dd2f0e8b11d0f600bfb0c093"`})
	if got := c.digest("Mufasa", "Circle Of Life", "GET", "/dir/index.html", "0a4f113b"); !strings.Contains(got, `response="6629fae49393a05397450978507c4ef1"`) {
		t.Error(got)
	}
}

func TestChallenges(t *testing.T) {
	for header, want := range map[string]int{
		"": 0, "Basic": 1, `basic realm="a, Digest nonce=\"x\""`: 1, `Digest realm="x"`: 0, `Digest nonce=a`: 2, `DIGEST NONCE = "a" , QOP=auth`: 2,
		`Digest nonce="a", qop="auth-int"`: 0, `Digest nonce="a", algorithm=SHA-512-256`: 0, `Digest nonce="a", algorithm=md5-sess, qop=auth`: 2,
		`Negotiate, Digest nonce="a", algorithm=sha-256, qop=auth, Basic realm=x`: 3, `,,=x "`: 0, `Basic realm="`: 1,
	} {
		if c, ok := strongest([]string{header}); ok != (want > 0) || c.strength != want {
			t.Errorf("%q: strength %d, %v, want %d", header, c.strength, ok, want)
		}
	}
}

func FuzzChallenge(f *testing.F) {
	f.Add(`Digest realm="x", qop="auth,auth-int", nonce="y\"z", stale=TRUE, Basic`)
	f.Add(`Basic realm="`)
	f.Fuzz(func(t *testing.T, header string) {
		c, ok := strongest([]string{header})
		if !ok {
			return
		}
		got := c.answer("u", "p", "GET", "/")
		if again := parse(got); !c.basic && (len(again) != 1 || again[0].params["nonce"] != c.nonce) {
			t.Errorf("%q is answered by %q", header, got)
		}
	})
}

// TestUpload: what the store has is what was taken, with its type; what fails
// for a while is tried again.
func TestUpload(t *testing.T) {
	var tries atomic.Int64
	got := make(chan *http.Request, 1)
	store := newWebcam(t, func(rw http.ResponseWriter, r *http.Request) {
		switch tries.Add(1) {
		case 1:
			panic(http.ErrAbortHandler) // the connection breaks
		case 2:
			rw.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		data, err := io.ReadAll(r.Body)
		if err != nil || !bytes.Equal(data, jpeg) {
			t.Errorf("put %d bytes, %v", len(data), err)
		}
		got <- r
	})
	if err := new(Uploader).Upload(t.Context(), store.URL+"/b/k.jpg?X-Amz-Signature=abc", jpeg); err != nil {
		t.Fatal(err)
	}
	r := <-got
	if r.Method != http.MethodPut || r.Header.Get("Content-Type") != "image/jpeg" || r.ContentLength != int64(len(jpeg)) || r.URL.RawQuery != "X-Amz-Signature=abc" {
		t.Errorf("%s %v, %v", r.Method, r.URL, r.Header)
	}
}

func TestUploadRefused(t *testing.T) {
	store := newWebcam(t, func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusForbidden) })
	to := store.URL + "/k.jpg?X-Amz-Signature=abc"
	if err := new(Uploader).Upload(t.Context(), to, jpeg); !errors.Is(err, vms.ErrForbidden) || store.asked.Load() != 1 {
		t.Errorf("Upload = %v after %d tries", err, store.asked.Load())
	}
	store.handle(func(rw http.ResponseWriter, r *http.Request) {
		http.Redirect(rw, r, r.URL.String(), http.StatusTemporaryRedirect)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := new(Uploader).Upload(ctx, to, jpeg); !errors.Is(err, vms.ErrUnavailable) || strings.Contains(err.Error(), "Signature") {
		t.Errorf("Upload = %v", err)
	}
	for _, bad := range []string{"", "ftp://x/", "/x", "http://a b/"} {
		if err := new(Uploader).Upload(t.Context(), bad, jpeg); !errors.Is(err, vms.ErrInvalid) {
			t.Errorf("Upload to %q = %v", bad, err)
		}
	}
}

// TestUploadByTLS: with the roots that the agent has.
func TestUploadByTLS(t *testing.T) {
	vmstest.NoLeaks(t)
	store := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer store.Close()
	roots := store.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	if err := (&Uploader{TLS: &tls.Config{RootCAs: roots}}).Upload(t.Context(), store.URL, jpeg); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := new(Uploader).Upload(ctx, store.URL, jpeg); !errors.Is(err, vms.ErrUnavailable) {
		t.Errorf("Upload = %v to a server that nobody knows", err)
	}
}
