package nvrlink

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/zipato/vms/cloud/nvr"
	"github.com/zipato/vms/pkg/vms"
)

func addExamples(f *testing.F) {
	f.Helper()
	for _, e := range examples(f) {
		f.Add(e)
	}
	for _, s := range []string{
		``, `{}`, `[]`, `null`, `{"type":"answer","id":0}`, `{"type":"heard"} x`, `{"type":"parts","id":1,"channel":"c","epochs":["00000000000000ab","x"]}`,
		`{"type":"wholes","id":1,"channel":"c","chunks":null}`, `{"type":"started","id":1,"channel":"c","sid":"s","lane":"live","at":"0000-01-01T00:00:00+23:00"}`,
		`{"type":"alive","lag_ms":9223372036854775807}`, `{"type":"viewers","id":18446744073709551615,"channel":"c","viewers":-1}`,
	} {
		f.Add([]byte(s))
	}
}

// FuzzDecode: what is understood can be said again, and is the same then.
func FuzzDecode(f *testing.F) {
	addExamples(f)
	all := everything()
	f.Fuzz(func(t *testing.T, data []byte) {
		m, _, err := decode(data, all)
		if err != nil {
			if !errors.Is(err, errMalformed) || m != nil {
				t.Fatalf("decode = %v, %v", m, err)
			}
			return
		}
		once, err := encode(m)
		if err != nil {
			t.Fatalf("%s is understood and cannot be said: %v", data, err)
		}
		again, _, err := decode(once, all)
		if err != nil {
			t.Fatalf("%s, said as %s, is not understood: %v", data, once, err)
		}
		if twice, err := encode(again); err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%s, then %s, %v", once, twice, err)
		}
	})
}

// anything takes everything, and answers with something.
type anything struct{}

func (anything) StreamStarted(context.Context, vms.StreamEvent) error   { return nil }
func (anything) StreamEnded(context.Context, vms.StreamEvent) error     { return vms.ErrNotFound }
func (anything) RecordingUploaded(context.Context, vms.Recording) error { return nil }
func (anything) Parts(context.Context, vms.ChannelID, []vms.Epoch) ([]vms.Recording, error) {
	return make([]vms.Recording, 2), nil // none that can be sent
}

func (anything) Wholes(_ context.Context, _ vms.ChannelID, r vms.ChunkRange) ([]vms.ChunkRange, error) {
	return []vms.ChunkRange{r}, nil
}

func (anything) AbandonedParts(context.Context, int) ([]vms.Recording, error) { return nil, nil }
func (anything) Viewers(context.Context, vms.ChannelID, int) error            { return errors.New("no") }
func (anything) WorkerUp(vms.WorkerInfo, nvr.WorkerLink) error                { return nil }
func (anything) WorkerAlive(vms.WorkerID, vms.Instance, vms.WorkerLoad)       {}
func (anything) WorkerDown(vms.WorkerID, vms.Instance, nvr.WorkerLink)        {}

// FuzzTake: whatever a worker sends, every question has an answer that the
// worker understands, and nothing else happens than that the link is closed.
func FuzzTake(f *testing.F) {
	addExamples(f)
	h := NewHandler(HandlerConfig{Key: testKey, NVR: anything{}, Keys: testKeys, Log: slog.New(slog.DiscardHandler)})
	before := make(chan struct{})
	close(before)
	f.Fuzz(func(t *testing.T, data []byte) {
		l := newLink(h, "")
		defer l.kill()
		l.before = before
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err := l.take(ctx, data)
		_, id, wrong := decode(data, ofWorker)
		if err != nil {
			if !errors.Is(err, errMalformed) || id != 0 && wrong == nil {
				t.Fatalf("take(%s) = %v", data, err)
			}
			return
		}
		if id == 0 { // alive
			if said, ok := l.orders.pop(); !ok {
				t.Fatalf("no answer to %s", data)
			} else if _, _, err := decode(said, ofNVR); err != nil {
				t.Fatal(err)
			}
			return
		}
		a, _, err := decode(<-l.answers, ofNVR)
		if err != nil {
			t.Fatal(err)
		}
		if a := a.(*answer); a.ID != id || (wrong != nil) && a.Problem != "invalid" {
			t.Fatalf("answer %+v to %s, whose error is %v", a, data, wrong)
		}
		l.wg.Wait()
	})
}

// FuzzObey: whatever the NVR sends, the worker takes it or closes the link.
func FuzzObey(f *testing.F) {
	addExamples(f)
	c, err := NewClient(ClientConfig{URL: "ws://nvr" + Path, Key: testKey, Info: testWorker, Load: func() (l vms.WorkerLoad) { return l }})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		l := newLine()
		l.slots <- struct{}{}
		l.open() // question 1
		if err := c.take(l, data); err != nil && !errors.Is(err, errMalformed) {
			t.Fatalf("take(%s) = %v", data, err)
		}
		for order, ok := c.inbox.pop(); ok; order, ok = c.inbox.pop() {
			order()
		}
	})
}
