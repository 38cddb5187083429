// Package arch holds the import rules of the house, as tests: which package
// may know which, where each outside library lives, and what the hub's binary
// may link. It has no code of its own.
//
// A new package needs a row in the table of rules_test.go, a new library one
// in homes. The checker itself is tested on graphs that break each rule.
package arch
