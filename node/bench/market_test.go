package bench

import (
	"testing"
	"time"
)

// sellers runs those of a market until the test ends.
func sellers(t *testing.T, transport string) (all []Server) {
	t.Helper()
	setup := Setup{Transport: transport, Market: true}
	for range MarketSellers {
		s, stop := serve(t, setup)
		t.Cleanup(func() {
			if err := stop(); err != nil {
				t.Errorf("seller: %v", err)
			}
		})
		all = append(all, s)
		setup.Bootstrap = all[0].Node
	}
	return all
}

// Negotiations end in contracts, with one seller and with three, and as many messages
// go the same ways.
func TestMarket(t *testing.T) {
	for _, transport := range []string{"quic", "tcp"} {
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			cfg := Config{
				Setup: Setup{Transport: transport, Market: true}, Sellers: sellers(t, transport), InFlight: []int{1, 4},
				Home: t.TempDir() + "/buyer", Rounds: 2, Time: 20 * time.Millisecond,
			}
			r, err := Market(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			wants(t, r, 4, 6)
			measured(t, r)
		})
	}
}

func TestMarketNeedsSellers(t *testing.T) {
	t.Parallel()
	if _, err := Market(t.Context(), Config{Sellers: make([]Server, MarketSellers-1)}); err == nil {
		t.Error("measured without sellers")
	}
}
