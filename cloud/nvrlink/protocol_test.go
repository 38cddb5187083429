package nvrlink

import (
	"bytes"
	"maps"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

// The tests here hold PROTOCOL.md to the code.

func readProtocol(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile("PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// everything is all messages of both sides.
func everything() table {
	all := make(table)
	for _, t := range []table{firstOfWorker, firstOfNVR, secondOfWorker, secondOfNVR, ofWorker, ofNVR} {
		maps.Copy(all, t)
	}
	return all
}

// sections returns the text below each "### `name` (sender)", by name.
func sections(t testing.TB) map[string]string {
	t.Helper()
	out := make(map[string]string)
	name := regexp.MustCompile("`([a-z_]+)` \\(")
	for _, s := range strings.Split(readProtocol(t), "\n### ")[1:] {
		head, body, _ := strings.Cut(s, "\n")
		body, _, _ = strings.Cut(body, "\n## ")
		for _, m := range name.FindAllStringSubmatch(head, -1) {
			out[m[1]] = body
		}
	}
	return out
}

// examples returns the messages that the page shows.
func examples(t testing.TB) (out [][]byte) {
	for line := range strings.Lines(readProtocol(t)) {
		if strings.HasPrefix(line, `{"type":`) {
			out = append(out, []byte(strings.TrimSpace(line)))
		}
	}
	return out
}

func TestProtocolDescribesEveryField(t *testing.T) {
	text := sections(t)
	all := everything()
	for kind, fresh := range all {
		body, ok := text[kind]
		if !ok {
			t.Errorf("no section for %q", kind)
		}
		if kind == "answer" {
			body += text["uploaded"] // as it says
		}
		for _, f := range jsonFields(reflect.TypeOf(fresh()).Elem()) {
			if f != "id" && !strings.Contains(body, "`"+f+"`") {
				t.Errorf("section %q does not describe %q", kind, f)
			}
		}
	}
	for kind := range text {
		if all[kind] == nil {
			t.Errorf("there is no message %q", kind)
		}
	}
}

// jsonFields lists the members of a struct and of the structs in it.
func jsonFields(typ reflect.Type) (out []string) {
	switch typ.Kind() {
	case reflect.Pointer, reflect.Slice:
		return jsonFields(typ.Elem())
	case reflect.Struct:
		if typ == reflect.TypeFor[time.Time]() || typ == reflect.TypeFor[vms.ChunkRange]() {
			return nil
		}
		for i := range typ.NumField() {
			f := typ.Field(i)
			if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" {
				out = append(out, name)
			}
			out = append(out, jsonFields(f.Type)...)
		}
	}
	return out
}

// TestProtocolExamplesAreMessages decodes each example and encodes it again.
func TestProtocolExamplesAreMessages(t *testing.T) {
	shown := make(map[string]bool)
	for _, line := range examples(t) {
		m, _, err := decode(line, everything())
		if err != nil {
			t.Errorf("example %s: %v", line, err)
			continue
		}
		shown[m.kind()] = true
		if again, err := encode(m); err != nil || string(again) != string(line) {
			t.Errorf("example\n%s is encoded as\n%s, %v", line, again, err)
		}
	}
	for kind := range everything() {
		if !shown[kind] {
			t.Errorf("there is no example of %q", kind)
		}
	}
}

// TestProtocolShowsAHandshake: the proofs of the examples are right.
func TestProtocolShowsAHandshake(t *testing.T) {
	var first []byte
	var hi *hello
	key := bytes.Repeat([]byte{7}, 32)
	seen := 0
	for _, line := range examples(t) {
		m, _, err := decode(line, everything())
		if err != nil {
			t.Fatal(err)
		}
		switch m := m.(type) {
		case *hello:
			first, hi = line, m
		case *challenge:
			seen++
			if !equal(m.Proof, prove(key, byNVR, hi.Nonce, m.Nonce, first)) {
				t.Error("the NVR's proof is another one")
			}
			if !strings.Contains(readProtocol(t), hexOf(prove(key, byWorker, hi.Nonce, m.Nonce, first))) {
				t.Error("the worker's proof is another one")
			}
		}
	}
	if seen != 1 {
		t.Errorf("%d challenges", seen)
	}
}

func hexOf(h hex32) string {
	b, _ := h.MarshalText() // has no error
	return string(b)
}

// TestProtocolNamesEveryLimit, word and code.
func TestProtocolNamesEveryLimit(t *testing.T) {
	text := readProtocol(t)
	for what, n := range map[string]int{
		"a message": maxMessage, "before both proofs": maxHello, "proven nothing": maxWaiting, "the handshake": int(handshakeWithin.Seconds()),
		"questions under way": maxAsking, "the work on": int(answerWithin.Seconds()), "epochs in": maxEpochs, "recordings in one": maxRecordings,
		"ranges in one": maxChunkRuns, "items of": maxAnswer, "sids in": maxSIDs, "| keys": maxKeys, "does not read": maxOrders,
	} {
		found := false
		for line := range strings.Lines(text) {
			found = found || strings.HasPrefix(line, "|") && strings.Contains(line, what) && strings.Contains(line, thousands(n))
		}
		if !found {
			t.Errorf("PROTOCOL.md does not name the limit %q, %s", what, thousands(n))
		}
	}
	for _, w := range []string{Protocol, Path} {
		if !strings.Contains(text, "`"+w+"`") {
			t.Errorf("PROTOCOL.md does not name `%s`", w)
		}
	}
	for _, p := range problems {
		if !strings.Contains(sections(t)["answer"], "`"+p.word+"`") {
			t.Errorf("PROTOCOL.md does not name the problem %q", p.word)
		}
	}
	if !strings.Contains(text, "| "+strconv.Itoa(int(statusWrongKey))+" |") {
		t.Errorf("PROTOCOL.md does not name the code %d", statusWrongKey)
	}
}

func thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
