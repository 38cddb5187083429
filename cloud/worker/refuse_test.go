package worker_test

import (
	"bytes"
	"encoding/binary"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	"github.com/zipato/vms/pkg/problem"
	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

func TestTicketsAreCheckedBeforeTheUpgrade(t *testing.T) {
	inBubble(t, func(r *rig) {
		a := r.open(r.ticket("ch", 7), vms.LaneLive)
		good := r.ticket("ch", 7)
		push := token.Push{Worker: "w1", Channel: "ch", SID: "sid_1", Hub: "hub_1", Generation: 9, Expires: time.Now().Add(time.Hour)}
		other, late := push, push
		other.Worker = "w2"
		late.Expires = time.Now().Add(time.Second)
		expired := r.sign(late)
		time.Sleep(5 * time.Minute)
		for name, tt := range map[string]struct {
			ticket, protocol string
			status           int
			problem          string
		}{
			"none":            {"", wire.PushProtocol, 401, wire.ProblemTicketInvalid},
			"garbage":         {"x.y.z", wire.PushProtocol, 401, wire.ProblemTicketInvalid},
			"tampered":        {strings.Replace(good, ".", ".e", 1), wire.PushProtocol, 401, wire.ProblemTicketInvalid},
			"signature cut":   {good[:len(good)-4], wire.PushProtocol, 401, wire.ProblemTicketInvalid},
			"expired":         {expired, wire.PushProtocol, 401, wire.ProblemTicketExpired},
			"another worker":  {r.sign(other), wire.PushProtocol, 401, wire.ProblemTicketInvalid},
			"fenced":          {r.ticket("ch", 6), wire.PushProtocol, 409, wire.ProblemFenced},
			"forged resume":   {a.welcome.ResumeTicket + "x", wire.PushProtocol, 401, wire.ProblemTicketInvalid},
			"no protocol":     {good, "", 400, ""},
			"another version": {good, "vms.push.v2", 400, ""},
		} {
			b, resp, err := r.dial(tt.ticket, tt.protocol)
			if err == nil {
				b.hangUp()
				r.t.Errorf("%s: upgraded", name)
				continue
			}
			if resp == nil || resp.StatusCode != tt.status || tt.problem != "" && problem.TypeOf(problem.ReadResponse(resp)) != tt.problem {
				r.t.Errorf("%s: %v (%v), want %d %s", name, resp, err, tt.status, tt.problem)
			}
		}
		a.hangUp()
	})
}

func TestAWorkerThatGoesAwayIsBusy(t *testing.T) {
	inBubble(t, func(r *rig) {
		r.store.set(func(s *store) { s.delay = 8 * time.Second })
		a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		a.init(1, 1)
		a.chunks(tape(r.t, 1, 1, 11, 100)...)
		synctest.Wait()
		r.stop()
		a.closed()
		_, resp, err := r.dial(r.ticket("ch", 1), wire.PushProtocol)
		if err == nil || resp == nil || resp.StatusCode != http.StatusServiceUnavailable || problem.TypeOf(problem.ReadResponse(resp)) != wire.ProblemBusy {
			r.t.Errorf("dial = %v, %v", resp, err)
		}
	})
}

// TestEachOffenceHasItsAnswer: the agent decides by the class, and by the chunk
// that the refusal names.
func TestEachOffenceHasItsAnswer(t *testing.T) {
	type answer struct {
		class wire.Class
		code  string
		seq   uint64 // of epoch 1
	}
	good := tape(t, 1, 1, 20, 100)
	msg := func(i int, f func(b []byte)) []byte {
		b := wire.EncodeChunk(&good[i])
		f(b)
		return b
	}
	edit := func(i int, f func(c *vms.Chunk)) []byte {
		c := good[i]
		c.Payload = bytes.Clone(c.Payload)
		f(&c)
		c.CRC = wire.Checksum(c.Payload)
		return wire.EncodeChunk(&c)
	}
	huge := edit(1, func(c *vms.Chunk) { c.Payload = append(c.Payload, make([]byte, 9<<20)...) })
	for name, tt := range map[string]struct {
		do   func(a *agent)
		want answer
	}{
		"malformed header":      {func(a *agent) { a.binary(msg(1, func(b []byte) { b[0] = 9 })) }, answer{"retry", "malformed", 0}},
		"unknown flag":          {func(a *agent) { a.binary(msg(1, func(b []byte) { b[2] = 0x80 })) }, answer{"skip", "malformed", 2}},
		"checksum":              {func(a *agent) { a.binary(msg(1, func(b []byte) { b[len(b)-1]++ })) }, answer{"skip", "malformed", 2}},
		"shorter than a header": {func(a *agent) { a.binary(make([]byte, 63)) }, answer{"retry", "malformed", 0}},
		"payload cut":           {func(a *agent) { a.binary(msg(1, func([]byte) {})[:100]) }, answer{"retry", "malformed", 0}},
		"bytes behind":          {func(a *agent) { a.binary(append(msg(1, func([]byte) {}), 0)) }, answer{"skip", "malformed", 2}},
		"too large":             {func(a *agent) { a.binary(huge) }, answer{"skip", "too_large", 2}},
		"too large by its word": {func(a *agent) { a.binary(msg(1, func(b []byte) { binary.BigEndian.PutUint32(b[60:], 1<<31) })) }, answer{"skip", "too_large", 2}},
		"moof length":           {func(a *agent) { a.binary(edit(1, func(c *vms.Chunk) { c.MoofLen++ })) }, answer{"skip", "malformed", 2}},
		"no fragment":           {func(a *agent) { a.binary(edit(1, func(c *vms.Chunk) { copy(c.Payload[4:], "free") })) }, answer{"skip", "malformed", 2}},
		"no fragment to begin": {func(a *agent) {
			a.chunks(good[1:10]...)
			a.binary(edit(10, func(c *vms.Chunk) { copy(c.Payload[4:], "free") }))
		}, answer{"skip", "malformed", 11}},
		"before the recording": {func(a *agent) { a.binary(edit(1, func(c *vms.Chunk) { clear(c.Payload[60:68]) })) }, answer{"skip", "malformed", 2}},
		"out of sequence":      {func(a *agent) { a.chunks(good[2]) }, answer{"retry", "sequence", 0}},
		"unknown init":         {func(a *agent) { a.binary(edit(1, func(c *vms.Chunk) { c.Init = 5 })) }, answer{"retry", "no_init", 0}},
		"no keyframe": {func(a *agent) {
			a.send(&wire.GapMessage{ID: "g", Chunks: span(1, 2, 2), Cause: "buffer_full"})
			a.chunks(good[2])
		}, answer{"skip", "sequence", 3}},
		"second hello":       {func(a *agent) { a.send(&wire.Hello{Lane: vms.LaneLive}) }, answer{"retry", "malformed", 0}},
		"a worker's message": {func(a *agent) { a.send(&wire.Ack{}) }, answer{"retry", "malformed", 0}},
		"no JSON":            {func(a *agent) { a.text("{") }, answer{"retry", "malformed", 0}},
		"unknown message":    {func(a *agent) { a.text(`{"type":"` + strings.Repeat("x", 2000) + `"}`) }, answer{"retry", "malformed", 0}},
		"control too large": {func(a *agent) {
			_ = a.c.Write(a.t.Context(), websocket.MessageText, []byte(`{"type":"end"`+strings.Repeat(" ", wire.MaxControl)+`}`))
		}, answer{"retry", "malformed", 0}},
		"init of two clocks": {func(a *agent) {
			i := testInit(a.t)
			i.Tracks = append(i.Tracks, vms.Track{ID: 2, Kind: "audio", Codec: "mp4a.40.2", Timescale: 48000})
			a.send(&wire.InitMessage{Epoch: 1, ID: 2, Tracks: i.Tracks, Segment: i.Segment})
		}, answer{"retry", "malformed", 0}},
		"credit": {func(a *agent) {
			for _, c := range tape(a.t, 1, 2, 4, 4<<20) {
				a.chunks(c)
			}
		}, answer{"retry", "credit", 0}},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(r *rig) {
				a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
				a.init(1, 1)
				a.chunks(good[0])
				tt.do(a)
				m, ce := a.closed()
				if m.Class != tt.want.class || m.Code != tt.want.code || m.Seq != tt.want.seq || m.Message == "" {
					r.t.Errorf("error %+v, want %+v", m, tt.want)
				}
				if int(ce.Code) != tt.want.class.Code() || ce.Reason != tt.want.code {
					r.t.Errorf("closed with %d %q (%v)", ce.Code, ce.Reason, a.over)
				}
				// The stream is not lost by it: what is missing can be sent again.
				b := r.open(a.welcome.ResumeTicket, vms.LaneLive, 1)
				b.init(1, 1)
				want := span(1, 1, 20)
				if name == "no keyframe" { // the GOP became a gap
					b.send(&wire.GapMessage{ID: "g", Chunks: span(1, 2, 5), Cause: "rejected"})
					want.First = 6
				}
				b.chunks(good[want.First-1:]...)
				b.send(&wire.End{Epoch: 1, Seq: 20, Cause: "stopped"})
				b.isDurable(want)
				b.hangUp()
			})
		})
	}
}

