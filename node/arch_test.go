package node

import (
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "openmesh/"

// mayImport says which of our packages each tree may import, itself aside. Test
// files are not bound by it.
var mayImport = map[string][]string{
	"cmd":                         {"node", "protocols/wire", "protocols/identity", "protocols/descriptor"}, // vocabulary only
	"node":                        {"overlay", "policy", "protocols"},
	"overlay":                     {"protocols/identity", "protocols/wire", "protocols/stream", "protocols/descriptor"},
	"policy":                      {"protocols/identity"},
	"protocols/wire":              {},
	"protocols/stream":            {"protocols/wire"},
	"protocols/identity":          {"protocols/wire"},
	"protocols/schema":            {"protocols/wire"},
	"protocols/descriptor":        {"protocols/wire", "protocols/stream", "protocols/identity"},
	"protocols/signal":            {"protocols/wire", "protocols/stream", "protocols/identity"},
	"protocols/session":           {"protocols/wire", "protocols/stream", "protocols/identity", "protocols/signal"},
	"protocols/forward":           {"protocols/wire", "protocols/stream", "protocols/identity"},
	"protocols/mailbox":           {"protocols/wire", "protocols/stream", "protocols/identity"},
	"protocols/market":            {"protocols/wire", "protocols/identity", "protocols/schema"},
	"protocols/session/delivery":  {"protocols/wire"},
	"protocols/session/mux":       {"protocols/wire"},
	"protocols/session/limit":     {"protocols/wire"},
	"protocols/market/markettest": {"protocols"},
	"protocols/protocoltest":      {"protocols"},
	"node/config":                 {"node/config", "node/nearest", "node/automation/strategy", "protocols/wire", "protocols/identity"},
	"node/handlers":               {"node/handlers", "node/nearest", "protocols"},
	"node/api":                    {"node/api", "node/observe", "protocols/wire"},
	"node/nearest":                {},
	"node/schemas":                {"protocols/schema"},
	"node/observe":                {"protocols/wire"},
	"node/keys":                   {"protocols/wire", "protocols/identity"},
	"node/store":                  {"node/store", "protocols/wire", "protocols/session/delivery"},
	"node/store/letters":          {"node/store", "protocols/wire", "protocols/identity", "protocols/mailbox"},
	"node/store/deals":            {"node/store", "protocols/wire"},
	"node/audit":                  {"node/store", "protocols/wire", "protocols/identity"},
	"node/audit/replay":           {"node/audit", "protocols"},
	"node/market":                 {"node/audit", "node/store", "protocols"},
	"node/catalog":                {"protocols/schema", "protocols/wire", "protocols/identity"},
	"node/automation":             {"node/automation", "node/handlers", "protocols"},
	"node/proof":                  {"node/api", "node/audit", "protocols"},
	"overlay/directory/query":     {"protocols"},
	"overlay/directory/cache":     {"protocols/wire"},
	"overlay/directory/kad":       {"protocols"},
}

func TestImportDirection(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, module+"...").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		from := strings.TrimPrefix(f[0], module)
		tree, allowed := ruleFor(from)
		if tree == "" {
			t.Errorf("%s: no rule; add it to mayImport", from)
		}
		for _, imp := range f[1:] {
			to, ours := strings.CutPrefix(imp, module)
			if ours && !within(to, append(allowed, tree)) {
				t.Errorf("%s imports %s; it may import only %v", from, to, allowed)
			}
		}
	}
}

func ruleFor(pkg string) (tree string, allowed []string) {
	for prefix, a := range mayImport {
		if within(pkg, []string{prefix}) && len(prefix) > len(tree) {
			tree, allowed = prefix, a
		}
	}
	return tree, allowed
}

func within(pkg string, trees []string) bool {
	for _, t := range trees {
		if pkg == t || strings.HasPrefix(pkg, t+"/") {
			return true
		}
	}
	return false
}

// The house's manners that a machine can check, for every Go file of ours:
// formatted; a package comment; no init function.
func TestManners(t *testing.T) {
	t.Parallel()
	documented := map[string]bool{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || generated(path) {
			return err
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if formatted, err := format.Source(src); err != nil || string(formatted) != string(src) {
			t.Errorf("%s is not gofmt-ed", path)
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, src, parser.ParseComments)
		if err != nil {
			return err
		}
		checkInit(t, path, f)
		if !strings.HasSuffix(path, "_test.go") {
			dir := filepath.Dir(path)
			documented[dir] = documented[dir] || f.Doc != nil
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("package in %s has no comment", dir)
		}
	}
}

func generated(path string) bool {
	return strings.HasSuffix(path, ".pb.go") || strings.HasSuffix(path, ".connect.go")
}

func checkInit(t *testing.T, path string, f *ast.File) {
	for _, d := range f.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Name.Name == "init" && fn.Recv == nil {
			t.Errorf("%s has an init function", path)
		}
	}
}
