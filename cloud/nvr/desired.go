package nvr

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/zipato/vms/pkg/seal"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// Desired returns what a hub should do, with its cameras sealed to its key.
// vms.ErrNotFound: nothing, because it is revoked, has not enrolled or never
// was; what was published for it is to be cleared.
//
// Content and revision are of one instant. Two calls for one revision say the
// same, in other bytes: each seals anew.
func (n *NVR) Desired(ctx context.Context, hub vms.HubID) (*wire.Desired, error) {
	const tries = 10 // each is beaten by a change of a channel at that moment
	for range tries {
		h, rows, err := n.Store.DesiredChannels(ctx, hub)
		if err == nil && (!h.RevokedAt.IsZero() || len(h.PublicKey) == 0) {
			err = vms.ErrNotFound
		}
		if err != nil {
			return nil, fmt.Errorf("what hub %s should do: %w", hub, err)
		}
		i := slices.IndexFunc(rows, func(r ChannelRow) bool { return r.Wanted && r.SID == "" })
		if i < 0 {
			return n.document(h, rows)
		}
		// Wanted without a hub until now, or of a release that declared sessions later.
		_, err = n.Store.UpdateChannel(ctx, rows[i].Account, rows[i].ID, n.now(), func(r *ChannelRow) error {
			if r.Hub == hub && r.Wanted && r.SID == "" {
				r.SID = newSID()
			}
			return nil
		})
		if err != nil && !errors.Is(err, vms.ErrNotFound) {
			return nil, fmt.Errorf("declare session of channel %s: %w", rows[i].ID, err)
		}
	}
	return nil, fmt.Errorf("what hub %s should do: %w: its channels change all the time", hub, vms.ErrUnavailable)
}

// document writes down what h should do.
func (n *NVR) document(h Hub, rows []ChannelRow) (*wire.Desired, error) {
	if len(rows) > wire.MaxStreams { // two requests at once may have passed fits
		n.Log.Error("a hub has more channels than it can be told of; the newest are left out", "hub", h.ID, "channels", len(rows))
		rows = rows[:wire.MaxStreams]
	}
	d := &wire.Desired{Hub: h.ID, Revision: h.Revision, Issued: n.now(), TimeZone: h.TimeZone, Limits: h.Limits,
		Streams: make([]wire.DesiredStream, 0, len(rows))}
	for _, r := range rows {
		s, err := n.order(h, r)
		if err != nil {
			return nil, err
		}
		d.Streams = append(d.Streams, s)
	}
	_, err := wire.EncodeSession(d)
	if errors.Is(err, wire.ErrTooLong) {
		// Cameras with long templates. Those that are not wanted now are in it for
		// the convenience of apps on the LAN only.
		n.Log.Warn("what a hub should do is too long; channels that are not wanted are left out", "hub", h.ID, "err", err)
		d.Streams = slices.DeleteFunc(d.Streams, func(s wire.DesiredStream) bool { return !s.Active })
		_, err = wire.EncodeSession(d)
	}
	if err != nil {
		return nil, fmt.Errorf("what hub %s should do: %w", h.ID, err)
	}
	return d, nil
}

// order is what a hub is told of one of its channels.
func (n *NVR) order(h Hub, r ChannelRow) (wire.DesiredStream, error) {
	cam, err := n.cameraOf(r)
	if err != nil {
		// The others must go on. Without its password the camera refuses, which
		// everybody sees; the log says why.
		n.Log.Error("the hub gets a camera without its password", "hub", h.ID, "channel", r.ID, "err", err)
	}
	plain, err := json.Marshal(cam)
	if err != nil {
		return wire.DesiredStream{}, fmt.Errorf("camera of channel %s: %w", r.ID, err)
	}
	sealed, err := seal.Seal(h.PublicKey, "camera/"+string(r.ID), plain)
	if err != nil {
		return wire.DesiredStream{}, fmt.Errorf("camera of channel %s for hub %s: %w", r.ID, h.ID, err)
	}
	s := wire.DesiredStream{Channel: r.ID, SID: r.SID, NVRURL: n.NVRURL, Mode: r.Mode, Active: r.Wanted, Stopped: r.StoppedRevision, Camera: sealed}
	switch r.Mode {
	case ModeOnDemand:
		s.Until = r.WantedUntil
	case ModeScheduled:
		s.Schedule = r.Schedule
	case ModeEvent:
		s.PreRoll, s.PostRoll = r.PreRoll, r.PostRoll
	}
	return s, nil
}

// cameraOf is the camera with its password, for the hub only. A camera given
// by URL carries its credentials in both places. With an error it is the camera
// without the password.
func (n *NVR) cameraOf(row ChannelRow) (vms.Camera, error) {
	cam := row.Camera
	password, err := n.unseal(row.ID, row.Secret)
	if err != nil {
		return cam, err
	}
	cam.Password = password
	if cam.URL != "" && cam.Username != "" {
		u, err := url.Parse(cam.URL)
		if err != nil {
			return row.Camera, fmt.Errorf("camera URL of channel %s is stored broken", row.ID)
		}
		u.User = url.UserPassword(cam.Username, cam.Password)
		cam.URL = u.String()
	}
	return cam, nil
}

// fits returns vms.ErrConflict when a hub has as many channels as it can be told of.
func (n *NVR) fits(ctx context.Context, hub vms.HubID) error {
	if hub == "" {
		return nil
	}
	_, rows, err := n.Store.DesiredChannels(ctx, hub)
	if err != nil {
		return fmt.Errorf("channels of hub %s: %w", hub, err)
	}
	if len(rows) >= wire.MaxStreams {
		return fmt.Errorf("%w: hub %s has %d channels, as many as a hub can have", vms.ErrConflict, hub, len(rows))
	}
	return nil
}

