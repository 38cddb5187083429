package camera

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha1" // WS-Security knows no other
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Limits on what a camera may answer.
const (
	maxAnswer   = 256 << 10 // GetProfiles of a camera with many lenses is some 60 KiB
	maxProfiles = 8
	maxToken    = 64 // ReferenceToken of ONVIF's common.xsd
)

// onvif is what little of an ONVIF client a keyframe takes. It speaks to the
// camera's own address and nowhere else, whatever the camera says: the requests
// carry a proof of the password.
type onvif struct {
	addr   string // host and port
	user   *url.Userinfo
	client *http.Client
	// offset is the camera's clock minus ours: a proof of the password holds for
	// minutes by the camera's clock (WS-Security UsernameToken profile, section 3.1).
	offset time.Duration
}

func newONVIF(addr string, user *url.Userinfo, timeout time.Duration) *onvif {
	return &onvif{
		addr: addr, user: user,
		client: &http.Client{
			Timeout:       timeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Transport: &http.Transport{
				DisableKeepAlives: true, // nothing is left behind
				DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
					return (&net.Dialer{}).DialContext(ctx, network, addr)
				},
			},
		},
	}
}

// Namespaces of the services, and the device service's well-known path (ONVIF
// Core, section 5.1.1).
const (
	nsDevice   = "http://www.onvif.org/ver10/device/wsdl"
	nsMedia    = "http://www.onvif.org/ver10/media/wsdl"
	nsMedia2   = "http://www.onvif.org/ver20/media/wsdl"
	pathDevice = "/onvif/device_service"
)

// synchronize asks for a keyframe in all streams of the camera: which of them is
// ours, its profiles do not say (ONVIF Media, SetSynchronizationPoint). One that
// grants it is enough.
func (o *onvif) synchronize(ctx context.Context) error {
	if err := o.readClock(ctx); err != nil {
		return fmt.Errorf("onvif: clock: %w", err)
	}
	ns, path, err := o.media(ctx)
	if err != nil {
		return fmt.Errorf("onvif: services: %w", err)
	}
	tokens, err := o.profiles(ctx, ns, path)
	if err != nil {
		return fmt.Errorf("onvif: profiles: %w", err)
	}
	granted := false
	var refused error
	for _, token := range tokens {
		body := `<SetSynchronizationPoint xmlns="` + ns + `"><ProfileToken>` + escapeXML(token) + `</ProfileToken></SetSynchronizationPoint>`
		if _, err := o.call(ctx, path, body, true); err == nil {
			granted = true
		} else if refused = err; isUnauthorized(err) {
			break
		}
	}
	if granted {
		return nil
	}
	return fmt.Errorf("onvif: synchronization point: %w", refused)
}

