package agent

import (
	"bufio"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/zipato/vms/agent/lan"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/vmstest/camtest"
	"github.com/zipato/vms/pkg/wire"
)

var logged = regexp.MustCompile(`msg="local API" address=(\S+)`)

// TestSIGTERMSavesEverything within 5 s, in a process as it runs on a hub: no
// worker takes anything, and nothing is on flash before.
func TestSIGTERMSavesEverything(t *testing.T) {
	vmstest.NoLeaks(t)
	program := filepath.Join(t.TempDir(), "vms-agent")
	if out, err := exec.Command("go", "build", "-o", program, "./cmd/vms-agent").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	c := newCloud(t)
	cam := camtest.Start(t, camtest.Options{Loop: true})
	dir := enrolled(t, c)
	key, err := os.ReadFile(filepath.Join(dir, "lan-key"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-data", dir, "-listen", "127.0.0.1:0", "-ram", "24MiB")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
		http.DefaultClient.CloseIdleConnections()
	})
	address := make(chan string, 1)
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			if m := logged.FindStringSubmatch(lines.Text()); m != nil {
				address <- m[1]
			}
			t.Log(lines.Text())
		}
	}()
	h := &hub{t: t, key: strings.TrimSpace(string(key))}
	select {
	case a := <-address:
		h.url = "http://" + a
	case <-time.After(20 * time.Second):
		t.Fatal("the agent does not listen")
	}
	before := h.startOne(c, cam, 15)
	if before.FlashBytes != 0 {
		t.Errorf("%d bytes on flash with room in RAM", before.FlashBytes)
	}
	_, body := h.call("GET", "/v1/status", nil)
	var st lan.Status
	if err := json.Unmarshal([]byte(body), &st); err != nil || st.RAM.Limit != 24<<20 || st.Flash == nil || st.Flash.Written != 0 {
		t.Errorf("status %s, %v", body, err)
	}
	began := time.Now()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-drained // before Wait, which closes the pipe
	err = cmd.Wait()
	if took := time.Since(began); err != nil || took > 5*time.Second {
		t.Errorf("the agent ended after %v with %v, want 0 within 5 s", took, err)
	}
	cam.PowerOff() // the next agent pulls it again, and this is about what the first one left
	after := runHubWith(t, Config{Dir: dir}).until("what it held", func(s lan.Stream) bool { return s.Origin == wire.OriginLAN && s.HeldChunks > 0 })
	if after.HeldChunks < before.HeldChunks || after.HeldFrom.After(before.HeldFrom) || after.HeldUntil.Before(before.HeldUntil) || after.OpenGaps != 0 {
		t.Errorf("held %d chunks from %v to %v before, %d from %v to %v after", before.HeldChunks, before.HeldFrom, before.HeldUntil,
			after.HeldChunks, after.HeldFrom, after.HeldUntil)
	}
}
