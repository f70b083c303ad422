package contract

import (
	"encoding/base64"
	"encoding/json"
	"fmt"

	"openmesh/protocols/identity"
	"openmesh/protocols/market"
	"openmesh/protocols/market/document"
	"openmesh/protocols/wire"
)

// Format is what an export says that it is.
const Format = "openmesh-contract/1"

// MaxFile bounds an export, in bytes: more than the longest negotiation takes.
const MaxFile = 8 << 20

// file is an export. It is written in canonical form, whatever this order.
type file struct {
	Format     string          `json:"format"`
	Contract   json.RawMessage `json:"contract"`
	Signatures []signature     `json:"signatures"`
	Evidence   evidence        `json:"evidence"`
}

type signature struct {
	Agent      identity.AgentID `json:"agent"`
	KeyVersion uint32           `json:"key_version"`
	Value      string           `json:"value"` // base64
}

type evidence struct {
	RFP   string   `json:"rfp"` // envelopes in base64
	Moves []string `json:"moves"`
}

var encoding = base64.StdEncoding.Strict()

// Export returns a file that proves the contract of n to anyone who has just that.
// What came after the contract is not in it. The error is wire.NotFound if there is
// none that both sides have signed.
func Export(n market.Negotiation) ([]byte, error) {
	a := n.Agreement()
	if a == nil || a.Conclude == nil {
		return nil, wire.Errorf(wire.NotFound, "export contract: negotiation %s has no contract that both sides signed", n.ID())
	}
	f := file{Format: Format, Contract: a.Document, Signatures: signatures(n, a), Evidence: evidence{RFP: encoding.EncodeToString(n.RFP().Raw)}}
	for _, m := range n.Moves() {
		f.Evidence.Moves = append(f.Evidence.Moves, encoding.EncodeToString(m.Raw))
		if m == a.Conclude {
			break
		}
	}
	text, err := json.Marshal(f)
	if err == nil {
		text, err = document.Canonical(text, MaxFile)
	}
	if err != nil {
		return nil, fmt.Errorf("export contract %s: %w", a.ID, err)
	}
	return append(text, '\n'), nil
}

// signatures returns those of buyer and seller, in that order.
func signatures(n market.Negotiation, a *market.Agreement) []signature {
	var out []signature
	for _, agent := range []identity.AgentID{n.Buyer(), n.Seller()} {
		m := a.Accept
		if a.Conclude.Author == agent {
			m = a.Conclude
		}
		out = append(out, signature{agent, m.Certificate.Version, encoding.EncodeToString(m.ContractSignature)})
	}
	return out
}
