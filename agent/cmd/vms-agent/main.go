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
	"strings"
	"syscall"
	"time"

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

type options struct {
	data, listen, names, logLevel, logFormat string
	ram                                      int64
	drain                                    time.Duration
	version                                  bool
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var o options
	fs := flag.NewFlagSet("vms-agent", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		fmt.Fprint(stderr, "usage: vms-agent [flags]                    run\n       vms-agent [flags] enroll URL CODE    make this hub known to the cloud at URL\n\n")
		fs.PrintDefaults()
	}
	fs.StringVar(&o.data, "data", env("VMS_AGENT_DATA", "data/hub"), "directory of the hub's identity (VMS_AGENT_DATA)")
	fs.StringVar(&o.listen, "listen", env("VMS_AGENT_LISTEN", "127.0.0.1:8090"), "address of the local API, empty for none (VMS_AGENT_LISTEN)")
	fs.StringVar(&o.names, "names", env("VMS_AGENT_NAMES", ""), "host names, comma separated, under which the local API may be called (VMS_AGENT_NAMES)")
	fs.Int64Var(&o.ram, "ram", 64<<20, "bytes of RAM for footage that is not stored in the cloud yet, all cameras together")
	fs.DurationVar(&o.drain, "drain", 10*time.Second, "how long a stopped stream goes on sending what it holds")
	fs.StringVar(&o.logLevel, "log-level", env("VMS_LOG_LEVEL", "info"), "debug, info, warn or error (VMS_LOG_LEVEL)")
	fs.StringVar(&o.logFormat, "log-format", env("VMS_LOG_FORMAT", "text"), "text or json (VMS_LOG_FORMAT)")
	fs.BoolVar(&o.version, "version", false, "print the version")
	if err := fs.Parse(args); err != nil {
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

func serve(ctx context.Context, o options, stderr io.Writer) error {
	log, err := obs.NewLogger(stderr, o.logLevel, o.logFormat)
	if err != nil {
		return err
	}
	if o.ram < 1<<20 {
		return fmt.Errorf("-ram %d: at least 1 MiB is needed to hold one picture of a camera", o.ram)
	}
	cfg := agent.Config{Dir: o.data, Listen: o.listen, RAM: o.ram, Drain: o.drain, Version: version, Log: log}
	if o.names != "" {
		for name := range strings.SplitSeq(o.names, ",") {
			cfg.Names = append(cfg.Names, strings.TrimSpace(name))
		}
	}
	a, err := agent.New(cfg)
	if err != nil {
		return err
	}
	log.Info("agent starts", "hub", a.Hub(), "version", version)
	return a.Run(ctx)
}

func enroll(ctx context.Context, o options, url, code string, stdout io.Writer) error {
	name, err := os.Hostname()
	if err != nil {
		name = "hub"
	}
	hub, err := agent.Enroll(ctx, url, code, name, o.data)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "enrolled as %s\n", hub)
	return nil
}

func env(name, def string) string {
	if v, ok := os.LookupEnv(name); ok {
		return v
	}
	return def
}
