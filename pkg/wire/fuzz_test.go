package wire

import (
	"bytes"
	"encoding/base64"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/zipato/vms/pkg/vms"
)

func FuzzDecodeChunk(f *testing.F) {
	addGolden(f, "chunk-*.bin")
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := DecodeChunk(data)
		if err != nil {
			wantMalformed(t, err)
			return
		}
		again, err := DecodeChunk(EncodeChunk(&c))
		if err != nil {
			t.Fatalf("what decodes does not decode again: %v", err)
		}
		if !reflect.DeepEqual(again, c) {
			t.Fatalf("decoded %+v, again %+v", c, again)
		}
	})
}

// FuzzDecodeChunkPayload mends length and checksum, which a fuzzer never hits,
// so that the checks behind them are reached.
func FuzzDecodeChunkPayload(f *testing.F) {
	for _, c := range goldenChunks() {
		f.Add(EncodeChunk(&c)[:ChunkHeaderLen], c.Payload)
	}
	f.Fuzz(func(t *testing.T, header, payload []byte) {
		if len(header) < ChunkHeaderLen {
			return
		}
		var fixed vms.Chunk
		fixed.Payload, fixed.CRC = payload, Checksum(payload)
		ours := AppendChunkHeader(nil, &fixed)
		msg := append(bytes.Clone(header[:ChunkHeaderLen]), payload...)
		copy(msg[28:32], ours[28:32])
		copy(msg[60:64], ours[60:64])
		c, err := DecodeChunk(msg)
		if err != nil {
			wantMalformed(t, err)
			return
		}
		if c.MoofLen < 8 || c.MoofLen > len(c.Payload)-8 || c.End.Before(c.Start) || c.Seq == 0 || c.Epoch == 0 {
			t.Fatalf("took %+v", c)
		}
		if again, err := DecodeChunk(EncodeChunk(&c)); err != nil || !reflect.DeepEqual(again, c) {
			t.Fatalf("decoded %+v, again %+v, %v", c, again, err)
		}
	})
}

func FuzzDecodePush(f *testing.F) {
	addGolden(f, "push-*.json")
	f.Fuzz(func(t *testing.T, data []byte) { roundTrip(t, data, DecodePush, EncodePush) })
}

func FuzzDecodeSession(f *testing.F) {
	addGolden(f, "session-*.json")
	f.Fuzz(func(t *testing.T, data []byte) { roundTrip(t, data, DecodeSession, EncodeSession) })
}

func FuzzParseProof(f *testing.F) {
	p := Proof{Hub: "hub_01", Nonce: "bm9uY2U", Sig: bytes.Repeat([]byte{7}, 64)}
	f.Add(p.Header())
	f.Add(Challenge("bm9uY2U"))
	f.Add("Bearer abc")
	f.Add(`VMS-Hub hub="a", nonce="b", sig="c"`)
	f.Add(`vms-hub  sig="` + base64.RawURLEncoding.EncodeToString(p.Sig) + `",hub="h",nonce="n"`)
	f.Fuzz(func(t *testing.T, value string) {
		// An HTTP header holds no control characters; net/http refuses them before us.
		if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return
		}
		h := http.Header{"Authorization": {value}, "Www-Authenticate": {value}}
		if nonce, ok := ParseChallenge(h); ok {
			again, ok := ParseChallenge(http.Header{"Www-Authenticate": {Challenge(nonce)}})
			if !ok || again != nonce {
				t.Fatalf("nonce %q becomes %q", nonce, again)
			}
		}
		p, ok, err := ParseProof(h)
		if err != nil {
			wantMalformed(t, err)
			return
		}
		if !ok {
			return
		}
		if !vms.ValidID(p.Hub) || p.Nonce == "" || len(p.Sig) != 64 {
			t.Fatalf("took %+v", p)
		}
		again, ok, err := ParseProof(http.Header{"Authorization": {p.Header()}})
		if !ok || err != nil || !reflect.DeepEqual(again, p) {
			t.Fatalf("parsed %+v, again %+v, %v, %v", p, again, ok, err)
		}
	})
}

// roundTrip holds what both protocols promise of any bytes: a decoder does not
// panic, its refusals are ErrMalformed, and what it takes can be sent on and
// means the same.
func roundTrip[M any](t *testing.T, data []byte, decode func([]byte) (M, error), encode func(M) ([]byte, error)) {
	t.Helper()
	m, err := decode(data)
	if err != nil {
		wantMalformed(t, err)
		return
	}
	enc, err := encode(m)
	if err != nil {
		if len(data) > MaxControl/2 {
			return // escapes made it longer than a message may be
		}
		t.Fatalf("what decodes does not encode: %v", err)
	}
	again, err := decode(enc)
	if err != nil {
		t.Fatalf("%s does not decode again: %v", enc, err)
	}
	// Bytes, not DeepEqual: 00:00+00:00 and 00:00Z are one time in two zones,
	// and a list may be empty in two ways.
	enc2, err := encode(again)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(enc, enc2) || reflect.TypeOf(m) != reflect.TypeOf(again) {
		t.Fatalf("encoded\n%s, then\n%s", enc, enc2)
	}
}

func wantMalformed(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, ErrMalformed) {
		t.Fatalf("error %v does not wrap ErrMalformed", err)
	}
}

func addGolden(f *testing.F, pattern string) {
	f.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", "golden", pattern))
	if err != nil || len(files) == 0 {
		f.Fatalf("no golden files %s: %v", pattern, err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(bytes.TrimSuffix(b, []byte("\n")))
	}
}
