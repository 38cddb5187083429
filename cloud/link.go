package cloud

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/zipato/vms/cloud/embed"
	"github.com/zipato/vms/cloud/nvrlink"
	"github.com/zipato/vms/pkg/vms"
)

const (
	// clusterKey is what NVR and workers prove to each other that they have.
	clusterKey = "cluster-key"
	// storeAccessKey and storeSecretKey let into the embedded object store.
	storeAccessKey, storeSecretKey = "s3-access-key", "s3-secret-key"
	// Their lengths, in bytes.
	storeAccessLen, storeSecretLen = 10, 20
)

// openClusterKey reads the cluster's key. The NVR makes it where it is not named.
func (c *Cloud) openClusterKey() (err error) {
	switch {
	case c.cfg.ClusterKeyFile != "":
		c.clusterKey, err = readClusterKey(c.cfg.ClusterKeyFile)
	case c.data != nil:
		c.clusterKey, err = c.data.Secret(clusterKey, nvrlink.MinKey)
	default:
		c.clusterKey, err = readClusterKey(filepath.Join(c.cfg.Data, clusterKey))
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("a worker alone needs the key of its cluster: bring the file %s from the data directory of the NVR, and name it in -cluster-key-file (VMS_CLUSTER_KEY_FILE): %w", clusterKey, err)
		}
	}
	return err
}

// readClusterKey reads a key that may be longer than one of ours.
func readClusterKey(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("cluster key: %w", err)
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || nvrlink.CheckKey(key) != nil {
		return nil, fmt.Errorf("%w: the cluster key file %s: want %d or more hexadecimal digits, such as `openssl rand -hex %d` makes", vms.ErrInvalid, path, 2*nvrlink.MinKey, nvrlink.MinKey)
	}
	return key, nil
}

// findStoreKeys reads the keys of an embedded object store on this machine from
// the data directory of its NVR, if it is there and nothing else is named.
func (c *Config) findStoreKeys() error {
	if c.S3.AccessKey != "" || c.S3.SecretKey != "" {
		return nil
	}
	access, err := embed.ReadSecret(c.Data, storeAccessKey, storeAccessLen)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	secret, err := embed.ReadSecret(c.Data, storeSecretKey, storeSecretLen)
	if err != nil {
		return err
	}
	c.S3.AccessKey, c.S3.SecretKey = hex.EncodeToString(access), hex.EncodeToString(secret)
	return nil
}

// openLink makes the line of a worker alone to its NVR, which Run connects.
func (c *Cloud) openLink(info vms.WorkerInfo) (err error) {
	c.link, err = nvrlink.NewClient(nvrlink.ClientConfig{
		URL: c.cfg.NVRURL, Key: c.clusterKey, Info: info, Log: c.log,
		Load:     c.load, // the worker is made after this, and nothing is called before Run
		OnUp:     func(ctx context.Context) { c.worker.Relinked(ctx) },
		OnRevoke: func(sids []vms.SID) { c.worker.Revoke(sids) },
		OnMoved:  func(ch vms.ChannelID, liveURL string) { c.worker.Moved(ch, liveURL) },
		OnDrain:  c.orderDrain,
		OnKeys: func(keys []ed25519.PublicKey) {
			if err := c.tickets.use(keys); err != nil {
				c.log.Error("the NVR sent keys of tickets that are none", "err", err)
			}
		},
	})
	return err
}

// linked says that there is no line to the NVR.
func (c *Cloud) linked(context.Context) error {
	if c.link.Up() {
		return nil
	}
	host := ""
	if u, err := url.Parse(c.cfg.NVRURL); err == nil {
		host = u.Host
	}
	return fmt.Errorf("no link to the NVR at %s; the log says why", host)
}
