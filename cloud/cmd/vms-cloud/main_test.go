package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestBadArgumentsAreRefused(t *testing.T) {
	for args, says := range map[string]string{
		"start":                       "no command",
		"-recording 1ms":              "-recording",
		"-recording 1h":               "-recording",
		"-retention -1s":              "negative",
		"-retention-bytes -1":         "negative",
		"-worker-bytes 5":             "unfinished",
		"-s3-url s3.example":          "VMS_S3_URL",
		"-s3-url http://127.0.0.1:1":  "VMS_S3_ACCESS_KEY",
		"-reconcile -1s":              "-reconcile",
		"-unreachable 0s":             "-unreachable",
		"-log-level loud":             "loud",
		"-listen 0.0.0.0:0":           "VMS_PUBLIC_URL",
		"-s3-listen 0.0.0.0:0":        "VMS_S3_PUBLIC_URL",
		"-public-url ftp://x":         "VMS_PUBLIC_URL",
		"-nothing":                    "nothing",
		"-listen nonsense -insecure":  "nonsense",
		"-s3-public-url vms.example/": "VMS_S3_PUBLIC_URL",
		"-mqtt-listen 0.0.0.0:0":      "VMS_MQTT_PUBLIC_URL",
		"-mqtt-url broker.example":    "VMS_MQTT_URL",
		"-mqtt-public-url http://b":   "VMS_MQTT_PUBLIC_URL",
		"-mqtt-cert x":                "VMS_MQTT_KEY",
		"-roles api":                  "go together",
		"-roles clips":                "VMS_ROLES",
		"-roles worker":               "listen is for role nvr", // of -s3-listen or -mqtt-listen
		"-roles api,nvr -zone a":      "-zone is for role worker",
		"-nvr-url ws://127.0.0.1:1":   "-roles worker",
		"-zone A":                     "VMS_ZONE",
		"-worker-id A":                "VMS_WORKER_ID",
		"-max-streams -1":             "-max-streams",
		"-max-mbit -1":                "-max-mbit",
		"-max-mbit 9000000000000":     "-max-mbit",
		"-drain-for 0s":               "-drain-for",
		"-cluster-key-file missing":   "cluster key",
	} {
		all := append([]string{"-data", t.TempDir(), "-listen", "127.0.0.1:0", "-s3-listen", "127.0.0.1:0", "-mqtt-listen", "127.0.0.1:0"}, strings.Fields(args)...)
		if err := run(t.Context(), all, io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want it to say %q", args, err, says)
		}
	}
	if err := run(t.Context(), []string{"-help"}, io.Discard, io.Discard); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("-help: %v", err)
	}
}

// TestBadArgumentsOfAWorkerAloneAreRefused: what it lacks is named by the flag or
// variable that brings it.
func TestBadArgumentsOfAWorkerAloneAreRefused(t *testing.T) {
	const nvr, s3, dir = " -nvr-url ws://127.0.0.1:1/workers/v1", " -s3-url http://127.0.0.1:2", " -worker-dir ."
	for args, says := range map[string]string{
		"":                                 "-nvr-url",
		nvr:                                "-worker-dir",
		nvr + dir:                          "-s3-url",
		nvr + dir + s3:                     "VMS_S3_SECRET_KEY",
		nvr + dir + " -zone x_y!":          "VMS_ZONE",
		nvr + dir + " -worker-id x_y!":     "VMS_WORKER_ID",
		nvr + dir + " -uploader ftp":       "rclone",
		nvr + dir + " -max-streams x":      "max-streams",
		"-recording 10s":                   "-recording is for role nvr",
		"-retention 1h":                    "-retention is for role nvr",
		"-mqtt-url mqtts://b":              "-mqtt-url is for role nvr",
		"-listen 0.0.0.0:0":                "VMS_PUBLIC_URL",
		"-nvr-url http://127.0.0.1:1" + s3: "VMS_NVR_URL",
	} {
		all := append([]string{"-roles", "worker", "-data", t.TempDir(), "-listen", "127.0.0.1:0"}, strings.Fields(args)...)
		if err := run(t.Context(), all, io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want it to say %q", args, err, says)
		}
	}
	t.Setenv("VMS_S3_ACCESS_KEY", "key")
	t.Setenv("VMS_S3_SECRET_KEY", "secret")
	t.Setenv("VMS_MQTT_LISTEN", "nonsense") // of another process on this machine
	kept := t.TempDir()
	for args, says := range map[string]string{
		s3:       "-nvr-url",
		s3 + nvr: "VMS_CLUSTER_KEY_FILE",
		s3 + " -nvr-url ws://192.0.2.1/workers/v1":                     "wss",
		s3 + " -nvr-url wss://192.0.2.1/workers/v1":                    "VMS_PUBLIC_URL",
		s3 + nvr + " -insecure -listen 0.0.0.0:0":                      "VMS_PUBLIC_URL",
		s3 + nvr + " -cluster-key-file " + filepath.Join(kept, "none"): "no such file",
	} {
		all := append([]string{"-roles", "worker", "-data", t.TempDir(), "-listen", "127.0.0.1:0", "-worker-dir", kept}, strings.Fields(args)...)
		if err := run(t.Context(), all, io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want it to say %q", args, err, says)
		}
	}
}

