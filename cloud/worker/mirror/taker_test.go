package mirror_test

import (
	"bufio"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bluenviron/gortsplib/v5/pkg/base"
	"github.com/bluenviron/gortsplib/v5/pkg/conn"
	"github.com/bluenviron/gortsplib/v5/pkg/format/rtph264"
	"github.com/bluenviron/gortsplib/v5/pkg/headers"
	"github.com/pion/rtp"
)

// taker is an RTSP server that behaves as the test wants.
type taker struct {
	t  testing.TB
	ln net.Listener
	wg sync.WaitGroup

	refuse atomic.Int32 // answer ANNOUNCE with this status
	mute   atomic.Bool  // answer nothing
	stall  atomic.Bool  // read nothing after RECORD
	count  atomic.Bool  // after RECORD only count what comes, in read
	read   atomic.Int64

	mu       sync.Mutex
	conns    map[net.Conn]bool
	sessions []*taken
}

// taken is what one session brought.
type taken struct {
	path string
	sdp  string
	over bool // TEARDOWN came
	aus  []au
}

// au is an access unit of H264.
type au struct {
	time uint32
	nals [][]byte
}

func startTaker(t testing.TB) *taker {
	t.Helper()
	k := &taker{t: t, conns: map[net.Conn]bool{}}
	k.listen("127.0.0.1:0")
	t.Cleanup(k.stop)
	return k
}

func (k *taker) listen(addr string) {
	k.t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		k.t.Fatal(err)
	}
	k.ln = ln
	k.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			k.mu.Lock()
			k.conns[c] = true
			k.mu.Unlock()
			k.wg.Go(func() { k.serve(c) })
		}
	})
}

// stop ends everything, as a crash does.
func (k *taker) stop() {
	k.ln.Close()
	k.cut()
	k.wg.Wait()
}

// cut closes all connections.
func (k *taker) cut() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for c := range k.conns {
		c.Close()
	}
	clear(k.conns)
}

func (k *taker) url(credentials string) string {
	return "rtsp://" + credentials + k.ln.Addr().String() + "/live/{channel}"
}

func (k *taker) serve(c net.Conn) {
	defer c.Close()
	rc := conn.NewConn(bufio.NewReader(c), c)
	s := &taken{}
	decoder := &rtph264.Decoder{PacketizationMode: 1}
	if err := decoder.Init(); err != nil {
		k.t.Error(err)
		return
	}
	for {
		what, err := rc.Read()
		if err != nil {
			return
		}
		switch what := what.(type) {
		case *base.Request:
			if k.mute.Load() {
				continue
			}
			if err := rc.WriteResponse(k.answer(s, what)); err != nil {
				return
			}
			if what.Method == base.Record && k.count.Load() {
				_, _ = io.Copy(k, c)
				return
			}
			if what.Method == base.Record && k.stall.Load() {
				for k.open(c) {
					time.Sleep(5 * time.Millisecond) // its buffers fill up
				}
				return
			}
		case *base.InterleavedFrame:
			if what.Channel == 0 {
				k.packet(s, decoder, what.Payload)
			}
		}
	}
}

// Write counts.
func (k *taker) Write(p []byte) (int, error) {
	k.read.Add(int64(len(p)))
	return len(p), nil
}

// open reports whether c was not cut.
func (k *taker) open(c net.Conn) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.conns[c]
}

// answer is what the server says to a request.
func (k *taker) answer(s *taken, r *base.Request) *base.Response {
	res := &base.Response{StatusCode: base.StatusOK, Header: base.Header{"CSeq": r.Header["CSeq"], "Session": base.HeaderValue{"abc"}}}
	switch r.Method {
	case base.Announce:
		if n := k.refuse.Load(); n != 0 {
			res.StatusCode = base.StatusCode(n)
			res.Header["WWW-Authenticate"] = base.HeaderValue{`Digest realm="r", nonce="n"`}
			return res
		}
		s.path, s.sdp = r.URL.Path, string(r.Body)
	case base.Setup:
		var tr headers.Transport
		if err := tr.Unmarshal(r.Header["Transport"]); err != nil {
			k.t.Errorf("transport: %v", err)
		}
		tr.Mode = nil
		res.Header["Transport"] = tr.Marshal()
	case base.Record:
		k.mu.Lock()
		k.sessions = append(k.sessions, s)
		k.mu.Unlock()
	case base.Teardown:
		k.mu.Lock()
		s.over = true
		k.mu.Unlock()
	}
	return res
}

func (k *taker) packet(s *taken, d *rtph264.Decoder, b []byte) {
	var p rtp.Packet
	if err := p.Unmarshal(b); err != nil {
		k.t.Errorf("RTP: %v", err)
		return
	}
	nals, err := d.Decode(&p)
	if err != nil {
		return // more packets needed
	}
	a := au{time: p.Timestamp}
	for _, n := range nals {
		a.nals = append(a.nals, slices.Clone(n))
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	s.aus = append(s.aus, a)
}

// session returns what the n-th session brought so far, from 0; nil: there was none.
func (k *taker) session(n int) *taken {
	k.mu.Lock()
	defer k.mu.Unlock()
	if n >= len(k.sessions) {
		return nil
	}
	s := *k.sessions[n]
	s.aus = slices.Clone(s.aus)
	return &s
}

// pictures waits until the n-th session has brought so many, and returns it.
func (k *taker) pictures(n, count int) *taken {
	k.t.Helper()
	var s *taken
	waitFor(k.t, "pictures", func() bool {
		s = k.session(n)
		return s != nil && len(s.aus) >= count
	})
	return s
}

// over waits for the n-th session's end.
func (k *taker) over(n int) *taken {
	k.t.Helper()
	var s *taken
	waitFor(k.t, "the session's end", func() bool {
		s = k.session(n)
		return s != nil && s.over
	})
	return s
}

// isKey reports whether a begins with parameter sets and an IDR picture.
func (a au) isKey() bool {
	var kinds []byte
	for _, n := range a.nals {
		if k := n[0] & 0x1f; k != 9 && k != 6 { // delimiter, remarks
			kinds = append(kinds, k)
		}
	}
	return strings.HasPrefix(string(kinds), "\x07\x08\x05")
}
