package spool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/wire"
)

const epoch = vms.Epoch(0xe)

// put appends chunks of 744 + 256 bytes; those whose letter is 'k' begin a GOP.
func put(s *Spool, first uint64, gops string) {
	for i, r := range gops {
		seq := first + uint64(i)
		c := vms.Chunk{Epoch: epoch, Seq: seq, Init: 1, Payload: make([]byte, 744)}
		if r == 'k' {
			c.Flags = vms.FlagKey
		}
		c.Start = time.Unix(1_800_000_000+int64(seq), 0).UTC()
		c.End = c.Start.Add(time.Second)
		s.Append(c)
	}
}

func rangeOf(first, last uint64) vms.ChunkRange {
	return vms.ChunkRange{Epoch: epoch, First: first, Last: last}
}

// store opens a store that is closed with the test.
func store(t testing.TB, cfg Config) *Store {
	st, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	return st
}

func ram(t testing.TB, bytes int64) *Spool { return store(t, Config{RAM: bytes}).Spool("ch_1") }

// whole is a cursor of backfill when live has nothing.
func whole(s *Spool, have []vms.ChunkRange) *Cursor {
	s.mu.Lock()
	s.bounded = false
	s.mu.Unlock()
	return s.Backfill("w1", have, false)
}

// pull returns what a cursor hands out next, false when it would wait, and io.EOF.
func pull(c *Cursor) (wire.Outgoing, bool, error) {
	for tries := readTries; ; {
		st := c.step()
		if st.read.at == nil {
			return st.out, st.out != (wire.Outgoing{}), st.err
		}
		if chunk, _ := c.read(st.read, tries); chunk != nil {
			return wire.Outgoing{Chunk: chunk}, true, nil
		}
	}
}

// walk lists what a cursor hands out until it would wait.
func walk(c *Cursor) string {
	var out []string
	for {
		item, ok, err := pull(c)
		switch {
		case err != nil:
			return strings.Join(append(out, err.Error()), ", ")
		case !ok:
			return strings.Join(out, ", ")
		case item.Chunk != nil:
			word := fmt.Sprint(item.Chunk.Seq)
			if item.Chunk.Flags.Has(vms.FlagPreview) {
				word = "p" + word
			}
			out = append(out, word)
		case item.Gap != nil:
			out = append(out, fmt.Sprintf("%s %d-%d", item.Gap.Cause, item.Gap.Chunks.First, item.Gap.Chunks.Last))
		case item.End != nil:
			word := fmt.Sprintf("end %d", item.End.Seq)
			if item.End.Cause == "moved" {
				word = fmt.Sprintf("moved %d", item.End.Seq)
			}
			out = append(out, word)
		}
	}
}

func gaps(s *Spool) string {
	var out []string
	for _, g := range s.Gaps(100) {
		out = append(out, fmt.Sprintf("%s %d-%d", g.Cause, g.Chunks.First, g.Chunks.Last))
	}
	return strings.Join(out, ", ")
}

func TestFullBudgetDropsWholeGOPsOldestFirst(t *testing.T) {
	s := ram(t, 8_000)
	put(s, 1, "k..k..k..")
	if got, want := walk(whole(s, nil)), "buffer_full 1-3, 4, 5, 6, 7, 8, 9"; got != want {
		t.Errorf("held: %s, want %s", got, want)
	}
	if got, want := gaps(s), "buffer_full 1-3"; got != want {
		t.Errorf("gaps: %s, want %s", got, want)
	}
	put(s, 10, "k..")
	if got, want := gaps(s), "buffer_full 4-6"; got != want {
		t.Errorf("gaps: %s, want %s: a gap that was handed out does not grow", got, want)
	}
	if st := s.Stats(); st.Dropped != 6 || st.Chunks != 6 || st.RAM != 6_000 {
		t.Errorf("stats %+v", st)
	}
}

