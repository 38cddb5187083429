package agent

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/agent/doctor"
	"github.com/zipato/vms/agent/lan"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/vmstest/camtest"
	"github.com/zipato/vms/pkg/wire"
)

func jsonOf(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// findings returns those of a check, and all as text.
func findings(t *testing.T, r *doctor.Report, check string) ([]doctor.Finding, string) {
	t.Helper()
	var out []doctor.Finding
	for _, f := range r.Findings {
		if f.Check == check {
			out = append(out, f)
		}
	}
	var text bytes.Buffer
	if err := r.Print(&text); err != nil {
		t.Fatal(err)
	}
	return out, text.String()
}

// TestDoctorAsksTheAgentThatRuns, which pulls no camera a second time, and tries
// for itself when none runs.
func TestDoctorAsksTheAgentThatRuns(t *testing.T) {
	vmstest.NoLeaks(t)
	c := newCloud(t)
	busy := camtest.Start(t, camtest.Options{Loop: true, Username: "admin", Password: "pa55"})
	idle := camtest.Start(t, camtest.Options{Loop: true})
	dir := enrolled(t, c)
	h := runHubWith(t, Config{Dir: dir, RAM: 8 << 20, Drain: 50 * time.Millisecond})
	cfg := Config{Dir: dir, RAM: 8 << 20, Listen: strings.TrimPrefix(h.url, "http://")}
	c.toHub <- c.desired(1, c.want(t, "ch_1", wire.ModeContinuous, busy.Camera()), c.unwanted(t, "ch_2", idle.Camera()))
	c.reported(t, "it runs", func(r *wire.Reported) bool { return item(r, "ch_1").Stream == wire.StateBuffering })

	r, err := Doctor(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	cams, text := findings(t, r, "camera")
	if !r.Running || !r.OK || len(cams) != 2 {
		t.Errorf("with an agent:\n%s", text)
	}
	if busy.Plays() != 1 || idle.Plays() != 1 {
		t.Errorf("the cameras were opened %d and %d times, want once each", busy.Plays(), idle.Plays())
	}
	if strings.Contains(text, "pa55") || !strings.Contains(text, "control line is up") || !strings.Contains(text, "told by NVR") {
		t.Errorf("it says:\n%s", text)
	}

	// The cloud asks the same.
	c.toHub <- &wire.Command{ID: "cmd_1", Kind: wire.CommandDoctor, Deadline: time.Now().Add(time.Minute)}
	answer := c.answer(t, "cmd_1")
	var told doctor.Report
	if err := json.Unmarshal(answer.Result, &told); err != nil || !answer.OK || !told.OK || len(told.Findings) != len(r.Findings) {
		t.Errorf("the command answers %+v, %v", answer, err)
	}

	// For people.
	o, err := Ask(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	var shown bytes.Buffer
	if err := o.Print(&shown); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"hub_1", "cloud   online", "says NVR", "ch_1", "continuous", "recording", "revision 1, as wanted", "ch_2\n  not pulled now"} {
		if !strings.Contains(shown.String(), want) {
			t.Errorf("status without %q:\n%s", want, shown.String())
		}
	}

	h.stop()
	plays := busy.Plays()
	r, err = Doctor(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	cams, text = findings(t, r, "camera")
	if r.Running || !r.OK || len(cams) != 2 || busy.Plays() != plays+1 || !strings.Contains(text, "sends H264") {
		t.Errorf("without an agent, %d times opened:\n%s", busy.Plays()-plays, text)
	}
	if _, err := Ask(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "no agent runs") {
		t.Errorf("Ask = %v", err)
	}
	// It has left nothing that would keep an agent from starting.
	runHubWith(t, Config{Dir: dir, Drain: 50 * time.Millisecond}).until("it runs again", func(s lan.Stream) bool { return s.Frames > 0 })
}

// TestDoctorWithoutTheLocalAPI says so and does what it can.
func TestDoctorWithoutTheLocalAPI(t *testing.T) {
	vmstest.NoLeaks(t)
	c := newCloud(t)
	dir := enrolled(t, c)
	runHubWith(t, Config{Dir: dir, Drain: 50 * time.Millisecond})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close() // nobody listens there
	for _, listen := range []string{"", l.Addr().String()} {
		r, err := Doctor(t.Context(), Config{Dir: dir, RAM: 8 << 20, Listen: listen})
		if err != nil {
			t.Fatal(err)
		}
		if own, text := findings(t, r, "agent"); r.OK || len(own) != 1 || len(r.Findings) < 7 || !strings.Contains(own[0].Remedy, "listen") {
			t.Errorf("report:\n%s", text)
		}
	}
}

// TestDoctorLeavesADirectoryAsItIs: it may be called by another user.
func TestDoctorLeavesADirectoryAsItIs(t *testing.T) {
	vmstest.NoLeaks(t)
	c := newCloud(t)
	dir := enrolled(t, c)
	before := tree(t, dir)
	if r, err := Doctor(t.Context(), Config{Dir: dir, RAM: 8 << 20}); err != nil || !r.OK {
		t.Errorf("%+v, %v", r, err)
	}
	if after := tree(t, dir); after != before {
		t.Errorf("%s, before %s", after, before)
	}
	if _, err := Doctor(t.Context(), Config{Dir: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "not enrolled") {
		t.Errorf("of a hub that is not enrolled: %v", err)
	}
}

func tree(t *testing.T, dir string) string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		all = append(all, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, " ")
}
