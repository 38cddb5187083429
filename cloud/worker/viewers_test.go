package worker_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
)

// look opens the live picture of a channel as a browser does.
func (r *rig) look(ln *pipes, ch vms.ChannelID) *websocket.Conn {
	r.t.Helper()
	c := r.dialLive(ln, ch)
	r.wg.Go(func() { // takes what comes, and answers pings
		for {
			if _, _, err := c.Read(context.Background()); err != nil {
				return
			}
		}
	})
	return c
}

func (r *rig) dialLive(ln *pipes, ch vms.ChannelID) *websocket.Conn {
	r.t.Helper()
	ticket, err := r.signer.SignView(token.View{Worker: "w1", Channel: ch, Expires: time.Now().Add(time.Hour)})
	if err != nil {
		r.t.Fatal(err)
	}
	tr := &http.Transport{DialContext: ln.dial, DisableKeepAlives: true}
	c, _, err := websocket.Dial(r.t.Context(), "ws://worker/live?ticket="+ticket, &websocket.DialOptions{HTTPClient: &http.Client{Transport: tr}})
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// The NVR learns within a second that viewers came or went, again while they stay,
// and what it did not hear.
func TestTheNVRKnowsWhoLooksOn(t *testing.T) {
	inBubble(t, func(r *rig) {
		ln := newPipes()
		srv := &http.Server{Handler: r.w.LiveHandler(), ReadHeaderTimeout: time.Minute}
		r.wg.Go(func() { _ = srv.Serve(ln) })
		defer srv.Close()
		expect := func(after time.Duration, want ...string) {
			r.t.Helper()
			time.Sleep(after)
			synctest.Wait()
			got := r.nvr.heardViewers()
			if slices.Sort(got); !slices.Equal(got, want) {
				r.t.Errorf("told %q, want %q", got, want)
			}
		}
		expect(time.Minute)
		first := r.look(ln, "a")
		expect(time.Second, "a 1")
		second, other := r.look(ln, "a"), r.look(ln, "b")
		expect(time.Second, "a 2", "b 1")
		expect(8 * time.Second)
		expect(2*time.Second, "a 2", "b 1")
		r.nvr.setFail(errors.New("away"))
		_ = first.CloseNow()
		expect(2*time.Second, "a 1", "a 1")
		r.nvr.setFail(nil)
		expect(time.Second, "a 1")
		_ = second.CloseNow()
		expect(time.Second, "a 0")
		_ = other.CloseNow()
		expect(time.Second, "b 0")
		expect(time.Hour)
	})
}

// TestWhoComesLateSeesTheLastGOP: it is read back from tmpfs, as it came, and
// goes on without a seam.
func TestWhoComesLateSeesTheLastGOP(t *testing.T) {
	inBubble(t, func(r *rig) {
		ln := newPipes()
		srv := &http.Server{Handler: r.w.LiveHandler(), ReadHeaderTimeout: time.Minute}
		r.wg.Go(func() { _ = srv.Serve(ln) })
		defer srv.Close()
		cs := tape(r.t, 1, 1, 30, 3000)
		a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		a.init(1, 1)
		a.chunks(cs[:13]...)
		synctest.Wait()
		expect := func(c *websocket.Conn, want ...vms.Chunk) {
			r.t.Helper()
			synctest.Wait()
			c.SetReadLimit(-1)
			ctx, cancel := context.WithTimeout(r.t.Context(), 10*time.Second)
			defer cancel()
			for i := range want {
				typ, data, err := c.Read(ctx)
				if err == nil && typ == websocket.MessageText { // init
					if _, data, err = c.Read(ctx); err == nil && bytes.Equal(data, testInit(r.t).Segment) {
						_, data, err = c.Read(ctx)
					}
				}
				if err != nil || !bytes.Equal(data, want[i].Payload) {
					r.t.Fatalf("a viewer got %d bytes, %v, instead of chunk %d", len(data), err, want[i].Seq)
				}
			}
		}
		first := r.dialLive(ln, "ch")
		expect(first, cs[10:13]...)
		a.chunks(cs[13:17]...)
		expect(first, cs[13:17]...)
		second := r.dialLive(ln, "ch")
		expect(second, cs[15:17]...)
		_, _ = first.CloseNow(), second.CloseNow()
		time.Sleep(time.Second)
		a.chunks(cs[17:23]...) // over the end of a recording
		synctest.Wait()
		third := r.dialLive(ln, "ch")
		expect(third, cs[20:23]...)
		_ = third.CloseNow()
		a.hangUp()
	})
}
