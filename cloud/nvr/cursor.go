package nvr

import (
	"encoding/base64"
	"strconv"
	"strings"
	"time"
)

const (
	defaultLimit = 100
	maxLimit     = 1000
)

// String writes a cursor for the API, where it is opaque.
func (c Cursor) String() string {
	if c == (Cursor{}) {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString([]byte(strconv.FormatInt(c.At.UnixMicro(), 10) + " " + c.ID))
}

func parseCursor(s string) (Cursor, error) {
	if s == "" {
		return Cursor{}, nil
	}
	if len(s) > 400 {
		return Cursor{}, fieldError("cursor", "is not one of ours")
	}
	b, err := base64.RawURLEncoding.DecodeString(s)
	at, id, ok := strings.Cut(string(b), " ")
	us, err2 := strconv.ParseInt(at, 10, 64)
	if err != nil || !ok || err2 != nil || id == "" {
		return Cursor{}, fieldError("cursor", "is not one of ours")
	}
	return Cursor{At: time.UnixMicro(us).UTC(), ID: id}, nil
}

func checkLimit(limit int) (int, error) {
	switch {
	case limit == 0:
		return defaultLimit, nil
	case limit < 0 || limit > maxLimit:
		return 0, fieldError("limit", "must be 1 to %d", maxLimit)
	}
	return limit, nil
}
