package main

import (
	"bytes"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/term"

	"openmesh/protocols/wire"
)

const (
	maxPassphrase      = 4 << 10 // bytes
	passphraseFileName = "root.passphrase"
)

// errNoPassphrase reports that a passphrase was not given and nobody can be asked.
var errNoPassphrase = errors.New("none was given, and there is no terminal to ask on")

// secret names a passphrase and where it may come from. The first of these that
// is there counts: a file, a variable, the file that init left in the home, the
// terminal.
type secret struct {
	what string // such as "passphrase of the root key"
	file string // the value of its flag, or empty
	flag string // such as "--passphrase-file"
	env  string
	home string // where init may have left it; empty: not looked for
	new  bool   // chosen now: ask twice
}

// passphrase finds out a secret. The caller clears it.
func (p *program) passphrase(s secret) ([]byte, error) {
	if s.file != "" {
		return readPassphrase(s.file)
	}
	if text := p.getenv(s.env); text != "" {
		return []byte(text), nil
	}
	if s.home != "" {
		text, err := readPassphrase(filepath.Join(s.home, passphraseFileName))
		if !errors.Is(err, fs.ErrNotExist) {
			return text, err
		}
	}
	if !p.interactive() {
		return nil, wire.Errorf(wire.InvalidArgument, "the %s: %w", s.what, errNoPassphrase).
			WithHint("set %s, or give a file with %s", s.env, s.flag)
	}
	return p.prompt(s)
}

// interactive reports whether someone can be asked.
func (p *program) interactive() bool { return isTerminal(p.in) && isTerminal(p.err) }

func (p *program) prompt(s secret) ([]byte, error) {
	text, err := p.readHidden(s.what)
	if err != nil || !s.new {
		return text, err
	}
	again, err := p.readHidden("the same again")
	defer clear(again)
	if err == nil && subtle.ConstantTimeCompare(text, again) != 1 {
		err = wire.Errorf(wire.InvalidArgument, "the two passphrases differ")
	}
	if err != nil {
		clear(text)
		return nil, err
	}
	return text, nil
}

func (p *program) readHidden(what string) ([]byte, error) {
	fmt.Fprintf(p.err, "%s: ", what)
	in, ok := p.in.(*os.File)
	if !ok {
		return nil, errors.New("standard input is not a terminal")
	}
	text, err := term.ReadPassword(int(in.Fd()))
	fmt.Fprintln(p.err)
	if err == nil && len(text) == 0 {
		err = wire.Errorf(wire.InvalidArgument, "the passphrase is empty")
	}
	return text, err
}

// readPassphrase reads the first line of a file.
func readPassphrase(name string) ([]byte, error) {
	text, err := readFile(name, maxPassphrase)
	if err != nil {
		return nil, wire.Errorf(wire.InvalidArgument, "read passphrase: %w", err)
	}
	line, _, _ := bytes.Cut(text, []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	if len(line) == 0 {
		return nil, wire.Errorf(wire.InvalidArgument, "the passphrase in %s is empty", name)
	}
	return line, nil
}

// randomPassphrase makes a passphrase for those who gave none and cannot be
// asked.
func randomPassphrase() []byte { return []byte(rand.Text() + rand.Text()) } // 256 bits
