package main

import (
	"context"
	"testing"
	"time"

	deal "openmesh/protocols/market"
)

// A buyer accepts while the seller is away, and changes its key before the acceptance is
// delivered. It counts: the buyer brings it itself, in a session under the new key.
func TestAcceptanceOutlivesKey(t *testing.T) {
	if testing.Short() {
		t.Skip("starts daemons more than once")
	}
	tr := newTrade(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	d, err := tr.post(ctx, "pages", time.Hour)
	if err == nil {
		_, err = d.move(ctx, deal.Seller, deal.Propose, time.Hour)
	}
	if err == nil {
		_, err = d.agree(ctx, deal.Proposed)
	}
	if err != nil {
		t.Fatal(err)
	}
	buyer, seller := tr.sides[deal.Buyer], d.seller
	seller.kill()
	if _, err := d.move(ctx, deal.Buyer, deal.Accept, 0); err != nil {
		t.Fatal(err)
	}
	buyer.kill()
	tr.run("buyer", "key", "rotate")
	for _, v := range []*victim{buyer, seller} {
		if err := v.start(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.agree(ctx, deal.Contracted); err != nil {
		t.Fatalf("%v%s", err, tr.lastWords())
	}
}
