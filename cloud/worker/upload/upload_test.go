package upload_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zipato/vms/cloud/worker/upload"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
)

// script is a store that does what a test wants, and otherwise keeps objects.
type script struct {
	mu      sync.Mutex
	objects map[string]vms.Recording
	bodies  map[string][]byte
	put     func(ctx context.Context, r vms.Recording) error // nil: it works
	stat    func(key string) error
	tries   map[string]int
	now     int // puts under way, and the most there were
	most    int
}

func newScript() *script {
	return &script{objects: map[string]vms.Recording{}, bodies: map[string][]byte{}, tries: map[string]int{}}
}

func (s *script) Put(ctx context.Context, r vms.Recording, body io.ReadSeeker) error {
	s.mu.Lock()
	s.tries[r.Key]++
	s.now++
	s.most = max(s.most, s.now)
	put := s.put
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.now--
		s.mu.Unlock()
	}()
	// Half of it, then from the start: what a client does that tries again.
	if _, err := io.CopyN(io.Discard, body, r.Bytes/2); err != nil {
		return err
	}
	if put != nil {
		if err := put(ctx, r); err != nil {
			return err
		}
	}
	if _, err := body.Seek(0, io.SeekStart); err != nil {
		return err
	}
	data, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, taken := s.objects[r.Key]; taken {
		return vms.ErrConflict
	}
	if sha256.Sum256(data) != r.SHA256 {
		return errors.New("checksum mismatch")
	}
	s.objects[r.Key], s.bodies[r.Key] = r, data
	return nil
}

func (s *script) peak() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.most
}

func (s *script) tried(key string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tries[key]
}

func (s *script) Stat(_ context.Context, key string) (vms.Recording, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stat != nil {
		if err := s.stat(key); err != nil {
			return vms.Recording{}, err
		}
	}
	r, ok := s.objects[key]
	if !ok {
		return r, vms.ErrNotFound
	}
	return r, nil
}

func (s *script) Get(_ context.Context, key string) (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	body, ok := s.bodies[key]
	if !ok {
		return nil, vms.ErrNotFound
	}
	return io.NopCloser(bytes.NewReader(body)), nil
}

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// job is a recording of chunks first to last, with its file.
func job(t *testing.T, ch vms.ChannelID, firstSeq, lastSeq uint64) upload.Job {
	t.Helper()
	return jobOf(t, ch, firstSeq, lastSeq, 100_000)
}

// small is a job for tests of many.
func small(t *testing.T, ch vms.ChannelID) upload.Job {
	t.Helper()
	return jobOf(t, ch, 1, 2, 100)
}

// jobOf is a job with a file of so many bytes.
func jobOf(t *testing.T, ch vms.ChannelID, firstSeq, lastSeq uint64, bodyLen int) upload.Job {
	t.Helper()
	head, body := []byte("head of "+ch), bytes.Repeat([]byte{byte(firstSeq), byte(lastSeq)}, bodyLen/2)
	path := filepath.Join(t.TempDir(), "x.body")
	if err := os.WriteFile(path, body, 0o600); err != nil {
		t.Fatal(err)
	}
	all := append(bytes.Clone(head), body...)
	return upload.Job{Head: head, Path: path, Recording: vms.Recording{
		Channel: ch, Key: vms.RecordingKey(ch, start, 3), Number: 3, Chunks: vms.ChunkRange{Epoch: 9, First: firstSeq, Last: lastSeq},
		Start: start, End: start.Add(30 * time.Second), Media: 30 * time.Second, Bytes: int64(len(all)), SHA256: sha256.Sum256(all),
		HeadLen: int64(len(head)), InitLen: int64(len(head)), Codecs: "avc1.64001f",
	}}
}

// results collects what jobs come to.
type results struct {
	mu   sync.Mutex
	done []vms.Recording
	lost []error
}

func (r *results) of(j upload.Job) upload.Job {
	j.Done = func(rec vms.Recording) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.done = append(r.done, rec)
	}
	j.Lost = func(err error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.lost = append(r.lost, err)
	}
	return j
}

func (r *results) count() (done, lost int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.done), len(r.lost)
}

func gone(t *testing.T, j upload.Job) {
	t.Helper()
	if _, err := os.Stat(j.Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is still on tmpfs: %v", err)
	}
}

func TestUploadDoesNotGiveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, j := newScript(), job(t, "ch", 1, 150)
		st.put = func(context.Context, vms.Recording) error {
			if st.tried(j.Recording.Key) <= 20 {
				return vms.ErrUnavailable
			}
			return nil
		}
		u := upload.Uploader{Store: st, Slots: 2, Log: vmstest.Log(t)}
		var res results
		u.Submit(t.Context(), res.of(j))
		synctest.Wait()
		if !u.Failing() || u.Waiting() != 1 {
			t.Errorf("after the first try: failing %v, waiting %d", u.Failing(), u.Waiting())
		}
		if _, err := os.Stat(j.Path); err != nil {
			t.Errorf("the file left tmpfs before the recording was durable: %v", err)
		}
		begin := time.Now()
		u.Wait()
		if d := time.Since(begin); d < time.Minute || d > 20*30*time.Second {
			t.Errorf("20 failures took %v", d)
		}
		if done, lost := res.count(); done != 1 || lost != 0 || u.Retries() != 20 || u.Failing() || u.Waiting() != 0 {
			t.Errorf("done %d, lost %d, retries %d, failing %v, waiting %d", done, lost, u.Retries(), u.Failing(), u.Waiting())
		}
		gone(t, j)
	})
}

