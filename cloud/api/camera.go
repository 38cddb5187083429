package api

import (
	"net/url"
	"regexp"
	"strings"

	"github.com/zipato/vms/pkg/vms"
)

// cameraOf shows a camera. The rules keep passwords to themselves already; that
// nothing slips through here as well is cheap, and a leak is not.
func cameraOf(c vms.Camera, hasPassword bool) Camera {
	out := Camera{
		URL: publicURL(c.URL), Host: c.Host, Port: c.Port, Username: c.Username,
		HasPassword: hasPassword || c.Password != "",
	}
	if len(c.Templates) > 0 {
		out.Templates = make(map[string]string, len(c.Templates))
		for k, t := range c.Templates {
			out.Templates[k] = publicTemplate(t)
		}
	}
	return out
}

// publicURL returns a stream URL without what is secret in it.
func publicURL(raw string) string {
	if raw == "" {
		return ""
	}
	u, err := url.Parse(raw)
	if err != nil || u.Opaque != "" {
		return "" // where a password would be in it cannot be told
	}
	u.User = nil
	return hideParameters(u.String())
}

// publicTemplate is publicURL for a text with {username} and {password}, which
// are no secret and stay.
func publicTemplate(t string) string {
	scheme, rest, ok := strings.Cut(t, "://")
	if !ok {
		return hideParameters(t)
	}
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	authority, path := rest[:end], rest[end:]
	if at := strings.LastIndex(authority, "@"); at >= 0 {
		if user := authority[:at]; user != "{username}:{password}" && user != "{username}" {
			authority = authority[at+1:]
		}
	}
	return scheme + "://" + authority + hideParameters(path)
}

// Some cameras take the password in the path or query: /user=admin&password=x.
var secretParameter = regexp.MustCompile(`(?i)((?:^|[/?&;_])(?:password|passwd|passwort|pass|pwd|psw)=)([^&;/?#]+)`)

func hideParameters(s string) string {
	return secretParameter.ReplaceAllStringFunc(s, func(m string) string {
		name, value, _ := strings.Cut(m, "=")
		if value == "{password}" {
			return m
		}
		return name + "=***"
	})
}
