package spool

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"regexp"
	"slices"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"go.etcd.io/bbolt"

	"github.com/zipato/vms/agent/disk"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// A file on flash is a bbolt database that is written to by the run of the
// agent that made it, and only read by those that come after. Each transaction
// makes a bucket of its own, named by its number (4 bytes, big-endian, from 0),
// and never touches an older one, so that no page with footage is written twice:
//
//	head     what the block holds (see encodeHead)
//	inits    the inits that the chunks name and that no earlier bucket has; may be missing
//	payload  header (64 bytes, as on the wire) and payload of each chunk, one after the other
//
// A bucket of three keys, and a root of at most maxBlocks buckets, each fit one
// page of bbolt's tree. So there are no branch pages, whose damage could send
// bbolt round in circles, and nothing is lost to half-filled pages.
//
// Footage is not read through bbolt: its place in the file is fixed once it is
// committed, and an ordinary read needs no map (of which a 32-bit hub has few),
// cannot fault, and lets the kernel read ahead. What we write has the same
// bytes on every machine, but bbolt's own pages have the byte order of the
// machine: a file moves between hubs of one kind only.
const (
	keyHead    = "head"
	keyInits   = "inits"
	keyPayload = "payload"

	pageSize = disk.PageSize
	// maxBlocks root entries of 36 bytes fit one page.
	maxBlocks = 96
	// minPayload: a smaller bucket would become part of bbolt's root page, and
	// move at every transaction.
	minPayload = 1024
	// overhead bounds what a transaction adds to a file beyond its values: the
	// leaf's rounding, root, freelist, what bbolt keeps ahead, and for the first
	// one the four pages that a file begins with.
	overhead = 16 * pageSize

	// syncs of a commit: the length of the file, the pages, the meta page. Each has
	// the file system write about a page of its own (measured: ext4).
	syncs = 3

	headVersion = 1
	headLen     = 49 // without its lists
)

var (
	// errDamaged: what is on flash is not what was written.
	errDamaged = errors.New("damaged on flash")
	// errGone: the file was removed.
	errGone = errors.New("removed from flash")
)

// block is what one transaction brought: an unbroken run of chunks of one epoch.
type block struct {
	file        *file
	Epoch       vms.Epoch
	First, Last uint64
	Start, End  time.Time
	Bytes       int64  // of payload
	Marks       []mark // one per chunk with FlagKey or FlagFirst, and one for the first chunk of the block

	number        int // of its bucket
	head, payload extent
	table         []place // of its chunks; nil when it is not read at the moment
}

// mark is a place in a block where a GOP or a recording begins.
type mark struct {
	Seq       uint64
	Flags     vms.Flags
	Recording uint32
	Init      uint32
	Start     time.Time
}

// extent is a place in a file.
type extent struct{ off, len int64 }

// place is where a chunk lies in the payload of its block.
type place struct {
	off, len int64  // len without the header
	crc      uint32 // CRC-32C of the header; that of the payload stands in it
}

// encodeHead describes a run of chunks, all integers big-endian: version (1
// byte), number of the bucket (4: a damaged page may lead to another one's),
// epoch, first, start and end (microseconds), the lengths of the two lists that
// follow (4 each), per mark its chunk, flags (2), recording (4), init (4) and
// start, per chunk the length of its payload (4) and the CRC-32C of its header
// (4); last the CRC-32C of all that.
func encodeHead(number int, chunks []*vms.Chunk) []byte {
	first, last := chunks[0], chunks[len(chunks)-1]
	marks := marksOf(chunks)
	b := make([]byte, 0, headLen+26*len(marks)+8*len(chunks))
	be := binary.BigEndian
	b = append(b, headVersion)
	b = be.AppendUint32(b, uint32(number))
	b = be.AppendUint64(b, uint64(first.Epoch))
	b = be.AppendUint64(b, first.Seq)
	b = be.AppendUint64(b, uint64(micros(first.Start)))
	b = be.AppendUint64(b, uint64(micros(last.End)))
	b = be.AppendUint32(b, uint32(len(marks)))
	b = be.AppendUint32(b, uint32(len(chunks)))
	for _, m := range marks {
		b = be.AppendUint64(b, m.Seq)
		b = be.AppendUint16(b, uint16(m.Flags))
		b = be.AppendUint32(b, m.Recording)
		b = be.AppendUint32(b, m.Init)
		b = be.AppendUint64(b, uint64(micros(m.Start)))
	}
	var header [wire.ChunkHeaderLen]byte
	for _, c := range chunks {
		b = be.AppendUint32(b, uint32(len(c.Payload)))
		b = be.AppendUint32(b, wire.Checksum(wire.AppendChunkHeader(header[:0], c)))
	}
	return be.AppendUint32(b, wire.Checksum(b))
}

