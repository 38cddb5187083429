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
)

// Limits of one recording. Agents cut at 64 MiB or two minutes at the latest; a
// recording past these would block tmpfs for good, or be one that no index takes.
const (
	MaxBytes = 256 << 20
	MaxSpan  = time.Hour
)

// maxCodecs is what an object's metadata and the index take, bytes.
const maxCodecs = 200

// Writer is one recording being written: its fragments, moved to start at
// zero, go to a file on tmpfs; ftyp, moov and sidx are made at Finish. It is
// not safe for concurrent use.
type Writer struct {
	channel vms.ChannelID
	init    vms.Init
	file    *os.File
	path    string

	zero     uint64 // of media time, ticks
	first    vms.Chunk
	last     uint64
	end      time.Time
	ticks    uint64 // end of the longest track after zero
	earliest uint64 // first video sample after zero
	subs     []cmaf.Subsegment
	bytes    int64
	flags    vms.Flags
	scratch  []byte
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

// Create begins a recording with c, in a new file below dir.
func Create(dir string, channel vms.ChannelID, init vms.Init, c *vms.Chunk) (*Writer, error) {
	frag, err := cmaf.ParseFragment(c.Payload)
	if err != nil {
		return nil, err
	}
	// A name of its own: the same chunks may come again while a file of them
	// still waits to be uploaded.
	f, err := os.CreateTemp(dir, fmt.Sprintf("%s.%s.%d.*.body", channel, c.Epoch, c.Seq))
	if err != nil {
		return nil, fmt.Errorf("begin recording: %w", err)
	}
	w := &Writer{channel: channel, init: init, file: f, path: f.Name(), zero: frag.Zero(), first: *c, last: c.Seq}
	w.first.Payload = nil // only the stamps are kept
	if v := frag.Run(cmaf.VideoTrack); v != nil {
		w.earliest = uint64(max(v.MinPTS, int64(w.zero))) - w.zero
	}
	if err := w.append(c, &frag); err != nil {
		return nil, errors.Join(err, w.Discard())
	}
	return w, nil
}

// Append adds the next chunk. After an error other than cmaf.ErrInvalid (which
// changed nothing) the recording cannot go on.
func (w *Writer) Append(c *vms.Chunk) error {
	frag, err := cmaf.ParseFragment(c.Payload)
	if err != nil {
		return err
	}
	return w.append(c, &frag)
}

func (w *Writer) append(c *vms.Chunk, frag *cmaf.Fragment) error {
	if frag.MoofLen != c.MoofLen {
		return fmt.Errorf("%w: moof of %d bytes, header says %d", cmaf.ErrInvalid, frag.MoofLen, c.MoofLen)
	}
	if w.bytes+int64(len(c.Payload)) > MaxBytes || c.End.Sub(w.first.Start) > MaxSpan {
		return fmt.Errorf("%w: the recording would pass %d bytes or %v", cmaf.ErrInvalid, int64(MaxBytes), MaxSpan)
	}
	var err error
	if w.scratch, err = frag.Rebase(w.scratch[:0], c.Payload, w.zero); err != nil {
		return err
	}
	ts := uint64(w.init.Tracks[0].Timescale)
	ticks, duration := w.ticks, uint64(0)
	for _, r := range frag.Runs {
		ticks = max(ticks, r.Base-w.zero+r.Duration)
		if r.Track == cmaf.VideoTrack {
			duration = r.Duration
		}
	}
	key := c.Flags.Has(vms.FlagKey)
	gop := duration // of the picture since the last keyframe
	if n := len(w.subs); n > 0 && !key {
		gop += w.subs[n-1].Duration
	}
	if ticks/ts > uint64(MaxSpan/time.Second) || gop > math.MaxUint32 {
		return fmt.Errorf("%w: the recording would last %d s, and %d ticks without a keyframe", cmaf.ErrInvalid, ticks/ts, gop)
	}
	if _, err := w.file.Write(w.scratch); err != nil {
		return fmt.Errorf("write recording: %w", err)
	}
	if _, err := w.file.Write(c.Payload[frag.MoofLen:]); err != nil {
		return fmt.Errorf("write recording: %w", err)
	}
	n := int64(len(c.Payload))
	w.ticks = ticks
	if key || len(w.subs) == 0 {
		w.subs = append(w.subs, cmaf.Subsegment{Sync: key})
	}
	s := &w.subs[len(w.subs)-1]
	s.Bytes += n
	s.Duration += duration
	w.bytes += n
	w.last, w.end = c.Seq, c.End
	w.flags |= c.Flags
	return nil
}

// Bytes is what the recording occupies on tmpfs.
func (w *Writer) Bytes() int64 { return w.bytes }

// Range is the run of chunks written so far.
func (w *Writer) Range() vms.ChunkRange {
	return vms.ChunkRange{Epoch: w.first.Epoch, First: w.first.Seq, Last: w.last}
}

// Finished is a recording that is complete: Head, then the file's bytes, are the object.
type Finished struct {
	vms.Recording
	Head []byte
	Path string
}

// Finish closes the file and returns the recording with its checksum. After an
// error nothing is left of it.
func (w *Writer) Finish() (f *Finished, err error) {
	defer func() {
		if err != nil {
			f, err = nil, errors.Join(err, w.Discard())
		}
	}()
	track := w.init.Tracks[0]
	sidx, err := cmaf.BuildSidx(track.ID, track.Timescale, w.earliest, w.subs)
	if err != nil {
		return nil, err
	}
	f = &Finished{Path: w.path, Head: append(append([]byte(nil), w.init.Segment...), sidx...)}
	h := sha256.New()
	h.Write(f.Head)
	if _, err := w.file.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("read recording: %w", err)
	}
	n, err := io.Copy(h, w.file)
	if err != nil {
		return nil, fmt.Errorf("read recording: %w", err)
	}
	if n != w.bytes {
		return nil, fmt.Errorf("recording %s has %d bytes on tmpfs, %d were written", w.path, n, w.bytes)
	}
	if err := w.file.Close(); err != nil {
		return nil, fmt.Errorf("close recording: %w", err)
	}
	ts := uint64(track.Timescale)
	media := time.Duration(w.ticks/ts)*time.Second + time.Duration(w.ticks%ts)*time.Second/time.Duration(ts)
	media = max(media, 1) // no index takes nothing, even of samples without a duration
	end := w.end
	if !end.After(w.first.Start) { // stamps without a duration: no index takes an empty recording
		end = w.first.Start.Add(max(media, time.Microsecond).Truncate(time.Microsecond))
	}
	f.Recording = vms.Recording{
		Channel: w.channel, Key: vms.RecordingKey(w.channel, w.first.Start, w.first.Recording),
		Chunks: w.Range(), Number: w.first.Recording, Start: w.first.Start, End: end,
		Media:   media,
		Bytes:   int64(len(f.Head)) + n,
		HeadLen: int64(len(f.Head)), InitLen: int64(len(w.init.Segment)),
		Codecs:        cmaf.Codecs(w.init.Tracks),
		Dependent:     w.first.Flags.Has(vms.FlagDependent),
		TimeUncertain: w.flags.Has(vms.FlagTimeUncertain),
	}
	h.Sum(f.SHA256[:0])
	return f, nil
}

// Discard removes what was written.
func (w *Writer) Discard() error {
	err := w.file.Close()
	if errors.Is(err, os.ErrClosed) {
		err = nil
	}
	return errors.Join(err, os.Remove(w.path))
}
