// Package contract makes, checks, exports and verifies the contracts at the end of
// negotiations. An export proves a contract to anyone, offline:
//
//	{"contract": {…},                       market/contract@v2.0.1
//	 "evidence": {"moves": [b64, …],        envelopes from the first offer to the contract
//	              "rfp": b64},
//	 "format": "openmesh-contract/1",
//	 "signatures": [{"agent": …, "key_version": …, "value": b64}, …]}   buyer, seller
//
// It is canonical JSON (RFC 8785) and a line feed, so that each contract has one
// file, and each byte of it counts. Envelopes are standard base64 with padding.
package contract

import (
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"

	"openmesh/protocols/identity"
	"openmesh/protocols/market"
)

// Checkpoints are the states of both audit logs that a contract names.
type Checkpoints = market.Checkpoints

// Draft writes the contract that the offer on the table comes to; see
// [market.Negotiation.Draft].
func Draft(n market.Negotiation, buyer, seller *identity.Certificate, cps Checkpoints, at time.Time) (*market.Contract, []byte, error) {
	return n.Draft(buyer, seller, cps, at)
}

// Check checks that doc says what offer and request say, for who accepts under the
// certificate acceptor; see [market.Negotiation.CheckContract].
func Check(n market.Negotiation, doc []byte, acceptor *identity.Certificate) error {
	return n.CheckContract(doc, acceptor)
}

// Sign signs a canonical contract with a host key; see [market.SignContract].
func Sign(doc []byte, key crypto.PrivKey) ([]byte, error) { return market.SignContract(doc, key) }

// Verify verifies a signature of Sign. The error is wire.Unauthenticated.
func Verify(doc, signature []byte, cert *identity.Certificate) error {
	return market.VerifyContract(doc, signature, cert)
}
