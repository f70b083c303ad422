package keys

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/rogpeppe/go-internal/lockedfile"

	"openmesh/protocols/wire"
)

// lock waits until nobody else changes the keys in this home, and removes what
// somebody who crashed has left. The lock ends with its process.
func (s store) lock() (unlock func(), err error) {
	path := filepath.Join(s.home, keysDir+".lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock home: %w", err)
	}
	f.Close()
	if unlock, err = lockedfile.MutexAt(path).Lock(); err != nil {
		return nil, fmt.Errorf("lock home: %w", err)
	}
	if err := errors.Join(s.sweep(s.home, keysDir+"."+staging), s.sweep(s.path(), staging)); err != nil {
		unlock()
		return nil, fmt.Errorf("remove unfinished keys: %w", err)
	}
	return unlock, nil
}

func (s store) sweep(dir, prefix string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			err = errors.Join(err, s.remove(filepath.Join(dir, e.Name())))
		}
	}
	return err
}

func (s store) before(what string) error {
	if s.step == nil {
		return nil
	}
	return s.step(what)
}

// stage makes a new directory, 0700, whose name starts with prefix.
func (s store) stage(parent, prefix string) (string, error) {
	if err := s.before("stage " + prefix); err != nil {
		return "", err
	}
	return os.MkdirTemp(parent, prefix+"*")
}

func (s store) mkdir(path string) error {
	if err := s.before("mkdir " + path); err != nil {
		return err
	}
	return os.Mkdir(path, 0o700)
}

// write makes a new file, 0600, that is on the disk when write returns.
func (s store) write(path string, data []byte) error {
	if err := s.before("create " + path); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := s.before("write " + path); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// sync makes the names in dir last.
func (s store) sync(dir string) error {
	if err := s.before("sync " + dir); err != nil {
		return err
	}
	if runtime.GOOS == "windows" { // has no such call: NTFS journals its names
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// rename makes from count as to, for good.
func (s store) rename(from, to string) error {
	if err := s.before("rename " + from); err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return s.sync(filepath.Dir(to))
}

func (s store) remove(path string) error {
	if err := s.before("remove " + path); err != nil {
		return err
	}
	return os.RemoveAll(path)
}

// readPrivate reads a file of at most limit bytes that nobody but its owner may
// read.
func readPrivate(path string, limit int) ([]byte, error) {
	dir, err := os.Stat(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, wire.Errorf(wire.Malformed, "%s is not a regular file", path)
	}
	if runtime.GOOS != "windows" && (dir.Mode()|info.Mode())&0o077 != 0 {
		return nil, wire.Errorf(wire.Denied, "others can get at %s: mode %#o, in a directory of mode %#o", path, info.Mode().Perm(), dir.Mode().Perm()).
			WithHint("run: chmod 600 '%s' && chmod 700 '%s'", path, filepath.Dir(path))
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, limit+1)
	n, err := io.ReadFull(f, b)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		clear(b)
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if n > limit {
		clear(b)
		return nil, wire.Errorf(wire.TooLarge, "%s is longer than %d bytes", path, limit)
	}
	return b[:n], nil
}

// firstError runs steps until one fails.
func firstError(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}
