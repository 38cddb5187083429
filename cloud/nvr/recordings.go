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
func (n *NVR) fillTimeline(ctx context.Context, p *Page, row ChannelRow, recs []vms.Recording, held, unreachable []heldRange) error {
	id := row.ID
	w := vms.TimeRange{Start: p.From, End: p.To}
	if !w.Start.Before(w.End) {
		return nil
	}
	before, after, err := n.Store.Neighbours(ctx, id, w.Start, w.End)
	if err != nil {
		return err
	}
	// What explains a hole may lie outside the page.
	reach := w
	if before != nil {
		reach.Start = before.End
	}
	if after != nil {
		reach.End = after.Start
	}
	gaps, err := n.Store.Gaps(ctx, id, reach.Start, reach.End, maxGaps)
	if err != nil {
		return err
	}
	if len(gaps) == maxGaps {
		n.Log.Warn("too many gaps for one answer, some are left out", "channel", id, "from", w.Start, "to", w.End)
	}
	// Nothing is missing in the future: a table of hours need not be looked up
	// for a page that reaches to the year 9999.
	now := n.now()
	until := now.Add(time.Minute)
	if reach.End.Before(until) && after != nil {
		until = reach.End
	}
	idle, err := n.idle(ctx, id, reach.Start.Add(-settleAfter), until.Add(settleBefore))
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
	if after == nil && row.Wanted && !n.runs(id) {
		silent := silence(now, all, gaps, idle, append(slices.Clone(held), unreachable...))
		if len(silent) > 0 && now.Sub(silent[0].Start) > n.UnreachableAfter {
			unreachable = append(unreachable, silent...)
		} else {
			held = append(held, silent...)
		}
	}
	for _, r := range unreachable {
		g := vms.Gap{ID: derivedID(r.TimeRange), Cause: vms.CauseHubUnreachable, TimeRange: r.TimeRange}
		if r.chunks.Epoch != 0 {
			g.Chunks = &r.chunks
		}
		gaps = append(gaps, g)
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

// silence is the time from the last that is known of a wanted channel until now,
// without those times when it was not to record: pending, because a hub that does
// not speak to us goes on recording, until it has been away for so long that it
// is a gap.
func silence(now time.Time, recs []vms.Recording, gaps []vms.Gap, idle []vms.TimeRange, held []heldRange) []heldRange {
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
	for _, h := range held {
		known(h.End)
	}
	if last.IsZero() { // never a word: since it is wanted
		for _, r := range idle {
			if r.End.Before(now) && (last.IsZero() || r.End.Before(last)) {
				last = r.End
			}
		}
	}
	if last.IsZero() || now.Sub(last) < silentAfter {
		return nil
	}
	since := vms.TimeRange{Start: last, End: now}
	var out []heldRange
	for _, r := range (ranges{since}).minus(settled(idle, since).union()) {
		if r.End.Before(now) || r.Duration() >= silentAfter {
			out = append(out, heldRange{TimeRange: r})
		}
	}
	return out
}
