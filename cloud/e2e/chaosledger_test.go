package e2e

import (
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bluenviron/mediacommon/v2/pkg/codecs/h264"

	"github.com/zipato/vms/agent/mux"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/vmstest/camtest"
)

// A unit that was sent at the edge of a gap may belong to either side of it:
// its time of sending and that of its chunk differ by a chunk, and by what a
// busy machine takes to pass it on.
const edge = 200*time.Millisecond + 300*time.Millisecond

// stampError is how far the time of a recording may lie from the clock of the
// camera's machine, which here is the hub's too.
const stampError = time.Second

// ledger books every access unit that a camera sent, and finds each of them
// again, byte for byte, in what was recorded.
type ledger struct {
	mu       sync.Mutex
	units    map[[md5.Size]byte]*unit
	pictures map[uint64]*unit // by number
	bytes    int64
}

// unit is one access unit, however many clients got it.
type unit struct {
	kind   string // "v" or "a", as ffmpeg names streams
	key    bool
	number uint64
	at     time.Time // when it was sent first
	found  int       // times in the recordings
}

func newLedger() *ledger {
	return &ledger{units: make(map[[md5.Size]byte]*unit), pictures: make(map[uint64]*unit)}
}

// add is a camera's OnSent.
func (l *ledger) add(s camtest.Sent) {
	sum, size := packetSum(s)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bytes += size
	if l.units[sum] != nil {
		return // another client has it too
	}
	u := &unit{kind: "a", key: s.Key, number: s.Number, at: s.At}
	if s.Video {
		u.kind = "v"
		l.pictures[s.Number] = u
	}
	l.units[sum] = u
}

// picture returns when a picture was sent.
func (l *ledger) picture(number uint64) (time.Time, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	u := l.pictures[number]
	if u == nil {
		return time.Time{}, false
	}
	return u.at, true
}

// sentBytes returns how many bytes of media went out.
func (l *ledger) sentBytes() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bytes
}

// packetSum is the MD5 that packetSums will see of a unit of H264 or AAC, and
// its size.
func packetSum(s camtest.Sent) ([md5.Size]byte, int64) {
	if !s.Video {
		return md5.Sum(s.AU[0]), int64(len(s.AU[0]))
	}
	var b []byte
	start := []byte{0, 0, 0, 1}
	for _, nalu := range s.AU {
		switch h264.NALUType(nalu[0] & 0x1f) {
		case h264.NALUTypeSPS, h264.NALUTypePPS, h264.NALUTypeAccessUnitDelimiter:
			continue
		}
		b = append(append(b, start...), nalu...)
		start = []byte{0, 0, 1}
	}
	return md5.Sum(b), int64(len(b))
}

// packetSums returns, for each file, ffmpeg's MD5 of each packet of video and
// sound, in the order in which ffmpeg delivers them.
func packetSums(t testing.TB, files []string) [][]packet {
	t.Helper()
	out := make([][]packet, len(files))
	if len(files) == 0 {
		return out
	}
	args := []string{"-v", "error", "-nostdin"}
	for _, f := range files {
		args = append(args, "-i", f)
	}
	for i := range files {
		args = append(args, "-map", strconv.Itoa(i)+":v:0", "-map", strconv.Itoa(i)+":a:0?")
	}
	args = append(args, "-c", "copy", "-bsf:v", "h264_mp4toannexb,filter_units=remove_types=7-9", "-f", "framemd5", "-")
	cmd := exec.CommandContext(t.Context(), "ffmpeg", args...)
	var errs strings.Builder
	cmd.Stderr = &errs
	text, err := cmd.Output()
	if err != nil || errs.Len() > 0 {
		t.Fatalf("ffmpeg reads %v: %v\n%s", files, err, errs.String())
	}
	// "#media_type 3: audio" for each stream; a video begins the next file.
	var file []int
	var kinds []string
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "#media_type "); ok {
			_, kind, _ := strings.Cut(strings.TrimSpace(rest), ": ")
			kinds = append(kinds, kind[:1])
			at := 0
			if n := len(file); n > 0 {
				at = file[n-1]
				if kind[:1] == "v" {
					at++
				}
			}
			file = append(file, at)
			continue
		}
		fields := strings.Split(strings.TrimSpace(line), ",")
		if strings.HasPrefix(line, "#") || len(fields) < 6 {
			continue
		}
		stream, err := strconv.Atoi(strings.TrimSpace(fields[0]))
		if err != nil || stream >= len(file) {
			t.Fatalf("ffmpeg says %q", line)
		}
		var p packet
		p.kind = kinds[stream]
		if n, err := hex.Decode(p.sum[:], []byte(strings.TrimSpace(fields[5]))); err != nil || n != md5.Size {
			t.Fatalf("ffmpeg says %q", line)
		}
		out[file[stream]] = append(out[file[stream]], p)
	}
	return out
}

