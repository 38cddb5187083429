package uplink

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/problem"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/wire"
)

// TestALinkThatIsDownIsTriedOften: however long it is down, it is tried again
// within 2 s, lane and session alike, and not all the time.
func TestALinkThatIsDownIsTriedOften(t *testing.T) {
	for name, down := range map[string]error{
		"no route": &net.OpError{Op: "dial", Net: "tcp", Err: syscall.EHOSTUNREACH},
		"refused":  &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED},
		"no name":  &net.DNSError{Err: "no such host", Name: "nvr.test", IsNotFound: true},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				var mu sync.Mutex
				var at []time.Time
				client := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
					mu.Lock()
					defer mu.Unlock()
					at = append(at, time.Now())
					return nil, down
				}}}
				as := NewAssigned()
				as.Put(assign(1, "ws://w1.test/push", "ticket"))
				l := lane(t, client, newSource(), as, &log{})
				l.WantWorker = func(wire.WantWorker) {}
				for what, run := range map[string]func(context.Context) error{
					"lane": l.Run,
					"session": (&Session{
						URL: "ws://nvr.test/", Credential: Credential{Hub: "hub_1", Key: keyOf(1)}, Log: vmstest.Log(t), Client: client,
						Hello: func() *wire.SessionHello { return &wire.SessionHello{} }, OnState: func(error) {},
						OnMessage: func(wire.SessionMessage) {},
					}).Run,
				} {
					at = nil
					stop, _ := running(run)
					time.Sleep(10 * time.Minute)
					if err := stop(); err != nil {
						t.Errorf("%s: Run = %v", what, err)
					}
					if n := len(at); n < 300 || n > 1200 {
						t.Errorf("%s: %d dials in ten minutes", what, n)
					}
					for i := 1; i < len(at); i++ {
						if d := at[i].Sub(at[i-1]); d > 2*time.Second || d < 200*time.Millisecond {
							t.Fatalf("%s: dial %d came %v after the one before", what, i, d)
						}
					}
				}
			})
		})
	}
}

// TestWhatIsADownLink: a server that answers is given longer waits.
func TestWhatIsADownLink(t *testing.T) {
	closed := &CloseError{wire.ErrorMessage{Class: wire.ClassRetry, Code: wire.CodeInternal, Message: "x"}}
	for name, tt := range map[string]struct {
		err  error
		held time.Duration
		want bool
	}{
		"not reached":             {errLink{errors.New("dial")}, 0, true},
		"broke after a while":     {&errBroken{errors.New("reset"), nil, true, time.Minute}, time.Minute, true},
		"broke at once":           {&errBroken{errors.New("reset"), nil, true, 0}, 0, false},
		"closed with a reason":    {&errBroken{closed, nil, true, time.Minute}, time.Minute, false},
		"refused":                 {closed, 0, false},
		"revoked":                 {Refused{&problem.Problem{Type: wire.ProblemRevoked}}, time.Minute, false},
		"an answer of a stranger": {vms.ErrUnavailable, 0, false},
	} {
		if got := linkDown(tt.err, tt.held); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}
