// Command demo-camera is the camera of `make run` for machines without one: an
// RTSP server with Digest authentication that loops a clip with picture, sound
// and a burnt-in clock. make-clip.sh made the clip.
package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/zipato/vms/pkg/vmstest/camtest"
)

//go:embed demo.ts
var clip []byte

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "demo-camera:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends. The line that it writes to out says that it does.
func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("demo-camera", flag.ContinueOnError)
	listen := flags.String("listen", env("VMS_DEMO_CAMERA_LISTEN", "127.0.0.1:8554"), "address to serve RTSP on (VMS_DEMO_CAMERA_LISTEN)")
	path := flags.String("path", "demo", "path of the stream")
	user := flags.String("user", "demo", "user name")
	password := flags.String("password", env("VMS_DEMO_CAMERA_PASSWORD", "demo"), "password (VMS_DEMO_CAMERA_PASSWORD)")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return nil
	case err != nil:
		return err
	case flags.NArg() > 0:
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	media, err := camtest.Read(bytes.NewReader(clip))
	if err != nil {
		return fmt.Errorf("read the clip: %w", err)
	}
	cam, err := camtest.New(camtest.Options{
		Addr: *listen, Path: *path, Username: *user, Password: *password,
		Source: media, Loop: true, Shared: true,
	})
	if err != nil {
		return err
	}
	if err := cam.Start(); err != nil {
		return fmt.Errorf("%w (set VMS_DEMO_CAMERA_LISTEN to another address)", err)
	}
	defer cam.Close()
	// Without the credentials: this line ends up in logs.
	fmt.Fprintf(out, "demo camera at rtsp://%s/%s, user %s\n", cam.Addr(), *path, *user)
	<-ctx.Done()
	return nil
}

func env(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}
