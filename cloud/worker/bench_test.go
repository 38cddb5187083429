package worker_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/worker"
	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// publisher sends one stream without allocating anything: what is measured is
// the worker.
type publisher struct {
	conn   net.Conn
	credit atomic.Int64
	sent   int64
	msg    []byte // a whole message: chunk
	base   int    // where the decode time is in it
	seq    uint64
}

const frameHead = 14 // of a masked frame with a 64-bit length

func publish(b *testing.B, addr, ch string, size int) *publisher {
	b.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	p := &publisher{conn: conn}
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: w\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"+
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: %s\r\nAuthorization: Bearer %s\r\n\r\n", wire.PushProtocol, ch)
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		b.Fatal(resp, err)
	}
	resp.Body.Close()
	i := testInit(b)
	data, err := wire.EncodePush(&wire.InitMessage{Epoch: 1, ID: 1, Tracks: i.Tracks, Segment: i.Segment})
	if err != nil {
		b.Fatal(err)
	}
	for _, m := range [][]byte{[]byte(`{"type":"hello","lane":"live","epochs":["0000000000000001"]}`), data} {
		if _, err := conn.Write(message(1, m)); err != nil {
			b.Fatal(err)
		}
	}
	p.msg = message(2, wire.EncodeChunk(&tape(b, 1, 1, 1, size)[0]))
	p.base = bytes.Index(p.msg, []byte("tfdt")) + 8
	go func() { // reads credit
		buf := make([]byte, 4096)
		for {
			n, err := r.Read(buf)
			if err != nil {
				return
			}
			if _, rest, ok := bytes.Cut(buf[:n], []byte(`"credit":`)); ok {
				var v int64
				for _, d := range rest {
					if d < '0' || d > '9' {
						break
					}
					v = 10*v + int64(d-'0')
				}
				p.credit.Store(v)
			}
		}
	}()
	return p
}

// next sends a chunk; every 150th begins a recording, every tenth a GOP.
func (p *publisher) next(b *testing.B) {
	be := binary.BigEndian
	h, i := p.msg[frameHead:], p.seq
	p.seq++
	flags := vms.Flags(0)
	if i%10 == 0 {
		flags |= vms.FlagKey
	}
	if i%150 == 0 {
		flags |= vms.FlagFirst
	}
	be.PutUint16(h[2:], uint16(flags))
	be.PutUint64(h[16:], p.seq)
	be.PutUint32(h[24:], uint32(i/150))
	start := t0.Add(time.Duration(i) * 200 * time.Millisecond).UnixMicro()
	be.PutUint64(h[32:], uint64(start))
	be.PutUint64(h[40:], uint64(start+200_000))
	be.PutUint64(p.msg[p.base:], 1000+i*18000)
	be.PutUint32(h[28:], wire.Checksum(h[wire.ChunkHeaderLen:]))
	size := int64(len(p.msg) - frameHead)
	for p.sent+size > p.credit.Load() {
		time.Sleep(time.Millisecond)
	}
	if _, err := p.conn.Write(p.msg); err != nil {
		b.Fatal(err)
	}
	p.sent += size
}

func benchWorker(b *testing.B) string {
	b.Helper()
	w, err := worker.New(worker.Config{
		ID: "w1", Dir: b.TempDir(), DirBytes: 2 << 30, Store: nowhere{}, NVR: nowhere{}, Log: slog.New(slog.DiscardHandler),
		CheckPush: func(s string) (token.Push, error) {
			return token.Push{Worker: "w1", Channel: vms.ChannelID(s), SID: "sid_1", Hub: "hub_1", Generation: 1, Expires: time.Now().Add(time.Hour)}, nil
		},
		CheckView: newTickets().view,
	})
	if err != nil {
		b.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	srv := &http.Server{Handler: w.PushHandler(), ReadHeaderTimeout: time.Minute}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = w.Run(ctx) })
	wg.Go(func() { _ = srv.Serve(ln) })
	b.Cleanup(func() {
		stop()
		_ = srv.Close()
		wg.Wait()
	})
	return ln.Addr().String()
}

// nowhere stores what it is given at once.
type nowhere struct{}

func (nowhere) Put(_ context.Context, _ vms.Recording, body io.ReadSeeker) error {
	_, err := io.Copy(io.Discard, body)
	return err
}
func (nowhere) Stat(context.Context, string) (vms.Recording, error) {
	return vms.Recording{}, vms.ErrNotFound
}
func (nowhere) Get(context.Context, string) (io.ReadCloser, error)           { return nil, vms.ErrNotFound }
func (nowhere) StreamStarted(context.Context, vms.StreamEvent) error         { return nil }
func (nowhere) StreamEnded(context.Context, vms.StreamEvent) error           { return nil }
func (nowhere) RecordingUploaded(context.Context, vms.Recording) error       { return nil }
func (nowhere) Viewers(context.Context, vms.ChannelID, int) error            { return nil }
func (nowhere) AbandonedParts(context.Context, int) ([]vms.Recording, error) { return nil, nil }
func (nowhere) Parts(context.Context, vms.ChannelID, []vms.Epoch) ([]vms.Recording, error) {
	return nil, nil
}
func (nowhere) Wholes(context.Context, vms.ChannelID, vms.ChunkRange) ([]vms.ChunkRange, error) {
	return nil, nil
}

// BenchmarkChunk is a chunk's way to tmpfs, with its share of a recording of 150
// chunks, of the checksum, and of acknowledgements. Look at the allocations: the
// time is mostly that of one lane waiting for credit, some 20 MB/s.
func BenchmarkChunk(b *testing.B) {
	for _, size := range []int{2_500, 50_000, 200_000} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			p := publish(b, benchWorker(b), "ch", size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				p.next(b)
			}
		})
	}
}

// BenchmarkMemory is what a stream of 2 Mbit/s costs the worker in memory while
// it runs, without what is on tmpfs: 200 of them, each in its first recording.
// Some 10 kB are the sender's.
func BenchmarkMemory(b *testing.B) {
	const streams = 200
	var sum uint64
	for b.Loop() {
		b.StopTimer()
		addr := benchWorker(b)
		runtime.GC()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		ps := make([]*publisher, streams)
		for i := range ps {
			ps[i] = publish(b, addr, fmt.Sprintf("ch%d", i), 50_000)
			if i > 0 {
				ps[i].msg = ps[0].msg
			}
		}
		b.StartTimer()
		for range 50 {
			for _, p := range ps {
				p.next(b)
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		sum += after.HeapInuse + after.StackInuse - before.HeapInuse - before.StackInuse
	}
	b.ReportMetric(float64(sum)/float64(b.N)/streams, "B/stream")
}
