package market_test

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"openmesh/protocols/market"
	. "openmesh/protocols/market/markettest"
	"openmesh/protocols/wire"
)

// deal is a negotiation that both sides see alike.
type deal struct {
	t             testing.TB
	buyer, seller *Agent
	n             market.Negotiation
	now           time.Time
}

func newDeal(t testing.TB) *deal {
	t.Helper()
	d := &deal{t: t, buyer: NewAgent(t, 1), seller: NewAgent(t, 2), now: Start}
	n, err := market.NewNegotiation(d.buyer.Post(t, NewRFP(d.buyer.ID, 10*time.Minute)), d.seller.ID)
	if err != nil {
		t.Fatal(err)
	}
	d.n = n
	return d
}

func (d *deal) agent(by market.Role) *Agent {
	if by == market.Buyer {
		return d.buyer
	}
	return d.seller
}

// move makes a move a second later; it has to be legal.
func (d *deal) move(by market.Role, k market.Kind) *market.Signed {
	d.t.Helper()
	d.now = d.now.Add(time.Second)
	m := d.agent(by).Move(d.t, d.n, k, d.now, Offer{})
	d.apply(m)
	return m
}

func (d *deal) apply(m *market.Signed) market.Result {
	d.t.Helper()
	n, res, err := d.n.Next(m, d.now)
	if err != nil {
		d.t.Fatalf("%s by the %s: %v", m.Kind, d.n.RoleOf(m.Author), err)
	}
	d.n = n
	return res
}

// play makes moves such as "seller propose".
func (d *deal) play(moves ...string) *deal {
	d.t.Helper()
	for _, text := range moves {
		by, kind, _ := strings.Cut(text, " ")
		k, err := market.ParseKind(kind)
		if err != nil {
			d.t.Fatal(err)
		}
		d.move(map[string]market.Role{"buyer": market.Buyer, "seller": market.Seller}[by], k)
	}
	return d
}

// places are all states with either offeror, how to get there, and what each side may
// do there. What is not named is illegal.
var places = []struct {
	state         string
	moves         []string
	buyer, seller string
	late          bool // after the deadline
}{
	{state: "rfp", buyer: "cancel", seller: "propose reject"},
	{state: "expired", late: true},
	{state: "proposed", moves: []string{"seller propose"}, buyer: "counter accept reject cancel", seller: "amend withdraw"},
	{state: "expired", moves: []string{"seller propose"}, late: true},
	{state: "amended", moves: []string{"seller propose", "seller amend"}, buyer: "counter accept reject cancel", seller: "amend withdraw"},
	{state: "countered", moves: []string{"seller propose", "buyer counter"}, buyer: "amend withdraw cancel", seller: "counter accept reject amend"},
	{state: "countered", moves: []string{"seller propose", "buyer counter", "seller counter"}, buyer: "counter accept reject cancel amend", seller: "amend withdraw"},
	{state: "amended", moves: []string{"seller propose", "buyer counter", "buyer amend"}, buyer: "amend withdraw cancel", seller: "counter accept reject"},
	{state: "amended", moves: []string{"seller propose", "buyer counter", "seller amend"}, buyer: "counter accept reject cancel", seller: "amend withdraw"},
	{state: "accepted", moves: []string{"seller propose", "buyer accept"}, seller: "contract expire reject"},
	{state: "accepted", moves: []string{"seller propose", "buyer accept"}, seller: "contract expire reject", late: true},
	{state: "accepted", moves: []string{"seller propose", "buyer counter", "seller accept"}, buyer: "contract expire reject"},
	{state: "contracted", moves: []string{"seller propose", "buyer accept", "seller contract"}, buyer: "fulfil fail", seller: "fulfil fail"},
	{state: "contracted", moves: []string{"seller propose", "buyer accept", "seller contract"}, buyer: "fulfil fail", seller: "fulfil fail", late: true},
	{state: "settling", moves: []string{"seller propose", "buyer accept", "seller contract", "seller fulfil"}, buyer: "fulfil fail"},
	{state: "settling", moves: []string{"seller propose", "buyer accept", "seller contract", "buyer fulfil"}, seller: "fulfil fail"},
	{state: "fulfilled", moves: []string{"seller propose", "buyer accept", "seller contract", "buyer fulfil", "seller fulfil"}},
	{state: "failed", moves: []string{"seller propose", "buyer accept", "seller contract", "buyer fulfil", "seller fail"}},
	{state: "failed", moves: []string{"seller propose", "buyer accept", "seller contract", "buyer fail"}},
	{state: "withdrawn", moves: []string{"seller propose", "seller withdraw"}},
	{state: "rejected", moves: []string{"seller reject"}},
	{state: "rejected", moves: []string{"seller propose", "buyer accept", "seller reject"}},
	{state: "cancelled", moves: []string{"buyer cancel"}},
	{state: "cancelled", moves: []string{"seller propose", "buyer cancel"}},
	{state: "expired", moves: []string{"seller propose", "buyer accept", "seller expire"}},
}

