package cloud

import (
	"crypto/ed25519"
	"net"

	"github.com/zipato/vms/cloud/auth"
	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/cloud/nvrlink"
	"github.com/zipato/vms/cloud/session"
	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

const (
	// demoAccount owns everything until accounts can be made.
	demoAccount = vms.AccountID("acct_demo")
	// chunkMS is the media time of a chunk, milliseconds.
	chunkMS = 200
)

// origins are the pages that may read recordings.
func (c *Cloud) origins() []string {
	_, port, err := net.SplitHostPort(c.listener.Addr().String())
	out := []string{c.URL()}
	if err == nil {
		out = append(out, "http://localhost:"+port, "http://127.0.0.1:"+port)
	}
	return out
}

// openRules makes the NVR, and what hubs and workers reach it by.
func (c *Cloud) openRules() error {
	seed, err := c.data.Secret("signing-key", ed25519.SeedSize)
	if err != nil {
		return err
	}
	secret, err := c.data.Secret("secret-key", 32)
	if err != nil {
		return err
	}
	private := ed25519.NewKeyFromSeed(seed)
	signer, err := token.NewSigner(private)
	if err != nil {
		return err
	}
	keys := []ed25519.PublicKey{private.Public().(ed25519.PublicKey)} // it is one
	if err := c.tickets.use(keys); err != nil {
		return err
	}
	nvrURL, err := c.wsURL("/session/v1")
	if err != nil {
		return err
	}
	c.nvr, err = nvr.New(nvr.Config{
		Store: c.store, Objects: objects{c.objects}, Tokens: signer, SecretKey: secret, NVRURL: nvrURL, Log: c.log,
		ReconcileEvery: c.cfg.ReconcileEvery, UnreachableAfter: c.cfg.UnreachableAfter,
		HubRevoked: c.disconnect, Broker: c.broker,
		Retention: nvr.Retention{Age: c.cfg.RetentionAge, Bytes: c.cfg.RetentionBytes},
		Segment:   wire.SegmentOptions{RecordingMS: c.cfg.Recording.Milliseconds(), ChunkMS: chunkMS},
	})
	if err != nil {
		return err
	}
	c.session = session.New(session.Config{NVR: c.nvr, Log: c.log})
	c.workers = nvrlink.NewHandler(nvrlink.HandlerConfig{
		Key: c.clusterKey, NVR: c.nvr, Log: c.log,
		Keys: func() []ed25519.PublicKey { return keys },
	})
	c.fleet = newFleet(c.nvr, c.metrics)
	return nil
}

// openAuth makes the account's token and sessions.
func (c *Cloud) openAuth() error {
	tok, err := auth.LoadToken(c.data.Path("admin-token"))
	if err != nil {
		return err
	}
	c.auth, err = auth.New(auth.Config{
		Account: demoAccount, Token: tok, SessionsFile: c.data.Path("web-sessions.json"),
		Listen: c.listener.Addr().String(), PublicURL: c.cfg.PublicURL, Log: c.log,
	})
	return err
}
