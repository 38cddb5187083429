package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"regexp"
	"strings"
	"testing"

	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/vmstest/camtest"
)

func TestClipLoopsWithoutASeam(t *testing.T) {
	m, err := camtest.Read(bytes.NewReader(clip))
	if err != nil {
		t.Fatal(err)
	}
	if m.Codec != "h264" || len(m.Video) != 600 || len(m.Audio) < 1125 || m.AudioConfig.SampleRate != 48000 {
		t.Errorf("%s, %d pictures, %d audio units", m.Codec, len(m.Video), len(m.Audio))
	}
	for i := 1; i < len(m.Video); i++ {
		if d := m.Video[i].DTS - m.Video[i-1].DTS; d != 3600 {
			t.Fatalf("picture %d comes %d ticks after the one before", i, d)
		}
	}
	if len(clip) > 1_600_000 {
		t.Errorf("the clip has %d bytes: too large to carry around", len(clip))
	}
}

func TestServesTheClipToWhoKnowsThePassword(t *testing.T) {
	vmstest.NoLeaks(t)
	ctx, stop := context.WithCancel(t.Context())
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := run(ctx, []string{"-listen", "127.0.0.1:0", "-password", "geheim"}, w)
		w.CloseWithError(io.EOF)
		done <- err
	}()
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		t.Fatalf("no line: %v (%v)", err, <-done)
	}
	if strings.Contains(line, "geheim") {
		t.Errorf("the password is in %q", line)
	}
	u := regexp.MustCompile(`rtsp://\S+/demo`).FindString(line)
	out := vmstest.FFprobe(t, "-v", "error", "-rtsp_transport", "tcp", "-show_entries", "stream=codec_name", "-of", "csv=p=0",
		strings.Replace(u, "://", "://demo:geheim@", 1))
	if got := strings.Fields(string(out)); len(got) != 2 || got[0] != "h264" || got[1] != "aac" {
		t.Errorf("ffprobe sees %q", out)
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("run = %v after shutdown, want nil", err)
	}
}

func TestATakenPortIsSaid(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err = run(t.Context(), []string{"-listen", l.Addr().String()}, io.Discard)
	if err == nil || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Errorf("err = %v", err)
	}
}
