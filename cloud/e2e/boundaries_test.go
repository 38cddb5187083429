package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/vmstest/camtest"
)

// tally is what a comparison found.
type tally struct{ captured, recorded, doubled int }

func (a *tally) add(b tally) {
	a.captured += b.captured
	a.recorded += b.recorded
	a.doubled += b.doubled
}

// TestRecordingBoundaries: over a thousand recordings of every kind of camera,
// each picture and each sample of sound that the camera sent is recorded once,
// unaltered, in order and in its place in time, and recordings abut.
func TestRecordingBoundaries(t *testing.T) {
	t.Parallel()
	const (
		length = 2 * time.Second
		lasts  = 74 * time.Second
	)
	s := newStack(t, length)
	var sources []*source
	for _, k := range cameraKinds {
		for i := range max(k.cameras, 1) {
			src := startSource(t, k, fmt.Sprintf("%s %d", k.name, i+1))
			src.ch = s.addChannel(src.name, src.cam.URL())
			sources = append(sources, src)
		}
	}
	s.record(sources, lasts)

	var all tally
	boundaries := 0
	for _, src := range sources {
		t.Run(src.name, func(t *testing.T) {
			tl := s.settled(src.ch)
			got := src.check(t, tl)
			all.add(got)
			boundaries += len(tl.Recordings) - 1
			t.Logf("%d recordings, %d units captured, %d recorded, %d doubled", len(tl.Recordings), got.captured, got.recorded, got.doubled)
			// A recording ends at the first keyframe behind its length.
			longest := length + 2*time.Second
			if sp := src.kind.spec; sp.FPS > 0 && sp.GOP > 0 {
				longest = length + time.Duration(sp.GOP)*time.Second/time.Duration(sp.FPS)
			}
			if want := int(lasts / longest); len(tl.Recordings) < want {
				t.Errorf("%d recordings, want %d or more", len(tl.Recordings), want)
			}
		})
	}
	if boundaries < 1000 {
		t.Errorf("%d boundaries between recordings, want 1000", boundaries)
	}
	verdict := "ok"
	if t.Failed() {
		verdict = "FAIL"
	}
	fmt.Printf("fault recording_boundaries captured %d recorded %d declared %d doubled %d verdict %s\n",
		all.captured, all.recorded, max(all.captured-all.recorded, 0), all.doubled, verdict)
	fmt.Printf("figure recording_boundaries %d boundaries\n", boundaries)
}

// check compares a channel's recordings with what its camera sent.
func (s *source) check(t *testing.T, tl timeline) tally {
	t.Helper()
	s.mu.Lock() // the camera is frozen
	defer s.mu.Unlock()
	if n := s.cam.Plays(); n != 1 || s.others != 0 {
		t.Errorf("%d sessions with the camera, %d units to a second client; want 1 and 0", n, s.others)
	}
	if len(tl.Gaps) != 0 {
		t.Errorf("gaps: %+v, want none", tl.Gaps)
	}
	got := map[string]*found{"v": {}, "a": {}}
	var files []string // of the recordings with sound
	dir := t.TempDir()
	for i, r := range tl.Recordings {
		if i > 0 && !r.Start.Equal(tl.Recordings[i-1].End) {
			t.Errorf("recording %d starts at %v, the one before ends at %v", i, r.Start, tl.Recordings[i-1].End)
		}
		path := filepath.Join(dir, strconv.Itoa(i)+".mp4")
		download(t, r, path)
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		f, err := readMP4(data)
		if err != nil || len(f.samples) == 0 {
			t.Fatalf("recording %d: %v, %d samples", i, err, len(f.samples))
		}
		sounds := len(got["a"].sums)
		s.take(t, i, r, r.Start.Sub(tl.Recordings[0].Start), f, got)
		if len(got["a"].sums) > sounds {
			files = append(files, path)
		}
	}
	sum := compareUnits(t, "picture", s.pictures(t), got["v"].sums)
	sound := s.sent["a"]
	if a := s.media.AudioCodec; a == "aac" || a == "" {
		sum.add(compareUnits(t, "sound", sound, got["a"].sums))
	} else {
		sum.add(comparePCM(t, s.media, sound, decodeSound(t, s.media, files)))
		sound = framesOf(s.media, sound, got["a"].long)
	}
	if !t.Failed() {
		wantPlaces(t, s.sent["v"], sound, got["v"], got["a"])
	}
	return sum
}

