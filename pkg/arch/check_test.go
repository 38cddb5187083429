package arch

import (
	"fmt"
	"slices"
	"strings"
)

// pkg is what `go list -json` says of a package, as far as the rules need it.
type pkg struct {
	ImportPath   string
	Standard     bool
	Imports      []string
	TestImports  []string // of _test.go files in the package
	XTestImports []string // of _test.go files in package x_test
}

// check returns a sentence for each broken rule.
func check(pkgs []pkg) []string {
	var broken []string
	for _, p := range pkgs {
		path := relative(p.ImportPath)
		r, ok := ruleOf(path)
		if !ok {
			broken = append(broken, fmt.Sprintf("%s: no rule knows this package; give it a row in pkg/arch/rules_test.go", path))
			continue
		}
		for _, imp := range sorted(p.Imports) {
			broken = append(broken, checkImport(r, path, imp, false)...)
		}
		for _, imp := range sorted(p.TestImports, p.XTestImports) {
			if !slices.Contains(p.Imports, imp) { // said once already
				broken = append(broken, checkImport(r, path, imp, true)...)
			}
		}
	}
	return broken
}

// checkImport checks that the package at path, under rule r, imports imp.
func checkImport(r rule, path, imp string, inTest bool) []string {
	what := path
	if inTest {
		what += " (test)"
	}
	if path == "cloud/nvr" && (slices.Contains(domain, imp) || !isOurs(imp) && !isStandard(imp) && imp != "golang.org/x/sync/errgroup") {
		return []string{fmt.Sprintf("%s imports %s: the rules of the system know no technology", what, imp)}
	}
	switch {
	case isOurs(imp):
		return checkOurs(r, path, what, relative(imp), inTest)
	case isStandard(imp):
		if imp == "testing" && !inTest && !r.testing && !matchAny(of("cloud/e2e/...", "scripts/..."), path) {
			return []string{fmt.Sprintf("%s imports testing outside of a test", what)}
		}
		if imp == "time/tzdata" && !inTest && !matchAny(mains, path) {
			return []string{fmt.Sprintf("%s imports time/tzdata: a main decides whether a program carries the zones of the world", what)}
		}
		return nil
	case path == "pkg/vms":
		return []string{fmt.Sprintf("%s imports %s: the words need the standard library only", what, imp)}
	}
	for _, h := range homes {
		if imp != h.lib && !strings.HasPrefix(imp, h.lib+"/") {
			continue
		}
		if matchAny(h.in, path) || inTest && matchAny(h.tests, path) {
			return nil
		}
		return []string{fmt.Sprintf("%s imports %s, which lives in %s", what, imp, strings.Join(h.in, ", "))}
	}
	return []string{fmt.Sprintf("%s imports %s, a library without a home in pkg/arch/rules_test.go", what, imp)}
}

func checkOurs(r rule, path, what, imp string, inTest bool) []string {
	if imp == path {
		return nil // package x_test
	}
	if side(path) != side(imp) && side(path) != "" && side(imp) != "" && !match("cloud/e2e/...", path) {
		return []string{fmt.Sprintf("%s imports %s: agent and cloud meet in cloud/e2e only", what, imp)}
	}
	target, ok := ruleOf(imp)
	if ok && target.testing && !inTest && !r.testing && !matchAny(of("cloud/e2e/...", "scripts/..."), path) {
		return []string{fmt.Sprintf("%s imports %s, which is for tests", what, imp)}
	}
	if matchAny(r.may, imp) || inTest && matchAny(r.tests, imp) {
		return nil
	}
	return []string{fmt.Sprintf("%s may not import %s", what, imp)}
}

// checkLinked returns a sentence for each package in deps that the hub forbids.
func checkLinked(deps []string) []string {
	var broken []string
	for _, d := range deps {
		if matchAny(hubForbids, d) {
			broken = append(broken, fmt.Sprintf("vms-agent links %s", d))
		}
	}
	return broken
}

func ruleOf(path string) (rule, bool) {
	for _, r := range rules {
		if match(r.pkg, path) {
			return r, true
		}
	}
	return rule{}, false
}

// match reports whether path fits the pattern; see rule.
func match(pattern, path string) bool {
	if pattern == "..." {
		return true
	}
	if root, ok := strings.CutSuffix(pattern, "/..."); ok {
		return path == root || strings.HasPrefix(path, root+"/")
	}
	if root, ok := strings.CutSuffix(pattern, "/*"); ok {
		rest, below := strings.CutPrefix(path, root+"/")
		return below && !strings.Contains(rest, "/")
	}
	return pattern == path
}

func matchAny(patterns []string, path string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return match(p, path) })
}

// side returns agent or cloud, or "" for what belongs to neither.
func side(path string) string {
	if top, _, _ := strings.Cut(path, "/"); top == "agent" || top == "cloud" {
		return top
	}
	return ""
}

func isOurs(imp string) bool { return imp == module || strings.HasPrefix(imp, module+"/") }

// isStandard: only the standard library has paths whose first element has no dot.
func isStandard(imp string) bool {
	first, _, _ := strings.Cut(imp, "/")
	return !strings.Contains(first, ".")
}

func relative(imp string) string {
	if imp == module {
		return "."
	}
	return strings.TrimPrefix(imp, module+"/")
}

func sorted(lists ...[]string) []string {
	out := join(lists...)
	slices.Sort(out)
	return slices.Compact(out)
}
