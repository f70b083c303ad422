//go:build unix

package main

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"openmesh/protocols/wire"
)

func writes(text string) func(io.Writer) error {
	return func(w io.Writer) error { _, err := io.WriteString(w, text); return err }
}

// A name says where to write: a link leads on, a pipe (or /dev/null) stays one.
func TestReplaceFile(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		links  [][2]string // to, name
		name   string
		mode   fs.FileMode
		become string // where the text is found
	}{
		"new":                    {name: "new", mode: 0o600, become: "new"},
		"there":                  {name: "there", mode: 0o644, become: "there"},
		"a link":                 {links: [][2]string{{"there", "a"}}, name: "a", mode: 0o600, become: "there"},
		"links":                  {links: [][2]string{{"a", "b"}, {"dir/there", "a"}}, name: "b", mode: 0o600, become: "dir/there"},
		"a link to nothing":      {links: [][2]string{{"dir/new", "a"}}, name: "a", mode: 0o600, become: "dir/new"},
		"a link in a linked dir": {links: [][2]string{{"dir/deep", "in"}, {"../there", "dir/deep/a"}}, name: "in/a", mode: 0o600, become: "dir/there"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if err := os.MkdirAll(filepath.Join(dir, "dir/deep"), 0o700); err != nil {
				t.Fatal(err)
			}
			for _, there := range []string{"there", "dir/there"} {
				if err := os.WriteFile(filepath.Join(dir, there), []byte("what was there, and is longer"), 0o640); err != nil {
					t.Fatal(err)
				}
			}
			for _, l := range tc.links {
				if err := os.Symlink(l[0], filepath.Join(dir, l[1])); err != nil {
					t.Fatal(err)
				}
			}
			if size, err := replaceFile(filepath.Join(dir, tc.name), tc.mode, writes("text")); size != 4 || err != nil {
				t.Fatalf("%d bytes, %v", size, err)
			}
			got, err := os.ReadFile(filepath.Join(dir, tc.become))
			if err != nil || string(got) != "text" {
				t.Errorf("%s has %q, %v", tc.become, got, err)
			}
			if info, err := os.Stat(filepath.Join(dir, tc.become)); err != nil || info.Mode().Perm() != tc.mode {
				t.Errorf("mode %v, %v", info.Mode(), err)
			}
			for _, l := range tc.links {
				if info, err := os.Lstat(filepath.Join(dir, l[1])); err != nil || info.Mode().Type() != fs.ModeSymlink {
					t.Errorf("the link %s is no more", l[1])
				}
			}
		})
	}
}

func TestReplaceNoFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pipe, link := filepath.Join(dir, "pipe"), filepath.Join(dir, "link")
	if err := errors.Join(syscall.Mkfifo(pipe, 0o600), os.Symlink("pipe", link)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{pipe, link} {
		read := make(chan string)
		go func() {
			b, _ := os.ReadFile(pipe)
			read <- string(b)
		}()
		if size, err := replaceFile(name, 0o600, writes("text")); size != 4 || err != nil {
			t.Fatalf("%d bytes, %v", size, err)
		}
		if got := <-read; got != "text" {
			t.Errorf("%q came out of the pipe", got)
		}
	}
	if info, err := os.Stat(pipe); err != nil || info.Mode().Type() != fs.ModeNamedPipe {
		t.Errorf("the pipe is %v, %v", info.Mode(), err)
	}
	if err := os.Symlink("round", filepath.Join(dir, "round")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{dir, filepath.Join(dir, "none", "file"), filepath.Join(dir, "round")} {
		if _, err := replaceFile(name, 0o600, writes("text")); wire.CodeOf(err) != wire.InvalidArgument {
			t.Errorf("written to %s: %v", name, err)
		}
	}
}

// What could not be written whole leaves what was there, and nothing beside it.
func TestReplaceFails(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	name := filepath.Join(dir, "there")
	if err := os.WriteFile(name, []byte("before"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := replaceFile(name, 0o600, func(w io.Writer) error {
		_, _ = io.WriteString(w, strings.Repeat("half", 4096))
		return errors.New("gone")
	})
	if err == nil || err.Error() != "gone" {
		t.Errorf("%v", err)
	}
	if b, err := os.ReadFile(name); err != nil || string(b) != "before" {
		t.Errorf("%q, %v", b, err)
	}
	if all, err := os.ReadDir(dir); err != nil || len(all) != 1 {
		t.Errorf("%v, %v", all, err)
	}
}
