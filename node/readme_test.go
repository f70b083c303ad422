package node

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"openmesh/overlay/directory/kad"
	"openmesh/protocols/descriptor"
	"openmesh/protocols/forward"
	"openmesh/protocols/identity"
	"openmesh/protocols/mailbox"
	"openmesh/protocols/session"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

var update = flag.Bool("update", false, "rewrite the table of codes in protocols/README.md")

// What protocols/README.md says is what the code does: every protocol id, suite
// and code, as far as a table can be compared.
func TestProtocolsREADME(t *testing.T) {
	const file = "../protocols/README.md"
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	const marker = "| number | name | retry |\n|---|---|---|\n"
	before, _, ok := strings.Cut(text, marker)
	if !ok {
		t.Fatal("the table of codes is gone")
	}
	want := before + marker + codeTable()
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if text != want {
		t.Errorf("%s differs from the list of codes; run: go test ./node -run README -update", file)
	}
	realm := identity.Realm(7)
	for _, id := range []string{
		strings.Replace(string(kad.Protocol(realm)), "/7/", "/<realm>/", 1),
		strings.Replace(string(descriptor.WithdrawProtocol(realm)), "/7/", "/<realm>/", 1),
		string(descriptor.Protocol), signal.Protocol, session.Protocol,
		string(forward.Protocol), string(forward.ProbeProtocol), string(mailbox.Protocol),
	} {
		if !strings.Contains(text, "| `"+id+"` |") {
			t.Errorf("%s does not have %s", file, id)
		}
	}
	for _, s := range signal.Suites() {
		row := fmt.Sprintf("(0x%04x) | HKDF-SHA256 (0x%04x) | ", s.KEM, s.KDF)
		if !strings.Contains(text, row) || !strings.Contains(text, fmt.Sprintf("(0x%04x) |\n", s.AEAD)) {
			t.Errorf("%s does not have suite %s", file, s)
		}
	}
}

func codeTable() string {
	var b strings.Builder
	for _, c := range wire.Codes() {
		retry := ""
		if c.Retry() {
			retry = "yes"
		}
		fmt.Fprintf(&b, "| %#x | `%s` | %s |\n", uint32(c), c, retry)
	}
	return b.String()
}