// readClock learns the camera's clock, which needs no password. Where the camera
// refuses even that, ours has to do. An answer that is no SOAP at all means that
// there is no ONVIF here, and that no proof of the password is sent.
func (o *onvif) readClock(ctx context.Context) error {
	answer, err := o.call(ctx, pathDevice, `<GetSystemDateAndTime xmlns="`+nsDevice+`"/>`, false)
	var f *faultError
	if errors.As(err, &f) && f.soap {
		return nil
	}
	if err != nil {
		return err
	}
	fields := map[string]int{}
	err = scanXML(answer, func(e element) error {
		if e.inside("UTCDateTime") {
			if n, err := strconv.ParseUint(e.text(), 10, 16); err == nil {
				fields[e.name()] = int(n)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if fields["Year"] > 0 {
		camera := time.Date(fields["Year"], time.Month(fields["Month"]), fields["Day"],
			fields["Hour"], fields["Minute"], fields["Second"], 0, time.UTC)
		o.offset = time.Until(camera)
	}
	return nil
}

// media finds the media service: the first one, since all cameras have it, and
// the second where it is alone.
func (o *onvif) media(ctx context.Context) (ns, path string, err error) {
	answer, err := o.call(ctx, pathDevice,
		`<GetServices xmlns="`+nsDevice+`"><IncludeCapability>false</IncludeCapability></GetServices>`, true)
	if err != nil {
		return "", "", err
	}
	addresses := map[string]string{}
	var space, address string
	err = scanXML(answer, func(e element) error {
		switch {
		case e.name() == "Service":
			addresses[space] = address
			space, address = "", ""
		case e.inside("Service") && e.name() == "Namespace":
			space = e.text()
		case e.inside("Service") && e.name() == "XAddr":
			address = e.text()
		}
		return nil
	})
	if err != nil {
		return "", "", err
	}
	for _, ns := range []string{nsMedia, nsMedia2} {
		if a := addresses[ns]; a != "" {
			path, err := o.path(a)
			return ns, path, err
		}
	}
	return "", "", errors.New("no media service")
}

// path takes the path of a service. Host and port stay ours: behind a router the
// camera does not know them, and elsewhere nobody shall get a proof of the
// password.
func (o *onvif) path(address string) (string, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Opaque != "" {
		return "", errors.New("a service has no address")
	}
	return u.RequestURI(), nil
}

func (o *onvif) profiles(ctx context.Context, ns, path string) ([]string, error) {
	answer, err := o.call(ctx, path, `<GetProfiles xmlns="`+ns+`"/>`, true)
	if err != nil {
		return nil, err
	}
	var tokens []string
	err = scanXML(answer, func(e element) error {
		if e.name() == "Profiles" && len(tokens) < maxProfiles {
			if token := e.attribute("token"); token != "" && len(token) <= maxToken {
				tokens = append(tokens, token)
			}
		}
		return nil
	})
	if err == nil && len(tokens) == 0 {
		err = errors.New("there are none")
	}
	return tokens, err
}

// call sends one request (SOAP 1.2) and returns the answer. It fails with a
// *faultError when the camera says so.
func (o *onvif) call(ctx context.Context, path, body string, login bool) ([]byte, error) {
	var b bytes.Buffer
	b.WriteString(`<?xml version="1.0" encoding="UTF-8"?><s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope">`)
	if login && o.user != nil {
		b.WriteString(o.proof())
	}
	b.WriteString(`<s:Body>` + body + `</s:Body></s:Envelope>`)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+o.addr+path, &b)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/soap+xml; charset=utf-8")
	res, err := o.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, err
	case len(answer) > maxAnswer:
		return nil, fmt.Errorf("an answer of more than %d bytes", maxAnswer)
	}
	return answer, fault(res.StatusCode, answer)
}

// proof is the header that proves the password without telling it (WS-Security
// UsernameToken profile 1.0, section 3.1).
func (o *onvif) proof() string {
	nonce := make([]byte, 16)
	_, _ = rand.Read(nonce) // never fails
	created := time.Now().Add(o.offset).UTC().Format("2006-01-02T15:04:05Z")
	password, _ := o.user.Password()
	h := sha1.New()
	h.Write(nonce)
	h.Write([]byte(created + password))
	const oasis = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-"
	return `<s:Header><Security s:mustUnderstand="1" xmlns="` + oasis + `wssecurity-secext-1.0.xsd"><UsernameToken>` +
		`<Username>` + escapeXML(o.user.Username()) + `</Username>` +
		`<Password Type="` + oasis + `username-token-profile-1.0#PasswordDigest">` + base64.StdEncoding.EncodeToString(h.Sum(nil)) + `</Password>` +
		`<Nonce EncodingType="` + oasis + `soap-message-security-1.0#Base64Binary">` + base64.StdEncoding.EncodeToString(nonce) + `</Nonce>` +
		`<Created xmlns="` + oasis + `wssecurity-utility-1.0.xsd">` + created + `</Created>` +
		`</UsernameToken></Security></s:Header>`
}

// faultError is an answer that is no: a fault (ONVIF Core, section 5.11) or a
// status of HTTP.
type faultError struct {
	status       int
	soap         bool // a fault, not just a status
	unauthorized bool
}

func (f *faultError) Error() string {
	if f.unauthorized {
		return fmt.Sprintf("not authorized (%d)", f.status)
	}
	return fmt.Sprintf("refused (%d)", f.status)
}

func isUnauthorized(err error) bool {
	var f *faultError
	return errors.As(err, &f) && f.unauthorized
}

func fault(status int, answer []byte) error {
	f := faultError{status: status, unauthorized: status == http.StatusUnauthorized || status == http.StatusForbidden}
	bad := status != http.StatusOK
	err := scanXML(answer, func(e element) error {
		if e.inside("Fault") {
			bad, f.soap = true, true
			// ter:NotAuthorized, or wsse:FailedAuthentication
			if e.name() == "Value" && (strings.HasSuffix(e.text(), ":NotAuthorized") || strings.HasSuffix(e.text(), ":FailedAuthentication")) {
				f.unauthorized = true
			}
		}
		return nil
	})
	switch {
	case bad:
		return &f
	case err != nil:
		return fmt.Errorf("the answer is no SOAP: %w", err)
	}
	return nil
}
