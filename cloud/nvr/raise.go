package nvr

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

const (
	// maxRaise bounds the sessions of one transaction.
	maxRaise = 500
	// raiseWithin bounds it, because nobody's own patience does.
	raiseWithin = 10 * time.Second
)

// raises lets the sessions that want a generation at one moment share a
// transaction: after an outage all agents come at once, and each would wait for
// the disk syncs of all others.
type raises struct {
	turn chan struct{} // one place: who holds it runs a batch
	mu   sync.Mutex
	next *raiseBatch
}

// raiseBatch is what one transaction raises. Its answer may be read once done is closed.
type raiseBatch struct {
	sids []vms.SID
	done chan struct{}
	gens []vms.Generation
	err  error
}

func newRaises() raises { return raises{turn: make(chan struct{}, 1)} }

// join adds a session to the batch that is run next.
func (r *raises) join(sid vms.SID) (b *raiseBatch, i int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next == nil || len(r.next.sids) == maxRaise {
		r.next = &raiseBatch{done: make(chan struct{})}
	}
	b = r.next
	b.sids = append(b.sids, sid)
	return b, len(b.sids) - 1
}

// seal keeps others from joining b.
func (r *raises) seal(b *raiseBatch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next == b {
		r.next = nil
	}
}

// raise gives a session the next generation of its channel. A *Refusal: it was revoked.
func (n *NVR) raise(ctx context.Context, sid vms.SID) (vms.Generation, error) {
	b, i := n.raises.join(sid)
	select {
	case <-b.done:
	case n.raises.turn <- struct{}{}:
		n.run(ctx, b)
		<-n.raises.turn
	case <-ctx.Done():
		return 0, ctx.Err() // whoever runs the batch raises this one in vain
	}
	switch {
	case b.err != nil:
		return 0, fmt.Errorf("raise generation of session %s: %w", sid, b.err)
	case b.gens[i] == 0:
		return 0, refuse(wire.ProblemRevoked, vms.ErrRevoked, "This session was revoked.")
	}
	return b.gens[i], nil
}

// run runs a batch, unless somebody did while we waited for our turn. It does
// not end with the caller, who does it for others too.
func (n *NVR) run(ctx context.Context, b *raiseBatch) {
	select {
	case <-b.done:
		return
	default:
	}
	n.raises.seal(b)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), raiseWithin)
	defer cancel()
	b.gens, b.err = n.Store.NextGenerations(ctx, b.sids)
	close(b.done)
}
