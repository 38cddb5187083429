package agent

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/zipato/vms/agent/control"
	"github.com/zipato/vms/agent/lan"
	"github.com/zipato/vms/pkg/obs"
	"github.com/zipato/vms/pkg/vms"
)

// fullWrites is how often all of a flash chip can be written, as long as nobody
// says better: eMMC and SD cards of three bits a cell are rated for about 3,000
// cycles, and controllers write some three bytes for one where the writes are
// as large as the spool's.
const fullWrites = 1000

// chipLife estimates what the chip below dir can take in its life, bytes; 0: it
// cannot be told.
func chipLife(dir string) int64 {
	for {
		var fs syscall.Statfs_t
		if err := syscall.Statfs(dir, &fs); err == nil {
			return int64(min(float64(fs.Blocks)*float64(fs.Bsize)*fullWrites, math.MaxInt64/2))
		}
		up := filepath.Dir(dir)
		if up == dir {
			return 0
		}
		dir = up // it is made when it is needed
	}
}

// lifeLeft is how many days the chip lasts if every day is like today, and the
// same in words; -1 when nothing was written today.
func lifeLeft(endurance, ever, today int64) (days float64, words string) {
	left := max(endurance-ever, 0)
	switch {
	case endurance <= 0:
		return -1, "It is not known what the chip can take."
	case left == 0:
		return 0, "What the chip can take has been written. Replace it, or give the agent more RAM and less flash."
	case today <= 0:
		return -1, "Nothing was written today."
	}
	days = float64(left) / float64(today)
	switch {
	case days < 2*365:
		words = fmt.Sprintf("At today's rate the chip lasts %.0f more days.", days)
	case days < 100*365:
		words = fmt.Sprintf("At today's rate the chip lasts %.0f more years.", days/365)
	default:
		words = "At today's rate the chip lasts more than 100 years."
	}
	return days, words
}

// Streams implements lan.Agent.
func (a *Agent) Streams() []lan.Stream {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tidy()
	out := make([]lan.Stream, 0, len(a.entries))
	for _, e := range a.entries {
		out = append(out, a.describe(e))
	}
	slices.SortFunc(out, func(x, y lan.Stream) int { return strings.Compare(string(x.ID), string(y.ID)) })
	return out
}

// describe is what the local API says of a stream. a.mu is held.
func (a *Agent) describe(e *entry) lan.Stream {
	st, cam, m := e.stream.Status(), e.stream.Camera(), e.stream.Mux()
	sp := a.store.Spool(e.channel)
	held := sp.Stats()
	out := lan.Stream{
		ID: e.id, Channel: e.channel, Camera: cameraHost(e.camera), Origin: e.origin, Mode: string(e.mode), Recording: e.stream.Recording(),
		State: st.State, Problem: st.Problem, Since: e.since, Delivering: e.stream.Delivering() && e.ended.IsZero(),
		CapturedUntil: e.stream.Captured(), ReceivedUntil: e.stream.Received(), DurableUntil: held.DurableUntil,
		HeldBytes: held.RAM + held.Flash, HeldChunks: held.Chunks, RAMBytes: held.RAM, FlashBytes: held.Flash,
		OpenGaps: held.Gaps, DroppedChunks: held.Dropped,
		Frames: m.Frames, SoundDropped: m.SoundDropped,
		CameraSessions: cam.Sessions, PacketsLost: cam.PacketsLost, DecodeErrors: cam.DecodeErrors + int64(m.Unreadable),
		CameraAbsence: e.stream.Absent().Seconds(),
	}
	for _, r := range sp.Holding() {
		if out.HeldFrom.IsZero() || r.Start.Before(out.HeldFrom) {
			out.HeldFrom = r.Start
		}
		if r.End.After(out.HeldUntil) {
			out.HeldUntil = r.End
		}
	}
	return out
}

