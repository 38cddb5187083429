package hubclock

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/beevik/ntp"

	"github.com/zipato/vms/pkg/retry"
)

const (
	// sntpEvery is how often the server is asked: public ones want no more than
	// one question in some minutes of a client.
	sntpEvery = 10 * time.Minute
	sntpWait  = 5 * time.Second
	// sntpOff: a server that says itself that it may be further off is not asked
	// what time it is.
	sntpOff = 500 * time.Millisecond
)

// askSNTP asks the server until ctx ends.
func (c *Clock) askSNTP(ctx context.Context) error {
	b := retry.Backoff{Min: 4 * time.Second, Max: sntpEvery}
	said := ""
	for {
		err := c.askOnce(ctx)
		wait := sntpEvery
		if err != nil {
			wait = b.Next(0)
			if said != err.Error() {
				c.cfg.Log.Warn("the SNTP server tells no time", "server", c.cfg.SNTP, "err", err, "wait", wait)
			}
			said = err.Error()
		} else {
			b, said = retry.Backoff{Min: b.Min, Max: b.Max}, ""
		}
		if !retry.Sleep(ctx, wait) {
			return nil
		}
	}
}

// askOnce asks the server once.
func (c *Clock) askOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*sntpWait) // with the name's resolution
	defer cancel()
	r, err := ntp.QueryWithOptions(c.cfg.SNTP, ntp.QueryOptions{
		Timeout: sntpWait,
		Dialer: func(_, server string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, "udp", server)
			if err == nil {
				context.AfterFunc(ctx, func() { conn.Close() })
			}
			return conn, err
		},
	})
	answered := c.cfg.Now()
	if err != nil {
		return err
	}
	if err := r.Validate(); err != nil {
		return err
	}
	if r.RootDistance > sntpOff {
		return fmt.Errorf("it may be off by %v itself", r.RootDistance)
	}
	// The library's offset is against the system's clock, which may be set
	// meanwhile; the server's time and the round trip are not. What the server
	// may be off by counts like a longer way.
	rtt := r.RTT + 2*r.RootDistance
	c.LearnSNTP(answered.Add(-rtt), answered, r.Time.Add(-r.RootDistance))
	return nil
}
