// Package s3 is an objstore.Store on a bucket behind the S3 API, by minio-go.
// A Put carries the SHA-256 of what it sends; the store verifies it before it
// says yes, and its answer is compared.
package s3

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/zipato/vms/cloud/objstore"
	"github.com/zipato/vms/pkg/vms"
)

const (
	// DefaultRegion is what stores outside Amazon call themselves.
	DefaultRegion = "us-east-1"
	// DefaultStall is how long a request may make no progress. A store that
	// syncs 64 MiB to a slow disk before it answers needs several seconds.
	DefaultStall = 30 * time.Second

	// tries is how often minio-go sends a request, under a second apart: enough
	// for a connection that the store had closed while it was idle. Longer
	// outages are the caller's to sit out, with its own budget.
	tries = 3
	// listPage is how many keys one request lists, the limit of Amazon S3.
	listPage = 1000
)

// Config says where the bucket is and how to get in.
type Config struct {
	// Endpoint is the http or https URL of the store.
	Endpoint string
	// PublicURL is what browsers and hubs reach the store at; presigned URLs
	// begin with it, and are signed for its host. Empty: Endpoint.
	PublicURL string
	Region    string // empty: DefaultRegion
	Bucket    string
	AccessKey string
	SecretKey string
	// Stall ends a request that makes no progress for so long. Zero: DefaultStall.
	Stall time.Duration
	// Single is the largest object that is sent in one request, in bytes. Zero:
	// DefaultSingle.
	Single int64
}

// Store is an objstore.Store. Close it when it is no longer used.
type Store struct {
	bucket string
	region string
	stall  time.Duration
	single int64

	core      minio.Core    // talks to Endpoint
	signer    *minio.Client // signs for PublicURL, never sends anything
	transport *http.Transport

	// bare: the store keeps no SHA-256 of objects, as it turned out.
	bare atomic.Bool
}

var _ objstore.Store = (*Store)(nil)

