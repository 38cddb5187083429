// Package lan is the agent's HTTP API on the local network: an app starts a
// stream with a token of the cloud and a camera's address; whoever has the LAN
// key lists and stops streams, tells of events, and reads how the hub is.
package lan

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/zipato/vms/pkg/obs"
	"github.com/zipato/vms/pkg/problem"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// maxBody bounds a request: a token and a camera's fields.
const maxBody = 32 << 10

// The most that an event may ask for before and after it.
const (
	MaxPreRoll  = time.Minute
	MaxPostRoll = 10 * time.Minute
)

// Agent is what the API shows.
type Agent interface {
	// Start begins the stream that the token names, from this camera; the zero
	// camera is the one that the cloud has stored for the channel. Errors wrap
	// vms.ErrExpired, ErrUnauthorized, ErrForbidden, ErrInvalid, ErrUnavailable.
	Start(token string, cam vms.Camera) (Stream, error)
	// Stop ends a stream, or returns vms.ErrNotFound.
	Stop(id vms.StreamID) error
	Streams() []Stream
	Status() Status
	// Event says that something happens at a channel, or, when it is empty, at all
	// that are in mode event; nil: the channel's own time before and after it. It
	// returns at once. Errors wrap vms.ErrNotFound, or vms.ErrConflict where nothing
	// is in mode event now.
	Event(ch vms.ChannelID, preRoll, postRoll *time.Duration) error
	// Doctor looks whether all is well, for half a minute at most, and returns the
	// report, a JSON object. vms.ErrUnavailable: it is looking already.
	Doctor(ctx context.Context) (json.RawMessage, error)
}

// Stream is one stream, as the API shows it. It holds no credentials.
type Stream struct {
	ID      vms.StreamID  `json:"id"`
	Channel vms.ChannelID `json:"channel"`
	// Camera is empty when the hub only brings what it still holds of the channel.
	Camera string `json:"camera,omitempty"`
	// Origin is "lan", "cloud" or, after a restart of the hub, "spool": who asked for it.
	Origin string `json:"origin"`
	// Mode is a wire.Mode word: when it records. Recording: it does now; false in
	// mode event between events.
	Mode      string    `json:"mode,omitempty"`
	Recording bool      `json:"recording"`
	State     string    `json:"state"`
	Problem   string    `json:"problem,omitempty"`
	Since     time.Time `json:"since"`
	// Delivering: no camera is pulled any more, and what is held is being brought.
	// The stream leaves the list when all of it is stored.
	Delivering bool `json:"delivering,omitempty"`

	// Times are UTC: up to where footage was captured, up to where workers have
	// received it, and up to where it is in the object store.
	CapturedUntil time.Time `json:"captured_until,omitzero"`
	ReceivedUntil time.Time `json:"received_until,omitzero"`
	DurableUntil  time.Time `json:"durable_until,omitzero"`

	// HeldBytes is what is not durable yet: RAMBytes and FlashBytes. It covers
	// HeldFrom to HeldUntil, perhaps with holes. What is on flash may be in RAM too.
	HeldBytes  int64     `json:"held_bytes"`
	HeldChunks int       `json:"held_chunks"`
	RAMBytes   int64     `json:"ram_bytes"`
	FlashBytes int64     `json:"flash_bytes"`
	HeldFrom   time.Time `json:"held_from,omitzero"`
	HeldUntil  time.Time `json:"held_until,omitzero"`
	// OpenGaps are declared and not in the NVR's database yet.
	OpenGaps int `json:"open_gaps"`
	// DroppedChunks are those that the buffer had no room for; each is in a declared gap.
	DroppedChunks uint64 `json:"dropped_chunks"`
	Frames        uint64 `json:"frames"`
	SoundDropped  uint64 `json:"sound_dropped"`

	CameraSessions int64 `json:"camera_sessions"`
	// PacketsLost, DecodeErrors and CameraAbsence (seconds without a picture) are
	// the camera's or the LAN's loss, not ours.
	PacketsLost   int64   `json:"packets_lost"`
	DecodeErrors  int64   `json:"decode_errors"`
	CameraAbsence float64 `json:"camera_absence_s"`
}

