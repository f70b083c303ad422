package catalog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"go.uber.org/zap"

	"openmesh/protocols/schema/translate"
	"openmesh/protocols/wire"
)

const extension = ".json"

// file is what a file was like when it was read, so that it is read again, and
// complained about again, only if it has changed.
type file struct {
	size int64
	at   time.Time
}

// fileOf returns where in the folder a schema is, with slashes.
func fileOf(ref translate.Ref) string { return ref.String() + extension }

// parseFile is the reverse of fileOf. Only one path leads to a name: what fileOf
// does not return is refused.
func parseFile(name string) (translate.Ref, error) {
	stem, ok := strings.CutSuffix(name, extension)
	if !ok {
		return translate.Ref{}, fmt.Errorf("%.200q does not end with %s", name, extension)
	}
	ref, err := parseName(stem)
	if err != nil {
		return translate.Ref{}, err
	}
	if fileOf(ref) != name {
		return translate.Ref{}, fmt.Errorf("%.200q should be %s", name, fileOf(ref))
	}
	return ref, nil
}

// scan reads the files of the folder that are new or have changed; g.mu is held.
// What was there and is gone stays known until the daemon ends: documents may
// refer to it.
func (g *Catalog) scan() error {
	g.looked = time.Now()
	count := 0
	err := filepath.WalkDir(g.cfg.Dir, func(p string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(g.cfg.Dir, p)
		switch {
		case missing(err):
			return nil // no folder yet, or just removed
		case err != nil && rel != ".":
			g.complain(rel, "schemas left out", err)
			return fs.SkipDir
		case err != nil:
			return err
		case rel != "." && strings.HasPrefix(d.Name(), "."): // peers', cut short, or not ours
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case d.IsDir():
			return nil
		}
		if count++; count > MaxFiles {
			g.complain("", "schemas left out", fmt.Errorf("more than %d files", MaxFiles))
			return fs.SkipAll
		}
		g.read(filepath.ToSlash(rel))
		return nil
	})
	if err != nil {
		return fmt.Errorf("folder of schemas: %w", err)
	}
	return nil
}

// rescan is scan, but not more often than reread; g.mu is held.
func (g *Catalog) rescan() {
	if time.Since(g.looked) < reread {
		return
	}
	if err := g.scan(); err != nil {
		g.complain(".", "schemas cannot be read", err)
	}
}

// complain logs once for each place.
func (g *Catalog) complain(place, what string, err error) {
	if !g.told[place] {
		g.told[place] = true
		g.cfg.Log.Warn(what, zap.String("place", place), zap.Error(err))
	}
}

// read takes in one file of the folder, if it has changed; g.mu is held.
func (g *Catalog) read(name string) {
	full := filepath.Join(g.cfg.Dir, filepath.FromSlash(name))
	info, err := os.Stat(full)
	if missing(err) {
		return
	}
	if err == nil {
		now := file{info.Size(), info.ModTime()}
		if g.files[name] == now {
			return
		}
		g.files[name] = now
		err = g.take(name, full)
	}
	if err != nil {
		g.cfg.Log.Warn("schema left out", zap.String("file", name), zap.Error(err))
	}
}

func (g *Catalog) take(name, full string) error {
	ref, err := parseFile(name)
	if err != nil {
		return err
	}
	text, err := readFile(full)
	if err != nil {
		return err
	}
	e, err := newEntry(ref.String(), Folder, text)
	if err != nil {
		return err
	}
	return g.keep(e)
}

// readFile reads a regular file of at most [MaxSchema] bytes.
func readFile(path string) ([]byte, error) {
	// A named pipe would never open.
	if info, err := os.Stat(path); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file", filepath.Base(path))
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, MaxSchema+1))
	if err == nil && len(text) > MaxSchema {
		err = fmt.Errorf("more than %d bytes", MaxSchema)
	}
	return text, err
}

// write makes a file of the folder, which must not be there. After it returns
// without error, the file survives a power cut.
func (g *Catalog) write(name string, text []byte) (err error) {
	full := filepath.Join(g.cfg.Dir, filepath.FromSlash(name))
	made, err := makeDirs(g.cfg.Dir, path.Dir(name))
	if err != nil {
		return err
	}
	temp, err := stage(filepath.Dir(full), text)
	if err != nil {
		return err
	}
	err = os.Link(temp, full) // unlike a rename, it replaces nothing
	err = errors.Join(err, os.Remove(temp))
	if errors.Is(err, fs.ErrExist) {
		return wire.Errorf(wire.AlreadyExists, "the file %s is there, and is not a schema that can be used", name).
			WithHint("Remove it, or give the schema another version.")
	}
	if err != nil {
		return err
	}
	if info, err := os.Stat(full); err == nil {
		g.files[name] = file{info.Size(), info.ModTime()}
	}
	return syncDirs(made)
}

// makeDirs makes the folders of a path below root, and returns them all with
// root, the deepest first.
func makeDirs(root, below string) ([]string, error) {
	full := filepath.Join(root, filepath.FromSlash(below))
	if err := os.MkdirAll(full, 0o700); err != nil {
		return nil, err
	}
	dirs := []string{full}
	for full != filepath.Clean(root) {
		full = filepath.Dir(full)
		dirs = append(dirs, full)
	}
	return dirs, nil
}

// stage writes a hidden file of mode 0600, all of it and durably.
func stage(dir string, text []byte) (string, error) {
	f, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return "", err
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), nil
}

// syncDirs makes what was made in folders last.
func syncDirs(dirs []string) error {
	for _, dir := range dirs {
		d, err := os.Open(dir)
		if err != nil {
			return err
		}
		if err := errors.Join(d.Sync(), d.Close()); err != nil {
			return err
		}
	}
	return nil
}
