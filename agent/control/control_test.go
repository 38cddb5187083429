package control

import (
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/vmstest/chaos"
	"github.com/zipato/vms/pkg/wire"
)

func TestDesiredArrivesAtConnectAndWhenItChanges(t *testing.T) {
	vmstest.NoLeaks(t)
	b := mosquitto(t, acl, "")
	c := newCloud(t, b.addr)
	c.publish("h1", wire.LeafDesired, desired("h1", 7))
	c.publish("h2", wire.LeafDesired, desired("h2", 9)) // is nothing to h1
	h := startHub(t, "h1", "b1", b.addr)
	eventually(t, "revision 7 at the hub", func() bool { return h.revision() == 7 })
	c.publish("h1", wire.LeafDesired, desired("h1", 8))
	eventually(t, "revision 8 at the hub", func() bool { return h.revision() == 8 })
	h.stop()

	again := startHub(t, "h1", "b2", b.addr)
	eventually(t, "revision 8 at the next boot", func() bool { return again.revision() == 8 })
}

func TestCommandsWaitForTheHub(t *testing.T) {
	vmstest.NoLeaks(t)
	b := mosquitto(t, acl, "")
	c := newCloud(t, b.addr)
	startHub(t, "h1", "b1", b.addr).stop()
	var want []string
	for i := range 50 { // more than a broker has in flight
		want = append(want, fmt.Sprintf("c%d", i))
		c.publish("h1", wire.LeafCommand, command(want[i]))
	}
	b.restart(t)
	h := startHub(t, "h1", "b2", b.addr)
	eventually(t, "all commands heard", func() bool { return len(h.heardCommands()) >= len(want) })
	if got := h.heardCommands(); !slices.Equal(got, want) {
		t.Errorf("commands %v, want %v", got, want)
	}
}

func TestCommandIsAcknowledgedWhenItsCallbackHasReturned(t *testing.T) {
	vmstest.NoLeaks(t)
	b := mosquitto(t, acl, "")
	c := newCloud(t, b.addr)
	line := chaos.New(t, b.addr)
	begun, release := make(chan string, 10), make(chan struct{})
	letGo := sync.OnceFunc(func() { close(release) })
	defer letGo() // also when the test fails
	h := newHub(t, "h1", "b1", func(h *hub) {
		h.cfg.OnCommand = func(c *wire.Command) {
			begun <- c.ID
			<-release
		}
	})
	h.SetBroker(to(line.Addr()))
	h.run(t)
	h.connected(t)
	c.publish("h1", wire.LeafCommand, command("c1"))
	if got := recv(t, begun); got != "c1" {
		t.Fatalf("command %s, want c1", got)
	}
	// The connection breaks while the command is being dealt with: it was not
	// acknowledged, and comes again. (What would have acknowledged it went out
	// before the report.)
	h.Report(report("h1", "b1", 1))
	eventually(t, "the report at the cloud", func() bool { return c.last().Serial == 1 })
	line.CutOnce()
	eventually(t, "connected again", func() bool { return line.Accepted() == 2 })
	h.connected(t)
	letGo()
	if got := recv(t, begun); got != "c1" {
		t.Fatalf("command %s, want c1 again", got)
	}
	c.publish("h1", wire.LeafCommand, command("c2"))
	if got := recv(t, begun); got != "c2" {
		t.Fatalf("command %s, want c2", got)
	}
	h.stop()

	// What was dealt with, until Run's end, does not.
	next := startHub(t, "h1", "b2", b.addr)
	c.publish("h1", wire.LeafCommand, command("c3"))
	eventually(t, "c3 heard", func() bool { return slices.Contains(next.heardCommands(), "c3") })
	if got := next.heardCommands(); len(got) != 1 {
		t.Errorf("commands %v, want only c3", got)
	}
}

