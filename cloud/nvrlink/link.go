package nvrlink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/vms"
)

const (
	// statusWrongKey closes a connection whose other end has another cluster key.
	statusWrongKey websocket.StatusCode = 4401
	reasonWrongKey                      = "another cluster key"

	// maxOrders bounds, in bytes, what waits for a worker to read it: more than it
	// takes to tell where all of its streams went.
	maxOrders = 8 << 20
)

// link is a worker's connection at the NVR. Its reader is the goroutine that
// calls serve; serve starts its writer; all others only queue.
type link struct {
	h      *Handler
	log    *slog.Logger
	remote string
	info   vms.WorkerInfo // as soon as it is proven

	orders  *queue[[]byte] // from the rules, who do not wait
	answers chan []byte
	quit    chan struct{} // closed by stop: the writer empties out and closes
	// idle is closed when nothing of the link is left, before when nothing of the
	// worker's link before it is: what it asked for last may be under way still,
	// and must not be overtaken by what is asked here.
	idle   chan struct{}
	before <-chan struct{}

	ctx  context.Context // of all that the link does; kill ends it
	kill func()          // closes the connection at once, without a goodbye

	asking atomic.Int32   // questions that are not answered
	wg     sync.WaitGroup // of those who answer, and of the writer
	keys   []hex32        // that the worker knows; the reader's

	mu      sync.Mutex
	stopped bool
	code    websocket.StatusCode
	reason  string
}

var _ nvr.WorkerLink = (*link)(nil)

func newLink(h *Handler, remote string) *link {
	ctx, kill := context.WithCancel(context.Background())
	return &link{
		h: h, log: h.log, remote: remote, ctx: ctx, kill: kill,
		orders: newQueue[[]byte](maxOrders), answers: make(chan []byte),
		quit: make(chan struct{}), idle: make(chan struct{}),
	}
}

// serve runs the link until either side ends it.
func (l *link) serve(ws *websocket.Conn) {
	defer ws.CloseNow()
	if err := l.shakeHands(ws); err != nil {
		if l.ctx.Err() == nil {
			l.log.Info("worker not let in", "worker", l.info.ID, "remote", l.remote, "err", err)
		}
		return
	}
	l.log = l.log.With("worker", l.info.ID, "instance", l.info.Instance)
	if err := l.h.cfg.NVR.WorkerUp(l.info, l); err != nil {
		l.log.Warn("worker refused", "remote", l.remote, "err", err)
		l.refuse(ws, err)
		return
	}
	l.before = l.h.succeed(l)
	start := time.Now()
	ctx, cancel := context.WithCancel(l.ctx)
	err := l.greet(ws)
	if err == nil {
		l.wg.Go(func() { l.write(ws) })
		err = l.read(ctx, ws)
	}
	l.h.cfg.NVR.WorkerDown(l.info.ID, l.info.Instance, l)
	cancel()
	l.stop(closeFor(err))
	l.wg.Wait()
	l.log.Info("worker's link over", "after", time.Since(start).Round(time.Millisecond), "err", err)
	<-l.before
}

// shakeHands lets in who has the key.
func (l *link) shakeHands(ws *websocket.Conn) error {
	ctx, cancel := context.WithTimeout(l.ctx, l.h.cfg.HandshakeWithin)
	defer cancel()
	ws.SetReadLimit(maxHello)
	m, first, err := receive(ctx, ws, firstOfWorker)
	if err != nil {
		l.bye(ws, websocket.StatusPolicyViolation, "no hello")
		return err
	}
	hi := m.(*hello) // the table holds no others
	l.info = hi.info()
	key, nonce := l.h.cfg.Key, newNonce()
	if err := send(ctx, ws, &challenge{Nonce: nonce, Proof: prove(key, byNVR, hi.Nonce, nonce, first)}); err != nil {
		return err
	}
	m, _, err = receive(ctx, ws, secondOfWorker)
	switch {
	case websocket.CloseStatus(err) == statusWrongKey:
		l.h.wrongKey(hi.ID, l.remote)
		return errors.New("it does not take our proof")
	case err != nil:
		l.bye(ws, websocket.StatusPolicyViolation, "no proof")
		return err
	case !equal(m.(*proof).Proof, prove(key, byWorker, hi.Nonce, nonce, first)):
		l.h.wrongKey(hi.ID, l.remote)
		l.bye(ws, statusWrongKey, reasonWrongKey)
		return errors.New("its proof is wrong")
	}
	l.h.proven(l)
	ws.SetReadLimit(maxMessage)
	return nil
}

