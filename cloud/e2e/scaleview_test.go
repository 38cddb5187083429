package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest/camtest"
)

// follower looks at the live picture of a channel as the page does: told that
// the stream is at another worker, it opens a socket there beside the one that it
// shows, and goes over to it when that has what comes next.
type follower struct {
	s  *stack
	ch vms.ChannelID

	mu     sync.Mutex
	shown  []showing
	last   uint64 // number of the newest picture that was shown
	moves  int    // times it went over
	asks   int    // times it asked where the picture is
	missed int    // pictures that it never got
}

// showing is one message with pictures that were not shown before.
type showing struct {
	at       time.Time
	last     uint64 // number of the newest
	pictures int
	missed   int // before these
}

const (
	// overtake is how long a socket that is ahead of what is shown waits for what
	// lies between, which the other one still has.
	overtake = time.Second
	// askAgain is the pace of asking where a picture is that is nowhere.
	askAgain = 100 * time.Millisecond
)

// follow starts a viewer that ends with t.
func (s *stack) follow(t testing.TB, ch vms.ChannelID) *follower {
	t.Helper()
	v := &follower{s: s, ch: ch}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	t.Cleanup(func() { stop(); <-done })
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			v.look(ctx)
		}
	}()
	return v
}

// word is something that a socket said, or its end.
type word struct {
	from *peek
	text liveText
	data []byte
	end  bool
}

// liveText is a text message of the live WebSocket.
type liveText struct {
	Type  string `json:"type"`
	URL   string `json:"url"`
	Cause string `json:"cause"`
}

// peek is one socket.
type peek struct {
	url   string
	stop  context.CancelFunc
	ended chan struct{}

	init    bool // the init segment is there
	initing bool // it is the next binary message
	waiting [][]byte
	since   time.Time // since when the first of them waits
}

// open looks on at a worker; what comes goes to words, the end last.
func (v *follower) open(ctx context.Context, url string, words chan<- word) *peek {
	ctx, cancel := context.WithCancel(ctx)
	p := &peek{url: url, stop: cancel, ended: make(chan struct{})}
	say := func(w word) {
		w.from = p
		select {
		case words <- w:
		case <-ctx.Done():
		}
	}
	go func() {
		defer close(p.ended)
		defer func() { say(word{end: true}) }()
		dial, cancel := context.WithTimeout(ctx, 5*time.Second)
		c, _, err := websocket.Dial(dial, url, &websocket.DialOptions{
			Subprotocols: []string{"vms.mse.v1"}, HTTPHeader: http.Header{"Origin": {v.s.url}},
		})
		cancel()
		if err != nil {
			return
		}
		defer c.CloseNow()
		c.SetReadLimit(-1)
		for {
			typ, data, err := c.Read(ctx)
			if err != nil {
				return
			}
			w := word{data: data}
			if typ == websocket.MessageText && json.Unmarshal(data, &w.text) != nil {
				return
			}
			say(w)
		}
	}()
	return p
}

// close ends a socket.
func (p *peek) close() {
	if p != nil {
		p.stop()
		<-p.ended
	}
}

// ask returns where the picture is, as the API says, once it says so.
func (v *follower) ask(ctx context.Context) (string, error) {
	for ctx.Err() == nil {
		v.mu.Lock()
		v.asks++
		v.mu.Unlock()
		var live struct {
			MSE string `json:"mse"`
		}
		if err := v.s.try("GET", "/channels/"+string(v.ch)+"/live", nil, &live); err == nil && live.MSE != "" {
			return live.MSE, nil
		}
		select {
		case <-time.After(askAgain):
		case <-ctx.Done():
		}
	}
	return "", ctx.Err()
}

