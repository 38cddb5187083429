package worker

import "math"

// Leave leaves room for so many bytes in the directory, as if other recordings
// had the rest: a full one need not be filled then.
func (w *Worker) Leave(bytes int64) { w.dir.used.Store(w.dir.limit - bytes) }

// SetFree gives the directory a file system with so many free bytes.
func (w *Worker) SetFree(free func() int64) {
	w.dir.mu.Lock()
	defer w.dir.mu.Unlock()
	w.dir.free = func(string) (bytes, files int64, err error) { return free(), math.MaxInt64, nil }
}

// SetFiles gives the directory a file system that takes so many more files.
func (w *Worker) SetFiles(files int64) {
	w.dir.mu.Lock()
	defer w.dir.mu.Unlock()
	w.dir.free = func(string) (bytes, n int64, err error) { return 1 << 40, files, nil }
}

// Use is how many bytes of recordings there are, and whether there is an alarm
// because there is no room for more.
func (w *Worker) Use() (bytes int64, full bool) { return w.dir.used.Load(), w.tmpfsFull() }

// Room is how many bytes the directory still takes.
func (w *Worker) Room() int64 { return w.dir.room() }