// receive reads one message of a table, and returns its bytes as well.
func receive(ctx context.Context, ws *websocket.Conn, types table) (message, []byte, error) {
	data, err := receiveText(ctx, ws)
	if err != nil {
		return nil, nil, err
	}
	m, _, err := decode(data, types)
	return m, data, err
}

func receiveText(ctx context.Context, ws *websocket.Conn) ([]byte, error) {
	typ, data, err := ws.Read(ctx)
	if err != nil {
		return nil, err
	}
	if typ != websocket.MessageText {
		return nil, fmt.Errorf("%w: it is binary", errMalformed)
	}
	return data, nil
}

func send(ctx context.Context, ws *websocket.Conn, m message) error {
	data, err := encode(m)
	if err != nil {
		return err
	}
	return ws.Write(ctx, websocket.MessageText, data)
}

// bye closes the connection with a reason, and waits only a little for the other side.
func (l *link) bye(ws *websocket.Conn, code websocket.StatusCode, reason string) {
	t := time.AfterFunc(goodbye, l.kill)
	defer t.Stop()
	_ = ws.Close(code, reason) // it may be gone already
}

// refuse tells a worker why the rules do not want it.
func (l *link) refuse(ws *websocket.Conn, why error) {
	ctx, cancel := context.WithTimeout(l.ctx, l.h.cfg.HandshakeWithin)
	defer cancel()
	if send(ctx, ws, &refused{wordOf(why), clip(why.Error())}) == nil {
		l.bye(ws, websocket.StatusPolicyViolation, "refused")
	}
}

// greet sends welcome.
func (l *link) greet(ws *websocket.Conn) error {
	ctx, cancel := context.WithTimeout(l.ctx, l.h.cfg.HandshakeWithin)
	defer cancel()
	ks, err := fromKeys(l.h.cfg.Keys())
	if err != nil {
		return err
	}
	l.keys = ks
	return send(ctx, ws, &welcome{Keys: ks, ServerTime: time.Now()})
}

// read takes the worker's messages until the connection or the protocol breaks.
func (l *link) read(ctx context.Context, ws *websocket.Conn) error {
	for {
		rctx, cancel := context.WithTimeout(ctx, l.h.cfg.Silence)
		data, err := receiveText(rctx, ws)
		silent := errors.Is(rctx.Err(), context.DeadlineExceeded) // ctx has no deadline
		cancel()
		switch {
		case err != nil && silent:
			return fmt.Errorf("nothing heard for %s", l.h.cfg.Silence)
		case err != nil:
			return err
		}
		if err := l.take(ctx, data); err != nil {
			return err
		}
	}
}

// take does what one message asks for. It does not wait: heartbeats come the
// same way.
func (l *link) take(ctx context.Context, data []byte) error {
	m, id, err := decode(data, ofWorker)
	if err != nil && id == 0 {
		return err
	}
	if a, ok := m.(*alive); ok && err == nil {
		l.h.cfg.NVR.WorkerAlive(l.info.ID, l.info.Instance, a.load())
		if err := l.tellKeys(); err != nil {
			return err
		}
		l.order(&heard{})
		return nil
	}
	if l.asking.Add(1) > 2*maxAsking {
		return fmt.Errorf("%w: more than %d questions are not answered", errMalformed, maxAsking)
	}
	l.wg.Go(func() {
		defer l.asking.Add(-1)
		if err != nil {
			// A question that we do not understand is no reason to break the line: its
			// sender would only ask it again.
			l.log.Error("worker asks what cannot be understood", "err", err)
			l.answer(ctx, &answer{}, id, fmt.Errorf("%w: %w", vms.ErrInvalid, err))
			return
		}
		q := m.(question) // the table holds no others
		a, err := l.ask(ctx, q)
		l.answer(ctx, &a, id, err)
	})
	return nil
}

