package e2e

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/zipato/vms/agent/spool"
	"github.com/zipato/vms/pkg/cmaf"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// simRecording is the length of a recording: a third of the usual one, so that
// a short run has many.
const simRecording = 10 * time.Second

// simLongest is where a recording is cut that no keyframe ends.
const simLongest = 4 * simRecording

// simInits are what cameras change between.
var simInits = sync.OnceValue(func() (inits []vms.Init) {
	unhex := func(s string) []byte { b, _ := hex.DecodeString(s); return b }
	for _, pps := range []string{"68ee0fcb", "68ee3c80", "68eb8f20"} {
		seg, tracks, err := cmaf.BuildInit(90000, cmaf.VideoParams{
			Codec: "h264", SPS: unhex("6764001facb402802dd808800000030080000019078c1950"), PPS: unhex(pps),
		}, nil)
		if err != nil {
			panic(err)
		}
		inits = append(inits, vms.Init{Tracks: tracks, Segment: seg})
	}
	return inits
})

// footage is what is known of one chunk outside of the system under test.
type footage struct {
	epoch      vms.Epoch
	seq        uint64
	flags      vms.Flags
	recording  uint32
	start, end time.Time
	sum        uint32 // of the mdat box
	size       int
	boot       int
	gop        int       // counts the GOPs of the channel
	poison     bool      // no worker will ever take it
	ended      bool      // an end was said right behind it
	released   bool      // it left the hub, rightly
	missed     time.Time // since when it is not there, and not declared yet
	crashed    bool      // it was lost with the hub's memory
}

// simCamera makes the chunks of one channel as the muxer stamps them, in real
// time, into the spool of whichever run of the hub is there.
type simCamera struct {
	ch    vms.ChannelID
	chunk time.Duration
	gops  []int // lengths of GOPs, in chunks, to choose from
	size  int   // of a chunk that begins with no keyframe
	phase time.Duration

	mu       sync.Mutex
	rng      *rand.Rand
	spool    *spool.Spool // nil: the hub is down
	boot     int
	all      []*footage
	epoch    vms.Epoch
	seq      uint64
	initID   uint32
	codec    int
	fresh    bool // the next chunk begins a span
	left     int  // chunks left of the GOP
	gop      int
	number   uint32
	recStart time.Time
	lastEnd  time.Time // of the newest chunk, or when the hub began
	ended    bool
	awayFor  time.Duration
	away     *vms.Gap
	poison   bool // the next chunk is
}

// attach begins a run of the hub.
func (c *simCamera) attach(s *spool.Spool, boot int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.spool, c.boot = s, boot
	c.newEpoch()
	c.lastEnd, c.away, c.ended = time.Now().UTC().Truncate(time.Microsecond), nil, false
}

func (c *simCamera) newEpoch() {
	c.epoch, c.seq, c.initID, c.fresh = vms.NewEpoch(), 0, 0, true
}

// detach ends it; said: the hub had time to say so.
func (c *simCamera) detach(said bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if said {
		c.end("stopped")
	}
	c.spool = nil
}

// end says that nothing follows for now. c.mu is held.
func (c *simCamera) end(cause string) {
	if c.spool == nil || c.seq == 0 || c.ended {
		return
	}
	c.ended, c.fresh = true, true
	c.spool.End(c.epoch, c.seq, cause)
	c.all[len(c.all)-1].ended = true
}

// leave makes the camera stay away for d.
func (c *simCamera) leave(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.awayFor = max(c.awayFor, d)
}

// change makes it come with another codec, or makes the hub set its clock back,
// or spoils the next chunk.
func (c *simCamera) change(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch what {
	case "codec":
		c.codec, c.fresh = (c.codec+1)%len(simInits()), true
	case "epoch":
		if c.seq > 0 {
			c.end("clock_set_back")
			c.newEpoch()
			c.ended = false
		}
	case "poison":
		c.poison = true
	}
}

// run makes chunks until stop is closed.
func (c *simCamera) run(stop <-chan struct{}) {
	t := time.NewTicker(c.chunk)
	defer t.Stop()
	for {
		select {
		case <-stop:
			return
		case now := <-t.C:
			c.tick(now.UTC().Truncate(time.Microsecond))
		}
	}
}

