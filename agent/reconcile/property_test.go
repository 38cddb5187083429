package reconcile

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

var (
	propertySeed  = flag.Uint64("seed", 0, "of the random steps; 0: another one each time")
	propertySteps = flag.Int("steps", 1000, "random steps")
)

// TestAnythingConverges does 1,000 random things to a hub: the cloud and the LAN
// start and stop, the hub reboots, the line to the cloud is cut, documents come
// late, twice and in any order, the clock is unknown, cameras fail, streams end,
// the flash refuses. At no time is anything started that nobody wants, or torn
// apart that is as wanted; and when all is well again, what runs is what the
// newest document and the requests on the LAN want, and the hub says so.
func TestAnythingConverges(t *testing.T) {
	seed := *propertySeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("to repeat: go test ./agent/reconcile -run AnythingConverges -args -seed %d -steps %d", seed, *propertySteps)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, rand.New(rand.NewPCG(seed, 4)))
		w.hub.boot()
		defer func() { w.hub.stop() }()
		for step := range *propertySteps {
			w.step()
			if t.Failed() {
				t.Fatalf("seed %d, step %d: %s", seed, step, w.did)
			}
		}
		w.heal()
		w.check(true)
		t.Logf("%v; %d starts, %d good ones, %d stops, %d writes to flash", w.counts, w.hub.runner.started(), w.hub.runner.good, w.hub.runner.stops, w.hub.flash.puts)
	})
}

// plans are schedules, each with what it means (in Zagreb's time).
var plans = []struct {
	text string
	on   func(time.Time) bool
}{
	{"", func(time.Time) bool { return false }},
	{"mon-sun", func(time.Time) bool { return true }},
	{"mon-fri 08:00-18:00", func(t time.Time) bool {
		return t.Weekday() != time.Saturday && t.Weekday() != time.Sunday && 8 <= t.Hour() && t.Hour() < 18
	}},
	{"22:00-06:00", func(t time.Time) bool { return t.Hour() >= 22 || t.Hour() < 6 }},
	{"sat sun, 12:00-13:00", func(t time.Time) bool {
		return t.Weekday() == time.Saturday || t.Weekday() == time.Sunday || t.Hour() == 12
	}},
}

// world is a hub, all that happens to it, and what should come of it. It has
// rules of its own: they are the same by intention, not by code.
type world struct {
	t      *testing.T
	rng    *rand.Rand
	hub    *hub
	zone   *time.Location
	did    string
	counts map[string]int

	issued  []*wire.Desired // by the cloud, oldest first
	onWay   []*wire.Desired // that have not arrived
	cut     bool
	cameras int

	mu     sync.Mutex
	doc    *wire.Desired           // what counts on the hub
	before *wire.Desired           // what did before this step
	locals map[vms.ChannelID]asked // what the LAN asked for
	asking map[vms.ChannelID]asked // what it asks for in this step, or did before it
	moving bool                    // the clock does more than go on
}

// asked is what the LAN asked for, and the revision that the hub had then.
type asked struct {
	Local
	Known int64
}

func newWorld(t *testing.T, rng *rand.Rand) *world {
	zone, err := time.LoadLocation("Europe/Zagreb")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{
		t: t, rng: rng, hub: newHub(t), zone: zone, counts: make(map[string]int),
		locals: make(map[vms.ChannelID]asked), asking: make(map[vms.ChannelID]asked),
	}
	w.hub.runner.onStart, w.hub.runner.onStop = w.starting, w.stopping
	return w
}

// cloudWants says whether a document wants a stream to run at a time.
func (w *world) cloudWants(doc *wire.Desired, ch vms.ChannelID, now time.Time, certain bool) (wire.DesiredStream, bool) {
	if doc == nil {
		return wire.DesiredStream{}, false
	}
	for _, s := range doc.Streams {
		if s.Channel != ch || !s.Active {
			continue
		}
		switch s.Mode {
		case wire.ModeOnDemand:
			return s, s.Until.IsZero() || now.Before(s.Until)
		case wire.ModeScheduled:
			for _, p := range plans {
				if p.text == s.Schedule {
					return s, !certain || p.on(now.In(w.zone))
				}
			}
		}
		return s, true
	}
	return wire.DesiredStream{}, false
}

// lanWants says whether a request of the LAN can be obeyed with a document, and
// from which camera: one that names none has the cloud's. One that is older than
// the last stop in the cloud cannot.
func lanWants(t *testing.T, doc *wire.Desired, l asked) (vms.Camera, bool) {
	if doc != nil {
		for _, s := range doc.Streams {
			if s.Channel == l.Channel && s.Stopped > l.Known {
				return vms.Camera{}, false
			}
		}
	}
	if l.Camera.Host != "" {
		return l.Camera, true
	}
	if doc != nil {
		for _, s := range doc.Streams {
			if s.Channel == l.Channel {
				return cameraOf(t, s), true
			}
		}
	}
	return vms.Camera{}, false
}