// appendPayload appends what stands under keyPayload.
func appendPayload(b []byte, chunks []*vms.Chunk) []byte {
	n := 0
	for _, c := range chunks {
		n += wire.ChunkHeaderLen + len(c.Payload)
	}
	b = slices.Grow(b, max(minPayload, n))
	for _, c := range chunks {
		b = append(wire.AppendChunkHeader(b, c), c.Payload...)
	}
	return append(b, make([]byte, max(0, minPayload-n))...)
}

func marksOf(chunks []*vms.Chunk) []mark {
	var marks []mark
	for i, c := range chunks {
		if i == 0 || c.Flags&(vms.FlagKey|vms.FlagFirst) != 0 {
			marks = append(marks, mark{Seq: c.Seq, Flags: c.Flags, Recording: c.Recording, Init: c.Init, Start: fromMicros(micros(c.Start))})
		}
	}
	return marks
}

// decodeHead is the inverse of encodeHead.
func decodeHead(b []byte) (*block, error) {
	be := binary.BigEndian
	if len(b) < headLen || wire.Checksum(b[:len(b)-4]) != be.Uint32(b[len(b)-4:]) {
		return nil, fmt.Errorf("%w: checksum of a summary of %d bytes", errDamaged, len(b))
	}
	if b[0] != headVersion {
		return nil, fmt.Errorf("%w: summary of version %d, want %d", errDamaged, b[0], headVersion)
	}
	nMarks, nChunks := int64(be.Uint32(b[37:])), int64(be.Uint32(b[41:]))
	if nChunks == 0 || int64(len(b)) != headLen+26*nMarks+8*nChunks {
		return nil, fmt.Errorf("%w: summary of %d bytes for %d marks and %d chunks", errDamaged, len(b), nMarks, nChunks)
	}
	bl := &block{
		number: int(be.Uint32(b[1:])),
		Epoch:  vms.Epoch(be.Uint64(b[5:])),
		First:  be.Uint64(b[13:]),
		Start:  fromMicros(int64(be.Uint64(b[21:]))),
		End:    fromMicros(int64(be.Uint64(b[29:]))),
		Marks:  make([]mark, nMarks),
		table:  make([]place, nChunks),
	}
	bl.Last = bl.First + uint64(nChunks) - 1
	b = b[45:]
	for i := range bl.Marks {
		bl.Marks[i] = mark{
			Seq:       be.Uint64(b),
			Flags:     vms.Flags(be.Uint16(b[8:])),
			Recording: be.Uint32(b[10:]),
			Init:      be.Uint32(b[14:]),
			Start:     fromMicros(int64(be.Uint64(b[18:]))),
		}
		b = b[26:]
	}
	var off int64
	for i := range bl.table {
		p := place{off: off, len: int64(be.Uint32(b)), crc: be.Uint32(b[4:])}
		bl.table[i] = p
		off += wire.ChunkHeaderLen + p.len
		bl.Bytes += p.len
		b = b[8:]
	}
	return bl, nil
}

// storedInit is how an init stands in a file, as JSON in front of a CRC-32C of it and of
// the number of the bucket.
type storedInit struct {
	ID      uint32      `json:"id"`
	Tracks  []vms.Track `json:"tracks"`
	Segment []byte      `json:"segment"`
}

func encodeInits(number int, inits []vms.Init) ([]byte, error) {
	if len(inits) == 0 {
		return nil, nil
	}
	var list []storedInit
	for _, i := range inits {
		list = append(list, storedInit{i.ID, i.Tracks, i.Segment})
	}
	b, err := json.Marshal(list)
	if err != nil {
		return nil, fmt.Errorf("encode inits: %w", err)
	}
	return binary.BigEndian.AppendUint32(b, wire.Checksum(append(b, bucketName(number)...))), nil
}

func decodeInits(number int, e vms.Epoch, b []byte) ([]vms.Init, error) {
	if len(b) == 0 {
		return nil, nil
	}
	n := len(b) - 4
	if n < 0 || wire.Checksum(append(slices.Clone(b[:n]), bucketName(number)...)) != binary.BigEndian.Uint32(b[n:]) {
		return nil, fmt.Errorf("%w: checksum of inits of %d bytes", errDamaged, len(b))
	}
	var list []storedInit
	if err := json.Unmarshal(b[:n], &list); err != nil {
		return nil, fmt.Errorf("%w: inits: %w", errDamaged, err)
	}
	var inits []vms.Init
	for _, i := range list {
		inits = append(inits, vms.Init{Epoch: e, ID: i.ID, Tracks: i.Tracks, Segment: i.Segment})
	}
	return inits, nil
}

