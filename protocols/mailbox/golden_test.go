package mailbox_test

import (
	"crypto/hpke"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"openmesh/protocols/identity"
	"openmesh/protocols/mailbox"
	"openmesh/protocols/mailbox/mailboxtest"
)

const goldenFile = "testdata/letter.txt"

// A golden letter, in hex, with the recipient's private mailbox key (RFC 9180,
// SerializePrivateKey): another implementation must open it at noon, find the
// payload "hello", and the agent in the line sender.
func TestGoldenLetter(t *testing.T) {
	t.Parallel()
	if *update {
		writeGolden(t)
	}
	file, err := os.ReadFile(goldenFile)
	if err != nil {
		t.Fatal(err)
	}
	value := map[string][]byte{}
	for line := range strings.Lines(string(file)) {
		name, text, _ := strings.Cut(strings.TrimSpace(line), " ")
		if value[name], err = hex.DecodeString(text); err != nil {
			t.Fatal(err)
		}
	}
	key, err := identity.MailboxKEM.NewPrivateKey(value["key"])
	if err != nil {
		t.Fatal(err)
	}
	b := &mailboxtest.Identity{Agent: identity.AgentID(value["recipient"])}
	b.Boxes = map[uint32]hpke.PrivateKey{1: key}
	l := &mailbox.Letter{Recipient: b.Agent, ID: mailbox.ID(value["id"]), Expires: noon.Add(time.Hour), Body: value["body"]}
	from, payload, err := mailbox.Open(b.Recipient(at(noon)), l, noon)
	if err != nil || string(payload) != "hello" || string(from.Agent) != string(value["sender"]) {
		t.Errorf("Open() = %v, %q, %v", from, payload, err)
	}
	if digest := l.Digest(); string(digest[:]) != string(value["digest"]) {
		t.Errorf("Digest() = %x", digest)
	}
}

func writeGolden(t *testing.T) {
	a, b := mailboxtest.NewIdentity(t, noon), mailboxtest.NewIdentity(t, noon)
	l := letter(t, a, b, []byte("hello"))
	key, err := b.Boxes[1].Bytes()
	if err != nil {
		t.Fatal(err)
	}
	digest := l.Digest()
	text := fmt.Sprintf("key %x\nrecipient %x\nsender %x\nid %x\ndigest %x\nbody %x\n", key, string(b.Agent), string(a.Agent), l.ID[:], digest[:], l.Body)
	if err := os.WriteFile(goldenFile, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

var update = flag.Bool("update", false, "write the golden letter anew")
