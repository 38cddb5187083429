package vms

import "errors"

// The kinds of error that somebody decides by. Wrap them with what was being
// done; compare with errors.Is.
var (
	ErrNotFound     = errors.New("not found")
	ErrConflict     = errors.New("conflict")
	ErrUnauthorized = errors.New("not authorized")
	ErrForbidden    = errors.New("forbidden")
	// ErrRevoked is final: no retry helps.
	ErrRevoked = errors.New("revoked")
	// ErrExpired asks for a new token or ticket.
	ErrExpired = errors.New("expired")
	ErrInvalid = errors.New("invalid")
	// ErrUnavailable asks to come back later.
	ErrUnavailable = errors.New("unavailable")
)
