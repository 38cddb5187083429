package api

import (
	"context"
	"maps"
	"net/http"
	"net/url"

	"github.com/danielgtaylor/huma/v2"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/vms"
)

// Channel is a camera's registration.
type Channel struct {
	ID        vms.ChannelID `json:"id" example:"ch_6h2w9d4n8s1p0z7c" doc:"The channel's id."`
	Name      string        `json:"name" example:"Front door" doc:"For people."`
	HubID     vms.HubID     `json:"hub_id" example:"hub_3f9k2m8q0x7r5t1v" doc:"The hub that pulls the camera; empty if there is none."`
	Mode      nvr.Mode      `json:"mode" enum:"on_demand,continuous,scheduled,event" example:"continuous" doc:"on_demand records from a start or the first viewer to a stop, the end of its time or the last viewer's leaving; continuous whenever there is a hub; scheduled when the schedule says so; event around events."`
	Schedule  string        `json:"schedule" example:"mon-fri 08:00-18:00, sat sun" doc:"When mode scheduled records, in the hub's time zone; empty if there is none."`
	PreRoll   int           `json:"pre_roll_s" example:"5" doc:"Seconds that mode event records before an event."`
	PostRoll  int           `json:"post_roll_s" example:"30" doc:"Seconds that it records after the last one."`
	Camera    Camera        `json:"camera" doc:"How the camera is reached."`
	State     string        `json:"state" example:"streaming" doc:"idle, starting, streaming, buffering, no_camera, bad_camera, auth, refused, stopped, or waiting for its hours or an event; more may come."`
	Problem   string        `json:"problem" example:"" doc:"A sentence for people, empty when all is well."`
	Wanted    bool          `json:"wanted" doc:"The stream should run when its mode says so: it was started, or records of itself and was not stopped."`
	WantedBy  nvr.WantedBy  `json:"wanted_by" example:"request" doc:"Who wants a channel on demand to run: request or viewer; otherwise empty."`
	Until     *Time         `json:"wanted_until,omitempty" doc:"When a channel on demand ends by itself; absent if it does not."`
	Sync      string        `json:"sync_state,omitempty" example:"IN_SYNC" doc:"Whether its hub does what is wanted, as it reported last: SYNCING, IN_SYNC or FAILED; absent while it has not."`
	Recording bool          `json:"recording" doc:"The hub says that it records now."`
	Streaming bool          `json:"streaming" doc:"A worker receives the stream."`
	Since     *Time         `json:"streaming_since,omitempty" doc:"Since when; absent while it does not."`
	Worker    vms.WorkerID  `json:"worker" example:"worker_1" doc:"The worker that receives it; empty if none."`
	CreatedAt Time          `json:"created_at" doc:"When the channel was made."`
}

// Camera is how a camera is reached, without its password.
type Camera struct {
	URL         string            `json:"url,omitempty" example:"rtsp://192.168.1.20/stream1" doc:"Without user name and password, whatever was sent."`
	Host        string            `json:"host,omitempty" doc:"Instead of url."`
	Port        int               `json:"port,omitempty" doc:"Absent: 554."`
	Username    string            `json:"username,omitempty" example:"viewer" doc:"The camera's user."`
	HasPassword bool              `json:"has_password" doc:"A password is stored. It is never shown."`
	Templates   map[string]string `json:"templates,omitempty" doc:"Stream URLs by quality."`
}

// CameraRequest is how a camera is reached: a url, or a host.
type CameraRequest struct {
	URL       string            `json:"url,omitempty" maxLength:"2000" example:"rtsp://192.168.1.20/stream1" doc:"rtsp:// or rtsps://. A user name and password in it are taken out and kept as the fields are."`
	Host      string            `json:"host,omitempty" maxLength:"253" doc:"An IP address or name, instead of url: the hub finds the stream."`
	Port      int               `json:"port,omitempty" minimum:"1" maximum:"65535" doc:"With host; 554 if absent."`
	Username  string            `json:"username,omitempty" maxLength:"128" example:"viewer" doc:"The camera's user."`
	Password  string            `json:"password,omitempty" maxLength:"128" writeOnly:"true" doc:"Goes in and never comes out."`
	Templates map[string]string `json:"templates,omitempty" maxProperties:"5" doc:"Stream URLs by quality (high, mid, low, mjpeg, snapshot) with {username}, {password}, {host} and {port} to fill in."`
}

