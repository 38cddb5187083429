package ingest

import (
	"math/rand/v2"
	"testing"
	"time"
)

const mib = 1 << 20

// books is a ledger whose room the test has, and its connections.
type books struct {
	*ledger
	t    *testing.T
	room int64
	now  time.Time
}

func newBooks(t *testing.T, room int64) *books {
	b := &books{t: t, room: room, now: time.Unix(1e9, 0)}
	b.ledger = &ledger{room: func() int64 { return b.room }, maxChunk: 8 * mib, memory: 64 * mib}
	return b
}

func (b *books) open() *account {
	a := &account{}
	b.ledger.open(a, b.now)
	return a
}

// pass lets time go by, as the clock of a server does.
func (b *books) pass(d time.Duration, as ...*account) {
	for end := b.now.Add(d); b.now.Before(end); {
		b.now = b.now.Add(ackPace)
		b.look()
		for _, a := range as {
			b.tick(a, b.now)
		}
	}
}

// bring is a chunk of a that is taken over and recorded, if credit and room allow it now.
func (b *books) bring(a *account, size int64) bool {
	b.t.Helper()
	w, granted := b.enter(a, size)
	if !granted {
		return false
	}
	if w != nil {
		select {
		case <-w.ready:
		default:
			b.leave(a, w, size, false, b.now)
			return false
		}
	}
	b.room -= size
	b.leave(a, w, size, true, b.now)
	if b.room < 0 || b.coming != 0 {
		b.t.Fatalf("room %d, %d bytes coming", b.room, b.coming)
	}
	return true
}

func (a *account) ahead() int64 { return a.credit - a.bytes }

func TestWindowsFollowWhatIsSent(t *testing.T) {
	b := newBooks(t, 1<<40)
	a := b.open()
	if a.ahead() != leastWindow {
		t.Errorf("begins with %d", a.ahead())
	}
	for range 100 { // 2 Mbit/s
		b.pass(200*time.Millisecond, a)
		if !b.bring(a, 50_000) {
			t.Fatal("no credit")
		}
	}
	if a.ahead() > leastWindow || a.window != leastWindow {
		t.Errorf("2 Mbit/s are given %d, window %d", a.ahead(), a.window)
	}
	sent := int64(0)
	for range 50 { // as fast as it may, for ten seconds
		b.pass(200*time.Millisecond, a)
		for told := a.credit; a.bytes+50_000 <= told; sent += 50_000 { // by the acknowledgement
			b.bring(a, 50_000)
		}
	}
	if sent < 50*mib || a.window > 8*mib {
		t.Errorf("only %d bytes went in ten seconds, window %d", sent, a.window)
	}
	for range 100 {
		b.pass(10*time.Second, a)
		b.bring(a, 50_000)
	}
	if b.bring(a, 1*mib); a.window < 4*mib || a.window > 8*mib {
		t.Errorf("after a chunk of 1 MiB the window is %d", a.window)
	}
}

// TestAKeyframeThatIsTooLargePassesSoon: whoever keeps still may wait with it.
func TestAKeyframeThatIsTooLargePassesSoon(t *testing.T) {
	b := newBooks(t, 1<<40)
	a := b.open()
	for range 10 {
		b.pass(200*time.Millisecond, a)
		b.bring(a, 50_000)
	}
	from := b.now
	for !b.bring(a, 8*mib) {
		if b.pass(ackPace, a); b.now.Sub(from) > 2*time.Second {
			t.Fatalf("%d bytes ahead after %v", a.ahead(), b.now.Sub(from))
		}
	}
	if b.bring(a, 8*mib+1) {
		t.Error("more than was granted is let in")
	}
}

