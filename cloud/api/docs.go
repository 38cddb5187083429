package api

import (
	"embed"
	"encoding/json"
	"io/fs"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
)

//go:embed docs
var docsFiles embed.FS

// docsPolicy lets the page load its own script and style and read the
// document, and nothing else from anywhere.
const docsPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// addDocs serves the document, as it is after the last operation was added,
// and the page that shows it.
func (s *server) addDocs() {
	s.openAnswers()
	document, err := json.Marshal(s.huma.OpenAPI())
	if err != nil {
		panic(err) // the document is made of constants
	}
	s.mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(document) // the caller is gone
	})
	files, err := fs.Sub(docsFiles, "docs")
	if err != nil {
		panic(err)
	}
	for path, file := range map[string]string{"/docs": "index.html", "/docs/docs.js": "docs.js", "/docs/docs.css": "docs.css"} {
		s.mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Security-Policy", docsPolicy)
			http.ServeFileFS(w, r, files, file)
		})
	}
}

// openAnswers lets answers grow: huma closes every object to members that its
// schema does not have, which is right for requests only.
func (s *server) openAnswers() {
	doc := s.huma.OpenAPI()
	closed := make(map[*huma.Schema]bool)
	for _, item := range doc.Paths {
		for _, op := range []*huma.Operation{item.Post, item.Put, item.Patch} {
			if op == nil || op.RequestBody == nil {
				continue
			}
			for _, media := range op.RequestBody.Content {
				reach(doc.Components.Schemas, media.Schema, closed)
			}
		}
	}
	for _, schema := range doc.Components.Schemas.Map() {
		if !closed[schema] {
			schema.AdditionalProperties = nil
		}
	}
}

// reach adds schema, and all that it is made of, to seen.
func reach(r huma.Registry, schema *huma.Schema, seen map[*huma.Schema]bool) {
	if schema == nil {
		return
	}
	if schema.Ref != "" {
		schema = r.SchemaFromRef(schema.Ref)
	}
	if seen[schema] {
		return
	}
	seen[schema] = true
	for _, p := range schema.Properties {
		reach(r, p, seen)
	}
	reach(r, schema.Items, seen)
}