// Status implements lan.Agent.
func (a *Agent) Status() lan.Status {
	utc, uncertain := a.clock.UTC(time.Now())
	control, why := a.controlState()
	mqtt, whyMQTT := a.mqttState()
	st, up := a.store.Stats(), a.governor.Stats()
	_, pressure := a.store.Pressure()
	out := lan.Status{
		Hub: a.id.Hub, Version: a.cfg.Version, Time: utc, TimeUncertain: uncertain,
		TimeSource: a.clock.Source(), Uptime: time.Since(a.started).Seconds(), Control: control, ControlProblem: why,
		MQTT: mqtt, MQTTProblem: whyMQTT, Desired: a.desired(), Streams: len(a.Streams()),
		RAM:    lan.RAM{Used: st.RAM, Limit: st.RAMLimit, Pressure: pressure},
		Uplink: lan.Uplink{Measured: 8 * up.Uplink, Limit: 8 * up.Cap, Backfill: 8 * up.Backfill, Delay: up.Delay.Seconds(), Sent: up.Sent},
	}
	if c := a.clock.Reported(); c.ErrorMS >= 0 {
		out.TimeError = &c.ErrorMS
	}
	if a.cfg.Flash < 0 {
		return out
	}
	// Naming the day is all: the count begins anew with it.
	if err := a.state.FlashWritten(time.Now().UTC().Format(time.DateOnly), 0); err != nil {
		a.cfg.Log.Warn("cannot save how much was written to flash", "err", err)
	}
	today, ever, since := a.state.Flash()
	// What is counted up once a minute may lie behind.
	ever += max(0, st.FlashToday-today)
	today = max(today, st.FlashToday)
	days, life := lifeLeft(a.chip, ever, today)
	out.Flash = &lan.Flash{
		Used: st.Flash, Limit: st.FlashLimit, Problem: cmp.Or(a.flashBroken, st.FlashProblem),
		Written: st.FlashWritten, WrittenToday: today, WrittenEver: ever, WrittenSince: since,
		Endurance: a.chip, Life: life,
	}
	if days >= 0 {
		out.Flash.LifeDays = &days
	}
	return out
}

// desired is what the cloud wants and how far it is done; nil before it has said
// anything.
func (a *Agent) desired() *lan.Desired {
	a.reports.mu.Lock()
	defer a.reports.mu.Unlock()
	r := a.reports.now
	if r.Revision == 0 && r.Problem == "" {
		return nil
	}
	return &lan.Desired{Revision: r.Revision, State: string(r.State), Problem: r.Problem, Items: r.Streams}
}

// mqttState says how the connection to the broker is.
func (a *Agent) mqttState() (state, problem string) {
	up, err := a.mqtt.Connected()
	switch {
	case up && err != nil:
		return "online", err.Error()
	case up:
		return "online", ""
	case errors.Is(err, control.ErrNoBroker):
		if b := a.broker(); b == nil || b.URL == "" {
			return "none", ""
		}
		return "offline", err.Error()
	case err != nil:
		return "offline", err.Error()
	}
	return "offline", ""
}

// figures are the metrics that are read when somebody asks for them.
type figures struct {
	agent    *Agent
	registry *obs.Registry
	hub      []hubFigure
	gauges   []streamGauge
	counters []streamCounter

	mu    sync.Mutex
	shown map[vms.ChannelID]vms.StreamID
}

type hubFigure struct {
	set   func(float64)
	value func(*lan.Status) float64
}

type streamGauge struct {
	vec   *obs.GaugeVec
	value func(*lan.Stream) float64
}

type streamCounter struct {
	vec   *obs.CounterVec
	value func(*lan.Stream) float64
}

