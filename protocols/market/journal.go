package market

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"openmesh/protocols/identity"
	"openmesh/protocols/market/marketpb"
	"openmesh/protocols/wire"
)

// Encode returns the negotiation as it is stored: openmesh.market.v1.Journal.
func (n Negotiation) Encode() ([]byte, error) {
	j := &marketpb.Journal{Rfp: n.RFP().Raw, Seller: string(n.seller)}
	for _, a := range n.journal {
		j.Applied = append(j.Applied, &marketpb.Applied{Envelope: a.move.Raw, At: a.at.UnixMilli()})
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(j)
	if err != nil {
		return nil, fmt.Errorf("encode negotiation %s: %w", n.ID(), err)
	}
	return b, nil
}

// DecodeNegotiation reads what Encode wrote. It trusts nothing: signatures and
// documents are checked again, and moves applied again. Errors are those of [Parse]
// and [Negotiation.Next], and wire.Malformed.
func DecodeNegotiation(b []byte) (Negotiation, error) {
	var j marketpb.Journal
	if err := proto.Unmarshal(b, &j); err != nil {
		return Negotiation{}, wire.Errorf(wire.Malformed, "decode negotiation: %w", err)
	}
	certificate := Remembering()
	rfp, err := ParseBy(j.Rfp, certificate)
	if err != nil {
		return Negotiation{}, fmt.Errorf("decode negotiation: %w", err)
	}
	n, err := NewNegotiation(rfp, identity.AgentID(j.Seller))
	if err != nil {
		return Negotiation{}, fmt.Errorf("decode negotiation: %w", err)
	}
	for i, a := range j.Applied {
		m, err := ParseBy(a.Envelope, certificate)
		if err != nil {
			return Negotiation{}, fmt.Errorf("decode negotiation: move %d: %w", i, err)
		}
		next, res, err := n.Next(m, time.UnixMilli(a.At).UTC())
		if err == nil && res.Duplicate {
			err = wire.Errorf(wire.Malformed, "%s is there twice", m.Kind)
		}
		if err != nil {
			return Negotiation{}, fmt.Errorf("decode negotiation: move %d: %w", i, err)
		}
		n = next
	}
	return n, nil
}

// Remembering returns an [identity.ParseCertificate] that verifies each certificate
// once, for [ParseBy]: negotiations have few, and many times. It is for one goroutine,
// and for moves whose number is bounded.
func Remembering() func(raw []byte) (*identity.Certificate, error) {
	known := make(map[string]*identity.Certificate)
	return func(raw []byte) (c *identity.Certificate, err error) {
		if c = known[string(raw)]; c == nil {
			if c, err = identity.ParseCertificate(raw); err == nil {
				known[string(raw)] = c
			}
		}
		return c, err
	}
}