func TestReportIsRetainedAndTheNewestWins(t *testing.T) {
	vmstest.NoLeaks(t)
	b := mosquitto(t, acl, "")
	c := newCloud(t, b.addr)
	h := newHub(t, "h1", "b1", nil)
	for serial := range int64(100) {
		h.Report(report("h1", "b1", serial+1)) // before anybody can hear it
	}
	h.SetBroker(to(b.addr))
	h.run(t)
	eventually(t, "the newest report at the cloud", func() bool { return c.last().Serial == 100 })
	if c.mu.Lock(); len(c.reported) > 2 {
		t.Errorf("%d reports published, want the newest alone", len(c.reported))
	}
	c.mu.Unlock()
	h.Report(report("h1", "b1", 101))
	eventually(t, "report 101 at the cloud", func() bool { return c.last().Serial == 101 })
	eventually(t, "report 101 at the hub", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return len(h.reports) > 0 && h.reports[len(h.reports)-1].Serial == 101
	})

	// A broker that has lost everything gets it again.
	b.stop(t, syscall.SIGKILL)
	c.mu.Lock()
	c.reported = nil
	c.mu.Unlock()
	if !b.start(t) {
		t.Fatal("Mosquitto did not come back")
	}
	eventually(t, "report 101 at the broker without memory", func() bool { return c.last().Serial == 101 })
}

func TestReplySurvivesBrokerRestart(t *testing.T) {
	vmstest.NoLeaks(t)
	b := mosquitto(t, acl, "")
	c := newCloud(t, b.addr)
	h := startHub(t, "h1", "b1", b.addr)
	b.stop(t, syscall.SIGTERM)
	eventually(t, "lost", func() bool { up, _ := h.Connected(); return !up })
	var want []string
	for i := range 5 {
		want = append(want, fmt.Sprintf("c%d", i))
		h.Reply(&wire.CommandReply{ID: want[i], OK: true})
	}
	if !b.start(t) {
		t.Fatal("Mosquitto did not come back")
	}
	eventually(t, "all replies at the cloud", func() bool { return len(c.replied()) >= 5 })
	if got := c.replied(); !slices.Equal(got, want) {
		t.Errorf("replies %v, want %v", got, want)
	}
}

func TestPartitionIsNoticedAndLosesNothing(t *testing.T) {
	vmstest.NoLeaks(t)
	b := mosquitto(t, acl, "")
	c := newCloud(t, b.addr)
	line := chaos.New(t, b.addr)
	h := newHub(t, "h1", "b1", func(h *hub) {
		h.timing.keepAlive, h.timing.silence = time.Second, 3*time.Second
		h.timing.dial = 3 * time.Second
	})
	h.SetBroker(to(line.Addr()))
	h.run(t)
	h.connected(t)
	h.Report(report("h1", "b1", 1))
	eventually(t, "the report at the cloud", func() bool { return c.last().Serial == 1 })

	line.Stall() // nobody is told
	h.Report(report("h1", "b1", 2))
	h.Reply(&wire.CommandReply{ID: "r1", OK: true})
	c.publish("h1", wire.LeafCommand, command("c1"))
	c.publish("h1", wire.LeafDesired, desired("h1", 5))
	h.says(t, errSilent)
	eventually(t, "offline by its last will", func() bool { r := c.last(); return r.Boot == "b1" && !r.Online })
	line.Resume()
	h.connected(t)
	eventually(t, "the second report at the cloud", func() bool { return c.last().Serial == 2 })
	eventually(t, "the reply at the cloud", func() bool { return slices.Contains(c.replied(), "r1") })
	eventually(t, "the command at the hub", func() bool { return slices.Contains(h.heardCommands(), "c1") })
	eventually(t, "the document at the hub", func() bool { return h.revision() == 5 })
}

// longDocument returns a document of some 180 KB.
func longDocument(revision int64) *wire.Desired {
	d := desired("h1", revision)
	for i := range 16 {
		d.Streams = append(d.Streams, wire.DesiredStream{
			Channel: vms.ChannelID(fmt.Sprintf("ch%d", i)), NVRURL: "http://127.0.0.1", Mode: wire.ModeOnDemand,
			Camera: make([]byte, 8<<10),
		})
	}
	return d
}

