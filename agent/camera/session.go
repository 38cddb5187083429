package camera

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bluenviron/gortsplib/v5"
	"github.com/pion/rtcp"
	"github.com/pion/rtp"
)

// session is one connection to the camera, from DESCRIBE to the end.
type session struct {
	*run
	address Address
	begin   time.Time
	opened  bool // the sink knows of the session

	first chan struct{} // closed with the first video frame
	// last is when the last video frame came, as nanoseconds since the first
	// request; 0 before.
	last atomic.Int64

	asked   chan struct{} // for a keyframe; holds one
	key     atomic.Int64  // when the last keyframe came, as last
	resumes atomic.Int32  // how often the camera was paused and plays again
	broken  chan error    // it does not play again; holds one

	// Of the goroutine that reads the socket.
	video, audio trackClock
}

// play runs the session and returns why it ended. When it returns, the
// connection is closed and the sink gets nothing more.
func (se *session) play(ctx context.Context) error {
	client := se.client()
	if err := client.Start(); err != nil {
		return fmt.Errorf("start client: %w", err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer client.Close()
	ended := make(chan error, 1)
	wg.Go(func() { ended <- client.Wait() })
	// Requests know no context; closing the client ends them.
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { defer close(closed); client.Close() })
	defer func() {
		if !stop() {
			<-closed
		}
	}()

	if err := se.start(client); err != nil {
		return err
	}
	asking, enough := context.WithCancel(ctx)
	defer enough()
	wg.Go(func() { se.askKeyframes(asking, client) })
	se.playing.Store(se)
	defer se.playing.Store(nil)
	return se.watch(ctx, ended)
}

func (se *session) client() *gortsplib.Client {
	tcp := gortsplib.ProtocolTCP
	return &gortsplib.Client{
		Scheme:   se.address.url.Scheme,
		Host:     se.address.url.Host,
		Protocol: &tcp,
		// The library reckons in whole seconds; watch is the one that is exact.
		ReadTimeout:  max(se.timeout, 3*time.Second),
		WriteTimeout: max(se.timeout, 3*time.Second),
		TLSConfig:    se.TLS,
		UserAgent:    "vms-agent",
		DialContext:  se.dial,
		OnPacketsLost: func(n uint64) {
			se.packetsLost.Add(int64(n))
		},
		OnDecodeError:     func(error) { se.decodeErrors.Add(1) },
		OnTransportSwitch: func(error) {}, // TCP from the start: never called
	}
}

// dial connects to the camera and nowhere else: after a redirect the library
// would offer the camera's password to whatever host the camera names.
func (se *session) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil || host != se.address.Host() {
		return nil, elsewhereError{}
	}
	return (&net.Dialer{}).DialContext(ctx, network, addr)
}

// start brings the camera to play.
func (se *session) start(client *gortsplib.Client) error {
	desc, _, err := client.Describe(se.address.url)
	if err != nil {
		return fmt.Errorf("describe: %w", err)
	}
	video, err := chooseVideo(desc)
	if err != nil {
		return fmt.Errorf("describe: %w", err)
	}
	if _, err := client.Setup(desc.BaseURL, video.media, 0, 0); err != nil {
		return fmt.Errorf("set up video: %w", err)
	}
	audio := chooseAudio(desc)
	if audio != nil {
		// A picture without sound is better than none.
		if _, err := client.Setup(desc.BaseURL, audio.media, 0, 0); err != nil {
			se.log.Warn("camera refuses its sound", "err", se.address.redact(err))
			audio = nil
		}
	}
	se.readVideo(client, video, audio != nil)
	var format *AudioFormat
	if audio != nil {
		se.readAudio(client, audio)
		format = &audio.AudioFormat
	}
	se.opened = true
	se.Sink.Open(video.VideoFormat, format)
	if _, err := client.Play(nil); err != nil {
		return fmt.Errorf("play: %w", err)
	}
	return nil
}

func (se *session) readVideo(client *gortsplib.Client, t *videoTrack, sound bool) {
	se.video.rate = videoRate
	var other *trackClock
	if sound {
		other = &se.audio
	}
	out := func(ts uint32, au [][]byte) {
		now := time.Now()
		pts, utc := se.video.frame(ts, now, other)
		since := int64(now.Sub(se.begin))
		if isKeyframe(t.Codec, au) {
			se.key.Store(since)
		}
		se.Sink.Video(pts, utc, now, au)
		se.videoFrames.Add(1)
		if se.last.Swap(since) == 0 {
			close(se.first)
		}
	}
	var units depacketizer = &assembler{nalus: t.nalus, out: out}
	if t.Codec == "mjpeg" {
		units = &pictures{out: out}
	}
	resumes := int32(0)
	client.OnPacketRTP(t.media, t.forma, func(pkt *rtp.Packet) {
		if n := se.resumes.Load(); n != resumes {
			resumes = n
			se.video.resume()
			if units.reset() {
				se.decodeErrors.Add(1)
			}
		}
		if err := units.push(pkt); err != nil {
			se.decodeErrors.Add(1)
		}
	})
	client.OnPacketRTCP(t.media, reports(&se.video))
}

// depacketizer makes access units of RTP packets.
type depacketizer interface {
	push(*rtp.Packet) error
	reset() (cut bool)
}

var _, _ depacketizer = (*assembler)(nil), (*pictures)(nil)

func (se *session) readAudio(client *gortsplib.Client, t *audioTrack) {
	se.audio.rate = int64(t.SampleRate)
	resumes := int32(0)
	client.OnPacketRTP(t.media, t.forma, func(pkt *rtp.Packet) {
		if n := se.resumes.Load(); n != resumes {
			resumes = n
			se.audio.resume()
		}
		now := time.Now()
		units, err := t.units(pkt)
		if !expected(err) {
			se.decodeErrors.Add(1)
		}
		// One packet may hold several access units; only the first has a timestamp.
		for i, au := range units {
			pts, utc := se.audio.frame(pkt.Timestamp+uint32(int64(i)*t.samples), now, &se.video)
			se.Sink.Audio(pts, utc, now, au)
			se.audioFrames.Add(1)
		}
	})
	client.OnPacketRTCP(t.media, reports(&se.audio))
}

func reports(t *trackClock) func(rtcp.Packet) {
	return func(pkt rtcp.Packet) {
		if sr, ok := pkt.(*rtcp.SenderReport); ok {
			t.report(sr)
		}
	}
}

// watch waits for the session's end, and ends it when no picture comes: a
// camera that hangs keeps answering, or at least keeps the connection.
func (se *session) watch(ctx context.Context, ended <-chan error) error {
	tick := time.NewTicker(max(se.timeout/4, time.Millisecond))
	defer tick.Stop()
	first := se.first
	since := time.Since(se.begin) // PLAY was answered now
	for {
		select {
		case <-first:
			first = nil
			se.streaming(se.address)
		case <-tick.C:
			last := time.Duration(se.last.Load())
			if quiet := time.Since(se.begin) - max(last, since); quiet > se.timeout {
				return &silentError{after: quiet.Round(time.Second), never: last == 0}
			}
		case err := <-ended:
			if first != nil && se.last.Load() > 0 {
				se.streaming(se.address) // both at once: a short session
			}
			return fmt.Errorf("read: %w", err)
		case err := <-se.broken:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
