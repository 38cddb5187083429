package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

// TestDecodeRefuses: bytes that are not of either protocol, whatever the message.
func TestDecodeRefuses(t *testing.T) {
	for name, data := range map[string]string{
		"nothing":            ``,
		"not JSON":           `hello`,
		"null":               `null`,
		"a list":             `[{"type":"pong"}]`,
		"a string":           `"hello"`,
		"no type":            `{}`,
		"a number as type":   `{"type":1}`,
		"an unknown type":    `{"type":"goodbye"}`,
		"a type in capitals": `{"type":"HELLO"}`,
		"cut off":            `{"type":"hello","lane":"live"`,
		"two objects":        `{"type":"hello","agent":"a","boot":"b","lane":"live"}{}`,
		"text behind":        `{"type":"hello","agent":"a","boot":"b","lane":"live"} x`,
		"a wrong field type": `{"type":"hello","lane":"live","agent":7}`,
		"too long":           `{"type":"hello","lane":"live","x":"` + strings.Repeat("a", MaxControl) + `"}`,
		"too deep":           `{"type":"hello","lane":"live","x":` + strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000) + `}`,
		"a long type":        `{"type":"` + strings.Repeat("a", 1000) + `"}`,
	} {
		t.Run(name, func(t *testing.T) {
			for _, decode := range []func() error{
				func() error { _, err := DecodePush([]byte(data)); return err },
				func() error { _, err := DecodeSession([]byte(data)); return err },
			} {
				err := decode()
				if err == nil {
					t.Fatal("taken")
				}
				wantMalformed(t, err)
				if len(err.Error()) > 300 {
					t.Errorf("an error of %d bytes, as long as its sender likes", len(err.Error()))
				}
			}
		})
	}
}

// TestUnknownFieldsAreIgnored: a newer peer may add some.
func TestUnknownFieldsAreIgnored(t *testing.T) {
	got, err := DecodePush([]byte(` {"new":{"a":[1]},"type":"end","epoch":"0123456789abcdef","seq":7,"cause":"stopped","later":null} `))
	if err != nil {
		t.Fatal(err)
	}
	if want := (&End{Epoch: epochA, Seq: 7, Cause: "stopped"}); !reflect.DeepEqual(got, want) {
		t.Errorf("decoded %+v, want %+v", got, want)
	}
}

// TestProtocolsDoNotMix: a message of one is unknown to the other, even where
// both have the word.
func TestProtocolsDoNotMix(t *testing.T) {
	if m, err := DecodePush([]byte(`{"type":"ping"}`)); err == nil {
		t.Errorf("push takes %+v", m)
	}
	if m, err := DecodeSession([]byte(`{"type":"ack","received":1,"credit":0}`)); err == nil {
		t.Errorf("session takes %+v", m)
	}
	m, err := DecodeSession([]byte(`{"type":"hello","agent":"a","boot":"b"}`))
	if _, ok := m.(*SessionHello); err != nil || !ok {
		t.Errorf("session reads %T, %v", m, err)
	}
}

func TestFieldsMayComeInAnyOrder(t *testing.T) {
	m, err := DecodeSession([]byte(`{"id":"cmd_1","ok":true,"type":"command_reply"}`))
	if err != nil || !m.(*CommandReply).OK {
		t.Errorf("decoded %+v, %v", m, err)
	}
}

// edit returns a copy of m, changed.
func edit[M any](m *M, f func(*M)) *M {
	c := *m
	f(&c)
	return &c
}

func ranges(n int) []vms.ChunkRange {
	out := make([]vms.ChunkRange, n)
	for i := range out {
		out[i] = vms.ChunkRange{Epoch: vms.Epoch(i + 1), First: 1, Last: 2}
	}
	return out
}

func repeat(n int) string { return strings.Repeat("a", n) }