func TestLongMessagesOnASlowLine(t *testing.T) {
	vmstest.NoLeaks(t)
	b := mosquitto(t, acl, "")
	c := newCloud(t, b.addr)
	line := chaos.New(t, b.addr)
	line.SetRate(128 << 10)
	line.SetLatency(50 * time.Millisecond)
	c.publish("h1", wire.LeafDesired, longDocument(3))
	r := report("h1", "b1", 1)
	for i := range 100 {
		r.Streams = append(r.Streams, wire.ReportedItem{
			Channel: vms.ChannelID(fmt.Sprintf("ch%d", i)), Origin: wire.OriginCloud, Mode: wire.ModeOnDemand, State: wire.Failed,
			Problem: strings.Repeat("no route to host; ", 50),
		})
	}
	h := newHub(t, "h1", "b1", nil)
	h.Report(r)
	h.SetBroker(to(line.Addr()))
	h.run(t)
	eventually(t, "the document at the hub", func() bool { return h.revision() == 3 })
	eventually(t, "the report at the cloud", func() bool { return c.last().Serial == 1 })
	if n := line.Accepted(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

func TestHubPingsWhileALongMessageComes(t *testing.T) {
	vmstest.NoLeaks(t)
	var conns, pings atomic.Int64
	addr := scripted(t, func(s *script) {
		conns.Add(1)
		if !s.welcome(1, 1, 1) {
			return
		}
		data, err := wire.EncodeSession(longDocument(3))
		if err != nil {
			t.Error(err)
		}
		p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
		p.Qos, p.MessageID, p.TopicName, p.Payload = 1, 1, wire.Topic("h1", wire.LeafDesired), data
		var whole strings.Builder
		if err := p.Write(&whole); err != nil {
			t.Error(err)
		}
		over := make(chan struct{})
		go func() {
			defer close(over)
			for {
				switch p := s.next().(type) {
				case nil:
					return
				case *packets.PingreqPacket: // the answer has to wait behind the message
					pings.Add(1)
				case *packets.PublishPacket:
					s.acknowledge(p)
				}
			}
		}()
		text := whole.String()
		for pings.Load() < 3 && len(text) > 1 {
			if _, err := s.Write([]byte(text[:1])); err != nil {
				return
			}
			text = text[1:]
			time.Sleep(10 * time.Millisecond) // the line is slow
		}
		if _, err := s.Write([]byte(text)); err != nil {
			return
		}
		<-over
	})
	h := newHub(t, "h1", "b1", func(h *hub) { h.timing.keepAlive = time.Second })
	h.SetBroker(to(addr))
	h.run(t)
	eventually(t, "the document at the hub", func() bool { return h.revision() == 3 })
	if pings.Load() < 3 || conns.Load() != 1 {
		t.Errorf("%d pings on %d connections, want 3 on 1", pings.Load(), conns.Load())
	}
}

func TestWrongPasswordIsSaidAndCorrected(t *testing.T) {
	vmstest.NoLeaks(t)
	b := mosquitto(t, acl, "")
	line := chaos.New(t, b.addr)
	h := newHub(t, "h1", "b1", nil)
	wrong := to(line.Addr())
	wrong.Password = "battery staple"
	h.SetBroker(wrong)
	h.run(t)
	h.says(t, ErrRefused)
	if _, err := h.Connected(); strings.Contains(err.Error(), "staple") {
		t.Errorf("the state says the password: %v", err)
	}
	_, moved := h.target()
	h.SetBroker(wrong)
	if _, again := h.target(); again != moved {
		t.Error("the same broker again is news")
	}
	if n := line.Accepted(); n != 1 {
		t.Errorf("%d attempts, want 1 and then a long wait", n)
	}
	h.SetBroker(to(line.Addr()))
	h.connected(t)
	eventually(t, "said by OnState", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.states[len(h.states)-1] == nil
	})
}

func TestRefusedTopicsAreSaid(t *testing.T) {
	vmstest.NoLeaks(t)
	t.Run("by Mosquitto's list, without a word", func(t *testing.T) {
		vmstest.NoLeaks(t)
		b := mosquitto(t, strings.ReplaceAll(acl, "%u", "somebody"), "")
		c := newCloud(t, b.addr)
		h := newHub(t, "h1", "b1", func(h *hub) { h.timing.echo = 100 * time.Millisecond })
		h.Report(report("h1", "b1", 1))
		h.SetBroker(to(b.addr))
		h.run(t)
		h.says(t, ErrRefused)
		if r := c.last(); r.Serial != 0 {
			t.Errorf("the cloud got %+v from a hub without permission", r)
		}
		// Corrected, while the connection goes on.
		b.write(t, "acl", acl)
		if err := b.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		serial := int64(1)
		eventually(t, "all well", func() bool {
			serial++
			h.Report(report("h1", "b1", serial))
			_, err := h.Connected()
			return err == nil
		})
	})
	for name, codes := range map[string][]byte{
		"by the answer to SUBSCRIBE": {1, 0x80, 1},
		"by a lower QoS":             {1, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			vmstest.NoLeaks(t)
			var conns atomic.Int64
			addr := scripted(t, func(s *script) {
				conns.Add(1)
				s.welcome(codes...)
				s.answer()
			})
			h := newHub(t, "h1", "b1", nil)
			h.SetBroker(to(addr))
			h.run(t)
			h.says(t, ErrRefused)
			if up, _ := h.Connected(); up {
				t.Error("connected without its topics")
			}
			if n := conns.Load(); n != 1 {
				t.Errorf("%d attempts, want 1 and then a long wait", n)
			}
		})
	}
}

