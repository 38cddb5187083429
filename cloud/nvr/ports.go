package nvr

import (
	"context"
	"crypto/ed25519"
	"iter"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// Store keeps what the NVR knows. Each method is one transaction: it happens
// as a whole or not at all, and once it returned nil it survives a power cut.
// vms.ErrNotFound, vms.ErrConflict and vms.ErrExpired are part of the contract
// where they are named; any other error means "try again". Times are UTC and
// keep their microseconds. cloud/store/storetest holds every store to this.
type Store interface {
	// CreateHub adds a hub and the hash of its enrolment code.
	CreateHub(ctx context.Context, h Hub, code CodeHash, expires time.Time) error
	// EnrolHub spends a code: it gives the hub its key, and its name if it had
	// none. What the hub should do has changed with it, because it is sealed to
	// the key. ErrNotFound: no such code, or spent; ErrExpired: too late.
	EnrolHub(ctx context.Context, code CodeHash, key ed25519.PublicKey, name string, now time.Time) (Hub, error)
	// Hub returns a hub, revoked ones too, or ErrNotFound.
	Hub(ctx context.Context, id vms.HubID) (Hub, error)
	// Hubs lists the hubs of an account that are not revoked, oldest first.
	Hubs(ctx context.Context, acct vms.AccountID, after Cursor, limit int) ([]Hub, error)
	// UpdateHub reads, changes and writes a hub's name, time zone, zone and limits,
	// and does what HubEffects says. ErrNotFound: the account has no such hub,
	// or it is revoked; an error of change is returned as it is.
	UpdateHub(ctx context.Context, acct vms.AccountID, id vms.HubID, now time.Time, change func(*Hub) error) (Hub, error)
	// RevokeHub ends a hub for good: it takes its key and unspent code away,
	// revokes its sessions (whose ids it returns) and leaves its channels
	// without a hub. What the hub should do has changed with it: nothing any
	// more. ErrNotFound also when it is revoked already.
	RevokeHub(ctx context.Context, acct vms.AccountID, id vms.HubID, now time.Time) ([]vms.SID, error)

	// What a hub should do has a revision, which rises with every change: to the
	// greater of the one before plus one and the Unix milliseconds of now. Each
	// method that changes it says so, or follows Effects.

	// DesiredChannels returns a hub, a revoked one too, and its channels, oldest
	// first, as they were at one instant. ErrNotFound: there never was such a hub.
	DesiredChannels(ctx context.Context, id vms.HubID) (Hub, []ChannelRow, error)
	// DirtyHubs lists the hubs, revoked ones too, whose revision was not
	// published; those that have not enrolled are not among them.
	DirtyHubs(ctx context.Context) ([]vms.HubID, error)
	// AllHubs lists the hubs that have enrolled and are not revoked.
	AllHubs(ctx context.Context) ([]vms.HubID, error)
	// Published notes that a hub's document of that revision was published.
	// Nothing falls: an older revision that is told late changes nothing.
	Published(ctx context.Context, id vms.HubID, revision int64) error
	// RaiseRevision makes sure that a hub's revision is higher than one that the
	// hub has seen, unless it is exactly that one: a database that was restored
	// from a backup must be obeyed again. It reports whether it had to be raised.
	RaiseRevision(ctx context.Context, id vms.HubID, seen int64, now time.Time) (bool, error)

	// CreateChannel adds a channel at the time it was created, and does what
	// Effects says. ErrNotFound: it names a hub that the account does not have.
	CreateChannel(ctx context.Context, c ChannelRow) error
	// Channel returns a channel of any account, or ErrNotFound.
	Channel(ctx context.Context, id vms.ChannelID) (ChannelRow, error)
	// Channels lists the channels of an account, oldest first.
	Channels(ctx context.Context, acct vms.AccountID, after Cursor, limit int) ([]ChannelRow, error)
	// Transient lists the wanted channels that a viewer started, or that are
	// wanted until some time.
	Transient(ctx context.Context) ([]ChannelRow, error)
	// UpdateChannel reads, changes and writes a channel, and does what Effects
	// says. ErrNotFound as in CreateChannel and Channel; an error of change is
	// returned as it is.
	UpdateChannel(ctx context.Context, acct vms.AccountID, id vms.ChannelID, now time.Time, change func(*ChannelRow) error) (ChannelRow, error)
	// DeleteChannel takes a channel off the lists and off its hub, revokes its
	// sessions (whose ids it returns), forgets its camera, gaps and modes, and
	// makes garbage of its recordings; what was kept for those who have a URL may
	// go at once, too. What its hub should do has changed with it. ErrNotFound.
	DeleteChannel(ctx context.Context, acct vms.AccountID, id vms.ChannelID, now time.Time) ([]vms.SID, error)
	// SetIdle notes from when to when nobody wanted a channel to record, so
	// that a stop is not taken for a loss. Saying it twice changes nothing.
	SetIdle(ctx context.Context, ch vms.ChannelID, idle bool, at time.Time) error
	// Modes lists which modes a channel had in [from, to), oldest first: the
	// last one that was set at or before from, and those set after it.
	Modes(ctx context.Context, ch vms.ChannelID, from, to time.Time) ([]ModeChange, error)

	// CreateSession adds a session. ErrNotFound: the channel is gone.
	CreateSession(ctx context.Context, s Session) error
	// Session returns a session in any state, or ErrNotFound.
	Session(ctx context.Context, sid vms.SID) (Session, error)
	// BindSession makes a session the hub's. The first hub wins: ErrConflict
	// when it is another's, or no longer open.
	BindSession(ctx context.Context, sid vms.SID, hub vms.HubID) (Session, error)
	// EndSession ends an open session; one that is revoked stays so.
	EndSession(ctx context.Context, sid vms.SID) error
	// NextGenerations raises, for each session, the generation of its channel and
	// gives it to the session, in order: a session that is named twice gets the
	// later one. It is 0 for those that are gone or revoked.
	NextGenerations(ctx context.Context, sids []vms.SID) ([]vms.Generation, error)

	// PutRecording registers an object where Place puts it: see Verdict. The
	// objects of what it supersedes are kept for keep, because somebody may have
	// a URL of them. ErrNotFound: the channel was never here.
	PutRecording(ctx context.Context, r vms.Recording, now time.Time, keep time.Duration) (Verdict, error)
	// Recordings lists at most limit recordings of a channel that have a part
	// in [from, to), by start and key, from the one that the cursor names on.
	// It may rely on no recording being longer than MaxRecording.
	Recordings(ctx context.Context, ch vms.ChannelID, from, to time.Time, first Cursor, limit int) ([]vms.Recording, error)
	// Neighbours returns the last recording that ends at or before from and
	// the first that starts at or after to; each may be nil.
	Neighbours(ctx context.Context, ch vms.ChannelID, from, to time.Time) (before, after *vms.Recording, err error)
	// RecordedChunks lists the chunk ranges of the recordings of a channel
	// that touch r.
	RecordedChunks(ctx context.Context, ch vms.ChannelID, r vms.ChunkRange, limit int) ([]vms.ChunkRange, error)
	// Parts lists the provisional recordings of some epochs of a channel, by
	// epoch and first chunk.
	Parts(ctx context.Context, ch vms.ChannelID, epochs []vms.Epoch) ([]vms.Recording, error)
	// PartEpochs lists the epochs that have parts, of all channels, by channel
	// and epoch.
	PartEpochs(ctx context.Context) ([]PartEpoch, error)
	// HasRecording reports whether a row or a garbage row has this key.
	HasRecording(ctx context.Context, key string) (bool, error)
	// PutGaps adds gaps, or replaces those with the same channel and id, and
	// returns the ids that are new. ErrNotFound: the channel is gone.
	PutGaps(ctx context.Context, ch vms.ChannelID, gaps []vms.Gap) ([]vms.GapID, error)
	// Gaps lists at most limit gaps that have a part in [from, to), by start.
	Gaps(ctx context.Context, ch vms.ChannelID, from, to time.Time, limit int) ([]vms.Gap, error)
	// Idle lists when a channel was not wanted, as far as it touches [from, to).
	// One that has not ended yet ends at to.
	Idle(ctx context.Context, ch vms.ChannelID, from, to time.Time) ([]vms.TimeRange, error)

	// Expire makes garbage of the oldest recordings: those that end before
	// cutoff (zero: none) and those that are too much for maxBytes (0: none),
	// at most limit. It returns how many.
	Expire(ctx context.Context, cutoff time.Time, maxBytes int64, now time.Time, limit int) (int, error)
	// Forget drops gaps, idle times and modes that ended before cutoff (zero: none),
	// and sessions made before unclaimed that no hub has claimed. Enrolment
	// codes that expired before unclaimed go too.
	Forget(ctx context.Context, cutoff, unclaimed time.Time) error
	// Discard makes garbage of an object that no recording is, from notBefore on.
	Discard(ctx context.Context, key string, now, notBefore time.Time) error
	// Garbage lists keys whose objects are to be deleted now, oldest first.
	Garbage(ctx context.Context, now time.Time, limit int) ([]string, error)
	// GarbageGone drops a garbage row: its object is gone.
	GarbageGone(ctx context.Context, key string) error
}

// CodeHash is the SHA-256 of an enrolment code; the code itself is not kept.
type CodeHash [32]byte

// PartEpoch is an epoch of a channel that has provisional recordings.
type PartEpoch struct {
	Channel vms.ChannelID
	Epoch   vms.Epoch
	// End is where the last of them ends, Registered when the last one came.
	End, Registered time.Time
}

// Cursor is where a list goes on: after the row with this time and id. The
// zero Cursor is the beginning.
type Cursor struct {
	At time.Time
	ID string
}

// ChannelRow is a channel as the store keeps it.
type ChannelRow struct {
	ID      vms.ChannelID
	Account vms.AccountID
	Hub     vms.HubID // may be empty
	Name    string
	Mode    Mode
	// Camera has no password.
	Camera vms.Camera
	// Secret is the sealed password, empty when there is none.
	Secret []byte
	// Schedule is a weekly table (pkg/week), PreRoll and PostRoll are seconds;
	// they are kept while the mode has no use for them.
	Schedule          string
	PreRoll, PostRoll int
	// Wanted: the cloud wants the stream to run on Hub, under session SID, which
	// is open and the hub's while it is not empty.
	Wanted bool
	SID    vms.SID
	// WantedBy and WantedUntil are of mode on_demand.
	WantedBy    WantedBy
	WantedUntil time.Time
	// StoppedRevision is that of Hub with which the owner stopped the channel last;
	// 0: never since the hub has it. A change sets StoppedNow.
	StoppedRevision int64
	CreatedAt       time.Time
	// Deleted channels stay as tombstones, so that what comes late is known to
	// be late; no method but PutRecording sees them.
}

// StoppedNow is what a change sets as StoppedRevision: UpdateChannel raises the
// hub's revision, writes that down in its place, and returns it. It is 0 then if
// the channel has no hub.
const StoppedNow int64 = -1

// ModeChange is what a channel was to record from Since on, until the next one.
type ModeChange struct {
	Since    time.Time
	Mode     Mode
	Schedule string
	TimeZone string // of its hub
}

// SessionState is where a session is in its life.
type SessionState string

const (
	// SessionOpen: the stream is wanted.
	SessionOpen SessionState = "open"
	// SessionEnded: the stream was stopped. Its hub may still come back to
	// bring what it holds.
	SessionEnded SessionState = "ended"
	// SessionRevoked is final.
	SessionRevoked SessionState = "revoked"
)

// Session is a stream authorization session. On the control line of a hub it
// has no SID and no channel.
type Session struct {
	SID     vms.SID
	Account vms.AccountID
	Channel vms.ChannelID
	// Hub is empty until the first hub has proved itself.
	Hub        vms.HubID
	State      SessionState
	Generation vms.Generation
	CreatedAt  time.Time
	// Zone is the hub's, as it was when it shook hands. It is not stored with the session.
	Zone string
}

// Verdict is what became of an object that was registered. Recordings of a
// channel never overlap:
//   - the same key with the same chunks and checksum is the same: no news;
//   - of two where one has all chunks of the other the one with more stays, the
//     other key becomes garbage; so the whole takes the place of its parts;
//   - a part whose chunks are all in others together becomes garbage; one that
//     shares some chunks only, which are the same bytes then, stays for the time;
//   - a garbage row, or a deleted channel, means the object is to go: no news,
//     and the garbage row makes sure that it goes;
//   - anything else that overlaps, and a known key with other content, is a
//     Conflict. Both are kept as far as a key can hold two, and the caller
//     raises an alarm: a rule that no code should be able to break was broken.
type Verdict struct {
	News bool
	// Conflict is the key of a recording that should not be there as well.
	Conflict string
}

// Objects is what the NVR needs of the object store.
type Objects interface {
	// Stat returns what the metadata of an object says, with the size and
	// checksum that the store itself vouches for. vms.ErrNotFound; vms.ErrInvalid
	// when the object is not a recording of ours.
	Stat(ctx context.Context, key string) (vms.Recording, error)
	// List yields keys under prefix in order, after the key given.
	List(ctx context.Context, prefix, after string) iter.Seq2[string, error]
	// Delete succeeds when the object is gone, also when it was before.
	Delete(ctx context.Context, key string) error
	// PresignGet returns a URL that reads the object until it expires, and when
	// that is. With a name, browsers save the object under it.
	PresignGet(ctx context.Context, key string, expiry time.Duration, name string) (string, time.Time, error)
	// PresignPut returns a URL to which one object of exactly this type can be
	// put until it expires, and when that is.
	PresignPut(ctx context.Context, key string, expiry time.Duration, contentType string) (string, time.Time, error)
}

// HubLink is the control line of a hub. Its methods do not block: a line that
// cannot take a message is broken and closes.
type HubLink interface {
	// Send hands over a wire.Desired, wire.Command or wire.Broker.
	Send(m wire.SessionMessage)
	// Revoke tells the hub why and closes the line.
	Revoke(why string)
}

// StreamLink is the session of one stream. Its methods do not block: a session
// that cannot take a message is broken and closes.
type StreamLink interface {
	Send(m wire.SessionMessage)
	// Revoke tells the agent why and closes the session.
	Revoke(why string)
	// Replace closes the session because a newer one of the same sid is there.
	Replace()
}

// WorkerLink is the line to a worker. Its methods do not block: a line that
// cannot take a message is broken and closes.
type WorkerLink interface {
	// Revoke tells it of sessions whose streams it must cut off now.
	Revoke(sids []vms.SID)
	// Moved tells it that the live picture of a channel is at another worker now,
	// and where those who look on find it, with a ticket; empty: they must ask again.
	Moved(ch vms.ChannelID, liveURL string)
	// Drain tells it to take no new streams, and that its own will be moved.
	Drain()
	// Replace closes the line because a newer one of the same worker is there.
	Replace()
}