// TestPushRefuses changes one field of a good message; it may then be neither
// sent nor taken.
func TestPushRefuses(t *testing.T) {
	g := goldenPush()
	hello, init, gap := g["hello"].(*Hello), g["init"].(*InitMessage), g["gap"].(*GapMessage)
	welcome, ack, skip := g["welcome"].(*Welcome), g["ack"].(*Ack), g["error-skip"].(*ErrorMessage)
	pressure, end := g["pressure"].(*Pressure), g["end"].(*End)
	track := func(f func(*vms.Track)) *InitMessage {
		return edit(init, func(m *InitMessage) {
			m.Tracks = append([]vms.Track(nil), m.Tracks...)
			f(&m.Tracks[0])
		})
	}
	for name, m := range map[string]PushMessage{
		"hello: no lane":             edit(hello, func(m *Hello) { m.Lane = "" }),
		"hello: unknown lane":        edit(hello, func(m *Hello) { m.Lane = "side" }),
		"hello: long agent":          edit(hello, func(m *Hello) { m.Agent = repeat(201) }),
		"hello: too many epochs":     edit(hello, func(m *Hello) { m.Epochs = make([]vms.Epoch, MaxRanges+1) }),
		"hello: epoch zero":          edit(hello, func(m *Hello) { m.Epochs = []vms.Epoch{epochA, 0} }),
		"init: epoch zero":           edit(init, func(m *InitMessage) { m.Epoch = 0 }),
		"init: id zero":              edit(init, func(m *InitMessage) { m.ID = 0 }),
		"init: no segment":           edit(init, func(m *InitMessage) { m.Segment = nil }),
		"init: short segment":        edit(init, func(m *InitMessage) { m.Segment = m.Segment[:15] }),
		"init: long segment":         edit(init, func(m *InitMessage) { m.Segment = make([]byte, MaxInit+1) }),
		"init: no tracks":            edit(init, func(m *InitMessage) { m.Tracks = nil }),
		"init: nine tracks":          edit(init, func(m *InitMessage) { m.Tracks = make([]vms.Track, 9) }),
		"init: track zero":           track(func(t *vms.Track) { t.ID = 0 }),
		"init: track below zero":     track(func(t *vms.Track) { t.ID = -1 }),
		"init: no timescale":         track(func(t *vms.Track) { t.Timescale = 0 }),
		"init: subtitles":            track(func(t *vms.Track) { t.Kind = "text" }),
		"init: long codec":           track(func(t *vms.Track) { t.Codec = repeat(101) }),
		"init: codec in two lines":   track(func(t *vms.Track) { t.Codec = "avc1\r\nx: y" }),
		"init: codec with a quote":   track(func(t *vms.Track) { t.Codec = `avc1"` }),
		"gap: no id":                 edit(gap, func(m *GapMessage) { m.ID = "" }),
		"gap: id is no id":           edit(gap, func(m *GapMessage) { m.ID = "Gap 1" }),
		"gap: no cause":              edit(gap, func(m *GapMessage) { m.Cause = "" }),
		"gap: cause is a sentence":   edit(gap, func(m *GapMessage) { m.Cause = "Because." }),
		"gap: epoch zero":            edit(gap, func(m *GapMessage) { m.Chunks.Epoch = 0 }),
		"gap: from zero":             edit(gap, func(m *GapMessage) { m.Chunks.First = 0 }),
		"gap: backwards":             edit(gap, func(m *GapMessage) { m.Chunks.First = 251 }),
		"pressure: below zero":       edit(pressure, func(m *Pressure) { m.Held = -1 }),
		"pressure: no budget":        edit(pressure, func(m *Pressure) { m.Budget = 0 }),
		"end: no epoch":              edit(end, func(m *End) { m.Epoch = 0 }),
		"end: long cause":            edit(end, func(m *End) { m.Cause = repeat(201) }),
		"welcome: no instance":       edit(welcome, func(m *Welcome) { m.Instance = "" }),
		"welcome: small max_chunk":   edit(welcome, func(m *Welcome) { m.MaxChunk = MinMaxChunk - 1 }),
		"welcome: credit below zero": edit(welcome, func(m *Welcome) { m.Credit = -1 }),
		"welcome: too many ranges":   edit(welcome, func(m *Welcome) { m.Have = ranges(MaxRanges + 1) }),
		"welcome: range from zero":   edit(welcome, func(m *Welcome) { m.Have = []vms.ChunkRange{{Epoch: 1, First: 0, Last: 1}} }),
		"ack: credit below zero":     edit(ack, func(m *Ack) { m.Credit = -1 }),
		"ack: backward range":        edit(ack, func(m *Ack) { m.Durable = []vms.ChunkRange{{Epoch: 1, First: 2, Last: 1}} }),
		"ack: epoch zero":            edit(ack, func(m *Ack) { m.Durable = []vms.ChunkRange{{Epoch: 0, First: 1, Last: 1}} }),
		"ack: too many ranges":       edit(ack, func(m *Ack) { m.Durable = ranges(MaxRanges + 1) }),
		"error: no class":            edit(skip, func(m *ErrorMessage) { m.Class = "" }),
		"error: unknown class":       edit(skip, func(m *ErrorMessage) { m.Class = "panic" }),
		"error: no code":             edit(skip, func(m *ErrorMessage) { m.Code = "" }),
		"error: long code":           edit(skip, func(m *ErrorMessage) { m.Code = repeat(65) }),
		"error: long message":        edit(skip, func(m *ErrorMessage) { m.Message = repeat(1001) }),
		"error: skip what epoch":     edit(skip, func(m *ErrorMessage) { m.Epoch = 0 }),
		"error: skip what chunk":     edit(skip, func(m *ErrorMessage) { m.Seq = 0 }),
		"error: wait below zero":     edit(skip, func(m *ErrorMessage) { m.RetryAfterMS = -1 }),
		"error: wait above an hour":  edit(skip, func(m *ErrorMessage) { m.RetryAfterMS = 3_600_001 }),
	} {
		t.Run(name, func(t *testing.T) { testRefused(t, m.(message), pushTypes) })
	}
}

