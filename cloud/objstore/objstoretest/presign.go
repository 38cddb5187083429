package objstoretest

import (
	"bytes"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/objstore"
	"github.com/zipato/vms/pkg/vms"
)

// fetch does what a browser or a hub does: plain HTTP, no credentials.
func fetch(t *testing.T, method, url string, body []byte, header map[string]string) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, b
}

func (s suite) presign(t *testing.T, name string, expiry time.Duration, download string) string {
	t.Helper()
	before := time.Now()
	u, expires, err := s.PresignGet(t.Context(), s.prefix+name, expiry, download)
	if err != nil {
		t.Fatal(err)
	}
	if d := expires.Sub(before.Add(expiry)); d < -2*time.Second || d > time.Second || expires.Location() != time.UTC {
		t.Errorf("expires at %v, %v from now", expires, d)
	}
	return u
}

func testPresignGet(t *testing.T, s suite) {
	body := noise(100_000)
	s.put(t, "p.mp4", body, func(in *objstore.PutInput) { in.ContentType = "video/mp4" })
	u := s.presign(t, "p.mp4", time.Minute, "")
	resp, got := fetch(t, "GET", u, nil, nil)
	if resp.StatusCode != http.StatusOK || !bytes.Equal(got, body) || resp.Header.Get("Content-Type") != "video/mp4" {
		t.Errorf("GET = %s, %d bytes, %v", resp.Status, len(got), resp.Header)
	}
	if resp.Header.Get("Accept-Ranges") != "bytes" {
		t.Errorf("Accept-Ranges is %q: players cannot seek", resp.Header.Get("Accept-Ranges"))
	}
	for rng, want := range map[string][]byte{
		"bytes=0-0": body[:1], "bytes=1000-1999": body[1000:2000], "bytes=99000-": body[99_000:], "bytes=-7": body[99_993:],
	} {
		resp, got := fetch(t, "GET", u, nil, map[string]string{"Range": rng})
		if resp.StatusCode != http.StatusPartialContent || !bytes.Equal(got, want) || !strings.HasSuffix(resp.Header.Get("Content-Range"), "/100000") {
			t.Errorf("GET %s = %s, %d bytes, Content-Range %q", rng, resp.Status, len(got), resp.Header.Get("Content-Range"))
		}
	}
	if resp, _ := fetch(t, "GET", u, nil, map[string]string{"Range": "bytes=100000-"}); resp.StatusCode != http.StatusRequestedRangeNotSatisfiable {
		t.Errorf("GET behind the end = %s", resp.Status)
	}
	if resp, _ := fetch(t, "GET", s.presign(t, "missing", time.Minute, ""), nil, nil); resp.StatusCode != http.StatusNotFound {
		t.Errorf("GET of a missing object = %s", resp.Status)
	}
}

func testPresignName(t *testing.T, s suite) {
	s.put(t, "p.mp4", []byte("x"))
	for _, name := range []string{"Demo camera 2026-03-04 05.06.mp4", `Küche "a"; b=c.mp4`} {
		resp, _ := fetch(t, "GET", s.presign(t, "p.mp4", time.Minute, name), nil, nil)
		kind, params, err := mime.ParseMediaType(resp.Header.Get("Content-Disposition"))
		if err != nil || resp.StatusCode != http.StatusOK || kind != "attachment" || params["filename"] != name {
			t.Errorf("download as %q: %s, Content-Disposition %q", name, resp.Status, resp.Header.Get("Content-Disposition"))
		}
	}
	_, _, err := s.PresignGet(t.Context(), s.prefix+"p.mp4", time.Minute, strings.Repeat("x", 300))
	wantErr(t, "PresignGet with an endless name", err, vms.ErrInvalid)
}

func testPresignTampered(t *testing.T, s suite) {
	s.put(t, "p", []byte("x"))
	s.put(t, "q", []byte("secret"))
	good := s.presign(t, "p", time.Minute, "")
	for name, tamper := range map[string]func(u *url.URL, q url.Values){
		"another key":   func(u *url.URL, _ url.Values) { u.Path = strings.TrimSuffix(u.Path, "p") + "q" },
		"a longer life": func(_ *url.URL, q url.Values) { q.Set("X-Amz-Expires", "600000") },
		"a later date": func(_ *url.URL, q url.Values) {
			q.Set("X-Amz-Date", time.Now().UTC().Add(time.Minute).Format("20060102T150405Z"))
		},
		"another name":   func(_ *url.URL, q url.Values) { q.Set("response-content-disposition", "inline") },
		"no signature":   func(_ *url.URL, q url.Values) { q.Del("X-Amz-Signature") },
		"no parameters":  func(_ *url.URL, q url.Values) { clear(q) },
		"some signature": func(_ *url.URL, q url.Values) { q.Set("X-Amz-Signature", strings.Repeat("0", 64)) },
	} {
		u, err := url.Parse(good)
		if err != nil {
			t.Fatal(err)
		}
		q := u.Query()
		tamper(u, q)
		u.RawQuery = q.Encode()
		resp, body := fetch(t, "GET", u.String(), nil, nil)
		if resp.StatusCode != http.StatusForbidden && resp.StatusCode != http.StatusBadRequest || bytes.Contains(body, []byte("secret")) {
			t.Errorf("%s: %s", name, resp.Status)
		}
	}
	for _, method := range []string{"PUT", "DELETE"} {
		if resp, _ := fetch(t, method, good, []byte("y"), nil); resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s with a URL to GET = %s, want 403", method, resp.Status)
		}
	}
	if got := s.get(t, "p", 0, -1); string(got) != "x" {
		t.Errorf("object is now %q", got)
	}
}

func testPresignExpired(t *testing.T, s suite) {
	s.put(t, "p", []byte("x"))
	u := s.presign(t, "p", time.Second, "")
	// The store's clock decides; ask until it does.
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		resp, _ := fetch(t, "GET", u, nil, nil)
		if resp.StatusCode == http.StatusForbidden {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("GET with an expired URL = %s, want 403", resp.Status)
		}
	}
}

func testPresignPut(t *testing.T, s suite) {
	u, _, err := s.PresignPut(t.Context(), s.prefix+"snap.jpg", time.Minute, "image/jpeg")
	if err != nil {
		t.Fatal(err)
	}
	if resp, _ := fetch(t, "PUT", u, []byte("<html>"), map[string]string{"Content-Type": "text/html"}); resp.StatusCode != http.StatusForbidden {
		t.Errorf("PUT of another type = %s, want 403", resp.Status)
	}
	if resp, body := fetch(t, "PUT", u, []byte("jpeg"), map[string]string{"Content-Type": "image/jpeg"}); resp.StatusCode != http.StatusOK {
		t.Fatalf("PUT = %s %s", resp.Status, body)
	}
	if got := s.get(t, "snap.jpg", 0, -1); string(got) != "jpeg" {
		t.Errorf("object is %q", got)
	}
}