// take pulls n items from a cursor and lists them.
func take(t *testing.T, c *Cursor, n int) string {
	t.Helper()
	var out []string
	for range n {
		item, ok, err := pull(c)
		if err != nil || !ok || item.Chunk == nil {
			t.Fatalf("the cursor hands out %+v, %v, %v; want a chunk", item, ok, err)
		}
		out = append(out, fmt.Sprint(item.Chunk.Seq))
	}
	return strings.Join(out, ", ")
}

// TestFullBudgetTearsNoGOP: when the link is back and there is no room yet, the
// worker has the beginning of the oldest GOP; the next one is given up for it.
func TestFullBudgetTearsNoGOP(t *testing.T) {
	for _, tt := range []struct {
		name string
		sent int
		want string // the gaps after each of three GOPs more
	}{
		{"nothing is sent", 0, "buffer_full 1-3; buffer_full 1-6; buffer_full 1-9"},
		{"a lane is in the middle of the oldest", 1, "buffer_full 4-6; buffer_full 4-9; buffer_full 4-12"},
		{"and of the next", 5, "buffer_full 1-3; buffer_full 1-3, buffer_full 7-9; buffer_full 1-3, buffer_full 7-12"},
		// The worker is about to have all of them: what is sent whole is not spared.
		{"a lane is between two", 3, "buffer_full 1-3; buffer_full 1-6; buffer_full 1-9"},
		{"all is sent", 9, "buffer_full 1-3; buffer_full 1-6; buffer_full 1-9"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := store(t, Config{RAM: 9_500})
			s := b.Spool("ch_1")
			put(s, 1, "k..k..k..")
			c := whole(s, nil)
			take(t, c, tt.sent)
			var got []string
			for n := uint64(10); n < 19; n += 3 {
				put(s, n, "k..")
				if b.used.Load() > b.cfg.RAM {
					t.Errorf("%d bytes held of a budget of %d", b.used.Load(), b.cfg.RAM)
				}
				got = append(got, gaps(s))
				s.Resend()
				for _, g := range s.gaps {
					g.sent = false // so that it grows
				}
			}
			check(t, "gaps", strings.Join(got, "; "), tt.want)
		})
	}
}

// TestSparedGOPIsBroughtToItsEnd: and the lane explains what is behind it.
func TestSparedGOPIsBroughtToItsEnd(t *testing.T) {
	s := ram(t, 9_500)
	put(s, 1, "k..k..k..")
	c := whole(s, nil)
	take(t, c, 1)
	put(s, 10, "k..")
	check(t, "handed out", walk(c), "2, 3, buffer_full 4-6, 7, 8, 9, 10, 11, 12")
	// The connection is gone, and with it what it was sent: all of it is the oldest again.
	put(s, 13, "k..")
	c.Close()
	put(s, 16, "k..")
	check(t, "gaps", gaps(s), "buffer_full 1-9")
}

// TestWorkerThatHasTheBeginningGetsTheRest: it said so when the lane came up,
// before the lane has sent anything; so does the part of a recording that was
// stored.
func TestWorkerThatHasTheBeginningGetsTheRest(t *testing.T) {
	s := ram(t, 9_500)
	put(s, 1, "k..k..k..")
	s.Backfill("w1", []vms.ChunkRange{rangeOf(1, 2)}, false)
	put(s, 10, "k")
	check(t, "gaps", gaps(s), "buffer_full 4-6")

	s = ram(t, 9_500)
	put(s, 1, "k..k..k..")
	s.Durable([]vms.ChunkRange{rangeOf(1, 2)})
	put(s, 10, "k..")
	check(t, "gaps", gaps(s), "buffer_full 4-6")
}

