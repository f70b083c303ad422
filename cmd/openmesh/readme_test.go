package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "rewrite README.md")

const readmeHead = `# openmesh

The daemon and its command line. This reference is written by a test from the commands themselves
(` + "`go test ./cmd/openmesh -run TestReadme -update`" + `).

`

const readmeTail = `
## Environment

| variable | meaning |
|---|---|
| ` + "`OPENMESH_HOME`" + ` | home of the agent, where ` + "`--home`" + ` is not given |
| ` + "`OPENMESH_PASSPHRASE`" + ` | passphrase of the root key: ` + "`init`, `key rotate`, `key backup`, `key restore`" + ` |
| ` + "`OPENMESH_BACKUP_PASSPHRASE`" + ` | passphrase of a backup: ` + "`key backup`, `key restore`" + ` |
| ` + "`OPENMESH_SECTION_KEY`" + ` | any key of the configuration; ` + "`openmesh config example`" + ` explains them |
| ` + "`OTEL_EXPORTER_OTLP_ENDPOINT`" + ` | collector that the traces of daemon and commands are sent to |
| ` + "`NO_COLOR`, `TERM=dumb`" + ` | no colours |
`

// The reference must say what the program does.
func TestReadme(t *testing.T) {
	t.Parallel()
	var doc bytes.Buffer
	doc.WriteString(readmeHead)
	root := newProgram(nil, io.Discard, io.Discard, nil).root()
	fmt.Fprintf(&doc, "```\n%s\n```\n\n## Global flags\n\n", root.Long)
	writeFlags(&doc, root.PersistentFlags())
	writeCommands(&doc, root)
	doc.WriteString(readmeTail)
	if *update {
		if err := os.WriteFile("README.md", doc.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(doc.String(), string(have)); diff != "" {
		t.Errorf("README.md is not what the commands say; run this test with -update:\n%s", diff)
	}
}

func writeCommands(w io.Writer, parent *cobra.Command) {
	for _, cmd := range parent.Commands() {
		if cmd.Hidden {
			continue
		}
		if _, args, _ := strings.Cut(cmd.Use, " "); cmd.HasAvailableSubCommands() && (args == "COMMAND" || !cmd.Runnable()) { // a noun
			writeCommands(w, cmd)
			continue
		}
		fmt.Fprintf(w, "\n## %s\n\n```\n%s\n```\n\n", cmd.CommandPath(), cmd.UseLine())
		if about := strings.TrimSpace(cmd.Long); about != "" && cmd.Parent().Name() != "completion" {
			fmt.Fprintln(w, about)
		} else {
			fmt.Fprintln(w, cmd.Short+".")
		}
		if cmd.HasAvailableLocalFlags() {
			fmt.Fprintln(w)
			writeFlags(w, cmd.LocalFlags())
		}
		if cmd.Example != "" {
			fmt.Fprintf(w, "\n```sh\n%s\n```\n", unindent(cmd.Example))
		}
		writeCommands(w, cmd)
	}
}

func writeFlags(w io.Writer, flags *pflag.FlagSet) {
	var rows []string
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		name, usage := pflag.UnquoteUsage(f)
		flag := "--" + f.Name
		if f.Shorthand != "" {
			flag = "-" + f.Shorthand + ", " + flag
		}
		if name != "" {
			flag += " " + strings.ToUpper(name)
		}
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" && f.DefValue != "[]" {
			usage += " (default " + f.DefValue + ")"
		}
		rows = append(rows, fmt.Sprintf("| `%s` | %s |", flag, strings.ReplaceAll(usage, "|", `\|`)))
	})
	if rows != nil {
		fmt.Fprintf(w, "| flag | meaning |\n|---|---|\n%s\n", strings.Join(rows, "\n"))
	}
}

func unindent(text string) string { return strings.ReplaceAll("\n"+text, "\n  ", "\n")[1:] }
