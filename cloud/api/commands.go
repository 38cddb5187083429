package api

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// CommandRequest is a one-off order to a hub.
type CommandRequest struct {
	Kind      wire.CommandKind `json:"kind" enum:"doctor,restart-stream,drain,event,snapshot" example:"event" doc:"doctor looks whether all is well; restart-stream leaves the channel's camera and pulls it anew; drain has all that is captured so far stored; event says that something happens, to the channels in mode event or one of them; snapshot takes a picture."`
	ChannelID vms.ChannelID    `json:"channel_id,omitempty" pattern:"^[a-z0-9_-]{1,64}$" example:"ch_6h2w9d4n8s1p0z7c" doc:"A channel of this hub: needed for restart-stream and snapshot, and allowed for drain and event."`
	TimeoutS  int              `json:"timeout_s,omitempty" minimum:"1" maximum:"120" example:"20" doc:"How many seconds to wait for the answer; the hub refuses an order that it hears later. Absent: as long as the kind is worth, 10 to 60."`
	PreRoll   *int             `json:"pre_roll_s,omitempty" minimum:"0" maximum:"60" example:"10" doc:"Seconds before an event; absent: the channel's."`
	PostRoll  *int             `json:"post_roll_s,omitempty" minimum:"1" maximum:"600" example:"60" doc:"Seconds after an event; absent: the channel's."`
}

// CommandAnswer is what a hub answered.
type CommandAnswer struct {
	OK      bool   `json:"ok" doc:"The hub has done it."`
	Problem string `json:"problem" doc:"Why not, a sentence for people; empty when it has."`
	Result  any    `json:"result,omitempty" doc:"What it found, depending on the kind. Of a snapshot: url and url_expires_at, after which the picture is deleted. Of doctor: its report."`
}

func (s *server) addCommands() {
	register(s, huma.Operation{
		OperationID: "command-hub", Method: http.MethodPost, Path: "/api/v1/hubs/{id}/commands", Tags: []string{tagHubs},
		Summary: "Give a hub an order",
		Description: "Waits for the hub's answer, and returns it also when the hub could not. The hub does it at most once, however often it hears of it. " +
			"409: it is offline; 504: it did not answer in time, and whether it did anything is not known; 503: too many orders wait for it already.",
		RequestBody: withExample(CommandRequest{Kind: wire.CommandDoctor}),
		Metadata:    map[string]any{patience: nvr.MaxCommandWait},
		Errors:      []int{http.StatusNotFound, http.StatusConflict, http.StatusServiceUnavailable, http.StatusGatewayTimeout},
	}, func(ctx context.Context, in *struct {
		HubPath
		Body CommandRequest
	}) (*struct{ Body CommandAnswer }, error) {
		b := in.Body
		c := wire.Command{Kind: b.Kind, Channel: b.ChannelID, PreRoll: b.PreRoll, PostRoll: b.PostRoll}
		r, err := s.NVR.Command(ctx, account(ctx), in.ID, c, time.Duration(b.TimeoutS)*time.Second)
		if err != nil {
			return nil, hubError(err, nobodyCanTell)
		}
		out := CommandAnswer{OK: r.OK, Problem: r.Problem}
		if len(r.Result) > 0 {
			out.Result = r.Result
		}
		return &struct{ Body CommandAnswer }{out}, nil
	})
}
