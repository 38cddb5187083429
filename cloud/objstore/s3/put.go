package s3

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/zipato/vms/cloud/objstore"
	"github.com/zipato/vms/pkg/vms"
)

// DefaultSingle is the largest object that is sent in one request, so that the
// checksum which the store verified is that of the whole object.
const DefaultSingle = 64 << 20

// minPart and maxPart bound what is sent again when a request of a larger object
// fails. Stores want at least 5 MiB, except of the last one, and take at most
// 10,000 parts.
const minPart, maxPart = 5 << 20, 16 << 20

// abortGrace is how long an upload that failed may take to be cleaned up.
const abortGrace = 10 * time.Second

// Put implements objstore.Store.
func (s *Store) Put(ctx context.Context, key string, in objstore.PutInput) error {
	if err := errors.Join(objstore.CheckKey(key), in.Check()); err != nil {
		return fmt.Errorf("put object: %w", err)
	}
	wctx, dog := watch(ctx, s.stall)
	defer dog.stop()
	put := s.putWhole
	if in.Size > s.single {
		put = s.putParts
	}
	if err := put(ctx, wctx, dog, key, in); err != nil {
		return fmt.Errorf("put object %s: %w", key, err)
	}
	return nil
}

// putWhole stores an object in one request, and has the store's answer agree.
func (s *Store) putWhole(ctx, wctx context.Context, dog *watchdog, key string, in objstore.PutInput) error {
	bare := s.bare.Load()
	answer, err := s.putOne(ctx, wctx, dog, key, in, bare)
	if err != nil || agree(answer, in.SHA256) {
		return err
	}
	if answer != "" {
		return fmt.Errorf("the store says that it holds %.100s: %w", answer, objstore.ErrWrongAnswer)
	}
	// No word of a checksum: ask.
	dog.pet()
	info, err := s.core.StatObject(wctx, s.bucket, key, minio.StatObjectOptions{Checksum: true})
	switch {
	case err != nil:
		return fmt.Errorf("look at what was stored: %w", classify(ctx, wctx, err))
	case info.Size != in.Size:
		return fmt.Errorf("the store says that it holds %d bytes of %d: %w", info.Size, in.Size, objstore.ErrWrongAnswer)
	case agree(info.ChecksumSHA256, in.SHA256):
		return nil
	case info.ChecksumSHA256 != "":
		return fmt.Errorf("the store says that it holds %.100s: %w", info.ChecksumSHA256, objstore.ErrWrongAnswer)
	case bare:
		return nil
	}
	// This store keeps no SHA-256. It has verified the one that the signature
	// covers, as every store of signature version 4 has to; what is left to do is
	// that whoever looks at the object later learns it. Objects from now on carry
	// it as metadata; this one, which nobody had before us, is stored again.
	s.bare.Store(true)
	in.IfAbsent = false
	_, err = s.putOne(ctx, wctx, dog, key, in, true)
	return err
}

// agree reports whether the store's checksum is ours.
func agree(answer string, sum [sha256.Size]byte) bool {
	have, ok := wholeSum(answer)
	return ok && have == sum
}

// putOne sends the request that stores a whole object, and returns the checksum
// in the answer, or "".
func (s *Store) putOne(ctx, wctx context.Context, dog *watchdog, key string, in objstore.PutInput, bare bool) (string, error) {
	opts := options(in, bare)
	opts.UserMetadata["X-Amz-Checksum-Sha256"] = base64.StdEncoding.EncodeToString(in.SHA256[:])
	if in.IfAbsent {
		opts.SetMatchETagExcept("*")
	}
	sctx, body := send(wctx, dog, in.Body, 0, in.Size)
	info, err := s.core.PutObject(sctx, s.bucket, key, body, in.Size, "", hex.EncodeToString(in.SHA256[:]), opts)
	if bodyErr := body.finish(); err != nil && bodyErr != nil {
		return "", bodyErr
	}
	if err != nil {
		return "", classify(ctx, wctx, err)
	}
	return info.ChecksumSHA256, nil
}

