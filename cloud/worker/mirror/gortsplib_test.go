package mirror_test

import (
	"crypto/tls"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bluenviron/gortsplib/v5"
	"github.com/bluenviron/gortsplib/v5/pkg/base"
	"github.com/pion/rtp"

	"github.com/zipato/vms/cloud/worker/mirror"
	"github.com/zipato/vms/pkg/vmstest"
)

// keyed takes one publisher with a password, as MediaMTX does, on the server that MediaMTX is built on.
type keyed struct {
	user, pass string
	packets    [2]atomic.Int64
	closed     atomic.Int64
}

var _ interface {
	gortsplib.ServerHandlerOnAnnounce
	gortsplib.ServerHandlerOnSetup
	gortsplib.ServerHandlerOnRecord
	gortsplib.ServerHandlerOnSessionClose
} = (*keyed)(nil)

func (s *keyed) OnAnnounce(ctx *gortsplib.ServerHandlerOnAnnounceCtx) (*base.Response, error) {
	if !ctx.Conn.VerifyCredentials(ctx.Request, s.user, s.pass) || ctx.Path != "/live/cam" {
		return &base.Response{StatusCode: base.StatusUnauthorized, Header: base.Header{"WWW-Authenticate": base.HeaderValue{`Basic realm="x"`}}}, nil
	}
	return &base.Response{StatusCode: base.StatusOK}, nil
}

func (s *keyed) OnSetup(*gortsplib.ServerHandlerOnSetupCtx) (*base.Response, *gortsplib.ServerStream, error) {
	return &base.Response{StatusCode: base.StatusOK}, nil, nil
}

func (s *keyed) OnRecord(ctx *gortsplib.ServerHandlerOnRecordCtx) (*base.Response, error) {
	for i, m := range ctx.Session.AnnouncedDescription().Medias {
		ctx.Session.OnPacketRTP(m, m.Formats[0], func(*rtp.Packet) { s.packets[i].Add(1) })
	}
	return &base.Response{StatusCode: base.StatusOK}, nil
}

func (s *keyed) OnSessionClose(*gortsplib.ServerHandlerOnSessionCloseCtx) { s.closed.Add(1) }

// TestPublishToGortsplibServer, which MediaMTX is built on, in the clear and in TLS.
func TestPublishToGortsplibServer(t *testing.T) {
	web := httptest.NewTLSServer(http.NotFoundHandler()) // has a certificate for 127.0.0.1
	trust := web.Client().Transport.(*http.Transport).TLSClientConfig
	certificates := web.TLS.Certificates
	web.Close()
	f := makeFeed(t, vmstest.ClipSpec{GOP: 25, BFrames: 2, Duration: 1920 * time.Millisecond, Audio: "aac"})
	for scheme, conf := range map[string]*tls.Config{"rtsp": nil, "rtsps": {Certificates: certificates, MinVersion: tls.VersionTLS12}} {
		t.Run(scheme, func(t *testing.T) {
			vmstest.NoLeaks(t)
			h := &keyed{user: "me", pass: "a/b c"}
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			s := &gortsplib.Server{
				Handler: h, RTSPAddress: ln.Addr().String(), TLSConfig: conf,
				Listen: func(string, string) (net.Listener, error) { return ln, nil },
			}
			if err := s.Start(); err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			m := start(t, mirror.Config{URL: scheme + "://me:a%2Fb%20c@" + ln.Addr().String() + "/live/{channel}", TLS: trust, Retry: soon})
			f.all(m, "cam")
			waitFor(t, "sound", func() bool { return h.packets[1].Load() == 91 })
			waitFor(t, "pictures", func() bool { return h.packets[0].Load() > 48 })
			m.Offline("cam", "ended")
			waitFor(t, "the end", func() bool { return h.closed.Load() == 1 })
		})
	}
	t.Run("of another", func(t *testing.T) {
		log := &lines{}
		ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: certificates, MinVersion: tls.VersionTLS12})
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				_ = c.(*tls.Conn).Handshake()
				c.Close()
			}
		}()
		m := start(t, mirror.Config{URL: "rtsps://" + ln.Addr().String() + "/{channel}", Log: log.logger()})
		f.chunk(m, "cam", 0)
		waitFor(t, "a line", func() bool { return len(log.with("cannot publish")) > 0 })
		if !strings.Contains(log.String(), "certificate") {
			t.Errorf("log %s", log)
		}
	})
}

// BenchmarkMirror is what one chunk of a stream of 2 Mbit/s costs, of 0.2 s:
// from Publish to the server's socket, which reads all of it.
func BenchmarkMirror(b *testing.B) {
	f, k := small(b), startTaker(b)
	k.count.Store(true)
	m := start(b, mirror.Config{URL: k.url("")})
	payload := pad(b, f.chunks[0].Payload, 50<<10-len(f.chunks[0].Payload))
	b.ReportAllocs()
	b.SetBytes(int64(len(payload)))
	b.ResetTimer()
	for i := range b.N {
		c := f.chunks[0]
		c.Payload, c.Seq = payload, uint64(i+1)
		m.Publish("cam", f.init, &c)
		for m.Queued() > 1<<20 {
			time.Sleep(50 * time.Microsecond)
		}
	}
	waitFor(b, "the end", func() bool { return m.Queued() == 0 })
}
