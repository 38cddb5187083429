package spool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// putMarked appends chunks of a second each: 'f' begins a recording, 'k' a GOP,
// 'd' a recording without a keyframe.
func putMarked(s *Spool, first uint64, gops string) {
	for i, r := range gops {
		seq := first + uint64(i)
		c := vms.Chunk{Epoch: epoch, Seq: seq, Init: 1, MoofLen: 8, Payload: make([]byte, 744)}
		c.CRC = wire.Checksum(c.Payload)
		switch r {
		case 'f':
			c.Flags = vms.FlagKey | vms.FlagFirst
		case 'k':
			c.Flags = vms.FlagKey
		case 'd':
			c.Flags = vms.FlagFirst | vms.FlagDependent
		}
		c.Start = time.Unix(1_800_000_000+int64(seq), 0).UTC()
		c.End = c.Start.Add(time.Second)
		if seq == 1 {
			s.PutInit(vms.Init{Epoch: epoch, ID: 1})
		}
		s.Append(c)
	}
}

func check(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %s, want %s", what, got, want)
	}
}

// wanted is what BackfillWanted says.
func wanted(s *Spool) bool {
	on, _ := s.BackfillWanted()
	return on
}

func TestLiveGoesInOrderWhenTheBacklogIsShort(t *testing.T) {
	s := ram(t, 1<<20)
	putMarked(s, 1, "f.k.f.k.")
	c := s.Live("w1", nil)
	check(t, "live", walk(c), "1, 2, 3, 4, 5, 6, 7, 8")
	if wanted(s) {
		t.Error("backfill is wanted, and live has all")
	}
	c.Close()
	putMarked(s, 9, "f.")
	check(t, "live that is back", walk(s.Live("w1", []vms.ChunkRange{rangeOf(1, 4)})), "5, 6, 7, 8, 9, 10")
}

// TestLiveJumpsAfterAnOutage: previews from the newest keyframe, recording from
// the next recording on, and backfill has everything before that, once.
func TestLiveJumpsAfterAnOutage(t *testing.T) {
	s := ram(t, 1<<20)
	putMarked(s, 1, "f..k..f..k..k.")
	live := s.Live("w1", nil)
	check(t, "live", walk(live), "p13, p14")
	if !wanted(s) {
		t.Error("backfill is not wanted")
	}
	back := s.Backfill("w1", nil, false)
	check(t, "backfill while it is not known where live records", walk(back), "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14")
	putMarked(s, 15, "k.")
	check(t, "live", walk(live), "p15, p16")
	check(t, "backfill", walk(back), "15, 16")
	putMarked(s, 17, "f.")
	check(t, "backfill at its end", walk(back), "EOF")
	check(t, "live", walk(live), "17, 18")
	putMarked(s, 19, "f.")
	check(t, "live", walk(live), "19, 20")
	check(t, "backfill", walk(back), "EOF")
	if !wanted(s) {
		t.Error("backfill has brought what is not durable, and is not wanted")
	}
	s.Durable([]vms.ChunkRange{rangeOf(1, 16)})
	if wanted(s) {
		t.Error("backfill is wanted, and all is durable")
	}
	got := s.Holding()
	if len(got) != 1 || got[0].Lane != vms.LaneLive || got[0].Chunks != rangeOf(17, 20) {
		t.Errorf("holding %v", got)
	}
}

// TestLiveThatBeginsAtARecordingNeedsNoPreview: the newest keyframe is flagged first.
func TestLiveThatBeginsAtARecordingNeedsNoPreview(t *testing.T) {
	s := ram(t, 1<<20)
	putMarked(s, 1, "f....k......f.")
	check(t, "live", walk(s.Live("w1", nil)), "13, 14")
	if h := s.Holding(); len(h) != 2 || h[0].Lane != vms.LaneBackfill || h[0].Chunks != rangeOf(1, 12) || h[1].Lane != vms.LaneLive {
		t.Errorf("holding %v", h)
	}
	check(t, "backfill", walk(s.Backfill("w1", nil, false)), "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, EOF")
}

