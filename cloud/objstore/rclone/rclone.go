// Package rclone is an objstore.Store that puts objects with the rclone
// program, for operators who want its backends and options. It copies single
// files and checks them, and never calls what deletes. All else than Put is
// another Store's, which must see the same bucket.
package rclone

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/zipato/vms/cloud/objstore"
	"github.com/zipato/vms/pkg/vms"
)

// Names of the flags, for sentences to people.
const (
	ProgramVariable = "VMS_RCLONE_PROGRAM"
	RemoteVariable  = "VMS_RCLONE_REMOTE"
)

// Config says which program to run, and where it copies to.
type Config struct {
	// Store does everything but Put, in the same bucket.
	Store objstore.Store
	// Program is a path, or a name in PATH: rclone.
	Program string
	// Remote is "name:bucket", perhaps with folders behind, of rclone's own
	// configuration. Empty: one made of S3 and Bucket.
	Remote string
	Bucket string
	S3     S3
	// Dir is where copies are made for rclone, best on tmpfs: rclone reads one
	// file, and a recording is a head and a file. Each Put under way takes as much
	// there as the object is long.
	Dir string
	Log *slog.Logger
}

// S3 is how to get into the bucket.
type S3 struct{ Endpoint, Region, AccessKey, SecretKey string }

// Store is an objstore.Store. Close it when nothing uses it any more.
type Store struct {
	objstore.Store
	program string
	target  string // what keys are appended to
	own     bool   // the remote is made of our settings
	env     []string
	secret  string // is in env, and never in an error
	stage   *stage
	log     *slog.Logger

	// checks is how objects are checked after they were copied.
	checks atomic.Int32
}

// Values of Store.checks: the first object tells whether the remote has hashes.
const (
	checksUnknown = iota
	checksByHash
	checksByDownload
)

var _ objstore.Store = (*Store)(nil)

// New finds the program, and makes room for copies. It sends nothing.
func New(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.Store == nil || cfg.Dir == "" {
		return nil, fmt.Errorf("rclone needs a store to read from and a directory: %w", vms.ErrInvalid)
	}
	s := &Store{Store: cfg.Store, log: cmp.Or(cfg.Log, slog.Default())}
	if err := s.setRemote(cfg); err != nil {
		return nil, err
	}
	var err error
	if s.program, err = find(ctx, cmp.Or(cfg.Program, "rclone"), s.env); err != nil {
		return nil, err
	}
	if s.stage, err = newStage(cfg.Dir); err != nil {
		return nil, fmt.Errorf("directory of copies for rclone: %w", err)
	}
	return s, nil
}

// Close removes what copies are left.
func (s *Store) Close() error { return s.stage.close() }

