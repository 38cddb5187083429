package e2e

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/objstore"
	"github.com/zipato/vms/cloud/objstore/objstoretest"
	"github.com/zipato/vms/cloud/objstore/rclone"
	"github.com/zipato/vms/cloud/objstore/s3"
	"github.com/zipato/vms/pkg/vmstest"
)

// newMinIO starts MinIO, which is by other people: what our own store and our
// own clients agree on may still be wrong.
func newMinIO(t testing.TB) *objectStore {
	t.Helper()
	path, err := filepath.Abs("../../bin/tools/minio")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatal("this test needs MinIO: scripts/setup test builds it")
	}
	link := filepath.Join(t.TempDir(), "minio")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	name, err := filepath.Rel(bin, link) // where startProgram looks
	if err != nil {
		t.Fatal(err)
	}
	o := &objectStore{dir: t.TempDir(), bucket: "chaos", key: "minio-access", secret: "minio-secret-of-the-test"}
	address := freePort(t)
	o.url = "http://" + address
	p := startProgram(t, name,
		[]string{"MINIO_ROOT_USER=" + o.key, "MINIO_ROOT_PASSWORD=" + o.secret, "MINIO_BROWSER=off", "MINIO_UPDATE=off"},
		"server", "--address", address, o.dir)
	for limit := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) { // the pace of asking
		resp, err := http.Get(o.url + "/minio/health/ready")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				break
			}
		}
		if text, _ := p.out.get(); time.Now().After(limit) {
			t.Fatalf("MinIO is not ready: %v\n%s", err, text)
		}
	}
	o.connect(t)
	return o
}

// rcloneCalls stands before the rclone program, and notes how it is called.
type rcloneCalls struct{ program, notes string }

func newRcloneCalls(t testing.TB) *rcloneCalls {
	t.Helper()
	path, err := exec.LookPath("rclone")
	if err != nil {
		t.Fatal("this test needs rclone: scripts/setup test installs it")
	}
	dir := t.TempDir()
	c := &rcloneCalls{program: filepath.Join(dir, "rclone"), notes: filepath.Join(dir, "calls")}
	script := fmt.Sprintf("#!/bin/sh\necho \"$*\" >>'%s'\nexec '%s' \"$@\"\n", c.notes, path)
	if err := os.WriteFile(c.program, []byte(script), 0o700); err != nil { //nolint:gosec // it is a program
		t.Fatal(err)
	}
	return c
}

// use lets a stack upload with rclone.
func (c *rcloneCalls) use(s *stackOptions) {
	s.cloudEnv = append(s.cloudEnv, "VMS_UPLOADER=rclone", "VMS_RCLONE_PROGRAM="+c.program)
}

// check fails unless rclone was called to copy single files, at least so many,
// and never to do what deletes; and if it was told a secret where everybody
// sees it.
func (c *rcloneCalls) check(t testing.TB, least int, secret string) {
	t.Helper()
	notes, err := os.ReadFile(c.notes)
	if err != nil {
		t.Fatal(err)
	}
	copies := 0
	for line := range strings.Lines(string(notes)) {
		words := strings.Fields(line)
		if slices.Contains(words, "copyto") {
			copies++
		}
		for _, never := range []string{"sync", "bisync", "move", "moveto", "delete", "purge", "cleanup", "dedupe"} {
			if slices.Contains(words, never) {
				t.Errorf("rclone was called to %s: %s", never, line)
			}
		}
	}
	if copies < least {
		t.Errorf("rclone copied %d times, want at least %d", copies, least)
	}
	if strings.Contains(string(notes), secret) {
		t.Error("the secret key is on rclone's command line")
	}
}

// TestMinIO: the store's client and both uploaders keep their promises with a
// store of other people too, and recordings that go there are whole.
func TestMinIO(t *testing.T) {
	t.Parallel()
	store := newMinIO(t)
	t.Run("conformance", func(t *testing.T) {
		t.Run("s3", func(t *testing.T) {
			t.Parallel()
			objstoretest.Run(t, func(t *testing.T) objstore.Store { return store.open(t) })
			objstoretest.RunUploads(t, func(t *testing.T) objstore.Store { return store.open(t) }, func(u *objstoretest.Uploads) {
				u.Down = func(t *testing.T) objstore.Store { return nowhere(t, store).open(t) }
			})
		})
		t.Run("rclone", func(t *testing.T) {
			t.Parallel()
			objstoretest.RunUploads(t, func(t *testing.T) objstore.Store { return store.rclone(t) }, func(u *objstoretest.Uploads) {
				u.Down = func(t *testing.T) objstore.Store { return nowhere(t, store).rclone(t) }
			})
		})
	})
	t.Run("recordings", func(t *testing.T) {
		for _, uploader := range []string{"s3", "rclone"} {
			t.Run("minio_"+uploader, func(t *testing.T) {
				t.Parallel()
				other := *store // two clouds never share a bucket
				other.bucket = "recordings-" + uploader
				other.connect(t)
				recordsInto(t, &other, uploader)
			})
		}
	})
}

// open is a client of its own.
func (o *objectStore) open(t testing.TB) *s3.Store {
	t.Helper()
	c, err := s3.New(s3.Config{Endpoint: o.url, Bucket: o.bucket, AccessKey: o.key, SecretKey: o.secret})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// nowhere is a store whose address nobody answers at.
func nowhere(t testing.TB, like *objectStore) *objectStore {
	o := *like
	o.url = "http://" + freePort(t)
	return &o
}

// rclone is the store with rclone as its uploader.
func (o *objectStore) rclone(t *testing.T) objstore.Store {
	t.Helper()
	r, err := rclone.New(t.Context(), rclone.Config{
		Store: o.open(t), Bucket: o.bucket, Dir: t.TempDir(), Log: vmstest.Log(t),
		S3: rclone.S3{Endpoint: o.url, AccessKey: o.key, SecretKey: o.secret},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// TestRclone: what rclone brings into our own store is what the plain uploader
// would have put there.
func TestRclone(t *testing.T) {
	t.Parallel()
	recordsInto(t, newObjectStore(t), "rclone")
}

// recordsInto records into a store, and wants every object to be there byte for
// byte as the worker makes it, with its row.
func recordsInto(t *testing.T, store *objectStore, uploader string) {
	tap := tapPush(t)
	o := rigOptions{stackOptions: store.stack(store.url)}
	o.front = tap.front(t)
	var calls *rcloneCalls
	if uploader == "rclone" {
		calls = newRcloneCalls(t)
		calls.use(&o.stackOptions)
	}
	r := newRig(t, o)
	r.stores(3)
	a := r.finish(time.Minute, nil)
	tl := r.timeline(r.ch)
	store.wantObjects(t, r.ch, tap.objects(t, r.ch), tl)
	store.wantRows(t, r.ch, tl)
	r.wantTidy()
	if calls != nil {
		calls.check(t, len(tl.Recordings), store.secret)
		if r.said(store.secret) > 0 {
			t.Error("the secret key is in the log")
		}
	}
	if a.recorded != a.captured {
		t.Errorf("%d units captured, %d recorded", a.captured, a.recorded)
	}
	for _, w := range a.wrong {
		t.Error(w)
	}
	t.Logf("%d units captured, %d recorded, in %d recordings", a.captured, a.recorded, len(tl.Recordings))
}
