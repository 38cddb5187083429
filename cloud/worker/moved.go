package worker

import (
	"context"

	"github.com/zipato/vms/pkg/vms"
)

// causeMoved is the word of an agent whose lane goes on at another worker.
const causeMoved = "moved"

// Moved notes that the live lane of a channel is at another worker now, and sends
// its viewers there: to liveURL or, if that is empty, to ask the NVR.
func (w *Worker) Moved(ch vms.ChannelID, liveURL string) {
	if s := w.known(ch); s != nil {
		s.moved(liveURL)
		return
	}
	w.live.Moved(ch, liveURL)
}

func (s *stream) moved(url string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.elsewhere = true
	s.live.Moved(url)
}

// back notes that the live lane is here.
func (s *stream) back() {
	s.elsewhere = false
	s.live.Back()
}

// offline tells who shows the live picture that nothing comes for now.
func (s *stream) offline(cause string) {
	if s.elsewhere || cause == causeMoved {
		s.live.Left()
	} else {
		s.live.Offline(cause)
	}
	s.w.mirror.Offline(s.ch, cause)
}

// Relinked tells the NVR, which may have forgotten all about it, which lanes are
// up and who looks on: the line to it is there again. What was to be told and
// waits for that goes out now.
func (w *Worker) Relinked(context.Context) {
	for _, s := range w.all() {
		s.repeat()
	}
	w.notices.hurry()
	w.relinked.Store(true)
}

// repeat tells the NVR again of the lanes that it was told of. What is still to
// be told of their ends comes after it.
func (s *stream) repeat() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.lanes {
		if st.started {
			s.w.notices.again(s.w.cfg.NVR, st.event)
		}
	}
}
