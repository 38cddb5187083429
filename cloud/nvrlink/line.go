package nvrlink

import (
	"context"
	"fmt"
	"sync"

	"github.com/zipato/vms/pkg/vms"
)

// line is one link at the worker: the questions that are under way on it.
type line struct {
	out   chan []byte
	down  chan struct{} // closed when the link is over
	slots chan struct{} // one is taken for each question that is not answered

	mu    sync.Mutex
	last  uint64
	calls map[uint64]*call
}

// call is a question under way.
type call struct {
	done   chan struct{} // closed when answer is complete
	answer answer
	left   bool // nobody waits any more
}

// errDown: what was asked may have been heard or not.
var errDown = fmt.Errorf("%w: the link to the NVR broke", vms.ErrUnavailable)

func newLine() *line {
	return &line{
		out: make(chan []byte, maxAsking), down: make(chan struct{}),
		slots: make(chan struct{}, maxAsking), calls: make(map[uint64]*call),
	}
}

// ask sends q, which gets a number, and waits for the answer, the link's end, or ctx.
func (l *line) ask(ctx context.Context, q question) (answer, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.down:
		return answer{}, errDown
	case <-ctx.Done():
		return answer{}, ctx.Err()
	}
	id, c := l.open()
	q.setNumber(id)
	data, err := encode(q)
	if err != nil {
		l.close(id)
		return answer{}, err
	}
	select {
	case l.out <- data:
	case <-l.down:
		return answer{}, errDown
	case <-ctx.Done():
		l.close(id)
		return answer{}, ctx.Err()
	}
	select {
	case <-c.done:
	case <-l.down:
		return answer{}, errDown
	case <-ctx.Done():
		// The NVR is at it still: the place is free when it has answered.
		l.leave(c)
		return answer{}, ctx.Err()
	}
	if c.answer.Problem != "" {
		return answer{}, errorOf(c.answer.Problem, clip(c.answer.Detail))
	}
	return c.answer, nil
}

func (l *line) open() (uint64, *call) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	c := &call{done: make(chan struct{})}
	l.calls[l.last] = c
	return l.last, c
}

// close forgets a question that was never sent.
func (l *line) close(id uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forget(id)
}

// forget frees the place of a question. l.mu is held.
func (l *line) forget(id uint64) {
	delete(l.calls, id)
	<-l.slots
}

func (l *line) leave(c *call) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.left, c.answer = true, answer{}
}

// answered takes one message of an answer.
func (l *line) answered(m *answer) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.calls[m.ID]
	if c == nil {
		return fmt.Errorf("%w: answer to no question", errMalformed)
	}
	if !c.left {
		a := &c.answer
		if len(a.Recordings)+len(m.Recordings)+len(a.Ranges)+len(m.Ranges) > maxAnswer {
			return fmt.Errorf("%w: an answer of more than %d items", errMalformed, maxAnswer)
		}
		a.Recordings = append(a.Recordings, m.Recordings...)
		a.Ranges = append(a.Ranges, m.Ranges...)
		a.Problem, a.Detail = m.Problem, m.Detail
	}
	if m.More {
		return nil
	}
	l.forget(m.ID)
	close(c.done)
	return nil
}
