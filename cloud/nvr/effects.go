package nvr

import (
	"maps"
	"slices"

	"github.com/zipato/vms/pkg/vms"
)

// Effects are what a change of a channel means for the rest of the store. They
// belong to the transaction that writes the row: a crash leaves neither a hub
// that does not hear of its channel nor a session that nobody ends.
type Effects struct {
	// Hubs are those whose revision rises: what they should do has changed.
	Hubs []vms.HubID
	// Stopped: the row's StoppedRevision becomes that to which its hub's rises; 0
	// if it has no hub.
	Stopped bool
	// Open is a session to make, open and of the row's hub; End one to end.
	Open, End vms.SID
	// Idle begins or ends an idle time, as SetIdle does.
	BeginIdle, EndIdle bool
	// Mode: the history of the channel's modes goes on with the row's.
	Mode bool
}

// EffectsOf says what follows when a channel's row changes. The zero row before
// is a channel that is created.
func EffectsOf(before, after ChannelRow) Effects {
	e := Effects{
		Stopped:   after.StoppedRevision == StoppedNow,
		BeginIdle: before.Wanted && !after.Wanted, EndIdle: !before.Wanted && after.Wanted,
		Mode: before.ID == "" || before.Mode != after.Mode || before.Schedule != after.Schedule || before.Hub != after.Hub,
	}
	if before.SID != after.SID {
		e.Open, e.End = after.SID, before.SID
	}
	if !sameOrders(before, after) {
		for _, hub := range []vms.HubID{before.Hub, after.Hub} {
			if hub != "" && !slices.Contains(e.Hubs, hub) {
				e.Hubs = append(e.Hubs, hub)
			}
		}
	}
	return e
}

// sameOrders reports whether a hub would be told the same of two rows.
func sameOrders(a, b ChannelRow) bool {
	return a.ID == b.ID && a.Hub == b.Hub && a.Mode == b.Mode && a.Wanted == b.Wanted && a.SID == b.SID &&
		a.StoppedRevision == b.StoppedRevision && a.WantedUntil.Equal(b.WantedUntil) && a.Schedule == b.Schedule && a.PreRoll == b.PreRoll && a.PostRoll == b.PostRoll &&
		a.Camera.URL == b.Camera.URL && a.Camera.Host == b.Camera.Host && a.Camera.Port == b.Camera.Port &&
		a.Camera.Username == b.Camera.Username && maps.Equal(a.Camera.Templates, b.Camera.Templates) && slices.Equal(a.Secret, b.Secret)
}

// HubEffectsOf says what follows when a hub changes: whether its revision
// rises, and whether the history of its channels' modes goes on in another zone.
func HubEffectsOf(before, after Hub) (revision, modes bool) {
	modes = before.TimeZone != after.TimeZone
	return modes || before.Limits != after.Limits, modes
}
