package market_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"openmesh/protocols/identity"
	"openmesh/protocols/market"
	"openmesh/protocols/market/document"
	"openmesh/protocols/market/marketpb"
	. "openmesh/protocols/market/markettest"
	"openmesh/protocols/wire"
)

// seal signs a body as it is.
func seal(t testing.TB, a *Agent, body []byte) []byte {
	t.Helper()
	signature, err := a.Host.Sign(append([]byte("openmesh/market/move/1\x00"), body...))
	if err != nil {
		t.Fatal(err)
	}
	return envelope(t, &marketpb.Envelope{Body: body, Signature: signature, Certificate: a.Certificate.Raw})
}

func envelope(t testing.TB, m proto.Message) []byte {
	t.Helper()
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// edited is the body of a valid offer after a change.
func edited(t testing.TB, s *market.Signed, change func(*marketpb.Move)) []byte {
	t.Helper()
	var env marketpb.Envelope
	var m marketpb.Move
	if err := errors.Join(proto.Unmarshal(s.Raw, &env), proto.Unmarshal(env.Body, &m)); err != nil {
		t.Fatal(err)
	}
	change(&m)
	return envelope(t, &m)
}

// Moves that lie about who says what, each signed as well as its author could.
func TestParseRefuses(t *testing.T) {
	t.Parallel()
	d := newDeal(t)
	buyer, seller := d.buyer, d.seller
	offer := seller.Move(t, d.n, market.Propose, Start, Offer{})
	var env marketpb.Envelope
	if err := proto.Unmarshal(offer.Raw, &env); err != nil {
		t.Fatal(err)
	}
	rewritten := func(change func(*marketpb.Move)) []byte { return seal(t, seller, edited(t, offer, change)) }
	document := func(old, new string) []byte {
		return rewritten(func(m *marketpb.Move) { m.Document = bytes.Replace(m.Document, []byte(old), []byte(new), 1) })
	}
	for _, c := range []struct {
		name    string
		raw     []byte
		code    wire.Code
		pointer string
	}{
		{"nothing", nil, wire.Unsupported, ""},
		{"too large", make([]byte, market.MaxEnvelope+1), wire.TooLarge, ""},
		{"signed by another", seal(t, buyer, env.Body), wire.Unauthenticated, ""},
		{"certificate of another agent", envelope(t, &marketpb.Envelope{Body: env.Body, Signature: env.Signature, Certificate: buyer.Certificate.Raw}), wire.Unauthenticated, ""},
		{"certificate of another key", envelope(t, &marketpb.Envelope{Body: env.Body, Signature: env.Signature, Certificate: seller.Rotated(t, 2).Certificate.Raw}), wire.Unauthenticated, ""},
		{"no signature", envelope(t, &marketpb.Envelope{Body: env.Body, Certificate: env.Certificate}), wire.Unauthenticated, ""},
		{"unknown field in the envelope", append(slices.Clone(offer.Raw), 0x20, 1), wire.Malformed, ""},
		{"field twice", append(slices.Clone(offer.Raw), offer.Raw...), wire.Malformed, ""},
		{"unknown field in the body", seal(t, seller, append(slices.Clone(env.Body), 0x98, 0x06, 1)), wire.Malformed, ""},
		{"another version", rewritten(func(m *marketpb.Move) { m.Version = 2 }), wire.Unsupported, ""},
		{"no kind", rewritten(func(m *marketpb.Move) { m.Kind = 0 }), wire.Malformed, ""},
		{"unknown kind", rewritten(func(m *marketpb.Move) { m.Kind = 13 }), wire.Malformed, ""},
		{"negative kind", rewritten(func(m *marketpb.Move) { m.Kind = -1 }), wire.Malformed, ""},
		{"kind 257", rewritten(func(m *marketpb.Move) { m.Kind = 257 }), wire.Malformed, ""},
		{"request that follows", rewritten(func(m *marketpb.Move) { m.Kind = 1 }), wire.Malformed, ""},
		{"no hash of the request", rewritten(func(m *marketpb.Move) { m.Rfp = nil }), wire.Malformed, ""},
		{"short hash", rewritten(func(m *marketpb.Move) { m.Prev = m.Prev[:31] }), wire.Malformed, ""},
		{"zero hash", rewritten(func(m *marketpb.Move) { m.Prev = make([]byte, 32) }), wire.Malformed, ""},
		{"to itself", rewritten(func(m *marketpb.Move) { m.To = m.Author }), wire.Malformed, ""},
		{"to nobody", rewritten(func(m *marketpb.Move) { m.To = "" }), wire.Malformed, ""},
		{"author is none", rewritten(func(m *marketpb.Move) { m.Author = "did:key:z6Mk" }), wire.Malformed, ""},
		{"before 1970", rewritten(func(m *marketpb.Move) { m.At = -1 }), wire.Malformed, ""},
		{"end of time", rewritten(func(m *marketpb.Move) { m.At = 1<<63 - 1 }), wire.Malformed, ""},
		{"signature where none belongs", rewritten(func(m *marketpb.Move) { m.ContractSignature = make([]byte, 64) }), wire.Malformed, ""},
		{"checkpoint of nothing", rewritten(func(m *marketpb.Move) { m.Checkpoint = []byte("x") }), wire.Malformed, ""},
		{"checkpoint of another's log", rewritten(func(m *marketpb.Move) { m.Checkpoint = buyer.Checkpoint(t, 1, market.Hash{}, Start) }), wire.Malformed, ""},
		{"large checkpoint", rewritten(func(m *marketpb.Move) { m.Checkpoint = make([]byte, market.MaxCheckpoint+1) }), wire.TooLarge, ""},
		{"long reason", rewritten(func(m *marketpb.Move) { m.Reason = strings.Repeat("x", market.MaxReason+1) }), wire.TooLarge, ""},
		{"document that does not belong", rewritten(func(m *marketpb.Move) { m.Kind = 5 }), wire.Malformed, ""},
		{"no document", rewritten(func(m *marketpb.Move) { m.Document = nil }), wire.Malformed, ""},
		{"document of another schema", rewritten(func(m *marketpb.Move) { m.Schema = "market/rfp@v1.0.0" }), wire.NoCommonSchema, ""},
		{"document of no schema", rewritten(func(m *marketpb.Move) { m.Schema = "market/proposal@v9.0.0" }), wire.NoCommonSchema, ""},
		{"not canonical", document(`{"buyer"`, `{ "buyer"`), wire.Malformed, ""},
		{"member twice", document(`{"buyer"`, `{"buyer":"x","buyer"`), wire.InvalidRequest, "/buyer"},
		{"huge number", document(`"quantity":40`, `"quantity":1e999`), wire.InvalidRequest, "/terms/quantity"},
		{"number over 2^53", document(`"quantity":40`, `"quantity":9007199254740993`), wire.InvalidRequest, "/terms/quantity"},
		{"fraction", document(`"quantity":40`, `"quantity":40.5`), wire.InvalidRequest, "/terms/quantity"},
		{"quantity 0", document(`"quantity":40`, `"quantity":0`), wire.InvalidRequest, "/terms/quantity"},
		{"too much", document(`"quantity":40`, `"quantity":1000000001`), wire.InvalidRequest, "/terms/quantity"},
		{"amount as number", document(`"amount":"10.00"`, `"amount":10`), wire.InvalidRequest, "/terms/price/amount"},
		{"amount with a sign", document(`"amount":"10.00"`, `"amount":"-10.00"`), wire.InvalidRequest, "/terms/price/amount"},
		{"amount with an exponent", document(`"amount":"10.00"`, `"amount":"1e3"`), wire.InvalidRequest, "/terms/price/amount"},
		{"amount with a line feed", document(`"amount":"10.00"`, `"amount":"10.00\n"`), wire.InvalidRequest, "/terms/price/amount"},
		{"no currency", document(`"EUR"`, `"EUX"`), wire.InvalidRequest, "/terms/price/currency"},
		{"currency of the past", document(`"EUR"`, `"DEM"`), wire.InvalidRequest, "/terms/price/currency"},
		{"30 February", document(`"valid_until":"2026-03-01T13`, `"valid_until":"2026-02-30T13`), wire.InvalidRequest, "/valid_until"},
		{"expired when made", document(`"valid_until":"2026-03-01T13`, `"valid_until":"2026-03-01T11`), wire.InvalidRequest, "/valid_until"},
		{"unknown member", document(`{"buyer"`, `{"a":1,"buyer"`), wire.InvalidRequest, "/a"},
		{"parties exchanged", document(`"seller":"`+string(seller.ID), `"seller":"`+string(NewAgent(t, 3).ID)), wire.InvalidRequest, "/seller"},
		{"of another request", document(`"rfp":"`, `"rfp":"00`), wire.InvalidRequest, "/rfp"},
		{"deep", document(`{"buyer"`, `{"a":`+strings.Repeat("[", 5000)+strings.Repeat("]", 5000)+`,"buyer"`), wire.InvalidRequest, "/a" + strings.Repeat("/0", 31)},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, err := market.Parse(c.raw)
			e, ok := errors.AsType[*wire.Error](err)
			if !ok || e.Code != c.code {
				t.Fatalf("%v, want %s", err, c.code)
			}
			if c.pointer != "" && !slices.Contains(e.Pointers, c.pointer) {
				t.Errorf("pointers %v, want %s", e.Pointers, c.pointer)
			}
		})
	}
}

