package spool

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/zipato/vms/agent/disk"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

const (
	// setAsideDir, beside the folders of the channels, takes the files that
	// cannot be read, for whoever wants to know why: few, because they cost flash.
	setAsideDir   = "set-aside"
	setAsideFiles = 2
	setAsideBytes = 64 << 20

	defaultFileBytes = 32 << 20
	// openReaders is how many files are kept open for reading: one per lane.
	openReaders = 2
)

// shelf keeps chunks of one channel on flash, in files that are removed whole.
// What write returned is there after a power cut. All methods may be called at
// the same time; a read does not wait for a write.
type shelf struct {
	dir       string
	fileBytes int64

	// wmu: one write or removal at a time. Taken before rmu, rmu before mu.
	wmu     sync.Mutex
	current *file    // written to; nil: the next write makes one
	unsaid  []func() // see settle

	rmu     sync.Mutex
	readers []*reader // the one used last at the end

	mu    sync.Mutex
	files []*file // by ordinal
	next  uint64  // ordinal
	named map[initKey]vms.Init
}

type shelfOptions struct {
	FileBytes int64 // a file is closed to writing before it gets larger; 0: 32 MiB
}

type initKey struct {
	epoch vms.Epoch
	id    uint32
}

// file is one file of a shelf. It holds chunks of one epoch. Its fields stand
// under the shelf's mu.
type file struct {
	name fileName
	path string
	size int64
	list []*block // ascending
	// inits are those that stand in this file, for the chunks in it.
	inits map[uint32]bool
	gone  bool
}

// damage says what cannot be read any more. Zero values are not known.
type damage struct {
	Epoch       vms.Epoch
	First, Last uint64
	Start, End  time.Time
	Err         error
}

// openShelf loads the summaries of what is in dir, which need not exist. Files
// that cannot be read are reported as damage, and set aside by settle. Its error
// is one that may pass: the flash or this machine refuses, or another process is
// at it.
func openShelf(dir string, o shelfOptions) (*shelf, []damage, error) {
	s := &shelf{dir: dir, fileBytes: cmp.Or(o.FileBytes, defaultFileBytes), next: 1, named: make(map[initKey]vms.Init)}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("open spool: %w", err)
	}
	var names []fileName
	changed := false
	for _, e := range entries {
		n, ok := parseFileName(e.Name())
		switch {
		case strings.HasSuffix(e.Name(), newSuffix) && e.Type().IsRegular():
			changed = os.Remove(filepath.Join(dir, e.Name())) == nil || changed // nothing in it was ever promised
		case ok && e.Type().IsRegular():
			names = append(names, n)
			s.next = max(s.next, n.Ordinal+1)
		}
	}
	slices.SortFunc(names, func(a, b fileName) int { return cmp.Or(cmp.Compare(a.Ordinal, b.Ordinal), cmp.Compare(a.Last, b.Last)) })
	var lost []damage
	for i, n := range names {
		d, moved, err := s.load(n)
		if err != nil {
			return nil, nil, err
		}
		changed = changed || moved
		if d == nil {
			continue
		}
		if d.Last == 0 && i+1 < len(names) && names[i+1].Epoch == d.Epoch && names[i+1].First > d.First {
			d.Last, d.End = names[i+1].First-1, names[i+1].Start
		}
		lost = append(lost, *d)
	}
	s.trim()
	for _, b := range s.blocks() {
		b.table = nil // read again when it is needed
	}
	if changed {
		if err := disk.SyncDir(dir); err != nil && !errors.Is(err, syscall.EROFS) {
			return nil, nil, fmt.Errorf("open spool: %w", err)
		}
	}
	return s, lost, nil
}

