package capability

import (
	"errors"
	"strings"
	"testing"

	"openmesh/protocols/wire"
)

func TestParseAutomation(t *testing.T) {
	t.Parallel()
	a, err := ParseAutomation([]byte("on: market.rfp\ncapability: finance\nhandler: {exec: {command: [./quote]}}\n"), "dir/quote.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if a.On != OnRequest || a.Capability != "finance" || a.Handler.Kind() != "exec" || !strings.HasSuffix(a.Handler.Exec.Dir, "/dir") {
		t.Errorf("%+v", a)
	}
	if a, err = ParseAutomation([]byte(`{"on":"market.proposal","handler":{"api":{}}}`), "x.json"); err != nil || a.Capability != "" || a.Handler.Kind() != "api" {
		t.Errorf("%+v, %v", a, err)
	}
	for doc, want := range map[string]string{
		"on: market.rfps\nhandler: {api: {}}\n":                `x:1:5: unknown occasion "market.rfps"`,
		"handler: {api: {}}\n":                                 `x:1:1: field "on" is missing`,
		"on: market.rfp\n":                                     `x:1:1: field "handler" is missing`,
		"on: market.rfp\ncapability: A\nhandler: {api: {}}\n":  `x:2:13: name "A"`,
		"on: market.rfp\nhandler: {}\n":                        "0 handlers instead of one",
		"on: market.rfp\nname: x\nhandler: {api: {}}\n":        `x:2:1: unknown field "name"`,
		"on: market.rfp\nhandler: {http: {url: 'ftp://x'}}\n":  "http or https",
		"on: market.rfp\ncapability: ''\nhandler: {api: {}}\n": `x:2:13: name ""`,
		"- on\n": "a mapping is wanted",
	} {
		_, err := ParseAutomation([]byte(doc), "x")
		var e *wire.Error
		if !errors.As(err, &e) || e.Code != wire.InvalidArgument || !strings.Contains(e.Message, want) {
			t.Errorf("%q: %v, want %q", doc, err, want)
		}
	}
}

// A capability does without a market contract, unless its file says so.
func TestParseContractRequired(t *testing.T) {
	t.Parallel()
	const file = "name: a\nversion: 1.0.0\nhandler: {api: {}}\n"
	for extra, want := range map[string]bool{"": false, "contract: optional\n": false, "contract: required\n": true} {
		if c, err := Parse([]byte(file+extra), "x"); err != nil || c.ContractRequired != want {
			t.Errorf("%q: %v, %v", extra, c, err)
		}
	}
	if _, err := Parse([]byte(file+"contract: yes\n"), "x"); err == nil || !strings.Contains(err.Error(), "x:4:11") {
		t.Errorf("contract: yes: %v", err)
	}
}
