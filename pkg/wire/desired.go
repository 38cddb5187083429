package wire

import (
	"encoding/json"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

// The hub protocol: what the cloud wants of a hub, what the hub says of it, and
// one-off commands. The messages travel over MQTT 3.1.1 with QoS 1, each on its
// own topic (see Topic), or, where no broker can be reached, over the control
// line of the session protocol, as the messages of the same names. Receivers
// ignore what they have seen, so both ways may be used at once.
//
// What each field may hold is checked in hub.go. Words that a newer peer may say
// (modes, kinds, states, origins) pass there: whoever obeys decides about one
// that it does not know, as PROTOCOL.md says, and does the rest.

// Topic names a topic of a hub.
func Topic(hub vms.HubID, leaf string) string { return "vms/" + string(hub) + "/" + leaf }

// The leaves of a hub's topics. A hub may read desired, cmd and reported, and
// write reported and reply, of its own and of nobody else.
const (
	LeafDesired  = "desired"  // retained; Desired, from the cloud
	LeafReported = "reported" // retained; Reported, from the hub; its last will says offline
	LeafCommand  = "cmd"      // Command, from the cloud
	LeafReply    = "reply"    // CommandReply, from the hub
)

// Desired is all that the cloud wants a hub to do, from now on and after every
// reboot. It replaces the one before. A hub obeys the highest revision it has
// seen, and keeps it on flash.
type Desired struct {
	Hub vms.HubID `json:"hub"`
	// Revision rises with every change: the greater of the one before plus one
	// and the Unix time in milliseconds, so that a cloud that was restored from
	// a backup does not fall behind what its hubs have seen.
	Revision int64     `json:"revision"`
	Issued   time.Time `json:"issued"`
	// TimeZone is the IANA name of the hub's time zone, such as "Europe/Zagreb";
	// empty is UTC. Schedules are in it.
	TimeZone string          `json:"time_zone,omitempty"`
	Limits   HubLimits       `json:"limits,omitzero"`
	Streams  []DesiredStream `json:"streams"`
}

// HubLimits are limits of the hub as a whole that its owner sets.
type HubLimits struct {
	// Uplink is a schedule of bits per second (the agent's -uplink-limit); empty:
	// what the agent was started with.
	Uplink string `json:"uplink,omitempty"`
}

// DesiredStream is one channel of a hub. A channel that is on demand and not
// wanted now is in it too, without Active: its camera can then be started on the
// LAN without saying its password.
type DesiredStream struct {
	Channel vms.ChannelID `json:"channel"`
	// SID is the session the cloud declared; empty while Active is false and none was.
	SID    vms.SID `json:"sid,omitempty"`
	NVRURL string  `json:"nvr_url"`
	Mode   Mode    `json:"mode"`
	// Active: the stream may run. In mode on_demand it runs while Active, in the
	// others as they say; an owner who stopped a channel has it false.
	Active bool `json:"active"`
	// Stopped is the revision of the document with which the owner stopped the
	// channel last; 0: never since the hub has it. It ends what the LAN had asked
	// for before the hub knew that revision, and stays in the documents that follow:
	// a hub may miss the one that brought it.
	Stopped int64 `json:"stopped,omitempty"`
	// Until ends an on-demand stream by itself; zero: when it is stopped.
	Until time.Time `json:"until,omitzero"`
	// Schedule, in mode scheduled, is when to record (pkg/week), such as
	// "mon-fri 08:00-18:00, sat sun".
	Schedule string `json:"schedule,omitempty"`
	// PreRoll and PostRoll, in mode event, are seconds before and after an event.
	PreRoll  int `json:"pre_roll_s,omitempty"`
	PostRoll int `json:"post_roll_s,omitempty"`
	// Camera is a vms.Camera in JSON, sealed to the hub's key (pkg/seal) with
	// the context "camera/" and the channel's id.
	Camera []byte `json:"camera"`
}

// Mode says when a channel records. A hub does not record in a mode that it does
// not know: a mode also says when somebody is not to be recorded.
type Mode string

// The modes.
const (
	ModeOnDemand   Mode = "on_demand"
	ModeContinuous Mode = "continuous"
	ModeScheduled  Mode = "scheduled"
	ModeEvent      Mode = "event"
)

// SyncState says whether a hub does what is desired. An unknown one is read as Syncing.
type SyncState string

// The states of a document and of its items.
const (
	Syncing SyncState = "SYNCING" // being done
	InSync  SyncState = "IN_SYNC" // done
	Failed  SyncState = "FAILED"  // cannot be done: the problem says why; it is tried again
)

// Reported is what a hub says of itself. It replaces the one before. The last
// will is one with Online false and nothing else but Hub and Boot.
type Reported struct {
	Hub    vms.HubID `json:"hub"`
	Boot   string    `json:"boot"` // names this run of the agent
	Online bool      `json:"online"`
	// Serial counts the reports of a boot from 1.
	Serial int64     `json:"serial,omitempty"`
	Agent  string    `json:"agent,omitempty"` // name and version
	At     time.Time `json:"at,omitzero"`     // the hub's clock
	// Revision is the desired document that the items are about; 0: none yet.
	Revision int64     `json:"revision,omitempty"`
	State    SyncState `json:"state,omitempty"`
	// Problem says why the document as a whole was refused.
	Problem string         `json:"problem,omitempty"`
	Streams []ReportedItem `json:"streams,omitempty"`
	Clock   *ReportedClock `json:"clock,omitempty"`
}

// Who asked for a stream.
const (
	OriginCloud = "cloud" // the desired document
	OriginLAN   = "lan"   // an app on the LAN, with a token
)

// ReportedItem is one channel on a hub.
type ReportedItem struct {
	Channel vms.ChannelID `json:"channel"`
	SID     vms.SID       `json:"sid,omitempty"`
	Origin  string        `json:"origin"`
	Mode    Mode          `json:"mode"`
	// State says whether it is as desired: IN_SYNC also while a schedule says no.
	State SyncState `json:"state"`
	// Running: the camera is pulled now.
	Running bool `json:"running"`
	// Recording: what is pulled is recorded now; false in mode event between events.
	Recording bool `json:"recording"`
	// Stream is the stream's state, a State word; Problem a sentence.
	Stream  string `json:"stream,omitempty"`
	Problem string `json:"problem,omitempty"`
}

// ReportedClock is how well a hub knows the time.
type ReportedClock struct {
	// ErrorMS bounds the error of the hub's UTC, milliseconds; it grows while
	// nobody tells the time. Less than 0: nobody has told it yet.
	ErrorMS int64 `json:"error_ms"`
	// Source is who told it last: "nvr", "sntp", "rtc" or "none".
	Source string `json:"source"`
}

// Command is a one-off order. A hub runs it at most once per ID, which it keeps
// on flash before it begins, and answers again when it hears it again.
type Command struct {
	ID string `json:"id"`
	// Deadline: an order that is heard later is refused.
	Deadline time.Time   `json:"deadline"`
	Kind     CommandKind `json:"kind"`
	// Channel is whose; empty, where Kind allows it: all of the hub.
	Channel vms.ChannelID `json:"channel,omitempty"`
	// UploadURL is where a snapshot is to be PUT, with ContentType image/jpeg.
	UploadURL string `json:"upload_url,omitempty"`
	// PreRoll and PostRoll override those of the channel for an event, seconds;
	// nil: the channel's.
	PreRoll  *int `json:"pre_roll_s,omitempty"`
	PostRoll *int `json:"post_roll_s,omitempty"`
}

// CommandKind is what a command asks for. One that the hub does not know is
// refused in the reply.
type CommandKind string

// The kinds.
const (
	CommandSnapshot      CommandKind = "snapshot"       // Channel, UploadURL: take one JPEG and upload it
	CommandDoctor        CommandKind = "doctor"         // look whether all is well; the result is the report
	CommandRestartStream CommandKind = "restart-stream" // Channel: leave the camera and pull it anew
	CommandDrain         CommandKind = "drain"          // have all that is captured so far stored in the cloud; capture goes on
	CommandEvent         CommandKind = "event"          // Channel or all in mode event: something happens, record it
)

// CommandReply answers a command.
type CommandReply struct {
	ID string `json:"id"`
	OK bool   `json:"ok"`
	// Problem says why not, a sentence for people.
	Problem string `json:"problem,omitempty"`
	// Result is JSON that depends on the kind, at most 64 KiB.
	Result json.RawMessage `json:"result,omitempty"`
}

// Broker tells a hub, on its control line, where its MQTT broker is and how to
// get in. The hub keeps it, so that it can be reached while the NVR is away.
type Broker struct {
	// URL is mqtt://host:port or mqtts://host:port; empty: there is none, the
	// control line does it alone.
	URL string `json:"url,omitempty"`
	// Username is the hub's id, and so is the client id.
	Username string `json:"username,omitempty"`
	Password string `json:"password,omitempty"`
}
