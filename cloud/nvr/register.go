package nvr

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// MaxRecording is the longest recording that is registered. Agents cut at two
// minutes at the latest; what is longer was not stamped by one.
const MaxRecording = time.Hour

// maxSeq is more chunks than an epoch can have, and still a number for SQL and JSON.
const maxSeq = 1 << 53

// prefixes are where recordings, and parts of them, live in the bucket.
var prefixes = []string{"recordings/", "parts/"}

// RecordingUploaded registers what a worker stored and verified, a part as
// well. nil means that all its chunks are registered for good, if not by this
// object then by others, or that it is not wanted any more.
func (n *NVR) RecordingUploaded(ctx context.Context, r vms.Recording) error {
	return n.register(ctx, r)
}

// ObjectCreated registers the object that the bucket tells of, after a look at
// it. Events come late and twice: an object that is not there any more, or
// that is none of ours, is no error.
func (n *NVR) ObjectCreated(ctx context.Context, key string) error {
	ch, ok := vms.KeyChannel(key)
	if !ok {
		return nil
	}
	r, err := n.Objects.Stat(ctx, key)
	switch {
	case errors.Is(err, vms.ErrNotFound):
		return nil
	case errors.Is(err, vms.ErrInvalid):
		n.Log.Error("object is in the place of a recording and is none", "key", key, "err", err)
		return nil
	case err != nil:
		return fmt.Errorf("look at object %s: %w", key, err)
	}
	if r.Key != key || r.Channel != ch {
		n.Log.Error("object's metadata is of another key", "key", key, "metadata_key", r.Key, "channel", r.Channel)
		return nil
	}
	err = n.register(ctx, r)
	if isKind(err, vms.ErrNotFound, vms.ErrInvalid) { // asking again will not help
		n.Log.Error("object cannot be registered", "key", key, "err", err)
		return nil
	}
	return err
}

// Reconcile lists the bucket and registers what no notice told us of.
func (n *NVR) Reconcile(ctx context.Context) error {
	seen, added := 0, 0
	for _, prefix := range prefixes { // wholes first: parts that they supersede are not announced then
		for key, err := range n.Objects.List(ctx, prefix, "") {
			if err != nil {
				return fmt.Errorf("list bucket: %w", err)
			}
			seen++
			known, err := n.Store.HasRecording(ctx, key)
			if err != nil {
				return fmt.Errorf("reconcile %s: %w", key, err)
			}
			if known {
				continue
			}
			if err := n.ObjectCreated(ctx, key); err != nil {
				return fmt.Errorf("reconcile: %w", err)
			}
			added++
		}
	}
	n.Log.Debug("bucket reconciled", "objects", seen, "unknown", added)
	return nil
}

// register is where every notice ends. It may be called any number of times
// for the same object, at once, in any order.
func (n *NVR) register(ctx context.Context, r vms.Recording) error {
	if err := validRecording(&r); err != nil {
		return err
	}
	now := n.now()
	v, err := n.Store.PutRecording(ctx, r, now, n.keep(r, now))
	if err != nil {
		return fmt.Errorf("register %s: %w", r.Key, err)
	}
	if v.Conflict != "" {
		n.Log.Error("recordings of a channel overlap", "channel", r.Channel, "key", r.Key, "other", v.Conflict, "chunks", r.Chunks.String())
	}
	if !v.News {
		return nil
	}
	row, err := n.Store.Channel(ctx, r.Channel)
	if err != nil {
		return nil //nolint:nilerr // it is registered; only nobody can be told
	}
	n.publish(Event{Type: EventRecording, Account: row.Account, Channel: r.Channel, Rec: &r})
	n.tellDurable(r)
	return nil
}

// keepSlack is for the answers that are being written while a recording is
// superseded: their URLs begin to live a little later.
const keepSlack = time.Minute

// keep is for how long the objects of what r supersedes stay: until nobody has
// a URL of them any more, and never longer than retention keeps r itself.
func (n *NVR) keep(r vms.Recording, now time.Time) time.Duration {
	d := n.URLTTL + keepSlack
	if n.Retention.Age > 0 {
		d = min(d, r.End.Add(n.Retention.Age).Sub(now))
	}
	return max(d, 0)
}

// tellDurable lets the agents of a channel free what is in S3, whatever became
// of the worker's ack.
func (n *NVR) tellDurable(r vms.Recording) {
	var links []StreamLink
	n.mu.Lock()
	if st := n.streams[r.Channel]; st != nil {
		for _, ls := range st.sessions {
			if ls.link != nil {
				links = append(links, ls.link)
			}
		}
	}
	n.mu.Unlock()
	for _, l := range links {
		l.Send(&wire.Durable{Ranges: []vms.ChunkRange{r.Chunks}})
	}
}

// validRecording checks that r can be what it says, and brings its times to
// what the store keeps.
func validRecording(r *vms.Recording) error {
	r.Start, r.End = r.Start.UTC().Truncate(time.Microsecond), r.End.UTC().Truncate(time.Microsecond)
	bad := func(format string, args ...any) error {
		return fmt.Errorf("recording %.200q: %w: %s", r.Key, vms.ErrInvalid, fmt.Sprintf(format, args...))
	}
	want := vms.RecordingKey(r.Channel, r.Start, r.Number)
	if r.Provisional() {
		want = vms.PartKey(r.Channel, r.Chunks, r.Number)
	}
	switch {
	case !vms.ValidID(r.Channel):
		return bad("no channel")
	case r.Key != want:
		return bad("its key should be %s", want)
	case r.Chunks.Epoch == 0 || r.Chunks.First == 0 || r.Chunks.First > r.Chunks.Last || r.Chunks.Last > maxSeq:
		return bad("chunks %s", r.Chunks)
	case !r.Start.Before(r.End) || r.End.Sub(r.Start) > MaxRecording:
		return bad("lasts %s", r.End.Sub(r.Start))
	case r.Bytes <= 0 || r.Media < 0 || r.InitLen < 0 || r.HeadLen < r.InitLen || r.HeadLen > r.Bytes:
		return bad("sizes do not fit: %d bytes, head %d, init %d", r.Bytes, r.HeadLen, r.InitLen)
	case r.SHA256 == [32]byte{}:
		return bad("no checksum")
	case len(r.Codecs) > 200:
		return bad("codecs are too long")
	}
	return nil
}

// recordingID names a recording by its key, so that an index that was rebuilt
// from the bucket gives the same ids.
func recordingID(key string) vms.RecordingID {
	sum := sha256.Sum256([]byte(key))
	return vms.RecordingID("rec_" + strings.ToLower(base32.HexEncoding.EncodeToString(sum[:10])))
}
