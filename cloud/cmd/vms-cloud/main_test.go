package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"io"
	"net/http"
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
	} {
		all := append([]string{"-data", t.TempDir(), "-listen", "127.0.0.1:0", "-s3-listen", "127.0.0.1:0"}, strings.Fields(args)...)
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
		done <- run(ctx, []string{"-data", t.TempDir(), "-listen", "127.0.0.1:0", "-s3-listen", "127.0.0.1:0"}, w, io.Discard)
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