func TestSessionRefuses(t *testing.T) {
	g := goldenSession()
	hello, holding, assign := g["hello"].(*SessionHello), g["holding"].(*Holding), g["assign"].(*Assign)
	gaps, committed, state := g["gaps"].(*Gaps), g["committed"].(*Committed), g["state"].(*StreamState)
	want, answer := g["want_worker"].(*WantWorker), g["time_answer"].(*TimeAnswer)
	revoke, durable := g["revoke"].(*Revoke), g["durable"].(*Durable)
	held := func(f func(*HeldRange)) *Holding {
		return edit(holding, func(m *Holding) {
			m.Ranges = append([]HeldRange(nil), m.Ranges...)
			f(&m.Ranges[0])
		})
	}
	gap := func(f func(*vms.Gap)) *Gaps {
		return edit(gaps, func(m *Gaps) {
			m.Gaps = append([]vms.Gap(nil), m.Gaps...)
			f(&m.Gaps[0])
		})
	}
	for name, m := range map[string]SessionMessage{
		"hello: long agent":            edit(hello, func(m *SessionHello) { m.Agent = repeat(201) }),
		"hello: long boot":             edit(hello, func(m *SessionHello) { m.Boot = repeat(65) }),
		"hello: long worker":           edit(hello, func(m *SessionHello) { m.Worker = vms.Instance(repeat(65)) }),
		"hello: too many ranges":       edit(hello, func(m *SessionHello) { m.Holding = make([]HeldRange, MaxRanges+1) }),
		"hello: empty range":           edit(hello, func(m *SessionHello) { m.Holding = make([]HeldRange, 1) }),
		"holding: too many ranges":     edit(holding, func(m *Holding) { m.Ranges = make([]HeldRange, MaxRanges+1) }),
		"holding: RAM below zero":      edit(holding, func(m *Holding) { m.RAM = -1 }),
		"holding: flash below zero":    edit(holding, func(m *Holding) { m.Flash = -1 }),
		"holding: epoch zero":          held(func(r *HeldRange) { r.Chunks.Epoch = 0 }),
		"holding: from zero":           held(func(r *HeldRange) { r.Chunks.First = 0 }),
		"holding: backwards":           held(func(r *HeldRange) { r.Chunks.Last = r.Chunks.First - 1 }),
		"holding: ends before start":   held(func(r *HeldRange) { r.End = r.Start.Add(-1) }),
		"holding: bytes below zero":    held(func(r *HeldRange) { r.Bytes = -1 }),
		"assign: no sid":               edit(assign, func(m *Assign) { m.SID = "" }),
		"assign: no channel":           edit(assign, func(m *Assign) { m.Channel = "" }),
		"assign: no worker":            edit(assign, func(m *Assign) { m.Worker = "" }),
		"assign: no worker_url":        edit(assign, func(m *Assign) { m.WorkerURL = "" }),
		"assign: long worker_url":      edit(assign, func(m *Assign) { m.WorkerURL = repeat(2001) }),
		"assign: no ticket":            edit(assign, func(m *Assign) { m.Ticket = "" }),
		"assign: long ticket":          edit(assign, func(m *Assign) { m.Ticket = repeat(8001) }),
		"assign: long why":             edit(assign, func(m *Assign) { m.Why = repeat(65) }),
		"assign: short recordings":     edit(assign, func(m *Assign) { m.Segment.RecordingMS = 999 }),
		"assign: long recordings":      edit(assign, func(m *Assign) { m.Segment.RecordingMS = 600_001 }),
		"assign: short chunks":         edit(assign, func(m *Assign) { m.Segment.ChunkMS = 19 }),
		"assign: long chunks":          edit(assign, func(m *Assign) { m.Segment.ChunkMS = 10_001 }),
		"assign: retention below zero": edit(assign, func(m *Assign) { m.RetentionSeconds = -1 }),
		"assign: durable range":        edit(assign, func(m *Assign) { m.Durable = make([]vms.ChunkRange, 1) }),
		"durable: empty range":         edit(durable, func(m *Durable) { m.Ranges = make([]vms.ChunkRange, 1) }),
		"durable: too many ranges":     edit(durable, func(m *Durable) { m.Ranges = ranges(MaxRanges + 1) }),
		"gaps: too many":               edit(gaps, func(m *Gaps) { m.Gaps = make([]vms.Gap, MaxGaps+1) }),
		"gaps: no id":                  gap(func(g *vms.Gap) { g.ID = "" }),
		"gaps: no cause":               gap(func(g *vms.Gap) { g.Cause = "" }),
		"gaps: ends before it starts":  gap(func(g *vms.Gap) { g.End = g.Start.Add(-1) }),
		"gaps: empty chunks":           gap(func(g *vms.Gap) { g.Chunks = new(vms.ChunkRange) }),
		"committed: no id":             edit(committed, func(m *Committed) { m.IDs = []vms.GapID{"Gap 1"} }),
		"committed: too many":          edit(committed, func(m *Committed) { m.IDs = make([]vms.GapID, MaxGaps+1) }),
		"state: none":                  edit(state, func(m *StreamState) { m.State = "" }),
		"state: long":                  edit(state, func(m *StreamState) { m.State = repeat(33) }),
		"state: long problem":          edit(state, func(m *StreamState) { m.Problem = repeat(1001) }),
		"want_worker: long instance":   edit(want, func(m *WantWorker) { m.Instance = vms.Instance(repeat(65)) }),
		"want_worker: long why":        edit(want, func(m *WantWorker) { m.Why = repeat(201) }),
		"time_answer: no time":         edit(answer, func(m *TimeAnswer) { m.ServerTime = time.Time{} }),
		"revoke: long why":             edit(revoke, func(m *Revoke) { m.Why = repeat(1001) }),
	} {
		t.Run(name, func(t *testing.T) { testRefused(t, m.(message), sessionTypes) })
	}
}

