package wire

import (
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

// The tests here hold PROTOCOL.md to the code: who implements the document
// must be able to talk to us.

func readProtocol(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// sections returns the text below each "### `name` (sender)" of one protocol, by name.
func sections(t *testing.T, protocol string) map[string]string {
	t.Helper()
	_, text, ok := strings.Cut(readProtocol(t), "\n# "+protocol)
	if !ok {
		t.Fatalf("PROTOCOL.md has no chapter %q", protocol)
	}
	text, _, _ = strings.Cut(text, "\n# ")
	out := make(map[string]string)
	name := regexp.MustCompile("`([a-z_]+)` \\(")
	for _, s := range strings.Split(text, "\n### ")[1:] {
		head, body, _ := strings.Cut(s, "\n")
		body, _, _ = strings.Cut(body, "\n## ")
		for _, m := range name.FindAllStringSubmatch(head, -1) {
			out[m[1]] = body
		}
	}
	return out
}

// chapters are the messages that each describes. Those of the hub protocol are
// messages of the session too, and have a chapter of their own.
func chapters() map[string]map[string]func() message {
	session, hub := maps.Clone(sessionTypes), make(map[string]func() message)
	for _, kind := range []string{"desired", "reported", "command", "command_reply", "broker"} {
		hub[kind] = session[kind]
		delete(session, kind)
	}
	return map[string]map[string]func() message{
		"Session: `vms.session.v1`": session, "Hub: MQTT and control line": hub, "Push: `vms.push.v1`": pushTypes,
	}
}

func TestProtocolDescribesEveryField(t *testing.T) {
	for chapter, types := range chapters() {
		text := sections(t, chapter)
		for kind, fresh := range types {
			body, ok := text[kind]
			if !ok {
				t.Errorf("%s: no section for %q", chapter, kind)
			}
			for _, f := range jsonFields(reflect.TypeOf(fresh()).Elem()) {
				if !strings.Contains(body, "`"+f+"`") {
					t.Errorf("%s: section %q does not describe %q", chapter, kind, f)
				}
			}
		}
		for kind := range text {
			if types[kind] == nil {
				t.Errorf("%s: there is no message %q", chapter, kind)
			}
		}
	}
}

// jsonFields lists the members of a struct and of the structs in it.
func jsonFields(typ reflect.Type) []string {
	switch typ.Kind() {
	case reflect.Pointer, reflect.Slice:
		return jsonFields(typ.Elem())
	case reflect.Struct:
		if typ == reflect.TypeFor[time.Time]() || typ == reflect.TypeFor[vms.ChunkRange]() {
			return nil
		}
		var out []string
		for i := range typ.NumField() {
			f := typ.Field(i)
			if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" {
				out = append(out, name)
			}
			out = append(out, jsonFields(f.Type)...)
		}
		return out
	}
	return nil
}

// TestProtocolExamplesAreMessages decodes each example and encodes it again.
func TestProtocolExamplesAreMessages(t *testing.T) {
	for chapter, types := range chapters() {
		for kind, body := range sections(t, chapter) {
			_, block, ok := strings.Cut(body, "```json\n")
			block, _, closed := strings.Cut(block, "\n```")
			if !ok || !closed {
				t.Errorf("%s: section %q has no example", chapter, kind)
				continue
			}
			found := false
			for line := range strings.Lines(block) {
				line = strings.TrimSpace(line)
				m, err := decode([]byte(line), types)
				if err != nil {
					t.Errorf("%s: example %s: %v", chapter, line, err)
					continue
				}
				found = found || m.kind() == kind
				if again, err := encode(m); err != nil || string(again) != line {
					t.Errorf("%s: example\n%s is encoded as\n%s, %v", chapter, line, again, err)
				}
			}
			if !found {
				t.Errorf("%s: section %q shows other messages", chapter, kind)
			}
		}
	}
}

// TestProtocolNamesEveryWord: words, codes, types and limits.
func TestProtocolNamesEveryWord(t *testing.T) {
	text := readProtocol(t)
	words := []string{
		PushProtocol, SessionProtocol, TokenHeader,
		string(vms.LaneLive), string(vms.LaneBackfill), string(HoldStore), string(HoldTmpfs),
		StateStarting, StateStreaming, StateBuffering, StateNoCamera, StateBadCamera, StateAuthFailed, StateRefused, StateStopped,
		CodeMalformed, CodeTooLarge, CodeSequence, CodeNoInit, CodeCredit, CodeFenced, CodeDraining, CodeTimeout, CodeRevoked, CodeInternal,
		"first", "key", "preview", "dependent", "time_uncertain",
		Topic("{hub}", LeafDesired), Topic("{hub}", LeafCommand), Topic("{hub}", LeafReported), Topic("{hub}", LeafReply),
		string(ModeOnDemand), string(ModeContinuous), string(ModeScheduled), string(ModeEvent),
		string(Syncing), string(InSync), string(Failed), OriginCloud, OriginLAN, "nvr", "sntp", "rtc", "none",
		string(CommandSnapshot), string(CommandDoctor), string(CommandRestartStream), string(CommandDrain), string(CommandEvent),
	}
	for _, c := range []vms.Cause{
		vms.CauseCameraOffline, vms.CauseBufferFull, vms.CauseAgentRestarted, vms.CauseRejected,
		vms.CauseUndecodable, vms.CauseClockUnknown, vms.CauseHubUnreachable, vms.CauseUnknown,
	} {
		words = append(words, string(c))
	}
	for _, p := range []string{
		ProblemNonce, ProblemProof, ProblemTokenInvalid, ProblemTokenExpired, ProblemHubUnknown, ProblemHubMismatch,
		ProblemSIDUnknown, ProblemRevoked, ProblemTicketInvalid, ProblemTicketExpired, ProblemFenced, ProblemNoWorker, ProblemBusy,
	} {
		words = append(words, strings.TrimPrefix(p, "urn:vms:problem:"))
	}
	for _, w := range words {
		if !strings.Contains(text, "`"+w+"`") {
			t.Errorf("PROTOCOL.md does not name `%s`", w)
		}
	}
	for class, code := range classCodes {
		if !strings.Contains(text, fmt.Sprintf("| `%s` | %d |", class, code)) {
			t.Errorf("PROTOCOL.md does not give class %s the close code %d", class, code)
		}
	}
	for _, n := range []string{"262,144", "8,388,608", "65,536", "16,384", "1,024", "256", "| 64, 128 |"} {
		if !strings.Contains(text, n) {
			t.Errorf("PROTOCOL.md does not name the limit %s", n)
		}
	}
	if MaxControl != 262_144 || MinMaxChunk != 8_388_608 || MaxInit != 65_536 || MaxRanges != 1024 || MaxGaps != 256 ||
		MaxStreams != 64 || MaxItems != 128 || MaxCamera != 16_384 || MaxResult != 65_536 {
		t.Error("a limit has changed: that needs a new version of the protocol")
	}
}

// TestProtocolShowsAGoldenChunk compares the hex dump with the golden file.
func TestProtocolShowsAGoldenChunk(t *testing.T) {
	_, text, _ := strings.Cut(readProtocol(t), "chunk-first-key.bin`):\n")
	text, _, _ = strings.Cut(text, "\n## ")
	var digits strings.Builder
	for _, m := range regexp.MustCompile(`(?m)^    ((?:[0-9a-f]{2}  ?)*[0-9a-f]{2})`).FindAllStringSubmatch(text, -1) {
		digits.WriteString(strings.ReplaceAll(m[1], " ", ""))
	}
	want, err := os.ReadFile(filepath.Join("testdata", "golden", "chunk-first-key.bin"))
	if err != nil {
		t.Fatal(err)
	}
	if got := digits.String(); got != hex.EncodeToString(want) {
		t.Errorf("PROTOCOL.md shows %s, the golden file is %x", got, want)
	}
}
