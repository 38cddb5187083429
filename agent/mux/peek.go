package mux

import "github.com/zipato/vms/pkg/cmaf"

// Peek follows a stream that is not muxed, so that a Mux can take it up at any
// of its keyframes, also where the camera sends parameter sets only now and then.
type Peek struct{ params *params }

// NewPeek begins a session of the camera, as Mux.Open does.
func NewPeek(v cmaf.VideoParams) (*Peek, error) {
	p, err := newParams(v)
	if err != nil {
		return nil, err
	}
	return &Peek{p}, nil
}

// Video takes the next access unit and reports whether a span could begin with
// it: whether it is a keyframe and its parameter sets are known.
func (k *Peek) Video(au [][]byte) bool {
	in := k.params.inspect(au)
	return in.key && k.params.complete()
}

// Params returns the parameter sets that are in force: what Mux.Open has to be
// told for the newest access unit and those that follow.
func (k *Peek) Params() cmaf.VideoParams { return k.params.VideoParams }
