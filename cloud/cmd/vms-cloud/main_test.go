package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"io"
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
