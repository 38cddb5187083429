package cloud

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/zipato/vms/cloud/bucketevents"
	"github.com/zipato/vms/cloud/bucketevents/inproc"
	"github.com/zipato/vms/cloud/embed"
	"github.com/zipato/vms/cloud/objstore/rclone"
	"github.com/zipato/vms/cloud/objstore/s3"
	"github.com/zipato/vms/pkg/retry"
	"github.com/zipato/vms/pkg/vms"
)

// bucket is the embedded store's, and that of another one unless it is named.
const bucket = "vms-recordings"

// openObjects makes the client of the object store, which need not answer yet.
func (c *Cloud) openObjects(ctx context.Context) error {
	if c.cfg.Roles.Has(RoleNVR) {
		c.events = inproc.New(inproc.Options{Log: c.log, OnOverflow: c.reconcileSoon})
	}
	cfg := s3.Config{
		Endpoint: c.cfg.S3.URL, Region: c.cfg.S3.Region, Bucket: cmp.Or(c.cfg.S3.Bucket, bucket),
		AccessKey: c.cfg.S3.AccessKey, SecretKey: c.cfg.S3.SecretKey,
	}
	if cfg.Endpoint == "" {
		var err error
		if cfg, err = c.startS3(ctx); err != nil {
			return err
		}
	}
	cfg.PublicURL = c.cfg.S3PublicURL
	var err error
	if c.client, err = s3.New(cfg); err != nil {
		return err
	}
	c.objects = c.client
	if c.cfg.WrapObjects != nil {
		c.objects = c.cfg.WrapObjects(c.client)
	}
	c.uploads = c.objects
	if c.cfg.Uploader != UploaderRclone || !c.cfg.Roles.Has(RoleWorker) {
		return nil
	}
	c.rclone, err = rclone.New(ctx, rclone.Config{
		Store: c.objects, Program: c.cfg.RcloneProgram, Remote: c.cfg.RcloneRemote, Bucket: cfg.Bucket, Dir: c.workerDir(), Log: c.log,
		S3: rclone.S3{Endpoint: cfg.Endpoint, Region: cfg.Region, AccessKey: cfg.AccessKey, SecretKey: cfg.SecretKey},
	})
	c.uploads = c.rclone
	return err
}

// workerDir is where unfinished recordings are.
func (c *Cloud) workerDir() string {
	if c.cfg.WorkerDir != "" {
		return c.cfg.WorkerDir
	}
	return c.data.Path("worker")
}

// staleUpload is how old the upload of a large object is that nobody can be
// working on any more: no try takes longer than half an hour.
const staleUpload = 24 * time.Hour

// abortStale removes, once, what killed processes left of such uploads.
func (c *Cloud) abortStale(ctx context.Context) error {
	for _, prefix := range []string{"recordings/", "parts/"} {
		b := retry.Backoff{Min: 10 * time.Second, Max: 10 * time.Minute}
		for {
			n, err := c.client.AbortStale(ctx, prefix, time.Now().Add(-staleUpload))
			if n > 0 {
				c.log.Info("removed unfinished uploads", "prefix", prefix, "uploads", n)
			}
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				return nil
			}
			c.log.Debug("cannot look for unfinished uploads", "prefix", prefix, "err", err)
			if !errors.Is(err, vms.ErrUnavailable) || !retry.Sleep(ctx, b.Next(0)) {
				return nil // the store cannot, or does not let us
			}
		}
	}
	return nil
}

// startS3 starts the embedded store, and says how to get in.
func (c *Cloud) startS3(ctx context.Context) (s3.Config, error) {
	key, err := c.data.SecretText(storeAccessKey, storeAccessLen)
	if err != nil {
		return s3.Config{}, err
	}
	secret, err := c.data.SecretText(storeSecretKey, storeSecretLen)
	if err != nil {
		return s3.Config{}, err
	}
	c.s3, err = embed.StartS3(ctx, embed.S3Config{
		Dir: c.data.Path("s3"), Addr: c.cfg.S3Listen, AccessKey: key, SecretKey: secret, Bucket: bucket,
		AllowOrigins: c.origins(), Log: c.log,
		OnCreated: func(key string) { c.events.Publish(bucketevents.Event{Bucket: bucket, Key: key}) },
	})
	if err != nil {
		return s3.Config{}, err
	}
	return s3.Config{Endpoint: c.s3.URL(), Bucket: bucket, AccessKey: key, SecretKey: secret}, nil
}

// reconcileSoon lists the bucket because events were dropped.
func (c *Cloud) reconcileSoon() {
	c.log.Warn("object events were dropped; the bucket will be listed")
	select {
	case c.list <- struct{}{}:
	default: // it will be already
	}
}

// reconcileLoop lists the bucket whenever events were dropped, beside the NVR's own turns.
func (c *Cloud) reconcileLoop(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.list:
			if err := c.nvr.Reconcile(ctx); err != nil && ctx.Err() == nil {
				c.log.Error("cannot list the bucket; its next turn will", "err", err)
			}
		}
	}
}
