package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/protocols/market/document"
)

// What the example commands print is what the market takes, once the daemon has
// filled in what the comments say that it fills in.
func TestExamplesAreValid(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for _, tc := range []struct {
		name   string
		text   []byte
		filled map[string]any
		parse  func([]byte) error
	}{
		{"rfp", exampleRFP(now), map[string]any{"buyer": testAgent, "created": "2026-11-22T06:00:00Z"}, func(doc []byte) error {
			_, err := document.ParseRFP(doc)
			return err
		}},
		{"rfp, all of it", []byte(strings.ReplaceAll(string(exampleRFP(now)), "\n# ", "\n")),
			map[string]any{"buyer": testAgent, "created": "2026-11-22T06:00:00Z"}, func(doc []byte) error {
				_, err := document.ParseRFP(doc)
				return err
			}},
		{"proposal", exampleProposal(now), map[string]any{"rfp": strings.Repeat("0f", 32), "buyer": testAgent, "seller": testAgent}, func(doc []byte) error {
			_, err := document.ParseProposal(document.SchemaProposal, doc)
			return err
		}},
		{"schema", exampleSchema(), nil, func(doc []byte) error {
			return document.ValidateDetails(exampleSchema(), []byte(`{"from":"de","to":"en"}`))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "example")
			if err := os.WriteFile(file, tc.text, 0o600); err != nil {
				t.Fatal(err)
			}
			text, err := newProgram(nil, nil, nil, nil).readJSON(file)
			if err != nil {
				t.Fatal(err)
			}
			var doc map[string]any
			if err := json.Unmarshal([]byte(text), &doc); err != nil {
				t.Fatal(err)
			}
			for name, value := range tc.filled {
				doc[name] = value
			}
			whole, err := json.Marshal(doc)
			if err == nil {
				whole, err = document.Canonical(whole, document.MaxDocument)
			}
			if err == nil {
				err = tc.parse(whole)
			}
			if err != nil {
				t.Errorf("%v in %s", err, whole)
			}
		})
	}
}

func TestReadJSON(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, in, want, wrong string }{
		{"JSON as it is", "{\"a\":\t1.50}\n", "{\"a\":\t1.50}\n", ""},
		{"YAML", "a: \"1.50\"\nat: 2026-11-22T06:00:00Z\nbig: 9007199254740993\nno: null\n", `{"a": "1.50", "at": "2026-11-22T06:00:00Z", "big": 9007199254740993, "no": null}`, ""},
		{"nothing", "\n", "", "nothing is in it"},
		{"a comment", "# no more\n", "", "nothing is in it"},
		{"two", "a: 1\n---\nb: 2\n", "", "more than one document"},
		{"twice", "a: 1\na: 2\n", "", `-:2:1: mapping key "a" already defined`},
		{"infinite", "a: .inf\n", "", "has no JSON form"},
		{"too long", strings.Repeat(" ", maxDocument+1), "", "more than 1048576 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got, err := newProgram(strings.NewReader(tc.in), nil, nil, nil).readJSON("-")
			if got != tc.want && tc.wrong == "" || (err == nil) != (tc.wrong == "") {
				t.Fatalf("%q, %v", got, err)
			}
			if err != nil && (!strings.Contains(err.Error(), tc.wrong) || exitCode(err) == exitDone) {
				t.Errorf("%v, exit code %d", err, exitCode(err))
			}
		})
	}
}

func TestPlain(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		m    *openmeshv1.Proposal
		want string
	}{
		{&openmeshv1.Proposal{Quantity: 1 << 63, Seller: "<é\x1b>", Json: "no JSON", Moves: []*openmeshv1.Move{{Json: "{\"n\": 1.50}"}, nil}},
			`"seller":"<é\u001b>",`},
		{&openmeshv1.Proposal{Quantity: 1 << 63}, `"quantity":9223372036854775808,`},
		{&openmeshv1.Proposal{Json: "no JSON"}, `"document":null,`},
		{&openmeshv1.Proposal{Json: ""}, `"unsent":0,"moves":[]}`},
		{&openmeshv1.Proposal{Moves: []*openmeshv1.Move{{Json: "{\"n\": 1.50}"}}}, `"changes":[],"document":{"n":1.50},"schema":"",`},
	} {
		got, err := plain(tc.m)
		if err != nil || !json.Valid(got) || !strings.Contains(string(got), tc.want) || strings.Contains(string(got), "\n") {
			t.Errorf("%s, %v: want %s", got, err, tc.want)
		}
	}
	got, err := plain(&openmeshv1.VerifyAuditResponse{})
	if err != nil || !strings.Contains(string(got), `"bad":null,`) {
		t.Errorf("%s, %v", got, err)
	}
}
