package wire

import (
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"

	"github.com/zipato/vms/pkg/vms"
)

// The handshake with the NVR is an HTTP GET that asks for an upgrade to
// SessionProtocol. The first try brings no proof and is answered 401 with
//
//	WWW-Authenticate: VMS-Hub nonce="…"
//
// the second brings
//
//	Authorization: VMS-Hub hub="…", nonce="…", sig="…"
//	VMS-Token: <token>   (only when the sid was never used by this hub)
//
// No clock is needed on the hub.
const (
	// AuthScheme is the scheme of both headers (RFC 9110, section 11).
	AuthScheme = "VMS-Hub"
	// TokenHeader carries the stream token.
	TokenHeader = "VMS-Token"
)

// Proof is what a hub sends to show that it has the private key of its credential.
type Proof struct {
	Hub   vms.HubID
	Nonce string
	Sig   []byte
}

// proofText is what is signed: the purpose, the nonce, the hub, the NVR's host
// as the hub dialled it (so that another NVR cannot pass the proof on), and
// the sid, empty on the control line.
func proofText(nonce string, hub vms.HubID, host string, sid vms.SID) []byte {
	return []byte(strings.Join([]string{"vms.session.v1 handshake", nonce, string(hub), strings.ToLower(host), string(sid)}, "\n"))
}

// Prove signs a handshake.
func Prove(key ed25519.PrivateKey, nonce string, hub vms.HubID, host string, sid vms.SID) Proof {
	return Proof{Hub: hub, Nonce: nonce, Sig: ed25519.Sign(key, proofText(nonce, hub, host, sid))}
}

// Verify reports whether the proof was made with the private key of pub for this host and sid.
func (p Proof) Verify(pub ed25519.PublicKey, host string, sid vms.SID) bool {
	return len(pub) == ed25519.PublicKeySize && ed25519.Verify(pub, proofText(p.Nonce, p.Hub, host, sid), p.Sig)
}

// Header returns the value for Authorization.
func (p Proof) Header() string {
	return fmt.Sprintf(`%s hub="%s", nonce="%s", sig="%s"`, AuthScheme, p.Hub, p.Nonce, base64.RawURLEncoding.EncodeToString(p.Sig))
}

// ParseProof reads an Authorization header. ok is false when the header is of another scheme or absent.
func ParseProof(h http.Header) (p Proof, ok bool, err error) {
	value := h.Get("Authorization")
	if scheme, _, _ := strings.Cut(value, " "); !strings.EqualFold(scheme, AuthScheme) {
		return Proof{}, false, nil
	}
	params, ok := authParams(value)
	if !ok {
		return Proof{}, true, malformed("Authorization: want %s hub, nonce and sig", AuthScheme)
	}
	p = Proof{Hub: vms.HubID(params["hub"]), Nonce: params["nonce"]}
	p.Sig, err = base64.RawURLEncoding.DecodeString(params["sig"])
	if err != nil || len(p.Sig) != ed25519.SignatureSize || !vms.ValidID(p.Hub) || p.Nonce == "" || len(p.Nonce) > 200 {
		return Proof{}, true, malformed("Authorization: want %s hub, nonce and sig", AuthScheme)
	}
	return p, true, nil
}

// Challenge returns the value for WWW-Authenticate.
func Challenge(nonce string) string { return fmt.Sprintf(`%s nonce="%s"`, AuthScheme, nonce) }

// ParseChallenge returns the nonce of a 401, or false.
func ParseChallenge(h http.Header) (nonce string, ok bool) {
	for _, v := range h.Values("WWW-Authenticate") {
		if params, ok := authParams(v); ok && params["nonce"] != "" {
			return params["nonce"], true
		}
	}
	return "", false
}

// authParams reads `VMS-Hub k="v", k="v"`. Values hold no quotes or commas by construction.
func authParams(v string) (map[string]string, bool) {
	scheme, rest, ok := strings.Cut(v, " ")
	if !ok || !strings.EqualFold(scheme, AuthScheme) || len(rest) > 1000 {
		return nil, false
	}
	out := make(map[string]string, 3)
	for _, f := range strings.Split(rest, ",") {
		k, q, ok := strings.Cut(strings.TrimSpace(f), "=")
		if !ok || len(q) < 2 || q[0] != '"' || q[len(q)-1] != '"' {
			return nil, false
		}
		out[k] = q[1 : len(q)-1]
	}
	return out, true
}

// Problem types that a refused handshake or upgrade names (RFC 9457), so that
// the agent decides by type and not by sentence.
const (
	ProblemNonce         = "urn:vms:problem:nonce"          // 401: prove with this nonce
	ProblemProof         = "urn:vms:problem:proof"          // 401: the signature is not the hub's
	ProblemTokenInvalid  = "urn:vms:problem:token-invalid"  // 401: tampered, or of another cloud
	ProblemTokenExpired  = "urn:vms:problem:token-expired"  // 401: ask for a new one
	ProblemHubUnknown    = "urn:vms:problem:hub-unknown"    // 403
	ProblemHubMismatch   = "urn:vms:problem:hub-mismatch"   // 403: the sid is another hub's
	ProblemSIDUnknown    = "urn:vms:problem:sid-unknown"    // 404
	ProblemRevoked       = "urn:vms:problem:revoked"        // 410: final
	ProblemTicketInvalid = "urn:vms:problem:ticket-invalid" // 401, worker
	ProblemTicketExpired = "urn:vms:problem:ticket-expired" // 401, worker
	ProblemFenced        = "urn:vms:problem:fenced"         // 409, worker: a newer generation is known
	ProblemRival         = "urn:vms:problem:rival"          // 409, NVR: another agent with the hub's identity is connected
	ProblemNoWorker      = "urn:vms:problem:no-worker"      // 503, NVR: come back
	ProblemBusy          = "urn:vms:problem:busy"           // 503, worker: come back
)
