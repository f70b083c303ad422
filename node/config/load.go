package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"openmesh/node/config/form"
	"openmesh/protocols/wire"
)

// FileName is the name of the configuration file in the home.
const FileName = "config.yaml"

const (
	maxFileBytes = 1 * form.MiB
	homeVar      = "$HOME" // in paths, the node's home
)

// Load reads the configuration of the node in the folder home: the defaults,
// its config.yaml if there is one, then environ ("NAME=value", as of
// os.Environ), then flags (dotted key → value; lists are comma-separated).
// Relative paths are taken as under home.
//
// An error is a [wire.Error] with code InvalidArgument that joins one [Problem]
// for everything that is wrong, or says why the file cannot be read.
func Load(home string, environ []string, flags map[string]string) (*Config, error) {
	home, err := filepath.Abs(home)
	if err != nil {
		return nil, fmt.Errorf("find home %s: %w", home, err)
	}
	file := filepath.Join(home, FileName)
	data, err := readFile(file)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	c, err := load(file, data, environ, flags)
	if err != nil {
		return nil, err
	}
	c.resolve(home)
	return c, nil
}

// readFile returns the file's contents, none if there is no such file.
func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if len(data) > maxFileBytes {
		return nil, wire.Errorf(wire.TooLarge, "%s is over %s", name, form.FormatSize(maxFileBytes)).
			WithHint("this is the limit of a configuration file; is it one?")
	}
	return data, err
}

// load is Load without the file system.
func load(file string, data []byte, environ []string, flags map[string]string) (*Config, error) {
	c := new(Config)
	c.reset()
	r := newReader(c)
	r.file(file, data)
	r.environ(environ)
	r.flags(flags)
	r.check(c)
	if err := r.err(); err != nil {
		return nil, err
	}
	return c, nil
}

// resolve makes all paths absolute.
func (c *Config) resolve(home string) {
	for _, sources := range [][]string{c.Networking.Bootstrap, c.Networking.Relays} {
		resolveAll(sources, "@", home)
	}
	resolveAll(c.API.Listen, "unix:", home)
	resolveAll(c.Policy.Manifests, "", home)
	if c.Market.Schemas != "" {
		c.Market.Schemas = under(home, c.Market.Schemas)
	}
}

// resolveAll makes the paths that follow prefix absolute, in place.
func resolveAll(values []string, prefix, home string) {
	for i, v := range values {
		if name, ok := strings.CutPrefix(v, prefix); ok {
			values[i] = prefix + under(home, name)
		}
	}
}

// under returns name as an absolute path.
func under(home, name string) string {
	if rest, ok := strings.CutPrefix(name, homeVar+"/"); ok {
		name = rest
	} else if filepath.IsAbs(name) {
		return filepath.Clean(name)
	}
	return filepath.Join(home, name)
}
