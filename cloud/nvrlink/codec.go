package nvrlink

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/zipato/vms/pkg/vms"
)

// Limits on what travels. PROTOCOL.md names them.
const (
	// maxMessage bounds one message, maxHello one of somebody who has proven nothing yet.
	maxMessage = 256 << 10
	maxHello   = 16 << 10
	// maxAsking bounds the questions of a worker that are not answered. The NVR
	// looks twice as far: it may not have noted yet what the worker has read.
	maxAsking = 64
	// Per message; what is more goes on in the next one.
	maxRecordings = 50
	maxChunkRuns  = 1500
	maxSIDs       = 1000
	// maxEpochs bounds what one question names; an agent names up to 1,024 (wire.MaxRanges).
	maxEpochs = 4096
	maxKeys   = 32 // as in a key set of pkg/token
	maxURL    = 16 << 10
	maxKeyLen = 1024 // of an object's key: S3 has no longer ones
	maxText   = 500
	// maxAnswer bounds the items of one answer, over all its messages.
	maxAnswer = 200_000
)

// errMalformed is wrapped by every decoding error: the bytes are not of the
// protocol, and sending them again will not help.
var errMalformed = errors.New("malformed message")

// message is what every message can do.
type message interface {
	kind() string
	// validate checks what came, and what is to go: who follows it can be
	// understood. It makes times UTC.
	validate() error
}

// encode writes m with its "type" in front. Its error is a vms.ErrInvalid.
func encode(m message) ([]byte, error) {
	if err := m.validate(); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", vms.ErrInvalid, m.kind(), err)
	}
	var body bytes.Buffer
	e := json.NewEncoder(&body)
	e.SetEscapeHTML(false)
	if err := e.Encode(m); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", vms.ErrInvalid, m.kind(), err)
	}
	b := bytes.TrimSuffix(body.Bytes(), []byte("\n"))
	out := make([]byte, 0, len(b)+len(m.kind())+12)
	out = append(out, `{"type":"`...)
	out = append(out, m.kind()...)
	out = append(out, '"')
	if len(b) > 2 {
		out = append(out, ',')
	}
	out = append(out, b[1:]...)
	if len(out) > maxMessage {
		return nil, fmt.Errorf("%w: %s: %d bytes, more than %d", vms.ErrInvalid, m.kind(), len(out), maxMessage)
	}
	return out, nil
}

// table names the messages that one side may send, by type.
type table map[string]func() message

// decode reads a message of a table. Unknown fields are ignored, so that a newer
// peer may add some; an unknown type is an error, because its sender expects
// something to happen. id is that of the question, as far as it could be read,
// also when there is an error.
func decode(data []byte, types table) (m message, id uint64, err error) {
	if len(data) > maxMessage {
		return nil, 0, fmt.Errorf("%w: %d bytes, more than %d", errMalformed, len(data), maxMessage)
	}
	var head struct {
		Type string `json:"type"`
		ID   uint64 `json:"id"`
	}
	if err := unmarshal(data, &head); err != nil {
		return nil, 0, err
	}
	fresh, ok := types[head.Type]
	if !ok {
		return nil, head.ID, fmt.Errorf("%w: type %.40q", errMalformed, head.Type)
	}
	m = fresh()
	if err := unmarshal(data, m); err != nil {
		return nil, head.ID, fmt.Errorf("%s: %w", head.Type, err)
	}
	if err := m.validate(); err != nil {
		return nil, head.ID, fmt.Errorf("%w: %s: %w", errMalformed, head.Type, err)
	}
	return m, head.ID, nil
}

func unmarshal(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("%w: %v", errMalformed, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("%w: bytes after the JSON object", errMalformed)
	}
	return nil
}

// problems are the words for the kinds of error that somebody decides by. Any
// other error is the last one: try again.
var problems = []struct {
	word string
	kind error
}{
	{"not_found", vms.ErrNotFound}, {"invalid", vms.ErrInvalid}, {"conflict", vms.ErrConflict},
	{"unauthorized", vms.ErrUnauthorized}, {"forbidden", vms.ErrForbidden}, {"revoked", vms.ErrRevoked},
	{"expired", vms.ErrExpired}, {"unavailable", vms.ErrUnavailable},
}

// wordOf returns the word for an error.
func wordOf(err error) string {
	for _, p := range problems {
		if errors.Is(err, p.kind) {
			return p.word
		}
	}
	return "unavailable"
}

// told is an error of the other side.
type told struct {
	kind   error
	detail string
}

// errorOf is the way back from wordOf. A word of a newer peer is "try again".
func errorOf(word, detail string) *told {
	for _, p := range problems {
		if word == p.word {
			return &told{p.kind, detail}
		}
	}
	return &told{vms.ErrUnavailable, detail}
}

func (t *told) Error() string { return "the NVR says: " + t.detail }

// Unwrap gives the kind.
func (t *told) Unwrap() error { return t.kind }
