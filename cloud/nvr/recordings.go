package nvr

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

// maxGaps bounds the declared gaps of one page.
const maxGaps = 10_000

// Recordings returns a page of a channel's timeline, oldest first. Without a
// To it reaches to now, without a From to the beginning. Recordings are whole
// even where they reach over the edge of the query; gaps and pending ranges
// are cut at it.
func (n *NVR) Recordings(ctx context.Context, acct vms.AccountID, id vms.ChannelID, q RecordingQuery) (Page, error) {
	first, limit, err := page(q.Cursor, q.Limit)
	if err != nil {
		return Page{}, err
	}
	w, err := n.window(q)
	if err != nil {
		return Page{}, err
	}
	row, err := n.row(ctx, acct, id)
	if err != nil {
		return Page{}, err
	}
	if first != (Cursor{}) && first.At.After(w.Start) {
		w.Start = first.At
	}
	fail := func(err error) (Page, error) {
		return Page{}, fmt.Errorf("recordings of channel %s: %w", id, err)
	}
	// What is held is read before what is recorded or lost: a chunk that moves
	// on meanwhile is in both, and wins there; the other way round it could be
	// in neither.
	held, unreachable := n.pending(id)
	recs, err := n.Store.Recordings(ctx, id, w.Start, w.End, first, limit+1)
	if err != nil {
		return fail(err)
	}
	p := Page{Recordings: make([]Recording, 0, min(len(recs), limit))}
	if len(recs) > limit { // the page ends where the next one begins
		next := recs[limit]
		recs, w.End = recs[:limit], next.Start
		p.NextCursor = Cursor{next.Start, next.Key}.String()
	}
	p.From, p.To = w.Start, w.End
	if err := n.fillTimeline(ctx, &p, row, recs, held, unreachable); err != nil {
		return fail(err)
	}
	for _, r := range recs {
		url, expires, err := n.Objects.PresignGet(ctx, r.Key, n.URLTTL, "") // no file name: it plays, it is not saved
		if err != nil {
			return fail(fmt.Errorf("presign %s: %w", r.Key, err))
		}
		p.Recordings = append(p.Recordings, Recording{ID: recordingID(r.Key), Recording: r, URL: url, URLExpiresAt: expires})
	}
	return p, nil
}

// fillTimeline adds what lies between the recordings of a page.
func (n *NVR) fillTimeline(ctx context.Context, p *Page, row ChannelRow, recs []vms.Recording, held, unreachable []vms.TimeRange) error {
	id := row.ID
	w := vms.TimeRange{Start: p.From, End: p.To}
	if !w.Start.Before(w.End) {
		return nil
	}
	before, after, err := n.Store.Neighbours(ctx, id, w.Start, w.End)
	if err != nil {
		return err
	}
	gaps, err := n.Store.Gaps(ctx, id, w.Start, w.End, maxGaps)
	if err != nil {
		return err
	}
	if len(gaps) == maxGaps {
		n.Log.Warn("too many gaps for one answer, some are left out", "channel", id, "from", w.Start, "to", w.End)
	}
	idle, err := n.Store.Idle(ctx, id, w.Start, w.End)
	if err != nil {
		return err
	}
	var all []vms.Recording
	if before != nil {
		all = append(all, *before)
	}
	all = append(all, recs...)
	if after != nil {
		all = append(all, *after)
	}
	if after == nil && row.Wanted {
		unreachable = append(unreachable, n.silence(id, all, gaps, idle, held)...)
	}
	for _, r := range unreachable {
		gaps = append(gaps, vms.Gap{ID: derivedID(r), Cause: vms.CauseHubUnreachable, TimeRange: r})
	}
	var next *vms.Recording
	if after == nil && len(all) > 0 {
		next = n.nextHeld(id, all[len(all)-1])
	}
	p.Gaps, p.Pending = timeline(w, all, next, gaps, idle, held)
	return nil
}

func (n *NVR) window(q RecordingQuery) (vms.TimeRange, error) {
	w := vms.TimeRange{Start: q.From.UTC(), End: q.To.UTC()}
	if q.To.IsZero() {
		// A hub's clock may be a little ahead of ours.
		w.End = n.now().Add(time.Minute)
	}
	if q.From.IsZero() || w.Start.Before(time.Unix(0, 0)) {
		w.Start = time.Unix(0, 0).UTC()
	}
	if !w.Start.Before(w.End) {
		return w, fieldError("from", "must be before to")
	}
	if w.End.Year() > 9999 {
		return w, fieldError("to", "is too far away")
	}
	return w, nil
}

// nextHeld returns the oldest that the channel's hub holds behind r, if it is of
// another epoch: one of the same may only not be registered yet.
func (n *NVR) nextHeld(id vms.ChannelID, r vms.Recording) *vms.Recording {
	n.mu.Lock()
	defer n.mu.Unlock()
	st := n.streams[id]
	if st == nil {
		return nil
	}
	var next *vms.Recording
	for _, ls := range st.sessions {
		for _, h := range ls.held {
			if !h.Start.Before(r.End) && (next == nil || h.Start.Before(next.Start)) {
				next = &vms.Recording{Chunks: h.Chunks, Start: h.Start.UTC(), End: h.End.UTC()}
			}
		}
	}
	if next == nil || next.Chunks.Epoch == r.Chunks.Epoch {
		return nil
	}
	return next
}

// silentAfter is how long nothing may be known of a wanted channel before that
// is a gap: hubs tell what they hold every few seconds.
const silentAfter = 30 * time.Second

// silence is the time from the last that is known of a channel until now, while
// its hub has no session for it: what the hub holds of it may still arrive, and
// takes its place then.
func (n *NVR) silence(id vms.ChannelID, recs []vms.Recording, gaps []vms.Gap, idle, held []vms.TimeRange) []vms.TimeRange {
	n.mu.Lock()
	if st := n.streams[id]; st != nil {
		for _, ls := range st.sessions {
			if ls.link != nil {
				n.mu.Unlock()
				return nil
			}
		}
	}
	n.mu.Unlock()
	var last time.Time
	known := func(t time.Time) {
		if t.After(last) {
			last = t
		}
	}
	for _, r := range recs {
		known(r.End)
	}
	for _, g := range gaps {
		known(g.End)
	}
	for _, r := range slices.Concat(idle, held) {
		known(r.End)
	}
	now := n.now()
	if last.IsZero() || now.Sub(last) < silentAfter {
		return nil
	}
	return []vms.TimeRange{{Start: last, End: now}}
}
