// Package state keeps small facts of a hub that must outlive a lost spool: gaps
// that the NVR has not committed, the streams that ran, how much was written to
// flash, and documents whose meaning is their owners' business.
package state

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/zipato/vms/agent/disk"
	"github.com/zipato/vms/pkg/vms"
)

// State is the facts, all of them in memory too. What a method that changes
// something was told is on flash when it returns nil (but see FlashWritten). All
// methods may be called at the same time.
//
// The file is a bbolt database. It is open only while something is written, and
// has a bucket per fact: "flash" and one per channel, each with one value in
// JSON behind a CRC-32C, so that a change writes four or five pages of 4 KiB;
// and one per document, with its bytes behind a CRC-32C.
//
// What an earlier run has left is only read: bbolt trusts its list of free pages,
// and with a damaged one it would write over what is good. The first change makes
// a new file.
type State struct {
	path string

	mu      sync.Mutex
	facts   facts
	flash   flash
	unsaved int64 // of flash.Total
	// size of the file when it is one that this run has made, else 0.
	size int64
}

// facts are all but the count of bytes written. The maps of one that is in use
// are never changed.
type facts struct {
	channels  map[vms.ChannelID]channel
	documents map[string][]byte
}

// buckets names the buckets of all facts, in order.
func (f facts) buckets() []string {
	var all []string
	for ch := range f.channels {
		all = append(all, channelPrefix+string(ch))
	}
	for name := range f.documents {
		all = append(all, documentPrefix+name)
	}
	slices.Sort(all)
	return all
}

// Stream is a stream that ran: what is needed to deliver what is left of it.
type Stream struct {
	Channel vms.ChannelID `json:"-"`
	SID     vms.SID       `json:"sid"`
	NVRURL  string        `json:"nvr_url"`
}

type channel struct {
	Stream *Stream   `json:"stream,omitempty"`
	Gaps   []vms.Gap `json:"gaps,omitempty"` // in the order in which they were first put
}

type flash struct {
	Day   string `json:"day"`   // the newest one, UTC, such as "2026-11-22"
	Today int64  `json:"today"` // bytes on that day
	Total int64  `json:"total"` // bytes since Since
	Since string `json:"since"` // the first day
	// Channels and Documents are how many there are, so that one that is gone is
	// noticed.
	Channels  int `json:"channels"`
	Documents int `json:"documents,omitempty"`
}

const (
	keyValue = "value"

	bucketFlash    = "flash"
	channelPrefix  = "channel/"
	documentPrefix = "document/"

	// MaxDocument bounds a document, bytes.
	MaxDocument = 1 << 20

	pageSize = disk.PageSize
	// minValue: a smaller bucket would become part of the root page, which must
	// hold a channel in few bytes: then 40 of them do without a branch page,
	// whose damage could send bbolt round in circles.
	minValue = 1100
	// flashStep: the count of bytes written is worth a write of its own that rarely.
	flashStep = 64 << 20

	newSuffix     = ".new"
	damagedSuffix = ".damaged"
)

var errDamaged = errors.New("damaged")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Open reads the facts at path, of which there are none when there is no file. A
// file that is damaged is set aside under another name, which is logged, and a
// new one begun with what could be read of it. The error is one that may pass.
func Open(path string) (*State, error) {
	s := &State{path: path, facts: facts{make(map[vms.ChannelID]channel), make(map[string][]byte)}}
	os.Remove(path + newSuffix)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	err := s.load()
	if err == nil {
		return s, nil
	}
	if !errors.Is(err, errDamaged) {
		return nil, fmt.Errorf("open state: %w", err)
	}
	slog.Warn("state is damaged: set aside, going on with what could be read of it", "file", path+damagedSuffix, "channels", len(s.facts.channels), "documents", len(s.facts.documents), "err", err)
	if err = os.Rename(path, path+damagedSuffix); err == nil { // in place of one before it
		err = s.save(s.facts)
	}
	if err != nil { // a disk that cannot be written to must not keep the hub from its work
		slog.Error("state is kept in memory only, until it can be stored", "file", path, "err", err)
	}
	return s, nil
}

// Gaps returns the gaps of a channel that were put and not dropped.
func (s *State) Gaps(ch vms.ChannelID) ([]vms.Gap, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return clone(s.facts.channels[ch].Gaps), nil
}

