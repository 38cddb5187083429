// Command vms-agent runs on a hub: it pulls IP cameras and pushes them to the
// cloud. "vms-agent enroll URL CODE" makes the hub known to a cloud, once;
// "vms-agent" runs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/zipato/vms/agent"
	"github.com/zipato/vms/pkg/obs"
)

// version is set by the linker.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "vms-agent:", err)
		}
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, fs, err := parse(args, os.LookupEnv, stderr)
	if err != nil {
		return err
	}
	if o.version {
		fmt.Fprintln(stdout, "vms-agent", version)
		return nil
	}
	switch {
	case fs.NArg() == 0:
		return serve(ctx, o, stderr)
	case fs.Arg(0) == "enroll" && fs.NArg() == 3:
		return enroll(ctx, o, fs.Arg(1), fs.Arg(2), stdout)
	}
	return fmt.Errorf("%q is no command; see vms-agent -help", strings.Join(fs.Args(), " "))
}

// overhead is what the Go runtime gets beside the footage: for the program's own
// data, the buffers of cameras and connections, and what garbage collection has
// not seen yet. With it and 24 MiB for footage, four cameras of 2 Mbit/s kept
// anonymous memory at 35 MB over an outage and its replay (make bench-spool).
const overhead = 12 << 20

func serve(ctx context.Context, o *options, stderr io.Writer) error {
	log, err := obs.NewLogger(stderr, o.logLevel, o.logFormat)
	if err != nil {
		return err
	}
	cfg := o.agent
	cfg.Version, cfg.Log = version, log
	if cfg.RAM == 0 {
		cfg.RAM = agent.AutoRAM(os.DirFS("/"))
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(cfg.RAM + overhead)
	}
	a, err := agent.New(cfg)
	if err != nil {
		return err
	}
	log.Info("agent starts", "hub", a.Hub(), "version", version, "ram", cfg.RAM)
	return a.Run(ctx)
}

func enroll(ctx context.Context, o *options, url, code string, stdout io.Writer) error {
	name, err := os.Hostname()
	if err != nil {
		name = "hub"
	}
	hub, err := agent.Enroll(ctx, url, code, name, o.agent.Dir)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "enrolled as %s\n", hub)
	return nil
}