// TestLivePreviewsWhatBackfillRecords: backfill has sent the newest recording
// already, so that live may only show it, also its first chunk.
func TestLivePreviewsWhatBackfillRecords(t *testing.T) {
	s := ram(t, 1<<20)
	putMarked(s, 1, "f....k......f.")
	back := whole(s, nil)
	walk(back)
	live := s.Live("w1", nil)
	check(t, "live", walk(live), "p13, p14")
	putMarked(s, 15, ".f.")
	check(t, "live", walk(live), "p15, 16, 17")
	check(t, "backfill", walk(back), "15, EOF")
}

// TestLiveThatLagsJumpsAgain: a slow uplink, in record mode and in previews.
func TestLiveThatLagsJumpsAgain(t *testing.T) {
	s := ram(t, 1<<20)
	putMarked(s, 1, "f.")
	live := s.Live("w1", nil)
	check(t, "live", walk(live), "1, 2")
	putMarked(s, 3, "..........k.") // 3 begins 12 s before the newest ends
	check(t, "live", walk(live), "p13, p14")
	check(t, "backfill does not repeat what live sent", walk(s.Backfill("w1", []vms.ChunkRange{rangeOf(1, 2)}, false)), "3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14")
	putMarked(s, 15, "k..........k..") // previewing, it lags again
	check(t, "live", walk(live), "p26, p27, p28")
	putMarked(s, 29, "f.........") // not yet 10 s
	check(t, "live", walk(live), "29, 30, 31, 32, 33, 34, 35, 36, 37, 38")
}

// TestLiveOfLongGOPsGoesOn: jumping to where it stands already would not help.
func TestLiveOfLongGOPsGoesOn(t *testing.T) {
	s := ram(t, 1<<20)
	putMarked(s, 1, "f"+strings.Repeat(".", 29))
	live := s.Live("w1", nil)
	if got := walk(live); !strings.HasPrefix(got, "1, 2, 3") {
		t.Errorf("live: %s", got)
	}
	live.Received([]vms.ChunkRange{rangeOf(1, 30)})
	putMarked(s, 31, strings.Repeat(".", 20)+"f.")
	check(t, "live", walk(live), "p51, 51, 52")
	if h := s.Holding(); len(h) != 2 || h[0].Chunks != rangeOf(1, 50) || h[0].Lane != vms.LaneBackfill {
		t.Errorf("holding %v", h)
	}
	check(t, "backfill", walk(s.Backfill("w1", nil, false)), "31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, EOF")
}

// TestNobodyForgetsWhatLiveLeft: what live sent is backfill's when live has
// jumped and its connection is gone.
func TestNobodyForgetsWhatLiveLeft(t *testing.T) {
	s := ram(t, 1<<20)
	putMarked(s, 1, "f.f.")
	live := s.Live("w1", nil)
	check(t, "live", walk(live), "1, 2, 3, 4")
	live.Received([]vms.ChunkRange{rangeOf(1, 4)})
	putMarked(s, 5, "...........k.f.")
	check(t, "live", walk(live), "p18, 18, 19")
	back := s.Backfill("w1", nil, false)
	check(t, "backfill", walk(back), "5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, EOF")
	live.Close()
	check(t, "backfill without live", walk(back), "1, 2, 3, 4, EOF")
}

// TestNewestFirstGoesByRecordings: one that has lost its beginning comes with
// the one before it.
func TestNewestFirstGoesByRecordings(t *testing.T) {
	s := ram(t, 1<<20)
	putMarked(s, 1, "f..k.f..k..f....f.......k.")
	s.Skip(epoch, 7)
	s.Live("w1", nil)
	back := s.Backfill("w1", nil, true)
	check(t, "backfill, the growing recording last",
		walk(back), "12, 13, 14, 15, 16, 1, 2, 3, 4, 5, rejected 6-8, 9, 10, 11, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26")
	putMarked(s, 27, "f.")
	check(t, "backfill", walk(back), "EOF")
}

func TestNewestFirstSaysTheEnds(t *testing.T) {
	s := ram(t, 1<<20)
	putMarked(s, 1, "f..f..")
	s.End(epoch, 6, "camera_offline")
	putMarked(s, 7, "f..f............f")
	s.Live("w1", nil)
	check(t, "backfill", walk(s.Backfill("w1", nil, true)), "10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 7, 8, 9, 4, 5, 6, end 6, 1, 2, 3, EOF")
}

