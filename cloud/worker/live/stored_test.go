package live

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/zipato/vms/pkg/vms"
)

// tmpfs is a recording as the worker has it: what is recorded is published with
// the same lock held, from a buffer that is used again.
type tmpfs struct {
	mu    sync.Mutex
	cs    []vms.Chunk
	reads int
	buf   []byte
	// during is called once in the middle of a read, without the lock.
	during func()
}

// record records c and shows it, and overwrites what nobody keeps.
func (d *tmpfs) record(s *Stream, c *vms.Chunk) {
	d.mu.Lock()
	defer d.mu.Unlock()
	stored := *c
	stored.Payload = bytes.Clone(c.Payload)
	if c.Flags.Has(vms.FlagFirst) {
		d.cs = nil // another recording
	}
	d.cs = append(d.cs, stored)
	lent := *c
	lent.Payload = append(d.buf[:0], c.Payload...)
	d.buf = lent.Payload
	if s.Publish(init1, &lent, true) {
		d.buf = nil
	}
	lent = vms.Chunk{}
	for i := range d.buf {
		d.buf[i] = '?'
	}
}

// recent is what the worker reads back.
func (d *tmpfs) recent() []vms.Chunk {
	if d.during != nil {
		f := d.during
		d.during = nil
		defer f()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reads++
	for i, c := range slices.Backward(d.cs) {
		if c.Flags.Has(vms.FlagKey) {
			return slices.Clone(d.cs[i:])
		}
	}
	return nil
}

// gop is chunk seq of a picture with a keyframe every fifth.
func gop(seq uint64) *vms.Chunk {
	var f vms.Flags
	if seq%5 == 1 {
		f = key
	}
	return pic(1, seq, f, 10)
}

func TestWhoComesFirstGetsTheGOPFromTmpfs(t *testing.T) {
	d := &tmpfs{}
	s := &Stream{recent: d.recent}
	for seq := uint64(1); seq <= 13; seq++ {
		d.record(s, gop(seq))
		if s.gop != nil {
			t.Fatal("bytes are in memory though nobody looks on")
		}
	}
	v := s.look()
	s.expect(t, v, "init1 1:11 1:12 1:13")
	d.record(s, gop(14))
	s.expect(t, v, "1:14")
	v2 := s.look() // shares what is in memory now
	s.expect(t, v2, "init1 1:11 1:12 1:13 1:14")
	if d.reads != 1 {
		t.Errorf("tmpfs was read %d times", d.reads)
	}
	d.record(s, gop(15))
	d.record(s, gop(16))
	s.expect(t, v, "1:15 1:16")
	s.leave(v)
	s.leave(v2)
	if s.gop != nil {
		t.Error("bytes stay in memory although the last viewer left")
	}
	d.record(s, gop(17))
	d.record(s, gop(18))
	v = s.look()
	s.expect(t, v, "init1 1:16 1:17 1:18")
}

// TestNothingIsMissedWhileTmpfsIsRead: chunks come before, during and after that.
func TestNothingIsMissedWhileTmpfsIsRead(t *testing.T) {
	for name, tt := range map[string]struct {
		during func(s *Stream, d *tmpfs)
		want   string
	}{
		"nothing":     {func(*Stream, *tmpfs) {}, "init1 1:6 1:7 1:8"},
		"some":        {func(s *Stream, d *tmpfs) { d.record(s, gop(9)); d.record(s, gop(10)) }, "init1 1:6 1:7 1:8 1:9 1:10"},
		"a keyframe":  {func(s *Stream, d *tmpfs) { d.record(s, pic(1, 9, key, 10)); d.record(s, gop(10)) }, "init1 1:9 1:10"},
		"the end":     {func(s *Stream, d *tmpfs) { s.Offline("stopped") }, "offline(stopped)"},
		"end, return": {func(s *Stream, d *tmpfs) { s.Offline("x"); d.record(s, pic(1, 9, key, 10)) }, "offline(x) init1 1:9"},
	} {
		t.Run(name, func(t *testing.T) {
			d := &tmpfs{}
			s := &Stream{recent: d.recent}
			for seq := uint64(1); seq <= 8; seq++ {
				d.record(s, gop(seq))
			}
			d.during = func() { tt.during(s, d) }
			v := s.look()
			s.expect(t, v, tt.want)
		})
		t.Run(name+" before the read", func(t *testing.T) {
			d := &tmpfs{}
			s := &Stream{}
			s.recent = func() []vms.Chunk { tt.during(s, d); return d.recent() }
			for seq := uint64(1); seq <= 8; seq++ {
				d.record(s, gop(seq))
			}
			v := s.look()
			s.expect(t, v, tt.want)
		})
	}
}

// TestWhatDoesNotFitIsOfNoUse: the viewer waits for the next keyframe then.
func TestWhatDoesNotFitIsOfNoUse(t *testing.T) {
	chunk := func(seq uint64) vms.Chunk { return *gop(seq) }
	other := chunk(6)
	other.Epoch = 2
	big := *pic(1, 6, key, maxGOP)
	for name, cs := range map[string][]vms.Chunk{
		"nothing":         nil,
		"too old":         {chunk(1), chunk(2), chunk(3)},
		"a hole":          {chunk(6), chunk(8)},
		"no keyframe":     {chunk(7), chunk(8)},
		"another epoch":   {other, chunk(7), chunk(8)},
		"what is to come": {chunk(11), chunk(12)},
		"too much":        {big, chunk(7), chunk(8)},
	} {
		t.Run(name, func(t *testing.T) {
			s := &Stream{recent: func() []vms.Chunk { return cs }}
			for seq := uint64(1); seq <= 8; seq++ {
				s.Publish(init1, gop(seq), true)
			}
			v := s.look()
			s.Publish(init1, gop(9), true)
			s.expect(t, v, "")
			s.Publish(init1, pic(1, 10, key, 1), true)
			s.expect(t, v, "init1 1:10")
		})
	}
}

// TestPreviewsStayInMemory: they are nowhere else, until a GOP that is stored begins.
func TestPreviewsStayInMemory(t *testing.T) {
	d := &tmpfs{}
	s := &Stream{recent: d.recent}
	s.Publish(init1, gop(6), false)
	s.Publish(init1, gop(7), false)
	d.record(s, gop(8)) // a recording that begins without a keyframe
	v := s.look()
	s.expect(t, v, "init1 1:6 1:7 1:8")
	s.leave(v)
	v = s.look()
	s.expect(t, v, "init1 1:6 1:7 1:8")
	s.leave(v)
	d.record(s, pic(1, 9, key, 1))
	if s.gop != nil || s.only {
		t.Error("previews are kept although they can be read back")
	}
}

// TestViewersComeAndGoWhileItRuns: whoever comes sees each chunk from a keyframe
// on, in order, once, and as it was.
func TestViewersComeAndGoWhileItRuns(t *testing.T) {
	d := &tmpfs{}
	s := &Stream{recent: d.recent}
	const last = 3000
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for round := 0; ; round++ {
				v := s.look()
				var next uint64
				for got := 0; got < 10+round%7; {
					select {
					case <-stop:
						s.leave(v)
						return
					case <-v.wake:
					}
					for _, it := range s.take(v) {
						if it.chunk == nil {
							continue
						}
						c := it.chunk
						if next == 0 && !c.Flags.Has(key) || next != 0 && c.Seq != next || !bytes.HasPrefix(c.Payload, fmt.Appendf(nil, "1:%d\x00", c.Seq)) {
							t.Errorf("chunk %d, %q, where %d should be", c.Seq, c.Payload[:6], next)
						}
						next = c.Seq + 1
						got++
					}
				}
				s.leave(v)
			}
		})
	}
	for seq := uint64(1); seq <= last; seq++ {
		c := gop(seq)
		if seq%20 == 1 {
			c.Flags |= vms.FlagFirst
			c.Recording = 1
		}
		d.record(s, c)
	}
	close(stop)
	wg.Wait()
}

// TestStreamsAreForgotten: what nobody publishes and nobody looks on at is gone.
func TestStreamsAreForgotten(t *testing.T) {
	var s Server
	s.Stream("a")
	st, v := s.join("a")
	s.Forget("a")
	if s.Stream("a") != st {
		t.Error("the viewer has another stream than the worker")
	}
	s.leave("a", st, v)
	s.Forget("a")
	st, v = s.join("b")
	s.leave("b", st, v)
	if len(s.streams) != 0 {
		t.Errorf("%d streams are left", len(s.streams))
	}
}

func BenchmarkPublish(b *testing.B) {
	s := &Stream{recent: func() []vms.Chunk { return nil }}
	c := pic(1, 1, key, 50_000)
	b.ReportAllocs()
	for b.Loop() {
		s.Publish(init1, c, true)
		c.Seq++
	}
}