// TestCreditIsNotGivenTwice: idle and busy connections together are promised no
// more than there is room for, and a largest chunk is left over.
func TestCreditIsNotGivenTwice(t *testing.T) {
	b := newBooks(t, 100*mib)
	r := rand.New(rand.NewPCG(1, 2))
	var as []*account
	used := int64(0)
	for range 300 {
		if len(as) < 200 {
			as = append(as, b.open())
		}
		for _, a := range as {
			if r.IntN(3) == 0 && b.bring(a, int64(1000+r.IntN(60_000))) {
				used++
			}
		}
		b.pass(ackPace, as...)
		if r.IntN(4) == 0 {
			b.room += min(100*mib-b.room, int64(r.IntN(40*mib))) // uploads
		}
		if p, _ := b.stats(); p > b.room {
			t.Fatalf("%d bytes are promised, there is room for %d", p, b.room)
		}
	}
	if used < 1000 {
		t.Errorf("only %d chunks were taken", used)
	}
	for _, a := range as {
		b.ledger.close(a)
	}
	if b.promised != 0 || b.conns != 0 || b.memory != 64*mib {
		t.Errorf("left over: %d bytes of %d connections, memory %d", b.promised, b.conns, b.memory)
	}
}

// TestLittleRoomIsShared: who comes later gets as much.
func TestLittleRoomIsShared(t *testing.T) {
	b := newBooks(t, 18*mib)
	var as []*account
	for range 100 {
		as = append(as, b.open())
	}
	for range 400 {
		b.pass(ackPace, as...)
		for _, a := range as {
			b.bring(a, 40_000)
		}
		b.room = 18 * mib // stored at once
	}
	least, most := as[0].bytes, as[0].bytes
	for _, a := range as {
		least, most = min(least, a.bytes), max(most, a.bytes)
	}
	if least < most/3 || least == 0 {
		t.Errorf("one brought %d bytes, another %d", least, most)
	}
}

// TestNoRoomNoCredit, and when there is some again it is told within a tick.
func TestNoRoomNoCredit(t *testing.T) {
	b := newBooks(t, 8*mib-1)
	a := b.open()
	a.expected = true
	b.pass(time.Minute, a)
	if _, short := b.account(a); a.credit != 0 || !short {
		t.Errorf("credit %d, short %v", a.credit, short)
	}
	b.room = 40 * mib
	b.pass(ackPace, a)
	if a.credit == 0 {
		t.Error("no credit although there is room")
	}
}

// TestEveryoneGetsThrough: idle connections hold credit that nothing takes back,
// and little is left; a keyframe of the largest size passes all the same, and so
// does one of each.
func TestEveryoneGetsThrough(t *testing.T) {
	const room = 17 * mib
	b := newBooks(t, room)
	var as []*account
	for range 100 {
		a := b.open()
		b.said(a, true, b.now)
		as = append(as, a)
	}
	b.pass(20*time.Second, as...)
	for i, a := range as {
		from := b.now
		for !b.bring(a, 8*mib) {
			if b.pass(ackPace, as...); b.now.Sub(from) > 12*time.Second {
				t.Fatalf("connection %d: %d bytes ahead after %v, room %d, promised %d", i, a.ahead(), b.now.Sub(from), b.room, b.promised)
			}
		}
		b.room = room // stored
	}
}

