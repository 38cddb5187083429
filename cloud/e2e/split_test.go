package e2e

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
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
	store   *objectStore // the NVR's embedded one, past every fault
	workers []*workerNode
	faults  bool
	args    []string
}

// splitOptions are what a split stack has beyond a plain one.
type splitOptions struct {
	stackOptions
	workers int // that are started with it
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
	t.Cleanup(func() { // before the workers, which would look for others to take its streams
		s.agent.signal(syscall.SIGTERM)
		select {
		case <-s.agent.done:
		case <-time.After(20 * time.Second): // the agent's own clean-up complains
		}
	})
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
	s.t.Cleanup(func() { w.signal(syscall.SIGCONT) })
	s.workers = append(s.workers, w)
	s.up(w)
	return w
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
func (s *splitStack) drained(w *workerNode, within time.Duration) {
	s.t.Helper()
	select {
	case <-w.done:
	case <-time.After(within):
		s.t.Fatalf("worker %s did not end within %v: %+v", w.id, within, s.workerList()[w.id])
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

	mu    sync.Mutex
	seen  map[string]string
	wrong []string
}

// watchBucket ends with t, and fails it when an object was changed or vanished.
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
	s.t.Cleanup(b.check(s.t))
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
	b.mu.Lock()
	defer b.mu.Unlock()
	for key, was := range b.seen {
		if is := now[key]; is != was {
			b.wrong = append(b.wrong, fmt.Sprintf("object %s was %s, and is %q", key, was, is))
		}
	}
	b.seen = now
}

// check returns what ends the watch and says what it saw.
func (b *bucketWatch) check(t testing.TB) func() {
	return func() {
		b.stop()
		<-b.done
		for _, w := range b.wrong {
			t.Error(w)
		}
	}
}
