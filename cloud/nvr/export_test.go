package nvr

import "fmt"

// CheckSeats says what is wrong with what the NVR has noted of who is where.
func (n *NVR) CheckSeats() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	seats := 0
	for _, w := range n.workers {
		seats += len(w.seats)
		for ls := range w.seats {
			if ls.at != w || ls.link == nil || n.sessions[ls.SID] != ls || !ls.assigned {
				return fmt.Errorf("worker %s has a session that is not there", w.info.ID)
			}
		}
		if w.dead && len(w.seats) > 0 {
			return fmt.Errorf("worker %s is dead and has %d streams", w.info.ID, len(w.seats))
		}
	}
	for ls := range n.waiting {
		if ls.at != nil || ls.link == nil || n.sessions[ls.SID] != ls {
			return fmt.Errorf("session %s waits, and should not", ls.SID)
		}
	}
	for _, st := range n.streams {
		for _, l := range st.lanes {
			if w := n.workers[l.Worker]; w != nil && w.info.Instance != l.Instance {
				return fmt.Errorf("channel %s has a lane at a run of worker %s that is gone", l.Channel, l.Worker)
			}
		}
	}
	here := 0
	for _, ls := range n.sessions {
		if ls.link != nil {
			here++
		}
	}
	if here != seats+len(n.waiting) {
		return fmt.Errorf("%d sessions, %d at workers, %d waiting", here, seats, len(n.waiting))
	}
	return nil
}
