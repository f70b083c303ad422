package document_test

import (
	"errors"
	"strings"
	"testing"

	"openmesh/protocols/identity"
	"openmesh/protocols/market/document"
	"openmesh/protocols/wire"
)

func TestReadCheckpoint(t *testing.T) {
	t.Parallel()
	const agent = identity.AgentID("did:key:z6MkAgent")
	const good = "openmesh/audit/did:key:z6MkAgent\n1042\nBwAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\ntime 1767225600000\n"
	c, err := document.ReadCheckpoint(agent, []byte(good))
	if err != nil || *c != *document.NewCheckpoint(1042, document.Hash{7}, []byte(good)) {
		t.Fatalf("%+v, %v", c, err)
	}
	for name, change := range map[string][2]string{
		"of another":           {"MkAgent", "MkOther"},
		"of no log":            {"openmesh/audit/", ""},
		"cut off":              {"\ntime 1767225600000\n", ""},
		"no size":              {"1042", ""},
		"size with a sign":     {"1042", "+1042"},
		"negative":             {"1042", "-1"},
		"size with a zero":     {"1042", "01042"},
		"more than JSON takes": {"1042", "9007199254740992"},
		"more than 64 bits":    {"1042", "18446744073709551616"},
		"short root":           {"AAAAAAA=", "AAAA"},
		"root with a return":   {"BwAA", "BwAA\r"},
		"root otherwise":       {"AAA=", "AAB="},
		"no root":              {"BwAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", ""},
	} {
		text := strings.Replace(good, change[0], change[1], 1)
		if c, err := document.ReadCheckpoint(agent, []byte(text)); !errors.Is(err, wire.Malformed) {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
	if _, err := document.ReadCheckpoint(agent, []byte(strings.Replace(good, "1042", "9007199254740991", 1))); err != nil {
		t.Error(err)
	}
}
