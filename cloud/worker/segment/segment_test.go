package segment_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/zipato/vms/cloud/worker/segment"
	"github.com/zipato/vms/pkg/vms"
)

const (
	first = vms.FlagFirst | vms.FlagKey
	key   = vms.FlagKey
)

// step is a chunk on a lane, or the agent's word of a hole, an end or a new connection.
type step struct {
	back      bool // on the backfill lane
	epoch     vms.Epoch
	seq       uint64
	flags     vms.Flags
	recording uint32
	init      uint32
	asked     bool // parts were looked for
	want      segment.Verdict

	hole      vms.ChunkRange
	durable   bool // the hole is in the store
	end       uint64
	ended     bool // with 0
	stored    vms.ChunkRange
	preview   bool
	connected bool
	parts     []vms.ChunkRange // of recording 0

	// open is what is open after the step and the closing of what is complete:
	// "epoch:first-last", parked with a "p" behind. "": not looked at.
	open string
}

func TestSegmenterObeysTheStamps(t *testing.T) {
	const begin, app, dup, bad, seq, orphan, rest = segment.Begin, segment.Append, segment.Duplicate, segment.Undecodable, segment.OutOfSequence, segment.Orphan, segment.Rest
	hole := func(e vms.Epoch, a, b uint64, open string) step {
		return step{hole: vms.ChunkRange{Epoch: e, First: a, Last: b}, open: open}
	}
	elsewhere := func(a, b uint64) step {
		return step{hole: vms.ChunkRange{Epoch: 1, First: a, Last: b}, durable: true}
	}
	for name, steps := range map[string][]step{
		"recordings begin where the agent says": {
			{epoch: 1, seq: 1, flags: first, init: 1, want: begin},
			{epoch: 1, seq: 2, init: 1, want: app},
			{epoch: 1, seq: 3, flags: key, init: 1, want: app, open: "1:1-3"}, // a keyframe alone begins nothing
			{epoch: 1, seq: 4, flags: first, recording: 1, init: 1, want: begin, open: "1:4-4"},
			{epoch: 1, seq: 5, recording: 1, init: 1, want: app},
			{epoch: 1, seq: 6, flags: vms.FlagFirst | vms.FlagDependent, recording: 2, init: 1, want: begin},
			{epoch: 1, seq: 7, recording: 2, init: 1, want: app, open: "1:6-7"},
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
			{epoch: 1, seq: 2, init: 1, want: app, open: "1:1-2"}, // nothing changed
		},
		"a declared hole ends the recording": {
			{epoch: 1, seq: 1, flags: first, init: 1, want: begin},
			hole(1, 2, 4, "-"),
			hole(1, 2, 4, "-"),
			{epoch: 1, seq: 6, init: 1, want: seq},
			{epoch: 1, seq: 5, init: 1, want: bad}, // the keyframe is in the hole
			{epoch: 1, seq: 5, flags: key, init: 1, want: begin},
			{epoch: 1, seq: 6, init: 1, want: app, open: "1:5-6"},
		},
		"what was declared missing comes on another lane": {
			{epoch: 1, seq: 1, flags: first, init: 1, want: begin},
			hole(1, 2, 10, "-"),
			{epoch: 1, seq: 11, flags: first, recording: 1, init: 1, want: begin},
			{back: true, epoch: 1, seq: 5, init: 1, want: bad},
			{back: true, epoch: 1, seq: 6, flags: key, init: 1, want: begin},
			{back: true, epoch: 1, seq: 7, init: 1, want: app, open: "1:11-11 1:6-7"},
			{back: true, epoch: 1, seq: 2, init: 1, want: orphan},
			{back: true, epoch: 1, seq: 2, init: 1, asked: true, want: rest}, // 1 is closed
			{back: true, epoch: 1, seq: 3, init: 1, want: app, open: "1:11-11 1:6-7 1:2-3"},
		},
		"holes that touch add up": {
			{epoch: 1, seq: 1, flags: first, init: 1, want: begin},
			hole(1, 2, 3, "-"),
			hole(1, 4, 7, "-"),
			{epoch: 1, seq: 8, flags: first, recording: 1, init: 1, want: begin},
		},
		"a hole elsewhere changes nothing": {
			{epoch: 1, seq: 5, flags: first, init: 1, want: begin},
			hole(1, 1, 4, "1:5-5"), hole(1, 1, 5, "1:5-5"), hole(1, 7, 9, "1:5-5"), hole(2, 6, 6, "1:5-5"),
			{epoch: 1, seq: 6, init: 1, want: app, open: "-"}, // and now what follows is missing
		},
		"the end completes": {
			{epoch: 1, seq: 1, flags: first, init: 1, want: begin},
			{epoch: 1, end: 1, open: "-"},
			{epoch: 1, end: 1, open: "-"},
			{epoch: 1, seq: 2, flags: first, recording: 1, init: 1, want: begin},
			{epoch: 1, end: 2, open: "-"},
		},
		"an end ahead completes what comes up to it": {
			{epoch: 1, seq: 1, flags: first, init: 1, want: begin},
			{epoch: 1, end: 3, open: "1:1-1"},
			{epoch: 2, end: 1, open: "1:1-1"},
			{epoch: 1, seq: 2, init: 1, want: app, open: "1:1-2"},
			{epoch: 1, seq: 3, init: 1, want: app, open: "-"},
		},
		"an end behind changes nothing": {
			{epoch: 1, seq: 1, flags: first, init: 1, want: begin},
			{epoch: 1, seq: 2, init: 1, want: app},
			{epoch: 1, end: 1, open: "1:1-2"},
		},
		"an end that names nothing": {
			{epoch: 1, end: 2},
			{epoch: 1, ended: true},
			{epoch: 1, seq: 1, flags: first, init: 1, want: begin, open: "1:1-1"},
			{epoch: 1, seq: 2, init: 1, want: app, open: "-"}, // what was said before it holds
		},
		"several ends, and the first is said last": {
			{epoch: 1, end: 4},
			{epoch: 1, end: 2},
			{epoch: 1, seq: 1, flags: first, init: 1, want: begin},
			{epoch: 1, seq: 2, init: 1, want: app, open: "-"},
			{epoch: 1, seq: 3, flags: first, recording: 1, init: 1, want: begin},
			{epoch: 1, seq: 4, recording: 1, init: 1, want: app, open: "-"},
		},
		"live jumps into another epoch": {
			{epoch: 9, seq: 7, flags: first, recording: 3, init: 1, want: begin},
			{preview: true},
			{epoch: 2, seq: 1, flags: first, init: 1, want: begin, open: "9:7-7 2:1-1"},
			{back: true, epoch: 9, seq: 8, recording: 3, init: 1, want: app},
			{epoch: 9, end: 8, open: "2:1-1"},
		},
		"live jumps into the middle of another epoch": {
			{epoch: 9, seq: 7, flags: first, recording: 3, init: 1, want: begin},
			{epoch: 2, seq: 20, flags: first, recording: 1, init: 1, want: begin, open: "9:7-7 2:20-20"},
		},
		"live comes to an epoch of which the beginning is lost": {
			{epoch: 9, seq: 7, flags: first, recording: 3, init: 1, want: begin},
			hole(2, 1, 3, ""), hole(2, 4, 19, ""),
			{epoch: 2, seq: 20, flags: key, init: 1, want: begin, open: "2:20-20"},
		},
		"live comes back into another epoch": {
			{epoch: 9, seq: 7, flags: first, recording: 3, init: 1, want: begin},
			{connected: true},
			{epoch: 2, seq: 1, flags: first, init: 1, want: begin, open: "9:7-7 2:1-1"},
		},
		"live goes to another epoch": {
			{epoch: 9, seq: 7, flags: first, recording: 3, init: 1, want: begin},
			{epoch: 2, seq: 1, flags: first, init: 1, want: begin, open: "2:1-1"},
			{epoch: 2, seq: 2, init: 1, want: app},
		},
		"backfill goes to another epoch, and back": {
			{back: true, epoch: 9, seq: 7, flags: first, recording: 3, init: 1, want: begin},
			{back: true, epoch: 2, seq: 1, flags: first, init: 1, want: begin, open: "9:7-7 2:1-1"},
			{back: true, epoch: 9, seq: 8, recording: 3, init: 1, want: app, open: "9:7-8 2:1-1"},
		},
		"live jumps by previews and backfill goes on": {
			{epoch: 1, seq: 1, flags: first, init: 1, want: begin},
			{epoch: 1, seq: 2, init: 1, want: app},
			{preview: true},
			{epoch: 1, seq: 40, flags: key, init: 1, want: seq}, // only at a recording's beginning
			{epoch: 1, seq: 41, flags: first, recording: 4, init: 1, want: begin, open: "1:1-2 1:41-41"},
			{epoch: 1, seq: 51, flags: first, recording: 5, init: 1, want: seq},
			{back: true, epoch: 1, seq: 3, init: 1, want: app, open: "1:1-3 1:41-41"},
			{back: true, epoch: 1, seq: 4, flags: first, recording: 1, init: 1, want: begin, open: "1:41-41 1:4-4"},
			{epoch: 1, seq: 42, recording: 4, init: 1, want: app},
		},
		"backfill, newest first": {
			{back: true, epoch: 1, seq: 31, flags: first, recording: 3, init: 1, want: begin},
			{back: true, epoch: 1, seq: 32, recording: 3, init: 1, want: app},
			{back: true, epoch: 1, seq: 21, flags: first, recording: 2, init: 1, want: begin, open: "1:31-32 1:21-21"},
			{back: true, epoch: 1, seq: 33, recording: 3, init: 1, want: app},    // the continuation of an open one
			{back: true, epoch: 1, seq: 24, recording: 2, init: 1, want: orphan}, // its beginning may be in the store
			{back: true, epoch: 1, seq: 24, recording: 2, init: 1, asked: true, want: seq},
			{back: true, epoch: 1, seq: 22, recording: 2, init: 1, want: app},
		},
		"backfill, newest first, over declared holes": {
			{back: true, epoch: 1, seq: 40, flags: first, recording: 3, init: 1, want: begin},
			hole(1, 1, 7, ""), hole(1, 8, 17, ""), hole(1, 31, 34, ""),
			{back: true, epoch: 1, seq: 18, flags: key, recording: 1, init: 1, want: begin}, // backwards
			{back: true, epoch: 1, seq: 19, recording: 1, init: 1, want: app},
			{back: true, epoch: 1, seq: 35, flags: key, recording: 2, init: 1, want: begin}, // forwards
			{back: true, epoch: 1, seq: 25, flags: key, recording: 1, init: 1, asked: true, want: seq},
			hole(1, 20, 24, ""),
			{back: true, epoch: 1, seq: 25, recording: 1, init: 1, want: bad},
			{back: true, epoch: 1, seq: 25, flags: key, recording: 1, init: 1, want: begin, open: "1:40-40 1:35-35 1:25-25"},
		},
		"a hole names what is here": {
			{epoch: 1, seq: 1, flags: first, init: 1, want: begin},
			{epoch: 1, seq: 2, init: 1, want: app},
			hole(1, 1, 2, "1:1-2"),
			elsewhere(1, 2),
			{epoch: 1, seq: 3, init: 1, want: app, open: "1:1-3"},
			elsewhere(1, 3),
			{epoch: 1, seq: 4, flags: first, recording: 1, init: 1, want: begin, open: "1:4-4"},
		},
		"a new connection may begin elsewhere": {
			{epoch: 1, seq: 1, flags: first, init: 1, want: begin},
			{epoch: 1, seq: 11, flags: first, recording: 1, init: 1, want: seq},
			{connected: true},
			{epoch: 1, seq: 9, flags: key, init: 1, want: orphan},
			{epoch: 1, seq: 11, flags: first, recording: 1, init: 1, want: begin, open: "1:1-1 1:11-11"},
		},
		"a lane that begins in the middle": {
			{epoch: 1, seq: 70, flags: key, recording: 2, init: 1, want: orphan},
			{epoch: 1, seq: 70, flags: key, recording: 2, init: 1, asked: true, want: begin}, // the rest of a recording
			{epoch: 1, seq: 71, recording: 2, init: 1, want: app},
		},
		"a lane that begins in a GOP whose beginning is nowhere": {
			{epoch: 1, seq: 70, recording: 2, init: 1, want: orphan},
			{epoch: 1, seq: 70, recording: 2, init: 1, asked: true, want: seq}, // its hub has it still
			{back: true, epoch: 1, seq: 70, recording: 2, init: 1, asked: true, want: seq},
			{back: true, epoch: 1, seq: 61, flags: first, recording: 2, init: 1, want: begin},
		},
		"the rest of what is stored": {
			{epoch: 1, stored: vms.ChunkRange{Epoch: 1, First: 40, Last: 69}},
			{epoch: 1, seq: 69, recording: 2, init: 1, want: dup},
			{epoch: 1, seq: 70, recording: 2, init: 1, want: orphan}, // it may be there as parts
			{epoch: 1, seq: 70, recording: 2, init: 1, asked: true, want: rest},
			{epoch: 1, seq: 71, recording: 2, init: 1, want: app, open: "1:70-71"},
		},
		"the rest of what is stored, with a keyframe": {
			{back: true, epoch: 1, seq: 90, flags: first, recording: 3, init: 1, want: begin},
			{epoch: 1, stored: vms.ChunkRange{Epoch: 1, First: 40, Last: 69}},
			{back: true, epoch: 1, seq: 70, flags: key, recording: 2, init: 1, want: orphan},
			{back: true, epoch: 1, seq: 70, flags: key, recording: 2, init: 1, asked: true, want: rest}, // backwards
		},
		"the first chunk of all needs a keyframe": {
			{epoch: 1, seq: 1, init: 1, want: bad},
		},
		"stamps that change without first": {
			{epoch: 1, seq: 1, flags: first, init: 1, want: begin},
			{epoch: 1, seq: 2, recording: 1, init: 1, asked: true, want: bad},
			{epoch: 1, seq: 2, init: 2, want: bad},
			{epoch: 1, seq: 2, flags: key, init: 2, want: begin},
		},
		"a hole that is durable may be more of it": {
			{epoch: 1, seq: 1, flags: first, init: 1, want: begin},
			func() step { h := elsewhere(2, 6); h.open = "1:1-1"; return h }(),
			{epoch: 1, seq: 7, init: 1, want: orphan},
			{epoch: 1, seq: 7, init: 1, asked: true, want: rest}, // of another object
		},
		"what was said to be durable comes all the same": {
			{epoch: 1, seq: 1, flags: first, init: 1, want: begin},
			elsewhere(2, 6),
			{back: true, epoch: 1, seq: 2, init: 1, want: app, open: "1:1-2"},
		},
		"parts are had, and continued": {
			{epoch: 1, parts: []vms.ChunkRange{{Epoch: 1, First: 1, Last: 4}, {Epoch: 1, First: 5, Last: 8}}, open: "1:1-8p"},
			{epoch: 1, seq: 3, init: 1, want: dup},
			{epoch: 1, seq: 9, init: 1, asked: true, want: orphan},
			{back: true, epoch: 1, seq: 20, flags: first, recording: 1, init: 1, want: begin, open: "1:1-8p 1:20-20"},
			{back: true, epoch: 1, seq: 9, init: 1, want: orphan},
		},
		"parts of what was taken here are nothing new": {
			{epoch: 1, seq: 1, flags: first, init: 1, want: begin},
			{epoch: 1, seq: 2, init: 1, want: app},
			{epoch: 1, parts: []vms.ChunkRange{{Epoch: 1, First: 1, Last: 1}}, open: "1:1-2"},
			{epoch: 1, parts: []vms.ChunkRange{{Epoch: 1, First: 1, Last: 5}}, open: "1:1-2 1:3-5p"},
			{epoch: 1, seq: 6, init: 1, want: orphan},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var s segment.Segmenter
			lanes := map[bool]*segment.Lane{false: {}, true: {Backfill: true}}
			for i, st := range steps {
				l := lanes[st.back]
				switch {
				case st.end != 0 || st.ended:
					s.End(st.epoch, st.end)
				case st.stored.Epoch != 0:
					s.Durable(st.stored)
				case st.hole.Epoch != 0:
					s.Hole(l, st.hole, st.durable)
				case st.preview:
					l.Preview()
				case st.connected:
					l.Connected()
				case st.parts != nil:
					var rows []vms.Recording
					for _, r := range st.parts {
						s.Durable(r)
						rows = append(rows, vms.Recording{Chunks: r})
					}
					s.Parts(st.epoch, rows)
				default:
					c := vms.Chunk{Epoch: st.epoch, Seq: st.seq, Flags: st.flags, Recording: st.recording, Init: st.init}
					v, o := s.Place(l, &c, st.asked)
					if v != st.want {
						t.Fatalf("step %d: Place(%s:%d) = %d, want %d", i, c.Epoch, c.Seq, v, st.want)
					}
					if v == begin || v == app || v == dup || v == rest {
						s.Take(l, &c, v, o)
					}
				}
				for _, o := range s.Open() {
					if s.State(o) == segment.Complete && !o.Parked {
						s.Close(o)
					}
				}
				if got := opened(&s); st.open != "" && got != st.open && (st.open != "-" || got != "") {
					t.Fatalf("step %d: open %q, want %q", i, got, st.open)
				}
			}
		})
	}
}

