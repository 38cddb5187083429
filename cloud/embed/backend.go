package embed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/versity/versitygw/backend"
	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/s3api/middlewares"
	"github.com/versity/versitygw/s3err"
	"github.com/versity/versitygw/s3response"
)

// durable is versitygw's file system backend with the three things it lacks: it
// refuses a body that ended too early, it syncs what it stored or removed before
// it says yes, and it tells when an object was created.
//
// The order of a PutObject is: data synced in an unnamed file, each metadata
// file synced and renamed, the data linked to its name, directories synced. So
// an object that is visible is whole and has its metadata, also after a power
// cut, and one that was acknowledged is visible.
type durable struct {
	*posix.Posix
	objects string // absolute: bucket/key
	meta    string // absolute: bucket/key/meta/attribute
	created func(bucket, key string)
}

var _ backend.Backend = (*durable)(nil)

// newDurable makes the backend. It changes the working directory of the
// process to objects: versitygw addresses files relative to it.
func newDurable(objects, metaDir string, created func(bucket, key string)) (*durable, error) {
	sidecar, err := meta.NewSideCar(metaDir)
	if err != nil {
		return nil, fmt.Errorf("metadata directory: %w", err)
	}
	opts := posix.PosixOpts{
		CopyObjectThreshold: 5 << 30, // the limit of Amazon S3; zero would refuse every copy
		Concurrency:         maxConns,
		ForceNoObjLockFile:  true, // the data directory's lock keeps other processes out
		ValidateBucketNames: true,
	}
	opts.SetNewDirPerm(0o700)
	opts.SetNewFilePerm(0o600)
	p, err := posix.New(objects, &syncedSidecar{SideCar: sidecar, dir: metaDir, objects: objects, since: time.Now()}, opts)
	if err != nil {
		return nil, fmt.Errorf("object directory: %w", err)
	}
	return &durable{Posix: p, objects: objects, meta: metaDir, created: created}, nil
}

// wholeBody is a request's body that must have the length it was announced
// with. The library below takes a connection that closed in the middle for the
// body's end: without this, the object of a worker that was killed in the middle
// of an upload would be half of it.
type wholeBody struct {
	io.Reader
	left int64 // bytes
}

func (b *wholeBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	b.left -= int64(n)
	if b.left < 0 || err == io.EOF && b.left != 0 { //nolint:errorlint // a reader's io.EOF is never wrapped
		return n, s3err.GetAPIError(s3err.ErrIncompleteBody)
	}
	return n, err
}

// requireWhole returns body as one that must have length bytes. The library
// looks for a checksum behind the body by its type, so that must remain.
func requireWhole(body io.Reader, length *int64) io.Reader {
	if body == nil || length == nil {
		return body
	}
	whole := &wholeBody{Reader: body, left: *length}
	sums, ok := body.(middlewares.ChecksumReader)
	if !ok {
		return whole
	}
	return struct {
		io.Reader
		checksum
	}{whole, sums}
}

type checksum interface {
	Algorithm() string
	Checksum() string
}

// PutObject stores an object, syncs it and tells that it is there.
func (d *durable) PutObject(ctx context.Context, in s3response.PutObjectInput) (s3response.PutObjectOutput, error) {
	in.Body = requireWhole(in.Body, in.ContentLength)
	out, err := d.PutObjectWithPostFunc(ctx, in, (*os.File).Sync)
	bucket, key := deref(in.Bucket), deref(in.Key)
	if err != nil {
		drain(in.Body)
		// "The object exists" is an answer that somebody may forget the
		// original on, and the writer who made it may not have synced yet.
		if s, ok := errors.AsType[s3err.S3Error](err); ok && s.BaseError().Code == "PreconditionFailed" {
			if serr := d.syncNames(bucket, key); serr != nil {
				return s3response.PutObjectOutput{}, serr
			}
		}
		return out, err
	}
	if err := d.syncNames(bucket, key); err != nil {
		return s3response.PutObjectOutput{}, err
	}
	d.created(bucket, key)
	return out, nil
}

// UploadPart stores a part of an object to come, whole or not at all.
func (d *durable) UploadPart(ctx context.Context, in *awss3.UploadPartInput) (*awss3.UploadPartOutput, error) {
	in.Body = requireWhole(in.Body, in.ContentLength)
	out, err := d.UploadPartWithPostFunc(ctx, in, (*os.File).Sync)
	if err != nil {
		drain(in.Body)
	}
	return out, err
}

// drain takes the rest of a request that was refused. Else the connection would
// be closed on a sender who has more to send, and who would not get to read why.
func drain(body io.Reader) {
	if body != nil {
		_, _ = io.Copy(io.Discard, body)
	}
}

// CompleteMultipartUpload does for an object made of parts what PutObject does.
func (d *durable) CompleteMultipartUpload(ctx context.Context, in *awss3.CompleteMultipartUploadInput) (s3response.CompleteMultipartUploadResult, string, error) {
	out, version, err := d.Posix.CompleteMultipartUpload(ctx, in)
	if err != nil {
		return out, version, err
	}
	if err := d.syncObject(deref(in.Bucket), deref(in.Key)); err != nil {
		return s3response.CompleteMultipartUploadResult{}, "", err
	}
	d.created(deref(in.Bucket), deref(in.Key))
	return out, version, nil
}

