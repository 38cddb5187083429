package vms

import "time"

// StreamEvent is what a worker tells the NVR of a stream.
type StreamEvent struct {
	Channel    ChannelID
	SID        SID
	Hub        HubID
	Generation Generation
	Worker     WorkerID
	Instance   Instance
	Lane       Lane
	// Epoch is what the agent writes; zero when nothing has come yet.
	Epoch Epoch
	At    time.Time
	// Cause says why a stream ended: a word of the protocol or of the agent.
	Cause string
}
