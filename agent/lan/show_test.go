package lan

import (
	"bytes"
	"errors"
	"net"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/obs"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/wire"
)

// TestOverviewSaysWhatIsWrong and for the rest the figures.
func TestOverviewSaysWhatIsWrong(t *testing.T) {
	now := time.Date(2026, 11, 22, 17, 45, 1, 0, time.UTC)
	bound, days := int64(12), 4.0
	o := Overview{
		Status: Status{
			Hub: "hub_1", Version: "1.2", Time: now, TimeError: &bound, TimeSource: "nvr", Uptime: 11520, Control: "offline", ControlProblem: "refused",
			MQTT: "online", RAM: RAM{Used: 3 << 20, Limit: 24 << 20, Pressure: true},
			Flash:   &Flash{Used: 1 << 20, Limit: 1 << 29, WrittenToday: 2048, LifeDays: &days, Life: "At today's rate the chip lasts 4 more days.", Problem: "It is read-only."},
			Uplink:  Uplink{Measured: 8_000_000, Limit: 4_000_000, Sent: 3 << 30},
			Desired: &Desired{Revision: 7, State: "FAILED", Items: []wire.ReportedItem{{Channel: "ch_9", Origin: "cloud", Mode: wire.ModeScheduled, State: wire.Failed, Problem: "No such zone."}}},
		},
		Streams: []Stream{
			{Channel: "ch_1", Camera: "192.0.2.7:554", Origin: "cloud", Mode: "event", State: "streaming", Since: now, CapturedUntil: now, DurableUntil: now.Add(-95 * time.Second), HeldBytes: 5 << 20, FlashBytes: 1 << 20, HeldFrom: now.Add(-time.Hour)},
			{Channel: "ch_2", Origin: "spool", State: "stopped", Delivering: true, DroppedChunks: 3},
			{Channel: "ch_3", Camera: "cam", Origin: "lan", State: "auth", Problem: "The camera at cam refuses the password.", PacketsLost: 4, CameraAbsence: 90000},
		},
	}
	var out bytes.Buffer
	if err := o.Print(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"hub_1, vms-agent 1.2, up 3 h 12 min", "right to within 12 ms, says NVR", "offline: refused", "nearly full", "3.0 MiB of 24.0 MiB",
		"chip lasts 4 more days", "! It is read-only.", "8.0 Mbit/s measured, limited to 4.0 Mbit/s, 3.0 GiB sent", "revision 7, cannot be done as wanted",
		"waiting for an event", "captured up to now, stored up to 1 min 35 s ago; holds 5.0 MiB (1.0 MiB on flash, since 2026-11-22 16:45:01)",
		"what is held is being brought", "3 chunks had no room", "the camera refuses the password", "! The camera at cam", "4 packets were lost on the way, and 1 d 1 h without a picture",
		"ch_9\n  not pulled now, cannot be done as wanted  (for the cloud, scheduled)\n  ! No such zone.",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}

func TestClientAsksTheAgent(t *testing.T) {
	vmstest.NoLeaks(t)
	agent := &fakeAgent{}
	srv := httptest.NewServer(Handler(Config{Agent: agent, Key: key, Metrics: obs.NewRegistry(), Log: vmstest.Log(t)}))
	t.Cleanup(srv.Close)
	addr := srv.Listener.Addr().String()
	_, port, _ := net.SplitHostPort(addr)
	for _, listen := range []string{addr, ":" + port, "0.0.0.0:" + port, "localhost:" + port} {
		o, err := Client{Address: listen, Key: key}.Overview(t.Context())
		if err != nil || o.Status.Hub != "hub_1" || len(o.Streams) != 1 {
			t.Errorf("%s: %+v, %v", listen, o, err)
		}
	}
	var report struct{ OK bool }
	if err := (Client{Address: addr, Key: key}).Doctor(t.Context(), &report); err != nil || !report.OK {
		t.Errorf("doctor: %+v, %v", report, err)
	}
	if _, err := (Client{Address: addr, Key: "another"}).Overview(t.Context()); !errors.Is(err, vms.ErrUnauthorized) {
		t.Errorf("with another key: %v", err)
	}
	srv.Close()
	for _, listen := range []string{addr, "", "127.0.0.1:0", "nonsense"} {
		if _, err := (Client{Address: listen, Key: key}).Overview(t.Context()); !errors.Is(err, ErrNotThere) {
			t.Errorf("%q, where nobody listens: %v", listen, err)
		}
	}
}
