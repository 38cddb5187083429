// Package wire is the formats that travel between agent, worker and NVR, without
// sockets: the push protocol (chunks and their control messages), the session
// protocol, the hub protocol (what a hub should do, over MQTT or in a session),
// and the proof that a handshake carries. PROTOCOL.md beside this
// file says what each field means; the golden files under testdata never change.
package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Subprotocols, offered and chosen in the WebSocket handshake (RFC 6455,
// section 11.3.4). A new version is a new name.
const (
	PushProtocol    = "vms.push.v1"
	SessionProtocol = "vms.session.v1"
)

// Limits on what an outsider may send.
const (
	// MaxControl bounds one JSON text message of any protocol, and so an MQTT payload.
	MaxControl = 256 << 10
	// MinMaxChunk is the least that a worker may announce as max_chunk: one 4K
	// keyframe is large.
	MinMaxChunk = 8 << 20
	// MaxInit bounds an init segment.
	MaxInit = 64 << 10
	// MaxRanges bounds the ranges in one list. Who has more says the first ones
	// and the rest in a later message.
	MaxRanges = 1024
	// MaxGaps bounds the gaps in one message.
	MaxGaps = 256
	// MaxTicket bounds a ticket or token, in bytes.
	MaxTicket = 8000
	// MaxStreams bounds the streams of a Desired. Its cameras share MaxControl:
	// it always fits with 2,200 bytes of sealed camera each.
	MaxStreams = 64
	// MaxItems bounds the items of a Reported: what is desired, and what an app
	// on the LAN has started.
	MaxItems = 128
	// MaxCamera bounds a sealed camera, in bytes before base64.
	MaxCamera = 16 << 10
	// MaxResult bounds the result of a command, in bytes of JSON.
	MaxResult = 64 << 10
)

// ErrTooLong is wrapped when a message that is right in all its fields is
// longer than MaxControl: its sender has to say less.
var ErrTooLong = errors.New("too long")

// ErrMalformed is wrapped by every decoding error: the bytes are not of the
// protocol, and sending them again will not help.
var ErrMalformed = errors.New("malformed")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

// message is what every control message can do.
type message interface {
	kind() string
	validate() error
}

// encode writes m with its "type" in front.
func encode(m message) ([]byte, error) {
	if err := m.validate(); err != nil {
		return nil, fmt.Errorf("encode %s: %w", m.kind(), err)
	}
	body, err := marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", m.kind(), err)
	}
	out := make([]byte, 0, len(body)+len(m.kind())+12)
	out = append(out, `{"type":"`...)
	out = append(out, m.kind()...)
	out = append(out, '"')
	if len(body) > 2 {
		out = append(out, ',')
	}
	out = append(out, body[1:]...)
	if len(out) > MaxControl {
		return nil, fmt.Errorf("encode %s: %w: %d bytes, more than %d", m.kind(), ErrTooLong, len(out), MaxControl)
	}
	return out, nil
}

// marshal is json.Marshal without HTML escapes, which nobody here needs.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// decode reads the message that types knows by its "type". Unknown fields are
// ignored, so that a newer peer may add some; an unknown type is an error,
// because its sender expects something to happen.
func decode(data []byte, types map[string]func() message) (message, error) {
	if len(data) > MaxControl {
		return nil, malformed("control message of %d bytes, more than %d", len(data), MaxControl)
	}
	var head struct {
		Type string `json:"type"`
	}
	if err := unmarshal(data, &head); err != nil {
		return nil, err
	}
	make, ok := types[head.Type]
	if !ok {
		return nil, malformed("unknown message type %.40q", head.Type)
	}
	m := make()
	if err := unmarshal(data, m); err != nil {
		return nil, fmt.Errorf("%s: %w", head.Type, err)
	}
	if err := m.validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", head.Type, err)
	}
	return m, nil
}

func unmarshal(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	if err := d.Decode(v); err != nil {
		return malformed("%v", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return malformed("bytes after the JSON object")
	}
	return nil
}
