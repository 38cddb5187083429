package chaos

import (
	"bytes"
	"encoding/binary"
	"net/http"
	"strings"
)

// maxHead bounds the request head that is looked at; what is longer is passed
// on unseen.
const maxHead = 64 << 10

// inspector follows what a client says: HTTP requests, and after an upgrade
// the frames of a WebSocket. It passes everything on as it is, but may be told
// to damage a message. What is neither it does not look at.
type inspector struct {
	// onRequest is told of each request; false stops everything.
	onRequest func(method, path string) bool
	// damage is asked, for each frame of a binary message, whether to flip a bit
	// in its middle.
	damage func(size int64) bool

	state  inspecting
	head   []byte // of the request or the frame that is incomplete
	binary bool   // the message that is passing is
	left   int64  // of the body of the frame that is passing
	flip   int64  // the bit is flipped when left is this, 0 for never
}

type inspecting int

const (
	inHead  inspecting = iota // of a request
	inFrame                   // head of a WebSocket frame, or of another request when the upgrade was refused
	inBody                    // of a WebSocket frame
	blind
)

// see looks at the next bytes, which it may alter. It returns false when they
// must not be passed on.
func (in *inspector) see(b []byte) bool {
	for len(b) > 0 {
		switch in.state {
		case blind:
			return true
		case inBody:
			b = in.body(b)
			continue
		}
		// One byte after the other: heads are short.
		in.head = append(in.head, b[0])
		b = b[1:]
		if in.state == inFrame && in.head[0] >= 'A' && in.head[0] <= 'Z' {
			in.state = inHead // no frame begins so: it has reserved bits
		}
		switch {
		case len(in.head) > maxHead:
			in.state = blind
		case in.state == inFrame:
			in.frame()
		case bytes.HasSuffix(in.head, []byte("\r\n\r\n")):
			if !in.request() {
				return false
			}
		}
	}
	return true
}

// request looks at a complete head of a request.
func (in *inspector) request() bool {
	lines := strings.Split(string(in.head), "\r\n")
	in.head = in.head[:0]
	fields := strings.Fields(lines[0])
	if len(fields) != 3 || !strings.HasPrefix(fields[2], "HTTP/1") {
		in.state = blind
		return true
	}
	for _, l := range lines[1:] {
		name, value, _ := strings.Cut(l, ":")
		value = strings.TrimSpace(value)
		switch http.CanonicalHeaderKey(name) {
		case "Upgrade":
			in.state = inFrame
		case "Content-Length", "Transfer-Encoding":
			if value != "0" {
				in.state = blind // its body is nothing that is asked for here
			}
		}
	}
	return in.onRequest(fields[0], fields[1])
}

// frame looks at the head of a frame (RFC 6455, section 5.2), which may be
// incomplete.
func (in *inspector) frame() {
	h := in.head
	if len(h) < 2 {
		return
	}
	n := 2
	size := int64(h[1] & 0x7f)
	switch size {
	case 126:
		n += 2
	case 127:
		n += 8
	}
	masked := h[1]&0x80 != 0
	if masked {
		n += 4
	}
	if len(h) < n {
		return
	}
	switch size {
	case 126:
		size = int64(binary.BigEndian.Uint16(h[2:]))
	case 127:
		size = int64(binary.BigEndian.Uint64(h[2:]) & (1<<63 - 1))
	}
	const continuation, text, binaryData = 0, 1, 2
	opcode := h[0] & 0x0f
	if opcode == text || opcode == binaryData {
		in.binary = opcode == binaryData
	}
	in.left, in.flip = size, 0
	if in.binary && (opcode == binaryData || opcode == continuation) && size > 1 && in.damage(size) {
		in.flip = size / 2
	}
	in.head = in.head[:0]
	in.state = inBody
	if size == 0 {
		in.state = inFrame
	}
}

// body passes some of a frame's body, and returns what follows it.
func (in *inspector) body(b []byte) []byte {
	n := min(int64(len(b)), in.left)
	if at := in.left - in.flip; in.flip > 0 && at < n {
		b[at] ^= 1 // under the mask it is the same bit
		in.flip = 0
	}
	in.left -= n
	if in.left == 0 {
		in.state = inFrame
	}
	return b[n:]
}
