package cloud

import (
	"net/http"
	"sync"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/obs"
	"github.com/zipato/vms/pkg/vms"
)

// fleet is what is seen of the workers at the NVR.
type fleet struct {
	nvr     *nvr.NVR
	states  *obs.GaugeVec
	streams *obs.GaugeVec

	mu    sync.Mutex
	shown map[vms.WorkerID]bool // in streams
	// others: there has been a worker elsewhere.
	others bool
}

func newFleet(n *nvr.NVR, m *obs.Registry) *fleet {
	f := &fleet{
		nvr: n, shown: make(map[vms.WorkerID]bool),
		states:  m.GaugeVec("vms_nvr_workers", "Workers, by what the NVR does with them: up takes streams, draining gets rid of its own, lost is not heard.", "state"),
		streams: m.GaugeVec("vms_nvr_streams", "Streams that are assigned to the worker.", "worker"),
	}
	m.GaugeFunc("vms_nvr_workers_wanted", "How many workers there should be for the streams, bytes and durable lag of this moment.",
		func() float64 { return float64(n.WorkersWanted()) })
	return f
}

// handler reads the numbers whenever somebody asks next for them.
func (f *fleet) handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.look()
		next.ServeHTTP(w, r)
	})
}

func (f *fleet) look() {
	f.mu.Lock()
	defer f.mu.Unlock()
	counts := map[nvr.WorkerState]int{nvr.WorkerUp: 0, nvr.WorkerDraining: 0, nvr.WorkerLost: 0}
	gone := f.shown
	f.shown = make(map[vms.WorkerID]bool)
	for _, w := range f.nvr.Workers() {
		counts[w.State]++
		f.streams.With(string(w.ID)).Set(float64(w.Assigned))
		f.shown[w.ID] = true
		delete(gone, w.ID)
	}
	for id := range gone {
		f.streams.Delete(string(id))
	}
	for state, n := range counts {
		f.states.With(string(state)).Set(float64(n))
	}
}

// elsewhere reports whether there has ever been a worker that is not local.
func (f *fleet) elsewhere(local vms.WorkerID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.others {
		return true
	}
	for _, w := range f.nvr.Workers() {
		f.others = f.others || w.ID != local
	}
	return f.others
}
