package e2e

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/problem"
	"github.com/zipato/vms/pkg/vms"
	"github.com/zipato/vms/pkg/vmstest/camtest"
)

// TestStreamStartedOnTheLAN is the flow of the source document: an app asks the
// cloud for a token and brings it, with the camera's address, to the agent.
func TestStreamStartedOnTheLAN(t *testing.T) {
	t.Parallel()
	s := newStack(t, 5*time.Second)
	cam := camtest.Start(t)
	var ch struct {
		ID vms.ChannelID `json:"id"`
	}
	s.call("POST", "/channels", map[string]any{"name": "garage", "camera": map[string]string{"host": "192.0.2.1"}}, &ch)
	var tok struct {
		Token     string    `json:"token"`
		NVRURL    string    `json:"nvr_url"`
		SID       string    `json:"sid"`
		ExpiresAt time.Time `json:"expires_at"`
	}
	s.call("POST", "/channels/"+string(ch.ID)+"/token", nil, &tok)
	if tok.NVRURL == "" || tok.SID == "" || !tok.ExpiresAt.After(time.Now()) {
		t.Errorf("token answer %+v is not complete", tok)
	}
	start := func(token string) (agentStream, error) {
		var st agentStream
		err := request("POST", s.agentURL+"/v1/streams", "", map[string]any{"token": token, "camera": map[string]string{"url": cam.URL()}}, &st)
		return st, err
	}
	status := func(err error) int {
		var p *problem.Problem
		if !errors.As(err, &p) {
			return 0
		}
		return p.Status
	}

	// A token whose last byte was changed, one of nobody, and none.
	parts := strings.Split(tok.Token, ".")
	tampered := parts[0] + "." + parts[1] + "." + strings.Map(func(r rune) rune {
		if r == 'A' {
			return 'B'
		}
		return 'A'
	}, parts[2])
	for name, bad := range map[string]string{"tampered": tampered, "garbage": "x.y.z", "empty": ""} {
		if _, err := start(bad); status(err) != http.StatusUnauthorized && status(err) != http.StatusUnprocessableEntity && status(err) != http.StatusBadRequest {
			t.Errorf("%s token: %v, want it refused", name, err)
		}
	}

	st, err := start(tok.Token)
	if err != nil {
		t.Fatal(err)
	}
	s.eventually(20*time.Second, "the stream is up", func() bool {
		got, ok := s.stream(ch.ID)
		return ok && got.State == "streaming"
	})
	s.eventually(20*time.Second, "a recording is there", func() bool { return len(s.timeline(ch.ID).Recordings) > 0 })

	// Listing and stopping are for whoever has the LAN key.
	if err := request("GET", s.agentURL+"/v1/streams", "", nil, nil); status(err) != http.StatusUnauthorized {
		t.Errorf("list without the LAN key: %v, want 401", err)
	}
	if err := request("DELETE", s.agentURL+"/v1/streams/"+st.ID, s.lanKey, nil, nil); err != nil {
		t.Errorf("stop: %v", err)
	}
	tl := s.settled(ch.ID)
	if len(tl.Gaps) != 0 {
		t.Errorf("gaps %+v, want none", tl.Gaps)
	}

	// A channel that is gone takes its tokens with it.
	s.call("POST", "/channels/"+string(ch.ID)+"/token", nil, &tok)
	s.call("DELETE", "/channels/"+string(ch.ID), nil, nil)
	if _, err := start(tok.Token); err != nil {
		t.Fatalf("the agent cannot know yet, but says %v", err)
	}
	var refused agentStream
	s.eventually(20*time.Second, "the agent says that the NVR refuses", func() bool {
		refused, _ = s.stream(ch.ID)
		return refused.State == "refused"
	})
	if !strings.Contains(refused.Problem, "NVR refuses") {
		t.Errorf("problem %q does not say who refuses", refused.Problem)
	}

	// Who stops a channel in the cloud stops what the LAN started too, although
	// the cloud never wanted it to run; a later start on the LAN is a new one.
	own := s.addChannel("gate", cam.URL())
	for range 2 {
		s.call("POST", "/channels/"+string(own)+"/token", nil, &tok)
		s.eventually(20*time.Second, "the LAN starts the channel of the hub", func() bool {
			st, err = start(tok.Token)
			return err == nil
		})
		s.eventually(20*time.Second, "it is up", func() bool {
			got, ok := s.stream(own)
			return ok && got.State == "streaming"
		})
		var order struct {
			State   string `json:"state"`
			Running bool   `json:"running"`
		}
		s.call("POST", "/channels/"+string(own)+"/stop", map[string]any{"wait_s": 15}, &order)
		if order.State != "IN_SYNC" || order.Running {
			t.Errorf("the stop in the cloud is answered with %+v, want that it does not run", order)
		}
		if got, ok := s.stream(own); ok && got.State != "stopped" {
			t.Errorf("the agent still has %+v", got)
		}
	}
}
