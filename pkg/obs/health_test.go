package obs

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"
)

func ask(t *testing.T, h http.Handler, method string) (int, report) {
	t.Helper()
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), method, "/", nil))
	var r report
	if rec.Code != http.StatusMethodNotAllowed {
		if err := json.Unmarshal(rec.Body.Bytes(), &r); err != nil {
			t.Fatalf("body %q: %v", rec.Body, err)
		}
	}
	return rec.Code, r
}

func TestHealthWithoutChecks(t *testing.T) {
	var h Health
	if code, r := ask(t, h.Readyz(), "GET"); code != 200 || r.Status != "ok" {
		t.Errorf("answer %d %v, want 200 ok", code, r)
	}
	if code, _ := ask(t, h.Healthz(), "POST"); code != 405 {
		t.Errorf("POST gets %d, want 405", code)
	}
}

func TestReadyChecksDoNotKill(t *testing.T) {
	var h Health
	h.Live("database", func(context.Context) error { return nil })
	h.Ready("store", func(context.Context) error { return errors.New("dial http://key:secret@s3: refused") })
	if code, r := ask(t, h.Healthz(), "GET"); code != 200 || r.Checks["store"] != "" || r.Checks["database"] != "ok" {
		t.Errorf("healthz: %d %v, want 200 with the database only", code, r)
	}
	code, r := ask(t, h.Readyz(), "GET")
	if code != 503 || r.Status != "failed" || r.Checks["database"] != "ok" {
		t.Errorf("readyz: %d %v, want 503", code, r)
	}
	if want := "dial http://[hidden]@s3: refused"; r.Checks["store"] != want {
		t.Errorf("reason %q, want %q", r.Checks["store"], want)
	}
}

func TestChecksThatHangOrPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h Health
		release := make(chan struct{})
		h.Live("deaf", func(context.Context) error { <-release; return nil })
		h.Live("heeds ctx", func(ctx context.Context) error { <-ctx.Done(); return nil })
		h.Live("panics", func(context.Context) error { panic("oh") })
		start := time.Now()
		code, r := ask(t, h.Healthz(), "GET")
		if code != 503 || r.Checks["deaf"] != "no answer in time" || r.Checks["panics"] != "check panicked: oh" {
			t.Errorf("answer %d %v", code, r)
		}
		if d := time.Since(start); d != checkTimeout {
			t.Errorf("answered after %s, want %s", d, checkTimeout)
		}
		close(release)
	})
}

func TestSameNameFailsIfOneFails(t *testing.T) {
	for range 20 { // the order in which checks end is not fixed
		var h Health
		h.Live("disk", func(context.Context) error { return nil })
		h.Live("disk", func(context.Context) error { return errors.New("full") })
		if code, _ := ask(t, h.Healthz(), "GET"); code != 503 {
			t.Fatalf("answer %d, want 503", code)
		}
	}
}
