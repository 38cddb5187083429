package arch

// module is the path that all packages of the project begin with.
const module = "github.com/zipato/vms"

// rule says what the package at a path may import of the project. Patterns are
// relative to the module: "a/b" is that package, "a/b/..." also all below it,
// "a/*" any package directly below a. The first rule that matches a package
// holds.
type rule struct {
	pkg string
	// may lists what the package and its tests may import.
	may []string
	// tests lists what its tests may import beyond that.
	tests []string
	// testing: the package exists for tests. Only tests, cloud/e2e, scripts and
	// other packages for tests may import it.
	testing bool
}

// Groups of imports that several rules name.
var (
	// formats is levels 0 and 1: what everybody may use.
	formats = []string{"pkg/vms", "pkg/wire", "pkg/cmaf", "pkg/retry", "pkg/obs", "pkg/problem", "pkg/token", "pkg/week", "pkg/seal"}
	// helpers are packages for tests that any test may use.
	helpers = []string{"pkg/vmstest/..."}
	// peers are what the tests of adapters run against instead of a mock: the
	// real rules on the real store, in a temporary folder.
	peers = []string{"pkg/vmstest/...", "cloud/nvr/nvrtest", "cloud/store", "cloud/embed/..."}
)

// rules, lowest level first. Siblings of a level never import each other: they
// meet as plain values of pkg/vms, as funcs, or as an interface that the
// caller declares.
var rules = []rule{
	// Level 0: the words.
	{pkg: "pkg/vms"},

	// Level 1: formats and small mechanisms without a side.
	{pkg: "pkg/arch"},
	{pkg: "pkg/vmstest/...", may: join(formats, helpers), testing: true},
	{pkg: "pkg/wire", may: of("pkg/vms"), tests: helpers},
	{pkg: "pkg/cmaf", may: of("pkg/vms"), tests: helpers},
	{pkg: "pkg/retry", may: of("pkg/vms"), tests: helpers},
	{pkg: "pkg/obs", may: of("pkg/vms"), tests: helpers},
	{pkg: "pkg/problem", may: of("pkg/vms"), tests: helpers},
	{pkg: "pkg/token", may: of("pkg/vms"), tests: helpers},
	{pkg: "pkg/week", may: of("pkg/vms"), tests: helpers},
	{pkg: "pkg/seal", may: of("pkg/vms"), tests: helpers},
	{pkg: "pkg/flac", tests: helpers},

	// Level 2: mechanisms.
	{pkg: "agent/camera", may: formats, tests: helpers},
	{pkg: "agent/mux", may: join(formats, of("pkg/flac")), tests: helpers},
	{pkg: "agent/hubclock", may: formats, tests: helpers},
	{pkg: "agent/disk", may: formats, tests: helpers}, // below those that keep files: what a power cut leaves of them
	{pkg: "agent/spool", may: join(formats, of("agent/disk")), tests: helpers},
	{pkg: "agent/uplink", may: formats, tests: helpers},
	{pkg: "agent/control", may: formats, tests: helpers},
	{pkg: "agent/identity", may: formats, tests: helpers},
	{pkg: "agent/state", may: join(formats, of("agent/disk")), tests: helpers},
	{pkg: "agent/clocktls", may: formats, tests: helpers},
	{pkg: "agent/preroll", may: formats, tests: helpers},
	{pkg: "agent/snapshot", may: formats, tests: helpers},
	{pkg: "agent/update", may: formats, tests: helpers},
	{pkg: "cloud/auth", may: formats, tests: helpers},
	{pkg: "cloud/proxy", may: formats, tests: helpers},
	{pkg: "cloud/web", may: formats, tests: helpers},
	// Replacements of whole services. They are the real peers that the tests of
	// our clients run against, and themselves pass the suites of the clients.
	{pkg: "cloud/embed/...", may: join(formats, of("cloud/embed/...")), tests: join(helpers, of("cloud/objstore/...", "cloud/bucketevents/..."))},
	// One contract, many implementations: they know the contract and its suite.
	{pkg: "cloud/objstore/objstoretest", may: join(formats, of("cloud/objstore"), helpers), testing: true},
	{pkg: "cloud/objstore/...", may: join(formats, of("cloud/objstore")), tests: join(helpers, of("cloud/objstore/...", "cloud/embed/..."))},
	{pkg: "cloud/bucketevents/bucketeventstest", may: join(formats, of("cloud/bucketevents"), helpers), testing: true},
	{pkg: "cloud/bucketevents/...", may: join(formats, of("cloud/bucketevents")), tests: join(helpers, of("cloud/bucketevents/...", "cloud/embed/..."))},
	{pkg: "cloud/worker/*", may: formats, tests: helpers},

	// Level 3: the rules of the system. No HTTP, MQTT, SQL or S3 (see domain).
	{pkg: "cloud/nvr/nvrtest", may: join(formats, of("cloud/nvr"), helpers), testing: true},
	{pkg: "cloud/nvr", may: formats, tests: join(helpers, of("cloud/nvr/nvrtest"))},

	// Level 4: adapters.
	{pkg: "cloud/store/storetest", may: join(formats, of("cloud/nvr", "cloud/nvr/nvrtest"), helpers), testing: true},
	{pkg: "cloud/store", may: join(formats, of("cloud/nvr")), tests: join(helpers, of("cloud/store/storetest", "cloud/nvr/nvrtest"))},
	{pkg: "cloud/api", may: join(formats, of("cloud/nvr", "cloud/auth")), tests: peers},
	{pkg: "cloud/session", may: join(formats, of("cloud/nvr", "cloud/auth")), tests: peers},
	{pkg: "cloud/hubctl", may: join(formats, of("cloud/nvr")), tests: peers},
	{pkg: "cloud/nvrlink", may: join(formats, of("cloud/nvr")), tests: peers},
	{pkg: "cloud/clips", may: join(formats, of("cloud/nvr")), tests: peers},
	{pkg: "agent/reconcile", may: formats, tests: helpers},
	{pkg: "agent/lan", may: formats, tests: helpers},
	{
		pkg: "agent/doctor", tests: helpers,
		may: join(formats, of("agent/camera", "agent/identity", "agent/state", "agent/control", "agent/clocktls", "agent/hubclock")),
	},

	// Level 5: owners of mechanisms.
	{
		pkg: "agent/stream", tests: helpers,
		may: join(formats, of("agent/camera", "agent/mux", "agent/hubclock", "agent/spool", "agent/uplink", "agent/state", "agent/snapshot", "agent/preroll")),
	},
	{pkg: "cloud/worker", may: join(formats, of("cloud/worker/*")), tests: helpers},

	// Level 6: assemblies, one side each.
	{pkg: "agent", may: join(formats, of("agent/*")), tests: helpers},
	{
		pkg: "cloud", tests: helpers,
		may: join(formats, of("cloud/*", "cloud/objstore/*", "cloud/bucketevents/*", "cloud/embed/*", "cloud/worker/*")),
	},

	// Level 7: doormen, and tests of the whole.
	{pkg: "agent/cmd/vms-agent", may: of("agent", "pkg/obs"), tests: helpers},
	{pkg: "cloud/cmd/vms-cloud", may: of("cloud", "pkg/obs"), tests: helpers},
	{pkg: "cloud/e2e/...", may: of("agent/...", "cloud/...", "pkg/...")},
	{pkg: "scripts/...", may: join(formats, helpers, of("scripts/..."))},
	{pkg: "cross", may: nil},
}

