package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/vmstest/camtest"
)

// fullChaos: the outages are as long as the promise says, instead of as short
// as an everyday test can bear.
var fullChaos = os.Getenv("CHAOS") == "full"

// span is how long something lasts in the full matrix, and in its short form.
func span(full, short time.Duration) time.Duration {
	if fullChaos {
		return full
	}
	return short
}

// times is span for a number of times.
func times(full, short int) int {
	if fullChaos {
		return full
	}
	return short
}

// rig is a stack and one live camera, whose every access unit is booked.
type rig struct {
	*stack
	cam  *camtest.Camera
	book *ledger
	ch   vms.ChannelID
	rand *rand.Rand
}

// rigOptions say what a rig is made of.
type rigOptions struct {
	stackOptions
	size string // of the picture, which says how much there is to carry; 320x180 by default
	gop  int    // frames; 25 by default, which is a second
	idle bool   // the channel is not started
}

// newRig starts everything and, unless the channel stays idle, waits until footage flows.
func newRig(t *testing.T, o rigOptions) *rig {
	t.Helper()
	if o.recording == 0 {
		o.recording = span(10*time.Second, 4*time.Second)
	}
	if o.gop == 0 {
		o.gop = 25
	}
	r := &rig{book: newLedger()}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r.rand = rand.New(rand.NewPCG(seed, 0))
	r.cam = camtest.Start(t, camtest.Options{
		Source: camtest.Clip(t, vmstest.ClipSpec{Audio: "aac", GOP: o.gop, Size: o.size, Duration: 12800 * time.Millisecond}),
		Loop:   true, Live: true, Stamp: true, OnSent: r.book.add,
	})
	o.link = true
	r.stack = startStack(t, o.stackOptions)
	r.ch = r.addChannel("camera", r.cam.URL())
	if !o.idle {
		r.startChannel(r.ch)
		r.flows()
	}
	return r
}

// flows waits until the agent takes frames.
func (r *rig) flows() {
	r.t.Helper()
	n := -1
	r.eventually(90*time.Second, "frames come", func() bool {
		st, ok := r.peek()
		if !ok {
			return false
		}
		was := n
		n = st.Frames
		return was >= 0 && n > was && n > 10
	})
}

// peek returns the stream, if the agent answers and has it.
func (r *rig) peek() (agentStream, bool) {
	list, err := r.tryStreams()
	if err != nil {
		return agentStream{}, false
	}
	i := slices.IndexFunc(list, func(s agentStream) bool { return s.Channel == r.ch })
	if i < 0 {
		return agentStream{}, false
	}
	return list[i], true
}

// quiet freezes the camera, and waits until the agent has all that it sent.
func (r *rig) quiet() {
	r.t.Helper()
	r.cam.Freeze()
	last, since := -1, time.Now()
	r.eventually(30*time.Second, "the agent has what the camera sent", func() bool {
		st, ok := r.peek()
		if !ok || st.Frames != last {
			last, since = st.Frames, time.Now()
		}
		return ok && time.Since(since) > 700*time.Millisecond
	})
}

// caughtUp waits until the agent holds little more than the recording that is
// being made.
func (r *rig) caughtUp(within time.Duration) {
	r.t.Helper()
	r.eventually(within, "the backlog is brought", func() bool {
		tl, err := r.tryTimeline(r.ch)
		return err == nil && tl.toldUntil(time.Now().Add(-2*r.recording-5*time.Second))
	})
}

// toldUntil reports whether, from the first recording on, every instant before
// end is recorded or a gap for good. What the hub holds may be known late.
func (tl timeline) toldUntil(end time.Time) bool {
	var told []vms.TimeRange
	for _, r := range tl.Recordings {
		told = append(told, vms.TimeRange{Start: r.Start, End: r.End})
	}
	for _, g := range tl.Gaps {
		if g.Cause != vms.CauseHubUnreachable {
			told = append(told, g.TimeRange)
		}
	}
	slices.SortFunc(told, func(a, b vms.TimeRange) int { return a.Start.Compare(b.Start) })
	if len(told) == 0 {
		return false
	}
	until := told[0].End
	for _, r := range told[1:] {
		if r.Start.Sub(until) > time.Millisecond { // the API's times are rounded
			break
		}
		until = r.End
	}
	return !until.Before(end)
}

// endAgent ends the agent in order, and fails if that takes longer than the 5 s
// that are promised, and one in which a busy machine notices.
func (r *rig) endAgent() {
	r.t.Helper()
	const limit = 5*time.Second + time.Second
	begin := time.Now()
	r.agent.signal(syscall.SIGTERM)
	select {
	case <-r.agent.done:
	case <-time.After(limit):
		r.t.Errorf("the agent did not end within %v of SIGTERM", limit)
		<-r.agent.done
	}
	r.t.Logf("the agent ended within %v of SIGTERM", time.Since(begin).Round(time.Millisecond))
}

// finish stops the camera, lets everything be brought, and books it. The agent
// must hold nothing in the end.
func (r *rig) finish(within time.Duration, causes []vms.Cause) *audit {
	r.t.Helper()
	// It is stopped over the hub's control line, and a camera that is silent for
	// longer than a moment is one that is offline.
	r.eventually(60*time.Second, "the hub is online", r.online)
	r.quiet()
	r.stopped()
	return r.audited(within, causes)
}

// stopped ends the stream.
func (r *rig) stopped() {
	r.t.Helper()
	r.eventually(60*time.Second, "the channel can be stopped", func() bool {
		return r.try("POST", "/channels/"+string(r.ch)+"/stop", nil, nil) == nil
	})
}

// audited waits until the agent holds nothing of the stopped stream any more
// and its timeline changes no more, and books it.
func (r *rig) audited(within time.Duration, causes []vms.Cause) *audit {
	r.t.Helper()
	for limit := time.Now().Add(within); ; time.Sleep(100 * time.Millisecond) { // the pace of asking
		held, there := r.peek()
		if _, err := r.tryStreams(); err == nil && !there {
			break
		}
		if time.Now().After(limit) {
			r.t.Errorf("after %v the agent still holds something: %+v", within, held)
			break
		}
	}
	var tl timeline
	last, since := -1, time.Now()
	for limit := time.Now().Add(30 * time.Second); time.Now().Before(limit); time.Sleep(100 * time.Millisecond) {
		var err error
		if tl, err = r.tryTimeline(r.ch); err != nil || len(tl.Pending) > 0 || len(tl.Recordings) != last {
			last, since = len(tl.Recordings), time.Now()
			continue
		}
		if time.Since(since) > time.Second {
			break
		}
	}
	return r.book.settle(r.t, tl, causes)
}

// report prints the line of a fault, and fails the test when it is not ok.
func report(t *testing.T, name string, a *audit) {
	t.Helper()
	for _, w := range a.wrong {
		t.Error(w)
	}
	if a.recorded+a.declared != a.captured {
		t.Errorf("%d units captured, %d recorded and %d declared", a.captured, a.recorded, a.declared)
	}
	verdict := "ok"
	if t.Failed() {
		verdict = "FAIL"
	}
	fmt.Printf("fault %s captured %d recorded %d declared %d doubled %d verdict %s\n", name, a.captured, a.recorded, a.declared, a.doubled, verdict)
	t.Logf("gaps %v, about %v of pictures missing", a.causes, a.lost.Round(time.Millisecond))
}
