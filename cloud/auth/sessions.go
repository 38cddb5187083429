package auth

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

const (
	// sessionIdle is how long a session lives after it was last used.
	sessionIdle = 12 * time.Hour
	// sessionLife ends every session: a stolen cookie is not for ever.
	sessionLife = 30 * 24 * time.Hour
	// sessionRenew is the step in which a session in use is prolonged, so that
	// neither every answer carries a cookie nor every request writes the file.
	sessionRenew = 10 * time.Minute
	// maxSessions bounds the sessions. One more ends the one that was unused longest.
	maxSessions = 256
)

// sessions are the open sessions, in memory and in a file that is replaced at
// each change. A file that cannot be written costs a log-in after the next
// restart and nothing else. Lock order: writing, then mu.
type sessions struct {
	file string
	now  func() time.Time
	log  *slog.Logger

	writing sync.Mutex // one writer of the file at a time; what it writes is the newest state

	mu   sync.Mutex
	open map[sessionKey]session
}

// sessionKey is the hash of the cookie's value.
type sessionKey [sha256.Size]byte

// MarshalText writes hexadecimal digits, as in the file.
func (k sessionKey) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(k[:])), nil }

// UnmarshalText reads what MarshalText writes.
func (k *sessionKey) UnmarshalText(b []byte) error {
	if len(b) != hex.EncodedLen(len(k)) {
		return errors.New("session key: wrong length")
	}
	_, err := hex.Decode(k[:], b)
	return err
}

type session struct {
	Account vms.AccountID `json:"account"`
	Created time.Time     `json:"created"`
	Expires time.Time     `json:"expires"`
}

// prolonged returns s as it is when used now.
func (s session) prolonged(now time.Time) session {
	s.Expires = now.Add(sessionIdle)
	if end := s.Created.Add(sessionLife); end.Before(s.Expires) {
		s.Expires = end
	}
	return s
}

func openSessions(file string, now func() time.Time, log *slog.Logger) *sessions {
	s := &sessions{file: file, now: now, log: log, open: make(map[sessionKey]session)}
	if file == "" {
		return s
	}
	open, err := readSessions(file)
	if err != nil {
		log.Warn("sessions cannot be read: everybody logs in again", "file", file, "err", err)
		return s
	}
	for k, v := range open {
		if now().Before(v.Expires) && len(s.open) < maxSessions {
			s.open[k] = v
		}
	}
	return s
}

func readSessions(file string) (map[sessionKey]session, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var open map[sessionKey]session
	if err := json.Unmarshal(b, &open); err != nil {
		return nil, errors.Join(err, os.Rename(file, file+".bad"))
	}
	return open, nil
}

// create opens a session and returns the value of its cookie.
func (s *sessions) create(account vms.AccountID) (id string, v session) {
	id = newSecret()
	now := s.now()
	v = session{Account: account, Created: now}.prolonged(now)
	s.mu.Lock()
	s.forgetLocked(now)
	s.open[sha256.Sum256([]byte(id))] = v
	s.mu.Unlock()
	s.save()
	return id, v
}

// forgetLocked drops what has expired, and makes room for one more.
func (s *sessions) forgetLocked(now time.Time) {
	var oldest sessionKey
	var oldestExpires time.Time
	for k, v := range s.open {
		if !now.Before(v.Expires) {
			delete(s.open, k)
		} else if oldestExpires.IsZero() || v.Expires.Before(oldestExpires) {
			oldest, oldestExpires = k, v.Expires
		}
	}
	if len(s.open) >= maxSessions {
		delete(s.open, oldest)
	}
}

// use returns the session of a cookie and prolongs it; renewed says that the
// browser has to be told.
func (s *sessions) use(id string) (v session, renewed, ok bool) {
	key := sessionKey(sha256.Sum256([]byte(id)))
	now := s.now()
	s.mu.Lock()
	v, ok = s.open[key]
	if ok && !now.Before(v.Expires) {
		delete(s.open, key)
		ok = false
	}
	if p := v.prolonged(now); ok && p.Expires.Sub(v.Expires) >= sessionRenew {
		v, renewed = p, true
		s.open[key] = v
	}
	s.mu.Unlock()
	if renewed {
		s.save()
	}
	return v, renewed, ok
}

// valid reports whether a session is open, without prolonging it.
func (s *sessions) valid(id string) bool {
	key := sessionKey(sha256.Sum256([]byte(id)))
	now := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	return now.Before(s.open[key].Expires)
}

// end closes a session, also for a browser that keeps the cookie.
func (s *sessions) end(id string) {
	key := sessionKey(sha256.Sum256([]byte(id)))
	s.mu.Lock()
	_, ok := s.open[key]
	delete(s.open, key)
	s.mu.Unlock()
	if ok {
		s.save()
	}
}

func (s *sessions) save() {
	if s.file == "" {
		return
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	s.mu.Lock()
	b, err := json.Marshal(s.open)
	s.mu.Unlock()
	if err == nil {
		err = writeFile(s.file, b)
	}
	if err != nil {
		s.log.Warn("sessions are not saved: a restart ends them", "err", fmt.Errorf("write %s: %w", s.file, err))
	}
}
