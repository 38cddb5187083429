package mux

import (
	"bytes"
	"testing"

	"github.com/zipato/vms/pkg/cmaf"
)

// TestSecondParameterSetStaysInTheSamples: a camera that uses two picture
// parameter sets beside each other neither begins a span with each of them nor
// loses the one that is not in the init segment.
func TestSecondParameterSetStaysInTheSamples(t *testing.T) {
	for name, tt := range map[string]struct {
		codec         string
		first, second []byte // ids 0 and 1
		idr           []byte
	}{
		"h264": {"h264", []byte{0x68, 0xce, 0x3c, 0x80}, []byte{0x68, 0x5e, 0x3c, 0x80}, []byte{0x65, 0x88, 0x80}},
		"h265": {"h265", []byte{0x44, 0x01, 0xc1, 0x72}, []byte{0x44, 0x01, 0x40, 0x72}, []byte{0x26, 0x01, 0xaf, 0x08}},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := newParams(cmaf.VideoParams{Codec: tt.codec})
			if err != nil {
				t.Fatal(err)
			}
			in := p.inspect([][]byte{tt.first, tt.second, tt.idr})
			if !in.changed || !in.key || !bytes.Equal(p.PPS, tt.first) {
				t.Fatalf("first picture: changed %v, key %v, set %x", in.changed, in.key, p.PPS)
			}
			if len(in.nalus) != 2 || !bytes.Equal(in.nalus[0], tt.second) {
				t.Errorf("sample holds %x, want the second set and the picture", in.nalus)
			}
			if again := p.inspect([][]byte{tt.first, tt.second, tt.idr}); again.changed {
				t.Error("the same sets again are taken for a change")
			}
			other := append(bytes.Clone(tt.first), 1)
			if changed := p.inspect([][]byte{other, tt.idr}); !changed.changed || !bytes.Equal(p.PPS, other) {
				t.Error("another set of the first id is no change")
			}
		})
	}
}
