// Package camtest is a camera: a real RTSP server that plays a clip, and that
// can be broken on purpose. It serves the tests and the demo camera.
//
// Every client gets its own playback from the first frame of the clip, and
// loses nothing: a slow client is waited for. So a test may compare what came
// out of the system with the clip, frame by frame. With Options.Shared all
// clients see the same stream, join it where it is, and lose packets when they
// are too slow, as with most cameras. With Options.Live each client has its own
// playback, which loses nothing, of what the camera sees now.
package camtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
)

// Auth says how clients prove that they know the password.
type Auth int

// Ways to authenticate.
const (
	Digest       Auth = iota // Digest with MD5, which every client knows
	DigestSHA256             // Digest with SHA-256; ffmpeg does not know it
	Basic
)

// Options describe a camera. Only Source is required.
type Options struct {
	Addr string // where to listen; "127.0.0.1:0" by default
	Path string // of the URL, without the first slash; "stream" by default

	// Username and Password are asked for when Username is not empty.
	Username, Password string
	Auth               Auth

	Source *Media
	Loop   bool    // play forever; else the camera falls silent after the last frame
	HangUp bool    // without Loop: end the session after the last frame, once it is sent
	Speed  float64 // of playback, 1 by default; timestamps stay those of the clip
	Shared bool    // one stream for all clients instead of a playback for each
	// Live makes playback follow the wall clock from power on: a client joins at
	// the next keyframe, where other clients are too, not at the first one.
	Live bool
	// Stamp writes into each access unit of H264, H265 and AAC its number, so that
	// no two are alike, however often a short clip is played. Decoders ignore it.
	Stamp bool

	// Faults.
	NoVideo       bool          // offer no video track
	NoAudio       bool          // offer no audio track
	NoSDPSets     bool          // parameter sets (VPS, SPS, PPS) only inside the video
	NoInBandSets  bool          // parameter sets only in the SDP
	NoReports     bool          // send no RTCP sender reports: nobody learns the camera's clock
	RedirectTo    string        // answer DESCRIBE with a redirect to this URL
	DropEveryNth  int           // leave out every nth RTP packet of video, as a bad network would
	DescribeDelay time.Duration // think for so long before answering DESCRIBE
	NoPause       bool          // answer PAUSE with 501, as many cameras do
	// JumpOnPlay: the RTP timestamps begin elsewhere when a client goes on after
	// PAUSE, each track's on its own.
	JumpOnPlay bool

	// OnRequest is told of each request, from the connection's goroutine.
	OnRequest func(method, url string)
	// OnSent is told of each access unit that went to a client, from the
	// playback's goroutine.
	OnSent func(Sent)
}

// Camera is the server. Its methods may be called from any goroutine, but
// PowerOff, PowerOn and Close one after the other.
type Camera struct {
	opts Options
	gate gate
	addr atomic.Pointer[net.TCPAddr] // of the first start, kept over power cuts

	plays, refused  atomic.Int64
	pauses          atomic.Int64
	boots, playback atomic.Int64 // counted from the first on

	mu   sync.Mutex
	boot *boot // nil while the power is off
}

// New returns a camera without power.
func New(opts Options) (*Camera, error) {
	opts.Addr = cmp.Or(opts.Addr, "127.0.0.1:0")
	opts.Path = strings.TrimPrefix(cmp.Or(opts.Path, "stream"), "/")
	opts.Speed = cmp.Or(opts.Speed, 1)
	switch {
	case opts.Source == nil:
		return nil, errors.New("camera has no source")
	case opts.Speed < 0:
		return nil, fmt.Errorf("camera cannot play at speed %v", opts.Speed)
	case opts.NoVideo && (opts.NoAudio || len(opts.Source.Audio) == 0):
		return nil, errors.New("camera would have neither picture nor sound")
	case opts.Stamp && opts.Source.Codec == "mjpeg":
		return nil, errors.New("pictures of mjpeg cannot be stamped: RTP carries nothing but the picture")
	case opts.Live && opts.Shared:
		return nil, errors.New("a camera is either live for each client or shared by all")
	}
	return &Camera{opts: opts}, nil
}

