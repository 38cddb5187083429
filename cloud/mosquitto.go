package cloud

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/zipato/vms/cloud/embed"
	"github.com/zipato/vms/cloud/hubctl"
	"github.com/zipato/vms/pkg/problem"
	"github.com/zipato/vms/pkg/vms"
)

// MosquittoACL is the ACL of a Mosquitto that serves a cloud's hubs.
const MosquittoACL = hubctl.MosquittoACL

// MosquittoPasswords is its password file, from the key in a data directory that
// may be in use.
func MosquittoPasswords(data string, hubs []string) ([]byte, error) {
	key, err := embed.ReadSecret(data, mqttKey, hubctl.KeySize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no cloud has run yet on the data directory %s: %w", data, err)
	}
	if err != nil {
		return nil, err
	}
	ids := make([]vms.HubID, len(hubs))
	for i, h := range hubs {
		ids[i] = vms.HubID(h)
	}
	return hubctl.MosquittoPasswords(key, ids)
}

// HubIDs asks the cloud that runs on a data directory for its hubs. Its database
// is not read here: this program may be newer than the one that runs.
func HubIDs(ctx context.Context, cloudURL, data string) ([]string, error) {
	token, err := os.ReadFile(filepath.Join(data, "admin-token"))
	if err != nil {
		return nil, fmt.Errorf("read the admin token: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var ids []string
	for cursor, more := "", true; more; more = cursor != "" {
		var page struct {
			Hubs []struct {
				ID         string     `json:"id"`
				EnrolledAt *time.Time `json:"enrolled_at"`
			} `json:"hubs"`
			NextCursor string `json:"next_cursor"`
		}
		if err := getJSON(ctx, cloudURL+"/api/v1/hubs?limit=1000&cursor="+url.QueryEscape(cursor), strings.TrimSpace(string(token)), &page); err != nil {
			return nil, fmt.Errorf("ask %s for its hubs: %w", cloudURL, err)
		}
		for _, h := range page.Hubs {
			if h.EnrolledAt != nil {
				ids = append(ids, h.ID)
			}
		}
		cursor = page.NextCursor
	}
	return ids, nil
}

func getJSON(ctx context.Context, url, token string, out any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := problem.ReadResponse(resp); err != nil {
		return err
	}
	return json.NewDecoder(io.LimitReader(resp.Body, 4<<20)).Decode(out)
}
