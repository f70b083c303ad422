// Package markettest has what tests of the market share: agents that are the same
// every time, and moves that fit.
package markettest

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"openmesh/protocols/identity"
	"openmesh/protocols/market"
	"openmesh/protocols/market/document"
)

// TB is a test, or a property that one checks.
type TB interface {
	Helper()
	Fatal(args ...any)
}

// Start is when all stories begin.
var Start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// Realm is that of all agents.
const Realm = identity.Realm(64512)

// Agent is an identity with its secrets.
type Agent struct {
	ID          identity.AgentID
	Root        ed25519.PrivateKey
	Host        crypto.PrivKey
	Certificate *identity.Certificate // valid for a month from a day before Start
}

// NewAgent returns the agent whose root key has the seed b b … b, and its host key
// that of key version 1; see [Agent.Rotated].
func NewAgent(t TB, b byte) *Agent {
	t.Helper()
	root := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, ed25519.SeedSize))
	a := &Agent{ID: identity.NewAgentID(root.Public().(ed25519.PublicKey)), Root: root}
	return a.Rotated(t, 1)
}

// Rotated returns the agent with the host key whose seed is SHA-256(root key seed ‖
// version), certified as that version. Its mailbox key is of zeros.
func (a *Agent) Rotated(t TB, version byte) *Agent {
	t.Helper()
	seed := sha256.Sum256(append(a.Root.Seed(), version))
	host, err := crypto.UnmarshalEd25519PrivateKey(ed25519.NewKeyFromSeed(seed[:]))
	check(t, err)
	id, err := peer.IDFromPrivateKey(host)
	check(t, err)
	var nonce uint64 // the smallest
	addr, ok := identity.DeriveAddress(Realm, a.Root.Public().(ed25519.PublicKey), nonce)
	for ; !ok; nonce++ {
		addr, ok = identity.DeriveAddress(Realm, a.Root.Public().(ed25519.PublicKey), nonce+1)
	}
	cert, err := identity.IssueCertificate(a.Root, identity.Certificate{
		Address: addr, Nonce: nonce, Version: uint32(version), Peer: id,
		NotBefore: Start.Add(-24 * time.Hour), NotAfter: Start.Add(30 * 24 * time.Hour),
		MailboxKEM: 0x0020, MailboxKey: make([]byte, 32),
	})
	check(t, err)
	return &Agent{ID: a.ID, Root: a.Root, Host: host, Certificate: cert}
}

// Sign signs a move, which has to be valid.
func (a *Agent) Sign(t TB, m market.Move) *market.Signed {
	t.Helper()
	s, err := market.Sign(m, a.Host, a.Certificate)
	check(t, err)
	return s
}

// NewRFP returns a request of 100 units at Start, open for so long.
func NewRFP(buyer identity.AgentID, open time.Duration) *market.RFP {
	return &market.RFP{
		Schema: document.SchemaRFP, Buyer: buyer, Item: "steel coil, 2 mm", Quantity: 100,
		Price:    market.PriceRange{Min: amount("8"), Max: amount("12.50"), Currency: "EUR"},
		Delivery: market.Delivery{Terms: "DAP Hamburg"}, Deadline: Start.Add(open),
		Capability: "metal/steel", Version: ">=1.0.0 <2.0.0", Created: Start,
	}
}

func amount(s string) market.Decimal {
	d, err := market.ParseDecimal(s)
	if err != nil {
		panic(err) // a constant
	}
	return d
}

// Post signs a request at Start.
func (a *Agent) Post(t TB, rfp *market.RFP) *market.Signed {
	t.Helper()
	doc, err := rfp.Canonical()
	check(t, err)
	return a.Sign(t, market.Move{Kind: market.Request, Author: a.ID, At: Start, Schema: document.SchemaRFP, Document: doc})
}

