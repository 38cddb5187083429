package wire

import (
	"bytes"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

// Golden files are the promise to every agent that is out there: they never
// change. -update writes the ones that do not exist yet and touches no other.
var update = flag.Bool("update", false, "create missing golden files; existing ones are never changed")

// at is a time with microseconds, as chunks carry it.
func at(sec, micro int) time.Time {
	return time.Date(2026, 11, 22, 10, 30, sec, micro*1000, time.UTC)
}

const (
	epochA vms.Epoch = 0x0123456789abcdef
	epochB vms.Epoch = 0xfedcba9876543210
)

// payload is the least that passes for a moof and an mdat box.
var payload = []byte("\x00\x00\x00\x08moof\x00\x00\x00\x0cmdatABCD")

func goldenChunk(f vms.Flags) vms.Chunk {
	return vms.Chunk{
		Epoch: epochA, Seq: 4711, Recording: 12, Init: 3, Flags: f,
		Start: at(1, 250_000), End: at(1, 450_001), CameraTime: at(1, 198_765),
		MoofLen: 8, CRC: Checksum(payload), Payload: payload,
	}
}

func goldenChunks() map[string]vms.Chunk {
	largest := goldenChunk(vms.FlagKey)
	largest.Epoch, largest.Seq = 0xffffffffffffffff, 0xffffffffffffffff
	largest.Recording, largest.Init = 0xffffffff, 0xffffffff
	largest.End = maxTime
	noCamera := goldenChunk(0)
	noCamera.CameraTime = time.Time{}
	first := goldenChunk(vms.FlagFirst | vms.FlagKey)
	first.Seq, first.Recording, first.Init = 1, 0, 1
	return map[string]vms.Chunk{
		"chunk-plain":           goldenChunk(0),
		"chunk-key":             goldenChunk(vms.FlagKey),
		"chunk-first-key":       first,
		"chunk-first-dependent": goldenChunk(vms.FlagFirst | vms.FlagDependent),
		"chunk-preview-key":     goldenChunk(vms.FlagPreview | vms.FlagKey),
		"chunk-preview":         goldenChunk(vms.FlagPreview),
		"chunk-uncertain":       goldenChunk(vms.FlagFirst | vms.FlagKey | vms.FlagTimeUncertain),
		"chunk-no-camera-time":  noCamera,
		"chunk-largest-numbers": largest,
	}
}

func goldenPush() map[string]PushMessage {
	return map[string]PushMessage{
		"hello":          &Hello{Agent: "vms-agent 1.0.0", Lane: vms.LaneLive, Epochs: []vms.Epoch{epochA, epochB}},
		"hello-backfill": &Hello{Agent: "vms-agent 1.0.0", Lane: vms.LaneBackfill, Epochs: []vms.Epoch{epochB}},
		"init": &InitMessage{Epoch: epochA, ID: 3, Segment: []byte("\x00\x00\x00\x08ftyp\x00\x00\x00\x08moov"), Tracks: []vms.Track{
			{ID: 1, Kind: "video", Codec: "avc1.64001f", Timescale: 90000, Width: 1280, Height: 720},
			{ID: 2, Kind: "audio", Codec: "mp4a.40.2", Timescale: 48000, SampleRate: 48000, Channels: 2},
		}},
		"gap":      &GapMessage{ID: "gap_01", Chunks: vms.ChunkRange{Epoch: epochA, First: 100, Last: 250}, Cause: vms.CauseBufferFull},
		"pressure": &Pressure{Held: 30_000_000, Budget: 33_554_432},
		"end":      &End{Epoch: epochA, Seq: 4711, Cause: "stopped"},
		"welcome": &Welcome{
			Instance: "inst_01", Generation: 7,
			Have:     []vms.ChunkRange{{Epoch: epochA, First: 1, Last: 4700}, {Epoch: epochB, First: 9, Last: 9}},
			MaxChunk: 16 << 20, Credit: 4 << 20, ResumeTicket: "eyJ.resume.ticket", Watched: true,
		},
		"welcome-plain": &Welcome{Instance: "inst_01", Generation: 1, Have: []vms.ChunkRange{}, MaxChunk: 8 << 20, ResumeTicket: "eyJ.resume.ticket"},
		"ack": &Ack{
			Received: 311, Durable: []vms.ChunkRange{{Epoch: epochB, First: 1, Last: 150}, {Epoch: epochA, First: 1, Last: 300}},
			Credit: 12_345_678, Hold: HoldStore, Watched: true,
		},
		"ack-tmpfs": &Ack{Received: 311, Credit: 12_345_678, Hold: HoldTmpfs},
		"ack-plain": &Ack{Received: 0, Credit: 0},
		"error":     &ErrorMessage{Code: CodeDraining, Class: ClassReassign, Message: "the worker is going away", RetryAfterMS: 1500},
		"error-skip": &ErrorMessage{
			Code: CodeTooLarge, Class: ClassSkip, Message: "a chunk of 20000000 bytes, more than 16777216", Epoch: epochA, Seq: 4711,
		},
		"error-retry": &ErrorMessage{Code: CodeInternal, Class: ClassRetry, Message: "the worker's own fault"},
		"error-stop":  &ErrorMessage{Code: CodeRevoked, Class: ClassStop, Message: "the channel is gone"},
	}
}

func goldenSession() map[string]SessionMessage {
	held := []HeldRange{
		{Chunks: vms.ChunkRange{Epoch: epochA, First: 4600, Last: 4711}, Start: at(1, 0), End: at(23, 400_000), Bytes: 5_600_000},
		{Chunks: vms.ChunkRange{Epoch: epochB, First: 9, Last: 9}, Start: at(0, 0), End: at(0, 200_000), Bytes: 4711},
	}
	lanes := []HeldRange{held[0], held[1]}
	lanes[0].Lane, lanes[1].Lane = vms.LaneBackfill, vms.LaneLive
	return map[string]SessionMessage{
		"hello":         &SessionHello{Agent: "vms-agent 1.0.0", Boot: "boot_01", Epoch: epochA, Holding: held, Worker: "inst_01"},
		"hello-control": &SessionHello{Agent: "vms-agent 1.0.0", Boot: "boot_01"},
		"holding":       &Holding{Ranges: held, RAM: 5_000_000, Flash: 600_000},
		"holding-lanes": &Holding{Ranges: lanes, RAM: 5_000_000, Flash: 600_000},
		"assign": &Assign{
			SID: "sid_01", Channel: "ch_01", Generation: 7, Worker: "w1", WorkerURL: "wss://worker.example/push/v1",
			Ticket: "eyJ.push.ticket", TicketExpires: at(59, 0), Why: "start",
			Segment: SegmentOptions{RecordingMS: 30_000, ChunkMS: 200}, RetentionSeconds: 7200,
			ServerTime: at(2, 123_000), Durable: []vms.ChunkRange{{Epoch: epochB, First: 9, Last: 9}},
		},
		"assign-plain": &Assign{
			SID: "sid_01", Channel: "ch_01", Generation: 8, Worker: "w2", WorkerURL: "wss://worker.example/push/v1",
			Ticket: "eyJ.push.ticket", TicketExpires: at(59, 0), Why: "drain",
			Segment: SegmentOptions{RecordingMS: 30_000, ChunkMS: 200}, ServerTime: at(2, 0),
		},
		"durable": &Durable{Ranges: []vms.ChunkRange{{Epoch: epochA, First: 4600, Last: 4650}}},
		"gaps": &Gaps{Gaps: []vms.Gap{
			{
				ID: "gap_01", Cause: vms.CauseBufferFull, TimeRange: vms.TimeRange{Start: at(1, 0), End: at(31, 200_000)},
				Chunks: &vms.ChunkRange{Epoch: epochA, First: 100, Last: 250},
			},
			{ID: "gap_02", Cause: vms.CauseCameraOffline, TimeRange: vms.TimeRange{Start: at(31, 200_000), End: at(45, 0)}},
		}},
		"committed":   &Committed{IDs: []vms.GapID{"gap_01", "gap_02"}},
		"state":       &StreamState{State: StateAuthFailed, Problem: "The camera refuses the user name or the password."},
		"state-plain": &StreamState{State: StateStreaming},
		"want_worker": &WantWorker{Instance: "inst_01", Why: "the durable mark stands still"},
		"time_query":  &TimeQuery{Sent: 123_456_789},
		"time_answer": &TimeAnswer{Sent: 123_456_789, ServerTime: at(2, 123_000)},
		"revoke":      &Revoke{Why: "the channel was deleted"},
		"ping":        &Ping{},
		"pong":        &Pong{},

		"desired": &Desired{
			Hub: "hub_01", Revision: 1_795_343_402_123, Issued: at(2, 123_000), TimeZone: "Europe/Zagreb",
			Limits: HubLimits{Uplink: "mon-fri 08:00-18:00=1M, 4M"},
			Streams: []DesiredStream{
				{Channel: "ch_01", SID: "sid_01", NVRURL: "wss://nvr.example/session/v1", Mode: ModeContinuous, Active: true, Camera: []byte("sealed")},
				{Channel: "ch_02", SID: "sid_02", NVRURL: "wss://nvr.example/session/v1", Mode: ModeOnDemand, Active: true, Until: at(59, 0), Camera: []byte("sealed")},
				{
					Channel: "ch_03", SID: "sid_03", NVRURL: "wss://nvr.example/session/v1", Mode: ModeScheduled, Active: true,
					Schedule: "mon-fri 08:00-18:00, sat sun", Camera: []byte("sealed"),
				},
				{
					Channel: "ch_04", SID: "sid_04", NVRURL: "wss://nvr.example/session/v1", Mode: ModeEvent, Active: true,
					PreRoll: 5, PostRoll: 30, Camera: []byte("sealed"),
				},
				{Channel: "ch_05", NVRURL: "wss://nvr.example/session/v1", Mode: ModeOnDemand, Camera: []byte("sealed")},
			},
		},
		"desired-stopped": &Desired{
			Hub: "hub_01", Revision: 1_795_343_402_124, Issued: at(3, 0),
			Streams: []DesiredStream{
				{Channel: "ch_01", NVRURL: "wss://nvr.example/session/v1", Mode: ModeContinuous, Stopped: 1_795_343_402_124, Camera: []byte("sealed")},
				{
					Channel: "ch_02", SID: "sid_02", NVRURL: "wss://nvr.example/session/v1", Mode: ModeOnDemand, Active: true,
					Stopped: 1_795_343_402_123, Camera: []byte("sealed"),
				},
			},
		},
		"desired-nothing": &Desired{Hub: "hub_01", Revision: 1, Issued: at(2, 0), Streams: []DesiredStream{}},
		"reported": &Reported{
			Hub: "hub_01", Boot: "boot_01", Online: true, Serial: 7, Agent: "vms-agent 1.0.0", At: at(3, 0),
			Revision: 1_795_343_402_123, State: Failed,
			Streams: []ReportedItem{
				{Channel: "ch_01", SID: "sid_01", Origin: OriginCloud, Mode: ModeContinuous, State: InSync, Running: true, Recording: true, Stream: StateStreaming},
				{Channel: "ch_04", SID: "sid_04", Origin: OriginCloud, Mode: ModeEvent, State: InSync, Running: true, Stream: StateStreaming},
				{Channel: "ch_05", Origin: OriginCloud, Mode: ModeOnDemand, State: InSync},
				{
					Channel: "ch_06", SID: "sid_06", Origin: OriginLAN, Mode: ModeOnDemand, State: Failed, Running: true, Stream: StateAuthFailed,
					Problem: "The camera refuses the user name or the password.",
				},
			},
			Clock: &ReportedClock{ErrorMS: 12, Source: "nvr"},
		},
		"reported-will": &Reported{Hub: "hub_01", Boot: "boot_01"},
		"reported-refused": &Reported{
			Hub: "hub_01", Boot: "boot_01", Online: true, Serial: 1, Agent: "vms-agent 1.0.0", State: Failed,
			Problem: "The document is of another hub.", Clock: &ReportedClock{ErrorMS: -1, Source: "none"},
		},
		"command": &Command{
			ID: "cmd_01", Deadline: at(30, 0), Kind: CommandSnapshot, Channel: "ch_01",
			UploadURL: "https://s3.example/vms/snapshots/ch_01/2026-11-22/10-30-02.jpg?X-Amz-Signature=0a&x=1",
		},
		"command-event":   &Command{ID: "cmd_02", Deadline: at(30, 0), Kind: CommandEvent, PreRoll: new(int), PostRoll: seconds(60)},
		"command-doctor":  &Command{ID: "cmd_03", Deadline: at(30, 0), Kind: CommandDoctor},
		"command-restart": &Command{ID: "cmd_04", Deadline: at(30, 0), Kind: CommandRestartStream, Channel: "ch_01"},
		"command-drain":   &Command{ID: "cmd_05", Deadline: at(30, 0), Kind: CommandDrain},
		"command_reply":   &CommandReply{ID: "cmd_03", OK: true, Result: json.RawMessage(`{"findings":[]}`)},
		"command_reply-problem": &CommandReply{
			ID: "cmd_01", Problem: "The channel has no snapshot template.",
		},
		"broker":      &Broker{URL: "mqtts://broker.example:8883", Username: "hub_01", Password: "<secret> & more"},
		"broker-none": &Broker{},
	}
}

func seconds(n int) *int { return &n }

func TestGoldenChunks(t *testing.T) {
	for name, c := range goldenChunks() {
		t.Run(name, func(t *testing.T) {
			want := golden(t, name+".bin", EncodeChunk(&c))
			if got := EncodeChunk(&c); !bytes.Equal(got, want) {
				t.Errorf("encoded\n%x, golden\n%x", got, want)
			}
			got, err := DecodeChunk(want)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, c) {
				t.Errorf("decoded %+v, want %+v", got, c)
			}
		})
	}
}

