package spool

import (
	"sync"
	"testing"
)

// TestReserve: what is reserved is of the one budget, at most a third of it, and
// footage that is recorded still gives way only as far as it must.
func TestReserve(t *testing.T) {
	st, err := Open(Config{RAM: 300 << 10})
	if err != nil {
		t.Fatal(err)
	}
	s := st.Spool("ch_1")
	if !s.Reserve(90 << 10) {
		t.Fatal("90 KB of 300 are refused")
	}
	if s.Reserve(20 << 10) {
		t.Error("110 KB of 300 are granted")
	}
	if got := st.Stats().RAM; got != 90<<10 {
		t.Errorf("%d bytes of RAM are used, want those that are reserved", got)
	}
	s.Reserve(-90 << 10)
	if got := st.Stats().RAM; got != 0 {
		t.Errorf("%d bytes of RAM are used when all is free again", got)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				if s.Reserve(60 << 10) {
					if got := st.Stats().RAM; got > 300<<10/3 {
						t.Errorf("%d bytes are reserved", got)
					}
					s.Reserve(-60 << 10)
				}
			}
		})
	}
	wg.Wait()
	if got := st.Stats().RAM; got != 0 {
		t.Errorf("%d bytes of RAM are used when all is free again", got)
	}
}
