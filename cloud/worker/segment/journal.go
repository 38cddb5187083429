package segment

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/zipato/vms/pkg/cmaf"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// A journal says what the bytes of a recording's file are, for a process that
// finds both. It stands beside the file, and is a row of frames:
//
//	uint32  bytes of the body
//	uint32  CRC-32C of the body
//	body    one byte, its kind; then
//	  1     JSON of journalHead: the first frame, and only that
//	  2     headers of chunks, 64 bytes each (PROTOCOL.md), in the order of the file
//	  3     nothing: the recording is complete
//
// Numbers are big-endian. What comes behind a frame that is not whole counts for
// nothing. Nothing is synced: tmpfs ends with the machine, and what the process
// has written survives its end. Chunks that came after the last Flush are lost
// with the process; whoever sent them has them still.
const (
	journalFormat = 1

	frameHead   = 1
	frameChunks = 2
	frameSeal   = 3

	frameFixed = 8
	maxFrame   = 2*wire.MaxInit + 2*maxTracks // the init is in base64
	maxJournal = maxFrame + maxChunks*(frameFixed+1+wire.ChunkHeaderLen) + 1<<10
)

// The names of files in a worker's directory end so. tempSuffix is that of what
// nobody can use after its process.
const (
	bodySuffix    = ".body"
	journalSuffix = ".journal"
	tempSuffix    = ".tmp"
)

// journalHead is what a recording begins with.
type journalHead struct {
	Format  int           `json:"format"`
	Channel vms.ChannelID `json:"channel"`
	Epoch   vms.Epoch     `json:"epoch"`
	Init    uint32        `json:"init"`
	Tracks  []vms.Track   `json:"tracks"`
	Segment []byte        `json:"segment"`
	Zero    uint64        `json:"zero"` // ticks that were subtracted from every decode time
}

// journal is the file. The zero value is none.
type journal struct {
	path   string
	file   *os.File
	size   int64 // of whole frames
	chunks int   // that these name
}

func (j *journal) close() error {
	if j.file == nil {
		return nil
	}
	err := j.file.Close()
	j.file = nil
	return err
}

func (j *journal) remove() error {
	if j.path == "" {
		return nil
	}
	return errors.Join(j.close(), os.Remove(j.path))
}

// write appends frames. Half of one that a full disk leaves is written over by
// the next try.
func (j *journal) write(frames []byte) error {
	if _, err := j.file.WriteAt(frames, j.size); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	j.size += int64(len(frames))
	return nil
}

// frame appends a frame whose body is kind and what body appends.
func frame(b []byte, kind byte, body func([]byte) []byte) []byte {
	at := len(b)
	b = append(b, make([]byte, frameFixed)...)
	b = body(append(b, kind))
	binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at-frameFixed))
	binary.BigEndian.PutUint32(b[at+4:], wire.Checksum(b[at+frameFixed:]))
	return b
}

// headers appends a frame of the chunks that the journal does not name yet.
func (w *Writer) headers(b []byte) []byte {
	rest := w.chunks[w.journal.chunks:]
	if len(rest) == 0 {
		return b
	}
	return frame(b, frameChunks, func(b []byte) []byte {
		for i := range rest {
			b = append(b, rest[i].header[:]...)
		}
		return b
	})
}

// begin makes the journal of a recording that has chunks already.
func (w *Writer) begin() error {
	head, err := json.Marshal(journalHead{
		Format: journalFormat, Channel: w.channel, Epoch: w.init.Epoch, Init: w.init.ID,
		Tracks: w.init.Tracks, Segment: w.init.Segment, Zero: w.zero,
	})
	if err != nil {
		return fmt.Errorf("begin journal: %w", err)
	}
	path := strings.TrimSuffix(w.path, bodySuffix) + journalSuffix
	// Under its name it is whole: when it takes the place of another, that is
	// there until then.
	f, err := os.OpenFile(path+tempSuffix, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("begin journal: %w", err)
	}
	w.journal = journal{path: path, file: f}
	b := frame(nil, frameHead, func(b []byte) []byte { return append(b, head...) })
	err = w.journal.write(w.headers(b))
	if err == nil {
		err = os.Rename(path+tempSuffix, path)
	}
	if err != nil {
		w.journal = journal{}
		return errors.Join(fmt.Errorf("begin journal: %w", err), f.Close(), os.Remove(path+tempSuffix))
	}
	w.journal.chunks = len(w.chunks)
	return nil
}

