package main

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"strings"
)

// target is one kind of hub.
type target struct {
	name string
	env  []string // for the go command
	qemu string   // user-mode emulator
	cpu  string   // its -cpu, where the default would forgive a wrong build

	machine elf.Machine
	class   elf.Class
	order   binary.ByteOrder
}

// targets are the hubs we build for. The mips ones have no floating point unit;
// Go's softfloat needs none, and no kernel help.
var targets = []target{
	{"amd64", []string{"GOARCH=amd64"}, "qemu-x86_64-static", "", elf.EM_X86_64, elf.ELFCLASS64, binary.LittleEndian},
	{"arm64", []string{"GOARCH=arm64"}, "qemu-aarch64-static", "", elf.EM_AARCH64, elf.ELFCLASS64, binary.LittleEndian},
	{"armv5", []string{"GOARCH=arm", "GOARM=5"}, "qemu-arm-static", "arm926", elf.EM_ARM, elf.ELFCLASS32, binary.LittleEndian},
	{"armv6", []string{"GOARCH=arm", "GOARM=6"}, "qemu-arm-static", "arm1176", elf.EM_ARM, elf.ELFCLASS32, binary.LittleEndian},
	{"armv7", []string{"GOARCH=arm", "GOARM=7"}, "qemu-arm-static", "cortex-a7", elf.EM_ARM, elf.ELFCLASS32, binary.LittleEndian},
	{"mips_softfloat", []string{"GOARCH=mips", "GOMIPS=softfloat"}, "qemu-mips-static", "24Kc", elf.EM_MIPS, elf.ELFCLASS32, binary.BigEndian},
	{"mipsle_softfloat", []string{"GOARCH=mipsle", "GOMIPS=softfloat"}, "qemu-mipsel-static", "24Kc", elf.EM_MIPS, elf.ELFCLASS32, binary.LittleEndian},
}

// choose returns the named targets, all without names.
func choose(names []string) ([]target, error) {
	if len(names) == 0 {
		return targets, nil
	}
	var out []target
next:
	for _, n := range names {
		for _, t := range targets {
			if t.name == n {
				out = append(out, t)
				continue next
			}
		}
		var known []string
		for _, t := range targets {
			known = append(known, t.name)
		}
		return nil, fmt.Errorf("unknown target %q; there are %s", n, strings.Join(known, ", "))
	}
	return out, nil
}

// checkStatic fails unless the file at path is a program for t that needs no
// dynamic linker and no shared library: hubs have their own libc, or another.
func checkStatic(path string, t target) error {
	f, err := elf.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if f.Machine != t.machine || f.Class != t.class || f.ByteOrder != t.order {
		return fmt.Errorf("it is for %s %s %s, want %s %s %s", f.Machine, f.Class, f.ByteOrder, t.machine, t.class, t.order)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			return fmt.Errorf("it is not static: it has a segment %s", p.Type)
		}
	}
	libs, err := f.ImportedLibraries()
	if err != nil {
		return err
	}
	if len(libs) > 0 {
		return fmt.Errorf("it is not static: it needs %s", strings.Join(libs, ", "))
	}
	return nil
}

func firstLine(b []byte) string {
	line, _, _ := bytes.Cut(bytes.TrimSpace(b), []byte("\n"))
	return string(line)
}
