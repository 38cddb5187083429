package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/objstore"
	"github.com/zipato/vms/cloud/objstore/s3"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest/chaos"
)

// objectStore is an object store in a process of its own, ours or another one.
type objectStore struct {
	process *program
	url     string
	dir     string // of the process
	bucket  string
	key     string
	secret  string
	client  *s3.Store // directly, past every fault
}

// newObjectStore starts the embedded store on its own.
func newObjectStore(t testing.TB) *objectStore {
	t.Helper()
	o := &objectStore{dir: t.TempDir(), bucket: "chaos", key: "chaos-access", secret: "chaos-secret-of-the-test"}
	address := freePort(t)
	o.process = startProgram(t, "objectstore", o.env(), "-dir", o.dir, "-listen", address, "-bucket", o.bucket)
	o.process.line("listening ", 20*time.Second)
	o.url = "http://" + address
	o.connect(t)
	return o
}

// connect makes the client, and the bucket if it is not there.
func (o *objectStore) connect(t testing.TB) {
	t.Helper()
	o.client = o.open(t)
	if err := o.client.EnsureBucket(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// env is how a cloud gets in.
func (o *objectStore) env() []string {
	return []string{"VMS_S3_ACCESS_KEY=" + o.key, "VMS_S3_SECRET_KEY=" + o.secret}
}

// stack lets a cloud use the store by way of an address, and browsers without a
// detour. It lists the bucket every few seconds, so that a fault meets that too.
func (o *objectStore) stack(way string) stackOptions {
	return stackOptions{
		cloudArgs: []string{"-s3-url", way, "-s3-bucket", o.bucket, "-s3-public-url", o.url, "-reconcile", "3s"},
		cloudEnv:  o.env(),
	}
}

// keys lists the objects below a prefix.
func (o *objectStore) keys(t testing.TB, prefix string) []string {
	t.Helper()
	var keys []string
	for obj, err := range o.client.List(t.Context(), prefix, "") {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, obj.Key)
	}
	return keys
}

// wantRows proves that the recordings of a channel and its objects in the store
// are the same, one for one, and that each object is what its row and its
// metadata say, byte by byte.
func (o *objectStore) wantRows(t testing.TB, ch vms.ChannelID, tl timeline) {
	t.Helper()
	rows := o.wantTold(t, tl)
	slices.Sort(rows)
	if keys := o.keys(t, "recordings/"+string(ch)+"/"); !slices.Equal(rows, keys) {
		t.Errorf("the recordings are\n%s\nthe objects\n%s", strings.Join(rows, "\n"), strings.Join(keys, "\n"))
	}
}

// wantTold proves that what is told to be stored is there, byte by byte, and
// returns the keys.
func (o *objectStore) wantTold(t testing.TB, tl timeline) (keys []string) {
	t.Helper()
	for _, r := range tl.Recordings {
		u, err := url.Parse(r.URL)
		if err != nil {
			t.Fatal(err)
		}
		key := strings.TrimPrefix(u.Path, "/"+o.bucket+"/")
		keys = append(keys, key)
		obj, err := o.client.Stat(t.Context(), key)
		if err != nil {
			t.Errorf("the object of recording %s: %v", r.ID, err)
			continue
		}
		meta, err := objstore.ParseRecording(key, obj)
		if err != nil {
			t.Errorf("the object of recording %s: %v", r.ID, err)
		}
		sum := sumOf(t, o.client, key)
		if r.Bytes != obj.Size || r.SHA256 != sum || hex.EncodeToString(meta.SHA256[:]) != sum {
			t.Errorf("recording %s has %d bytes of checksum %s, its object %d of %s, its metadata say %x", r.ID, r.Bytes, r.SHA256, obj.Size, sum, meta.SHA256)
		}
	}
	return keys
}

// sumOf is the SHA-256 of an object's bytes as they are read.
func sumOf(t testing.TB, store *s3.Store, key string) string {
	t.Helper()
	body, err := store.Get(t.Context(), key, 0, -1)
	if err != nil {
		t.Errorf("read %s: %v", key, err)
		return ""
	}
	defer body.Close()
	h := sha256.New()
	if _, err := io.Copy(h, body); err != nil {
		t.Errorf("read %s: %v", key, err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// s3Fault answers a request in the store's place, or returns false: then the
// store gets it.
type s3Fault func(w http.ResponseWriter, r *http.Request) bool

// s3Way is the way to an object store, as a proxy of requests: it can answer in
// the store's place, and withhold or alter what the store says.
type s3Way struct {
	url   string
	proxy httputil.ReverseProxy

	mu      sync.Mutex
	turns   map[int]int // taken, by the number of ways
	fault   s3Fault
	hits    map[string]int // what the fault did, by its name for it
	results int            // puts that came back with 200 from the store
}

func newS3Way(t *testing.T, store string) *s3Way {
	t.Helper()
	target, err := url.Parse(store)
	if err != nil {
		t.Fatal(err)
	}
	p := &s3Way{turns: map[int]int{}, hits: map[string]int{}}
	p.proxy = httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host // it is signed
		},
		Transport:    &http.Transport{DisableCompression: true},
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }, // the client went away, or the store did
		ModifyResponse: func(resp *http.Response) error {
			if resp.Request.Method == http.MethodPut && resp.StatusCode == http.StatusOK {
				p.mu.Lock()
				p.results++
				p.mu.Unlock()
			}
			return nil
		},
	}
	srv := httptest.NewServer(p)
	t.Cleanup(srv.Close)
	t.Cleanup(srv.CloseClientConnections)
	p.url = srv.URL
	return p
}

func (p *s3Way) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	fault := p.fault
	p.mu.Unlock()
	if fault != nil && fault(w, r) {
		return
	}
	p.proxy.ServeHTTP(w, r)
}

