package contract_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"openmesh/protocols/market"
	"openmesh/protocols/market/contract"
	"openmesh/protocols/market/document"
	"openmesh/protocols/market/marketpb"
	. "openmesh/protocols/market/markettest"
	"openmesh/protocols/wire"
)

var update = flag.Bool("update", false, "write golden vectors anew")

// agreed is a contract after a counteroffer, with checkpoints of both sides; the
// seller has a new key by the time that it signs.
func agreed(t testing.TB) market.Negotiation {
	t.Helper()
	buyer, seller := NewAgent(t, 1), NewAgent(t, 2)
	n, err := market.NewNegotiation(buyer.Post(t, NewRFP(buyer.ID, time.Hour)), seller.ID)
	if err != nil {
		t.Fatal(err)
	}
	n = next(t, n, seller.Move(t, n, market.Propose, Start.Add(time.Second), Offer{Price: "12.00"}))
	n = next(t, n, buyer.Move(t, n, market.Counter, Start.Add(2*time.Second), Offer{Price: "9.50"}))
	n = next(t, n, amendment(t, n, seller))
	accept := acceptance(t, n, buyer)
	if err := contract.Check(n, accept.Document, buyer.Certificate); err != nil {
		t.Fatal(err)
	}
	n = next(t, n, accept)
	return next(t, n, seller.Rotated(t, 2).Move(t, n, market.Conclude, Start.Add(5*time.Second), Offer{}))
}