// found is what the recordings of a channel hold, one after the other.
type found struct {
	sums []unitSum
	pts  []time.Duration // since the start of the first recording
	in   []int           // which recording
	long []int64         // how long each lasts: sound in samples
}

// take notes the samples of recording i, which begins at after the first one,
// and checks what can be said of a recording alone.
func (s *source) take(t *testing.T, i int, r recording, at time.Duration, f *mp4File, got map[string]*found) {
	t.Helper()
	least, end, pictures := f.samples[0].pts, time.Duration(0), 0
	var shown time.Duration // all pictures together
	for _, sm := range f.samples {
		least, end = min(least, sm.pts), max(end, sm.pts+sm.duration)
		k := got[sm.track.kind]
		if sm.track.kind == "v" {
			shown += sm.duration
			if pictures == 0 {
				if !sm.sync {
					t.Errorf("recording %d does not begin with a keyframe", i)
				}
				s.wantSets(t, i, sm.track, len(k.sums))
			}
			pictures++
		}
		sum, err := s.sum(sm)
		if err != nil {
			t.Fatalf("recording %d: %v", i, err)
		}
		k.sums = append(k.sums, sum)
		k.pts = append(k.pts, at+sm.pts)
		k.in = append(k.in, i)
		long := sm.ticks * int64(max(s.media.SampleRate, 1))
		if sm.track.kind == "a" && long%sm.track.rate != 0 {
			t.Errorf("recording %d: a frame of sound takes %d ticks of 1/%d s, which is no whole number of samples", i, sm.ticks, sm.track.rate)
		}
		k.long = append(k.long, long/sm.track.rate)
	}
	if pictures == 0 {
		t.Errorf("recording %d has no picture", i)
	}
	if least != 0 {
		t.Errorf("recording %d: its earliest sample is at %v, want 0", i, least)
	}
	// A stream that is stopped between a picture and those that are to be shown
	// before it has pictures for longer than the last of them tells.
	if d := max(end, shown) - time.Duration(r.MediaMS)*time.Millisecond; d.Abs() > 2*time.Millisecond {
		t.Errorf("recording %d says that it is %d ms long; its pictures last %v, its samples end at %v", i, r.MediaMS, shown, end)
	}
	// Sound that belongs to the last picture may end behind it.
	if d := end - r.End.Sub(r.Start); d.Abs() > 100*time.Millisecond {
		t.Errorf("recording %d holds %v of media and takes %v of the timeline", i, end, r.End.Sub(r.Start))
	}
}

// wantSets checks that a recording whose first picture is the n-th sent carries
// the parameter sets that were in force then.
func (s *source) wantSets(t *testing.T, i int, v *mp4Track, n int) {
	t.Helper()
	if s.media.Codec == "mjpeg" || n >= len(s.sent["v"]) {
		return
	}
	want := [][]byte{s.media.VPS, s.media.SPS, s.media.PPS}
	for m := n; m >= 0; m-- {
		if sets := s.sent["v"][m].sets; sets != nil {
			want = sets
			break
		}
	}
	for _, w := range want {
		if w != nil && !slices.ContainsFunc(v.sets, func(g []byte) bool { return bytes.Equal(g, w) }) {
			t.Errorf("recording %d: its %s entry lacks the parameter set %x", i, v.entry, w)
		}
	}
}

// compareUnits wants got to be what was sent, each once and in order.
func compareUnits(t *testing.T, what string, sent []sentUnit, got []unitSum) tally {
	t.Helper()
	n := tally{captured: len(sent)}
	next, missing := 0, []int(nil)
	for i, sum := range got {
		at := slices.IndexFunc(sent[next:], func(u sentUnit) bool { return u.sum == sum })
		if at < 0 {
			n.doubled++
			if n.doubled == 1 {
				t.Errorf("%s %d of the recordings is none that was sent then: altered, doubled or out of order", what, i)
			}
			continue
		}
		for range at {
			missing = append(missing, next)
			next++
		}
		n.recorded++
		next++
	}
	for ; next < len(sent); next++ {
		missing = append(missing, next)
	}
	if len(missing) > 0 {
		t.Errorf("%s: %d of %d are not recorded: numbers %v", what, len(missing), len(sent), missing[:min(len(missing), 20)])
	}
	return n
}

