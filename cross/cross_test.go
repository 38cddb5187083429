package main

import (
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestChoose(t *testing.T) {
	all, err := choose(nil)
	if err != nil || len(all) != 7 {
		t.Errorf("without names: %d targets, %v; want all 7", len(all), err)
	}
	some, err := choose([]string{"armv5", "amd64"})
	if err != nil || len(some) != 2 || some[0].name != "armv5" || some[1].name != "amd64" {
		t.Errorf("by name: %v, %v", some, err)
	}
	if _, err := choose([]string{"z80"}); err == nil || !strings.Contains(err.Error(), "armv7") {
		t.Errorf("unknown name: %v, want an error that lists the known ones", err)
	}
}

// TestCheckStatic builds a small program for a hub, and looks at this
// machine's shell, which is linked dynamically.
func TestCheckStatic(t *testing.T) {
	dir := t.TempDir()
	src, bin := filepath.Join(dir, "main.go"), filepath.Join(dir, "hello")
	if err := os.WriteFile(src, []byte("package main\n\nfunc main() {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	hub := targets[len(targets)-1]
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", bin, src)
	cmd.Env = append(os.Environ(), append(hub.env, "GOOS=linux", "CGO_ENABLED=0", "GOFLAGS=")...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	if err := checkStatic(bin, hub); err != nil {
		t.Error(err)
	}
	if err := checkStatic(bin, targets[0]); err == nil {
		t.Errorf("a program for %s passes for %s", hub.name, targets[0].name)
	}
	if err := checkStatic(src, hub); err == nil {
		t.Error("a text file passes")
	}
	if runtime.GOARCH != "amd64" {
		t.Skip("what follows looks at this machine's shell, as amd64")
	}
	shell := target{machine: elf.EM_X86_64, class: elf.ELFCLASS64, order: binary.LittleEndian}
	if err := checkStatic("/bin/bash", shell); errors.Is(err, os.ErrNotExist) {
		t.Skip("no bash on this machine")
	} else if err == nil || !strings.Contains(err.Error(), "not static") {
		t.Errorf("a dynamic program: %v, want that it is not static", err)
	}
}

func TestSmokeWithoutEmulator(t *testing.T) {
	got, err := smoke(t.Context(), target{qemu: "qemu-of-no-machine"}, "x")
	if err != nil || !strings.Contains(got, "not installed") {
		t.Errorf("smoke = %q, %v; want a note", got, err)
	}
}

func TestReportFailsOnAnyTarget(t *testing.T) {
	var b strings.Builder
	err := report(&b, []result{
		{target: targets[0], size: 9_000_000, smoke: "vms-agent 1.0"},
		{target: targets[1], size: budget + 1, err: errors.New("too large")},
	})
	if err == nil || !strings.Contains(err.Error(), "1 of 2") {
		t.Errorf("report = %v, want 1 of 2 failed", err)
	}
	for _, want := range []string{"figure agent_size_amd64 9000000 bytes\n", "figure agent_size_arm64 12582913 bytes\n", "FAIL arm64: too large"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
}

func TestRunStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := run(ctx, &strings.Builder{}, t.TempDir(), release{version: "v"}, []string{"amd64"}); !errors.Is(err, context.Canceled) {
		t.Errorf("run = %v, want that it was cancelled", err)
	}
}
