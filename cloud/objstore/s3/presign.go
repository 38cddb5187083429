package s3

import (
	"context"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/zipato/vms/cloud/objstore"
	"github.com/zipato/vms/pkg/vms"
)

// maxDownloadName is what file systems take for one name.
const maxDownloadName = 255

// PresignGet implements objstore.Store. It asks nobody: the signature is
// computed here.
func (s *Store) PresignGet(ctx context.Context, key string, expiry time.Duration, downloadName string) (string, time.Time, error) {
	params := url.Values{}
	if downloadName != "" {
		disposition := mime.FormatMediaType("attachment", map[string]string{"filename": downloadName})
		if disposition == "" || len(downloadName) > maxDownloadName {
			return "", time.Time{}, fmt.Errorf("download name %.80q: %w", downloadName, vms.ErrInvalid)
		}
		params.Set("response-content-disposition", disposition)
	}
	return s.presign(ctx, http.MethodGet, key, expiry, params, nil)
}

// PresignPut implements objstore.Store. The content type is part of the
// signature.
func (s *Store) PresignPut(ctx context.Context, key string, expiry time.Duration, contentType string) (string, time.Time, error) {
	if _, _, err := mime.ParseMediaType(contentType); err != nil {
		return "", time.Time{}, fmt.Errorf("content type %.80q: %w: %w", contentType, err, vms.ErrInvalid)
	}
	return s.presign(ctx, http.MethodPut, key, expiry, nil, http.Header{"Content-Type": {contentType}})
}

func (s *Store) presign(ctx context.Context, method, key string, expiry time.Duration, params url.Values, header http.Header) (string, time.Time, error) {
	if err := errors.Join(objstore.CheckKey(key), objstore.CheckPresign(expiry)); err != nil {
		return "", time.Time{}, fmt.Errorf("presign: %w", err)
	}
	u, err := s.signer.PresignHeader(ctx, method, s.bucket, key, expiry, params, header)
	if err != nil {
		return "", time.Time{}, fmt.Errorf("presign %s of %s: %w", method, key, err)
	}
	expires, err := expiresAt(u.Query())
	if err != nil {
		return "", time.Time{}, fmt.Errorf("presign %s of %s: %w", method, key, err)
	}
	return u.String(), expires, nil
}

// expiresAt reads from the signed parameters when the store will refuse the
// URL: both are in whole seconds, so it is not just now plus expiry.
func expiresAt(q url.Values) (time.Time, error) {
	at, err := time.Parse("20060102T150405Z", q.Get("X-Amz-Date"))
	if err != nil {
		return time.Time{}, fmt.Errorf("date of the signature: %w", err)
	}
	life, err := strconv.ParseInt(q.Get("X-Amz-Expires"), 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("life of the signature: %w", err)
	}
	return at.Add(time.Duration(life) * time.Second), nil
}
