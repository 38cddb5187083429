package nvr

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

const (
	// orphanAfter is how long parts of an epoch that is over may wait for the
	// worker that has the rest of their recording; and how long after our own
	// start the hubs that are there have all come back.
	orphanAfter = 10 * time.Minute
	// maxAbandoned bounds one answer of AbandonedParts.
	maxAbandoned = 1000
	// maxWholes bounds one answer of Wholes.
	maxWholes = 100_000
)

// farFuture is after every recording.
var farFuture = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)

// Parts lists the provisional recordings of some epochs of a channel that no
// whole one has superseded, by epoch and first chunk. A worker that takes a
// stream over finds in them what it did not receive itself.
func (n *NVR) Parts(ctx context.Context, ch vms.ChannelID, epochs []vms.Epoch) ([]vms.Recording, error) {
	if len(epochs) == 0 {
		return nil, nil
	}
	parts, err := n.Store.Parts(ctx, ch, epochs)
	if err != nil {
		return nil, fmt.Errorf("parts of channel %s: %w", ch, err)
	}
	return parts, nil
}

// Wholes lists the chunk ranges of the whole recordings of a channel that have
// something of r, by first chunk. What is in them can be in no other.
func (n *NVR) Wholes(ctx context.Context, ch vms.ChannelID, r vms.ChunkRange) ([]vms.ChunkRange, error) {
	all, err := n.Store.RecordedChunks(ctx, ch, r, maxWholes)
	if err != nil {
		return nil, fmt.Errorf("recordings of channel %s: %w", ch, err)
	}
	// A part that goes meanwhile is in a whole one: all were read before the parts.
	parts, err := n.Store.Parts(ctx, ch, []vms.Epoch{r.Epoch})
	if err != nil {
		return nil, fmt.Errorf("parts of channel %s: %w", ch, err)
	}
	return slices.DeleteFunc(all, func(c vms.ChunkRange) bool {
		return slices.ContainsFunc(parts, func(p vms.Recording) bool { return p.Chunks == c })
	}), nil
}

// AbandonedParts lists provisional recordings whose whole nobody will bring, to
// be assembled as far as they go: by channel, epoch and first chunk, all parts
// of a recording together, and so perhaps a few more than limit. Who then
// registers the whole makes them go. Each call goes on where the one before
// ended, in a circle: parts of which nothing can be made stay, and must not keep
// others from being named.
//
// Parts are abandoned when their hub has been away for UnreachableAfter, or when
// it is there, holds nothing of their epoch, and has recorded in a later one.
func (n *NVR) AbandonedParts(ctx context.Context, limit int) ([]vms.Recording, error) {
	if limit <= 0 || limit > maxAbandoned {
		limit = maxAbandoned
	}
	now := n.now()
	if now.Sub(n.started) < min(orphanAfter, n.UnreachableAfter) {
		return nil, nil // what looks like a hub that stays away may only not be back yet
	}
	epochs, err := n.Store.PartEpochs(ctx)
	if err != nil {
		return nil, fmt.Errorf("abandoned parts: %w", err)
	}
	newest := make(map[vms.ChannelID]time.Time) // when the last part of a channel came
	for _, e := range epochs {
		if e.Registered.After(newest[e.Channel]) {
			newest[e.Channel] = e.Registered
		}
	}
	n.mu.Lock()
	after := n.tidied
	n.mu.Unlock()
	i := slices.IndexFunc(epochs, func(e PartEpoch) bool {
		return cmp.Or(cmp.Compare(e.Channel, after.Channel), cmp.Compare(e.Epoch, after.Epoch)) > 0
	})
	if i > 0 {
		epochs = slices.Concat(epochs[i:], epochs[:i])
	}
	var out []vms.Recording
	for _, e := range epochs {
		if len(out) >= limit {
			break
		}
		after = e
		is, err := n.abandoned(ctx, e, newest[e.Channel], now)
		if err != nil {
			return nil, fmt.Errorf("abandoned parts of channel %s: %w", e.Channel, err)
		}
		if !is {
			continue
		}
		parts, err := n.Store.Parts(ctx, e.Channel, []vms.Epoch{e.Epoch})
		if err != nil {
			return nil, fmt.Errorf("abandoned parts of channel %s: %w", e.Channel, err)
		}
		for i, p := range parts {
			if len(out) >= limit && i > 0 && !together(parts[i-1], p) {
				break
			}
			out = append(out, p)
		}
	}
	n.mu.Lock()
	n.tidied = after
	n.mu.Unlock()
	return out, nil
}

// together reports whether part b, which is next to a in order, is of the same recording.
func together(a, b vms.Recording) bool {
	return a.Number == b.Number && b.Chunks.First <= a.Chunks.Last+1
}

func (n *NVR) abandoned(ctx context.Context, e PartEpoch, newest, now time.Time) (bool, error) {
	if now.Sub(e.Registered) < min(orphanAfter, n.UnreachableAfter) {
		return false, nil
	}
	near, holds := n.whoHolds(e.Channel, e.Epoch, now)
	switch {
	case holds:
		return false, nil
	case !near:
		return now.Sub(newest) > n.UnreachableAfter, nil
	}
	last, _, err := n.Store.Neighbours(ctx, e.Channel, farFuture, farFuture)
	if err != nil {
		return false, err
	}
	return last != nil && last.Chunks.Epoch != e.Epoch && !last.Start.Before(e.End), nil
}

// whoHolds reports whether the channel has a session whose hub is there, or
// went not long ago, and whether one of these holds or writes epoch e.
func (n *NVR) whoHolds(ch vms.ChannelID, e vms.Epoch, now time.Time) (near, holds bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	st := n.streams[ch]
	if st == nil {
		return false, false
	}
	for _, ls := range st.sessions {
		if ls.link == nil && now.Sub(ls.lost) > n.UnreachableAfter {
			continue
		}
		near = true
		holds = holds || ls.epoch == e
		for _, h := range ls.held {
			holds = holds || h.Chunks.Epoch == e
		}
	}
	return near, holds
}
