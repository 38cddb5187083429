package api

import (
	"bytes"
	"encoding/json"
	"reflect"

	"github.com/danielgtaylor/huma/v2"
)

// Patch is a field of a PATCH: absent leaves it as it is, null clears it.
type Patch[T any] struct {
	Sent  bool
	Null  bool
	Value T
}

// UnmarshalJSON is called for null too, and only when the field is there.
func (p *Patch[T]) UnmarshalJSON(b []byte) error {
	*p = Patch[T]{Sent: true}
	if bytes.Equal(b, []byte("null")) {
		p.Null = true
		return nil
	}
	return json.Unmarshal(b, &p.Value)
}

// MarshalJSON writes what UnmarshalJSON reads; it serves the examples.
func (p Patch[T]) MarshalJSON() ([]byte, error) {
	if p.Null || !p.Sent {
		return []byte("null"), nil
	}
	return json.Marshal(p.Value)
}

// IsZero leaves a field that was not sent out.
func (p Patch[T]) IsZero() bool { return !p.Sent }

// Schema implements huma.SchemaProvider: that of T, or null.
func (Patch[T]) Schema(r huma.Registry) *huma.Schema {
	s := *huma.SchemaFromType(r, reflect.TypeFor[T]())
	s.Nullable = true
	return &s
}

// or is ptr for a field that is cleared to a default.
func (p Patch[T]) or(def T) *T {
	if p.Null {
		return &def
	}
	return p.ptr()
}

// ptr returns what a patch asks for: nil for "unchanged", the zero value for "cleared".
func (p Patch[T]) ptr() *T {
	if !p.Sent {
		return nil
	}
	return &p.Value
}
