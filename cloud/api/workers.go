package api

import (
	"context"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/vms"
)

// Worker is a process that receives streams.
type Worker struct {
	ID       vms.WorkerID   `json:"id" example:"worker_local" doc:"The worker's id."`
	Instance vms.Instance   `json:"instance" example:"run_7r5t1v3f9k2m8q0x" doc:"This run of it."`
	State    string         `json:"state" enum:"up,draining,lost" example:"up" doc:"up: it takes streams; draining: it takes none, and its own are moved to others; lost: it is not heard, and what it had is moved."`
	Zone     string         `json:"zone,omitempty" example:"fra1" doc:"Where it runs; absent: nowhere in particular."`
	Version  string         `json:"version" example:"1.4.0" doc:"Of its program."`
	PushURL  string         `json:"push_url" example:"wss://w1.example.com/push/v1" doc:"Where hubs push."`
	LiveURL  string         `json:"live_url,omitempty" example:"wss://w1.example.com/live/v1/mse" doc:"Where browsers watch."`
	Assigned int            `json:"assigned" example:"20" doc:"Streams that are assigned to it."`
	Capacity WorkerCapacity `json:"capacity" doc:"How much it takes."`
	Load     WorkerLoad     `json:"load" doc:"What it said of itself last."`
	Since    Time           `json:"since" doc:"When this run of it came up."`
	SeenAt   Time           `json:"seen_at" doc:"When it was heard last."`
}

// WorkerCapacity is how much a worker takes.
type WorkerCapacity struct {
	Streams        int   `json:"streams" example:"40" doc:"Streams; 0: no limit of its own."`
	BytesPerSecond int64 `json:"bytes_per_second" example:"12500000" doc:"Bytes per second that it receives; 0: no limit of its own."`
}

// WorkerLoad is what a worker has to do.
type WorkerLoad struct {
	Streams        int   `json:"streams" example:"20" doc:"Channels that it holds something of."`
	Lanes          int   `json:"lanes" example:"21" doc:"Connections of hubs."`
	Viewers        int   `json:"viewers" example:"2" doc:"Viewers of live pictures."`
	BytesPerSecond int64 `json:"bytes_per_second" example:"5000000" doc:"What it receives."`
	TmpfsBytes     int64 `json:"tmpfs_bytes" example:"150000000" doc:"Bytes of recordings that are not stored yet."`
	TmpfsLimit     int64 `json:"tmpfs_limit_bytes" example:"536870912" doc:"What tmpfs_bytes may become."`
	LagMS          int64 `json:"lag_ms" example:"31000" doc:"Age of the oldest chunk that it has received and not stored, milliseconds."`
	UploadsWaiting int   `json:"uploads_waiting" example:"1" doc:"Objects that wait to be stored."`
	Overloaded     bool  `json:"overloaded" doc:"It takes no new streams."`
}

// WorkerList is all workers.
type WorkerList struct {
	Workers []Worker `json:"workers" doc:"By id; those that were lost stay for some minutes."`
	Wanted  int      `json:"wanted" example:"3" doc:"How many there should be for the load of this moment, for whoever starts and stops them."`
}

// WorkerPath names a worker.
type WorkerPath struct {
	ID vms.WorkerID `path:"id" pattern:"^[a-z0-9_-]{1,64}$" doc:"The worker's id."`
}

// addWorkers adds what is the operator's: who has the account's token, until
// there are accounts.
func (s *server) addWorkers() {
	const base = "/api/v1/workers"
	tags := []string{tagWorkers}
	register(s, huma.Operation{
		OperationID: "list-workers", Method: http.MethodGet, Path: base, Tags: tags,
		Summary:     "List workers",
		Description: "All of them, on one page.",
	}, func(context.Context, *struct{}) (*struct{ Body WorkerList }, error) {
		list := WorkerList{Workers: []Worker{}, Wanted: s.NVR.WorkersWanted()}
		for _, w := range s.NVR.Workers() {
			list.Workers = append(list.Workers, workerOf(w))
		}
		return &struct{ Body WorkerList }{list}, nil
	})
	register(s, huma.Operation{
		OperationID: "drain-worker", Method: http.MethodPost, Path: base + "/{id}/drain", Tags: tags,
		Summary: "Drain a worker",
		Description: "It takes no streams any more, for as long as it lives. Those that it has are moved to others, each with its next recording or within a minute; " +
			"while there is no other worker they stay. A worker that is a process of its own ends when it has none.",
		DefaultStatus: http.StatusAccepted,
		Errors:        []int{http.StatusNotFound},
	}, s.drainWorker)
}

func (s *server) drainWorker(ctx context.Context, in *WorkerPath) (*struct{ Body Worker }, error) {
	find := func(known Worker) Worker {
		all := s.NVR.Workers()
		if i := slices.IndexFunc(all, func(w nvr.WorkerStatus) bool { return w.ID == in.ID }); i >= 0 {
			return workerOf(all[i])
		}
		return known
	}
	before := find(Worker{})
	if err := s.NVR.DrainWorker(ctx, in.ID); err != nil {
		return nil, err
	}
	return &struct{ Body Worker }{find(before)}, nil // without streams it may be gone already
}

func workerOf(w nvr.WorkerStatus) Worker {
	return Worker{
		ID: w.ID, Instance: w.Instance, State: string(w.State), Zone: w.Zone, Version: w.Version, PushURL: w.PushURL, LiveURL: w.LiveURL,
		Assigned: w.Assigned, Since: Time{w.Since}, SeenAt: Time{w.Seen},
		Capacity: WorkerCapacity{Streams: w.Capacity.Streams, BytesPerSecond: w.Capacity.BytesPerSecond},
		Load: WorkerLoad{
			Streams: w.Streams, Lanes: w.Lanes, Viewers: w.Viewers, BytesPerSecond: w.BytesPerSecond,
			TmpfsBytes: w.TmpfsUsed, TmpfsLimit: w.TmpfsLimit, LagMS: w.Lag.Milliseconds(),
			UploadsWaiting: w.UploadsWaiting, Overloaded: w.Overloaded,
		},
	}
}
