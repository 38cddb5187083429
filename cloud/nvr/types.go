package nvr

import (
	"crypto/ed25519"
	"time"

	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
)

// Hub is a device of an account that runs the agent.
type Hub struct {
	ID      vms.HubID
	Account vms.AccountID
	Name    string
	// PublicKey is empty until the hub has enrolled.
	PublicKey ed25519.PublicKey
	CreatedAt time.Time
	// EnrolledAt and RevokedAt are zero until it happens.
	EnrolledAt time.Time
	RevokedAt  time.Time
	// Online: its control line is up. Known to the NVR only, never stored.
	Online bool
}

// Enrolment is what a hub learns when its code was good.
type Enrolment struct {
	Hub    Hub
	NVRURL string
	// TokenKeys verify the tokens of this cloud; the hub pins them.
	TokenKeys token.JWKS
}

// Mode says when a channel records.
type Mode string

const (
	// ModeOnDemand records from a start to a stop.
	ModeOnDemand Mode = "on_demand"
	// ModeContinuous records from the moment the channel has a hub. A stop
	// holds until the next start.
	ModeContinuous Mode = "continuous"
)

// ChannelSpec is what a channel is made from.
type ChannelSpec struct {
	Name   string
	Hub    vms.HubID // may be empty: streams then start with a token only
	Mode   Mode      // empty: on_demand
	Camera vms.Camera
}

// ChannelPatch changes the fields that are not nil. Camera replaces all camera
// fields; an empty password keeps the stored one as long as the user name and
// the address stay what they were, so that a stored password is never sent to
// another host.
type ChannelPatch struct {
	Name   *string
	Hub    *vms.HubID
	Mode   *Mode
	Camera *vms.Camera
}

// StateIdle is the state of a channel that nobody streams; the other states
// are the wire.State words.
const StateIdle = "idle"

// Channel is a camera's registration, as its account sees it.
type Channel struct {
	ID      vms.ChannelID
	Account vms.AccountID
	Name    string
	Hub     vms.HubID
	Mode    Mode
	// Camera never has a password, neither in its field nor in its URL.
	Camera vms.Camera
	// HasPassword: one is stored.
	HasPassword bool
	// Wanted: the cloud wants this channel's stream to run.
	Wanted    bool
	CreatedAt time.Time

	// State is a wire.State word or StateIdle; Problem a sentence, or empty.
	State   string
	Problem string
	// Streaming: a worker receives it, since StreamingSince.
	Streaming      bool
	StreamingSince time.Time
	Worker         vms.WorkerID
}

// StreamToken is what starts a stream on a hub.
type StreamToken struct {
	Token     string
	NVRURL    string
	SID       vms.SID
	ExpiresAt time.Time
}

// LiveURLs are where a browser watches a channel now.
type LiveURLs struct {
	MSE       string
	ExpiresAt time.Time
}

// RecordingQuery asks for the timeline of [From, To). Cursor comes from the
// page before; Limit counts recordings, 0 means 100, at most 1000.
type RecordingQuery struct {
	From, To time.Time
	Cursor   string
	Limit    int
}

// Page is a stretch of timeline: all that is known of [From, To).
type Page struct {
	// From and To are what this page covers: the whole query, or as far as its
	// recordings reach when there are more.
	From, To   time.Time
	Recordings []Recording
	// Gaps and Pending lie inside the page, and never over a recording.
	Gaps    []vms.Gap
	Pending []vms.TimeRange
	// NextCursor is empty on the last page.
	NextCursor string
}

// Recording is a recording with the URL that plays it.
type Recording struct {
	ID vms.RecordingID
	vms.Recording
	URL          string
	URLExpiresAt time.Time
}
