package stream

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/agent/spool"
	"github.com/zipato/vms/pkg/cmaf"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/vmstest/camtest"
	"github.com/zipato/vms/pkg/wire"
)

// The tests in this file run a stream on a real camera. Nobody answers where
// the NVR should be, so that what is recorded stays in the spool.

// filming starts a stream, which is ended with the test.
func filming(t *testing.T, cam *camtest.Camera, set func(*Config)) (*Stream, *spool.Spool) {
	t.Helper()
	vmstest.NoLeaks(t)
	s, sp, _ := newStreamOf(t, 16<<20, func(c *Config) {
		c.NVRURL, c.Camera = "ws://127.0.0.1:1/", cam.Camera()
		set(c)
	})
	learn(s, 0)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	return s, sp
}

// eventually waits until cond holds, looking at every change of the spool and
// some times a second.
func eventually(t *testing.T, sp *spool.Spool, what string, cond func() bool) {
	t.Helper()
	late := time.After(20 * time.Second)
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for !cond() {
		select {
		case <-late:
			t.Fatalf("not within 20 s: %s; held %v", what, sp.Holding())
		case <-sp.Changed():
		case <-look.C:
		}
	}
}

func shortGOPs(t *testing.T) camtest.Options {
	return camtest.Options{
		Source: camtest.Clip(t, vmstest.ClipSpec{GOP: 12, Duration: 4800 * time.Millisecond, Kbps: 400, Audio: "aac"}), Loop: true, Live: true,
	}
}

// TestEventOfACamera: from a real camera with sound, only what an event asks
// for, from before it on.
func TestEventOfACamera(t *testing.T) {
	cam := camtest.Start(t, shortGOPs(t))
	changes := make(chan struct{}, 10)
	s, sp := filming(t, cam, func(c *Config) {
		c.Mode, c.PreRoll, c.PostRoll = wire.ModeEvent, time.Second, time.Second
		c.OnRecording = func() { changes <- struct{}{} }
	})
	eventually(t, sp, "the camera has sent 2 s", func() bool { return s.Camera().VideoFrames > 50 })
	if st := sp.Stats(); st.Chunks != 0 || s.Recording() {
		t.Fatalf("%d chunks, recording %v, before the event", st.Chunks, s.Recording())
	}
	s.Event(nil, nil)
	at := s.cfg.Clock.Now()
	<-changes
	if !s.Recording() {
		t.Error("not recording after the event")
	}
	<-changes
	if s.Recording() {
		t.Error("still recording after the event")
	}
	held := sp.Holding()
	if len(held) != 1 {
		t.Fatalf("held %v, want one run", held)
	}
	// What the clip has in a GOP is 480 ms; the rest is what a busy machine is late.
	if d := at.Sub(held[0].Start); d < time.Second-100*time.Millisecond || d > 2*time.Second {
		t.Errorf("recorded from %v before the event on, want 1 s and at most a GOP", d)
	}
	if d := held[0].End.Sub(at); d < 900*time.Millisecond || d > 2*time.Second {
		t.Errorf("recorded to %v after the event, want 1 s and at most a GOP", d)
	}
	if g := sp.Gaps(10); len(g) != 0 {
		t.Errorf("gaps %v", g)
	}
}

// TestFirstChunkOfACameraIsSoon: from Run, with a keyframe every half second, it
// is in the spool well within a second, wherever in a GOP the camera is joined.
func TestFirstChunkOfACameraIsSoon(t *testing.T) {
	opts := shortGOPs(t)
	var took []time.Duration
	for range 5 {
		t.Run("", func(t *testing.T) {
			cam := camtest.Start(t, opts)
			since := time.Now()
			_, sp := filming(t, cam, func(*Config) {})
			eventually(t, sp, "a chunk", func() bool { return sp.Stats().Chunks > 0 })
			took = append(took, time.Since(since))
		})
	}
	slices.Sort(took)
	t.Logf("from Run to the first chunk: %v", took)
	if took[len(took)/2] > 850*time.Millisecond {
		t.Errorf("from Run to the first chunk: %v", took)
	}
}

