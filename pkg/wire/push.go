package wire

import (
	"time"

	"github.com/zipato/vms/pkg/vms"
)

// PushMessage is one of the JSON text messages of the push protocol. The
// agent sends Hello, InitMessage, GapMessage, Pressure and End; the worker
// sends Welcome, Ack and ErrorMessage.
type PushMessage interface {
	message
	push()
}

// Hello is the agent's first message on a lane.
type Hello struct {
	// Agent is name and version, for logs.
	Agent string   `json:"agent"`
	Lane  vms.Lane `json:"lane"`
	// Epochs are all epochs of this stream that the agent still holds or is
	// still writing. What the worker has open of any other epoch can never be
	// continued: it closes that.
	Epochs []vms.Epoch `json:"epochs"`
}

// InitMessage carries what decodes the chunks that name it. It precedes the
// first of them on each connection.
type InitMessage struct {
	Epoch vms.Epoch `json:"epoch"`
	ID    uint32    `json:"id"`
	// Tracks describe the segment; Segment is its bytes (base64 in JSON).
	Tracks  []vms.Track `json:"tracks"`
	Segment []byte      `json:"segment"`
}

// Init converts to the word of the system.
func (m *InitMessage) Init() vms.Init {
	return vms.Init{Epoch: m.Epoch, ID: m.ID, Tracks: m.Tracks, Segment: m.Segment}
}

// CauseDurable in a GapMessage: the chunks are in S3 already, by way of another
// worker; nothing is missing.
const CauseDurable vms.Cause = "durable"

// GapMessage explains a hole in the numbers of this lane. The gap itself goes
// to the NVR over the session.
type GapMessage struct {
	ID     vms.GapID      `json:"id"`
	Chunks vms.ChunkRange `json:"chunks"`
	Cause  vms.Cause      `json:"cause"`
}

// Pressure says that the agent's buffer is nearly full: the worker should make
// durable what it has of unfinished recordings.
type Pressure struct {
	Held   int64 `json:"held"`
	Budget int64 `json:"budget"`
}

// End says that nothing of the epoch follows Seq for now, because the stream
// was stopped or the camera is away: the recording is complete.
type End struct {
	Epoch vms.Epoch `json:"epoch"`
	Seq   uint64    `json:"seq"`
	Cause string    `json:"cause"`
}

// Welcome is the worker's first message.
type Welcome struct {
	Instance   vms.Instance   `json:"instance"`
	Generation vms.Generation `json:"generation"`
	// Have is what this instance has of the epochs named in Hello, durable or
	// not. The agent resumes after it, never by guessing.
	Have []vms.ChunkRange `json:"have"`
	// MaxChunk is the largest binary message, header included.
	MaxChunk int64 `json:"max_chunk"`
	// Credit is the number of bytes of binary messages that may have been sent on this connection.
	Credit int64 `json:"credit"`
	// ResumeTicket opens this lane again as long as this instance holds the stream.
	ResumeTicket string `json:"resume_ticket"`
	// Watched: somebody is looking at the live picture.
	Watched bool `json:"watched,omitempty"`
}

// Hold says what keeps the durable mark from moving.
type Hold string

// What may hold progress.
const (
	HoldNone  Hold = ""
	HoldStore Hold = "store" // uploads fail or are slow
	HoldTmpfs Hold = "tmpfs" // no room for more chunks
)

// Ack goes out when something moved and at least every 5 s.
type Ack struct {
	// Received counts the chunks taken over on this connection.
	Received uint64 `json:"received"`
	// Durable lists ranges that became durable; each is said at least once per
	// connection that asks for it in Hello.Epochs. Order means nothing.
	Durable []vms.ChunkRange `json:"durable,omitempty"`
	// Credit is absolute, as in Welcome, and never goes down.
	Credit int64 `json:"credit"`
	Hold   Hold  `json:"hold,omitempty"`
	// Watched: somebody is looking at the live picture.
	Watched bool `json:"watched,omitempty"`
}

// Class says what the agent should do about a closed connection. It is also
// the close code of the WebSocket.
type Class string