func TestHelloComesFirst(t *testing.T) {
	for name, tt := range map[string]struct {
		do   func(a *agent)
		code string
	}{
		"never":   {func(*agent) {}, wire.CodeTimeout},
		"binary":  {func(a *agent) { a.binary([]byte("x")) }, wire.CodeMalformed},
		"another": {func(a *agent) { a.send(&wire.Pressure{Budget: 1}) }, wire.CodeMalformed},
		"no lane": {func(a *agent) { a.text(`{"type":"hello","lane":"side"}`) }, wire.CodeMalformed},
		"too large": {func(a *agent) {
			_ = a.c.Write(a.t.Context(), websocket.MessageText, bytes.Repeat([]byte(" "), 2*wire.MaxControl))
		}, wire.CodeMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(r *rig) {
				a, _, err := r.dial(r.ticket("ch", 1), wire.PushProtocol)
				if err != nil {
					r.t.Fatal(err)
				}
				begin := time.Now()
				tt.do(a)
				m, ce := a.closed()
				if m.Class != wire.ClassRetry || m.Code != tt.code || ce.Reason != tt.code || int(ce.Code) != wire.ClassRetry.Code() {
					r.t.Errorf("error %+v, closed with %v", m, ce)
				}
				if d := time.Since(begin); d > 15*time.Second {
					r.t.Errorf("closed after %v", d)
				}
				r.nvr.expect(r.t)
			})
		})
	}
}

