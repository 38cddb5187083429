package nvr_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/cloud/nvr/nvrtest"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// sentCommands is what was sent over MQTT.
type sentCommands struct {
	mu    sync.Mutex
	sent  []wire.Command
	times []time.Duration // since the first
	begin time.Time
	err   error
	hears func(n int, hub vms.HubID, c *wire.Command)
}

func (s *sentCommands) send(hub vms.HubID, c *wire.Command) error {
	s.mu.Lock()
	if len(s.sent) == 0 {
		s.begin = time.Now()
	}
	s.sent, s.times = append(s.sent, *c), append(s.times, time.Since(s.begin))
	n, err, hears := len(s.sent), s.err, s.hears
	s.mu.Unlock()
	if hears != nil {
		hears(n, hub, c)
	}
	return err
}

// commandRig is an NVR with a hub that is there by MQTT.
func commandRig(t *testing.T) (*nvrtest.World, vms.HubID, *sentCommands) {
	w := nvrtest.New(t, func(c *nvr.Config) { c.Clock = time.Now })
	hub, _ := w.Hub(t, acct)
	s := &sentCommands{}
	w.SetCommander(s.send)
	w.Reported(t.Context(), &wire.Reported{Hub: hub, Boot: "boot_1", Online: true, Serial: 1})
	return w, hub, s
}

func TestCommandIsSentUntilItIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, hub, s := commandRig(t)
		s.err = errors.New("the broker is away") // it is tried again all the same
		s.hears = func(n int, hub vms.HubID, c *wire.Command) {
			if n < 3 {
				w.CommandReplied(&wire.CommandReply{ID: c.ID, OK: true}, "hub_other") // nobody answers for another
				w.CommandReplied(&wire.CommandReply{ID: "cmd_other", OK: true}, hub)
				return
			}
			for range 3 { // once per time that it heard it
				w.CommandReplied(&wire.CommandReply{ID: c.ID, Problem: "no", Result: json.RawMessage(`[1]`)}, hub)
			}
		}
		begin := time.Now()
		r, err := w.Command(t.Context(), acct, hub, wire.Command{Kind: wire.CommandDoctor}, 10*time.Second)
		if err != nil || r.OK || r.Problem != "no" || string(r.Result) != "[1]" || time.Since(begin) != 4*time.Second {
			t.Errorf("Command = %+v, %v after %s", r, err, time.Since(begin))
		}
		first := s.sent[0]
		if first.ID == "" || first.Kind != wire.CommandDoctor || !first.Deadline.Equal(begin.UTC().Truncate(time.Microsecond).Add(10*time.Second)) {
			t.Errorf("sent %+v", first)
		}
		if _, err := wire.EncodeSession(&first); err != nil {
			t.Errorf("not valid: %v", err)
		}
		for i, c := range s.sent {
			if c.ID != first.ID || s.times[i] != time.Duration(i)*2*time.Second {
				t.Errorf("sent %+v after %s", c, s.times[i])
			}
		}
		w.CommandReplied(&wire.CommandReply{ID: first.ID, OK: true}, hub) // late: nobody waits
		time.Sleep(time.Minute)
		if len(s.sent) != 3 {
			t.Errorf("sent %d times, want no more after the answer", len(s.sent))
		}
	})
}

func TestCommandThatIsNotAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, hub, s := commandRig(t)
		begin := time.Now()
		_, err := w.Command(t.Context(), acct, hub, wire.Command{Kind: wire.CommandEvent}, 5*time.Second)
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != 5*time.Second || len(s.sent) != 3 {
			t.Errorf("Command = %v after %s, sent %d times", err, time.Since(begin), len(s.sent))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err = w.Command(ctx, acct, hub, wire.Command{Kind: wire.CommandEvent}, 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Command of a caller who went away = %v", err)
		}
		w.Reported(t.Context(), &wire.Reported{Hub: hub, Boot: "boot_1"})
		if _, err = w.Command(t.Context(), acct, hub, wire.Command{Kind: wire.CommandEvent}, 0); !errors.Is(err, vms.ErrConflict) || !strings.Contains(err.Error(), "offline") {
			t.Errorf("Command to a hub that is offline = %v, want ErrConflict", err)
		}
		// By its control line it hears all the same; the broker is not bothered.
		before := len(s.sent)
		l := newLink()
		l.hears = func(m wire.SessionMessage) {
			if c, ok := m.(*wire.Command); ok {
				w.CommandReplied(&wire.CommandReply{ID: c.ID, OK: true}, hub)
			}
		}
		w.HubConnected(nvr.Session{Account: acct, Hub: hub}, "boot_1", l)
		if r, err := w.Command(t.Context(), acct, hub, wire.Command{Kind: wire.CommandDrain}, 0); err != nil || !r.OK || len(s.sent) != before {
			t.Errorf("Command over the control line = %+v, %v, %d sent over MQTT", r, err, len(s.sent)-before)
		}
	})
}

