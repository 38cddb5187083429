package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/objstore"
	"github.com/zipato/vms/cloud/worker/segment"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/vmstest/camtest"
	"github.com/zipato/vms/pkg/vmstest/chaos"
	"github.com/zipato/vms/pkg/wire"
)

// pushTap stands between hubs and a cloud, passes on every byte as it is, and
// remembers the chunks that go by: from them a worker that nothing happens to
// would have made what has to be in the store.
type pushTap struct {
	target *url.URL
	proxy  httputil.ReverseProxy

	mu     sync.Mutex
	inits  map[uint32]vms.Init
	chunks map[uint64]vms.Chunk // by number; of one stream and one epoch
	epoch  vms.Epoch
	sent   int // chunks that went by, each as often as it was sent
	wrong  []string
	first  chan struct{} // gets one for each chunk that begins a recording, if somebody waits
}

// tapPush starts a tap; its stack option is front.
func tapPush(t testing.TB) *pushTap {
	t.Helper()
	p := &pushTap{inits: map[uint32]vms.Init{}, chunks: map[uint64]vms.Chunk{}, first: make(chan struct{}, 1)}
	p.proxy = httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(p.target)
			r.Out.Host = r.In.Host // hubs sign it
		},
		Transport:    &http.Transport{DisableCompression: true},
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }, // the cloud is dead
		ModifyResponse: func(resp *http.Response) error {
			body, ok := resp.Body.(io.ReadWriteCloser)
			if ok && strings.HasPrefix(resp.Request.URL.Path, "/push/") {
				resp.Body = &tapped{ReadWriteCloser: body, tap: p}
			}
			return nil
		},
	}
	return p
}

// front puts the tap before an address.
func (p *pushTap) front(t testing.TB) func(address string) string {
	return func(address string) string {
		p.target = &url.URL{Scheme: "http", Host: address}
		srv := httptest.NewServer(&p.proxy)
		t.Cleanup(srv.Close)
		t.Cleanup(srv.CloseClientConnections)
		return strings.TrimPrefix(srv.URL, "http://")
	}
}

// tapped is one WebSocket as the proxy sees it: what is written goes to the cloud.
type tapped struct {
	io.ReadWriteCloser
	tap *pushTap

	raw     []byte // of the frame that is incomplete
	message []byte // unmasked, of the message that is
	text    bool
}

func (c *tapped) Write(b []byte) (int, error) {
	n, err := c.ReadWriteCloser.Write(b)
	c.raw = append(c.raw, b[:n]...)
	for c.frame() {
	}
	return n, err
}

// frame takes one whole frame (RFC 6455, section 5.2) from raw, or returns false.
func (c *tapped) frame() bool {
	h := c.raw
	if len(h) < 2 {
		return false
	}
	at, size := 2, uint64(h[1]&0x7f)
	switch size {
	case 126:
		if at = 4; len(h) < at {
			return false
		}
		size = uint64(binary.BigEndian.Uint16(h[2:]))
	case 127:
		if at = 10; len(h) < at {
			return false
		}
		size = binary.BigEndian.Uint64(h[2:])
	}
	at += 4 // the mask, which a client's frames have
	if uint64(len(h)) < uint64(at)+size {
		return false
	}
	mask, body := h[at-4:at], h[at:at+int(size)]
	const continuation, text, binaryData = 0, 1, 2
	switch opcode := h[0] & 0x0f; opcode {
	case text, binaryData, continuation:
		if opcode != continuation {
			c.message, c.text = nil, opcode == text
		}
		for i, b := range body {
			c.message = append(c.message, b^mask[i%4])
		}
		if h[0]&0x80 != 0 {
			c.tap.pushed(c.text, c.message)
			c.message = nil
		}
	}
	c.raw = append(c.raw[:0], h[at+int(size):]...)
	return true
}

