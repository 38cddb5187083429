package control

import (
	"errors"
	"fmt"
	"time"

	"github.com/zipato/vms/pkg/retry"
)

const (
	// soon is how long a connection lasts at most to count as closed right away,
	// and closings in a row are as many as make one suspect a second client.
	soon     = 10 * time.Second
	closings = 3
	// longTaken is the longest wait of a client that was taken over. One that holds
	// for twice as long was not: the other one would have been back.
	longTaken = 5 * time.Minute
)

// pace decides how long to wait for the next attempt at one broker.
type pace struct {
	usual, refused, taken retry.Backoff
	quick                 int  // connections in a row that the broker closed soon
	suspect               bool // another client uses this hub's identity
}

func newPace() *pace {
	return &pace{
		usual:   retry.Backoff{Min: 200 * time.Millisecond, Max: time.Minute},
		refused: retry.Backoff{Min: 30 * time.Second, Max: 5 * time.Minute},
		taken:   takenPace(),
	}
}

func takenPace() retry.Backoff { return retry.Backoff{Min: time.Minute, Max: longTaken} }

// doubt returns ErrTakenOver while that is suspected. A client that is connected
// says it then, too: it is so only until the other one comes back.
func (p *pace) doubt() error {
	if p.suspect {
		return ErrTakenOver
	}
	return nil
}

// next returns the wait before the next attempt, and err with what the attempts
// together say. held is how long the connection was up, zero when it never was.
//
// Two clients with one client id put each other out: each that comes back ends
// the other's connection, which comes back at once. When it is seen, they come
// back after minutes, and stay slow until one has gone.
func (p *pace) next(held time.Duration, err error) (time.Duration, error) {
	closed := held > 0 && errors.Is(err, errClosed)
	if closed && held < soon {
		p.quick++
	} else {
		p.quick = 0
	}
	switch {
	case p.quick >= closings:
		p.suspect = true
	case held >= 2*longTaken && p.suspect:
		p.suspect, p.taken = false, takenPace()
	}
	switch {
	case errors.Is(err, ErrRefused):
		return p.refused.Next(held), err
	case p.suspect && closed:
		return p.taken.Next(0), fmt.Errorf("%w (%w)", ErrTakenOver, err)
	}
	return p.usual.Next(held), err
}