// tick is called when the time of one more chunk has passed.
func (c *simCamera) tick(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.spool == nil {
		return
	}
	if c.awayFor > 0 {
		c.end(string(vms.CauseCameraOffline))
		c.awayFor = max(0, c.awayFor-c.chunk)
		if now.Sub(c.lastEnd) >= 10*time.Second && now.UnixMilli()/1000%5 == 0 {
			c.grow(now)
		}
		return
	}
	start := now.Add(-c.chunk)
	if !c.fresh {
		start = c.lastEnd
	} else if start.Before(c.lastEnd) {
		if now.Sub(c.lastEnd) < c.chunk/2 {
			return
		}
		start = c.lastEnd
	}
	if d := start.Sub(c.lastEnd); c.away != nil || d >= time.Millisecond && (c.seq > 0 || d >= 2*time.Second) {
		c.grow(start)
		c.away = nil
	}
	c.emit(start, now)
}

// grow declares the camera's absence until now. c.mu is held.
func (c *simCamera) grow(now time.Time) {
	if c.away == nil {
		c.away = &vms.Gap{ID: vms.NewID[vms.GapID]("gap"), Cause: vms.CauseCameraOffline}
	}
	c.away.Start, c.away.End = c.lastEnd, now
	if c.away.Duration() > 0 {
		c.spool.Declare(*c.away)
	}
}

// emit makes a chunk. c.mu is held.
func (c *simCamera) emit(start, end time.Time) {
	key := c.fresh || c.left == 0
	var flags vms.Flags
	if key {
		flags |= vms.FlagKey
		c.left = c.gops[c.rng.IntN(len(c.gops))]
		c.gop++
	}
	c.left--
	switch {
	case c.fresh:
		init := simInits()[c.codec]
		c.initID++
		init.Epoch, init.ID = c.epoch, c.initID
		c.spool.PutInit(init)
		flags |= vms.FlagFirst
		c.number = 0
	case key && !start.Before(c.boundary()), start.Sub(c.recStart) >= simLongest:
		flags |= vms.FlagFirst
		if !key {
			flags |= vms.FlagDependent
		}
		c.number++
	}
	if flags.Has(vms.FlagFirst) {
		c.recStart = start
	}
	c.seq++
	size := c.size/2 + c.rng.IntN(c.size)
	if key {
		size *= 3
	}
	data := make([]byte, 16+size)
	binary.BigEndian.PutUint64(data[1:], uint64(c.epoch))
	binary.BigEndian.PutUint32(data[9:], uint32(c.seq))
	data[0] = 0x41
	if key {
		data[0] = 0x65
	}
	payload, n, err := cmaf.BuildFragment(uint32(c.seq), []cmaf.Run{{Track: cmaf.VideoTrack, Base: c.seq * 90000, Samples: []cmaf.Sample{
		{Duration: uint32(end.Sub(start) * 90000 / time.Second), Sync: key, NALs: [][]byte{data}},
	}}})
	if err != nil {
		panic(err)
	}
	f := &footage{
		epoch: c.epoch, seq: c.seq, flags: flags, recording: c.number, start: start, end: end,
		sum: crc32.ChecksumIEEE(payload[n:]), size: len(payload), boot: c.boot, gop: c.gop, poison: c.poison,
	}
	if c.poison {
		copy(payload[bytes.Index(payload, []byte("tfdt")):], "none")
		c.poison = false
	}
	c.all = append(c.all, f)
	c.fresh, c.ended, c.lastEnd = false, false, end
	c.spool.Append(vms.Chunk{
		Epoch: c.epoch, Seq: c.seq, Recording: c.number, Init: c.initID, Flags: flags, Start: start, End: end,
		MoofLen: n, CRC: wire.Checksum(payload), Payload: payload,
	})
}

// boundary is where the next recording may begin, as in package mux.
func (c *simCamera) boundary() time.Time {
	least := simRecording / 16
	past := time.Duration(c.recStart.Add(least).UnixNano()-int64(c.phase)) % simRecording
	if past <= 0 {
		past += simRecording
	}
	return c.recStart.Add(least + simRecording - past)
}

// captured lists the chunks so far.
func (c *simCamera) captured() []*footage {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.all[:len(c.all):len(c.all)]
}
