package control

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/wire"
)

// certify makes a certificate for 127.0.0.1 that vouches for itself.
func certify(t *testing.T) (cert, key []byte, roots *x509.CertPool) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "broker"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	text, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	roots = x509.NewCertPool()
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots.AddCert(parsed)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: text}), roots
}

func TestTLS(t *testing.T) {
	vmstest.NoLeaks(t)
	cert, key, roots := certify(t)
	dir := t.TempDir()
	(&broker{dir: dir}).write(t, "cert", string(cert))
	(&broker{dir: dir}).write(t, "key", string(key))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_, port, _ := net.SplitHostPort(addr)
	l.Close()
	b := mosquitto(t, acl, fmt.Sprintf("listener %s 127.0.0.1\ncertfile %s\nkeyfile %s\n", port, filepath.Join(dir, "cert"), filepath.Join(dir, "key")))
	c := newCloud(t, b.addr)
	c.publish("h1", wire.LeafDesired, desired("h1", 7))
	at := wire.Broker{URL: "mqtts://" + addr, Password: password}

	h := newHub(t, "h1", "b1", func(h *hub) { h.cfg.TLS = &tls.Config{RootCAs: roots} })
	h.SetBroker(at)
	h.run(t)
	eventually(t, "revision 7 over TLS", func() bool { return h.revision() == 7 })
	h.stop()

	stranger := newHub(t, "h1", "b2", func(h *hub) { h.cfg.TLS = &tls.Config{RootCAs: x509.NewCertPool()} })
	stranger.SetBroker(at)
	stranger.run(t)
	eventually(t, "a certificate refused", func() bool {
		up, err := stranger.Connected()
		var unknown x509.UnknownAuthorityError
		return !up && errors.As(err, &unknown)
	})

	// Plain MQTT to a port that speaks TLS, and the other way round.
	plain := newHub(t, "h1", "b3", nil)
	plain.SetBroker(wire.Broker{URL: "mqtt://" + addr, Password: password})
	plain.run(t)
	eventually(t, "no MQTT there", func() bool {
		up, err := plain.Connected()
		return !up && (errors.Is(err, errClosed) || errors.Is(err, errNoMQTT))
	})
	h = newHub(t, "h1", "b4", func(h *hub) { h.cfg.TLS = &tls.Config{RootCAs: roots} })
	h.SetBroker(wire.Broker{URL: "mqtts://" + b.addr, Password: password})
	h.run(t)
	eventually(t, "no TLS there", func() bool {
		up, err := h.Connected()
		return !up && strings.Contains(err.Error(), "TLS")
	})
}