// homes says where each outside library may be imported: the packages, and for
// tests of other packages too where a test needs a real peer. Replacing a
// library is then the work of one folder. A library that is not here has no home.
var homes = []struct {
	lib   string // import path; everything below it belongs to it
	in    []string
	tests []string
	why   string
}{
	{lib: "github.com/bluenviron/gortsplib/v5", in: of("agent/camera", "cloud/proxy", "cloud/worker/mirror", "pkg/vmstest/camtest"), why: "RTSP"},
	{
		lib: "github.com/bluenviron/mediacommon/v2",
		in:  of("pkg/cmaf", "agent/camera", "agent/mux", "cloud/worker/mirror", "pkg/vmstest/...", "scripts/demo-camera"),
		// Whoever moves media reads it back with the library, as a second opinion.
		tests: of("cloud/worker/...", "cloud/e2e/..."),
		why:   "codecs and MP4 boxes",
	},
	{lib: "github.com/asticode/go-astits", in: of("pkg/vmstest/camtest"), why: "MPEG-TS clips that a test camera plays"},
	{lib: "github.com/pion/rtp", in: of("agent/camera", "cloud/proxy", "cloud/worker/mirror", "pkg/vmstest/camtest"), why: "gortsplib hands out its packets"},
	{lib: "github.com/pion/rtcp", in: of("agent/camera", "cloud/proxy", "pkg/vmstest/camtest"), why: "gortsplib hands out its packets"},
	{
		lib: "github.com/coder/websocket", why: "the uplink",
		in:    of("agent/uplink", "cloud/session", "cloud/nvrlink", "cloud/worker/..."),
		tests: of("agent/...", "cloud/...", "pkg/vmstest/...", "scripts/..."),
	},
	{lib: "go.etcd.io/bbolt", in: of("agent/disk", "agent/spool", "agent/state"), why: "transactions on flash that survive a power cut"},
	{lib: "github.com/golang-jwt/jwt/v5", in: of("pkg/token"), why: "tokens and tickets"},
	{lib: "github.com/minio/minio-go/v7", in: of("cloud/objstore/s3"), tests: of("cloud/embed/...", "cloud/e2e/..."), why: "S3 client"},
	{lib: "github.com/versity/versitygw", in: of("cloud/embed/..."), why: "embedded S3"},
	{lib: "github.com/aws/aws-sdk-go-v2/service/s3", in: of("cloud/embed/..."), why: "versitygw's backends speak its types; no client of it is used"},
	{lib: "github.com/eclipse/paho.mqtt.golang", in: of("agent/control", "cloud/hubctl"), tests: of("cloud/embed/...", "cloud/e2e/..."), why: "MQTT client"},
	{lib: "github.com/nats-io/nats-server/v2", in: of("cloud/embed/..."), why: "embedded MQTT broker"},
	{lib: "github.com/nats-io/nats.go", in: of("cloud/embed/..."), why: "what the embedded broker keeps is bounded through its own streams"},
	{lib: "filippo.io/edwards25519", in: of("pkg/seal"), why: "the X25519 form of a hub's public key"},
	{lib: "github.com/beevik/ntp", in: of("agent/hubclock"), why: "SNTP, where it is allowed"},
	{lib: "golang.org/x/crypto/x509roots/fallback", in: of("agent/clocktls"), why: "roots for hubs whose firmware has none"},
	{lib: "golang.org/x/net/netutil", in: of("cloud/embed/..."), why: "bounds the connections of an embedded service"},
	{lib: "modernc.org/sqlite", in: of("cloud/store"), why: "embedded SQL"},
	{lib: "github.com/pressly/goose/v3", in: of("cloud/store"), why: "SQL migrations"},
	{lib: "github.com/danielgtaylor/huma/v2", in: of("cloud/api"), why: "REST and OpenAPI"},
	{lib: "golang.org/x/sync", in: of("..."), why: "errgroup: goroutines with owners"},
}

// mains are where what a whole program carries is chosen.
var mains = of("agent/cmd/*", "cloud/cmd/*")

// domain may not be imported by cloud/nvr, tests included: the rules know no technology.
var domain = []string{"net/http", "database/sql", "database/sql/driver", "net/rpc"}

// hubForbids may not be linked into vms-agent, however far down.
var hubForbids = []string{
	"github.com/minio/...", "github.com/versity/...", "github.com/aws/...", // object stores: presigned PUT is plain HTTP
	"github.com/nats-io/...",          // brokers: a hub is a client
	"database/sql", "modernc.org/...", // no SQL on a hub
	"github.com/pion/webrtc/...", "github.com/danielgtaylor/...",
	"github.com/abema/...", "github.com/bluenviron/mediacommon/v2/pkg/formats/...", // MP4 libraries: 0.4 MB for what pkg/cmaf writes itself
	"html/template", "text/template", // keep every method of every type alive in the binary
	"net/http/pprof", "testing", "expvar",
	module + "/cloud/...", module + "/pkg/vmstest/...",
}

func of(patterns ...string) []string { return patterns }

func join(lists ...[]string) []string {
	var out []string
	for _, l := range lists {
		out = append(out, l...)
	}
	return out
}