// TestKeyIsTaken: by the same or a larger recording, which makes ours durable.
func TestKeyIsTaken(t *testing.T) {
	for name, there := range map[string]func(r vms.Recording) vms.Recording{
		"same":         func(r vms.Recording) vms.Recording { return r },
		"larger range": func(r vms.Recording) vms.Recording { r.Chunks.Last, r.SHA256 = 300, [32]byte{1}; return r },
	} {
		t.Run(name, func(t *testing.T) {
			st, j := newScript(), job(t, "ch", 1, 150)
			st.objects[j.Recording.Key] = there(j.Recording)
			u := upload.Uploader{Store: st, Log: vmstest.Log(t)}
			var res results
			u.Submit(t.Context(), res.of(j))
			u.Wait()
			if len(res.done) != 1 || res.done[0] != there(j.Recording) || len(st.objects) != 1 {
				t.Errorf("done %+v, objects %d", res.done, len(st.objects))
			}
			gone(t, j)
		})
	}
}

// TestBothAreKeptWhenContentDiffers: under a key that the index takes, because
// footage that nobody can find is lost.
func TestBothAreKeptWhenContentDiffers(t *testing.T) {
	for name, prepare := range map[string]func(st *script, r vms.Recording){
		"smaller range": func(st *script, r vms.Recording) {
			r.Chunks.Last, r.SHA256 = 20, [32]byte{1}
			st.objects[r.Key] = r
		},
		"another epoch": func(st *script, r vms.Recording) {
			r.Chunks.Epoch, r.SHA256 = 1, [32]byte{1}
			st.objects[r.Key] = r
		},
		"no recording": func(st *script, r vms.Recording) {
			st.objects[r.Key] = vms.Recording{}
			st.stat = func(key string) error {
				if key == r.Key {
					return vms.ErrInvalid
				}
				return nil
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			st, j := newScript(), job(t, "ch", 1, 150)
			prepare(st, j.Recording)
			was := st.objects[j.Recording.Key]
			u := upload.Uploader{Store: st, Log: vmstest.Log(t)}
			var res results
			u.Submit(t.Context(), res.of(j))
			u.Wait()
			if len(res.done) != 1 || len(st.objects) != 2 || st.objects[j.Recording.Key] != was {
				t.Fatalf("done %+v, objects %+v", res.done, st.objects)
			}
			r := res.done[0]
			if r.Key != vms.RecordingKey(r.Channel, r.Start, r.Number) {
				t.Errorf("no index takes the key %s", r.Key)
			}
			if r.Key == j.Recording.Key || r.Chunks != j.Recording.Chunks || r.Start.Sub(start) != time.Microsecond {
				t.Errorf("stored beside as %+v", r)
			}
			// The same recording again, from another worker, finds its place.
			again := job(t, "ch", 1, 150)
			u.Submit(t.Context(), res.of(again))
			u.Wait()
			if len(res.done) != 2 || res.done[1] != r || len(st.objects) != 2 {
				t.Errorf("again: done %+v", res.done)
			}
		})
	}
}

// reversed shows a file from its end.
type reversed struct {
	f    io.ReaderAt
	size int64
}

func (r reversed) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) && off+int64(n) < r.size {
		if _, err := r.f.ReadAt(p[n:n+1], r.size-1-off-int64(n)); err != nil {
			return n, err
		}
		n++
	}
	if n < len(p) {
		err = io.EOF
	}
	return n, err
}

// partJob is a job whose bytes are a view of somebody else's file.
func partJob(t *testing.T) upload.Job {
	t.Helper()
	j := job(t, "ch", 1, 150)
	file, err := os.ReadFile(j.Path)
	if err != nil {
		t.Fatal(err)
	}
	j.View = func(f io.ReaderAt) io.ReaderAt { return reversed{f, int64(len(file))} }
	all := bytes.Clone(j.Head)
	for i := range file {
		all = append(all, file[len(file)-1-i])
	}
	j.Recording.SHA256 = sha256.Sum256(all)
	j.Recording.Key = vms.PartKey("ch", j.Recording.Chunks, 3)
	return j
}

