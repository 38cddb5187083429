package stream

import (
	"errors"
	"strings"
	"time"

	"github.com/zipato/vms/agent/camera"
	"github.com/zipato/vms/agent/mux"
	"github.com/zipato/vms/agent/preroll"
	"github.com/zipato/vms/agent/spool"
	"github.com/zipato/vms/agent/uplink"
	"github.com/zipato/vms/pkg/cmaf"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// sink is the Stream as the camera sees it. Nothing in it blocks: the muxer
// computes, and the spool drops rather than waits.
type sink Stream

// Open implements camera.Sink.
func (k *sink) Open(v camera.VideoFormat, a *camera.AudioFormat) {
	s := (*Stream)(k)
	video := cmaf.VideoParams{Codec: v.Codec, VPS: v.VPS, SPS: v.SPS, PPS: v.PPS}
	audio := (*mux.Sound)(a)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.openGate(video, audio) {
		s.openMux(video, audio)
	}
}

// Video implements camera.Sink.
func (k *sink) Video(pts int64, ntp, arrival time.Time, au [][]byte) {
	s := (*Stream)(k)
	s.mu.Lock()
	s.settle() // before the muxer hears of the new time
	record, over := s.pass(preroll.Unit{PTS: pts, Camera: ntp, Arrival: arrival, Data: au})
	if record {
		utc, uncertain := s.utc(arrival)
		s.mux.Video(pts, utc, uncertain, ntp, au)
	}
	s.mu.Unlock()
	if over {
		s.recordingChanged()
	}
}

// Audio implements camera.Sink.
func (k *sink) Audio(pts int64, _, arrival time.Time, au []byte) {
	s := (*Stream)(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settle()
	if s.gate == nil || s.gate.recording {
		utc, _ := s.utc(arrival)
		s.mux.Audio(pts, utc, au)
		return
	}
	s.gate.ring.Add(preroll.Unit{Audio: true, PTS: pts, Arrival: arrival, Data: [][]byte{au}})
}

// Lost implements camera.Sink.
func (k *sink) Lost(err error) {
	s := (*Stream)(k)
	s.lost()
	if err != nil {
		s.endAll(string(vms.CauseCameraOffline))
	}
}

// source is the spool as a lane sees it.
type source struct{ *spool.Spool }

// Live implements uplink.Source.
func (s source) Live(worker vms.Instance, have []vms.ChunkRange) uplink.Cursor {
	return cursor{s.Spool.Live(worker, have)}
}

// Backfill implements uplink.Source.
func (s source) Backfill(worker vms.Instance, have []vms.ChunkRange, newestFirst bool) uplink.Cursor {
	return cursor{s.Spool.Backfill(worker, have, newestFirst)}
}

type cursor struct{ *spool.Cursor }

// HandOver implements uplink.Cursor.
func (c cursor) HandOver(worker vms.Instance, have []vms.ChunkRange) uplink.Cursor {
	return cursor{c.Cursor.HandOver(worker, have)}
}

// newLane makes the stream's lane of a kind.
func (s *Stream) newLane(kind vms.Lane) *uplink.Lane {
	l := &uplink.Lane{
		Kind: kind, Agent: s.cfg.Agent, Source: source{s.cfg.Spool}, Assigned: s.assigned, Log: s.cfg.Log, Client: s.cfg.Client,
		NewestFirst: s.cfg.NewestFirst, Governor: s.cfg.Governor, Pressure: s.pressure,
		WantWorker: func(m wire.WantWorker) { s.send(&m) },
		OnReceived: func(end time.Time) {
			s.stateMu.Lock()
			defer s.stateMu.Unlock()
			if end.After(s.received) {
				s.received = end
			}
		},
		OnState:   func(error) {},
		OnWatched: func(bool) {},
	}
	// A stream is as well as its live lane; what is only delivered, as its backfill.
	if kind == vms.LaneLive || s.cfg.Deliver {
		l.OnState = func(err error) {
			s.change(func() {
				s.laneUp, s.laneErr = err == nil, err
				if errors.Is(err, uplink.ErrIdle) {
					s.laneErr = nil
				}
			})
		}
	}
	if kind == vms.LaneLive {
		l.OnWatched = func(on bool) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.mux.SetWatched(on)
		}
	}
	return l
}

// hello begins a session.
func (s *Stream) hello() *wire.SessionHello {
	return &wire.SessionHello{
		Agent: s.cfg.Agent, Boot: s.cfg.Boot, Epoch: s.Epoch(), Holding: s.cfg.Spool.Holding(), Worker: s.pushing(),
	}
}

// pushing names the worker instance that takes the stream now: live's, where
// that lane is up. Empty: none.
func (s *Stream) pushing() vms.Instance {
	for _, l := range s.lanes {
		if w := l.Pushing(); w != "" {
			return w
		}
	}
	return ""
}

// sessionState is told when the session comes and goes.
func (s *Stream) sessionState(err error) {
	s.change(func() { s.sessUp, s.sessErr = err == nil, err })
	if err != nil {
		return
	}
	s.cfg.Spool.Resend()
	st := s.Status()
	s.send(&wire.StreamState{State: st.State, Problem: st.Problem})
	s.askTime()
	s.sendGaps()
}

// message takes what the NVR says.
func (s *Stream) message(m wire.SessionMessage) {
	switch m := m.(type) {
	case *wire.Assign:
		s.cfg.Log.Info("worker assigned", "worker", m.Worker, "generation", m.Generation, "why", m.Why)
		s.mu.Lock()
		recording := time.Duration(m.Segment.RecordingMS) * time.Millisecond
		s.mux.SetOptions(recording, s.phase(recording), time.Duration(m.Segment.ChunkMS)*time.Millisecond)
		s.mu.Unlock()
		s.cfg.Spool.Durable(m.Durable)
		s.assigned.Put(m)
	case *wire.Durable:
		s.cfg.Spool.Durable(m.Ranges)
	case *wire.Committed:
		s.cfg.Spool.Committed(m.IDs)
		select {
		case s.committed <- struct{}{}:
		default: // it is being looked at
		}
		s.sendGaps()
	case *wire.TimeAnswer:
		s.learnTime(m)
	}
}

func (s *Stream) askTime() {
	now := time.Now()
	s.stateMu.Lock()
	if len(s.asked) > 16 {
		clear(s.asked) // answers that never came
	}
	cookie := now.UnixMicro()
	s.asked[cookie] = now
	s.stateMu.Unlock()
	s.send(&wire.TimeQuery{Sent: cookie})
}

func (s *Stream) learnTime(m *wire.TimeAnswer) {
	now := time.Now()
	s.stateMu.Lock()
	asked, ok := s.asked[m.Sent]
	delete(s.asked, m.Sent)
	s.stateMu.Unlock()
	if ok && s.cfg.Clock.Learn(asked, now, m.ServerTime) {
		s.cfg.Log.Warn("the hub's clock made a step", "server_time", m.ServerTime)
	}
}

// change applies f and tells everybody when the state became another.
func (s *Stream) change(f func()) {
	s.set(func() Status { f(); return s.derive() })
}

// maxProblem bounds a problem: the NVR refuses a longer one (wire.StreamState).
const maxProblem = 1000

// set makes what f returns the state. f is called under stateMu. Changes are
// told one after the other: the last one told is the state.
func (s *Stream) set(f func() Status) {
	s.tellMu.Lock()
	defer s.tellMu.Unlock()
	s.stateMu.Lock()
	st := f()
	if len(st.Problem) > maxProblem {
		st.Problem = strings.ToValidUTF8(st.Problem[:maxProblem], "")
	}
	same := st == s.status
	s.status = st
	s.stateMu.Unlock()
	if same {
		return
	}
	s.cfg.Log.Info("stream state", "state", st.State, "problem", st.Problem)
	s.send(&wire.StreamState{State: st.State, Problem: st.Problem})
	s.cfg.OnState(st)
}

// derive makes one state of camera, lane and session. stateMu is held.
func (s *Stream) derive() Status {
	st := Status{State: s.camState.State, Problem: s.camState.Problem}
	switch {
	case s.delivering:
		// What is held waits for whoever cannot be reached.
		return Status{State: wire.StateStopped, Problem: s.cut()}
	case st.State == "":
		st.State = wire.StateStarting
		if s.sessErr != nil {
			st.Problem = "The NVR cannot be reached: " + s.sessErr.Error()
		}
	case st.State != wire.StateStreaming:
	case s.laneUp:
		return Status{State: wire.StateStreaming}
	default:
		return Status{State: wire.StateBuffering, Problem: s.cut()}
	}
	return st
}

// cut says which line is down, if one is. stateMu is held.
func (s *Stream) cut() string {
	switch {
	case s.laneUp:
	case s.laneErr != nil:
		return "The worker cannot be reached; the hub keeps the footage: " + s.laneErr.Error()
	case s.sessErr != nil:
		return "The NVR cannot be reached; the hub keeps the footage: " + s.sessErr.Error()
	}
	return ""
}
