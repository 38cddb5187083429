package preroll

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/cmaf"
)

var t0 = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)

// bank grants memory up to most bytes.
type bank struct{ used, most int64 }

func (b *bank) reserve(n int64) bool {
	if n > 0 && b.used+n > b.most {
		return false
	}
	b.used += n
	return true
}

func unit(at time.Time, size int) Unit {
	return Unit{PTS: at.UnixMicro(), Arrival: at, Data: [][]byte{make([]byte, size)}}
}

// take lists the GOPs that are handed out, each as its session and when its
// units came, ms since t0.
func take(r *Ring[string], from time.Time) (out []string) {
	r.Take(from, func(g *GOP[string]) {
		s := fmt.Sprint(g.Session, ":")
		for i := range g.Units {
			s += fmt.Sprint(" ", g.Units[i].Arrival.Sub(t0).Milliseconds())
		}
		out = append(out, s)
	})
	return out
}

func TestWholeGOPs(t *testing.T) {
	b := &bank{most: 1 << 20}
	r := New[string](2*time.Second, b.reserve)
	at := func(ms int) time.Time { return t0.Add(time.Duration(ms) * time.Millisecond) }
	r.Add(unit(at(0), 10)) // no session
	r.Open(nil)
	r.Add(unit(at(100), 10)) // no keyframe
	for ms := 200; ms < 5000; ms += 500 {
		if u := unit(at(ms), 100); ms%1000 == 200 {
			r.Key(u, cmaf.VideoParams{})
		} else {
			r.Add(u)
		}
	}
	if got, want := take(r, at(4700-1100)), []string{"1: 3200 3700", "1: 4200 4700"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if b.used != 0 {
		t.Errorf("%d bytes are reserved for nothing", b.used)
	}
	r.Add(unit(at(5000), 10)) // the rest of what was taken
	r.Key(unit(at(5200), 10), cmaf.VideoParams{})
	r.Lost()
	r.Add(unit(at(5300), 10))
	r.Open(nil)
	r.Key(unit(at(6000), 10), cmaf.VideoParams{})
	if got, want := take(r, at(0)), []string{"1: 5200", "2: 6000"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	r.Key(unit(at(7000), 10), cmaf.VideoParams{})
	r.Trim(at(60000)) // it grows: a camera that sends nothing now may yet
	if r.Bytes() == 0 {
		t.Error("the GOP that grows was given up")
	}
	r.Lost()
	r.Trim(at(60000))
	if r.Bytes() != 0 || b.used != 0 || r.Session() != 0 {
		t.Errorf("%d bytes are kept of a camera that is long away", b.used)
	}
}

// TestRingRandomly: whatever comes, what is reserved is what is held, and no more
// than is granted; what is handed out are whole GOPs in order, and with enough
// memory all that reach into the time that is asked for.
func TestRingRandomly(t *testing.T) {
	type gop struct{ from, to time.Time }
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		b := &bank{most: []int64{300, 5_000, 1 << 30}[seed%3]}
		const length = 3 * time.Second
		r := New[string](length, b.reserve)
		now := t0
		var model []gop // all since the last Take
		grows := false
		for range 2000 {
			now = now.Add(time.Duration(rnd.IntN(200)) * time.Millisecond)
			switch n := rnd.IntN(200); {
			case n == 0:
				r.Open(nil)
				grows = false
			case n == 1:
				r.Lost()
				grows = false
			case n == 2:
				from := now.Add(-time.Duration(rnd.IntN(5000)) * time.Millisecond)
				var got []gop
				short := r.Take(from, func(g *GOP[string]) {
					got = append(got, gop{g.Units[0].Arrival, g.Units[len(g.Units)-1].Arrival})
				})
				want := slices.DeleteFunc(model, func(g gop) bool { return g.to.Before(from) || g.to.Before(now.Add(-length)) })
				if len(got) < len(want) && !short || len(got) > 0 && len(want) > 0 && got[len(got)-1] != want[len(want)-1] && !short {
					t.Fatalf("seed %d: %v handed out, want %v", seed, got, want)
				}
				for i, g := range got {
					if i > 0 && g.from.Before(got[i-1].to) {
						t.Fatalf("seed %d: %v handed out after %v", seed, g, got[i-1])
					}
				}
				model, grows = nil, false
			case n < 30 && r.Session() != 0:
				r.Key(unit(now, rnd.IntN(500)), cmaf.VideoParams{})
				model, grows = append(model, gop{now, now}), true
			case n < 40:
				r.Trim(now)
			default:
				r.Add(unit(now, rnd.IntN(200)))
				if grows {
					model[len(model)-1].to = now
				}
			}
			if b.used != r.Bytes() || b.used > b.most {
				t.Fatalf("seed %d: %d bytes are held, %d reserved, of %d", seed, r.Bytes(), b.used, b.most)
			}
		}
		r.Clear()
		if b.used != 0 {
			t.Fatalf("seed %d: %d bytes are reserved for nothing", seed, b.used)
		}
	}
}
