package worker

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"slices"

	"github.com/zipato/vms/cloud/worker/segment"
	"github.com/zipato/vms/pkg/retry"
	"github.com/zipato/vms/pkg/vms"
)

// maxAbandoned is how many parts a round of the janitor asks for.
const maxAbandoned = 256

// janitor makes recordings of the parts of hubs that stay away for good. Any
// number of workers may do it at once: the same parts make the same object.
func (w *Worker) janitor(ctx context.Context) {
	for retry.Sleep(ctx, w.cfg.Janitor/2+rand.N(w.cfg.Janitor)) {
		if err := w.tidy(ctx); err != nil && ctx.Err() == nil {
			w.cfg.Log.Warn("cannot assemble abandoned parts, will try again", "err", err)
		}
	}
}

// abandoned names an epoch that will not go on.
type abandoned struct {
	channel vms.ChannelID
	epoch   vms.Epoch
}

// tidy does one round. What fails does not keep the rest from being done.
func (w *Worker) tidy(ctx context.Context) error {
	parts, err := w.cfg.NVR.AbandonedParts(ctx, maxAbandoned)
	if err != nil {
		return err
	}
	seen := make(map[abandoned]bool)
	var errs error
	for _, p := range parts {
		a := abandoned{p.Channel, p.Chunks.Epoch}
		if seen[a] || ctx.Err() != nil {
			continue
		}
		seen[a] = true
		if s := w.known(a.channel); s != nil && s.connected() {
			continue // it has come back this moment
		}
		errs = errors.Join(errs, w.assemble(ctx, a))
	}
	return errs
}

// assemble makes a recording of each unbroken run of an epoch's parts, without
// what whole recordings have already: one of these may have been closed, because
// its hub had lost the rest, while another worker had more of it.
func (w *Worker) assemble(ctx context.Context, a abandoned) error {
	rows, err := w.rows(ctx, a.channel, []vms.Epoch{a.epoch})
	if err != nil {
		return err
	}
	src := source{w: w, rows: slices.DeleteFunc(rows, func(r vms.Recording) bool { return r.Chunks.Epoch != a.epoch }), files: map[string]*os.File{}}
	defer src.close()
	if len(src.rows) == 0 {
		return nil
	}
	all := src.rows[0].Chunks
	for _, r := range src.rows {
		all.First, all.Last = min(all.First, r.Chunks.First), max(all.Last, r.Chunks.Last)
	}
	done, err := w.cfg.NVR.Wholes(ctx, a.channel, all)
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		row, run := next(src.rows, done)
		if row == nil {
			return nil
		}
		last, err := w.assembleRun(ctx, &src, a.channel, row, run)
		var u *uselessError
		switch {
		case errors.As(err, &u):
			w.cfg.Log.Error("ALARM: a part is not what the index says", "channel", a.channel, "parts", u.keys, "err", u.err)
			src.rows = slices.DeleteFunc(src.rows, func(r vms.Recording) bool { return slices.Contains(u.keys, r.Key) })
			continue
		case err != nil:
			return err
		}
		done = append(done, vms.ChunkRange{Epoch: a.epoch, First: run.First, Last: last})
	}
	return ctx.Err()
}

// next returns the first run of chunks of parts that is not done yet, and the
// part that it begins in; nil when there is none.
func next(rows []vms.Recording, done []vms.ChunkRange) (row *vms.Recording, run vms.ChunkRange) {
	var todo vms.ChunkSet
	for _, r := range rows {
		todo.Add(r.Chunks)
	}
	for _, r := range done {
		todo.Remove(r)
	}
	if todo.Len() == 0 {
		return nil, run
	}
	run = todo.Ranges()[0]
	i := slices.IndexFunc(rows, func(r vms.Recording) bool { return r.Chunks.First <= run.First && run.First <= r.Chunks.Last })
	return &rows[i], run
}

// assembleRun makes a recording of a run that begins in the part row, as far as
// it is one, and waits until it is stored.
func (w *Worker) assembleRun(ctx context.Context, src *source, ch vms.ChannelID, row *vms.Recording, run vms.ChunkRange) (last uint64, err error) {
	number, key := row.Number, row.Key
	var out *segment.Writer
	last, err = src.replay(ctx, number, run.First, run.Last, func(i *vms.Init, c *vms.Chunk) (err error) {
		if out == nil {
			out, err = segment.Scratch(w.cfg.Dir, ch, *i, c)
		} else {
			err = out.Append(c)
		}
		if err == nil {
			w.dir.used.Add(int64(len(c.Payload)))
		}
		return err
	})
	if err != nil {
		if out != nil {
			w.dir.used.Add(-out.Bytes())
			err = errors.Join(err, out.Discard())
		}
		return last, err
	}
	if out == nil {
		return last, &uselessError{keys: []string{key}, err: errors.New("it holds nothing")}
	}
	bytes := out.Bytes()
	defer w.dir.used.Add(-bytes)
	f, err := out.Finish()
	if err != nil {
		return last, err
	}
	ctx, cancel := context.WithTimeout(ctx, restoreTimeout) // the next round tries again
	defer cancel()
	stored, lost := make(chan vms.Recording, 1), make(chan error, 1)
	j := job(f)
	j.Done = func(v vms.Recording) { stored <- v }
	j.Lost = func(err error) { lost <- err }
	w.uploader.Submit(ctx, j)
	select {
	case v := <-stored:
		w.cfg.Log.Info("abandoned parts assembled", "channel", ch, "key", v.Key, "chunks", v.Chunks.String())
		return last, w.cfg.NVR.RecordingUploaded(ctx, v)
	case err := <-lost:
		return last, err
	case <-ctx.Done():
		// The upload ends too, and leaves its file.
		return last, errors.Join(ctx.Err(), os.Remove(f.Path))
	}
}
