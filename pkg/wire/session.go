package wire

import (
	"time"

	"github.com/zipato/vms/pkg/vms"
)

// SessionMessage is one of the JSON text messages of the session protocol.
//
// A session belongs to one stream (it was opened with a sid) or to the hub
// itself (without one): the control line. From the agent come SessionHello,
// Holding, Gaps, StreamState, WantWorker, TimeQuery and Pong; from the NVR
// Assign, Durable, Committed, TimeAnswer, Revoke and Ping. The messages of the
// hub protocol travel on the control line, or over MQTT: from the NVR Desired,
// Command and Broker (which MQTT never carries), from the agent Reported and
// CommandReply.
type SessionMessage interface {
	message
	session()
}

// SessionHello is the agent's first message on every session.
type SessionHello struct {
	Agent string `json:"agent"`
	// Boot names this run of the agent.
	Boot string `json:"boot"`
	// Epoch is what the stream of this session writes now; zero on the control line.
	Epoch vms.Epoch `json:"epoch,omitzero"`
	// Holding are the chunks that are on the hub and not known to be durable.
	Holding []HeldRange `json:"holding,omitempty"`
	// Worker is the instance that an active push goes to: the NVR lets it go on.
	Worker vms.Instance `json:"worker,omitempty"`
}

// HeldRange is a run of chunks on the hub with the time it covers: what the
// timeline shows as pending.
type HeldRange struct {
	Chunks vms.ChunkRange `json:"chunks"`
	Start  time.Time      `json:"start"`
	End    time.Time      `json:"end"`
	Bytes  int64          `json:"bytes"`
	// Lane will bring them; empty when the agent does not say.
	Lane vms.Lane `json:"lane,omitempty"`
}

// Holding replaces what the NVR knew of the hub's buffer for this stream.
type Holding struct {
	Ranges []HeldRange `json:"ranges"`
	// RAM and Flash are the bytes that the stream occupies.
	RAM   int64 `json:"ram"`
	Flash int64 `json:"flash"`
}

// Assign tells the agent where to push. It is sent after SessionHello and
// again whenever the stream should move (a higher generation).
type Assign struct {
	SID        vms.SID        `json:"sid"`
	Channel    vms.ChannelID  `json:"channel"`
	Generation vms.Generation `json:"generation"`
	Worker     vms.WorkerID   `json:"worker"`
	WorkerURL  string         `json:"worker_url"`
	// Ticket opens both lanes at that worker for that channel until TicketExpires.
	Ticket        string    `json:"ticket"`
	TicketExpires time.Time `json:"ticket_expires"`
	// Why is one of the Why words, or another one of a newer NVR. WhyLost is obeyed, the others are for logs.
	Why     string         `json:"why"`
	Segment SegmentOptions `json:"segment"`
	// RetentionSeconds is how long the cloud keeps recordings; 0: without end.
	RetentionSeconds int64 `json:"retention_seconds"`
	// ServerTime is the NVR's UTC when it wrote this message.
	ServerTime time.Time `json:"server_time"`
	// Durable are those of SessionHello.Holding that are in S3 already.
	Durable []vms.ChunkRange `json:"durable,omitempty"`
}

// Why words of Assign.
const (
	WhyStart     = "start"     // of a session that had no worker
	WhyRenew     = "renew"     // the same worker and generation, a new ticket
	WhyRequested = "requested" // the answer to WantWorker
	WhyDrain     = "drain"     // the worker is going away
	WhyRebalance = "rebalance" // another worker has more room, or is nearer
	WhyLost      = "lost"      // the worker is gone: there is nobody to hand over from
)

// SegmentOptions are obeyed from the next recording on.
type SegmentOptions struct {
	// RecordingMS is the media time between two recordings, 30,000 by default.
	RecordingMS int64 `json:"recording_ms"`
	// ChunkMS is the media time of one chunk, 200 by default.
	ChunkMS int64 `json:"chunk_ms"`
}

// Durable tells of ranges that are in S3, as far as the agent holds them.
type Durable struct {
	Ranges []vms.ChunkRange `json:"ranges"`
}

// Gaps declares footage that is missing. The agent repeats it until Committed names the ids.
type Gaps struct {
	Gaps []vms.Gap `json:"gaps"`
}

