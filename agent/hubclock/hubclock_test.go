package hubclock

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zipato/vms/pkg/vmstest"
)

// documents is Documents in memory.
type documents struct {
	mu   sync.Mutex
	docs map[string][]byte
	puts int
	fail error
}

func (d *documents) Document(name string) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.docs[name]), d.fail
}

func (d *documents) PutDocument(name string, data []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail != nil {
		return d.fail
	}
	if d.docs == nil {
		d.docs = map[string][]byte{}
	}
	d.docs[name] = slices.Clone(data)
	d.puts++
	return nil
}

// truth is when the bench is switched on.
var truth = time.Date(2026, 11, 22, 18, 0, 0, 0, time.UTC)

// bench is a machine whose crystal, wall clock and reboots a test commands. Its
// monotonic clock is a number, so that days pass at once.
type bench struct {
	t     *testing.T
	store *documents
	// true time since truth, and how much faster the crystal runs.
	passed  time.Duration
	crystal float64
	// of the present boot: its name, the true time when it began, and what the
	// system's clock is off by; noWall: it began in 1970.
	id     string
	booted time.Duration
	off    time.Duration
	noWall bool
	rtc    bool
	rtcOff time.Duration
	mono   time.Time // any, with a monotonic reading
}

func newBench(t *testing.T) *bench {
	return &bench{t: t, store: &documents{}, id: "boot1", noWall: true, mono: time.Now()}
}

func (b *bench) now() time.Time { return truth.Add(b.passed) }

// count is what the crystal has counted over a stretch of true time.
func (b *bench) count(d time.Duration) time.Duration {
	return d + time.Duration(float64(d)*b.crystal)
}

func (b *bench) mon() time.Time { return b.mono.Add(b.count(b.passed)) }

func (b *bench) wall() time.Time {
	if b.noWall {
		return time.Unix(0, 0).Add(b.count(b.passed - b.booted))
	}
	return b.now().Add(b.off)
}

func (b *bench) config() Config {
	return Config{
		Store: b.store, Built: truth.Add(-30 * 24 * time.Hour), Log: vmstest.Log(b.t),
		Boot: func() (string, time.Duration) { return b.id, b.count(b.passed - b.booted) },
		Wall: b.wall, Now: b.mon,
		RTC: func() (time.Time, bool) { return b.now().Add(b.rtcOff).Truncate(time.Second), b.rtc },
	}
}

func (b *bench) start() *Clock { return New(b.config()) }

// reboot is a power cut that lasts for d.
func (b *bench) reboot(d time.Duration) {
	b.passed += d
	b.booted = b.passed
	b.id += "+"
}

// ask asks an NVR; out and back are how long the two ways take.
func (b *bench) ask(c *Clock, out, back time.Duration) (stepped bool) {
	return b.askOff(c, out, back, 0)
}

// askOff asks one whose clock is off by so much.
func (b *bench) askOff(c *Clock, out, back, off time.Duration) (stepped bool) {
	asked := b.mon()
	b.passed += out
	server := b.now().Add(off)
	b.passed += back
	return c.Learn(asked, b.mon(), server)
}

// off is how far the clock is from the truth.
func (b *bench) error(c *Clock) time.Duration { return c.Now().Sub(b.now()) }

func near(t *testing.T, what string, got, want time.Time, by time.Duration) {
	t.Helper()
	if d := got.Sub(want); d.Abs() > by {
		t.Errorf("%s: %v, %v off", what, got, d)
	}
}

const ms = time.Millisecond

