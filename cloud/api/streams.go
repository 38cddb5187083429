package api

import (
	"context"
	"errors"
	"net/http"
	"reflect"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/vms"
)

// StreamToken starts a stream on a hub, by its local API.
type StreamToken struct {
	Token     string  `json:"token" doc:"To be given to the agent."`
	NVRURL    string  `json:"nvr_url" example:"wss://vms.example.com/session/v1" doc:"Where the agent shakes hands; the token has it too."`
	SID       vms.SID `json:"sid" example:"sid_8v3k5z1x7q9m2c4n" doc:"The session that the token opens."`
	ExpiresAt Time    `json:"expires_at" doc:"After this it opens nothing."`
}

// Live is where to watch a channel now.
type Live struct {
	MSE       string `json:"mse" example:"wss://vms.example.com/live/v1/mse?ticket=eyJ…" doc:"A WebSocket of fragmented MP4 for Media Source Extensions, subprotocol vms.mse.v1."`
	ExpiresAt Time   `json:"expires_at" doc:"Until when a connection can be opened; one that is open stays."`
}

// StartRequest says how to start a stream.
type StartRequest struct {
	TimeoutS int `json:"timeout_s,omitempty" minimum:"0" maximum:"31622400" example:"600" doc:"A channel on demand ends by itself after so many seconds; 0 or absent: when it is stopped."`
	StopRequest
}

// StopRequest says how to stop a stream.
type StopRequest struct {
	WaitS       int    `json:"wait_s,omitempty" minimum:"0" maximum:"30" example:"10" doc:"How many seconds to wait for the hub to say how it went; 0 or absent: not at all."`
	WhenOffline string `json:"when_offline,omitempty" enum:"refuse,queue" default:"refuse" doc:"When the hub is offline: refuse answers 409 and changes nothing; queue takes the order, which the hub obeys when it hears of it."`
}

func (r *StopRequest) options() nvr.StartOptions {
	if r == nil {
		return nvr.StartOptions{}
	}
	return nvr.StartOptions{Wait: time.Duration(r.WaitS) * time.Second, Queue: r.WhenOffline == "queue"}
}

// Order is an order to a hub that was taken, and what the hub says of it.
type Order struct {
	Revision  int64 `json:"revision" example:"1795345200123" doc:"Of what the hub should do: it has heard of the order when it reports this or a higher one."`
	HubOnline bool  `json:"hub_online" doc:"The hub was there when the order was taken."`
	// What follows is the hub's answer, and there if it was waited for.
	State     string `json:"state,omitempty" example:"IN_SYNC" doc:"IN_SYNC: the hub does what is wanted. Absent if nobody waited."`
	Running   *bool  `json:"running,omitempty" doc:"It pulls the camera now."`
	Recording *bool  `json:"recording,omitempty" doc:"It records what it pulls."`
	Stream    string `json:"stream,omitempty" example:"starting" doc:"The state of the stream, as in a channel's state."`
	Problem   string `json:"problem,omitempty" doc:"A sentence for people."`
}

// orderOutput is an Order with its status.
type orderOutput struct {
	Status int
	Body   Order
}

func orderOf(r nvr.StartResult) *orderOutput {
	out := &orderOutput{http.StatusAccepted, Order{Revision: r.Revision, HubOnline: r.HubOnline}}
	if i := r.Report; i != nil {
		out.Status = http.StatusOK
		out.Body.State, out.Body.Running, out.Body.Recording = string(i.State), &i.Running, &i.Recording
		out.Body.Stream, out.Body.Problem = i.Stream, i.Problem
	}
	return out
}

// LiveQuery asks for the live picture; exported as ListQuery is.
type LiveQuery struct {
	ChannelPath
	Start bool `query:"start" default:"true" doc:"Starts a channel on demand that is idle."`
}

