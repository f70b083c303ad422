package capability

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"openmesh/protocols/wire"
)

// Store keeps capabilities in a folder, one file for each, so that they
// survive a restart. A file holds the document as it was written, with its
// references to the environment unresolved, and the compiled form of Protobuf
// sources, which may be gone by then.
type Store struct{ dir string }

// NewStore returns a store in the folder dir, which is made on the first Save.
func NewStore(dir string) *Store { return &Store{dir: dir} }

// stored is the content of a file.
type stored struct {
	File           string            `json:"file"`
	Document       string            `json:"document"`
	DescriptorSets map[string][]byte `json:"descriptor_sets,omitempty"` // by side: request, response
}

// path is the file of a capability. Names have no dots, so none collide.
func (s *Store) path(name string) string {
	return filepath.Join(s.dir, strings.ReplaceAll(name, "/", ".")+".json")
}

// Save writes c, in the place of one of the same name. After it returns
// without error, c survives a power cut.
func (s *Store) Save(c *Capability) error {
	if err := CheckName(c.Name); err != nil {
		return wire.Errorf(wire.InvalidArgument, "save capability: %w", err)
	}
	if c.Document == nil {
		return wire.Errorf(wire.InvalidArgument, "save capability %s: it has no document", c.Name)
	}
	rec := stored{File: c.File, Document: string(c.Document), DescriptorSets: map[string][]byte{}}
	for side, sch := range map[string]Schema{"request": c.Request, "response": c.Response} {
		if sch.Message != "" {
			rec.DescriptorSets[side] = sch.DescriptorSet
		}
	}
	b, err := json.MarshalIndent(rec, "", "  ")
	if err == nil {
		err = s.write(s.path(c.Name), b)
	}
	if err != nil {
		return fmt.Errorf("save capability %s: %w", c.Name, err)
	}
	return nil
}

// write replaces a file as a whole.
func (s *Store) write(path string, b []byte) (err error) {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(s.dir, ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(s.dir)
}

// syncDir makes a rename or removal in dir last.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Remove deletes the capability called name. If there is none, the error has
// the code [wire.NotFound].
func (s *Store) Remove(name string) error {
	if err := CheckName(name); err != nil {
		return wire.Errorf(wire.InvalidArgument, "remove capability: %w", err)
	}
	switch err := os.Remove(s.path(name)); {
	case errors.Is(err, fs.ErrNotExist):
		return wire.Errorf(wire.NotFound, "no capability %s", name).WithHint("See: openmesh capability list")
	case err != nil:
		return fmt.Errorf("remove capability %s: %w", name, err)
	}
	return syncDir(s.dir)
}

// Load reads all capabilities, in the order of their names. A file that cannot
// be read is one of the errors, and does not keep the others from loading.
func (s *Store) Load() ([]*Capability, []error) {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, []error{fmt.Errorf("load capabilities: %w", err)}
	}
	var caps []*Capability
	var errs []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") || filepath.Ext(e.Name()) != ".json" {
			continue // a write that was cut short, or not ours
		}
		c, err := s.load(filepath.Join(s.dir, e.Name()))
		if err != nil {
			errs = append(errs, fmt.Errorf("load capability %s: %w", filepath.Join(s.dir, e.Name()), err))
			continue
		}
		caps = append(caps, c)
	}
	return caps, errs
}

func (s *Store) load(path string) (*Capability, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var rec stored
	if err := json.Unmarshal(b, &rec); err != nil {
		return nil, err
	}
	c, err := parse([]byte(rec.Document), rec.File, func(side, _, _, _ string) ([]byte, error) {
		set, ok := rec.DescriptorSets[side]
		if !ok {
			return nil, fmt.Errorf("the compiled form of the %s is missing", side)
		}
		return set, nil
	})
	if err != nil {
		return nil, err
	}
	if s.path(c.Name) != path {
		return nil, fmt.Errorf("the file holds %s", c.Name)
	}
	return c, nil
}
