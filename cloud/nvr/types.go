package nvr

import (
	"crypto/ed25519"
	"time"

	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
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
	// TimeZone is an IANA name; empty: UTC. Schedules are in it.
	TimeZone string
	Limits   wire.HubLimits
	// Zone is where its workers should be (vms.WorkerInfo.Zone); empty: anywhere.
	Zone string
	// Revision is that of what the hub should do now (wire.Desired); 0: it was
	// never told anything.
	Revision int64

	// Online: it can be told something now, in whichever way. What follows is
	// known to the NVR only, never stored.
	Online bool
	// MQTT: it says over MQTT that it is there.
	MQTT bool
	// Reported is the newest that it said of itself, or nil. Nobody writes to it.
	Reported *wire.Reported
}

// HubPatch changes the fields that are not nil.
type HubPatch struct {
	Name     *string
	TimeZone *string // empty: UTC
	Uplink   *string // HubLimits.Uplink; empty: what the agent was started with
	Zone     *string // empty: anywhere
}

// Enrolment is what a hub learns when its code was good.
type Enrolment struct {
	Hub    Hub
	NVRURL string
	// TokenKeys verify the tokens of this cloud; the hub pins them.
	TokenKeys token.JWKS
}

// Mode says when a channel records.
type Mode = wire.Mode

const (
	// ModeOnDemand records from a start, or the first viewer, to a stop, the end
	// of the time given, or the last viewer's leaving.
	ModeOnDemand = wire.ModeOnDemand
	// ModeContinuous records from the moment the channel has a hub. A stop
	// holds until the next start, as it does in the modes that follow.
	ModeContinuous = wire.ModeContinuous
	// ModeScheduled records when a weekly table in the hub's time zone says so.
	ModeScheduled = wire.ModeScheduled
	// ModeEvent records around events, from a little before to a little after.
	ModeEvent = wire.ModeEvent
)

// WantedBy says who wants a channel of mode on_demand to run.
type WantedBy string

const (
	// WantedByMode: nobody; or the mode itself, when that is not on_demand.
	WantedByMode WantedBy = ""
	// WantedByRequest: somebody started it, and it runs until it is stopped or
	// its time is over.
	WantedByRequest WantedBy = "request"
	// WantedByViewer: it runs while somebody looks on.
	WantedByViewer WantedBy = "viewer"
)

// Seconds before and after an event that are recorded, unless a channel says otherwise.
const (
	DefaultPreRoll, MaxPreRoll   = 5, 60
	DefaultPostRoll, MaxPostRoll = 30, 600
)

// ChannelSpec is what a channel is made from.
type ChannelSpec struct {
	Name string
	Hub  vms.HubID // may be empty: streams then start with a token only
	Mode Mode      // empty: on_demand
	// Schedule is a weekly table (pkg/week); mode scheduled needs one.
	Schedule string
	// PreRoll and PostRoll are seconds; nil: the defaults.
	PreRoll, PostRoll *int
	Camera            vms.Camera
}

// ChannelPatch changes the fields that are not nil. Camera replaces all camera
// fields; an empty password keeps the stored one as long as the user name and
// the address stay what they were, so that a stored password is never sent to
// another host.
type ChannelPatch struct {
	Name *string
	Hub  *vms.HubID
	Mode *Mode
	// Schedule is nil to keep it; empty is none.
	Schedule          *string
	PreRoll, PostRoll *int
	Camera            *vms.Camera
}

// States of a channel that nobody streams; the other states are the wire.State words.
const (
	StateIdle = "idle"
	// StateWaiting: it is wanted, and waits for its hours or for an event.
	StateWaiting = "waiting"
)

// Channel is a camera's registration, as its account sees it.
type Channel struct {
	ID      vms.ChannelID
	Account vms.AccountID
	Name    string
	Hub     vms.HubID
	Mode    Mode
	// Schedule is of mode scheduled, PreRoll and PostRoll, in seconds, of mode event.
	Schedule          string
	PreRoll, PostRoll int
	// Camera never has a password, neither in its field nor in its URL.
	Camera vms.Camera
	// HasPassword: one is stored.
	HasPassword bool
	// Wanted: the cloud wants this channel's stream to run, when its mode says so.
	Wanted bool
	// WantedBy says who wants a channel on demand, WantedUntil when that ends by
	// itself; zero: when it is stopped.
	WantedBy    WantedBy
	WantedUntil time.Time
	CreatedAt   time.Time

	// State is a wire.State word, StateIdle or StateWaiting; Problem a sentence, or empty.
	State   string
	Problem string
	// Sync says whether the hub does what is wanted, as it reported last; empty:
	// it has not.
	Sync wire.SyncState
	// Recording: the hub says that it records now.
	Recording bool
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

// StartOptions says how a channel is to be started or stopped.
type StartOptions struct {
	// Timeout ends a channel on demand by itself; 0: it runs until it is stopped.
	Timeout time.Duration
	// Wait is how long to wait for the hub to say how it went; 0: not at all.
	Wait time.Duration
	// Queue takes the order although the hub is offline: it is obeyed when the
	// hub hears of it.
	Queue bool
}

// StartResult is what became of an order to start or stop.
type StartResult struct {
	// Revision is that of the document from which the hub learns of it, or a later one.
	Revision int64
	// HubOnline: the hub was there when the order was taken.
	HubOnline bool
	// Report is the hub's answer, when it was waited for.
	Report *wire.ReportedItem
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