func TestAnswersThatAreNoMQTTEndTheConnectionOnly(t *testing.T) {
	vmstest.NoLeaks(t)
	for name, bytes := range map[string][]byte{
		"too many answers to SUBSCRIBE": {0x90, 6, 0, 1, 1, 1, 1, 1},
		"no MQTT":                       []byte("HTTP/1.1 400 Bad Request\r\n\r\n"),
		"endless length":                {0x30, 0xff, 0xff, 0xff, 0xff, 0x7f},
		"unknown packet":                {0xf0, 0},
		"packet of QoS 2":               {0x50, 2, 0, 1},
		"answer to nothing":             {0x40, 2, 0, 9, 0xf0, 0},
		"publish without a topic":       {0x32, 0},
	} {
		t.Run(name, func(t *testing.T) {
			vmstest.NoLeaks(t)
			var conns atomic.Int64
			addr := scripted(t, func(s *script) {
				n := conns.Add(1)
				if n > 1 {
					s.welcome(1, 1, 1)
					s.answer()
					return
				}
				if _, ok := s.next().(*packets.ConnectPacket); !ok {
					return
				}
				_ = packets.NewControlPacket(packets.Connack).Write(s)
				s.next()
				_, _ = s.Write(bytes)
				for s.next() != nil {
				}
			})
			h := newHub(t, "h1", "b1", nil)
			h.SetBroker(to(addr))
			h.run(t)
			h.connected(t)
			if n := conns.Load(); n != 2 {
				t.Errorf("%d connections, want 2", n)
			}
		})
	}
}