// TestSparedGOPCostsOneOfAnotherStream when its own has no whole one to give,
// and not the one that another camera is in the middle of.
func TestSparedGOPCostsOneOfAnotherStream(t *testing.T) {
	b := store(t, Config{RAM: 12_500})
	s, other, third := b.Spool("ch_1"), b.Spool("ch_2"), b.Spool("ch_3")
	put(third, 1, "k.")
	put(other, 1, "k..k.")
	put(s, 1, "k....")
	take(t, whole(s, nil), 2)
	put(s, 6, "k")
	check(t, "gaps", gaps(s)+gaps(third), "")
	check(t, "gaps of the other", gaps(other), "buffer_full 1-3")
	// Nothing is left but what is being sent, and what is being captured: the
	// budget holds, and the camera goes on.
	put(s, 7, "..")
	check(t, "gaps before it is full", gaps(s)+gaps(other)+gaps(third), "")
	put(s, 9, ".")
	check(t, "gaps", gaps(s), "buffer_full 1-5")
	put(s, 10, ".k.")
	check(t, "gaps while there is room", gaps(s)+gaps(other)+gaps(third), "")
	if b.used.Load() > b.cfg.RAM {
		t.Errorf("%d bytes held of a budget of %d", b.used.Load(), b.cfg.RAM)
	}
}

// TestSparedGOPThatGrewTooLarge: one GOP is all there is, and more than fits.
func TestSparedGOPThatGrewTooLarge(t *testing.T) {
	b := store(t, Config{RAM: 4_500})
	s := b.Spool("ch_1")
	put(s, 1, "k...")
	take(t, whole(s, nil), 4)
	put(s, 5, "..k..")
	check(t, "gaps", gaps(s), "buffer_full 1-6")
	if st := s.Stats(); st.Chunks != 3 || b.used.Load() != 3_000 {
		t.Errorf("%+v: the next keyframe is not kept", st)
	}
}

// TestStarvingWaitsForAKeyframe: a GOP larger than the budget is dropped to its
// end, because its rest could not be decoded.
func TestStarvingWaitsForAKeyframe(t *testing.T) {
	b := store(t, Config{RAM: 3_500})
	s := b.Spool("ch_1")
	put(s, 1, "k......")
	if st := s.Stats(); st.Chunks != 0 || b.used.Load() != 0 {
		t.Errorf("%d chunks and %d bytes held of a GOP whose keyframe is gone", st.Chunks, b.used.Load())
	}
	put(s, 8, "k.")
	if got, want := walk(whole(s, []vms.ChunkRange{rangeOf(1, 2)})), "buffer_full 3-7, 8, 9"; got != want {
		t.Errorf("handed out %s, want %s", got, want)
	}
	if got, want := gaps(s), "buffer_full 1-7"; got != want {
		t.Errorf("gaps: %s, want %s", got, want)
	}
}

// TestRefusedChunkTakesItsGOPWithIt: also what of it is still to come, and
// under the right cause.
func TestRefusedChunkTakesItsGOPWithIt(t *testing.T) {
	s := ram(t, 1<<20)
	put(s, 1, "k..k..k.")
	s.Skip(epoch, 5)
	s.Skip(epoch, 8)
	put(s, 9, ".k.")
	if got, want := walk(whole(s, []vms.ChunkRange{rangeOf(1, 1)})), "2, 3, rejected 4-9, 10, 11"; got != want {
		t.Errorf("handed out %s, want %s", got, want)
	}
	if got, want := gaps(s), "rejected 4-9"; got != want {
		t.Errorf("gaps: %s, want %s", got, want)
	}
	s.Skip(epoch, 500)
	s.Skip(7, 1)
	if st := s.Stats(); st.Chunks != 5 {
		t.Errorf("%d chunks held, want 5: a chunk that is not held takes nothing with it", st.Chunks)
	}
}

