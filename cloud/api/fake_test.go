package api

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"sync"
	"time"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// at has more than milliseconds, which no answer may show.
var at = time.Date(2026, 11, 22, 12, 0, 0, 123_456_789, time.FixedZone("CET", 3600))

// fakeNVR answers every call with the same things, or with err, and remembers
// what it was asked.
type fakeNVR struct {
	mu      sync.Mutex
	err     error
	panics  bool
	channel nvr.Channel // what there is
	page    nvr.Page
	spec    nvr.ChannelSpec
	patch   nvr.ChannelPatch
	query   nvr.RecordingQuery
	order   nvr.StartOptions
	start   bool // of Live
	command wire.Command
	wait    time.Duration // for it
	accts   []vms.AccountID

	hubPatch nvr.HubPatch
	drained  []vms.WorkerID

	events chan nvr.Event
	// unsubscribed is closed when a subscription's context has ended.
	unsubscribed chan struct{}
}

func newFakeNVR() *fakeNVR {
	return &fakeNVR{
		channel: nvr.Channel{
			ID: "ch_1", Account: "demo", Name: "Front door", Hub: "hub_1", Mode: nvr.ModeContinuous, CreatedAt: at,
			Camera: vms.Camera{URL: "rtsp://192.0.2.4/s", Username: "viewer"}, HasPassword: true,
			Schedule: "mon", PreRoll: 5, PostRoll: 30, Wanted: true, WantedUntil: at, Sync: wire.InSync, Recording: true,
			State: "streaming", Streaming: true, StreamingSince: at, Worker: "worker_1",
		},
		page: nvr.Page{
			From: at, To: at.Add(time.Minute),
			Recordings: []nvr.Recording{{
				ID:  "rec_1",
				URL: "http://127.0.0.1:9000/vms/x?X-Amz-Signature=1", URLExpiresAt: at,
				Recording: vms.Recording{Start: at, End: at.Add(30 * time.Second), Media: 30 * time.Second, Bytes: 7, SHA256: [32]byte{0xab}, Codecs: "avc1.64001f"},
			}},
			Gaps:       []vms.Gap{{ID: "gap_1", Cause: vms.CauseCameraOffline, TimeRange: vms.TimeRange{Start: at, End: at.Add(time.Second)}}},
			Pending:    []vms.TimeRange{{Start: at, End: at.Add(time.Second)}},
			NextCursor: "more",
		},
		events:       make(chan nvr.Event),
		unsubscribed: make(chan struct{}),
	}
}

// asked notes a call and says how it ends.
func (f *fakeNVR) asked(acct vms.AccountID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.accts = append(f.accts, acct)
	if f.panics {
		panic("secret detail")
	}
	return f.err
}

func (f *fakeNVR) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *fakeNVR) hub() nvr.Hub {
	return nvr.Hub{
		ID: "hub_1", Account: "demo", Name: "Villa", CreatedAt: at, EnrolledAt: at, Online: true, MQTT: true,
		TimeZone: "Europe/Zagreb", Zone: "fra1", Limits: wire.HubLimits{Uplink: "1M"}, Revision: 7,
		Reported: &wire.Reported{Hub: "hub_1", Boot: "b", Online: true, Serial: 3, Agent: "vms-agent 1", At: at, Revision: 6, State: wire.Syncing, Clock: &wire.ReportedClock{ErrorMS: 40, Source: "nvr"}},
	}
}

func (f *fakeNVR) CreateHub(_ context.Context, acct vms.AccountID, name string) (nvr.Hub, string, time.Time, error) {
	h := f.hub()
	h.Name, h.EnrolledAt = name, time.Time{}
	return h, "9K3M-7QX2-TB5R-0WZ8", at, f.asked(acct)
}

func (f *fakeNVR) Enroll(context.Context, string, ed25519.PublicKey, string) (nvr.Enrolment, error) {
	keys, _ := token.NewJWKS(make(ed25519.PublicKey, ed25519.PublicKeySize))
	return nvr.Enrolment{Hub: f.hub(), NVRURL: "ws://127.0.0.1:8080/session/v1", TokenKeys: keys}, f.asked("")
}

func (f *fakeNVR) Hubs(_ context.Context, acct vms.AccountID, _ string, _ int) ([]nvr.Hub, string, error) {
	return []nvr.Hub{f.hub()}, "", f.asked(acct)
}

func (f *fakeNVR) Hub(_ context.Context, acct vms.AccountID, _ vms.HubID) (nvr.Hub, error) {
	return f.hub(), f.asked(acct)
}

func (f *fakeNVR) RevokeHub(_ context.Context, acct vms.AccountID, _ vms.HubID) error {
	return f.asked(acct)
}

func (f *fakeNVR) CreateChannel(_ context.Context, acct vms.AccountID, spec nvr.ChannelSpec) (nvr.Channel, error) {
	f.mu.Lock()
	f.spec = spec
	f.mu.Unlock()
	return f.channel, f.asked(acct)
}

