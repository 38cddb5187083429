package cloud

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/cloud/objstore"
	"github.com/zipato/vms/cloud/worker/upload"
	"github.com/zipato/vms/pkg/vms"
)

// objects is the object store as the NVR sees it.
type objects struct{ objstore.Store }

var _ nvr.Objects = objects{}

// Stat reads a recording's metadata.
func (o objects) Stat(ctx context.Context, key string) (vms.Recording, error) {
	obj, err := o.Store.Stat(ctx, key)
	if err != nil {
		return vms.Recording{}, err
	}
	return objstore.ParseRecording(key, obj)
}

// List yields keys.
func (o objects) List(ctx context.Context, prefix, after string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for obj, err := range o.Store.List(ctx, prefix, after) {
			if !yield(obj.Key, err) {
				return
			}
		}
	}
}

// PresignGet presigns a GET that browsers may also save under a name.
func (o objects) PresignGet(ctx context.Context, key string, expiry time.Duration, name string) (string, time.Time, error) {
	return o.Store.PresignGet(ctx, key, expiry, name)
}

// uploads is the object store as a worker sees it.
type uploads struct{ objstore.Store }

var _ upload.Store = uploads{}

// Put stores a recording under its key, unless the key is taken.
func (u uploads) Put(ctx context.Context, r vms.Recording, body io.ReadSeeker) error {
	err := u.Store.Put(ctx, r.Key, objstore.PutInput{
		Body: body, Size: r.Bytes, SHA256: r.SHA256, ContentType: "video/mp4",
		Metadata: objstore.RecordingMetadata(r), IfAbsent: true,
	})
	if errors.Is(err, objstore.ErrExists) {
		return errors.Join(vms.ErrConflict, err)
	}
	return err
}

// Get opens an object.
func (u uploads) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	return u.Store.Get(ctx, key, 0, -1)
}

// Stat reads a recording's metadata.
func (u uploads) Stat(ctx context.Context, key string) (vms.Recording, error) {
	return objects(u).Stat(ctx, key)
}
