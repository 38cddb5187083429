package arch

import (
	"strings"
	"testing"
)

// TestCheckerFindsBrokenRules feeds made-up graphs: a checker that finds
// nothing on the real one must be able to find something.
func TestCheckerFindsBrokenRules(t *testing.T) {
	ours := func(paths ...string) []string {
		for i := range paths {
			paths[i] = module + "/" + paths[i]
		}
		return paths
	}
	for _, tt := range []struct {
		name string
		pkg  pkg
		want string // part of the one sentence; empty: the rules hold
	}{
		{"words use the standard library", pkg{ImportPath: "pkg/vms", Imports: []string{"fmt"}}, ""},
		{"words know nothing of ours", pkg{ImportPath: "pkg/vms", Imports: ours("pkg/wire")}, "pkg/vms may not import pkg/wire"},
		{"words know no library", pkg{ImportPath: "pkg/vms", Imports: []string{"golang.org/x/sync/errgroup"}}, "standard library only"},
		{"formats know words", pkg{ImportPath: "pkg/wire", Imports: ours("pkg/vms")}, ""},
		{"formats do not know each other", pkg{ImportPath: "pkg/wire", Imports: ours("pkg/cmaf")}, "may not import pkg/cmaf"},
		{"pkg looks up", pkg{ImportPath: "pkg/wire", Imports: ours("agent/spool")}, "may not import agent/spool"},
		{"mechanisms know formats", pkg{ImportPath: "agent/spool", Imports: ours("pkg/vms", "pkg/retry")}, ""},
		{"siblings", pkg{ImportPath: "agent/uplink", Imports: ours("agent/spool")}, "may not import agent/spool"},
		{"siblings in a test", pkg{ImportPath: "agent/uplink", TestImports: ours("agent/spool")}, "agent/uplink (test) may not import agent/spool"},
		{"siblings in an outer test", pkg{ImportPath: "agent/uplink", XTestImports: ours("agent/spool", "agent/uplink")}, "(test) may not import agent/spool"},
		{"worker's mechanisms", pkg{ImportPath: "cloud/worker/ingest", Imports: ours("cloud/worker/segment")}, "may not import cloud/worker/segment"},
		{"worker owns them", pkg{ImportPath: "cloud/worker", Imports: ours("cloud/worker/ingest", "cloud/worker/segment")}, ""},
		{"sides do not meet", pkg{ImportPath: "cloud/worker", Imports: ours("agent/mux")}, "meet in cloud/e2e only"},
		{"nor in tests", pkg{ImportPath: "agent/uplink", TestImports: ours("cloud/session")}, "meet in cloud/e2e only"},
		{"but in e2e", pkg{ImportPath: "cloud/e2e", TestImports: ours("agent", "cloud", "pkg/vmstest/camtest")}, ""},
		{"rules know no HTTP", pkg{ImportPath: "cloud/nvr", Imports: []string{"net/http"}}, "know no technology"},
		{"rules know no SQL", pkg{ImportPath: "cloud/nvr", TestImports: []string{"modernc.org/sqlite"}}, "know no technology"},
		{"adapters know rules", pkg{ImportPath: "cloud/api", Imports: ours("cloud/nvr", "cloud/auth")}, ""},
		{"adapters do not know each other", pkg{ImportPath: "cloud/api", Imports: ours("cloud/store")}, "may not import cloud/store"},
		{"but its tests run on the real store", pkg{ImportPath: "cloud/api", TestImports: ours("cloud/store")}, ""},
		{"the store asks no account", pkg{ImportPath: "cloud/store", Imports: ours("cloud/auth")}, "may not import cloud/auth"},
		{"an implementation knows its contract", pkg{ImportPath: "cloud/objstore/s3", Imports: ours("cloud/objstore")}, ""},
		{"and runs its suite", pkg{ImportPath: "cloud/objstore/s3", TestImports: ours("cloud/objstore/objstoretest")}, ""},
		{"in tests only", pkg{ImportPath: "cloud/objstore/s3", Imports: ours("cloud/objstore/objstoretest")}, "which is for tests"},
		{"not each other", pkg{ImportPath: "cloud/objstore/s3", Imports: ours("cloud/objstore/disk")}, "may not import cloud/objstore/disk"},
		{"assembly knows its side", pkg{ImportPath: "agent", Imports: ours("agent/stream", "agent/lan")}, ""},
		{"a main is a doorman", pkg{ImportPath: "agent/cmd/vms-agent", Imports: ours("agent", "agent/spool")}, "may not import agent/spool"},
		{"test helpers in product", pkg{ImportPath: "agent/camera", Imports: ours("pkg/vmstest/camtest")}, "which is for tests"},
		{"test helpers in tests", pkg{ImportPath: "agent/camera", TestImports: ours("pkg/vmstest/camtest")}, ""},
		{"test helpers in scripts", pkg{ImportPath: "scripts/demo-camera", Imports: ours("pkg/vmstest/camtest")}, ""},
		{"scripts stay outside", pkg{ImportPath: "scripts/run", Imports: ours("cloud")}, "may not import cloud"},
		{"testing in product", pkg{ImportPath: "agent/mux", Imports: []string{"testing"}}, "imports testing outside of a test"},
		{"who keeps files knows disks", pkg{ImportPath: "agent/state", Imports: ours("agent/disk")}, ""},
		{"who keeps none does not", pkg{ImportPath: "agent/uplink", Imports: ours("agent/disk")}, "may not import agent/disk"},
		{"the doctor looks at mechanisms", pkg{ImportPath: "agent/doctor", Imports: ours("agent/camera", "agent/control")}, ""},
		{"but not at what runs", pkg{ImportPath: "agent/doctor", Imports: ours("agent/stream")}, "may not import agent/stream"},
		{"zones in a main", pkg{ImportPath: "agent/cmd/vms-agent", Imports: []string{"time/tzdata"}}, ""},
		{"zones in a test", pkg{ImportPath: "pkg/week", TestImports: []string{"time/tzdata"}}, ""},
		{"zones below", pkg{ImportPath: "pkg/week", Imports: []string{"time/tzdata"}}, "a main decides"},
		{"library at home", pkg{ImportPath: "agent/camera", Imports: []string{"github.com/bluenviron/gortsplib/v5/pkg/format"}}, ""},
		{"library abroad", pkg{ImportPath: "agent/stream", Imports: []string{"github.com/bluenviron/gortsplib/v5"}}, "which lives in agent/camera"},
		{"library with a like name", pkg{ImportPath: "agent/camera", Imports: []string{"github.com/bluenviron/gortsplib/v52"}}, "without a home"},
		{"library as a test's peer", pkg{ImportPath: "cloud/embed", TestImports: []string{"github.com/minio/minio-go/v7"}}, ""},
		{"only as a test's peer", pkg{ImportPath: "cloud/embed", Imports: []string{"github.com/minio/minio-go/v7"}}, "which lives in cloud/objstore/s3"},
		{"unknown library", pkg{ImportPath: "agent/lan", Imports: []string{"example.org/left/pad"}}, "without a home"},
		{"unknown package", pkg{ImportPath: "pkg/util"}, "no rule knows this package"},
		{"unknown package below a known one", pkg{ImportPath: "agent/camera/onvif"}, "no rule knows this package"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.pkg.ImportPath = module + "/" + tt.pkg.ImportPath
			got := check([]pkg{tt.pkg})
			switch {
			case tt.want == "" && len(got) > 0:
				t.Errorf("check = %q, want nothing", got)
			case tt.want != "" && (len(got) != 1 || !strings.Contains(got[0], tt.want)):
				t.Errorf("check = %q, want one sentence with %q", got, tt.want)
			}
		})
	}
}

func TestCheckerFindsWhatAHubMayNotLink(t *testing.T) {
	got := checkLinked([]string{
		"fmt", "net/http", "net/http/pprof", "database/sql", "github.com/minio/minio-go/v7/pkg/s3utils",
		module + "/agent/spool", module + "/cloud/store", "github.com/miniox/a", "github.com/nats-io/nats-server/v2/server",
	})
	if len(got) != 5 {
		t.Errorf("checkLinked = %q, want five sentences", got)
	}
}

// TestRulesAreReachable: a rule behind a wider pattern would never hold.
func TestRulesAreReachable(t *testing.T) {
	for i, r := range rules {
		sample := strings.TrimSuffix(strings.TrimSuffix(r.pkg, "/..."), "/*")
		if strings.HasSuffix(r.pkg, "/*") {
			sample += "/x"
		}
		for _, before := range rules[:i] {
			if match(before.pkg, sample) {
				t.Errorf("rule %q stands behind %q, which takes its packages", r.pkg, before.pkg)
			}
		}
	}
}
