package camtest_test

import (
	"bytes"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/vmstest/camtest"
)

// seen collects what a camera says it sent.
type seen struct {
	mu   sync.Mutex
	sent []camtest.Sent
}

func (s *seen) add(u camtest.Sent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = append(s.sent, u)
}

// pictures returns the numbers of the pictures of one client, in order.
func (s *seen) pictures(client int64) (numbers []uint64, first camtest.Sent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, u := range s.sent {
		if u.Video && u.Client == client {
			if numbers == nil {
				first = u
			}
			numbers = append(numbers, u.Number)
		}
	}
	return numbers, first
}

// TestLiveClientsJoinWhereTheCameraIs: a client that comes later sees later
// pictures, from a keyframe on, and the same ones as those who are there.
func TestLiveClientsJoinWhereTheCameraIs(t *testing.T) {
	for _, codec := range []string{"h264", "h265"} {
		t.Run(codec, func(t *testing.T) {
			vmstest.NoLeaks(t)
			var s seen
			cam := camtest.Start(t, camtest.Options{
				Source: camtest.Clip(t, vmstest.ClipSpec{Codec: codec, Audio: "aac", GOP: 10, Duration: 3200 * time.Millisecond}),
				Loop:   true, Live: true, Stamp: true, OnSent: s.add,
			})
			var got [][]byte
			for range 2 {
				got = append(got, vmstest.FFmpeg(t, "-v", "error", "-nostdin", "-rtsp_transport", "tcp", "-i", cam.URL(),
					"-map", "0:v", "-c", "copy", "-t", "0.8", "-f", "data", "-"))
			}
			var joined []camtest.Sent
			for client := range 2 {
				numbers, first := s.pictures(nthClient(&s, client))
				if len(numbers) < 10 || !first.Key || first.Number%10 != 0 {
					t.Errorf("client %d: %d pictures from %d on, key %v; want ten or more from a keyframe", client, len(numbers), first.Number, first.Key)
				}
				for i := 1; i < len(numbers); i++ {
					if numbers[i] != numbers[i-1]+1 {
						t.Errorf("client %d: %d after %d", client, numbers[i], numbers[i-1])
					}
				}
				stamps := camtest.Stamps(got[client])
				if len(stamps) < 5 || !slices.Contains(numbers, stamps[0]) || !slices.IsSorted(stamps) {
					t.Errorf("client %d received %v, sent were %v", client, stamps, numbers)
				}
				joined = append(joined, first)
			}
			if joined[1].Number <= joined[0].Number+10 {
				t.Errorf("the second client joined at %d, the first at %d", joined[1].Number, joined[0].Number)
			}
		})
	}
}

// nthClient returns the n-th client that was sent anything.
func nthClient(s *seen, n int) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var clients []int64
	for _, u := range s.sent {
		if !slices.Contains(clients, u.Client) {
			clients = append(clients, u.Client)
		}
	}
	slices.Sort(clients)
	return clients[n]
}

// TestStampedUnitsAreDistinctAndDecode: a clip that is played more than once
// has no two equal units, and the numbers do not disturb a decoder.
func TestStampedUnitsAreDistinctAndDecode(t *testing.T) {
	vmstest.NoLeaks(t)
	var s seen
	spec := vmstest.ClipSpec{Audio: "aac", GOP: 10, Duration: 320 * time.Millisecond}
	cam := camtest.Start(t, camtest.Options{
		Source: camtest.Clip(t, spec), Loop: true, Stamp: true, Speed: 8, OnSent: s.add,
	})
	for _, kind := range []string{"v", "a"} {
		want := vmstest.FrameMD5(t, kind, vmstest.MakeClip(t, spec))
		got := vmstest.FrameMD5(t, kind, cam.URL(), "-xerror", "-rtsp_transport", "tcp", "-t", "2")
		if len(got) < 2*len(want) || kind == "v" && !slices.Equal(got[:len(want)], want) {
			t.Errorf("%s: %d frames decoded, the clip has %d", kind, len(got), len(want))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	units := map[string]uint64{}
	for _, u := range s.sent {
		key := string(bytes.Join(u.AU, nil))
		if n, ok := units[key]; ok && n != u.Number {
			t.Fatalf("units %d and %d are equal", n, u.Number)
		}
		units[key] = u.Number
	}
	if len(units) < 50 {
		t.Errorf("%d different units", len(units))
	}
}