// look shows the picture until no socket is left.
func (v *follower) look(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	url, err := v.ask(ctx)
	if err != nil {
		return
	}
	words := make(chan word, 64)
	shown := v.open(ctx, url, words)
	var next *peek
	defer func() { shown.close(); next.close() }()
	asked := make(chan string, 1) // answers of ask, of which one is under way at most
	asking := false
	ask := func() {
		if asking {
			return
		}
		asking = true
		go func() {
			select {
			case <-time.After(askAgain): // the one that just failed is not tried at once
			case <-ctx.Done():
			}
			u, err := v.ask(ctx)
			if err == nil {
				asked <- u
			}
		}()
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for shown != nil || next != nil || asking {
		var w word
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case u := <-asked:
			asking = false
			if next == nil {
				next = v.open(ctx, u, words)
			}
			continue
		case w = <-words:
		}
		switch p := w.from; {
		case p == nil: // time passes
		case w.end && p == shown:
			shown = nil
			if next == nil {
				return
			}
		case w.end && p == next:
			next = nil
			if shown != nil {
				ask()
			}
		case p != shown && p != next:
		case w.text.Type == "moved" && w.text.URL == "":
			ask()
		case w.text.Type == "moved":
			if next != nil && address(next.url) == address(w.text.URL) {
				break // it is on the way
			}
			next.close()
			next = v.open(ctx, w.text.URL, words)
		case w.text.Type == "init":
			p.initing, p.waiting = true, nil
		case w.text.Type == "jump" || w.text.Type == "offline":
			p.waiting = nil
		case w.text.Type != "":
		case p.initing:
			p.initing, p.init = false, true
		case p == shown:
			v.show(w.data)
		case p.init:
			if len(p.waiting) == 0 {
				p.since = time.Now()
			}
			p.waiting = append(p.waiting, w.data)
		}
		if next != nil && len(next.waiting) > 0 && (shown == nil || v.joins(next.waiting) || time.Since(next.since) > overtake) {
			shown.close()
			shown, next = next, nil
			for _, data := range shown.waiting {
				v.show(data)
			}
			shown.waiting = nil
			v.mu.Lock()
			v.moves++
			v.mu.Unlock()
		}
	}
}

// address is a live URL without its ticket, which is another each time.
func address(url string) string {
	url, _, _ = strings.Cut(url, "?")
	return url
}

// joins reports whether fragments go on where the picture is, and have more of it.
func (v *follower) joins(fragments [][]byte) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	first := camtest.Stamps(fragments[0])
	last := camtest.Stamps(fragments[len(fragments)-1])
	return len(first) > 0 && first[0] <= v.last+1 && len(last) > 0 && last[len(last)-1] > v.last
}

func (v *follower) show(data []byte) {
	now := time.Now()
	v.mu.Lock()
	defer v.mu.Unlock()
	s := showing{at: now}
	for _, n := range camtest.Stamps(data) {
		if n <= v.last && len(v.shown) > 0 {
			continue // it was shown before the move
		}
		if len(v.shown) > 0 || s.pictures > 0 {
			s.missed += int(n - v.last - 1)
		}
		v.last, s.last = n, n
		s.pictures++
	}
	if s.pictures > 0 {
		v.missed += s.missed
		v.shown = append(v.shown, s)
	}
}

// sees reports whether pictures have come.
func (v *follower) sees() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.shown) > 0
}

// saw returns when the first picture came that the camera sent after since, and
// false when none has come yet.
func (v *follower) saw(src *source, since time.Time) (time.Time, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, s := range v.shown {
		if s.at.Before(since) {
			continue
		}
		if at, ok := src.sentAt(s.last); ok && at.After(since) {
			return s.at, true
		}
	}
	return time.Time{}, false
}

// counts returns how often the viewer went over to another worker, and how
// many pictures never came.
func (v *follower) counts() (moves, missed int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.moves, v.missed
}

// interruption returns the longest time between two messages with pictures that
// came between from and to, beyond the usual time, and what is usual: the median.
func (v *follower) interruption(from, to time.Time) (beyond, usual time.Duration, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	var gaps []time.Duration
	var worst time.Duration
	before := time.Time{}
	for _, s := range v.shown {
		if !before.IsZero() && !s.at.Before(from) && !before.After(to) {
			gaps = append(gaps, s.at.Sub(before))
		}
		before = s.at
	}
	if len(gaps) == 0 {
		return to.Sub(from), 0, errors.New("no picture came")
	}
	if before.Before(to) { // and none since
		gaps = append(gaps, to.Sub(before))
	}
	worst = slices.Max(gaps)
	slices.Sort(gaps)
	usual = percentile(gaps, 50)
	return max(worst-usual, 0), usual, nil
}
