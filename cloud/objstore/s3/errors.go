package s3

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/minio/minio-go/v7"

	"github.com/zipato/vms/cloud/objstore"
	"github.com/zipato/vms/pkg/vms"
)

// classify turns what minio-go returned into the errors of objstore. ctx is
// the caller's context, wctx the one that the watchdog may have ended.
func classify(ctx, wctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil: // the caller was told to stop; whatever came of it
		return ctx.Err()
	case wctx.Err() != nil:
		return fmt.Errorf("%w: %w", context.Cause(wctx), vms.ErrUnavailable)
	}
	if r := (minio.ErrorResponse{}); errors.As(err, &r) {
		return fmt.Errorf("%w: %w (%s, HTTP %d)", kind(r), err, r.Code, r.StatusCode)
	}
	// No answer, or half of one: refused, reset, timed out, cut.
	return fmt.Errorf("%w: %w", vms.ErrUnavailable, err)
}

// kind decides by the code, and where stores differ in codes, by the status.
func kind(r minio.ErrorResponse) error {
	switch r.Code {
	case minio.NoSuchKey:
		return vms.ErrNotFound
	case minio.NoSuchBucket, // an operator's matter, and it must not pass for a missing object
		"RequestTimeTooSkewed", // our clock or theirs: comes right with time
		"RequestTimeout", "OperationAborted", "ConditionalRequestConflict",
		minio.NoSuchUpload: // completed or aborted by somebody: the next try will see
		return vms.ErrUnavailable
	case "BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "IncompleteBody":
		return objstore.ErrChecksum
	}
	switch r.StatusCode {
	case http.StatusNotFound:
		return vms.ErrNotFound
	case http.StatusPreconditionFailed:
		return objstore.ErrExists
	case http.StatusUnauthorized, http.StatusForbidden:
		return vms.ErrForbidden
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusConflict:
		return vms.ErrUnavailable
	case http.StatusNotImplemented:
		return vms.ErrInvalid
	}
	if 400 <= r.StatusCode && r.StatusCode < 500 {
		return vms.ErrInvalid
	}
	return vms.ErrUnavailable
}