// TestWorkersCommand: it lists a worker that is a process of its own, and drains
// it, which ends that process with success.
func TestWorkersCommand(t *testing.T) {
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	start := func(args ...string) (url string, done chan error) {
		t.Helper()
		r, w := io.Pipe()
		done = make(chan error, 1)
		go func() {
			err := run(ctx, args, w, io.Discard)
			w.CloseWithError(err)
			done <- err
		}()
		line, err := bufio.NewReader(r).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(strings.TrimPrefix(line, "listening ")), done
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	store := l.Addr().String()
	l.Close()
	data := t.TempDir()
	url, nvr := start("-roles", "api,nvr", "-data", data, "-listen", "127.0.0.1:0", "-s3-listen", store, "-mqtt-listen", "127.0.0.1:0")
	_, worker := start("-roles", "worker", "-data", data, "-listen", "127.0.0.1:0", "-nvr-url", strings.Replace(url, "http", "ws", 1)+"/workers/v1",
		"-s3-url", "http://"+store, "-worker-dir", t.TempDir(), "-worker-id", "w1", "-zone", "fra1", "-max-streams", "40", "-max-mbit", "100")
	prints := func(args ...string) (string, error) {
		var out strings.Builder
		err := run(ctx, append([]string{"workers"}, args...), &out, io.Discard)
		return out.String(), err
	}
	for {
		out, err := prints("-data", data, "-url", url)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(out, "WORKER ") {
			t.Fatalf("it prints %q", out)
		}
		if strings.Contains(out, "\nw1 ") {
			if !strings.Contains(out, " up ") || !strings.Contains(out, " fra1 ") || !strings.Contains(out, " 0/40 ") || !strings.Contains(out, " 0.0/100.0 ") || !strings.HasSuffix(out, "\n1 up, 1 wanted\n") {
				t.Errorf("it prints\n%s", out)
			}
			break
		}
		if !strings.HasSuffix(out, "\n0 up, 1 wanted\n") {
			t.Fatalf("it prints\n%s", out)
		}
	}
	var list struct{ Workers []struct{ ID, State string } }
	out, err := prints("-json", "-data", data, "-url", url)
	if err != nil || json.Unmarshal([]byte(out), &list) != nil || len(list.Workers) != 1 || list.Workers[0].ID != "w1" || list.Workers[0].State != "up" {
		t.Errorf("JSON %s, %v", out, err)
	}
	for args, says := range map[string]string{
		"drain":                "which worker",
		"drain w1 w2":          "which worker",
		"drain w0":             "w0",
		"drain W/../1":         "no id",
		"drains":               "drains",
		"-nothing":             "nothing",
		"-data " + t.TempDir(): "admin token",
		"-data " + data + " -url http://" + store + "/none": "cloud at",
	} {
		f := strings.Fields(args)
		if !strings.Contains(args, "-data") && f[0] == "drain" {
			f = append([]string{"drain", "-data", data, "-url", url}, f[1:]...)
		}
		if out, err := prints(f...); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %q, %v, want it to say %q", args, out, err, says)
		}
	}
	if out, err := prints("-data", data, "drain", "-url", url, "w1"); err != nil || !strings.HasPrefix(out, "w1 drains") {
		t.Errorf("drain: %q, %v", out, err)
	}
	if err := <-worker; err != nil {
		t.Errorf("the drained worker ends with %v", err)
	}
	stop()
	if err := <-nvr; err != nil {
		t.Errorf("the NVR ends with %v", err)
	}
}

func TestRunSaysWhereItListens(t *testing.T) {
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, []string{"-data", t.TempDir(), "-listen", "127.0.0.1:0", "-s3-listen", "127.0.0.1:0", "-mqtt-listen", "127.0.0.1:0"}, w, io.Discard)
	}()
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	url, ok := strings.CutPrefix(strings.TrimSpace(line), "listening ")
	if !ok {
		t.Fatalf("it says %q", line)
	}
	resp, err := http.Get(url + "/healthz")
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("healthz: %v, %v", resp, err)
	}
	if resp != nil {
		resp.Body.Close()
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("run = %v", err)
	}
}

func TestMosquittoPrintsItsFiles(t *testing.T) {
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	prints := func(args ...string) (string, error) {
		var out strings.Builder
		err := run(ctx, append([]string{"mosquitto"}, args...), &out, io.Discard)
		return out.String(), err
	}
	if acl, err := prints("acl"); err != nil || !strings.Contains(acl, "pattern read vms/%u/desired\n") {
		t.Errorf("acl: %q, %v", acl, err)
	}
	data := t.TempDir()
	for args, says := range map[string]string{
		"":                               "passwords or acl",
		"users":                          "users",
		"passwords acl":                  "passwords acl",
		"-data " + data + " passwords":   "admin token",
		"-hubs missing passwords":        "missing",
		"-nothing":                       "nothing",
		"-hubs /dev/null passwords -url": "passwords -url",
		"-data " + data + " -hubs /dev/null passwords": "no cloud has run",
	} {
		if out, err := prints(strings.Fields(args)...); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %q, %v, want it to say %q", args, out, err, says)
		}
	}
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, []string{"-data", data, "-listen", "127.0.0.1:0", "-s3-listen", "127.0.0.1:0", "-mqtt-listen", "127.0.0.1:0"}, w, io.Discard)
	}()
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	url := strings.TrimSpace(strings.TrimPrefix(line, "listening "))
	got, err := prints("-data", data, "-url", url, "passwords") // while the cloud runs
	if err != nil || !strings.HasPrefix(got, "vms-cloud:$7$") || strings.Count(got, "\n") != 1 {
		t.Errorf("passwords: %q, %v", got, err)
	}
	hubs := filepath.Join(t.TempDir(), "hubs")
	if err := os.WriteFile(hubs, []byte("hub_1\n\n hub_2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("run = %v", err)
	}
	var out strings.Builder
	err = run(t.Context(), []string{"mosquitto", "-data", data, "-hubs", hubs, "passwords"}, &out, io.Discard)
	if err != nil || !strings.HasPrefix(out.String(), got) || strings.Count(out.String(), "\n") != 3 {
		t.Errorf("passwords of -hubs: %q, %v", out.String(), err)
	}
}