type packet struct {
	kind string
	sum  [md5.Size]byte
}

// audit is what became of all that a camera sent.
type audit struct {
	captured, recorded, declared, doubled int

	// wrong lists what breaks the promise, in words.
	wrong []string
	// lost is how long the pictures last that were declared, and causes how often
	// each cause is on the timeline.
	lost    time.Duration
	causes  map[vms.Cause]int
	lastGap time.Time // when the last gap ends
	torn    []*unit   // the first missing picture of each GOP that is recorded in part
}

const maxWrong = 20

func (a *audit) fault(format string, args ...any) {
	if len(a.wrong) < maxWrong {
		a.wrong = append(a.wrong, fmt.Sprintf(format, args...))
	}
}

// settle compares what was sent with a timeline: each unit is recorded once,
// unaltered and in order, or lies in a gap whose cause is one of these.
func (l *ledger) settle(t testing.TB, tl timeline, causes []vms.Cause) *audit {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	a := &audit{captured: len(l.units), causes: make(map[vms.Cause]int)}
	a.checkTimeline(tl, causes)
	l.findAll(t, tl.Recordings, a)

	all := make([]*unit, 0, len(l.units))
	for _, u := range l.units {
		all = append(all, u)
	}
	slices.SortFunc(all, func(x, y *unit) int {
		if x.kind != y.kind {
			return strings.Compare(x.kind, y.kind)
		}
		return int(x.number) - int(y.number)
	})
	before := &unit{} // the unit before of the same kind
	var silent []*unit
	for _, u := range all {
		if u.kind != before.kind {
			before = &unit{kind: u.kind}
		}
		inGap := slices.ContainsFunc(tl.Gaps, func(g vms.Gap) bool {
			return !u.at.Before(g.Start.Add(-edge)) && u.at.Before(g.End.Add(edge))
		})
		deep := slices.ContainsFunc(tl.Gaps, func(g vms.Gap) bool {
			return u.at.After(g.Start.Add(stampError)) && u.at.Before(g.End.Add(-stampError))
		})
		switch {
		case u.found > 0:
			a.recorded++
			a.doubled += u.found - 1
			if deep {
				a.fault("%s is recorded and lies in a gap", u)
			}
			if u.kind == "v" && before.found == 0 && !u.key {
				a.fault("%s is recorded, the picture before it is not, and it is no keyframe", u)
			}
		case inGap:
			a.declared++
		default:
			silent = append(silent, u)
		}
		if u.kind == "v" && u.found == 0 && before.number+1 == u.number && before.found == 0 {
			a.lost += u.at.Sub(before.at)
		}
		if u.kind == "v" && u.found == 0 && before.found > 0 && !u.key {
			a.torn = append(a.torn, u)
		}
		before = u
	}
	if a.doubled > 0 {
		a.fault("%d packets are recorded more than once", a.doubled)
	}
	for len(silent) > 0 {
		n := 1
		for n < len(silent) && silent[n].kind == silent[0].kind && silent[n].number == silent[n-1].number+1 {
			n++
		}
		a.fault("%d units from %s to %s are neither recorded nor in a gap", n, silent[0], silent[n-1])
		silent = silent[n:]
	}
	return a
}

