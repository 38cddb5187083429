package nvr

import (
	"fmt"

	"github.com/zipato/vms/pkg/vms"
)

// FieldError says which field of a request is wrong, and how. It wraps
// vms.ErrInvalid.
type FieldError struct {
	// Field is the path of the field in the API, such as "camera.port".
	Field string
	// Problem is the rest of the sentence.
	Problem string
}

func (e *FieldError) Error() string { return e.Field + ": " + e.Problem }

// Unwrap makes a FieldError a vms.ErrInvalid.
func (e *FieldError) Unwrap() error { return vms.ErrInvalid }

func fieldError(field, format string, args ...any) error {
	return &FieldError{Field: field, Problem: fmt.Sprintf(format, args...)}
}

// Refusal is a handshake that is not let in: what the agent decides by, what
// people read, and the kind of error it is.
type Refusal struct {
	// Problem is one of the wire.Problem types.
	Problem string
	Detail  string
	Kind    error
}

func (r *Refusal) Error() string { return r.Detail }

// Unwrap gives the kind: vms.ErrUnauthorized, ErrForbidden, ErrRevoked, ...
func (r *Refusal) Unwrap() error { return r.Kind }

func refuse(problem string, kind error, format string, args ...any) error {
	return &Refusal{Problem: problem, Detail: fmt.Sprintf(format, args...), Kind: kind}
}
