package camtest

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/bluenviron/gortsplib/v5"
	"github.com/bluenviron/gortsplib/v5/pkg/auth"
	"github.com/bluenviron/gortsplib/v5/pkg/base"
	"github.com/bluenviron/gortsplib/v5/pkg/liberrors"
)

// boot is one run of the camera, from power on to power off. It handles the
// server's events.
type boot struct {
	cam    *Camera
	server *gortsplib.Server
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup // the players' goroutines
	number int64          // of this boot, from 0
	since  time.Time      // power on
	ready  chan struct{}  // closed when shared is set
	shared *player        // nil when every client has its own

	mu      sync.Mutex
	conns   map[*gortsplib.ServerConn]bool
	waiting map[*gortsplib.ServerConn]*player // until the answer to PLAY is on its way
	playing map[*player]bool
}

var (
	_ gortsplib.ServerHandlerOnConnOpen         = (*boot)(nil)
	_ gortsplib.ServerHandlerOnConnClose        = (*boot)(nil)
	_ gortsplib.ServerHandlerOnSessionClose     = (*boot)(nil)
	_ gortsplib.ServerHandlerOnRequest          = (*boot)(nil)
	_ gortsplib.ServerHandlerOnResponse         = (*boot)(nil)
	_ gortsplib.ServerHandlerOnDescribe         = (*boot)(nil)
	_ gortsplib.ServerHandlerOnSetup            = (*boot)(nil)
	_ gortsplib.ServerHandlerOnPlay             = (*boot)(nil)
	_ gortsplib.ServerHandlerOnPause            = (*boot)(nil)
	_ gortsplib.ServerHandlerOnStreamWriteError = (*boot)(nil)
)

// start listens on addr and, for a shared stream, begins to play.
func start(cam *Camera, addr string) (*boot, error) {
	b := &boot{
		cam:     cam,
		number:  cam.boots.Add(1) - 1,
		since:   time.Now(),
		ready:   make(chan struct{}),
		conns:   make(map[*gortsplib.ServerConn]bool),
		waiting: make(map[*gortsplib.ServerConn]*player),
		playing: make(map[*player]bool),
	}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	// A large keyframe is some hundred packets at once, and what does not fit
	// into the queue is lost to a client that shares the stream. A player that
	// waits for its client needs no long queue.
	queue := 256
	if cam.opts.Shared {
		queue = 4096
	}
	b.server = &gortsplib.Server{
		Handler:        b,
		RTSPAddress:    addr,
		WriteQueueSize: queue,
		// The players send their own, also before the first packet: the
		// library's come after it and its clock follows the wall, not the clip.
		DisableRTCPSenderReports: true,
		AuthMethods: []auth.VerifyMethod{map[Auth]auth.VerifyMethod{
			Digest:       auth.VerifyMethodDigestMD5,
			DigestSHA256: auth.VerifyMethodDigestSHA256,
			Basic:        auth.VerifyMethodBasic,
		}[cam.opts.Auth]},
	}
	if err := b.server.Start(); err != nil {
		b.cancel()
		return nil, err
	}
	if cam.opts.Shared {
		p, err := newPlayer(b)
		if err != nil {
			close(b.ready)
			b.stop(false)
			return nil, err
		}
		b.shared = p
		b.play(p)
	}
	close(b.ready)
	return b, nil
}

func (b *boot) addr() *net.TCPAddr { return b.server.NetListener().Addr().(*net.TCPAddr) }

// stop ends everything and waits for it. With reset, clients see their
// connection reset instead of closed.
func (b *boot) stop(reset bool) {
	if reset {
		b.mu.Lock()
		for conn := range b.conns {
			if tcp, ok := conn.NetConn().(*net.TCPConn); ok {
				_ = tcp.SetLinger(0) // an error here means that it is closed already
				tcp.Close()
			}
		}
		b.mu.Unlock()
	}
	b.cancel()
	b.server.Close()
	b.wg.Wait()
}

func (b *boot) play(p *player) {
	b.mu.Lock()
	b.playing[p] = true
	b.mu.Unlock()
	b.wg.Go(func() {
		p.run()
		b.mu.Lock()
		delete(b.playing, p)
		b.mu.Unlock()
	})
}

func (b *boot) keyframe() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for p := range b.playing {
		p.again.Store(true)
	}
}

// allowed checks path and credentials. It returns the answer to a request that
// is not allowed.
func (b *boot) allowed(conn *gortsplib.ServerConn, req *base.Request, path string) (*base.Response, error) {
	o := b.cam.opts
	if o.Username != "" && !conn.VerifyCredentials(req, o.Username, o.Password) {
		if req.Header["Authorization"] != nil {
			b.cam.refused.Add(1)
		}
		return &base.Response{StatusCode: base.StatusUnauthorized}, liberrors.ErrServerAuth{}
	}
	if strings.Trim(path, "/") != o.Path {
		return &base.Response{StatusCode: base.StatusNotFound}, fmt.Errorf("no such path: %s", path)
	}
	return nil, nil
}

// OnConnOpen implements gortsplib.ServerHandlerOnConnOpen.
func (b *boot) OnConnOpen(ctx *gortsplib.ServerHandlerOnConnOpenCtx) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conns[ctx.Conn] = true
}

// OnConnClose implements gortsplib.ServerHandlerOnConnClose.
func (b *boot) OnConnClose(ctx *gortsplib.ServerHandlerOnConnCloseCtx) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.conns, ctx.Conn)
	delete(b.waiting, ctx.Conn)
}

