package e2e

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest/chaos"
)

// splitStack is a stack whose workers are processes of their own, and so many as
// are started: what the stack calls the cloud is the NVR.
type splitStack struct {
	*stack
	hubs    []*stack     // the same cloud, each with a hub of its own; the first is the stack itself
	store   *objectStore // the NVR's embedded one, past every fault
	workers []*workerNode
	faults  bool
	args    []string
	ended   sync.Once
}

// splitOptions are what a split stack has beyond a plain one.
type splitOptions struct {
	stackOptions
	workers int // that are started with it
	hubs    int // 1 by default
	// faults: a chaos proxy stands between each worker and the NVR, the store and
	// the hubs.
	faults     bool
	workerArgs []string
}

// workerNode is one worker.
type workerNode struct {
	*program
	id  vms.WorkerID
	url string // past every fault

	// nil without faults.
	nvr, bucket, hubs *chaos.Proxy
}

func startSplit(t testing.TB, o splitOptions) *splitStack {
	t.Helper()
	s3 := freePort(t)
	o.cloudArgs = append([]string{"-roles", "api,nvr", "-s3-listen", s3}, o.cloudArgs...)
	s := &splitStack{stack: startStack(t, o.stackOptions), faults: o.faults, args: o.workerArgs}
	s.store = &objectStore{bucket: "vms-recordings", url: "http://" + s3, key: s.secret("s3-access-key"), secret: s.secret("s3-secret-key")}
	s.store.connect(t)
	s.hubs = []*stack{s.stack}
	for i := 1; i < o.hubs; i++ {
		hub := &stack{
			t: t, data: s.data, url: s.url, token: s.token, cloud: s.cloud, recording: s.recording,
			hubDir: filepath.Join(s.data, "hub-"+strconv.Itoa(i+1)),
		}
		hub.addHub(o.stackOptions, s.url)
		s.hubs = append(s.hubs, hub)
	}
	for range o.workers {
		s.addWorker()
	}
	return s
}

// addWorker starts one more worker.
func (s *splitStack) addWorker() *workerNode {
	s.t.Helper()
	n := len(s.workers) + 1
	w := &workerNode{id: vms.WorkerID(fmt.Sprintf("w%d", n))}
	address, store, nvr := freePort(s.t), strings.TrimPrefix(s.store.url, "http://"), strings.TrimPrefix(s.url, "http://")
	w.url = "http://" + address
	public := address
	if s.faults {
		w.nvr, w.bucket, w.hubs = chaos.New(s.t, nvr), chaos.New(s.t, store), chaos.New(s.t, address)
		nvr, store, public = w.nvr.Addr(), w.bucket.Addr(), w.hubs.Addr()
	}
	args := append([]string{
		"-roles", "worker", "-worker-id", string(w.id), "-data", s.data, "-worker-dir", filepath.Join(s.t.TempDir(), "worker"),
		"-nvr-url", "ws://" + nvr + "/workers/v1", "-s3-url", "http://" + store,
		"-listen", address, "-public-url", "http://" + public,
	}, s.args...)
	w.program = startProgram(s.t, "vms-cloud", nil, args...)
	s.workers = append(s.workers, w)
	s.t.Cleanup(s.endAll) // before anything else ends
	s.up(w)
	return w
}

// endAll ends the hubs, then the workers, which would look for others to take
// what the hubs have.
func (s *splitStack) endAll() {
	s.ended.Do(func() {
		for _, h := range s.hubs {
			h.agent.signal(syscall.SIGTERM)
		}
		for _, h := range s.hubs {
			within(h.agent, 20*time.Second) // else the agent's own clean-up complains
		}
		for _, w := range s.workers {
			w.signal(syscall.SIGCONT)
			w.signal(syscall.SIGTERM)
		}
		for _, w := range s.workers {
			if !within(w.program, 3*time.Second) {
				w.signal(syscall.SIGTERM) // what a test that failed has left is not waited for
			}
		}
	})
}

// within reports whether a program ends in time.
func within(p *program, d time.Duration) bool {
	select {
	case <-p.done:
		return true
	case <-time.After(d):
		return false
	}
}

