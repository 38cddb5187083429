package uplink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sync/errgroup"

	"github.com/zipato/vms/pkg/problem"
	"github.com/zipato/vms/pkg/retry"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// ErrNotConnected is returned by Send while the session is down. Whoever sends
// says it again after OnUp: the NVR keeps nothing of an old connection.
var ErrNotConnected = errors.New("not connected to the NVR")

// Session is one session with the NVR: of a stream, when SID is set, or the
// control line of the hub. Fill in the fields, then call Run once.
type Session struct {
	URL        string
	SID        vms.SID
	Token      string
	Credential Credential
	Log        *slog.Logger

	// Hello makes the first message of each connection.
	Hello func() *wire.SessionHello
	// OnMessage gets every message but pings, one at a time. It must not block long.
	OnMessage func(wire.SessionMessage)
	// OnState is told when the session comes up (nil) and when it goes down or
	// could not be opened (why).
	OnState func(error)

	// Client dials (NewClient); nil: one that verifies servers at the system's time.
	Client *http.Client

	socket net.Conn // below the connection; of Run and what it starts

	mu  sync.Mutex
	out chan wire.SessionMessage // nil while down
}

// errEncode: a message of ours is none of the protocol.
var errEncode = errors.New("cannot be sent")

// Refused says that the NVR will not have this session, and why: trying again
// with the same sid and token is of no use.
type Refused struct{ *problem.Problem }

func (r Refused) Error() string { return r.Problem.Error() }

// Unwrap returns the problem.
func (r Refused) Unwrap() error { return r.Problem }

// final are the problems that time does not cure.
func final(err error) bool {
	switch problem.TypeOf(err) {
	case wire.ProblemProof, wire.ProblemTokenInvalid, wire.ProblemTokenExpired, wire.ProblemHubUnknown,
		wire.ProblemHubMismatch, wire.ProblemSIDUnknown, wire.ProblemRevoked:
		return true
	}
	return false
}

// Run keeps the session up until ctx ends (nil), or until the NVR refuses it
// for good (Refused).
func (s *Session) Run(ctx context.Context) error {
	b, link := retry.Backoff{Min: 500 * time.Millisecond, Max: 30 * time.Second, Steady: steady}, linkPace()
	for {
		start := time.Now()
		up, err := s.runOnce(ctx)
		if ctx.Err() != nil {
			return nil
		}
		s.OnState(err)
		var p *problem.Problem
		if errors.As(err, &p) && final(err) {
			return Refused{p}
		}
		held := time.Duration(0)
		if up {
			held = time.Since(start)
		}
		next := &b
		if linkDown(err, held) {
			next = &link
		}
		wait := next.Next(held)
		if p != nil {
			wait = max(wait, p.RetryAfter)
		}
		s.Log.Warn("session with the NVR lost", "err", err, "wait", wait)
		if !retry.Sleep(ctx, wait) {
			return nil
		}
	}
}

// runOnce lives as long as one connection. up says whether there was one.
func (s *Session) runOnce(ctx context.Context) (up bool, err error) {
	conn, err := s.dial(ctx)
	if err != nil {
		return false, err
	}
	defer conn.CloseNow()
	conn.SetReadLimit(wire.MaxControl)
	out := make(chan wire.SessionMessage, 64)
	if err := writeMessage(ctx, conn, s.Hello()); err != nil {
		return false, err
	}
	s.setOut(out)
	defer s.setOut(nil)
	s.OnState(nil)
	// Being told to stop ends the writer, after the last words; the writer ends the rest.
	g, gctx := errgroup.WithContext(context.WithoutCancel(ctx))
	g.Go(func() error { return s.read(gctx, conn, out) })
	g.Go(func() error { return s.write(ctx, gctx, conn, out) })
	return true, g.Wait()
}

// write sends what is queued until the connection ends (gctx), or until stop
// ends: then it sends what is left and closes.
func (s *Session) write(stop, gctx context.Context, conn *websocket.Conn, out <-chan wire.SessionMessage) error {
	send := func(m wire.SessionMessage) error {
		err := writeMessage(gctx, conn, m)
		if errors.Is(err, errEncode) {
			// To drop the connection would only bring the same message again.
			s.Log.Error("message not sent", "err", err)
			return nil
		}
		return err
	}
	for {
		select {
		case <-gctx.Done():
			return gctx.Err()
		case m := <-out:
			if err := send(m); err != nil {
				return err
			}
			continue
		case <-stop.Done():
		}
		s.setOut(nil) // who sends from now on hears that it is too late
		for {
			select {
			case m := <-out:
				if err := send(m); err != nil {
					return err
				}
				continue
			default:
			}
			// The library would wait 5 s and more for an NVR that is gone.
			if s.socket != nil {
				late := time.AfterFunc(goodbye, func() { s.socket.Close() })
				defer late.Stop()
			}
			conn.Close(websocket.StatusNormalClosure, "the agent is done")
			return stop.Err()
		}
	}
}

func (s *Session) read(ctx context.Context, conn *websocket.Conn, out chan<- wire.SessionMessage) error {
	for {
		rctx, cancel := context.WithTimeout(ctx, silence)
		typ, data, err := conn.Read(rctx)
		timedOut := rctx.Err() != nil && ctx.Err() == nil
		cancel()
		if err != nil {
			if timedOut {
				return fmt.Errorf("the NVR said nothing for %v", silence)
			}
			return err
		}
		if typ != websocket.MessageText {
			return fmt.Errorf("the NVR sent a binary message")
		}
		m, err := wire.DecodeSession(data)
		if err != nil {
			return fmt.Errorf("message of the NVR: %w", err)
		}
		switch m := m.(type) {
		case *wire.Ping:
			select {
			case out <- &wire.Pong{}:
			default: // the writer is stuck; the NVR will notice
			}
		case *wire.Revoke:
			return Refused{&problem.Problem{Type: wire.ProblemRevoked, Status: 410, Detail: m.Why}}
		default:
			s.OnMessage(m)
		}
	}
}

func writeMessage(ctx context.Context, conn *websocket.Conn, m wire.SessionMessage) error {
	data, err := wire.EncodeSession(m)
	if err != nil {
		return fmt.Errorf("%w: %w", errEncode, err)
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	return conn.Write(ctx, websocket.MessageText, data)
}

func (s *Session) setOut(out chan wire.SessionMessage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out = out
}

// Send queues a message, or returns ErrNotConnected.
func (s *Session) Send(m wire.SessionMessage) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.out == nil {
		return ErrNotConnected
	}
	select {
	case s.out <- m:
		return nil
	default:
		return fmt.Errorf("%w: its queue is full", ErrNotConnected)
	}
}