// The classes, with the close codes of Code.
const (
	ClassRetry    Class = "retry"    // 4000: connect again, with backoff
	ClassReassign Class = "reassign" // 4001: ask the NVR for another worker
	ClassSkip     Class = "skip"     // 4002: never send this chunk again
	ClassStop     Class = "stop"     // 4003: revoked; do not come back
)

var classCodes = map[Class]int{ClassRetry: 4000, ClassReassign: 4001, ClassSkip: 4002, ClassStop: 4003}

// Code returns the WebSocket close code (RFC 6455, section 7.4.2: 4000 to 4999 are private).
func (c Class) Code() int { return classCodes[c] }

// ClassOf returns the class of a close code; codes of others mean ClassRetry.
func ClassOf(code int) Class {
	for c, n := range classCodes {
		if n == code {
			return c
		}
	}
	return ClassRetry
}

// Error codes of ErrorMessage and of the close reason.
const (
	CodeMalformed = "malformed" // bytes that are not of the protocol
	CodeTooLarge  = "too_large" // a chunk above max_chunk
	CodeSequence  = "sequence"  // a number that does not follow, without a gap message
	CodeNoInit    = "no_init"   // a chunk whose init was never sent
	CodeCredit    = "credit"    // more bytes than granted
	CodeFenced    = "fenced"    // a newer generation took the lane
	CodeDraining  = "draining"  // the worker is going away
	CodeTimeout   = "timeout"   // nothing came for too long
	CodeRevoked   = "revoked"   // the channel or its session is gone
	CodeInternal  = "internal"  // the worker's own fault
)

// ErrorMessage precedes a close by the worker.
type ErrorMessage struct {
	Code    string `json:"code"`
	Class   Class  `json:"class"`
	Message string `json:"message"`
	// Epoch and Seq name the refused chunk with ClassSkip.
	Epoch vms.Epoch `json:"epoch,omitzero"`
	Seq   uint64    `json:"seq,omitempty"`
	// RetryAfter is a least wait, 0 for none (milliseconds on the wire).
	RetryAfterMS int64 `json:"retry_after_ms,omitempty"`
}

// RetryAfter returns the least wait before the next try.
func (m *ErrorMessage) RetryAfter() time.Duration {
	return time.Duration(m.RetryAfterMS) * time.Millisecond
}

// Outgoing is what a lane sends next: exactly one field is set.
type Outgoing struct {
	Chunk *vms.Chunk
	// Gap explains chunks that will not come.
	Gap *GapMessage
	// End says that nothing of an epoch follows for now.
	End *End
}

func (*Hello) push()        {}
func (*InitMessage) push()  {}
func (*GapMessage) push()   {}
func (*Pressure) push()     {}
func (*End) push()          {}
func (*Welcome) push()      {}
func (*Ack) push()          {}
func (*ErrorMessage) push() {}

var pushTypes = map[string]func() message{
	"hello":    func() message { return new(Hello) },
	"init":     func() message { return new(InitMessage) },
	"gap":      func() message { return new(GapMessage) },
	"pressure": func() message { return new(Pressure) },
	"end":      func() message { return new(End) },
	"welcome":  func() message { return new(Welcome) },
	"ack":      func() message { return new(Ack) },
	"error":    func() message { return new(ErrorMessage) },
}

// EncodePush returns the text message for m.
func EncodePush(m PushMessage) ([]byte, error) { return encode(m) }

// DecodePush reads one text message of the push protocol.
func DecodePush(data []byte) (PushMessage, error) {
	m, err := decode(data, pushTypes)
	if err != nil {
		return nil, err
	}
	return m.(PushMessage), nil // the table holds no others
}

func (*Hello) kind() string        { return "hello" }
func (*InitMessage) kind() string  { return "init" }
func (*GapMessage) kind() string   { return "gap" }
func (*Pressure) kind() string     { return "pressure" }
func (*End) kind() string          { return "end" }
func (*Welcome) kind() string      { return "welcome" }
func (*Ack) kind() string          { return "ack" }
func (*ErrorMessage) kind() string { return "error" }

