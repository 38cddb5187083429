package segment

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"time"

	"github.com/zipato/vms/pkg/cmaf"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// Limits of one recording. Agents cut at 64 MiB or two minutes at the latest; a
// recording past these would block tmpfs for good, or be one that no index takes.
const (
	MaxBytes = 256 << 20
	MaxSpan  = time.Hour
	// maxChunks bounds the headers that are kept in memory: chunks of 20 ms for
	// more than five minutes.
	maxChunks = 16384
)

// maxCodecs is what an object's metadata and the index take, bytes.
const maxCodecs = 200

// Writer is one recording being written: its fragments, moved to start at
// zero, go to a file on tmpfs; ftyp, moov and sidx are made at Finish. A journal
// beside the file lets the next process go on with it, see Recover. It is not
// safe for concurrent use.
type Writer struct {
	channel vms.ChannelID
	init    vms.Init
	file    *os.File
	path    string
	// ragged: behind the chunks the file may hold what a failed write left.
	ragged bool

	content
	chunks  []entry
	journal journal
}

// entry is one chunk of the file: enough to give it back as it came.
type entry struct {
	header [wire.ChunkHeaderLen]byte
	at     int64 // offset in the file
	size   int64
	zero   uint64 // the earliest time that it needs, ticks
	key    bool
}

// content is what an object of a run of chunks says of them. Times are ticks
// after zero.
type content struct {
	zero     uint64 // of media time
	first    vms.Chunk
	last     uint64
	end      time.Time
	ticks    uint64 // end of the longest track
	earliest uint64 // first video sample
	subs     []cmaf.Subsegment
	bytes    int64
	flags    vms.Flags
}

// CheckInit reports, as cmaf.ErrInvalid, an init that no recording can begin
// with. One clock for all tracks is what lets Writer move them by one number.
func CheckInit(i *vms.Init) error {
	if err := cmaf.CheckInit(i.Segment); err != nil {
		return err
	}
	if len(i.Tracks) == 0 || i.Tracks[0].Kind != "video" || i.Tracks[0].ID != cmaf.VideoTrack {
		return fmt.Errorf("%w: the first track must be the picture, with id %d", cmaf.ErrInvalid, cmaf.VideoTrack)
	}
	for n, t := range i.Tracks {
		if t.Timescale != i.Tracks[0].Timescale {
			return fmt.Errorf("%w: track %d counts in %d ticks, track %d in %d", cmaf.ErrInvalid, t.ID, t.Timescale, i.Tracks[0].ID, i.Tracks[0].Timescale)
		}
		if slices.ContainsFunc(i.Tracks[:n], func(o vms.Track) bool { return o.ID == t.ID }) {
			return fmt.Errorf("%w: two tracks have the id %d", cmaf.ErrInvalid, t.ID)
		}
	}
	if n := len(cmaf.Codecs(i.Tracks)); n > maxCodecs {
		return fmt.Errorf("%w: %d bytes of codecs, the index takes %d", cmaf.ErrInvalid, n, maxCodecs)
	}
	return nil
}

// Create begins a recording with c, in a new file below dir. Of c.Payload it
// says what Append does.
func Create(dir string, channel vms.ChannelID, init vms.Init, c *vms.Chunk) (*Writer, error) {
	w, err := Scratch(dir, channel, init, c)
	if err != nil {
		return nil, err
	}
	if err := w.begin(); err != nil {
		return nil, errors.Join(err, w.Discard())
	}
	return w, nil
}

// Scratch is Create without a journal: the next process removes the file.
func Scratch(dir string, channel vms.ChannelID, init vms.Init, c *vms.Chunk) (*Writer, error) {
	frag, err := cmaf.ParseFragment(c.Payload)
	if err != nil {
		return nil, err
	}
	// A name of its own: the same chunks may come again while a file of them
	// still waits to be uploaded.
	f, err := os.CreateTemp(dir, fmt.Sprintf("%s.%s.%d.*%s", channel, c.Epoch, c.Seq, bodySuffix))
	if err != nil {
		return nil, fmt.Errorf("begin recording: %w", err)
	}
	w := &Writer{channel: channel, init: init, file: f, path: f.Name(), content: begin(c, &frag, frag.Zero())}
	if err := w.append(c, &frag); err != nil {
		return nil, errors.Join(err, w.Discard())
	}
	return w, nil
}

// Append adds the next chunk. After an error the recording is what it was
// before: with cmaf.ErrInvalid the chunk can never be part of it, otherwise the
// file system failed, and the same chunk may be tried again.
//
// While Append runs, decode times in c.Payload are others: no one else may read
// it. It is as before when Append returns.
func (w *Writer) Append(c *vms.Chunk) error {
	frag, err := cmaf.ParseFragment(c.Payload)
	if err != nil {
		return err
	}
	return w.append(c, &frag)
}

