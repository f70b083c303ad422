package impostor

import (
	"testing"
	"time"

	"openmesh/cmd/openmesh/demo/deal"
	"openmesh/protocols/wire"
)

// An impostor claims to have bought whatever is asked for, and sells nothing.
func TestDeals(t *testing.T) {
	t.Parallel()
	const id = "0123456789abcdef0123456789abcdef"
	d := Deals{Self: "did:key:z6MkMallory", Seller: "did:key:z6MkTrent"}
	got, err := d.Terms(t.Context(), id)
	if err != nil || got.ID != id || got.Buyer != d.Self || got.Seller != d.Seller || got.Capability != deal.Capability || got.Used >= got.Quantity {
		t.Errorf("%+v, %v", got, err)
	}
	if now := time.Now(); now.Before(got.ValidFrom) || !now.Before(got.ValidUntil) {
		t.Errorf("in force from %s until %s", got.ValidFrom, got.ValidUntil)
	}
	if err := d.Admit(t.Context(), id, d.Seller); wire.CodeOf(err) != wire.NotFound {
		t.Errorf("admits: %v", err)
	}
	if _, err := d.Begin(t.Context(), id, deal.Capability, "key", d.Seller); wire.CodeOf(err) != wire.NotFound {
		t.Errorf("begins: %v", err)
	}
}
