package cloud

import (
	"fmt"
	"strings"

	"github.com/zipato/vms/pkg/vms"
)

// Roles are what a process does.
type Roles uint8

// The roles. The API and the NVR are one process: what the NVR knows of sessions
// and workers is in its memory.
const (
	RoleAPI    Roles = 1 << iota // REST API and page
	RoleNVR                      // the rules: hubs, sessions, assignment, recordings
	RoleWorker                   // receives streams

	// AllRoles is an all-in-one.
	AllRoles = RoleAPI | RoleNVR | RoleWorker
)

// roleNames are in the order of the bits.
var roleNames = []string{"api", "nvr", "worker"}

// ParseRoles reads names with commas between them, or "all".
func ParseRoles(s string) (Roles, error) {
	var r Roles
	for name := range strings.SplitSeq(s, ",") {
		switch strings.TrimSpace(name) {
		case "all":
			r |= AllRoles
		case "api":
			r |= RoleAPI
		case "nvr":
			r |= RoleNVR
		case "worker":
			r |= RoleWorker
		default:
			return 0, fmt.Errorf("%w: role %q, want api,nvr or worker or all", vms.ErrInvalid, name)
		}
	}
	return r, r.check()
}

// Has reports whether all of want are among r.
func (r Roles) Has(want Roles) bool { return r&want == want }

// String writes what ParseRoles reads.
func (r Roles) String() string {
	if r == AllRoles {
		return "all"
	}
	var names []string
	for i, name := range roleNames {
		if r.Has(1 << i) {
			names = append(names, name)
		}
	}
	return strings.Join(names, ",")
}

// check refuses what cannot be one process.
func (r Roles) check() error {
	if r == 0 || r&^AllRoles != 0 || r.Has(RoleAPI) != r.Has(RoleNVR) {
		return fmt.Errorf("%w: roles %q: api and nvr go together, so want api,nvr or worker or all", vms.ErrInvalid, r)
	}
	return nil
}
