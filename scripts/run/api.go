package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/zipato/vms/pkg/problem"
	"github.com/zipato/vms/pkg/vms"
)

// client calls the public REST API.
type client struct {
	base, token string
}

func (c *client) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(data)
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, c.base+"/api/v1"+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := problem.ReadResponse(resp); err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if out == nil {
		return nil
	}
	return json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(out)
}

// enrol gives the agent's directory an identity, unless it has one for this cloud.
func enrol(ctx context.Context, api *client, agent, dir, cloud string) (hub string, err error) {
	id, err := identity(dir)
	if err != nil {
		return "", err
	}
	if id.Hub != "" && sameHost(id.NVRURL, cloud) {
		return id.Hub, nil
	}
	if id.Hub != "" { // the cloud has moved to another address, and hubs trust one only
		if err := api.call(ctx, http.MethodDelete, "/hubs/"+id.Hub, nil, nil); err != nil && !errors.Is(err, vms.ErrNotFound) {
			return "", err
		}
		if err := os.Remove(filepath.Join(dir, identityFile)); err != nil {
			return "", err
		}
	}
	var made struct {
		Code string `json:"enrolment_code"`
	}
	if err := api.call(ctx, http.MethodPost, "/hubs", map[string]string{"name": "This machine"}, &made); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, agent, "-data", dir, "enroll", cloud, made.Code)
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("enrol the agent: %w: %s", err, bytes.TrimSpace(text))
	}
	id, err = identity(dir)
	return id.Hub, err
}

// identityFile is the agent's.
const identityFile = "identity.json"

type hubIdentity struct {
	Hub    string `json:"hub"`
	NVRURL string `json:"nvr_url"`
}

// identity reads who the agent is; zero when it is nobody yet.
func identity(dir string) (id hubIdentity, err error) {
	data, err := os.ReadFile(filepath.Join(dir, identityFile))
	if errors.Is(err, os.ErrNotExist) {
		return id, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &id)
	}
	if err != nil {
		return id, fmt.Errorf("identity of the agent in %s: %w", dir, err)
	}
	return id, nil
}

// sameHost reports whether two URLs name one server.
func sameHost(a, b string) bool {
	x, err1 := url.Parse(a)
	y, err2 := url.Parse(b)
	return err1 == nil && err2 == nil && x.Host == y.Host
}

type channel struct {
	ID        string `json:"id"`
	Name      string `json:"name"`
	HubID     string `json:"hub_id"`
	State     string `json:"state"`
	Wanted    bool   `json:"wanted"`
	Problem   string `json:"problem"`
	Streaming bool   `json:"streaming"`
}

// channel returns the channel of this name, made or brought up to date.
func (c *client) channel(ctx context.Context, name, hub, camera string) (id string, err error) {
	var list struct {
		Channels []channel `json:"channels"`
	}
	if err := c.call(ctx, http.MethodGet, "/channels?limit=1000", nil, &list); err != nil {
		return "", err
	}
	spec := map[string]any{"name": name, "hub_id": hub, "mode": "continuous", "camera": map[string]string{"url": camera}}
	for _, ch := range list.Channels {
		if ch.Name != name {
			continue
		}
		if err := c.call(ctx, http.MethodPatch, "/channels/"+ch.ID, spec, nil); err != nil {
			return "", err
		}
		return ch.ID, nil
	}
	var made channel
	if err := c.call(ctx, http.MethodPost, "/channels", spec, &made); err != nil {
		return "", err
	}
	return made.ID, nil
}

// captured reports whether there is footage since then: a camera that streams
// shows nothing before its next keyframe.
func (c *client) captured(ctx context.Context, id string, since time.Time) bool {
	var page struct {
		Recordings []struct{} `json:"recordings"`
		Pending    []struct{} `json:"pending"`
	}
	err := c.call(ctx, http.MethodGet, "/channels/"+id+"/recordings?from="+since.UTC().Format("2006-01-02T15:04:05.000Z"), nil, &page)
	return err == nil && len(page.Recordings)+len(page.Pending) > 0
}

// patience is how long a start may take before somebody wants to know why.
const patience = 3 * time.Second

// waitStreaming waits until a worker receives the channel, and says meanwhile
// what keeps it.
func (c *client) waitStreaming(ctx context.Context, id string) error {
	said, began := "", time.Now()
	for {
		var ch channel
		err := c.call(ctx, http.MethodGet, "/channels/"+id, nil, &ch)
		if err == nil && ch.Streaming && ch.State == "streaming" && c.captured(ctx, id, began) {
			return nil
		}
		if err == nil && !ch.Wanted {
			// It was stopped when we last ran, and a stop holds until somebody
			// starts it again: who runs this does. The hub may not be there yet.
			err = c.call(ctx, http.MethodPost, "/channels/"+id+"/start", nil, nil)
		}
		if err != nil {
			ch.Problem = err.Error()
		}
		if p := strings.TrimSpace(ch.Problem); p != "" && p != said && ctx.Err() == nil && time.Since(began) > patience {
			said = p
			fmt.Fprintln(os.Stderr, "run: waiting for the camera:", p)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (c *client) loginCode(ctx context.Context) (string, error) {
	var made struct {
		Code string `json:"code"`
	}
	err := c.call(ctx, http.MethodPost, "/login-codes", nil, &made)
	return made.Code, err
}
