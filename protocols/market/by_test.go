package market_test

import (
	"errors"
	"testing"
	"time"

	"openmesh/protocols/identity"
	"openmesh/protocols/market"
	"openmesh/protocols/market/markettest"
	"openmesh/protocols/wire"
)

// Whoever parses certificates decides which are good, and is asked for each; what it
// returns is believed, but the signature by that certificate's key is verified.
func TestParseBy(t *testing.T) {
	t.Parallel()
	buyer, other := markettest.NewAgent(t, 1), markettest.NewAgent(t, 2)
	m := buyer.Post(t, markettest.NewRFP(buyer.ID, time.Hour))
	for name, tc := range map[string]struct {
		cert *identity.Certificate
		err  error
		want wire.Code
	}{
		"good":       {buyer.Certificate, nil, 0},
		"refused":    {nil, wire.KeySuperseded, wire.KeySuperseded},
		"of another": {other.Certificate, nil, wire.Unauthenticated},
		"other key":  {buyer.Rotated(t, 2).Certificate, nil, wire.Unauthenticated},
	} {
		asked := 0
		_, err := market.ParseBy(m.Raw, func(raw []byte) (*identity.Certificate, error) {
			asked++
			if string(raw) != string(buyer.Certificate.Raw) {
				t.Errorf("%s: asked for another certificate", name)
			}
			return tc.cert, tc.err
		})
		if asked != 1 || tc.want == 0 && err != nil || tc.want != 0 && wire.CodeOf(err) != tc.want {
			t.Errorf("%s: %v, asked %d times; want %v", name, err, asked, tc.want)
		}
	}
}

// A contract signed under a key that its author has replaced since still reaches the
// other side: with the author, and with nobody else.
func TestParseFrom(t *testing.T) {
	t.Parallel()
	d := newDeal(t).play("seller propose", "buyer accept")
	m := d.seller.Move(t, d.n, market.Conclude, d.now.Add(time.Second), markettest.Offer{})
	former, present := d.seller.Certificate, d.seller.Rotated(t, 2).Certificate
	for _, tc := range []struct {
		name   string
		author identity.AgentID
		peer   *identity.Certificate // of the session
		want   error
	}{
		{"by its author", d.seller.ID, present, nil},
		{"by who has the former key", d.seller.ID, former, wire.KeySuperseded},
		{"by another", d.buyer.ID, d.buyer.Certificate, wire.KeySuperseded},
		{"by another in the author's session", d.buyer.ID, present, wire.Unauthenticated},
	} {
		v := identity.NewVerifier(markettest.Realm, func() time.Time { return d.now })
		if _, err := v.Verify(present.Raw); err != nil {
			t.Fatal(err)
		}
		got, err := market.ParseFrom(m.Raw, tc.author, func(raw []byte) (*identity.Certificate, error) { return v.VerifyFormer(raw, tc.peer) })
		if !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
		if err != nil {
			continue
		}
		if n, _, err := d.n.Next(got, d.now.Add(time.Minute)); err != nil || n.State(d.now) != market.Contracted {
			t.Errorf("%s: %v, %v", tc.name, n.State(d.now), err)
		}
	}
}

// Certificates are verified once, and those that do not hold each time.
func TestRemembering(t *testing.T) {
	t.Parallel()
	parse, raw := market.Remembering(), markettest.NewAgent(t, 1).Certificate.Raw
	first, err := parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := parse(raw); err != nil || again != first {
		t.Errorf("parsed anew: %v", err)
	}
	bad := append([]byte(nil), raw...)
	bad[len(bad)-1] ^= 1
	for range 2 {
		if _, err := parse(bad); err == nil {
			t.Error("a damaged certificate was taken")
		}
	}
}