// load takes one file in, or sets it aside; moved: the directory has changed.
func (s *shelf) load(n fileName) (d *damage, moved bool, err error) {
	path := filepath.Join(s.dir, n.String())
	c, err := load(path)
	if err == nil && len(c.blocks) > 0 && (c.blocks[0].Epoch != n.Epoch || c.blocks[0].First != n.First) {
		err = fmt.Errorf("%w: it begins with chunk %d of epoch %s", errDamaged, c.blocks[0].First, c.blocks[0].Epoch)
	}
	if err == nil && len(c.blocks) == 0 {
		// A file has its name from its first transaction on.
		err = fmt.Errorf("%w: it is empty", errDamaged)
	}
	if errors.Is(err, errDamaged) {
		s.unsaid = append(s.unsaid, func() { s.setAside(path) })
		return &damage{n.Epoch, n.First, n.Last, n.Start, n.End, fmt.Errorf("%s: %w", n, err)}, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("open spool file %s: %w", n, err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, false, fmt.Errorf("open spool file %s: %w", n, err)
	}
	f := &file{name: n, path: path, size: info.Size(), list: c.blocks, inits: make(map[uint32]bool)}
	for _, b := range f.list {
		b.file = f
	}
	s.keep(f, c.inits)
	s.files = append(s.files, f)
	last := f.list[len(f.list)-1]
	if c.tail && n.Last == 0 || n.Last > last.Last {
		s.unsaid = append(s.unsaid, func() { s.rename(f) })
		return &damage{n.Epoch, last.Last + 1, n.Last, last.End, n.End, fmt.Errorf("%s: %w: its last transaction", n, errDamaged)}, false, nil
	}
	if n.Last != last.Last {
		moved = s.seal(f) == nil // else it keeps its name: it will be read, not written
	}
	return nil, moved, nil
}

// settle sets damaged files aside, so that their damage is not reported again.
// To be called when the report of openShelf is where a power cut does not reach
// it. What changes the shelf does it too, in case nobody did.
func (s *shelf) settle() {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	s.settleLocked()
}

func (s *shelf) settleLocked() {
	if len(s.unsaid) == 0 {
		return
	}
	for _, f := range s.unsaid {
		f()
	}
	s.unsaid = nil
	_ = disk.SyncDir(s.dir) // else it is said again
}

// rename gives a file the name that fits what it holds, if it can.
func (s *shelf) rename(f *file) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !f.gone && len(f.list) > 0 {
		_ = s.seal(f)
	}
}

// keep remembers the inits of a file.
func (s *shelf) keep(f *file, inits []vms.Init) {
	for _, i := range inits {
		f.inits[i.ID] = true
		if k := (initKey{i.Epoch, i.ID}); s.named[k].Epoch == 0 {
			s.named[k] = i // files that have the same one share it
		}
	}
}

// trim takes from a block what a later file has again. That happens when a
// transaction failed after all of it had reached the flash.
func (s *shelf) trim() {
	for i, f := range s.files {
		if i+1 == len(s.files) {
			return
		}
		next := s.files[i+1].list[0]
		for n := len(f.list); n > 0; n-- {
			b := f.list[n-1]
			if b.Epoch != next.Epoch || b.Last < next.First {
				break
			}
			if b.First >= next.First {
				f.list = f.list[:n-1]
				continue
			}
			b.Last, b.End = next.First-1, next.Start
			b.Marks = slices.DeleteFunc(b.Marks, func(m mark) bool { return m.Seq > b.Last })
			b.Bytes = 0
			for _, p := range b.table[:b.Last-b.First+1] {
				b.Bytes += p.len
			}
		}
	}
	s.files = slices.DeleteFunc(s.files, func(f *file) bool { return len(f.list) == 0 })
}

