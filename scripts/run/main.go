// Command run is `make run`: it starts the cloud, a hub's agent and a demo
// camera, each its own process, makes them known to each other through the
// public API, and prints one line beginning "ready " when video flows. A
// process that dies is started again, as a service manager would; Ctrl-C ends
// them all.
//
// CAMERA=rtsp://user:pass@host/path uses a real camera instead of the demo.
package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

const (
	// startWithin bounds the start of one process.
	startWithin = 30 * time.Second
	// settle is how long a process must have lived to be started again at once.
	settle = 10 * time.Second
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "run:", err)
		os.Exit(1)
	}
}

// stack is the running processes, in the order of their start.
type stack struct {
	bin    string
	procs  []*process
	failed context.CancelCauseFunc // a process cannot be kept running
}

// run returns nil when ctx ended, and otherwise why it could not go on.
func run(ctx context.Context, out io.Writer) (err error) {
	told := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	data, err := filepath.Abs(env("VMS_DATA", "data"))
	if err != nil {
		return err
	}
	s := &stack{bin: filepath.Dir(exe), failed: cancel}
	defer func() {
		s.stop()
		switch cause := context.Cause(ctx); {
		case told.Err() != nil:
			err = nil
		case cause != nil:
			err = cause
		}
	}()

	url, err := s.start(ctx, "vms-cloud", "listening ", "-data", data, "-log-level", env("VMS_LOG_LEVEL", "warn"))
	if err != nil {
		return err
	}
	token, err := os.ReadFile(filepath.Join(data, "admin-token"))
	if err != nil {
		return err
	}
	api := &client{base: url, token: strings.TrimSpace(string(token))}
	camera := os.Getenv("CAMERA")
	name := "Camera"
	if camera == "" {
		name = "Demo camera"
		line, err := s.start(ctx, "vms-demo-camera", "demo camera at ")
		if err != nil {
			return err
		}
		address, _, _ := strings.Cut(line, ",")
		camera = "rtsp://demo:" + env("VMS_DEMO_CAMERA_PASSWORD", "demo") + "@" + strings.TrimPrefix(address, "rtsp://")
	}
	hubDir := filepath.Join(data, "hub")
	hub, err := enrol(ctx, api, filepath.Join(s.bin, "vms-agent"), hubDir, url)
	if err != nil {
		return err
	}
	if _, err := s.start(ctx, "vms-agent", "", "-data", hubDir, "-log-level", env("VMS_LOG_LEVEL", "warn")); err != nil {
		return err
	}
	channel, err := api.channel(ctx, name, hub, camera)
	if err != nil {
		return err
	}
	if err := api.waitStreaming(ctx, channel); err != nil {
		return err
	}
	code, err := api.loginCode(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "ready %s/?login=%s\n", url, code)
	<-ctx.Done()
	return nil
}

// process is one program that is kept running.
type process struct {
	name  string
	args  []string
	lines chan string // of its standard output, until somebody has read enough
	stop  context.CancelFunc
	done  chan struct{}
}

// start keeps a program running, and returns what follows prefix on the first
// line of its standard output that begins so ("" returns at once).
func (s *stack) start(ctx context.Context, name, prefix string, args ...string) (string, error) {
	pctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	p := &process{name: name, args: args, lines: make(chan string, 16), stop: stop, done: make(chan struct{})}
	s.procs = append(s.procs, p)
	go func() {
		defer close(p.done)
		if err := p.keep(pctx, filepath.Join(s.bin, name)); err != nil {
			s.failed(fmt.Errorf("%s could not start: %w", name, err))
		}
	}()
	if prefix == "" {
		return "", nil
	}
	limit := time.NewTimer(startWithin)
	defer limit.Stop()
	for {
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-limit.C:
			return "", fmt.Errorf("%s did not start within %v", name, startWithin)
		case line := <-p.lines:
			if rest, ok := strings.CutPrefix(line, prefix); ok {
				return rest, nil
			}
		}
	}
}

// keep runs the program until ctx ends. One that dies before it ever settled
// is not started again: its reason stands on standard error.
func (p *process) keep(ctx context.Context, path string) error {
	settled := false
	for {
		began := time.Now()
		err := p.once(ctx, path)
		if ctx.Err() != nil {
			return nil
		}
		settled = settled || time.Since(began) > settle
		if !settled {
			return err
		}
		fmt.Fprintf(os.Stderr, "run: %s ended (%v); starting it again\n", p.name, err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second): // a program that dies at once must not spin
		}
	}
}

// once runs the program to its end. When ctx ends it is asked to end, and made
// to after twenty seconds.
func (p *process) once(ctx context.Context, path string) error {
	// The kernel ends the program when the thread that started it is gone: if
	// we are killed, nothing is left running.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, path, p.args...)
	cmd.Stderr = os.Stderr
	// Its own process group: Ctrl-C reaches us, and we end the programs in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	for sc := bufio.NewScanner(stdout); sc.Scan(); {
		select {
		case p.lines <- sc.Text():
		default: // nobody waits any more
		}
	}
	return cmd.Wait()
}

// stop ends the programs, the last one first: the agent still has a cloud to
// bring its last chunks to.
func (s *stack) stop() {
	for i := len(s.procs) - 1; i >= 0; i-- {
		s.procs[i].stop()
		<-s.procs[i].done
	}
}

func env(name, def string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return def
}
