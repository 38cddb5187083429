package e2e

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest/camtest"
)

// viewer looks at the live picture of a channel, and notes for each picture how
// long ago the camera sent it. It comes back by itself.
type viewer struct {
	book *ledger

	mu   sync.Mutex
	seen []sight
}

// sight is one picture that came.
type sight struct {
	at    time.Time
	lag   time.Duration // since the camera sent it
	along int           // pictures in the same message
}

// watch starts a viewer that ends with t. It goes to the worker directly: what
// is measured is the hub's way up.
func (s *stack) watch(t testing.TB, ch vms.ChannelID, book *ledger) *viewer {
	t.Helper()
	v := &viewer{book: book}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	t.Cleanup(func() { stop(); <-done })
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			_ = v.look(ctx, s, ch) // it tries again, until the test ends
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}()
	return v
}

func (v *viewer) look(ctx context.Context, s *stack, ch vms.ChannelID) error {
	var live struct {
		MSE string `json:"mse"`
	}
	if err := s.try("GET", "/channels/"+string(ch)+"/live", nil, &live); err != nil {
		return err
	}
	u, err := url.Parse(live.MSE)
	if err != nil {
		return err
	}
	u.Host = strings.TrimPrefix(s.url, "http://")
	c, _, err := websocket.Dial(ctx, u.String(), &websocket.DialOptions{
		Subprotocols: []string{"vms.mse.v1"}, HTTPHeader: http.Header{"Origin": {s.url}},
	})
	if err != nil {
		return err
	}
	defer c.CloseNow()
	c.SetReadLimit(-1)
	for {
		_, data, err := c.Read(ctx)
		if err != nil {
			return err
		}
		now := time.Now()
		pictures := camtest.Stamps(data)
		for _, n := range pictures {
			if at, ok := v.book.picture(n); ok {
				v.mu.Lock()
				v.seen = append(v.seen, sight{now, now.Sub(at), len(pictures)})
				v.mu.Unlock()
			}
		}
	}
}

// between returns the lags of what the camera sent after one time and came
// before another, sorted.
func (v *viewer) between(from, to time.Time) []time.Duration {
	v.mu.Lock()
	defer v.mu.Unlock()
	var out []time.Duration
	for _, s := range v.seen {
		if s.at.Add(-s.lag).After(from) && s.at.Before(to) {
			out = append(out, s.lag)
		}
	}
	slices.Sort(out)
	return out
}

// back returns how long after from the first picture came that the camera sent
// after from, or false when none has come.
func (v *viewer) back(from time.Time) (time.Duration, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, s := range v.seen {
		if s.at.Add(-s.lag).After(from) {
			return s.at.Sub(from), true
		}
	}
	return 0, false
}

// chunk is how long the chunks are that come, in pictures: the median.
func (v *viewer) chunk() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	var along []int
	for _, s := range v.seen {
		along = append(along, s.along)
	}
	slices.Sort(along)
	if len(along) == 0 {
		return 0
	}
	return along[len(along)/2]
}

// percentile of sorted values, 0 when there are none.
func percentile(sorted []time.Duration, p int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[(len(sorted)-1)*p/100]
}
