// Package obs shows from outside what goes on inside: logs, health and
// metrics. It depends on the standard library only, because the hub links it.
package obs

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// Keys of log records that mean the same everywhere, so that one search finds
// a channel in agent, worker and NVR. Messages are constant; what varies is a value.
const (
	KeyHub     = "hub"
	KeyChannel = "channel"
	KeyWorker  = "worker"
	KeyLane    = "lane"
	KeyEpoch   = "epoch"
	KeySeq     = "seq"
	KeyWait    = "wait" // how long until the next try
	KeyErr     = "err"
)

// hidden stands where a secret was.
const hidden = "[hidden]"

// secretKeys never show their value. Nobody should log them; this is the net below.
var secretKeys = map[string]bool{
	"password": true, "token": true, "ticket": true, "secret": true,
	"authorization": true, "cookie": true,
}

// NewLogger returns a logger that writes to w. level is debug, info, warn or
// error; format is text or json. Values under a secret's key and user names
// and passwords inside URLs are hidden, also inside errors.
func NewLogger(w io.Writer, level, format string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("log level %q: want debug, info, warn or error", level)
	}
	opts := &slog.HandlerOptions{Level: l, ReplaceAttr: hide}
	switch strings.ToLower(format) {
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	}
	return nil, fmt.Errorf("log format %q: want text or json", format)
}

// hide is the ReplaceAttr of our loggers.
func hide(_ []string, a slog.Attr) slog.Attr {
	if secretKeys[strings.ToLower(a.Key)] {
		return slog.String(a.Key, hidden)
	}
	switch a.Value.Kind() {
	case slog.KindString:
		a.Value = slog.StringValue(HideUserinfo(a.Value.String()))
	case slog.KindAny:
		switch v := a.Value.Any().(type) {
		case error:
			a.Value = slog.StringValue(HideUserinfo(v.Error()))
		case fmt.Stringer:
			a.Value = slog.StringValue(HideUserinfo(v.String()))
		}
	}
	return a
}

// HideUserinfo replaces user name and password in every URL inside s:
// rtsp://user:pass@host becomes rtsp://[hidden]@host. A password with a raw @,
// slash or question mark, which people do type, is hidden whole as well; a
// URL without credentials whose path holds an @ loses more than it must.
func HideUserinfo(s string) string {
	const mark = "://"
	var b strings.Builder
	for {
		i := strings.Index(s, mark)
		if i < 0 {
			break
		}
		i += len(mark)
		b.WriteString(s[:i])
		s = s[i:]
		end := strings.IndexAny(s, " \t\r\n\"'<>")
		if end < 0 {
			end = len(s)
		}
		if next := strings.Index(s[:end], mark); next >= 0 {
			end = next // another URL follows without a space
		}
		if at := strings.LastIndexByte(s[:end], '@'); at >= 0 {
			b.WriteString(hidden)
			s = s[at:]
		}
	}
	b.WriteString(s)
	return b.String()
}
