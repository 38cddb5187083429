package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/wire"
)

// memory is documents that outlive commands.
type memory struct {
	mu   sync.Mutex
	docs map[string][]byte
	bad  bool
	put  func() // called before something is put
}

func (m *memory) Document(name string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.Clone(m.docs[name]), nil
}

func (m *memory) PutDocument(name string, data []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.put != nil {
		m.put()
	}
	if m.bad {
		return errors.New("worn out")
	}
	m.docs[name] = bytes.Clone(data)
	return nil
}

// desk is commands with a log of what they do.
type desk struct {
	*commands
	store   *memory
	unknown bool // what time it is
	wg      sync.WaitGroup
	end     context.CancelFunc

	mu      sync.Mutex
	did     []string
	answers []wire.CommandReply
	hold    chan struct{} // of "hold"
}

// newDesk is a run of the agent. It knows the command "do", and "hold" that
// waits, "fail" that fails and "say" that says much.
func newDesk(t *testing.T, store *memory) *desk {
	ctx, end := context.WithCancel(context.Background())
	d := &desk{store: store, end: end, hold: make(chan struct{})}
	d.commands = &commands{
		store: store, log: vmstest.Log(t),
		now: func() (time.Time, bool) { return time.Now(), !d.unknown },
		background: func(f func(context.Context)) {
			if ctx.Err() == nil {
				d.wg.Go(func() { f(ctx) })
			}
		},
		reply: func(r *wire.CommandReply) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.answers = append(d.answers, *r)
		},
	}
	do := func(result any, err error) commandFunc {
		return func(_ context.Context, m *wire.Command) (any, error) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.did = append(d.did, m.ID)
			return result, err
		}
	}
	d.kinds = map[wire.CommandKind]commandFunc{
		"do": do(map[string]int{"n": 1}, nil), "fail": do(nil, errors.New("the camera is on holiday")),
		"say": do(strings.Repeat("x", 5000), nil), "shout": do(strings.Repeat("x", wire.MaxResult), nil),
		"hold": func(ctx context.Context, m *wire.Command) (any, error) {
			if _, err := do(nil, nil)(ctx, m); err != nil {
				return nil, err
			}
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-d.hold:
				return nil, nil
			}
		},
	}
	d.load()
	return d
}

// stop ends the run of the agent.
func (d *desk) stop() {
	d.end()
	d.wg.Wait()
}

func (d *desk) send(id string, kind wire.CommandKind) {
	d.take(&wire.Command{ID: id, Deadline: time.Now().Add(time.Minute), Kind: kind})
}

// said returns the newest answer to a command and how many there were.
func (d *desk) said(id string) (last wire.CommandReply, n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, a := range d.answers {
		if a.ID == id {
			last = a
			n++
		}
	}
	return last, n
}

// count is how often a command was carried out.
func (d *desk) count(id string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for _, did := range d.did {
		if did == id {
			n++
		}
	}
	return n
}

func newMemory() *memory { return &memory{docs: make(map[string][]byte)} }

// TestCommandRunsOnce, however often it comes, in this run of the agent and in
// the next, and is answered each time.
func TestCommandRunsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		d := newDesk(t, store)
		for i := range 3 {
			d.send("a", "do")
			d.send("b", "fail")
			synctest.Wait()
			if r, n := d.said("a"); n != i+1 || !r.OK || string(r.Result) != `{"n":1}` {
				t.Errorf("answer %d of %d: %+v", i, n, r)
			}
			if r, n := d.said("b"); n != i+1 || r.OK || r.Problem != "the camera is on holiday" {
				t.Errorf("answer %d of %d: %+v", i, n, r)
			}
		}
		d.send("h", "hold")
		d.send("h", "hold")
		synctest.Wait()
		if _, n := d.said("h"); n != 0 {
			t.Errorf("%d answers before it is done", n)
		}
		close(d.hold)
		synctest.Wait()
		if r, n := d.said("h"); n != 1 || !r.OK {
			t.Errorf("%d answers: %+v", n, r)
		}
		if d.count("a") != 1 || d.count("b") != 1 || d.count("h") != 1 {
			t.Errorf("carried out: %v", d.did)
		}
		d.stop()

		d = newDesk(t, store)
		for _, id := range []string{"a", "b", "h"} {
			d.send(id, "do")
		}
		synctest.Wait()
		if len(d.did) != 0 {
			t.Errorf("done again after a restart: %v", d.did)
		}
		if r, _ := d.said("a"); !r.OK || string(r.Result) != `{"n":1}` {
			t.Errorf("after a restart: %+v", r)
		}
		if r, _ := d.said("b"); r.OK || r.Problem != "the camera is on holiday" {
			t.Errorf("after a restart: %+v", r)
		}
		d.stop()
	})
}

