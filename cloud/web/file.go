package web

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"mime"
	"path"
	"strings"
)

// file is one embedded file with its headers.
type file struct {
	data  []byte
	mime  string
	etag  string
	cache string
}

// load reads the built app, or the stub where there is none. The tree is
// embedded in this program, so what goes wrong here is a mistake of the build,
// and a panic at start tells it.
func load(tree fs.FS) map[string]file {
	files := map[string]file{}
	root := "dist/app"
	if _, err := fs.Stat(tree, root+"/index.html"); err != nil {
		root = "stub"
	}
	err := fs.WalkDir(tree, root, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(tree, name)
		if err != nil {
			return err
		}
		at := strings.TrimPrefix(name, root)
		files[at] = newFile(at, data)
		return nil
	})
	if err != nil {
		panic(fmt.Sprintf("web: embedded files: %v", err))
	}
	return files
}

func newFile(name string, data []byte) file {
	sum := sha256.Sum256(data)
	f := file{data: data, mime: mimeOf(name), etag: `"` + hex.EncodeToString(sum[:12]) + `"`, cache: "no-cache"}
	// Vite puts a hash of the content into every name under assets.
	if strings.HasPrefix(name, "/assets/") {
		f.cache = "public, max-age=31536000, immutable"
	}
	return f
}

// types are spelt out: mime.TypeByExtension reads the machine's own tables,
// and a machine that calls .js text/plain would break the page.
var types = map[string]string{
	".html":  "text/html; charset=utf-8",
	".js":    "text/javascript; charset=utf-8",
	".css":   "text/css; charset=utf-8",
	".svg":   "image/svg+xml",
	".png":   "image/png",
	".json":  "application/json",
	".woff2": "font/woff2",
}

func mimeOf(name string) string {
	ext := path.Ext(name)
	if t, ok := types[ext]; ok {
		return t
	}
	if t := mime.TypeByExtension(ext); t != "" {
		return t
	}
	return "application/octet-stream"
}
