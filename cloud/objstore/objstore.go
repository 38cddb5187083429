// Package objstore puts, gets, lists and presigns objects, and says what an
// object's metadata holds. An object that Put accepted is durable, whole and
// the one that was meant: the store itself verified its SHA-256.
package objstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

// Errors of a Store, beside vms.ErrNotFound (the store looked, and the key is
// not there), vms.ErrInvalid (the arguments can never work), vms.ErrForbidden
// (the store knows us and says no, or does not know us) and
// vms.ErrUnavailable (out of reach, slow, full or failing: come back later). A
// context that ended is returned as its own error.
var (
	// ErrExists: PutInput.IfAbsent, and the key is taken.
	ErrExists = errors.New("object exists")
	// ErrChecksum: the store received bytes that are not those of
	// PutInput.SHA256, or not PutInput.Size of them. Nothing was stored.
	ErrChecksum = errors.New("checksum mismatch")
	// ErrWrongAnswer: the store says yes, and that it holds something else than
	// it was sent. What is under the key now is not known: look before trusting it.
	ErrWrongAnswer = errors.New("the store's answer is wrong")
)

// MaxPut is the largest object that Put takes.
const MaxPut = 5 << 30

// MetaSHA256 is the metadata key of an object's SHA-256, in hexadecimal, where
// the store itself holds none of the whole object: one that was uploaded in
// parts, or by a program that leaves no checksum. Put adds it where it is
// needed; nobody else may.
const MetaSHA256 = "vms-sha256"

// MinPresign and MaxPresign bound the life of a presigned URL. The upper bound
// is that of signature version 4.
const (
	MinPresign = time.Second
	MaxPresign = 7 * 24 * time.Hour
)

// Store is one bucket. All methods may be called at the same time.
//
// No method waits for ever on a store that stalls: a request that makes no
// progress ends with vms.ErrUnavailable. A Store repeats a request only
// briefly; whoever needs more patience brings its own.
type Store interface {
	// Put stores one object, all of it or nothing. When it returns nil, the object
	// is durable and its SHA-256 was verified on the way. With in.IfAbsent,
	// exactly one of several writers of a key succeeds, the others get
	// ErrExists; also a writer whose earlier try had succeeded unnoticed gets
	// ErrExists, so compare with Stat before calling it a conflict.
	Put(ctx context.Context, key string, in PutInput) error

	// Stat describes an object, or returns vms.ErrNotFound.
	Stat(ctx context.Context, key string) (Object, error)

	// Get opens length bytes of an object from offset on; length -1 means up to
	// the end. A range that ends behind the object is cut; one that begins
	// behind it is vms.ErrInvalid. The caller closes the reader; a Read that
	// ends with io.EOF has delivered everything.
	Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error)

	// Delete removes an object. Removing what is not there is no error.
	Delete(ctx context.Context, key string) error

	// List yields the objects whose key begins with prefix and is greater than
	// startAfter, in the order of the bytes of their keys. Only Key, Size and
	// Modified are filled in. An error is yielded once, as the last pair.
	List(ctx context.Context, prefix, startAfter string) iter.Seq2[Object, error]

	// PresignGet returns a URL that anybody may GET until expires, with Range
	// and from any browser whose origin the bucket allows. A downloadName makes
	// browsers save the object under that name instead of showing it. The
	// object need not exist yet.
	PresignGet(ctx context.Context, key string, expiry time.Duration, downloadName string) (url string, expires time.Time, err error)

	// PresignPut returns a URL that anybody may PUT one object to until
	// expires, with exactly this Content-Type.
	PresignPut(ctx context.Context, key string, expiry time.Duration, contentType string) (url string, expires time.Time, err error)
}

// PutInput is what Put stores.
type PutInput struct {
	// Body is read Size bytes from its start on; on a retry it is read again.
	Body io.ReadSeeker
	Size int64
	// SHA256 is the checksum of the whole body.
	SHA256      [sha256.Size]byte
	ContentType string
	// Metadata keys are lower case [a-z0-9-], values printable ASCII; see
	// CheckMetadata.
	Metadata map[string]string
	// IfAbsent refuses to replace an object.
	IfAbsent bool
}