// ChannelRequest makes a channel.
type ChannelRequest struct {
	Name  string    `json:"name" minLength:"1" maxLength:"100" example:"Front door" doc:"For people."`
	HubID vms.HubID `json:"hub_id,omitempty" pattern:"^[a-z0-9_-]{0,64}$" example:"hub_3f9k2m8q0x7r5t1v" doc:"The hub that pulls the camera. Without one, streams start with a token only."`
	Mode  nvr.Mode  `json:"mode,omitempty" enum:"on_demand,continuous,scheduled,event" default:"on_demand" doc:"When it records."`
	// The rules parse it; the limit is theirs.
	Schedule string        `json:"schedule,omitempty" maxLength:"1000" example:"mon-fri 08:00-18:00, sat sun" doc:"Needed in mode scheduled: days (mon to sun, or a range of them) and hours, separated by commas, in the hub's time zone. Hours over midnight belong to the day on which they begin."`
	PreRoll  *int          `json:"pre_roll_s,omitempty" minimum:"0" maximum:"60" example:"5" doc:"Seconds before an event, in mode event; 5 if absent."`
	PostRoll *int          `json:"post_roll_s,omitempty" minimum:"1" maximum:"600" example:"30" doc:"Seconds after the last event; 30 if absent."`
	Camera   CameraRequest `json:"camera" doc:"How the camera is reached."`
}

// ChannelChange changes a channel (RFC 7396): what is absent stays, null clears.
type ChannelChange struct {
	Name  Patch[string]    `json:"name,omitzero" nullable:"false" minLength:"1" maxLength:"100" example:"Back door" doc:"For people."`
	HubID Patch[vms.HubID] `json:"hub_id,omitzero" pattern:"^[a-z0-9_-]{0,64}$" doc:"null: no hub."`
	Mode  Patch[nvr.Mode]  `json:"mode,omitzero" nullable:"false" enum:"on_demand,continuous,scheduled,event" example:"on_demand" doc:"When it records. A mode that records of itself begins to, also when the channel was stopped."`
	// As in ChannelRequest.
	Schedule Patch[string]       `json:"schedule,omitzero" maxLength:"1000" example:"22:00-06:00" doc:"null: none; not in mode scheduled."`
	PreRoll  Patch[int]          `json:"pre_roll_s,omitzero" minimum:"0" maximum:"60" example:"10" doc:"null: 5."`
	PostRoll Patch[int]          `json:"post_roll_s,omitzero" minimum:"1" maximum:"600" example:"60" doc:"null: 30."`
	Camera   Patch[CameraChange] `json:"camera,omitzero" nullable:"false" doc:"How the camera is reached."`
}

// CameraChange changes the fields that are there. The stored password stays
// only while address and user stay: it is never sent to another host.
type CameraChange struct {
	URL       Patch[string]             `json:"url,omitzero" maxLength:"2000" doc:"null, with a host: from now on by host."`
	Host      Patch[string]             `json:"host,omitzero" maxLength:"253" doc:"null, with a url: from now on by URL."`
	Port      Patch[int]                `json:"port,omitzero" minimum:"1" maximum:"65535" doc:"null: 554."`
	Username  Patch[string]             `json:"username,omitzero" maxLength:"128" doc:"null: none, and then no password either."`
	Password  Patch[string]             `json:"password,omitzero" nullable:"false" minLength:"1" maxLength:"128" writeOnly:"true" doc:"A new password. To have none, clear username."`
	Templates Patch[map[string]*string] `json:"templates,omitzero" maxProperties:"5" doc:"By quality; null for one of them removes it, null for all removes all."`
}

