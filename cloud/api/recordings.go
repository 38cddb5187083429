package api

import (
	"context"
	"encoding/hex"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/vms"
)

// defaultSpan is how far back a query without from reaches.
const defaultSpan = 24 * time.Hour

// Recording is one object in S3, about 30 seconds, or a part of one.
type Recording struct {
	ID            vms.RecordingID `json:"id" example:"rec_5s8d1f7g3h9j2k4l" doc:"The recording's id."`
	Start         Time            `json:"start" doc:"UTC of its first sample."`
	End           Time            `json:"end" doc:"Where the next one begins, if there is no gap. Its media may go on a little behind that: two parts may share some frames."`
	MediaMS       int64           `json:"media_ms" example:"30000" doc:"Its length as a player sees it, in milliseconds."`
	Bytes         int64           `json:"bytes" example:"7340032" doc:"The size of the object."`
	SHA256        string          `json:"sha256" example:"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08" doc:"The object's checksum in hexadecimal digits, verified by the store."`
	Codecs        string          `json:"codecs" example:"avc1.64001f,mp4a.40.2" doc:"RFC 6381 list."`
	Dependent     bool            `json:"dependent,omitempty" doc:"It does not begin with a keyframe: play it after the one before."`
	TimeUncertain bool            `json:"time_uncertain,omitempty" doc:"Its times are estimates: no clock bridged a reboot of the hub, or it learned the time so late that its drift may exceed a second."`
	Provisional   bool            `json:"provisional,omitempty" doc:"A part of a recording that is not complete yet. It plays like any other; once the whole is stored, that takes its place, under another id. URLs of the part work until they expire."`
	URL           string          `json:"url" example:"https://s3.example.com/vms/recordings/…" doc:"Presigned: fragmented MP4 that plays by itself, from zero; Range requests work."`
	URLExpiresAt  Time            `json:"url_expires_at" doc:"Ask again after this."`
}

// Gap is footage known to be missing.
type Gap struct {
	ID       vms.GapID `json:"id" example:"gap_7t2m6v9b4x1z3q8w" doc:"The gap's id."`
	Start    Time      `json:"start" doc:"Where it begins."`
	End      Time      `json:"end" doc:"Where it ends."`
	Cause    vms.Cause `json:"cause" example:"camera_offline" doc:"A word to decide by; more may come."`
	Sentence string    `json:"sentence" example:"The camera did not answer or sent no video." doc:"The cause for people."`
}

// Pending is footage that is still in the hub's buffer.
type Pending struct {
	Start Time `json:"start" doc:"Where it begins."`
	End   Time `json:"end" doc:"Where it ends."`
}

// RecordingPage is a stretch of a channel's timeline.
type RecordingPage struct {
	From       Time        `json:"from" doc:"What this page covers: from here"`
	To         Time        `json:"to" doc:"to here; where there are more pages, as far as its recordings reach."`
	Recordings []Recording `json:"recordings" doc:"Oldest first. The first and the last may reach beyond the range."`
	Gaps       []Gap       `json:"gaps" doc:"Footage that is missing, and why."`
	Pending    []Pending   `json:"pending" doc:"Footage that is still to come."`
	NextCursor string      `json:"next_cursor,omitempty" doc:"Absent on the last page."`
}

type recordingsInput struct {
	ChannelPath
	ListQuery
	From Time `query:"from" doc:"The beginning of the range; absent: 24 hours before its end."`
	To   Time `query:"to" doc:"The end of the range, which is not in it; absent: now."`
}

func (s *server) addRecordings() {
	register(s, huma.Operation{
		OperationID: "list-recordings", Method: http.MethodGet, Path: "/api/v1/channels/{id}/recordings", Tags: []string{tagRecordings},
		Summary: "Read the timeline",
		Description: "Recordings with presigned URLs, gaps with their causes, and what is pending, of a range of time. " +
			"Keep from and to the same while following next_cursor.",
		Errors: []int{http.StatusNotFound},
	}, s.listRecordings)
}

func (s *server) listRecordings(ctx context.Context, in *recordingsInput) (*struct{ Body RecordingPage }, error) {
	q := nvr.RecordingQuery{From: in.From.Time, To: in.To.Time, Cursor: in.Cursor, Limit: in.Limit}
	if q.To.IsZero() {
		q.To = s.Now().UTC()
	}
	if q.From.IsZero() {
		q.From = q.To.Add(-defaultSpan)
	}
	if !q.From.Before(q.To) {
		return nil, invalid("query.from", "is not before "+q.To.UTC().Format(timeLayout)+", the end of the range")
	}
	p, err := s.NVR.Recordings(ctx, account(ctx), in.ID, q)
	if err != nil {
		return nil, err
	}
	return &struct{ Body RecordingPage }{pageOf(p)}, nil
}

func pageOf(p nvr.Page) RecordingPage {
	out := RecordingPage{
		From: Time{p.From}, To: Time{p.To}, NextCursor: p.NextCursor,
		Recordings: make([]Recording, 0, len(p.Recordings)),
		Gaps:       make([]Gap, 0, len(p.Gaps)),
		Pending:    make([]Pending, 0, len(p.Pending)),
	}
	for _, r := range p.Recordings {
		out.Recordings = append(out.Recordings, Recording{
			ID: r.ID, Start: Time{r.Start}, End: Time{r.End}, MediaMS: r.Media.Milliseconds(),
			Bytes: r.Bytes, SHA256: hex.EncodeToString(r.SHA256[:]), Codecs: r.Codecs,
			Dependent: r.Dependent, TimeUncertain: r.TimeUncertain, Provisional: r.Provisional(),
			URL: r.URL, URLExpiresAt: Time{r.URLExpiresAt},
		})
	}
	for _, g := range p.Gaps {
		out.Gaps = append(out.Gaps, gapOf(g))
	}
	for _, r := range p.Pending {
		out.Pending = append(out.Pending, Pending{Time{r.Start}, Time{r.End}})
	}
	return out
}

func gapOf(g vms.Gap) Gap {
	return Gap{ID: g.ID, Start: Time{g.Start}, End: Time{g.End}, Cause: g.Cause, Sentence: g.Cause.Sentence()}
}
