package clocktls

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/x509roots/fallback/bundle"

	"github.com/zipato/vms/pkg/vmstest"
)

var (
	// made is when the certificates begin; floor has passed on the hub's side.
	made  = time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)
	floor = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	now   = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
)

// authority signs the certificates of a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: made.AddDate(-5, 0, 0), NotAfter: made.AddDate(5, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tpl, tpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// sign makes a certificate of a server on 127.0.0.1.
func (a *authority) sign(t *testing.T, from, to time.Time, ips ...net.IP) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "nvr"}, NotBefore: from, NotAfter: to,
		IPAddresses: ips, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tpl, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

var loopback = net.IPv4(127, 0, 0, 1)

// serve is an NVR with that certificate.
func serve(t *testing.T, cert tls.Certificate, h http.HandlerFunc) *httptest.Server {
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, Time: func() time.Time { return now }}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func tell(at time.Time) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != Path || r.Method != http.MethodGet || len(r.Cookies()) > 0 || r.Header.Get("Authorization") != "" {
			w.WriteHeader(http.StatusTeapot)
			return
		}
		fmt.Fprintf(w, `{"server_time":%q}`, at.Format(time.RFC3339Nano))
	}
}

// get dials with full verification at a time.
func get(t *testing.T, url string, roots *x509.CertPool, at time.Time) error {
	t.Helper()
	tr := &http.Transport{TLSClientConfig: Config(roots, func() (time.Time, bool) { return at, true })}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Get(url)
	if err == nil {
		resp.Body.Close()
	}
	return err
}

// TestTLSFromTheFirstSecond: a hub in the past cannot verify a certificate that
// is younger than it, learns the time from its owner, and then can.
func TestTLSFromTheFirstSecond(t *testing.T) {
	ca := newAuthority(t)
	s := serve(t, ca.sign(t, made, made.AddDate(0, 3, 0), loopback), tell(now))
	if get(t, s.URL, ca.pool(), floor) == nil {
		t.Error("a certificate is accepted before it begins")
	}
	if get(t, s.URL, ca.pool(), made.AddDate(0, 3, 1)) == nil {
		t.Error("a certificate is accepted after it has ended")
	}
	a, err := Probe(t.Context(), strings.Replace(s.URL, "https:", "wss:", 1)+"/session/v1?x=y", ca.pool(), floor)
	if err != nil {
		t.Fatal(err)
	}
	if rtt := a.Answered.Sub(a.Asked); !a.Server.Equal(now) || rtt < 0 || rtt > 10*time.Second || a.Asked.IsZero() {
		t.Errorf("answer %+v", a)
	}
	if err := get(t, s.URL, ca.pool(), a.Server); err != nil {
		t.Errorf("with the time known: %v", err)
	}
}

func TestProbeRefuses(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	good := ca.sign(t, made, made.AddDate(0, 3, 0), loopback)
	for name, tt := range map[string]struct {
		cert   tls.Certificate
		answer http.HandlerFunc
		passed time.Time
		says   string
	}{
		"a stranger":                       {cert: other.sign(t, made, made.AddDate(0, 3, 0), loopback), says: "authority"},
		"another host":                     {cert: ca.sign(t, made, made.AddDate(0, 3, 0), net.IPv4(127, 0, 0, 2)), says: "127.0.0.2"},
		"one that had expired":             {cert: ca.sign(t, floor.AddDate(-1, 0, 0), floor.Add(-time.Hour), loopback), says: "expired"},
		"expired by what has passed since": {cert: good, passed: made.AddDate(0, 4, 0), says: "expired"},
		"a time after its certificate":     {cert: good, answer: tell(made.AddDate(0, 4, 0)), says: "not valid"},
		"a time before its certificate":    {cert: good, answer: tell(made.AddDate(-1, 0, 0)), says: "not valid"},
		"no time":                          {cert: good, answer: func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, `{}`) }, says: "no time"},
		"nonsense":                         {cert: good, answer: func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, `<html>`) }, says: "no time"},
		"too much": {cert: good, answer: func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, `{"server_time":"2026-11-22T12:00:00Z"`+strings.Repeat(" ", maxAnswer)+`}`)
		}, says: "larger"},
		"a redirect": {cert: good, answer: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
		}, says: "302"},
		"an error": {cert: good, answer: func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusInternalServerError) }, says: "500"},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.answer == nil {
				tt.answer = tell(now)
			}
			if tt.passed.IsZero() {
				tt.passed = floor
			}
			s := serve(t, tt.cert, tt.answer)
			a, err := Probe(t.Context(), s.URL, ca.pool(), tt.passed)
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("answer %v, error %v, want one that says %q", a, err, tt.says)
			}
		})
	}
	for _, u := range []string{"", "ftp://x/", "wss://", "://"} {
		if _, err := Probe(t.Context(), u, nil, floor); err == nil {
			t.Errorf("%q is asked", u)
		}
	}
}

// TestProberAsksUntilTheTimeIsKnown, also when somebody else tells it.
func TestProberAsksUntilTheTimeIsKnown(t *testing.T) {
	ca := newAuthority(t)
	var asked, known atomic.Int32
	s := serve(t, ca.sign(t, made, made.AddDate(0, 3, 0), loopback), func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		tell(now)(w, r)
	})
	p := &Prober{
		URL: s.URL, Roots: ca.pool(), Passed: func() time.Time { return floor }, Known: func() bool { return known.Load() > 0 },
		Learn: func(_, _, server time.Time) bool {
			if server.Equal(now) {
				known.Add(1)
			}
			return true
		},
		Log: vmstest.Log(t), pace: 10 * time.Millisecond,
	}
	if err := p.Run(t.Context()); err != nil || known.Load() != 1 || asked.Load() != 3 {
		t.Errorf("Run = %v; learnt %d times with %d questions", err, known.Load(), asked.Load())
	}
	if err := p.Run(t.Context()); err != nil || asked.Load() != 3 {
		t.Errorf("Run = %v; asked although the time is known", err)
	}
	known.Store(0)
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if err := p.Run(ctx); err != nil {
		t.Errorf("Run = %v when it was told to stop", err)
	}
}

func TestRoots(t *testing.T) {
	ca := newAuthority(t)
	file := filepath.Join(t.TempDir(), "ca.pem")
	if _, err := Roots(file); err == nil {
		t.Error("a file that is not there is no error")
	}
	os.WriteFile(file, []byte("nothing"), 0o600)
	if _, err := Roots(file); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a file without certificates: %v", err)
	}
	os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw}), 0o600)
	roots, err := Roots(file)
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, ca.sign(t, made, made.AddDate(0, 3, 0), loopback), tell(now))
	if err := get(t, s.URL, roots, now); err != nil {
		t.Error(err)
	}
	without, err := Roots()
	if err != nil || get(t, s.URL, without, now) == nil {
		t.Errorf("a stranger is trusted, or %v", err)
	}
	// A hub without a list of its own has the one of the build.
	bare := x509.NewCertPool()
	addBundle(bare)
	n := 0
	for r := range bundle.Roots() {
		c, err := x509.ParseCertificate(r.Certificate)
		if err != nil {
			t.Fatal(err)
		}
		o := x509.VerifyOptions{Roots: bare, CurrentTime: c.NotAfter, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
		if _, err := c.Verify(o); err != nil && r.Constraint == nil {
			t.Errorf("%s: %v", c.Subject, err)
		}
		n++
	}
	if n < 100 {
		t.Errorf("the list has %d authorities", n)
	}
}
