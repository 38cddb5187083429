package hubctl

import (
	"bytes"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"fmt"

	"github.com/zipato/vms/pkg/vms"
)

// MosquittoACL is the acl_file of Mosquitto: HubTopics and CloudTopics. In its
// patterns %u is the user name.
const MosquittoACL = `# Hubs: the user name is the hub's id.
pattern read vms/%u/desired
pattern read vms/%u/cmd
pattern readwrite vms/%u/reported
pattern write vms/%u/reply

# The cloud.
user ` + CloudUser + `
topic write vms/+/desired
topic write vms/+/cmd
topic readwrite vms/+/reported
topic read vms/+/reply
`

// How Mosquitto 2 hashes a password. The count is what mosquitto_passwd takes: a
// password of 192 random bits needs no more.
const (
	mosquittoSalt  = 12
	mosquittoCount = 101
)

// MosquittoPasswords is the password_file of Mosquitto for the cloud and some
// hubs. The same key and hubs make the same file.
func MosquittoPasswords(key []byte, hubs []vms.HubID) ([]byte, error) {
	var b bytes.Buffer
	users := []string{CloudUser}
	for _, h := range hubs {
		if !vms.ValidID(h) {
			return nil, fmt.Errorf("%w: %.40q is no id of a hub", vms.ErrInvalid, h)
		}
		users = append(users, string(h))
	}
	for _, u := range users {
		m := hmac.New(sha256.New, key)
		m.Write([]byte("mqtt-salt/" + u))
		salt := m.Sum(nil)[:mosquittoSalt]
		hash, err := pbkdf2.Key(sha512.New, Password(key, u), salt, mosquittoCount, sha512.Size)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "%s:$7$%d$%s$%s\n", u, mosquittoCount, base64.StdEncoding.EncodeToString(salt), base64.StdEncoding.EncodeToString(hash))
	}
	return b.Bytes(), nil
}