// Moves that are good by themselves, at the wrong place.
func TestNextRefuses(t *testing.T) {
	t.Parallel()
	d := newDeal(t).play("seller propose", "buyer counter")
	third := NewAgent(t, 3)
	elsewhere, err := market.NewNegotiation(d.n.RFP(), third.ID)
	if err != nil {
		t.Fatal(err)
	}
	rfp := NewRFP(d.buyer.ID, time.Hour)
	rfp.Item = "something else"
	another, err := market.NewNegotiation(d.buyer.Post(t, rfp), d.seller.ID)
	if err != nil {
		t.Fatal(err)
	}
	turned := d.seller.Post(t, NewRFP(d.seller.ID, time.Hour))
	now := d.now.Add(time.Second)
	for _, c := range []struct {
		name string
		move *market.Signed
		code wire.Code
	}{
		{"of another seller", third.Move(t, elsewhere, market.Propose, now, Offer{}), wire.Denied},
		{"of another request of the same two", d.seller.Move(t, another, market.Propose, now, Offer{}), wire.Denied},
		{"to another seller", d.buyer.Move(t, elsewhere, market.Cancel, now, Offer{}), wire.Denied},
		{"a request", turned, wire.Denied},
		{"of tomorrow", d.seller.Move(t, d.n, market.Counter, now.Add(24*time.Hour), Offer{}), wire.HandlerUnavailable},
		{"long before what it follows", d.seller.Move(t, d.n, market.Reject, now.Add(-time.Hour), Offer{}), wire.IllegalTransition},
	} {
		before := d.n.Head()
		n, _, err := d.n.Next(c.move, now)
		if wire.CodeOf(err) != c.code || n.Head() != before {
			t.Errorf("%s: %v, want %s", c.name, err, c.code)
		}
	}
}

