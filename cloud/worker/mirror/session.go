package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/bluenviron/gortsplib/v5"
	"github.com/bluenviron/gortsplib/v5/pkg/auth"
	"github.com/bluenviron/gortsplib/v5/pkg/base"
	"github.com/bluenviron/gortsplib/v5/pkg/description"
	"github.com/bluenviron/gortsplib/v5/pkg/headers"
	"github.com/pion/rtp"

	"github.com/zipato/vms/pkg/cmaf"
	"github.com/zipato/vms/pkg/vms"
)

const (
	// patience is how long a server may take for an answer, or to take 32 KiB.
	patience = 10 * time.Second
	// aliveEvery is how often a server is told that the session is alive: some end
	// one after 60 s (RFC 2326, 12.37) although packets arrive, such as GStreamer's.
	// Half of what the server says, where that is less.
	aliveEvery = 20 * time.Second
)

// session is one connection to the server, on which a stream is published.
type session struct {
	s      *stream
	url    *base.URL
	init   *vms.Init
	tracks []*track
	client *gortsplib.Client
	line   timeline
	// broken: what comes is of no use before the next keyframe.
	broken bool
	units  []cmaf.Unit // scratch

	gone chan struct{} // closed when the client has ended
	err  error         // why, then

	mu   sync.Mutex // the client's goroutines and ours
	conn *conn
	id   string           // of the RTSP session
	live time.Duration    // how often to say that it is alive
	auth base.HeaderValue // what the server wants to know who we are
	cseq int              // of our own requests
}

// session publishes what waits, as long as init decodes it. up is when the server
// took the stream, zero: it never did. No error means that the session ended in
// order: the stream did for now, or needs another one. ctx ends it early.
func (s *stream) session(ctx context.Context, init *vms.Init, tracks []*track) (up time.Time, err error) {
	u, err := address(s.m.cfg.URL, s.ch)
	if err != nil {
		return time.Time{}, errors.New("the URL cannot be read") // New has checked it
	}
	x := &session{
		s: s, url: u, init: init, tracks: tracks, gone: make(chan struct{}), live: aliveEvery,
		line: timeline{scale: tracks[0].scale},
		// The requests of the client count from 1.
		cseq: 1_000_000,
	}
	x.client = x.newClient()
	if err := x.client.Start(); err != nil {
		return time.Time{}, err
	}
	go func() {
		x.err = x.client.Wait()
		close(x.gone)
	}()
	hung := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(hung)
		x.hurry()
		x.client.Close()
	})
	defer func() {
		if !stop() {
			<-hung
		}
		x.client.Close()
		<-x.gone
	}()
	if err := x.record(); err != nil {
		return time.Time{}, err
	}
	up = time.Now()
	s.m.sessions.Add(1)
	defer s.m.sessions.Add(-1)
	if !s.told {
		s.told = true
		s.log.Info("publishing to the mirror", "server", s.m.server)
	}
	return up, x.publish(ctx)
}

// newClient returns an RTSP client for the server.
func (x *session) newClient() *gortsplib.Client {
	tcp := gortsplib.ProtocolTCP
	note := func(c *conn) *conn {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.conn = c
		return c
	}
	return &gortsplib.Client{
		Scheme: x.url.Scheme, Host: x.url.Host, Protocol: &tcp,
		ReadTimeout: patience, WriteTimeout: patience, WriteQueueSize: writeQueue, UserAgent: "vms-worker",
		DialContext:       noted(dial, note),
		DialTLSContext:    noted(dialTLS(x.s.m.cfg.TLS), note),
		OnResponse:        x.onResponse,
		OnTransportSwitch: func(error) {},
		OnPacketsLost:     func(uint64) {},
		OnDecodeError:     func(error) {},
	}
}

// record asks the server to take the stream.
func (x *session) record() error {
	desc := &description.Session{}
	for _, t := range x.tracks {
		desc.Medias = append(desc.Medias, t.media)
	}
	if _, err := x.client.Announce(x.url, desc); err != nil {
		return fmt.Errorf("announce: %w", err)
	}
	if err := x.client.SetupAll(x.url, desc.Medias); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	if _, err := x.client.Record(); err != nil {
		return fmt.Errorf("record: %w", err)
	}
	return nil
}

// publish sends what waits until there is a reason to end.
func (x *session) publish(ctx context.Context) error {
	idle, alive := time.NewTimer(x.s.m.cfg.Idle), time.NewTicker(x.period())
	defer idle.Stop()
	defer alive.Stop()
	for {
		select {
		case <-alive.C:
			if err := x.keepAlive(); err != nil {
				return fmt.Errorf("keep alive: %w", err)
			}
		default:
		}
		it, ok := x.s.head()
		if !ok {
			select {
			case <-x.s.wake:
			case <-alive.C:
				if err := x.keepAlive(); err != nil {
					return fmt.Errorf("keep alive: %w", err)
				}
			case <-idle.C:
				if x.s.rest() {
					return nil
				}
			case <-x.gone:
				return x.err
			}
			continue
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case it.init == nil:
			x.s.done()
			x.conn.drained(x.gone)
			return nil
		case it.init != x.init && !bytes.Equal(it.init.Segment, x.init.Segment):
			x.s.keep() // for a session of its own
			x.conn.drained(x.gone)
			return nil
		}
		if err := x.send(&it.chunk); err != nil {
			return err
		}
		x.s.done()
		x.s.m.sent.Inc()
		x.s.m.bytes.Add(float64(len(it.chunk.Payload)))
		idle.Reset(x.s.m.cfg.Idle)
	}
}