func opened(s *segment.Segmenter) string {
	var out []string
	for _, o := range s.Open() {
		p := ""
		if o.Parked {
			p = "p"
		}
		out = append(out, fmt.Sprintf("%d:%d-%d%s", uint64(o.Chunks.Epoch), o.Chunks.First, o.Chunks.Last, p))
	}
	return strings.Join(out, " ")
}

// TestNextIsOneLane: for whoever has a single, ordered stream.
func TestNextIsOneLane(t *testing.T) {
	var s segment.Segmenter
	for seq, want := range []segment.Verdict{segment.Begin, segment.Append, segment.Append, segment.Begin, segment.Append} {
		c := vms.Chunk{Epoch: 1, Seq: uint64(seq + 1), Recording: uint32(seq / 3), Init: 1}
		if seq%3 == 0 {
			c.Flags = first
		}
		if v := s.Next(&c); v != want {
			t.Errorf("Next(%d) = %d, want %d", c.Seq, v, want)
		}
	}
	if got := opened(&s); got != "1:4-5" {
		t.Errorf("open %s", got)
	}
}

// TestWhatAnAgentDeclaresIsBounded: text messages cost no credit.
func TestWhatAnAgentDeclaresIsBounded(t *testing.T) {
	var s segment.Segmenter
	var l segment.Lane
	c := vms.Chunk{Epoch: 1, Seq: 1, Flags: first, Init: 1}
	s.Take(&l, &c, segment.Begin, nil)
	for i := range uint64(30_000) {
		s.Hole(&l, vms.ChunkRange{Epoch: 1, First: 10 + 2*i, Last: 10 + 2*i}, i%2 == 0)
		s.End(vms.Epoch(i+1), 7)
	}
	if n := s.Remembered(); n > 20_000 {
		t.Errorf("%d things are remembered", n)
	}
	if got := opened(&s); got != "1:1-1" {
		t.Errorf("open %s", got)
	}
}

// TestPartsThatComeLaterAreLookedFor: that there were none when it was asked does
// not make what ends before them complete.
func TestPartsThatComeLaterAreLookedFor(t *testing.T) {
	var s segment.Segmenter
	var l segment.Lane
	o := s.Take(&l, &vms.Chunk{Epoch: 1, Seq: 1, Flags: first, Init: 1}, segment.Begin, nil)
	s.Alone(1, 2)
	rows := []vms.Recording{{Chunks: vms.ChunkRange{Epoch: 1, First: 2, Last: 5}}}
	s.Durable(rows[0].Chunks)
	s.Parts(1, rows)
	if st := s.State(o); st != segment.Continued {
		t.Errorf("state %d, want %d", st, segment.Continued)
	}
	s.Alone(1, 2) // they are of no use
	if st := s.State(o); st != segment.Complete {
		t.Errorf("state %d, want %d", st, segment.Complete)
	}
}