// decodeSound returns the samples of recordings, one after the other, as ffmpeg
// decodes them.
func decodeSound(t *testing.T, m *camtest.Media, files []string) []byte {
	t.Helper()
	const batch = 16 // files that one ffmpeg reads
	var all []byte
	dir := t.TempDir()
	for some := range slices.Chunk(files, batch) {
		var args []string
		for _, f := range some {
			args = append(args, "-i", f)
		}
		args = append([]string{"-v", "error", "-nostdin", "-xerror", "-y"}, args...)
		for i := range some {
			args = append(args, "-map", strconv.Itoa(i)+":a:0", "-f", fmt.Sprintf("s%dle", 8*bytesPerSample(m)), filepath.Join(dir, strconv.Itoa(i)+".pcm"))
		}
		vmstest.FFmpeg(t, args...)
		for i := range some {
			b, err := os.ReadFile(filepath.Join(dir, strconv.Itoa(i)+".pcm"))
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, b...)
		}
	}
	return all
}

// comparePCM wants got to be the samples that were sent. What it counts is the
// camera's packets.
func comparePCM(t *testing.T, m *camtest.Media, sent []sentUnit, got []byte) tally {
	t.Helper()
	n, size := tally{captured: len(sent)}, 0
	for _, u := range sent {
		size += len(u.pcm)
	}
	if size != len(got) {
		frame := bytesPerSample(m) * m.Channels
		t.Errorf("%d samples of sound are recorded, %d were sent", len(got)/frame, size/frame)
	}
	for _, u := range sent {
		rest, ok := bytes.CutPrefix(got, u.pcm)
		if !ok {
			t.Errorf("sound at %v differs", u.pts)
			break
		}
		got = rest
		n.recorded++
	}
	return n
}

// framesOf returns where frames of so many samples begin in the sound that was
// sent in packets.
func framesOf(m *camtest.Media, sent []sentUnit, frames []int64) []sentUnit {
	var out []sentUnit
	var pos int64 // of the frame, in samples from the begin of the packet sent[0]
	for _, n := range frames {
		for len(sent) > 0 {
			samples := int64(len(sent[0].pcm) / (bytesPerSample(m) * m.Channels))
			if pos < samples {
				break
			}
			pos -= samples
			sent = sent[1:]
		}
		if len(sent) > 0 {
			out = append(out, sentUnit{pts: sent[0].pts + inTime(pos, int64(m.SampleRate))})
		}
		pos += n
	}
	return out
}

// How far a recorded unit may lie from its place.
const (
	// Beside the others of its recording: what rounding to two clocks makes.
	besideOthers = 2 * time.Millisecond
	// On the timeline, beside the channel's first: the hub's clock follows the
	// times of arrival slowly, and these depend on how busy the machine is.
	onTimeline = 150 * time.Millisecond
	// Sound beside the picture: the agent learns what belongs together from what
	// the camera reports, or from the arrival of the first packets.
	soundBesidePicture = 100 * time.Millisecond
)

// wantPlaces checks that the recorded units are in their places: as far from
// each other as the camera sent them.
func wantPlaces(t *testing.T, sentV, sentA []sentUnit, v, a *found) {
	t.Helper()
	shift := map[int]time.Duration{} // of each recording's first picture
	for i, at := range v.pts {
		d := at - sentV[i].pts
		first, ok := shift[v.in[i]]
		if !ok {
			first, shift[v.in[i]] = d, d
			if off := d - (v.pts[0] - sentV[0].pts); off.Abs() > onTimeline {
				t.Errorf("recording %d is %v from its place on the timeline", v.in[i], off)
			}
		}
		if off := d - first; off.Abs() > besideOthers {
			t.Errorf("picture %d, in recording %d: %v from its place", i, v.in[i], off)
			return
		}
	}
	if len(a.pts) != len(sentA) {
		t.Errorf("%d frames of sound, %d expected", len(a.pts), len(sentA))
		return
	}
	var sound time.Duration // beside the picture, at first
	for i, at := range a.pts {
		d := at - sentA[i].pts - shift[a.in[i]]
		if i == 0 {
			sound = d
		}
		if d.Abs() > soundBesidePicture || (d-sound).Abs() > besideOthers {
			t.Errorf("sound %d, in recording %d: %v from its place, the first is %v", i, a.in[i], d, sound)
			return
		}
	}
}