// pushed looks at a message of a hub.
func (p *pushTap) pushed(text bool, msg []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if text {
		m, err := wire.DecodePush(msg)
		if err != nil {
			p.wrong = append(p.wrong, err.Error())
		}
		if m, ok := m.(*wire.InitMessage); ok {
			p.inits[m.ID] = m.Init()
		}
		return
	}
	c, err := wire.DecodeChunk(msg)
	if err != nil {
		p.wrong = append(p.wrong, err.Error())
		return
	}
	if c.Flags.Has(vms.FlagPreview) {
		return // shown, and not stored
	}
	if p.epoch == 0 {
		p.epoch = c.Epoch
	}
	p.sent++
	have, again := p.chunks[c.Seq]
	switch {
	case c.Epoch != p.epoch:
		p.wrong = append(p.wrong, fmt.Sprintf("chunk %d is of epoch %s, the others are of %s", c.Seq, c.Epoch, p.epoch))
	case again && !bytes.Equal(wire.EncodeChunk(&have), msg):
		p.wrong = append(p.wrong, fmt.Sprintf("chunk %d was sent again with other bytes", c.Seq))
	}
	p.chunks[c.Seq] = c
	if c.Flags.Has(vms.FlagFirst) {
		select {
		case p.first <- struct{}{}:
		default:
		}
	}
}

// count is how many chunks went by until now.
func (p *pushTap) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sent
}

// resent is how many chunks went by, and how many of them had gone by before.
func (p *pushTap) resent() (chunks, again int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.chunks), p.sent - len(p.chunks)
}

// object is what should be in the store.
type object struct {
	vms.Recording
	data []byte
}