// An acceptance whose contract is not what was offered, though its author signed it.
func TestAcceptOfOtherTerms(t *testing.T) {
	t.Parallel()
	d := newDeal(t).play("seller propose")
	at := d.now.Add(time.Second)
	good, doc, err := d.n.Draft(d.buyer.Certificate, d.seller.Certificate, market.Checkpoints{}, at)
	if err != nil {
		t.Fatal(err)
	}
	cheap, err := market.ParseDecimal("0.01")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		pointer string
		change  func(*market.Contract)
	}{
		{"", func(*market.Contract) {}},
		{"/terms/price/amount", func(c *market.Contract) { c.Terms.Price.Amount = cheap }},
		{"/terms/price/currency", func(c *market.Contract) { c.Terms.Price.Currency = "USD" }},
		{"/terms/total", func(c *market.Contract) { c.Terms.Total = cheap }},
		{"/terms/quantity", func(c *market.Contract) { c.Terms.Quantity++ }},
		{"/terms/item", func(c *market.Contract) { c.Terms.Item = "gold" }},
		{"/terms/delivery", func(c *market.Contract) { c.Terms.Delivery.Terms = "tomorrow" }},
		{"/terms/capability", func(c *market.Contract) { c.Terms.Capability = "metal/gold" }},
		{"/valid_until", func(c *market.Contract) { c.ValidUntil = c.ValidUntil.Add(time.Hour) }},
		{"/valid_from", func(c *market.Contract) { c.ValidFrom = c.ValidFrom.Add(-time.Second) }},
		{"/proposal", func(c *market.Contract) { c.Proposal[0] ^= 1 }},
		{"/offeror", func(c *market.Contract) { c.Offeror = "buyer" }},
		{"/seller/key_version", func(c *market.Contract) { c.Seller.KeyVersion = 2 }},
		{"/buyer/certificate", func(c *market.Contract) { c.Buyer.Certificate[0] ^= 1 }},
		{"/checkpoints/buyer", func(c *market.Contract) { c.Checkpoints.Buyer = document.NewCheckpoint(1, market.Hash{}, []byte("x")) }},
		{"/checkpoints/seller", func(c *market.Contract) { c.Checkpoints.Seller = document.NewCheckpoint(1, market.Hash{}, []byte("x")) }},
	} {
		changed := *good
		c.change(&changed)
		err := accept(t, d, &changed, at, d.buyer)
		if c.pointer == "" {
			if err != nil {
				t.Error(err)
			}
			continue
		}
		e, ok := errors.AsType[*wire.Error](err)
		if !ok || e.Code != wire.InvalidRequest || !slices.Contains(e.Pointers, c.pointer) {
			t.Errorf("%s: %v", c.pointer, err)
		}
	}
	if err := accept(t, d, good, at, NewAgent(t, 3)); wire.CodeOf(err) != wire.Unauthenticated {
		t.Errorf("contract signed by a stranger: %v", err)
	}
	if _, got, err := d.n.Draft(d.buyer.Certificate, d.seller.Certificate, market.Checkpoints{}, at); err != nil || !bytes.Equal(got, doc) {
		t.Error("drafted anew it is another", err)
	}
}