// Checkpoint returns a signed checkpoint of a's audit log, as package audit writes it:
// at that time it had so many entries, with this root.
func (a *Agent) Checkpoint(t TB, size int64, root market.Hash, at time.Time) []byte {
	t.Helper()
	base64 := base64.StdEncoding.EncodeToString
	name := "openmesh/audit/" + string(a.ID)
	text := fmt.Sprintf("%s\n%d\n%s\ntime %d\ncertificate %s\n", name, size, base64(root[:]), at.UnixMilli(), base64(a.Certificate.Raw))
	signature, err := a.Host.Sign([]byte(text))
	check(t, err)
	key, err := a.Host.GetPublic().Raw()
	check(t, err)
	id := sha256.Sum256(append([]byte(name+"\n\x01"), key...)) // of the key, as signed notes want it
	return fmt.Appendf(nil, "%s\n\u2014 %s %s\n", text, name, base64(append(id[:4], signature...)))
}

// Offer is what an offer says that not all say.
type Offer struct {
	Price    string // default 10.00
	Quantity int64  // default 40
	Until    time.Time
}

// Move returns the move of that kind that a makes at that time after what it has
// seen of n, legal or not. Offers without an end are valid for an hour.
func (a *Agent) Move(t TB, n market.Negotiation, k market.Kind, at time.Time, o Offer) *market.Signed {
	t.Helper()
	m := market.Move{Kind: k, RFP: n.RFP().Hash, Prev: n.Prev(k), Author: a.ID, To: n.Party(n.RoleOf(a.ID).Other()), At: at}
	switch k {
	case market.Propose, market.Counter, market.Amend:
		m.Schema, m.Document = document.SchemaProposal, offer(t, n, at, o)
	case market.Accept:
		m.Schema, m.Document = document.SchemaContract, a.contract(t, n, at)
	case market.Conclude:
		if agreed := n.Agreement(); agreed != nil {
			m.Document = agreed.Document
		}
	}
	if k == market.Accept || k == market.Conclude {
		var err error
		m.ContractSignature, err = market.SignContract(m.Document, a.Host)
		check(t, err)
	}
	if k == market.Conclude {
		m.Document = nil
	}
	return a.Sign(t, m)
}

func offer(t TB, n market.Negotiation, at time.Time, o Offer) []byte {
	t.Helper()
	if o.Price == "" {
		o.Price = "10.00"
	}
	if o.Quantity == 0 {
		o.Quantity = 40
	}
	if o.Until.IsZero() {
		o.Until = at.Add(time.Hour)
	}
	doc, err := (&market.Proposal{
		Schema: document.SchemaProposal, RFP: n.RFP().Hash, Seller: n.Seller(), Buyer: n.Buyer(), ValidUntil: o.Until.UTC(),
		Terms: market.Terms{Price: market.Money{Amount: amount(o.Price), Currency: "EUR"}, Quantity: o.Quantity},
	}).Canonical()
	check(t, err)
	return doc
}

// contract drafts one, or makes up one that no offer stands for.
func (a *Agent) contract(t TB, n market.Negotiation, at time.Time) []byte {
	t.Helper()
	offered := a.Certificate
	if n.Table() != nil {
		offered = n.Table().Certificate
	}
	buyer, seller := a.Certificate, offered
	if n.RoleOf(a.ID) == market.Seller {
		buyer, seller = seller, buyer
	}
	if _, doc, err := n.Draft(buyer, seller, market.Checkpoints{}, at); err == nil {
		return doc
	}
	c := &market.Contract{
		Schema: document.SchemaContract, RFP: n.RFP().Hash, Proposal: n.Head(), Buyer: document.NewParty(buyer), Seller: document.NewParty(seller),
		Terms:     document.ContractTerms{Item: "anything", Quantity: 1, Price: market.Money{Amount: amount("1"), Currency: "EUR"}, Total: amount("1"), Capability: "metal"},
		ValidFrom: at.UTC(), ValidUntil: at.UTC().Add(time.Hour), Offeror: "seller",
	}
	c.Buyer.Agent, c.Seller.Agent = n.Buyer(), n.Seller()
	doc, err := c.Canonical()
	check(t, err)
	return doc
}

func check(t TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
