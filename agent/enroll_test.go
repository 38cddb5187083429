package agent

import (
	"crypto/ed25519"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/zipato/vms/pkg/token"
	"github.com/zipato/vms/pkg/vmstest"
)

// TestEnrolOverTLS: the cloud's certificate is verified, also by an authority of
// the owner's own.
func TestEnrolOverTLS(t *testing.T) {
	vmstest.NoLeaks(t)
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := token.NewSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/time/v1" {
			asked++
			_ = json.NewEncoder(w).Encode(map[string]any{"server_time": time.Now()})
			return
		}
		w.WriteHeader(http.StatusCreated)
		_ = json.NewEncoder(w).Encode(map[string]any{"hub_id": "hub_1", "nvr_url": "wss://127.0.0.1/session/v1", "token_keys": signer.JWKS()})
	}))
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	srv.StartTLS()
	defer srv.Close()
	if _, err := Enroll(t.Context(), srv.URL, "code", "test", t.TempDir()); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a certificate of nobody: %v", err)
	}
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	if hub, err := Enroll(t.Context(), srv.URL, "code", "test", t.TempDir(), ca); err != nil || hub != "hub_1" || asked == 0 {
		t.Errorf("hub %q, %v; asked for the time %d times", hub, err, asked)
	}
}