// TestHandOver: the old connection goes on up to the next recording, and the
// new one begins there.
func TestHandOver(t *testing.T) {
	s := ram(t, 1<<20)
	putMarked(s, 1, "f.f.")
	old := s.Live("w1", nil)
	check(t, "old", walk(old), "1, 2, 3, 4")
	heir := old.HandOver("w1", nil)
	check(t, "new", walk(heir), "")
	putMarked(s, 5, "k.")
	check(t, "old", walk(old), "5, 6")
	putMarked(s, 7, "f.")
	check(t, "new", walk(heir), "7, 8")
	check(t, "old", walk(old), "moved 6, EOF")
	if wanted(s) {
		t.Error("backfill is wanted, and the old connection is there")
	}
	s.Durable([]vms.ChunkRange{rangeOf(1, 2)})
	old.Close() // it broke before the rest was durable
	if !wanted(s) {
		t.Error("backfill is not wanted, and the old connection is gone")
	}
	check(t, "backfill", walk(s.Backfill("w1", []vms.ChunkRange{rangeOf(3, 4)}, false)), "5, 6, EOF")
	check(t, "new", walk(heir), "")
}

func TestHandOverThatFails(t *testing.T) {
	s := ram(t, 1<<20)
	putMarked(s, 1, "f.")
	old := s.Live("w1", nil)
	check(t, "old", walk(old), "1, 2")
	old.HandOver("w1", nil).Close()
	putMarked(s, 3, "f.")
	check(t, "old, when the new one broke", walk(old), "3, 4")
	heir := old.HandOver("w1", []vms.ChunkRange{rangeOf(1, 1)})
	old.Close() // before there was a recording to begin with
	check(t, "new, when the old one broke", walk(heir), "2, 3, 4")
	if _, err := old.Next(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Next of a closed cursor = %v", err)
	}
	next := s.Live("w1", nil)
	if _, err := heir.Next(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Next of a cursor that was replaced = %v", err)
	}
	check(t, "the one in its place", walk(next), "1, 2, 3, 4")
}

func TestHandOverOfPreviews(t *testing.T) {
	s := ram(t, 1<<20)
	putMarked(s, 1, "f..........k.")
	old := s.Live("w1", nil)
	check(t, "old", walk(old), "p12, p13")
	heir := old.HandOver("w1", nil)
	putMarked(s, 14, "k.f.")
	check(t, "new", walk(heir), "16, 17")
	check(t, "old", walk(old), "p14, p15, moved 15, EOF")
	check(t, "backfill", walk(s.Backfill("w1", nil, false)), "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, EOF")
}

// TestWithoutLiveBackfillTakesAll: a live lane that does not come back would
// not begin where it stopped.
func TestWithoutLiveBackfillTakesAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := ram(t, 1<<20)
		putMarked(s, 1, "f.")
		if wanted(s) {
			t.Error("backfill is wanted at once")
		}
		_, changed := s.BackfillWanted()
		<-changed // liveAway has passed
		if !wanted(s) {
			t.Error("backfill is not wanted, and live does not come")
		}
		back := s.Backfill("w1", nil, false)
		check(t, "backfill", walk(back), "1, 2")
		live := s.Live("w1", nil)
		check(t, "live", walk(live), "p1, p2")
		putMarked(s, 3, ".f.")
		check(t, "backfill", walk(back), "3, EOF")
		check(t, "live", walk(live), "p3, 4, 5")
		live.Close()
		time.Sleep(liveAway - time.Second)
		check(t, "live, not gone for long", walk(s.Live("w1", []vms.ChunkRange{rangeOf(1, 4)})), "5")
		s.live.Close()
		time.Sleep(liveAway + time.Second)
		check(t, "backfill, when it has been gone for long", walk(back), "4, 5")
	})
}

