package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"
)

// Settings come from a file, the environment and the command line; the later
// wins. All three use the names of the flags, and what none of them knows is an
// error: a hub that was told something and does something else is found out by
// nobody for months.

const (
	// prefix is that of the agent's variables.
	prefix = "VMS_AGENT_"
	// fileName is the settings file in the data directory.
	fileName = "agent.conf"
	// maxFile bounds it, bytes.
	maxFile = 64 << 10
)

// settings are the values of a flag set with where each comes from.
type settings struct {
	fs   *flag.FlagSet
	from map[string]string // by flag
}

// read makes the settings of the flag set that fresh returns. It is asked for
// two: the command line says where the file is, and has the last word too.
func read(fresh func() *flag.FlagSet, c *commandLine, environ []string) (*settings, error) {
	line := fresh()
	if err := c.parse(line); err != nil {
		return nil, err
	}
	var given []string
	line.Visit(func(f *flag.Flag) { given = append(given, f.Name) })
	env, err := fromEnvironment(environ, line)
	if err != nil {
		return nil, err
	}
	early := func(name string) string {
		if v, ok := env[name]; ok && !slices.Contains(given, name) {
			return v
		}
		return line.Lookup(name).Value.String()
	}
	s := &settings{fs: fresh(), from: make(map[string]string)}
	if err := s.fromFile(early("config"), early("data")); err != nil {
		return nil, err
	}
	for _, name := range sorted(env) {
		if err := s.set(name, env[name], variable(name)); err != nil {
			return nil, err
		}
	}
	if err := c.parse(s.fs); err != nil {
		return nil, err
	}
	for _, name := range given {
		s.from[name] = "-" + name
	}
	return s, nil
}

// set sets a flag. where names the place for people.
func (s *settings) set(name, value, where string) error {
	if err := s.fs.Set(name, value); err != nil {
		return fmt.Errorf("%s: %s = %q: %w", where, name, value, err)
	}
	s.from[name] = where
	return nil
}

// variable is the variable of a flag. Those of logs are the same for all
// programs of the project.
func variable(name string) string {
	upper := strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
	if strings.HasPrefix(name, "log-") {
		return "VMS_" + upper
	}
	return prefix + upper
}

// fromEnvironment returns the settings in the environment, by flag. A variable
// of the agent's that means none is an error.
func fromEnvironment(environ []string, fs *flag.FlagSet) (map[string]string, error) {
	flags := make(map[string]string)
	for _, name := range keys(fs) {
		flags[variable(name)] = name
	}
	out := make(map[string]string)
	for _, e := range environ {
		name, value, _ := strings.Cut(e, "=")
		if key, ok := flags[name]; ok {
			out[key] = value
		} else if strings.HasPrefix(name, prefix) {
			return nil, fmt.Errorf("there is no variable %s%s", name, suggest(name, sorted(flags)))
		}
	}
	return out, nil
}

// fromFile reads the file of that name, which must be there, or, without a
// name, the one in the data directory, if there is one.
func (s *settings) fromFile(name, data string) error {
	named := name != ""
	if !named {
		name = filepath.Join(data, fileName)
	}
	f, err := os.Open(name)
	if err != nil {
		if !named && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) && !readable(data)) {
			return nil
		}
		return fmt.Errorf("settings: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(text) > maxFile {
		err = fmt.Errorf("%s: longer than %d bytes", name, maxFile)
	}
	if err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	return s.parse(name, string(text), named)
}

// readable reports whether the files of a directory may be looked at. Whoever may
// not, such as somebody who asks for the version, has no settings in it.
func readable(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "."))
	return err == nil
}

// parse sets what the lines of a file say:
//
//	# a comment
//	ram = 24MiB
//
// White space around key and value does not count, and values have no quotes. A
// comment has a line of its own: a value may have a # in it.
func (s *settings) parse(file, text string, named bool) error {
	if !utf8.ValidString(text) {
		return fmt.Errorf("%s: not UTF-8", file)
	}
	lines := make(map[string]int)
	n := 0
	for line := range strings.Lines(strings.TrimPrefix(text, "\ufeff")) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		where := fmt.Sprintf("%s:%d", file, n)
		key, value, ok := strings.Cut(line, "=")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		known := slices.Contains(keys(s.fs), key)
		switch {
		case !ok:
			return fmt.Errorf("%s: %q: want key = value", where, line)
		case key == "config":
			return fmt.Errorf("%s: a file cannot name another with config", where)
		case key == "data" && !named:
			return fmt.Errorf("%s: this file was found in the data directory, so it cannot say where that is; use -data or %s", where, variable("data"))
		case !known:
			return fmt.Errorf("%s: there is no key %q%s", where, key, suggest(key, keys(s.fs)))
		case lines[key] > 0:
			return fmt.Errorf("%s: %s is in line %d already", where, key, lines[key])
		case len(value) > 1 && strings.ContainsRune(`"'`, rune(value[0])) && value[0] == value[len(value)-1]:
			return fmt.Errorf("%s: values have no quotes: %s = %s", where, key, value[1:len(value)-1])
		}
		lines[key] = n
		if err := s.set(key, value, where); err != nil {
			return err
		}
	}
	return nil
}

// print writes the settings in force, as a file that would make the same, and
// above each where it comes from.
func (s *settings) print(w io.Writer) {
	for _, name := range keys(s.fs) {
		if name == "config" {
			continue
		}
		from := s.from[name]
		if from == "" {
			from = "default"
		}
		fmt.Fprintf(w, "# %s\n%s = %s\n", from, name, s.fs.Lookup(name).Value)
	}
}

// questions are flags that ask for something and set nothing.
var questions = []string{"version", "json"}

// keys are the flags that are settings, sorted.
func keys(fs *flag.FlagSet) []string {
	var all []string
	fs.VisitAll(func(f *flag.Flag) {
		if !slices.Contains(questions, f.Name) {
			all = append(all, f.Name)
		}
	})
	return all
}

func sorted(m map[string]string) []string {
	var all []string
	for k := range m {
		all = append(all, k)
	}
	slices.Sort(all)
	return all
}

// suggest names the word that was probably meant, as the end of a sentence.
func suggest(word string, words []string) string {
	best, least := "", len(word)/2+1 // more than half of it wrong is another word
	for _, w := range words {
		if d := distance(strings.ToLower(word), strings.ToLower(w)); d < least {
			best, least = w, d
		}
	}
	if best == "" {
		// Half a name is what people remember.
		i := slices.IndexFunc(words, func(w string) bool { return len(word) > 2 && strings.Contains(w, word) })
		if i < 0 {
			return ""
		}
		best = words[i]
	}
	return "; did you mean " + best + "?"
}

// distance is how many letters must be added, removed, changed or swapped with
// their neighbour to make b of a.
func distance(a, b string) int {
	before, last := []int(nil), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			change := 1
			if a[i-1] == b[j-1] {
				change = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}
