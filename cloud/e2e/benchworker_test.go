package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/zipato/vms/agent/mux"
	"github.com/zipato/vms/cloud/objstore/s3"
	"github.com/zipato/vms/pkg/cmaf"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/vmstest/camtest"
	"github.com/zipato/vms/pkg/wire"
)

// What a worker promises to cost. `make bench-worker` fails when one is missed.
const (
	workerStreams   = 64
	maxOfFFmpeg     = 0.50 // CPU against ffmpeg -c copy, which uploads nothing
	maxOfFFmpegTLS  = 0.65 // with TLS to the agents and to the store
	minPerCore      = 620  // streams of 2 Mbit/s
	maxOfRclone     = 0.10 // CPU of one upload
	maxPerStreamMiB = 0.7  // anonymous memory, the process itself included
	maxOf10         = 1.1  // CPU of a stream among 500 against one among 10
	maxGrowth       = 1.1  // memory at the end against that at the beginning
)

const (
	// workerWindow is two recordings of each stream.
	workerWindow = time.Minute
	// workerSettle is until every stream has closed its first recording.
	workerSettle = 40 * time.Second
	rcloneObject = 7_700_000 // bytes: 30 s of 2 Mbit/s, with sound
)

// TestWorkerBench measures a worker that receives, cuts, sums and uploads, in a
// process of its own, against ffmpeg that only receives and writes files. The
// streams are not in step: those that are flatter any relay.
func TestWorkerBench(t *testing.T) {
	if os.Getenv("BENCH_WORKER") == "" {
		t.Skip("set BENCH_WORKER, as make bench-worker does: it takes some minutes, or with BENCH_FLAT=30m longer")
	}
	flat := 2 * time.Minute
	if s := os.Getenv("BENCH_FLAT"); s != "" {
		var err error
		if flat, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	b := &bench{stack: &stack{t: t}}
	large := camtest.Clip(t, vmstest.ClipSpec{Audio: "aac", Kbps: benchKbps, Size: "1280x720", Duration: 9600 * time.Millisecond})
	small := camtest.Clip(t, vmstest.ClipSpec{Kbps: 100, Duration: 9600 * time.Millisecond})
	mb := bytesPerSecond(large) / 1e6 * workerWindow.Seconds() * workerStreams
	t.Logf("%.2f and %.3f Mbit/s", bytesPerSecond(large)*8/1e6, bytesPerSecond(small)*8/1e6)

	ffmpeg := benchFFmpeg(t, large)
	b.figure("ffmpeg_cpu_ms_per_mb", ffmpeg.Seconds()*1000/mb, "ms/MB")

	w := benchWorkerRun(t, large, workerStreams, false, flat)
	perMB := w.cpu.Seconds() * 1000 / mb
	b.figure("worker_cpu_ms_per_mb", perMB, "ms/MB")
	b.want("worker_cpu_ratio_ffmpeg", w.cpu.Seconds()/ffmpeg.Seconds(), "x", func(v float64) bool { return v <= maxOfFFmpeg })
	b.want("worker_streams_per_core", workerStreams*workerWindow.Seconds()/w.cpu.Seconds(), "streams", func(v float64) bool { return v >= minPerCore })
	b.want("worker_mib_per_stream", w.mib/workerStreams, "MiB", func(v float64) bool { return v <= maxPerStreamMiB })
	b.want("worker_memory_growth", w.growth, "x", func(v float64) bool { return v <= maxGrowth })

	w = benchWorkerRun(t, large, workerStreams, true, 0)
	b.want("worker_cpu_ratio_ffmpeg_tls", w.cpu.Seconds()/ffmpeg.Seconds(), "x", func(v float64) bool { return v <= maxOfFFmpegTLS })

	few, many := benchWorkerRun(t, small, 10, false, 0), benchWorkerRun(t, small, 500, false, 0)
	b.figure("worker_cpu_ms_per_stream_minute_of_500", many.cpu.Seconds()*1000/500/workerWindow.Minutes(), "ms")
	b.want("worker_cpu_ratio_500_to_10", many.cpu.Seconds()/500/(few.cpu.Seconds()/10), "x", func(v float64) bool { return v <= maxOf10 })

	ours, rclone := benchUploads(t)
	b.figure("upload_cpu_ms", ours.Seconds()*1000, "ms")
	b.figure("upload_cpu_ms_rclone", rclone.Seconds()*1000, "ms")
	b.want("upload_cpu_ratio_rclone", ours.Seconds()/rclone.Seconds(), "x", func(v float64) bool { return v <= maxOfRclone })
}

// period is how long the picture of a clip lasts, in 90 kHz ticks.
func period(m *camtest.Media) int64 {
	n := int64(len(m.Video))
	return m.Video[n-1].DTS * n / (n - 1)
}

// bytesPerSecond is the rate of a clip's access units.
func bytesPerSecond(m *camtest.Media) float64 {
	n := 0
	for _, v := range m.Video {
		for _, u := range v.AU {
			n += len(u) + 4
		}
	}
	for _, a := range m.Audio {
		n += len(a.AU)
	}
	return float64(n) * camtest.VideoRate / float64(period(m))
}

// cpu is what a process has used so far, user and system.
func cpu(t *testing.T, pid int) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), ") ") // the name may hold spaces
	f := strings.Fields(rest)
	var ticks int64
	for _, s := range f[11:13] {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond // USER_HZ is 100 on every Linux that Go runs on
}