// isWanted reports whether t is a stream that somebody wants, before or after
// what is being done in this step.
func (w *world) isWanted(t Target) bool {
	now, certain := w.hub.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if t.Origin == wire.OriginLAN {
		for _, doc := range []*wire.Desired{w.doc, w.before} {
			for _, locals := range []map[vms.ChannelID]asked{w.locals, w.asking} {
				l, ok := locals[t.Channel]
				if cam, can := lanWants(w.t, doc, l); ok && can && l.SID == t.SID && sameCamera(cam, t.Camera) {
					return true
				}
			}
		}
		return false
	}
	for _, doc := range []*wire.Desired{w.doc, w.before} {
		s, ok := w.cloudWants(doc, t.Channel, now, certain)
		if !ok && w.moving {
			s, ok = w.cloudWants(doc, t.Channel, now, !certain)
		}
		if ok && s.SID == t.SID && s.NVRURL == t.NVRURL && s.Mode == t.Mode && sameCamera(cameraOf(w.t, s), t.Camera) {
			return true
		}
	}
	return false
}

func cameraOf(t *testing.T, s wire.DesiredStream) vms.Camera {
	data, err := unseal("camera/"+string(s.Channel), s.Camera)
	var c vms.Camera
	if err == nil {
		err = json.Unmarshal(data, &c)
	}
	if err != nil {
		t.Error(err)
	}
	return c
}

// starting and stopping are asked by the runner.
func (w *world) starting(t Target) {
	if !w.isWanted(t) {
		w.t.Errorf("%s is started for %s (%s), and nobody wants it", t.Channel, t.Origin, t.SID)
	}
}

func (w *world) stopping(ch vms.ChannelID) {
	now, certain := w.hub.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	_, a := w.cloudWants(w.doc, ch, now, certain)
	_, b := w.cloudWants(w.before, ch, now, certain)
	lan := func(locals map[vms.ChannelID]asked, doc *wire.Desired) bool {
		l, ok := locals[ch]
		_, can := lanWants(w.t, doc, l)
		return ok && can
	}
	c, d := lan(w.locals, w.doc), lan(w.asking, w.before)
	if a && b && !w.moving || c && d {
		w.t.Errorf("%s is stopped although it is wanted: by the cloud %t, %t, by the LAN %t, %t", ch, a, b, c, d)
	}
}

// step does one random thing, and lets the hub react or some time pass.
func (w *world) step() {
	w.begin()
	ch := vms.ChannelID(fmt.Sprintf("ch_%d", w.rng.IntN(6)))
	steps := []struct {
		name   string
		weight int
		do     func(vms.ChannelID)
	}{
		{"the cloud changes its mind", 25, w.issue},
		{"a late document arrives", 12, func(vms.ChannelID) { w.late() }},
		{"the LAN starts", 14, w.lanStart},
		{"the LAN stops", 8, w.lanStop},
		{"reboot", 8, func(vms.ChannelID) { w.reboot() }},
		{"the line is cut or mended", 8, func(vms.ChannelID) { w.partition() }},
		{"the clock is lost or learnt", 6, func(vms.ChannelID) { w.clock() }},
		{"a camera fails or is mended", 10, w.camera},
		{"a stream ends by itself", 8, w.end},
		{"the flash refuses or takes", 4, func(vms.ChannelID) { w.hub.flash.fail(w.rng.IntN(4) == 0) }},
		{"operations take time", 5, func(vms.ChannelID) { w.slow(time.Duration(w.rng.IntN(3)) * time.Second) }},
		{"a while", 20, func(vms.ChannelID) { w.pass(time.Duration(w.rng.IntN(120)) * time.Minute) }},
		{"calm", 3, func(vms.ChannelID) { w.calm() }},
	}
	sum := 0
	for _, s := range steps {
		sum += s.weight
	}
	n := w.rng.IntN(sum)
	for _, s := range steps {
		if n -= s.weight; n < 0 {
			w.did = s.name
			w.counts[s.name]++
			s.do(ch)
			break
		}
	}
	w.after()
}

// begin notes what is wanted before the step.
func (w *world) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.before, w.moving = w.doc, false
	clear(w.asking)
	for ch, l := range w.locals {
		w.asking[ch] = l
	}
}

