package camera_test

import (
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// onvifCamera answers ONVIF's requests as cameras do: prefixes of its own
// choice, its own clock, and proof of the password for all but the clock. It
// reads with the standard library, which the product does without.
type onvifCamera struct {
	username, password string
	clock              time.Duration // ahead of ours
	// media is the address that GetServices tells; {host} is the server's own.
	media    string
	profiles []string
	// synchronize is told of a good request; false refuses it.
	synchronize func(profile string) bool
	// replace is the whole answer to an operation, instead of the right one.
	replace map[string]http.HandlerFunc

	mu      sync.Mutex
	calls   []string // the operations, with "!" behind those that were not authorized
	strange []string // what no request should hold
}

// start returns the port.
func (c *onvifCamera) start(t *testing.T) int {
	t.Helper()
	s := httptest.NewServer(c)
	t.Cleanup(s.Close)
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (c *onvifCamera) operations() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.calls...)
}

type soapRequest struct {
	XMLName xml.Name `xml:"http://www.w3.org/2003/05/soap-envelope Envelope"`
	Header  struct {
		Security struct {
			Token struct {
				Username string
				Password struct {
					Type  string `xml:",attr"`
					Value string `xml:",chardata"`
				}
				Nonce   string
				Created time.Time `xml:"http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-utility-1.0.xsd Created"`
			} `xml:"UsernameToken"`
		} `xml:"http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd Security"`
	}
	Body struct {
		Operation struct {
			XMLName      xml.Name
			ProfileToken string
		} `xml:",any"`
	}
}

func (c *onvifCamera) authorized(r soapRequest) bool {
	token := r.Header.Security.Token
	nonce, err := base64.StdEncoding.DecodeString(token.Nonce)
	if err != nil || len(nonce) < 8 {
		return false
	}
	sum := sha1.Sum([]byte(string(nonce) + token.Created.Format("2006-01-02T15:04:05Z") + c.password))
	return token.Username == c.username && token.Password.Value == base64.StdEncoding.EncodeToString(sum[:]) &&
		strings.HasSuffix(token.Password.Type, "#PasswordDigest") &&
		time.Now().Add(c.clock).Sub(token.Created).Abs() < 5*time.Second
}

