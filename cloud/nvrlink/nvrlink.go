// Package nvrlink is the line between a worker and the NVR: one WebSocket, which
// the worker opens, over which each proves to the other that it has the cluster's
// key, and which then carries what they tell and ask each other. PROTOCOL.md
// beside this file says what each message means.
//
// Handler is the NVR's end, Client the worker's. The NVR keeps nothing for a
// worker whose line is down; the worker repeats what it was not answered, and,
// each time the line is up, which lanes are open.
package nvrlink

import (
	"context"
	"fmt"
	"time"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/vms"
)

const (
	// Protocol is the WebSocket subprotocol (RFC 6455, section 11.3.4), Path where
	// a Handler is mounted.
	Protocol = "vms.worker.v1"
	Path     = "/workers/v1"
	// MinKey is the shortest key of a cluster that is taken, in bytes: as many as a
	// proof has. It must be random.
	MinKey = 32
)

const (
	// beat is how often a worker says how it is.
	beat = time.Second
	// nvrSilence is for how long a worker waits for a word of the NVR, which answers
	// each heartbeat. It is less than what makes a worker lost (nvr.Config.WorkerSilence,
	// 4 s): one whose connection hangs is back on a new one before that.
	nvrSilence = 3 * time.Second
	// workerSilence is for how long the NVR keeps the connection of a silent worker,
	// and how long either waits for one write.
	workerSilence = 5 * time.Second
	// handshakeWithin bounds the four messages of the handshake, at the NVR; at the
	// worker dialWithin bounds them and all before.
	handshakeWithin = 5 * time.Second
	dialWithin      = 5 * time.Second
	// answerWithin bounds the work on one question.
	answerWithin = 30 * time.Second
	// goodbye is how long a closing end waits for the other one to close, too.
	goodbye = time.Second
	// farClock is how far the clocks may be apart before somebody is told: tickets
	// are valid for minutes.
	farClock = 10 * time.Second
)

// Notices is what workers tell and ask. Each call is repeated by who makes it
// until it returns nil, vms.ErrNotFound or vms.ErrInvalid, except Viewers.
type Notices interface {
	StreamStarted(ctx context.Context, e vms.StreamEvent) error
	StreamEnded(ctx context.Context, e vms.StreamEvent) error
	RecordingUploaded(ctx context.Context, r vms.Recording) error
	Parts(ctx context.Context, ch vms.ChannelID, epochs []vms.Epoch) ([]vms.Recording, error)
	Wholes(ctx context.Context, ch vms.ChannelID, r vms.ChunkRange) ([]vms.ChunkRange, error)
	AbandonedParts(ctx context.Context, limit int) ([]vms.Recording, error)
	Viewers(ctx context.Context, ch vms.ChannelID, viewers int) error
}

// Rules is what a Handler needs of the NVR; *nvr.NVR is one.
type Rules interface {
	Notices
	// WorkerUp notes that a worker is there, over link, whose methods do not block.
	// vms.ErrConflict and vms.ErrInvalid refuse it. Before the link is closed that
	// another one replaces, link.Replace is called.
	WorkerUp(w vms.WorkerInfo, link nvr.WorkerLink) error
	// WorkerAlive notes a heartbeat, about once a second. It must not block.
	WorkerAlive(id vms.WorkerID, inst vms.Instance, l vms.WorkerLoad)
	// WorkerDown is called once for each WorkerUp that returned nil.
	WorkerDown(id vms.WorkerID, inst vms.Instance, link nvr.WorkerLink)
}

var (
	_ Rules   = (*nvr.NVR)(nil)
	_ Notices = (*Client)(nil)
)

// CheckKey returns vms.ErrInvalid for what is too short to be a cluster's key.
func CheckKey(key []byte) error {
	if len(key) < MinKey {
		return fmt.Errorf("%w: a cluster key of %d bytes, want %d or more", vms.ErrInvalid, len(key), MinKey)
	}
	return nil
}