// Flush writes to the journal what came since the last time. Until then a
// process that finds the recording does not know of these chunks. After an error
// the next Flush does it.
func (w *Writer) Flush() error {
	if w.journal.file == nil || w.journal.chunks == len(w.chunks) {
		return nil
	}
	n := len(w.chunks)
	if err := w.journal.write(w.headers(nil)); err != nil {
		return err
	}
	w.journal.chunks = n
	return nil
}

// seal notes that the recording is complete. Where that fails, on a full disk,
// who finds it takes it for one that is not.
func (w *Writer) seal() {
	if w.journal.file == nil {
		return
	}
	b := frame(w.headers(nil), frameSeal, func(b []byte) []byte { return b })
	if w.journal.write(b) == nil {
		w.journal.chunks = len(w.chunks)
	}
}

// Found is a recording that another process has left.
type Found struct {
	*Writer
	// Complete: nothing follows its last chunk.
	Complete bool
}

// Channel is whose recording it is; Recording its number.
func (w *Writer) Channel() vms.ChannelID { return w.channel }
func (w *Writer) Recording() uint32      { return w.first.Recording }

// Recover goes on with the recordings that another process has left in dir, each
// as far as its journal goes and its bytes are what was muxed. What is behind
// that, and what can be made nothing of, is removed, with a sentence in dropped.
// No one else may use dir.
func Recover(dir string) (found []Found, dropped []error, err error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("recover recordings: %w", err)
	}
	names := make(map[string]bool)
	for _, e := range list {
		names[e.Name()] = e.Type().IsRegular()
	}
	var journals, rest []string
	for name, regular := range names {
		base, isJournal := strings.CutSuffix(name, journalSuffix)
		body, isBody := strings.CutSuffix(name, bodySuffix)
		switch {
		case !regular:
		case isJournal && names[base+bodySuffix]:
			journals = append(journals, filepath.Join(dir, name))
		case isBody && names[body+journalSuffix]:
		case isJournal, isBody, strings.HasSuffix(name, tempSuffix):
			rest = append(rest, filepath.Join(dir, name))
		}
	}
	for _, path := range rest {
		if err := os.Remove(path); err != nil {
			return nil, nil, fmt.Errorf("recover recordings: %w", err)
		}
	}
	slices.Sort(journals)
	got, errs := make([]Found, len(journals)), make([]error, len(journals))
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, path := range journals {
		g.Go(func() error {
			body := strings.TrimSuffix(path, journalSuffix) + bodySuffix
			var err error
			got[i], errs[i], err = resume(path, body)
			if err == nil && got[i].Writer == nil {
				err = errors.Join(os.Remove(body), os.Remove(path))
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		for _, f := range got {
			if f.Writer != nil {
				err = errors.Join(err, f.Keep())
			}
		}
		return nil, nil, fmt.Errorf("recover recordings: %w", err)
	}
	got = slices.DeleteFunc(got, func(f Found) bool { return f.Writer == nil })
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	return got, errs, nil
}

// resume goes on with one recording. lost says what of it cannot be used; when
// that is all of it, there is no Writer. err: the file system fails.
func resume(path, body string) (f Found, lost, err error) {
	name := filepath.Base(body)
	j, err := readJournal(path)
	if errors.Is(err, ErrBroken) {
		return Found{}, fmt.Errorf("%s: %w", name, err), nil
	}
	if err != nil {
		return Found{}, nil, err
	}
	file, err := os.OpenFile(body, os.O_RDWR, 0)
	if err != nil {
		return Found{}, nil, err
	}
	w := &Writer{channel: j.head.Channel, init: j.init(), file: file, path: body, ragged: true}
	n, why := w.replay(j.headers, j.head.Zero)
	if n == 0 {
		return Found{}, fmt.Errorf("%s: %w", name, why), file.Close()
	}
	if why := errors.Join(why, j.torn); why != nil {
		lost = fmt.Errorf("%s: behind chunk %d: %w", name, w.last, why)
	}
	err = w.trim()
	switch {
	case err != nil:
	case why != nil: // another journal, of what there is
		if err := w.begin(); err != nil { // a full disk: what is removed makes room
			return Found{}, fmt.Errorf("%w; and %w", lost, err), w.file.Close()
		}
	default:
		w.journal = journal{path: path, size: j.size, chunks: n}
		if w.journal.file, err = os.OpenFile(path, os.O_RDWR, 0); err == nil {
			err = w.journal.file.Truncate(j.size)
		}
	}
	if err != nil {
		return Found{}, nil, errors.Join(err, file.Close(), w.journal.close())
	}
	return Found{Writer: w, Complete: why == nil && j.sealed}, lost, nil
}

// replay takes the chunks down that are in the file, as headers name them, and
// counts them. An error says what is wrong with the next.
func (w *Writer) replay(headers []byte, zero uint64) (n int, err error) {
	var msg []byte
	for ; len(headers) > 0; headers = headers[wire.ChunkHeaderLen:] {
		h := headers[:wire.ChunkHeaderLen]
		size := wire.PayloadLen(h)
		if size > MaxBytes {
			return n, broken("a chunk of %d bytes", size)
		}
		msg = slices.Grow(msg[:0], wire.ChunkHeaderLen+int(size))[:wire.ChunkHeaderLen+int(size)]
		copy(msg, h)
		if _, err := w.file.ReadAt(msg[wire.ChunkHeaderLen:], w.bytes); err != nil {
			return n, fmt.Errorf("read recording: %w", err)
		}
		c, err := restore(msg, zero)
		if err != nil {
			return n, err
		}
		frag, err := cmaf.ParseFragment(c.Payload)
		if err != nil {
			return n, err
		}
		if n == 0 {
			w.content = begin(&c, &frag, zero)
		}
		switch {
		case n == 0 && zero != frag.Zero():
			err = broken("its time begins at %d ticks, the first chunk's at %d", zero, frag.Zero())
		case n > 0 && c.Seq != w.last+1, c.Epoch != w.init.Epoch, c.Init != w.init.ID, n > 0 && c.Recording != w.first.Recording:
			err = broken("chunk %s:%d is of another recording", c.Epoch, c.Seq)
		default:
			err = w.check(&c, &frag)
		}
		if err != nil {
			return n, err
		}
		w.note(&c, &frag)
		n++
	}
	if n == 0 {
		return 0, broken("a journal without chunks")
	}
	return n, nil
}

// readBack is what a journal holds.
type readBack struct {
	head    journalHead
	headers []byte
	sealed  bool
	size    int64 // of whole frames
	torn    error // what is wrong behind them
}

func (j *readBack) init() vms.Init {
	return vms.Init{Epoch: j.head.Epoch, ID: j.head.Init, Tracks: j.head.Tracks, Segment: j.head.Segment}
}

// readJournal reads a journal as far as its frames are whole. ErrBroken: it does
// not even say what the recording begins with.
func readJournal(path string) (*readBack, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxJournal {
		return nil, broken("a journal of %d bytes", info.Size())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	j := &readBack{}
	for len(b) > 0 && j.torn == nil {
		body, rest, err := nextFrame(b)
		if err == nil {
			err = j.take(body)
		}
		if err != nil {
			j.torn = err
			break
		}
		j.size += int64(len(b) - len(rest))
		b = rest
	}
	if j.head.Format == 0 {
		if j.torn == nil {
			j.torn = broken("an empty journal")
		}
		return nil, j.torn
	}
	return j, nil
}

// nextFrame splits one frame off b.
func nextFrame(b []byte) (body, rest []byte, err error) {
	if len(b) < frameFixed {
		return nil, nil, broken("the journal ends inside a frame")
	}
	n := binary.BigEndian.Uint32(b)
	if n == 0 || int64(n) > int64(len(b)-frameFixed) {
		return nil, nil, broken("the journal ends inside a frame")
	}
	body, rest = b[frameFixed:frameFixed+n], b[frameFixed+n:]
	if wire.Checksum(body) != binary.BigEndian.Uint32(b[4:]) {
		return nil, nil, broken("the journal has a frame with another checksum")
	}
	return body, rest, nil
}

// take takes a frame's body over.
func (j *readBack) take(body []byte) error {
	kind, body := body[0], body[1:]
	first := j.head.Format == 0
	switch {
	case first && kind == frameHead:
		var h journalHead
		if err := json.Unmarshal(body, &h); err != nil {
			return broken("journal: %v", err)
		}
		i := vms.Init{Epoch: h.Epoch, ID: h.Init, Tracks: h.Tracks, Segment: h.Segment}
		if err := CheckInit(&i); err != nil {
			return broken("journal: %v", err)
		}
		if h.Format != journalFormat || !vms.ValidID(h.Channel) {
			return broken("a journal of format %d, channel %q", h.Format, h.Channel)
		}
		j.head = h
	case !first && !j.sealed && kind == frameChunks && len(body)%wire.ChunkHeaderLen == 0:
		j.headers = append(j.headers, body...)
	case !first && kind == frameSeal && len(body) == 0:
		j.sealed = true
	default:
		return broken("the journal has a frame of kind %d, %d bytes", kind, len(body))
	}
	return nil
}
