// Package upload puts finished recordings into the object store and does not
// give up: a recording leaves tmpfs only when the store has verified its
// checksum. One object that fails never holds up the others.
package upload

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zipato/vms/pkg/obs"
	"github.com/zipato/vms/pkg/retry"
	"github.com/zipato/vms/pkg/vms"
)

// Store is what an uploader needs of the object store.
type Store interface {
	// Put stores an object that is not there yet. vms.ErrConflict: the key is taken.
	Put(ctx context.Context, r vms.Recording, body io.ReadSeeker) error
	// Stat returns what the object's metadata says, or vms.ErrNotFound.
	// vms.ErrInvalid: the object is no recording.
	Stat(ctx context.Context, key string) (vms.Recording, error)
	// Get opens an object, or returns vms.ErrNotFound. The caller closes it.
	Get(ctx context.Context, key string) (io.ReadCloser, error)
}

// Job is one recording, or a part of one: Head, then the bytes of the file at Path.
type Job struct {
	Recording vms.Recording
	Head      []byte
	Path      string
	// View returns the bytes behind Head, when they are not those of the file as
	// it is. The file is left alone then: it is somebody else's.
	View func(io.ReaderAt) io.ReaderAt
	// Done is called once the recording is durable, under the key it got.
	Done func(vms.Recording)
	// Lost is called instead when the file is not there any more, or is not
	// what was written: no retry can help, only the one who has the bytes still.
	// For a part, also when its key is taken by something else.
	Lost func(error)
}

// remove takes the file away, if it is the job's.
func (j *Job) remove(log *slog.Logger) {
	if j.View != nil {
		return
	}
	if err := os.Remove(j.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Error("cannot remove a recording from tmpfs", "path", j.Path, "err", err)
	}
}

// Uploader runs jobs. Fill in the fields, then Submit at will; Wait waits.
//
// A try that fails is tried again until it works: after a pause that grows up to
// half a minute, with jitter, within a budget of time that its size gives it. All
// retries together are bounded, so that a store that is ill gets few of them; the
// first success is the sign for all that wait, so that an outage drains at once.
// A job that fails while others succeed is another matter: it keeps its pauses,
// and such jobs share a quarter of the slots.
type Uploader struct {
	Store Store
	// Slots is how many requests are under way at once.
	Slots int
	// Stored, if set, is called for each object that Put took.
	Stored func(vms.Recording)
	Log    *slog.Logger

	once    sync.Once
	slots   chan struct{} // tries under way
	suspect chan struct{} // those of them that are of jobs which fail while others succeed
	budget  budget        // of retries
	wg      sync.WaitGroup
	failing atomic.Int64 // jobs whose last try failed
	waiting atomic.Int64 // jobs not done
	bytes   atomic.Int64 // of the objects whose tries are under way
	retries atomic.Uint64
	seconds *obs.HistogramVec // of tries, by result; nil until Register

	mu        sync.Mutex
	successes uint64
	woken     chan struct{} // closed at the next success
	said      time.Time     // when a failure was last said
}

// Register names what can be seen of u from outside, beside Waiting and Retries.
// Call it before Submit.
func (u *Uploader) Register(m *obs.Registry) {
	u.seconds = m.HistogramVec("vms_worker_upload_seconds", "Time of one try to store an object, by result: ok or failed.", durations, "result")
	m.GaugeFunc("vms_worker_uploads_failing", "Recordings whose last try to be stored failed.", func() float64 { return float64(u.failing.Load()) })
	m.GaugeFunc("vms_worker_upload_inflight_bytes", "Bytes of the objects that are being stored.", func() float64 { return float64(u.bytes.Load()) })
}

// durations are the bounds of vms_worker_upload_seconds: a store next door takes
// milliseconds, a try may last half an hour.
var durations = []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 180, 600, 1800}

// Failing reports whether some job is waiting for the store to get better.
func (u *Uploader) Failing() bool { return u.failing.Load() > 0 }