// A contract says of both logs what the moves say: neither side can have the other sign
// another state of a log, be it its own or the other's.
func TestAcceptOfOtherCheckpoints(t *testing.T) {
	t.Parallel()
	d := newDeal(t)
	offer := d.seller.Move(t, d.n, market.Propose, d.now, Offer{}).Move
	offer.Checkpoint = d.seller.Checkpoint(t, 9, market.Hash{9}, d.now)
	d.apply(d.seller.Sign(t, offer))
	at := d.now.Add(time.Second)
	own := d.buyer.Checkpoint(t, 7, market.Hash{7}, at)
	for _, c := range []struct {
		pointer string // to what the contract says otherwise than the moves
		change  func(*market.Checkpoints)
	}{
		{"", func(*market.Checkpoints) {}},
		{"/checkpoints/buyer/size", func(c *market.Checkpoints) { c.Buyer.Size = 9e15 }},
		{"/checkpoints/buyer/root", func(c *market.Checkpoints) { c.Buyer.Root = market.Hash{} }},
		{"/checkpoints/buyer/text", func(c *market.Checkpoints) { c.Buyer.Text = market.Hash{} }},
		{"/checkpoints/buyer", func(c *market.Checkpoints) { c.Buyer = nil }},
		{"/checkpoints/seller/size", func(c *market.Checkpoints) { c.Seller.Size = 9e15 }},
		{"/checkpoints/seller/root", func(c *market.Checkpoints) { c.Seller.Root = market.Hash{} }},
		{"/checkpoints/seller/text", func(c *market.Checkpoints) { c.Seller.Text = market.Hash{} }},
		{"/checkpoints/seller", func(c *market.Checkpoints) { c.Seller = nil }},
	} {
		cps := market.Checkpoints{
			Buyer: document.NewCheckpoint(7, market.Hash{7}, own), Seller: document.NewCheckpoint(9, market.Hash{9}, offer.Checkpoint),
		}
		c.change(&cps)
		_, doc, err := d.n.Draft(d.buyer.Certificate, d.seller.Certificate, cps, at)
		if err != nil {
			t.Fatal(err)
		}
		signature, err := market.SignContract(doc, d.buyer.Host)
		if err != nil {
			t.Fatal(err)
		}
		m := d.buyer.Sign(t, market.Move{
			Kind: market.Accept, RFP: d.n.RFP().Hash, Prev: d.n.Head(), Author: d.buyer.ID, To: d.seller.ID, At: at,
			Schema: document.SchemaContract, Document: doc, ContractSignature: signature, Checkpoint: own,
		})
		_, _, err = d.n.Next(m, at)
		e, _ := errors.AsType[*wire.Error](err)
		if c.pointer == "" && err != nil || c.pointer != "" && (e == nil || e.Code != wire.InvalidRequest || !slices.Contains(e.Pointers, c.pointer)) {
			t.Errorf("%q: %v", c.pointer, err)
		}
		theirs := strings.HasPrefix(c.pointer, "/checkpoints/seller")
		if err := d.n.CheckContract(doc, d.buyer.Certificate); theirs != (err != nil) {
			t.Errorf("%q: before it is signed: %v", c.pointer, err)
		}
	}
}