// after lets the hub react, and most times lets what it does end.
func (w *world) after() {
	synctest.Wait()
	w.obsolete()
	if w.rng.IntN(3) > 0 {
		w.pass(5 * time.Second) // longer than any operation
	}
	synctest.Wait()
	w.obsolete()
}

// obsolete drops the requests of the LAN whose channel the cloud runs.
func (w *world) obsolete() {
	now, certain := w.hub.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	for ch, l := range w.locals {
		if _, can := lanWants(w.t, w.doc, l); !can && w.doc != nil {
			delete(w.locals, ch) // the camera was the cloud's, and that has taken it away; or it stopped the channel
		}
		if s, ok := w.cloudWants(w.doc, ch, now, certain); ok && (certain || s.Mode != wire.ModeScheduled) {
			delete(w.locals, ch)
		}
	}
}

// pass lets time pass, looking every minute what has become obsolete.
func (w *world) pass(d time.Duration) {
	for d > 0 {
		time.Sleep(min(d, time.Minute))
		d -= time.Minute
		w.obsolete()
	}
}

// issue makes a new document, and sends it.
func (w *world) issue(ch vms.ChannelID) {
	m := desired(1)
	if n := len(w.issued); n > 0 {
		*m = *w.issued[n-1]
		m.Streams = append([]wire.DesiredStream(nil), m.Streams...)
		m.Revision++
	}
	at := -1
	for i, s := range m.Streams {
		if s.Channel == ch {
			at = i
		}
	}
	if at < 0 {
		m.Streams = append(m.Streams, want(ch, wire.ModeOnDemand))
		at = len(m.Streams) - 1
	}
	now, _ := w.hub.now()
	s := &m.Streams[at]
	switch w.rng.IntN(9) {
	case 8: // the owner stops what does not run, perhaps
		s.Active, s.Until, s.Stopped = false, time.Time{}, m.Revision
	case 0, 1, 6, 7:
		s.Active = !s.Active
		if s.Active {
			w.cameras++
			s.SID = vms.SID(fmt.Sprintf("sid_%d", w.cameras))
		} else if w.rng.IntN(2) == 0 { // the owner, and not the end of its time
			s.Stopped = m.Revision
		}
		s.Until = time.Time{}
		if s.Mode == wire.ModeOnDemand && w.rng.IntN(2) == 0 {
			s.Until = now.Add(time.Duration(w.rng.IntN(60)) * time.Minute)
		}
	case 2:
		s.Mode = []wire.Mode{wire.ModeOnDemand, wire.ModeContinuous, wire.ModeScheduled, wire.ModeEvent}[w.rng.IntN(4)]
	case 3:
		s.Mode, s.Active = wire.ModeScheduled, true
	case 4:
		w.cameras++
		s.Camera = seal(ch, vms.Camera{Host: fmt.Sprintf("192.0.2.%d", w.cameras%200), Username: "u", Password: "p"})
	case 5: // the channel moves to another hub, or nothing changes
		if w.rng.IntN(2) == 0 {
			m.Streams = append(m.Streams[:at], m.Streams[at+1:]...)
			s = nil
		}
	}
	if s != nil && s.Mode == wire.ModeScheduled {
		s.Schedule = plans[w.rng.IntN(len(plans))].text
	}
	w.issued = append(w.issued, m)
	if w.cut || w.rng.IntN(5) == 0 {
		w.onWay = append(w.onWay, m)
		return
	}
	w.arrive(m)
}

// arrive hands a document to the hub, sealed anew as each one that is sent.
func (w *world) arrive(m *wire.Desired) {
	w.mu.Lock()
	newer := w.doc == nil || m.Revision > w.doc.Revision
	if newer {
		w.doc = m
	}
	w.mu.Unlock()
	err := w.hub.Desired(m)
	if newer && err != nil || !newer && !errors.Is(err, ErrOld) {
		w.t.Errorf("revision %d (newer: %t): %v", m.Revision, newer, err)
	}
	synctest.Wait()
	w.obsolete()
}

func (w *world) late() {
	if len(w.onWay) == 0 || w.cut {
		if n := len(w.issued); n > 0 && !w.cut { // something old, again
			w.arrive(w.issued[w.rng.IntN(n)])
		}
		return
	}
	i := w.rng.IntN(len(w.onWay))
	m := w.onWay[i]
	w.onWay = append(w.onWay[:i], w.onWay[i+1:]...)
	w.arrive(m)
}

func (w *world) partition() {
	w.cut = !w.cut
	if n := len(w.issued); !w.cut && n > 0 && w.rng.IntN(2) == 0 { // the retained one
		w.arrive(w.issued[n-1])
	}
}