// TestRestartPullsAnew: the camera is left, and pulled in a new session; what is
// missing meanwhile is declared, and the stream goes on.
func TestRestartPullsAnew(t *testing.T) {
	cam := camtest.Start(t, shortGOPs(t))
	s, sp := filming(t, cam, func(*Config) {})
	eventually(t, sp, "chunks", func() bool { return sp.Stats().Chunks > 3 })
	epoch := s.Epoch()
	s.Restart()
	eventually(t, sp, "a second session", func() bool { return cam.Plays() == 2 && s.Camera().Sessions == 2 })
	had := sp.Stats().Chunks
	eventually(t, sp, "chunks of it", func() bool { return sp.Stats().Chunks > had+3 })
	if s.Epoch() != epoch {
		t.Error("another epoch")
	}
	held := sp.Holding()
	if len(held) != 2 || !held[0].End.Before(held[1].Start) || held[0].Chunks.Last+1 != held[1].Chunks.First {
		t.Fatalf("held %v, want two runs", held)
	}
	g := sp.Gaps(10)
	if len(g) != 1 || !g[0].Start.Equal(held[0].End) || !g[0].End.Equal(held[1].Start) {
		t.Errorf("gaps %v, want the one between %v and %v", g, held[0].End, held[1].Start)
	}
	s.Restart()
	eventually(t, sp, "a third session", func() bool { return cam.Plays() == 3 })
}

// TestDrain: it waits for what was there when it was called and for nothing
// that came later, and presses the workers meanwhile.
func TestDrain(t *testing.T) {
	cam := camtest.Start(t, shortGOPs(t))
	s, sp := filming(t, cam, func(*Config) {})
	eventually(t, sp, "chunks", func() bool { return sp.Stats().Chunks > 3 })
	if _, yes := s.pressure(); yes {
		t.Error("workers are pressed while nothing is drained")
	}
	done := make(chan error, 1)
	go func() { done <- s.Drain(t.Context()) }()
	eventually(t, sp, "the workers are pressed", func() bool {
		m, yes := s.pressure()
		_, err := wire.EncodePush(&m)
		return yes && err == nil
	})
	last := sp.Holding()[0].Chunks.Last // nothing that came later is waited for
	eventually(t, sp, "more is captured", func() bool { return sp.Holding()[0].Chunks.Last > last+2 })
	sp.Durable([]vms.ChunkRange{{Epoch: s.Epoch(), First: 1, Last: 2}})
	select {
	case err := <-done:
		t.Fatalf("Drain = %v with a chunk that is only on the hub", err)
	default:
	}
	sp.Durable([]vms.ChunkRange{{Epoch: s.Epoch(), First: 1, Last: last}})
	if err := <-done; err != nil {
		t.Errorf("Drain = %v", err)
	}
	if _, yes := s.pressure(); yes {
		t.Error("workers are pressed after it")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Drain(ctx); !errors.Is(err, vms.ErrUnavailable) || !strings.Contains(err.Error(), "KB") {
		t.Errorf("Drain = %v with no time, want how much is left", err)
	}
}

// TestEverySortOfCamera: what MP4 carries as it is, and what has to become
// something that it carries, are recorded with picture and sound.
func TestEverySortOfCamera(t *testing.T) {
	for _, tt := range []struct{ codec, audio, video, sound string }{
		{"mjpeg", "pcma", "mp4v.6C", "flac"},
		{"h264", "lpcm", "avc1", "flac"},
		{"h265", "aac", "hvc1", "mp4a.40.2"},
	} {
		t.Run(tt.codec+" "+tt.audio, func(t *testing.T) {
			cam := camtest.Start(t, camtest.Options{
				Source: camtest.Clip(t, vmstest.ClipSpec{Codec: tt.codec, Audio: tt.audio, GOP: 12, Duration: 4800 * time.Millisecond}), Loop: true, Live: true,
			})
			s, sp := filming(t, cam, func(*Config) {})
			eventually(t, sp, "chunks", func() bool { return sp.Stats().Chunks > 2 })
			cur := sp.Live("", nil)
			defer cur.Close()
			item, err := cur.Next(t.Context())
			if err != nil || item.Chunk == nil {
				t.Fatalf("%+v, %v", item, err)
			}
			init, ok := sp.Init(item.Chunk.Epoch, item.Chunk.Init)
			if !ok || len(init.Tracks) != 2 || !strings.HasPrefix(init.Tracks[0].Codec, tt.video) || init.Tracks[1].Codec != tt.sound {
				t.Errorf("tracks %+v, want %s and %s", init.Tracks, tt.video, tt.sound)
			}
			if f, err := cmaf.ParseFragment(item.Chunk.Payload); err != nil || len(f.Runs) != 2 {
				t.Errorf("the first chunk has %d tracks, %v; want both", len(f.Runs), err)
			}
			if st := s.Mux(); st.Unreadable > 0 || st.SoundDropped > 10 {
				t.Errorf("%+v", st)
			}
		})
	}
}
