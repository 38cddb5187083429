// Package nvrtest is what tests of the NVR, and of what stands on it, need: a
// store and a bucket in memory, a clock that stands still, and an NVR made of them.
package nvrtest

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"iter"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
)

// Account is whose everything is, unless a test says otherwise.
const Account vms.AccountID = "demo"

// Clock is a clock that a test sets.
type Clock struct {
	mu  sync.Mutex
	now time.Time
}

// NewClock returns a clock that stands at a fixed time with microseconds.
func NewClock() *Clock {
	return &Clock{now: time.Date(2026, 11, 3, 12, 0, 0, 123_456_000, time.UTC)}
}

// Now is a func() time.Time.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Add moves the clock.
func (c *Clock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// Objects is a bucket in memory. Fail, when set, is asked before every call.
type Objects struct {
	Fail func(op, key string) error

	mu   sync.Mutex
	objs map[string]vms.Recording
}

var _ nvr.Objects = (*Objects)(nil)

// Put stores what an object's metadata says.
func (o *Objects) Put(r vms.Recording) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.objs == nil {
		o.objs = make(map[string]vms.Recording)
	}
	o.objs[r.Key] = r
}

// Keys lists what is there, in order.
func (o *Objects) Keys() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := make([]string, 0, len(o.objs))
	for k := range o.objs {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

func (o *Objects) failing(op, key string) error {
	if o.Fail == nil {
		return nil
	}
	return o.Fail(op, key)
}

// Stat implements nvr.Objects.
func (o *Objects) Stat(_ context.Context, key string) (vms.Recording, error) {
	if err := o.failing("stat", key); err != nil {
		return vms.Recording{}, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	r, ok := o.objs[key]
	if !ok {
		return vms.Recording{}, vms.ErrNotFound
	}
	return r, nil
}

// List implements nvr.Objects.
func (o *Objects) List(_ context.Context, prefix, after string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for _, k := range o.Keys() {
			if k <= after || !bytes.HasPrefix([]byte(k), []byte(prefix)) {
				continue
			}
			if err := o.failing("list", k); err != nil {
				yield("", err)
				return
			}
			if !yield(k, nil) {
				return
			}
		}
	}
}

// Delete implements nvr.Objects.
func (o *Objects) Delete(_ context.Context, key string) error {
	if err := o.failing("delete", key); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.objs, key)
	return nil
}

// PresignGet implements nvr.Objects.
func (o *Objects) PresignGet(_ context.Context, key string, expiry time.Duration, _ string) (string, time.Time, error) {
	return "http://bucket.invalid/" + key, NewClock().Now().Add(expiry), o.failing("presign", key)
}

// PresignPut implements nvr.Objects.
func (o *Objects) PresignPut(_ context.Context, key string, expiry time.Duration, _ string) (string, time.Time, error) {
	return "http://bucket.invalid/" + key + "?put", NewClock().Now().Add(expiry), o.failing("presign", key)
}

// World is an NVR with everything around it.
type World struct {
	*nvr.NVR
	Clock   *Clock
	Store   *Store
	Objects *Objects
	Signer  *token.Signer
}

// New returns a World. change, if not nil, changes the configuration first.
func New(t testing.TB, change func(*nvr.Config)) *World {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := token.NewSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	w := &World{Clock: NewClock(), Store: NewStore(), Objects: &Objects{}, Signer: signer}
	c := nvr.Config{Store: w.Store, Objects: w.Objects, Tokens: signer, SecretKey: bytes.Repeat([]byte{7}, 32),
		NVRURL: "ws://nvr.example:8080/session/v1", Clock: w.Clock.Now, Log: vmstest.Log(t)}
	if change != nil {
		change(&c)
	}
	if w.NVR, err = nvr.New(c); err != nil {
		t.Fatal(err)
	}
	return w
}