// Waiting counts the jobs that are not done; Retries the tries that failed.
func (u *Uploader) Waiting() int64  { return u.waiting.Load() }
func (u *Uploader) Retries() uint64 { return u.retries.Load() }

// Submit begins a job. It returns at once; the job ends when it is durable or
// ctx ends, and then leaves its file for the next start.
func (u *Uploader) Submit(ctx context.Context, j Job) {
	u.once.Do(func() {
		n := max(u.Slots, 1)
		u.slots, u.suspect, u.woken = make(chan struct{}, n), make(chan struct{}, max(n/4, 1)), make(chan struct{})
		u.budget.init(4 * n)
	})
	u.waiting.Add(1)
	u.wg.Go(func() {
		defer u.waiting.Add(-1)
		u.run(ctx, j)
	})
}

// Wait returns when no job runs any more.
func (u *Uploader) Wait() { u.wg.Wait() }

// health is what a job knows of the store: the successes of all jobs, and what
// the next one closes.
func (u *Uploader) health() (successes uint64, woken <-chan struct{}) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.successes, u.woken
}

// succeeded tells those who wait that the store works.
func (u *Uploader) succeeded() {
	u.budget.refund()
	u.mu.Lock()
	defer u.mu.Unlock()
	u.successes++
	close(u.woken)
	u.woken = make(chan struct{})
}

// sayEvery is how often failures are said aloud: an outage must not fill the log.
const sayEvery = 10 * time.Second

// loud reports whether a failure is worth a line.
func (u *Uploader) loud() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if now := time.Now(); u.said.IsZero() || now.Sub(u.said) >= sayEvery {
		u.said = now
		return true
	}
	return false
}

func (u *Uploader) run(ctx context.Context, j Job) {
	b := retry.Backoff{Min: 500 * time.Millisecond, Max: 30 * time.Second}
	t := try{limit: limit(j.Recording.Bytes)}
	var before uint64
	failed := false
	done := func() { // before anybody is told: the store is not what holds up this job any more
		if failed {
			u.failing.Add(-1)
		}
	}
	for {
		leave, err := u.enter(ctx, t)
		if err != nil { // only ctx ends the wait
			done()
			return
		}
		if !t.again {
			before, _ = u.health()
		}
		r, err := u.try(ctx, j, t)
		leave()
		switch {
		case err == nil:
			j.remove(u.Log)
			done()
			u.succeeded()
			j.Done(r)
			return
		case ctx.Err() != nil:
			done()
			return
		case errors.Is(err, errLost):
			j.remove(u.Log)
			done()
			j.Lost(err)
			return
		}
		if !failed {
			failed = true
			u.failing.Add(1)
		}
		u.retries.Add(1)
		now, woken := u.health()
		// Others came through since this job last saw the store, so it is not the
		// store, and their next success says nothing about this job either.
		t.again, t.suspect, before = true, now != before, now
		if t.suspect {
			woken = nil
		}
		if errors.Is(err, errSlow) {
			t.limit = min(2*t.limit, maxLimit)
		}
		wait := b.Next(0)
		if errors.Is(err, errDamaged) {
			wait = max(wait, damagedWait)
		}
		level := slog.LevelDebug
		if u.loud() {
			level = slog.LevelWarn
		}
		u.Log.Log(ctx, level, "upload failed, will try again until it works", "channel", j.Recording.Channel, "key", j.Recording.Key, "err", err, "wait", wait,
			"failing", u.failing.Load())
		if !pause(ctx, wait, woken) {
			done()
			return
		}
	}
}

