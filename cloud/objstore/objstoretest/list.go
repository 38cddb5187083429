package objstoretest

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/zipato/vms/cloud/objstore"
)

func (s suite) list(t *testing.T, prefix, startAfter string, limit int) []string {
	t.Helper()
	var keys []string
	for o, err := range s.List(t.Context(), s.prefix+prefix, startAfter) {
		if err != nil {
			t.Fatal(err)
		}
		if o.Size != 1 || o.Modified.IsZero() {
			t.Errorf("listed %+v", o)
		}
		keys = append(keys, o.Key[len(s.prefix):])
		if len(keys) == limit {
			break // stopping early must be possible
		}
	}
	return keys
}

// More keys than a store lists in one answer, in the order of their bytes.
func testList(t *testing.T, s suite) {
	want := []string{"A", "a-b/x", "a.b/x", "a/x", "a/x.mp4", "a0", "b"}
	for i := range 1100 {
		want = append(want, fmt.Sprintf("many/%04d", i))
	}
	names := make(chan string)
	var writers sync.WaitGroup
	for range 8 {
		writers.Go(func() {
			for name := range names {
				if err := s.tryPut(t, name, []byte("x")); err != nil {
					t.Errorf("Put %s: %v", name, err)
				}
			}
		})
	}
	for _, name := range want {
		names <- name
	}
	close(names)
	writers.Wait()
	if t.Failed() {
		return
	}

	for _, c := range []struct {
		prefix, after string
		want          []string
	}{
		{"", "", want},
		{"a", "", want[1:6]},
		{"a/", "", want[3:5]},
		{"", s.prefix + "a/x", want[4:]},
		{"many/", s.prefix + "many/0049", want[7+50:]},
		{"many/00", s.prefix + "many/0049z", want[7+50 : 7+100]},
		{"many/", s.prefix + "a/x", want[7:]},
		{"nothing", "", nil},
		{"a/", s.prefix + "b", nil},
	} {
		if got := s.list(t, c.prefix, c.after, -1); !slices.Equal(got, c.want) {
			t.Errorf("List(%q, %q) yielded %d keys %.300q, want %d", c.prefix, c.after, len(got), got, len(c.want))
		}
	}
	if got := s.list(t, "many/", "", 3); !slices.Equal(got, want[7:10]) {
		t.Errorf("first three keys are %q", got)
	}
}

var _ objstore.Store = suite{}