// TestCursorExplainsWhatWasDroppedDuringAnOutage: the worker has the beginning,
// the budget took what came next, and a lane that jumped to what is held
// without a word would be refused for ever.
func TestCursorExplainsWhatWasDroppedDuringAnOutage(t *testing.T) {
	s := ram(t, 4_000)
	put(s, 1, "k..k..k..k..")
	for _, tt := range []struct {
		have []vms.ChunkRange
		want string
	}{
		{nil, "buffer_full 1-9, 10, 11, 12"},
		{[]vms.ChunkRange{rangeOf(1, 2)}, "buffer_full 3-9, 10, 11, 12"},
		{[]vms.ChunkRange{rangeOf(1, 2), rangeOf(4, 5)}, "buffer_full 6-9, 10, 11, 12"},
		{[]vms.ChunkRange{rangeOf(1, 9)}, "10, 11, 12"},
		{[]vms.ChunkRange{rangeOf(1, 10)}, "11, 12"},
		{[]vms.ChunkRange{rangeOf(1, 1), rangeOf(12, 12)}, "buffer_full 2-9, 10, 11"},
		{[]vms.ChunkRange{rangeOf(1, 12)}, ""},
		{[]vms.ChunkRange{{Epoch: 99, First: 1, Last: 3}}, "buffer_full 1-9, 10, 11, 12"},
	} {
		if got := walk(whole(s, tt.have)); got != tt.want {
			t.Errorf("a worker that has %v gets %q, want %q", tt.have, got, tt.want)
		}
	}
}

func TestCursorCallsDurableWhatAnotherWorkerStored(t *testing.T) {
	s := ram(t, 1<<20)
	put(s, 1, "k.k.k.")
	s.Durable([]vms.ChunkRange{rangeOf(3, 4)})
	if got, want := walk(whole(s, []vms.ChunkRange{rangeOf(1, 1)})), "2, durable 3-4, 5, 6"; got != want {
		t.Errorf("handed out %s, want %s", got, want)
	}
}

func TestEndsComeInTheirPlace(t *testing.T) {
	s := ram(t, 1<<20)
	put(s, 1, "k.")
	s.End(epoch, 2, "camera_offline")
	s.End(epoch, 2, "again")
	put(s, 3, "k.")
	if got, want := walk(whole(s, nil)), "1, 2, end 2, 3, 4"; got != want {
		t.Errorf("handed out %s, want %s", got, want)
	}
	if got, want := walk(whole(s, []vms.ChunkRange{rangeOf(1, 2)})), "end 2, 3, 4"; got != want {
		t.Errorf("handed out %s, want %s", got, want)
	}
	s.Durable([]vms.ChunkRange{rangeOf(1, 4)})
	s.End(epoch, 4, "stopped")
	if got, want := walk(whole(s, []vms.ChunkRange{rangeOf(1, 4)})), "end 4, EOF"; got != want {
		t.Errorf("handed out %s, want %s", got, want)
	}
}

// TestEndsDoNotStopTheDropping: an end in front holds no bytes; what is behind
// it has to go.
func TestEndsDoNotStopTheDropping(t *testing.T) {
	b := store(t, Config{RAM: 3_000})
	s := b.Spool("ch_2")
	put(s, 1, "k")
	s.End(epoch, 1, "camera_offline")
	for i := range uint64(20) {
		put(s, 2+i, "k")
		s.End(epoch, 2+i, "camera_offline")
		if b.used.Load() > b.cfg.RAM {
			t.Fatalf("%d bytes held of a budget of %d", b.used.Load(), b.cfg.RAM)
		}
	}
}

// TestEndBehindAHoleDoesNotHideIt: what was dropped before an end has to be
// explained like any other hole, or the next chunk is refused for ever.
func TestEndBehindAHoleDoesNotHideIt(t *testing.T) {
	s := ram(t, 1<<20)
	put(s, 1, "k.")
	s.End(epoch, 2, "camera_offline")
	put(s, 3, "k.")
	s.End(epoch, 4, "camera_offline")
	s.Skip(epoch, 4)
	put(s, 5, "k")
	if got, want := walk(whole(s, []vms.ChunkRange{rangeOf(1, 1)})), "2, end 2, rejected 3-4, end 4, 5"; got != want {
		t.Errorf("handed out %s, want %s", got, want)
	}
}