// OnSessionClose implements gortsplib.ServerHandlerOnSessionClose.
func (b *boot) OnSessionClose(ctx *gortsplib.ServerHandlerOnSessionCloseCtx) {
	if p := b.own(ctx.Session); p != nil {
		p.cancel()
	}
}

// OnRequest implements gortsplib.ServerHandlerOnRequest.
func (b *boot) OnRequest(_ *gortsplib.ServerConn, req *base.Request) {
	if f := b.cam.opts.OnRequest; f != nil && req.URL != nil {
		f(string(req.Method), (*url.URL)(req.URL).String())
	}
}

// OnDescribe implements gortsplib.ServerHandlerOnDescribe.
func (b *boot) OnDescribe(ctx *gortsplib.ServerHandlerOnDescribeCtx) (*base.Response, *gortsplib.ServerStream, error) {
	if d := b.cam.opts.DescribeDelay; d > 0 {
		select {
		case <-time.After(d):
		case <-b.ctx.Done():
		}
	}
	if res, err := b.allowed(ctx.Conn, ctx.Request, ctx.Path); res != nil {
		return res, nil, err
	}
	if to := b.cam.opts.RedirectTo; to != "" {
		return &base.Response{
			StatusCode: base.StatusFound,
			Header:     base.Header{"Location": base.HeaderValue{to}},
		}, nil, nil
	}
	p, err := b.player(nil)
	if err != nil {
		return &base.Response{StatusCode: base.StatusInternalServerError}, nil, err
	}
	return &base.Response{StatusCode: base.StatusOK}, p.stream, nil
}

// OnSetup implements gortsplib.ServerHandlerOnSetup.
func (b *boot) OnSetup(ctx *gortsplib.ServerHandlerOnSetupCtx) (*base.Response, *gortsplib.ServerStream, error) {
	if res, err := b.allowed(ctx.Conn, ctx.Request, ctx.Path); res != nil {
		return res, nil, err
	}
	p, err := b.player(ctx.Session)
	if err != nil {
		return &base.Response{StatusCode: base.StatusInternalServerError}, nil, err
	}
	return &base.Response{StatusCode: base.StatusOK}, p.stream, nil
}

// OnPlay implements gortsplib.ServerHandlerOnPlay.
func (b *boot) OnPlay(ctx *gortsplib.ServerHandlerOnPlayCtx) (*base.Response, error) {
	if res, err := b.allowed(ctx.Conn, ctx.Request, ctx.Path); res != nil {
		return res, err
	}
	switch p := b.own(ctx.Session); {
	case p == nil: // the picture that all share
		if ctx.Session.UserData() == (paused{}) {
			ctx.Session.SetUserData(nil)
			b.shared.again.Store(true)
		}
	case p.session == nil || p.paused():
		// Packets written now would be lost: the session listens to its stream
		// only after this function.
		p.session, p.conn = ctx.Session, ctx.Conn
		b.mu.Lock()
		b.waiting[ctx.Conn] = p
		b.mu.Unlock()
	}
	b.cam.plays.Add(1)
	return &base.Response{StatusCode: base.StatusOK}, nil
}

// paused is the user data of a session that shares the stream and pauses.
type paused struct{}

// OnPause implements gortsplib.ServerHandlerOnPause.
func (b *boot) OnPause(ctx *gortsplib.ServerHandlerOnPauseCtx) (*base.Response, error) {
	if b.cam.opts.NoPause {
		return &base.Response{StatusCode: base.StatusNotImplemented}, nil
	}
	if res, err := b.allowed(ctx.Conn, ctx.Request, ctx.Path); res != nil {
		return res, err
	}
	if p := b.own(ctx.Session); p == nil {
		ctx.Session.SetUserData(paused{})
	} else if p.session != nil {
		p.pause()
	}
	b.cam.pauses.Add(1)
	return &base.Response{StatusCode: base.StatusOK}, nil
}

// OnResponse implements gortsplib.ServerHandlerOnResponse.
func (b *boot) OnResponse(conn *gortsplib.ServerConn, _ *base.Response) {
	b.mu.Lock()
	p := b.waiting[conn]
	delete(b.waiting, conn)
	b.mu.Unlock()
	switch {
	case p == nil:
	case p.paused():
		p.resume()
	default:
		b.play(p)
	}
}

// OnStreamWriteError implements gortsplib.ServerHandlerOnStreamWriteError. The
// player that is just writing has lost the packet: the session's queue is full.
func (b *boot) OnStreamWriteError(ctx *gortsplib.ServerHandlerOnStreamWriteErrorCtx) {
	if p := b.own(ctx.Session); p != nil {
		p.full = true
	}
}

// player returns the player for a session, a new one for each session unless
// the stream is shared. DESCRIBE comes before there is a session.
func (b *boot) player(session *gortsplib.ServerSession) (*player, error) {
	<-b.ready // the first client may be here before the stream is
	if b.shared != nil {
		return b.shared, nil
	}
	if session != nil {
		if p := b.own(session); p != nil {
			return p, nil
		}
	}
	p, err := newPlayer(b)
	if err == nil && session != nil {
		session.SetUserData(p)
	}
	return p, err
}

// own returns the session's own player, nil when the stream is shared.
func (b *boot) own(session *gortsplib.ServerSession) *player {
	p, _ := session.UserData().(*player)
	return p
}
