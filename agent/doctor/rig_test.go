package doctor

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/zipato/vms/agent/clocktls"
	"github.com/zipato/vms/agent/hubclock"
)

// authority signs the certificates of a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{}
	tpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().AddDate(-5, 0, 0), NotAfter: time.Now().AddDate(5, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.key = newKey(t)
	a.cert = certificate(t, tpl, tpl, a.key, a.key)
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func certificate(t *testing.T, tpl, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tpl, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// sign makes a certificate for an address that is good for so many days around today.
func (a *authority) sign(t *testing.T, ip string, from, to int) tls.Certificate {
	t.Helper()
	key := newKey(t)
	tpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "nvr"}, IPAddresses: []net.IP{netip.MustParseAddr(ip).AsSlice()},
		NotBefore: time.Now().AddDate(0, 0, from), NotAfter: time.Now().AddDate(0, 0, to),
	}
	cert := certificate(t, tpl, a.cert, key, a.key)
	return tls.Certificate{Certificate: [][]byte{cert.Raw, a.cert.Raw}, PrivateKey: key}
}

// tellTime is an NVR that knows what time it is.
func tellTime(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != clocktls.Path {
		http.NotFound(w, r)
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"server_time": time.Now().UTC()})
}

// serve starts an NVR, over TLS when there is a certificate, and returns its URL
// as hubs have it.
func serve(t *testing.T, h http.HandlerFunc, cert ...tls.Certificate) string {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(srv.Close)
	if len(cert) == 0 {
		srv.Start()
	} else {
		srv.TLS = &tls.Config{Certificates: cert}
		srv.StartTLS()
	}
	return "ws" + strings.TrimPrefix(srv.URL, "http") + "/session/v1"
}

// nobody is an address where nobody listens.
func nobody(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// healthy is a hub with nothing wrong, and no cameras.
func healthy(t *testing.T, nvr string) Config {
	t.Helper()
	dir := t.TempDir()
	return Config{
		Hub: "hub_1", Version: "test", NVRURL: nvr, Dir: dir, Spool: dir + "/spool", Flash: true, FlashShare: 0.5, LeastFlash: 1 << 20,
		Root: fstest.MapFS{
			"proc/sys/kernel/osrelease": {Data: []byte("5.10.0-26-arm64\n")}, "proc/uptime": {Data: []byte("93784.12 1.00\n")},
			"etc/resolv.conf": {Data: []byte("nameserver 192.0.2.53\n")},
		},
		Total: 256 << 20, Available: 128 << 20, RAM: 24 << 20, Clock: hubclock.New(hubclock.Config{}),
	}
}

// find returns the findings of a check.
func find(r *Report, check string) (out []Finding) {
	for _, f := range r.Findings {
		if f.Check == check {
			out = append(out, f)
		}
	}
	return out
}
