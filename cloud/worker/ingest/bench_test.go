package ingest

import (
	"fmt"
	"io"
	"testing"

	"github.com/zipato/vms/pkg/wire"
)

// BenchmarkChunk is what ingest itself costs, over TCP, with the sender's half of
// the system calls: nothing is allocated for a chunk.
func BenchmarkChunk(b *testing.B) {
	for _, n := range []int{2_500, 50_000, 200_000, 4_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			l := &counter{came: make(chan int)}
			s, addr := serve(b, l)
			c := hello(b, addr)
			go func() { _, _ = io.Copy(io.Discard, c.r) }()
			msg := frame(2, wire.EncodeChunk(piece(n)))
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				c.write(b, msg)
				<-l.came
			}
			b.StopTimer()
			_ = c.conn.Close()
			s.Shutdown(Refuse(wire.ClassReassign, wire.CodeDraining, "done"))
		})
	}
}
