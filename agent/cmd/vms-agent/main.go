// Command vms-agent runs on a hub: it pulls IP cameras and pushes them to the
// cloud. "vms-agent enroll URL CODE" makes the hub known to a cloud, once;
// "vms-agent" runs; "vms-agent status", "doctor" and "config" tell how it is.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"
	_ "time/tzdata" // schedules are in the hub's time zone, and firmware has no zones

	"github.com/zipato/vms/agent"
	"github.com/zipato/vms/pkg/obs"
)

// Set by the linker.
var (
	version = "dev"
	// builtAt is the time of the commit, RFC 3339: before it no hub that runs this
	// can be. Empty: not known.
	builtAt = ""
)

// The exit statuses. For doctor 1 says that something is wrong, so what else
// fails there is 2, as is a command that cannot be read.
const (
	failed   = 1
	unusable = 2
)

// exit is an error with the status of its own; without an error inside, all was
// said already.
type exit struct {
	status int
	err    error
}

func (e *exit) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exit) Unwrap() error { return e.err }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	err := run(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr)
	if err == nil {
		return
	}
	if text := err.Error(); text != "" {
		fmt.Fprintln(os.Stderr, "vms-agent:", text)
	}
	e := &exit{status: failed}
	errors.As(err, &e)
	os.Exit(e.status)
}

const usage = `usage: vms-agent [settings]                    run
       vms-agent [settings] enroll URL CODE    make this hub known to the cloud at URL
       vms-agent [settings] status [-json]     how the hub and its cameras are
       vms-agent [settings] doctor [-json]     look whether all is well: exit status 0; 1: not; 2: cannot tell
       vms-agent [settings] config             print the settings, and where each comes from

SIZE is a number of bytes, or one with K, M, G or T (KiB, MiB, GiB, TiB: powers of 1024).
Each setting may also be a variable (VMS_AGENT_RAM for -ram, VMS_LOG_LEVEL for -log-level) or a line
of agent.conf in the data directory, or of the file that -config names: ram = 24MiB. A variable
prevails over the file, and a flag over both.

`

func run(ctx context.Context, args, environ []string, stdout, stderr io.Writer) error {
	o, s, words, err := parse(args, environ)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(stdout, usage)
		fs := flags(new(options))
		fs.SetOutput(stdout)
		fs.PrintDefaults()
		return nil
	}
	if err != nil {
		return &exit{unusable, err}
	}
	if o.version {
		fmt.Fprintln(stdout, "vms-agent", version)
		return nil
	}
	o.agent.Version = version
	if builtAt != "" {
		if o.agent.Built, err = time.Parse(time.RFC3339, builtAt); err != nil {
			return fmt.Errorf("this program was built wrong: %w", err)
		}
	}
	command := strings.Join(words, " ")
	switch {
	case command == "":
		return serve(ctx, o, stderr)
	case words[0] == "enroll" && len(words) == 3:
		return enroll(ctx, o, words[1], words[2], stdout)
	case command == "status":
		return status(ctx, o, stdout)
	case command == "doctor":
		return doctor(ctx, o, stdout)
	case command == "config":
		s.print(stdout)
		return nil
	case words[0] == "enroll":
		return &exit{unusable, errors.New("want enroll URL CODE")}
	}
	return &exit{unusable, fmt.Errorf("%q is no command%s", command, suggest(words[0], []string{"enroll", "status", "doctor", "config"}))}
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
	cfg.Log = log
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
	hub, err := agent.Enroll(ctx, url, code, name, o.agent.Dir, o.agent.CA...)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "enrolled as %s\n", hub)
	return nil
}

// statusTime is how long the local API may take; it answers from memory.
const statusTime = 10 * time.Second

func status(ctx context.Context, o *options, stdout io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, statusTime)
	defer cancel()
	overview, err := agent.Ask(ctx, o.agent)
	if err != nil {
		return err
	}
	if o.json {
		return printJSON(stdout, overview)
	}
	return overview.Print(stdout)
}

func doctor(ctx context.Context, o *options, stdout io.Writer) error {
	report, err := agent.Doctor(ctx, o.agent)
	if err != nil {
		return &exit{unusable, err}
	}
	if o.json {
		err = printJSON(stdout, report)
	} else {
		err = report.Print(stdout)
	}
	if err != nil {
		return &exit{unusable, err}
	}
	if !report.OK {
		return &exit{status: failed}
	}
	return nil
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
