package rclone_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"
)

// BenchmarkPut stores a recording of 30 s at 2 Mbit/s. cpu-ms/op is the CPU of
// the rclone processes alone.
func BenchmarkPut(b *testing.B) {
	data := make([]byte, 7_700_000)
	rand.NewChaCha8([32]byte{1}).Read(data)
	cfg := config(b, store(b))
	s := open(b, cfg)
	in := input(data)
	b.SetBytes(int64(len(data)))
	before, ops := cpu(b), 0
	for b.Loop() {
		ops++
		in.Body = bytes.NewReader(data)
		if err := s.Put(b.Context(), fmt.Sprintf("recordings/c/%d.mp4", ops), in); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64((cpu(b)-before).Microseconds())/1000/float64(ops), "cpu-ms/op")
}

// cpu is what ended children have used so far.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_CHILDREN, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
