// Package camera pulls one camera and keeps pulling: it finds the stream behind
// an address, logs in, reads access units over RTSP, and comes back after every
// interruption until it is told to stop. What it does not do is decode, mux or
// buffer: each access unit goes to the Sink the moment it is complete.
package camera

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/zipato/vms/pkg/retry"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// DefaultTimeout is how long a camera may take to answer, and how long it may
// send no picture before it is taken for hung.
const DefaultTimeout = 10 * time.Second

// VideoFormat is what the camera said about its video before the first frame.
type VideoFormat struct {
	Codec string // "h264", "h265" or "mjpeg"
	// VPS (H265 only), SPS and PPS are NAL units without start code. They are
	// nil where the camera sends them only inside the video, and those inside
	// the video prevail anyway. MJPEG has none; its size stands in each picture.
	VPS, SPS, PPS []byte
}

// AudioFormat is what the camera said about its sound.
type AudioFormat struct {
	Codec  string // "aac", "pcma" or "pcmu" (G711 A-law or mu-law), or "lpcm"
	Config []byte // of AAC: AudioSpecificConfig, ISO/IEC 14496-3
	// SampleRate is also the clock of Sink.Audio's pts.
	SampleRate int
	Channels   int
	BitDepth   int // of lpcm: 8, 16 or 24
}

// Sink takes what the camera sends. Its methods are called one at a time, Video
// and Audio from the goroutine that reads the camera's socket: they must not
// block, or the connection stalls and the camera drops frames. Byte slices
// belong to the sink; nobody writes to them afterwards.
//
// A session is Open, any number of Video and Audio, Lost. Sessions do not
// overlap. Times of different sessions have nothing to do with each other.
//
// # Time
//
// Both tracks count from one zero: pts/90000 of Video and pts/SampleRate of
// Audio are seconds on the same axis, so that a muxer may interleave them. The
// zero is the first frame of whichever track came first; times of the other may
// be negative. Inside a track the differences are exactly the camera's (RTP
// timestamps, unwrapped to 64 bits; they jump where the camera's clock jumps,
// unless it does so over a pause that AskKeyframe made).
// RTP gives the tracks unrelated random origins. How they are brought together
// depends on what is known when the second track begins: if the camera's
// reports (RTCP) for both have come, by its clock, exactly; else by the moment
// of arrival, which is off by the difference of the tracks' delays and stays so
// for the session. With B-frames pts is not monotone: access units come in
// decode order, and RTP carries no decode times.
type Sink interface {
	// Open begins a session. a is nil when the camera offers no sound that can
	// be recorded.
	Open(v VideoFormat, a *AudioFormat)
	// Video is one access unit, the NAL units without start codes, or one JPEG
	// file. The first of a session need not be a keyframe. Where packets were lost
	// the access unit may be incomplete (a JPEG file: missing); Stats counts that.
	//
	// pts is in ticks of 90 kHz; ntp is the camera's own idea of UTC for this
	// frame, zero until the camera has told it; arrival is when the last packet
	// came, with a monotonic reading.
	Video(pts int64, ntp, arrival time.Time, au [][]byte)
	// Audio is one access unit of AAC, without ADTS, or the samples of one RTP
	// packet: G711 one byte each, LPCM of 8 bits without a sign, of 16 and 24 with
	// one and big endian (RFC 3551, section 4.5), the channels in turns and always
	// whole. pts counts samples, that is ticks of AudioFormat.SampleRate.
	Audio(pts int64, ntp, arrival time.Time, au []byte)
	// Lost ends the session. err says why; nil means that Run is about to return.
	Lost(err error)
}

// State is how the camera is. State is one of wire.StateStreaming (frames
// come), StateNoCamera, StateBadCamera and StateAuthFailed; Problem is a
// sentence for people that names the camera and the remedy, empty while
// streaming.
type State struct {
	State   string
	Problem string
}

// Stats counts over all sessions.
type Stats struct {
	Sessions     int64 // that brought at least one video frame
	VideoFrames  int64
	AudioFrames  int64
	PacketsLost  int64 // RTP packets missing in the numbering
	DecodeErrors int64 // RTP packets that made no sense, or belonged to a broken frame
}

// Source pulls one camera. Camera, Sink and Log must be set; nothing may be
// changed once Run is called.
type Source struct {
	Camera vms.Camera
	Sink   Sink
	Log    *slog.Logger

	// OnState is told of every change, from Run's goroutine.
	OnState func(State)
	// Known is what Remember was told last time: it is tried first.
	Known string
	// Remember is told which of the common paths is the right one, when the
	// camera's owner named none. It is a template without credentials.
	Remember func(template string)

	// ONVIFPort is where the camera takes ONVIF's requests, 80 when zero.
	ONVIFPort int
	// TLS is for rtsps; nil means the system's roots and full verification.
	TLS *tls.Config
	// Timeout is DefaultTimeout when zero.
	Timeout time.Duration
	// Backoff spaces the attempts after an outage, AuthBackoff those after a
	// refused password: cameras lock accounts that are tried too often.
	Backoff, AuthBackoff retry.Backoff

	sessions, videoFrames, audioFrames, packetsLost, decodeErrors atomic.Int64

	playing atomic.Pointer[session] // nil between sessions
}

