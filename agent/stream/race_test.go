//go:build race

package stream

// raced: the race detector makes simulations ten times as slow.
const raced = true
