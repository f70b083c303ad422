package market_test

import (
	"bytes"
	"testing"

	"openmesh/protocols/market"
	. "openmesh/protocols/market/markettest"
	"openmesh/protocols/wire"
)

func FuzzParse(f *testing.F) {
	d := newDeal(f).play("seller propose", "buyer accept", "seller contract", "buyer fail")
	f.Add(d.n.RFP().Raw)
	for _, m := range d.n.Moves() {
		f.Add(m.Raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := market.Parse(raw)
		if err != nil {
			if wire.CodeOf(err) == wire.Internal {
				t.Errorf("refused without a code: %v", err)
			}
			return
		}
		again, err := market.Parse(m.Raw)
		if err != nil || again.Hash != m.Hash || !bytes.Equal(m.Raw, raw) {
			t.Errorf("parsed again: %v", err)
		}
	})
}

func FuzzDecodeNegotiation(f *testing.F) {
	d := newDeal(f).play("seller propose", "buyer counter")
	crossed := d.seller.Move(f, d.n, market.Counter, d.now, Offer{})
	d.play("buyer amend")
	if _, _, err := d.n.Next(crossed, d.now); wire.CodeOf(err) != wire.IllegalTransition {
		f.Fatal(err)
	}
	b, err := d.n.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := market.DecodeNegotiation(b)
		if err != nil {
			if wire.CodeOf(err) == wire.Internal {
				t.Errorf("refused without a code: %v", err)
			}
			return
		}
		once, err := n.Encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := market.DecodeNegotiation(once)
		if err != nil || again.Head() != n.Head() || again.ID() != n.ID() {
			t.Errorf("decoded again: %v", err)
		}
	})
}
