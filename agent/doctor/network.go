package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/zipato/vms/agent/clocktls"
	"github.com/zipato/vms/agent/control"
)

// network looks at the way to the cloud, one thing after the other: what the
// first lacks the next need not find out.
func (c *Config) network(ctx context.Context) []Finding {
	u, err := url.Parse(c.NVRURL)
	if err != nil || u.Hostname() == "" {
		return []Finding{bad("nvr", "The address of the NVR, which came with the enrolment, cannot be read.", "Enrol this hub again with a new code.")}
	}
	dns := timed(ctx, checkTime/2, func(ctx context.Context) Finding { return resolve(ctx, u.Hostname(), c.text("etc/resolv.conf")) })
	var answer clocktls.Answer
	probed := errors.New("its name is not known")
	if dns.State == Good {
		answer, probed = probe(ctx, c)
	}
	clock := c.clock(answer, probed)
	nvr := unknown("nvr", "The NVR cannot be reached without its address.")
	if dns.State == Good {
		nvr = timed(ctx, checkTime, func(ctx context.Context) Finding { return c.nvr(ctx, u, answer.Server, probed) })
	}
	mqtt := timed(ctx, checkTime, func(ctx context.Context) Finding { return c.mqtt(ctx, answer.Server) })
	return []Finding{clock, dns, nvr, mqtt}
}

// probe asks the NVR the time.
func probe(ctx context.Context, c *Config) (clocktls.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	return clocktls.Probe(ctx, c.NVRURL, c.Roots, c.Clock.Passed())
}

// resolve looks whether a name can be resolved. servers is resolv.conf(5).
func resolve(ctx context.Context, host, servers string) Finding {
	const check = "dns"
	if _, err := netip.ParseAddr(host); err == nil {
		return good(check, "No name is needed: the NVR's address is %s.", host)
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	var d *net.DNSError
	switch {
	case err == nil && len(addrs) > 0:
		return good(check, "The NVR's name %s is %s.", host, addrs[0].Unmap())
	case errors.As(err, &d) && d.IsNotFound:
		return bad(check, fmt.Sprintf("The NVR's name %s is not known to the name server.", host),
			"Check that the hub uses a name server that knows it; if the cloud has another name now, enrol this hub again.")
	}
	asked := "which one to ask the hub does not know: /etc/resolv.conf names none"
	var names []string
	for line := range strings.SplitSeq(servers, "\n") {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" {
			names = append(names, f[1])
		}
	}
	if len(names) > 0 {
		asked = "asked were " + strings.Join(names, ", ")
	}
	return bad(check, fmt.Sprintf("No name server answers for the NVR's name %s; %s.", host, asked), "Check the hub's network cable or WLAN, and the name server that its router or its settings give it.")
}

// clock says how well the hub knows the time.
func (c *Config) clock(answer clocktls.Answer, probed error) Finding {
	const check = "clock"
	bound, known := c.Clock.ErrorBound()
	if probed != nil {
		if known {
			return good(check, "The hub's clock is right to within %s, as told by %s; the NVR cannot be asked now.", span(bound), strings.ToUpper(c.Clock.Source()))
		}
		return bad(check, fmt.Sprintf("Nobody has told the hub what time it is since it started; it takes it for %s.", c.Clock.Now().UTC().Format("2006-01-02 15:04")),
			"Bring the connection to the NVR in order, or set sntp to a time server that can be reached.")
	}
	half := answer.Answered.Sub(answer.Asked) / 2
	middle := answer.Asked.Add(half)
	if server := answer.Server; server.Before(c.Built) {
		return bad(check, fmt.Sprintf("The NVR's clock shows %s, a time before this agent was built.", server.Format("2006-01-02 15:04")), "Set the clock of the machine that the cloud runs on.")
	}
	system := fmt.Sprintf("the system's clock is %s off the NVR's, which does not matter to the agent", span(answer.Server.Sub(middle).Abs()))
	if !known {
		return good(check, "The NVR tells the time when the agent starts; %s.", system)
	}
	here, _ := c.Clock.UTC(middle)
	if off := answer.Server.Sub(here).Abs(); off > half+bound+hubclockCertain {
		return bad(check, fmt.Sprintf("The hub's clock is %s off the NVR's.", span(off)), "Nothing is to be done here: the agent corrects it within minutes; if it does not, check the clock of the machine that the cloud runs on.")
	}
	return good(check, "The hub's clock is right to within %s, as told by %s; %s.", span(bound), strings.ToUpper(c.Clock.Source()), system)
}

// hubclockCertain is an error that nobody minds.
const hubclockCertain = time.Second