func (c *onvifCamera) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var req soapRequest
	if err == nil {
		err = xml.Unmarshal(body, &req)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	op := req.Body.Operation.XMLName.Local
	space := req.Body.Operation.XMLName.Space
	allowed := op == "GetSystemDateAndTime" || c.username == "" || c.authorized(req)
	c.mu.Lock()
	if c.password != "" && bytes.Contains(body, []byte(c.password)) {
		c.strange = append(c.strange, "the password")
	}
	if op == "GetSystemDateAndTime" && bytes.Contains(body, []byte("UsernameToken")) {
		c.strange = append(c.strange, "a proof before it is known that this is ONVIF")
	}
	if allowed {
		c.calls = append(c.calls, op)
	} else {
		c.calls = append(c.calls, op+"!")
	}
	c.mu.Unlock()
	w.Header().Set("Content-Type", "application/soap+xml; charset=utf-8")
	if f := c.replace[op]; f != nil {
		f(w, r)
		return
	}
	if !allowed {
		w.WriteHeader(http.StatusBadRequest)
		envelope(w, `<SOAP-ENV:Fault><SOAP-ENV:Code><SOAP-ENV:Value>SOAP-ENV:Sender</SOAP-ENV:Value><SOAP-ENV:Subcode><SOAP-ENV:Value>ter:NotAuthorized</SOAP-ENV:Value></SOAP-ENV:Subcode></SOAP-ENV:Code><SOAP-ENV:Reason><SOAP-ENV:Text xml:lang="en">Sender not Authorized</SOAP-ENV:Text></SOAP-ENV:Reason></SOAP-ENV:Fault>`)
		return
	}
	const device, media = "http://www.onvif.org/ver10/device/wsdl", "http://www.onvif.org/ver10/media/wsdl"
	mediaPath := strings.NewReplacer("http://{host}", "").Replace(c.media)
	switch {
	case op == "GetSystemDateAndTime" && space == device && r.URL.Path == "/onvif/device_service":
		now := time.Now().Add(c.clock).UTC()
		envelope(w, fmt.Sprintf(`<tds:GetSystemDateAndTimeResponse><tds:SystemDateAndTime><tt:DateTimeType>NTP</tt:DateTimeType>
			<tt:UTCDateTime><tt:Time><tt:Hour>%d</tt:Hour><tt:Minute>%d</tt:Minute><tt:Second>%d</tt:Second></tt:Time>
			<tt:Date><tt:Year>%d</tt:Year><tt:Month>%d</tt:Month><tt:Day>%d</tt:Day></tt:Date></tt:UTCDateTime>
			<tt:LocalDateTime><tt:Time><tt:Hour>1</tt:Hour><tt:Minute>1</tt:Minute><tt:Second>1</tt:Second></tt:Time>
			<tt:Date><tt:Year>2001</tt:Year><tt:Month>1</tt:Month><tt:Day>1</tt:Day></tt:Date></tt:LocalDateTime>
			</tds:SystemDateAndTime></tds:GetSystemDateAndTimeResponse>`,
			now.Hour(), now.Minute(), now.Second(), now.Year(), now.Month(), now.Day()))
	case op == "GetServices" && space == device && r.URL.Path == "/onvif/device_service":
		envelope(w, `<tds:GetServicesResponse>
			<tds:Service><tds:Namespace>`+device+`</tds:Namespace><tds:XAddr>http://{host}/onvif/device_service</tds:XAddr></tds:Service>
			<tds:Service><tds:Namespace>http://www.onvif.org/ver20/media/wsdl</tds:Namespace><tds:XAddr>http://10.9.8.7/two</tds:XAddr></tds:Service>
			<tds:Service><tds:Namespace>`+media+`</tds:Namespace><tds:XAddr>`+
			strings.NewReplacer("{host}", r.Host, "&", "&amp;").Replace(c.media)+`</tds:XAddr></tds:Service></tds:GetServicesResponse>`)
	case op == "GetProfiles" && space == media && strings.HasSuffix(mediaPath, r.URL.RequestURI()):
		answer := `<trt:GetProfilesResponse>`
		for _, p := range c.profiles {
			answer += `<trt:Profiles fixed="true" token="` + strings.ReplaceAll(p, "&", "&#38;") + `"><tt:Name>main &gt; sub</tt:Name>
				<tt:VideoSourceConfiguration token="not a profile"><tt:Name>V</tt:Name></tt:VideoSourceConfiguration></trt:Profiles>`
		}
		envelope(w, answer+`</trt:GetProfilesResponse>`)
	case op == "SetSynchronizationPoint" && space == media && strings.HasSuffix(mediaPath, r.URL.RequestURI()):
		if c.synchronize(req.Body.Operation.ProfileToken) {
			envelope(w, `<trt:SetSynchronizationPointResponse/>`)
			return
		}
		w.WriteHeader(http.StatusInternalServerError)
		envelope(w, `<SOAP-ENV:Fault><SOAP-ENV:Code><SOAP-ENV:Value>SOAP-ENV:Receiver</SOAP-ENV:Value></SOAP-ENV:Code></SOAP-ENV:Fault>`)
	default:
		http.NotFound(w, r)
	}
}

func envelope(w io.Writer, body string) {
	fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?>
<!-- a camera -->
<SOAP-ENV:Envelope xmlns:SOAP-ENV="http://www.w3.org/2003/05/soap-envelope" xmlns:tt="http://www.onvif.org/ver10/schema" xmlns:tds="http://www.onvif.org/ver10/device/wsdl" xmlns:trt="http://www.onvif.org/ver10/media/wsdl">
<SOAP-ENV:Body>%s</SOAP-ENV:Body></SOAP-ENV:Envelope>
`, body)
}
