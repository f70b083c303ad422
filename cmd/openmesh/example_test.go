package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// With --json an example is one document of JSON, for each noun that has one.
func TestExamplesAsJSON(t *testing.T) {
	t.Parallel()
	home, found := t.TempDir(), 0
	for _, path := range examples(newProgram(nil, nil, nil, nil).root()) {
		found++
		got := speak(t, home, "", append([]string{"--json"}, strings.Fields(path)...)...)
		var doc map[string]any
		if err := json.Unmarshal([]byte(got.out), &doc); err != nil || len(doc) == 0 || got.exit != exitDone || got.err != "" || strings.Count(got.out, "\n") != 1 {
			t.Errorf("%s: %v, exit code %d\nstdout: %s\nstderr: %s", path, err, got.exit, got.out, got.err)
		}
		if path != "config example" {
			continue
		}
		if err := os.WriteFile(filepath.Join(home, "config.yaml"), []byte(got.out), 0o600); err != nil {
			t.Fatal(err)
		}
		speak(t, home, "", "config", "check").check(t, `^ok`, `^$`, exitDone)
	}
	if found < 8 {
		t.Errorf("%d examples were found", found)
	}
}

// examples are the commands below cmd that print an example.
func examples(cmd *cobra.Command) (paths []string) {
	for _, c := range cmd.Commands() {
		if c.Name() == "example" {
			_, path, _ := strings.Cut(c.CommandPath(), " ")
			paths = append(paths, path)
		}
		paths = append(paths, examples(c)...)
	}
	return paths
}