// DirtyHubs lists the hubs whose document is not published as it is now.
func (n *NVR) DirtyHubs(ctx context.Context) ([]vms.HubID, error) {
	hubs, err := n.Store.DirtyHubs(ctx)
	if err != nil {
		return nil, fmt.Errorf("hubs to be told: %w", err)
	}
	return hubs, nil
}

// AllHubs lists the hubs that have a document.
func (n *NVR) AllHubs(ctx context.Context) ([]vms.HubID, error) {
	hubs, err := n.Store.AllHubs(ctx)
	if err != nil {
		return nil, fmt.Errorf("hubs that have a document: %w", err)
	}
	return hubs, nil
}

// Published notes that the document of that revision was published. Revision 0
// says that the document of a hub for which Desired has none was cleared.
func (n *NVR) Published(ctx context.Context, hub vms.HubID, revision int64) error {
	if revision == 0 {
		h, err := n.Store.Hub(ctx, hub)
		switch {
		case errors.Is(err, vms.ErrNotFound), err == nil && h.RevokedAt.IsZero():
			return nil // nothing to note; one that enrolled meanwhile has a document again
		case err != nil:
			return fmt.Errorf("published to hub %s: %w", hub, err)
		}
		revision = h.Revision // a revoked hub's does not rise any more
	}
	if err := n.Store.Published(ctx, hub, revision); err != nil {
		return fmt.Errorf("published to hub %s: %w", hub, err)
	}
	return nil
}

// DesiredChanged rings after a commit that changed what some hub should do.
func (n *NVR) DesiredChanged() <-chan struct{} { return n.changed }

// update changes a channel, and has the hubs told that it concerns.
func (n *NVR) update(ctx context.Context, acct vms.AccountID, id vms.ChannelID, at time.Time, change func(*ChannelRow) error) (before, after ChannelRow, err error) {
	after, err = n.Store.UpdateChannel(ctx, acct, id, at, func(r *ChannelRow) error {
		before = *r
		return change(r)
	})
	if err != nil {
		return before, after, err
	}
	if !sameOrders(before, after) {
		n.tell(before.Hub, after.Hub)
	}
	return before, after, nil
}

// tell has hubs told what they should do now: over their control lines, and by
// whoever listens to DesiredChanged.
func (n *NVR) tell(hubs ...vms.HubID) {
	n.kicks.add(hubs...)
	select {
	case n.changed <- struct{}{}:
	default: // it will look anyway
	}
}

// kicks are hubs that are to be told what they should do over their control line.
type kicks struct {
	mu   sync.Mutex
	hubs map[vms.HubID]bool
	ring chan struct{} // one place: somebody is in hubs
}

func newKicks() kicks {
	return kicks{hubs: make(map[vms.HubID]bool), ring: make(chan struct{}, 1)}
}

func (k *kicks) add(hubs ...vms.HubID) {
	k.mu.Lock()
	for _, h := range hubs {
		if h != "" {
			k.hubs[h] = true
		}
	}
	k.mu.Unlock()
	select {
	case k.ring <- struct{}{}:
	default:
	}
}

func (k *kicks) take() map[vms.HubID]bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	hubs := k.hubs
	k.hubs = make(map[vms.HubID]bool)
	return hubs
}

// tellAgain is how long a hub waits that could not be told because the store failed.
const tellAgain = 5 * time.Second

// tellLoop hands documents to hubs that have a control line.
func (n *NVR) tellLoop(ctx context.Context) {
	const parallel = 8 // hubs at a time: each is a transaction, and a seal per camera
	slots := make(chan struct{}, parallel)
	var wg sync.WaitGroup
	defer wg.Wait()
	again := time.NewTicker(tellAgain)
	defer again.Stop()
	failed := newKicks()
	for {
		var hubs map[vms.HubID]bool
		select {
		case <-ctx.Done():
			return
		case <-n.kicks.ring:
			hubs = n.kicks.take()
		case <-again.C:
			hubs = failed.take()
		}
		for hub := range hubs {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			wg.Go(func() {
				defer func() { <-slots }()
				if err := n.tellHub(ctx, hub); err != nil && ctx.Err() == nil {
					n.Log.Error("a hub was not told what to do, will try again", "hub", hub, "in", tellAgain, "err", err)
					failed.add(hub)
				}
			})
		}
	}
}

// tellHub sends a hub its document over its control line, if it has one and was
// not told over it already.
func (n *NVR) tellHub(ctx context.Context, hub vms.HubID) error {
	n.mu.Lock()
	st := n.hubs[hub]
	has := st != nil && st.link != nil
	n.mu.Unlock()
	if !has {
		return nil
	}
	d, err := n.Desired(ctx, hub)
	if errors.Is(err, vms.ErrNotFound) { // it came while it was being revoked
		if link := n.forgetHub(hub); link != nil {
			link.Revoke("the hub was revoked")
		}
		return nil
	}
	if err != nil {
		return err
	}
	n.mu.Lock()
	var link HubLink
	if st := n.hubs[hub]; st != nil && st.link != nil && st.told < d.Revision {
		link, st.told = st.link, d.Revision
	}
	n.mu.Unlock()
	if link != nil {
		link.Send(d)
	}
	return nil
}

func newSID() vms.SID { return vms.NewID[vms.SID]("sid") }