func TestNextWaitsForTheNextChunk(t *testing.T) {
	vmstest.NoLeaks(t)
	s := ram(t, 1<<20)
	c := s.Live("w1", nil) // a backfill would end
	got := make(chan wire.Outgoing)
	go func() {
		item, err := c.Next(t.Context())
		if err != nil {
			t.Error(err)
		}
		got <- item
	}()
	put(s, 1, "k")
	if item := <-got; item.Chunk == nil || item.Chunk.Seq != 1 {
		t.Errorf("got %+v, want chunk 1", item)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Next = %v when told to stop", err)
	}
}

func TestDeclaredGapsAreRepeatedUntilCommitted(t *testing.T) {
	s := ram(t, 1<<20)
	at := time.Unix(1_800_000_000, 0).UTC()
	g := vms.Gap{ID: "gap_1", Cause: vms.CauseCameraOffline, TimeRange: vms.TimeRange{Start: at, End: at.Add(10 * time.Second)}}
	s.Declare(g)
	if got := s.Gaps(10); len(got) != 1 || got[0].ID != "gap_1" {
		t.Fatalf("gaps %v, want gap_1", got)
	}
	if got := s.Gaps(10); len(got) != 0 {
		t.Errorf("gaps %v are handed out while they are on their way", got)
	}
	// It grows while its first version is on its way: the answer is to that one.
	g.End = at.Add(20 * time.Second)
	s.Declare(g)
	s.Committed([]vms.GapID{"gap_1", "gap_unknown"})
	got := s.Gaps(10)
	if len(got) != 1 || !got[0].End.Equal(g.End) {
		t.Fatalf("gaps %v, want gap_1 until %v: what it grew by is lost", got, g.End)
	}
	s.Resend() // the session broke before the answer
	if got := s.Gaps(10); len(got) != 1 {
		t.Fatalf("gaps %v, want gap_1 again", got)
	}
	s.Committed([]vms.GapID{"gap_1"})
	s.Resend()
	if got := s.Gaps(10); len(got) != 0 {
		t.Errorf("gaps %v after they were committed", got)
	}
}

// TestHolesAreForgottenWhenNobodyNeedsThem: an outage of a month must not fill
// the memory with holes, and the lane still has to explain the last one.
func TestHolesAreForgottenWhenNobodyNeedsThem(t *testing.T) {
	s := ram(t, 2_500)
	for i := range uint64(2_000) {
		put(s, 2*i+1, "k.")
		var ids []vms.GapID
		for _, g := range s.Gaps(10) {
			ids = append(ids, g.ID)
		}
		s.Committed(ids)
	}
	if n := len(s.holes); n > 300 {
		t.Errorf("%d holes are remembered", n)
	}
	if got, want := walk(whole(s, []vms.ChunkRange{rangeOf(1, 3997)})), "buffer_full 3998-3998, 3999, 4000"; got != want {
		t.Errorf("handed out %s, want %s", got, want)
	}
}

func TestInitsAreForgottenWithTheirChunks(t *testing.T) {
	s := ram(t, 1<<20)
	for i := range uint32(100) {
		s.PutInit(vms.Init{Epoch: epoch, ID: i + 1})
		s.Append(vms.Chunk{Epoch: epoch, Seq: uint64(i) + 1, Init: i + 1, Flags: vms.FlagKey})
	}
	s.Durable([]vms.ChunkRange{rangeOf(1, 98)})
	for id, want := range map[uint32]bool{1: false, 98: false, 99: true, 100: true} {
		if _, ok := s.Init(epoch, id); ok != want {
			t.Errorf("init %d known: %v, want %v", id, ok, want)
		}
	}
	s.Durable([]vms.ChunkRange{rangeOf(99, 100)})
	if _, ok := s.Init(epoch, 100); !ok {
		t.Error("the init of the next chunk is forgotten")
	}
	s.PutInit(vms.Init{Epoch: 2, ID: 1})
	s.Append(vms.Chunk{Epoch: 2, Seq: 1, Init: 1, Flags: vms.FlagKey})
	s.Durable([]vms.ChunkRange{{Epoch: 2, First: 1, Last: 1}})
	if _, ok := s.Init(epoch, 100); ok {
		t.Error("the init of an epoch that is over is kept")
	}
	if got := s.Epochs(); !slices.Equal(got, []vms.Epoch{2}) {
		t.Errorf("epochs %v, want the newest only", got)
	}
}

