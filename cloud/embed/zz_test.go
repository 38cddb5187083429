package embed_test

import (
	"context"
	"io"
	"os"
	"testing"
	"time"
	"net/http"
	"bytes"
	"crypto/sha256"
	"github.com/zipato/vms/cloud/objstore"
)

func TestZZ(t *testing.T) {
	fds := func() int { e, _ := os.ReadDir("/proc/self/fd"); return len(e) }
	n := fds()
	srv := start(t)
	st := open(t, srv)
	body := make([]byte, 50<<20)
	if err := st.Put(t.Context(), "big", objstore.PutInput{Body: bytes.NewReader(body), Size: int64(len(body)), SHA256: sha256.Sum256(body), ContentType: "a/b"}); err != nil { t.Fatal(err) }
	u, _, _ := st.PresignGet(t.Context(), "big", time.Minute, "")
	resp, err := http.Get(u)
	if err != nil { t.Fatal(err) }
	io.CopyN(io.Discard, resp.Body, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b := time.Now()
	t.Log(srv.Run(ctx), time.Since(b))
	resp.Body.Close()
	st.Close()
	http.DefaultClient.CloseIdleConnections()
	time.Sleep(time.Second)
	t.Log(n, fds())
}
