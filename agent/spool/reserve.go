package spool

// reserveShare is how much of the RAM may be reserved for what is not recorded,
// by all streams together: as much as four cameras of 2 Mbit/s need of 24 MiB
// for a pre-roll of 5 s and a GOP of 2 s.
const reserveShare = 0.33

// Reserve accounts for n bytes of the hub's RAM that are not chunks: footage
// that may never be recorded. Less than 0: they are free again. It reports
// false, and accounts for nothing, when streams have reserved as much as they
// may; else room is made for it as for a chunk.
func (s *Spool) Reserve(n int64) bool {
	st := s.store
	if n <= 0 {
		st.add(n)
		st.reserved.Add(n)
		return true
	}
	if st.reserved.Add(n) > int64(reserveShare*float64(st.cfg.RAM)) {
		st.reserved.Add(-n)
		return false
	}
	st.add(n)
	return true
}