// transaction is what one commit writes.
type transaction struct {
	number               int // of the bucket in its file
	head, inits, payload []byte
}

// need bounds the bytes that the transaction adds to its file.
func (t *transaction) need() int64 {
	return int64(len(t.head)+len(t.inits)+len(t.payload)) + overhead
}

func bucketName(number int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(number)) }

// commit adds a bucket to the file at path, which it makes when there is none,
// and returns where its values lie. It is on flash when commit returns nil.
// written counts what that made the kernel write.
//
// The free list is stored although it costs a page per commit: without it bbolt
// walks the whole file after a write error, in a goroutine of its own, where a
// page that cannot be read ends the program.
func (t *transaction) commit(path string, size int64) (head, payload extent, written int64, err error) {
	before := disk.MetaPages(path)
	defer func() {
		if err != nil && before != nil && bytes.Equal(before, disk.MetaPages(path)) {
			// What the file has grown by is not in use, and the flash may be full.
			_ = os.Truncate(path, size)
		}
	}()
	o := &bbolt.Options{InitialMmapSize: int(size + t.need())} // mapped once: growing copies the values to the heap
	err = withDB(path, o, func(db *bbolt.DB) error {
		db.AllocSize = pageSize // what it grows a file by beyond its need
		var tx *bbolt.Tx
		err := db.Update(func(t0 *bbolt.Tx) error {
			tx = t0
			b, err := tx.CreateBucket(bucketName(t.number))
			if err != nil {
				return err
			}
			for _, kv := range []struct {
				key   string
				value []byte
			}{{keyHead, t.head}, {keyInits, t.inits}, {keyPayload, t.payload}} {
				if kv.value == nil {
					continue
				}
				if err := b.Put([]byte(kv.key), kv.value); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		stats := tx.Stats()
		written = stats.GetPageAlloc() + pageSize + syncs*pageSize
		if size == 0 {
			written += (4 + syncs) * pageSize // the first pages; and two names
		}
		return view(db, func(tx *bbolt.Tx) (err error) {
			if head, err = locate(db, tx, t.number, keyHead); err == nil {
				payload, err = locate(db, tx, t.number, keyPayload)
			}
			return err
		})
	})
	return head, payload, written, err
}

// locate returns where a value lies in its file, whose length bounds it.
func locate(db *bbolt.DB, tx *bbolt.Tx, number int, key string) (extent, error) {
	b := tx.Bucket(bucketName(number))
	if b == nil {
		return extent{}, fmt.Errorf("%w: bucket %d is missing", errDamaged, number)
	}
	v := b.Get([]byte(key))
	if v == nil {
		return extent{}, nil
	}
	info, err := os.Stat(db.Path())
	if err != nil {
		return extent{}, err
	}
	// The value is a slice of the map, which begins where the file does.
	e := extent{int64(uintptr(unsafe.Pointer(unsafe.SliceData(v))) - db.Info().Data), int64(len(v))}
	if e.off < 2*pageSize || e.off > info.Size() || e.len > info.Size()-e.off {
		return extent{}, fmt.Errorf("%w: bucket %d: %s reaches over the end of the file", errDamaged, number, key)
	}
	return e, nil
}

// contents is what a file holds.
type contents struct {
	blocks []*block
	inits  []vms.Init
	// tail: one of the two meta pages is damaged. It may have been the one of
	// the last transaction, which is not seen then.
	tail bool
}

// load reads the summaries of the file at path. An error that says errDamaged
// is about the file; any other about this moment or this machine.
func load(path string) (*contents, error) {
	c := new(contents)
	f, err := os.Open(path)
	if errors.Is(err, syscall.EIO) {
		return nil, fmt.Errorf("%w: %w", errDamaged, err)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	read := func(e extent) ([]byte, error) {
		b := make([]byte, e.len)
		if _, err := f.ReadAt(b, e.off); err != nil {
			return nil, fmt.Errorf("%w: %w", errDamaged, err)
		}
		return b, nil
	}
	c.tail = validMetas(path) < 2
	err = withDB(path, &bbolt.Options{ReadOnly: true}, func(db *bbolt.DB) error {
		return view(db, func(tx *bbolt.Tx) error {
			cur := tx.Cursor()
			for k, v := cur.First(); k != nil; k, v = cur.Next() {
				n := len(c.blocks)
				if n == maxBlocks || v != nil || !bytes.Equal(k, bucketName(n)) {
					return fmt.Errorf("%w: bucket %x stands at place %d", errDamaged, k, n)
				}
				var places [3]extent
				for i, key := range []string{keyHead, keyInits, keyPayload} {
					var err error
					if places[i], err = locate(db, tx, n, key); err != nil {
						return err
					}
				}
				if err := c.add(read, places[0], places[1], places[2]); err != nil {
					return err
				}
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (c *contents) add(read func(extent) ([]byte, error), head, inits, payload extent) error {
	h, err := read(head)
	if err != nil {
		return err
	}
	b, err := decodeHead(h)
	if err != nil {
		return err
	}
	b.head, b.payload = head, payload
	end := b.table[len(b.table)-1]
	if payload.len != max(minPayload, end.off+wire.ChunkHeaderLen+end.len) {
		return fmt.Errorf("%w: payload of %d bytes does not fit its summary", errDamaged, payload.len)
	}
	if b.number != len(c.blocks) {
		return fmt.Errorf("%w: bucket %d at place %d", errDamaged, b.number, len(c.blocks))
	}
	if n := len(c.blocks); n > 0 && (c.blocks[n-1].Epoch != b.Epoch || c.blocks[n-1].Last >= b.First) {
		return fmt.Errorf("%w: %s %d follows %s %d", errDamaged, b.Epoch, b.First, c.blocks[n-1].Epoch, c.blocks[n-1].Last)
	}
	i, err := read(inits)
	if err != nil {
		return err
	}
	list, err := decodeInits(b.number, b.Epoch, i)
	if err != nil {
		return err
	}
	c.blocks = append(c.blocks, b)
	c.inits = append(c.inits, list...)
	return nil
}

// validMetas counts the valid ones of bbolt's two meta pages, which it writes in
// turn. bbolt itself falls back to the other one without a word. A meta page is
// shorter than a sector, so a power cut leaves the old or the new one, and one
// that is neither was damaged later.
func validMetas(path string) (valid int) {
	b := disk.MetaPages(path)
	for ; len(b) > 0; b = b[pageSize:] {
		page := b[:80] // header of 16 bytes, then the meta data, in the machine's byte order
		sum := fnv.New64a()
		sum.Write(page[16:72])
		if sum.Sum64() == binary.NativeEndian.Uint64(page[72:]) && binary.NativeEndian.Uint32(page[16:]) == 0xED0CDAED {
			valid++
		}
	}
	return valid
}

// withDB opens the database at path for one piece of work: disk.WithDB.
func withDB(path string, o *bbolt.Options, work func(*bbolt.DB) error) error {
	return disk.WithDB(path, o, errDamaged, work)
}

// view is db.View with panics and faults as errors, before they can leave bbolt
// with its locks held.
func view(db *bbolt.DB, fn func(*bbolt.Tx) error) error {
	return db.View(func(tx *bbolt.Tx) error {
		return disk.Guard(errDamaged, func() error { return fn(tx) })
	})
}

// fileName says what a file holds, so that one that cannot be read still tells.
// While it is written to, Last and End are zero.
type fileName struct {
	Ordinal     uint64 // place among the files of the channel
	Epoch       vms.Epoch
	First, Last uint64
	Start, End  time.Time
}

const newSuffix = ".new" // a file before its first transaction is on flash

var filePattern = regexp.MustCompile(`^(\d{8,19})-([0-9a-f]{16})-(\d{1,20})-(\d{1,16})(?:-(\d{1,20})-(\d{1,16}))?\.db$`)

func (n fileName) String() string {
	s := fmt.Sprintf("%08d-%s-%d-%d", n.Ordinal, n.Epoch, n.First, micros(n.Start))
	if n.Last != 0 {
		s += fmt.Sprintf("-%d-%d", n.Last, micros(n.End))
	}
	return s + ".db"
}

// parseFileName is the inverse of String.
func parseFileName(s string) (n fileName, ok bool) {
	m := filePattern.FindStringSubmatch(s)
	if m == nil {
		return n, false
	}
	var v [7]uint64
	for _, i := range []int{1, 3, 4, 5, 6} {
		var err error
		if v[i], err = strconv.ParseUint(cmp.Or(m[i], "0"), 10, 64); err != nil {
			return n, false
		}
	}
	e, err := vms.ParseEpoch(m[2])
	n = fileName{
		Ordinal: v[1], Epoch: e, First: v[3], Start: fromMicros(int64(v[4])),
		Last: v[5], End: fromMicros(int64(v[6])),
	}
	return n, err == nil && n.First > 0 && (m[5] == "" || n.Last >= n.First)
}

// micros is microseconds since 1970 UTC, 0 for what lies before.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return max(0, t.UnixMicro())
}

// fromMicros is the inverse of micros, the zero time for 0.
func fromMicros(us int64) time.Time {
	if us <= 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}
