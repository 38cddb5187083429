package mux

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/cmaf"
	"github.com/zipato/vms/pkg/vms"
)

// FuzzMux feeds whatever a camera and a clock may come up with, eight bytes a
// step, and checks what must hold of any chunks.
func FuzzMux(f *testing.F) {
	steps := func(ops ...[8]byte) (b []byte) {
		for _, o := range ops {
			b = append(b, o[:]...)
		}
		return b
	}
	f.Add(steps([8]byte{0, 40, 1}, [8]byte{1, 40}, [8]byte{1, 40}, [8]byte{4}), uint8(1), uint8(0))
	f.Add(steps([8]byte{0, 40, 1}, [8]byte{2, 20}, [8]byte{1, 120, 0, 0, 250}, [8]byte{2, 20, 0, 0, 255}, [8]byte{3, 255}, [8]byte{0, 40, 2}), uint8(2), uint8(1))
	f.Add(steps([8]byte{0, 1, 0, 0xff, 0xff, 0xff}, [8]byte{5, 1}, [8]byte{0, 40, 3}, [8]byte{6, 200}), uint8(7), uint8(6))
	f.Fuzz(func(t *testing.T, data []byte, config, kind uint8) {
		if len(data) > 8*600 {
			return
		}
		epoch := vms.Epoch(1)
		cfg := Config{Recording: time.Duration(1+config%8) * time.Second, Phase: time.Duration(config) * 100 * time.Millisecond, ChunkBytes: 4096}
		if config&64 != 0 {
			cfg.NewEpoch = func() vms.Epoch { epoch++; return epoch }
		}
		r := newRig(t, cfg)
		sound := aac
		if config&128 != 0 {
			sound = &Sound{Config: []byte{0x12, 0x10}, SampleRate: 44100, Channels: 2}
		}
		switch kind & 3 {
		case 1:
			sound = pcmu
		case 2:
			sound = &Sound{Codec: "lpcm", SampleRate: 44100, Channels: 2, BitDepth: 16}
		case 3:
			sound = &Sound{Codec: "pcma", SampleRate: 8001, Channels: 1} // no common clock with the picture
		}
		params := cmaf.VideoParams{Codec: "h264", SPS: spsOf(20, int(config>>3&3)-1), PPS: pps}
		if kind&4 != 0 {
			params = cmaf.VideoParams{Codec: "mjpeg"}
		}
		r.open(params, sound)
		now, pts, apts := t0, int64(0), int64(0)
		for ; len(data) >= 8; data = data[8:] {
			now = now.Add(time.Duration(data[1]) * time.Millisecond)
			by := int64(int16(binary.BigEndian.Uint16(data[3:]))) << (data[5] % 32)
			switch data[0] % 8 {
			case 0:
				pts += 3600 + by
				au := [][]byte{{0x65, 1, 2, 3}}
				switch data[2] % 4 {
				case 0:
					if kind&4 != 0 { // a frame header and a scan are all that is looked at
						au[0] = []byte{0xff, 0xd8, 0xff, 0xc0, 0, 11, 8, 0, 1 + data[6]%2, 0, 8, 1, 1, 0x11, 0, 0xff, 0xda, 0, 2}
					}
				case 1:
					au = append([][]byte{spsOf(20+int(data[6]%3), int(data[7]%4)-1), pps}, au...)
				case 2:
					au = append([][]byte{data[:8], {0x67, data[6], data[7], 1, 2, 3}}, au...)
				}
				r.m.Video(pts, now, data[2]&128 != 0, time.Time{}, au)
			case 1:
				pts += 3600 + by
				r.m.Video(pts, now, false, now, [][]byte{append([]byte{0x41}, make([]byte, int(data[6])<<4)...)})
			case 2:
				apts += 1024 + by
				if kind&3 == 0 {
					r.m.Audio(apts, now, data[:4])
				} else {
					r.m.Audio(apts, now, make([]byte, int(data[6])<<(data[7]%5)))
				}
			case 3:
				now = now.Add(time.Duration(by) * time.Millisecond)
				r.m.Tick(now)
				r.m.WantsKeyframe(now)
			case 4:
				r.m.Flush()
			case 5:
				r.m.SetWatched(data[2]&1 != 0)
				r.m.SetOptions(time.Duration(1+data[6]%20)*time.Second, time.Duration(data[6])*50*time.Millisecond, time.Duration(20+int(data[7])*39)*time.Millisecond)
			case 6:
				if data[2]&1 != 0 {
					sound = nil
				}
				r.open(params, sound)
			case 7:
				r.m.Video(pts+by, now, false, time.Time{}, [][]byte{data[1:8], data[2:4]})
			}
			if now.Year() < 2000 || now.Year() > 2200 {
				return // not what a clock says
			}
		}
		r.m.Flush()
		r.check()
		if kind&3 != 0 {
			r.hear(-1)
		}
	})
}
