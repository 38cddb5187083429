package main

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/agent"
)

func TestFlags(t *testing.T) {
	def := agent.Config{Dir: "data/hub", Listen: "127.0.0.1:8090", Flash: 512 << 20, FlashShare: 0.5, BackfillShare: 0.75}
	with := func(edit func(*agent.Config)) agent.Config {
		c := def
		edit(&c)
		return c
	}
	for name, tt := range map[string]struct {
		args []string
		env  map[string]string
		want agent.Config
		err  string
	}{
		"none":               {want: def},
		"RAM in MiB":         {args: []string{"-ram", "24MiB"}, want: with(func(c *agent.Config) { c.RAM = 24 << 20 })},
		"RAM in M":           {args: []string{"-ram", "24M"}, want: with(func(c *agent.Config) { c.RAM = 24 << 20 })},
		"RAM in bytes":       {args: []string{"-ram=33554432"}, want: with(func(c *agent.Config) { c.RAM = 32 << 20 })},
		"RAM automatic":      {args: []string{"-ram", "0"}, want: def},
		"RAM too little":     {args: []string{"-ram", "1000"}, err: "at least 1 MiB"},
		"RAM without number": {args: []string{"-ram", "MiB"}, err: "want a size"},
		"RAM below zero":     {args: []string{"-ram", "-5"}, err: "want a size"},
		"RAM decimal":        {args: []string{"-ram", "24MB"}, err: "want a size"},
		"RAM with a space":   {args: []string{"-ram", "24 MiB"}, err: "want a size"},
		"RAM of all worlds":  {args: []string{"-ram", "99999999999T"}, err: "want a size"},
		"RAM empty":          {args: []string{"-ram", ""}, err: "want a size"},

		"flash":             {args: []string{"-flash", "2GiB"}, want: with(func(c *agent.Config) { c.Flash = 2 << 30 })},
		"flash off":         {args: []string{"-flash", "none"}, want: with(func(c *agent.Config) { c.Flash = -1 })},
		"flash of 0":        {args: []string{"-flash", "0"}, want: with(func(c *agent.Config) { c.Flash = -1 })},
		"flash too little":  {args: []string{"-flash", "1M"}, err: "less than 16MiB"},
		"share":             {args: []string{"-flash-share", "0.25"}, want: with(func(c *agent.Config) { c.FlashShare = 0.25 })},
		"share of all":      {args: []string{"-flash-share", "1"}, want: with(func(c *agent.Config) { c.FlashShare = 1 })},
		"share of nothing":  {args: []string{"-flash-share", "0"}, err: "want a share"},
		"share of too much": {args: []string{"-flash-share", "50"}, err: "want a share"},
		"share NaN":         {args: []string{"-flash-share", "NaN"}, err: "want a share"},
		"refuse new":        {args: []string{"-flash-full", "refuse-new"}, want: with(func(c *agent.Config) { c.RefuseNew = true })},
		"drop oldest":       {args: []string{"-flash-full", "drop-oldest"}, env: map[string]string{"VMS_AGENT_FLASH_FULL": "refuse-new"}, want: def},
		"full otherwise":    {args: []string{"-flash-full", "stop"}, err: "drop-oldest or refuse-new"},
		"authorities":       {args: []string{"-ca", "/etc/a.pem,/etc/b.pem"}, want: with(func(c *agent.Config) { c.CA = []string{"/etc/a.pem", "/etc/b.pem"} })},
		"time server":       {args: []string{"-sntp", "time.local"}, want: with(func(c *agent.Config) { c.SNTP = "time.local" })},
		"insecure":          {env: map[string]string{"VMS_AGENT_INSECURE": "true"}, want: with(func(c *agent.Config) { c.Insecure = true })},
		"endurance":         {args: []string{"-flash-endurance", "4T"}, want: with(func(c *agent.Config) { c.Endurance = 4 << 40 })},
		"spool":             {args: []string{"-spool", "/mnt/x"}, want: with(func(c *agent.Config) { c.Spool = "/mnt/x" })},

		"newest first":   {args: []string{"-backfill-order", "newest"}, want: with(func(c *agent.Config) { c.NewestFirst = true })},
		"no such order":  {args: []string{"-backfill-order", "random"}, err: "oldest or newest"},
		"backfill share": {args: []string{"-backfill-share", "0.5"}, want: with(func(c *agent.Config) { c.BackfillShare = 0.5 })},
		"limit":          {args: []string{"-uplink-limit", "mon-fri 08:00-18:00=1M, 4M"}, want: with(func(c *agent.Config) { c.UplinkLimit = "mon-fri 08:00-18:00=1M, 4M" })},
		"drain":          {args: []string{"-drain", "3s"}, want: with(func(c *agent.Config) { c.Drain = 3 * time.Second })},
		"drain for ever": {args: []string{"-drain", "1000h"}, err: "want 0 to 1h"},
		"names":          {args: []string{"-names", "hub.local, hub"}, want: with(func(c *agent.Config) { c.Names = []string{"hub.local", "hub"} })},

		"variables": {
			env: map[string]string{"VMS_AGENT_RAM": "32MiB", "VMS_AGENT_FLASH": "none", "VMS_AGENT_DATA": "/data", "VMS_AGENT_LISTEN": "", "VMS_AGENT_BACKFILL_ORDER": "newest", "VMS_AGENT_DRAIN": "1s"},
			want: with(func(c *agent.Config) {
				c.RAM, c.Flash, c.Dir, c.Listen, c.NewestFirst, c.Drain = 32<<20, -1, "/data", "", true, time.Second
			}),
		},
		"flag before variable": {args: []string{"-ram", "8M"}, env: map[string]string{"VMS_AGENT_RAM": "32MiB"}, want: with(func(c *agent.Config) { c.RAM = 8 << 20 })},
		"bad variable":         {env: map[string]string{"VMS_AGENT_FLASH": "much"}, err: `VMS_AGENT_FLASH: flash = "much": want a size`},
	} {
		t.Run(name, func(t *testing.T) {
			var environ []string
			for k, v := range tt.env {
				environ = append(environ, k+"="+v)
			}
			// The default directory is below the working one.
			t.Chdir(t.TempDir())
			o, _, _, err := parse(tt.args, environ)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error %v, want %q in it", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(o.agent, tt.want) {
				t.Errorf("config %+v, want %+v", o.agent, tt.want)
			}
		})
	}
}