// accept applies an acceptance with the contract c, signed by signer.
func accept(t *testing.T, d *deal, c *market.Contract, at time.Time, signer *Agent) error {
	t.Helper()
	doc, err := c.Canonical()
	if err != nil {
		return err
	}
	signature, err := market.SignContract(doc, signer.Host)
	if err != nil {
		t.Fatal(err)
	}
	m, err := market.Sign(market.Move{
		Kind: market.Accept, RFP: d.n.RFP().Hash, Prev: d.n.Head(), Author: d.buyer.ID, To: d.seller.ID, At: at,
		Schema: document.SchemaContract, Document: doc, ContractSignature: signature,
	}, d.buyer.Host, d.buyer.Certificate)
	if err != nil {
		return err
	}
	_, _, err = d.n.Next(m, at)
	return err
}

// The offeror's signature has to be over this contract, with a key that is not older
// than that of its offer.
func TestConcludeNeedsItsSignature(t *testing.T) {
	t.Parallel()
	d := newDeal(t).play("seller propose", "buyer accept")
	at := d.now.Add(time.Second)
	m := d.seller.Move(t, d.n, market.Conclude, at, Offer{}).Move
	m.ContractSignature = make([]byte, 64)
	if _, _, err := d.n.Next(d.seller.Sign(t, m), at); wire.CodeOf(err) != wire.Unauthenticated {
		t.Error(err)
	}
	newer := d.seller.Rotated(t, 2)
	if _, _, err := d.n.Next(newer.Move(t, d.n, market.Conclude, at, Offer{}), at); err != nil {
		t.Errorf("with a newer key: %v", err)
	}
	late := newDeal(t)
	late.apply(newer.Move(t, late.n, market.Propose, late.now, Offer{}))
	late.play("buyer accept")
	if _, _, err := late.n.Next(late.seller.Move(t, late.n, market.Conclude, at, Offer{}), at); wire.CodeOf(err) != wire.KeySuperseded {
		t.Errorf("with an older key: %v", err)
	}
}

func TestTooManyOffers(t *testing.T) {
	t.Parallel()
	d := newDeal(t).play("seller propose")
	for range market.MaxRounds - 1 {
		d.move(market.Seller, market.Amend)
	}
	m := d.seller.Move(t, d.n, market.Amend, d.now.Add(time.Second), Offer{})
	if _, _, err := d.n.Next(m, m.At); wire.CodeOf(err) != wire.IllegalTransition {
		t.Error(err)
	}
	d.play("buyer accept", "seller contract")
}

