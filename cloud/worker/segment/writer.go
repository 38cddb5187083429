package segment

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/zipato/vms/pkg/cmaf"
	"github.com/zipato/vms/pkg/vms"
)

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

// Create begins a recording with c, in a new file below dir.
func Create(dir string, channel vms.ChannelID, init vms.Init, c *vms.Chunk) (*Writer, error) {
	frag, err := cmaf.ParseFragment(c.Payload)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, fmt.Sprintf("%s.%s.%d.body", channel, c.Epoch, c.Seq))
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("begin recording: %w", err)
	}
	w := &Writer{channel: channel, init: init, file: f, path: path, zero: frag.Zero(), first: *c}
	w.first.Payload = nil // only the stamps are kept
	if v := frag.Run(cmaf.VideoTrack); v != nil {
		w.earliest = v.Base - w.zero
	}
	if err := w.append(c, &frag); err != nil {
		w.Discard()
		return nil, err
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
	var err error
	if w.scratch, err = frag.Rebase(w.scratch[:0], c.Payload, w.zero); err != nil {
		return err
	}
	if _, err := w.file.Write(w.scratch); err != nil {
		return fmt.Errorf("write recording: %w", err)
	}
	if _, err := w.file.Write(c.Payload[frag.MoofLen:]); err != nil {
		return fmt.Errorf("write recording: %w", err)
	}
	n := int64(len(c.Payload))
	var duration uint64
	for _, r := range frag.Runs {
		w.ticks = max(w.ticks, r.Base-w.zero+r.Duration)
		if r.Track == cmaf.VideoTrack {
			duration = r.Duration
		}
	}
	key := c.Flags.Has(vms.FlagKey)
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

// Finish closes the file and returns the recording with its checksum.
func (w *Writer) Finish() (*Finished, error) {
	track := w.init.Tracks[0]
	sidx, err := cmaf.BuildSidx(track.ID, track.Timescale, w.earliest, w.subs)
	if err != nil {
		return nil, errors.Join(err, w.Discard())
	}
	f := &Finished{Path: w.path, Head: append(append([]byte(nil), w.init.Segment...), sidx...)}
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
	f.Recording = vms.Recording{
		Channel: w.channel, Key: vms.RecordingKey(w.channel, w.first.Start, w.first.Recording),
		Chunks: w.Range(), Number: w.first.Recording, Start: w.first.Start, End: w.end,
		Media:   time.Duration(w.ticks/ts)*time.Second + time.Duration(w.ticks%ts)*time.Second/time.Duration(ts),
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
	return errors.Join(w.file.Close(), os.Remove(w.path))
}