// pause waits for d, or until woken is closed. It reports false when ctx ended.
func pause(ctx context.Context, d time.Duration, woken <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-woken:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// try is what the next try of a job is like.
type try struct {
	limit   time.Duration
	again   bool // it is not the first one
	suspect bool // others succeeded since the last one
}

const (
	// baseLimit is what a try may take whatever its size, and slowest the bytes
	// per second of a link that is worth waiting for.
	baseLimit = time.Minute
	slowest   = 64 << 10
	// maxLimit is what a try may take after others ran out of time: for a link of
	// 5 kB/s.
	maxLimit = 30 * time.Minute
)

// limit is how long the first try of an object may take.
func limit(size int64) time.Duration {
	return min(baseLimit+time.Duration(size)*time.Second/slowest, maxLimit)
}

// errSlow: the time was up, and the store may be only slow.
var errSlow = errors.New("it took too long")

// errLost: the file is not what was written, or can never be stored.
var errLost = errors.New("it cannot be stored")

// maxBeside bounds the keys that are tried for a recording whose own is taken.
const maxBeside = 100

// errDamaged: what the store holds under the key is not what it says that it
// holds. Whoever runs the store has to look.
var errDamaged = errors.New("the object in the store is damaged")

// damagedWait is how often a damaged object is looked at again.
const damagedWait = 10 * time.Minute

// enter takes what a try has to have: of the budget when it is a retry, a slot.
func (u *Uploader) enter(ctx context.Context, t try) (leave func(), err error) {
	if t.again && !u.budget.take(ctx) {
		return nil, ctx.Err()
	}
	var taken []chan struct{}
	leave = func() {
		for _, c := range taken {
			<-c
		}
	}
	want := []chan struct{}{u.slots}
	if t.suspect {
		want = []chan struct{}{u.suspect, u.slots} // always in this order
	}
	for _, c := range want {
		select {
		case c <- struct{}{}:
			taken = append(taken, c)
		case <-ctx.Done():
			leave()
			return nil, ctx.Err()
		}
	}
	return leave, nil
}

// try tries once. It has a slot.
func (u *Uploader) try(ctx context.Context, j Job, t try) (r vms.Recording, err error) {
	u.bytes.Add(j.Recording.Bytes)
	defer u.bytes.Add(-j.Recording.Bytes)
	began := time.Now()
	defer func() { u.observe(ctx, began, err) }()
	f, err := os.Open(j.Path)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: its file is gone: %w", errLost, err)
	}
	if err != nil {
		return vms.Recording{}, err
	}
	defer f.Close()
	bytes := io.ReaderAt(f)
	if j.View != nil {
		bytes = j.View(f)
	}
	tctx, cancel := context.WithTimeout(ctx, t.limit)
	defer cancel()
	r, err = u.place(tctx, j, bytes, t.again)
	if err == nil || ctx.Err() != nil || errors.Is(err, errLost) {
		return r, err
	}
	if tctx.Err() != nil {
		return r, fmt.Errorf("%w, %v: %w", errSlow, t.limit, err)
	}
	if lost := j.verify(bytes); lost != nil {
		err = errors.Join(lost, err)
	}
	return r, err
}

func (u *Uploader) observe(ctx context.Context, began time.Time, err error) {
	result := "ok"
	if err != nil {
		result = "failed"
	}
	if u.seconds != nil && (err == nil || ctx.Err() == nil) { // what was interrupted says nothing
		u.seconds.With(result).Observe(time.Since(began).Seconds())
	}
}

// place puts the recording under its key. When another recording has that, a
// later one by as many microseconds as it takes: a key of the usual form, so
// that it is found and registered like any other.
func (u *Uploader) place(ctx context.Context, j Job, f io.ReaderAt, look bool) (vms.Recording, error) {
	r := j.Recording
	for range maxBeside {
		have, taken, err := u.put(ctx, r, newBody(j.Head, f, r.Bytes), look)
		if err != nil || !taken {
			return r, err
		}
		if have != nil {
			durable, err := u.same(ctx, *have, r)
			if err != nil || durable {
				return *have, err
			}
		}
		if r.Provisional() { // its key says all about it: there is no other
			return r, fmt.Errorf("%w: a stranger's object has the key %s", errLost, r.Key)
		}
		switch {
		case have == nil:
			u.Log.Error("ALARM: an object that is no recording has the key of one; storing beside it", "channel", r.Channel, "key", r.Key)
		case r.Chunks.Contains(have.Chunks):
			// The hub was given up and has come back: the NVR puts the whole recording
			// into the place of what was stored of it.
			u.Log.Info("the whole of a recording is stored beside its beginning", "channel", r.Channel, "key", r.Key, "chunks", r.Chunks.String())
		default:
			// Two different recordings want one key: no code should be able to do this. Keep both.
			u.Log.Error("ALARM: another recording has this key; storing beside it", "channel", r.Channel, "key", r.Key,
				"chunks", r.Chunks.String(), "there", have.Chunks.String())
		}
		r.Start = r.Start.Add(time.Microsecond)
		if !r.Start.Before(r.End) {
			break
		}
		r.Key = vms.RecordingKey(r.Channel, r.Start, r.Number)
	}
	return r, fmt.Errorf("no key is free for recording %s", j.Recording.Key)
}