// ChannelPage is a page of channels.
type ChannelPage struct {
	Channels   []Channel `json:"channels" doc:"Oldest first."`
	NextCursor string    `json:"next_cursor,omitempty" doc:"Absent on the last page."`
}

// ChannelPath names a channel; exported as ListQuery is.
type ChannelPath struct {
	ID vms.ChannelID `path:"id" pattern:"^[a-z0-9_-]{1,64}$" doc:"The channel's id."`
}

type channelOutput struct{ Body Channel }

func (s *server) addChannels() {
	const base = "/api/v1/channels"
	tags := []string{tagChannels}
	register(s, huma.Operation{
		OperationID: "create-channel", Method: http.MethodPost, Path: base, Tags: tags,
		Summary:     "Register a camera",
		Description: "A channel that records of itself, which is any mode but on_demand, does so as soon as its hub is there.",
		RequestBody: withExample(ChannelRequest{
			Name: "Front door", HubID: "hub_3f9k2m8q0x7r5t1v", Mode: nvr.ModeContinuous,
			Camera: CameraRequest{Host: "192.168.1.20", Username: "viewer", Password: "correct horse"},
		}),
		DefaultStatus: http.StatusCreated,
		Errors:        []int{http.StatusNotFound, http.StatusConflict},
	}, s.createChannel)
	register(s, huma.Operation{
		OperationID: "list-channels", Method: http.MethodGet, Path: base, Tags: tags,
		Summary: "List channels",
	}, s.listChannels)
	register(s, huma.Operation{
		OperationID: "get-channel", Method: http.MethodGet, Path: base + "/{id}", Tags: tags,
		Summary: "Get a channel",
		Errors:  []int{http.StatusNotFound},
	}, func(ctx context.Context, in *ChannelPath) (*channelOutput, error) {
		c, err := s.NVR.Channel(ctx, account(ctx), in.ID)
		return &channelOutput{channelOf(c)}, err
	})
	register(s, huma.Operation{
		OperationID: "update-channel", Method: http.MethodPatch, Path: base + "/{id}", Tags: tags,
		Summary:     "Change a channel",
		Description: "A JSON merge patch (RFC 7396): what is absent stays as it is, null clears it.",
		RequestBody: withExample(ChannelChange{
			Name:   Patch[string]{Sent: true, Value: "Back door"},
			Camera: Patch[CameraChange]{Sent: true, Value: CameraChange{Port: Patch[int]{Sent: true, Null: true}}},
		}),
		Errors: []int{http.StatusNotFound, http.StatusConflict},
	}, s.updateChannel)
	register(s, huma.Operation{
		OperationID: "delete-channel", Method: http.MethodDelete, Path: base + "/{id}", Tags: tags,
		Summary:     "Delete a channel",
		Description: "Its stream ends and its recordings are deleted.",
		Errors:      []int{http.StatusNotFound},
	}, func(ctx context.Context, in *ChannelPath) (*struct{}, error) {
		return nil, s.NVR.DeleteChannel(ctx, account(ctx), in.ID)
	})
}

func (s *server) createChannel(ctx context.Context, in *struct{ Body ChannelRequest }) (*channelOutput, error) {
	b := in.Body
	c, err := s.NVR.CreateChannel(ctx, account(ctx), nvr.ChannelSpec{
		Name: b.Name, Hub: b.HubID, Mode: b.Mode, Schedule: b.Schedule, PreRoll: b.PreRoll, PostRoll: b.PostRoll,
		Camera: vms.Camera{
			URL: b.Camera.URL, Host: b.Camera.Host, Port: b.Camera.Port,
			Username: b.Camera.Username, Password: b.Camera.Password, Templates: b.Camera.Templates,
		},
	})
	return &channelOutput{channelOf(c)}, err
}