// remoteName is what rclone allows for a remote, and a path behind it that no
// shell or option parser takes for something else.
var remoteName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_. +@-]*:[A-Za-z0-9/._-]*$`)

// setRemote chooses where to, and the environment that says how to get in: the
// command line and the logs never see a key.
func (s *Store) setRemote(cfg Config) error {
	if cfg.Remote != "" {
		if !remoteName.MatchString(cfg.Remote) {
			return fmt.Errorf("%w: %s: want name:bucket of a remote in rclone's configuration", vms.ErrInvalid, RemoteVariable)
		}
		s.target = cfg.Remote
		if !strings.HasSuffix(s.target, ":") && !strings.HasSuffix(s.target, "/") {
			s.target += "/"
		}
		s.env = os.Environ() // the operator's configuration is the operator's
		return nil
	}
	if cfg.Bucket == "" || cfg.S3.Endpoint == "" || cfg.S3.AccessKey == "" || cfg.S3.SecretKey == "" {
		return fmt.Errorf("rclone needs a remote, or endpoint, bucket and keys: %w", vms.ErrInvalid)
	}
	s.own, s.target, s.secret = true, "vms:"+cfg.Bucket+"/", cfg.S3.SecretKey
	for _, v := range os.Environ() {
		// Whatever is meant for other uses of rclone or S3 must not change ours.
		if !strings.HasPrefix(v, "RCLONE_") && !strings.HasPrefix(v, "AWS_") {
			s.env = append(s.env, v)
		}
	}
	s.env = append(
		s.env,
		"RCLONE_CONFIG=/notfound", // a name that stands for no file
		"RCLONE_CONFIG_VMS_TYPE=s3",
		"RCLONE_CONFIG_VMS_PROVIDER=Other",
		"RCLONE_CONFIG_VMS_ENV_AUTH=false",
		"RCLONE_CONFIG_VMS_ENDPOINT="+cfg.S3.Endpoint,
		"RCLONE_CONFIG_VMS_REGION="+cmp.Or(cfg.S3.Region, "us-east-1"),
		"RCLONE_CONFIG_VMS_ACCESS_KEY_ID="+cfg.S3.AccessKey,
		"RCLONE_CONFIG_VMS_SECRET_ACCESS_KEY="+cfg.S3.SecretKey,
		"RCLONE_CONFIG_VMS_FORCE_PATH_STYLE=true",
		"RCLONE_CONFIG_VMS_NO_CHECK_BUCKET=true",
		// One request for every object, so that the condition below covers it.
		"RCLONE_CONFIG_VMS_UPLOAD_CUTOFF="+strconv.FormatInt(objstore.MaxPut, 10)+"B",
		"RCLONE_CONFIG_VMS_NO_HEAD=true", // check looks, and with the condition this could not
	)
	return nil
}

// Put implements objstore.Store. With IfAbsent on a remote of the operator's it
// looks first and copies then: of two writers in the same moment both may have
// written, and the one whose object is there in the end succeeds. A remote made
// of S3 settings has the store itself refuse the second one.
func (s *Store) Put(ctx context.Context, key string, in objstore.PutInput) error {
	if err := errors.Join(objstore.CheckKey(key), in.Check()); err != nil {
		return fmt.Errorf("put object: %w", err)
	}
	if err := s.put(ctx, key, in); err != nil {
		if ctx.Err() != nil { // the caller was told to stop; whatever came of it
			err = ctx.Err()
		}
		return fmt.Errorf("put object %s: %w", key, err)
	}
	return nil
}

func (s *Store) put(ctx context.Context, key string, in objstore.PutInput) error {
	if in.IfAbsent { // before anything is copied
		if err := s.absent(ctx, key); err != nil {
			return err
		}
	}
	file, remove, err := s.stage.copy(ctx, path.Base(key), in)
	if err != nil {
		return err
	}
	defer remove()
	if _, err := s.run(ctx, s.copyArgs(file, key, in)...); err != nil {
		if in.IfAbsent {
			if taken := s.absent(ctx, key); errors.Is(taken, objstore.ErrExists) {
				return taken
			}
		}
		return err
	}
	if err := s.verify(ctx, key, in); err != nil { // another writer's, perhaps: then there is nothing to check
		return err
	}
	return s.check(ctx, file, key)
}

// absent returns objstore.ErrExists if the key is taken.
func (s *Store) absent(ctx context.Context, key string) error {
	_, err := s.Stat(ctx, key)
	switch {
	case err == nil:
		return objstore.ErrExists
	case errors.Is(err, vms.ErrNotFound):
		return nil
	}
	return err
}

// copyArgs is the command that copies one file to one object.
func (s *Store) copyArgs(file, key string, in objstore.PutInput) []string {
	args := []string{"copyto", "--metadata", "--metadata-set", "content-type=" + in.ContentType}
	for _, k := range slices.Sorted(maps.Keys(in.Metadata)) {
		args = append(args, "--metadata-set", k+"="+in.Metadata[k])
	}
	// Whatever rclone stores, it leaves no SHA-256 with S3.
	args = append(args, "--metadata-set", objstore.MetaSHA256+"="+hex.EncodeToString(in.SHA256[:]))
	switch {
	case !in.IfAbsent:
		args = append(args, "--ignore-times") // the same size and time mean nothing
	case s.own:
		args = append(args, "--header", "If-None-Match: *") // also of HEAD: both refuse when there is something
	default:
		args = append(args, "--ignore-existing")
	}
	return append(args, "--", file, s.target+key)
}

// check has rclone compare what is there with what was copied: by the hash that
// the remote keeps, or where it keeps none by downloading it.
func (s *Store) check(ctx context.Context, file, key string) error {
	args := []string{"check", "--one-way"}
	how := s.checks.Load()
	if how == checksUnknown {
		out, err := s.run(ctx, "lsjson", "--stat", "--hash", "--", s.target+key)
		if err != nil {
			return err
		}
		how = checksByDownload
		if hashed.Match(out) {
			how = checksByHash
		} else {
			s.log.Warn("this rclone remote keeps no hashes; what is uploaded is downloaded again to check it")
		}
		s.checks.Store(how)
	}
	if how == checksByDownload {
		args = append(args, "--download")
	}
	// The file has the object's own name, so the folder is all that is named.
	_, err := s.run(ctx, append(args, "--", file, s.target+path.Dir(key))...)
	return err
}

// hashed finds a hash in the answer of lsjson. rclone can compute all of these
// of a file.
var hashed = regexp.MustCompile(`"(md5|sha1|sha256|whirlpool|crc32|dropbox|hidrive|mailru|quickxor)"\s*:\s*"[0-9A-Za-z+/=]+"`)

// verify asks the other client what is there: that both see the same bucket,
// and that what whoever looks later will find is what was meant.
func (s *Store) verify(ctx context.Context, key string, in objstore.PutInput) error {
	o, err := s.Stat(ctx, key)
	if errors.Is(err, vms.ErrNotFound) {
		return fmt.Errorf("rclone copied it, and it is not there: does %s name the bucket of the object store? %w", RemoteVariable, vms.ErrUnavailable)
	}
	if err != nil {
		return err
	}
	sum := o.Metadata[objstore.MetaSHA256]
	switch {
	case o.Size == in.Size && (sum == hex.EncodeToString(in.SHA256[:]) || sum == "" && o.HasSHA256 && o.SHA256 == in.SHA256):
		return nil
	case in.IfAbsent && (sum != "" || o.HasSHA256):
		return objstore.ErrExists // somebody else's, a moment before or behind ours
	case sum == "":
		return fmt.Errorf("the rclone remote keeps no metadata: %w", objstore.ErrWrongAnswer)
	}
	return fmt.Errorf("%d bytes of %d with the checksum %.64s: %w", o.Size, in.Size, sum, objstore.ErrWrongAnswer)
}

// killAfter is how long a program that was told to stop may still take.
const killAfter = 5 * time.Second

// flags are those of every call. rclone's own tries again for longer, and times
// out later, than whoever wants to know soon that something is wrong.
var flags = []string{"--log-level", "ERROR", "--stats", "0", "--retries", "1", "--low-level-retries", "3", "--contimeout", "10s", "--timeout", "30s"}

// run runs the program, and returns what it printed.
func (s *Store) run(ctx context.Context, args ...string) ([]byte, error) {
	cmd := command(ctx, s.program, append(slices.Clone(flags), args...), s.env)
	var stdout, stderr tail
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		says := stderr.last()
		if s.secret != "" {
			says = strings.ReplaceAll(says, s.secret, "[hidden]")
		}
		return nil, fmt.Errorf("rclone %s: %w: %s: %w", args[0], err, says, vms.ErrUnavailable)
	}
	return stdout.b, nil
}

// command prepares a call. The program is not in our process group: an operator
// who ends us with Ctrl-C must not end the uploads that we still wait for.
func command(ctx context.Context, program string, args, env []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = env
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = killAfter
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// tail keeps the end of what a program prints.
type tail struct{ b []byte }

const maxTail = 16 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if over := len(t.b) - maxTail; over > 0 {
		t.b = slices.Delete(t.b, 0, over)
	}
	return len(p), nil
}

// last returns the last lines as one.
func (t *tail) last() string {
	s := strings.Join(strings.Fields(string(t.b)), " ")
	return s[max(0, len(s)-400):]
}

// oldest is the first version that sets metadata.
const oldest = 1059

// release reads "rclone v1.60.1-DEV".
var release = regexp.MustCompile(`^rclone v(\d+)\.(\d+)`)

// find returns the path of the program, which must be one that works.
func find(ctx context.Context, name string, env []string) (string, error) {
	remedy := "install it (apt install rclone, or https://rclone.org), name it in " + ProgramVariable + ", or use the uploader s3"
	file, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%w: the uploader rclone needs the rclone program: %w; %s", vms.ErrInvalid, err, remedy)
	}
	if file, err = filepath.Abs(file); err != nil { // the working directory may change
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	out, err := command(ctx, file, []string{"version"}, env).Output()
	if err != nil {
		return "", fmt.Errorf("%w: %s version: %w; %s", vms.ErrInvalid, file, err, remedy)
	}
	m := release.FindSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("%w: %s is not rclone: it says %.80q; %s", vms.ErrInvalid, file, out, remedy)
	}
	major, _ := strconv.Atoi(string(m[1]))
	minor, _ := strconv.Atoi(string(m[2]))
	if major*1000+minor < oldest {
		return "", fmt.Errorf("%w: %s is of version %s.%s, and sets no metadata: version 1.59 or newer is needed", vms.ErrInvalid, file, m[1], m[2])
	}
	return file, nil
}