// Every move of either side in every state is in the list above, or refused with the
// names of state and move, and changes nothing.
func TestEveryMoveInEveryState(t *testing.T) {
	t.Parallel()
	reached := map[string]bool{}
	for _, p := range places {
		reached[p.state] = true
		t.Run(p.state+" after "+strings.Join(p.moves, ", "), func(t *testing.T) {
			t.Parallel()
			d := newDeal(t).play(p.moves...)
			if p.late {
				d.now = d.now.Add(2 * time.Hour)
			}
			if got := d.n.State(d.now).String(); got != p.state {
				t.Fatalf("state %s, want %s", got, p.state)
			}
			for _, by := range []market.Role{market.Buyer, market.Seller} {
				allowed := strings.Fields(map[market.Role]string{market.Buyer: p.buyer, market.Seller: p.seller}[by])
				checkLegal(t, d, by, allowed)
				for k := market.Propose; k <= market.Fail; k++ {
					try(t, d, by, k, slices.Contains(allowed, k.String()))
				}
			}
		})
	}
	for s := market.Requested; s <= market.Expired; s++ {
		if !reached[s.String()] {
			t.Errorf("state %s is not tried", s)
		}
	}
}

func checkLegal(t *testing.T, d *deal, by market.Role, allowed []string) {
	t.Helper()
	var legal []string
	for _, k := range d.n.Legal(by, d.now) {
		legal = append(legal, k.String())
	}
	slices.Sort(legal)
	want := slices.Sorted(slices.Values(allowed))
	if !slices.Equal(legal, want) {
		t.Errorf("the %s may %v, want %v", by, legal, want)
	}
}

func try(t *testing.T, d *deal, by market.Role, k market.Kind, legal bool) {
	t.Helper()
	m := d.agent(by).Move(t, d.n, k, d.now.Add(time.Millisecond), Offer{}) // not one that was made before
	next, _, err := d.n.Next(m, d.now)
	switch {
	case legal && err != nil:
		t.Errorf("%s by the %s: %v", k, by, err)
	case legal && next.Head() != m.Hash:
		t.Errorf("%s by the %s is not the head", k, by)
	case legal:
		if _, res, err := next.Next(m, d.now); err != nil || !res.Duplicate {
			t.Errorf("%s by the %s again: %+v, %v", k, by, res, err)
		}
	case wire.CodeOf(err) == wire.HandlerUnavailable && (k == market.Fulfil || k == market.Fail):
		t.Errorf("%s by the %s waits for something: %v", k, by, err)
	case wire.CodeOf(err) != wire.IllegalTransition || next.Head() != d.n.Head() || next.State(d.now) != d.n.State(d.now):
		t.Errorf("%s by the %s: %v, state %s", k, by, err, next.State(d.now))
	default:
		for _, word := range []string{k.String(), by.String(), d.n.State(d.now).String()} {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%s by the %s: %q does not say %s", k, by, err, word)
			}
		}
	}
}

func TestDiagramInDocs(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "```mermaid\n")
	inDocs, _, _ := strings.Cut(rest, "```")
	if inDocs != market.Diagram() {
		t.Errorf("the diagram in protocols/README.md should be\n%s", market.Diagram())
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	for k := market.Request; k <= market.Fail; k++ {
		if got, err := market.ParseKind(k.String()); got != k || err != nil {
			t.Errorf("ParseKind(%s) = %v, %v", k, got, err)
		}
	}
	for s := market.Requested; s <= market.Expired; s++ {
		if got, err := market.ParseState(s.String()); got != s || err != nil {
			t.Errorf("ParseState(%s) = %v, %v", s, got, err)
		}
	}
	for _, bad := range []string{"", "bid", "RFP"} {
		if _, err := market.ParseKind(bad); wire.CodeOf(err) != wire.InvalidArgument {
			t.Errorf("ParseKind(%q): %v", bad, err)
		}
	}
}
