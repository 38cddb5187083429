// Package auth decides who may call the cloud: a program with the account's
// bearer token, or a browser with a session cookie that it got for a
// single-use login code. It also keeps foreign pages out of a browser that is
// logged in (Guard).
//
// No secret is kept in the clear except in the token's own file: sessions,
// login codes and the token to compare with are SHA-256 hashes of 128 random
// bits or more, so that neither a copy of the sessions file nor the time that
// a comparison takes helps anybody.
package auth

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

// CookieName is the name of the session cookie.
const CookieName = "vms_session"

// Via says how a caller proved who they are.
type Via string

// The ways to be let in.
const (
	ViaBearer  Via = "bearer"
	ViaSession Via = "session"
)

// Caller is who sent a request.
type Caller struct {
	Account vms.AccountID
	Via     Via
	// Expires is when the session ends unless it is used; zero for a bearer token, which does not.
	Expires time.Time
}

// Config is what New needs.
type Config struct {
	// Account is who the token and every session belong to.
	Account vms.AccountID
	// Token is the account's bearer token (LoadToken).
	Token string
	// SessionsFile is where sessions outlive a restart; empty: they do not.
	//
	// They are stored and not merely signed: logging out and the bound on their
	// number have to be remembered anyway, and a signed cookie cannot be ended
	// early without a list of its own.
	SessionsFile string
	// Listen is the listener's address, such as 127.0.0.1:8080. Guard answers
	// for its host and for the names of the loopback.
	Listen string
	// PublicURL is what browsers reach from outside, such as https://vms.example.com; may be empty.
	PublicURL string
	// Hosts are further names that requests may carry, without port.
	Hosts []string
	// Now is time.Now unless a test says otherwise.
	Now func() time.Time
	Log *slog.Logger
}

// Auth holds the account's token, sessions and login codes. Its methods may be
// called from many goroutines.
type Auth struct {
	account  vms.AccountID
	token    [sha256.Size]byte
	guard    guard
	codes    codes
	sessions *sessions
}

// New reads the sessions that a former run left behind. A sessions file that
// cannot be read is set aside: everybody logs in again, nobody is locked out.
func New(c Config) (*Auth, error) {
	if !vms.ValidID(c.Account) {
		return nil, fmt.Errorf("auth: account %q is no id", c.Account)
	}
	if err := validToken(c.Token); err != nil {
		return nil, fmt.Errorf("auth: %w", err)
	}
	g, err := newGuard(c.Listen, c.PublicURL, c.Hosts)
	if err != nil {
		return nil, fmt.Errorf("auth: %w", err)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Auth{
		account:  c.Account,
		token:    sha256.Sum256([]byte(c.Token)),
		guard:    g,
		codes:    codes{now: c.Now},
		sessions: openSessions(c.SessionsFile, c.Now, c.Log),
	}, nil
}

// Authenticate returns who sent r, or an error that wraps vms.ErrUnauthorized
// and may be shown to the caller. An Authorization header decides alone: a
// wrong token is not mended by a cookie. A session that is used lives on, and
// w gets its cookie anew.
func (a *Auth) Authenticate(w http.ResponseWriter, r *http.Request) (Caller, error) {
	if values := r.Header.Values("Authorization"); len(values) > 0 {
		if len(values) > 1 || !a.bearer(values[0]) {
			return Caller{}, fmt.Errorf("the bearer token is not valid: %w", vms.ErrUnauthorized)
		}
		return Caller{Account: a.account, Via: ViaBearer}, nil
	}
	for _, id := range sessionIDs(r) {
		s, renewed, ok := a.sessions.use(id)
		if !ok {
			continue
		}
		if renewed {
			a.setCookie(w, r, id, s.Expires)
		}
		return Caller{Account: s.Account, Via: ViaSession, Expires: s.Expires}, nil
	}
	return Caller{}, fmt.Errorf("a bearer token or a session is needed: %w", vms.ErrUnauthorized)
}

// Valid reports whether what r carries would still be let in. It prolongs
// nothing: it is for answers that go on for hours, such as an event stream.
func (a *Auth) Valid(r *http.Request) bool {
	if values := r.Header.Values("Authorization"); len(values) > 0 {
		return len(values) == 1 && a.bearer(values[0])
	}
	for _, id := range sessionIDs(r) {
		if a.sessions.valid(id) {
			return true
		}
	}
	return false
}

// bearer reports whether an Authorization header has the token.
func (a *Auth) bearer(header string) bool {
	scheme, token, _ := strings.Cut(header, " ")
	return strings.EqualFold(scheme, "Bearer") && a.tokenIs(strings.TrimSpace(token))
}

// tokenIs compares hashes: equal length, so that the comparison takes the same
// time whatever was sent.
func (a *Auth) tokenIs(token string) bool {
	sum := sha256.Sum256([]byte(token))
	return subtle.ConstantTimeCompare(sum[:], a.token[:]) == 1
}

// ErrBadCode is the one answer to a login code that is wrong, used or too old:
// which of them it was is nobody's business.
var ErrBadCode = errors.New("the login code is wrong, used or too old")

// NewLoginCode returns a code that Login takes once, until expires.
func (a *Auth) NewLoginCode() (code string, expires time.Time) { return a.codes.issue(a.account) }

// Login redeems a code and gives w the cookie of a new session.
func (a *Auth) Login(w http.ResponseWriter, r *http.Request, code string) (Caller, error) {
	account, ok := a.codes.redeem(code)
	if !ok {
		return Caller{}, fmt.Errorf("%w: %w", ErrBadCode, vms.ErrUnauthorized)
	}
	return a.open(w, r, account), nil
}

// LoginWithToken gives w a session for the bearer token itself, for a browser
// whose session has ended and whose owner has no code at hand.
func (a *Auth) LoginWithToken(w http.ResponseWriter, r *http.Request, token string) (Caller, error) {
	if !a.tokenIs(token) {
		return Caller{}, fmt.Errorf("the bearer token is not valid: %w", vms.ErrUnauthorized)
	}
	return a.open(w, r, a.account), nil
}

func (a *Auth) open(w http.ResponseWriter, r *http.Request, account vms.AccountID) Caller {
	id, s := a.sessions.create(account)
	a.setCookie(w, r, id, s.Expires)
	return Caller{Account: account, Via: ViaSession, Expires: s.Expires}
}

// Logout ends the session of r, if there is one, and takes the cookie back.
func (a *Auth) Logout(w http.ResponseWriter, r *http.Request) {
	for _, id := range sessionIDs(r) {
		a.sessions.end(id)
	}
	a.setCookie(w, r, "", time.Time{})
}

// setCookie writes the session cookie; an empty id deletes it. Strict keeps
// the browser from sending it along when a foreign site links or posts here.
func (a *Auth) setCookie(w http.ResponseWriter, r *http.Request, id string, expires time.Time) {
	c := &http.Cookie{
		Name: CookieName, Value: id, Path: "/",
		HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: a.guard.secure(r),
	}
	if id == "" {
		c.MaxAge = -1
	} else {
		c.MaxAge = int((expires.Sub(a.sessions.now()) + time.Second - 1) / time.Second)
	}
	http.SetCookie(w, c)
}

// sessionIDs are the values of r's session cookies. There can be more than one:
// browsers share the cookies of a host between its ports, and another service
// may have set its own.
func sessionIDs(r *http.Request) []string {
	var ids []string
	for _, c := range r.CookiesNamed(CookieName) {
		if len(c.Value) == secretLen && len(ids) < 4 {
			ids = append(ids, c.Value)
		}
	}
	return ids
}