// options are what an object is stored with. With carry, its metadata say its
// checksum, because the store will not.
func options(in objstore.PutInput, carry bool) minio.PutObjectOptions {
	opts := minio.PutObjectOptions{
		ContentType:  in.ContentType,
		UserMetadata: map[string]string{},
		// Not chunk by chunk: the checksum of the whole body is signed instead.
		// Trailing checksums fail against some stores over plain HTTP.
		DisableContentSha256: true,
	}
	for k, v := range in.Metadata {
		opts.UserMetadata["X-Amz-Meta-"+k] = v
	}
	if carry {
		opts.UserMetadata["X-Amz-Meta-"+objstore.MetaSHA256] = hex.EncodeToString(in.SHA256[:])
	}
	return opts
}

// putParts stores an object that is too large for one request. The checksum
// that the store keeps is then one of the parts' checksums, so the metadata say
// the object's own; that it is, is verified here, in one pass with the parts.
func (s *Store) putParts(ctx, wctx context.Context, dog *watchdog, key string, in objstore.PutInput) (err error) {
	if in.IfAbsent { // before it is sent for nothing
		if err := s.absent(ctx, wctx, dog, key); err != nil {
			return err
		}
	}
	opts := options(in, true)
	opts.UserMetadata["X-Amz-Checksum-Algorithm"] = "SHA256"
	id, err := s.core.NewMultipartUpload(wctx, s.bucket, key, opts)
	if err != nil {
		return fmt.Errorf("begin: %w", classify(ctx, wctx, err))
	}
	defer func() {
		if err != nil { // what is there of it costs money until somebody removes it
			actx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortGrace)
			defer cancel()
			_ = s.core.AbortMultipartUpload(actx, s.bucket, key, id) // AbortStale is the net below
		}
	}()
	parts, composite, err := s.sendParts(ctx, wctx, dog, key, id, in)
	if err != nil {
		return err
	}
	return s.complete(ctx, wctx, dog, key, id, in, parts, composite)
}

// absent returns objstore.ErrExists if the key is taken.
func (s *Store) absent(ctx, wctx context.Context, dog *watchdog, key string) error {
	dog.pet()
	_, err := s.core.StatObject(wctx, s.bucket, key, minio.StatObjectOptions{})
	if err == nil {
		return objstore.ErrExists
	}
	if err = classify(ctx, wctx, err); errors.Is(err, vms.ErrNotFound) {
		return nil
	}
	return err
}

// sendParts sends the parts in order, and returns them with the checksum of
// their checksums.
func (s *Store) sendParts(ctx, wctx context.Context, dog *watchdog, key, id string, in objstore.PutInput) ([]minio.CompletePart, string, error) {
	var parts []minio.CompletePart
	whole, composite := sha256.New(), sha256.New()
	step := min(max(s.single/4, minPart), maxPart)
	for at := int64(0); at < in.Size; at += step {
		size := min(step, in.Size-at)
		dog.rest() // no network in this
		sum, err := sumSection(in.Body, at, size, whole)
		if err != nil {
			return nil, "", err
		}
		if at+size == in.Size && [sha256.Size]byte(whole.Sum(nil)) != in.SHA256 {
			return nil, "", fmt.Errorf("the body is another one: %w", objstore.ErrChecksum)
		}
		composite.Write(sum[:])
		text := base64.StdEncoding.EncodeToString(sum[:])
		number := len(parts) + 1
		sctx, body := send(wctx, dog, in.Body, at, size)
		answer, err := s.core.PutObjectPart(sctx, s.bucket, key, id, number, body, size, minio.PutObjectPartOptions{
			Sha256Hex: hex.EncodeToString(sum[:]), CustomHeader: http.Header{"X-Amz-Checksum-Sha256": {text}}, DisableContentSha256: true,
		})
		if bodyErr := body.finish(); err != nil && bodyErr != nil {
			return nil, "", bodyErr
		}
		if err != nil {
			return nil, "", fmt.Errorf("part %d: %w", number, classify(ctx, wctx, err))
		}
		if answer.ChecksumSHA256 != "" && !agree(answer.ChecksumSHA256, sum) {
			return nil, "", fmt.Errorf("part %d: the store says that it holds %.100s: %w", number, answer.ChecksumSHA256, objstore.ErrWrongAnswer)
		}
		parts = append(parts, minio.CompletePart{PartNumber: number, ETag: answer.ETag, ChecksumSHA256: text})
	}
	return parts, fmt.Sprintf("%s-%d", base64.StdEncoding.EncodeToString(composite.Sum(nil)), len(parts)), nil
}