func TestBootIn1970(t *testing.T) {
	b := newBench(t)
	c := b.start()
	var jumps []time.Duration
	c.OnLearn(func(by time.Duration) { jumps = append(jumps, by) })
	floor := truth.Add(-30 * 24 * time.Hour)
	at := b.mon()
	b.passed += 10 * time.Second
	utc, uncertain := c.UTC(b.mon())
	near(t, "before the time is known", utc, floor.Add(10*time.Second), time.Microsecond)
	if bound, known := c.ErrorBound(); !uncertain || c.Known() || known {
		t.Errorf("a clock that nobody has told the time is called certain, to within %v", bound)
	}
	if r := c.Reported(); r.ErrorMS != -1 || r.Source != "none" {
		t.Errorf("reported %+v", r)
	}
	if _, ok := c.Place(c.Origin(), 0); ok {
		t.Error("what is provisional is placed before the time is known")
	}
	if !b.ask(c, 50*ms, 50*ms) {
		t.Error("the way from the floor to now is no step")
	}
	utc, uncertain = c.UTC(b.mon())
	near(t, "now", utc, b.now(), time.Microsecond)
	if r := c.Reported(); uncertain || !c.Known() || r.Source != "nvr" || r.ErrorMS != 50 {
		t.Errorf("uncertain %v, reported %+v after the NVR has told the time", uncertain, r)
	}
	if len(jumps) != 1 || (jumps[0]-30*24*time.Hour).Abs() > time.Second {
		t.Errorf("jumps %v, want one of 30 days", jumps)
	}
	// What was before is told by the same monotonic clock, and by its placement.
	utc, _ = c.UTC(at)
	near(t, "the boot", utc, truth, time.Microsecond)
	p, ok := c.Place(c.Origin(), 0)
	near(t, "what was stamped at the boot", floor.Add(p.Shift), truth, time.Microsecond)
	if !ok || !p.Sure.Start.Before(floor) || p.Shift%time.Microsecond != 0 {
		t.Errorf("placement %+v, %v", p, ok)
	}
	near(t, "the boot itself", c.Began(), truth, ms)
}

// TestPlausibleSystemClockIsProvisional until somebody has told the time; and
// what it is set to afterwards does not matter.
func TestPlausibleSystemClockIsProvisional(t *testing.T) {
	b := newBench(t)
	b.noWall, b.off = false, 3*time.Second
	c := b.start()
	utc, uncertain := c.UTC(b.mon())
	near(t, "at the start", utc, b.now().Add(3*time.Second), time.Microsecond)
	if r := c.Reported(); !uncertain || r.Source != "rtc" || r.ErrorMS != -1 {
		t.Errorf("uncertain %v, reported %+v", uncertain, r)
	}
	b.off = time.Hour
	b.passed += time.Minute
	near(t, "after the system's clock was set", c.Now(), b.now().Add(3*time.Second), time.Microsecond)
	b.ask(c, 10*ms, 10*ms)
	near(t, "after the NVR has told", c.Now(), b.now(), time.Microsecond)
	for _, wall := range []time.Duration{-40 * 24 * time.Hour, 21 * 365 * 24 * time.Hour} {
		b := newBench(t)
		b.noWall, b.off = false, wall
		near(t, "a system's clock that cannot be right", b.start().Now(), truth.Add(-30*24*time.Hour), 0)
	}
}

func TestSlewAndStep(t *testing.T) {
	for _, tt := range []struct {
		off  time.Duration
		step bool
	}{
		{900 * ms, false}, {-900 * ms, false}, {1500 * ms, true}, {-time.Hour, true},
	} {
		b := newBench(t)
		c := b.start()
		for range 60 {
			b.ask(c, 0, 0)
			b.passed += time.Minute
		}
		var jumps []time.Duration
		c.OnLearn(func(by time.Duration) { jumps = append(jumps, by) })
		last := c.Now()
		if got := b.askOff(c, 0, 0, tt.off); got != tt.step || len(jumps) == 1 != tt.step {
			t.Errorf("%v off: step %v, jumps %v", tt.off, got, jumps)
		}
		if tt.step {
			near(t, "after the step", c.Now(), b.now().Add(tt.off), ms)
			continue
		}
		if bound, _ := c.ErrorBound(); bound < 890*ms {
			t.Errorf("%v off: the bound is %v before it is worked in", tt.off, bound)
		}
		for range 100 {
			b.passed += 10 * time.Second
			now := c.Now()
			if d := now.Sub(last); (d - 10*time.Second).Abs() > 10*ms {
				t.Fatalf("%v off: UTC went by %v in 10 s, more than 1000 ppm from it", tt.off, d)
			}
			last = now
		}
		b.passed += 30 * time.Minute
		b.askOff(c, 0, 0, tt.off)
		b.passed += 30 * time.Minute
		near(t, "after an hour", c.Now(), b.now().Add(tt.off), 30*ms)
	}
}