// TestAStalledPeerCannotStay: one that stops in the middle of a message and
// does not answer the close either.
func TestAStalledPeerCannotStay(t *testing.T) {
	inBubble(t, func(r *rig) {
		c, err := r.ln.dial(r.t.Context(), "", "")
		if err != nil {
			r.t.Fatal(err)
		}
		done := make(chan struct{})
		go func() { // what the worker says is read, and not answered
			defer close(done)
			b := make([]byte, 4096)
			for {
				if _, err := c.Read(b); err != nil {
					return
				}
			}
		}()
		write := func(s string) {
			if _, err := c.Write([]byte(s)); err != nil {
				r.t.Fatal(err)
			}
		}
		write("GET / HTTP/1.1\r\nHost: w\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" +
			"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: " + wire.PushProtocol + "\r\nAuthorization: Bearer " + r.ticket("ch", 1) + "\r\n\r\n")
		hello := `{"type":"hello","lane":"live"}`
		write("\x81" + string([]byte{0x80 | byte(len(hello))}) + "\x00\x00\x00\x00" + hello)
		// A frame of 8 MiB, of which a header comes that says too_large.
		frame := append([]byte("\x82\xff\x00\x00\x00\x00\x00\x80\x00\x00\x00\x00\x00\x00"), make([]byte, 64)...)
		frame[14] = 1
		binary.BigEndian.PutUint32(frame[len(frame)-4:], 1<<31)
		begin := time.Now()
		write(string(frame))
		<-done
		if d := time.Since(begin); d > 20*time.Second {
			r.t.Errorf("it stayed for %v", d)
		}
		_ = c.Close()
	})
}

func TestSilentPeers(t *testing.T) {
	inBubble(t, func(r *rig) {
		a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		// A hub whose camera is away is quiet, answers pings, and hears from us.
		for range 12 {
			n := len(a.in)
			time.Sleep(5*time.Second + time.Millisecond)
			if len(a.in) == n {
				r.t.Fatal("no ack for more than 5 s")
			}
		}
		a.take()
		if a.last.Hold != wire.HoldNone || a.last.Received != 0 || a.last.Credit < wire.MinMaxChunk {
			r.t.Errorf("ack %+v", a.last)
		}
		a.hangUp()

		// One that lost its power does not answer.
		c, err := r.ln.dial(r.t.Context(), "", "")
		if err != nil {
			r.t.Fatal(err)
		}
		hello := `{"type":"hello","lane":"live"}`
		done := make(chan struct{})
		go func() {
			defer close(done)
			b := make([]byte, 4096)
			for {
				if _, err := c.Read(b); err != nil {
					return
				}
			}
		}()
		for _, s := range []string{
			"GET / HTTP/1.1\r\nHost: w\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" +
				"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: " + wire.PushProtocol + "\r\nAuthorization: Bearer " + r.ticket("ch", 1) + "\r\n\r\n",
			"\x81" + string([]byte{0x80 | byte(len(hello))}) + "\x00\x00\x00\x00" + hello,
		} {
			if _, err := c.Write([]byte(s)); err != nil {
				r.t.Fatal(err)
			}
		}
		begin := time.Now()
		<-done
		if d := time.Since(begin); d < 15*time.Second || d > 45*time.Second {
			r.t.Errorf("a dead peer was given up after %v", d)
		}
		_ = c.Close()
	})
}