// clone copies gaps, whose chunk ranges their owners may let grow.
func clone(gaps []vms.Gap) []vms.Gap {
	gaps = slices.Clone(gaps)
	for i := range gaps {
		if r := gaps[i].Chunks; r != nil {
			c := *r
			gaps[i].Chunks = &c
		}
	}
	return gaps
}

// PutGaps keeps gaps of a channel; one with an id that is there replaces it.
func (s *State) PutGaps(ch vms.ChannelID, gaps []vms.Gap) error {
	if len(gaps) == 0 {
		return nil
	}
	return s.change(ch, func(c *channel) {
		c.Gaps = slices.Clone(c.Gaps)
		for _, g := range clone(gaps) {
			if i := slices.IndexFunc(c.Gaps, func(o vms.Gap) bool { return o.ID == g.ID }); i >= 0 {
				c.Gaps[i] = g
			} else {
				c.Gaps = append(c.Gaps, g)
			}
		}
	})
}

// DropGaps forgets gaps of a channel.
func (s *State) DropGaps(ch vms.ChannelID, ids []vms.GapID) error {
	s.mu.Lock()
	known := slices.ContainsFunc(s.facts.channels[ch].Gaps, func(g vms.Gap) bool { return slices.Contains(ids, g.ID) })
	s.mu.Unlock()
	if !known {
		return nil
	}
	return s.change(ch, func(c *channel) {
		c.Gaps = slices.DeleteFunc(slices.Clone(c.Gaps), func(g vms.Gap) bool { return slices.Contains(ids, g.ID) })
	})
}

// Streams returns the streams that were put and not dropped.
func (s *State) Streams() (map[vms.ChannelID]Stream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[vms.ChannelID]Stream)
	for ch, c := range s.facts.channels {
		if c.Stream != nil {
			st := *c.Stream
			st.Channel = ch
			all[ch] = st
		}
	}
	return all, nil
}

// PutStream keeps a stream, one per channel. Putting the same again writes nothing.
func (s *State) PutStream(st Stream) error {
	s.mu.Lock()
	old := s.facts.channels[st.Channel].Stream
	s.mu.Unlock()
	if old != nil && old.SID == st.SID && old.NVRURL == st.NVRURL {
		return nil
	}
	return s.change(st.Channel, func(c *channel) { c.Stream = &st })
}

// DropStream forgets the stream of a channel.
func (s *State) DropStream(ch vms.ChannelID) error {
	s.mu.Lock()
	known := s.facts.channels[ch].Stream != nil
	s.mu.Unlock()
	if !known {
		return nil
	}
	return s.change(ch, func(c *channel) { c.Stream = nil })
}

// FlashWritten adds bytes to what was written to flash on a day (UTC, as
// "2026-11-22"). To spare the flash it is stored with the next other change, or
// when 64 MiB have come together: a power cut may lose that much of the count.
func (s *State) FlashWritten(day string, bytes int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if day > s.flash.Day {
		s.flash.Day, s.flash.Today = day, 0
	}
	s.flash.Since = cmp.Or(s.flash.Since, day)
	s.flash.Today += bytes
	s.flash.Total += bytes
	s.unsaved += bytes
	if s.unsaved < flashStep {
		return nil
	}
	return s.save(s.facts)
}

// Flash returns the bytes written to flash on the newest day that was named, and
// since the first one.
func (s *State) Flash() (today, total int64, since string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flash.Today, s.flash.Total, s.flash.Since
}

// Close stores what FlashWritten has not.
func (s *State) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unsaved == 0 {
		return nil
	}
	return s.save(s.facts)
}

// Document returns a document that was put, or nil.
func (s *State) Document(name string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Clone(s.facts.documents[name]), nil
}

