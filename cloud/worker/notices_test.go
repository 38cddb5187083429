package worker_test

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zipato/vms/cloud/worker"
	"github.com/zipato/vms/pkg/vms"
)

// TestNoticesAreBounded: while the NVR is away for hours, links come and go. What
// is stored is told then, all of it, in order; of the beginnings and ends the
// first and the latest, which still alternate.
func TestNoticesAreBounded(t *testing.T) {
	log := &lines{level: slog.LevelWarn}
	inBubble(t, func(r *rig) {
		const flaps = 100
		r.nvr.setFail(errors.New("away"))
		var want []string
		for i := range uint64(flaps) {
			a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
			a.init(1, 1)
			a.chunks(tape(r.t, 1, 10*i+1, 10*i+11, 100)...)
			a.isDurable(span(1, 10*i+1, 10*i+10))
			a.hangUp()
			want = append(want, fmt.Sprintf("recording ch %d-%d", 10*i+1, 10*i+10))
			time.Sleep(40 * time.Second)
		}
		if n := log.count("cannot tell"); n != 1 {
			r.t.Errorf("it was logged %d times that the NVR is away", n)
		}
		r.nvr.setFail(nil)
		time.Sleep(time.Minute)
		r.nvr.mu.Lock()
		defer r.nvr.mu.Unlock()
		var stored, events []string
		for _, x := range r.nvr.told {
			switch {
			case strings.HasPrefix(x, "recording"):
				stored = append(stored, x)
			case !strings.HasPrefix(x, "part"):
				events = append(events, x)
			}
		}
		if !slices.Equal(stored, want) {
			r.t.Errorf("of what is stored %q was told, want %q", stored, want)
		}
		if len(events) < 60 || len(events) > 70 {
			r.t.Errorf("%d beginnings and ends were told of %d", len(events), 2*flaps)
		}
		for i, x := range events {
			if word := []string{"started", "ended"}[i%2]; !strings.HasPrefix(x, word) {
				r.t.Fatalf("notice %d is %q, of %q", i, x, events)
			}
		}
		if r.nvr.told[0] != "started ch live 1" || events[len(events)-1] != "ended ch live 1 connection_lost" {
			r.t.Errorf("first %q, last %q", r.nvr.told[0], events[len(events)-1])
		}
	}, func(c *worker.Config) { c.Log = slog.New(log) })
}

// TestOneLaneDoesNotHideAnother: a pair is of one lane.
func TestOneLaneDoesNotHideAnother(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.nvr.setFail(errors.New("away"))
		var live *agent
		for i := range 60 {
			a := r.open(r.ticket("ch", 1), vms.LaneBackfill, 1)
			synctest.Wait()
			a.hangUp()
			time.Sleep(40 * time.Second)
			if i == 0 {
				live = r.open(r.ticket("ch", 1), vms.LaneLive, 1) // and stays
			}
		}
		last := r.open(r.ticket("ch", 1), vms.LaneBackfill, 1)
		r.nvr.setFail(nil)
		time.Sleep(time.Minute)
		r.nvr.mu.Lock()
		up := map[string]int{}
		for _, x := range r.nvr.told {
			f := strings.Fields(x)
			switch f[0] {
			case "started":
				up[f[2]]++
			case "ended":
				up[f[2]]--
			}
		}
		r.nvr.mu.Unlock()
		if up["live"] != 1 || up["backfill"] != 1 {
			r.t.Errorf("the NVR takes these to run: %v", up)
		}
		live.hangUp()
		last.hangUp()
	})
}