// ask puts a question to the rules.
func (l *link) ask(ctx context.Context, q question) (answer, error) {
	select {
	case <-l.before:
	case <-ctx.Done():
		return answer{}, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, l.h.cfg.AnswerWithin)
	defer cancel()
	return q.ask(ctx, l.h.cfg.NVR, l.info)
}

// answer queues an answer as fast as the worker reads.
func (l *link) answer(ctx context.Context, a *answer, id uint64, err error) {
	if err != nil {
		a = &answer{Problem: wordOf(err), Detail: clip(err.Error())}
	}
	a.setNumber(id)
	for _, p := range a.pages() {
		data, err := encode(p)
		if err != nil {
			l.log.Error("answer cannot be sent", "err", err)
			p = &answer{numbered: p.numbered, Problem: "unavailable", Detail: "The NVR's answer cannot be sent."}
			if data, err = encode(p); err != nil {
				panic("nvrlink: an answer without content cannot be encoded: " + err.Error())
			}
		}
		select {
		case l.answers <- data:
		case <-ctx.Done():
			return
		}
		if p.Problem != "" {
			return
		}
	}
}

// tellKeys tells the worker of other keys than it knows.
func (l *link) tellKeys() error {
	ks, err := fromKeys(l.h.cfg.Keys())
	if err != nil {
		return err
	}
	if !slices.Equal(ks, l.keys) {
		l.keys = ks
		l.order(&keys{ks})
	}
	return nil
}

// order queues a message. A worker that does not read is cut off.
func (l *link) order(m message) {
	data, err := encode(m)
	if err != nil {
		l.log.Error("message not sent", "err", err)
		return
	}
	if !l.orders.push(data, len(data)) {
		l.log.Warn("worker does not read, link cut off")
		l.kill()
	}
}

// write sends what is queued until the link is stopped or killed.
func (l *link) write(ws *websocket.Conn) {
	defer l.kill() // without a writer there is no link
	put := func(data []byte) bool {
		ctx, cancel := context.WithTimeout(l.ctx, l.h.cfg.Silence)
		defer cancel()
		return ws.Write(ctx, websocket.MessageText, data) == nil // the reader says why not
	}
	orders := func() bool {
		for data, ok := l.orders.pop(); ok; data, ok = l.orders.pop() {
			if !put(data) {
				return false
			}
		}
		return true
	}
	for orders() {
		select {
		case <-l.orders.ready:
		case data := <-l.answers:
			if !put(data) {
				return
			}
		case <-l.ctx.Done():
			return
		case <-l.quit:
			if !orders() {
				return
			}
			l.mu.Lock()
			code, reason := l.code, l.reason
			l.mu.Unlock()
			l.bye(ws, code, reason)
			return
		}
	}
}

// Revoke implements nvr.WorkerLink.
func (l *link) Revoke(sids []vms.SID) {
	for part := range slices.Chunk(sids, maxSIDs) {
		l.order(&revoke{part})
	}
}

// Moved implements nvr.WorkerLink.
func (l *link) Moved(ch vms.ChannelID, liveURL string) { l.order(&moved{ch, liveURL}) }

// Drain implements nvr.WorkerLink.
func (l *link) Drain() { l.order(&drain{}) }

// Replace implements nvr.WorkerLink.
func (l *link) Replace() { l.stop(websocket.StatusGoingAway, "replaced by a newer connection") }

// stop has the link closed with a reason, once: soon, even if the worker does not
// read any more.
func (l *link) stop(code websocket.StatusCode, reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped {
		return
	}
	l.stopped, l.code, l.reason = true, code, reason
	close(l.quit)
	t := time.AfterFunc(2*goodbye, l.kill)
	context.AfterFunc(l.ctx, func() { t.Stop() })
}

// closeFor chooses the close code that tells the worker why. Reasons are fixed
// texts: what an error says may be of any length.
func closeFor(err error) (websocket.StatusCode, string) {
	if errors.Is(err, errMalformed) {
		return websocket.StatusPolicyViolation, "malformed message"
	}
	return websocket.StatusInternalError, "try again"
}