func TestHubRefuses(t *testing.T) {
	g := goldenSession()
	desired, reported, command := g["desired"].(*Desired), g["reported"].(*Reported), g["command"].(*Command)
	event, reply, broker := g["command-event"].(*Command), g["command_reply"].(*CommandReply), g["broker"].(*Broker)
	stream := func(f func(*DesiredStream)) *Desired {
		return edit(desired, func(m *Desired) {
			m.Streams = slices.Clone(m.Streams)
			f(&m.Streams[0])
		})
	}
	item := func(f func(*ReportedItem)) *Reported {
		return edit(reported, func(m *Reported) {
			m.Streams = slices.Clone(m.Streams)
			f(&m.Streams[0])
		})
	}
	for name, m := range map[string]SessionMessage{
		"desired: no hub":               edit(desired, func(m *Desired) { m.Hub = "" }),
		"desired: hub with a wildcard":  edit(desired, func(m *Desired) { m.Hub = "+" }),
		"desired: no revision":          edit(desired, func(m *Desired) { m.Revision = 0 }),
		"desired: never issued":         edit(desired, func(m *Desired) { m.Issued = time.Time{} }),
		"desired: zone is a path":       edit(desired, func(m *Desired) { m.TimeZone = "../../etc/passwd" }),
		"desired: long zone":            edit(desired, func(m *Desired) { m.TimeZone = repeat(65) }),
		"desired: long limits":          edit(desired, func(m *Desired) { m.Limits.Uplink = repeat(1001) }),
		"desired: too many streams":     edit(desired, func(m *Desired) { m.Streams = streams(MaxStreams + 1) }),
		"desired: a channel twice":      stream(func(s *DesiredStream) { s.Channel = "ch_02" }),
		"desired: no channel":           stream(func(s *DesiredStream) { s.Channel = "" }),
		"desired: active without a sid": stream(func(s *DesiredStream) { s.SID = "" }),
		"desired: sid is no id":         stream(func(s *DesiredStream) { s.SID, s.Active = "Sid 1", false }),
		"desired: no nvr_url":           stream(func(s *DesiredStream) { s.NVRURL = "" }),
		"desired: long nvr_url":         stream(func(s *DesiredStream) { s.NVRURL = repeat(2001) }),
		"desired: no mode":              stream(func(s *DesiredStream) { s.Mode = "" }),
		"desired: mode is a sentence":   stream(func(s *DesiredStream) { s.Mode = "Now and then." }),
		"desired: long mode":            stream(func(s *DesiredStream) { s.Mode = Mode(repeat(33)) }),
		"desired: long schedule":        stream(func(s *DesiredStream) { s.Schedule = repeat(1001) }),
		"desired: pre-roll below zero":  stream(func(s *DesiredStream) { s.PreRoll = -1 }),
		"desired: long pre-roll":        stream(func(s *DesiredStream) { s.PreRoll = 61 }),
		"desired: post-roll below zero": stream(func(s *DesiredStream) { s.PostRoll = -1 }),
		"desired: long post-roll":       stream(func(s *DesiredStream) { s.PostRoll = 601 }),
		"desired: stopped below zero":   stream(func(s *DesiredStream) { s.Stopped = -1 }),
		"desired: stopped later":        stream(func(s *DesiredStream) { s.Stopped = desired.Revision + 1 }),
		"desired: no camera":            stream(func(s *DesiredStream) { s.Camera = nil }),
		"desired: long camera":          stream(func(s *DesiredStream) { s.Camera = make([]byte, MaxCamera+1) }),
		"reported: no hub":              edit(reported, func(m *Reported) { m.Hub = "" }),
		"reported: no boot":             edit(reported, func(m *Reported) { m.Boot = "" }),
		"reported: long boot":           edit(reported, func(m *Reported) { m.Boot = repeat(65) }),
		"reported: long agent":          edit(reported, func(m *Reported) { m.Agent = repeat(201) }),
		"reported: online, no serial":   edit(reported, func(m *Reported) { m.Serial = 0 }),
		"reported: serial below zero":   edit(reported, func(m *Reported) { m.Online, m.Serial = false, -1 }),
		"reported: revision below zero": edit(reported, func(m *Reported) { m.Revision = -1 }),
		"reported: state in lower case": edit(reported, func(m *Reported) { m.State = "failed" }),
		"reported: long state":          edit(reported, func(m *Reported) { m.State = SyncState(strings.Repeat("A", 33)) }),
		"reported: long problem":        edit(reported, func(m *Reported) { m.Problem = repeat(1001) }),
		"reported: too many items":      edit(reported, func(m *Reported) { m.Streams = items(MaxItems + 1) }),
		"reported: a channel twice":     item(func(s *ReportedItem) { s.Channel = "ch_06" }),
		"reported: clock has no source": edit(reported, func(m *Reported) { m.Clock = new(ReportedClock) }),
		"reported: no channel":          item(func(s *ReportedItem) { s.Channel = "" }),
		"reported: sid is no id":        item(func(s *ReportedItem) { s.SID = "Sid 1" }),
		"reported: no origin":           item(func(s *ReportedItem) { s.Origin = "" }),
		"reported: no mode":             item(func(s *ReportedItem) { s.Mode = "" }),
		"reported: item has no state":   item(func(s *ReportedItem) { s.State = "" }),
		"reported: long stream":         item(func(s *ReportedItem) { s.Stream = repeat(33) }),
		"reported: item's problem":      item(func(s *ReportedItem) { s.Problem = repeat(1001) }),
		"command: no id":                edit(command, func(m *Command) { m.ID = "" }),
		"command: no deadline":          edit(command, func(m *Command) { m.Deadline = time.Time{} }),
		"command: no kind":              edit(command, func(m *Command) { m.Kind = "" }),
		"command: long kind":            edit(command, func(m *Command) { m.Kind = CommandKind(repeat(33)) }),
		"command: channel is no id":     edit(command, func(m *Command) { m.Channel = "Ch 1" }),
		"command: snapshot of what":     edit(command, func(m *Command) { m.Channel = "" }),
		"command: snapshot to where":    edit(command, func(m *Command) { m.UploadURL = "" }),
		"command: long upload_url":      edit(command, func(m *Command) { m.UploadURL = repeat(8001) }),
		"command: restart of what":      edit(event, func(m *Command) { m.Kind = CommandRestartStream }),
		"command: pre-roll below zero":  edit(event, func(m *Command) { m.PreRoll = seconds(-1) }),
		"command: long pre-roll":        edit(event, func(m *Command) { m.PreRoll = seconds(61) }),
		"command: post-roll below zero": edit(event, func(m *Command) { m.PostRoll = seconds(-1) }),
		"command: long post-roll":       edit(event, func(m *Command) { m.PostRoll = seconds(601) }),
		"reply: no id":                  edit(reply, func(m *CommandReply) { m.ID = "" }),
		"reply: long problem":           edit(reply, func(m *CommandReply) { m.Problem = repeat(1001) }),
		"reply: long result":            edit(reply, func(m *CommandReply) { m.Result = json.RawMessage(`"` + repeat(MaxResult-1) + `"`) }),
		"broker: long url":              edit(broker, func(m *Broker) { m.URL = repeat(2001) }),
		"broker: username is no id":     edit(broker, func(m *Broker) { m.Username = "Hub 1" }),
		"broker: long password":         edit(broker, func(m *Broker) { m.Password = repeat(257) }),
	} {
		t.Run(name, func(t *testing.T) { testRefused(t, m.(message), sessionTypes) })
	}
}