// Status is the hub as a whole.
type Status struct {
	Hub           vms.HubID `json:"hub"`
	Version       string    `json:"version"`
	Time          time.Time `json:"time"`
	TimeUncertain bool      `json:"time_uncertain"`
	// TimeError bounds the error of Time, milliseconds, absent while nobody has
	// told the time; TimeSource is who told it last: "nvr", "sntp", "rtc" or "none".
	TimeError  *int64 `json:"time_error_ms,omitempty"`
	TimeSource string `json:"time_source"`
	// Uptime is in seconds.
	Uptime float64 `json:"uptime_s"`
	// Control is the line to the NVR: "online", "offline" or "connecting".
	Control        string `json:"control"`
	ControlProblem string `json:"control_problem,omitempty"`
	// MQTT is the connection to the broker: "online", "offline" or "none", when the
	// cloud has named none. The problem says why it is not online, and sometimes
	// what is wrong although it is.
	MQTT        string `json:"mqtt"`
	MQTTProblem string `json:"mqtt_problem,omitempty"`
	// Desired is what the cloud wants of the hub, and what has become of it; absent
	// before it has said anything.
	Desired *Desired `json:"desired,omitempty"`
	Streams int      `json:"streams"`

	RAM    RAM    `json:"ram"`
	Flash  *Flash `json:"flash,omitempty"` // not there: switched off
	Uplink Uplink `json:"uplink"`
}

// Desired is a desired document and how far it is done.
type Desired struct {
	Revision int64 `json:"revision"`
	// State is a wire.SyncState word. The problem is that of the document; those of
	// its items are in Items.
	State   string              `json:"state"`
	Problem string              `json:"problem,omitempty"`
	Items   []wire.ReportedItem `json:"items,omitempty"`
}

// RAM is the buffer in RAM of all streams together, bytes.
type RAM struct {
	Used  int64 `json:"used"`
	Limit int64 `json:"limit"`
	// Pressure: it is so full that workers are asked to store unfinished recordings.
	Pressure bool `json:"pressure"`
}

// Flash is the buffer on flash, bytes, and what it does to the chip.
type Flash struct {
	Used int64 `json:"used"`
	// Limit is what may be used now; it follows the free space.
	Limit   int64  `json:"limit"`
	Problem string `json:"problem,omitempty"`
	// Written is since the agent started, WrittenToday since midnight UTC,
	// WrittenEver since WrittenSince: all that the file system was given.
	Written      int64  `json:"written"`
	WrittenToday int64  `json:"written_today"`
	WrittenEver  int64  `json:"written_ever"`
	WrittenSince string `json:"written_since,omitempty"`
	// Endurance is what the chip can take in its life; LifeDays how long the rest
	// of it lasts if every day is like today, absent while nothing was written
	// today; Life says it in words.
	Endurance int64    `json:"endurance"`
	LifeDays  *float64 `json:"life_days,omitempty"`
	Life      string   `json:"life"`
}

// Uplink is what the hub's connection carries, bits per second.
type Uplink struct {
	// Measured is its capacity, 0 before it was seen; Limit what the schedule
	// allows now, 0 for no limit.
	Measured int64 `json:"measured_bps"`
	Limit    int64 `json:"limit_bps"`
	// Backfill is what the backlog may use now, where live leaves it.
	Backfill int64 `json:"backfill_bps"`
	// Delay is how long bytes wait in the uplink's queue, seconds.
	Delay float64 `json:"delay_s"`
	// Sent is all that the lanes have sent since the agent started, bytes.
	Sent int64 `json:"sent"`
}

// Config is what Handler needs.
type Config struct {
	Agent Agent
	// Key is the LAN key.
	Key string
	// Names are host names, beside addresses and localhost, under which the API may be called.
	Names []string
	// Metrics answers /metrics.
	Metrics http.Handler
	Log     *slog.Logger
}

// Handler returns the API.
func Handler(c Config) http.Handler {
	h := handler{c}
	var health obs.Health
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/streams", h.start)
	mux.HandleFunc("GET /v1/streams", h.keyed(h.list))
	mux.HandleFunc("DELETE /v1/streams/{id}", h.keyed(h.stop))
	mux.HandleFunc("GET /v1/status", h.keyed(h.status))
	mux.HandleFunc("POST /v1/events", h.keyed(h.event))
	mux.HandleFunc("POST /v1/doctor", h.keyed(h.doctor))
	mux.HandleFunc("GET /metrics", h.keyed(c.Metrics.ServeHTTP))
	mux.Handle("GET /healthz", health.Healthz())
	mux.Handle("GET /readyz", health.Readyz())
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		var allow []string
		for _, m := range []string{http.MethodGet, http.MethodPost, http.MethodDelete} {
			if _, pattern := mux.Handler(&http.Request{Method: m, URL: r.URL, Host: r.Host}); pattern != "/" {
				allow = append(allow, m)
			}
		}
		if len(allow) > 0 {
			w.Header().Set("Allow", strings.Join(allow, ", "))
			problem.Write(w, &problem.Problem{Status: http.StatusMethodNotAllowed, Title: "Method not allowed", Detail: r.Method + " is not one of this path."})
			return
		}
		problem.Respond(w, c.Log, fmt.Errorf("%w: no such path; the API is at /v1/streams, /v1/events, /v1/status and /v1/doctor", vms.ErrNotFound))
	})
	return guard(c.Names, mux)
}

