package api

import (
	"context"
	"errors"
	"net/http"

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
	register(s, huma.Operation{
		OperationID: "start-channel", Method: http.MethodPost, Path: base + "/start", Tags: tags,
		Summary: "Start the stream",
		Description: "Returns when the hub has taken the order; events and the channel's state tell when video flows. " +
			"Starting what runs already is no error. 409: the channel has no hub, or the hub is offline; 504: it did not answer in time.",
		DefaultStatus: http.StatusAccepted,
		Errors:        control,
	}, func(ctx context.Context, in *ChannelPath) (*struct{}, error) {
		return nil, hubError(s.NVR.StartChannel(ctx, account(ctx), in.ID, 0))
	})
	register(s, huma.Operation{
		OperationID: "stop-channel", Method: http.MethodPost, Path: base + "/stop", Tags: tags,
		Summary:       "Stop the stream",
		Description:   "Returns when the hub has taken the order. Stopping what does not run is no error.",
		DefaultStatus: http.StatusAccepted,
		Errors:        control,
	}, func(ctx context.Context, in *ChannelPath) (*struct{}, error) {
		return nil, hubError(s.NVR.StopChannel(ctx, account(ctx), in.ID, 0))
	})
	register(s, huma.Operation{
		OperationID: "live", Method: http.MethodGet, Path: base + "/live", Tags: tags,
		Summary:     "Watch live",
		Description: "The URL has a ticket that is short-lived: ask before each connection. 503: the channel is not streaming.",
		Errors:      []int{http.StatusNotFound, http.StatusServiceUnavailable},
	}, func(ctx context.Context, in *ChannelPath) (*struct{ Body Live }, error) {
		l, err := s.NVR.Live(ctx, account(ctx), in.ID)
		return &struct{ Body Live }{liveOf(l)}, err
	})
}

// hubError says whom a request has waited for in vain.
func hubError(err error) error {
	if !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	p := problemOf(err)
	p.Detail = "The hub did not answer in time."
	return p
}

func liveOf(l nvr.LiveURLs) Live { return Live{MSE: l.MSE, ExpiresAt: Time{l.ExpiresAt}} }