// TestTimesThatJSONCannotSay are refused by the check and not by the encoder.
func TestTimesThatJSONCannotSay(t *testing.T) {
	for _, late := range []time.Time{
		time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC),
		time.Date(9999, 12, 31, 23, 59, 0, 0, time.FixedZone("", -3600)), // the year 10,000 in UTC
	} {
		g := goldenSession()
		for _, m := range []SessionMessage{
			edit(g["desired"].(*Desired), func(m *Desired) { m.Issued = late }),
			edit(g["desired"].(*Desired), func(m *Desired) { m.Streams[0].Until = late }),
			edit(g["reported"].(*Reported), func(m *Reported) { m.At = late }),
			edit(g["command"].(*Command), func(m *Command) { m.Deadline = late }),
		} {
			if _, err := EncodeSession(m); !errors.Is(err, ErrMalformed) {
				t.Errorf("encode with %s = %v, want ErrMalformed", late, err)
			}
		}
	}
}

// TestResultIsJSON: a result that is none would make the whole reply unreadable.
func TestResultIsJSON(t *testing.T) {
	for _, bad := range []string{`{`, `{}{}`, ` `, `{"type":"ping"}}`} {
		if _, err := EncodeSession(&CommandReply{ID: "cmd_1", Result: json.RawMessage(bad)}); !errors.Is(err, ErrMalformed) {
			t.Errorf("encode with result %q = %v, want ErrMalformed", bad, err)
		}
	}
	for _, good := range []string{`null`, `"a"`, `7`, `[]`, `{"a":{"b":[1,2]}}`} {
		enc, err := EncodeSession(&CommandReply{ID: "cmd_1", OK: true, Result: json.RawMessage(good)})
		if err != nil {
			t.Errorf("result %s: %v", good, err)
			continue
		}
		m, err := DecodeSession(enc)
		if err != nil || string(m.(*CommandReply).Result) != good {
			t.Errorf("result %s comes as %+v, %v", good, m, err)
		}
	}
}