// String names a unit and when it was sent.
func (u *unit) String() string {
	key := ""
	if u.key {
		key = ", a keyframe"
	}
	return fmt.Sprintf("%s%d (%s%s)", u.kind, u.number, u.at.UTC().Format(clockLayout), key)
}

const clockLayout = "15:04:05.000"

// checkTimeline wants recordings and gaps to abut, and nothing else.
func (a *audit) checkTimeline(tl timeline, causes []vms.Cause) {
	type stretch struct {
		vms.TimeRange
		what string
	}
	var all []stretch
	for _, r := range tl.Recordings {
		all = append(all, stretch{vms.TimeRange{Start: r.Start, End: r.End}, "recording"})
	}
	for _, g := range tl.Gaps {
		all = append(all, stretch{g.TimeRange, "gap " + string(g.Cause)})
		a.causes[g.Cause]++
		if g.End.After(a.lastGap) {
			a.lastGap = g.End
		}
		if !slices.Contains(causes, g.Cause) {
			a.fault("gap %s from %s to %s: nothing may be missing for this cause", g.Cause, g.Start.Format(clockLayout), g.End.Format(clockLayout))
		}
	}
	if len(tl.Recordings) == 0 {
		a.fault("nothing is recorded")
	}
	for _, p := range tl.Pending {
		a.fault("still pending: %s to %s", p.Start.Format(clockLayout), p.End.Format(clockLayout))
	}
	slices.SortStableFunc(all, func(x, y stretch) int { return x.Start.Compare(y.Start) })
	for i := 1; i < len(all); i++ {
		// Times are milliseconds in the API, rounded each for itself.
		if d := all[i].Start.Sub(all[i-1].End); d > time.Millisecond || d < -time.Millisecond {
			a.fault("%s ends at %s, the next %s begins %v later", all[i-1].what, all[i-1].End.Format(clockLayout), all[i].what, d)
		}
	}
}

