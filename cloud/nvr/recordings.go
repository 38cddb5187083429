package nvr

import (
	"context"
	"fmt"
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
	var next *vms.Recording
	if len(recs) > limit { // the page ends where the next one begins
		next = &recs[limit]
		recs, w.End = recs[:limit], next.Start
		p.NextCursor = Cursor{next.Start, next.Key}.String()
	}
	p.From, p.To = w.Start, w.End
	if err := n.fillTimeline(ctx, &p, row, recs, held, unreachable); err != nil {
		return fail(err)
	}
	for _, r := range apart(recs, next) {
		url, expires, err := n.Objects.PresignGet(ctx, r.Key, n.URLTTL, "") // no file name: it plays, it is not saved
		if err != nil {
			return fail(fmt.Errorf("presign %s: %w", r.Key, err))
		}
		p.Recordings = append(p.Recordings, Recording{ID: recordingID(r.Key), Recording: r, URL: url, URLExpiresAt: expires})
	}
	return p, nil
}

// fillTimeline adds what lies between the recordings of a page.
func (n *NVR) fillTimeline(ctx context.Context, p *Page, row ChannelRow, recs []vms.Recording, held []heldRange, unreachable []vms.TimeRange) error {
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
		for _, r := range n.silence(id, all, gaps, idle, held) {
			if r.Duration() > n.UnreachableAfter {
				unreachable = append(unreachable, r)
			} else {
				held = append(held, heldRange{TimeRange: r})
			}
		}
	}
	for _, r := range unreachable {
		gaps = append(gaps, vms.Gap{ID: derivedID(r), Cause: vms.CauseHubUnreachable, TimeRange: r})
	}
	p.Gaps, p.Pending = timeline(w, all, after == nil, gaps, idle, held)
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

// silentAfter is how long nothing may be known of a wanted channel before that
// stands on the timeline: hubs tell what they hold every few seconds.
const silentAfter = 30 * time.Second

// silence is the time from the last that is known of a channel until now, while
// no hub runs it: pending, because a hub goes on recording without us, until it
// has been away for so long that it is a gap.
func (n *NVR) silence(id vms.ChannelID, recs []vms.Recording, gaps []vms.Gap, idle []vms.TimeRange, held []heldRange) []vms.TimeRange {
	if n.runs(id) {
		return nil
	}
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
	for _, r := range idle {
		known(r.End)
	}
	for _, h := range held {
		known(h.End)
	}
	now := n.now()
	if last.IsZero() || now.Sub(last) < silentAfter {
		return nil
	}
	return []vms.TimeRange{{Start: last, End: now}}
}
