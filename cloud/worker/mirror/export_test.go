package mirror

// Running reports whether Run takes what is published.
func (m *Mirror) Running() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.running
}

// Queued is how many bytes wait, of all streams.
func (m *Mirror) Queued() int64 { return m.queued.Load() }
