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
	ID       vms.HubID `json:"id" example:"hub_3f9k2m8q0x7r5t1v" doc:"The hub's id."`
	Name     string    `json:"name" example:"Villa" doc:"For people."`
	Online   bool      `json:"online" doc:"It can be told something now, over MQTT or its control line."`
	MQTT     bool      `json:"mqtt" doc:"It is connected to the MQTT broker."`
	TimeZone string    `json:"time_zone" example:"Europe/Zagreb" doc:"The IANA name of the zone that its schedules are in; empty: UTC."`
	Zone     string    `json:"zone" example:"fra1" doc:"Where the workers of its streams should be; empty: anywhere."`
	Limits   HubLimits `json:"limits" doc:"Limits of the hub as a whole."`
	Revision int64     `json:"revision" example:"1795345200123" doc:"Of what it should do now: it rises with every change. 0: it was never told anything."`
	// Reported is from memory: after a restart it is absent until the hub has spoken.
	Reported   *HubReport `json:"reported,omitempty" doc:"What it said of itself last; absent if nothing was heard of it."`
	CreatedAt  Time       `json:"created_at" doc:"When it was registered."`
	EnrolledAt *Time      `json:"enrolled_at,omitempty" doc:"When the device brought its key; absent until then."`
}

// HubLimits are limits of a hub as a whole.
type HubLimits struct {
	Uplink string `json:"uplink" example:"mon-fri 08:00-18:00=1M, none" doc:"How many bit/s it may send, and when, in its time zone; empty: what its agent was started with."`
}

// HubReport is what a hub said of itself.
type HubReport struct {
	Revision int64     `json:"revision" doc:"Of what it does, or tries to; 0: it was not told anything yet."`
	State    string    `json:"state,omitempty" example:"IN_SYNC" doc:"SYNCING, IN_SYNC or FAILED; more may come."`
	Problem  string    `json:"problem,omitempty" doc:"Why it refuses what it was told as a whole, a sentence for people."`
	At       *Time     `json:"at,omitempty" doc:"When, by its clock."`
	Agent    string    `json:"agent,omitempty" example:"vms-agent 1.4.0" doc:"Name and version of its agent."`
	Clock    *HubClock `json:"clock,omitempty" doc:"How well it knows the time."`
}

// HubClock is how well a hub knows the time.
type HubClock struct {
	ErrorMS int64  `json:"error_ms" example:"40" doc:"Its clock is wrong by at most so many milliseconds; less than 0: nobody has told it the time yet."`
	Source  string `json:"source" example:"nvr" doc:"Who told it last: nvr, sntp, rtc or none."`
}

// HubChange changes a hub (RFC 7396): what is absent stays, null clears.
type HubChange struct {
	Name     Patch[string]          `json:"name,omitzero" nullable:"false" minLength:"1" maxLength:"100" example:"Villa" doc:"For people."`
	TimeZone Patch[string]          `json:"time_zone,omitzero" maxLength:"64" example:"Europe/Zagreb" doc:"An IANA name; null: UTC. Schedules are in it from now on."`
	Zone     Patch[string]          `json:"zone,omitzero" maxLength:"64" example:"fra1" doc:"Of workers (see their list): those of another zone get its streams only while this one has none with room. null: anywhere."`
	Limits   Patch[HubLimitsChange] `json:"limits,omitzero" doc:"null: none."`
}

// HubLimitsChange changes the limits that are there.
type HubLimitsChange struct {
	Uplink Patch[string] `json:"uplink,omitzero" maxLength:"1000" example:"mon-fri 08:00-18:00=1M, none" doc:"Rules of days, hours and bit/s (k, M, or none), separated by commas; the first that matches holds. null: what its agent was started with."`
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
		OperationID: "update-hub", Method: http.MethodPatch, Path: base + "/{id}", Tags: tags,
		Summary:     "Change a hub",
		Description: "A JSON merge patch (RFC 7396): what is absent stays as it is, null clears it. The hub learns of it at once, or when it comes back.",
		RequestBody: withExample(HubChange{
			TimeZone: Patch[string]{Sent: true, Value: "Europe/Zagreb"},
			Limits:   Patch[HubLimitsChange]{Sent: true, Value: HubLimitsChange{Uplink: Patch[string]{Sent: true, Value: "mon-fri 08:00-18:00=1M, none"}}},
		}),
		Errors: []int{http.StatusNotFound},
	}, s.updateHub)
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

func (s *server) updateHub(ctx context.Context, in *struct {
	HubPath
	Body HubChange
}) (*struct{ Body Hub }, error) {
	b := in.Body
	if b.Name.Null {
		return nil, invalid("body.name", "cannot be cleared")
	}
	p := nvr.HubPatch{Name: b.Name.ptr(), TimeZone: b.TimeZone.ptr(), Zone: b.Zone.ptr(), Uplink: b.Limits.Value.Uplink.ptr()}
	if b.Limits.Null {
		p.Uplink = new(string)
	}
	h, err := s.NVR.UpdateHub(ctx, account(ctx), in.ID, p)
	return &struct{ Body Hub }{hubOf(h)}, err
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
	out := Hub{
		ID: h.ID, Name: h.Name, Online: h.Online, MQTT: h.MQTT,
		TimeZone: h.TimeZone, Zone: h.Zone, Limits: HubLimits{Uplink: h.Limits.Uplink}, Revision: h.Revision,
		CreatedAt: Time{h.CreatedAt}, EnrolledAt: optionalTime(h.EnrolledAt),
	}
	if r := h.Reported; r != nil {
		out.Reported = &HubReport{Revision: r.Revision, State: string(r.State), Problem: r.Problem, At: optionalTime(r.At), Agent: r.Agent}
		if r.Clock != nil {
			out.Reported.Clock = &HubClock{ErrorMS: r.Clock.ErrorMS, Source: r.Clock.Source}
		}
	}
	return out
}
