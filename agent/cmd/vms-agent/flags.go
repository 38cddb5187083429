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
	names               string
	logLevel, logFormat string
	version             bool
}

// variables are the flags that can be given in the environment; a flag on the
// command line prevails.
var variables = []struct{ flag, name string }{
	{"data", "VMS_AGENT_DATA"}, {"listen", "VMS_AGENT_LISTEN"}, {"names", "VMS_AGENT_NAMES"},
	{"ram", "VMS_AGENT_RAM"}, {"spool", "VMS_AGENT_SPOOL"}, {"flash", "VMS_AGENT_FLASH"}, {"flash-share", "VMS_AGENT_FLASH_SHARE"},
	{"flash-full", "VMS_AGENT_FLASH_FULL"}, {"flash-endurance", "VMS_AGENT_FLASH_ENDURANCE"}, {"drain", "VMS_AGENT_DRAIN"},
	{"backfill-order", "VMS_AGENT_BACKFILL_ORDER"}, {"backfill-share", "VMS_AGENT_BACKFILL_SHARE"}, {"uplink-limit", "VMS_AGENT_UPLINK_LIMIT"},
	{"log-level", "VMS_LOG_LEVEL"}, {"log-format", "VMS_LOG_FORMAT"},
}

// flags defines the command line. What it sets is in o once it was parsed.
func flags(o *options, stderr io.Writer) *flag.FlagSet {
	fs := flag.NewFlagSet("vms-agent", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		fmt.Fprint(stderr, "usage: vms-agent [flags]                    run\n       vms-agent [flags] enroll URL CODE    make this hub known to the cloud at URL\n\n"+
			"SIZE is a number of bytes, or one with K, M, G or T (KiB, MiB, GiB, TiB: powers of 1024).\n"+
			"Each flag but -version may be given as a variable: VMS_AGENT_RAM for -ram, VMS_LOG_LEVEL for -log-level.\n\n")
		fs.PrintDefaults()
	}
	c := &o.agent
	*o = options{agent: agent.Config{Flash: 512 << 20, FlashShare: 0.5, BackfillShare: 0.75}}
	fs.StringVar(&c.Dir, "data", "data/hub", "directory of the hub's identity and small state")
	fs.StringVar(&c.Listen, "listen", "127.0.0.1:8090", "address of the local API, empty for none")
	fs.StringVar(&o.names, "names", "", "host names, comma separated, under which the local API may be called")
	fs.Var((*ramFlag)(&c.RAM), "ram", "`SIZE` of the RAM for footage that is not stored in the cloud yet, all cameras together;\n0: 3/8 of the memory or half of what is available, whichever is less, at most 1 GiB")
	fs.Var((*flashFlag)(&c.Flash), "flash", "`SIZE` of the flash memory for footage that no longer fits the RAM while the uplink is down; 0 or none: keep off it")
	fs.Var((*shareFlag)(&c.FlashShare), "flash-share", "never use more than this `share` of the free space")
	fs.Func("flash-full", "`policy` when all that is used: drop-oldest or refuse-new (default drop-oldest)", func(s string) error {
		c.RefuseNew = s == "refuse-new"
		return oneOf(s, "drop-oldest", "refuse-new")
	})
	fs.Var((*enduranceFlag)(&c.Endurance), "flash-endurance", "`SIZE` of all that the flash chip can take in its life, for the estimate of what is left; 0: 1000 times the size of its file system")
	fs.StringVar(&c.Spool, "spool", "", "`directory` on flash for that footage (default spool in -data)")
	fs.DurationVar(&c.Drain, "drain", 0, "how long the agent, told to end, goes on sending before the rest goes to flash (default 2s, 10s without flash)")
	fs.Func("backfill-order", "`order` in which an outage's recordings are brought: oldest or newest first (default oldest)", func(s string) error {
		c.NewestFirst = s == "newest"
		return oneOf(s, "oldest", "newest")
	})
	fs.Var((*shareFlag)(&c.BackfillShare), "backfill-share", "`share` of the measured uplink that an outage's footage may use")
	fs.StringVar(&c.UplinkLimit, "uplink-limit", "", limitHelp)
	fs.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	fs.StringVar(&o.logFormat, "log-format", "text", "text or json")
	fs.BoolVar(&o.version, "version", false, "print the version")
	return fs
}

// limitHelp is what -uplink-limit takes.
const limitHelp = "most bits per second that the hub sends: a `SCHEDULE` of rules, the first that matches holds, in the hub's time zone;\n4M, or mon-fri 08:00-18:00=1M, sat sun=none, 4M"

// fromEnvironment sets the flags that variables name.
func fromEnvironment(fs *flag.FlagSet, lookup func(string) (string, bool)) error {
	for _, v := range variables {
		value, ok := lookup(v.name)
		if !ok {
			continue
		}
		if err := fs.Set(v.flag, value); err != nil {
			return fmt.Errorf("%s=%q: %w", v.name, value, err)
		}
	}
	return nil
}

// parse reads environment and command line.
func parse(args []string, lookup func(string) (string, bool), stderr io.Writer) (*options, *flag.FlagSet, error) {
	var o options
	fs := flags(&o, stderr)
	if err := fromEnvironment(fs, lookup); err != nil {
		return nil, nil, err
	}
	if err := fs.Parse(args); err != nil {
		return nil, nil, err
	}
	if o.agent.Drain < 0 || o.agent.Drain > time.Hour {
		return nil, nil, fmt.Errorf("-drain %v: want 0 to 1h", o.agent.Drain)
	}
	if o.names != "" {
		for name := range strings.SplitSeq(o.names, ",") {
			o.agent.Names = append(o.agent.Names, strings.TrimSpace(name))
		}
	}
	return &o, fs, nil
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

func oneOf(s string, words ...string) error {
	for _, w := range words {
		if s == w {
			return nil
		}
	}
	return fmt.Errorf("want %s", strings.Join(words, " or "))
}
