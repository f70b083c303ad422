package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"openmesh/protocols/wire"
)

// replaceFile writes all of a file beside its place and then puts it there: who waits
// for it never reads half, and what fails leaves what was there. A symbolic link is
// followed. What is there and is no file, such as a pipe or a device, is written into.
func replaceFile(name string, mode fs.FileMode, write func(io.Writer) error) (size int64, err error) {
	if info, err := os.Stat(name); err == nil && !info.Mode().IsRegular() {
		return writeInto(name, write)
	}
	if name, err = followed(name); err != nil {
		return 0, err
	}
	dir, _ := filepath.Split(name) // joined to nothing: what is a link in it stays one
	if dir == "" {
		dir = "."
	}
	f, err := os.CreateTemp(dir, ".openmesh-")
	if err != nil {
		return 0, unwritten(name, err)
	}
	defer os.Remove(f.Name()) // gone already if all went well
	size, failed := fill(f, write)
	if err := errors.Join(chmod(f, mode), f.Sync(), f.Close()); failed == nil && err != nil {
		failed = fmt.Errorf("write %s: %w", name, err)
	}
	if failed != nil {
		return 0, failed
	}
	return size, os.Rename(f.Name(), name)
}

// chmod sets the mode of a temporary file, unless it has it: not every file system can.
func chmod(f *os.File, mode fs.FileMode) error {
	if mode == 0o600 {
		return nil
	}
	return f.Chmod(mode)
}

// writeInto writes into what is there and is no file.
func writeInto(name string, write func(io.Writer) error) (int64, error) {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return 0, unwritten(name, err)
	}
	size, failed := fill(f, write)
	if err := f.Close(); failed == nil && err != nil {
		failed = fmt.Errorf("write %s: %w", name, err)
	}
	return size, failed
}

// fill writes in larger pieces, and counts.
func fill(f *os.File, write func(io.Writer) error) (int64, error) {
	count := &counter{w: f}
	out := bufio.NewWriter(count)
	if err := write(out); err != nil {
		return count.n, err
	}
	return count.n, out.Flush()
}

// counter counts what is written.
type counter struct {
	w io.Writer
	n int64
}

// Write implements [io.Writer].
func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

// maxLinks bounds how many symbolic links lead on from one, as Linux does.
const maxLinks = 40

// followed returns where the symbolic links lead that a file name is, be there a file
// or not.
func followed(name string) (string, error) {
	for range maxLinks {
		to, err := os.Readlink(name)
		if err != nil {
			return name, nil // no link
		}
		if !filepath.IsAbs(to) {
			dir, _ := filepath.Split(name)
			to = dir + to
		}
		name = to
	}
	return "", wire.Errorf(wire.InvalidArgument, "write %s: too many symbolic links", name)
}

// unwritten says that there is no writing to a name.
func unwritten(name string, err error) error {
	return wire.Errorf(wire.InvalidArgument, "write %s: %w", name, err)
}