// TestBackfillEndsAndGoesOn: io.EOF is not for ever.
func TestBackfillEndsAndGoesOn(t *testing.T) {
	s := ram(t, 1<<20)
	back := s.Backfill("w1", nil, false)
	if _, err := back.Next(t.Context()); !errors.Is(err, io.EOF) {
		t.Fatalf("Next = %v, want EOF", err)
	}
	putMarked(s, 1, "f..........k.f")
	s.Live("w1", nil)
	check(t, "backfill", walk(back), "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, EOF")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := back.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Next = %v when told to stop", err)
	}
}

func TestBehind(t *testing.T) {
	s := ram(t, 1<<20)
	putMarked(s, 1, "f..........k.f.")
	live := s.Live("w1", nil)
	back := s.Backfill("w1", nil, false)
	for _, tt := range []struct {
		c     *Cursor
		bytes int64
		lag   time.Duration
	}{{live, 2 * 744, 2 * time.Second}, {back, 13 * 744, 15 * time.Second}} {
		if bytes, lag := tt.c.Behind(); bytes != tt.bytes || lag != tt.lag {
			t.Errorf("%s is %d bytes and %v behind, want %d and %v", tt.c.lane, bytes, lag, tt.bytes, tt.lag)
		}
	}
	walk(live)
	pull(back)
	if bytes, lag := live.Behind(); bytes != 0 || lag != 0 {
		t.Errorf("live is %d bytes and %v behind when all is sent", bytes, lag)
	}
	if bytes, lag := back.Behind(); bytes != 12*744 || lag != 14*time.Second {
		t.Errorf("backfill is %d bytes and %v behind", bytes, lag)
	}
}

// TestLaneExplainsHolesWhereTheLanesMeet: backfill says what is missing before
// the region of live, and live what is missing inside it.
func TestLaneExplainsHolesWhereTheLanesMeet(t *testing.T) {
	s := ram(t, 1<<20)
	putMarked(s, 1, "f..........k..f.k.k.")
	s.Skip(epoch, 12)
	live := s.Live("w1", nil)
	s.Skip(epoch, 17)
	check(t, "live", walk(live), "p19, p20")
	putMarked(s, 21, "k.f.k.")
	s.Skip(epoch, 21)
	back := s.Backfill("w1", nil, false)
	check(t, "live", walk(live), "23, 24, 25, 26")
	check(t, "backfill", walk(back), "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, rejected 12-14, 15, 16, rejected 17-18, 19, 20, rejected 21-22, EOF")
	if got := fmt.Sprint(s.Epochs()); got != fmt.Sprint([]vms.Epoch{epoch}) {
		t.Errorf("epochs %s", got)
	}
}

// TestOnlyTheSameWorkerHasWhatAConnectionBrought: a recording whose beginning
// another worker was sent is brought whole.
func TestOnlyTheSameWorkerHasWhatAConnectionBrought(t *testing.T) {
	for _, newestFirst := range []bool{false, true} {
		for _, tt := range []struct {
			worker vms.Instance
			want   string
		}{
			{"w1", "5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, EOF"},
			{"w2", "3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, "},
		} {
			s := ram(t, 1<<20)
			putMarked(s, 1, "f.f.")
			live := s.Live("w1", nil)
			check(t, "live", walk(live), "1, 2, 3, 4")
			live.Received([]vms.ChunkRange{rangeOf(1, 4)})
			putMarked(s, 5, "...........k") // live lags, and leaves the recording that it is in
			check(t, "live", walk(live), "p16")
			putMarked(s, 17, "f.")
			back := s.Backfill(tt.worker, nil, newestFirst)
			want := tt.want
			switch {
			case tt.worker == "w1":
			case newestFirst:
				want += "1, 2, EOF"
			default:
				want = "1, 2, " + want + "EOF"
			}
			bytes, _ := back.Behind()
			check(t, "backfill to "+string(tt.worker), walk(back), want)
			if n := strings.Count(want, ","); bytes != int64(n)*744 {
				t.Errorf("backfill is %d bytes behind before it begins, want %d chunks", bytes, n)
			}
			check(t, "live", walk(live), "17, 18")
		}
	}
}

