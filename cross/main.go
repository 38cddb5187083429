// Command cross builds vms-agent for every hub there is, shows that each binary
// is static and starts, and measures it against the size budget.
//
//	go run ./cross [-o build/cross] [-version v] [-built time] [target ...]
//
// It ends with status 1 when a target does not build, is not static, does not
// start under its emulator or is larger than the budget.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"text/tabwriter"
	"time"
)

// budget is what a hub's flash has room for, twice over: an update lies beside
// the running version. The libraries alone make 8 to 10 MB (arm, mips).
const budget = 12 << 20

// smokeTimeout is long: an emulated start on a busy machine takes seconds.
const smokeTimeout = time.Minute

func main() {
	out := flag.String("o", "build/cross", "folder for the binaries")
	version := flag.String("version", "dev", "version that the binaries report")
	built := flag.String("built", "", "time that the binaries take for past, RFC 3339: that of the commit")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout, *out, release{*version, *built}, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "cross:", err)
		os.Exit(1)
	}
}

// release is what the binaries know of themselves.
type release struct{ version, built string }

// result is what was found out about one target.
type result struct {
	target target
	size   int64
	smoke  string // what the emulator said, or why it was not asked
	err    error
}

func run(ctx context.Context, w io.Writer, dir string, rel release, names []string) error {
	chosen, err := choose(names)
	if err != nil {
		return err
	}
	var results []result
	for _, t := range chosen {
		fmt.Fprintf(w, "building %s\n", t.name)
		r := try(ctx, t, filepath.Join(dir, "vms-agent-"+t.name), rel)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		results = append(results, r)
	}
	return report(w, results)
}

// try builds and examines one target.
func try(ctx context.Context, t target, path string, rel release) result {
	r := result{target: t}
	if r.err = build(ctx, t, path, rel); r.err != nil {
		return r
	}
	info, err := os.Stat(path)
	if err != nil {
		r.err = err
		return r
	}
	r.size = info.Size()
	if r.err = checkStatic(path, t); r.err != nil {
		return r
	}
	if r.size > budget {
		r.err = fmt.Errorf("%d bytes, more than the budget of %d", r.size, int64(budget))
		return r
	}
	r.smoke, r.err = smoke(ctx, t, path)
	return r
}

func build(ctx context.Context, t target, path string, rel release) error {
	// A hub needs HTTP/1.1 only: for WebSocket, the local API, and PUT to presigned
	// URLs, which every object store takes that way. Without net/http's HTTP/2 the
	// agent is 0.6 MB smaller.
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-tags", "nethttpomithttp2",
		"-ldflags", "-s -w -X main.version="+rel.version+" -X main.builtAt="+rel.built, "-o", path, "./agent/cmd/vms-agent")
	cmd.Env = append(os.Environ(), append(t.env, "GOOS=linux", "CGO_ENABLED=0")...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}

// smoke starts the binary under user-mode emulation.
func smoke(ctx context.Context, t target, path string) (string, error) {
	qemu, err := exec.LookPath(t.qemu)
	if err != nil {
		return t.qemu + " is not installed", nil
	}
	ctx, cancel := context.WithTimeout(ctx, smokeTimeout)
	defer cancel()
	args := []string{path, "--version"}
	if t.cpu != "" {
		args = append([]string{"-cpu", t.cpu}, args...)
	}
	out, err := exec.CommandContext(ctx, qemu, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s --version under %s: %w\n%s", filepath.Base(path), t.qemu, err, out)
	}
	return firstLine(out), nil
}

// report prints the table for people and the figures for machines.
func report(w io.Writer, results []result) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "\ntarget\tbytes\tMiB\tof budget\tstarts\n")
	failed := 0
	for _, r := range results {
		if r.err != nil {
			failed++
			fmt.Fprintf(tw, "%s\t%d\t\t\tFAIL\n", r.target.name, r.size)
			continue
		}
		fmt.Fprintf(tw, "%s\t%d\t%.2f\t%d %%\t%s\n", r.target.name, r.size, float64(r.size)/(1<<20), r.size*100/budget, r.smoke)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	for _, r := range results {
		if r.size > 0 {
			fmt.Fprintf(w, "figure agent_size_%s %d bytes\n", r.target.name, r.size)
		}
	}
	for _, r := range results {
		if r.err != nil {
			fmt.Fprintf(w, "FAIL %s: %v\n", r.target.name, r.err)
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d targets failed", failed, len(results))
	}
	return nil
}
