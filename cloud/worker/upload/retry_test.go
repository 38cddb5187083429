package upload_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zipato/vms/cloud/worker/upload"
	"github.com/zipato/vms/pkg/obs"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
)

// TestARetryLooksFirst: the try before may have stored it and not heard of that;
// and a store that is away is asked with a question, not with megabytes.
func TestARetryLooksFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, j := newScript(), job(t, "ch", 1, 150)
		away := true
		st.put = func(_ context.Context, r vms.Recording) error { // it arrives, the answer does not
			st.mu.Lock()
			defer st.mu.Unlock()
			st.objects[r.Key] = r
			return vms.ErrUnavailable
		}
		st.stat = func(string) error {
			if away {
				return vms.ErrUnavailable
			}
			return nil
		}
		u := upload.Uploader{Store: st, Log: vmstest.Log(t)}
		var res results
		u.Submit(t.Context(), res.of(j))
		time.Sleep(10 * time.Minute)
		if n := st.tried(j.Recording.Key); n != 1 || u.Retries() < 20 {
			t.Errorf("%d puts, %d retries", n, u.Retries())
		}
		st.mu.Lock()
		away = false
		st.mu.Unlock()
		u.Wait()
		if done, _ := res.count(); done != 1 || st.tried(j.Recording.Key) != 1 {
			t.Errorf("done %d, %d puts", done, st.tried(j.Recording.Key))
		}
		gone(t, j)
	})
}

// TestASlowStoreGetsMoreTime: a link that takes a quarter of an hour is no
// reason to begin again for ever.
func TestASlowStoreGetsMoreTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, j := newScript(), job(t, "ch", 1, 150)
		var given []time.Duration
		st.put = func(ctx context.Context, _ vms.Recording) error {
			deadline, ok := ctx.Deadline()
			if !ok {
				t.Error("no limit of time")
			}
			st.mu.Lock()
			given = append(given, time.Until(deadline).Round(time.Second))
			st.mu.Unlock()
			select {
			case <-time.After(15 * time.Minute):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		u := upload.Uploader{Store: st, Log: vmstest.Log(t)}
		var res results
		u.Submit(t.Context(), res.of(j))
		u.Wait()
		want := []time.Duration{62 * time.Second, 123 * time.Second, 246 * time.Second, 492 * time.Second, 984 * time.Second} // 60 s, and 100 kB at 64 KiB/s
		if done, lost := res.count(); done != 1 || lost != 0 || fmt.Sprint(given) != fmt.Sprint(want) {
			t.Errorf("done %d, lost %d; tries had %v, want %v", done, lost, given, want)
		}
	})
}

// TestBadObjectsKeepToTheirSlots: twenty that hang leave the others theirs.
func TestBadObjectsKeepToTheirSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newScript()
		var mu sync.Mutex
		hanging, most := 0, 0
		st.put = func(ctx context.Context, r vms.Recording) error {
			if !strings.HasPrefix(string(r.Channel), "bad") {
				return nil
			}
			mu.Lock()
			hanging++
			most = max(most, hanging)
			mu.Unlock()
			<-ctx.Done()
			mu.Lock()
			hanging--
			mu.Unlock()
			return ctx.Err()
		}
		u := upload.Uploader{Store: st, Slots: 8, Log: vmstest.Log(t)}
		ctx, stop := context.WithCancel(t.Context())
		var bad, good results
		for i := range 20 {
			u.Submit(ctx, bad.of(small(t, vms.ChannelID(fmt.Sprint("bad", i)))))
		}
		submit := func(name string) {
			u.Submit(ctx, good.of(small(t, vms.ChannelID(name))))
		}
		submit("first") // behind them all
		time.Sleep(4 * time.Minute)
		if done, _ := good.count(); done != 1 {
			t.Fatalf("%d done behind the first tries of the others", done)
		}
		// By now some have had a second try without knowing that others succeed.
		for i := range 60 {
			submit(fmt.Sprint("good", i))
			time.Sleep(10 * time.Second)
		}
		mu.Lock()
		most = hanging
		mu.Unlock()
		before, _ := good.count()
		for i := range 500 {
			submit(fmt.Sprint("last", i))
			synctest.Wait() // no time has to pass
			if done, _ := good.count(); done != before+i+1 {
				t.Fatalf("%d of %d done beside twenty that hang", done-before, i+1)
			}
			time.Sleep(time.Second)
			mu.Lock()
			most = max(most, hanging)
			mu.Unlock()
		}
		if most > 2 {
			t.Errorf("%d of 8 slots were with objects that hang, want a quarter", most)
		}
		stop()
		u.Wait()
	})
}