// TestHandOverToAnotherWorker: what the old one was sent does not count at the
// new one, where it is given up.
func TestHandOverToAnotherWorker(t *testing.T) {
	s := ram(t, 1<<20)
	putMarked(s, 1, "f.f.")
	old := s.Live("w1", nil)
	check(t, "old", walk(old), "1, 2, 3, 4")
	heir := old.HandOver("w2", nil)
	putMarked(s, 5, "f.")
	check(t, "new", walk(heir), "5, 6")
	back := s.Backfill("w2", nil, false)
	check(t, "backfill, while the old connection is there", walk(back), "EOF")
	old.Close()
	check(t, "backfill", walk(back), "1, 2, 3, 4, EOF")
}

// TestMiddleOfARecordingIsExplained: what has lost its beginning does not come
// without a word, also to a worker that has nothing of it.
func TestMiddleOfARecordingIsExplained(t *testing.T) {
	for _, tt := range []struct {
		newestFirst bool
		want        string
	}{
		{true, "14, 15, 16, durable 17-30, durable 1-3, rejected 4-6, 7, 8, 9, 10, rejected 11-13, EOF"},
		{false, "durable 1-3, rejected 4-6, 7, 8, 9, 10, rejected 11-13, 14, 15, 16, durable 17-30, EOF"},
	} {
		s := ram(t, 1<<20)
		putMarked(s, 1, "f..k..k...k..f..")
		s.Skip(epoch, 5)
		s.Skip(epoch, 12)
		s.Durable([]vms.ChunkRange{rangeOf(1, 3)})
		putMarked(s, 17, "............k.f.")
		check(t, "live", walk(s.Live("w1", nil)), "31, 32")
		s.Durable([]vms.ChunkRange{rangeOf(17, 30)})
		check(t, "backfill", walk(s.Backfill("w1", nil, tt.newestFirst)), tt.want)
	}
}

// TestBackfillDoesNotOvertakeLive: what live was sent on a slow link may arrive
// after what backfill sends. Only what the worker has taken need not come again.
func TestBackfillDoesNotOvertakeLive(t *testing.T) {
	s := ram(t, 1<<20)
	putMarked(s, 1, "f.....")
	live := s.Live("w1", nil)
	check(t, "live", walk(live), "1, 2, 3, 4, 5, 6")
	back := s.Backfill("w1", []vms.ChunkRange{rangeOf(1, 2)}, false)
	live.Received([]vms.ChunkRange{rangeOf(1, 4), {Epoch: 99, First: 1, Last: 9}})
	putMarked(s, 7, "...........k.f.")
	check(t, "live", walk(live), "p20, 20, 21")
	if bytes, _ := back.Behind(); bytes != 15*744 {
		t.Errorf("backfill is %d bytes behind", bytes)
	}
	check(t, "backfill", walk(back), "5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, EOF")
}

// TestLiveShowsBeforeItJumps: also where the newest keyframe begins a recording,
// in the same epoch and in another one.
func TestLiveShowsBeforeItJumps(t *testing.T) {
	for _, next := range []vms.Epoch{epoch, 0xf} {
		s := ram(t, 1<<20)
		putMarked(s, 1, "f...")
		live := s.Live("w1", nil)
		check(t, "live", walk(live), "1, 2, 3, 4")
		putMarked(s, 5, strings.Repeat(".", 12))
		c := vms.Chunk{Epoch: next, Seq: 17, Init: 1, Flags: vms.FlagKey | vms.FlagFirst, Payload: make([]byte, 744)}
		c.Start = time.Unix(1_800_000_017, 0).UTC()
		c.End = c.Start.Add(time.Second)
		s.Append(c)
		check(t, "live", walk(live), "p17, 17")
		// What is in between goes meanwhile, and so does where live would record.
		c.Seq, c.Flags = 18, 0
		for ; c.Seq < 40; c.Seq++ {
			c.Start, c.End = c.End, c.End.Add(time.Second)
			s.Append(c)
		}
		c.Flags = vms.FlagKey | vms.FlagFirst
		s.Append(c)
		s.Durable([]vms.ChunkRange{rangeOf(5, 16), {Epoch: next, First: 18, Last: 40}})
		c.Seq++
		s.Append(c)
		heir := live.HandOver("w2", nil)
		c.Seq++
		s.Append(c)
		old := walk(live)
		if !strings.HasSuffix(old, "moved 41, EOF") || !strings.HasPrefix(old, "durable 18-40, 41") {
			t.Errorf("live that hands over: %s", old)
		}
		check(t, "its heir", walk(heir), "42")
	}
}

