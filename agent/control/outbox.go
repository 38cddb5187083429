package control

import "sync"

// Replies that wait for the broker. Each is at most wire.MaxControl long, and
// most are a hundred bytes.
const (
	maxReplies    = 64
	maxReplyBytes = 1 << 20
)

// outbox holds what is to be published: the newest report, and the replies that
// the broker has not acknowledged. It outlives connections.
type outbox struct {
	ring chan struct{} // there may be something new

	mu      sync.Mutex
	report  *outgoing // the newest; nil: none yet
	due     bool      // report is to be published
	replies []*outgoing
	bytes   int  // of replies
	turn    bool // it is the replies' turn
}

// outgoing is one message to be published.
type outgoing struct {
	reply   string // the command's id; empty: a report
	payload []byte
}

func (o *outbox) setReport(payload []byte) {
	o.mu.Lock()
	o.report, o.due = &outgoing{payload: payload}, true
	o.mu.Unlock()
	ring(o.ring)
}

// again has the newest report published once more.
func (o *outbox) again() {
	o.mu.Lock()
	o.due = o.report != nil
	o.mu.Unlock()
	ring(o.ring)
}

// addReply queues a reply, in place of an earlier one to the same command. It
// returns the commands whose replies had to go.
func (o *outbox) addReply(id string, payload []byte) (dropped []string) {
	o.mu.Lock()
	defer ring(o.ring)
	defer o.mu.Unlock()
	o.remove(func(r *outgoing) bool { return r.reply == id })
	o.replies = append(o.replies, &outgoing{reply: id, payload: payload})
	o.bytes += len(payload)
	for len(o.replies) > maxReplies || o.bytes > maxReplyBytes {
		oldest := o.replies[0]
		dropped = append(dropped, oldest.reply)
		o.remove(func(r *outgoing) bool { return r == oldest })
	}
	return dropped
}

// remove takes the first reply that gone picks out of the queue. It runs under mu.
func (o *outbox) remove(gone func(*outgoing) bool) {
	for i, r := range o.replies {
		if gone(r) {
			o.replies = append(o.replies[:i:i], o.replies[i+1:]...)
			o.bytes -= len(r.payload)
			return
		}
	}
}

// next returns what to publish now, nil for nothing. Reports and replies take
// turns, so that neither waits for the other on a slow line.
func (o *outbox) next() *outgoing {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case len(o.replies) > 0 && (o.turn || !o.due):
		o.turn = false
		return o.replies[0]
	case o.due:
		o.turn = true
		return o.report
	}
	return nil
}

// done says that the broker has acknowledged m. What has taken m's place since
// stays.
func (o *outbox) done(m *outgoing) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if m == o.report {
		o.due = false
	}
	o.remove(func(r *outgoing) bool { return r == m })
}

// pending reports whether a report is to be published.
func (o *outbox) pending() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.due
}
