// Command workerbench is a worker alone in its process, in front of an object
// store elsewhere: what the process costs is what the role costs. Its NVR takes
// every notice and keeps none; a ticket is the name of a channel.
package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	_ "net/http/pprof" // a profile says what is left above the floor
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/zipato/vms/cloud/objstore"
	"github.com/zipato/vms/cloud/objstore/s3"
	"github.com/zipato/vms/cloud/worker"
	"github.com/zipato/vms/cloud/worker/upload"
	"github.com/zipato/vms/pkg/obs"
	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "workerbench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	store := s3.Config{AccessKey: os.Getenv("VMS_S3_ACCESS_KEY"), SecretKey: os.Getenv("VMS_S3_SECRET_KEY")}
	cfg := worker.Config{
		ID: "worker_bench", NVR: notes{}, Metrics: obs.NewRegistry(),
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
		CheckPush: func(ticket string) (token.Push, error) {
			return token.Push{
				Worker: "worker_bench", Channel: vms.ChannelID(ticket), SID: vms.SID("sid_" + ticket), Hub: "hub_bench",
				Generation: 1, Expires: time.Now().Add(time.Hour),
			}, nil
		},
		CheckView: func(string) (token.View, error) { return token.View{}, vms.ErrUnauthorized },
	}
	var cert, key, put string
	var puts int
	flag.StringVar(&cfg.Dir, "dir", "", "where unfinished recordings are kept")
	flag.Int64Var(&cfg.DirBytes, "bytes", 4<<30, "how many bytes of them")
	flag.StringVar(&store.Endpoint, "s3-url", "", "the object store")
	flag.StringVar(&store.Bucket, "bucket", "", "its bucket")
	flag.StringVar(&cert, "cert", "", "certificate, for TLS")
	flag.StringVar(&key, "key", "", "its key")
	flag.StringVar(&put, "put", "", "only upload this file")
	flag.IntVar(&puts, "puts", 1, "so many times")
	flag.Parse()
	objects, err := s3.New(store)
	if err != nil {
		return err
	}
	defer objects.Close()
	if put != "" {
		return uploadFile(ctx, uploads{objects}, put, puts)
	}
	cfg.Store = uploads{objects}
	w, err := worker.New(cfg)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("/push", w.PushHandler())
	mux.Handle("/metrics", cfg.Metrics)
	mux.Handle("/debug/pprof/", http.DefaultServeMux)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return w.Run(ctx) })
	g.Go(func() error {
		defer srv.Close()
		<-ctx.Done()
		return nil
	})
	g.Go(func() (err error) {
		if cert != "" {
			err = srv.ServeTLS(l, cert, key)
		} else {
			err = srv.Serve(l)
		}
		if errors.Is(err, http.ErrServerClosed) {
			return nil
		}
		return err
	})
	fmt.Println("listening", l.Addr())
	return g.Wait()
}

// uploadFile does what a worker does with a recording that is complete: one pass
// for the checksum, and the upload.
func uploadFile(ctx context.Context, store upload.Store, path string, n int) error {
	u := upload.Uploader{Store: store, Slots: 1, Log: slog.Default()}
	var wg sync.WaitGroup
	for i := range n {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		h := sha256.New()
		size, err := io.Copy(h, f)
		f.Close()
		if err != nil {
			return err
		}
		link := fmt.Sprintf("%s.%d", path, i)
		if err := os.Link(path, link); err != nil { // the uploader removes what it has stored
			return err
		}
		start := time.Date(2026, 1, 1, 0, 0, i, 0, time.UTC)
		r := vms.Recording{
			Channel: "ch_bench", Key: vms.RecordingKey("ch_bench", start, uint32(i)), Number: uint32(i),
			Chunks: vms.ChunkRange{Epoch: 1, First: uint64(i)*100 + 1, Last: uint64(i)*100 + 100},
			Start:  start, End: start.Add(30 * time.Second), Media: 30 * time.Second,
			Bytes: size, SHA256: [32]byte(h.Sum(nil)), HeadLen: 100, InitLen: 50, Codecs: "avc1.64001f",
		}
		wg.Add(1)
		var lost error
		u.Submit(ctx, upload.Job{
			Recording: r, Path: link,
			Done: func(vms.Recording) { wg.Done() }, Lost: func(err error) { lost = err; wg.Done() },
		})
		wg.Wait()
		if lost != nil {
			return fmt.Errorf("upload %s: %w", filepath.Base(link), lost)
		}
	}
	return nil
}

// uploads is the object store as a worker sees it.
type uploads struct{ objstore.Store }

func (u uploads) Put(ctx context.Context, r vms.Recording, body io.ReadSeeker) error {
	err := u.Store.Put(ctx, r.Key, objstore.PutInput{
		Body: body, Size: r.Bytes, SHA256: r.SHA256, ContentType: "video/mp4",
		Metadata: objstore.RecordingMetadata(r), IfAbsent: true,
	})
	if errors.Is(err, objstore.ErrExists) {
		return errors.Join(vms.ErrConflict, err)
	}
	return err
}

func (u uploads) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	return u.Store.Get(ctx, key, 0, -1)
}

func (u uploads) Stat(ctx context.Context, key string) (vms.Recording, error) {
	o, err := u.Store.Stat(ctx, key)
	if err != nil {
		return vms.Recording{}, err
	}
	return objstore.ParseRecording(key, o)
}

// notes is an NVR that takes everything and knows nothing.
type notes struct{}

func (notes) StreamStarted(context.Context, vms.StreamEvent) error   { return nil }
func (notes) StreamEnded(context.Context, vms.StreamEvent) error     { return nil }
func (notes) RecordingUploaded(context.Context, vms.Recording) error { return nil }
func (notes) Viewers(context.Context, vms.ChannelID, int) error      { return nil }

func (notes) Parts(context.Context, vms.ChannelID, []vms.Epoch) ([]vms.Recording, error) {
	return nil, nil
}

func (notes) Wholes(context.Context, vms.ChannelID, vms.ChunkRange) ([]vms.ChunkRange, error) {
	return nil, nil
}

func (notes) AbandonedParts(context.Context, int) ([]vms.Recording, error) { return nil, nil }
