package api

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
)

// Hub is a device that runs the agent.
type Hub struct {
	ID         vms.HubID `json:"id" example:"hub_3f9k2m8q0x7r5t1v" doc:"The hub's id."`
	Name       string    `json:"name" example:"Villa" doc:"For people."`
	Online     bool      `json:"online" doc:"Its control line is up."`
	CreatedAt  Time      `json:"created_at" doc:"When it was registered."`
	EnrolledAt *Time     `json:"enrolled_at,omitempty" doc:"When the device brought its key; absent until then."`
}

// HubRequest registers a hub.
type HubRequest struct {
	Name string `json:"name" minLength:"1" maxLength:"100" example:"Villa" doc:"For people."`
}

// HubCreated is a new hub with the code that its device enrols with.
type HubCreated struct {
	Hub
	EnrolmentCode          string `json:"enrolment_code" example:"9K3M-7QX2-TB5R-0WZ8" doc:"To be entered on the device, once. It is not shown again."`
	EnrolmentCodeExpiresAt Time   `json:"enrolment_code_expires_at" doc:"After this it is worth nothing."`
}

// HubPage is a page of hubs.
type HubPage struct {
	Hubs       []Hub  `json:"hubs" doc:"Oldest first."`
	NextCursor string `json:"next_cursor,omitempty" doc:"Absent on the last page."`
}

// EnrolRequest is what a device sends.
type EnrolRequest struct {
	Code string `json:"code" minLength:"1" maxLength:"64" example:"9K3M-7QX2-TB5R-0WZ8" doc:"The enrolment code. Case and hyphens do not matter."`
	// 32 bytes are 43 characters of base64url.
	PublicKey string `json:"public_key" pattern:"^[A-Za-z0-9_-]{43}$" example:"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" doc:"The device's Ed25519 public key, base64url without padding. The private key never leaves the device."`
	Name      string `json:"name,omitempty" maxLength:"100" example:"zipabox-4711" doc:"The hub's name, if it was registered without one."`
}

// Enrolment is what a device learns.
type Enrolment struct {
	HubID     vms.HubID  `json:"hub_id" example:"hub_3f9k2m8q0x7r5t1v" doc:"The hub that the device is from now on."`
	NVRURL    string     `json:"nvr_url" example:"wss://vms.example.com/session/v1" doc:"Where its agent shakes hands."`
	TokenKeys token.JWKS `json:"token_keys" doc:"The keys of this cloud's tokens (RFC 7517), to be pinned."`
}

// HubPath names a hub.
type HubPath struct {
	ID vms.HubID `path:"id" pattern:"^[a-z0-9_-]{1,64}$" doc:"The hub's id."`
}

func (s *server) addHubs() {
	const base = "/api/v1/hubs"
	tags := []string{tagHubs}
	register(s, huma.Operation{
		OperationID: "create-hub", Method: http.MethodPost, Path: base, Tags: tags,
		Summary:       "Register a hub",
		Description:   "Returns the code that the device enrols with.",
		RequestBody:   withExample(HubRequest{Name: "Villa"}),
		DefaultStatus: http.StatusCreated,
	}, s.createHub)
	register(s, huma.Operation{
		OperationID: "list-hubs", Method: http.MethodGet, Path: base, Tags: tags,
		Summary: "List hubs",
	}, s.listHubs)
	register(s, huma.Operation{
		OperationID: "get-hub", Method: http.MethodGet, Path: base + "/{id}", Tags: tags,
		Summary: "Get a hub",
		Errors:  []int{http.StatusNotFound},
	}, func(ctx context.Context, in *HubPath) (*struct{ Body Hub }, error) {
		h, err := s.NVR.Hub(ctx, account(ctx), in.ID)
		return &struct{ Body Hub }{hubOf(h)}, err
	})
	register(s, huma.Operation{
		OperationID: "revoke-hub", Method: http.MethodDelete, Path: base + "/{id}", Tags: tags,
		Summary:     "Revoke a hub",
		Description: "Its key opens nothing any more, and its streams end. This cannot be taken back; the device can enrol as a new hub.",
		Errors:      []int{http.StatusNotFound},
	}, func(ctx context.Context, in *HubPath) (*struct{}, error) {
		return nil, s.NVR.RevokeHub(ctx, account(ctx), in.ID)
	})
	register(s, huma.Operation{
		OperationID: "enroll", Method: http.MethodPost, Path: "/api/v1/enroll", Tags: tags,
		Summary:       "Enrol a device",
		Description:   "Called by the device itself: its code is all the authorization it has.",
		Security:      anyone,
		Middlewares:   huma.Middlewares{limited(s.enrols)},
		DefaultStatus: http.StatusCreated,
		Errors:        []int{http.StatusUnauthorized, http.StatusTooManyRequests, http.StatusServiceUnavailable},
	}, s.enroll)
}

func (s *server) createHub(ctx context.Context, in *struct{ Body HubRequest }) (*struct{ Body HubCreated }, error) {
	h, code, expires, err := s.NVR.CreateHub(ctx, account(ctx), in.Body.Name)
	if err != nil {
		return nil, err
	}
	return &struct{ Body HubCreated }{HubCreated{hubOf(h), code, Time{expires}}}, nil
}

func (s *server) listHubs(ctx context.Context, in *ListQuery) (*struct{ Body HubPage }, error) {
	hubs, next, err := s.NVR.Hubs(ctx, account(ctx), in.Cursor, in.Limit)
	if err != nil {
		return nil, err
	}
	page := HubPage{Hubs: make([]Hub, 0, len(hubs)), NextCursor: next}
	for _, h := range hubs {
		page.Hubs = append(page.Hubs, hubOf(h))
	}
	return &struct{ Body HubPage }{page}, nil
}

func (s *server) enroll(ctx context.Context, in *struct{ Body EnrolRequest }) (*struct{ Body Enrolment }, error) {
	key, err := base64.RawURLEncoding.Strict().DecodeString(in.Body.PublicKey)
	if err != nil || len(key) != ed25519.PublicKeySize {
		return nil, invalid("body.public_key", "want an Ed25519 public key of 32 bytes in base64url")
	}
	e, err := s.NVR.Enroll(ctx, in.Body.Code, key, in.Body.Name)
	if err != nil {
		return nil, err
	}
	return &struct{ Body Enrolment }{Enrolment{e.Hub.ID, e.NVRURL, e.TokenKeys}}, nil
}

func hubOf(h nvr.Hub) Hub {
	return Hub{
		ID: h.ID, Name: h.Name, Online: h.Online,
		CreatedAt: Time{h.CreatedAt}, EnrolledAt: optionalTime(h.EnrolledAt),
	}
}