func (w *world) lanStart(ch vms.ChannelID) {
	w.cameras++
	l := Local{Channel: ch, SID: vms.SID(fmt.Sprintf("lan_%d", w.cameras)), NVRURL: "ws://nvr/", Token: "token", Camera: vms.Camera{Host: "192.0.2.250"}}
	switch w.rng.IntN(4) {
	case 0, 1:
		l.Camera = vms.Camera{Host: "192.0.2.251", Username: "lan", Password: "p"}
	case 2:
		l.Camera = vms.Camera{}
	}
	now, certain := w.hub.now()
	w.mu.Lock()
	_, taken := w.cloudWants(w.doc, ch, now, certain)
	stored := false
	if w.doc != nil {
		for _, s := range w.doc.Streams {
			stored = stored || s.Channel == ch
		}
	}
	wrong := error(nil)
	switch {
	case l.Camera.Host == "" && !stored:
		wrong = vms.ErrInvalid
	case l.Camera.Host != "" && l.Camera.Password == "" && stored:
		wrong = vms.ErrForbidden
	}
	request := asked{Local: l}
	if w.doc != nil {
		request.Known = w.doc.Revision
	}
	if !taken && wrong == nil {
		w.asking[ch] = request
	}
	w.mu.Unlock()
	began := time.Now()
	err := w.hub.Start(l)
	w.hub.runner.mu.Lock()
	failing := w.hub.runner.failing[ch] != nil
	w.hub.runner.mu.Unlock()
	if time.Since(began) > 0 && err != nil && wrong == nil {
		// Time has passed, and the cloud's schedule may have begun meanwhile.
		if now, certain := w.hub.now(); !taken {
			_, taken = w.cloudWants(w.doc, ch, now, certain)
		}
	}
	want := error(nil)
	switch {
	case wrong != nil:
		want = wrong
	case taken:
		want = vms.ErrConflict
	case failing:
		want = errBroken
	}
	if !errors.Is(err, want) || want == nil && err != nil {
		w.t.Errorf("a start of %s on the LAN: %v, want %v", ch, err, want)
	}
	if err == nil {
		w.mu.Lock()
		w.locals[ch] = request
		w.mu.Unlock()
	}
}

func (w *world) lanStop(ch vms.ChannelID) {
	now, certain := w.hub.now()
	w.mu.Lock()
	_, taken := w.cloudWants(w.doc, ch, now, certain)
	_, there := w.locals[ch]
	if !taken {
		delete(w.locals, ch)
	}
	w.mu.Unlock()
	want := error(nil)
	switch {
	case taken:
		want = vms.ErrForbidden
	case !there:
		want = vms.ErrNotFound
	}
	if err := w.hub.Stop(ch); !errors.Is(err, want) || want == nil && err != nil {
		w.t.Errorf("a stop of %s on the LAN: %v, want %v", ch, err, want)
	}
}

// reboot ends the agent, perhaps in the middle of something, and begins with
// what is on flash: that is what counts then, whatever the hub knew before.
func (w *world) reboot() {
	w.hub.stop()
	f := w.hub.flash
	f.mu.Lock()
	data, local := f.docs[docDesired], f.docs[docLocal]
	f.mu.Unlock()
	w.mu.Lock()
	bad := false
	if w.doc != nil {
		was := w.doc.Revision
		w.doc = nil
		if data != nil {
			m, err := wire.DecodeSession(data)
			if err != nil {
				w.t.Error(err)
				w.mu.Unlock()
				return
			}
			for _, i := range w.issued {
				if i.Revision == m.(*wire.Desired).Revision {
					w.doc = i
				}
			}
		}
		bad = w.doc == nil || w.doc.Revision != was
	}
	var kept []asked
	if local != nil {
		if err := json.Unmarshal(local, &kept); err != nil {
			w.t.Error(err)
		}
	}
	had := w.locals
	w.locals = make(map[vms.ChannelID]asked)
	for _, l := range kept {
		w.locals[l.Channel] = l
	}
	lost := len(had) != len(w.locals)
	for ch, l := range had {
		lost = lost || w.locals[ch].SID != l.SID || w.locals[ch].Known != l.Known
	}
	w.before = w.doc
	w.asking = make(map[vms.ChannelID]asked)
	for ch, l := range w.locals {
		w.asking[ch] = l
	}
	w.mu.Unlock()
	if refused := f.refusals(); refused == 0 && bad {
		w.t.Error("the newest document was not on flash")
	} else if refused == 0 && lost {
		w.t.Errorf("requests %v were kept as %v", had, kept)
	}
	f.mu.Lock()
	f.refused = 0
	f.mu.Unlock()
	w.hub.reboot()
}

