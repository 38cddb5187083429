package cloud

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/zipato/vms/cloud/embed"
	"github.com/zipato/vms/cloud/hubctl"
	"github.com/zipato/vms/pkg/vms"
)

// MosquittoACL is the ACL of a Mosquitto that serves a cloud's hubs.
const MosquittoACL = hubctl.MosquittoACL

// MosquittoPasswords is its password file, from the key in a data directory that
// may be in use.
func MosquittoPasswords(data string, hubs []string) ([]byte, error) {
	key, err := embed.ReadSecret(data, mqttKey, hubctl.KeySize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no cloud has run yet on the data directory %s: %w", data, err)
	}
	if err != nil {
		return nil, err
	}
	ids := make([]vms.HubID, len(hubs))
	for i, h := range hubs {
		ids[i] = vms.HubID(h)
	}
	return hubctl.MosquittoPasswords(key, ids)
}