// TestSuccessesOfOthersWakeNoBadObject: one that fails at once, among others
// that succeed every second, keeps its pauses.
func TestSuccessesOfOthersWakeNoBadObject(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newScript()
		st.put = func(_ context.Context, r vms.Recording) error {
			if r.Channel == "bad" {
				return vms.ErrForbidden
			}
			return nil
		}
		u := upload.Uploader{Store: st, Slots: 8, Log: vmstest.Log(t)}
		ctx, stop := context.WithCancel(t.Context())
		var bad, good results
		j := small(t, "bad")
		u.Submit(ctx, bad.of(j))
		for i := range 600 {
			u.Submit(ctx, good.of(small(t, vms.ChannelID(fmt.Sprint("good", i)))))
			time.Sleep(time.Second)
		}
		if n := st.tried(j.Recording.Key); n < 20 || n > 80 {
			t.Errorf("the bad one was tried %d times in ten minutes", n)
		}
		stop()
		u.Wait()
		if done, _ := good.count(); done != 600 {
			t.Errorf("%d of 600 done", done)
		}
	})
}

// TestAnOutageDrainsAtOnce: five hundred recordings wait for a store that is
// away for ten minutes. It is not stormed, and when it is back nobody sits out
// a pause.
func TestAnOutageDrainsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newScript()
		var asked atomic.Int64
		var back atomic.Bool
		answer := func() error {
			asked.Add(1)
			time.Sleep(10 * time.Millisecond)
			if !back.Load() {
				return vms.ErrUnavailable
			}
			return nil
		}
		st.put = func(context.Context, vms.Recording) error { return answer() }
		u := upload.Uploader{Store: &polite{st, answer}, Slots: 8, Log: vmstest.Log(t)}
		var res results
		const jobs = 500
		for i := range jobs {
			u.Submit(t.Context(), res.of(small(t, vms.ChannelID(fmt.Sprint("c", i)))))
		}
		const outage = 10 * time.Minute
		time.Sleep(outage)
		// Each had its first try, then two in a second for all of them.
		if n := asked.Load(); n < jobs+1000 || n > jobs+32+1200+10 {
			t.Errorf("a store that is away was asked %d times in %v", n, outage)
		}
		if n := u.Waiting(); n != jobs {
			t.Errorf("%d are waiting, want all", n)
		}
		back.Store(true)
		began := time.Now()
		u.Wait()
		if d := time.Since(began); d > 3*time.Second { // 500 x 2 x 10 ms in 8 slots are 1.25 s
			t.Errorf("what waited took %v", d)
		}
		if done, lost := res.count(); done != jobs || lost != 0 || u.Failing() {
			t.Errorf("done %d, lost %d, failing %v", done, lost, u.Failing())
		}
	})
}

// polite is a script whose Stat answers like its Put.
type polite struct {
	*script
	answer func() error
}

func (p *polite) Stat(ctx context.Context, key string) (vms.Recording, error) {
	if err := p.answer(); err != nil {
		return vms.Recording{}, err
	}
	return p.script.Stat(ctx, key)
}

