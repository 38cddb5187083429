package live

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/zipato/vms/pkg/vmstest"
)

// TestMovedIsToldOnceToEverybody: to who looks on, at once, and to who comes while
// the picture is elsewhere; what is shown here goes on.
func TestMovedIsToldOnceToEverybody(t *testing.T) {
	s := &Stream{}
	s.Publish(init1, pic(1, 1, key, 0), false)
	v := s.look()
	s.expect(t, v, "init1 1:1")
	s.Moved("wss://w2")
	s.Moved("wss://w2")
	s.Publish(init1, pic(1, 2, 0, 0), false)
	s.expect(t, v, "moved(wss://w2) 1:2")
	s.Moved("wss://w2")
	s.expect(t, v, "")
	late := s.look()
	s.expect(t, late, "moved(wss://w2) init1 1:1 1:2")
	s.Moved("wss://w3") // it did not stay there
	s.expect(t, v, "moved(wss://w3)")
	s.Moved("") // nobody knows
	s.expect(t, v, "moved()")
	s.Back()
	s.Publish(init1, pic(1, 3, key, 0), false)
	s.expect(t, v, "1:3")
	s.expect(t, s.look(), "init1 1:3")
	s.Moved("wss://w4")
	s.Back() // before it was told
	s.expect(t, v, "")
}

// TestLeftIsNotOffline: who looks on hears where to go, and nothing of an end; who
// comes sees at once that there is nothing here.
func TestLeftIsNotOffline(t *testing.T) {
	for _, known := range []bool{false, true} {
		s := &Stream{}
		s.Publish(init1, pic(1, 1, key, 0), false)
		v := s.look()
		want := "init1 1:1"
		url := ""
		if known {
			url = "wss://w2"
			s.Moved(url)
		}
		want = "moved(" + url + ") " + want
		s.Left()
		s.expect(t, v, want)
		s.Left()
		s.expect(t, v, "")
		s.expect(t, s.look(), "moved("+url+") offline(moved)")
		s.Publish(init1, pic(1, 2, 0, 0), false)
		s.expect(t, v, "") // it needs a keyframe
		s.Back()
		s.Publish(init1, pic(1, 3, key, 0), false)
		s.expect(t, v, "init1 1:3")
	}
}

// TestASlowViewerHearsOfTheMove: also when all that waits for it is thrown away.
func TestASlowViewerHearsOfTheMove(t *testing.T) {
	s := &Stream{}
	v := s.look()
	s.take(v)
	s.Publish(init1, pic(1, 1, key, maxQueue-10), false)
	s.Moved("wss://w2")
	s.Publish(init1, pic(1, 2, 0, 100), false)
	s.expect(t, v, "moved(wss://w2)")
}

// TestAnOldURLIsNotTold: its ticket is none any more.
func TestAnOldURLIsNotTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Stream{}
		s.Moved("wss://w2")
		time.Sleep(freshURL - time.Second)
		s.expect(t, s.look(), "moved(wss://w2) offline(waiting for the camera)")
		time.Sleep(2 * time.Second)
		s.expect(t, s.look(), "moved() offline(waiting for the camera)")
	})
}

// TestViewerIsSentOn: by the words of the protocol; nobody who does not look on is
// remembered for it.
func TestViewerIsSentOn(t *testing.T) {
	vmstest.NoLeaks(t)
	var s Server
	url := site(t, &s)
	s.Moved("other", "wss://w2")
	if len(s.streams) != 0 {
		t.Error("a channel without viewers is remembered")
	}
	c := look(t, url+"?ticket=good-ch")
	if got := next(t, c); got != "offline waiting for the camera" {
		t.Errorf("got %q", got)
	}
	s.Moved("ch", "wss://w2?ticket=1")
	s.Moved("ch", "")
	for _, want := range []string{"moved wss://w2?ticket=1", "moved"} {
		if got := next(t, c); got != want && got != "moved" { // the second may take the first one's place
			t.Errorf("got %q, want %q", got, want)
		} else if got == "moved" {
			break
		}
	}
}
