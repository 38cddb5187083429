package cloud

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/zipato/vms/cloud/api"
	"github.com/zipato/vms/pkg/problem"
	"github.com/zipato/vms/pkg/vms"
)

// Worker is a worker, and WorkerList all of them, as the API tells of them.
type (
	Worker     = api.Worker
	WorkerList = api.WorkerList
)

// Workers asks the cloud that runs on a data directory for its workers.
func Workers(ctx context.Context, cloudURL, data string) (list WorkerList, err error) {
	err = ask(ctx, http.MethodGet, cloudURL, data, "/api/v1/workers", &list)
	return list, err
}

// DrainWorker tells it to take the streams away from a worker.
func DrainWorker(ctx context.Context, cloudURL, data, id string) (w Worker, err error) {
	if !vms.ValidID(id) {
		return w, fmt.Errorf("%w: %q is no id of a worker", vms.ErrInvalid, id)
	}
	err = ask(ctx, http.MethodPost, cloudURL, data, "/api/v1/workers/"+id+"/drain", &w)
	return w, err
}

// HubIDs asks the cloud that runs on a data directory for its hubs. Its database
// is not read here: this program may be newer than the one that runs.
func HubIDs(ctx context.Context, cloudURL, data string) ([]string, error) {
	var ids []string
	for cursor, more := "", true; more; more = cursor != "" {
		var page struct {
			Hubs []struct {
				ID         string     `json:"id"`
				EnrolledAt *time.Time `json:"enrolled_at"`
			} `json:"hubs"`
			NextCursor string `json:"next_cursor"`
		}
		if err := ask(ctx, http.MethodGet, cloudURL, data, "/api/v1/hubs?limit=1000&cursor="+url.QueryEscape(cursor), &page); err != nil {
			return nil, err
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

// ask calls the API of a running cloud with the token in its data directory.
func ask(ctx context.Context, method, cloudURL, data, path string, out any) error {
	token, err := os.ReadFile(filepath.Join(data, "admin-token"))
	if err != nil {
		return fmt.Errorf("read the admin token: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(cloudURL, "/")+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		return fmt.Errorf("no answer of a cloud at %s: %w", cloudURL, err)
	}
	defer resp.Body.Close()
	if err := problem.ReadResponse(resp); err != nil {
		return fmt.Errorf("the cloud at %s: %w", cloudURL, err)
	}
	return json.NewDecoder(io.LimitReader(resp.Body, 4<<20)).Decode(out)
}
