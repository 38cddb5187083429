package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/zipato/vms/agent"
)

type options struct {
	agent               agent.Config
	names, ca           string
	logLevel, logFormat string
	version, json       bool
}

// flags defines the command line, which is what can be set at all. What it sets
// is in o once it was parsed.
func flags(o *options) *flag.FlagSet {
	fs := flag.NewFlagSet("vms-agent", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // main says what is wrong, once
	fs.Usage = func() {}
	c := &o.agent
	*o = options{agent: agent.Config{Flash: 512 << 20, FlashShare: 0.5, BackfillShare: 0.75}}
	fs.StringVar(&c.Dir, "data", "data/hub", "directory of the hub's identity and small state")
	fs.String("config", "", "`file` with settings (default agent.conf in -data, if there is one)")
	fs.StringVar(&c.Listen, "listen", "127.0.0.1:8090", "address of the local API, empty for none")
	fs.StringVar(&o.names, "names", "", "host names, comma separated, under which the local API may be called")
	fs.StringVar(&o.ca, "ca", "", "`files` in PEM, comma separated, with certificate authorities to trust beside the system's and the built-in ones")
	fs.StringVar(&c.SNTP, "sntp", "", "`host` or host:port of a time server that is asked too; the NVR's word counts more")
	fs.BoolVar(&c.Insecure, "insecure", false, "let an MQTT broker that is not on this machine be reached without TLS")
	fs.Var((*ramFlag)(&c.RAM), "ram", "`SIZE` of the RAM for footage that is not stored in the cloud yet, all cameras together;\n0: 3/8 of the memory or half of what is available, whichever is less, at most 1 GiB")
	fs.Var((*flashFlag)(&c.Flash), "flash", "`SIZE` of the flash memory for footage that no longer fits the RAM while the uplink is down; 0 or none: keep off it")
	fs.Var((*shareFlag)(&c.FlashShare), "flash-share", "never use more than this `share` of the free space")
	fs.Var(&choice{&c.RefuseNew, "drop-oldest", "refuse-new"}, "flash-full", "`policy` when all that is used: drop-oldest or refuse-new")
	fs.Var((*enduranceFlag)(&c.Endurance), "flash-endurance", "`SIZE` of all that the flash chip can take in its life, for the estimate of what is left; 0: 1000 times the size of its file system")
	fs.StringVar(&c.Spool, "spool", "", "`directory` on flash for that footage (default spool in -data)")
	fs.DurationVar(&c.Drain, "drain", 0, "how long the agent, told to end, goes on sending before the rest goes to flash (0: 2s, 10s without flash)")
	fs.Var(&choice{&c.NewestFirst, "oldest", "newest"}, "backfill-order", "`order` in which an outage's recordings are brought: oldest or newest first")
	fs.Var((*shareFlag)(&c.BackfillShare), "backfill-share", "`share` of the measured uplink that an outage's footage may use")
	fs.StringVar(&c.UplinkLimit, "uplink-limit", "", limitHelp)
	fs.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	fs.StringVar(&o.logFormat, "log-format", "text", "text or json")
	fs.BoolVar(&o.version, "version", false, "print the version")
	fs.BoolVar(&o.json, "json", false, "with status and doctor: print JSON")
	return fs
}

// limitHelp is what -uplink-limit takes.
const limitHelp = "most bits per second that the hub sends: a `SCHEDULE` of rules, the first that matches holds, in the hub's time zone;\n4M, or mon-fri 08:00-18:00=1M, sat sun=none, 4M"

// commandLine is what the program was called with: settings, a command with its
// words, and more settings, for who remembers them late.
type commandLine struct {
	args  []string
	words []string // after parse: the command and what belongs to it
}

// parse sets the flags in fs.
func (c *commandLine) parse(fs *flag.FlagSet) error {
	c.words = nil
	for rest := c.args; ; {
		if err := fs.Parse(rest); err != nil {
			// The flag package has no kinds of errors; a test watches this text.
			if bad, ok := strings.CutPrefix(err.Error(), "flag provided but not defined: "); ok {
				return fmt.Errorf("there is no flag %s%s", bad, suggest(bad, dashed(fs)))
			}
			return err
		}
		if fs.NArg() == 0 {
			return nil
		}
		c.words = append(c.words, fs.Arg(0))
		rest = fs.Args()[1:]
	}
}

func dashed(fs *flag.FlagSet) []string {
	var all []string
	fs.VisitAll(func(f *flag.Flag) { all = append(all, "-"+f.Name) })
	return all
}

// parse reads file, environment and command line.
func parse(args, environ []string) (*options, *settings, []string, error) {
	var o *options
	fresh := func() *flag.FlagSet {
		o = new(options)
		return flags(o)
	}
	c := &commandLine{args: args}
	s, err := read(fresh, c, environ)
	if err != nil {
		return nil, nil, nil, err
	}
	if o.agent.Drain < 0 || o.agent.Drain > time.Hour {
		return nil, nil, nil, fmt.Errorf("%s: drain = %v: want 0 to 1h", s.from["drain"], o.agent.Drain)
	}
	o.agent.Names, o.agent.CA = list(o.names), list(o.ca)
	return o, s, c.words, nil
}

// list splits at commas.
func list(s string) []string {
	var out []string
	for word := range strings.SplitSeq(s, ",") {
		if word = strings.TrimSpace(word); word != "" {
			out = append(out, word)
		}
	}
	return out
}

// parseSize reads 24MiB, 512M or 16777216.
func parseSize(s string) (int64, error) {
	const units = "KMGT"
	digits := strings.TrimRight(s, "KMGTiB")
	n, err := strconv.ParseInt(digits, 10, 64)
	shift, unit := 0, s[len(digits):]
	if unit != "" {
		i := strings.IndexByte(units, unit[0])
		if i < 0 || unit[1:] != "" && unit[1:] != "iB" {
			err = strconv.ErrSyntax
		}
		shift = 10 * (i + 1)
	}
	if err != nil || n < 0 || n > math.MaxInt64>>shift {
		return 0, errors.New("want a size, such as 16777216, 24MiB or 512M")
	}
	return n << shift, nil
}

func showSize(n int64) string {
	for i, unit := range []string{"TiB", "GiB", "MiB", "KiB"} {
		if shift := 40 - 10*i; n != 0 && n%(1<<shift) == 0 {
			return strconv.FormatInt(n>>shift, 10) + unit
		}
	}
	return strconv.FormatInt(n, 10)
}

// ramFlag is a budget in RAM; 0: find out.
type ramFlag int64

func (f *ramFlag) String() string { return showSize(int64(*f)) }

// Set implements flag.Value.
func (f *ramFlag) Set(s string) error {
	n, err := parseSize(s)
	if err == nil && n != 0 && n < 1<<20 {
		err = errors.New("at least 1 MiB is needed to hold one picture of a camera")
	}
	*f = ramFlag(n)
	return err
}

// flashFlag is a budget of flash; less than 0: none.
type flashFlag int64

func (f *flashFlag) String() string {
	if *f < 0 {
		return "none"
	}
	return showSize(int64(*f))
}

// Set implements flag.Value.
func (f *flashFlag) Set(s string) error {
	if s == "none" {
		*f = -1
		return nil
	}
	n, err := parseSize(s)
	switch {
	case err != nil:
		return err
	case n == 0:
		n = -1
	case n < agent.LeastFlash:
		return fmt.Errorf("less than %s is of no use; none switches it off", showSize(agent.LeastFlash))
	}
	*f = flashFlag(n)
	return nil
}

// enduranceFlag is a number of bytes.
type enduranceFlag int64

func (f *enduranceFlag) String() string { return showSize(int64(*f)) }

// Set implements flag.Value.
func (f *enduranceFlag) Set(s string) error {
	n, err := parseSize(s)
	*f = enduranceFlag(n)
	return err
}

// shareFlag is more than 0 and at most 1.
type shareFlag float64

func (f *shareFlag) String() string { return strconv.FormatFloat(float64(*f), 'g', -1, 64) }

// Set implements flag.Value.
func (f *shareFlag) Set(s string) error {
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || !(v > 0 && v <= 1) {
		return errors.New("want a share, more than 0 and at most 1")
	}
	*f = shareFlag(v)
	return nil
}

// choice is one of two words.
type choice struct {
	second  *bool
	no, yes string
}

func (c *choice) String() string {
	switch {
	case c.second == nil: // the flag package asks a zero one
		return ""
	case *c.second:
		return c.yes
	}
	return c.no
}

// Set implements flag.Value.
func (c *choice) Set(s string) error {
	if s != c.no && s != c.yes {
		return fmt.Errorf("want %s or %s", c.no, c.yes)
	}
	*c.second = s == c.yes
	return nil
}
