// Package clocktls is TLS on a hub that wakes up in the past: certificates are
// verified at the time of the hub's own clock, not the system's, and while
// nobody has told the hub what time it is, a Prober asks the NVR over a
// connection that is good for nothing else.
package clocktls

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"time"

	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// Config verifies servers in full, at the time that now says: the configuration
// of all that dials. While now is provisional, handshakes fail as a rule, as
// they should: a certificate says nothing to who does not know the time. roots
// nil: the system's.
func Config(roots *x509.CertPool, now func() (utc time.Time, certain bool)) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, RootCAs: roots,
		Time: func() time.Time { t, _ := now(); return t },
	}
}

// Roots are the certificate authorities that a hub trusts: the system's, those
// of Mozilla's list as of the build, because hubs have old lists or none, and
// those in files, in PEM. The error names a file that has none.
func Roots(files ...string) (*x509.CertPool, error) {
	pool, err := x509.SystemCertPool()
	if err != nil { // there is none
		pool = x509.NewCertPool()
	}
	addBundle(pool)
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("certificate authorities: %w", err)
		}
		if !pool.AppendCertsFromPEM(data) {
			return nil, fmt.Errorf("certificate authorities: no certificate in PEM in %s", name)
		}
	}
	return pool, nil
}

// addBundle adds the list of the build.
func addBundle(pool *x509.CertPool) {
	for r := range bundle.Roots() {
		if r.Constraint == nil {
			// In PEM the pool keeps the bytes and parses them when it needs them.
			pool.AppendCertsFromPEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.Certificate}))
		} else if c, err := x509.ParseCertificate(r.Certificate); err == nil {
			pool.AddCertWithConstraint(c, r.Constraint)
		}
	}
}