// Hub enrols a hub of an account and returns its private key.
func (w *World) Hub(t testing.TB, acct vms.AccountID) (vms.HubID, ed25519.PrivateKey) {
	t.Helper()
	_, code, _, err := w.CreateHub(t.Context(), acct, "Hub")
	if err != nil {
		t.Fatal(err)
	}
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	e, err := w.Enroll(t.Context(), code, pub, "")
	if err != nil {
		t.Fatal(err)
	}
	return e.Hub.ID, key
}

// Channel makes a channel of an account; hub may be empty.
func (w *World) Channel(t testing.TB, acct vms.AccountID, hub vms.HubID) nvr.Channel {
	t.Helper()
	c, err := w.CreateChannel(t.Context(), acct, nvr.ChannelSpec{Name: "Door", Hub: hub,
		Camera: vms.Camera{URL: "rtsp://admin:hunter2@10.0.0.7/stream"}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Recording is a recording of chunks first to last of an epoch, a second each,
// counted from the hour before the clock's.
func (w *World) Recording(ch vms.ChannelID, epoch vms.Epoch, first, last uint64) vms.Recording {
	zero := NewClock().Now().Add(-time.Hour)
	start := zero.Add(time.Duration(first) * time.Second)
	return vms.Recording{Channel: ch, Key: vms.RecordingKey(ch, start, 0), Chunks: vms.ChunkRange{Epoch: epoch, First: first, Last: last},
		Start: start, End: zero.Add(time.Duration(last+1) * time.Second), Media: time.Duration(last+1-first) * time.Second,
		Bytes: 1000, SHA256: sha256.Sum256([]byte{byte(epoch), byte(first), byte(last)}), HeadLen: 90, InitLen: 60, Codecs: "avc1.64001f"}
}

// Part is a provisional recording of chunks first to last, otherwise like Recording.
func (w *World) Part(ch vms.ChannelID, epoch vms.Epoch, first, last uint64) vms.Recording {
	r := w.Recording(ch, epoch, first, last)
	r.Key = vms.PartKey(ch, r.Chunks, r.Number)
	return r
}

// WorkerLink is the line to a worker, and notes what comes over it.
type WorkerLink struct {
	mu       sync.Mutex
	revoked  []vms.SID
	moved    map[vms.ChannelID]string
	moves    int
	drained  int
	replaced int
}

var _ nvr.WorkerLink = (*WorkerLink)(nil)

// Worker brings a worker up, as it is once sessions that waited for it are assigned.
func (w *World) Worker(t testing.TB, info vms.WorkerInfo) *WorkerLink {
	t.Helper()
	l := &WorkerLink{}
	if err := w.WorkerUp(info, l); err != nil {
		t.Fatal(err)
	}
	if err := w.TendWorkers(t.Context()); err != nil {
		t.Fatal(err)
	}
	return l
}

// Revoke implements nvr.WorkerLink.
func (l *WorkerLink) Revoke(sids []vms.SID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.revoked = append(l.revoked, sids...)
}

// Moved implements nvr.WorkerLink.
func (l *WorkerLink) Moved(ch vms.ChannelID, liveURL string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.moved == nil {
		l.moved = make(map[vms.ChannelID]string)
	}
	l.moved[ch] = liveURL
	l.moves++
}

// Drain implements nvr.WorkerLink.
func (l *WorkerLink) Drain() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drained++
}

// Replace implements nvr.WorkerLink.
func (l *WorkerLink) Replace() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.replaced++
}

// Revoked lists the sessions that the worker must cut off.
func (l *WorkerLink) Revoked() []vms.SID {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.revoked)
}

// MovedTo returns where the worker was told last that a channel's picture is.
func (l *WorkerLink) MovedTo(ch vms.ChannelID) (liveURL string, told bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	liveURL, told = l.moved[ch]
	return liveURL, told
}

// Moves counts how often it was told.
func (l *WorkerLink) Moves() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.moves
}

// Told counts how often the worker was told to drain, and that it is replaced.
func (l *WorkerLink) Told() (drained, replaced int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.drained, l.replaced
}