func TestHoldingIsRunsWithTheirTime(t *testing.T) {
	s := ram(t, 4<<20)
	put(s, 1, "k.k.k.")
	s.Durable([]vms.ChunkRange{rangeOf(3, 3)})
	got := s.Holding()
	at := func(n int64) time.Time { return time.Unix(1_800_000_000+n, 0).UTC() }
	want := []wire.HeldRange{
		{Chunks: rangeOf(1, 2), Start: at(1), End: at(3), Bytes: 2 * 744, Lane: vms.LaneLive},
		{Chunks: rangeOf(4, 6), Start: at(4), End: at(7), Bytes: 3 * 744, Lane: vms.LaneLive},
	}
	if !slices.Equal(got, want) {
		t.Errorf("holding %v, want %v", got, want)
	}
	if d := s.Stats().DurableUntil; !d.Equal(at(4)) {
		t.Errorf("durable until %v, want %v", d, at(4))
	}
	if n, _ := whole(s, []vms.ChunkRange{rangeOf(1, 4)}).Behind(); n != 2*744 {
		t.Errorf("%d bytes behind, want %d", n, 2*744)
	}
	// More runs than a message may have: the oldest ones.
	put(s, 7, strings.Repeat("k", 2_200))
	for i := range uint64(1_100) {
		s.Durable([]vms.ChunkRange{rangeOf(7+2*i, 7+2*i)})
	}
	if got := s.Holding(); len(got) != wire.MaxRanges || got[0].Chunks.First != 1 {
		t.Errorf("%d ranges from %d", len(got), got[0].Chunks.First)
	}
}

// TestTheOneThatHoldsMostGives: a camera with a small picture does not lose it
// to the one that floods the budget.
func TestTheOneThatHoldsMostGives(t *testing.T) {
	b := store(t, Config{RAM: 20_000})
	small, large := b.Spool("ch_3"), b.Spool("ch_4")
	put(small, 1, "k..")
	put(large, 1, strings.Repeat("k..", 20))
	put(small, 4, "k..")
	if st := small.Stats(); st.Dropped != 0 {
		t.Errorf("the stream that holds %d bytes lost %d chunks", st.RAM, st.Dropped)
	}
	if b.used.Load() > b.cfg.RAM {
		t.Errorf("%d bytes held of a budget of %d", b.used.Load(), b.cfg.RAM)
	}
}

// TestAllAtOnce is for the race detector: writers, lanes and acknowledgements
// of several streams share a budget.
func TestAllAtOnce(t *testing.T) {
	vmstest.NoLeaks(t)
	b := store(t, Config{RAM: 50_000})
	var wg sync.WaitGroup
	for i := range 3 {
		s := b.Spool(vms.ChannelID(fmt.Sprint("ch_", i)))
		ctx, stop := context.WithCancel(t.Context())
		wg.Go(func() {
			defer stop()
			for i := range uint64(200) {
				put(s, 5*i+1, "k....")
				s.Gaps(10)
				s.Holding()
			}
		})
		wg.Go(func() {
			c := whole(s, nil)
			for {
				item, err := c.Next(ctx)
				if err != nil {
					return
				}
				if item.Chunk != nil && item.Chunk.Seq%7 == 0 {
					s.Durable([]vms.ChunkRange{rangeOf(item.Chunk.Seq-6, item.Chunk.Seq)})
				}
			}
		})
	}
	wg.Wait()
	if b.used.Load() > b.cfg.RAM {
		t.Errorf("%d bytes held of a budget of %d", b.used.Load(), b.cfg.RAM)
	}
}
