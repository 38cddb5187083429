package snapshot

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/zipato/vms/pkg/retry"
	"github.com/zipato/vms/pkg/vms"
)

const (
	// uploadTime is how long an upload may take where ctx sets no earlier end;
	// tryTime one attempt, so that a link that hangs leaves time for another.
	uploadTime = time.Minute
	tryTime    = 20 * time.Second
)

// Uploader puts pictures into an object store. The zero value is ready.
type Uploader struct {
	// TLS is for https; nil: the system's roots and clock.
	TLS *tls.Config
}

// Upload puts a JPEG to a presigned URL, and tries again until ctx ends, but a
// minute at most, as long as that can help. Errors do not hold the URL, which is
// a secret: vms.ErrForbidden when the store refuses it, vms.ErrInvalid when it
// is none, vms.ErrUnavailable when nobody took it in time.
func (u *Uploader) Upload(ctx context.Context, to string, jpeg []byte) error {
	at, err := url.Parse(to)
	if err != nil || at.Host == "" || at.Scheme != "http" && at.Scheme != "https" {
		return fmt.Errorf("%w: the address to upload the picture to is no http or https URL", vms.ErrInvalid)
	}
	ctx, cancel := context.WithTimeout(ctx, uploadTime)
	defer cancel()
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSClientConfig: u.TLS.Clone(), ForceAttemptHTTP2: true, MaxResponseHeaderBytes: 64 << 10,
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		if len(via) > maxRedirects || via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
			return errElsewhere
		}
		return nil
	}}
	backoff := retry.Backoff{Min: 200 * time.Millisecond, Max: 5 * time.Second}
	for {
		err := put(ctx, client, to, jpeg)
		if err == nil {
			return nil
		}
		var r *refusal
		if errors.As(err, &r) && r.status/100 == 4 && r.status != http.StatusRequestTimeout && r.status != http.StatusTooManyRequests {
			return fmt.Errorf("%w: the object store refuses the picture: %w", vms.ErrForbidden, err)
		}
		if !retry.Sleep(ctx, backoff.Next(0)) {
			return fmt.Errorf("%w: the picture could not be uploaded in time: %w", vms.ErrUnavailable, err)
		}
	}
}

// put tries once.
func put(ctx context.Context, client *http.Client, to string, jpeg []byte) error {
	ctx, cancel := context.WithTimeout(ctx, tryTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, to, bytes.NewReader(jpeg))
	if err != nil {
		return bare(err)
	}
	req.Header.Set("Content-Type", "image/jpeg")
	req.Header.Set("User-Agent", "vms-agent")
	res, err := client.Do(req)
	if err != nil {
		return bare(err)
	}
	discard(res)
	if res.StatusCode/100 != 2 {
		return &refusal{res.StatusCode}
	}
	return nil
}