// objects makes of all chunks the recordings that a worker to which nothing
// happens would have made.
func (p *pushTap) objects(t testing.TB, ch vms.ChannelID) map[string]object {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.wrong {
		t.Error(w)
	}
	dir := t.TempDir()
	out := map[string]object{}
	var w *segment.Writer
	finish := func() {
		if w == nil {
			return
		}
		f, err := w.Finish()
		if err != nil {
			t.Fatal(err)
		}
		body, err := os.ReadFile(f.Path)
		if err != nil {
			t.Fatal(err)
		}
		out[f.Key] = object{f.Recording, append(f.Head, body...)}
	}
	for i, seq := range slices.Sorted(maps.Keys(p.chunks)) {
		c := p.chunks[seq]
		if seq != uint64(i+1) {
			t.Fatalf("chunk %d never went by", i+1)
		}
		var err error
		if c.Flags.Has(vms.FlagFirst) {
			finish()
			w, err = segment.Create(dir, ch, p.inits[c.Init], &c)
		} else {
			err = w.Append(&c)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	finish()
	return out
}

// wantObjects proves that the store holds these objects and no others, byte for
// byte, and that the rows say of them what they are.
func (o *objectStore) wantObjects(t testing.TB, ch vms.ChannelID, want map[string]object, tl timeline) {
	t.Helper()
	keys := slices.Sorted(maps.Keys(want))
	if have := o.keys(t, "recordings/"+string(ch)+"/"); !slices.Equal(have, keys) {
		t.Errorf("in the store are\n%s\nwithout a kill there would be\n%s", strings.Join(have, "\n"), strings.Join(keys, "\n"))
	}
	for i, key := range keys {
		w := want[key]
		body, err := o.client.Get(t.Context(), key, 0, -1)
		if err != nil {
			t.Errorf("%s: %v", key, err)
			continue
		}
		data, err := io.ReadAll(body)
		body.Close()
		if err != nil || !bytes.Equal(data, w.data) {
			t.Errorf("%s has %d bytes, without a kill %d, and they differ (%v)", key, len(data), len(w.data), err)
		}
		obj, err := o.client.Stat(t.Context(), key)
		if err != nil {
			t.Errorf("%s: %v", key, err)
			continue
		}
		meta, err := objstore.ParseRecording(key, obj)
		if err != nil || meta != w.Recording {
			t.Errorf("the metadata of %s are\n%+v, without a kill\n%+v (%v)", key, meta, w.Recording, err)
		}
		if i >= len(tl.Recordings) {
			t.Errorf("there is no row of %s", key)
			continue
		}
		row := tl.Recordings[i]
		same := func(a, b time.Time) bool { return a.Sub(b).Abs() <= time.Millisecond } // the API rounds
		if !same(row.Start, w.Start) || !same(row.End, w.End) || row.MediaMS != w.Media.Milliseconds() ||
			row.Bytes != w.Bytes || row.SHA256 != fmt.Sprintf("%x", w.SHA256) || row.Codecs != w.Codecs {
			t.Errorf("the row of %s is\n%+v, without a kill it were\n%+v", key, row, w.Recording)
		}
	}
}

// TestChaosWorkerKilled: the cloud dies by SIGKILL again and again, at moments
// of no choice and just as recordings end, also while it starts. What is in the
// store and in the index then is, byte for byte, what would be there had nothing
// happened, and nothing else is left anywhere.
func TestChaosWorkerKilled(t *testing.T) {
	t.Parallel()
	for _, k := range []struct {
		name             string
		embedded, rclone bool
	}{
		{"worker_killed", true, false}, // and its store with it
		{"worker_killed_store_elsewhere", false, false},
		{"worker_killed_rclone", false, true},
	} {
		if k.rclone && !fullChaos {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			report(t, k.name, chaosWorkerKilled(t, k.embedded, k.rclone))
		})
	}
}

func chaosWorkerKilled(t *testing.T, embedded, viaRclone bool) *audit {
	tap := tapPush(t)
	var store *objectStore
	var o rigOptions
	if embedded {
		address := freePort(t)
		store = &objectStore{bucket: "vms-recordings", url: "http://" + address}
		o.cloudArgs = []string{"-s3-listen", address}
	} else {
		store = newObjectStore(t)
		o.stackOptions = store.stack(store.url)
	}
	var calls *rcloneCalls
	if viaRclone {
		calls = newRcloneCalls(t)
		calls.use(&o.stackOptions)
	}
	o.front = tap.front(t)
	o.recording = 3 * time.Second
	r := newRig(t, o)
	if embedded {
		store.key, store.secret = r.secret("s3-access-key"), r.secret("s3-secret-key")
		store.connect(t)
	}
	for range times(50, 6) {
		r.untilKill(tap)
		r.cloud.kill()
		if r.rand.IntN(3) == 0 { // it stays away for a while
			r.lasts(time.Duration(r.rand.Int64N(int64(time.Second))))
		}
		r.cloud.start()
	}
	r.caughtUp(2 * time.Minute)
	r.reachable()
	a := r.finish(time.Minute, nil)
	tl := r.timeline(r.ch)
	store.wantObjects(t, r.ch, tap.objects(t, r.ch), tl)
	store.wantRows(t, r.ch, tl)
	r.wantTidy()
	if calls != nil {
		calls.check(t, len(tl.Recordings)/2, store.secret)
	}
	chunks, again := tap.resent()
	t.Logf("%d recordings of %d chunks, of which %d were sent again", len(tl.Recordings), chunks, again)
	return a
}

// TestRestartedWorkerFinishes: the cloud dies with recordings that are finished
// and one that is not, none of them stored, and the hub is gone for good. What
// was on tmpfs is stored when the cloud is back: nobody else has it.
func TestRestartedWorkerFinishes(t *testing.T) {
	t.Parallel()
	store := newObjectStore(t)
	way := chaos.New(t, strings.TrimPrefix(store.url, "http://"))
	tap := tapPush(t)
	o := rigOptions{stackOptions: store.stack("http://" + way.Addr())}
	o.front = tap.front(t)
	r := newRig(t, o)
	r.stores(1)
	way.Cut()
	known := len(r.timeline(r.ch).Recordings)
	for range 3 { // two recordings are whole now, and perhaps one that was on its way
		r.begins(tap)
	}
	r.lasts(r.recording * 6 / 10)
	r.agent.kill()
	r.cloud.kill()
	want := tap.objects(t, r.ch)
	keys := slices.Sorted(maps.Keys(want))
	last := keys[len(keys)-1] // of which only the beginning is there
	whole, open := want, want[last]
	delete(whole, last)
	way.Restore()
	r.cloud.start()
	back := time.Now()
	r.eventually(30*time.Second, "the finished recordings are stored", func() bool {
		tl, err := r.tryTimeline(r.ch)
		return err == nil && len(tl.Recordings) >= len(whole)
	})
	t.Logf("%d recordings that were finished were stored %v after the start, %d had been before", len(whole)-known, time.Since(back).Round(10*time.Millisecond), known)
	// The journal is a second behind, and what was on the wire did not arrive.
	const behind = 2 * time.Second
	var tl timeline
	r.eventually(90*time.Second, "what there is of the open recording is stored too", func() bool {
		var err error
		tl, err = r.tryTimeline(r.ch)
		return err == nil && len(tl.Recordings) > len(whole) && tl.Recordings[len(tl.Recordings)-1].End.After(open.End.Add(-behind))
	})
	t.Logf("the rest was stored %v after the start, up to %v before the end", time.Since(back).Round(10*time.Millisecond),
		open.End.Sub(tl.Recordings[len(tl.Recordings)-1].End))
	store.wantTold(t, tl)
	tl.Recordings = tl.Recordings[:len(whole)]
	store.wantObjects(t, r.ch, whole, tl)
}

// begins waits until the hub begins another recording.
func (r *rig) begins(tap *pushTap) {
	r.t.Helper()
	select { // one that went by before does not count
	case <-tap.first:
	default:
	}
	select {
	case <-tap.first:
	case <-time.After(4 * r.recording):
		r.t.Fatal("no recording begins")
	case <-r.t.Context().Done():
	}
}

// reachable waits until the hub hears the cloud: one whose cloud went away again
// and again takes its time, while the cloud that was killed calls it online still.
func (r *rig) reachable() {
	r.t.Helper()
	r.eventually(2*time.Minute, "the hub is connected to the MQTT broker", func() bool {
		var status struct {
			MQTT string `json:"mqtt"`
		}
		err := request("GET", r.agentURL+"/v1/status", r.lanKey, nil, &status)
		return err == nil && status.MQTT == "online"
	})
}

// TestStoreKilledInPut: the embedded store dies between the two steps in which
// an object appears, its metadata and its name. The next start finds the one
// without the other, and the key is as free as if nothing had been written.
func TestStoreKilledInPut(t *testing.T) {
	t.Parallel()
	store := newObjectStore(t)
	const key = "recordings/ch/x.mp4"
	body := []byte("what was under way")
	put := func() error {
		return store.client.Put(t.Context(), key, objstore.PutInput{
			Body: bytes.NewReader(body), Size: int64(len(body)), SHA256: sha256.Sum256(body), ContentType: objstore.RecordingType, IfAbsent: true,
		})
	}
	if err := put(); err != nil {
		t.Fatal(err)
	}
	store.process.kill()
	if err := os.Remove(filepath.Join(store.dir, "objects", store.bucket, filepath.FromSlash(key))); err != nil {
		t.Fatal(err)
	}
	store.process.start()
	limit := time.Now().Add(20 * time.Second)
	_, err := store.client.Stat(t.Context(), key)
	for ; errors.Is(err, vms.ErrUnavailable) && time.Now().Before(limit); _, err = store.client.Stat(t.Context(), key) {
		time.Sleep(50 * time.Millisecond) // the pace of asking
	}
	if !errors.Is(err, vms.ErrNotFound) {
		t.Errorf("Stat = %v, want ErrNotFound", err)
	}
	if err := put(); err != nil {
		t.Errorf("Put of what is not there = %v: it can never be stored", err)
	}
}

// secret reads a secret that the cloud made.
func (s *stack) secret(name string) string {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join(s.data, name))
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// untilKill lasts until the next moment of a kill: while the cloud starts and
// finds what the last kill left, at any moment once chunks come again, or as a
// recording ends, when it is closed, stored and told of within milliseconds.
func (r *rig) untilKill(tap *pushTap) {
	r.t.Helper()
	random := func(d time.Duration) time.Duration { return time.Duration(r.rand.Int64N(int64(d))) }
	how := r.rand.IntN(5)
	if how == 0 {
		r.lasts(random(400 * time.Millisecond))
		return
	}
	// A hub whose cloud goes away again and again takes its time, up to half a
	// minute. The full matrix has it.
	before, limit := tap.count(), time.Now().Add(span(time.Minute, 5*time.Second))
	for tap.count() == before {
		if r.lasts(20 * time.Millisecond); time.Now().After(limit) {
			return
		}
	}
	if how < 3 {
		r.lasts(random(3 * time.Second))
		return
	}
	r.begins(tap)
	r.lasts(random(60 * time.Millisecond))
}

// wantTidy fails if the worker's directory holds anything of a recording still.
func (r *rig) wantTidy() {
	r.t.Helper()
	var left []string
	r.eventually(10*time.Second, "nothing is left on the worker's disk", func() bool {
		left = nil
		err := filepath.WalkDir(filepath.Join(r.data, "worker"), func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			if info, err := e.Info(); err == nil && info.Size() > 0 {
				left = append(left, fmt.Sprintf("%s (%d bytes)", path, info.Size()))
			}
			return nil
		})
		return err == nil && len(left) == 0
	})
}