// TestWordsOfANewerPeer are taken: the receiver decides what they mean, stream
// by stream and command by command, and one of them does not hide the rest.
func TestWordsOfANewerPeer(t *testing.T) {
	for _, raw := range []string{
		`{"type":"desired","hub":"h","revision":1,"issued":"2026-11-22T10:30:02Z","streams":[{"channel":"c","sid":"s","nvr_url":"x","mode":"lunar","active":true,"camera":"YQ=="}]}`,
		`{"type":"reported","hub":"h","boot":"b","online":true,"serial":1,"state":"HALF_DONE","streams":[{"channel":"c","origin":"neighbour","mode":"lunar","state":"HALF_DONE","running":true,"recording":true,"stream":"dreaming"}],"clock":{"error_ms":1,"source":"gps"}}`,
		`{"type":"command","id":"c","deadline":"2026-11-22T10:30:02Z","kind":"sing"}`,
	} {
		m, err := DecodeSession([]byte(raw))
		if err != nil {
			t.Errorf("%s: %v", raw, err)
			continue
		}
		if enc, err := EncodeSession(m); err != nil || string(enc) != raw {
			t.Errorf("%s comes as %s, %v", raw, enc, err)
		}
	}
}

func streams(n int) []DesiredStream {
	out := make([]DesiredStream, n)
	for i := range out {
		out[i] = DesiredStream{Channel: vms.ChannelID(fmt.Sprint("ch_", i)), NVRURL: "wss://nvr.example/", Mode: ModeOnDemand, Camera: []byte("sealed")}
	}
	return out
}