// TestWhatWasPromisedTwiceIsTakenInTurn: the room is never passed, and who waits
// is let in when there is some.
func TestWhatWasPromisedTwiceIsTakenInTurn(t *testing.T) {
	b := newBooks(t, 20*mib)
	var as []*account
	for range 5 {
		a := b.open()
		b.said(a, true, b.now)
		as = append(as, a)
	}
	b.pass(10*time.Second, as...)
	var ws []*waiter
	in := 0
	for _, a := range as {
		w, granted := b.enter(a, 8*mib)
		if !granted {
			t.Fatalf("%d bytes ahead", a.ahead())
		}
		ws = append(ws, w)
	}
	let := func(w *waiter) bool {
		if w == nil {
			return true
		}
		select {
		case <-w.ready:
			return true
		default:
			return false
		}
	}
	for i := range as {
		if let(ws[i]) {
			in++
		}
	}
	if in != 2 || b.coming > b.room {
		t.Fatalf("%d were let in, %d bytes for a room of %d", in, b.coming, b.room)
	}
	small := b.open()
	small.credit += mib // given earlier
	b.promised += mib
	if w, _ := b.enter(small, mib); !let(w) {
		t.Error("a small chunk waits behind large ones although there is room for it")
	} else {
		b.leave(small, w, mib, false, b.now)
	}
	b.leave(as[4], ws[4], 8*mib, false, b.now) // it does not wait any more
	b.room -= 8 * mib
	b.leave(as[0], ws[0], 8*mib, true, b.now) // recorded
	if let(ws[2]) {
		t.Error("let in without room")
	}
	b.leave(as[1], ws[1], 8*mib, false, b.now) // refused
	if !let(ws[2]) || let(ws[3]) {
		t.Errorf("waiting: %v %v", let(ws[2]), let(ws[3]))
	}
	b.room += 8 * mib // stored
	b.look()
	if !let(ws[3]) {
		t.Error("nobody noticed that there is room again")
	}
}

// TestMemoryIsBounded: large messages wait for each other, in order, small ones for nobody.
func TestMemoryIsBounded(t *testing.T) {
	b := newBooks(t, 1<<40)
	b.memory = lend(0, b.maxChunk, 2000)
	as := make([]*account, 4)
	ws := make([]*waiter, 4)
	size := []int64{8 * mib, 8*mib - 200_000, 8 * mib, 8 * mib}
	for i := range as {
		as[i] = b.open()
		as[i].credit = 1 << 30
		ws[i], _ = b.enter(as[i], size[i])
	}
	waits := func(w *waiter) bool {
		if w == nil {
			return false
		}
		select {
		case <-w.ready:
			return false
		default:
			return true
		}
	}
	if waits(ws[0]) || waits(ws[1]) || !waits(ws[2]) || !waits(ws[3]) {
		t.Fatal("two of the largest size should fit, and no more")
	}
	c := b.open()
	if w, _ := b.enter(c, 100_000); !waits(w) {
		t.Error("one that came later passes those that wait for memory")
	}
	d := b.open()
	if w, _ := b.enter(d, ownMemory); waits(w) {
		t.Error("a small message waits for the memory of large ones")
	}
	b.leave(as[1], ws[1], size[1], true, b.now)
	if waits(ws[2]) || !waits(ws[3]) {
		t.Error("they are not let in one after the other")
	}
	b.leave(as[3], ws[3], 8*mib, false, b.now) // its connection ended
	b.leave(as[0], ws[0], 8*mib, true, b.now)
	b.leave(as[2], ws[2], 8*mib, true, b.now)
	if b.memory != 16*mib-100_000 {
		t.Errorf("%d bytes are left", b.memory)
	}
	if n := lend(256*mib, 8*mib, 2000); n < 64*mib || n+2000*ownMemory > 256*mib {
		t.Errorf("of 256 MiB %d are lent", n)
	}
}

func TestBuffersFit(t *testing.T) {
	var p buffers
	for _, n := range []int{1, 4096, 4097, 6144, 6145, 8192, 50_064, 65_600, 98_304, 98_305, 1 << 20, 1<<20 + 1, 8 << 20} {
		b := p.get(n)
		if len(b.b) < n || n > 4096 && n <= 1<<20 && 2*len(b.b) > 3*n+3 {
			t.Errorf("%d bytes for %d", len(b.b), n)
		}
		if b.class >= 0 && size(b.class) != len(b.b) || b.class < 0 && n <= 1<<20 {
			t.Errorf("class %d of %d bytes for %d", b.class, len(b.b), n)
		}
		p.put(b)
	}
	if n := testing.AllocsPerRun(100, func() { p.put(p.get(50_000)) }); n > 0.5 {
		t.Errorf("%v allocations for a buffer that was there", n)
	}
}
