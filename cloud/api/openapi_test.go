package api

import (
	"encoding/json"
	"fmt"
	"iter"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/danielgtaylor/huma/v2"
)

func operations(item *huma.PathItem) iter.Seq2[string, *huma.Operation] {
	return func(yield func(string, *huma.Operation) bool) {
		for _, o := range []struct {
			method string
			op     *huma.Operation
		}{
			{"GET", item.Get}, {"POST", item.Post}, {"PUT", item.Put}, {"PATCH", item.Patch}, {"DELETE", item.Delete},
			{"HEAD", item.Head}, {"OPTIONS", item.Options}, {"TRACE", item.Trace},
		} {
			if o.op != nil && !yield(o.method, o.op) {
				return
			}
		}
	}
}

func operation(doc *huma.OpenAPI, method, path string) *huma.Operation {
	item := doc.Paths[path]
	if item == nil {
		return nil
	}
	for m, op := range operations(item) {
		if m == method {
			return op
		}
	}
	return nil
}

// TestDocumentIsOpenAPI31 reads the document as a client would, from its JSON.
func TestDocumentIsOpenAPI31(t *testing.T) {
	r := newRig(t)
	a := r.do("GET", "/openapi.json", "") // needs no credentials
	if a.StatusCode != 200 || a.Header.Get("Content-Type") != "application/json" {
		t.Fatalf("%d %s", a.StatusCode, a.Header.Get("Content-Type"))
	}
	var doc map[string]any
	a.decode(t, &doc)
	if doc["openapi"] != "3.1.0" || dig(doc, "info", "version") != "1.2.3" || dig(doc, "info", "title") == "" {
		t.Errorf("openapi %v, info %v", doc["openapi"], doc["info"])
	}
	for key := range doc { // the fixed fields of the OpenAPI object
		if !slices.Contains([]string{"openapi", "info", "jsonSchemaDialect", "servers", "paths", "webhooks", "components", "security", "tags", "externalDocs"}, key) {
			t.Errorf("unknown field %q", key)
		}
	}
	var tags []string
	for _, tag := range doc["tags"].([]any) {
		tags = append(tags, dig(tag, "name").(string))
	}
	ids := make(map[string]bool)
	for path, item := range doc["paths"].(map[string]any) {
		for method, v := range item.(map[string]any) {
			where := method + " " + path
			op := v.(map[string]any)
			id, _ := op["operationId"].(string)
			if id == "" || ids[id] {
				t.Errorf("%s: operationId %q is missing or twice", where, id)
			}
			ids[id] = true
			if s, _ := op["summary"].(string); s == "" {
				t.Errorf("%s: no summary", where)
			}
			if tag := op["tags"].([]any); len(tag) != 1 || !slices.Contains(tags, tag[0].(string)) {
				t.Errorf("%s: tags %v", where, tag)
			}
			inPath := regexp.MustCompile(`\{(\w+)\}`).FindAllStringSubmatch(path, -1)
			declared := 0
			params, _ := op["parameters"].([]any)
			for _, p := range params {
				if dig(p, "in") == "path" {
					declared++
				}
				if d, _ := dig(p, "description").(string); d == "" {
					t.Errorf("%s: parameter %v has no description", where, dig(p, "name"))
				}
			}
			if declared != len(inPath) {
				t.Errorf("%s: %d path parameters declared, want %d", where, declared, len(inPath))
			}
			errors := 0
			for status, resp := range op["responses"].(map[string]any) {
				if d, _ := dig(resp, "description").(string); d == "" {
					t.Errorf("%s: response %s has no description", where, status)
				}
				if status >= "400" {
					errors++
					if dig(resp, "content", "application/problem+json", "schema", "$ref") != "#/components/schemas/Problem" {
						t.Errorf("%s: response %s is not a problem", where, status)
					}
				}
			}
			if errors == 0 {
				t.Errorf("%s: no error responses", where)
			}
			security, _ := op["security"].([]any)
			for _, s := range security {
				for name := range s.(map[string]any) {
					if dig(doc, "components", "securitySchemes", name) == nil {
						t.Errorf("%s: security scheme %q is not there", where, name)
					}
				}
			}
			if _, secured := dig(op, "responses", "401").(map[string]any); len(security) > 0 && !secured {
				t.Errorf("%s: no 401", where)
			}
		}
	}
	walk(doc, "", func(where string, v map[string]any) {
		if ref, ok := v["$ref"].(string); ok && dig(doc, strings.Split(strings.TrimPrefix(ref, "#/"), "/")...) == nil {
			t.Errorf("%s: %s leads nowhere", where, ref)
		}
		if _, ok := v["nullable"].(bool); ok {
			t.Errorf("%s: nullable is OpenAPI 3.0", where)
		}
	})
	for name, schema := range dig(doc, "components", "schemas").(map[string]any) {
		_, closed := dig(schema, "additionalProperties").(bool)
		if request := strings.HasSuffix(name, "Request") || strings.HasSuffix(name, "Change"); request != closed {
			t.Errorf("schema %s: closed to further members = %v, want that for requests and not for answers", name, closed)
		}
		properties, _ := dig(schema, "properties").(map[string]any)
		for p, s := range properties {
			if d, _ := dig(s, "description").(string); d == "" && name != "JWKS" && name != "JWK" {
				t.Errorf("schema %s: %s has no description", name, p)
			}
		}
	}
}