// Committed frees gaps: they are in the NVR's database.
type Committed struct {
	IDs []vms.GapID `json:"ids"`
}

// States of a stream, in StreamState and in the agent's API.
const (
	StateStarting   = "starting"   // nothing has come yet
	StateStreaming  = "streaming"  // frames come, chunks are taken over
	StateBuffering  = "buffering"  // frames come, the worker cannot be reached
	StateNoCamera   = "no_camera"  // the camera does not answer; retried
	StateBadCamera  = "bad_camera" // the camera answers, but not with what can be recorded; retried
	StateAuthFailed = "auth"       // the camera refuses name or password; retried slowly
	StateRefused    = "refused"    // the NVR refuses the session; waits for a new token
	StateStopped    = "stopped"
)

// StreamState tells the NVR how the stream is.
type StreamState struct {
	State string `json:"state"`
	// Problem is a sentence for people, empty when all is well.
	Problem string `json:"problem,omitempty"`
}

// WantWorker asks for another worker.
type WantWorker struct {
	Instance vms.Instance `json:"instance,omitempty"` // the one that is no good
	Why      string       `json:"why"`
}

// TimeQuery asks what time it is; the answer repeats Sent.
type TimeQuery struct {
	// Sent is the agent's monotonic clock in microseconds: a cookie.
	Sent int64 `json:"sent"`
}

// TimeAnswer answers TimeQuery.
type TimeAnswer struct {
	Sent       int64     `json:"sent"`
	ServerTime time.Time `json:"server_time"`
}

// Revoke ends a session for good; the connection closes after it.
type Revoke struct {
	Why string `json:"why"`
}

// Ping and Pong keep the line alive: each side that has heard nothing for 15 s
// gives the connection up; the NVR pings every 5 s.
type (
	// Ping asks for a Pong.
	Ping struct{}
	// Pong answers a Ping.
	Pong struct{}
)

func (*SessionHello) session() {}
func (*Holding) session()      {}
func (*Assign) session()       {}
func (*Durable) session()      {}
func (*Gaps) session()         {}
func (*Committed) session()    {}
func (*StreamState) session()  {}
func (*WantWorker) session()   {}
func (*TimeQuery) session()    {}
func (*TimeAnswer) session()   {}
func (*Revoke) session()       {}
func (*Ping) session()         {}
func (*Pong) session()         {}

var sessionTypes = map[string]func() message{
	"hello":       func() message { return new(SessionHello) },
	"holding":     func() message { return new(Holding) },
	"assign":      func() message { return new(Assign) },
	"durable":     func() message { return new(Durable) },
	"gaps":        func() message { return new(Gaps) },
	"committed":   func() message { return new(Committed) },
	"state":       func() message { return new(StreamState) },
	"want_worker": func() message { return new(WantWorker) },
	"time_query":  func() message { return new(TimeQuery) },
	"time_answer": func() message { return new(TimeAnswer) },
	"revoke":      func() message { return new(Revoke) },
	"ping":        func() message { return new(Ping) },
	"pong":        func() message { return new(Pong) },

	"desired":       func() message { return new(Desired) },
	"reported":      func() message { return new(Reported) },
	"command":       func() message { return new(Command) },
	"command_reply": func() message { return new(CommandReply) },
	"broker":        func() message { return new(Broker) },
}

// EncodeSession returns the text message for m, which is also its MQTT payload.
// It fails with ErrTooLong when all fields are good and there is too much of them.
func EncodeSession(m SessionMessage) ([]byte, error) { return encode(m) }

// DecodeSession reads one text message of the session protocol, or one payload
// of the hub protocol.
func DecodeSession(data []byte) (SessionMessage, error) {
	m, err := decode(data, sessionTypes)
	if err != nil {
		return nil, err
	}
	return m.(SessionMessage), nil // the table holds no others
}

func (*SessionHello) kind() string { return "hello" }
func (*Holding) kind() string      { return "holding" }
func (*Assign) kind() string       { return "assign" }
func (*Durable) kind() string      { return "durable" }
func (*Gaps) kind() string         { return "gaps" }
func (*Committed) kind() string    { return "committed" }
func (*StreamState) kind() string  { return "state" }
func (*WantWorker) kind() string   { return "want_worker" }
func (*TimeQuery) kind() string    { return "time_query" }
func (*TimeAnswer) kind() string   { return "time_answer" }
func (*Revoke) kind() string       { return "revoke" }
func (*Ping) kind() string         { return "ping" }
func (*Pong) kind() string         { return "pong" }