// up waits until a worker takes streams.
func (s *splitStack) up(w *workerNode) {
	s.t.Helper()
	s.eventually(20*time.Second, fmt.Sprintf("worker %s is up", w.id), func() bool {
		resp, err := http.Get(w.url + "/readyz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK && s.workerList()[w.id].State == "up"
	})
}

// again starts a worker whose process has ended.
func (s *splitStack) again(w *workerNode) {
	s.t.Helper()
	w.start()
	s.up(w)
}

// drained waits until a worker that was told to drain has ended as promised.
func (s *splitStack) drained(w *workerNode, limit time.Duration) {
	s.t.Helper()
	if !within(w.program, limit) {
		s.t.Fatalf("worker %s did not end within %v: %+v", w.id, limit, s.workerList()[w.id])
	}
	if code := w.cmd.ProcessState.ExitCode(); code != 0 {
		text, _ := w.out.get()
		s.t.Errorf("worker %s ended with status %d, want 0\n%s", w.id, code, text)
	}
}

// workerView is a worker as the API shows it.
type workerView struct {
	ID       vms.WorkerID `json:"id"`
	Instance vms.Instance `json:"instance"`
	State    string       `json:"state"`
	Version  string       `json:"version"`
	Assigned int          `json:"assigned"`
	Load     struct {
		Streams int `json:"streams"`
		Lanes   int `json:"lanes"`
	} `json:"load"`
}

// workerList is all workers that the NVR knows; none while it does not answer.
func (s *stack) workerList() map[vms.WorkerID]workerView {
	var list struct {
		Workers []workerView `json:"workers"`
	}
	if s.try("GET", "/workers", nil, &list) != nil {
		return nil
	}
	out := make(map[vms.WorkerID]workerView)
	for _, w := range list.Workers {
		out[w.ID] = w
	}
	return out
}

// channelView is a channel as the API shows it.
type channelView struct {
	ID      vms.ChannelID `json:"id"`
	State   string        `json:"state"`
	Problem string        `json:"problem"`
	Worker  vms.WorkerID  `json:"worker"`
}

// channelList is all channels, none while the NVR does not answer.
func (s *stack) channelList() map[vms.ChannelID]channelView {
	var list struct {
		Channels []channelView `json:"channels"`
	}
	if s.try("GET", "/channels?limit=1000", nil, &list) != nil {
		return nil
	}
	out := make(map[vms.ChannelID]channelView)
	for _, c := range list.Channels {
		out[c.ID] = c
	}
	return out
}

// spreadEvenly waits until every worker has its share of the streams.
func (s *splitStack) spreadEvenly(streams int, within time.Duration) {
	s.t.Helper()
	share := streams / len(s.workers)
	s.eventuallyAt(200*time.Millisecond, within, fmt.Sprintf("each worker has %d streams", share), func() bool {
		list := s.workerList()
		for _, w := range s.workers {
			if a := list[w.id].Assigned; a < share || a > share+1 {
				return false
			}
		}
		return true
	})
}

// bucketWatch looks at the recordings in a bucket again and again: an object
// that is there stays what it is.
type bucketWatch struct {
	stop context.CancelFunc
	done chan struct{}

	// Of its goroutine, until done.
	seen  map[string]string
	wrong []string
}

// watchBucket begins a watch that ends with t at the latest.
func (s *splitStack) watchBucket(every time.Duration) *bucketWatch {
	ctx, stop := context.WithCancel(context.Background())
	b := &bucketWatch{stop: stop, done: make(chan struct{}), seen: make(map[string]string)}
	go func() {
		defer close(b.done)
		for ctx.Err() == nil {
			b.look(ctx, s.store)
			select {
			case <-time.After(every):
			case <-ctx.Done():
			}
		}
	}()
	s.t.Cleanup(func() { b.end() })
	return b
}

func (b *bucketWatch) look(ctx context.Context, store *objectStore) {
	now := make(map[string]string)
	for o, err := range store.client.List(ctx, "recordings/", "") {
		if err != nil {
			return // the next look sees it
		}
		now[o.Key] = fmt.Sprintf("%d bytes, written at %s", o.Size, o.Modified.Format(time.RFC3339Nano))
	}
	for key, was := range b.seen {
		if is := now[key]; is != was {
			b.wrong = append(b.wrong, fmt.Sprintf("object %s was %s, and is %q", key, was, is))
		}
	}
	b.seen = now
}

// end ends the watch, and returns what it saw of objects that were changed or
// vanished.
func (b *bucketWatch) end() []string {
	b.stop()
	<-b.done
	return b.wrong
}
