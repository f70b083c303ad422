// Package proof checks the files that agents give away, with nothing but the files:
// exports of contracts and of audit logs. No daemon and no identity is needed.
//
// What such a file says is signed, and each report tells whether all of it holds. It
// cannot tell whether a key had been superseded or revoked when it signed: that is
// known to the mesh only.
package proof

import (
	"openmesh/protocols/market"
	"openmesh/protocols/market/contract"
	"openmesh/protocols/wire"
)

// MaxContract bounds the export of a contract, in bytes.
const MaxContract = contract.MaxFile

// Contract is what the export of a contract proves.
type Contract struct {
	OK         bool        `json:"ok"`
	Contract   string      `json:"contract"` // id; empty if the file cannot be read that far
	Parties    []string    `json:"parties"`  // agent ids of buyer and seller
	Signatures []Signature `json:"signatures"`
	Reason     string      `json:"reason"`  // what is wrong; empty if nothing is
	Pointer    string      `json:"pointer"` // JSON pointer to it; empty: the file as a whole
	Offset     int         `json:"offset"`  // first byte that should be another; -1: none in particular

	Document *market.Contract `json:"document"` // null if it cannot be read
}

// Signature is whether a party signed the contract in the file.
type Signature struct {
	Agent      string `json:"agent"`
	OK         bool   `json:"ok"`
	KeyVersion uint32 `json:"key_version"`
}

// VerifyContract checks an export of a contract: see [contract.VerifyFile].
func VerifyContract(file []byte) Contract {
	r := contract.VerifyFile(file)
	out := Contract{
		OK: r.OK, Contract: r.ID, Parties: []string{}, Signatures: []Signature{},
		Reason: r.Reason, Pointer: r.Pointer, Offset: r.Offset, Document: r.Contract,
	}
	for _, agent := range r.Parties {
		out.Parties = append(out.Parties, string(agent))
	}
	for _, s := range r.Signatures {
		out.Signatures = append(out.Signatures, Signature{string(s.Agent), s.OK, s.KeyVersion})
	}
	return out
}

// Err is nil if all holds, else a [wire.Malformed] error that says what does not.
func (c Contract) Err() error {
	if c.OK {
		return nil
	}
	err := wire.Errorf(wire.Malformed, "the file does not prove a contract: %s", c.Reason)
	if c.Pointer != "" {
		err.Pointers = []string{c.Pointer}
	}
	return err.WithHint("ask the other side for its export: openmesh market contract export ID")
}
