// Command objectstore is an object store in a process of its own, as a cloud
// that is given -s3-url uses one: tests cut the way to it.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/zipato/vms/cloud/embed"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "objectstore:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	cfg := embed.S3Config{AccessKey: os.Getenv("VMS_S3_ACCESS_KEY"), SecretKey: os.Getenv("VMS_S3_SECRET_KEY")}
	flag.StringVar(&cfg.Dir, "dir", "", "where it keeps the objects")
	flag.StringVar(&cfg.Addr, "listen", "", "its address")
	flag.StringVar(&cfg.Bucket, "bucket", "", "its one bucket")
	flag.Parse()
	s, err := embed.StartS3(ctx, cfg)
	if err != nil {
		return err
	}
	fmt.Println("listening", s.URL())
	return s.Run(ctx)
}