// anonymous is the memory of a process that belongs to no file, in MiB.
func anonymous(t *testing.T, pid int) float64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kb, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			if err != nil {
				t.Fatal(err)
			}
			return kb / 1024
		}
	}
	t.Fatal("no RssAnon in /proc: Linux 4.5 or newer is needed")
	return 0
}

// inMemory returns a folder on tmpfs that is gone when t is.
func inMemory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "vms-bench-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// benchFFmpeg returns the CPU time that so many ffmpeg use in a window, which
// pull the clip over RTSP and cut it into files on tmpfs.
func benchFFmpeg(t *testing.T, m *camtest.Media) (used time.Duration) {
	dir := inMemory(t)
	var pids []int
	var ends []func()
	defer func() {
		for _, end := range ends {
			end()
		}
	}()
	for i := range workerStreams {
		cam := camtest.Start(t, camtest.Options{Source: m, Loop: true, Live: true})
		cmd := exec.Command("ffmpeg", "-v", "error", "-nostdin", "-rtsp_transport", "tcp", "-i", cam.URL(), "-c", "copy",
			"-f", "segment", "-segment_time", "30", "-segment_format", "mp4", filepath.Join(dir, fmt.Sprintf("%d-%%d.mp4", i)))
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		pids = append(pids, cmd.Process.Pid)
		ends = append(ends, func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		time.Sleep(time.Duration(mrand.IntN(200)) * time.Millisecond) // out of step
	}
	sum := func() (d time.Duration) {
		for _, pid := range pids {
			d += cpu(t, pid)
		}
		return d
	}
	time.Sleep(workerSettle / 2)
	used = -sum()
	time.Sleep(workerWindow)
	return used + sum()
}

// workerCost is what a worker used in a window.
type workerCost struct {
	cpu    time.Duration
	mib    float64 // anonymous memory, the most of the window
	growth float64 // of it in the time after, 0 when there was none
}

// benchWorkerRun runs a worker with n streams of the clip, and goes on for flat
// after the window that is measured.
func benchWorkerRun(t *testing.T, m *camtest.Media, n int, secure bool, flat time.Duration) (cost workerCost) {
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	store := startStore(t)
	endpoint, env := store.url, store.env
	push, client := "ws", http.DefaultClient
	var args []string
	if secure {
		tlsDir := t.TempDir()
		cert, pool := selfSigned(t, tlsDir)
		endpoint = "https://" + terminate(t, cert, strings.TrimPrefix(store.url, "http://"))
		env = append(env, "SSL_CERT_FILE="+filepath.Join(tlsDir, "cert.pem"))
		args = []string{"-cert", filepath.Join(tlsDir, "cert.pem"), "-key", filepath.Join(tlsDir, "key.pem")}
		push, client = "wss", &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	}
	w := startProgram(t, "workerbench", env, append(args, "-dir", inMemory(t), "-s3-url", endpoint, "-bucket", store.bucket)...)
	url := push + "://" + w.line("listening ", 10*time.Second) + "/push"
	defer func() {
		cancel()
		all.Wait()
	}()
	all.Go(func() { store.deleteBehind(ctx) })
	var sent atomic.Int64
	for i := range n {
		p := &publisher{m: m, url: url, client: client, ch: vms.ChannelID(fmt.Sprintf("ch_bench%04d", i)), phase: 30 * time.Second * time.Duration(i) / time.Duration(n), sent: &sent}
		begin := time.Duration(mrand.Int64N(int64(4 * time.Second)))
		all.Go(func() {
			if err := p.run(ctx, begin); err != nil && ctx.Err() == nil {
				t.Errorf("publisher of %s: %v", p.ch, err)
			}
		})
	}
	pid := w.cmd.Process.Pid
	time.Sleep(workerSettle)
	stored, before := store.stored.Load(), cpu(t, pid)
	at, bytes := time.Now(), sent.Load()
	for time.Since(at) < workerWindow {
		time.Sleep(time.Second)
		cost.mib = max(cost.mib, anonymous(t, pid))
	}
	cost.cpu = cpu(t, pid) - before
	if got, want := float64(sent.Load()-bytes), bytesPerSecond(m)*workerWindow.Seconds()*float64(n); got < 0.97*want {
		t.Errorf("%.1f MB were sent of %.1f: this machine cannot feed so many streams", got/1e6, want/1e6)
	}
	if got, want := store.stored.Load()-stored, int64(2*n); got < want*8/10 {
		t.Errorf("%d recordings were stored while %d should have been", got, want)
	}
	if dir := os.Getenv("BENCH_PROFILE"); dir != "" && !secure && n == workerStreams {
		saveProfile(t, dir, "http://"+strings.TrimSuffix(strings.TrimPrefix(url, "ws://"), "/push"))
	}
	if flat > 0 {
		// The beginning and the end of the time, each a fifth, by what was used most.
		var first, last float64
		for at := time.Now(); time.Since(at) < flat; time.Sleep(time.Second) {
			switch v := anonymous(t, pid); {
			case time.Since(at) < flat/5:
				first = max(first, v)
			case time.Since(at) > flat*4/5:
				last = max(last, v)
			}
		}
		cost.growth = last / first
	}
	return cost
}

// saveProfile saves where the worker's time goes.
func saveProfile(t *testing.T, dir, url string) {
	resp, err := http.Get(url + "/debug/pprof/profile?seconds=30")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	f, err := os.Create(filepath.Join(dir, "worker.pprof"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(f, resp.Body); err != nil {
		t.Fatal(err)
	}
}

// benchStore is an object store in a process of its own, on tmpfs.
type benchStore struct {
	t           *testing.T
	url, bucket string
	env         []string
	client      *s3.Store
	stored      atomic.Int64
}

func startStore(t *testing.T) *benchStore {
	t.Helper()
	s := &benchStore{t: t, bucket: "bench", env: []string{"VMS_S3_ACCESS_KEY=bench-access", "VMS_S3_SECRET_KEY=bench-secret-key"}}
	p := startProgram(t, "objectstore", s.env, "-dir", filepath.Join(inMemory(t), "s3"), "-listen", "127.0.0.1:0", "-bucket", s.bucket)
	s.url = p.line("listening ", 20*time.Second)
	var err error
	if s.client, err = s3.New(s3.Config{Endpoint: s.url, Bucket: s.bucket, AccessKey: "bench-access", SecretKey: "bench-secret-key"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.client.Close)
	return s
}

// deleteBehind counts what is stored and deletes it, as a retention would.
func (s *benchStore) deleteBehind(ctx context.Context) {
	for ctx.Err() == nil {
		for o, err := range s.client.List(ctx, "recordings/", "") {
			if err != nil {
				break // the next round finds it
			}
			if s.client.Delete(ctx, o.Key) == nil {
				s.stored.Add(1)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(2 * time.Second):
		}
	}
}

// publisher brings a clip to a worker, over and over, at its own pace.
type publisher struct {
	m      *camtest.Media
	url    string
	client *http.Client
	ch     vms.ChannelID
	phase  time.Duration
	sent   *atomic.Int64
}

func (p *publisher) run(ctx context.Context, begin time.Duration) error {
	select {
	case <-ctx.Done():
		return nil
	case <-time.After(begin):
	}
	ws, _, err := websocket.Dial(ctx, p.url, &websocket.DialOptions{
		HTTPClient: p.client, Subprotocols: []string{wire.PushProtocol}, HTTPHeader: http.Header{"Authorization": {"Bearer " + string(p.ch)}},
	})
	if err != nil {
		return err
	}
	defer ws.CloseNow()
	ws.SetReadLimit(1 << 20)
	text := func(m wire.PushMessage) error {
		data, err := wire.EncodePush(m)
		if err != nil {
			return err
		}
		return ws.Write(ctx, websocket.MessageText, data)
	}
	epoch := vms.NewEpoch()
	if err := text(&wire.Hello{Agent: "bench", Lane: vms.LaneLive, Epochs: []vms.Epoch{epoch}}); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() {
		for { // credit is no matter: the worker has room
			_, data, err := ws.Read(ctx)
			if err == nil {
				var m wire.PushMessage
				if m, err = wire.DecodePush(data); err == nil {
					if e, ok := m.(*wire.ErrorMessage); ok {
						err = fmt.Errorf("%s: %s", e.Code, e.Message)
					}
				}
			}
			if err != nil {
				ended <- err
				return
			}
		}
	}()
	var out [][]byte
	var inits []wire.PushMessage
	mx := mux.New(mux.Config{
		Epoch: epoch, Phase: p.phase,
		OnInit: func(i vms.Init) {
			inits = append(inits, &wire.InitMessage{Epoch: i.Epoch, ID: i.ID, Tracks: i.Tracks, Segment: i.Segment})
		},
		OnChunk: func(c vms.Chunk) { out = append(out, wire.EncodeChunk(&c)) },
	})
	var sound *mux.Sound
	rate := int64(1)
	if c := p.m.AudioConfig; c != nil {
		config, err := c.Marshal()
		if err != nil {
			return err
		}
		sound, rate = &mux.Sound{Codec: "aac", Config: config, SampleRate: c.SampleRate, Channels: int(c.ChannelConfig)}, int64(c.SampleRate)
	}
	if err := mx.Open(cmaf.VideoParams{Codec: p.m.Codec, SPS: p.m.SPS, PPS: p.m.PPS}, sound); err != nil {
		return err
	}
	t0 := time.Now()
	long := period(p.m)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for round := int64(0); ; round++ {
		next := 0
		for _, v := range p.m.Video {
			at := t0.Add(time.Duration(round*long+v.DTS) * time.Second / camtest.VideoRate)
			for ; next < len(p.m.Audio) && p.m.Audio[next].PTS*camtest.VideoRate <= v.DTS*rate; next++ {
				mx.Audio(p.m.Audio[next].PTS+round*long*rate/camtest.VideoRate, at, p.m.Audio[next].AU)
			}
			mx.Video(v.PTS+round*long, at, false, time.Time{}, v.AU)
			for _, m := range inits {
				if err := text(m); err != nil {
					return err
				}
			}
			inits = inits[:0]
			if len(out) == 0 {
				continue
			}
			timer.Reset(time.Until(at))
			select {
			case <-ctx.Done():
				return nil
			case err := <-ended:
				return err
			case <-timer.C:
			}
			for _, c := range out {
				if err := ws.Write(ctx, websocket.MessageBinary, c); err != nil {
					return err
				}
				p.sent.Add(int64(len(c)))
			}
			clear(out)
			out = out[:0]
		}
		for ; next < len(p.m.Audio); next++ {
			mx.Audio(p.m.Audio[next].PTS+round*long*rate/camtest.VideoRate, t0.Add(time.Duration((round+1)*long)*time.Second/camtest.VideoRate), p.m.Audio[next].AU)
		}
	}
}

// benchUploads returns the CPU time of one upload, with its checksum, by the
// worker's uploader and by rclone.
func benchUploads(t *testing.T) (ours, rclone time.Duration) {
	const n = 50
	store := startStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	defer func() {
		cancel()
		all.Wait()
	}()
	all.Go(func() { store.deleteBehind(ctx) })
	file := filepath.Join(inMemory(t), "recording.mp4")
	data := make([]byte, rcloneObject)
	rand.Read(data)
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	used := func(cmd *exec.Cmd) time.Duration {
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
		}
		return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	}
	bench := func(puts int) time.Duration {
		cmd := exec.Command(filepath.Join(bin, "workerbench"), "-s3-url", store.url, "-bucket", store.bucket, "-put", file, "-puts", strconv.Itoa(puts))
		cmd.Env = append(os.Environ(), store.env...)
		return used(cmd)
	}
	// A worker runs on: what a process costs to begin is not the upload's.
	ours = (bench(n+1) - bench(1)) / n
	for i := range n / 5 {
		cmd := exec.Command("rclone", "copyto", file, fmt.Sprintf("bench:%s/recordings/rclone/%d.mp4", store.bucket, i))
		// Debian's rclone cannot begin with a bundle of its own.
		cmd.Env = append(slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, "AWS_CA_BUNDLE=") }),
			"RCLONE_CONFIG="+os.DevNull, "RCLONE_CONFIG_BENCH_TYPE=s3", "RCLONE_CONFIG_BENCH_PROVIDER=Other",
			"RCLONE_CONFIG_BENCH_ENDPOINT="+store.url, "RCLONE_CONFIG_BENCH_ACCESS_KEY_ID=bench-access", "RCLONE_CONFIG_BENCH_SECRET_ACCESS_KEY=bench-secret-key")
		rclone += used(cmd)
	}
	return ours, rclone / (n / 5)
}

// selfSigned writes cert.pem and key.pem of the loopback into dir.
func selfSigned(t *testing.T, dir string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})
	for name, data := range map[string][]byte{"cert.pem": certPEM, "key.pem": keyPEM} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	return cert, pool
}

// terminate stands in front of the plain server at addr and speaks TLS. It
// returns its own address.
func terminate(t *testing.T, cert tls.Certificate, addr string) string {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer in.Close()
				out, err := net.Dial("tcp", addr)
				if err != nil {
					return
				}
				defer out.Close()
				go func() {
					_, _ = io.Copy(in, out) // either end may go first
					in.Close()
				}()
				_, _ = io.Copy(out, in)
			}()
		}
	}()
	return l.Addr().String()
}
