package camera

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bluenviron/gortsplib/v5/pkg/base"
	"github.com/bluenviron/gortsplib/v5/pkg/liberrors"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/wire"
)

// Every way to fail has a state and a sentence that names the camera and says
// what to do; next is whether another path on the same camera may do better.
func TestEveryFailureIsExplained(t *testing.T) {
	status := func(c base.StatusCode) error {
		return liberrors.ErrClientBadStatusCode{Code: c, Message: "words of the camera"}
	}
	dial := func(err error) error { return &net.OpError{Op: "dial", Net: "tcp", Err: err} }
	all, err := Resolve(vms.Camera{URL: "rtsp://u:p@10.0.0.7/x"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		err   error
		state string
		says  string
		next  bool
	}{
		{status(401), wire.StateAuthFailed, "refuses the user name or password", false},
		{status(403), wire.StateAuthFailed, "does not allow", false},
		{status(404), wire.StateBadCamera, "check the path", true},
		{status(453), wire.StateNoCamera, "busy", false},
		{status(461), wire.StateBadCamera, "TCP", true},
		{status(500), wire.StateBadCamera, "(500)", true},
		{status(503), wire.StateNoCamera, "busy", false},
		{liberrors.ErrClientAuthSetup{Err: errors.New("x")}, wire.StateAuthFailed, "Digest or Basic", false},
		{liberrors.ErrClientSDPInvalid{Err: errors.New("x")}, wire.StateBadCamera, "stream description", true},
		{liberrors.ErrClientRequestTimedOut{}, wire.StateNoCamera, "does not answer", false},
		{liberrors.ErrClientTCPTimeout{}, wire.StateNoCamera, "stopped sending", false},
		{&noVideoError{offered: "only M-JPEG"}, wire.StateBadCamera, "only M-JPEG", true},
		{&silentError{after: time.Second, never: true}, wire.StateNoCamera, "sends no picture", false},
		{&silentError{after: time.Second}, wire.StateNoCamera, "stopped sending", false},
		{elsewhereError{}, wire.StateBadCamera, "another host", false},
		{&tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}, wire.StateBadCamera, "certificate", false},
		{dial(&net.DNSError{Name: "cam", IsNotFound: true}), wire.StateNoCamera, "not known", false},
		{dial(os.NewSyscallError("connect", syscall.ECONNREFUSED)), wire.StateNoCamera, "refuses the connection", false},
		{dial(os.NewSyscallError("connect", syscall.EHOSTUNREACH)), wire.StateNoCamera, "does not answer", false},
		{dial(context.DeadlineExceeded), wire.StateNoCamera, "does not answer", false},
		{os.NewSyscallError("read", syscall.ECONNRESET), wire.StateNoCamera, "was lost", false},
	} {
		err := all[0].redact(fmt.Errorf("read: %w", c.err))
		state, sentence := explain(err, all[0], false)
		if state != c.state || !strings.Contains(sentence, c.says) {
			t.Errorf("%v: %s, %q; want %s, %q", err, state, sentence, c.state, c.says)
		}
		if !strings.Contains(sentence, "10.0.0.7") || strings.Contains(sentence, "words of the camera") {
			t.Errorf("%v: sentence is %q", err, sentence)
		}
		if tryNext(err) != c.next {
			t.Errorf("%v: tryNext = %v", err, !c.next)
		}
	}
}
