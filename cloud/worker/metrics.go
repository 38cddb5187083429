package worker

import (
	"time"

	"github.com/zipato/vms/pkg/obs"
	"github.com/zipato/vms/pkg/vms"
)

// lags is the durable lag of each channel, as it is shown. It belongs to the
// goroutine that sweeps.
type lags struct {
	vec   *obs.GaugeVec
	shown map[vms.ChannelID]*obs.Gauge
}

// register names what can be seen of w from outside.
func (w *Worker) register(m *obs.Registry) {
	gauge := func(name, help string, f func() float64) { m.GaugeFunc(name, help, f) }
	count := func(name, help string, f func() float64) { m.CounterFunc(name, help, f) }
	w.lags = lags{
		vec:   m.GaugeVec("vms_worker_durable_lag_seconds", "Age of the oldest chunk of the channel that was received and is not durable, 0: there is none.", "channel"),
		shown: make(map[vms.ChannelID]*obs.Gauge),
	}
	gauge("vms_worker_tmpfs_bytes", "Bytes of recordings in the worker's directory.", func() float64 { return float64(w.dir.used.Load()) })
	gauge("vms_worker_tmpfs_limit_bytes", "What vms_worker_tmpfs_bytes may become: the configured limit, or less when the file system is full.", func() float64 { return float64(w.dir.most.Load()) })
	flag := func(name, help string, f func() bool) {
		gauge(name, help, func() float64 {
			if f() {
				return 1
			}
			return 0
		})
	}
	flag("vms_worker_tmpfs_full", "1: the worker's directory is full, agents get no credit.", w.tmpfsFull)
	flag("vms_worker_overloaded", "1: the worker should get no new streams.", func() bool { return w.Load().Overloaded })
	flag("vms_worker_draining", "1: the worker takes no new streams, and waits to be rid of those it has.", w.draining.Load)
	gauge("vms_worker_streams", "Streams that have a lane, or had one a short while ago.", func() float64 { return float64(w.load.running.Load()) })
	gauge("vms_worker_open_recordings", "Recordings that are not complete.", func() float64 { return float64(w.open()) })

	gauge("vms_worker_lanes", "Connections of agents.", func() float64 { return float64(w.ingest.Conns()) })
	count("vms_worker_chunks_total", "Chunks that were taken, duplicates and previews too.", func() float64 { return float64(w.ingest.Stats().Chunks) })
	count("vms_worker_received_bytes_total", "Bytes of these, with their headers.", func() float64 { return float64(w.ingest.Stats().Bytes) })
	count("vms_worker_acks_total", "Acknowledgements that were sent.", func() float64 { return float64(w.ingest.Stats().Acks) })
	gauge("vms_worker_inflight_bytes", "Bytes of chunks that are being received.", func() float64 { return float64(w.ingest.Stats().InFlight) })
	gauge("vms_worker_credit_bytes", "Bytes that agents may send and did not yet.", func() float64 { return float64(w.ingest.Stats().Credit) })
	gauge("vms_worker_viewers", "Viewers of live pictures.", func() float64 { return float64(w.live.Viewers()) })

	gauge("vms_worker_uploads_waiting", "Recordings that are finished and not durable.", func() float64 { return float64(w.uploader.Waiting()) })
	count("vms_worker_upload_retries_total", "Uploads that failed and were tried again.", func() float64 { return float64(w.uploader.Retries()) })
	w.uploader.Register(m)
	parts := m.Counter("vms_worker_parts_total", "Parts of recordings that were stored.")
	wholes := m.Counter("vms_worker_recordings_total", "Whole recordings that were stored.")
	bytes := m.CounterVec("vms_worker_uploaded_bytes_total", "Bytes of the objects that were stored: parts, and whole recordings.", "kind")
	w.uploader.Stored = func(r vms.Recording) {
		n, kind := wholes, "recording"
		if r.Provisional() {
			n, kind = parts, "part"
		}
		n.Inc()
		bytes.With(kind).Add(float64(r.Bytes))
	}
}

// open counts the open recordings.
func (w *Worker) open() (n int) {
	for _, s := range w.all() {
		open, _, _ := s.openSince()
		n += open
	}
	return n
}

// showLags notes how old the oldest chunk of each stream is that is not durable,
// and returns how old the oldest one of all is.
func (w *Worker) showLags(now time.Time) (worst time.Duration) {
	streams := w.all()
	known := make(map[vms.ChannelID]bool, len(streams))
	for _, s := range streams {
		known[s.ch] = true
		g := w.lags.shown[s.ch]
		if g == nil {
			g = w.lags.vec.With(string(s.ch))
			w.lags.shown[s.ch] = g
		}
		lag := time.Duration(0)
		if t := s.oldest(); !t.IsZero() {
			lag = now.Sub(t)
		}
		g.Set(max(0, lag.Seconds()))
		worst = max(worst, lag)
	}
	for ch := range w.lags.shown {
		if !known[ch] {
			delete(w.lags.shown, ch)
			w.lags.vec.Delete(string(ch))
		}
	}
	return worst
}

// oldest is when the oldest chunk came that is not durable, zero: all are.
func (s *stream) oldest() (t time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	older := func(o time.Time) {
		if !o.IsZero() && (t.IsZero() || o.Before(t)) {
			t = o
		}
	}
	for _, r := range s.recs {
		older(r.oldest())
	}
	for u := range s.uploads {
		older(u.oldest)
	}
	return t
}

// mark says when the chunks from number seq on came.
type mark struct {
	seq uint64
	at  time.Time
}

// markEvery is how exactly it is known when a chunk came: a recording has few
// marks then.
const markEvery = time.Second

// came notes when a chunk of r came.
func (r *recording) came(seq uint64, now time.Time) {
	if n := len(r.marks); n == 0 || now.Sub(r.marks[n-1].at) >= markEvery {
		r.marks = append(r.marks, mark{seq, now})
	}
}

// oldest is when the oldest chunk of r came that is in no registered part, zero:
// there is none.
func (r *recording) oldest() time.Time {
	if r.stored() {
		return time.Time{}
	}
	for len(r.marks) > 1 && r.marks[1].seq <= r.parted+1 {
		r.marks = r.marks[1:] // parts have all before
	}
	if r.parted < r.open.Chunks.First || len(r.marks) == 0 {
		return r.opened
	}
	return r.marks[0].at
}
