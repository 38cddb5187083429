package arch

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestImportRules(t *testing.T) {
	for _, sentence := range check(list(t)) {
		t.Error(sentence)
	}
}

// TestHubBinaryStaysSmall looks at everything that vms-agent links. The size
// itself is measured where the binary is built, in cross/.
func TestHubBinaryStaysSmall(t *testing.T) {
	deps := strings.Fields(string(goTool(t, "list", "-deps", "./agent/cmd/vms-agent")))
	if len(deps) < 50 {
		t.Fatalf("vms-agent seems to link %d packages", len(deps))
	}
	for _, sentence := range checkLinked(deps) {
		t.Error(sentence)
	}
}

// list reads all packages of the project, also those that do not compile.
func list(t *testing.T) []pkg {
	t.Helper()
	readFolders(t)
	dec := json.NewDecoder(bytes.NewReader(goTool(t, "list", "-e",
		"-json=ImportPath,Standard,Imports,TestImports,XTestImports", "./...")))
	var pkgs []pkg
	for {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		// Packages of the web app's tree that happen to hold Go files are not ours.
		if !strings.Contains(p.ImportPath, "/node_modules/") {
			pkgs = append(pkgs, p)
		}
	}
	if len(pkgs) < 5 {
		t.Fatalf("go list found %d packages", len(pkgs))
	}
	return pkgs
}

// readFolders opens every folder with sources. `go test` keeps results and
// forgets them when what a test opened has changed, but it cannot see what the
// go command opens for us: without this, an old "ok" would stand.
func readFolders(t *testing.T) {
	t.Helper()
	root := filepath.Join("..", "..")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && (d.Name() == "node_modules" || d.Name() == "testdata" || d.Name() == "data" || d.Name() == "bin" || strings.HasPrefix(d.Name(), ".")):
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// goTool runs the go command at the root of the module.
func goTool(t *testing.T, args ...string) []byte {
	t.Helper()
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir = filepath.Join(wd, "..", "..")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return out
}