// send sends one chunk. A chunk that cannot be read is left out, and what comes
// before the next keyframe; an error means that the session is over.
func (x *session) send(c *vms.Chunk) error {
	if x.broken && !c.Flags.Has(vms.FlagKey) {
		return nil
	}
	err := x.read(c)
	if x.broken = err != nil; x.broken {
		x.s.log.Warn("the mirror leaves out what cannot be read, up to the next keyframe", "epoch", c.Epoch.String(), "seq", c.Seq, "err", err)
		return nil
	}
	if len(x.units) == 0 {
		return nil
	}
	base, end := x.span()
	x.line.place(c, base, end)
	for i := range x.units {
		if err := x.sendUnit(c, &x.units[i], base); err != nil {
			return err
		}
	}
	return nil
}

// span is when the samples begin and end, in ticks: those of the first track,
// the picture, if there are any, since the agent's UTC is theirs.
func (x *session) span() (base, end int64) {
	base, end = x.units[0].DTS, x.units[len(x.units)-1].DTS
	seen := false
	for i := range x.units {
		if u := &x.units[i]; u.Track == x.tracks[0].id {
			if !seen {
				base, seen = u.DTS, true
			}
			end = u.DTS + int64(u.Duration)
		}
	}
	return base, end
}

// read reads the samples of c, of all tracks, in the order of their times.
func (x *session) read(c *vms.Chunk) error {
	x.units = x.units[:0]
	f, err := cmaf.ParseFragment(c.Payload)
	if err != nil {
		return err
	}
	for _, t := range x.tracks {
		if x.units, err = f.Units(x.units, c.Payload, t.id); err != nil {
			return err
		}
	}
	slices.SortStableFunc(x.units, byTime)
	return nil
}

// sendUnit sends one sample of c, which begins at base.
func (x *session) sendUnit(c *vms.Chunk, u *cmaf.Unit, base int64) error {
	t := x.tracks[slices.IndexFunc(x.tracks, func(t *track) bool { return t.id == u.Track })]
	packets, err := t.packets(u)
	if err != nil {
		x.broken = true // the rest of the chunk may be whole, and is sent
		return nil
	}
	at := t.rtpTime(u.PTS + x.line.shift)
	utc := c.Start.Add(time.Duration(float64(u.PTS-base) / float64(t.scale) * float64(time.Second)))
	for _, p := range packets {
		p.Timestamp += at
		if err := x.write(t, p, utc); err != nil {
			return err
		}
	}
	return nil
}

// write gives the client one packet as soon as it may have one more.
func (x *session) write(t *track, p *rtp.Packet, utc time.Time) error {
	if !x.conn.next(x.gone) {
		return x.err
	}
	return x.client.WritePacketRTPWithNTP(t.media, p, utc)
}

// onResponse notes what our own requests need.
func (x *session) onResponse(r *base.Response) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if h := r.Header["WWW-Authenticate"]; r.StatusCode == base.StatusUnauthorized && len(h) > 0 && x.auth == nil {
		x.auth = h
	}
	var id headers.Session
	if h := r.Header["Session"]; len(h) > 0 && id.Unmarshal(h) == nil {
		x.id = id.Session
		if id.Timeout != nil && *id.Timeout > 0 && *id.Timeout < 1<<20 {
			x.live = min(aliveEvery, time.Duration(*id.Timeout)*time.Second/2)
		}
	}
}

func (x *session) period() time.Duration {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.live
}

// keepAlive tells the server that the session is alive. The client does so only
// when it plays; whatever the server answers, the client reads and ignores it.
func (x *session) keepAlive() error {
	x.mu.Lock()
	x.cseq++
	r := &base.Request{Method: base.Options, URL: x.url, Header: base.Header{
		"CSeq": base.HeaderValue{strconv.Itoa(x.cseq)}, "Session": base.HeaderValue{x.id}, "User-Agent": base.HeaderValue{"vms-worker"},
	}}
	challenge := x.auth
	x.mu.Unlock()
	if x.url.User != nil && challenge != nil {
		pass, _ := x.url.User.Password()
		a := auth.Sender{WWWAuth: challenge, User: x.url.User.Username(), Pass: pass}
		if err := a.Initialize(); err != nil {
			return err
		}
		a.AddAuthorization(r)
	}
	b, err := r.Marshal()
	if err != nil {
		return err
	}
	if err := x.conn.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	_, err = x.conn.Write(b)
	return err
}

// hurry makes what is being written end soon.
func (x *session) hurry() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.conn != nil {
		x.conn.hurry()
	}
}
