package nvr

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"strings"
	"time"

	"github.com/zipato/vms/pkg/seal"
	"github.com/zipato/vms/pkg/vms"
)

// codeLife is how long an enrolment code can be used.
const codeLife = 15 * time.Minute

// CreateHub registers a hub and returns the code with which the device enrols,
// once, before expires.
func (n *NVR) CreateHub(ctx context.Context, acct vms.AccountID, name string) (h Hub, code string, expires time.Time, err error) {
	if err := validName("name", name); err != nil {
		return Hub{}, "", time.Time{}, err
	}
	h = Hub{ID: vms.NewID[vms.HubID]("hub"), Account: acct, Name: name, CreatedAt: n.now()}
	code, expires = newCode(), h.CreatedAt.Add(codeLife)
	if err := n.Store.CreateHub(ctx, h, hashCode(code), expires); err != nil {
		return Hub{}, "", time.Time{}, fmt.Errorf("create hub: %w", err)
	}
	return h, code, expires, nil
}

// Enroll spends a code and binds the hub to the key that the device made. A
// code that never was, is spent or is too old is vms.ErrUnauthorized, always
// with the same sentence. Attempts are limited over all callers: ten a second
// against 80 random bits are nothing, and the database is not hammered.
func (n *NVR) Enroll(ctx context.Context, code string, pub ed25519.PublicKey, name string) (Enrolment, error) {
	if len(pub) != ed25519.PublicKeySize {
		return Enrolment{}, fieldError("public_key", "must be an Ed25519 key of %d bytes", ed25519.PublicKeySize)
	}
	if name != "" {
		if err := validName("name", name); err != nil {
			return Enrolment{}, err
		}
	}
	if _, err := seal.Seal(pub, "", nil); err != nil { // nothing could ever be said to that hub alone
		return Enrolment{}, fieldError("public_key", "must be an Ed25519 key")
	}
	if !n.enrols.allow() {
		return Enrolment{}, fmt.Errorf("%w: too many enrolments at this moment", vms.ErrUnavailable)
	}
	h, err := n.Store.EnrolHub(ctx, hashCode(code), pub, name, n.now())
	if isKind(err, vms.ErrNotFound, vms.ErrExpired) {
		return Enrolment{}, fmt.Errorf("%w: the enrolment code is wrong, used or expired", vms.ErrUnauthorized)
	}
	if err != nil {
		return Enrolment{}, fmt.Errorf("enrol hub: %w", err)
	}
	n.Log.Info("hub enrolled", "hub", h.ID, "account", h.Account)
	n.tell(h.ID)
	return Enrolment{Hub: h, NVRURL: n.NVRURL, TokenKeys: n.Tokens.JWKS()}, nil
}

// Hubs lists the hubs of an account, oldest first.
func (n *NVR) Hubs(ctx context.Context, acct vms.AccountID, cursor string, limit int) ([]Hub, string, error) {
	after, limit, err := page(cursor, limit)
	if err != nil {
		return nil, "", err
	}
	hubs, err := n.Store.Hubs(ctx, acct, after, limit+1)
	if err != nil {
		return nil, "", fmt.Errorf("list hubs: %w", err)
	}
	next := ""
	if len(hubs) > limit {
		hubs = hubs[:limit]
		next = Cursor{hubs[limit-1].CreatedAt, string(hubs[limit-1].ID)}.String()
	}
	for i := range hubs {
		n.presence(&hubs[i])
	}
	return hubs, next, nil
}

// Hub returns one hub of an account.
func (n *NVR) Hub(ctx context.Context, acct vms.AccountID, id vms.HubID) (Hub, error) {
	h, err := n.Store.Hub(ctx, id)
	if err == nil && (h.Account != acct || !h.RevokedAt.IsZero()) {
		err = vms.ErrNotFound
	}
	if err != nil {
		return Hub{}, fmt.Errorf("hub %s: %w", id, err)
	}
	n.presence(&h)
	return h, nil
}

// UpdateHub changes a hub. It learns of it at once if it is online, else when it
// comes back. Its streams move to workers of its zone by and by.
func (n *NVR) UpdateHub(ctx context.Context, acct vms.AccountID, id vms.HubID, p HubPatch) (Hub, error) {
	var before Hub
	h, err := n.Store.UpdateHub(ctx, acct, id, n.now(), func(h *Hub) error {
		before = *h
		set(&h.Name, p.Name)
		set(&h.TimeZone, p.TimeZone)
		set(&h.Limits.Uplink, p.Uplink)
		set(&h.Zone, p.Zone)
		if err := validName("name", h.Name); err != nil {
			return err
		}
		if err := validUplink(h.Limits.Uplink); err != nil {
			return err
		}
		if h.Zone != "" && !vms.ValidID(h.Zone) {
			return fieldError("zone", "must be 1 to 64 of a-z, 0-9, - and _, or empty")
		}
		return validZone(h.TimeZone)
	})
	if err != nil {
		return Hub{}, fmt.Errorf("update hub %s: %w", id, err)
	}
	if before.Zone != h.Zone {
		n.rezone(id, h.Zone)
	}
	if changed, _ := HubEffectsOf(before, h); changed {
		n.tell(id)
	}
	n.presence(&h)
	return h, nil
}

// RevokeHub ends a hub for good: its key opens nothing any more and its
// connections are closed.
func (n *NVR) RevokeHub(ctx context.Context, acct vms.AccountID, id vms.HubID) error {
	sids, err := n.Store.RevokeHub(ctx, acct, id, n.now())
	if err != nil {
		return fmt.Errorf("revoke hub %s: %w", id, err)
	}
	n.revokeLive(sids, "the hub was revoked")
	if link := n.forgetHub(id); link != nil {
		link.Revoke("the hub was revoked")
	}
	if n.HubRevoked != nil {
		n.HubRevoked(id)
	}
	n.tell(id) // what was published for it is to be cleared
	n.Log.Info("hub revoked", "hub", id, "account", acct)
	return nil
}

// newCode returns 80 random bits for people to type: four groups of four of
// the alphabet without i, l, o and u.
func newCode() string {
	_, s, _ := strings.Cut(strings.ToUpper(vms.NewID[string]("")), "_")
	return s[0:4] + "-" + s[4:8] + "-" + s[8:12] + "-" + s[12:16]
}

// hashCode reads a code as people type it. 80 random bits need no salt and no
// slow hash.
func hashCode(code string) CodeHash {
	code = strings.NewReplacer("-", "", " ", "", "o", "0", "i", "1", "l", "1").Replace(strings.ToLower(code))
	return sha256.Sum256([]byte("vms enrolment code\n" + code))
}

// page reads what every list takes.
func page(cursor string, limit int) (Cursor, int, error) {
	after, err := parseCursor(cursor)
	if err != nil {
		return Cursor{}, 0, err
	}
	limit, err = checkLimit(limit)
	return after, limit, err
}
