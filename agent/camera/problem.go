package camera

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"github.com/bluenviron/gortsplib/v5/pkg/base"
	"github.com/bluenviron/gortsplib/v5/pkg/liberrors"

	"github.com/zipato/vms/pkg/wire"
)

// noVideoError: the camera answered, and offers no video that can be recorded.
type noVideoError struct {
	offered string // "nothing" or a list of what it offers instead
}

func (e *noVideoError) Error() string { return "no H264, H265 or MJPEG video, but " + e.offered }

// silentError: the camera keeps the connection and sends no picture.
type silentError struct {
	after time.Duration
	never bool // not even the first
}

func (e *silentError) Error() string { return fmt.Sprintf("no picture for %s", e.after) }

// elsewhereError: the camera wants us to connect to another host, which would
// get its password.
type elsewhereError struct{}

func (elsewhereError) Error() string { return "camera redirects to another host" }

// tryNext reports whether another path on the same camera may work after err.
func tryNext(err error) bool {
	var bad liberrors.ErrClientBadStatusCode
	if errors.As(err, &bad) {
		switch bad.Code {
		case base.StatusUnauthorized, base.StatusForbidden, // the same everywhere, and tries are counted
			base.StatusNotEnoughBandwidth, base.StatusServiceUnavailable:
			return false
		}
		return bad.Code >= 400
	}
	return errors.As(err, new(*noVideoError)) || notRTSP(err)
}

// notRTSP: an answer came, but no usable stream description.
func notRTSP(err error) bool {
	return errors.As(err, new(liberrors.ErrClientSDPInvalid)) ||
		errors.As(err, new(liberrors.ErrClientContentTypeMissing)) ||
		errors.As(err, new(liberrors.ErrClientContentTypeUnsupported))
}

// describe turns the end of an attempt into a state, with a sentence that says
// what to do.
func (r *run) describe(err error) State {
	state, sentence := explain(err, r.addresses[0], len(r.addresses) > 1)
	return State{State: state, Problem: sentence}
}

// explain is describe's table. guessed: the owner named no path.
func explain(err error, a Address, guessed bool) (state, sentence string) {
	say := func(state, format string) (string, string) { return state, fmt.Sprintf(format, a.Host()) }
	var bad liberrors.ErrClientBadStatusCode
	var noVideo *noVideoError
	var silent *silentError
	var tlsErr *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var dns *net.DNSError
	var netErr net.Error
	switch {
	case errors.As(err, &bad):
		return explainStatus(bad.Code, a, guessed)
	case errors.As(err, new(liberrors.ErrClientAuthSetup)):
		return say(wire.StateAuthFailed, "The camera at %s asks for a kind of login that is not supported; set it to Digest or Basic.")
	case errors.As(err, &noVideo):
		return wire.StateBadCamera, fmt.Sprintf(
			"The camera at %s offers no H264 or H265 video and no MJPEG, but %s; switch one of its streams to H264 or H265.", a.Host(), noVideo.offered)
	case errors.As(err, &silent) && silent.never:
		return say(wire.StateNoCamera, "The camera at %s accepted the connection but sends no picture; if that stays so, restart the camera.")
	case errors.As(err, &silent), errors.As(err, new(liberrors.ErrClientTCPTimeout)):
		return say(wire.StateNoCamera, "The camera at %s stopped sending pictures; if that stays so, restart the camera.")
	case errors.As(err, new(elsewhereError)):
		return say(wire.StateBadCamera, "The camera at %s sends us to another host; enter that one's address if it is right.")
	case errors.As(err, &tlsErr), errors.As(err, &record):
		return say(wire.StateBadCamera, "The camera at %s has no certificate that can be trusted; use rtsp:// or give it a valid one.")
	case notRTSP(err):
		return say(wire.StateBadCamera, "The camera at %s answers, but not with a stream description; check the stream address.")
	case errors.As(err, &dns):
		return say(wire.StateNoCamera, "The name %s is not known in this network; check the camera's address.")
	case errors.Is(err, syscall.ECONNREFUSED):
		return say(wire.StateNoCamera, "The camera at %s refuses the connection; check the port, and that RTSP is switched on.")
	case errors.As(err, new(liberrors.ErrClientRequestTimedOut)), errors.As(err, &netErr) && netErr.Timeout(),
		errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return say(wire.StateNoCamera, "The camera at %s does not answer; check its power, its network cable and its address.")
	}
	return say(wire.StateNoCamera, "The connection to the camera at %s was lost; it is tried again. If that stays so, check the camera.")
}

// explainStatus explains an RTSP status code (RFC 2326, section 7.1.1).
func explainStatus(code base.StatusCode, a Address, guessed bool) (state, sentence string) {
	host := a.Host()
	switch code {
	case base.StatusUnauthorized:
		if a.url.User == nil {
			return wire.StateAuthFailed, fmt.Sprintf("The camera at %s asks for a user name and password; enter them.", host)
		}
		return wire.StateAuthFailed, fmt.Sprintf("The camera at %s refuses the user name or password; correct them. It is tried again only slowly, because cameras lock accounts.", host)
	case base.StatusForbidden:
		return wire.StateAuthFailed, fmt.Sprintf("The camera at %s does not allow this user to watch; give the user the right to, or unlock it, in the camera's settings.", host)
	case base.StatusNotEnoughBandwidth, base.StatusServiceUnavailable:
		return wire.StateNoCamera, fmt.Sprintf("The camera at %s is busy; close other connections to it.", host)
	case base.StatusUnsupportedTransport:
		return wire.StateBadCamera, fmt.Sprintf("The camera at %s does not send over TCP; switch RTSP over TCP on in its settings.", host)
	}
	if guessed {
		return wire.StateBadCamera, fmt.Sprintf("The camera at %s answers, but has its stream on none of the common paths; enter its stream address.", host)
	}
	return wire.StateBadCamera, fmt.Sprintf("The camera at %s answers, but has no stream at this address (%d); check the path.", host, code)
}