// metric reads one value of the cloud's /metrics.
func (s *stack) metric(name string) (float64, bool) {
	resp, err := http.Get(s.url + "/metrics")
	if err != nil {
		return 0, false
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			return v, err == nil
		}
	}
	return 0, false
}

// said counts the lines of the cloud's log that have all these words.
func (s *stack) said(words ...string) int {
	text, _ := s.cloud.out.get()
	n := 0
	for line := range strings.Lines(text) {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
			n++
		}
	}
	return n
}

// wantFull waits until the worker says that its directory is full, and proves
// that it takes nothing more once its credit is used up, while the hub keeps
// all that the camera sends.
func (r *rig) wantFull() {
	r.t.Helper()
	r.eventually(time.Minute, "the worker says that its directory is full", func() bool {
		v, ok := r.metric("vms_worker_tmpfs_full")
		return ok && v == 1
	})
	var since time.Time
	var first, last agentStream
	r.eventually(time.Minute, "the worker takes nothing more for 4 s", func() bool {
		var ok bool
		if last, ok = r.peek(); !ok || since.IsZero() || !last.ReceivedUntil.Equal(first.ReceivedUntil) {
			first, since = last, time.Now()
		}
		return time.Since(since) > 4*time.Second
	})
	if last.HeldChunks <= first.HeldChunks || last.Frames < first.Frames+50 || last.Dropped > 0 {
		r.t.Errorf("while the worker was full, within 4 s the hub went from %+v to %+v; want more captured, and all of it held", first, last)
	}
	if n := r.said("ALARM", "no room for unfinished recordings"); n != 1 {
		r.t.Errorf("the worker gave alarm %d times, want once", n)
	}
}

