package agent

import (
	"bufio"
	"bytes"
	"io/fs"
	"math"
	"path"
	"strconv"
	"strings"
)

const (
	// leastRAM and mostRAM bound what AutoRAM takes: below, one picture of a 4K
	// camera does not fit; above, the flash is better used.
	leastRAM = 4 << 20
	mostRAM  = 1 << 30
	// unknownRAM is for a machine that does not say how much memory it has.
	unknownRAM = 24 << 20
)

// AutoRAM is the budget for footage in RAM where none was given, bytes: 3/8 of
// the machine's memory or half of what is available now, whichever is less, at
// most 1 GiB. Where a control group allows less than the machine has, the
// group's figures count. root is the file system with proc and sys.
func AutoRAM(root fs.FS) int64 {
	total, available := machineMemory(root)
	groupTotal, groupFree := groupMemory(root)
	total, available = min(total, groupTotal), min(available, groupFree)
	if total == math.MaxInt64 || available == math.MaxInt64 {
		return unknownRAM
	}
	return min(max(min(total/8*3, available/2), leastRAM), mostRAM)
}

// machineMemory reads /proc/meminfo (proc_meminfo(5)), in bytes. What cannot be
// read is MaxInt64.
func machineMemory(root fs.FS) (total, available int64) {
	data, err := fs.ReadFile(root, "proc/meminfo")
	if err != nil {
		return math.MaxInt64, math.MaxInt64
	}
	kB := make(map[string]int64)
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) < 2 {
			continue
		}
		if n, err := strconv.ParseInt(f[1], 10, 52); err == nil {
			kB[strings.TrimSuffix(f[0], ":")] = n
		}
	}
	total, ok := kB["MemTotal"]
	if !ok {
		return math.MaxInt64, math.MaxInt64
	}
	available, ok = kB["MemAvailable"]
	if !ok { // Linux before 3.14
		available = kB["MemFree"] + kB["Buffers"] + kB["Cached"]
	}
	return total << 10, available << 10
}

// groupMemory is what the tightest of our control groups allows and has left
// (version 2 and the memory controller of version 1), or MaxInt64.
func groupMemory(root fs.FS) (total, available int64) {
	total, available = math.MaxInt64, math.MaxInt64
	data, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return total, available
	}
	for line := range strings.SplitSeq(strings.TrimSpace(string(data)), "\n") {
		f := strings.SplitN(line, ":", 3)
		if len(f) != 3 {
			continue
		}
		mount, limit, usage, idle := "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
		if f[1] != "" {
			if !strings.Contains(","+f[1]+",", ",memory,") {
				continue
			}
			mount, limit, usage, idle = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
		}
		// A limit of any group above holds too. Inside a container the path may be
		// that of the host, of which only the mount's root can be seen.
		for dir := path.Clean("/" + f[2]); ; dir = path.Dir(dir) {
			at := path.Join(mount, dir)
			most, ok := number(root, path.Join(at, limit))
			if ok {
				used, _ := number(root, path.Join(at, usage))
				used -= min(used, stat(root, path.Join(at, "memory.stat"), idle)) // cache that goes by itself
				total, available = min(total, most), min(available, max(most-used, 0))
			}
			if dir == "/" {
				break
			}
		}
	}
	return total, available
}

// number reads a file with one number. "max", and what version 1 has in its
// place, is none.
func number(root fs.FS, name string) (int64, bool) {
	data, err := fs.ReadFile(root, name)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	return n, err == nil && n >= 0 && n < 1<<60
}

// stat reads one value of a memory.stat.
func stat(root fs.FS, name, key string) int64 {
	data, err := fs.ReadFile(root, name)
	if err != nil {
		return 0
	}
	for line := range strings.SplitSeq(string(data), "\n") {
		if k, v, ok := strings.Cut(line, " "); ok && k == key {
			if n, err := strconv.ParseInt(v, 10, 64); err == nil && n > 0 {
				return n
			}
		}
	}
	return 0
}