// CopyObject does for a copy what PutObject does.
func (d *durable) CopyObject(ctx context.Context, in s3response.CopyObjectInput) (s3response.CopyObjectOutput, error) {
	out, err := d.Posix.CopyObject(ctx, in)
	if err != nil {
		return out, err
	}
	if err := d.syncObject(deref(in.Bucket), deref(in.Key)); err != nil {
		return s3response.CopyObjectOutput{}, err
	}
	d.created(deref(in.Bucket), deref(in.Key))
	return out, nil
}

// DeleteObject removes an object for good: it must not be back after a power
// cut, when nobody remembers any more that it was to go.
func (d *durable) DeleteObject(ctx context.Context, in *awss3.DeleteObjectInput) (*awss3.DeleteObjectOutput, error) {
	out, err := d.Posix.DeleteObject(ctx, in)
	if err != nil {
		return out, err
	}
	if err := d.syncNames(deref(in.Bucket), deref(in.Key)); err != nil {
		return nil, err
	}
	return out, nil
}

// DeleteObjects does for many objects what DeleteObject does for one.
func (d *durable) DeleteObjects(ctx context.Context, in *awss3.DeleteObjectsInput) (s3response.DeleteResult, error) {
	out, err := d.Posix.DeleteObjects(ctx, in)
	if err != nil {
		return out, err
	}
	for _, o := range out.Deleted {
		if err := d.syncNames(deref(in.Bucket), deref(o.Key)); err != nil {
			return s3response.DeleteResult{}, err
		}
	}
	return out, nil
}

// syncObject syncs an object that versitygw wrote without telling us before it
// linked it: its data, then its names.
func (d *durable) syncObject(bucket, key string) error {
	f, err := os.Open(filepath.Join(d.objects, bucket, filepath.FromSlash(key)))
	if err != nil {
		return fmt.Errorf("sync object: %w", err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync object: %w", err)
	}
	return d.syncNames(bucket, key)
}

// syncNames syncs every directory on the way to an object and to its metadata,
// from the leaf up. Directories that did not change cost nothing; those that
// are gone left a change in their parent.
func (d *durable) syncNames(bucket, key string) error {
	path := filepath.Join(bucket, filepath.FromSlash(key))
	for root, leaf := range map[string]string{
		d.meta:    filepath.Join(d.meta, path, sidecarDir),
		d.objects: filepath.Dir(filepath.Join(d.objects, path)),
	} {
		for dir := leaf; ; dir = filepath.Dir(dir) {
			if err := syncDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("sync directory of object: %w", err)
			}
			if len(dir) <= len(root) {
				break
			}
		}
	}
	return nil
}

// sidecarDir is the folder, below the path of an object, that meta.SideCar
// keeps the object's attributes in.
const sidecarDir = "meta"

// syncedSidecar writes attributes where meta.SideCar reads them, synced.
type syncedSidecar struct {
	meta.SideCar
	dir     string
	objects string
	since   time.Time // when this process began to write
}

var _ meta.MetadataStorer = (*syncedSidecar)(nil)

// etag is the attribute by which versitygw tells whether a key is taken.
const etag = "etag"

// RetrieveAttribute implements meta.MetadataStorer. A process that was killed
// between the attributes of an object and its name has left an etag of nothing:
// with it, no conditional write of that key would ever succeed. One that is being
// written now is another matter: it takes the key.
func (s *syncedSidecar) RetrieveAttribute(f *os.File, bucket, object, attribute string) ([]byte, error) {
	value, err := s.SideCar.RetrieveAttribute(f, bucket, object, attribute)
	if err != nil || attribute != etag || object == "" {
		return value, err
	}
	if _, err := os.Lstat(filepath.Join(s.objects, bucket, object)); !errors.Is(err, fs.ErrNotExist) {
		return value, nil
	}
	if info, err := os.Stat(filepath.Join(s.dir, bucket, object, sidecarDir, etag)); err == nil && info.ModTime().Before(s.since) {
		return nil, meta.ErrNoSuchKey
	}
	return value, nil
}

// StoreAttribute implements meta.MetadataStorer.
func (s *syncedSidecar) StoreAttribute(_ *os.File, bucket, object, attribute string, value []byte) error {
	dir := filepath.Join(s.dir, bucket, object, sidecarDir)
	if object == "" {
		// The bucket's own are written at every start. On a disk that is full
		// that would fail, and nobody could start to make room.
		if have, err := os.ReadFile(filepath.Join(dir, attribute)); err == nil && bytes.Equal(have, value) {
			return nil
		}
	}
	err := store(dir, attribute, value)
	// A deletion next door removes empty directories, perhaps the one we just
	// made. It can do so only a few times.
	for range 3 {
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
		err = store(dir, attribute, value)
	}
	switch {
	case errors.Is(err, syscall.ENOSPC):
		return s3err.GetAPIError(s3err.ErrNoSpaceLeftOnDevice)
	case errors.Is(err, syscall.EDQUOT):
		return s3err.GetAPIError(s3err.ErrQuotaExceeded)
	case err != nil:
		return fmt.Errorf("store attribute %s: %w", attribute, err)
	}
	return nil
}

func store(dir, attribute string, value []byte) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return writeFileDurably(filepath.Join(dir, attribute), value)
}

// deref copies a string of a request: the original lies in a buffer that the
// next request on the connection overwrites.
func deref(s *string) string {
	if s == nil {
		return ""
	}
	return strings.Clone(*s)
}