// wantRoom waits until the worker says that all is well again.
func (r *rig) wantRoom() {
	r.t.Helper()
	r.eventually(time.Minute, "the worker has room again", func() bool {
		v, ok := r.metric("vms_worker_tmpfs_full")
		return ok && v == 0
	})
}

// TestChaosTmpfsFull: there is no room for unfinished recordings; hubs keep
// what they have, somebody is told, and it goes on by itself once there is room.
func TestChaosTmpfsFull(t *testing.T) {
	t.Parallel()
	t.Run("tmpfs_full", chaosTmpfsFull)
	t.Run("tmpfs_budget", chaosTmpfsBudget)
}

// chaosTmpfsFull: somebody else fills the file system.
func chaosTmpfsFull(t *testing.T) {
	t.Parallel()
	dir := mount(t, "160m")
	r := newRig(t, rigOptions{stackOptions: stackOptions{cloudArgs: []string{"-worker-dir", filepath.Join(dir, "worker")}}})
	r.stores(1)
	ballast := filepath.Join(dir, "ballast")
	fill(t, ballast)
	r.wantFull()
	r.lasts(span(5*time.Minute, 6*time.Second))
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	r.wantRoom()
	r.caughtUp(2 * time.Minute)
	report(t, "tmpfs_full", r.finish(time.Minute, nil))
}

// chaosTmpfsBudget: the store is away until finished recordings take all that
// the worker may use.
func chaosTmpfsBudget(t *testing.T) {
	t.Parallel()
	store := newObjectStore(t)
	way := chaos.New(t, strings.TrimPrefix(store.url, "http://"))
	o := store.stack("http://" + way.Addr())
	o.recording = 3 * time.Second
	const budget = 81 << 20 // hardly more than the least that a worker wants
	o.cloudArgs = append(o.cloudArgs, "-worker-bytes", strconv.Itoa(budget))
	r := &rig{book: newLedger(), rand: rand.New(rand.NewPCG(1, 0))}
	r.cam = camtest.Start(t, camtest.Options{
		Source: camtest.Clip(t, vmstest.ClipSpec{GOP: 25, Size: "1920x1080", Kbps: 40_000, Duration: 6400 * time.Millisecond}),
		Loop:   true, Live: true, Stamp: true, OnSent: r.book.add,
	})
	r.stack = startStack(t, o)
	r.ch = r.addChannel("camera", r.cam.URL())
	r.startChannel(r.ch)
	r.flows()
	r.stores(1)
	way.Cut()
	r.wantFull()
	if used, ok := r.metric("vms_worker_tmpfs_bytes"); !ok || used > budget {
		t.Errorf("%.0f bytes are on the worker's disk, of %d that it may use", used, budget)
	}
	way.Restore()
	r.wantRoom()
	r.caughtUp(2 * time.Minute)
	a := r.finish(time.Minute, nil)
	store.wantRows(t, r.ch, r.timeline(r.ch))
	report(t, "tmpfs_budget", a)
}
