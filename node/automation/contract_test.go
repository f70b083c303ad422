package automation_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"openmesh/node/automation"
	"openmesh/protocols/market"
	"openmesh/protocols/market/markettest"
)

// The handlers of both sides hear of a contract, with a key that stays the same while it
// is settled; the rules have nothing to sell any more.
func TestHandlersHearOfContract(t *testing.T) {
	t.Parallel()
	buyer, seller, at := markettest.NewAgent(t, 1), markettest.NewAgent(t, 2), markettest.Start
	n, err := market.NewNegotiation(buyer.Post(t, markettest.NewRFP(buyer.ID, time.Hour)), seller.ID)
	check(t, err)
	move := func(by *markettest.Agent, k market.Kind) {
		t.Helper()
		n, _, err = n.Next(by.Move(t, n, k, at, markettest.Offer{}), at)
		check(t, err)
	}
	move(seller, market.Propose)
	move(buyer, market.Accept)
	move(seller, market.Conclude)
	var keys []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		keys = append(keys, r.Header.Get("x-mesh-idempotency-key"))
		io.WriteString(w, `{"move":"wait"}`)
	}))
	defer server.Close()
	handler, _ := open(t, map[string]string{"a.yaml": "on: market.contract\nhandler: {http: {url: '" + server.URL + "'}}\n"})
	rules, _ := open(t, nil, "metal price=5 currency=EUR")
	tell := func() {
		t.Helper()
		for _, self := range []*markettest.Agent{buyer, seller} {
			e, err := automation.EventOf(self.ID, n.RFP(), &n, at)
			check(t, err)
			if e.On != "market.contract" || e.Contract == nil || len(e.Moves) != 0 {
				t.Errorf("%+v", e)
			}
			for _, a := range []*automation.Automation{handler, rules} {
				if d, err := a.Decide(t.Context(), e); err != nil || d.Kind != 0 {
					t.Errorf("%+v, %v", d, err)
				}
			}
		}
	}
	tell()
	move(buyer, market.Fulfil)
	tell()
	if len(keys) != 4 || keys[0] != keys[1] || keys[0] != keys[2] || keys[0] != keys[3] || keys[0] == "" {
		t.Errorf("keys %q", keys)
	}
}
