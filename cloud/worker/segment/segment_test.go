package segment_test

import (
	"testing"

	"github.com/zipato/vms/cloud/worker/segment"
	"github.com/zipato/vms/pkg/vms"
)

const (
	first = vms.FlagFirst | vms.FlagKey
	key   = vms.FlagKey
)

// step is a chunk, or the agent's word of a hole or of the end.
type step struct {
	epoch     vms.Epoch
	seq       uint64
	flags     vms.Flags
	recording uint32
	init      uint32
	want      segment.Verdict

	hole vms.ChunkRange
	end  bool
	// closes: the hole or the end completes the open recording.
	closes bool
}

func TestSegmenterObeysTheStamps(t *testing.T) {
	const begin, app, dup, bad, seq = segment.Begin, segment.Append, segment.Duplicate, segment.Undecodable, segment.OutOfSequence
	hole := func(e vms.Epoch, a, b uint64, closes bool) step {
		return step{hole: vms.ChunkRange{Epoch: e, First: a, Last: b}, closes: closes}
	}
	for name, steps := range map[string][]step{
		"recordings begin where the agent says": {
			{1, 1, first, 0, 1, begin, vms.ChunkRange{}, false, false},
			{1, 2, 0, 0, 1, app, vms.ChunkRange{}, false, false},
			{1, 3, key, 0, 1, app, vms.ChunkRange{}, false, false}, // a keyframe alone begins nothing
			{1, 4, first, 1, 1, begin, vms.ChunkRange{}, false, false},
			{1, 5, 0, 1, 1, app, vms.ChunkRange{}, false, false},
			{1, 6, vms.FlagFirst | vms.FlagDependent, 2, 1, begin, vms.ChunkRange{}, false, false},
			{1, 7, 0, 2, 1, app, vms.ChunkRange{}, false, false},
		},
		"what came before is a duplicate": {
			{epoch: 1, seq: 1, flags: first, init: 1, want: begin},
			{epoch: 1, seq: 2, init: 1, want: app},
			{epoch: 1, seq: 1, flags: first, init: 1, want: dup},
			{epoch: 1, seq: 2, init: 1, want: dup},
			{epoch: 1, seq: 3, init: 1, want: app},
		},
		"a hole that nobody declared": {
			{epoch: 1, seq: 1, flags: first, init: 1, want: begin},
			{epoch: 1, seq: 3, init: 1, want: seq},
			{epoch: 1, seq: 9, flags: first, recording: 1, init: 1, want: seq},
			{epoch: 1, seq: 2, init: 1, want: app}, // nothing changed
		},
		"a declared hole ends the recording": {
			{epoch: 1, seq: 1, flags: first, init: 1, want: begin},
			hole(1, 2, 4, true),
			hole(1, 2, 4, false),
			{epoch: 1, seq: 3, init: 1, want: dup}, // declared missing, and comes after all
			{epoch: 1, seq: 6, init: 1, want: seq},
			{epoch: 1, seq: 5, init: 1, want: bad}, // the keyframe is in the hole
			{epoch: 1, seq: 5, flags: key, init: 1, want: begin},
			{epoch: 1, seq: 6, init: 1, want: app},
		},
		"holes that touch add up": {
			{epoch: 1, seq: 1, flags: first, init: 1, want: begin},
			hole(1, 2, 3, true),
			hole(1, 4, 7, false),
			{epoch: 1, seq: 8, flags: first, recording: 1, init: 1, want: begin},
		},
		"a hole elsewhere changes nothing": {
			{epoch: 1, seq: 5, flags: first, init: 1, want: begin},
			hole(1, 1, 4, false), hole(1, 1, 5, false), hole(1, 7, 9, false), hole(2, 6, 6, false),
			{epoch: 1, seq: 6, init: 1, want: app},
		},
		"the end completes": {
			{epoch: 1, seq: 1, flags: first, init: 1, want: begin},
			{end: true, closes: true},
			{end: true},
			{epoch: 1, seq: 2, init: 1, want: bad},
			{epoch: 1, seq: 2, flags: first, init: 1, want: begin},
			{end: true, closes: true},
		},
		"another epoch begins anew": {
			{epoch: 9, seq: 7, flags: first, recording: 3, init: 1, want: begin},
			{epoch: 2, seq: 1, flags: first, init: 1, want: begin},
			{epoch: 2, seq: 2, init: 1, want: app},
			{epoch: 9, seq: 8, recording: 3, init: 1, want: bad},
		},
		"a worker that comes late": {
			{epoch: 1, seq: 70, init: 1, want: bad},
			{epoch: 1, seq: 71, flags: key, init: 1, want: begin}, // the rest of a recording
			{epoch: 1, seq: 72, init: 1, want: app},
		},
		"stamps that change without first": {
			{epoch: 1, seq: 1, flags: first, init: 1, want: begin},
			{epoch: 1, seq: 2, recording: 1, init: 1, want: bad},
			{epoch: 1, seq: 2, init: 2, want: bad},
			{epoch: 1, seq: 2, flags: key, init: 2, want: begin},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var s segment.Segmenter
			for i, st := range steps {
				switch {
				case st.end:
					if got := s.End(); got != st.closes {
						t.Fatalf("step %d: End = %v", i, got)
					}
				case st.hole.Epoch != 0:
					if got := s.Hole(st.hole); got != st.closes {
						t.Fatalf("step %d: Hole(%s) = %v", i, st.hole, got)
					}
				default:
					c := vms.Chunk{Epoch: st.epoch, Seq: st.seq, Flags: st.flags, Recording: st.recording, Init: st.init}
					if got := s.Next(&c); got != st.want {
						t.Fatalf("step %d: Next(%s:%d) = %d, want %d", i, c.Epoch, c.Seq, got, st.want)
					}
				}
			}
		})
	}
}

func TestMissingNamesTheHole(t *testing.T) {
	var s segment.Segmenter
	if r, ok := s.Missing(&vms.Chunk{Epoch: 1, Seq: 9}); ok {
		t.Errorf("%s is missing before anything came", r)
	}
	s.Next(&vms.Chunk{Epoch: 1, Seq: 4, Flags: first, Init: 1})
	for _, tt := range []struct {
		epoch vms.Epoch
		seq   uint64
		want  vms.ChunkRange
		ok    bool
	}{
		{1, 4, vms.ChunkRange{}, false}, {1, 5, vms.ChunkRange{}, false}, {2, 9, vms.ChunkRange{}, false},
		{1, 6, vms.ChunkRange{Epoch: 1, First: 5, Last: 5}, true}, {1, 9, vms.ChunkRange{Epoch: 1, First: 5, Last: 8}, true},
	} {
		r, ok := s.Missing(&vms.Chunk{Epoch: tt.epoch, Seq: tt.seq})
		if ok != tt.ok || ok && r != tt.want {
			t.Errorf("Missing(%s:%d) = %s, %v", tt.epoch, tt.seq, r, ok)
		}
	}
}