// Start returns a camera under power that is gone when t is. Without options it
// loops a clip of H264 and AAC.
func Start(t testing.TB, opts ...Options) *Camera {
	t.Helper()
	var o Options
	switch len(opts) {
	case 0:
		o.Loop = true
	case 1:
		o = opts[0]
	default:
		t.Fatal("camera: more than one set of options")
	}
	if o.Source == nil {
		o.Source = Clip(t, vmstest.ClipSpec{Audio: "aac"})
	}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// Start switches the power on. A port that is taken is an error.
func (c *Camera) Start() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.boot != nil {
		return errors.New("camera is on already")
	}
	addr := c.opts.Addr
	if a := c.addr.Load(); a != nil {
		addr = a.String()
	}
	b, err := start(c, addr)
	if err != nil {
		return fmt.Errorf("start camera on %s: %w", addr, err)
	}
	c.boot = b
	c.addr.Store(b.addr())
	return nil
}

// PowerOn switches the camera on again, on its old address. It has forgotten
// its sessions, and its clock starts anew.
func (c *Camera) PowerOn() error {
	// Between the power cut and now the kernel may have lent the port to an
	// outgoing connection; those are short.
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := c.Start()
		if !errors.Is(err, syscall.EADDRINUSE) || time.Now().After(deadline) {
			return err
		}
	}
}

// PowerOff cuts the power: every socket is reset, nobody says goodbye, new
// connections are refused.
func (c *Camera) PowerOff() { c.stop(true) }

// Close shuts the camera down and waits until nothing of it runs.
func (c *Camera) Close() { c.stop(false) }

func (c *Camera) stop(reset bool) {
	c.mu.Lock()
	b := c.boot
	c.boot = nil
	c.mu.Unlock()
	if b != nil {
		b.stop(reset)
	}
}

// Freeze makes the camera hang: connections stay open and requests are
// answered, but no frame is sent, also not to new clients.
func (c *Camera) Freeze() { c.gate.shut() }

// Thaw ends Freeze. Each playback goes on where it stopped.
func (c *Camera) Thaw() { c.gate.open() }

// Addr returns the camera's host and port.
func (c *Camera) Addr() string {
	if a := c.addr.Load(); a != nil {
		return a.String()
	}
	return c.opts.Addr
}

// URL returns the camera's URL with the credentials in it.
func (c *Camera) URL() string {
	u := url.URL{Scheme: "rtsp", Host: c.Addr(), Path: "/" + c.opts.Path}
	if c.opts.Username != "" {
		u.User = url.UserPassword(c.opts.Username, c.opts.Password)
	}
	return u.String()
}

// Camera returns the camera as a channel names it, by its URL.
func (c *Camera) Camera() vms.Camera { return vms.Camera{URL: c.URL()} }

// Plays counts the sessions that have begun to play since New.
func (c *Camera) Plays() int { return int(c.plays.Load()) }

// Pauses counts the requests to pause that were granted since New.
func (c *Camera) Pauses() int { return int(c.pauses.Load()) }

// Keyframe makes every playback go on with a keyframe at once, the clip's first
// picture: what ONVIF's SetSynchronizationPoint asks of a camera. So does PLAY
// after PAUSE, for its session. Times and Sent.Number go on without a seam.
func (c *Camera) Keyframe() {
	c.mu.Lock()
	b := c.boot
	c.mu.Unlock()
	if b != nil {
		b.keyframe()
	}
}

// Refused counts the requests with wrong credentials since New.
func (c *Camera) Refused() int { return int(c.refused.Load()) }

// gate is open unless it is shut. The zero gate is open.
type gate struct {
	mu     sync.Mutex
	opened chan struct{} // not nil while shut; closed by open
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.opened == nil {
		g.opened = make(chan struct{})
	}
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.opened != nil {
		close(g.opened)
		g.opened = nil
	}
}

func (g *gate) isOpen() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.opened == nil
}

// pass returns at once while the gate is open, else waits. It reports how long
// it waited, and false when ctx ended.
func (g *gate) pass(ctx context.Context) (time.Duration, bool) {
	g.mu.Lock()
	opened := g.opened
	g.mu.Unlock()
	if opened == nil {
		return 0, ctx.Err() == nil
	}
	since := time.Now()
	select {
	case <-opened:
		return time.Since(since), true
	case <-ctx.Done():
		return 0, false
	}
}