// sumSection returns the checksum of a section of body, and adds it to whole.
func sumSection(body io.ReadSeeker, at, size int64, whole hash.Hash) (sum [sha256.Size]byte, err error) {
	if _, err := body.Seek(at, io.SeekStart); err != nil {
		return sum, fmt.Errorf("rewind body: %w", err)
	}
	h := sha256.New()
	switch n, err := io.CopyN(io.MultiWriter(h, whole), body, size); {
	case errors.Is(err, io.EOF):
		return sum, fmt.Errorf("body of %d bytes, want more: %w", at+n, objstore.ErrChecksum)
	case err != nil:
		return sum, fmt.Errorf("read body: %w", err)
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// complete makes the parts an object, unless the key is taken.
func (s *Store) complete(ctx, wctx context.Context, dog *watchdog, key, id string, in objstore.PutInput, parts []minio.CompletePart, composite string) error {
	var opts minio.PutObjectOptions
	if in.IfAbsent {
		opts.SetMatchETagExcept("*")
	}
	dog.pet()
	info, err := s.core.CompleteMultipartUpload(wctx, s.bucket, key, id, parts, opts)
	if in.IfAbsent && minio.ToErrorResponse(err).StatusCode == http.StatusNotImplemented {
		// A store that knows no condition here: the time between looking and
		// writing is all that two writers of the same key can meet in.
		if err := s.absent(ctx, wctx, dog, key); err != nil {
			return err
		}
		info, err = s.core.CompleteMultipartUpload(wctx, s.bucket, key, id, parts, minio.PutObjectOptions{})
	}
	if err != nil {
		return fmt.Errorf("complete: %w", classify(ctx, wctx, err))
	}
	answer := info.ChecksumSHA256
	if answer == "" {
		dog.pet()
		have, err := s.core.StatObject(wctx, s.bucket, key, minio.StatObjectOptions{Checksum: true})
		if err != nil {
			return fmt.Errorf("look at what was stored: %w", classify(ctx, wctx, err))
		}
		if have.Size != in.Size {
			return fmt.Errorf("the store says that it holds %d bytes of %d: %w", have.Size, in.Size, objstore.ErrWrongAnswer)
		}
		answer = have.ChecksumSHA256
	}
	// Stores without such a checksum had verified each part.
	if answer != "" && answer != composite && answer != composite[:base64.StdEncoding.EncodedLen(sha256.Size)] {
		return fmt.Errorf("the store says that it holds %.100s, want %s: %w", answer, composite, objstore.ErrWrongAnswer)
	}
	return nil
}

// AbortStale removes what is there of uploads of large objects below prefix
// that began before a time, and returns how many: a process that was killed in
// the middle of one cannot. Stores that list an upload only by its whole key
// (MinIO) remove old ones by themselves.
func (s *Store) AbortStale(ctx context.Context, prefix string, before time.Time) (int, error) {
	wctx, dog := watch(ctx, s.stall)
	defer dog.stop()
	n, key, id := 0, "", ""
	for {
		page, err := s.core.ListMultipartUploads(wctx, s.bucket, prefix, key, id, "", listPage)
		if err != nil {
			return n, fmt.Errorf("list unfinished uploads below %s: %w", prefix, classify(ctx, wctx, err))
		}
		for _, u := range page.Uploads {
			dog.pet()
			if !u.Initiated.Before(before) {
				continue
			}
			if err := s.core.AbortMultipartUpload(wctx, s.bucket, u.Key, u.UploadID); err != nil && minio.ToErrorResponse(err).Code != minio.NoSuchUpload {
				return n, fmt.Errorf("abort unfinished upload of %s: %w", u.Key, classify(ctx, wctx, err))
			}
			n++
		}
		next := page.NextKeyMarker != key || page.NextUploadIDMarker != id // else the store would go round in circles
		if !page.IsTruncated || !next {
			return n, nil
		}
		key, id = page.NextKeyMarker, page.NextUploadIDMarker
		dog.pet()
	}
}
