package segment

// Remembered counts the runs and ends that are known by the agent's word.
func (s *Segmenter) Remembered() int { return s.missing.Len() + s.elsewhere.Len() + s.ends.Len() }

// Path is the recording's file.
func (w *Writer) Path() string { return w.path }