// TestSlowAnswersSayLess: a bad measurement does not spoil a good one, until
// the drift since then may be larger than its error.
func TestSlowAnswersSayLess(t *testing.T) {
	b := newBench(t)
	c := b.start()
	b.ask(c, 10*ms, 10*ms)
	b.askOff(c, 500*ms, 500*ms, 400*ms)
	b.passed += 10 * time.Minute
	near(t, "after a slow answer", c.Now(), b.now(), ms)
	now := b.mon()
	if c.Learn(now, now.Add(trustRTT+1), b.now()) || c.Learn(now, now.Add(-1), b.now()) {
		t.Error("an answer that came too late, or before the question, moves the clock")
	}
	b.passed += 20 * time.Minute
	b.askOff(c, 500*ms, 500*ms, 400*ms)
	b.passed += 20 * time.Minute
	near(t, "when it was all there was for long", c.Now(), b.now().Add(400*ms), 600*ms)
	// A clock that knows nothing takes even an answer that took long, and says so.
	c = New(Config{Now: b.mon})
	b.ask(c, 9*time.Second, 9*time.Second)
	if bound, known := c.ErrorBound(); !known || bound != 9*time.Second {
		t.Errorf("bound %v, %v after 18 s", bound, known)
	}
}

// TestADayOfAnyCrystal: with an NVR that is asked every minute over a network of
// any delay, and that is away for an hour now and then, UTC stays within a
// second and within the bound that the clock gives itself, and never goes back.
func TestADayOfAnyCrystal(t *testing.T) {
	for _, crystal := range []float64{500e-6, -500e-6, 37e-6} {
		b := newBench(t)
		b.crystal = crystal
		rnd := rand.New(rand.NewPCG(1, 1))
		delay := func() time.Duration { return time.Duration(rnd.IntN(150)) * ms }
		c := b.start()
		b.ask(c, delay(), delay())
		last := c.Now()
		var worst, loose time.Duration
		for minute := range 24 * 60 {
			// Away for an hour from the 20th minute on, and every four hours.
			if m := minute % 240; m < 20 || m >= 80 {
				if b.ask(c, delay(), delay()) {
					t.Fatalf("crystal %v: a step in minute %d", crystal, minute)
				}
			}
			for range 60 {
				b.passed += time.Second
				now := c.Now()
				if now.Before(last) {
					t.Fatalf("UTC went back from %v to %v", last, now)
				}
				last = now
			}
			bound, _ := c.ErrorBound()
			off := b.error(c).Abs()
			if off > bound {
				t.Fatalf("crystal %v: %v off in minute %d, the bound is %v", crystal, off, minute, bound)
			}
			worst, loose = max(worst, off), max(loose, bound)
		}
		t.Logf("crystal %+.0f ppm: at most %v off, bound at most %v, rate measured to %.1f ppm", crystal*1e6, worst, loose, (c.rate.value*1e6)+crystal*1e6)
		if worst > time.Second {
			t.Errorf("crystal %v: %v off", crystal, worst)
		}
	}
}

// TestRestartGoesOn in the same boot: with the time known, and without.
func TestRestartGoesOn(t *testing.T) {
	b := newBench(t)
	b.crystal = 300e-6
	c := b.start()
	b.passed += time.Minute
	c.Save()
	before := c.Now()
	origin := c.Origin()
	b.off, b.noWall = -2*time.Hour, false // what somebody sets the system's clock to meanwhile
	b.passed += time.Second
	c = b.start()
	near(t, "without the time", c.Now(), before.Add(time.Second), ms)
	if c.Known() || c.Origin() != origin {
		t.Errorf("known %v, origin %v, was %v", c.Known(), c.Origin(), origin)
	}
	b.ask(c, 20*ms, 20*ms)
	first, _ := c.Place(origin, 0)
	c.Save()
	b.passed += 10 * time.Minute
	c = b.start()
	bound, known := c.ErrorBound()
	if off := b.error(c).Abs(); !known || off > bound || bound > 400*ms || c.Source() != "nvr" {
		t.Errorf("known %v, %v off, bound %v, source %s", known, off, bound, c.Source())
	}
	if p, ok := c.Place(origin, 0); !ok || p != first {
		t.Errorf("placement %+v, %v, was %+v", p, ok, first)
	}
}

// TestFloorRises with what has passed, over boots without any clock: what is
// stamped later is later.
func TestFloorRises(t *testing.T) {
	b := newBench(t)
	c := b.start()
	b.ask(c, 20*ms, 20*ms)
	for i := range 5 {
		b.passed += time.Hour
		c.Save()
		b.passed += 9 * time.Minute // recorded after it was kept
		last := c.Now()
		b.reboot(2 * time.Minute)
		c = b.start()
		if got := c.Now(); !got.After(last) || got.After(last.Add(2*persist)) {
			t.Errorf("boot %d begins at %v, the one before ended at %v", i+1, got, last)
		}
		if c.Known() || c.Passed().After(b.now()) {
			t.Errorf("known %v; %v is said to have passed, it is %v", c.Known(), c.Passed(), b.now())
		}
	}
}

