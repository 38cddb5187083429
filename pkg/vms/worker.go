package vms

import "time"

// WorkerInfo is how a worker presents itself to the NVR. It stays as it is for
// as long as the process lives; two that compare equal are the same process.
type WorkerInfo struct {
	ID       WorkerID
	Instance Instance
	// PushURL is where agents push (ws:// or wss://); LiveURL where browsers watch.
	PushURL string
	LiveURL string
	// Zone names where it runs, such as a data centre; hubs may prefer one. Empty: nowhere in particular.
	Zone string
	// Version is that of its program.
	Version  string
	Capacity WorkerCapacity
}

// WorkerCapacity is how much a worker takes. 0 is no limit of its own.
type WorkerCapacity struct {
	Streams        int
	BytesPerSecond int64 // received
}

// WorkerLoad is what a worker says of itself with each heartbeat.
type WorkerLoad struct {
	Streams int // channels that it holds
	Lanes   int // connections of agents
	Viewers int
	// BytesPerSecond is what it received, over the last 10 s or so.
	BytesPerSecond int64
	// TmpfsUsed and TmpfsLimit are bytes of open recordings, and of the room for them.
	TmpfsUsed, TmpfsLimit int64
	// Lag is the durable lag of its worst channel: the age of the oldest chunk
	// that it has received and not yet stored.
	Lag time.Duration
	// UploadsWaiting is how many objects wait to be stored.
	UploadsWaiting int
	// Overloaded: it takes no new channels. Those that it has stay.
	Overloaded bool
	// Draining: it takes no new channels, and wants to be rid of those that it has.
	Draining bool
}
