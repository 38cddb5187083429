package control

import (
	"fmt"
	"time"
)

// errNoEcho: what Mosquitto does with a client whose permissions are wrong. It
// acknowledges what it will not publish, and grants what it will not send.
var errNoEcho = fmt.Errorf("%w its topics: it took this hub's report and did not hand it back", ErrRefused)

// watch keeps an eye, during one connection, on what the broker keeps as this
// hub's report.
type watch struct {
	*link
	doubt   error            // what the state says while all is well here
	echo    <-chan time.Time // the report should have come back
	settled <-chan time.Time // one that is not ours has stood

	asked     bool // a report was published
	missing   bool // it did not come back in time, and the state says so
	corrected time.Time
}

// published notes that the broker has taken a report.
func (w *watch) published() {
	if !w.asked {
		w.asked = true
		w.echo = time.After(w.timing.echo)
	}
}

// heard looks at what came as this hub's report.
func (w *watch) heard() {
	echoed, alien := w.reported()
	if echoed {
		w.echo = nil
		if w.missing {
			w.missing = false
			w.setState(true, w.doubt)
		}
	}
	switch {
	case !alien:
		w.settled = nil
	case w.settled == nil:
		w.settled = time.After(max(w.timing.settle, w.timing.correct-time.Since(w.corrected)))
	}
}

// missed is called when echo is due.
func (w *watch) missed() {
	w.echo = nil
	if echoed, _ := w.reported(); !echoed {
		w.missing = true
		w.log.Warn("MQTT is of no use", "err", errNoEcho)
		w.setState(true, errNoEcho)
	}
}

// correct is called when settled is due: it has the newest report published
// again, unless that is on its way. Of two agents with one identity each would
// correct the other, which is why there is some time between corrections.
func (w *watch) correct() {
	w.settled = nil
	switch _, alien := w.reported(); {
	case !alien:
	case w.out.pending():
		w.settled = time.After(w.timing.settle)
	default:
		w.corrected = time.Now()
		w.log.Info("the broker holds a report that is none of this run: published again")
		w.out.again()
	}
}
