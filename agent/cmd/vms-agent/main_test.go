package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestWhatIsWrongIsSaid(t *testing.T) {
	for name, tt := range map[string]struct {
		args []string
		want string
	}{
		"not enrolled":    {nil, "not enrolled"},
		"no such command": {[]string{"reboot"}, "no command"},
		"enroll nowhere":  {[]string{"enroll", "nowhere", "code"}, "want http:// or https://"},
		"no RAM":          {[]string{"-ram", "1000"}, "at least 1 MiB"},
		"no such level":   {[]string{"-log-level", "loud"}, "loud"},
		"no such flag":    {[]string{"-colour"}, "colour"},
	} {
		t.Run(name, func(t *testing.T) {
			var out, errs bytes.Buffer
			err := run(t.Context(), append([]string{"-data", t.TempDir(), "-listen", ""}, tt.args...), nil, &out, &errs)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("run = %v, want %q in it", err, tt.want)
			}
		})
	}
}

func TestVersionAndHelp(t *testing.T) {
	t.Chdir(t.TempDir())
	var out, errs bytes.Buffer
	if err := run(t.Context(), []string{"-version"}, nil, &out, &errs); err != nil || out.String() != "vms-agent dev\n" {
		t.Errorf("-version: %q, %v", out.String(), err)
	}
	if err := run(t.Context(), []string{"-help"}, nil, &out, &errs); err != nil || !strings.Contains(out.String(), "enroll URL CODE") || !strings.Contains(out.String(), "-uplink-limit SCHEDULE") {
		t.Errorf("-help: %q, %v", out.String(), err)
	}
}
