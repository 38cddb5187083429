package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/problem"
	"github.com/zipato/vms/pkg/vms"
)

const (
	// maxStreams bounds the event streams that are open at once: each is a
	// connection and a buffer of events.
	maxStreams = 64
	// heartbeat keeps proxies and NATs from forgetting a quiet connection, and
	// is how often a stream looks whether its caller is still let in.
	heartbeat = 15 * time.Second
	// eventWriteTimeout ends a stream whose reader has stopped reading.
	eventWriteTimeout = 10 * time.Second
)

// Event is something that happened.
type Event struct {
	Type      nvr.EventType   `json:"type" example:"recording" doc:"What happened: streaming_started, streaming_ended, recording, gap, hub_online or hub_offline; more may come. The same word is the event's name on the stream."`
	At        Time            `json:"at" doc:"When."`
	ChannelID vms.ChannelID   `json:"channel_id,omitempty" example:"ch_6h2w9d4n8s1p0z7c" doc:"Of a stream, recording or gap."`
	HubID     vms.HubID       `json:"hub_id,omitempty" example:"hub_3f9k2m8q0x7r5t1v" doc:"Of a stream or hub."`
	Cause     string          `json:"cause,omitempty" doc:"Why a stream ended."`
	Recording *EventRecording `json:"recording,omitempty" doc:"Of a recording."`
	Gap       *Gap            `json:"gap,omitempty" doc:"Of a gap."`
}

// EventRecording is a recording that is in S3 now; the timeline has its URL.
type EventRecording struct {
	Start   Time  `json:"start" doc:"UTC of its first sample."`
	End     Time  `json:"end" doc:"Where the next one begins."`
	MediaMS int64 `json:"media_ms" example:"30000" doc:"Its length as a player sees it, in milliseconds."`
	Bytes   int64 `json:"bytes" example:"7340032" doc:"The size of the object."`
	// Provisional ones are announced too: they can be watched.
	Provisional bool `json:"provisional,omitempty" doc:"A part of a recording that is not complete yet; the whole is announced when it is stored."`
}

func (s *server) addEvents() {
	// The schema of the data stands among the components; OpenAPI 3.1 has no
	// words for the stream around it.
	schemas := s.huma.OpenAPI().Components.Schemas
	schemas.Schema(reflect.TypeFor[Event](), true, "Event")
	register(s, huma.Operation{
		OperationID: "events", Method: http.MethodGet, Path: "/api/v1/events", Tags: []string{tagEvents},
		Summary: "Follow events",
		Description: "Server-sent events (text/event-stream) from now on. The name of each is its type, so a browser listens with " +
			"`addEventListener(\"recording\", …)`; its data is one `Event` in JSON. A comment every 15 seconds keeps the connection alive.\n\n" +
			"Events are not kept: they carry no id and `Last-Event-ID` is ignored. Whoever was away reads the state anew, " +
			"and so does who was too slow, whose stream ends.",
		Metadata: map[string]any{streaming: true},
		Errors:   []int{http.StatusServiceUnavailable},
		Responses: map[string]*huma.Response{"200": {
			Description: "The stream",
			Content: map[string]*huma.MediaType{"text/event-stream": {
				Schema:  &huma.Schema{Type: huma.TypeString, Description: "The data of each event is #/components/schemas/Event."},
				Example: "retry: 3000\n\nevent: hub_online\ndata: {\"type\":\"hub_online\",\"at\":\"2026-11-22T12:00:00.000Z\",\"hub_id\":\"hub_3f9k2m8q0x7r5t1v\"}\n\n",
			}},
		}},
	}, s.events)
}

func (s *server) events(ctx context.Context, _ *struct{}) (*huma.StreamResponse, error) {
	select {
	case s.streams <- struct{}{}:
	default:
		return nil, &Problem{
			Type: problem.TypeUnavailable, Title: "Not available now", Status: http.StatusServiceUnavailable,
			Detail: "Too many event streams are open.", retryAfter: time.Minute,
		}
	}
	return &huma.StreamResponse{Body: func(huma.Context) {
		defer func() { <-s.streams }()
		x := exchangeOf(ctx)
		h := x.w.Header()
		h.Set("Content-Type", "text/event-stream")
		h.Set("X-Accel-Buffering", "no") // nginx would hold events back
		x.w.WriteHeader(http.StatusOK)
		if x.r.Method == http.MethodHead {
			return
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel() // ends the subscription
		s.stream(x, s.NVR.Subscribe(ctx, account(ctx)))
	}}, nil
}

// stream writes events until the request, the subscription or the caller's
// session ends, or the reader does not read.
func (s *server) stream(x exchange, events <-chan nvr.Event) {
	beat := time.NewTicker(s.heartbeat)
	defer beat.Stop()
	text := "retry: 3000\n\n"
	for {
		if err := write(x.w, text); err != nil {
			return // the reader has gone
		}
		select {
		case <-x.r.Context().Done():
			return
		case <-beat.C:
			if !s.Auth.Valid(x.r) {
				return
			}
			text = ": still here\n\n"
		case e, ok := <-events:
			if !ok {
				return
			}
			data, err := json.Marshal(eventOf(e))
			if err != nil {
				s.Log.Error("event cannot be written", "event", e.Type, "err", err)
				return
			}
			text = fmt.Sprintf("event: %s\ndata: %s\n\n", e.Type, data)
		}
	}
}

// write sends text at once, or fails in time.
func write(w http.ResponseWriter, text string) error {
	c := http.NewResponseController(w)
	// Where deadlines are not supported, the request's context has to do.
	_ = c.SetWriteDeadline(time.Now().Add(eventWriteTimeout))
	if _, err := w.Write([]byte(text)); err != nil {
		return err
	}
	return c.Flush()
}

func eventOf(e nvr.Event) Event {
	out := Event{Type: e.Type, At: Time{e.At}, ChannelID: e.Channel, HubID: e.Hub, Cause: e.Cause}
	if r := e.Rec; r != nil {
		out.Recording = &EventRecording{Time{r.Start}, Time{r.End}, r.Media.Milliseconds(), r.Bytes, r.Provisional()}
	}
	if e.Gap != nil {
		g := gapOf(*e.Gap)
		out.Gap = &g
	}
	return out
}
