package main

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func write(t *testing.T, name, text string) string {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestTheLaterWins: file, environment, command line; and where each comes from.
func TestTheLaterWins(t *testing.T) {
	dir := t.TempDir()
	file := write(t, filepath.Join(dir, "agent.conf"), "\ufeff# made by hand\r\n\r\n  ram=8MiB\nflash = none\ndrain = 3s\nnames = hub # 1\nuplink-limit = sat=none, 4M\n")
	args := []string{"-data", dir, "config", "-drain", "5s"}
	o, s, words, err := parse(args, []string{"VMS_AGENT_FLASH=1G", "VMS_LOG_LEVEL=debug", "HOME=/", "VMS_LISTEN=of the cloud"})
	if err != nil {
		t.Fatal(err)
	}
	if len(words) != 1 || words[0] != "config" {
		t.Errorf("words %q", words)
	}
	c := o.agent
	if c.RAM != 8<<20 || c.Flash != 1<<30 || c.Drain.Seconds() != 5 || c.UplinkLimit != "sat=none, 4M" || o.logLevel != "debug" || c.Names[0] != "hub # 1" {
		t.Errorf("settings %+v", o)
	}
	var out bytes.Buffer
	s.print(&out)
	for _, want := range []string{
		"# " + file + ":3\nram = 8MiB\n", "# VMS_AGENT_FLASH\nflash = 1GiB\n", "# -drain\ndrain = 5s\n", "# VMS_LOG_LEVEL\nlog-level = debug\n",
		"# default\nbackfill-order = oldest\n", "# -data\ndata = " + dir + "\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	for _, no := range []string{"version", "json", "config ="} {
		if strings.Contains(out.String(), "\n"+no) {
			t.Errorf("%s is no setting:\n%s", no, out.String())
		}
	}

	// What it prints is a file that makes the same.
	again := write(t, filepath.Join(t.TempDir(), "again"), out.String())
	o2, s2, _, err := parse([]string{"-config", again}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range keys(s.fs) {
		if a, b := s.fs.Lookup(name).Value.String(), s2.fs.Lookup(name).Value.String(); a != b && name != "config" {
			t.Errorf("%s = %s, from what was printed %s", name, a, b)
		}
	}
	if o2.agent.RAM != 8<<20 {
		t.Errorf("RAM %d", o2.agent.RAM)
	}
}

// TestWhereTheFileIs: named by a flag or a variable it must be there; in the
// data directory it need not.
func TestWhereTheFileIs(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	named := write(t, filepath.Join(other, "x.conf"), "ram = 4MiB\ndata = "+dir+"\n")
	for name, tt := range map[string]struct {
		args, env []string
		ram       int64
	}{
		"flag":                          {[]string{"-config", named}, nil, 4 << 20},
		"variable":                      {nil, []string{"VMS_AGENT_CONFIG=" + named}, 4 << 20},
		"flag before variable":          {[]string{"-config=" + named}, []string{"VMS_AGENT_CONFIG=/nowhere"}, 4 << 20},
		"none":                          {[]string{"-data", dir}, nil, 0},
		"none in a directory not there": {[]string{"-data", filepath.Join(dir, "new")}, nil, 0},
	} {
		o, _, _, err := parse(tt.args, tt.env)
		if err != nil || o.agent.RAM != tt.ram {
			t.Errorf("%s: RAM %d, %v", name, o.agent.RAM, err)
		}
	}
	write(t, filepath.Join(dir, "agent.conf"), "ram = 5MiB")
	if o, _, _, err := parse(nil, []string{"VMS_AGENT_DATA=" + dir}); err != nil || o.agent.RAM != 5<<20 {
		t.Errorf("in the directory of the variable: %+v, %v", o, err)
	}
}

func TestWhatIsUnknownIsRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		args, env []string
		file      string
		want      []string
	}{
		"key":              {file: "# a\n\nrma = 8M\n", want: []string{"agent.conf:3", `"rma"`, "did you mean ram?"}},
		"key in capitals":  {file: "RAM = 8M\n", want: []string{"agent.conf:1", "did you mean ram?"}},
		"key like in code": {file: "flash_share = 0.5\n", want: []string{"did you mean flash-share?"}},
		"half a key":       {file: "limit = 4M", want: []string{"agent.conf:1", "did you mean uplink-limit?"}},
		"nothing like it":  {file: "bananas = 7\n", want: []string{`there is no key "bananas"`}},
		"no key":           {file: "ram 8M\n", want: []string{"agent.conf:1", "want key = value"}},
		"twice":            {file: "ram = 8M\nflash = none\nram = 9M\n", want: []string{"agent.conf:3", "ram is in line 1 already"}},
		"bad value":        {file: "\nram = much\n", want: []string{"agent.conf:2", `ram = "much"`, "want a size"}},
		"quotes":           {file: `spool = "/mnt/x"`, want: []string{"no quotes: spool = /mnt/x"}},
		"question":         {file: "version = true", want: []string{`no key "version"`}},
		"another file":     {file: "config = /etc/x", want: []string{"cannot name another"}},
		"own place":        {file: "data = /tmp", want: []string{"found in the data directory", "VMS_AGENT_DATA"}},
		"no text":          {file: "\xff\xfe", want: []string{"not UTF-8"}},
		"too long":         {file: strings.Repeat("# long\n", 10000), want: []string{"longer than 65536"}},
		"variable":         {env: []string{"VMS_AGENT_RMA=8M"}, want: []string{"VMS_AGENT_RMA", "did you mean VMS_AGENT_RAM?"}},
		"log variable":     {env: []string{"VMS_AGENT_LOG_LEVEL=debug"}, want: []string{"did you mean VMS_LOG_LEVEL?"}},
		"question there":   {env: []string{"VMS_AGENT_VERSION=true"}, want: []string{"there is no variable VMS_AGENT_VERSION"}},
		"flag":             {args: []string{"-flash-ful", "drop-oldest"}, want: []string{"there is no flag -flash-ful", "did you mean -flash-full?"}},
		"flag with value":  {args: []string{"--spol=/x"}, want: []string{"there is no flag -spol", "did you mean -spool?"}},
		"late flag":        {args: []string{"status", "--jsno"}, want: []string{"did you mean -json?"}},
		"flag without one": {args: []string{"-ram"}, want: []string{"needs an argument"}},
		"no such file":     {args: []string{"-config", "/nowhere/x.conf"}, want: []string{"/nowhere/x.conf"}},
		"bad flag":         {args: []string{"-drain", "2h"}, want: []string{"-drain: drain = 2h"}},
		"command":          {args: []string{"docter"}, want: []string{`"docter" is no command`, "did you mean doctor?"}},
		"enroll cut":       {args: []string{"enroll", "http://127.0.0.1"}, want: []string{"enroll URL CODE"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if tt.file != "" {
				write(t, filepath.Join(dir, "agent.conf"), tt.file)
			}
			err := run(t.Context(), append([]string{"-data", dir}, tt.args...), tt.env, io.Discard, io.Discard)
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q, want %q in it", err, want)
				}
			}
			if exitOf(err) != unusable {
				t.Errorf("exit status %d", exitOf(err))
			}
		})
	}
}

// TestEverySettingHasItsHelp, a value that it takes itself, and a name that
// variables can have.
func TestEverySettingHasItsHelp(t *testing.T) {
	fs := flags(new(options))
	fs.VisitAll(func(f *flag.Flag) {
		if f.Usage == "" || strings.ToLower(f.Name) != f.Name {
			t.Errorf("-%s: %q", f.Name, f.Usage)
		}
		if err := f.Value.Set(f.Value.String()); err != nil {
			t.Errorf("-%s refuses its own value %q: %v", f.Name, f.Value, err)
		}
	})
}

func exitOf(err error) int {
	e := &exit{status: failed}
	errors.As(err, &e)
	return e.status
}
