package worker

import (
	"context"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

// lookEvery is how soon the NVR learns that viewers came or went.
const lookEvery = time.Second

// tellViewers tells the NVR who looks on, until ctx ends: a stream on demand runs
// as long as somebody does.
func (w *Worker) tellViewers(ctx context.Context) {
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	told := make(map[vms.ChannelID]toldViewers)
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			w.tellChanges(ctx, told, now)
		}
	}
}

// toldViewers is what the NVR was told last, and when.
type toldViewers struct {
	n  int
	at time.Time
}

// tellChanges tells what is not as it was told, or was told long ago.
func (w *Worker) tellChanges(ctx context.Context, told map[vms.ChannelID]toldViewers, now time.Time) {
	if w.relinked.Swap(false) {
		for ch, t := range told {
			told[ch] = toldViewers{n: t.n} // long ago
		}
	}
	watched := w.live.Watched()
	for ch, t := range told {
		if watched[ch] == 0 && t.n > 0 {
			watched[ch] = 0 // the last one left
		}
	}
	for ch, n := range watched {
		if t, ok := told[ch]; ok && t.n == n && now.Sub(t.at) < w.cfg.Viewers {
			continue
		}
		if err := w.cfg.NVR.Viewers(ctx, ch, n); err != nil {
			if ctx.Err() == nil {
				w.cfg.Log.Warn("cannot tell the NVR who looks on, will try again", "channel", ch, "viewers", n, "err", err)
			}
			continue
		}
		if n == 0 {
			delete(told, ch)
			continue
		}
		told[ch] = toldViewers{n, now}
	}
}

// recent returns what the live lane of a channel recorded since its last keyframe.
func (w *Worker) recent(ch vms.ChannelID) []vms.Chunk {
	s := w.known(ch)
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, cs := s.recent()
	return cs
}
