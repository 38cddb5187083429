package spool

import (
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

// backlogged is a stream with 512 MiB on flash, in 128 blocks of 4 s recordings,
// and 100 chunks in RAM, that lags.
func backlogged(b *testing.B) (s *Spool, live, back *Cursor) {
	s = ram(b, 1<<30)
	at, seq := time.Unix(1_800_000_000, 0).UTC(), uint64(0)
	flags := func() vms.Flags {
		switch {
		case seq%40 == 1:
			return vms.FlagKey | vms.FlagFirst
		case seq%10 == 1:
			return vms.FlagKey
		}
		return 0
	}
	f := &file{}
	s.mu.Lock()
	ord := s.ordinal(epoch)
	for range 128 {
		bl := &block{file: f, Epoch: epoch, First: seq + 1, Last: seq + 80, Start: at, End: at.Add(80 * time.Second), Bytes: 4 << 20}
		for range 80 {
			seq++
			if flags() != 0 {
				bl.Marks = append(bl.Marks, mark{Seq: seq, Flags: flags(), Start: at})
			}
			at = at.Add(time.Second)
		}
		s.blocks = append(s.blocks, &shelved{block: bl, ord: ord})
		s.fileOf(bl).blocks++
	}
	s.last, s.lastEnd = key{ord: ord, seq: seq}, at
	s.mu.Unlock()
	for range 100 {
		seq++
		s.Append(vms.Chunk{Epoch: epoch, Seq: seq, Init: 1, Flags: flags(), Start: at, End: at.Add(time.Second), Payload: make([]byte, 1)})
		at = at.Add(time.Second)
	}
	return s, s.Live("w1", nil), s.Backfill("w1", nil, false)
}

// BenchmarkBacklogged is what a lane that waits does at each change of the spool,
// and what it is asked several times a second.
func BenchmarkBacklogged(b *testing.B) {
	s, live, back := backlogged(b)
	each := func(name string, do func()) {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				do()
			}
		})
	}
	each("BackfillWanted", func() { s.BackfillWanted() })
	each("Behind/live", func() { live.Behind() })
	each("Behind/backfill", func() { back.Behind() })
	each("Holding", func() { s.Holding() })
	each("Stats", func() { s.Stats() })
	each("Next/live", func() { live.step() })
	each("Next/backfill", func() { back.step() })
	back = s.Backfill("w1", nil, true)
	each("Next/newest_first", func() { back.step() })
	// All was sent, and nothing of it is durable.
	back = s.Backfill("w1", []vms.ChunkRange{rangeOf(1, 1<<40)}, true)
	each("Next/all_sent", func() { back.step() })
	each("BackfillWanted/all_sent", func() { s.BackfillWanted() })
	each("Behind/all_sent", func() { back.Behind() })
	seq := uint64(0)
	each("Durable", func() {
		seq++
		s.Durable([]vms.ChunkRange{rangeOf(seq%8000, seq%8000)})
	})
}
