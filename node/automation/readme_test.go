package automation_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"openmesh/node/automation"
	"openmesh/node/automation/strategy"
)

var block = regexp.MustCompile("(?s)```(yaml|json)\n(.*?)```")

// What README.md shows is what this package reads and writes.
func TestReadme(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("README.md")
	check(t, err)
	blocks := block.FindAllStringSubmatch(string(text), -1)
	if len(blocks) != 4 {
		t.Fatalf("README.md has %d blocks, want rules, a file, an event and an answer", len(blocks))
	}
	rules, file, event, answer := blocks[0][2], blocks[1][2], blocks[2][2], blocks[3][2]
	for _, line := range regexp.MustCompile(`(?m)^ *- (.*)$`).FindAllStringSubmatch(rules, -1) {
		rule, _, _ := strings.Cut(line[1], "#")
		if _, err := strategy.ParseRule(rule); err != nil {
			t.Errorf("rule %q %v", rule, err)
		}
	}
	dir := t.TempDir()
	check(t, os.WriteFile(filepath.Join(dir, "quote.yaml"), []byte(file), 0o600))
	if files, problems := automation.Load(dir); len(files) != 1 || problems != nil {
		t.Errorf("the file: %v, %v", files, problems)
	}
	strict(t, event, new(automation.Event))
	strict(t, answer, new(struct {
		Move     string
		Document struct {
			Terms struct{ Price map[string]string }
		}
		Reason string
	}))
}

// strict reads a document none of whose members may be unknown.
func strict(t *testing.T, text string, into any) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		t.Errorf("%s%v", text, err)
	}
}