func (w *Writer) append(c *vms.Chunk, frag *cmaf.Fragment) error {
	if err := w.check(c, frag); err != nil {
		return err
	}
	if err := w.write(c, frag); err != nil {
		return fmt.Errorf("write recording: %w", err)
	}
	w.note(c, frag)
	return nil
}

// check reports, as cmaf.ErrInvalid, that c cannot be part of the recording.
func (w *Writer) check(c *vms.Chunk, frag *cmaf.Fragment) error {
	if frag.MoofLen != c.MoofLen {
		return fmt.Errorf("%w: moof of %d bytes, header says %d", cmaf.ErrInvalid, frag.MoofLen, c.MoofLen)
	}
	if w.bytes+int64(len(c.Payload)) > MaxBytes || c.End.Sub(w.first.Start) > MaxSpan || len(w.chunks) == maxChunks {
		return fmt.Errorf("%w: the recording would pass %d bytes, %v or %d chunks", cmaf.ErrInvalid, int64(MaxBytes), MaxSpan, maxChunks)
	}
	for _, r := range frag.Runs {
		if r.Base < w.zero {
			return fmt.Errorf("%w: track %d begins %d ticks before the recording does", cmaf.ErrInvalid, r.Track, w.zero-r.Base)
		}
	}
	ts := uint64(w.init.Tracks[0].Timescale)
	if ticks, shown := w.with(frag), picture(frag); ticks/ts > uint64(MaxSpan/time.Second) || shown > math.MaxUint32 {
		return fmt.Errorf("%w: the recording would last %d s, and one chunk of it %d ticks", cmaf.ErrInvalid, ticks/ts, shown)
	}
	return nil
}

// write puts the payload of c, moved to start at zero, behind what there is: in
// one write, without a copy of it.
func (w *Writer) write(c *vms.Chunk, frag *cmaf.Fragment) error {
	if _, err := frag.Rebase(c.Payload[:0], c.Payload, w.zero); err != nil {
		return err
	}
	_, err := w.file.WriteAt(c.Payload, w.bytes)
	if _, e := frag.Rebase(c.Payload[:0], c.Payload, 0); e != nil {
		return errors.Join(err, e)
	}
	if err != nil {
		w.ragged = true
		_ = w.trim() // a full disk needs the room; Finish tries again
	}
	return err
}

// trim takes what a failed write left from the file.
func (w *Writer) trim() error {
	if !w.ragged {
		return nil
	}
	err := w.file.Truncate(w.bytes)
	w.ragged = err != nil
	return err
}

// note takes down a chunk that is in the file.
func (w *Writer) note(c *vms.Chunk, frag *cmaf.Fragment) {
	e := entry{at: w.bytes, size: int64(len(c.Payload)), zero: frag.Zero(), key: c.Flags.Has(vms.FlagKey)}
	wire.AppendChunkHeader(e.header[:0], c)
	w.chunks = append(w.chunks, e)
	w.add(c, frag)
}

// begin returns the content of an object that c will begin.
func begin(c *vms.Chunk, frag *cmaf.Fragment, zero uint64) content {
	t := content{zero: zero, first: *c, last: c.Seq}
	t.first.Payload = nil // only the stamps are kept
	if v := frag.Run(cmaf.VideoTrack); v != nil {
		t.earliest = uint64(max(v.MinPTS, int64(zero))) - zero
	}
	return t
}

// with returns how long the object would be with one more fragment.
func (t *content) with(frag *cmaf.Fragment) (ticks uint64) {
	ticks = t.ticks
	for _, r := range frag.Runs {
		ticks = max(ticks, r.Base-t.zero+r.Duration)
	}
	return ticks
}

// picture is how long a fragment shows its pictures.
func picture(frag *cmaf.Fragment) uint64 {
	if v := frag.Run(cmaf.VideoTrack); v != nil {
		return v.Duration
	}
	return 0
}

// add takes one fragment into the index. Each has a reference of its own, not
// each GOP: Chromium, given one that spans several fragments, seeks into the one
// before the keyframe and cannot decode what it finds there.
func (t *content) add(c *vms.Chunk, frag *cmaf.Fragment) {
	t.ticks = t.with(frag)
	t.subs = append(t.subs, cmaf.Subsegment{Bytes: int64(len(c.Payload)), Duration: picture(frag), Sync: c.Flags.Has(vms.FlagKey)})
	t.bytes += int64(len(c.Payload))
	t.last, t.end = c.Seq, c.End
	t.flags |= c.Flags
}

// Bytes is what the recording occupies on tmpfs.
func (w *Writer) Bytes() int64 { return w.bytes }

// Init is what the recording began with.
func (w *Writer) Init() *vms.Init { return &w.init }

