package problem

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/zipato/vms/pkg/vms"
)

const (
	// maxBody bounds what a client reads of a refusal.
	maxBody = 64 << 10
	// maxText bounds the sentences in it: they end in logs and on screens.
	maxText = 1000
	// maxRetryAfter keeps a server from sending a client away for good.
	maxRetryAfter = time.Hour
)

// ReadResponse returns nil for a status below 400, else the *Problem that the
// server sent, or one made from the status when the body is no problem+json.
// It reads at most 64 KiB and does not close the body.
//
// Only an answer of this system revokes: a 410 with another body, from a
// middlebox or another server, is vms.ErrUnavailable.
func ReadResponse(resp *http.Response) error {
	if resp.StatusCode < 400 {
		return nil
	}
	p := &Problem{}
	if media, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err == nil && media == ContentType && resp.Body != nil {
		body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
		if err != nil || len(body) > maxBody || json.Unmarshal(body, p) != nil {
			p = &Problem{} // cut off or broken: the status has to do
		}
	}
	p.Status = resp.StatusCode // what was sent beats what the body claims
	p.Type, p.Title, p.Detail = clip(p.Type), clip(p.Title), clip(p.Detail)
	if p.Title == "" {
		p.Title = fmt.Sprintf("HTTP status %d %s", p.Status, http.StatusText(p.Status))
	}
	// Retry-After may be a date too; a hub without a clock can do nothing with it.
	if s, err := strconv.ParseInt(resp.Header.Get("Retry-After"), 10, 32); err == nil && s > 0 {
		p.RetryAfter = min(time.Duration(s)*time.Second, maxRetryAfter)
	}
	return p
}

// TypeOf returns the type of the problem in err's chain, or "".
func TypeOf(err error) string {
	var p *Problem
	if errors.As(err, &p) {
		return p.Type
	}
	return ""
}

// kindOf is the way back from the wire to the kinds of pkg/vms.
func kindOf(typ string, status int) error {
	for _, k := range kinds {
		if typ == k.typ {
			return k.err
		}
	}
	switch {
	case typ == TypeInternal:
		return nil
	case strings.HasSuffix(typ, "-expired") && strings.HasPrefix(typ, TypePrefix):
		return vms.ErrExpired
	}
	switch status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		return vms.ErrInvalid
	case http.StatusUnauthorized:
		return vms.ErrUnauthorized
	case http.StatusForbidden:
		return vms.ErrForbidden
	case http.StatusNotFound:
		return vms.ErrNotFound
	case http.StatusConflict, http.StatusPreconditionFailed:
		return vms.ErrConflict
	case http.StatusGone, http.StatusRequestTimeout, http.StatusTooManyRequests,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return vms.ErrUnavailable
	}
	return nil
}

// clip shortens s to maxText bytes of valid UTF-8.
func clip(s string) string {
	if len(s) > maxText {
		s = s[:maxText]
	}
	return strings.ToValidUTF8(s, "")
}