// dig follows keys into v.
func dig(v any, keys ...string) any {
	for _, k := range keys {
		m, _ := v.(map[string]any)
		v = m[k]
	}
	return v
}

func walk(v any, where string, visit func(string, map[string]any)) {
	switch v := v.(type) {
	case map[string]any:
		visit(where, v)
		for k, c := range v {
			walk(c, where+"/"+k, visit)
		}
	case []any:
		for i, c := range v {
			walk(c, fmt.Sprintf("%s/%d", where, i), visit)
		}
	}
}

func TestExamplesMatchTheirSchemas(t *testing.T) {
	doc := newRig(t).api.huma.OpenAPI()
	registry := doc.Components.Schemas
	checked := 0
	check := func(where string, schema *huma.Schema, mode huma.ValidateMode, value any) {
		t.Helper()
		b, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		var plain any
		if err := json.Unmarshal(b, &plain); err != nil {
			t.Fatal(err)
		}
		var res huma.ValidateResult
		huma.Validate(registry, schema, huma.NewPathBuffer(nil, 0), mode, plain, &res)
		for _, err := range res.Errors {
			t.Errorf("%s: example %s: %v", where, b, err)
		}
		checked++
	}
	for name, schema := range registry.Map() {
		for field, s := range schema.Properties {
			for _, e := range s.Examples {
				check(name+"."+field, s, huma.ModeWriteToServer, e)
			}
		}
	}
	for path, item := range doc.Paths {
		for method, op := range operations(item) {
			if op.RequestBody == nil {
				continue
			}
			media := op.RequestBody.Content["application/json"]
			if media.Example == nil && op.OperationID != "enroll" {
				t.Errorf("%s %s: no example of the body", method, path)
			} else if media.Example != nil {
				check(method+" "+path, media.Schema, huma.ModeWriteToServer, media.Example)
			}
		}
	}
	if checked < 30 {
		t.Errorf("only %d examples", checked)
	}
}

// TestAnswersMatchTheirSchemas holds what is served to what is written.
func TestAnswersMatchTheirSchemas(t *testing.T) {
	r := newRig(t)
	doc := r.api.huma.OpenAPI()
	for _, rt := range routes {
		if rt.path == "/api/v1/events" {
			continue
		}
		a := r.call(rt.method, strings.ReplaceAll(rt.path, "{id}", "ch_1"), rt.body)
		op := operation(doc, rt.method, rt.path)
		resp := op.Responses[fmt.Sprint(a.StatusCode)]
		if resp == nil {
			t.Errorf("%s %s: %d is not documented", rt.method, rt.path, a.StatusCode)
			continue
		}
		if resp.Content == nil {
			if len(a.body) != 0 {
				t.Errorf("%s %s: body %s is not documented", rt.method, rt.path, a.body)
			}
			continue
		}
		var v any
		a.decode(t, &v)
		var res huma.ValidateResult
		huma.Validate(doc.Components.Schemas, resp.Content["application/json"].Schema, huma.NewPathBuffer(nil, 0), huma.ModeReadFromServer, v, &res)
		for _, err := range res.Errors {
			t.Errorf("%s %s: %v", rt.method, rt.path, err)
		}
	}
}

func TestDocsPageLoadsNothingForeign(t *testing.T) {
	r := newRig(t)
	for _, path := range []string{"/docs", "/docs/docs.js", "/docs/docs.css"} {
		a := r.do("GET", path, "")
		if a.StatusCode != 200 {
			t.Fatalf("%s: %d", path, a.StatusCode)
		}
		if csp := a.Header.Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'none';") || strings.Contains(csp, "unsafe") {
			t.Errorf("%s: policy %q", path, csp)
		}
		if strings.Contains(string(a.body), "//") && regexp.MustCompile(`https?://|src=["']//`).Match(a.body) {
			t.Errorf("%s names a foreign host", path)
		}
		if path == "/docs" && regexp.MustCompile(`(?i)<script(>| [^>]*>[^<])|\son\w+=|style=`).Match(a.body) {
			t.Error("the page has inline script or style, which its policy refuses")
		}
	}
}
