package live

import (
	"time"

	"github.com/zipato/vms/pkg/vms"
)

// freshURL is how long viewers are told the URL that a stream has moved to: the
// ticket in it is good for about five minutes.
const freshURL = 4 * time.Minute

// away is where a stream goes on that has moved to another worker. The zero value:
// it is here.
type away struct {
	moved bool
	url   string // with a view ticket; empty: nobody knows
	since time.Time
}

// Moved tells the viewers of a channel, if there are any, and those who come, that
// its picture goes on elsewhere: see Stream.Moved.
func (s *Server) Moved(ch vms.ChannelID, url string) {
	s.mu.Lock()
	st := s.streams[ch]
	s.mu.Unlock()
	if st != nil {
		st.Moved(url)
	}
}

// Moved tells the viewers, and until Back those who come, that the picture goes on
// at another worker: at url or, if that is empty, wherever the NVR says. What is
// published here is shown all the same: the other one need not have a picture yet.
func (s *Stream) Moved(url string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away.moved && s.away.url == url {
		return
	}
	s.sendAway(url)
}

// Left says that nothing more is published here, because the picture goes on at
// another worker. Who was told where is not told again.
func (s *Stream) Left() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.away.moved {
		s.sendAway("")
	}
	s.cause = moved
	s.drop()
	for v := range s.viewers {
		v.blind = true
	}
}

// Back says that the picture is here again.
func (s *Stream) Back() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = away{}
	for v := range s.viewers {
		v.leave = false
	}
}

// moved is the cause for which a stream that goes on elsewhere is offline here.
const moved = "moved"

func (s *Stream) sendAway(url string) {
	s.away = away{moved: true, url: url, since: time.Now()}
	for v := range s.viewers {
		v.leave = true
		v.signal()
	}
}

// goTo is what a viewer is told who is to leave.
func (s *Stream) goTo() item {
	it := item{moved: true, url: s.away.url}
	if time.Since(s.away.since) > freshURL {
		it.url = ""
	}
	return it
}
