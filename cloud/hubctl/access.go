package hubctl

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// CloudUser is the user name, and the client id, of the cloud itself. No hub's
// id is like it.
const CloudUser = "vms-cloud"

// KeySize is the size of the key that passwords are made of.
const KeySize = 32

// Password is that of a hub, whose user name is its id, or of CloudUser. Whoever
// has the key knows it; nothing has to be stored. 192 bits.
func Password(key []byte, username string) string {
	m := hmac.New(sha256.New, key)
	m.Write([]byte("mqtt/" + username))
	return base64.RawURLEncoding.EncodeToString(m.Sum(nil))[:32]
}

// CheckPassword takes the same time for every wrong password.
func CheckPassword(key []byte, username, password string) bool {
	return subtle.ConstantTimeCompare([]byte(Password(key, username)), []byte(password)) == 1
}

// HubTopics are what a hub may publish and subscribe to.
func HubTopics(hub vms.HubID) (publish, subscribe []string) {
	of := func(leaf string) string { return wire.Topic(hub, leaf) }
	return []string{of(wire.LeafReported), of(wire.LeafReply)},
		[]string{of(wire.LeafDesired), of(wire.LeafCommand), of(wire.LeafReported)} // its own report: another may have said its last will
}

// CloudTopics are what the cloud may publish, reports to clear them, and
// subscribe to.
func CloudTopics() (publish, subscribe []string) {
	of := func(leaf string) string { return wire.Topic("+", leaf) }
	return []string{of(wire.LeafDesired), of(wire.LeafCommand), of(wire.LeafReported)},
		[]string{of(wire.LeafReported), of(wire.LeafReply)}
}
