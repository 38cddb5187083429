package mux

import (
	"time"

	"github.com/zipato/vms/pkg/cmaf"
)

// Peek follows a stream that is not muxed, so that a Mux can take it up at any
// of its keyframes, also where the camera sends parameter sets only now and then.
type Peek struct {
	params  *params
	keyless keyless
}

// NewPeek begins a session of the camera, as Mux.Open does.
func NewPeek(v cmaf.VideoParams) (*Peek, error) {
	p, err := newParams(v)
	if err != nil {
		return nil, err
	}
	return &Peek{params: p}, nil
}

// Video takes the next access unit and when it arrived, and reports whether a
// span could begin with it: whether it is a keyframe and its parameter sets are
// known.
func (k *Peek) Video(now time.Time, au [][]byte) bool {
	in := k.params.inspect(au)
	k.keyless.saw(in.key, now)
	return in.key && k.params.complete()
}

// WantsKeyframe is Mux.WantsKeyframe, by the clock that Video is told.
func (k *Peek) WantsKeyframe(now time.Time) bool { return k.keyless.wants(now) }

// Params returns the parameter sets that are in force: what Mux.Open has to be
// told for the newest access unit and those that follow.
func (k *Peek) Params() cmaf.VideoParams { return k.params.VideoParams }