func (m *SessionHello) validate() error {
	if len(m.Agent) > 200 || len(m.Boot) > 64 || len(m.Worker) > 64 {
		return malformed("agent, boot or worker too long")
	}
	return validHeld(m.Holding)
}

func (m *Holding) validate() error {
	if m.RAM < 0 || m.Flash < 0 {
		return malformed("negative bytes")
	}
	return validHeld(m.Ranges)
}

func validHeld(rs []HeldRange) error {
	if len(rs) > MaxRanges {
		return malformed("%d ranges, more than %d", len(rs), MaxRanges)
	}
	for i := range rs {
		r := &rs[i]
		r.Start, r.End = r.Start.UTC(), r.End.UTC()
		if r.Chunks.Epoch == 0 || r.Chunks.First == 0 || r.Chunks.First > r.Chunks.Last || r.End.Before(r.Start) || r.Bytes < 0 {
			return malformed("held range %s", r.Chunks)
		}
		if len(r.Lane) > 16 {
			return malformed("held range %s: lane %.40q", r.Chunks, r.Lane)
		}
	}
	return nil
}

func (m *Assign) validate() error {
	switch {
	case !vms.ValidID(m.SID) || !vms.ValidID(m.Channel) || !vms.ValidID(m.Worker):
		return malformed("sid, channel or worker is no id")
	case m.WorkerURL == "" || len(m.WorkerURL) > 2000 || m.Ticket == "" || len(m.Ticket) > MaxTicket:
		return malformed("worker_url or ticket missing or too long")
	case m.Segment.RecordingMS < 1000 || m.Segment.RecordingMS > 600_000:
		return malformed("recording_ms %d, want 1,000 to 600,000", m.Segment.RecordingMS)
	case m.Segment.ChunkMS < 20 || m.Segment.ChunkMS > 10_000:
		return malformed("chunk_ms %d, want 20 to 10,000", m.Segment.ChunkMS)
	case m.RetentionSeconds < 0 || len(m.Why) > 64:
		return malformed("retention_seconds %d or too long a why", m.RetentionSeconds)
	}
	return validRanges(m.Durable)
}

func (m *Durable) validate() error { return validRanges(m.Ranges) }

func (m *Gaps) validate() error {
	if len(m.Gaps) > MaxGaps {
		return malformed("%d gaps, more than %d", len(m.Gaps), MaxGaps)
	}
	for i := range m.Gaps {
		g := &m.Gaps[i]
		g.Start, g.End = g.Start.UTC(), g.End.UTC()
		if c := g.Chunks; c != nil && (c.Epoch == 0 || c.First == 0 || c.First > c.Last) {
			return malformed("gap %s names no chunks: %s", g.ID, c)
		}
		if !vms.ValidID(g.ID) || g.End.Before(g.Start) {
			return malformed("gap %.40q ends before it starts, or has no id", g.ID)
		}
		if err := validCause(g.Cause); err != nil {
			return err
		}
	}
	return nil
}

func (m *Committed) validate() error {
	if len(m.IDs) > MaxGaps {
		return malformed("%d ids, more than %d", len(m.IDs), MaxGaps)
	}
	for _, id := range m.IDs {
		if !vms.ValidID(id) {
			return malformed("gap id %.40q", id)
		}
	}
	return nil
}

func (m *StreamState) validate() error {
	if m.State == "" || len(m.State) > 32 || len(m.Problem) > 1000 {
		return malformed("state missing, or too long")
	}
	return nil
}

func (m *WantWorker) validate() error {
	if len(m.Instance) > 64 || len(m.Why) > 200 {
		return malformed("instance or why too long")
	}
	return nil
}

func (*TimeQuery) validate() error { return nil }

func (m *TimeAnswer) validate() error {
	if m.ServerTime.IsZero() {
		return malformed("no server_time")
	}
	return nil
}

func (m *Revoke) validate() error {
	if len(m.Why) > 1000 {
		return malformed("why too long")
	}
	return nil
}

func (*Ping) validate() error { return nil }
func (*Pong) validate() error { return nil }
