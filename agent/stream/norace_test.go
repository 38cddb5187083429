//go:build !race

package stream

// raced: see race_test.go.
const raced = false