func (s *server) listChannels(ctx context.Context, in *ListQuery) (*struct{ Body ChannelPage }, error) {
	channels, next, err := s.NVR.Channels(ctx, account(ctx), in.Cursor, in.Limit)
	if err != nil {
		return nil, err
	}
	page := ChannelPage{Channels: make([]Channel, 0, len(channels)), NextCursor: next}
	for _, c := range channels {
		page.Channels = append(page.Channels, channelOf(c))
	}
	return &struct{ Body ChannelPage }{page}, nil
}

func (s *server) updateChannel(ctx context.Context, in *struct {
	ChannelPath
	Body ChannelChange
}) (*channelOutput, error) {
	b := in.Body
	switch {
	case b.Name.Null:
		return nil, invalid("body.name", "cannot be cleared")
	case b.Mode.Null:
		return nil, invalid("body.mode", "cannot be cleared")
	case b.Camera.Null:
		return nil, invalid("body.camera", "cannot be cleared")
	case b.Camera.Value.Password.Null:
		return nil, invalid("body.camera.password", "cannot be cleared alone; clear username")
	}
	p := nvr.ChannelPatch{
		Name: b.Name.ptr(), Hub: b.HubID.ptr(), Mode: b.Mode.ptr(), Schedule: b.Schedule.ptr(),
		PreRoll: b.PreRoll.or(nvr.DefaultPreRoll), PostRoll: b.PostRoll.or(nvr.DefaultPostRoll),
	}
	if b.Camera.Sent {
		// Two callers who change the camera of one channel at the same moment: the
		// later one wins, whole.
		now, err := s.NVR.Channel(ctx, account(ctx), in.ID)
		if err != nil {
			return nil, err
		}
		camera := b.Camera.Value.apply(now.Camera)
		p.Camera = &camera
	}
	c, err := s.NVR.UpdateChannel(ctx, account(ctx), in.ID, p)
	return &channelOutput{channelOf(c)}, err
}

// apply returns c with the changes; c has no password, and none means "as it was".
func (p CameraChange) apply(c vms.Camera) vms.Camera {
	if p.URL.Value != publicURL(c.URL) || p.URL.Null {
		set(&c.URL, p.URL) // else it is what was shown, perhaps without a secret parameter
	}
	if u, err := url.Parse(p.URL.Value); err == nil && u.User != nil {
		c.Username = "" // the URL brings its own
	}
	set(&c.Host, p.Host)
	set(&c.Port, p.Port)
	set(&c.Username, p.Username)
	set(&c.Password, p.Password)
	if p.Templates.Sent {
		templates := maps.Clone(c.Templates)
		if templates == nil || p.Templates.Null {
			templates = make(map[string]string)
		}
		for k, v := range p.Templates.Value {
			switch {
			case v == nil:
				delete(templates, k)
			case *v != publicTemplate(templates[k]):
				templates[k] = *v
			}
		}
		c.Templates = templates
	}
	return c
}

// set applies one field of a patch.
func set[T any](dst *T, p Patch[T]) {
	if p.Sent {
		*dst = p.Value
	}
}

func channelOf(c nvr.Channel) Channel {
	return Channel{
		ID: c.ID, Name: c.Name, HubID: c.Hub,
		Mode: c.Mode, Schedule: c.Schedule, PreRoll: c.PreRoll, PostRoll: c.PostRoll,
		Camera: cameraOf(c.Camera, c.HasPassword),
		State:  c.State, Problem: c.Problem,
		Wanted: c.Wanted, WantedBy: c.WantedBy, Until: optionalTime(c.WantedUntil),
		Sync: string(c.Sync), Recording: c.Recording,
		Streaming: c.Streaming, Since: optionalTime(c.StreamingSince), Worker: c.Worker,
		CreatedAt: Time{c.CreatedAt},
	}
}
