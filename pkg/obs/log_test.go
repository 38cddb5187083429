package obs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"testing"
)

func TestNewLoggerHeedsLevelAndFormat(t *testing.T) {
	var b bytes.Buffer
	log, err := NewLogger(&b, "WARN", "json")
	if err != nil {
		t.Fatal(err)
	}
	log.Info("not shown")
	log.Warn("uplink lost", KeyChannel, "ch_1", KeySeq, 7)
	var rec map[string]any
	if err := json.Unmarshal(b.Bytes(), &rec); err != nil {
		t.Fatalf("want one JSON record, got %q: %v", b.String(), err)
	}
	if rec["msg"] != "uplink lost" || rec["channel"] != "ch_1" || rec["seq"] != 7.0 {
		t.Errorf("record %v", rec)
	}
}

func TestNewLoggerRefusesUnknownWords(t *testing.T) {
	for _, tt := range [][2]string{{"loud", "text"}, {"info", "xml"}, {"", "text"}, {"info", ""}} {
		if _, err := NewLogger(&bytes.Buffer{}, tt[0], tt[1]); err == nil {
			t.Errorf("level %q and format %q are taken", tt[0], tt[1])
		}
	}
}

func TestLogsHideSecrets(t *testing.T) {
	u, err := url.Parse("rtsp://admin:hunter2@10.0.0.9/live")
	if err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"text", "json"} {
		var b bytes.Buffer
		log, err := NewLogger(&b, "debug", format)
		if err != nil {
			t.Fatal(err)
		}
		log.With("Password", "hunter2").Info("camera",
			"token", "hunter2",
			"url", "rtsp://admin:hunter2@10.0.0.9/live",
			"parsed", u,
			KeyErr, fmt.Errorf("dial: %w", errors.New(`open "rtsp://admin:hunter2@10.0.0.9/live": refused`)),
			slog.Group("camera", "ticket", "hunter2"))
		if s := b.String(); strings.Contains(s, "hunter2") || !strings.Contains(s, "10.0.0.9/live") {
			t.Errorf("%s log: %s", format, s)
		}
	}
}

func TestHideUserinfo(t *testing.T) {
	for in, want := range map[string]string{
		"":                                "",
		"no address":                      "no address",
		"rtsp://host/a":                   "rtsp://host/a",
		"rtsp://u:p@host/a":               "rtsp://[hidden]@host/a",
		"rtsp://u:p@ss@host/a":            "rtsp://[hidden]@host/a",
		"rtsp://u:p/w@host/a":             "rtsp://[hidden]@host/a",
		"a rtsp://u@h, b http://v@h then": "a rtsp://[hidden]@h, b http://[hidden]@h then",
		`"rtsp://u:p@h" mail a@b`:         `"rtsp://[hidden]@h" mail a@b`,
		"mail a@b http://h":               "mail a@b http://h",
		"rtsp://u:p@h,http://v:q@i":       "rtsp://[hidden]@h,http://[hidden]@i",
	} {
		if got := HideUserinfo(in); got != want {
			t.Errorf("HideUserinfo(%q) = %q, want %q", in, got, want)
		}
	}
}
