package nvrlink

import (
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

// BenchmarkNotices tells the NVR of stored recordings, one after the other and
// as many at once as are allowed, over the loopback.
func BenchmarkNotices(b *testing.B) {
	h := NewHandler(HandlerConfig{Key: testKey, NVR: anything{}, Keys: testKeys, Log: slog.New(slog.DiscardHandler)})
	srv := httptest.NewServer(h)
	defer srv.Close()
	defer h.Shutdown(b.Context())
	c, err := NewClient(ClientConfig{
		URL: "ws" + strings.TrimPrefix(srv.URL, "http") + Path, Key: testKey, Info: testWorker,
		Load: func() (l vms.WorkerLoad) { return l }, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		b.Fatal(err)
	}
	go c.Run(b.Context()) //nolint:errcheck // ends with the benchmark
	for !c.Up() {
		time.Sleep(time.Millisecond)
	}
	r := testRecording(1)
	b.Run("one by one", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := c.RecordingUploaded(b.Context(), r); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("at once", func(b *testing.B) {
		b.ReportAllocs()
		b.SetParallelism(maxAsking)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if err := c.RecordingUploaded(b.Context(), r); err != nil {
					b.Error(err)
				}
			}
		})
	})
}
