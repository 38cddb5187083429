package obs

import (
	"bufio"
	"cmp"
	"io"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// expositionType is the media type of Prometheus' text format.
const expositionType = "text/plain; version=0.0.4; charset=utf-8"

// ServeHTTP serves the metrics as text, families and series always in the same order.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	w.Header().Set("Content-Type", expositionType)
	_ = r.WriteText(w) // the scraper has gone: nobody to tell
}

// WriteText writes the text format 0.0.4.
func (r *Registry) WriteText(w io.Writer) error {
	r.mu.Lock()
	families := slices.SortedFunc(maps.Values(r.families), func(a, b *family) int { return cmp.Compare(a.name, b.name) })
	r.mu.Unlock()

	b := bufio.NewWriter(w) // keeps the first error for Flush
	for _, f := range families {
		f.write(b)
	}
	return b.Flush()
}

func (f *family) write(b *bufio.Writer) {
	var all []*series
	if f.fn == nil {
		f.mu.Lock()
		all = slices.Collect(maps.Values(f.series))
		f.mu.Unlock()
		slices.SortFunc(all, func(a, b *series) int { return slices.Compare(a.values, b.values) })
	}
	if f.fn == nil && len(all) == 0 {
		return // a head without a sample tells nothing
	}
	if f.help != "" {
		write(b, "# HELP ", f.name, " ", helpEscaper.Replace(f.help), "\n")
	}
	write(b, "# TYPE ", f.name, " ", f.kind, "\n")
	if f.fn != nil {
		write(b, f.name, " ", formatValue(f.fn()), "\n")
	}
	for _, s := range all {
		if s.hist != nil {
			f.writeHistogram(b, s)
			continue
		}
		f.writeSample(b, "", s.values, "", formatValue(s.load()))
	}
}

// writeSample writes one line: le, unless it is empty, is one more label.
func (f *family) writeSample(b *bufio.Writer, suffix string, values []string, le, sample string) {
	write(b, f.name, suffix)
	sep := "{"
	for i, v := range values {
		write(b, sep, f.labels[i], `="`, labelEscaper.Replace(strings.ToValidUTF8(v, "\uFFFD")), `"`)
		sep = ","
	}
	if le != "" {
		write(b, sep, `le="`, le, `"`)
		sep = ","
	}
	if sep == "," {
		write(b, "}")
	}
	write(b, " ", sample, "\n")
}

// writeHistogram writes a distribution: each bucket counts what is at most its
// bound, so the last one counts all.
func (f *family) writeHistogram(b *bufio.Writer, s *series) {
	counts, sum := s.hist.read()
	var n uint64
	for i, c := range counts {
		n += c
		le := "+Inf"
		if i < len(f.bounds) {
			le = formatValue(f.bounds[i])
		}
		f.writeSample(b, "_bucket", s.values, le, strconv.FormatUint(n, 10))
	}
	f.writeSample(b, "_sum", s.values, "", formatValue(sum))
	f.writeSample(b, "_count", s.values, "", strconv.FormatUint(n, 10))
}

// The two escapes of the format differ: quotes matter inside labels only.
var (
	helpEscaper  = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
	labelEscaper = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
)

// write leaves the error to Flush.
func write(b *bufio.Writer, parts ...string) {
	for _, p := range parts {
		_, _ = b.WriteString(p)
	}
}

func formatValue(v float64) string {
	switch {
	case math.IsInf(v, 1):
		return "+Inf"
	case math.IsInf(v, -1):
		return "-Inf"
	case math.IsNaN(v):
		return "NaN"
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}