func (m *Hello) validate() error {
	switch {
	case !m.Lane.Valid():
		return malformed("unknown lane %.20q", m.Lane)
	case len(m.Agent) > 200:
		return malformed("agent name of %d bytes", len(m.Agent))
	case len(m.Epochs) > MaxRanges:
		return malformed("%d epochs, more than %d", len(m.Epochs), MaxRanges)
	}
	for _, e := range m.Epochs {
		if e == 0 {
			return malformed("epoch zero names none")
		}
	}
	return nil
}

func (m *InitMessage) validate() error {
	switch {
	case m.Epoch == 0 || m.ID == 0:
		return malformed("epoch and id count from 1")
	case len(m.Segment) < 16 || len(m.Segment) > MaxInit:
		return malformed("segment of %d bytes, want 16 to %d", len(m.Segment), MaxInit)
	case len(m.Tracks) == 0 || len(m.Tracks) > 8:
		return malformed("%d tracks, want 1 to 8", len(m.Tracks))
	}
	for _, t := range m.Tracks {
		switch {
		case t.ID <= 0 || t.Timescale == 0 || (t.Kind != "video" && t.Kind != "audio"):
			return malformed("track %d is not a video or audio track with a timescale", t.ID)
		case !validCodec(t.Codec):
			return malformed("codec %.40q of track %d", t.Codec, t.ID)
		case min(t.Width, t.Height, t.SampleRate, t.Channels) < 0 || max(t.Width, t.Height) > 1<<16 || t.SampleRate > 1<<24 || t.Channels > 255:
			return malformed("track %d has an impossible size, sample rate or number of channels", t.ID)
		}
	}
	return nil
}

// validCodec allows what RFC 6381 strings are made of: they end in headers and
// object metadata.
func validCodec(s string) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
			return false
		}
	}
	return len(s) >= 1 && len(s) <= 100
}

func (m *GapMessage) validate() error {
	if !vms.ValidID(m.ID) || m.Chunks.First == 0 || m.Chunks.First > m.Chunks.Last || m.Chunks.Epoch == 0 {
		return malformed("gap without an id or without chunks")
	}
	return validCause(m.Cause)
}

func validCause(c vms.Cause) error {
	if c == "" || len(c) > 64 || !vms.ValidID(c) {
		return malformed("cause %.40q", c)
	}
	return nil
}

func (m *Pressure) validate() error {
	if m.Held < 0 || m.Budget <= 0 {
		return malformed("held %d of a budget of %d bytes", m.Held, m.Budget)
	}
	return nil
}

func (m *End) validate() error {
	if m.Epoch == 0 || len(m.Cause) > 200 {
		return malformed("end without an epoch, or with a cause of %d bytes", len(m.Cause))
	}
	return nil
}

func (m *Welcome) validate() error {
	switch {
	case !vms.ValidID(m.Instance):
		return malformed("instance %.40q", m.Instance)
	case m.MaxChunk < MinMaxChunk:
		return malformed("max_chunk %d, at least %d", m.MaxChunk, MinMaxChunk)
	case m.Credit < 0:
		return malformed("credit %d", m.Credit)
	case len(m.ResumeTicket) > MaxTicket:
		return malformed("resume_ticket of %d bytes", len(m.ResumeTicket))
	}
	return validRanges(m.Have)
}

func (m *Ack) validate() error {
	if m.Credit < 0 {
		return malformed("credit %d", m.Credit)
	}
	return validRanges(m.Durable)
}

func (m *ErrorMessage) validate() error {
	switch {
	case m.Class.Code() == 0:
		return malformed("unknown class %.20q", m.Class)
	case m.Code == "" || len(m.Code) > 64 || len(m.Message) > 1000:
		return malformed("error without a code, or with too long a message")
	case m.RetryAfterMS < 0 || m.RetryAfterMS > 3_600_000:
		return malformed("retry_after_ms %d, want 0 to an hour", m.RetryAfterMS)
	case m.Class == ClassSkip && (m.Epoch == 0 || m.Seq == 0):
		return malformed("skip without the chunk")
	}
	return nil
}

func validRanges(rs []vms.ChunkRange) error {
	if len(rs) > MaxRanges {
		return malformed("%d ranges, more than %d", len(rs), MaxRanges)
	}
	for _, r := range rs {
		if r.Epoch == 0 || r.First == 0 || r.First > r.Last {
			return malformed("range %s", r)
		}
	}
	return nil
}
