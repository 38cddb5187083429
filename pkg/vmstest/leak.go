package vmstest

import (
	"bytes"
	"runtime"
	"strings"
	"testing"
	"time"
)

// leakPatience is how long goroutines may take to end after the test: those
// that were told to stop need a few scheduler turns, on a busy machine many.
const leakPatience = 5 * time.Second

// NoLeaks fails t if a goroutine that was started after this call is still
// alive when t and its other cleanups are over. Call it first in a test; not in
// one that runs in parallel with others, whose goroutines it would count.
func NoLeaks(t testing.TB) { noLeaks(t, leakPatience) }

func noLeaks(t testing.TB, patience time.Duration) {
	before := make(map[string]bool)
	for _, g := range goroutines() {
		before[g.id] = true
	}
	t.Cleanup(func() {
		var left []goroutine
		deadline := time.Now().Add(patience)
		for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
			left = left[:0]
			for _, g := range goroutines() {
				if !before[g.id] && !g.harmless() {
					left = append(left, g)
				}
			}
			if len(left) == 0 {
				return
			}
			if time.Now().After(deadline) {
				break
			}
			time.Sleep(wait)
		}
		for _, g := range left {
			t.Errorf("goroutine left behind:\n%s", g.stack)
		}
	})
}

type goroutine struct {
	id    string
	stack string
}

// harmless reports whether g belongs to the test runner or the Go runtime,
// which start goroutines whenever they like.
func (g goroutine) harmless() bool {
	for _, f := range []string{
		"testing.tRunner(", "testing.(*T).Run(", "testing.(*M).", "testing.runTests(",
		"os/signal.signal_recv(", "os/signal.loop(", "runtime.ensureSigM(",
	} {
		if strings.Contains(g.stack, f) {
			return true
		}
	}
	return false
}

// goroutines returns all of them but the caller's.
func goroutines() []goroutine {
	buf := make([]byte, 64<<10)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	var all []goroutine
	for i, s := range bytes.Split(buf, []byte("\n\n")) {
		if i == 0 {
			continue // the caller comes first
		}
		// "goroutine 42 [select, 2 minutes]:"
		id, _, _ := strings.Cut(strings.TrimPrefix(string(s), "goroutine "), " ")
		all = append(all, goroutine{id: id, stack: string(s)})
	}
	return all
}
