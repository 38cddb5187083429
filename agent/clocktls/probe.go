package clocktls

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"time"

	"github.com/zipato/vms/pkg/retry"
	"github.com/zipato/vms/pkg/vms"
)

const (
	// Path is where an NVR tells the time to whoever asks.
	Path = "/time/v1"
	// probeTime bounds one try.
	probeTime = 15 * time.Second
	// maxAnswer bounds the answer, bytes.
	maxAnswer = 4 << 10
)

// Answer is what an NVR said. Asked and Answered are times of the system with
// monotonic readings.
type Answer struct {
	Asked, Answered, Server time.Time
}

// Probe asks the NVR at nvr, a ws, wss, http or https URL, what time it is. The
// server's certificate chain is verified as ever, but for the time: it must have
// been valid at passed, or, where parts of it began later, when the last of
// them began; and it must be valid at the time that the server tells. Nothing
// but the time is taken over the connection, and nothing is said.
//
// That is less than full verification. Who has a stolen key whose certificate
// has expired since passed may tell a time at which it had not.
func Probe(ctx context.Context, nvr string, roots *x509.CertPool, passed time.Time) (Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	u, err := origin(nvr)
	if err != nil {
		return Answer{}, err
	}
	var chain []*x509.Certificate
	verify := func(at time.Time) error {
		o := x509.VerifyOptions{Roots: roots, DNSName: u.Hostname(), Intermediates: x509.NewCertPool(), CurrentTime: at}
		for _, c := range chain[1:] {
			o.Intermediates.AddCert(c)
		}
		_, err := chain[0].Verify(o)
		return err
	}
	transport := &http.Transport{
		Proxy:             http.ProxyFromEnvironment,
		DialContext:       (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{
			MinVersion:         tls.VersionTLS12,
			InsecureSkipVerify: true, // VerifyConnection does it, at another time
			VerifyConnection: func(s tls.ConnectionState) error {
				if chain = s.PeerCertificates; len(chain) == 0 {
					return errors.New("the server shows no certificate")
				}
				at := passed
				for _, c := range chain {
					if c.NotBefore.After(at) {
						at = c.NotBefore
					}
				}
				return verify(at)
			},
		},
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	// The round trip is that of the question alone, without TLS.
	var a Answer
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn:              func(httptrace.GotConnInfo) { a.Asked = time.Now() },
		GotFirstResponseByte: func() { a.Answered = time.Now() },
	}), http.MethodGet, u.String(), nil)
	if err != nil {
		return Answer{}, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return Answer{}, fmt.Errorf("%s answers %s", u, resp.Status)
	}
	if a.Server, err = read(resp.Body); err != nil {
		return Answer{}, fmt.Errorf("%s: %w", u, err)
	}
	if chain != nil {
		if err := verify(a.Server); err != nil {
			return Answer{}, fmt.Errorf("%s tells a time at which its own certificate is not valid: %w", u, err)
		}
	}
	return a, nil
}

// read reads the answer: {"server_time": RFC 3339}.
func read(r io.Reader) (time.Time, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxAnswer+1))
	if err != nil {
		return time.Time{}, err
	}
	var m struct {
		ServerTime time.Time `json:"server_time"`
	}
	if len(data) > maxAnswer {
		return time.Time{}, fmt.Errorf("the answer is larger than %d bytes", maxAnswer)
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return time.Time{}, fmt.Errorf("no time in the answer: %w", err)
	}
	if m.ServerTime.IsZero() {
		return time.Time{}, errors.New("no time in the answer")
	}
	return m.ServerTime.UTC(), nil
}

// origin is where to ask.
func origin(nvr string) (*url.URL, error) {
	u, err := url.Parse(nvr)
	scheme := ""
	if err == nil {
		scheme = map[string]string{"ws": "http", "wss": "https", "http": "http", "https": "https"}[u.Scheme]
	}
	if scheme == "" || u.Host == "" {
		return nil, fmt.Errorf("%w: NVR URL, want ws, wss, http or https", vms.ErrInvalid)
	}
	return &url.URL{Scheme: scheme, Host: u.Host, Path: Path}, nil
}

// Prober asks an NVR for the time until somebody has told it. All fields but
// Roots must be set.
type Prober struct {
	URL   string
	Roots *x509.CertPool // nil: the system's
	// Of the hub's clock: a time that has certainly passed, whether the time is
	// known, and what takes an answer.
	Passed func() time.Time
	Known  func() bool
	Learn  func(asked, answered, server time.Time) (stepped bool)
	Log    *slog.Logger

	pace time.Duration // of tests; 0: a second
}

// Run ends when the time is known, or when ctx ends. At the start the session
// with the NVR gets a moment: where the provisional time is good enough for its
// certificate, it learns the time in full trust.
func (p *Prober) Run(ctx context.Context) error {
	pace := cmp.Or(p.pace, time.Second)
	if !retry.Sleep(ctx, 2*pace) {
		return nil
	}
	b := retry.Backoff{Min: pace, Max: 60 * pace}
	said := ""
	for !p.Known() {
		a, err := Probe(ctx, p.URL, p.Roots, p.Passed())
		if err == nil {
			p.Learn(a.Asked, a.Answered, a.Server)
			if p.Known() {
				p.Log.Info("the NVR has told the time", "server_time", a.Server)
				return nil
			}
			err = errors.New("it took too long to say anything about time")
		}
		if ctx.Err() != nil {
			return nil
		}
		wait := b.Next(0)
		if err.Error() != said {
			p.Log.Warn("what time it is cannot be found out", "err", err, "wait", wait)
		}
		said = err.Error()
		if !retry.Sleep(ctx, wait) {
			return nil
		}
	}
	return nil
}