type handler struct{ Config }

// keyed lets callers in who show the LAN key.
func (h handler) keyed(next http.HandlerFunc) http.HandlerFunc {
	want := sha256.Sum256([]byte(h.Key))
	return func(w http.ResponseWriter, r *http.Request) {
		shown, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		got := sha256.Sum256([]byte(shown))
		if !ok || h.Key == "" || subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
			w.Header().Set("WWW-Authenticate", `Bearer realm="LAN key"`)
			problem.Write(w, &problem.Problem{Type: problem.TypeUnauthorized, Status: http.StatusUnauthorized, Title: "The LAN key is needed",
				Detail: "Send \"Authorization: Bearer KEY\"; the key is in the file lan-key of the agent's data directory."})
			return
		}
		next(w, r)
	}
}

// start takes {token, camera}; the token authorizes it.
func (h handler) start(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Token  string     `json:"token"`
		Camera vms.Camera `json:"camera"`
	}
	if err := readJSON(w, r, &in); err != nil {
		problem.Respond(w, h.Log, err)
		return
	}
	s, err := h.Agent.Start(in.Token, in.Camera)
	if err != nil {
		problem.Respond(w, h.Log, err)
		return
	}
	w.Header().Set("Location", "/v1/streams/"+string(s.ID))
	writeJSON(w, http.StatusCreated, s)
}

func (h handler) list(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]any{"streams": h.Agent.Streams()})
}

func (h handler) stop(w http.ResponseWriter, r *http.Request) {
	if err := h.Agent.Stop(vms.StreamID(r.PathValue("id"))); err != nil {
		problem.Respond(w, h.Log, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// event takes {channel?, pre_roll_s?, post_roll_s?}.
func (h handler) event(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Channel  vms.ChannelID `json:"channel"`
		PreRoll  *int64        `json:"pre_roll_s"`
		PostRoll *int64        `json:"post_roll_s"`
	}
	err := readJSON(w, r, &in)
	if err == nil && in.Channel != "" && !vms.ValidID(in.Channel) {
		err = fmt.Errorf("%w: channel %.40q is no id", vms.ErrInvalid, in.Channel)
	}
	var pre, post *time.Duration
	if err == nil {
		pre, err = seconds("pre_roll_s", in.PreRoll, 0, MaxPreRoll)
	}
	if err == nil {
		post, err = seconds("post_roll_s", in.PostRoll, time.Second, MaxPostRoll)
	}
	if err == nil {
		err = h.Agent.Event(in.Channel, pre, post)
	}
	if err != nil {
		problem.Respond(w, h.Log, err)
		return
	}
	w.WriteHeader(http.StatusAccepted)
}

func seconds(name string, n *int64, least, most time.Duration) (*time.Duration, error) {
	if n == nil {
		return nil, nil
	}
	if *n < int64(least/time.Second) || *n > int64(most/time.Second) {
		return nil, fmt.Errorf("%w: %s is %d, want %d to %d", vms.ErrInvalid, name, *n, least/time.Second, most/time.Second)
	}
	d := time.Duration(*n) * time.Second
	return &d, nil
}

func (h handler) doctor(w http.ResponseWriter, r *http.Request) {
	report, err := h.Agent.Doctor(r.Context())
	if err != nil {
		problem.Respond(w, h.Log, err)
		return
	}
	writeJSON(w, http.StatusOK, report)
}

func (h handler) status(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, h.Agent.Status())
}

func readJSON(w http.ResponseWriter, r *http.Request, v any) error {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err == nil {
		if _, extra := d.Token(); extra != io.EOF {
			err = errors.New("bytes after the JSON object")
		}
	}
	if err != nil {
		return fmt.Errorf("%w: request body: %w", vms.ErrInvalid, err)
	}
	return nil
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		return // the caller is gone
	}
}
