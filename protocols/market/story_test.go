package market_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"openmesh/protocols/market"
	. "openmesh/protocols/market/markettest"
)

// telling is a negotiation as both sides see it, and what is between them.
type telling struct {
	t      *testing.T
	agents map[string]*Agent
	sees   map[string]market.Negotiation
	clock  map[string]time.Duration // ahead of the story's time
	mail   map[string]*market.Signed
	now    time.Time
}

// Stories of two sides. Commands:
//
//	begin [deadline=10m] [buyer=5s] [seller=-5s]     clocks ahead by so much
//	SIDE MOVE [as=name] [price=] [quantity=] [for=1h]   moves, and puts it in the mail
//	deliver NAME…                                    to the other side
//	wait DURATION
//	show                                             both sides
func TestStories(t *testing.T) {
	t.Parallel()
	datadriven.Walk(t, "testdata/story", func(t *testing.T, path string) {
		var s *telling
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			if d.Cmd == "begin" {
				s = begin(t, d)
				return s.show()
			}
			return s.do(d)
		})
	})
}

func argument(d *datadriven.TestData, key, otherwise string) string {
	for _, a := range d.CmdArgs {
		if a.Key == key && len(a.Vals) == 1 {
			return a.Vals[0]
		}
	}
	return otherwise
}

func begin(t *testing.T, d *datadriven.TestData) *telling {
	buyer, seller := NewAgent(t, 1), NewAgent(t, 2)
	n, err := market.NewNegotiation(buyer.Post(t, NewRFP(buyer.ID, span(t, argument(d, "deadline", "10m")))), seller.ID)
	if err != nil {
		t.Fatal(err)
	}
	return &telling{
		t: t, now: Start, mail: map[string]*market.Signed{},
		agents: map[string]*Agent{"buyer": buyer, "seller": seller},
		sees:   map[string]market.Negotiation{"buyer": n, "seller": n},
		clock:  map[string]time.Duration{"buyer": span(t, argument(d, "buyer", "0s")), "seller": span(t, argument(d, "seller", "0s"))},
	}
}

func span(t *testing.T, s string) time.Duration {
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (s *telling) do(d *datadriven.TestData) string {
	switch d.Cmd {
	case "buyer", "seller":
		return s.move(d)
	case "deliver":
		var out strings.Builder
		for _, name := range d.CmdArgs {
			m := s.mail[name.Key]
			to := s.sees["buyer"].RoleOf(m.To).String()
			out.WriteString(s.apply(to, m))
		}
		return out.String()
	case "wait":
		s.now = s.now.Add(span(s.t, d.CmdArgs[0].Key))
		return ""
	}
	return s.show()
}

func (s *telling) move(d *datadriven.TestData) string {
	kind := d.CmdArgs[0].Key
	k, err := market.ParseKind(kind)
	if err != nil {
		s.t.Fatal(err)
	}
	o := Offer{Price: argument(d, "price", "")}
	fmt.Sscan(argument(d, "quantity", "0"), &o.Quantity)
	at := s.now.Add(s.clock[d.Cmd])
	o.Until = at.Add(span(s.t, argument(d, "for", "1h")))
	m := s.agents[d.Cmd].Move(s.t, s.sees[d.Cmd], k, at, o)
	s.mail[argument(d, "as", kind)] = m
	return s.apply(d.Cmd, m)
}

func (s *telling) apply(side string, m *market.Signed) string {
	n, res, err := s.sees[side].Next(m, s.now.Add(s.clock[side]))
	if err != nil {
		return fmt.Sprintf("%s: %v\n", side, err)
	}
	s.sees[side] = n
	var out strings.Builder
	fmt.Fprintf(&out, "%s: %s", side, n.State(s.now.Add(s.clock[side])))
	if res.Duplicate {
		out.WriteString(" (known)")
	}
	for _, lost := range res.Superseded {
		fmt.Fprintf(&out, ", drops %s", lost.Kind)
	}
	for _, c := range res.Changes {
		if c.Path != "/valid_until" {
			fmt.Fprintf(&out, ", %s from %s to %s", c.Path, c.From, c.To)
		}
	}
	return out.String() + "\n"
}

func (s *telling) show() string {
	var out strings.Builder
	for _, side := range []string{"buyer", "seller"} {
		n, now := s.sees[side], s.now.Add(s.clock[side])
		fmt.Fprintf(&out, "%s: %s, round %d", side, n.State(now), n.Round())
		if turn := n.Turn(now); turn != 0 {
			fmt.Fprintf(&out, ", turn of the %s", turn)
		}
		if a := n.Agreement(); a != nil && a.Conclude != nil {
			fmt.Fprintf(&out, ", contract over %s %s", a.Contract.Terms.Total, a.Contract.Terms.Price.Currency)
		}
		var may []string
		for _, k := range n.Legal(n.RoleOf(s.agents[side].ID), now) {
			may = append(may, k.String())
		}
		fmt.Fprintf(&out, ", may %s\n", strings.Join(may, " "))
	}
	return strings.ReplaceAll(out.String(), ", may \n", ", may do nothing\n")
}
