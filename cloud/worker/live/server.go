package live

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/zipato/vms/pkg/cmaf"
	"github.com/zipato/vms/pkg/problem"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// Protocol is the subprotocol of the live WebSocket: text messages say what
// comes, binary ones are init segments and fragments.
//
//	{"type":"init","mime":…}     the next binary message is an init segment; the times of what follows may be anywhere
//	{"type":"jump"}              the next fragment does not continue the one before
//	{"type":"offline","cause":…} nothing comes for now
//	{"type":"moved","url":…}     the picture goes on at another worker, or will in a moment: at url or, without one,
//	                             where the API says; what comes here until then is good
//
// Words and members that a viewer does not know it leaves alone.
const Protocol = "vms.mse.v1"

const (
	// sendTimeout bounds one message to a viewer.
	sendTimeout = 20 * time.Second
	// pingEvery finds viewers that are gone.
	pingEvery = 15 * time.Second
	// maxViewers bounds the viewers of one worker.
	maxViewers = 2000
)

// Server shows the streams of one worker.
type Server struct {
	// Check returns the channel that a view ticket is good for.
	Check func(ticket string) (vms.ChannelID, error)
	// Recent reads back what was published last as stored, of one recording: from
	// its newest keyframe on, in order. nil: nothing, when that is too long ago, or
	// is not there any more; viewers wait for the next keyframe then. It is called
	// without a lock.
	Recent func(vms.ChannelID) []vms.Chunk
	Log    *slog.Logger

	mu      sync.Mutex
	streams map[vms.ChannelID]*Stream
	viewers int
}

// Stream returns the live picture of a channel, which stays until Forget.
func (s *Server) Stream(ch vms.ChannelID) *Stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stream(ch)
	st.claims++
	return st
}

func (s *Server) stream(ch vms.ChannelID) *Stream {
	st := s.streams[ch]
	if st == nil {
		if s.streams == nil {
			s.streams = make(map[vms.ChannelID]*Stream)
		}
		st = &Stream{}
		if s.Recent != nil {
			st.recent = func() []vms.Chunk { return s.Recent(ch) }
		}
		s.streams[ch] = st
	}
	return st
}

// Forget says, once for each call of Stream, that nothing more is published.
// Viewers may stay.
func (s *Server) Forget(ch vms.ChannelID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.streams[ch]; st != nil {
		st.claims--
		s.tidy(ch, st)
	}
}

// tidy forgets a stream that nobody uses.
func (s *Server) tidy(ch vms.ChannelID, st *Stream) {
	if st.claims <= 0 && !st.Watched() {
		delete(s.streams, ch)
	}
}

// join adds a viewer of a channel.
func (s *Server) join(ch vms.ChannelID) (*Stream, *viewer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stream(ch)
	return st, st.join()
}

func (s *Server) leave(ch vms.ChannelID, st *Stream, v *viewer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st.leave(v)
	s.tidy(ch, st)
}

// Viewers counts who looks on.
func (s *Server) Viewers() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.viewers
}

// Watched counts who looks on at each channel that somebody looks on at.
func (s *Server) Watched() map[vms.ChannelID]int {
	s.mu.Lock()
	streams := maps.Clone(s.streams)
	s.mu.Unlock()
	out := make(map[vms.ChannelID]int)
	for ch, st := range streams {
		if n := st.count(); n > 0 {
			out[ch] = n
		}
	}
	return out
}

func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.viewers >= maxViewers {
		return false
	}
	s.viewers++
	return true
}

func (s *Server) exit() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.viewers--
}

// ServeHTTP takes GET ?ticket=… and upgrades it. The caller has checked Host
// and Origin; the ticket says what may be seen.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ch, err := s.Check(r.URL.Query().Get("ticket"))
	if err != nil {
		problem.Write(w, &problem.Problem{Type: wire.ProblemTicketInvalid, Status: http.StatusUnauthorized, Title: "View ticket refused", Detail: "Ask for a new live URL: " + err.Error() + "."})
		return
	}
	if !s.enter() {
		problem.Write(w, &problem.Problem{Type: wire.ProblemBusy, Status: http.StatusServiceUnavailable, Title: "Too many viewers", RetryAfter: 10 * time.Second})
		return
	}
	defer s.exit()
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{
		Subprotocols: []string{Protocol}, InsecureSkipVerify: true, // Origin: see above
		CompressionMode: websocket.CompressionDisabled,
	})
	if err != nil {
		return // Accept has answered
	}
	// Closing in order would wait for what the browser does, without a limit:
	// it only has to learn that the socket is gone.
	ctx, cancel := context.WithCancel(r.Context())
	var reader sync.WaitGroup
	reader.Go(func() {
		defer cancel()
		if _, _, err := conn.Reader(ctx); err == nil {
			s.Log.Debug("viewer sent a message", "channel", ch) // they have nothing to say
		}
	})
	defer reader.Wait()
	defer conn.CloseNow()
	defer cancel()
	st, v := s.join(ch)
	defer s.leave(ch, st, v)
	st.begin(v)
	if err := s.serve(ctx, conn, st, v); err != nil && ctx.Err() == nil {
		s.Log.Debug("viewer lost", "channel", ch, "err", err)
	}
}

func (s *Server) serve(ctx context.Context, conn *websocket.Conn, st *Stream, v *viewer) error {
	ping := time.NewTicker(pingEvery)
	defer ping.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ping.C:
			if err := within(ctx, conn.Ping); err != nil {
				return err
			}
		case <-v.wake:
			for _, it := range st.take(v) {
				if err := send(ctx, conn, it); err != nil {
					return err
				}
			}
		}
	}
}

func within(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	return f(ctx)
}

// event is a text message to the browser.
type event struct {
	Type  string `json:"type"` // "init", "jump", "offline" or "moved"
	MIME  string `json:"mime,omitempty"`
	Cause string `json:"cause,omitempty"`
	// URL is where a stream has moved to. None: ask where it is.
	URL string `json:"url,omitempty"`
}

func send(ctx context.Context, conn *websocket.Conn, it item) error {
	text := func(e event) error {
		b, err := json.Marshal(e)
		if err != nil {
			return err
		}
		return within(ctx, func(ctx context.Context) error { return conn.Write(ctx, websocket.MessageText, b) })
	}
	binary := func(b []byte) error {
		return within(ctx, func(ctx context.Context) error { return conn.Write(ctx, websocket.MessageBinary, b) })
	}
	switch {
	case it.init != nil:
		if err := text(event{Type: "init", MIME: cmaf.MIME(it.init.Tracks)}); err != nil {
			return err
		}
		return binary(it.init.Segment)
	case it.jump:
		return text(event{Type: "jump"})
	case it.offline != "":
		return text(event{Type: "offline", Cause: it.offline})
	case it.moved:
		return text(event{Type: "moved", URL: it.url})
	}
	return binary(it.chunk.Payload)
}