// TestLiveThatLostWhereItWouldRecordJumpsAgain: the chunk was on flash, and went
// while it was being read.
func TestLiveThatLostWhereItWouldRecordJumpsAgain(t *testing.T) {
	st := store(t, onFlash(t))
	s := st.Spool("ch_1")
	putMarked(s, 1, "f.")
	live := s.Live("w1", nil)
	check(t, "live", walk(live), "1, 2")
	putMarked(s, 3, "..........k.")
	check(t, "live", walk(live), "p13, p14")
	putMarked(s, 15, "f.")
	if err := st.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	step := live.step()
	if step.read.seq != 15 {
		t.Fatalf("live reads %+v, want chunk 15", step.read)
	}
	s.Durable([]vms.ChunkRange{rangeOf(15, 15)})
	if c, _ := live.read(step.read, 1); c != nil {
		t.Fatalf("chunk %d is gone, and was read", c.Seq)
	}
	check(t, "live", walk(live), "")
	putMarked(s, 17, ".k.f.")
	check(t, "live", walk(live), "p18, p19, 20, 21")
}

// TestLiveShowsSomethingElseWhenItsRecordingIsOnFlash: it has jumped, and before
// it could say so the recording that it would begin with was spilled.
func TestLiveShowsSomethingElseWhenItsRecordingIsOnFlash(t *testing.T) {
	st := store(t, onFlash(t))
	s := st.Spool("ch_1")
	putMarked(s, 1, "f.")
	live := s.Live("w1", nil)
	check(t, "live", walk(live), "1, 2")
	putMarked(s, 3, strings.Repeat(".", 12))
	s.mu.Lock()
	live.jump() // as it does when it is asked for more; no keyframe is in RAM
	s.mu.Unlock()
	s.Durable([]vms.ChunkRange{rangeOf(1, 14)})
	putMarked(s, 15, "f.")
	if err := st.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	check(t, "live", walk(live), "")
	putMarked(s, 17, ".k.f.")
	check(t, "live", walk(live), "p18, p19, 20, 21")
	check(t, "backfill", walk(s.Backfill("w1", nil, false)), "durable 3-14, 15, 16, 17, 18, 19, EOF")
}

// TestBackfillIsNotWantedForWhatAnElderSays: it would be opened, and have
// nothing to say.
func TestBackfillIsNotWantedForWhatAnElderSays(t *testing.T) {
	s := ram(t, 1<<20)
	putMarked(s, 1, "f.")
	old := s.Live("w1", nil)
	check(t, "old", walk(old), "1, 2")
	heir := old.HandOver("w2", nil)
	putMarked(s, 3, "..")
	s.End(epoch, 4, "camera_offline")
	putMarked(s, 5, "f.")
	check(t, "new", walk(heir), "5, 6")
	if wanted(s) {
		t.Error("backfill is wanted for an end that the old connection says")
	}
	check(t, "backfill", walk(s.Backfill("w2", nil, false)), "EOF")
	check(t, "old", walk(old), "3, 4, end 4, moved 4, EOF")
}

// TestBackfillThatWaitsIsNotAskedForNothing: live looks again and again where to
// go on, and that is no news.
func TestBackfillThatWaitsIsNotAskedForNothing(t *testing.T) {
	s := ram(t, 1<<20)
	putMarked(s, 1, "f..........k.")
	back := s.Backfill("w1", nil, true)
	live := s.Live("w1", nil)
	check(t, "backfill", walk(back), "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13")
	check(t, "live", walk(live), "p12, p13")
	on, changed := s.BackfillWanted()
	for range 3 {
		check(t, "live", walk(live), "")
		check(t, "backfill", walk(back), "")
	}
	select {
	case <-changed:
		t.Error("nothing has happened, and backfill is woken")
	default:
		if !on {
			t.Error("backfill is not wanted, and nothing is durable")
		}
	}
}
