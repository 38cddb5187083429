package agent

import (
	"fmt"
	"os"
	"testing"
	"testing/fstest"
)

// meminfo is a /proc/meminfo; available less than 0: of a kernel before 3.14.
func meminfo(total, free, cached, available int64) string {
	s := fmt.Sprintf("MemTotal:       %8d kB\nMemFree:        %8d kB\n", total, free)
	if available >= 0 {
		s += fmt.Sprintf("MemAvailable:   %8d kB\n", available)
	}
	return s + fmt.Sprintf("Buffers:        %8d kB\nCached:         %8d kB\nHugePages_Total:       0\n", 1024, cached)
}

func TestAutomaticRAM(t *testing.T) {
	const MiB = 1 << 20
	hub64 := meminfo(64<<10, 20<<10, 20<<10, 50<<10)
	for name, tt := range map[string]struct {
		files map[string]string
		want  int64
	}{
		"64 MB hub":                {map[string]string{"proc/meminfo": hub64}, 24 * MiB},
		"64 MB hub, kernel's part": {map[string]string{"proc/meminfo": meminfo(60416, 20<<10, 20<<10, 50<<10)}, 60416 * 1024 / 8 * 3},
		"64 MB hub, busy":          {map[string]string{"proc/meminfo": meminfo(64<<10, 8<<10, 20<<10, 24<<10)}, 12 * MiB},
		"256 MB":                   {map[string]string{"proc/meminfo": meminfo(256<<10, 100<<10, 100<<10, 200<<10)}, 96 * MiB},
		"24 GB":                    {map[string]string{"proc/meminfo": meminfo(24<<20, 20<<20, 1<<20, 22<<20)}, 1024 * MiB},
		"old kernel":               {map[string]string{"proc/meminfo": meminfo(128<<10, 31<<10, 32<<10, -1)}, 32 * MiB},
		"hardly anything left":     {map[string]string{"proc/meminfo": meminfo(64<<10, 1<<10, 0, 2<<10)}, 4 * MiB},
		"nothing said":             {nil, 24 * MiB},
		"nonsense":                 {map[string]string{"proc/meminfo": "MemTotal: much kB\n\n:\n"}, 24 * MiB},

		"group": {map[string]string{
			"proc/meminfo": meminfo(24<<20, 20<<20, 1<<20, 22<<20), "proc/self/cgroup": "0::/agent.service\n",
			"sys/fs/cgroup/agent.service/memory.max": "134217728\n", "sys/fs/cgroup/agent.service/memory.current": "12582912\n",
		}, 48 * MiB},
		"group above": {map[string]string{
			"proc/meminfo": meminfo(24<<20, 20<<20, 1<<20, 22<<20), "proc/self/cgroup": "0::/a/b/c\n",
			"sys/fs/cgroup/a/b/c/memory.max": "max\n", "sys/fs/cgroup/a/memory.max": "67108864\n", "sys/fs/cgroup/a/memory.current": "0\n",
		}, 24 * MiB},
		"group that is used, partly by cache": {map[string]string{
			"proc/meminfo": meminfo(24<<20, 20<<20, 1<<20, 22<<20), "proc/self/cgroup": "0::/\n",
			"sys/fs/cgroup/memory.max": "67108864\n", "sys/fs/cgroup/memory.current": "50331648\n", "sys/fs/cgroup/memory.stat": "anon 1\ninactive_file 16777216\n",
		}, 16 * MiB},
		"group of version 1": {map[string]string{
			"proc/meminfo": meminfo(24<<20, 20<<20, 1<<20, 22<<20), "proc/self/cgroup": "7:cpu,cpuacct:/x\n6:memory:/docker/abc\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "268435456\n", "sys/fs/cgroup/memory/memory.usage_in_bytes": "0\n",
		}, 96 * MiB},
		"no limit in version 1": {map[string]string{
			"proc/meminfo": hub64, "proc/self/cgroup": "6:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
		}, 24 * MiB},
	} {
		t.Run(name, func(t *testing.T) {
			root := fstest.MapFS{}
			for name, text := range tt.files {
				root[name] = &fstest.MapFile{Data: []byte(text)}
			}
			if got := AutoRAM(root); got != tt.want {
				t.Errorf("%d bytes (%.1f MiB), want %d (%.1f MiB)", got, float64(got)/MiB, tt.want, float64(tt.want)/MiB)
			}
		})
	}
	if got := AutoRAM(os.DirFS("/")); got < leastRAM || got > mostRAM {
		t.Errorf("this machine: %d bytes", got)
	}
}