// Tail reads the chunks from the newest keyframe on back, as they came. None
// are returned when the recording has no keyframe, or more than limit bytes
// since.
func (w *Writer) Tail(limit int64) ([]vms.Chunk, error) {
	var bytes int64
	for i, e := range slices.Backward(w.chunks) {
		if bytes += e.size; bytes > limit {
			break
		}
		if !e.key {
			continue
		}
		out := make([]vms.Chunk, 0, len(w.chunks)-i)
		for _, e := range w.chunks[i:] {
			c, err := e.read(w.file, w.zero)
			if err != nil {
				return nil, fmt.Errorf("read recording: %w", err)
			}
			out = append(out, c)
		}
		return out, nil
	}
	return nil, nil
}

// Range is the run of chunks written so far.
func (w *Writer) Range() vms.ChunkRange {
	return vms.ChunkRange{Epoch: w.first.Epoch, First: w.first.Seq, Last: w.last}
}

// Finished is an object that is ready: Head, then the file's bytes as View
// shows them.
type Finished struct {
	vms.Recording
	Head []byte
	Path string
	// Journal is the file that stands beside that at Path, if there is one. It is
	// of no use without it, and to be removed after it.
	Journal string
	// View returns the object's bytes behind Head; nil: they are the file's.
	View func(io.ReaderAt) io.ReaderAt
}

// Finish closes the file and returns the recording with its checksum. A process
// that finds it later knows that nothing follows. After an error nothing is left
// of it.
func (w *Writer) Finish() (f *Finished, err error) {
	defer func() {
		if err != nil {
			f, err = nil, errors.Join(err, w.Discard())
		}
	}()
	if f, err = w.object(w.channel, &w.init, nil); err != nil {
		return nil, err
	}
	f.Path, f.Journal, f.Key = w.path, w.journal.path, vms.RecordingKey(w.channel, w.first.Start, w.first.Recording)
	if err := w.trim(); err != nil {
		return nil, fmt.Errorf("close recording: %w", err)
	}
	if err := f.sum(w.file); err != nil {
		return nil, err
	}
	w.seal()
	if err := errors.Join(w.file.Close(), w.journal.close()); err != nil {
		return nil, fmt.Errorf("close recording: %w", err)
	}
	return f, nil
}

// Keep closes the files and leaves them for the next process.
func (w *Writer) Keep() error {
	return errors.Join(w.Flush(), w.trim(), w.file.Close(), w.journal.close())
}

// object describes an object, but for its key and checksum. box stands between
// moov and sidx.
func (t *content) object(channel vms.ChannelID, init *vms.Init, box []byte) (*Finished, error) {
	track := init.Tracks[0]
	sidx, err := cmaf.BuildSidx(track.ID, track.Timescale, t.earliest, t.subs)
	if err != nil {
		return nil, err
	}
	head := slices.Concat(init.Segment, box, sidx)
	ts := uint64(track.Timescale)
	media := time.Duration(t.ticks/ts)*time.Second + time.Duration(t.ticks%ts)*time.Second/time.Duration(ts)
	media = max(media, 1) // no index takes nothing, even of samples without a duration
	end := t.end
	if !end.After(t.first.Start) { // stamps without a duration: no index takes an empty recording
		end = t.first.Start.Add(max(media, time.Microsecond).Truncate(time.Microsecond))
	}
	return &Finished{Head: head, Recording: vms.Recording{
		Channel: channel, Number: t.first.Recording,
		Chunks: vms.ChunkRange{Epoch: t.first.Epoch, First: t.first.Seq, Last: t.last},
		Start:  t.first.Start, End: end, Media: media,
		Bytes:   int64(len(head)) + t.bytes,
		HeadLen: int64(len(head)), InitLen: int64(len(init.Segment)),
		Codecs: cmaf.Codecs(init.Tracks),
		// What does not begin with a keyframe is played after what comes before it.
		Dependent:     !t.first.Flags.Has(vms.FlagKey),
		TimeUncertain: t.flags.Has(vms.FlagTimeUncertain),
	}}, nil
}

// sum computes the checksum of head and body.
func (f *Finished) sum(body io.ReaderAt) error {
	h := sha256.New()
	h.Write(f.Head)
	want := f.Bytes - f.HeadLen
	n, err := io.Copy(h, io.NewSectionReader(body, 0, math.MaxInt64))
	if err != nil {
		return fmt.Errorf("read recording: %w", err)
	}
	if n != want {
		return fmt.Errorf("recording of %s has %d bytes on tmpfs, %d were written", f.Chunks, n, want)
	}
	h.Sum(f.SHA256[:0])
	return nil
}

// Discard removes what was written.
func (w *Writer) Discard() error {
	err := w.file.Close()
	if errors.Is(err, os.ErrClosed) {
		err = nil
	}
	// The journal last: without it nobody would know what the file is.
	return errors.Join(err, os.Remove(w.path), w.journal.remove())
}
