package worker

// Leave leaves room for so many bytes in the directory, as if other recordings
// had the rest: a full one need not be filled then.
func (w *Worker) Leave(bytes int64) { w.used.Store(w.cfg.DirBytes - bytes) }
