package doctor

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/zipato/vms/agent/camera"
	"github.com/zipato/vms/pkg/seal"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

const (
	// cameraTime bounds the check of a camera: it may take ten seconds to answer.
	cameraTime = 15 * time.Second
	// watchTime is how long a camera is watched that sends: long enough to see
	// whether its packets come through.
	watchTime = 2 * time.Second
)

// Camera is one to look at.
type Camera struct {
	Channel vms.ChannelID
	Camera  vms.Camera
	// Broken says, in a sentence, why Camera could not be read.
	Broken string
	// Stream is how the stream is that pulls the camera now; nil: none does, and
	// the camera is pulled for a moment.
	Stream *Stream
}

// Stream is one of a running agent.
type Stream struct {
	State   string // a wire.State word
	Problem string
}

// Documents reads what the agent has put on flash (agent/state).
type Documents interface {
	Document(name string) ([]byte, error)
}

// Cameras are those that the cloud or somebody on the LAN has named to the hub
// with this key, as its documents say.
func Cameras(docs Documents, key ed25519.PrivateKey) ([]Camera, error) {
	var out []Camera
	data, err := docs.Document("desired")
	if err != nil {
		return nil, err
	}
	if data != nil {
		m, err := wire.DecodeSession(data)
		if err != nil {
			return nil, fmt.Errorf("what the cloud wants of this hub: %w", err)
		}
		desired, ok := m.(*wire.Desired)
		if !ok {
			return nil, errors.New("what the cloud wants of this hub: it is something else")
		}
		for _, s := range desired.Streams {
			c := Camera{Channel: s.Channel}
			plain, err := seal.Open(key, "camera/"+string(s.Channel), s.Camera)
			if err == nil && json.Unmarshal(plain, &c.Camera) != nil {
				err = errors.New("it is no camera") // the parser's error may repeat what is secret
			}
			if err != nil {
				c.Broken = fmt.Sprintf("What the cloud has stored of the camera cannot be read: %v.", err)
			}
			out = append(out, c)
		}
	}
	data, err = docs.Document("local")
	if err != nil || data == nil {
		return out, err
	}
	var local []struct {
		Channel vms.ChannelID `json:"channel"`
		Camera  vms.Camera    `json:"camera"`
		Borrows bool          `json:"borrows"` // from the camera above
	}
	if json.Unmarshal(data, &local) != nil {
		return nil, errors.New("what was asked for on the LAN cannot be read")
	}
	for _, l := range local {
		if !l.Borrows {
			out = append(out, Camera{Channel: l.Channel, Camera: l.Camera})
		}
	}
	return out, nil
}

// look looks at a camera.
func (c Camera) look(ctx context.Context) Finding {
	f := c.see(ctx)
	f.Check, f.Subject = "camera", string(c.Channel)
	return f
}

func (c Camera) see(ctx context.Context) Finding {
	if c.Broken != "" {
		return bad("", c.Broken, "Save the camera again in the cloud.")
	}
	addresses, err := camera.Resolve(c.Camera)
	if err != nil {
		return bad("", fmt.Sprintf("The camera's address is none: %v.", err), "Correct the camera's address in the cloud.")
	}
	if c.Stream == nil {
		return c.pull(ctx, addresses[0].Host())
	}
	switch st := c.Stream; st.State {
	case wire.StateStreaming, wire.StateBuffering:
		return good("", "The camera at %s sends, and the agent has its stream.", addresses[0].Host())
	case wire.StateNoCamera, wire.StateBadCamera, wire.StateAuthFailed, wire.StateRefused:
		return halves(st.Problem)
	default:
		return unknown("", fmt.Sprintf("The stream of the camera at %s is just starting.", addresses[0].Host()))
	}
}

// pull pulls the camera until it has sent for a moment, or failed once: cameras
// lock accounts that are tried too often.
func (c Camera) pull(ctx context.Context, host string) Finding {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	w := &watcher{began: time.Now(), seen: stop}
	src := &camera.Source{
		Camera: c.Camera, Sink: w, Log: slog.New(slog.DiscardHandler),
		OnState: func(s camera.State) {
			if s.State != wire.StateStreaming {
				w.fail(s)
				stop()
			}
		},
	}
	if err := src.Run(ctx); err != nil {
		return bad("", fmt.Sprintf("The camera's address is none: %v.", err), "Correct the camera's address in the cloud.")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	st := src.Stats()
	switch {
	case w.state.State != "":
		return halves(w.state.Problem)
	case w.first.IsZero():
		return bad("", fmt.Sprintf("The camera at %s has sent no picture in %s.", host, span(cameraTime)), "Check its power, its network cable and its address; if all is right, restart it.")
	case st.PacketsLost > 0:
		return bad("", fmt.Sprintf("The camera at %s sends, but %d packets were lost in %s.", host, st.PacketsLost, span(watchTime)), "Check the camera's cable or WLAN; a camera that has too much to do loses packets too, so lower its bit rate.")
	}
	return good("", "The camera at %s sends %s, the first picture after %s.", host, w.what, span(w.first.Sub(w.began)))
}

// halves makes a finding of a problem that says what is wrong and then what to
// do, as those of cameras do.
func halves(problem string) Finding {
	what, remedy, ok := strings.Cut(problem, "; ")
	if !ok {
		what, remedy, ok = strings.Cut(problem, ". ")
	}
	if !ok || remedy == "" {
		return bad("", problem, "If that stays so, check the camera.")
	}
	return bad("", strings.TrimSuffix(what, ".")+".", strings.ToUpper(remedy[:1])+remedy[1:])
}

// watcher sees what a camera sends and keeps nothing of it.
type watcher struct {
	began time.Time
	seen  func() // it was watched long enough

	mu    sync.Mutex
	what  string
	first time.Time // of the pictures
	state camera.State
}

var _ camera.Sink = (*watcher)(nil)

// Open implements camera.Sink.
func (w *watcher) Open(v camera.VideoFormat, a *camera.AudioFormat) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.what = strings.ToUpper(v.Codec) + " without sound that can be recorded"
	if a != nil {
		w.what = strings.ToUpper(v.Codec) + " and " + strings.ToUpper(a.Codec)
	}
}

// Video implements camera.Sink.
func (w *watcher) Video(_ int64, _, arrival time.Time, _ [][]byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.first.IsZero() {
		w.first = arrival
	}
	if arrival.Sub(w.first) >= watchTime {
		w.seen()
	}
}

// Audio implements camera.Sink.
func (*watcher) Audio(int64, time.Time, time.Time, []byte) {}

// Lost implements camera.Sink.
func (*watcher) Lost(error) {}

// fail notes the first failure.
func (w *watcher) fail(s camera.State) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.state.State == "" {
		w.state = s
	}
}
