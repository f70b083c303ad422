package node

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"openmesh/node/config"
)

// A key that is said to have no effect yet is read by nobody, and every other key is
// read by somebody, unless it has one value only.
func TestEveryKeyIsRead(t *testing.T) {
	t.Parallel()
	read := settingsRead(t, "*.go", "bench/*.go", "../cmd/openmesh/*.go")
	if len(read) < 50 {
		t.Fatalf("only these are read: %v", slices.Sorted(maps.Keys(read)))
	}
	for _, k := range config.Keys() {
		switch used := read[plain(k.Name)]; {
		case used && k.Unbuilt != "":
			t.Errorf("%s is read, and is said to have no effect", k.Name)
		case !used && k.Unbuilt == "" && len(k.Values) != 1:
			t.Errorf("nothing reads %s", k.Name)
		}
	}
}

// plain is a key, or the fields that lead to one, without what they differ in.
func plain(name string) string { return strings.ToLower(strings.ReplaceAll(name, "_", "")) }

// settingsRead returns the settings that files read, as [plain] writes them.
func settingsRead(t *testing.T, patterns ...string) map[string]bool {
	t.Helper()
	all := make(map[string]bool)
	for _, p := range patterns {
		files, err := filepath.Glob(p)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range f.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Body != nil {
					maps.Copy(all, readIn(fn))
				}
			}
		}
	}
	return all
}

// readIn returns the settings that a function reads: by way of n.settings, of a
// parameter, or of a variable that holds a section, or all as the command loads them.
func readIn(fn *ast.FuncDecl) map[string]bool {
	read, held := make(map[string]bool), make(map[string]string) // variable → section, with a dot before
	for _, p := range fn.Type.Params.List {
		for _, name := range p.Names {
			if path, ok := sectionOf(p.Type); ok {
				held[name.Name] = path
			}
		}
	}
	ast.Inspect(fn.Body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			for i, to := range n.Lhs {
				name, ok := to.(*ast.Ident)
				if !ok {
					continue
				}
				delete(held, name.Name)
				if path, ok := pathOf(n.Rhs[min(i, len(n.Rhs)-1)], held); ok && n.Tok == token.DEFINE {
					held[name.Name] = path
				}
			}
		case *ast.SelectorExpr:
			if path, ok := pathOf(n, held); ok {
				read[strings.TrimPrefix(path, ".")] = true
			}
		}
		return true
	})
	return read
}

// pathOf returns which setting or section an expression is.
func pathOf(e ast.Expr, held map[string]string) (string, bool) {
	switch e := e.(type) {
	case *ast.Ident:
		path, ok := held[e.Name]
		return path, ok
	case *ast.SelectorExpr:
		if e.Sel.Name == "settings" || e.Sel.Name == "Config" {
			return "", true
		}
		path, ok := pathOf(e.X, held)
		return path + "." + plain(e.Sel.Name), ok
	case *ast.CallExpr:
		f, ok := e.Fun.(*ast.SelectorExpr)
		return "", ok && f.Sel.Name == "loadConfig"
	}
	return "", false
}

// sectionOf returns which settings a type of package config holds.
func sectionOf(e ast.Expr) (string, bool) {
	if p, ok := e.(*ast.StarExpr); ok {
		e = p.X
	}
	s, ok := e.(*ast.SelectorExpr)
	if !ok {
		return "", false
	}
	if pkg, ok := s.X.(*ast.Ident); !ok || pkg.Name != "config" {
		return "", false
	}
	switch s.Sel.Name {
	case "Config":
		return "", true
	case "AlertThresholds":
		return ".observability.alertthresholds", true
	}
	return "." + plain(s.Sel.Name), true
}