// clock loses the time, as a reboot into 1970 does, or learns it.
func (w *world) clock() {
	w.mu.Lock()
	w.moving = true
	w.mu.Unlock()
	if w.rng.IntN(2) == 0 {
		w.hub.setClock(-time.Duration(w.rng.IntN(100))*time.Minute, false)
	} else {
		w.hub.setClock(0, true)
	}
	synctest.Wait()
	w.obsolete()
	w.pass(5 * time.Second)
}

var errBroken = errors.New("the camera cannot be started")

func (w *world) camera(ch vms.ChannelID) {
	if w.rng.IntN(3) == 0 {
		w.hub.runner.fail(ch, errBroken)
	} else {
		w.hub.runner.fail(ch, nil)
	}
}

// end has a stream end: refused by the NVR, or for some other reason.
func (w *world) end(ch vms.ChannelID) {
	st := State{Problem: "it broke"}
	if w.rng.IntN(2) == 0 {
		st = State{Stream: wire.StateRefused, Problem: "The NVR refuses it."}
		synctest.Wait()
		now, certain := w.hub.now()
		w.mu.Lock()
		_, cloud := w.cloudWants(w.doc, ch, now, certain) // and is about to have it
		if t, ok := w.hub.runner.running()[ch]; ok && t.Origin == wire.OriginLAN && !cloud {
			delete(w.locals, ch) // what it asked for is over
		}
		w.mu.Unlock()
	}
	w.hub.runner.end(ch, st)
	w.hub.Kick()
	synctest.Wait()
}

func (w *world) slow(d time.Duration) {
	w.hub.runner.mu.Lock()
	defer w.hub.runner.mu.Unlock()
	w.hub.runner.slow = d
}

// calm lets everything be tried again that failed, and compares.
func (w *world) calm() {
	w.pass(6 * time.Minute)
	w.check(false)
}

// heal makes all well: the line, the clock, cameras, the flash.
func (w *world) heal() {
	w.begin()
	w.did = "all is well again"
	w.hub.flash.fail(false)
	w.slow(0)
	for i := range 6 {
		w.hub.runner.fail(vms.ChannelID(fmt.Sprintf("ch_%d", i)), nil)
	}
	w.mu.Lock()
	w.moving = true
	w.mu.Unlock()
	w.hub.setClock(0, true)
	synctest.Wait()
	w.obsolete()
	w.begin()
	w.cut = false
	if n := len(w.issued); n > 0 {
		w.arrive(w.issued[n-1])
	}
	w.pass(10 * time.Minute)
}

// check compares what runs with what is wanted, but for cameras that fail.
func (w *world) check(all bool) {
	synctest.Wait()
	now, certain := w.hub.now()
	running := w.hub.runner.running()
	report := w.hub.report()
	if all && (report.State != wire.InSync || w.doc != nil && report.Revision != w.issued[len(w.issued)-1].Revision) {
		w.t.Errorf("the hub says %+v, the newest revision is %d", report, len(w.issued))
	}
	for i := range 6 {
		ch := vms.ChannelID(fmt.Sprintf("ch_%d", i))
		w.hub.runner.mu.Lock()
		failing := w.hub.runner.failing[ch] != nil
		w.hub.runner.mu.Unlock()
		got, runs := running[ch]
		s, cloud := w.cloudWants(w.doc, ch, now, certain)
		l, lan := w.locals[ch]
		cam, can := lanWants(w.t, w.doc, l)
		lan = lan && can
		item := w.hub.item(ch)
		if !all && item.State == wire.Syncing {
			continue // it is being done at this moment: a schedule has just begun or ended
		}
		switch {
		case failing && (cloud || lan):
			if !runs && item.State == wire.InSync {
				w.t.Errorf("%s cannot be started, and is said to be %+v", ch, item)
			}
			continue
		case runs != (cloud || lan):
			w.t.Errorf("%s runs: %t; the cloud wants it: %t, the LAN: %t", ch, runs, cloud, lan)
		case cloud && (got.SID != s.SID || !sameCamera(got.Camera, cameraOf(w.t, s)) || (got.Mode == wire.ModeEvent) != (s.Mode == wire.ModeEvent)):
			w.t.Errorf("%s runs as %+v, want %+v", ch, got, s)
		case lan && !cloud && (got.SID != l.SID || !sameCamera(got.Camera, cam)):
			w.t.Errorf("%s runs as %+v, want the LAN's %+v", ch, got, l)
		}
		if item.Running != runs || runs && item.State != wire.InSync {
			w.t.Errorf("%s runs: %t, and is said to be %+v", ch, runs, item)
		}
	}
}
