package nvr

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// Handshake is what a hub brings when it wants to open a session.
type Handshake struct {
	Proof wire.Proof
	// Host is the name under which the hub dialled us.
	Host string
	// SID is empty on the control line.
	SID vms.SID
	// Token may be empty when the session is this hub's already.
	Token string
}

// Nonce returns a challenge. It is good once, for a minute.
func (n *NVR) Nonce() string { return n.nonces.issue() }

// CheckHandshake lets a hub in or says why not, with a *Refusal, before any
// connection is upgraded. Any other error means "try again".
//
// The proof is what counts: a session that is this hub's and not revoked needs
// no token, so an expired token is renewed by the key alone and a hub that was
// away for months records again. A session that is nobody's yet needs a token,
// and is this hub's from then on.
func (n *NVR) CheckHandshake(ctx context.Context, h Handshake) (Session, error) {
	hub, err := n.checkProof(ctx, h)
	if err != nil {
		return Session{}, err
	}
	if h.SID == "" {
		return Session{Account: hub.Account, Hub: hub.ID, State: SessionOpen}, nil
	}
	s, err := n.checkSession(ctx, hub, h)
	if err != nil {
		return Session{}, err
	}
	s.Zone = hub.Zone
	return s, nil
}

// checkProof finds out who is there.
func (n *NVR) checkProof(ctx context.Context, h Handshake) (Hub, error) {
	if !n.nonces.genuine(h.Proof.Nonce) {
		return Hub{}, refuse(wire.ProblemNonce, vms.ErrUnauthorized, "Prove that you have the hub's key, with the nonce of this answer.")
	}
	if !slices.Contains(n.Hosts, canonicalHost(h.Host)) {
		return Hub{}, refuse(wire.ProblemProof, vms.ErrUnauthorized, "This NVR is not known under the host name of the request.")
	}
	hub, err := n.Store.Hub(ctx, h.Proof.Hub)
	switch {
	case errors.Is(err, vms.ErrNotFound):
		return Hub{}, refuse(wire.ProblemHubUnknown, vms.ErrForbidden, "No such hub is registered here.")
	case err != nil:
		return Hub{}, fmt.Errorf("hub %s: %w", h.Proof.Hub, err)
	case !hub.RevokedAt.IsZero():
		// The key went with the revocation, so that there is nothing to prove.
		return Hub{}, refuse(wire.ProblemRevoked, vms.ErrRevoked, "This hub was revoked.")
	case !h.Proof.Verify(hub.PublicKey, h.Host, h.SID):
		return Hub{}, refuse(wire.ProblemProof, vms.ErrUnauthorized, "The signature is not the hub's.")
	case !n.nonces.spend(h.Proof.Nonce):
		return Hub{}, refuse(wire.ProblemNonce, vms.ErrUnauthorized, "This nonce was used before.")
	}
	return hub, nil
}

// checkSession finds out whether hub may open session h.SID.
func (n *NVR) checkSession(ctx context.Context, hub Hub, h Handshake) (Session, error) {
	s, err := n.Store.Session(ctx, h.SID)
	found := err == nil
	if err != nil && !errors.Is(err, vms.ErrNotFound) {
		return Session{}, fmt.Errorf("session %s: %w", h.SID, err)
	}
	mismatch := refuse(wire.ProblemHubMismatch, vms.ErrForbidden, "This session is another hub's.")
	revoked := refuse(wire.ProblemRevoked, vms.ErrRevoked, "This session was revoked.")
	switch {
	case found && s.Account != hub.Account:
		return Session{}, mismatch // also to a revoked one: another account's is none of its business
	case found && s.State == SessionRevoked:
		return Session{}, revoked
	case found && s.Hub == hub.ID:
		return s, nil
	case found && s.Hub != "":
		return Session{}, mismatch
	}
	if h.Token != "" || found {
		if err := n.checkToken(hub, h, s, found); err != nil {
			return Session{}, err
		}
	}
	if !found {
		return Session{}, refuse(wire.ProblemSIDUnknown, vms.ErrNotFound, "No such session.")
	}
	s, err = n.Store.BindSession(ctx, h.SID, hub.ID)
	switch {
	case errors.Is(err, vms.ErrConflict): // somebody was faster
		return Session{}, mismatch
	case errors.Is(err, vms.ErrNotFound):
		return Session{}, revoked
	case err != nil:
		return Session{}, fmt.Errorf("bind session %s: %w", h.SID, err)
	}
	return s, nil
}

// checkToken reads the token of a session that is nobody's yet.
func (n *NVR) checkToken(hub Hub, h Handshake, s Session, found bool) error {
	invalid := func(detail string) error {
		return refuse(wire.ProblemTokenInvalid, vms.ErrUnauthorized, "%s", detail)
	}
	if h.Token == "" {
		return invalid("This session needs its token the first time.")
	}
	t, err := n.verifier.VerifyStream(h.Token, n.now())
	switch {
	case errors.Is(err, vms.ErrExpired):
		return refuse(wire.ProblemTokenExpired, vms.ErrUnauthorized, "The token expired; ask for a new one.")
	case err != nil:
		return invalid("The token was not issued here, or was changed.")
	case t.SID != h.SID || (found && t.Channel != s.Channel):
		return invalid("The token is for another session.")
	case t.Hub != "" && t.Hub != hub.ID:
		return refuse(wire.ProblemHubMismatch, vms.ErrForbidden, "The token is another hub's.")
	}
	return nil
}

// StreamToken opens a session for a channel and returns the token with which
// a hub of the account claims it: any, or the channel's own if it has one.
func (n *NVR) StreamToken(ctx context.Context, acct vms.AccountID, id vms.ChannelID) (StreamToken, error) {
	row, err := n.row(ctx, acct, id)
	if err != nil {
		return StreamToken{}, err
	}
	now := n.now()
	s := Session{SID: vms.NewID[vms.SID]("sid"), Account: acct, Channel: id, State: SessionOpen, CreatedAt: now}
	t := token.Stream{NVR: n.NVRURL, SID: s.SID, Channel: id, Hub: row.Hub, Issued: now, Expires: now.Add(n.TokenTTL)}
	signed, err := n.Tokens.SignStream(t)
	if err != nil {
		return StreamToken{}, fmt.Errorf("token of channel %s: %w", id, err)
	}
	if err := n.Store.CreateSession(ctx, s); err != nil {
		return StreamToken{}, fmt.Errorf("token of channel %s: %w", id, err)
	}
	return StreamToken{Token: signed, NVRURL: n.NVRURL, SID: s.SID, ExpiresAt: t.Expires}, nil
}
