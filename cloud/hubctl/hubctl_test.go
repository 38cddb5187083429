package hubctl

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest"
	"github.com/zipato/vms/pkg/wire"
)

func TestBrokerURL(t *testing.T) {
	for url, host := range map[string]string{
		"mqtt://127.0.0.1":          "127.0.0.1:1883",
		"mqtt://127.0.0.1:5/":       "127.0.0.1:5",
		"mqtts://broker.example":    "broker.example:8883",
		"mqtts://[::1]:99":          "[::1]:99",
		"":                          "",
		"broker.example:1883":       "",
		"mqtt://":                   "",
		"http://broker.example":     "",
		"mqtt://u:p@broker.example": "", // it would be shown
		"mqtt://broker.example/x":   "",
		"mqtt://broker.example?x=y": "",
	} {
		c, err := New(Config{NVR: newRules(), Broker: url, Username: CloudUser})
		if host == "" {
			if !errors.Is(err, vms.ErrInvalid) || strings.Contains(err.Error(), ":p@") {
				t.Errorf("%q: %v", url, err)
			}
			continue
		}
		if err != nil || c.at.host != host || (c.at.tls != nil) != strings.HasPrefix(url, "mqtts") {
			t.Errorf("%q: %+v, %v", url, c, err)
		}
	}
	if _, err := New(Config{NVR: newRules(), Broker: "mqtt://127.0.0.1"}); !errors.Is(err, vms.ErrInvalid) {
		t.Errorf("without a user name: %v", err)
	}
}

func TestPasswords(t *testing.T) {
	// The value is part of what brokers have on disk: it must not change.
	if p := Password(testKey, "hub_1"); p != "rQHQ4FrqFECCJ-HJs6BJ47qXdKtulMlk" {
		t.Errorf("password %s", p)
	}
	if !CheckPassword(testKey, "hub_1", Password(testKey, "hub_1")) {
		t.Error("the right password is refused")
	}
	for _, p := range []string{"", "x", Password(testKey, "hub_2"), Password(testKey, "hub_1") + "x", Password([]byte("other"), "hub_1")} {
		if CheckPassword(testKey, "hub_1", p) {
			t.Errorf("%q is taken", p)
		}
	}
}

func TestMosquittoFiles(t *testing.T) {
	if doc := documented(t, "acl"); doc != MosquittoACL {
		t.Errorf("MOSQUITTO.md says:\n%s\nthe program says:\n%s", doc, MosquittoACL)
	}
	a, err := MosquittoPasswords(testKey, []vms.HubID{"hub_1", "hub_2"})
	if err != nil {
		t.Fatal(err)
	}
	again, err := MosquittoPasswords(testKey, []vms.HubID{"hub_1", "hub_2"})
	if err != nil || string(a) != string(again) {
		t.Errorf("the same hubs make another file, %v", err)
	}
	lines := strings.Split(strings.TrimSpace(string(a)), "\n")
	if len(lines) != 3 || !strings.HasPrefix(lines[0], "vms-cloud:$7$101$") || !strings.HasPrefix(lines[2], "hub_2:$7$101$") || strings.Contains(string(a), Password(testKey, "hub_1")) {
		t.Errorf("password file:\n%s", a)
	}
	for _, id := range []vms.HubID{"", "a:b", "a\nb", "#", "+", "HUB"} {
		if _, err := MosquittoPasswords(testKey, []vms.HubID{id}); !errors.Is(err, vms.ErrInvalid) {
			t.Errorf("hub %q: %v", id, err)
		}
	}
}

// The permissions of the embedded broker are those of the ACL.
func TestPermissionsAreThoseOfTheACL(t *testing.T) {
	rules := make(map[string]string) // topic -> access, %u for a hub
	for line := range strings.Lines(MosquittoACL) {
		if f := strings.Fields(line); len(f) == 3 && f[0] != "#" {
			rules[f[2]] = f[1]
		}
	}
	check := func(topics []string, may ...string) {
		for _, topic := range topics {
			if !slices.Contains(may, rules[topic]) {
				t.Errorf("%s is %q in the ACL, want one of %q", topic, rules[topic], may)
			}
		}
	}
	n := 0
	for _, of := range []func() ([]string, []string){CloudTopics, func() ([]string, []string) { return HubTopics("%u") }} {
		pub, sub := of()
		check(pub, "write", "readwrite")
		check(sub, "read", "readwrite")
		n += len(pub) + len(sub)
	}
	in := 0
	for _, access := range rules {
		if in++; access == "readwrite" {
			in++
		}
	}
	if in != n {
		t.Errorf("the ACL allows %d things, the embedded broker %d", in, n)
	}
}

