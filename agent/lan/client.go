package lan

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/zipato/vms/pkg/problem"
)

// maxAnswer bounds what a client reads: 32 streams need some 40 kB, a report of
// the doctor less.
const maxAnswer = 1 << 20

// ErrNotThere is returned when nobody answers at the address.
var ErrNotThere = errors.New("the agent's local API does not answer")

// Client asks the agent of the same machine.
type Client struct {
	// Address is what the agent listens on (Config.Listen of package agent).
	Address string
	Key     string // the LAN key
}

// Overview asks how the hub and its streams are.
func (c Client) Overview(ctx context.Context) (*Overview, error) {
	var o Overview
	if err := c.get(ctx, http.MethodGet, "/v1/status", &o.Status); err != nil {
		return nil, err
	}
	if err := c.get(ctx, http.MethodGet, "/v1/streams", &o); err != nil {
		return nil, err
	}
	return &o, nil
}

// Doctor has the agent look whether all is well, and returns its report.
func (c Client) Doctor(ctx context.Context, report any) error {
	return c.get(ctx, http.MethodPost, "/v1/doctor", report)
}

// get sends a request without a body and decodes the answer into v.
func (c Client) get(ctx context.Context, method, path string, v any) error {
	where, err := c.reach()
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+where+path, nil)
	if err != nil {
		return err
	}
	// Whatever name it listens on, this one is let in.
	req.Host = "localhost"
	req.Header.Set("Authorization", "Bearer "+c.Key)
	// A connection of its own: no proxy may see the key, and nothing is left open.
	t := &http.Transport{DialContext: (&net.Dialer{Timeout: 2 * time.Second}).DialContext, DisableKeepAlives: true}
	defer t.CloseIdleConnections()
	resp, err := (&http.Client{Transport: t}).Do(req)
	if err != nil {
		return fmt.Errorf("%w at %s: %w", ErrNotThere, where, err)
	}
	defer resp.Body.Close()
	if err := problem.ReadResponse(resp); err != nil {
		return fmt.Errorf("the agent's local API at %s: %w", where, err)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(v); err != nil {
		return fmt.Errorf("the answer of %s is not one of the agent's local API: %w", where, err)
	}
	return nil
}

// reach is where to find who listens on Address.
func (c Client) reach() (string, error) {
	host, port, err := net.SplitHostPort(c.Address)
	if err != nil || port == "0" {
		return "", fmt.Errorf("%w: it listens on %q, which is no address to ask", ErrNotThere, c.Address)
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = "127.0.0.1"
		if ip.Is6() {
			host = "::1"
		}
	}
	return net.JoinHostPort(host, port), nil
}
