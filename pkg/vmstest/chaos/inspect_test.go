package chaos

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/zipato/vms/pkg/vmstest"
)

// behind starts a proxy in front of an HTTP server.
func behind(t *testing.T, h http.Handler) (*Proxy, string) {
	t.Helper()
	srv := httptest.NewServer(h)
	p := New(t, strings.TrimPrefix(srv.URL, "http://"))
	// The server waits for its connections, which end with the proxy.
	t.Cleanup(func() { p.Close(); srv.Close() })
	return p, "http://" + p.Addr()
}

func TestCutPathCutsOnlyThat(t *testing.T) {
	vmstest.NoLeaks(t)
	hold := make(chan struct{})
	p, url := behind(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow/1" || r.URL.Path == "/fast/slow" {
			w.WriteHeader(http.StatusOK)
			w.(http.Flusher).Flush()
			select {
			case <-hold:
			case <-r.Context().Done():
			}
		}
		io.WriteString(w, "done")
	}))
	client := &http.Client{Transport: &http.Transport{}, Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
	get := func(path string) (*http.Response, error) { return client.Get(url + path) }
	read := func(resp *http.Response) error {
		defer resp.Body.Close()
		_, err := io.ReadAll(resp.Body)
		return err
	}
	cut, err := get("/slow/1")
	if err != nil {
		t.Fatal(err)
	}
	other, err := get("/fast/slow")
	if err != nil {
		t.Fatal(err)
	}
	p.CutPath("/slow/")
	if err := read(cut); err == nil {
		t.Error("an open connection to the path was not cut")
	}
	if resp, err := get("/slow/2?x=1"); err == nil {
		resp.Body.Close()
		t.Error("a new request for the path went through")
	}
	if resp, err := get("/fast"); err != nil || read(resp) != nil {
		t.Errorf("another path: %v", err)
	}
	// On a connection that asked for something else before, too.
	if resp, err := get("/slow/3"); err == nil {
		resp.Body.Close()
		t.Error("a second request of a connection went through")
	}
	close(hold)
	if err := read(other); err != nil {
		t.Errorf("a connection to another path: %v", err)
	}
	p.Restore()
	if resp, err := get("/slow/4"); err != nil || read(resp) != nil {
		t.Errorf("after Restore: %v", err)
	}
	if n := p.Requests("/slow/"); n < 4 || p.Requests("/fast") < 2 {
		t.Errorf("%d requests for the path counted", n)
	}
}

func TestDamageFlipsOneBitOfTheNextMessage(t *testing.T) {
	vmstest.NoLeaks(t)
	type message struct {
		typ  websocket.MessageType
		data []byte
	}
	got := make(chan message, 10)
	p, url := behind(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("proof") == "" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.CloseNow()
		c.SetReadLimit(-1)
		for {
			typ, data, err := c.Read(context.Background())
			if err != nil {
				return
			}
			got <- message{typ, data}
		}
	}))
	// A refused upgrade before the one that is taken, on the same connection.
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	options := &websocket.DialOptions{HTTPClient: client, CompressionMode: websocket.CompressionDisabled}
	if c, _, err := websocket.Dial(t.Context(), url+"/push", options); err == nil {
		c.CloseNow()
		t.Fatal("not refused")
	}
	c, _, err := websocket.Dial(t.Context(), url+"/push?proof=1", options)
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	large := bytes.Repeat([]byte{7}, 70_000)
	// arrive takes so many messages, and wants one bit flipped in one of them.
	arrive := func(n, damaged int) {
		t.Helper()
		for i := range n {
			m := <-got
			diff := 0
			for _, b := range m.data {
				if b != 7 {
					diff++
					if b != 6 {
						t.Errorf("message %d: byte %d, want one bit flipped", i, b)
					}
				}
			}
			if want := map[int]int{damaged: 1}[i]; diff != want {
				t.Errorf("message %d of %d bytes: %d bytes differ, want %d", i, len(m.data), diff, want)
			}
		}
	}
	p.Damage(1000)
	for _, m := range []message{
		{websocket.MessageText, large}, {websocket.MessageBinary, large[:999]}, {websocket.MessageBinary, nil},
		{websocket.MessageBinary, large}, {websocket.MessageBinary, large},
	} {
		if err := c.Write(t.Context(), m.typ, m.data); err != nil {
			t.Fatal(err)
		}
	}
	arrive(5, 3)
	// One in two frames: a head and a body, as the agent sends chunks.
	p.Damage(1000)
	w, err := c.Writer(t.Context(), websocket.MessageBinary)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range [][]byte{large[:64], large[:5000]} {
		if _, err := w.Write(part); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	arrive(1, 0)
	if p.Damaged() != 2 {
		t.Errorf("%d messages damaged", p.Damaged())
	}
}