// Stats returns the counters. It may be called at any time.
func (s *Source) Stats() Stats {
	return Stats{
		Sessions:     s.sessions.Load(),
		VideoFrames:  s.videoFrames.Load(),
		AudioFrames:  s.audioFrames.Load(),
		PacketsLost:  s.packetsLost.Load(),
		DecodeErrors: s.decodeErrors.Load(),
	}
}

// Run pulls the camera until ctx ends, and then returns nil. It returns an error
// only for a Camera that cannot be an address (vms.ErrInvalid): no retry would
// help. When it returns, nothing that it started is alive.
func (s *Source) Run(ctx context.Context) error {
	addresses, err := Resolve(s.Camera)
	if err != nil {
		return err
	}
	r := &run{
		Source: s, addresses: addresses, known: s.Known,
		timeout: cmp.Or(s.Timeout, DefaultTimeout),
		log:     s.Log.With("camera", addresses[0].Host()),
	}
	backoff, authBackoff := s.backoffs()
	worked := false // this name and password were good in the last session
	var wait time.Duration
	for {
		held, err := r.pull(ctx)
		if ctx.Err() != nil {
			return nil
		}
		state := r.describe(err)
		refused := state.State == wire.StateAuthFailed
		if held > 0 {
			worked = true
			_, authBackoff = s.backoffs()
		}
		if refused && !worked {
			wait = authBackoff.Next(0)
		} else {
			wait = backoff.Next(held)
		}
		if refused {
			// A camera that boots may refuse once what it accepted before; the
			// second refusal in a row counts.
			worked = false
		}
		r.failed(state, err, wait)
		if !retry.Sleep(ctx, wait) {
			return nil
		}
	}
}

func (s *Source) backoffs() (link, auth retry.Backoff) {
	link, auth = s.Backoff, s.AuthBackoff
	if link.Min == 0 && link.Max == 0 {
		link = retry.Backoff{Min: time.Second, Max: 30 * time.Second, Steady: 30 * time.Second}
	}
	if auth.Min == 0 && auth.Max == 0 {
		auth = retry.Backoff{Min: 30 * time.Second, Max: 10 * time.Minute}
	}
	return link, auth
}

// run is the state of one Run.
type run struct {
	*Source
	timeout   time.Duration
	addresses []Address
	known     string
	state     State
	log       *slog.Logger

	// Of the goroutine that asks for keyframes.
	noONVIF, noPause bool // asking is of no use, or may do harm
	noKeyframe       bool // said already
}

// pull tries the addresses in order until one of them plays, and plays it to
// its end. held is how long after the first request the last frame came.
func (r *run) pull(ctx context.Context) (held time.Duration, err error) {
	var best error // the most telling of the failures
	for _, a := range r.inOrder() {
		held, err := r.play(ctx, a)
		if held > 0 || ctx.Err() != nil || !tryNext(err) {
			return held, err
		}
		if best == nil || errors.As(err, new(*noVideoError)) {
			best = err
		}
	}
	return 0, best
}

// inOrder puts what worked before first.
func (r *run) inOrder() []Address {
	for i, a := range r.addresses {
		if i > 0 && a.Template != "" && a.Template == r.known {
			ordered := []Address{a}
			ordered = append(ordered, r.addresses[:i]...)
			return append(ordered, r.addresses[i+1:]...)
		}
	}
	return r.addresses
}

// play runs one session and closes it for the sink.
func (r *run) play(ctx context.Context, a Address) (time.Duration, error) {
	se := &session{run: r, address: a, begin: time.Now(), first: make(chan struct{}), asked: make(chan struct{}, 1), broken: make(chan error, 1)}
	err := se.play(ctx)
	if err != nil {
		err = a.redact(err)
	}
	if se.opened {
		if ctx.Err() != nil {
			r.Sink.Lost(nil)
		} else {
			r.Sink.Lost(err)
		}
	}
	return time.Duration(se.last.Load()), err
}

// streaming notes the first frame of a session.
func (r *run) streaming(a Address) {
	r.sessions.Add(1)
	r.log.Info("camera streams")
	r.set(State{State: wire.StateStreaming})
	if a.Template != "" && a.Template != r.known {
		r.known = a.Template
		if r.Remember != nil {
			r.Remember(a.Template)
		}
	}
}

// failed notes the end of an attempt. A camera that stays away is reported once.
func (r *run) failed(s State, err error, wait time.Duration) {
	level := slog.LevelWarn
	if s == r.state {
		level = slog.LevelDebug
	}
	r.log.Log(context.Background(), level, "camera failed", "state", s.State, "err", err, "wait", wait)
	r.set(s)
}

func (r *run) set(s State) {
	if s == r.state {
		return
	}
	r.state = s
	if r.OnState != nil {
		r.OnState(s)
	}
}
