package stream

import (
	"context"
	"fmt"
	"slices"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// Drain returns when all chunks that were captured before the call are durable,
// those of earlier runs included, or declared missing. Until then the workers
// are asked to store what they have of unfinished recordings, every few seconds;
// capture goes on. When ctx ends before, the error says what is left on the hub.
func (s *Stream) Drain(ctx context.Context) error {
	s.mu.Lock()
	epoch, last := s.epoch, s.lastSeq
	s.mu.Unlock()
	before := s.cfg.Spool.Epochs()
	s.draining.Add(1)
	defer s.draining.Add(-1)
	for {
		changed := s.cfg.Spool.Changed() // before the look, or a change could be missed
		bytes := int64(0)
		for _, h := range s.cfg.Spool.Holding() {
			// Of an epoch that began later all came later.
			if h.Chunks.Epoch == epoch && h.Chunks.First <= last || h.Chunks.Epoch != epoch && slices.Contains(before, h.Chunks.Epoch) {
				bytes += h.Bytes
			}
		}
		if bytes == 0 && !s.cfg.Spool.Withheld() { // what has no time yet is not among it
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: about %d KB are not stored in the cloud yet; the hub keeps them", vms.ErrUnavailable, max(1, bytes>>10))
		case <-changed:
		}
	}
}

// pressure is what the lanes tell their workers: the hub's, or that of a Drain.
func (s *Stream) pressure() (m wire.Pressure, yes bool) {
	if s.cfg.Pressure != nil {
		m, yes = s.cfg.Pressure()
	}
	m.Budget = max(m.Budget, 1) // a worker takes none without one
	return m, yes || s.draining.Load() > 0
}
