package market_test

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"openmesh/protocols/identity"
	"openmesh/protocols/market"
	. "openmesh/protocols/market/markettest"
)

var update = flag.Bool("update", false, "write golden vectors anew")

const goldenFile = "testdata/negotiation.txtar"

const goldenComment = `A negotiation from the request to its settlement. Of each move: the envelope, in
hexadecimal, and its hash; of those with a document, that. Agents are those of
package markettest: root keys with the seeds 01 01 … 01 (buyer) and 02 02 … 02
(seller), host keys with SHA-256(root seed ‖ 01).

`

// Another implementation must come to these bytes from the documents and keys, and
// accept them; a change of them is a change of the protocol.
func TestGoldenNegotiation(t *testing.T) {
	t.Parallel()
	d := newDeal(t).play("seller propose", "buyer counter", "seller amend", "buyer accept", "seller contract", "seller fulfil", "buyer fulfil")
	got := &txtar.Archive{Comment: []byte(goldenComment)}
	add := func(name, text string) {
		got.Files = append(got.Files, txtar.File{Name: name, Data: []byte(text + "\n")})
	}
	for i, m := range append([]*market.Signed{d.n.RFP()}, d.n.Moves()...) {
		name := fmt.Sprintf("%d-%s", i, m.Kind)
		if len(m.Document) > 0 {
			add(name+".json", string(m.Document))
		}
		add(name+".hash", m.Hash.String())
		add(name+".envelope", hex.EncodeToString(m.Raw))
	}
	add("negotiation.id", d.n.ID())
	add("contract.id", d.n.Agreement().ID)
	if *update {
		if err := os.WriteFile(goldenFile, txtar.Format(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(goldenFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(txtar.Format(got), want) {
		t.Errorf("it is now\n%s", txtar.Format(got))
	}
	replay(t, txtar.Parse(want), d.n.Seller())
}

// replay runs the negotiation from the vectors.
func replay(t *testing.T, vectors *txtar.Archive, seller identity.AgentID) {
	t.Helper()
	var n market.Negotiation
	for _, f := range vectors.Files {
		if !strings.HasSuffix(f.Name, ".envelope") {
			continue
		}
		raw, err := hex.DecodeString(strings.TrimSpace(string(f.Data)))
		if err != nil {
			t.Fatal(err)
		}
		m, err := market.Parse(raw)
		if err != nil {
			t.Fatal(f.Name, err)
		}
		if m.Kind == market.Request {
			n, err = market.NewNegotiation(m, seller)
		} else {
			n, _, err = n.Next(m, m.At)
		}
		if err != nil {
			t.Fatal(f.Name, err)
		}
	}
	if got := n.State(Start.Add(time.Hour)); got != market.Fulfilled {
		t.Errorf("ends %s", got)
	}
}