// newFigures registers the metrics.
func (a *Agent) newFigures(r *obs.Registry) *figures {
	f := &figures{agent: a, registry: r, shown: make(map[vms.ChannelID]vms.StreamID)}
	hub := func(name, help string, value func(*lan.Status) float64) {
		f.hub = append(f.hub, hubFigure{r.Gauge(name, help).Set, value})
	}
	gauge := func(name, help string, value func(*lan.Stream) float64) {
		f.gauges = append(f.gauges, streamGauge{r.GaugeVec(name, help, "channel"), value})
	}
	counter := func(name, help string, value func(*lan.Stream) float64) {
		f.counters = append(f.counters, streamCounter{r.CounterVec(name, help, "channel"), value})
	}
	hub("vms_agent_streams", "Streams that run, or bring what they hold.", func(s *lan.Status) float64 { return float64(s.Streams) })
	hub("vms_agent_ram_bytes", "RAM that holds footage.", func(s *lan.Status) float64 { return float64(s.RAM.Used) })
	hub("vms_agent_ram_limit_bytes", "The most RAM that may hold footage.", func(s *lan.Status) float64 { return float64(s.RAM.Limit) })
	hub("vms_agent_pressure", "1 while workers are asked to store unfinished recordings.", func(s *lan.Status) float64 { return one(s.RAM.Pressure) })
	hub("vms_agent_uplink_bits_per_second", "What the uplink can carry, as far as it was seen.", func(s *lan.Status) float64 { return float64(s.Uplink.Measured) })
	hub("vms_agent_uplink_limit_bits_per_second", "What the schedule allows now, 0 for no limit.", func(s *lan.Status) float64 { return float64(s.Uplink.Limit) })
	hub("vms_agent_backfill_bits_per_second", "What the backlog may use now, where live leaves it.", func(s *lan.Status) float64 { return float64(s.Uplink.Backfill) })
	hub("vms_agent_uplink_delay_seconds", "How long bytes wait in the uplink's queue.", func(s *lan.Status) float64 { return s.Uplink.Delay })
	r.CounterFunc("vms_agent_sent_bytes_total", "Bytes that the lanes have sent.", func() float64 { return float64(a.governor.Stats().Sent) })
	if a.cfg.Flash > 0 {
		hub("vms_agent_flash_bytes", "Flash that holds footage.", func(s *lan.Status) float64 { return float64(s.Flash.Used) })
		hub("vms_agent_flash_limit_bytes", "The most flash that may hold footage now.", func(s *lan.Status) float64 { return float64(s.Flash.Limit) })
		hub("vms_agent_flash_problem", "1 while the flash cannot be used.", func(s *lan.Status) float64 { return one(s.Flash.Problem != "") })
		hub("vms_agent_flash_written_today_bytes", "Written to flash since midnight UTC.", func(s *lan.Status) float64 { return float64(s.Flash.WrittenToday) })
		hub("vms_agent_flash_life_days", "How long the chip lasts if every day is like today.", func(s *lan.Status) float64 {
			if s.Flash.LifeDays == nil {
				return math.Inf(1)
			}
			return *s.Flash.LifeDays
		})
		r.CounterFunc("vms_agent_flash_written_bytes_total", "Written to flash.", func() float64 { return float64(a.store.Stats().FlashWritten) })
	}

	gauge("vms_agent_captured_until_seconds", "Unix time up to which footage was captured.", func(s *lan.Stream) float64 { return unix(s.CapturedUntil) })
	gauge("vms_agent_received_until_seconds", "Unix time up to which workers have footage.", func(s *lan.Stream) float64 { return unix(s.ReceivedUntil) })
	gauge("vms_agent_durable_until_seconds", "Unix time up to which footage is in the object store.", func(s *lan.Stream) float64 { return unix(s.DurableUntil) })
	gauge("vms_agent_stream_ram_bytes", "RAM that the stream's footage takes.", func(s *lan.Stream) float64 { return float64(s.RAMBytes) })
	gauge("vms_agent_stream_flash_bytes", "Flash that the stream's footage takes.", func(s *lan.Stream) float64 { return float64(s.FlashBytes) })
	gauge("vms_agent_held_seconds", "Time from the oldest to the newest footage that is held.", func(s *lan.Stream) float64 { return s.HeldUntil.Sub(s.HeldFrom).Seconds() })
	gauge("vms_agent_open_gaps", "Declared gaps that the NVR has not committed.", func(s *lan.Stream) float64 { return float64(s.OpenGaps) })
	counter("vms_agent_dropped_chunks_total", "Chunks for which the buffer had no room.", func(s *lan.Stream) float64 { return float64(s.DroppedChunks) })
	counter("vms_agent_camera_sessions_total", "Times that the camera was opened and gave a picture.", func(s *lan.Stream) float64 { return float64(s.CameraSessions) })
	counter("vms_agent_camera_packets_lost_total", "RTP packets that the camera or the LAN lost.", func(s *lan.Stream) float64 { return float64(s.PacketsLost) })
	counter("vms_agent_camera_decode_errors_total", "RTP packets that made no sense.", func(s *lan.Stream) float64 { return float64(s.DecodeErrors) })
	counter("vms_agent_camera_absence_seconds_total", "Time in which the camera gave no picture.", func(s *lan.Stream) float64 { return s.CameraAbsence })
	return f
}

func one(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

func unix(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}

// ServeHTTP brings the metrics up to date and writes them.
func (f *figures) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.update()
	f.registry.ServeHTTP(w, r)
}

func (f *figures) update() {
	st, streams := f.agent.Status(), f.agent.Streams()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, h := range f.hub {
		h.set(h.value(&st))
	}
	gone := f.shown
	f.shown = make(map[vms.ChannelID]vms.StreamID, len(streams))
	for i := range streams {
		s := &streams[i]
		ch := string(s.Channel)
		if gone[s.Channel] != s.ID {
			f.forget(ch) // another run of the stream counts from zero
		}
		delete(gone, s.Channel)
		f.shown[s.Channel] = s.ID
		for _, g := range f.gauges {
			g.vec.With(ch).Set(g.value(s))
		}
		for _, c := range f.counters {
			n := c.vec.With(ch)
			n.Add(c.value(s) - n.Value())
		}
	}
	for ch := range gone {
		f.forget(string(ch))
	}
}

// forget drops the series of a channel.
func (f *figures) forget(ch string) {
	for _, g := range f.gauges {
		g.vec.Delete(ch)
	}
	for _, c := range f.counters {
		c.vec.Delete(ch)
	}
}
