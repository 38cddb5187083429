package worker_test

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/worker"
	"github.com/zipato/vms/pkg/obs"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// peer is an agent that writes bytes at its own speed, and answers pings.
type peer struct {
	r    *rig
	conn net.Conn
	mu   sync.Mutex // writes
	over chan struct{}
	said []string // text messages of the worker
}

func (r *rig) peer(ch vms.ChannelID) *peer {
	r.t.Helper()
	c, err := r.ln.dial(r.t.Context(), "", "")
	if err != nil {
		r.t.Fatal(err)
	}
	p := &peer{r: r, conn: c, over: make(chan struct{})}
	go p.listen()
	p.write([]byte("GET / HTTP/1.1\r\nHost: w\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" +
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: " + wire.PushProtocol + "\r\nAuthorization: Bearer " + r.ticket(ch, 1) + "\r\n\r\n"))
	p.write(message(1, []byte(`{"type":"hello","lane":"live","epochs":["0000000000000001"]}`)))
	i := testInit(r.t)
	data, err := wire.EncodePush(&wire.InitMessage{Epoch: 1, ID: 1, Tracks: i.Tracks, Segment: i.Segment})
	if err != nil {
		r.t.Fatal(err)
	}
	p.write(message(1, data))
	return p
}

// message is a client's frame that is a whole message, masked with zeros.
func message(opcode byte, payload []byte) []byte {
	b := binary.BigEndian.AppendUint64([]byte{0x80 | opcode, 0x80 | 127}, uint64(len(payload)))
	return append(append(b, 0, 0, 0, 0), payload...)
}

// write reports whether the worker took it.
func (p *peer) write(b []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, err := p.conn.Write(b)
	return err == nil
}

// listen reads what the worker says until it closes.
func (p *peer) listen() {
	defer close(p.over)
	r := bufio.NewReader(p.conn)
	for line := "x"; strings.TrimSpace(line) != ""; { // the answer to the upgrade
		var err error
		if line, err = r.ReadString('\n'); err != nil {
			return
		}
	}
	for {
		var h [2]byte
		if _, err := io.ReadFull(r, h[:]); err != nil {
			return
		}
		n := int64(h[1])
		if n == 126 {
			var l [2]byte
			_, _ = io.ReadFull(r, l[:])
			n = int64(binary.BigEndian.Uint16(l[:]))
		}
		b, err := io.ReadAll(io.LimitReader(r, n))
		switch h[0] & 0xf {
		case 1:
			p.said = append(p.said, string(b))
		case 9:
			go p.write(message(10, b)) // between frames only: it waits for what is being written
		}
		if err != nil {
			return
		}
	}
}

func TestSlowSenders(t *testing.T) {
	c := tape(t, 1, 1, 1, 450<<10)[0]
	msg := message(2, wire.EncodeChunk(&c))
	inBubble(t, func(r *rig) { // 64 kbit/s is slow, and goes on
		p := r.peer("ch")
		begin := time.Now()
		for len(msg) > 0 {
			n := min(len(msg), 800)
			if !p.write(msg[:n]) {
				r.t.Fatalf("cut off after %v: %q", time.Since(begin), p.said)
			}
			msg = msg[n:]
			time.Sleep(100 * time.Millisecond)
		}
		data, _ := wire.EncodePush(stopped(1, 1))
		p.write(message(1, data))
		time.Sleep(10 * time.Second)
		r.store.expect(r.t, span(1, 1, 1))
		_ = p.conn.Close()
		<-p.over
	})
	for name, rate := range map[string]int{"stalls": 0, "drips": 100} {
		t.Run(name, func(t *testing.T) {
			msg := message(2, wire.EncodeChunk(&c))
			inBubble(t, func(r *rig) {
				p := r.peer("ch")
				defer p.conn.Close()
				p.write(msg[:100_000])
				msg = msg[100_000:]
				begin := time.Now()
				for open := true; open; {
					select {
					case <-p.over:
						open = false
					case <-time.After(10 * time.Second):
						p.write(msg[:10*rate])
						msg = msg[10*rate:]
						if d := time.Since(begin); d > 3*time.Minute {
							r.t.Fatal("it is still there")
						}
					}
				}
				if last := p.said[len(p.said)-1]; !strings.Contains(last, `"code":"timeout","class":"retry"`) {
					r.t.Errorf("the last words were %s", last)
				}
				if d := time.Since(begin); rate > 0 && d < 30*time.Second {
					r.t.Errorf("cut off after %v", d)
				}
			})
		})
	}
}

// TestAHundredLanesAndLittleRoom: nobody waits for ever, not even with a chunk
// of the largest size, and the limit of the directory is kept.
func TestAHundredLanesAndLittleRoom(t *testing.T) {
	m := obs.NewRegistry()
	inBubble(t, func(r *rig) {
		r.w.Leave(32 << 20)
		lanes := make([]*agent, 100)
		small, big := tape(r.t, 1, 1, 21, 3000), tape(r.t, 1, 1, 1, 8<<20-1000)[0]
		for i := range lanes {
			lanes[i] = r.open(r.ticket(vms.ChannelID(fmt.Sprintf("ch%d", i)), 1), vms.LaneLive, 1)
			lanes[i].init(1, 1)
		}
		limit := value(r.t, m, "vms_worker_tmpfs_limit_bytes")
		large, waited := lanes[50], -1
		for n := range 42 {
			c := small[n/2]
			for i, a := range lanes {
				if n%2 == 0 && i != 50 && a.paced(c) != 1 {
					r.t.Fatalf("lane %d waits with chunk %d: %+v", i, c.Seq, a.last)
				}
			}
			large.take()
			if size := int64(wire.ChunkHeaderLen + len(big.Payload)); waited < 0 && size <= max(large.welcome.Credit, large.last.Credit) {
				large.chunks(big)
				waited = n
			}
			time.Sleep(400 * time.Millisecond)
			if used := value(r.t, m, "vms_worker_tmpfs_bytes"); used > limit {
				r.t.Fatalf("%v bytes in a directory of %v", used, limit)
			}
			// The last resort gives one lane more than there is room for.
			if credit := value(r.t, m, "vms_worker_credit_bytes"); credit > 40<<20 {
				r.t.Fatalf("%v bytes are promised", credit)
			}
		}
		if waited < 0 || waited > 30 {
			r.t.Errorf("the large one went after %d rounds of 400 ms", waited)
		}
		for i, a := range lanes {
			last := uint64(21)
			if i == 50 {
				last = 1
			}
			a.send(stopped(1, last))
			a.isDurable(span(1, 1, last))
			a.hangUp()
		}
	}, func(c *worker.Config) { c.Metrics = m })
}

// value reads one series.
func value(t *testing.T, m *obs.Registry, name string) (v float64) {
	t.Helper()
	var b strings.Builder
	if err := m.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(b.String()) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			if _, err := fmt.Sscan(rest, &v); err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	t.Fatalf("no metric %s in\n%s", name, b.String())
	return 0
}

func TestMetrics(t *testing.T) {
	m := obs.NewRegistry()
	lag := `vms_worker_durable_lag_seconds{channel="ch"}`
	inBubble(t, func(r *rig) {
		expect := func(name string, least, most float64) {
			r.t.Helper()
			if v := value(r.t, m, name); v < least || v > most {
				r.t.Errorf("%s is %v, want %v to %v", name, v, least, most)
			}
		}
		a := r.open(r.ticket("ch", 1), vms.LaneLive, 1)
		a.init(1, 1)
		time.Sleep(2 * time.Second)
		expect(lag, 0, 0)
		cs := tape(r.t, 1, 1, 10, 1000)
		size := float64(0)
		for i, c := range cs[:8] {
			a.chunks(c)
			size += float64(wire.ChunkHeaderLen + len(c.Payload))
			time.Sleep(time.Second)
			expect(lag, float64(i)-0.1, float64(i)+1.1)
		}
		expect("vms_worker_open_recordings", 1, 1)
		expect("vms_worker_chunks_total", 8, 8)
		expect("vms_worker_received_bytes_total", size, size)
		expect("vms_worker_tmpfs_bytes", size-8*wire.ChunkHeaderLen, size)
		expect("vms_worker_credit_bytes", 1, 512<<20)
		expect("vms_worker_inflight_bytes", 0, 0)
		expect("vms_worker_lanes", 1, 1)
		expect("vms_worker_tmpfs_full", 0, 0)
		// A part makes what it has durable, and what came since is as old as it is.
		time.Sleep(5 * time.Second)
		a.send(&wire.Pressure{Held: 1, Budget: 1})
		a.isDurable(span(1, 1, 8))
		time.Sleep(2 * time.Second)
		expect(lag, 0, 0)
		a.chunks(cs[8])
		time.Sleep(4 * time.Second)
		expect(lag, 2.9, 4.1)
		// While it is on its way into the store it is not durable.
		hold := make(chan struct{})
		r.store.set(func(s *store) { s.hold = hold })
		a.chunks(cs[9])
		a.send(stopped(1, 10))
		time.Sleep(10 * time.Second)
		expect(lag, 12.9, 14.1)
		expect("vms_worker_open_recordings", 0, 0)
		r.store.set(func(s *store) { s.hold = nil })
		close(hold)
		a.isDurable(span(1, 1, 10))
		time.Sleep(2 * time.Second)
		expect(lag, 0, 0)
		expect("vms_worker_acks_total", 6, 60)
		expect("vms_worker_tmpfs_bytes", 0, 0)
		a.hangUp()
		time.Sleep(15 * time.Minute) // forgotten
		var b strings.Builder
		if err := m.WriteText(&b); err != nil || strings.Contains(b.String(), `channel="ch"`) {
			r.t.Errorf("a channel that was forgotten is shown still, %v", err)
		}
		expect("vms_worker_credit_bytes", 0, 0)
	}, func(c *worker.Config) { c.Metrics = m })
}
