package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	deal "openmesh/protocols/market"
)

// Two sell the same. The one that takes its time makes the better offer, and who posts
// with --wait sees both.
func TestWaitForTheBetterOffer(t *testing.T) {
	tr := newTrade(t)
	fast, slow := tr.sides[deal.Seller], tr.seller("slow")
	for _, name := range []string{"seller", "slow"} {
		eventually(t, name+" is in the directory", func() bool {
			var list struct {
				Capabilities []struct {
					Until string `json:"registered_until"`
				}
			}
			err := json.Unmarshal(tr.run(name, "capability", "list"), &list)
			return err == nil && len(list.Capabilities) == 1 && list.Capabilities[0].Until != ""
		})
	}
	tr.run("buyer", "discover", sold) // which connects it to them
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	done := make(chan error, 2)
	go func() { done <- sells(ctx, fast, 0, "12.00") }()
	go func() { done <- sells(ctx, slow, time.Second, "5.00") }()
	file := filepath.Join(tr.dir, "rfp.json")
	if err := os.WriteFile(file, []byte(requestOf("pages", time.Hour)), 0o600); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	var posted struct {
		Asked   int
		Answers []struct{ Price string }
	}
	if err := json.Unmarshal(tr.run("buyer", "market", "rfp", "post", file, "--wait=5m"), &posted); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	var prices []string
	for _, a := range posted.Answers {
		prices = append(prices, a.Price)
	}
	if slices.Sort(prices); !slices.Equal(prices, []string{"12.00", "5.00"}) || posted.Asked != 2 {
		t.Errorf("%d were asked, and offered %v", posted.Asked, prices)
	}
	if took := time.Since(began); took > patience {
		t.Errorf("it took %v, though all have answered", took)
	}
}

// sells has a seller answer the first request that it hears of, some time later.
func sells(ctx context.Context, seller *victim, later time.Duration, price string) error {
	m := seller.api().Market
	var heard []*openmeshv1.RFP
	err := until(ctx, "no request came", func() (bool, error) {
		all, err := m.ListRFPs(ctx, &openmeshv1.ListRFPsRequest{Direction: "received"})
		heard = all.GetRfps()
		return len(heard) > 0, err
	})
	if err != nil {
		return err
	}
	pause(ctx, later)
	_, err = m.Propose(ctx, &openmeshv1.ProposeRequest{Rfp: heard[0].Rfp, Json: offered(price, time.Hour)})
	return err
}