// TestPlacementOfAnEarlierBoot whose time was learnt, although nothing was
// placed before the power went.
func TestPlacementOfAnEarlierBoot(t *testing.T) {
	b := newBench(t)
	c := b.start()
	b.passed += 3 * time.Minute
	stamped, when, origin := c.Now(), b.now(), c.Origin()
	b.passed += time.Hour
	b.ask(c, 20*ms, 20*ms)
	c.Save()
	for range 2 {
		b.reboot(time.Hour)
		c = b.start()
		b.ask(c, 20*ms, 20*ms)
		c.Save()
	}
	p, ok := c.Place(origin, 0)
	if !ok {
		t.Fatal("nobody remembers the boot")
	}
	near(t, "what it captured", stamped.Add(p.Shift), when, ms)
	if p.Sure.Start.Before(stamped) {
		t.Error("an hour before the time was learnt is called certain, with a crystal that nobody had measured")
	}
	if early, _ := c.Place(origin, 900*ms); early.Sure.Start.Before(p.Sure.Start) || early.Shift != p.Shift {
		t.Errorf("with a doubt more is certain: %v, was %v", early, p)
	}
	if _, ok := c.Place(Origin{Boot: "other"}, 0); ok {
		t.Error("a boot that nobody knows is placed")
	}
}

// TestRTCBridgesBoots in which nobody told the time, unless it was set in between.
func TestRTCBridgesBoots(t *testing.T) {
	for name, set := range map[string]func(*bench, *Clock){
		"runs on": nil,
		"set while the agent ran": func(b *bench, c *Clock) {
			b.rtcOff = time.Second
			c.checkRTC()
		},
		"set back": func(b *bench, c *Clock) { b.rtcOff -= 50 * time.Hour },
		"dead":     func(b *bench, c *Clock) { b.rtc = false },
	} {
		b := newBench(t)
		b.rtc, b.rtcOff = true, -7*time.Hour
		c := b.start()
		readRTC(b, c)
		b.passed += 5 * time.Minute
		stamped, when, origin := c.Now(), b.now(), c.Origin()
		b.passed += 20 * time.Minute
		c.Save()
		if set != nil {
			set(b, c)
			c.Save()
		}
		b.reboot(3 * time.Hour)
		c = b.start()
		readRTC(b, c)
		b.ask(c, 20*ms, 20*ms)
		p, ok := c.Place(origin, 0)
		if ok != (set == nil) {
			t.Errorf("%s: placed %v", name, ok)
		}
		if ok {
			near(t, name, stamped.Add(p.Shift), when, 150*ms)
			if stamped.Before(p.Sure.Start) || !stamped.Before(p.Sure.End) {
				t.Errorf("%s: uncertain", name)
			}
		}
	}
}

// readRTC lets a clock see the second begin.
func readRTC(b *bench, c *Clock) {
	before, ok := b.config().RTC()
	if !ok {
		return
	}
	for {
		b.passed += rtcPoll
		if now, _ := b.config().RTC(); !now.Equal(before) {
			break
		}
	}
	now, _ := b.config().RTC()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sawRTC(now)
}

// TestSNTPIsNotBelievedAgainstTheNVR: anybody on the way can forge its answers.
func TestSNTPIsNotBelievedAgainstTheNVR(t *testing.T) {
	b := newBench(t)
	c := b.start()
	sntp := func(off time.Duration) { c.LearnSNTP(b.mon(), b.mon(), b.now().Add(off)) }
	sntp(-31 * 24 * time.Hour)
	if c.Known() {
		t.Fatal("a time that has passed is believed")
	}
	sntp(time.Hour)
	near(t, "when nobody else tells", c.Now(), b.now().Add(time.Hour), ms)
	if c.Source() != "sntp" {
		t.Errorf("source %s", c.Source())
	}
	b.ask(c, 20*ms, 20*ms)
	near(t, "the NVR knows better", c.Now(), b.now(), ms)
	sntp(time.Hour)
	near(t, "after a forged answer", c.Now(), b.now(), ms)
	b.passed += 10 * time.Second
	sntp(10 * ms)
	if c.Source() != "sntp" {
		t.Error("an answer that agrees is not taken")
	}
	sntp(-time.Hour)
	near(t, "after another forged answer", c.Now(), b.now(), 11*ms)
}

