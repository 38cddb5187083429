package control

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	refused := fmt.Errorf("%w: bad password", ErrRefused)
	down := errors.New("connection refused")
	type step struct {
		held     time.Duration
		err      error
		min, max time.Duration
		taken    bool
	}
	for name, steps := range map[string][]step{
		"a broker that is away": {
			{0, down, 200 * time.Millisecond, 400 * time.Millisecond, false},
			{0, down, 200 * time.Millisecond, 800 * time.Millisecond, false},
			{0, down, 200 * time.Millisecond, 1600 * time.Millisecond, false},
		},
		"a connection that held starts over": {
			{0, down, 200 * time.Millisecond, 400 * time.Millisecond, false},
			{0, down, 200 * time.Millisecond, 800 * time.Millisecond, false},
			{time.Hour, errClosed, 200 * time.Millisecond, 400 * time.Millisecond, false},
		},
		"a wrong password": {
			{0, refused, 30 * time.Second, time.Minute, false},
			{0, refused, 30 * time.Second, 2 * time.Minute, false},
			{0, refused, 30 * time.Second, 4 * time.Minute, false},
			{0, refused, 30 * time.Second, 5 * time.Minute, false},
			{0, refused, 30 * time.Second, 5 * time.Minute, false},
		},
		"taken over": {
			{time.Second, errClosed, 200 * time.Millisecond, 400 * time.Millisecond, false},
			{time.Second, errClosed, 200 * time.Millisecond, 800 * time.Millisecond, false},
			{time.Second, errClosed, time.Minute, 2 * time.Minute, true},
			// The other one comes back after a minute or so, again and again.
			{2 * time.Minute, errClosed, time.Minute, 4 * time.Minute, true},
			{4 * time.Minute, errClosed, time.Minute, 5 * time.Minute, true},
			{5 * time.Minute, errClosed, time.Minute, 5 * time.Minute, true},
			// It has gone.
			{11 * time.Minute, errClosed, 200 * time.Millisecond, 400 * time.Millisecond, false},
			{time.Second, errClosed, 200 * time.Millisecond, 800 * time.Millisecond, false},
			{time.Second, errClosed, 200 * time.Millisecond, 1600 * time.Millisecond, false},
			{time.Second, errClosed, time.Minute, 2 * time.Minute, true},
		},
		"a broker that falls over is not taken for that": {
			{time.Second, errClosed, 200 * time.Millisecond, 400 * time.Millisecond, false},
			{0, down, 200 * time.Millisecond, 800 * time.Millisecond, false},
			{time.Second, errClosed, 200 * time.Millisecond, 1600 * time.Millisecond, false},
			{time.Second, errClosed, 200 * time.Millisecond, 3200 * time.Millisecond, false},
			{0, down, 200 * time.Millisecond, 6400 * time.Millisecond, false},
			{time.Second, errClosed, 200 * time.Millisecond, 12800 * time.Millisecond, false},
		},
		"nor a line that dies": {
			{time.Second, errSilent, 200 * time.Millisecond, 400 * time.Millisecond, false},
			{time.Second, errSilent, 200 * time.Millisecond, 800 * time.Millisecond, false},
			{time.Second, errSilent, 200 * time.Millisecond, 1600 * time.Millisecond, false},
		},
	} {
		for range 20 { // the waits are drawn
			p := newPace()
			for i, s := range steps {
				wait, err := p.next(s.held, s.err)
				if wait < s.min || wait > s.max {
					t.Errorf("%s: wait %d is %v, want %v to %v", name, i, wait, s.min, s.max)
				}
				if taken := errors.Is(err, ErrTakenOver); taken != s.taken || taken != errors.Is(p.doubt(), ErrTakenOver) && s.taken {
					t.Errorf("%s: after %d says %v", name, i, err)
				}
				if !errors.Is(err, s.err) {
					t.Errorf("%s: %v hides %v", name, err, s.err)
				}
			}
		}
	}
}
