package camera

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/zipato/vms/pkg/vms"
)

func TestResolveFillsInWhatIsGiven(t *testing.T) {
	for name, c := range map[string]struct {
		in   vms.Camera
		want string // with credentials
	}{
		"url as it is":                     {vms.Camera{URL: "rtsp://u:p@cam.local:8554/a?b=c"}, "rtsp://u:p@cam.local:8554/a?b=c"},
		"url with the fields' credentials": {vms.Camera{URL: "rtsps://cam/a", Username: "u", Password: "p@1"}, "rtsps://u:p%401@cam/a"},
		"the url's credentials win":        {vms.Camera{URL: "rtsp://x:y@cam/a", Username: "u", Password: "p"}, "rtsp://x:y@cam/a"},
		"template": {
			vms.Camera{Host: "10.0.0.7", Username: "u", Password: "a/b@c:d e%", Templates: map[string]string{"high": "rtsp://{username}:{password}@{host}:{port}/x"}},
			"rtsp://u:a%2Fb%40c%3Ad%20e%25@10.0.0.7:554/x",
		},
		"template with the password in its path": {
			vms.Camera{Host: "10.0.0.7", Port: 8554, Username: "u", Password: "p&q", Templates: map[string]string{"high": "rtsp://{host}:{port}/user={username}&password={password}&channel=1"}},
			"rtsp://u:p&q@10.0.0.7:8554/user=u&password=p%26q&channel=1",
		},
		"template without credentials": {
			vms.Camera{Host: "10.0.0.7", Templates: map[string]string{"high": "rtsp://{username}:{password}@{host}:{port}/x"}},
			"rtsp://10.0.0.7:554/x",
		},
		"host with a port":        {vms.Camera{Host: "10.0.0.7:8554"}, "rtsp://10.0.0.7:8554/Streaming/Channels/101"},
		"the port field wins":     {vms.Camera{Host: "10.0.0.7:8554", Port: 1}, "rtsp://10.0.0.7:1/Streaming/Channels/101"},
		"IPv6":                    {vms.Camera{Host: "fd00::7"}, "rtsp://[fd00::7]:554/Streaming/Channels/101"},
		"IPv6 with brackets":      {vms.Camera{Host: "[fd00::7]"}, "rtsp://[fd00::7]:554/Streaming/Channels/101"},
		"IPv6 with a port":        {vms.Camera{Host: "[fd00::7]:99"}, "rtsp://[fd00::7]:99/Streaming/Channels/101"},
		"a name with credentials": {vms.Camera{Host: "cam", Username: "u", Password: "p"}, "rtsp://u:p@cam:554/Streaming/Channels/101"},
	} {
		got, err := Resolve(c.in)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if s := got[0].url.String(); s != c.want {
			t.Errorf("%s: %s, want %s", name, s, c.want)
		}
		if c.in.URL == "" && c.in.Templates == nil && len(got) != len(commonPaths) {
			t.Errorf("%s: %d addresses, want all common paths", name, len(got))
		}
	}
}

func TestResolveRefuses(t *testing.T) {
	for name, c := range map[string]vms.Camera{
		"nothing":                         {},
		"http":                            {URL: "http://10.0.0.7/secret"},
		"a file":                          {URL: "file:///etc/secret"},
		"no scheme":                       {URL: "10.0.0.7/secret"},
		"no host":                         {URL: "rtsp:///secret"},
		"broken escape":                   {URL: "rtsp://u:secret%zz@cam/"},
		"a long url":                      {URL: "rtsp://cam/" + strings.Repeat("x", maxURL)},
		"a line break in the url":         {URL: "rtsp://cam/\r\nX: secret"},
		"a line break in the password":    {Host: "cam", Username: "u", Password: "secret\r\n"},
		"a long name":                     {Host: "cam", Username: strings.Repeat("x", maxCredential+1)},
		"a host with a path":              {Host: "cam/secret"},
		"a host with credentials":         {Host: "secret@cam"},
		"a port that is none":             {Host: "cam", Port: 70000},
		"a template for another host":     {Host: "cam", Password: "secret", Templates: map[string]string{"high": "rtsp://{password}.evil.example/"}},
		"a template that moves the host":  {Host: "cam", Templates: map[string]string{"high": "rtsp://{host}.evil.example/secret"}},
		"a template of another protocol":  {Host: "cam", Templates: map[string]string{"high": "http://{host}/secret"}},
		"a template that comments it out": {Host: "cam", Templates: map[string]string{"high": "rtsp://evil.example/#@{host}/secret"}},
	} {
		_, err := Resolve(c)
		if !errors.Is(err, vms.ErrInvalid) {
			t.Errorf("%s: err = %v, want vms.ErrInvalid", name, err)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the error repeats what it was given: %v", name, err)
		}
	}
}

func TestAddressesDoNotPrintCredentials(t *testing.T) {
	c := vms.Camera{Host: "cam", Username: "u", Password: "p&ss word", Templates: map[string]string{"high": "rtsp://{username}:{password}@{host}/{password}"}}
	all, err := Resolve(c)
	if err != nil {
		t.Fatal(err)
	}
	a := all[0]
	for _, s := range []string{a.String(), fmt.Sprint(a), fmt.Sprintf("%v", a)} {
		if s != "rtsp://cam" {
			t.Errorf("printed as %q", s)
		}
	}
	cause := &url.Error{Op: "parse", URL: a.url.String(), Err: errors.New("broken by p&ss word")}
	err = a.redact(fmt.Errorf("describe: %w", cause))
	for _, secret := range []string{"p&ss", "p%26ss", "u:"} {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("%q in %q", secret, err)
		}
	}
	if !errors.Is(err, error(cause)) {
		t.Error("the cause is gone")
	}
}

// FuzzResolve: whatever is accepted is RTSP to the host that was named, and its
// printed form has no password.
func FuzzResolve(f *testing.F) {
	f.Add("", "10.0.0.7", 554, "u", "p@ss", "rtsp://{username}:{password}@{host}:{port}/x")
	f.Add("rtsp://u:p@cam/x", "", 0, "", "", "")
	f.Add("", "[fd00::1]:8554", 0, "u", "p", "")
	f.Fuzz(func(t *testing.T, rawURL, host string, port int, user, password, template string) {
		c := vms.Camera{URL: rawURL, Host: host, Port: port, Username: user, Password: password}
		if template != "" {
			c.Templates = map[string]string{"high": template}
		}
		all, err := Resolve(c)
		if err != nil {
			if !errors.Is(err, vms.ErrInvalid) {
				t.Fatalf("err = %v", err)
			}
			return
		}
		for _, a := range all {
			if s := a.url.Scheme; s != "rtsp" && s != "rtsps" {
				t.Fatalf("scheme %q", s)
			}
			if a.Host() == "" || strings.Contains(a.String(), "@") {
				t.Fatalf("host %q, printed as %q", a.Host(), a)
			}
		}
	})
}