func items(n int) []ReportedItem {
	out := make([]ReportedItem, n)
	for i := range out {
		out[i] = ReportedItem{Channel: vms.ChannelID(fmt.Sprint("ch_", i)), Origin: OriginLAN, Mode: ModeOnDemand, State: InSync}
	}
	return out
}

func testRefused(t *testing.T, m message, types map[string]func() message) {
	t.Helper()
	if _, err := encode(m); err == nil {
		t.Error("can be sent")
	} else if !errors.Is(err, ErrMalformed) {
		t.Errorf("encode = %v, want ErrMalformed", err)
	}
	// The same bytes from a peer that does not check.
	body, err := marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	raw := fmt.Appendf(nil, `{"type":"%s",%s`, m.kind(), body[1:])
	got, err := decode(raw, types)
	if err == nil {
		t.Fatalf("taken: %+v", got)
	}
	wantMalformed(t, err)
}

// TestFullMessagesFit: a list at its limit still fits in one message, or its
// sender could never say it.
func TestFullMessagesFit(t *testing.T) {
	big := vms.ChunkRange{Epoch: 0xffffffffffffffff, First: 0xfffffffffffffffe, Last: 0xffffffffffffffff}
	when := time.Date(2026, 11, 22, 10, 30, 1, 123456789, time.UTC)
	var chunks []vms.ChunkRange
	var held []HeldRange
	var epochs []vms.Epoch
	for range MaxRanges {
		chunks = append(chunks, big)
		held = append(held, HeldRange{Chunks: big, Start: when, End: when, Bytes: 1 << 62})
		epochs = append(epochs, big.Epoch)
	}
	var gaps []vms.Gap
	var ids []vms.GapID
	for range MaxGaps {
		gaps = append(gaps, vms.Gap{ID: vms.GapID(repeat(64)), Cause: vms.Cause(repeat(64)), TimeRange: vms.TimeRange{Start: when, End: when}, Chunks: &big})
		ids = append(ids, vms.GapID(repeat(64)))
	}
	id := repeat(64)
	desired, reported := streams(MaxStreams), items(MaxItems)
	for i := range desired {
		ch := vms.ChannelID(fmt.Sprintf("%s%02d", id[2:], i))
		desired[i] = DesiredStream{
			Channel: ch, SID: vms.SID(id), NVRURL: "wss://nvr.example/" + repeat(100), Mode: ModeScheduled, Active: true,
			Until: when, Schedule: repeat(200), PreRoll: 60, PostRoll: 600, Camera: make([]byte, 2200),
		}
	}
	for i := range reported {
		ch := vms.ChannelID(fmt.Sprintf("%s%03d", id[3:], i))
		reported[i] = ReportedItem{
			Channel: ch, SID: vms.SID(id), Origin: OriginCloud, Mode: ModeContinuous, State: Syncing,
			Running: true, Recording: true, Stream: StateBadCamera, Problem: repeat(1000),
		}
	}
	g, s := goldenPush(), goldenSession()
	for _, m := range []message{
		edit(s["desired"].(*Desired), func(m *Desired) { m.Streams, m.Limits.Uplink = desired, repeat(1000) }),
		edit(s["reported"].(*Reported), func(m *Reported) { m.Streams, m.Problem = reported, repeat(1000) }),
		edit(s["command"].(*Command), func(m *Command) { m.UploadURL = repeat(8000) }),
		edit(s["command_reply"].(*CommandReply), func(m *CommandReply) {
			m.Problem, m.Result = repeat(1000), json.RawMessage(`"`+repeat(MaxResult-2)+`"`)
		}),
		edit(g["hello"].(*Hello), func(m *Hello) { m.Epochs = epochs }),
		edit(g["init"].(*InitMessage), func(m *InitMessage) { m.Segment = make([]byte, MaxInit) }),
		edit(g["welcome"].(*Welcome), func(m *Welcome) { m.Have, m.ResumeTicket = chunks, repeat(8000) }),
		edit(g["ack"].(*Ack), func(m *Ack) { m.Durable = chunks }),
		edit(s["hello"].(*SessionHello), func(m *SessionHello) { m.Holding = held }),
		edit(s["holding"].(*Holding), func(m *Holding) { m.Ranges = held }),
		edit(s["assign"].(*Assign), func(m *Assign) { m.Durable, m.Ticket, m.WorkerURL = chunks, repeat(8000), repeat(2000) }),
		&Durable{Ranges: chunks},
		&Gaps{Gaps: gaps},
		&Committed{IDs: ids},
	} {
		if _, err := encode(m); err != nil {
			t.Error(err)
		}
	}
}