// nvr looks at the connection to the NVR as the agent makes it. server is what
// the NVR said the time is.
func (c *Config) nvr(ctx context.Context, u *url.URL, server time.Time, probed error) Finding {
	const check = "nvr"
	conf := clocktls.Config(c.Roots, c.now(server))
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: conf, DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	scheme := map[string]string{"ws": "http", "wss": "https"}[u.Scheme]
	if scheme == "" {
		scheme = u.Scheme
	}
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, (&url.URL{Scheme: scheme, Host: u.Host, Path: clocktls.Path}).String(), nil)
	if err != nil {
		return bad(check, "The address of the NVR, which came with the enrolment, cannot be read.", "Enrol this hub again with a new code.")
	}
	resp, err := client.Do(req)
	if err != nil {
		return explain(check, "The NVR at "+u.Host, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || probed != nil {
		return bad(check, fmt.Sprintf("What answers at %s (status %d) is not an NVR.", u.Host, resp.StatusCode),
			"Check that no proxy or login page of the network answers in its place; else have the cloud, or the proxy before it, looked at.")
	}
	how := "without TLS"
	if s := resp.TLS; s != nil {
		how = fmt.Sprintf("over %s, with a certificate that is good until %s", tls.VersionName(s.Version), s.PeerCertificates[0].NotAfter.Format(time.DateOnly))
	} else if !local(u.Hostname()) {
		return bad(check, fmt.Sprintf("The NVR at %s is reached without TLS: whoever is on the way can watch.", u.Host), "Put TLS before the cloud, and enrol this hub again with its https:// address.")
	}
	if c.Running != nil {
		switch err := c.Running.Control; {
		case c.Running.ControlUp:
			return good(check, "The NVR at %s answers %s, and the control line is up.", u.Host, how)
		case err != nil:
			return bad(check, fmt.Sprintf("The NVR at %s answers %s, but not to this hub: %v.", u.Host, how, err), "If it stays so, look whether the hub was revoked in the cloud, and enrol it again with a new code.")
		}
	}
	return good(check, "The NVR at %s answers %s.", u.Host, how)
}

// now is the time at which certificates are looked at: the hub's, or, when it
// does not know it, the NVR's.
func (c *Config) now(server time.Time) func() (time.Time, bool) {
	return func() (time.Time, bool) {
		if t, certain := c.Clock.Read(); certain || server.IsZero() {
			return t, certain
		}
		return server, true
	}
}

func local(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// mqtt looks at the connection to the broker: the agent's, or one like it.
func (c *Config) mqtt(ctx context.Context, server time.Time) Finding {
	const check = "mqtt"
	if c.Broker == nil || c.Broker.URL == "" {
		return good(check, "The cloud has named no MQTT broker; what it wants comes over the control line alone.")
	}
	where := "The MQTT broker"
	if u, err := url.Parse(c.Broker.URL); err == nil {
		where += " at " + u.Host
	}
	if c.Running != nil {
		switch err := c.Running.MQTT; {
		case errors.Is(err, control.ErrStarting):
			return unknown(check, where+" is just being connected to.")
		case err != nil:
			return c.explainMQTT(where, err)
		case !c.Running.MQTTUp:
			return unknown(check, where+" is just being left.")
		}
		return good(check, "%s is connected to.", where)
	}
	err := control.Probe(ctx, control.Config{Hub: c.Hub, Insecure: c.Insecure, TLS: clocktls.Config(c.Roots, c.now(server))}, *c.Broker)
	if err != nil {
		return c.explainMQTT(where, err)
	}
	return good(check, "%s lets this hub in.", where)
}

func (c *Config) explainMQTT(where string, err error) Finding {
	const check = "mqtt"
	switch {
	case errors.Is(err, control.ErrTakenOver):
		return bad(check, where+" closes the connection again and again, as if a second agent used this hub's identity.", "Stop the other agent, which runs with a copy of this hub's data directory, and enrol it as a hub of its own.")
	case errors.Is(err, control.ErrRefused):
		return bad(check, where+" refuses this hub.", "Have the cloud's operator write the broker's password and permission files again (vms-cloud mosquitto); if the hub was revoked, enrol it again.")
	case errors.Is(err, control.ErrNoBroker):
		return bad(check, fmt.Sprintf("%s cannot be used: %v.", where, err), "Have the cloud's operator name it by an mqtts:// address (-mqtt-public-url); in a closed network set insecure to true.")
	}
	return explain(check, where, err)
}

// explain says what it means that a connection failed. what names the other side
// at the beginning of a sentence.
func explain(check, what string, err error) Finding {
	var authority x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	var record tls.RecordHeaderError
	var netErr net.Error
	var dns *net.DNSError
	switch {
	case errors.As(err, &authority):
		return bad(check, what+" shows a certificate that no authority known here has signed.", "If it is the cloud's own authority, set ca to a file with its certificate; else something on the way answers in its place.")
	case errors.As(err, &name):
		return bad(check, what+" shows a certificate for another name.", "Give the server a certificate for this name, or enrol this hub again under the right one.")
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return bad(check, what+" shows a certificate that is not valid at this time.", "Renew the server's certificate; if it is good, check the clocks of the hub and of the server.")
	case errors.As(err, &invalid), errors.As(err, new(*tls.CertificateVerificationError)):
		return bad(check, fmt.Sprintf("%s shows a certificate that cannot be trusted: %v.", what, tail(err)), "Give the server a valid certificate.")
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return bad(check, what+" does not speak TLS.", "Check the address and the port; a login page of the network may answer in its place.")
	case errors.As(err, &dns):
		return bad(check, what+" has a name that cannot be resolved.", "Check the name server of the hub, and the name.")
	case errors.Is(err, syscall.ECONNREFUSED):
		return bad(check, what+" refuses the connection.", "Check that the cloud runs, and that the port is the right one.")
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return bad(check, what+" cannot be reached: there is no way to it.", "Check the hub's network cable or WLAN, and its router.")
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &netErr) && netErr.Timeout():
		return bad(check, what+" does not answer.", "Check the Internet connection, and that no firewall is between.")
	}
	return bad(check, fmt.Sprintf("The connection fails: %v.", tail(err)), "Check the Internet connection; if it stays so, have the cloud looked at.")
}

// tail is the innermost error's text: what wraps it repeats the address.
func tail(err error) string {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return strings.TrimSuffix(err.Error(), ".")
		}
		err = next
	}
}
