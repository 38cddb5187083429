package disk

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// PageSize is that of the hub's bbolt files, bytes: the same on every machine.
const PageSize = 4096

// WithDB opens the bbolt database at path for one piece of work, with o and what
// all files of a hub have in common. bbolt panics on pages that make no sense,
// and touching a page that the file or the flash does not have is a fault: both
// become an error that wraps damaged. So does, of a file that is only read, all
// but what may pass.
func WithDB(path string, o *bbolt.Options, damaged error, work func(*bbolt.DB) error) error {
	var file *os.File
	o.Timeout = time.Second
	o.PageSize = PageSize
	o.FreelistType = bbolt.FreelistMapType
	o.NoStatistics = true
	o.OpenFile = func(name string, flag int, mode os.FileMode) (f *os.File, err error) {
		f, err = os.OpenFile(name, flag, mode)
		file = f
		return f, err
	}
	panicked := true
	err := Guard(damaged, func() error {
		db, err := bbolt.Open(path, 0o600, o)
		if err == nil {
			err = work(db)
			db.Close()
		}
		panicked = false
		return err
	})
	if panicked && file != nil {
		// bbolt may hold its locks, so that its Close would wait for ever. Its map stays.
		file.Close()
	}
	if err == nil || !o.ReadOnly || errors.Is(err, damaged) {
		return err
	}
	for _, passes := range []error{berrors.ErrTimeout, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EACCES, syscall.EPERM} {
		if errors.Is(err, passes) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", damaged, err)
}

// MetaPages reads the two pages that say what is valid in a bbolt file, nil if
// that cannot be done.
func MetaPages(path string) []byte {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	b := make([]byte, 2*PageSize)
	if _, err := f.ReadAt(b, 0); err != nil {
		return nil
	}
	return b
}
