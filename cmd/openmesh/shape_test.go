package main

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// cmdShapes checks a table of commands and the shapes of what they print:
//
//	status: agent:string sessions:object directory.table_size:number
//	peers:  peers[].peer:string
//
// A line that starts with white space goes on with the shape.
func cmdShapes(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: shapes HOME FILE")
	}
	table := strings.ReplaceAll(ts.ReadFile(args[1]), "\n ", " ")
	for line := range strings.Lines(table) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		command, fields, ok := strings.Cut(line, ": ")
		if !ok {
			ts.Fatalf("no shape: %s", line)
		}
		ts.Check(ts.Exec("openmesh", append([]string{"--home", ts.MkAbs(args[0]), "--json"}, strings.Fields(command)...)...))
		first, _, _ := strings.Cut(ts.ReadFile("stdout"), "\n") // a stream has many
		var doc any
		if err := json.Unmarshal([]byte(first), &doc); err != nil {
			ts.Fatalf("%s: not JSON: %s", command, first)
		}
		for _, field := range strings.Fields(fields) {
			if err := shape(doc, field); err != nil {
				ts.Fatalf("%s: %s: %v in %s", command, field, err, first)
			}
		}
	}
}

// shape checks that doc has a field of a JSON type, written as path:type. Path is
// dotted names; name[] stands for all elements of an array that has some.
func shape(doc any, field string) error {
	path, want, _ := strings.Cut(field, ":")
	values := []any{doc}
	for _, name := range strings.Split(path, ".") {
		name, each := strings.CutSuffix(name, "[]")
		var next []any
		for _, v := range values {
			value, ok := member(v, name)
			if !ok {
				return fmt.Errorf("no %s", name)
			}
			if !each {
				next = append(next, value)
				continue
			}
			elements, _ := value.([]any)
			if len(elements) == 0 {
				return fmt.Errorf("%s is no array, or empty", name)
			}
			next = append(next, elements...)
		}
		values = next
	}
	for _, v := range values {
		if got := typeOf(v); got != want {
			return fmt.Errorf("is %s", got)
		}
	}
	return nil
}

// typeOf names the JSON type of a decoded value.
func typeOf(v any) string {
	switch v.(type) {
	case string:
		return "string"
	case float64:
		return "number"
	case bool:
		return "bool"
	case []any:
		return "array"
	case map[string]any:
		return "object"
	}
	return "null"
}