// TestIDIsOnFlashFirst: a restart between any two steps repeats nothing.
func TestIDIsOnFlashFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		d := newDesk(t, store)
		store.put = func() {
			if d.count("h") != 0 {
				t.Error("it was carried out before its id was on flash")
			}
		}
		d.send("h", "hold")
		store.mu.Lock()
		store.put = nil
		power := bytes.Clone(store.docs[docCommands]) // is cut here
		store.mu.Unlock()
		synctest.Wait()
		d.stop()
		if r, _ := d.said("h"); r.OK || !strings.Contains(r.Problem, "not done in time") {
			t.Errorf("at the end: %+v", r)
		}
		store.docs[docCommands] = power
		d = newDesk(t, store)
		d.send("h", "hold")
		synctest.Wait()
		if r, n := d.said("h"); n != 1 || r.OK || r.Problem != "The agent restarted while the command ran." || d.count("h") != 0 {
			t.Errorf("after the power cut: %+v", r)
		}
		d.stop()
	})
}

func TestCommandsAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, newMemory())
		late := func(id string, kind wire.CommandKind) {
			d.take(&wire.Command{ID: id, Deadline: time.Now().Add(-time.Second), Kind: kind})
		}
		late("late", "do")
		d.send("odd", "dance")
		for i := range parallelCommands + 1 {
			d.send(fmt.Sprintf("h%d", i), "hold")
		}
		synctest.Wait()
		for id, why := range map[string]string{"late": "too late", "odd": `"dance"`, fmt.Sprintf("h%d", parallelCommands): "too many"} {
			if r, n := d.said(id); n != 1 || r.OK || !strings.Contains(r.Problem, why) {
				t.Errorf("%s: %d answers, %+v", id, n, r)
			}
		}
		if len(d.did) != parallelCommands {
			t.Errorf("carried out: %v", d.did)
		}
		// One that was refused is no longer so when there is room.
		close(d.hold)
		synctest.Wait()
		d.send(fmt.Sprintf("h%d", parallelCommands), "do")
		// A hub that does not know the time obeys, and does not take for ever.
		d.unknown = true
		late("old", "do")
		d.hold = make(chan struct{})
		late("long", "hold")
		time.Sleep(unknownCommand + time.Second)
		if d.count("h16") != 1 || d.count("old") != 1 {
			t.Errorf("carried out: %v", d.did)
		}
		if r, _ := d.said("long"); r.OK || !strings.Contains(r.Problem, "not done in time") {
			t.Errorf("after a minute: %+v", r)
		}
		d.stop()
	})
}

// TestCommandEndsWithItsDeadline.
func TestCommandEndsWithItsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, newMemory())
		d.send("h", "hold")
		time.Sleep(time.Minute + time.Millisecond)
		if r, n := d.said("h"); n != 1 || r.OK {
			t.Errorf("%d answers: %+v", n, r)
		}
		d.stop()
	})
}

// TestManyCommands: what is kept is bounded, and what is still kept is not done
// again.
func TestManyCommands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		d := newDesk(t, store)
		for i := range 2 * keptCommands {
			kind := wire.CommandKind("do")
			if i%50 == 0 {
				kind = "say"
			}
			d.send(fmt.Sprintf("cmd_%016d", i), kind)
			synctest.Wait()
		}
		d.send("shout", "shout")
		synctest.Wait()
		if r, _ := d.said("shout"); r.OK || !strings.Contains(r.Problem, "longer than") {
			t.Errorf("a result that no message can carry: OK %t, %.100s", r.OK, r.Problem)
		}
		if n := len(store.docs[docCommands]); n > 40<<10 || !json.Valid(store.docs[docCommands]) {
			t.Errorf("%d bytes on flash", n)
		}
		if r, _ := d.said("cmd_0000000000000500"); !r.OK || len(r.Result) < 5000 {
			t.Errorf("in this run: %d bytes", len(r.Result))
		}
		d.stop()
		d = newDesk(t, store)
		for i := keptCommands + 1; i < 2*keptCommands; i++ {
			d.send(fmt.Sprintf("cmd_%016d", i), "do")
		}
		synctest.Wait()
		if len(d.did) != 0 {
			t.Errorf("%d done again", len(d.did))
		}
		if r, _ := d.said("cmd_0000000000000450"); !r.OK || r.Result != nil || !strings.Contains(r.Problem, "has not kept the result") {
			t.Errorf("a result that was too long to be kept: %+v", r)
		}
		if r, _ := d.said("cmd_0000000000000511"); !r.OK || string(r.Result) != `{"n":1}` {
			t.Errorf("a short result: %+v", r)
		}
		d.stop()
	})
}

// TestCommandsOnWornFlash: a hub whose flash takes nothing still has a doctor.
func TestCommandsOnWornFlash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		store.bad = true
		store.docs[docCommands] = []byte("noise")
		d := newDesk(t, store)
		for range 2 {
			d.send("a", "do")
			synctest.Wait()
		}
		if r, n := d.said("a"); n != 2 || !r.OK || d.count("a") != 1 {
			t.Errorf("%d answers, %+v", n, r)
		}
		d.stop()
	})
}
