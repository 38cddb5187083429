// Package bucketevents says that an object was created in a bucket: at least
// once, late, in any order. Whoever handles an event must be idempotent, and
// must also list the bucket from time to time: a notification is a hint, the
// bucket is the truth.
package bucketevents

import "context"

// Event is one object that was created or replaced.
type Event struct {
	Bucket string
	Key    string
}

// Source delivers events.
type Source interface {
	// Run calls handle for every event until ctx ends (nil) or the source is
	// beyond repair (why). An event is done when handle returns nil; else it is
	// delivered again, after a while, also after a restart if the source
	// outlives one. An event that fails does not hold up the others. handle is
	// called by one goroutine at a time; Run returns after its last call ended.
	Run(ctx context.Context, handle func(context.Context, Event) error) error
}
