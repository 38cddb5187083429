package embed_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"testing"

	"github.com/zipato/vms/cloud/embed"
	"github.com/zipato/vms/cloud/objstore"
	"github.com/zipato/vms/cloud/objstore/s3"
)

// A recording of 30 s at 2 Mbit/s, stored and synced.
func BenchmarkPutRecording(b *testing.B) {
	srv, err := embed.StartS3(b.Context(), embed.S3Config{
		Dir: b.TempDir(), Addr: "127.0.0.1:0", AccessKey: "access", SecretKey: "secret-key", Bucket: "vms", Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		b.Fatal(err)
	}
	defer srv.Close()
	store, err := s3.New(s3.Config{Endpoint: srv.URL(), Bucket: "vms", AccessKey: "access", SecretKey: "secret-key"})
	if err != nil {
		b.Fatal(err)
	}
	defer store.Close()
	body := make([]byte, 7_500_000)
	sum := sha256.Sum256(body)
	b.SetBytes(int64(len(body)))
	n := 0
	for b.Loop() {
		n++
		err := store.Put(b.Context(), fmt.Sprintf("recordings/c/2026-03-04/%d.mp4", n), objstore.PutInput{
			Body: bytes.NewReader(body), Size: int64(len(body)), SHA256: sum, ContentType: objstore.RecordingType, IfAbsent: true,
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}