// findAll books the packets of the recordings, oldest recording first. l.mu is held.
func (l *ledger) findAll(t testing.TB, recordings []recording, a *audit) {
	t.Helper()
	const batch = 16 // files that one ffmpeg reads
	recordings = slices.Clone(recordings)
	slices.SortFunc(recordings, func(x, y recording) int { return x.Start.Compare(y.Start) })
	newest := map[string]uint64{}
	for some := range slices.Chunk(recordings, batch) {
		dir := t.TempDir()
		var files []string
		for i, r := range some {
			path := filepath.Join(dir, strconv.Itoa(i)+".mp4")
			download(t, r, path)
			files = append(files, path)
		}
		for i, packets := range packetSums(t, files) {
			r := some[i]
			first := true
			for _, p := range packets {
				u := l.units[p.sum]
				if u == nil || u.kind != p.kind {
					a.fault("recording of %s holds a packet (%s) that was never sent", r.Start.Format(clockLayout), p.kind)
					continue
				}
				if u.found == 0 && u.number < newest[u.kind] {
					a.fault("%s comes after number %d", u, newest[u.kind])
				}
				newest[u.kind] = max(newest[u.kind], u.number)
				u.found++
				if p.kind == "v" && first {
					first = false
					if d := r.Start.Sub(u.at); d > stampError || d < -stampError {
						a.fault("recording of %s begins with %s", r.Start.Format(clockLayout), u)
					}
				}
			}
			if first {
				a.fault("recording of %s holds no picture", r.Start.Format(clockLayout))
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	}
}

// TestLedgerSeesWhatIsWrong: the books are worth something only if they do not
// balance when a recording is missing, doubled or altered, or a gap is not told.
func TestLedgerSeesWhatIsWrong(t *testing.T) {
	t.Parallel()
	path := vmstest.MakeClip(t, vmstest.ClipSpec{Audio: "aac", GOP: 25, Duration: 16 * time.Second})
	book := bookOf(t, path, 25)
	dir := t.TempDir()
	srv := httptest.NewServer(http.FileServer(http.Dir(dir)))
	defer srv.Close()
	var whole timeline
	in := muxClip(t, path, mux.Config{Epoch: 1, Recording: 4 * time.Second})
	for i, file := range record(t, in) {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		name := strconv.Itoa(i) + ".mp4"
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
		whole.Recordings = append(whole.Recordings, recording{Bytes: int64(len(data)), URL: srv.URL + "/" + name})
	}
	n := -1
	for _, c := range in.chunks {
		if c.Flags.Has(vms.FlagFirst) {
			n++
			whole.Recordings[n].Start = c.Start
		}
		whole.Recordings[n].End = c.End
	}
	if n < 3 {
		t.Fatalf("%d recordings, want at least 4", n+1)
	}
	lost := vms.Gap{Cause: vms.CauseBufferFull, TimeRange: vms.TimeRange{Start: whole.Recordings[1].Start, End: whole.Recordings[1].End}}
	for name, tt := range map[string]struct {
		alter  func(tl *timeline)
		causes []vms.Cause
		want   string // in what is wrong; empty when nothing is
	}{
		"whole":            {func(*timeline) {}, nil, ""},
		"missing, told":    {func(tl *timeline) { tl.Recordings = slices.Delete(tl.Recordings, 1, 2); tl.Gaps = []vms.Gap{lost} }, []vms.Cause{lost.Cause}, ""},
		"missing, silent":  {func(tl *timeline) { tl.Recordings = slices.Delete(tl.Recordings, 1, 2) }, nil, "neither recorded nor in a gap"},
		"another cause":    {func(tl *timeline) { tl.Recordings = slices.Delete(tl.Recordings, 1, 2); tl.Gaps = []vms.Gap{lost} }, nil, "for this cause"},
		"hole in the time": {func(tl *timeline) { tl.Recordings = slices.Delete(tl.Recordings, 1, 2) }, nil, "begins 4s later"},
		"gap over footage": {func(tl *timeline) { tl.Gaps = []vms.Gap{lost} }, []vms.Cause{lost.Cause}, "lies in a gap"},
		"doubled": {func(tl *timeline) {
			tl.Recordings[1].URL = tl.Recordings[0].URL
			tl.Recordings[1].Bytes = tl.Recordings[0].Bytes
		}, nil, "more than once"},
		"out of order": {func(tl *timeline) {
			a, b := &tl.Recordings[1], &tl.Recordings[2]
			a.URL, b.URL, a.Bytes, b.Bytes = b.URL, a.URL, b.Bytes, a.Bytes
		}, nil, "comes after"},
		"pending": {func(tl *timeline) { tl.Pending = []vms.TimeRange{lost.TimeRange} }, nil, "still pending"},
		"altered": {func(tl *timeline) {
			data, err := os.ReadFile(filepath.Join(dir, "2.mp4"))
			if err != nil {
				t.Fatal(err)
			}
			data[len(data)-1000] ^= 1
			if err := os.WriteFile(filepath.Join(dir, "altered.mp4"), data, 0o600); err != nil {
				t.Fatal(err)
			}
			tl.Recordings[2].URL = srv.URL + "/altered.mp4"
		}, nil, "never sent"},
	} {
		t.Run(name, func(t *testing.T) {
			tl := timeline{Recordings: slices.Clone(whole.Recordings)}
			tt.alter(&tl)
			for _, u := range book.units {
				u.found = 0
			}
			a := book.settle(t, tl, tt.causes)
			said := strings.Join(a.wrong, "\n")
			if !strings.Contains(said, tt.want) || tt.want == "" && said != "" {
				t.Errorf("want %q in what is wrong, which is:\n%s", tt.want, said)
			}
			if tt.want == "" && a.recorded+a.declared != a.captured {
				t.Errorf("%d captured, %d recorded, %d declared", a.captured, a.recorded, a.declared)
			}
		})
	}
}