func TestGoldenPush(t *testing.T) {
	for name, m := range goldenPush() {
		t.Run(name, func(t *testing.T) {
			testGolden(t, "push-"+name+".json", m, EncodePush, DecodePush)
		})
	}
}

func TestGoldenSession(t *testing.T) {
	for name, m := range goldenSession() {
		t.Run(name, func(t *testing.T) {
			testGolden(t, "session-"+name+".json", m, EncodeSession, DecodeSession)
		})
	}
}

func testGolden[M any](t *testing.T, file string, m M, encode func(M) ([]byte, error), decode func([]byte) (M, error)) {
	t.Helper()
	enc, err := encode(m)
	if err != nil {
		t.Fatal(err)
	}
	// A text file ends in a newline, a message does not.
	want := bytes.TrimSuffix(golden(t, file, append(slices.Clone(enc), '\n')), []byte("\n"))
	if !bytes.Equal(enc, want) {
		t.Errorf("encoded\n%s, golden\n%s", enc, want)
	}
	got, err := decode(want)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, m) {
		t.Errorf("decoded %+v, want %+v", got, m)
	}
}

// golden returns the committed bytes, after creating the file if it is missing
// and -update was given.
func golden(t *testing.T, name string, now []byte) []byte {
	t.Helper()
	path := filepath.Join("testdata", "golden", name)
	if *update {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		switch {
		case err == nil:
			if _, err := f.Write(now); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		case !os.IsExist(err):
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (a new message gets its file with: go test ./pkg/wire -update)", err)
	}
	return b
}

// TestEveryMessageHasAGoldenFile guards the tables and the folder: no type
// without a file, no file without a test.
func TestEveryMessageHasAGoldenFile(t *testing.T) {
	used := make(map[string]bool)
	pushed, said := make(map[string]bool), make(map[string]bool)
	for name := range goldenChunks() {
		used[name+".bin"] = true
	}
	for name, m := range goldenPush() {
		used["push-"+name+".json"] = true
		pushed[m.(message).kind()] = true
		checkGoldenName(t, name, m.(message).kind())
	}
	for name, m := range goldenSession() {
		used["session-"+name+".json"] = true
		said[m.(message).kind()] = true
		checkGoldenName(t, name, m.(message).kind())
	}
	for kind := range maps.Keys(pushTypes) {
		if !pushed[kind] {
			t.Errorf("push message %q has no golden file", kind)
		}
	}
	for kind := range maps.Keys(sessionTypes) {
		if !said[kind] {
			t.Errorf("session message %q has no golden file", kind)
		}
	}
	files, err := os.ReadDir(filepath.Join("testdata", "golden"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !used[f.Name()] {
			t.Errorf("golden file %s is read by no test", f.Name())
		}
	}
}

func checkGoldenName(t *testing.T, name, kind string) {
	t.Helper()
	if base, _, _ := strings.Cut(name, "-"); base != kind {
		t.Errorf("golden file %q holds a message %q", name, kind)
	}
}

// TestTypesKnowTheirName: the word in the table is the word that is sent.
func TestTypesKnowTheirName(t *testing.T) {
	for _, table := range []map[string]func() message{pushTypes, sessionTypes} {
		for name, fresh := range table {
			if got := fresh().kind(); got != name {
				t.Errorf("table has %q, the message says %q", name, got)
			}
		}
	}
}

// TestGoldenCoversEveryField fails when a field is added to a message and no
// golden file shows it.
func TestGoldenCoversEveryField(t *testing.T) {
	set := make(map[string]bool) // "Type.Field" that some golden value sets
	all := make(map[string]bool)
	var visit func(v reflect.Value)
	visit = func(v reflect.Value) {
		switch v.Kind() {
		case reflect.Pointer:
			if !v.IsNil() {
				visit(v.Elem())
			}
		case reflect.Slice:
			for i := range v.Len() {
				visit(v.Index(i))
			}
		case reflect.Struct:
			if v.Type() == reflect.TypeFor[time.Time]() {
				return
			}
			for i := range v.NumField() {
				name := v.Type().String() + "." + v.Type().Field(i).Name
				all[name] = true
				if !v.Field(i).IsZero() {
					set[name] = true
					visit(v.Field(i))
				}
			}
		}
	}
	for _, m := range goldenPush() {
		visit(reflect.ValueOf(m))
	}
	for _, m := range goldenSession() {
		visit(reflect.ValueOf(m))
	}
	for _, c := range goldenChunks() {
		visit(reflect.ValueOf(c))
	}
	for name := range all {
		if !set[name] {
			t.Errorf("no golden value sets %s", name)
		}
	}
}