// TestAPartIsAViewOfAFile: which belongs to the recording that it is a part of.
func TestAPartIsAViewOfAFile(t *testing.T) {
	st, j := newScript(), partJob(t)
	var stored []vms.Recording
	u := upload.Uploader{Store: st, Log: vmstest.Log(t), Stored: func(r vms.Recording) { stored = append(stored, r) }}
	var res results
	u.Submit(t.Context(), res.of(j))
	u.Wait()
	u.Submit(t.Context(), res.of(j)) // again: it is there
	u.Wait()
	if len(res.done) != 2 || res.done[1] != j.Recording || len(stored) != 1 || len(st.objects) != 1 {
		t.Errorf("done %+v, stored %+v, lost %v", res.done, stored, res.lost)
	}
	if _, err := os.Stat(j.Path); err != nil {
		t.Errorf("the recording's file: %v", err)
	}
}

// TestAPartHasNoOtherKey: what a stranger left there is not replaced, and the
// recording goes on without.
func TestAPartHasNoOtherKey(t *testing.T) {
	st, j := newScript(), partJob(t)
	st.objects[j.Recording.Key] = vms.Recording{}
	u := upload.Uploader{Store: st, Log: vmstest.Log(t)}
	var res results
	u.Submit(t.Context(), res.of(j))
	u.Wait()
	if done, lost := res.count(); done != 0 || lost != 1 || len(st.objects) != 1 {
		t.Errorf("done %d, lost %d, %d objects", done, lost, len(st.objects))
	}
	if _, err := os.Stat(j.Path); err != nil {
		t.Errorf("the recording's file: %v", err)
	}
}

func TestAPoisonedObjectStarvesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newScript()
		poison := vms.RecordingKey("poison", start, 3)
		st.put = func(_ context.Context, r vms.Recording) error {
			if r.Key == poison {
				return errors.New("never")
			}
			return nil
		}
		u := upload.Uploader{Store: st, Slots: 1, Log: vmstest.Log(t)}
		ctx, stop := context.WithCancel(t.Context())
		var bad, good results
		p := job(t, "poison", 1, 2)
		u.Submit(ctx, bad.of(p))
		synctest.Wait()
		for _, ch := range []vms.ChannelID{"a", "b", "c", "d"} {
			u.Submit(ctx, good.of(job(t, ch, 1, 2)))
		}
		synctest.Wait() // no time has to pass
		if done, _ := good.count(); done != 4 {
			t.Errorf("%d of 4 done beside a poisoned one", done)
		}
		if n := st.peak(); n != 1 {
			t.Errorf("%d puts at once in one slot", n)
		}
		time.Sleep(time.Hour)
		if n := st.tried(poison); n < 100 || n > 300 {
			t.Errorf("%d tries in an hour", n)
		}
		stop()
		u.Wait()
		if done, lost := bad.count(); done != 0 || lost != 0 {
			t.Errorf("the poisoned one: done %d, lost %d", done, lost)
		}
		if _, err := os.Stat(p.Path); err != nil {
			t.Errorf("a recording that is not durable left tmpfs: %v", err)
		}
		if u.Failing() || u.Waiting() != 0 {
			t.Errorf("after the end: failing %v, waiting %d", u.Failing(), u.Waiting())
		}
	})
}

func TestSlotsBoundWhatIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newScript()
		st.put = func(ctx context.Context, _ vms.Recording) error {
			select {
			case <-time.After(time.Minute):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		u := upload.Uploader{Store: st, Slots: 3, Log: vmstest.Log(t)}
		ctx, stop := context.WithCancel(t.Context())
		var res results
		for i := range 8 {
			u.Submit(ctx, res.of(job(t, vms.ChannelID('a'+rune(i)), 1, 2)))
		}
		time.Sleep(2*time.Minute + time.Second)
		if done, _ := res.count(); done != 6 || st.peak() != 3 || u.Waiting() != 2 {
			t.Errorf("after two minutes %d done, %d at once, %d waiting", done, st.peak(), u.Waiting())
		}
		stop() // in the middle of a put
		begin := time.Now()
		u.Wait()
		if done, lost := res.count(); done != 6 || lost != 0 || time.Since(begin) != 0 {
			t.Errorf("after the end: done %d, lost %d, %v later", done, lost, time.Since(begin))
		}
	})
}

// TestABrokenFileIsSaid: no retry brings back what is not on tmpfs any more; the
// agent has it, and must be asked.
func TestABrokenFileIsSaid(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"gone":    os.Remove,
		"cut":     func(p string) error { return os.Truncate(p, 10) },
		"changed": func(p string) error { return os.WriteFile(p, make([]byte, 100_000), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			st, j := newScript(), job(t, "ch", 1, 150)
			if err := damage(j.Path); err != nil {
				t.Fatal(err)
			}
			u := upload.Uploader{Store: st, Log: vmstest.Log(t)}
			var res results
			u.Submit(t.Context(), res.of(j))
			u.Wait()
			if done, lost := res.count(); done != 0 || lost != 1 || len(st.objects) != 0 || u.Failing() {
				t.Errorf("done %d, lost %d, objects %d", done, lost, len(st.objects))
			}
			gone(t, j)
		})
	}
}