// setAside moves a file out of the way. Flash that cannot be written to keeps
// it where it is; what cannot be moved for another reason is removed.
func (s *shelf) setAside(path string) {
	dir := filepath.Join(filepath.Dir(s.dir), setAsideDir)
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = os.Rename(path, filepath.Join(dir, filepath.Base(s.dir)+"-"+filepath.Base(path)))
	}
	if err != nil {
		os.Remove(path)
		return
	}
	entries, _ := os.ReadDir(dir)
	var infos []fs.FileInfo
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			infos = append(infos, info)
		}
	}
	slices.SortFunc(infos, func(a, b fs.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
	var bytes int64
	for i, info := range infos {
		bytes += info.Size()
		if i >= setAsideFiles || bytes > setAsideBytes {
			os.Remove(filepath.Join(dir, info.Name()))
		}
	}
	_ = disk.SyncDir(dir) // whether it is kept does not matter to anybody
}

// write puts an unbroken run of chunks of one epoch on flash, in one
// transaction; with them those of the inits that the file does not have yet. It
// is there when write returns nil; written is what that cost in bytes written
// to flash, the database's own included.
func (s *shelf) write(inits []vms.Init, chunks []*vms.Chunk) (b *block, written int64, err error) {
	if err := unbroken(chunks); err != nil {
		return nil, 0, err
	}
	s.wmu.Lock()
	defer s.wmu.Unlock()
	s.settleLocked()
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	*buf = appendPayload((*buf)[:0], chunks)
	t := transaction{payload: *buf}

	f := s.current
	if f != nil && (f.name.Epoch != chunks[0].Epoch || len(f.list) == maxBlocks || f.size+t.need() > s.fileBytes) {
		s.sealCurrent()
		f = nil
	}
	if f == nil {
		if f, err = s.create(chunks[0]); err != nil {
			return nil, 0, fmt.Errorf("make spool file: %w", err)
		}
	}
	inits = slices.DeleteFunc(slices.Clone(inits), func(i vms.Init) bool { return i.Epoch != f.name.Epoch || f.inits[i.ID] })
	t.number = len(f.list)
	t.head = encodeHead(t.number, chunks)
	if t.inits, err = encodeInits(t.number, inits); err != nil {
		return nil, 0, err
	}
	if b, err = decodeHead(t.head); err != nil {
		return nil, 0, err
	}
	b.file, b.table = f, nil
	b.head, b.payload, written, err = t.commit(f.path, f.size)
	if err == nil && f != s.current {
		err = s.publish(f)
	}
	if err != nil {
		s.giveUp(f)
		return nil, written, fmt.Errorf("write to spool: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f.measure()
	if f != s.current {
		s.files = append(s.files, f)
		s.current = f
	}
	s.keep(f, inits)
	f.list = append(f.list, b)
	return b, written, nil
}

// giveUp writes nothing more to a file after an error: what the kernel makes of
// the pages of a failed sync nobody knows.
func (s *shelf) giveUp(f *file) {
	if f != s.current {
		os.Remove(f.path)
		return
	}
	s.mu.Lock()
	f.measure()
	s.mu.Unlock()
	s.sealCurrent()
}

// measure looks how large the file is.
func (f *file) measure() {
	if info, err := os.Stat(f.path); err == nil {
		f.size = info.Size()
	}
}

// buffers hold the payloads of a transaction one after the other, as a value of
// bbolt has to be. Some MiB each: commits are rare, and what is not in use goes
// with the next garbage collections.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

func unbroken(chunks []*vms.Chunk) error {
	if len(chunks) == 0 {
		return fmt.Errorf("%w: write no chunks to the spool", vms.ErrInvalid)
	}
	for i, c := range chunks {
		if c.Epoch != chunks[0].Epoch || c.Seq != chunks[0].Seq+uint64(i) || c.Seq == 0 {
			return fmt.Errorf("%w: chunk %d of epoch %s at place %d after %d of %s", vms.ErrInvalid, c.Seq, c.Epoch, i, chunks[0].Seq, chunks[0].Epoch)
		}
	}
	return nil
}

// create chooses the name of a file that begins with c. Until its first
// transaction is on flash it has a name that is removed at the next start.
func (s *shelf) create(c *vms.Chunk) (*file, error) {
	if err := disk.MakeDir(s.dir); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f := &file{name: fileName{Ordinal: s.next, Epoch: c.Epoch, First: c.Seq, Start: c.Start}, inits: make(map[uint32]bool)}
	f.path = filepath.Join(s.dir, f.name.String()+newSuffix)
	s.next++
	return f, nil
}

// publish gives a file its name.
func (s *shelf) publish(f *file) error {
	path := strings.TrimSuffix(f.path, newSuffix)
	if err := os.Rename(f.path, path); err != nil {
		return err
	}
	f.path = path
	return disk.SyncDir(s.dir)
}

// sealCurrent closes the file that is written to. What it is called does not
// matter much: the name helps only when it cannot be read.
func (s *shelf) sealCurrent() {
	f := s.current
	s.current = nil
	if f == nil {
		return
	}
	s.mu.Lock()
	err := s.seal(f)
	s.mu.Unlock()
	if err == nil {
		_ = disk.SyncDir(s.dir)
	}
}

// seal puts into a file's name what it ends with.
func (s *shelf) seal(f *file) error {
	last := f.list[len(f.list)-1]
	n := f.name
	n.Last, n.End = last.Last, last.End
	path := filepath.Join(s.dir, n.String())
	if err := os.Rename(f.path, path); err != nil {
		return err
	}
	f.name, f.path = n, path
	return nil
}

// reader is a file that is open for reading. The block that was read last has
// its table.
type reader struct {
	f  *file
	fd *os.File
	b  *block
}

func (r *reader) close() {
	r.fd.Close()
	if r.b != nil {
		r.b.table = nil
	}
}

// read returns a copy of a chunk: ErrNotFound when the block does not have it,
// errGone when its file was removed, errDamaged when it is not what was written.
func (s *shelf) read(b *block, seq uint64) (vms.Chunk, error) {
	s.rmu.Lock()
	defer s.rmu.Unlock()
	r, err := s.reader(b.file)
	var c vms.Chunk
	if err == nil {
		c, err = r.read(b, seq)
	}
	if err != nil {
		return vms.Chunk{}, fmt.Errorf("read chunk %d of %s from spool: %w", seq, b.Epoch, err)
	}
	return c, nil
}

// reader returns the open reader of f, and closes the one that was not used for
// longest when there are too many.
func (s *shelf) reader(f *file) (*reader, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.gone {
		return nil, errGone
	}
	if i := slices.IndexFunc(s.readers, func(r *reader) bool { return r.f == f }); i >= 0 {
		r := s.readers[i]
		s.readers = append(slices.Delete(s.readers, i, i+1), r)
		return r, nil
	}
	fd, err := os.Open(f.path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EIO) {
		err = fmt.Errorf("%w: %w", errDamaged, err)
	}
	if err != nil {
		return nil, err
	}
	if len(s.readers) == openReaders {
		s.readers[0].close()
		s.readers = slices.Delete(s.readers, 0, 1)
	}
	r := &reader{f: f, fd: fd}
	s.readers = append(s.readers, r)
	return r, nil
}

func (r *reader) read(b *block, seq uint64) (c vms.Chunk, err error) {
	if seq < b.First || seq > b.Last {
		return c, fmt.Errorf("%w: the block has %d to %d", vms.ErrNotFound, b.First, b.Last)
	}
	if r.b != b {
		head := make([]byte, b.head.len)
		if err := r.at(head, b.head.off); err != nil {
			return c, err
		}
		h, err := decodeHead(head)
		if err != nil {
			return c, err
		}
		if r.b != nil {
			r.b.table = nil
		}
		r.b, b.table = b, h.table
	}
	p := b.table[seq-b.First]
	msg := make([]byte, wire.ChunkHeaderLen+p.len)
	if err := r.at(msg, b.payload.off+p.off); err != nil {
		return c, err
	}
	header, payload := msg[:wire.ChunkHeaderLen], msg[wire.ChunkHeaderLen:]
	if wire.Checksum(header) != p.crc || wire.PayloadLen(header) != p.len {
		return c, fmt.Errorf("%w: checksum of its header", errDamaged)
	}
	// The header alone is no message, and is handed out with that error.
	c, _ = wire.DecodeChunk(header)
	c.Payload = payload
	if c.Epoch != b.Epoch || c.Seq != seq {
		// A page that was damaged when the block was written leads to another one.
		return vms.Chunk{}, fmt.Errorf("%w: it is chunk %d of %s", errDamaged, c.Seq, c.Epoch)
	}
	if wire.Checksum(payload) != c.CRC {
		return c, fmt.Errorf("%w: checksum of its payload", errDamaged)
	}
	return c, nil
}

// at reads a piece of the file.
func (r *reader) at(b []byte, off int64) error {
	if _, err := r.fd.ReadAt(b, off); err != nil {
		return fmt.Errorf("%w: %w", errDamaged, err) // its end, or a sector that is gone
	}
	return nil
}

// blocks lists what is on flash, oldest first.
func (s *shelf) blocks() []*block {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*block
	for _, f := range s.files {
		all = append(all, f.list...)
	}
	return all
}

// init returns an init that chunks on flash name.
func (s *shelf) init(e vms.Epoch, id uint32) (vms.Init, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.named[initKey{e, id}]
	return i, ok
}

// bytes is what the files take on flash.
func (s *shelf) bytes() (n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.files {
		n += f.size
	}
	return n
}

// oldest is the file that was begun first, nil when there is none.
func (s *shelf) oldest() *file {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.files) == 0 {
		return nil
	}
	return s.files[0]
}

// remove deletes a file, with all chunks in it. It is gone for good when remove
// returns nil, and still there when not.
func (s *shelf) remove(f *file) error {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	s.settleLocked()
	if f == s.current {
		s.current = nil // also when it cannot be removed: what comes is of another age
	}
	if err := s.unlink(f); err != nil {
		return fmt.Errorf("remove spool file: %w", err)
	}
	if err := disk.SyncDir(s.dir); err != nil {
		return fmt.Errorf("remove spool file: %w", err)
	}
	return nil
}

func (s *shelf) unlink(f *file) error {
	s.rmu.Lock()
	defer s.rmu.Unlock()
	s.readers = slices.DeleteFunc(s.readers, func(r *reader) bool {
		if r.f == f {
			r.close() // else its space is not freed
		}
		return r.f == f
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.gone {
		return nil
	}
	if err := os.Remove(f.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f.gone = true
	s.files = slices.DeleteFunc(s.files, func(o *file) bool { return o == f })
	for id := range f.inits {
		if !slices.ContainsFunc(s.files, func(o *file) bool { return o.name.Epoch == f.name.Epoch && o.inits[id] }) {
			delete(s.named, initKey{f.name.Epoch, id})
		}
	}
	return nil
}

// close closes what is open. Nothing is lost without it.
func (s *shelf) close() error {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	s.settleLocked()
	s.sealCurrent()
	s.rmu.Lock()
	defer s.rmu.Unlock()
	for _, r := range s.readers {
		r.close()
	}
	s.readers = nil
	return nil
}
