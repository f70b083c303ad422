package market

import (
	"bytes"
	"time"

	"openmesh/protocols/identity"
	"openmesh/protocols/market/document"
	"openmesh/protocols/wire"
)

// Term is how long a contract is valid whose offer does not say when to deliver.
const Term = 30 * 24 * time.Hour

// Agreement is a contract that both sides have signed, or the acceptor alone so far.
type Agreement struct {
	ID       string // 32 hexadecimal digits
	Contract *Contract
	Document []byte  // canonical: what is signed
	Accept   *Signed // carries document and signature of the acceptor
	Conclude *Signed // carries the offeror's signature; nil: not signed yet
}

// Agreement returns the contract, once the offer was accepted; nil before. It binds
// both once Conclude is there.
func (n Negotiation) Agreement() *Agreement {
	for i, p := range n.chain {
		if p.move.Kind != Accept {
			continue
		}
		a := &Agreement{ID: document.ContractID(p.move.Document), Contract: p.move.contract, Document: p.move.Document, Accept: p.move}
		if i+1 < len(n.chain) && n.chain[i+1].move.Kind == Conclude {
			a.Conclude = n.chain[i+1].move
		}
		return a
	}
	return nil
}

// Draft writes the contract that the offer on the table comes to when it is accepted
// at that time (whole milliseconds; the accept has the same): with the certificate
// that the offer was made with, the acceptor's, and for each side the checkpoint that
// its move carries, if it carries one. Errors: wire.IllegalTransition without an open
// offer, wire.InvalidArgument for the wrong certificates.
func (n Negotiation) Draft(buyer, seller *identity.Certificate, cps Checkpoints, at time.Time) (*Contract, []byte, error) {
	c, err := n.draft(buyer, seller, cps, at)
	if err != nil {
		return nil, nil, err
	}
	doc, err := c.Canonical()
	return c, doc, err
}

func (n Negotiation) draft(buyer, seller *identity.Certificate, cps Checkpoints, at time.Time) (*Contract, error) {
	p := n.head()
	if at = at.UTC().Truncate(time.Millisecond); p.table == nil || p.deadline().IsZero() {
		return nil, wire.Errorf(wire.IllegalTransition, "draft contract: no offer is on the table in state %s", p.at(at))
	}
	offered := map[Role]*identity.Certificate{Buyer: buyer, Seller: seller}[p.offeror]
	if buyer.Agent != n.Buyer() || seller.Agent != n.seller || !bytes.Equal(offered.Raw, p.table.Certificate.Raw) {
		return nil, wire.Errorf(wire.InvalidArgument, "draft contract: the certificates are not those of buyer, seller and offer")
	}
	return n.terms(document.NewParty(buyer), document.NewParty(seller), cps, at), nil
}

// terms writes what request and offer say into a contract.
func (n Negotiation) terms(buyer, seller Party, cps Checkpoints, at time.Time) *Contract {
	p, rfp := n.head(), n.RFP().request
	offer := p.table.offer.Terms
	until := at.Add(Term)
	if offer.Delivery.By.After(at) {
		until = offer.Delivery.By.UTC()
	}
	return &Contract{
		Schema: document.SchemaContract, RFP: n.RFP().Hash, Proposal: p.table.Hash, Buyer: buyer, Seller: seller,
		Terms: document.ContractTerms{
			Item: rfp.Item, Quantity: offer.Quantity, Price: offer.Price, Total: offer.Total(), Delivery: offer.Delivery,
			Capability: rfp.Capability, Version: rfp.Version,
		},
		ValidFrom: at, ValidUntil: until, Checkpoints: cps, Offeror: p.offeror.String(),
	}
}

// CheckContract checks that doc is the contract that the offer on the table comes to
// when the other side accepts it under the certificate acceptor; what is its own to
// say, such as its checkpoint, is taken from doc. Errors: those of [document.Check],
// wire.InvalidRequest with pointers to what should be different, wire.IllegalTransition.
func (n Negotiation) CheckContract(doc []byte, acceptor *identity.Certificate) error {
	c, err := document.ParseContract(doc)
	if err != nil {
		return err
	}
	own := c.Checkpoints.Seller
	if n.Offeror() == Seller {
		own = c.Checkpoints.Buyer
	}
	return n.compare(doc, c, acceptor, own)
}

func (n Negotiation) checkAccept(m *Signed) error {
	return n.compare(m.Document, m.contract, m.Certificate, m.checkpoint)
}

// compare drafts the contract anew, for who accepts under a certificate and with a
// checkpoint, and finds what doc has otherwise. The offeror's checkpoint is the one that
// its offer carries: it signs what is said of its own log, too.
func (n Negotiation) compare(doc []byte, c *Contract, acceptor *identity.Certificate, own *Checkpoint) error {
	p := n.head()
	if p.table == nil {
		return wire.Errorf(wire.IllegalTransition, "contract: no offer is on the table in state %s", p.state)
	}
	buyer, seller, cps := p.table.Certificate, acceptor, Checkpoints{Buyer: p.table.checkpoint, Seller: own}
	if p.offeror == Seller {
		buyer, seller, cps = seller, buyer, Checkpoints{Buyer: own, Seller: p.table.checkpoint}
	}
	drafted, err := n.draft(buyer, seller, cps, c.ValidFrom)
	if err != nil {
		return err
	}
	want, err := drafted.Unchecked()
	if err != nil {
		return err
	}
	return document.Same(want, doc, document.MaxDocument)
}

// checkConclude verifies the offeror's signature. It may have rotated its key since
// its offer, but not back.
func (n Negotiation) checkConclude(m *Signed) error {
	a := n.Agreement()
	if offered := n.Table().Certificate.Version; m.Certificate.Version < offered {
		return wire.Errorf(wire.KeySuperseded, "contract: signed under key version %d, the offer under %d", m.Certificate.Version, offered)
	}
	return VerifyContract(a.Document, m.ContractSignature, m.Certificate)
}