// Check reports, as vms.ErrInvalid, what no store could accept.
func (in PutInput) Check() error {
	switch {
	case in.Body == nil:
		return fmt.Errorf("no body: %w", vms.ErrInvalid)
	case in.Size < 0 || in.Size > MaxPut:
		return fmt.Errorf("size %d is not between 0 and %d: %w", in.Size, int64(MaxPut), vms.ErrInvalid)
	case in.ContentType == "" || !printable(in.ContentType):
		return fmt.Errorf("content type %q: %w", in.ContentType, vms.ErrInvalid)
	}
	if _, taken := in.Metadata[MetaSHA256]; taken {
		return fmt.Errorf("metadata %s is the store's own: %w", MetaSHA256, vms.ErrInvalid)
	}
	return CheckMetadata(in.Metadata)
}

// Object is what a store tells of an object.
type Object struct {
	Key  string
	Size int64
	// SHA256 is the checksum that the store verified when it took the object;
	// HasSHA256 is false when it knows none (an object of another writer).
	SHA256    [sha256.Size]byte
	HasSHA256 bool
	// Metadata has lower case keys.
	Metadata map[string]string
	Modified time.Time
}

// CheckKey reports, as vms.ErrInvalid, a key that is not safe in every store:
// 1 to 1024 bytes of [A-Za-z0-9/._-] in segments of at most 200, none of them
// empty, "." or "..", the first of them not beginning with a dot.
func CheckKey(key string) error {
	if key == "" || len(key) > 1024 || key[0] == '.' {
		return fmt.Errorf("object key %.64q is empty, too long or hidden: %w", key, vms.ErrInvalid)
	}
	for seg := range strings.SplitSeq(key, "/") {
		if seg == "" || seg == "." || seg == ".." || len(seg) > 200 {
			return fmt.Errorf("object key %.64q has a bad segment: %w", key, vms.ErrInvalid)
		}
		for _, c := range []byte(seg) {
			if !alphanumeric(c) && c != '.' && c != '_' && c != '-' {
				return fmt.Errorf("object key %.64q has a character outside [A-Za-z0-9/._-]: %w", key, vms.ErrInvalid)
			}
		}
	}
	return nil
}

// CheckPresign reports, as vms.ErrInvalid, a life that no URL can have.
func CheckPresign(expiry time.Duration) error {
	if expiry < MinPresign || expiry > MaxPresign {
		return fmt.Errorf("presigned URL for %v, want %v to %v: %w", expiry, MinPresign, MaxPresign, vms.ErrInvalid)
	}
	return nil
}

// maxMetadata is the limit of Amazon S3 for all keys and values together.
const maxMetadata = 2048

// CheckMetadata reports, as vms.ErrInvalid, metadata that would not come back
// as it went: headers lose case, spaces and everything beyond ASCII.
func CheckMetadata(m map[string]string) error {
	n := 0
	for k, v := range m {
		n += len(k) + len(v)
		if k == "" {
			return fmt.Errorf("empty metadata key: %w", vms.ErrInvalid)
		}
		for _, c := range []byte(k) {
			if c != '-' && (!alphanumeric(c) || 'A' <= c && c <= 'Z') {
				return fmt.Errorf("metadata key %.64q has a character outside [a-z0-9-]: %w", k, vms.ErrInvalid)
			}
		}
		if v == "" || !printable(v) {
			return fmt.Errorf("metadata %s is empty or not printable ASCII: %w", k, vms.ErrInvalid)
		}
	}
	if n > maxMetadata {
		return fmt.Errorf("%d bytes of metadata, more than %d: %w", n, maxMetadata, vms.ErrInvalid)
	}
	return nil
}

func alphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

// printable reports whether s survives as the value of an HTTP header.
func printable(s string) bool {
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return strings.TrimSpace(s) == s
}