// breakWith begins a fault; nil ends it, also for who waits.
func (p *s3Way) breakWith(f s3Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = f
}

// hit counts what a fault did.
func (p *s3Way) hit(what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hits[what]++
}

// turn picks one of n ways to go wrong, each in its turn: none is left out.
func (p *s3Way) turn(n int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.turns[n]++
	return (p.turns[n] - 1) % n
}

// took is how many objects the store has taken.
func (p *s3Way) took() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.results
}

// wantHits fails unless each of these things happened.
func (p *s3Way) wantHits(t *testing.T, what ...string) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	t.Logf("the fault hit %v", p.hits)
	for _, w := range what {
		if p.hits[w] == 0 {
			t.Errorf("the fault never came to %q: %v", w, p.hits)
		}
	}
}

// refuse answers as S3 does.
func refuse(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>made by the test</Message></Error>`, code)
}

// swallow lets the store have the request, and nobody its answer.
func (p *s3Way) swallow(r *http.Request) *httptest.ResponseRecorder {
	answer := httptest.NewRecorder()
	func() {
		defer func() { _ = recover() }() // the proxy's own way to say that there is no answer
		p.proxy.ServeHTTP(answer, r)
	}()
	return answer
}

// reset tears the connection, so that the client sees "connection reset by peer".
func reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	_ = conn.(*net.TCPConn).SetLinger(0) // it is closed at once either way
	_ = conn.Close()
}

// storeFault is one way in which a store fails.
type storeFault struct {
	fault func(p *s3Way) s3Fault
	hits  []string // what must have happened
	some  bool     // objects may get through
}

// storeFaults are the ways in which a store fails that a cloud has to survive.
var storeFaults = map[string]storeFault{
	// Errors of the server: at once, after all was read, and after all was stored.
	"500": {func(p *s3Way) s3Fault {
		return func(w http.ResponseWriter, r *http.Request) bool {
			switch {
			case r.Method == http.MethodPut && p.turn(3) == 0:
				if p.swallow(r).Code == http.StatusOK {
					p.hit("stored, and said 500")
				}
				refuse(w, http.StatusInternalServerError, "InternalError")
			case p.turn(2) == 0:
				_, _ = io.Copy(io.Discard, r.Body)
				p.hit("read, and said 503")
				refuse(w, http.StatusServiceUnavailable, "SlowDown")
			default:
				p.hit("said 500")
				refuse(w, http.StatusInternalServerError, "InternalError")
			}
			return true
		}
	}, []string{"stored, and said 500", "read, and said 503", "said 500"}, false},

	// Silence: the request is taken, perhaps even carried out, and nobody answers.
	"timeout": {func(p *s3Way) s3Fault {
		return func(_ http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPut && p.turn(2) == 0 {
				p.swallow(r)
				p.hit("stored, and said nothing")
			} else {
				_, _ = io.Copy(io.Discard, r.Body)
				p.hit("said nothing")
			}
			<-r.Context().Done()
			panic(http.ErrAbortHandler)
		}
	}, []string{"said nothing"}, false},

	// The connection breaks in the middle of the body, or of the answer.
	"reset": {func(p *s3Way) s3Fault {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPut && p.turn(3) == 0 {
				p.swallow(r)
				p.hit("stored, and reset")
			} else {
				n, _ := io.CopyN(io.Discard, r.Body, r.ContentLength/2)
				if n > 0 {
					p.hit("reset in mid-body")
				}
			}
			reset(w)
			return true
		}
	}, []string{"stored, and reset", "reset in mid-body"}, false},

	// The answer is yes, and it is wrong: another checksum than was sent, with and
	// without the object; no checksum and no object; and a byte that changed on the way.
	"wrong_checksum": {func(p *s3Way) s3Fault {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPut {
				return false
			}
			const wrong = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=" // of nothing
			switch p.turn(4) {
			case 0:
				if code := p.swallow(r).Code; code != http.StatusOK {
					refuse(w, code, "PreconditionFailed")
					return true
				}
				p.hit("stored, and said another checksum")
				w.Header().Set("X-Amz-Checksum-Sha256", wrong)
			case 1:
				_, _ = io.Copy(io.Discard, r.Body)
				p.hit("not stored, and said another checksum")
				w.Header().Set("X-Amz-Checksum-Sha256", wrong)
			case 2:
				_, _ = io.Copy(io.Discard, r.Body)
				p.hit("not stored, and said yes")
			default:
				p.hit("one bit changed")
				r.Body = &flipped{ReadCloser: r.Body, at: r.ContentLength / 2}
				return false
			}
			w.Header().Set("ETag", `"d41d8cd98f00b204e9800998ecf8427e"`)
			return true
		}
	}, []string{"not stored, and said another checksum", "not stored, and said yes", "one bit changed"}, true},
}

// flipped is a body with one bit changed.
type flipped struct {
	io.ReadCloser
	at int64 // which byte, from here
}

func (f *flipped) Read(b []byte) (int, error) {
	n, err := f.ReadCloser.Read(b)
	if f.at >= 0 && f.at < int64(n) {
		b[f.at] ^= 1
	}
	f.at -= int64(n)
	return n, err
}

// TestChaosS3: whatever the object store does, nothing is lost, nothing is told
// to be stored that is not, and in the end rows and objects are the same.
func TestChaosS3(t *testing.T) {
	t.Parallel()
	for fault, f := range storeFaults {
		t.Run("s3_"+fault, func(t *testing.T) { chaosS3(t, "s3_"+fault, f, false) })
		if fullChaos || fault == "500" {
			t.Run("rclone_"+fault, func(t *testing.T) { chaosS3(t, "rclone_"+fault, f, true) })
		}
	}
	t.Run("s3_10kBps", chaosS3Slow)
	t.Run("s3_bucket_missing", chaosS3NoBucket)
	t.Run("s3_one_bad_object", chaosS3BadObject)
}

// chaosS3 is one fault. rclone meets it only where it stores: it looks at the key
// before, with our own client, which has been tested then.
func chaosS3(t *testing.T, name string, f storeFault, viaRclone bool) {
	t.Parallel()
	store := newObjectStore(t)
	way := newS3Way(t, store.url)
	o := store.stack(way.url)
	var calls *rcloneCalls
	if viaRclone {
		calls = newRcloneCalls(t)
		calls.use(&o)
	}
	r := newRig(t, rigOptions{stackOptions: o})
	r.stores(1)
	fault := f.fault(way)
	if viaRclone {
		all := fault
		fault = func(w http.ResponseWriter, req *http.Request) bool {
			return req.Method == http.MethodPut && all(w, req)
		}
	}
	way.breakWith(fault)
	if f.some || viaRclone {
		r.lasts(span(5*time.Minute, 16*time.Second))
		store.wantTold(t, r.timeline(r.ch))
	} else {
		r.storesNothing(span(5*time.Minute, 16*time.Second))
	}
	way.breakWith(nil)
	r.settles(t, name, store)
	way.wantHits(t, f.hits...)
	if calls != nil {
		calls.check(t, 2, store.secret)
	}
}

// stores waits for a number of recordings.
func (r *rig) stores(n int) {
	r.t.Helper()
	r.eventually(time.Minute, fmt.Sprintf("%d recordings are stored", n), func() bool { return len(r.timeline(r.ch).Recordings) >= n })
}

// storesNothing lets a fault last, and fails if a recording is told of meanwhile.
// Of those under way when it began, the news may still arrive.
func (r *rig) storesNothing(d time.Duration) {
	r.t.Helper()
	const news = 4 * time.Second // a turn of the reconciler, and a busy machine
	r.lasts(news)
	before := len(r.timeline(r.ch).Recordings)
	r.lasts(d - news)
	if n := len(r.timeline(r.ch).Recordings); n != before {
		r.t.Errorf("%d recordings became known while the store took none", n-before)
	}
}

// settles lets a fault that is over be made up for, and balances the books.
func (r *rig) settles(t *testing.T, name string, store *objectStore) {
	t.Helper()
	back := time.Now()
	r.eventually(3*time.Minute, "what was recorded during the fault is stored", func() bool {
		tl, err := r.tryTimeline(r.ch)
		return err == nil && tl.toldUntil(back.Add(-r.recording)) // the open one may have begun before that
	})
	t.Logf("all was stored %v after the fault", time.Since(back).Round(100*time.Millisecond))
	a := r.finish(time.Minute, nil)
	store.wantRows(t, r.ch, r.timeline(r.ch))
	report(t, name, a)
}

// chaosS3Slow: the way to the store carries 10 kB/s, less than the camera makes.
func chaosS3Slow(t *testing.T) {
	t.Parallel()
	store := newObjectStore(t)
	way := chaos.New(t, strings.TrimPrefix(store.url, "http://"))
	r := newRig(t, rigOptions{stackOptions: store.stack("http://" + way.Addr())})
	r.stores(1)
	way.SetRate(10_000)
	before := way.Up()
	r.lasts(span(5*time.Minute, 20*time.Second))
	t.Logf("%d bytes went to the store meanwhile", way.Up()-before)
	way.SetRate(0)
	r.settles(t, "s3_10kBps", store)
}

// chaosS3NoBucket: the bucket is not there for a while, as when somebody
// mistyped a name. It must not pass for a bucket without objects.
func chaosS3NoBucket(t *testing.T) {
	t.Parallel()
	store := newObjectStore(t)
	r := newRig(t, rigOptions{stackOptions: store.stack(store.url)})
	r.stores(2)
	at := filepath.Join(store.dir, "objects", store.bucket)
	if err := os.Rename(at, at+"-away"); err != nil {
		t.Fatal(err)
	}
	r.storesNothing(span(5*time.Minute, 16*time.Second))
	if _, err := store.client.Stat(t.Context(), "recordings/x"); err == nil || !strings.Contains(err.Error(), "bucket") {
		t.Errorf("the store says %v; the bucket should not be there", err)
	}
	if err := os.Rename(at+"-away", at); err != nil {
		t.Fatal(err)
	}
	r.settles(t, "s3_bucket_missing", store)
}

// chaosS3BadObject: the store refuses one object again and again; those that
// follow it, and those of another camera, are stored all the while.
func chaosS3BadObject(t *testing.T) {
	t.Parallel()
	store := newObjectStore(t)
	way := newS3Way(t, store.url)
	r := newRig(t, rigOptions{stackOptions: store.stack(way.url)})
	r.stores(1)
	var once sync.Once
	var bad string
	chosen := make(chan struct{})
	way.breakWith(func(w http.ResponseWriter, req *http.Request) bool {
		if req.Method != http.MethodPut {
			return false
		}
		once.Do(func() { bad = req.URL.Path; close(chosen) })
		if req.URL.Path != bad {
			return false
		}
		_, _ = io.Copy(io.Discard, req.Body)
		way.hit("refused")
		refuse(w, http.StatusInternalServerError, "InternalError")
		return true
	})
	r.chosen(chosen)
	before := way.took()
	d := span(3*time.Minute, 16*time.Second)
	r.lasts(d)
	if n, want := way.took()-before, int(d/r.recording)-1; n < want {
		t.Errorf("%d recordings were stored within %v beside one that fails, want at least %d", n, d, want)
	}
	way.breakWith(nil)
	r.settles(t, "s3_one_bad_object", store)
	way.wantHits(t, "refused")
	if !slices.Contains(store.keys(t, "recordings/"), strings.TrimPrefix(bad, "/"+store.bucket+"/")) {
		t.Errorf("%s was never stored", bad)
	}
}

// chosen waits for a channel to be closed.
func (r *rig) chosen(c <-chan struct{}) {
	r.t.Helper()
	ctx, stop := context.WithTimeout(r.t.Context(), 30*time.Second)
	defer stop()
	select {
	case <-c:
	case <-ctx.Done():
		r.t.Fatal("no recording was put within 30 s")
	}
}
