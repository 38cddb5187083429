package nvr

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/zipato/vms/pkg/token"
)

// sweepBatch bounds one transaction and one listing of the sweep.
const sweepBatch = 500

// Sweep applies retention and clears garbage. Each recording goes in three
// steps: its row becomes a garbage row, its object is deleted, the garbage row
// goes. A crash after any of them leaves work for the next sweep and nothing
// else: while the garbage row is there a late notice registers nothing, and
// once it is gone there is no object to register.
func (n *NVR) Sweep(ctx context.Context) error {
	var cutoff time.Time
	if n.Retention.Age > 0 {
		cutoff = n.now().Add(-n.Retention.Age)
	}
	err := n.expire(ctx, cutoff)
	// When nothing can be written because the disk is full, clearing what is
	// garbage already makes room for the next sweep.
	return errors.Join(err, n.clearGarbage(ctx))
}

// expire makes garbage of what retention has no place for.
func (n *NVR) expire(ctx context.Context, cutoff time.Time) error {
	for {
		k, err := n.Store.Expire(ctx, cutoff, n.Retention.Bytes, n.now(), sweepBatch)
		if err != nil {
			return fmt.Errorf("retention: %w", err)
		}
		if k < sweepBatch {
			break
		}
	}
	if err := n.Store.Forget(ctx, cutoff, n.now().Add(-n.TokenTTL-token.Leeway)); err != nil {
		return fmt.Errorf("retention: %w", err)
	}
	return nil
}

// clearGarbage goes on after an object that cannot be deleted, so that one does
// not keep all others.
func (n *NVR) clearGarbage(ctx context.Context) error {
	gone := 0
	defer func() {
		if gone > 0 {
			n.Log.Info("recordings deleted", "count", gone)
		}
	}()
	for {
		keys, err := n.Store.Garbage(ctx, n.now(), sweepBatch)
		if err != nil {
			return fmt.Errorf("list garbage: %w", err)
		}
		var failed error
		for _, key := range keys {
			if err := n.clear(ctx, key); err != nil {
				failed = err
				continue
			}
			gone++
		}
		if failed != nil || len(keys) < sweepBatch {
			return failed
		}
	}
}

func (n *NVR) clear(ctx context.Context, key string) error {
	if err := n.Objects.Delete(ctx, key); err != nil {
		return fmt.Errorf("delete object %s: %w", key, err)
	}
	if err := n.Store.GarbageGone(ctx, key); err != nil {
		return fmt.Errorf("clear garbage row %s: %w", key, err)
	}
	return nil
}