func TestSnapshotIsShownAndSwept(t *testing.T) {
	w := nvrtest.New(t, nil)
	hub, _ := w.Hub(t, acct)
	c := w.Channel(t, acct, hub)
	var key string
	l := newLink()
	l.hears = func(m wire.SessionMessage) {
		cmd := m.(*wire.Command)
		key = strings.TrimSuffix(strings.TrimPrefix(cmd.UploadURL, "http://bucket.invalid/"), "?put")
		w.Objects.Put(vms.Recording{Key: key})
		w.CommandReplied(&wire.CommandReply{ID: cmd.ID, OK: true, Result: json.RawMessage(`{"bytes":7}`)}, hub)
	}
	w.HubConnected(nvr.Session{Account: acct, Hub: hub}, "boot_1", l)
	r, err := w.Command(t.Context(), acct, hub, wire.Command{Kind: wire.CommandSnapshot, Channel: c.ID}, 0)
	if err != nil || !strings.HasPrefix(key, "snapshots/"+string(c.ID)+"/2026-11-03/12-00-00.123456Z.cmd_") || !strings.HasSuffix(key, ".jpg") {
		t.Fatalf("Command = %+v, %v, uploads to %q", r, err, key)
	}
	want := `{"bytes":7,"url":"http://bucket.invalid/` + key + `","url_expires_at":"2026-11-03T13:00:00.123Z"}`
	if string(r.Result) != want {
		t.Errorf("result %s, want %s", r.Result, want)
	}
	if err := w.ObjectCreated(t.Context(), key); err != nil { // the bucket tells of it too
		t.Errorf("ObjectCreated = %v", err)
	}
	for _, tt := range []struct {
		after time.Duration
		left  int
	}{{time.Hour, 1}, {5 * time.Minute, 0}} {
		w.Clock.Add(tt.after)
		if err := w.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if keys := w.Objects.Keys(); len(keys) != tt.left {
			t.Errorf("%s later there are %v", tt.after, keys)
		}
	}
}

func TestCommandsAreChecked(t *testing.T) {
	w := nvrtest.New(t, nil)
	hub, _ := w.Hub(t, acct)
	c := w.Channel(t, acct, hub)
	elsewhere := w.Channel(t, acct, "")
	theirHub, _ := w.Hub(t, "other")
	theirs, err := w.CreateChannel(t.Context(), "other", nvr.ChannelSpec{Name: "x", Hub: theirHub, Camera: vms.Camera{Host: "10.0.0.8"}})
	if err != nil {
		t.Fatal(err)
	}
	online(w, hub)
	num := func(n int) *int { return &n }
	for _, tt := range []struct {
		field string
		c     wire.Command
		wait  time.Duration
	}{
		{"kind", wire.Command{Kind: "reboot"}, time.Second},
		{"kind", wire.Command{}, 0},
		{"timeout_s", wire.Command{Kind: wire.CommandDoctor}, time.Hour},
		{"timeout_s", wire.Command{Kind: wire.CommandDoctor}, -1},
		{"channel_id", wire.Command{Kind: wire.CommandSnapshot}, 0},
		{"channel_id", wire.Command{Kind: wire.CommandRestartStream}, 0},
		{"channel_id", wire.Command{Kind: wire.CommandEvent, Channel: "ch_none"}, 0},
		{"channel_id", wire.Command{Kind: wire.CommandEvent, Channel: elsewhere.ID}, 0},
		{"channel_id", wire.Command{Kind: wire.CommandSnapshot, Channel: theirs.ID}, 0},
		{"pre_roll_s", wire.Command{Kind: wire.CommandDrain, PostRoll: num(5)}, 0},
		{"pre_roll_s", wire.Command{Kind: wire.CommandEvent, PreRoll: num(61)}, 0},
		{"post_roll_s", wire.Command{Kind: wire.CommandEvent, Channel: c.ID, PostRoll: num(0)}, 0},
	} {
		_, err := w.Command(t.Context(), acct, hub, tt.c, tt.wait)
		var fe *nvr.FieldError
		if !errors.As(err, &fe) || fe.Field != tt.field {
			t.Errorf("Command(%+v) = %v, want an error of %s", tt.c, err, tt.field)
		}
	}
}

func TestCommandsThatWaitAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, hub, _ := commandRig(t)
		var wg sync.WaitGroup
		var mu sync.Mutex
		refused := 0
		for range 20 {
			wg.Go(func() {
				_, err := w.Command(t.Context(), acct, hub, wire.Command{Kind: wire.CommandDoctor}, 0)
				mu.Lock()
				defer mu.Unlock()
				if errors.Is(err, vms.ErrUnavailable) {
					refused++
				}
			})
		}
		wg.Wait()
		if refused != 12 {
			t.Errorf("%d of 20 commands were refused, want 12", refused)
		}
		if _, err := w.Command(t.Context(), acct, hub, wire.Command{Kind: wire.CommandDoctor}, time.Second); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after the others = %v, want room again", err)
		}
	})
}