// bucketName is the common subset of what stores allow. Dots are left out:
// they break TLS certificates of virtual hosts.
var bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$`)

// New checks cfg and returns the store. It sends nothing.
func New(cfg Config) (*Store, error) {
	if !bucketName.MatchString(cfg.Bucket) {
		return nil, fmt.Errorf("bucket name %q: want 3 to 63 of [a-z0-9-]: %w", cfg.Bucket, vms.ErrInvalid)
	}
	if cfg.AccessKey == "" || cfg.SecretKey == "" {
		return nil, fmt.Errorf("object store without access key or secret key: %w", vms.ErrInvalid)
	}
	if cfg.PublicURL == "" {
		cfg.PublicURL = cfg.Endpoint
	}
	if cfg.Region == "" {
		cfg.Region = DefaultRegion
	}
	if cfg.Stall <= 0 {
		cfg.Stall = DefaultStall
	}
	if cfg.Single <= 0 {
		cfg.Single = DefaultSingle
	}
	dialer := net.Dialer{Timeout: min(10*time.Second, cfg.Stall)}
	s := &Store{
		bucket: cfg.Bucket,
		region: cfg.Region,
		stall:  cfg.Stall,
		single: cfg.Single,
		transport: &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           dialer.DialContext,
			TLSHandshakeTimeout:   10 * time.Second,
			ExpectContinueTimeout: time.Second,
			IdleConnTimeout:       time.Minute,
			MaxIdleConnsPerHost:   16,
			DisableCompression:    true, // bytes and ranges must arrive as they are stored
			// No HTTP/2: one stream for large bodies costs more CPU than a
			// connection each, and one lost segment would hold up all of them.
		},
	}
	creds := credentials.NewStaticV4(cfg.AccessKey, cfg.SecretKey, "")
	client, err := newClient(cfg.Endpoint, cfg.Region, creds, s.transport)
	if err != nil {
		return nil, fmt.Errorf("object store: %w", err)
	}
	s.core = minio.Core{Client: client}
	if s.signer, err = newClient(cfg.PublicURL, cfg.Region, creds, s.transport); err != nil {
		return nil, fmt.Errorf("public address of the object store: %w", err)
	}
	return s, nil
}

func newClient(rawURL, region string, creds *credentials.Credentials, rt http.RoundTripper) (*minio.Client, error) {
	u, err := url.Parse(rawURL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return nil, fmt.Errorf("not an http or https URL: %w", vms.ErrInvalid)
	}
	// A signature covers the whole path, so a prefix that a reverse proxy
	// strips cannot work.
	if u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("URL of %s: want scheme, host and port only: %w", u.Host, vms.ErrInvalid)
	}
	return minio.New(u.Host, &minio.Options{
		Creds:      creds,
		Secure:     u.Scheme == "https",
		Region:     region, // with it, minio-go never asks the store for it
		Transport:  bodyTripper{rt},
		MaxRetries: tries,
	})
}

// Close drops the idle connections. Requests under way go on.
func (s *Store) Close() { s.transport.CloseIdleConnections() }

// EnsureBucket makes the bucket if it is not there.
func (s *Store) EnsureBucket(ctx context.Context) error {
	wctx, dog := watch(ctx, s.stall)
	defer dog.stop()
	ok, err := s.core.BucketExists(wctx, s.bucket)
	if err == nil && !ok {
		dog.pet()
		err = s.core.MakeBucket(wctx, s.bucket, minio.MakeBucketOptions{Region: s.region})
		if minio.ToErrorResponse(err).Code == minio.BucketAlreadyOwnedByYou {
			err = nil // somebody else was faster
		}
	}
	if err != nil {
		return fmt.Errorf("bucket %s: %w", s.bucket, classify(ctx, wctx, err))
	}
	return nil
}

// Stat implements objstore.Store.
func (s *Store) Stat(ctx context.Context, key string) (objstore.Object, error) {
	if err := objstore.CheckKey(key); err != nil {
		return objstore.Object{}, fmt.Errorf("stat object: %w", err)
	}
	wctx, dog := watch(ctx, s.stall)
	defer dog.stop()
	info, err := s.core.StatObject(wctx, s.bucket, key, minio.StatObjectOptions{Checksum: true})
	if err != nil {
		err = classify(ctx, wctx, err)
		if errors.Is(err, vms.ErrNotFound) {
			dog.pet()
			err = s.confirmMissing(ctx, wctx, err)
		}
		return objstore.Object{}, fmt.Errorf("stat object %s: %w", key, err)
	}
	o := objstore.Object{Key: key, Size: info.Size, Modified: info.LastModified.UTC(), Metadata: make(map[string]string, len(info.UserMetadata))}
	for k, v := range info.UserMetadata {
		o.Metadata[strings.ToLower(k)] = v
	}
	o.SHA256, o.HasSHA256 = wholeSum(info.ChecksumSHA256)
	return o, nil
}

// wholeSum reads x-amz-checksum-sha256. A checksum of checksums, as multipart
// uploads have, ends in "-parts" and does not decode.
func wholeSum(header string) (sum [32]byte, ok bool) {
	b, err := base64.StdEncoding.DecodeString(header)
	if err != nil || len(b) != len(sum) {
		return sum, false
	}
	return [32]byte(b), true
}

// confirmMissing keeps a missing bucket from looking like missing objects: the
// answer to HEAD has no body that would tell them apart.
func (s *Store) confirmMissing(ctx, wctx context.Context, missing error) error {
	switch ok, err := s.core.BucketExists(wctx, s.bucket); {
	case err != nil:
		return classify(ctx, wctx, err)
	case !ok:
		return fmt.Errorf("bucket %s does not exist: %w", s.bucket, vms.ErrUnavailable)
	}
	return missing
}

// Get implements objstore.Store.
func (s *Store) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	err := objstore.CheckKey(key)
	var opts minio.GetObjectOptions
	switch {
	case err != nil:
	case offset < 0 || length == 0 || length < -1 || length > objstore.MaxPut:
		err = fmt.Errorf("range of %d bytes from %d: %w", length, offset, vms.ErrInvalid)
	case length > 0:
		err = opts.SetRange(offset, offset+length-1)
	case offset > 0:
		err = opts.SetRange(offset, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("get object: %w", err)
	}
	wctx, dog := watch(ctx, s.stall)
	body, _, _, err := s.core.GetObject(wctx, s.bucket, key, opts)
	if err != nil {
		defer dog.stop()
		return nil, fmt.Errorf("get object %s: %w", key, classify(ctx, wctx, err))
	}
	dog.rest()
	return &getBody{ctx: ctx, wctx: wctx, dog: dog, body: body, key: key}, nil
}

// Delete implements objstore.Store.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := objstore.CheckKey(key); err != nil {
		return fmt.Errorf("delete object: %w", err)
	}
	wctx, dog := watch(ctx, s.stall)
	defer dog.stop()
	err := s.core.RemoveObject(wctx, s.bucket, key, minio.RemoveObjectOptions{})
	if err != nil {
		err = classify(ctx, wctx, err)
		if errors.Is(err, vms.ErrNotFound) {
			return nil
		}
		return fmt.Errorf("delete object %s: %w", key, err)
	}
	return nil
}

// List implements objstore.Store.
func (s *Store) List(ctx context.Context, prefix, startAfter string) iter.Seq2[objstore.Object, error] {
	return func(yield func(objstore.Object, error) bool) {
		wctx, dog := watch(ctx, s.stall)
		defer dog.stop()
		owner := false
		for info := range s.core.ListObjectsIter(wctx, s.bucket, minio.ListObjectsOptions{
			Prefix: prefix, StartAfter: startAfter, Recursive: true, MaxKeys: listPage, FetchOwner: &owner,
		}) {
			if info.Err != nil {
				yield(objstore.Object{}, fmt.Errorf("list objects %s: %w", prefix, classify(ctx, wctx, info.Err)))
				return
			}
			dog.rest() // the caller takes as long as it likes
			if !yield(objstore.Object{Key: info.Key, Size: info.Size, Modified: info.LastModified.UTC()}, nil) {
				return
			}
			dog.pet()
		}
		// minio-go ends the iteration without a word when the context ended.
		if wctx.Err() != nil {
			yield(objstore.Object{}, fmt.Errorf("list objects %s: %w", prefix, classify(ctx, wctx, wctx.Err())))
		}
	}
}