func next(t testing.TB, n market.Negotiation, m *market.Signed) market.Negotiation {
	t.Helper()
	n, _, err := n.Next(m, m.At)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func amendment(t testing.TB, n market.Negotiation, seller *Agent) *market.Signed {
	m := seller.Move(t, n, market.Amend, Start.Add(3*time.Second), Offer{Price: "10.25"}).Move
	m.Checkpoint = seller.Checkpoint(t, 9, market.Hash{9}, m.At)
	return seller.Sign(t, m)
}

func acceptance(t testing.TB, n market.Negotiation, buyer *Agent) *market.Signed {
	t.Helper()
	return accepting(t, n, buyer, func(cps contract.Checkpoints) contract.Checkpoints { return cps })
}

// accepting is an acceptance whose contract has other checkpoints than it should.
func accepting(t testing.TB, n market.Negotiation, buyer *Agent, change func(contract.Checkpoints) contract.Checkpoints) *market.Signed {
	t.Helper()
	at := Start.Add(4500 * time.Millisecond)
	own := buyer.Checkpoint(t, 7, market.Hash{7}, at)
	cps := change(contract.Checkpoints{
		Buyer:  document.NewCheckpoint(7, market.Hash{7}, own),
		Seller: document.NewCheckpoint(9, market.Hash{9}, n.Table().Checkpoint),
	})
	_, doc, err := contract.Draft(n, buyer.Certificate, n.Table().Certificate, cps, at)
	if err != nil {
		t.Fatal(err)
	}
	signature, err := contract.Sign(doc, buyer.Host)
	if err != nil {
		t.Fatal(err)
	}
	return buyer.Sign(t, market.Move{
		Kind: market.Accept, RFP: n.RFP().Hash, Prev: n.Head(), Author: buyer.ID, To: n.Seller(), At: at, Schema: document.SchemaContract,
		Document: doc, ContractSignature: signature, Checkpoint: own,
	})
}

func export(t testing.TB) []byte {
	t.Helper()
	text, err := contract.Export(agreed(t))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// The golden export is that of agents 1 and 2 of package markettest. Another
// implementation must accept it; a change of its bytes is a change of the protocol.
func TestGoldenExport(t *testing.T) {
	t.Parallel()
	const name = "testdata/contract.json"
	got := export(t)
	if *update {
		if err := os.WriteFile(name, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("exported anew it is\n%s", got)
	}
	r := contract.VerifyFile(want)
	if !r.OK || r.Reason != "" || r.ID != agreed(t).Agreement().ID || len(r.Parties) != 2 {
		t.Errorf("%+v", r)
	}
	for i, s := range r.Signatures {
		if !s.OK || s.Agent != r.Parties[i] || s.KeyVersion != uint32(i+1) {
			t.Errorf("signature %d: %+v", i, s)
		}
	}
	if c := r.Contract; c.Terms.Total.String() != "410.00" || c.Offeror != "seller" || !c.ValidUntil.Equal(c.ValidFrom.Add(market.Term)) {
		t.Errorf("%+v", c)
	}
}

func TestExportNeedsBothSignatures(t *testing.T) {
	t.Parallel()
	buyer, seller := NewAgent(t, 1), NewAgent(t, 2)
	n, err := market.NewNegotiation(buyer.Post(t, NewRFP(buyer.ID, time.Hour)), seller.ID)
	if err != nil {
		t.Fatal(err)
	}
	n = next(t, n, amendment0(t, n, seller))
	n = next(t, n, acceptance(t, n, buyer))
	if _, err := contract.Export(n); wire.CodeOf(err) != wire.NotFound {
		t.Error(err)
	}
}

func amendment0(t testing.TB, n market.Negotiation, seller *Agent) *market.Signed {
	m := seller.Move(t, n, market.Propose, Start.Add(time.Second), Offer{}).Move
	m.Checkpoint = seller.Checkpoint(t, 9, market.Hash{9}, m.At)
	return seller.Sign(t, m)
}

// What follows the contract is not of it: the file stays the same.
func TestExportEndsWithContract(t *testing.T) {
	t.Parallel()
	n := agreed(t)
	settled := next(t, n, NewAgent(t, 1).Move(t, n, market.Fulfil, Start.Add(time.Minute), Offer{}))
	got, err := contract.Export(settled)
	if err != nil || !bytes.Equal(got, export(t)) {
		t.Error("the export has changed", err)
	}
}

// Each byte changed makes the file false, as does one left out or doubled, and the
// report says where.
func TestEveryByteCounts(t *testing.T) {
	t.Parallel()
	text := otherExport(t)
	if r := contract.VerifyFile(text); !r.OK {
		t.Fatalf("%+v", r)
	}
	step := 1
	if testing.Short() {
		step = 37
	}
	var all sync.WaitGroup
	indices := make(chan int)
	for range 2 {
		all.Go(func() {
			for i := range indices {
				forge(t, text, i)
			}
		})
	}
	for i := 0; i < len(text); i += step {
		indices <- i
	}
	close(indices)
	all.Wait()
}

func forge(t *testing.T, text []byte, i int) {
	flipped := bytes.Clone(text)
	flipped[i] ^= 1 << (i % 8)
	forgeries := map[string][]byte{"flipped": flipped}
	if i%5 == 0 { // to take less time
		forgeries["cut"] = append(bytes.Clone(text[:i]), text[i+1:]...)
		forgeries["doubled"] = append(append(bytes.Clone(text[:i+1]), text[i]), text[i+1:]...)
	}
	for what, forged := range forgeries {
		r := contract.VerifyFile(forged)
		if r.OK || r.Reason == "" || r.Pointer == "" && r.Offset < 0 {
			t.Errorf("byte %d %s: %+v", i, what, r)
		}
	}
}

// Nothing can be put between what is signed: neither into an envelope nor into the
// certificate in it, of which each says how long it is.
func TestNothingCanBeInserted(t *testing.T) {
	t.Parallel()
	text := otherExport(t)
	f := decode(t, text)
	for i, given := range append([]any{f["evidence"].(map[string]any)["rfp"]}, evidenceOf(f)...) {
		raw, err := base64.StdEncoding.DecodeString(given.(string))
		var env marketpb.Envelope
		if err := errors.Join(err, proto.Unmarshal(raw, &env)); err != nil {
			t.Fatal(err)
		}
		forged := inserted(raw)
		for _, certificate := range inserted(env.Certificate) {
			env.Certificate = certificate
			b, err := proto.Marshal(&env)
			if err != nil {
				t.Fatal(err)
			}
			forged = append(forged, b)
		}
		for k, b := range forged {
			if _, err := market.Parse(b); err == nil || k%100 == 0 && contract.VerifyFile(withEnvelope(t, text, i, b)).OK {
				t.Errorf("envelope %d is taken as %x", i, b)
			}
		}
	}
}

// inserted returns b with an unknown field at each place.
func inserted(b []byte) (all [][]byte) {
	for at := range len(b) + 1 {
		all = append(all, slices.Insert(slices.Clone(b), at, 0x78, 1)) // field 15
	}
	return all
}

// withEnvelope is an export with another i-th envelope, of which the first is the
// request.
func withEnvelope(t *testing.T, text []byte, i int, envelope []byte) []byte {
	t.Helper()
	return rewrite(t, text, func(f map[string]any) {
		given := base64.StdEncoding.EncodeToString(envelope)
		if i == 0 {
			f["evidence"].(map[string]any)["rfp"] = given
		} else {
			evidenceOf(f)[i-1] = given
		}
	})
}

// Forgeries that are well-formed, each with the place at which they are found out.
func TestForgeries(t *testing.T) {
	t.Parallel()
	other := decode(t, otherExport(t))
	for _, c := range []struct {
		name, pointer string
		signed        string // which signatures still hold: buyer, seller
		change        func(f map[string]any)
	}{
		{"price", "/contract/terms/price/amount", "no no", func(f map[string]any) {
			f["contract"].(map[string]any)["terms"].(map[string]any)["price"].(map[string]any)["amount"] = "99.00"
		}},
		{"another format", "/format", "", func(f map[string]any) { f["format"] = "openmesh-contract/2" }},
		{"signature of another contract", "/signatures", "no yes", func(f map[string]any) {
			f["signatures"].([]any)[0] = other["signatures"].([]any)[0]
		}},
		{"signatures in another order", "/signatures", "yes yes", func(f map[string]any) {
			s := f["signatures"].([]any)
			s[0], s[1] = s[1], s[0]
		}},
		{"a signature is missing", "/signatures", "", func(f map[string]any) { f["signatures"] = f["signatures"].([]any)[:1] }},
		{"a move is missing", "/evidence/moves/1", "yes yes", func(f map[string]any) {
			moves := evidenceOf(f)
			f["evidence"].(map[string]any)["moves"] = append(append([]any{}, moves[0]), moves[2:]...)
		}},
		{"without the contract move", "/evidence/moves", "yes no", func(f map[string]any) {
			f["evidence"].(map[string]any)["moves"] = evidenceOf(f)[:4]
		}},
		{"a move twice", "/evidence/moves", "yes yes", func(f map[string]any) {
			f["evidence"].(map[string]any)["moves"] = append(evidenceOf(f), evidenceOf(f)[4])
		}},
		{"no moves", "/evidence/moves", "", func(f map[string]any) { f["evidence"].(map[string]any)["moves"] = []any{} }},
		{"moves of another negotiation", "/evidence/moves/0", "yes no", func(f map[string]any) {
			f["evidence"].(map[string]any)["moves"] = evidenceOf(other)
		}},
		{"all the evidence of another contract", "/contract/", "yes no", func(f map[string]any) { f["evidence"] = other["evidence"] }},
		{"more than there should be", "/note", "", func(f map[string]any) { f["note"] = "x" }},
		{"contract of another schema", "/contract/extra", "", func(f map[string]any) { f["contract"].(map[string]any)["extra"] = "x" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := contract.VerifyFile(rewrite(t, export(t), c.change))
			if r.OK || !strings.HasPrefix(r.Pointer, c.pointer) {
				t.Errorf("%+v, want %s", r, c.pointer)
			}
			var signed []string
			for _, s := range r.Signatures {
				signed = append(signed, map[bool]string{true: "yes", false: "no"}[s.OK])
			}
			if got := strings.Join(signed, " "); got != c.signed {
				t.Errorf("signatures hold: %s, want %s", got, c.signed)
			}
		})
	}
}

// A contract that says of a log what the moves do not say proves nothing, though both
// have signed it.
func TestOtherStateOfALog(t *testing.T) {
	t.Parallel()
	buyer, seller := NewAgent(t, 1), NewAgent(t, 2)
	n, err := market.NewNegotiation(buyer.Post(t, NewRFP(buyer.ID, time.Hour)), seller.ID)
	if err != nil {
		t.Fatal(err)
	}
	n = next(t, n, amendment0(t, n, seller))
	accept := accepting(t, n, buyer, func(cps contract.Checkpoints) contract.Checkpoints {
		cps.Seller = &market.Checkpoint{Size: 9e15, Text: cps.Seller.Text}
		return cps
	})
	signature, err := contract.Sign(accept.Document, seller.Host)
	if err != nil {
		t.Fatal(err)
	}
	conclude := seller.Sign(t, market.Move{
		Kind: market.Conclude, RFP: n.RFP().Hash, Prev: accept.Hash, Author: seller.ID, To: buyer.ID, At: accept.At, ContractSignature: signature,
	})
	text := rewrite(t, export(t), func(f map[string]any) {
		f["contract"] = json.RawMessage(accept.Document)
		f["signatures"] = []any{
			map[string]any{"agent": buyer.ID, "key_version": 1, "value": accept.ContractSignature},
			map[string]any{"agent": seller.ID, "key_version": 1, "value": signature},
		}
		f["evidence"] = map[string]any{"rfp": n.RFP().Raw, "moves": [][]byte{n.Table().Raw, accept.Raw, conclude.Raw}}
	})
	r := contract.VerifyFile(text)
	if r.OK || r.Pointer != "/evidence/moves/1" || !strings.Contains(r.Reason, "9000000000000000") || !r.Signatures[0].OK || !r.Signatures[1].OK {
		t.Errorf("%+v", r)
	}
}

func evidenceOf(f map[string]any) []any { return f["evidence"].(map[string]any)["moves"].([]any) }

// otherExport is of a contract of the same buyer with another seller.
func otherExport(t *testing.T) []byte {
	t.Helper()
	buyer, seller := NewAgent(t, 1), NewAgent(t, 3)
	n, err := market.NewNegotiation(buyer.Post(t, NewRFP(buyer.ID, 2*time.Hour)), seller.ID)
	if err != nil {
		t.Fatal(err)
	}
	n = next(t, n, seller.Move(t, n, market.Propose, Start.Add(time.Second), Offer{}))
	n = next(t, n, buyer.Move(t, n, market.Accept, Start.Add(2*time.Second), Offer{}))
	n = next(t, n, seller.Move(t, n, market.Conclude, Start.Add(3*time.Second), Offer{}))
	text, err := contract.Export(n)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func decode(t *testing.T, text []byte) (f map[string]any) {
	t.Helper()
	if err := json.Unmarshal(text, &f); err != nil {
		t.Fatal(err)
	}
	return f
}

func rewrite(t *testing.T, text []byte, change func(map[string]any)) []byte {
	t.Helper()
	f := decode(t, text)
	change(f)
	text, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	text, err = document.Canonical(text, contract.MaxFile)
	if err != nil {
		t.Fatal(err)
	}
	return append(text, '\n')
}

func TestVerifyFileShapes(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "\n", "{}\n", "null\n", "[]\n", `{"format":"openmesh-contract/1"}` + "\n", strings.Repeat("[", 1<<20), "{}"} {
		if r := contract.VerifyFile([]byte(text)); r.OK || r.Reason == "" {
			t.Errorf("%.20q: %+v", text, r)
		}
	}
	spaced := append([]byte(" "), export(t)...)
	if r := contract.VerifyFile(spaced); r.OK || r.Offset != 0 {
		t.Errorf("%+v", r)
	}
}

func FuzzVerifyFile(f *testing.F) {
	text := export(f)
	f.Add(text)
	f.Add([]byte("{}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r := contract.VerifyFile(b); r.OK != bytes.Equal(b, text) && r.OK {
			t.Errorf("accepted:\n%s", b)
		} else if !r.OK && r.Reason == "" {
			t.Error("refused without a reason")
		}
	})
}