func (f *fakeNVR) Channels(_ context.Context, acct vms.AccountID, cursor string, limit int) ([]nvr.Channel, string, error) {
	f.mu.Lock()
	f.query = nvr.RecordingQuery{Cursor: cursor, Limit: limit}
	f.mu.Unlock()
	return []nvr.Channel{f.channel}, "next", f.asked(acct)
}

func (f *fakeNVR) Channel(_ context.Context, acct vms.AccountID, _ vms.ChannelID) (nvr.Channel, error) {
	return f.channel, f.asked(acct)
}

func (f *fakeNVR) UpdateChannel(_ context.Context, acct vms.AccountID, _ vms.ChannelID, p nvr.ChannelPatch) (nvr.Channel, error) {
	f.mu.Lock()
	f.patch = p
	f.mu.Unlock()
	return f.channel, f.asked(acct)
}

func (f *fakeNVR) DeleteChannel(_ context.Context, acct vms.AccountID, _ vms.ChannelID) error {
	return f.asked(acct)
}

func (f *fakeNVR) StreamToken(_ context.Context, acct vms.AccountID, _ vms.ChannelID) (nvr.StreamToken, error) {
	return nvr.StreamToken{Token: "t", NVRURL: "ws://127.0.0.1:8080/session/v1", SID: "sid_1", ExpiresAt: at}, f.asked(acct)
}

func (f *fakeNVR) StartChannel(_ context.Context, acct vms.AccountID, _ vms.ChannelID, o nvr.StartOptions) (nvr.StartResult, error) {
	return f.ordered(acct, o)
}

func (f *fakeNVR) StopChannel(_ context.Context, acct vms.AccountID, _ vms.ChannelID, o nvr.StartOptions) (nvr.StartResult, error) {
	return f.ordered(acct, o)
}

func (f *fakeNVR) ordered(acct vms.AccountID, o nvr.StartOptions) (nvr.StartResult, error) {
	f.mu.Lock()
	f.order = o
	f.mu.Unlock()
	r := nvr.StartResult{Revision: 7, HubOnline: true}
	if o.Wait > 0 {
		r.Report = &wire.ReportedItem{Channel: "ch_1", State: wire.InSync, Running: true, Stream: wire.StateStarting}
	}
	return r, f.asked(acct)
}

func (f *fakeNVR) UpdateHub(_ context.Context, acct vms.AccountID, _ vms.HubID, p nvr.HubPatch) (nvr.Hub, error) {
	f.mu.Lock()
	f.hubPatch = p
	f.mu.Unlock()
	return f.hub(), f.asked(acct)
}

func (f *fakeNVR) Workers() []nvr.WorkerStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := nvr.WorkerStatus{
		WorkerInfo: vms.WorkerInfo{
			ID: "ch_1", Instance: "run_1", Zone: "fra1", Version: "1.4", PushURL: "ws://w1/push/v1", LiveURL: "ws://w1/live/v1/mse",
			Capacity: vms.WorkerCapacity{Streams: 40, BytesPerSecond: 1e6},
		},
		WorkerLoad: vms.WorkerLoad{
			Streams: 2, Lanes: 3, Viewers: 4, BytesPerSecond: 5, TmpfsUsed: 6, TmpfsLimit: 7, Lag: 8 * time.Millisecond,
			UploadsWaiting: 9, Overloaded: true,
		},
		Assigned: 1, Since: at, Seen: at, State: nvr.WorkerUp,
	}
	if len(f.drained) > 0 {
		w.State = nvr.WorkerDraining
	}
	return []nvr.WorkerStatus{w}
}

func (f *fakeNVR) WorkersWanted() int { return 3 }

func (f *fakeNVR) DrainWorker(_ context.Context, id vms.WorkerID) error {
	err := f.asked("demo")
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		f.drained = append(f.drained, id)
	}
	return err
}

func (f *fakeNVR) Command(_ context.Context, acct vms.AccountID, _ vms.HubID, c wire.Command, wait time.Duration) (wire.CommandReply, error) {
	f.mu.Lock()
	f.command, f.wait = c, wait
	f.mu.Unlock()
	return wire.CommandReply{ID: "cmd_1", OK: true, Result: json.RawMessage(`{"findings":[]}`)}, f.asked(acct)
}

func (f *fakeNVR) Recordings(_ context.Context, acct vms.AccountID, _ vms.ChannelID, q nvr.RecordingQuery) (nvr.Page, error) {
	f.mu.Lock()
	f.query = q
	f.mu.Unlock()
	return f.page, f.asked(acct)
}

func (f *fakeNVR) Live(_ context.Context, acct vms.AccountID, _ vms.ChannelID, start bool) (nvr.LiveURLs, error) {
	f.mu.Lock()
	f.start = start
	f.mu.Unlock()
	return nvr.LiveURLs{MSE: "ws://127.0.0.1:8080/live/v1/mse?ticket=x", ExpiresAt: at}, f.asked(acct)
}

func (f *fakeNVR) Subscribe(ctx context.Context, acct vms.AccountID) <-chan nvr.Event {
	_ = f.asked(acct)
	context.AfterFunc(ctx, sync.OnceFunc(func() { close(f.unsubscribed) }))
	return f.events
}
