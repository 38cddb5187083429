// Package doctor looks whether a hub can do its work, and says of what it finds
// one sentence each, and of what is wrong, one remedy.
package doctor

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/zipato/vms/agent/hubclock"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// limit bounds all checks together. Each has its own limit, below; what is not
// done then counts as not known.
const limit = 28 * time.Second

// checkTime bounds each check but that of a camera.
const checkTime = 8 * time.Second

// State is what a finding means.
type State string

// The states of a finding.
const (
	Good    State = "good"
	Problem State = "problem"
	Unknown State = "unknown" // it could not be looked at, because of what another finding says
)

// Finding is what one check found.
type Finding struct {
	// Check is what was looked at: kernel, memory, flash, clock, dns, nvr, mqtt,
	// camera or agent.
	Check string `json:"check"`
	// Subject is the channel of a camera.
	Subject string `json:"subject,omitempty"`
	State   State  `json:"state"`
	// Finding is a sentence, and so is Remedy, which every problem has.
	Finding string `json:"finding"`
	Remedy  string `json:"remedy,omitempty"`
	// Took is how long it took, milliseconds.
	Took int64 `json:"took_ms"`
}

// Report is all that was found. OK: nothing is wrong.
type Report struct {
	Hub     vms.HubID `json:"hub"`
	Agent   string    `json:"agent"`
	At      time.Time `json:"at"` // the hub's clock
	Running bool      `json:"running"`
	OK      bool      `json:"ok"`
	// Findings are in the order of the checks, cameras last.
	Findings []Finding `json:"findings"`
}

// Config is what there is to look at.
type Config struct {
	Hub     vms.HubID
	Version string
	// Root is the file system with proc.
	Root fs.FS

	// Spool is where footage is put on flash, and FlashShare how much of the free
	// space that may take; Flash says whether it is at all. Dir holds the small state.
	Dir, Spool string
	Flash      bool
	FlashShare float64
	// LeastFlash is what is of use, bytes.
	LeastFlash int64
	// Total and Available are the machine's memory, RAM what of it is for footage,
	// and RAMUsed how much of that is in use already, bytes. 0: not known.
	Total, Available, RAM, RAMUsed int64

	Clock  *hubclock.Clock
	Built  time.Time // of the program; zero: not known
	NVRURL string
	Roots  *x509.CertPool

	// Broker is what the cloud named; nil: nothing yet. Insecure: it may be reached
	// without TLS.
	Broker   *wire.Broker
	Insecure bool

	// Running is what the agent of this directory knows; nil: none runs, and what
	// it would do is tried.
	Running *Running
	Cameras []Camera
	// More are findings of the caller; they come first.
	More []Finding
}

// Running is how the connections of an agent are. Trying them a second time would
// end the first.
type Running struct {
	// ControlUp: the control line is up. Control is why not, nil before the first try.
	ControlUp bool
	Control   error
	// MQTTUp: connected to the broker. MQTT is what is wrong with it.
	MQTTUp bool
	MQTT   error
}

// Run looks at everything, in less than half a minute.
func Run(ctx context.Context, cfg Config) *Report {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	r := &Report{Hub: cfg.Hub, Agent: "vms-agent/" + cfg.Version, Running: cfg.Running != nil}
	machine := []func(context.Context) Finding{cfg.kernel, cfg.memory, cfg.flash}
	found := make([][]Finding, len(machine)+1+len(cfg.Cameras))
	var wg sync.WaitGroup
	for i, check := range machine {
		wg.Go(func() { found[i] = []Finding{timed(ctx, checkTime, check)} })
	}
	wg.Go(func() { found[len(machine)] = cfg.network(ctx) })
	for i, cam := range cfg.Cameras {
		wg.Go(func() {
			found[len(machine)+1+i] = []Finding{timed(ctx, cameraTime, cam.look)}
		})
	}
	wg.Wait()
	r.Findings = append(r.Findings, cfg.More...)
	for _, f := range found {
		r.Findings = append(r.Findings, f...)
	}
	r.At = cfg.Clock.Now()
	r.OK = !slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.State == Problem })
	return r
}

// timed runs a check within its limit.
func timed(ctx context.Context, most time.Duration, check func(context.Context) Finding) Finding {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	began := time.Now()
	f := check(ctx)
	f.Took = time.Since(began).Milliseconds()
	return f
}

// good, bad and unknown make findings.
func good(check, format string, args ...any) Finding {
	return Finding{Check: check, State: Good, Finding: fmt.Sprintf(format, args...)}
}

func bad(check, finding, remedy string) Finding {
	return Finding{Check: check, State: Problem, Finding: finding, Remedy: remedy}
}

func unknown(check, finding string) Finding {
	return Finding{Check: check, State: Unknown, Finding: finding}
}

// Print writes the report for people.
func (r *Report) Print(w io.Writer) error {
	var b strings.Builder
	how := "which is not running"
	if r.Running {
		how = "which is running"
	}
	fmt.Fprintf(&b, "hub %s with %s, %s; %s\n", r.Hub, r.Agent, how, r.At.UTC().Format("2006-01-02 15:04:05 UTC"))
	problems := 0
	marks := map[State]string{Good: "ok", Problem: "PROBLEM", Unknown: "?"}
	for _, f := range r.Findings {
		if f.State == Problem {
			problems++
		}
		name := f.Check
		if f.Subject != "" {
			name += " " + f.Subject
		}
		fmt.Fprintf(&b, "%-8s %s: %s\n", marks[f.State], name, f.Finding)
		if f.Remedy != "" {
			fmt.Fprintf(&b, "%-8s -> %s\n", "", f.Remedy)
		}
	}
	switch problems {
	case 0:
		b.WriteString("Nothing is wrong.\n")
	case 1:
		b.WriteString("1 problem found.\n")
	default:
		fmt.Fprintf(&b, "%d problems found.\n", problems)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