// put stores r under its key. When that is taken it returns what has it: nil is
// a stranger's object. With look it looks first: the last try may have stored it
// and not heard of that, and a store that is away is found to be so without
// sending it megabytes.
func (u *Uploader) put(ctx context.Context, r vms.Recording, b io.ReadSeeker, look bool) (have *vms.Recording, taken bool, err error) {
	if look {
		have, err := u.stat(ctx, r.Key)
		if !errors.Is(err, vms.ErrNotFound) {
			return have, true, err
		}
	}
	err = u.Store.Put(ctx, r, b)
	if !errors.Is(err, vms.ErrConflict) {
		if err == nil && u.Stored != nil {
			u.Stored(r)
		}
		return nil, false, err
	}
	have, err = u.stat(ctx, r.Key)
	if err != nil {
		return nil, true, fmt.Errorf("look at the object that holds the key: %w", err)
	}
	return have, true, nil
}

// stat returns what an object is, nil for a stranger's.
func (u *Uploader) stat(ctx context.Context, key string) (*vms.Recording, error) {
	have, err := u.Store.Stat(ctx, key)
	switch {
	case errors.Is(err, vms.ErrInvalid):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return &have, nil
}

// same reports whether the object that has the key makes r durable: another
// worker, or an earlier try of ours, stored the same chunks, or more of them.
func (u *Uploader) same(ctx context.Context, have, r vms.Recording) (bool, error) {
	switch {
	case have.SHA256 == r.SHA256 && have.Bytes == r.Bytes:
		return true, nil
	case !have.Chunks.Contains(r.Chunks):
		return false, nil
	case have.Chunks != r.Chunks:
		return true, nil
	}
	// The same chunks as other bytes. A worker of another version may write
	// another head; but it may also be ours, which did not arrive as it was sent,
	// or whose checksum the store says wrong. Only the bytes tell.
	body, err := u.Store.Get(ctx, have.Key)
	if err != nil {
		return false, fmt.Errorf("read the object that holds the key: %w", err)
	}
	defer body.Close()
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(body, have.Bytes+1))
	if err != nil {
		return false, fmt.Errorf("read the object that holds the key: %w", err)
	}
	if [sha256.Size]byte(h.Sum(nil)) == have.SHA256 && n == have.Bytes {
		return true, nil
	}
	u.Log.Error("ALARM: an object's bytes are not those of its checksum; they stay on the hub until it is removed, or the store says it right",
		"channel", r.Channel, "key", r.Key, "bytes", n, "want", have.Bytes)
	return false, fmt.Errorf("%w: %s", errDamaged, have.Key)
}

// verify reports, as errLost, that head and file are not the recording. A disk
// that cannot be read now may be read later: that is another error, and nil here.
func (j *Job) verify(f io.ReaderAt) error {
	h := sha256.New()
	n, err := io.Copy(h, newBody(j.Head, f, j.Recording.Bytes))
	switch {
	case err != nil:
		return nil //nolint:nilerr // see above
	case n != j.Recording.Bytes:
		return fmt.Errorf("%w: %d bytes of %d", errLost, n, j.Recording.Bytes)
	case [sha256.Size]byte(h.Sum(nil)) != j.Recording.SHA256:
		return fmt.Errorf("%w: its checksum has changed", errLost)
	}
	return nil
}
