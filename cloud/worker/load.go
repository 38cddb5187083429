package worker

import (
	"sync/atomic"
	"time"

	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
)

// A worker is overloaded when one of these is passed, and until it is well below:
// what is decided by them must not come and go.
const (
	// fullDir is how much of the directory is in use, in percent: the rest is for
	// the streams that are here.
	fullDir, easedDir = 80, 70
	// longLag is a durable lag with which uploads do not keep up: a recording is 30 s.
	longLag, easedLag = 90 * time.Second, 60 * time.Second
	// easedRate is how much of Capacity.BytesPerSecond is well below it, in percent.
	easedRate = 90
)

// rateOver is how many seconds BytesPerSecond is a mean of.
const rateOver = 10

// load is what is known of a worker's load between two looks. Load must not wait
// for anything: a worker whose heartbeats stay out counts as dead.
type load struct {
	running atomic.Int64 // streams with a lane, or that had one until Config.Grace ago
	rate    atomic.Int64 // bytes a second
	lag     atomic.Int64 // time.Duration
	// tight: there is no place for another stream. slow: nor would it be stored in time.
	tight, slow atomic.Bool

	samples []sample // of the goroutine that sweeps
}

// sample is how many bytes had come at a time.
type sample struct {
	at    time.Time
	bytes int64
}

// Load is what the NVR has to know with each heartbeat. It does not wait.
func (w *Worker) Load() vms.WorkerLoad {
	return vms.WorkerLoad{
		Streams: int(w.load.running.Load()), Lanes: w.ingest.Conns(), Viewers: w.live.Viewers(),
		BytesPerSecond: w.load.rate.Load(), TmpfsUsed: w.dir.used.Load(), TmpfsLimit: w.dir.most.Load(),
		Lag: time.Duration(w.load.lag.Load()), UploadsWaiting: int(w.uploader.Waiting()),
		Overloaded: w.crowded() || w.load.slow.Load(), Draining: w.draining.Load(),
	}
}

// weigh looks at the load. lag is that of the worst channel.
func (w *Worker) weigh(now time.Time, lag time.Duration) {
	l, c := &w.load, w.cfg.Capacity
	l.samples = append(l.samples, sample{now, w.ingest.Stats().Bytes})
	l.samples = l.samples[max(0, len(l.samples)-1-rateOver):]
	first, last := l.samples[0], l.samples[len(l.samples)-1]
	if d := last.at.Sub(first.at); d > 0 {
		l.rate.Store(int64(float64(last.bytes-first.bytes) / d.Seconds()))
	}
	l.lag.Store(int64(lag))
	l.slow.Store(lag > longLag || l.slow.Load() && lag > easedLag)
	dir, rate := int64(fullDir), c.BytesPerSecond
	if l.tight.Load() {
		dir, rate = easedDir, rate*easedRate/100
	}
	l.tight.Store(w.dir.used.Load()*100 > w.dir.most.Load()*dir || c.BytesPerSecond > 0 && l.rate.Load() >= rate)
}

// crowded reports whether another stream would take from those that are here.
func (w *Worker) crowded() bool {
	most := w.cfg.Capacity.Streams
	return w.load.tight.Load() || most > 0 && w.load.running.Load() >= int64(most)
}

// admits reports whether the lane of a ticket is let in: always if its stream is
// here, or something of it. A worker that is only slow to store takes others, too:
// the NVR sends it none while there is another, and else the picture is there at least.
func (w *Worker) admits(t token.Push) bool {
	return w.known(t.Channel) != nil || !w.draining.Load() && !w.crowded()
}