// TestInitTakesCodecs: every codec that PROTOCOL.md lists.
func TestInitTakesCodecs(t *testing.T) {
	for _, codec := range []string{"avc1.64001f", "hvc1.4.10.L30.9D.08", "hvc1.A31.FFFFFFFF.H255.FF.FF.FF.FF.FF.FF", "mp4v.6C", "mp4a.40.29", "flac"} {
		m := edit(goldenPush()["init"].(*InitMessage), func(m *InitMessage) { m.Tracks[0].Codec = codec })
		if _, err := EncodePush(m); err != nil {
			t.Errorf("%s: %v", codec, err)
		}
	}
}

// TestEncodeRefusesWhatIsTooLong: good fields, but more of them than a message
// holds. Whoever adds to a document can tell this from a mistake.
func TestEncodeRefusesWhatIsTooLong(t *testing.T) {
	m := edit(goldenSession()["desired"].(*Desired), func(m *Desired) {
		m.Streams = streams(MaxStreams)
		for i := range m.Streams {
			m.Streams[i].Camera = make([]byte, MaxCamera)
		}
	})
	if b, err := EncodeSession(m); !errors.Is(err, ErrTooLong) || errors.Is(err, ErrMalformed) {
		t.Errorf("encoded %d bytes, more than %d: %v, want ErrTooLong", len(b), MaxControl, err)
	}
}

func TestCloseCodes(t *testing.T) {
	for class, code := range map[Class]int{ClassRetry: 4000, ClassReassign: 4001, ClassSkip: 4002, ClassStop: 4003} {
		if class.Code() != code || ClassOf(code) != class {
			t.Errorf("class %s has code %d and %d is %s", class, class.Code(), code, ClassOf(code))
		}
	}
	// What a proxy, the kernel or a newer worker says never stops a stream.
	for _, code := range []int{-1, 0, 1000, 1001, 1006, 1011, 3000, 4004, 4999} {
		if ClassOf(code) != ClassRetry {
			t.Errorf("code %d is %s, want retry", code, ClassOf(code))
		}
	}
}

func TestRetryAfter(t *testing.T) {
	if got := (&ErrorMessage{RetryAfterMS: 1500}).RetryAfter(); got != 1500*time.Millisecond {
		t.Errorf("RetryAfter = %s, want 1.5s", got)
	}
}

func TestInitMessageIsAnInit(t *testing.T) {
	m := goldenPush()["init"].(*InitMessage)
	want := vms.Init{Epoch: m.Epoch, ID: m.ID, Tracks: m.Tracks, Segment: m.Segment}
	if got := m.Init(); !reflect.DeepEqual(got, want) {
		t.Errorf("Init = %+v, want %+v", got, want)
	}
}
