package mux

import (
	"crypto/sha256"
	"fmt"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/cmaf"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

var t0 = time.Date(2026, 11, 22, 10, 30, 0, 0, time.UTC)

// bits writes an SPS.
type bits struct {
	b []byte
	n int
}

func (w *bits) u(n int, v uint64) {
	for i := n - 1; i >= 0; i-- {
		if w.n%8 == 0 {
			w.b = append(w.b, 0)
		}
		w.b[w.n/8] |= byte(v>>i&1) << (7 - w.n%8)
		w.n++
	}
}

func (w *bits) ue(v uint64) {
	n := 0
	for (v+1)>>(n+1) != 0 {
		n++
	}
	w.u(n, 0)
	w.u(n+1, v+1)
}

// spsOf is a Main profile SPS of so many macroblocks a side. reorder is
// max_num_reorder_frames; less than 0: no VUI, the stream does not say.
func spsOf(mbs, reorder int) []byte {
	w := &bits{b: []byte{0x67, 77, 0, 31}, n: 32}
	w.ue(0)               // seq_parameter_set_id
	w.ue(0)               // log2_max_frame_num_minus4
	w.ue(0)               // pic_order_cnt_type
	w.ue(4)               // log2_max_pic_order_cnt_lsb_minus4
	w.ue(4)               // max_num_ref_frames
	w.u(1, 0)             // gaps_in_frame_num_value_allowed_flag
	w.ue(uint64(mbs - 1)) // pic_width_in_mbs_minus1
	w.ue(uint64(mbs - 1)) // pic_height_in_map_units_minus1
	w.u(1, 1)             // frame_mbs_only_flag
	w.u(1, 1)             // direct_8x8_inference_flag
	w.u(1, 0)             // frame_cropping_flag
	if reorder < 0 {
		w.u(1, 0) // vui_parameters_present_flag
	} else {
		w.u(1, 1)
		w.u(8, 0) // aspect ratio, overscan, video signal, chroma, timing, nal hrd, vcl hrd, pic_struct: none
		w.u(1, 1) // bitstream_restriction_flag
		w.u(1, 1) // motion_vectors_over_pic_boundaries_flag
		w.ue(0)   // max_bytes_per_pic_denom
		w.ue(0)   // max_bits_per_mb_denom
		w.ue(10)  // log2_max_mv_length_horizontal
		w.ue(10)  // log2_max_mv_length_vertical
		w.ue(uint64(reorder))
		w.ue(4) // max_dec_frame_buffering
	}
	w.u(1, 1) // rbsp_stop_one_bit
	return w.b
}

var (
	pps   = []byte{0x68, 0xee, 0x3c, 0x80}
	plain = cmaf.VideoParams{Codec: "h264", SPS: spsOf(20, 0), PPS: pps}
	aac   = &Sound{Config: []byte{0x11, 0x90}, SampleRate: 48000, Channels: 2}
)

// rig is a Mux and what came out of it.
type rig struct {
	t      testing.TB
	m      *Mux
	inits  map[string]vms.Init
	chunks []vms.Chunk
	frames int // pictures fed
	size   int // of each, bytes
	camera time.Time
	unsure bool
	over   bool // nothing more is fed
}

func initName(e vms.Epoch, id uint32) string { return fmt.Sprintf("%s/%d", e, id) }

func newRig(t testing.TB, cfg Config) *rig {
	r := &rig{t: t, inits: map[string]vms.Init{}, size: 40}
	cfg.Epoch = 1
	cfg.OnInit = func(i vms.Init) {
		if _, ok := r.inits[initName(i.Epoch, i.ID)]; ok || i.ID == 0 {
			t.Errorf("init %d comes twice or is zero", i.ID)
		}
		r.inits[initName(i.Epoch, i.ID)] = i
	}
	cfg.OnChunk = func(c vms.Chunk) {
		if _, ok := r.inits[initName(c.Epoch, c.Init)]; !ok {
			t.Errorf("chunk %d comes before its init %d", c.Seq, c.Init)
		}
		r.chunks = append(r.chunks, c)
	}
	r.m = New(cfg)
	return r
}

func (r *rig) open(v cmaf.VideoParams, a *Sound) {
	r.t.Helper()
	if err := r.m.Open(v, a); err != nil {
		r.t.Fatal(err)
	}
}

// picture feeds one access unit whose bytes tell which one it is.
func (r *rig) picture(pts time.Duration, arrival time.Time, key bool, sets ...[]byte) {
	typ := byte(0x41)
	if key {
		typ = 0x65
	}
	nalu := make([]byte, max(r.size, 8))
	nalu[0] = typ
	copy(nalu[1:], fmt.Sprintf("%06d", r.frames))
	r.frames++
	r.m.Video(int64(pts)*9/100_000, arrival, r.unsure, r.camera, append(sets, nalu))
}

// film feeds pictures from..to of 25 a second with a keyframe every gop pictures.
func (r *rig) film(from, to, gop int) {
	for i := from; i < to; i++ {
		at := time.Duration(i) * 40 * time.Millisecond
		r.picture(at, t0.Add(at), i%gop == 0)
	}
}

// sound feeds the AAC frame number i, which begins at i * 1024/48000 s.
func (r *rig) sound(i int, arrival time.Time) {
	r.m.Audio(int64(i)*1024, arrival, []byte{0x21, byte(i), byte(i >> 8)})
}

const aacFrame = 1024 * time.Second / 48000

func digest(chunks []vms.Chunk) [32]byte {
	h := sha256.New()
	for i := range chunks {
		h.Write(wire.EncodeChunk(&chunks[i]))
	}
	return [32]byte(h.Sum(nil))
}

// outcome is what check found.
type outcome struct {
	recordings, spans int
	pictures, samples int
	late              int64 // greatest zero minus video start: sound before the picture, ticks
}

// check is what must hold of any chunks, whatever was fed.
func (r *rig) check() outcome {
	r.t.Helper()
	var o outcome
	var prev *vms.Chunk
	var zero, next uint64
	for i := range r.chunks {
		c := &r.chunks[i]
		got, err := wire.DecodeChunk(wire.EncodeChunk(c))
		if err != nil {
			r.t.Fatalf("chunk %d: %v", c.Seq, err)
		}
		if !got.Start.Equal(c.Start) || !got.End.Equal(c.End) {
			r.t.Errorf("chunk %d: %v to %v become %v to %v on the wire", c.Seq, c.Start, c.End, got.Start, got.End)
		}
		f, err := cmaf.ParseFragment(c.Payload)
		if err != nil {
			r.t.Fatalf("chunk %d: %v", c.Seq, err)
		}
		init := r.inits[initName(c.Epoch, c.Init)]
		v, a := f.Run(cmaf.VideoTrack), f.Run(cmaf.AudioTrack)
		if f.MoofLen != c.MoofLen || v == nil || len(f.Runs) > len(init.Tracks) {
			r.t.Fatalf("chunk %d: moof of %d bytes, header says %d; %d runs, init has %d tracks", c.Seq, f.MoofLen, c.MoofLen, len(f.Runs), len(init.Tracks))
		}
		o.pictures += v.Samples
		if a != nil {
			o.samples += a.Samples
		}
		first := c.Flags.Has(vms.FlagFirst)
		newEpoch := prev == nil || prev.Epoch != c.Epoch
		switch {
		case newEpoch && c.Seq != 1, !newEpoch && c.Seq != prev.Seq+1:
			r.t.Fatalf("chunk %d of epoch %s follows %+v", c.Seq, c.Epoch, prev)
		case newEpoch && (!first || c.Recording != 0):
			r.t.Errorf("chunk 1 begins no recording")
		case !newEpoch && c.Start.Before(prev.End):
			r.t.Errorf("chunk %d starts at %v, before the end of the one before, %v", c.Seq, c.Start, prev.End)
		case !first && (c.Recording != prev.Recording || c.Init != prev.Init):
			r.t.Errorf("chunk %d: recording %d and init %d without first, after %d and %d", c.Seq, c.Recording, c.Init, prev.Recording, prev.Init)
		case first && c.Recording != 0 && (newEpoch || c.Recording != prev.Recording+1 || c.Init != prev.Init):
			r.t.Errorf("chunk %d begins recording %d", c.Seq, c.Recording)
		case c.Flags.Has(vms.FlagKey) != v.Sync:
			r.t.Errorf("chunk %d: flags %b, first picture is a keyframe: %v", c.Seq, c.Flags, v.Sync)
		}
		begins := first && c.Recording == 0
		if !begins && (!c.Start.Equal(prev.End) || v.Base != next) {
			r.t.Errorf("chunk %d of a span begins at %v, tick %d; the one before ended at %v, %d", c.Seq, c.Start, v.Base, prev.End, next)
		}
		next = v.Base + v.Duration
		if first {
			zero = f.Zero()
			o.recordings++
			o.late = max(o.late, int64(v.Base-zero))
		}
		if begins {
			o.spans++
		}
		if _, err := f.Rebase(nil, c.Payload, zero); err != nil {
			r.t.Errorf("chunk %d of recording %d: %v", c.Seq, c.Recording, err)
		}
		prev = c
	}
	return o
}

// allMuxed checks that no picture is missing, doubled or out of its decoding order.
func (r *rig) allMuxed(from int) {
	r.t.Helper()
	n := from
	for i := range r.chunks {
		mdat := r.chunks[i].Payload[r.chunks[i].MoofLen+8:]
		f, err := cmaf.ParseFragment(r.chunks[i].Payload)
		if err != nil {
			r.t.Fatal(err)
		}
		for range f.Run(cmaf.VideoTrack).Samples {
			if got, want := string(mdat[5:11]), fmt.Sprintf("%06d", n); got != want {
				r.t.Fatalf("picture %q where %s should be", got, want)
			}
			size := int(mdat[0])<<24 | int(mdat[1])<<16 | int(mdat[2])<<8 | int(mdat[3])
			mdat = mdat[4+size:]
			n++
		}
	}
	if n != r.frames {
		r.t.Errorf("%d pictures muxed of %d", n-from, r.frames-from)
	}
}

// firsts lists where recordings begin, in media time since the first picture.
func (r *rig) firsts() (at []time.Duration, dependent []bool) {
	ts := uint64(r.m.ts)
	var base uint64
	for i := range r.chunks {
		f, _ := cmaf.ParseFragment(r.chunks[i].Payload)
		v := f.Run(cmaf.VideoTrack)
		if i == 0 {
			base = v.Base
		}
		if r.chunks[i].Flags.Has(vms.FlagFirst) {
			at = append(at, toDuration(int64(v.Base-base), uint32(ts)))
			dependent = append(dependent, r.chunks[i].Flags.Has(vms.FlagDependent))
		}
	}
	return at, dependent
}