// TestSameChunksAsOtherBytes: under the key is an object of the same chunks with
// another checksum. Only its bytes tell whether that is true.
func TestSameChunksAsOtherBytes(t *testing.T) {
	other := []byte("head of another version, and the same media")
	for name, c := range map[string]struct {
		says [32]byte // what the store says of it
		body func(ours []byte) []byte
		done bool
	}{
		"of another version":      {sha256.Sum256(other), func([]byte) []byte { return other }, true},
		"ours, said wrong":        {[32]byte{1}, func(ours []byte) []byte { return ours }, false},
		"damaged":                 {[32]byte{1}, func([]byte) []byte { return other }, false},
		"cut, with the right sum": {sha256.Sum256(other), func([]byte) []byte { return other[:10] }, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st, j := newScript(), job(t, "ch", 1, 150)
				there := j.Recording
				there.SHA256, there.Bytes = c.says, int64(len(other))
				ours, err := readAll(j)
				if err != nil {
					t.Fatal(err)
				}
				if body := c.body(ours); len(body) > len(other) {
					there.Bytes = int64(len(body))
				}
				st.objects[there.Key], st.bodies[there.Key] = there, c.body(ours)
				u := upload.Uploader{Store: st, Log: vmstest.Log(t)}
				var res results
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				u.Submit(ctx, res.of(j))
				time.Sleep(35 * time.Minute)
				done, lost := res.count()
				if (done == 1) != c.done || lost != 0 || len(st.objects) != 1 {
					t.Errorf("done %d, lost %d, %d objects", done, lost, len(st.objects))
				}
				if c.done {
					if res.done[0] != there {
						t.Errorf("done as %+v", res.done[0])
					}
					return
				}
				if u.Retries() > 4 || !u.Failing() {
					t.Errorf("failing %v; it was read %d times in half an hour", u.Failing(), u.Retries())
				}
				// The store comes to its senses, or somebody puts it right.
				st.mu.Lock()
				st.objects[there.Key], st.bodies[there.Key] = j.Recording, ours
				st.mu.Unlock()
				u.Wait()
				if done, _ := res.count(); done != 1 {
					t.Errorf("not done although the object is right now")
				}
			})
		})
	}
}

// readAll returns a job's bytes.
func readAll(j upload.Job) ([]byte, error) {
	file, err := os.ReadFile(j.Path)
	return append(bytes.Clone(j.Head), file...), err
}

// TestWhatIsSeenFromOutside: how long tries took, by how they ended.
func TestWhatIsSeenFromOutside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := newScript()
		st.put = func(_ context.Context, r vms.Recording) error {
			time.Sleep(3 * time.Second)
			if st.tried(r.Key) < 3 {
				return vms.ErrUnavailable
			}
			return nil
		}
		reg := obs.NewRegistry()
		u := upload.Uploader{Store: st, Log: vmstest.Log(t)}
		u.Register(reg)
		var res results
		j := job(t, "ch", 1, 150)
		u.Submit(t.Context(), res.of(j))
		text := func() string {
			var b strings.Builder
			if err := reg.WriteText(&b); err != nil {
				t.Fatal(err)
			}
			return b.String()
		}
		time.Sleep(time.Second)
		if s := text(); !strings.Contains(s, fmt.Sprintf("vms_worker_upload_inflight_bytes %d\n", j.Recording.Bytes)) {
			t.Errorf("under way:\n%s", s)
		}
		time.Sleep(2100 * time.Millisecond)
		if s := text(); !strings.Contains(s, "vms_worker_uploads_failing 1\n") || !strings.Contains(s, "vms_worker_upload_inflight_bytes 0\n") {
			t.Errorf("failing:\n%s", s)
		}
		u.Wait()
		s := text()
		for _, want := range []string{
			`vms_worker_upload_seconds_bucket{result="failed",le="2.5"} 0`, `vms_worker_upload_seconds_bucket{result="failed",le="5"} 2`,
			`vms_worker_upload_seconds_count{result="ok"} 1`, `vms_worker_upload_seconds_sum{result="failed"} 6`, "vms_worker_uploads_failing 0",
		} {
			if !strings.Contains(s, want+"\n") {
				t.Errorf("no %q in\n%s", want, s)
			}
		}
	})
}
