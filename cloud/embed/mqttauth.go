package embed

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// mqttStartPatience is how long clients may have to wait while the broker reads
// what it keeps.
const mqttStartPatience = 30 * time.Second

// mqttAuth decides who may do what on the broker.
type mqttAuth struct {
	mqtt *MQTT
	// ready is closed when the broker has read what it keeps. Whoever comes
	// earlier waits: it would miss retained messages.
	ready chan struct{}
}

var _ server.Authentication = (*mqttAuth)(nil)

// Check lets a client in or not. It runs on the goroutine that reads from it.
func (a *mqttAuth) Check(c server.ClientAuthentication) bool {
	opts := c.GetOpts()
	if opts.Username == a.mqtt.name {
		if subtle.ConstantTimeCompare([]byte(opts.Password), []byte(a.mqtt.pass)) != 1 {
			return false
		}
		c.RegisterUser(&server.User{Username: opts.Username})
		return true
	}
	t := time.NewTimer(mqttStartPatience)
	defer t.Stop()
	select {
	case <-a.ready:
	case <-t.C:
		return false
	}
	access, ok := a.mqtt.cfg.Authenticate(opts.Username, opts.Password)
	if !ok {
		a.mqtt.log.Debug("MQTT client refused", "username", opts.Username)
		return false
	}
	if id, ok := mqttClientID(c); !ok || id != opts.Username {
		a.mqtt.log.Warn("MQTT client refused: its client id is not its user name", "username", opts.Username, "client", id)
		return false
	}
	perms, err := permissions(access)
	if err != nil {
		a.mqtt.log.Error("MQTT client refused", "username", opts.Username, "err", err)
		return false
	}
	c.RegisterUser(&server.User{Username: opts.Username, Permissions: perms})
	return true
}

// mqttClientID is the client id of a connection. The library shows it only in
// the text of the connection, quoted, as the last word: 127.0.0.1:1 - mid:5 - "id".
func mqttClientID(c server.ClientAuthentication) (string, bool) {
	s, ok := c.(fmt.Stringer)
	if !ok {
		return "", false
	}
	text := s.String()
	i := strings.IndexByte(text, '"') // no quote comes before it
	if i < 0 {
		return "", false
	}
	id, err := strconv.Unquote(text[i:])
	return id, err == nil
}

// permissions are a.
func permissions(a Access) (*server.Permissions, error) {
	pub, err := subjects(a.Publish)
	if err != nil {
		return nil, err
	}
	sub, err := subjects(a.Subscribe)
	if err != nil {
		return nil, err
	}
	p := &server.Permissions{Publish: &server.SubjectPermission{Allow: pub}, Subscribe: &server.SubjectPermission{Allow: sub}}
	if len(sub) == 0 {
		p.Subscribe.Deny = []string{">"} // an empty list would allow all
	}
	return p, nil
}

var errFilter = errors.New("not a topic filter that can be allowed")

// subjects are topic filters as the library writes them: dots for slashes, * for
// + and > for #.
func subjects(filters []string) ([]string, error) {
	out := make([]string, 0, len(filters))
	for _, f := range filters {
		levels := strings.Split(f, "/")
		for i, l := range levels {
			switch {
			case l == "+":
				levels[i] = "*"
			case l == "#" && i == len(levels)-1:
				levels[i] = ">"
			case l == "" || strings.ContainsAny(l, "+#*>. \t\r\n\f\x7f"):
				return nil, fmt.Errorf("%w: %q", errFilter, f)
			}
		}
		out = append(out, strings.Join(levels, "."))
	}
	return out, nil
}