// PutDocument keeps a document in the place of the one of its name; nil drops
// that. Putting the same again writes nothing.
func (s *State) PutDocument(name string, data []byte) error {
	if !vms.ValidID(name) || len(data) > MaxDocument {
		return fmt.Errorf("%w: document %.40q of %d bytes", vms.ErrInvalid, name, len(data))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old, known := s.facts.documents[name]
	if known == (data != nil) && bytes.Equal(old, data) {
		return nil
	}
	all := facts{s.facts.channels, maps.Clone(s.facts.documents)}
	if data == nil {
		delete(all.documents, name)
	} else {
		all.documents[name] = append([]byte{}, data...) // not nil, also when it is empty
	}
	return s.save(all, documentPrefix+name)
}

// change changes what is known of a channel, on flash first.
func (s *State) change(ch vms.ChannelID, f func(*channel)) error {
	if !vms.ValidID(ch) {
		return fmt.Errorf("%w: channel %q", vms.ErrInvalid, ch)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.facts.channels[ch]
	f(&c)
	all := facts{maps.Clone(s.facts.channels), s.facts.documents}
	all.channels[ch] = c
	if c.Stream == nil && len(c.Gaps) == 0 {
		delete(all.channels, ch)
	}
	return s.save(all, channelPrefix+string(ch))
}

// save makes all the facts: it writes the buckets named, and the count of bytes.
func (s *State) save(all facts, only ...string) error {
	err := errDamaged
	if info, serr := os.Stat(s.path); serr == nil && s.size > 0 && info.Size() == s.size {
		before := disk.MetaPages(s.path)
		err = s.commit(s.path, all, only)
		if err != nil && before != nil && bytes.Equal(before, disk.MetaPages(s.path)) {
			// What the file has grown by is not in use, and may be all that the flash has left.
			_ = os.Truncate(s.path, s.size)
		}
	}
	if errors.Is(err, errDamaged) { // or not ours
		err = s.rewrite(all)
	}
	s.size = 0
	if err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	if info, err := os.Stat(s.path); err == nil {
		s.size = info.Size()
	}
	s.facts, s.unsaved = all, 0
	return nil
}

// rewrite makes a file with all facts.
func (s *State) rewrite(all facts) error {
	if err := disk.MakeDir(filepath.Dir(s.path)); err != nil {
		return err
	}
	tmp := s.path + newSuffix
	os.Remove(tmp)
	err := s.commit(tmp, all, all.buckets())
	if err == nil {
		err = os.Rename(tmp, s.path)
	}
	if err != nil {
		os.Remove(tmp)
		return err
	}
	return disk.SyncDir(filepath.Dir(s.path))
}

// commit writes the buckets named, and what has changed of the count of bytes,
// in one transaction.
func (s *State) commit(path string, all facts, only []string) error {
	return withDB(path, false, func(db *bbolt.DB) error {
		db.AllocSize = pageSize
		return db.Update(func(tx *bbolt.Tx) error {
			for _, bucket := range only {
				if err := all.put(tx, bucket); err != nil {
					return err
				}
			}
			f := s.flash
			f.Channels, f.Documents = len(all.channels), len(all.documents)
			same := f.Channels == len(s.facts.channels) && f.Documents == len(s.facts.documents)
			if s.unsaved == 0 && same && tx.Bucket([]byte(bucketFlash)) != nil {
				return nil
			}
			return putJSON(tx, bucketFlash, f)
		})
	})
}

// put makes a bucket as the facts say.
func (f facts) put(tx *bbolt.Tx, bucket string) error {
	if name, ok := strings.CutPrefix(bucket, documentPrefix); ok {
		if doc, ok := f.documents[name]; ok {
			// With its length, because short ones are filled up.
			return put(tx, bucket, append(binary.BigEndian.AppendUint32(nil, uint32(len(doc))), doc...))
		}
	} else if c, ok := f.channels[vms.ChannelID(strings.TrimPrefix(bucket, channelPrefix))]; ok {
		return putJSON(tx, bucket, c)
	}
	if err := tx.DeleteBucket([]byte(bucket)); err != nil && !errors.Is(err, berrors.ErrBucketNotFound) {
		return err
	}
	return nil
}

func putJSON(tx *bbolt.Tx, bucket string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return put(tx, bucket, data)
}

func put(tx *bbolt.Tx, bucket string, data []byte) error {
	b, err := tx.CreateBucketIfNotExists([]byte(bucket))
	if err != nil {
		return err
	}
	data = append(data, bytes.Repeat([]byte(" "), max(0, minValue-len(data)))...)
	value := binary.BigEndian.AppendUint32(nil, checksum(bucket, data))
	return b.Put([]byte(keyValue), append(value, data...))
}

// checksum covers the name too: a damaged page may lead to the value of another bucket.
func checksum(bucket string, data []byte) uint32 {
	return crc32.Update(crc32.Checksum([]byte(bucket), castagnoli), castagnoli, data)
}

// get returns what is in a bucket, valid during the transaction.
func get(tx *bbolt.Tx, bucket string) ([]byte, error) {
	b := tx.Bucket([]byte(bucket))
	if b == nil {
		return nil, fmt.Errorf("%w: %q is no bucket", errDamaged, bucket)
	}
	value := b.Get([]byte(keyValue))
	if len(value) < 4 || checksum(bucket, value[4:]) != binary.BigEndian.Uint32(value) {
		return nil, fmt.Errorf("%w: checksum of %q", errDamaged, bucket)
	}
	return value[4:], nil
}

func getJSON(tx *bbolt.Tx, bucket string, v any) error {
	data, err := get(tx, bucket)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%w: %q: %w", errDamaged, bucket, err)
	}
	return nil
}

func getDocument(tx *bbolt.Tx, bucket string) ([]byte, error) {
	data, err := get(tx, bucket)
	if err != nil {
		return nil, err
	}
	if len(data) < 4 || uint64(binary.BigEndian.Uint32(data)) > uint64(len(data)-4) {
		return nil, fmt.Errorf("%w: length of %q", errDamaged, bucket)
	}
	return append([]byte{}, data[4:4+binary.BigEndian.Uint32(data)]...), nil
}

func (s *State) load() error {
	return withDB(s.path, true, func(db *bbolt.DB) error {
		return db.View(func(tx *bbolt.Tx) error {
			return disk.Guard(errDamaged, func() error { return s.read(tx) })
		})
	})
}

// read takes in all facts that can be read, and returns what is wrong with the others.
func (s *State) read(tx *bbolt.Tx) error {
	var wrong error
	flashSeen := false
	c := tx.Cursor()
	for k, _ := c.First(); k != nil; k, _ = c.Next() {
		bucket := string(k)
		ch, isChannel := strings.CutPrefix(bucket, channelPrefix)
		name, isDocument := strings.CutPrefix(bucket, documentPrefix)
		var err error
		switch {
		case bucket == bucketFlash:
			flashSeen = true
			var f flash
			if err = getJSON(tx, bucket, &f); err == nil {
				s.flash = f
			}
		case isChannel && vms.ValidID(ch):
			var v channel
			if err = getJSON(tx, bucket, &v); err == nil {
				s.facts.channels[vms.ChannelID(ch)] = v
			}
		case isDocument && vms.ValidID(name):
			var doc []byte
			if doc, err = getDocument(tx, bucket); err == nil {
				s.facts.documents[name] = doc
			}
		default:
			err = fmt.Errorf("%w: bucket %q", errDamaged, k)
		}
		if err != nil {
			wrong = err
		}
	}
	if !flashSeen && wrong == nil {
		wrong = fmt.Errorf("%w: no bucket %q", errDamaged, bucketFlash)
	}
	if f := s.flash; wrong == nil && (f.Channels != len(s.facts.channels) || f.Documents != len(s.facts.documents)) {
		wrong = fmt.Errorf("%w: %d channels of %d, %d documents of %d", errDamaged, len(s.facts.channels), f.Channels, len(s.facts.documents), f.Documents)
	}
	return wrong
}

// withDB opens the database at path for one piece of work (disk.WithDB). What
// bbolt itself takes for no database is damaged also where it is written.
//
// The free list is stored: without it bbolt walks the file in a goroutine of its
// own, where a damaged page ends the program.
func withDB(path string, readOnly bool, work func(*bbolt.DB) error) error {
	err := disk.WithDB(path, &bbolt.Options{ReadOnly: readOnly}, errDamaged, work)
	if err == nil || errors.Is(err, errDamaged) {
		return err
	}
	for _, invalid := range []error{berrors.ErrInvalid, berrors.ErrChecksum, berrors.ErrVersionMismatch} {
		if errors.Is(err, invalid) {
			return fmt.Errorf("%w: %w", errDamaged, err)
		}
	}
	return err
}