func (s *server) addStreams() {
	const base = "/api/v1/channels/{id}"
	tags := []string{tagStreams}
	register(s, huma.Operation{
		OperationID: "create-token", Method: http.MethodPost, Path: base + "/token", Tags: tags,
		Summary:       "Make a stream token",
		Description:   "Whoever gives it to an agent on the LAN starts the channel's stream there.",
		DefaultStatus: http.StatusCreated,
		Errors:        []int{http.StatusNotFound},
	}, func(ctx context.Context, in *ChannelPath) (*struct{ Body StreamToken }, error) {
		t, err := s.NVR.StreamToken(ctx, account(ctx), in.ID)
		return &struct{ Body StreamToken }{StreamToken{t.Token, t.NVRURL, t.SID, Time{t.ExpiresAt}}}, err
	})
	control := []int{http.StatusNotFound, http.StatusConflict, http.StatusServiceUnavailable, http.StatusGatewayTimeout}
	orders := func(op huma.Operation) huma.Operation {
		op.Method, op.Tags, op.DefaultStatus, op.Errors = http.MethodPost, tags, http.StatusAccepted, control
		op.Metadata = map[string]any{patience: maxWait}
		order := s.huma.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[Order](), true, "Order")
		op.Responses = map[string]*huma.Response{"200": {
			Description: "The hub has done it (with wait_s)",
			Content:     map[string]*huma.MediaType{"application/json": {Schema: order}},
		}, "202": {Description: "The order is taken"}}
		return op
	}
	register(s, orders(huma.Operation{
		OperationID: "start-channel", Path: base + "/start",
		Summary: "Start the stream",
		Description: "The hub runs it from now on, also after a reboot: until it is stopped or its time is over in mode on_demand, in the other modes as they say. " +
			"Starting what runs already is no error; a new timeout, or none, takes the place of the one before.\n\n" +
			"202: the order is taken; events and the channel's state tell when video flows. With `wait_s`, 200: the hub has done it; 409: it cannot, and says why; " +
			"504: it has not said anything in time. In both cases the order stands: the hub goes on trying, or does it when it hears of it. " +
			"409 also, and nothing changed: the channel has no hub, or the hub is offline.",
		RequestBody: withExample(StartRequest{TimeoutS: 600, StopRequest: StopRequest{WaitS: 10, WhenOffline: "refuse"}}),
	}), func(ctx context.Context, in *struct {
		ChannelPath
		Body *StartRequest
	}) (*orderOutput, error) {
		var o nvr.StartOptions
		if in.Body != nil {
			o = in.Body.options()
			o.Timeout = time.Duration(in.Body.TimeoutS) * time.Second
		}
		r, err := s.NVR.StartChannel(ctx, account(ctx), in.ID, o)
		return orderOf(r), hubError(err, orderStands)
	})
	register(s, orders(huma.Operation{
		OperationID: "stop-channel", Path: base + "/stop",
		Summary: "Stop the stream",
		Description: "It holds until the next start, in every mode, also after a reboot. What the hub has buffered still comes. " +
			"It also ends a stream of the channel that was started on the LAN. Stopping what does not run is no error. The answers are those of a start.",
		RequestBody: withExample(StopRequest{WaitS: 10, WhenOffline: "queue"}),
	}), func(ctx context.Context, in *struct {
		ChannelPath
		Body *StopRequest
	}) (*orderOutput, error) {
		r, err := s.NVR.StopChannel(ctx, account(ctx), in.ID, in.Body.options())
		return orderOf(r), hubError(err, orderStands)
	})
	register(s, huma.Operation{
		OperationID: "live", Method: http.MethodGet, Path: base + "/live", Tags: tags,
		Summary: "Watch live",
		Description: "The URL has a ticket that is short-lived: ask before each connection. A channel on demand that is idle is started, and runs until " +
			"the last viewer has been gone for half a minute.\n\n503: the channel is not streaming. With the type `starting` and Retry-After it soon will: ask again.",
		Errors: []int{http.StatusNotFound, http.StatusServiceUnavailable},
	}, func(ctx context.Context, in *LiveQuery) (*struct{ Body Live }, error) {
		l, err := s.NVR.Live(ctx, account(ctx), in.ID, in.Start)
		if errors.Is(err, nvr.ErrStarting) {
			err = &Problem{
				Type: typeStarting, Title: "Starting", Status: http.StatusServiceUnavailable,
				Detail: "The stream is starting.", retryAfter: time.Second,
			}
		}
		return &struct{ Body Live }{liveOf(l)}, err
	})
}

// What stands when a hub has not answered in time.
const (
	orderStands   = "The order stands: the hub obeys it when it hears of it."
	nobodyCanTell = "Whether it obeyed is not known."
)

// hubError says whom a request has waited for in vain, and what that means.
func hubError(err error, means string) error {
	if !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	p := problemOf(err)
	p.Detail = "The hub did not answer in time. " + means
	return p
}

func liveOf(l nvr.LiveURLs) Live { return Live{MSE: l.MSE, ExpiresAt: Time{l.ExpiresAt}} }