func TestMessageThatIsNotAcknowledgedIsSentAgain(t *testing.T) {
	vmstest.NoLeaks(t)
	var conns atomic.Int64
	addr := scripted(t, func(s *script) {
		n := conns.Add(1)
		if !s.welcome(1, 1, 1) {
			return
		}
		if n == 1 {
			for s.next() != nil { // takes all and acknowledges nothing
			}
			return
		}
		s.answer()
	})
	h := newHub(t, "h1", "b1", func(h *hub) { h.timing.ack = 100 * time.Millisecond })
	h.Reply(&wire.CommandReply{ID: "r1", OK: true})
	h.SetBroker(to(addr))
	h.run(t)
	eventually(t, "acknowledged on the second connection", func() bool { return h.out.next() == nil })
	if n := conns.Load(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
}

func TestTwoAgentsWithOneIdentity(t *testing.T) {
	vmstest.NoLeaks(t)
	b := mosquitto(t, acl, "")
	line := chaos.New(t, b.addr)
	hubs := []*hub{newHub(t, "h1", "b1", nil), newHub(t, "h1", "b2", nil)}
	for i, h := range hubs {
		h.Report(report("h1", fmt.Sprintf("b%d", i+1), 1))
		h.SetBroker(to(line.Addr()))
		h.run(t)
	}
	// Soon one sees what is going on, and leaves the other alone for a minute.
	yields := -1
	eventually(t, "one that says so", func() bool {
		for i, h := range hubs {
			if up, err := h.Connected(); !up && errors.Is(err, ErrTakenOver) {
				yields = i
			}
		}
		return yields >= 0
	})
	hubs[yields].says(t, ErrTakenOver)
	other := hubs[1-yields]
	eventually(t, "the other one connected", func() bool { up, _ := other.Connected(); return up })
	if n := line.Accepted(); n > 30 {
		t.Errorf("%d connections before one yielded", n)
	}
	before := line.Accepted()
	hubs[yields].stop()
	c := newCloud(t, b.addr)
	other.Report(report("h1", fmt.Sprintf("b%d", 2-yields), 2))
	eventually(t, "the report of the one that stays", func() bool { return c.last().Serial == 2 })
	if n := line.Accepted(); n > before+1 {
		t.Errorf("%d connections more after one had yielded", n-before)
	}
}

func TestWhatCannotBeReadIsDroppedOnce(t *testing.T) {
	vmstest.NoLeaks(t)
	b := mosquitto(t, acl, "")
	c := newCloud(t, b.addr)
	h := startHub(t, "h1", "b1", b.addr)
	for _, data := range []string{
		"", "no JSON", `{"type":"command"}`, `{"type":"tomorrow"}`,
		`{"type":"command_reply","id":"x1","ok":true}`, // right, in the wrong place
		strings.Repeat(" ", wire.MaxControl) + `{"type":"command"}`,
		`{"type":"command","id":"x2","kind":"doctor","deadline":"2026-11-01T00:00:00Z","more":"` + strings.Repeat("x", 3<<20) + `"}`,
	} {
		c.raw("h1", wire.LeafCommand, []byte(data))
	}
	c.raw("h1", wire.LeafDesired, []byte(`{"type":"desired"}`))
	c.publish("h1", wire.LeafDesired, desired("h1", 4))
	c.publish("h1", wire.LeafCommand, command("c1"))
	eventually(t, "c1 heard", func() bool { return len(h.heardCommands()) > 0 })
	eventually(t, "revision 4", func() bool { return h.revision() == 4 })
	if up, err := h.Connected(); !up || err != nil {
		t.Errorf("Connected = %v, %v after messages that cannot be read", up, err)
	}
	h.stop()
	next := startHub(t, "h1", "b2", b.addr)
	c.publish("h1", wire.LeafCommand, command("c2"))
	eventually(t, "c2 heard", func() bool { return slices.Contains(next.heardCommands(), "c2") })
	if got := append(h.heardCommands(), next.heardCommands()...); !slices.Equal(got, []string{"c1", "c2"}) {
		t.Errorf("commands %v, want c1 and c2", got)
	}
}

func TestLastWillSaysOffline(t *testing.T) {
	vmstest.NoLeaks(t)
	b := mosquitto(t, acl, "")
	c := newCloud(t, b.addr)
	line := chaos.New(t, b.addr)
	h := startHub(t, "h1", "b1", line.Addr())
	h.Report(report("h1", "b1", 1))
	eventually(t, "online", func() bool { return c.last().Online })
	line.Cut()
	eventually(t, "offline", func() bool { r := c.last(); return r.Boot == "b1" && !r.Online })
	line.Restore()
	eventually(t, "online again", func() bool { return c.last().Serial == 1 })
}

func TestLateLastWillIsCorrected(t *testing.T) {
	vmstest.NoLeaks(t)
	b := mosquitto(t, acl, "")
	c := newCloud(t, b.addr)
	h := newHub(t, "h1", "b2", func(h *hub) { h.timing.settle, h.timing.correct = 10*time.Millisecond, time.Second })
	h.Report(report("h1", "b2", 1))
	h.SetBroker(to(b.addr))
	h.run(t)
	eventually(t, "online", func() bool { return c.last().Online })
	for _, late := range []*wire.Reported{
		{Hub: "h1", Boot: "b2"}, // of an earlier connection
		{Hub: "h1", Boot: "b1"}, // of an earlier run
		report("h1", "b1", 9),   // of another agent
	} {
		c.publish("h1", wire.LeafReported, late)
		eventually(t, "corrected", func() bool { r := c.last(); return r.Boot == "b2" && r.Serial == 1 })
	}

	// Somebody who insists is not fought at full speed.
	c.mu.Lock()
	c.reported = nil
	c.mu.Unlock()
	begin := time.Now()
	pace := time.NewTicker(3 * h.timing.settle)
	defer pace.Stop()
	for range 30 {
		<-pace.C
		c.publish("h1", wire.LeafReported, &wire.Reported{Hub: "h1", Boot: "b1"})
	}
	eventually(t, "corrected", func() bool { return c.last().Online })
	corrections := 0
	c.mu.Lock()
	for _, r := range c.reported {
		if r.Online {
			corrections++
		}
	}
	c.mu.Unlock()
	if most := 1 + int(time.Since(begin)/time.Second); corrections > most {
		t.Errorf("%d corrections in %v", corrections, time.Since(begin))
	}
}

func TestSetBrokerMoves(t *testing.T) {
	vmstest.NoLeaks(t)
	a, b := mosquitto(t, acl, ""), mosquitto(t, acl, "")
	ca, cb := newCloud(t, a.addr), newCloud(t, b.addr)
	h := startHub(t, "h1", "b1", a.addr)
	h.Report(report("h1", "b1", 1))
	eventually(t, "online at the first", func() bool { return ca.last().Online })
	h.SetBroker(to(b.addr))
	eventually(t, "online at the second", func() bool { return cb.last().Serial == 1 })
	eventually(t, "offline at the first", func() bool { r := ca.last(); return r.Boot == "b1" && !r.Online })
	cb.publish("h1", wire.LeafCommand, command("c1"))
	eventually(t, "c1 heard", func() bool { return slices.Contains(h.heardCommands(), "c1") })

	// To none, with a reply that waits for the next.
	h.SetBroker(wire.Broker{})
	h.says(t, ErrNoBroker)
	eventually(t, "offline at the second", func() bool { r := cb.last(); return r.Boot == "b1" && !r.Online })
	h.Reply(&wire.CommandReply{ID: "c1", OK: true})
	h.SetBroker(to(a.addr))
	eventually(t, "the reply at the first", func() bool { return slices.Contains(ca.replied(), "c1") })
	eventually(t, "online at the first again", func() bool { return ca.last().Online })
	h.connected(t)
}

func TestRunLeavesAnOfflineReport(t *testing.T) {
	vmstest.NoLeaks(t)
	b := mosquitto(t, acl, "")
	c := newCloud(t, b.addr)
	h := startHub(t, "h1", "b1", b.addr)
	h.Report(report("h1", "b1", 1))
	eventually(t, "online", func() bool { return c.last().Online })
	h.stop()
	// Retained: whoever comes later hears it too.
	late := newHub(t, "h1", "b2", nil)
	late.SetBroker(to(b.addr))
	late.run(t)
	eventually(t, "told that it was offline", func() bool {
		late.mu.Lock()
		defer late.mu.Unlock()
		return len(late.reports) > 0 && late.reports[0].Boot == "b1" && !late.reports[0].Online
	})
}

func TestRunEndsSoonWhateverTheBrokerDoes(t *testing.T) {
	vmstest.NoLeaks(t)
	b := mosquitto(t, acl, "")
	silent := scripted(t, func(s *script) {
		for s.next() != nil {
		}
	})
	line := chaos.New(t, b.addr)
	for name, prepare := range map[string]func(t *testing.T, h *hub){
		"no broker":                    func(*testing.T, *hub) {},
		"one that refuses connections": func(_ *testing.T, h *hub) { h.SetBroker(to("127.0.0.1:1")) },
		"one that never answers":       func(_ *testing.T, h *hub) { h.SetBroker(to(silent)) },
		"a partition": func(t *testing.T, h *hub) {
			h.SetBroker(to(line.Addr()))
			h.connected(t)
			line.Stall()
			t.Cleanup(line.Resume)
			h.Report(report("h1", "b1", 1))
			h.Reply(&wire.CommandReply{ID: "r1", OK: true})
		},
	} {
		t.Run(name, func(t *testing.T) {
			vmstest.NoLeaks(t)
			h := newHub(t, "h1", "b1", nil).run(t)
			prepare(t, h)
			begin := time.Now()
			h.stop()
			if took := time.Since(begin); took > 10*time.Second {
				t.Errorf("Run ended after %v", took)
			}
		})
	}
}

func TestFullInboxStopsReadingAndLosesNothing(t *testing.T) {
	vmstest.NoLeaks(t)
	const messages = 40
	addr := scripted(t, func(s *script) {
		if !s.welcome(1, 1, 1) {
			return
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.answer()
		}()
		for i := range messages {
			if !s.send(uint16(i+1), wire.Topic("h1", wire.LeafDesired), longDocument(int64(i+1))) {
				break
			}
		}
		<-done
	})
	release := make(chan struct{})
	letGo := sync.OnceFunc(func() { close(release) })
	defer letGo() // also when the test fails
	h := newHub(t, "h1", "b1", func(h *hub) {
		note := h.cfg.OnDesired
		h.cfg.OnDesired = func(d *wire.Desired) {
			<-release
			note(&wire.Desired{Revision: d.Revision})
		}
	})
	h.SetBroker(to(addr))
	h.run(t)
	eventually(t, "the inbox full", func() bool {
		if h.room.TryAcquire(256 << 10) {
			h.room.Release(256 << 10)
			return false
		}
		return true
	})
	if n := len(h.inbox); n > inboxBytes/(100<<10) {
		t.Errorf("%d long messages in the inbox", n)
	}
	letGo()
	eventually(t, "all messages through", func() bool { return h.revision() == messages })
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, d := range h.desired {
		if d.Revision != int64(i+1) {
			t.Fatalf("message %d has revision %d", i, d.Revision)
		}
	}
}

func TestConnectionLostWhileTheInboxIsFull(t *testing.T) {
	vmstest.NoLeaks(t)
	for _, tc := range []struct {
		name     string
		messages int // what the sockets take beyond what the inbox does
		make     func(i int) wire.SessionMessage
	}{
		{"with long messages", 20, func(i int) wire.SessionMessage { return longDocument(int64(i + 1)) }},
		{"with many", 2 * inboxSize, func(i int) wire.SessionMessage { return desired("h1", int64(i+1)) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			vmstest.NoLeaks(t)
			var conns atomic.Int64
			addr := scripted(t, func(s *script) {
				n := conns.Add(1)
				if !s.welcome(1, 1, 1) || n > 1 {
					s.answer()
					return
				}
				for i := range tc.messages {
					if !s.send(uint16(i+1), wire.Topic("h1", wire.LeafDesired), tc.make(i)) {
						return
					}
				}
			})
			release := make(chan struct{})
			h := newHub(t, "h1", "b1", func(h *hub) {
				// On a connection that is not read its end is noticed by writing.
				h.timing.keepAlive = time.Second
				h.timing.silence = 3 * time.Second
				h.cfg.OnDesired = func(*wire.Desired) { <-release }
			})
			h.SetBroker(to(addr))
			h.run(t)
			defer close(release)
			eventually(t, "connected again while the callback still blocks", func() bool { return conns.Load() == 2 })
			h.connected(t)
		})
	}
}

func TestBrokersThatAreNotDialled(t *testing.T) {
	with := &Config{Hub: "h1", TLS: &tls.Config{}}
	for _, tc := range []struct {
		url  string
		cfg  *Config
		host string // empty: refused
	}{
		{"", with, ""},
		{"mqtt://127.0.0.1:1883", with, "127.0.0.1:1883"},
		{"mqtt://localhost/", with, "localhost:1883"},
		{"mqtt://[::1]", with, "[::1]:1883"},
		{"mqtts://broker.example", with, "broker.example:8883"},
		{"mqtts://broker.example:443", with, "broker.example:443"},
		{"mqtts://broker.example", &Config{}, ""},
		{"mqtt://broker.example", with, ""},
		{"mqtt://192.168.1.10:1883", with, ""},
		{"mqtt://192.168.1.10:1883", &Config{Insecure: true}, "192.168.1.10:1883"},
		{"tcp://127.0.0.1:1883", with, ""},
		{"ws://127.0.0.1:1883", with, ""},
		{"127.0.0.1:1883", with, ""},
		{"mqtt://u:secret@127.0.0.1", with, ""},
		{"mqtt://u:sec ret@127.0.0.1", with, ""},
		{"mqtt://127.0.0.1/path", with, ""},
		{"mqtt://127.0.0.1?secret", with, ""},
		{"mqtt://", with, ""},
	} {
		a, err := parse(wire.Broker{URL: tc.url}, tc.cfg)
		if tc.host == "" {
			if !errors.Is(err, ErrNoBroker) || strings.Contains(err.Error(), "sec") {
				t.Errorf("parse(%q) = %v, want ErrNoBroker and no secret", tc.url, err)
			}
			continue
		}
		if err != nil || a.host != tc.host {
			t.Errorf("parse(%q) = %+v, %v, want %s", tc.url, a, err, tc.host)
		}
	}
}

func TestBadHubIsRefused(t *testing.T) {
	if err := New(Config{Hub: "h/#", Boot: "b1"}).Run(t.Context()); !errors.Is(err, vms.ErrInvalid) {
		t.Errorf("Run = %v for a hub whose id is a wildcard, want ErrInvalid", err)
	}
	if err := New(Config{Hub: "h1"}).Run(t.Context()); err == nil {
		t.Error("Run = nil for a run without a name")
	}
}