// Next leaves the value that it is called on as it was.
func TestNegotiationIsAValue(t *testing.T) {
	t.Parallel()
	d := newDeal(t).play("seller propose")
	base, now := d.n, d.now.Add(time.Second)
	one, _, err := base.Next(d.buyer.Move(t, base, market.Counter, now, Offer{}), now)
	if err != nil {
		t.Fatal(err)
	}
	two, _, err := base.Next(d.buyer.Move(t, base, market.Reject, now, Offer{}), now)
	if err != nil {
		t.Fatal(err)
	}
	for want, n := range map[market.State]market.Negotiation{market.Proposed: base, market.Countered: one, market.Rejected: two} {
		if got := n.State(now); got != want {
			t.Errorf("state %s, want %s", got, want)
		}
	}
}

// An offer of the older version is read as the newer, and signed as it came.
func TestOfferOfOlderVersion(t *testing.T) {
	t.Parallel()
	d := newDeal(t)
	doc := `{"buyer":"` + string(d.buyer.ID) + `","currency":"EUR","delivery_by":"2026-03-20T00:00:00Z","expires":"2026-03-01T13:00:00Z","price":"9.90","quantity":3,"rfp":"` +
		d.n.RFP().Hash.String() + `","schema":"market/proposal@v1.0.0","seller":"` + string(d.seller.ID) + `"}`
	m := d.seller.Sign(t, market.Move{Kind: market.Propose, RFP: d.n.RFP().Hash, Prev: d.n.Head(), Author: d.seller.ID, To: d.buyer.ID,
		At: Start, Schema: document.SchemaProposalV1, Document: []byte(doc)})
	if o := m.Offer(); o.Schema != document.SchemaProposal || o.Terms.Total().String() != "29.70" {
		t.Errorf("%+v", o)
	}
	d.apply(m)
	d.play("buyer accept", "seller contract")
	if c := d.n.Agreement().Contract; c.Terms.Price.Amount.String() != "9.90" || !c.ValidUntil.Equal(time.Date(2026, 3, 20, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("%+v", c)
	}
}

// certified is an agent with another certificate for the same key.
func certified(t *testing.T, a *Agent, from, until time.Time) *Agent {
	t.Helper()
	c := *a.Certificate
	c.NotBefore, c.NotAfter = from, until
	cert, err := identity.IssueCertificate(a.Root, c)
	if err != nil {
		t.Fatal(err)
	}
	return &Agent{ID: a.ID, Root: a.Root, Host: a.Host, Certificate: cert}
}

// A move counts only if its certificate was valid at its time, live as well as in a
// file: else a party could get the other to sign a contract that no file can prove.
func TestCertificatesOfTheirTime(t *testing.T) {
	t.Parallel()
	d := newDeal(t).play("seller propose")
	at := d.now.Add(30 * time.Minute)
	accept := d.buyer.Move(t, d.n, market.Accept, at, Offer{}).Move
	for name, c := range map[string]struct {
		from, until time.Time
		want        error
	}{
		"valid":              {at.Add(-time.Hour), at.Add(time.Hour), nil},
		"by a clock behind":  {at.Add(identity.ClockSkew).Truncate(time.Second), at.Add(time.Hour), nil},
		"certified later":    {at.Add(30 * time.Minute), at.Add(time.Hour), wire.KeyExpired},
		"expired before":     {at.Add(-time.Hour), at.Truncate(time.Second), wire.KeyExpired},
		"backdated, expired": {at.Add(-2 * time.Hour), at.Add(-time.Hour), wire.KeyExpired},
	} {
		a := certified(t, d.buyer, c.from, c.until)
		_, doc, err := d.n.Draft(a.Certificate, d.seller.Certificate, market.Checkpoints{}, at)
		if err != nil {
			t.Fatal(err)
		}
		m := accept
		m.Document = doc
		if m.ContractSignature, err = market.SignContract(doc, a.Host); err != nil {
			t.Fatal(err)
		}
		if _, err := market.Sign(m, a.Host, a.Certificate); !errors.Is(err, c.want) {
			t.Errorf("%s: sign: %v, want %v", name, err, c.want)
		}
		body := edited(t, d.buyer.Sign(t, accept), func(p *marketpb.Move) { p.Document, p.ContractSignature = m.Document, m.ContractSignature })
		if _, err := market.Parse(seal(t, a, body)); !errors.Is(err, c.want) { // signed by who does not check it
			t.Errorf("%s: parse: %v, want %v", name, err, c.want)
		}
	}
}
