package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	openmeshv1 "openmesh/node/api/openmesh/v1"
)

const top = "../.."

// documents are the project's pages.
func documents(t *testing.T) map[string]string {
	t.Helper()
	all := make(map[string]string)
	for _, pattern := range []string{"README.md", "*/README.md", "*/*/README.md", "*/*/*/README.md"} {
		names, err := filepath.Glob(filepath.Join(top, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			all[name] = string(text)
		}
	}
	if len(all) < 4 {
		t.Fatalf("found %d pages", len(all))
	}
	return all
}

var (
	fenced = regexp.MustCompile("(?s)```sh\n(.*?)```")
	inline = regexp.MustCompile("`(openmesh [^`\n]*)`")
	linked = regexp.MustCompile(`\]\(([^)#:\s]+)\)`)
	quoted = regexp.MustCompile("`([^`]+)`")
)

// Every command line that a page or a help text shows is one that the program takes;
// what is named within a sentence may lack its arguments.
func TestCommandsShown(t *testing.T) {
	t.Parallel()
	count := 0
	try := func(where, text string, whole bool) {
		for line := range strings.Lines(text) {
			for _, args := range commandLines(line) {
				count++
				if err := taken(args, whole); err != nil {
					t.Errorf("%s: %s: %v", where, strings.TrimSpace(line), err)
				}
			}
		}
	}
	for name, text := range documents(t) {
		for _, block := range fenced.FindAllStringSubmatch(text, -1) {
			try(name, block[1], true)
		}
		for _, span := range inline.FindAllStringSubmatch(text, -1) {
			try(name, span[1], false)
		}
	}
	eachCommand(newProgram(nil, io.Discard, io.Discard, nil).root(), func(cmd *cobra.Command) {
		try(cmd.CommandPath(), cmd.Example, true)
		for _, span := range inline.FindAllStringSubmatch(cmd.Long, -1) {
			try(cmd.CommandPath(), span[1], false)
		}
	})
	if count < 150 {
		t.Errorf("only %d command lines were found", count)
	}
}

func eachCommand(cmd *cobra.Command, do func(*cobra.Command)) {
	do(cmd)
	for _, sub := range cmd.Commands() {
		eachCommand(sub, do)
	}
}

// taken tells what the program would say to arguments, before it does anything. Unless
// they are the whole of them, they may just name a command.
func taken(args []string, whole bool) error {
	root := newProgram(nil, io.Discard, io.Discard, nil).root()
	cmd, rest, err := root.Find(args)
	if err != nil {
		return err
	}
	if err := cmd.ParseFlags(rest); err != nil && !errors.Is(err, pflag.ErrHelp) {
		return err
	}
	if len(rest) == 0 && !whole {
		return nil
	}
	if strings.HasSuffix(cmd.Use, " COMMAND") {
		return fmt.Errorf("%s needs a command", cmd.CommandPath())
	}
	return cmd.ValidateArgs(cmd.Flags().Args())
}

// commandLines returns the arguments of each openmesh that a line of shell runs.
func commandLines(line string) (all [][]string) {
	for _, words := range shellWords(line) {
		starts := [][]string{{"openmesh"}, {"go", "run", "./cmd/openmesh"}, {"docker-compose", "exec", "agent-a", "/openmesh"}}
		for _, start := range starts {
			if len(words) >= len(start) && slices.Equal(words[:len(start)], start) {
				all = append(all, words[len(start):])
			}
		}
	}
	return all
}

// shellWords splits a line of shell into commands, and these into words: quotes,
// comments and redirections are as simple as in examples.
func shellWords(line string) (commands [][]string) {
	var words []string
	redirected := false
	end := func() { commands, words = append(commands, words), nil }
	for _, w := range shellWord.FindAllString(line, -1) {
		switch {
		case strings.HasPrefix(w, "#"):
			end()
			return commands
		case w == ">" || w == "<":
			redirected = true
		case strings.Trim(w, "&|;") == "":
			end()
		case redirected:
			redirected = false
		case w[0] == '\'' || w[0] == '"':
			words = append(words, w[1:len(w)-1])
		default:
			words = append(words, w)
		}
	}
	end()
	return commands
}

var shellWord = regexp.MustCompile(`'[^']*'|"[^"]*"|#.*|[&|;]+|[<>]|[^\s&|;<>'"]+`)

// Every file that a page links to is there.
func TestLinks(t *testing.T) {
	t.Parallel()
	for name, text := range documents(t) {
		for _, link := range linked.FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(name), link[1])); err != nil {
				t.Errorf("%s links to %s: %v", name, link[1], err)
			}
		}
	}
}

// What README.md says is not there yet is not: neither as a command nor as a service.
func TestNotThereYet(t *testing.T) {
	t.Parallel()
	_, section, _ := strings.Cut(documents(t)[filepath.Join(top, "README.md")], "\n## Where it stands\n\n")
	paragraph, _, ok := strings.Cut(section, "\n\n")
	missing := quoted.FindAllStringSubmatch(paragraph, -1)
	if !ok || len(missing) < 5 {
		t.Fatalf("README.md names %d things that are not there yet", len(missing))
	}
	api := openmeshv1.File_openmesh_v1_session_proto.Package()
	for _, m := range missing {
		name := m[1]
		if d, err := protoregistry.GlobalFiles.FindDescriptorByName(api.Append(protoreflect.Name(name))); err == nil {
			t.Errorf("README.md says that there is no %s; there is %s", name, d.FullName())
		}
		if taken(strings.Fields(name), false) == nil {
			t.Errorf("README.md says that there is no command %s", name)
		}
	}
}