func report(hub vms.HubID, boot string, serial int64) *wire.Reported {
	return &wire.Reported{Hub: hub, Boot: boot, Online: serial > 0, Serial: serial}
}

func TestPresence(t *testing.T) {
	const gone = 150 * time.Second
	now := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	p := make(presence)
	hears := func(m message, want bool) {
		t.Helper()
		if got := p.hear(m, now, gone); got != want {
			t.Errorf("hear(%+v) = %v", m, got)
		}
	}
	silent := func(want ...string) {
		t.Helper()
		var got []string
		for _, r := range p.silent(now, gone) {
			if r.Online || r.Serial != 0 {
				t.Errorf("will %+v", r)
			}
			got = append(got, string(r.Hub)+" "+r.Boot)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("silent: %v, want %v", got, want)
		}
	}
	hears(message{report("a", "1", 7), true}, true) // dead since long, and nobody said its last will
	hears(message{report("b", "1", 1), true}, true)
	hears(message{report("c", "1", 0), true}, true)
	now = now.Add(100 * time.Second)
	hears(message{report("b", "1", 2), false}, true)
	silent()
	now = now.Add(50 * time.Second)
	silent("a 1")
	silent()                                         // once
	hears(message{report("a", "1", 7), true}, false) // after a reconnect, again
	hears(message{report("a", "1", 8), true}, true)  // it spoke while we were away
	hears(message{report("a", "1", 0), false}, true)
	hears(message{report("a", "1", 8), true}, false) // retained before the last will
	hears(message{report("a", "2", 1), true}, true)
	now = now.Add(gone)
	silent("a 2", "b 1")
	hears(message{report("b", "1", 2), false}, true) // at QoS 1 once more, but said now

	// A clock that is known tells the age of what is retained.
	at := func(age time.Duration, errorMS int64) message {
		r := report(vms.HubID("d"), "1", 1)
		r.At, r.Clock = now.Add(-age), &wire.ReportedClock{ErrorMS: errorMS}
		return message{r, true}
	}
	hears(at(time.Hour, 50), false)
	hears(at(gone-time.Second, 50), true)
	hears(at(time.Hour, 2*3600_000), true) // may be
	hears(at(time.Hour, -1), true)         // nobody knows
	hears(at(-time.Hour, 50), true)
}

// The rules may be slow: of each hub the newest report is kept, and of answers all
// but too many.
func TestInboxNeverBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRules()
		b := newInbox(r, vmstest.Log(t), func(*wire.Reported) {})
		for i := range int64(1000) {
			for _, hub := range []vms.HubID{"hub_1", "hub_2"} {
				b.receive(wire.Topic(hub, wire.LeafReported), mustEncode(report(hub, "b", i+1)), false)
			}
		}
		for i := range 2 * maxReplies {
			b.receive(wire.Topic(vms.HubID("hub_1"), wire.LeafReply), mustEncode(&wire.CommandReply{ID: "c" + strings.Repeat("x", i%50), OK: true}), false)
		}
		if len(b.replies) != maxReplies {
			t.Errorf("%d answers are kept", len(b.replies))
		}
		b.receive("vms/+/reported", nil, false)
		b.receive("vms", []byte("x"), false)
		b.receive("vms/hub_1/reported", make([]byte, wire.MaxControl+1), false)
		go b.run(t.Context(), time.Hour)
		synctest.Wait()
		for _, hub := range []vms.HubID{"hub_1", "hub_2"} {
			if n := len(r.reports[hub]); n != 1 || r.last(hub).Serial != 1000 {
				t.Errorf("%s: %d reports, the last is %d", hub, n, r.last(hub).Serial)
			}
		}
		b.receive("vms/hub_1/reply", mustEncode(&wire.CommandReply{ID: "later", OK: true}), false)
		synctest.Wait()
		if r.replies["later"] != "hub_1" {
			t.Error("nothing is taken any more")
		}
	})
}
