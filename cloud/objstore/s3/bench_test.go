package s3_test

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/objstore"
	"github.com/zipato/vms/cloud/objstore/s3"
)

// BenchmarkPut stores a recording of 30 s at 2 Mbit/s. cpu-ms/op is the CPU of
// this process alone: the store is another one.
func BenchmarkPut(b *testing.B) {
	const size = 7_700_000
	data := noise(size)
	path := filepath.Join(b.TempDir(), "body")
	if dir, err := os.MkdirTemp("/dev/shm", "bench"); err == nil { // where recordings are
		defer os.RemoveAll(dir)
		path = filepath.Join(dir, "body")
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		b.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	for name, hash := range map[string]bool{"body": false, "body+sha256": true} {
		b.Run(name, func(b *testing.B) {
			store, err := s3.New(s3.Config{Endpoint: sink(b), Bucket: "vms", AccessKey: "access", SecretKey: "secret-key"})
			if err != nil {
				b.Fatal(err)
			}
			defer store.Close()
			in := objstore.PutInput{Size: size, SHA256: sha256.Sum256(data), ContentType: objstore.RecordingType, IfAbsent: true}
			b.SetBytes(size)
			b.ReportAllocs()
			before, ops := cpu(b), 0
			for b.Loop() {
				ops++
				in.Body = io.NewSectionReader(f, 0, size)
				if hash {
					h := sha256.New()
					if _, err := io.Copy(h, io.NewSectionReader(f, 0, size)); err != nil {
						b.Fatal(err)
					}
				}
				if err := store.Put(b.Context(), "recordings/c/2026-03-04/05-06-07.000000Z.1.mp4", in); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64((cpu(b)-before).Microseconds())/1000/float64(ops), "cpu-ms/op")
		})
	}
}

// cpu is what this process has used so far.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

const sinkVariable = "VMS_TEST_SINK"

// sink starts a store in a process of its own that takes everything and keeps
// nothing.
func sink(b *testing.B) string {
	cmd := exec.CommandContext(b.Context(), os.Args[0], "-test.run=^TestSink$")
	cmd.Env = append(os.Environ(), sinkVariable+"=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if url, ok := strings.CutPrefix(lines.Text(), "listening "); ok {
			return url
		}
	}
	b.Fatal("no store")
	return ""
}

// TestSink is the store of BenchmarkPut.
func TestSink(t *testing.T) {
	if os.Getenv(sinkVariable) == "" {
		t.Skip("a part of BenchmarkPut")
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		buf := make([]byte, 256<<10)
		for {
			if _, err := r.Body.Read(buf); err != nil {
				break
			}
		}
		agree(w, r)
	}))
	defer srv.Close()
	fmt.Println("listening", srv.URL)
	io.Copy(io.Discard, os.Stdin) // until our parent ends
}