// TestDamagedDocumentIsNone: neither that nor flash that fails keeps the hub
// from its work.
func TestDamagedDocumentIsNone(t *testing.T) {
	b := newBench(t)
	b.store.PutDocument(document, []byte("{"))
	c := b.start()
	b.ask(c, 20*ms, 20*ms)
	near(t, "now", c.Now(), b.now(), ms)
	b.store.fail = errors.New("no flash")
	c.Save()
	c = b.start()
	b.ask(c, 20*ms, 20*ms)
	near(t, "now", c.Now(), b.now(), ms)
}

// TestRunKeepsTheTime when it is learnt, every ten minutes and at the end.
func TestRunKeepsTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &documents{}
		c := New(Config{Store: store, Boot: func() (string, time.Duration) { return "b", 0 }, RTC: func() (time.Time, bool) {
			return time.Now().Truncate(time.Second), true
		}})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		puts := func(want int, when string) {
			t.Helper()
			synctest.Wait()
			store.mu.Lock()
			defer store.mu.Unlock()
			if store.puts != want {
				t.Errorf("kept %d times %s, want %d", store.puts, when, want)
			}
		}
		time.Sleep(2 * time.Second)
		puts(1, "after the start")
		now := time.Now()
		c.Learn(now, now, now.Add(30*365*24*time.Hour))
		puts(2, "when the time was learnt")
		time.Sleep(time.Hour)
		puts(8, "after an hour")
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		puts(9, "at the end")
		again := New(Config{Store: store, Boot: func() (string, time.Duration) { return "b", time.Hour + 2*time.Second }})
		near(t, "the next run", again.Now(), c.Now(), ms)
	})
}

// TestAskSNTP against a server that speaks the protocol.
func TestAskSNTP(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	ahead := 90 * time.Minute
	go func() {
		defer close(ended)
		serveSNTP(conn, ahead)
	}()
	defer func() { conn.Close(); <-ended }()
	c := New(Config{SNTP: conn.LocalAddr().String(), Built: time.Now().Add(-time.Hour), Log: vmstest.Log(t)})
	learnt := make(chan struct{})
	c.OnLearn(func(time.Duration) { close(learnt) })
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	<-learnt
	near(t, "what the server says", c.Now(), time.Now().Add(ahead), time.Second)
	if bound, known := c.ErrorBound(); !known || bound > time.Second || c.Source() != "sntp" {
		t.Errorf("known %v, bound %v, source %s", known, bound, c.Source())
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// serveSNTP answers until conn is closed (RFC 4330).
func serveSNTP(conn net.PacketConn, ahead time.Duration) {
	stamp := func(b []byte) {
		t := time.Now().Add(ahead)
		sec := uint32(t.Unix() + 2208988800)
		frac := uint32(int64(t.Nanosecond()) << 32 / 1e9)
		for i := range 4 {
			b[i], b[4+i] = byte(sec>>(24-8*i)), byte(frac>>(24-8*i))
		}
	}
	for buf := make([]byte, 512); ; {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		if n < 48 {
			continue
		}
		out := make([]byte, 48)
		out[0], out[1], out[2], out[3] = 4<<3|4, 2, 6, 0xec // version 4, server, stratum 2
		out[7], out[11] = 16, 16                            // root delay and dispersion
		copy(out[12:], "TEST")
		stamp(out[16:])
		copy(out[24:], buf[40:48])
		stamp(out[32:])
		stamp(out[40:])
		conn.WriteTo(out, from)
	}
}

func TestParseUptime(t *testing.T) {
	for in, want := range map[string]time.Duration{
		"12345.67 4567.8\n": 12345670 * ms, "0.00 0.00": 0, "": -1, "x 1": -1, "-5 1": -1, "NaN 1": -1, "1e300 1": -1,
	} {
		got, err := parseUptime(in)
		if err != nil {
			got = -1
		}
		if (got - want).Abs() > ms {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	id, up := kernelBoot()
	if id == "" || up <= 0 {
		t.Skipf("boot %q, up %v: this machine does not tell", id, up)
	}
}
