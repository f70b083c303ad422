package document

import (
	"encoding/json"
	"errors"
	"math/big"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"pgregory.net/rapid"

	"openmesh/protocols/wire"
)

const (
	agentA = "did:key:z6Mkon3Necd6NkkyfoGoHxid2znGc59LU3K7mubaRcFbLfLX"
	agentB = "did:key:z6MkvRXNYcE7MMduynWTgeKbDaT1iijDSC8pZqXZc8rHPrf2"
)

// Each file has texts that people write and their canonical forms, or the code and
// pointer with which they are refused.
func TestCanonical(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ in, want string }{
		{` { "b" : 1 , "a" : [ true , null ] } `, `{"a":[true,null],"b":1}`},
		{`{"\u20ac":"€","\r":"CR","\ufb33":"D","1":"one","\ud83d\ude00":"smile","\u0080":"control","\u00f6":"o"}`,
			"{\"\\r\":\"CR\",\"1\":\"one\",\"\u0080\":\"control\",\"ö\":\"o\",\"€\":\"€\",\"😀\":\"smile\",\"\ufb33\":\"D\"}"}, // RFC 8785, 3.2.3
		{`"\u0001\b\t\n\f\r\"\\\/\u007f\u2028<&>"`, "\"\\u0001\\b\\t\\n\\f\\r\\\"\\\\/\u007f\u2028<&>\""},
		{`-12`, `-12`},
		{`9007199254740991`, `9007199254740991`},
		{`"\ud83d\ude00"`, `"😀"`},
		{`{}`, `{}`},
	} {
		got, err := Canonical([]byte(c.in), MaxDocument)
		if err != nil || string(got) != c.want {
			t.Errorf("%s: %s, %v", c.in, got, err)
		}
		if err := CheckCanonical(got, MaxDocument); err != nil {
			t.Errorf("%s: %v", got, err)
		}
	}
}

func TestCanonicalRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		in      string
		code    wire.Code
		pointer string
	}{
		{``, wire.Malformed, ""},
		{`{} {}`, wire.Malformed, ""},
		{`{"a":01}`, wire.Malformed, ""},
		{`{"a":0x10}`, wire.Malformed, ""},
		{`[1,]`, wire.Malformed, ""},
		{"\"\xff\"", wire.Malformed, ""},
		{`"\ud800"`, wire.Malformed, ""},
		{`"\udc00\ud800"`, wire.Malformed, ""},
		{`"\ud800\n"`, wire.Malformed, ""},
		{`{"a":{"b":1,"b":1}}`, wire.InvalidRequest, "/a/b"},
		{`{"a":1,"\u0061":1}`, wire.InvalidRequest, "/a"},
		{`{"a/b~":[0,1.5]}`, wire.InvalidRequest, "/a~1b~0/1"},
		{`[-0]`, wire.InvalidRequest, "/0"},
		{`[1e2]`, wire.InvalidRequest, "/0"},
		{`[9007199254740992]`, wire.InvalidRequest, "/0"},
		{`[123456789012345678901234567890]`, wire.InvalidRequest, "/0"},
		{strings.Repeat("[", 33) + strings.Repeat("]", 33), wire.InvalidRequest, strings.Repeat("/0", 32)},
		{`"` + strings.Repeat("x", MaxDocument) + `"`, wire.TooLarge, ""},
	} {
		_, err := Canonical([]byte(c.in), MaxDocument)
		e, ok := errors.AsType[*wire.Error](err)
		if !ok || e.Code != c.code || c.pointer != "" && !slices.Contains(e.Pointers, c.pointer) {
			t.Errorf("%.60s: %v, want %s at %s", c.in, err, c.code, c.pointer)
		}
	}
}

func TestDecimal(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		amount string
		n      int64
		want   string
	}{
		{"12.50", 3, "37.50"}, {"0.01", 5, "0.05"}, {"0.00000001", 1, "0.00000001"}, {"1", 1e9, "1000000000"},
		{"999999999999999.99999999", 1e9, "999999999999999999999990.00000000"}, {"0.10", 0, "0.00"}, {"0", 7, "0"},
	} {
		d, err := ParseDecimal(c.amount)
		if err != nil || d.Mul(c.n).String() != c.want {
			t.Errorf("%s × %d = %s, %v; want %s", c.amount, c.n, d.Mul(c.n), err, c.want)
		}
	}
	for _, bad := range []string{"", "-1", "+1", "01", "1.", ".5", "1e3", " 1", "1,5", "1.123456789", "٣", strings.Repeat("9", 25), "1\n"} {
		if d, err := ParseDecimal(bad); err == nil || !d.IsZero() {
			t.Errorf("%q is read as %s", bad, d)
		}
	}
}

// Decimals are the rational numbers that they look like.
func TestDecimalIsExact(t *testing.T) {
	t.Parallel()
	number := rapid.StringMatching(`(0|[1-9][0-9]{0,14})(\.[0-9]{1,8})?`)
	rapid.Check(t, func(t *rapid.T) {
		a, b, n := number.Draw(t, "a"), number.Draw(t, "b"), rapid.Int64Range(0, 1e9).Draw(t, "n")
		x, errX := ParseDecimal(a)
		y, errY := ParseDecimal(b)
		if errX != nil || errY != nil {
			t.Fatal(errX, errY)
		}
		rat := func(s string) *big.Rat {
			r, _ := new(big.Rat).SetString(s)
			return r
		}
		if x.Cmp(y) != rat(a).Cmp(rat(b)) {
			t.Errorf("Cmp(%s, %s) = %d", a, b, x.Cmp(y))
		}
		product := x.Mul(n)
		if rat(product.String()).Cmp(new(big.Rat).Mul(rat(a), new(big.Rat).SetInt64(n))) != 0 {
			t.Errorf("%s × %d = %s", a, n, product)
		}
		if again, err := ParseDecimal(product.String()); err != nil || again != product {
			t.Errorf("%s is not read again: %v", product, err)
		}
	})
}

// Each file of testdata is a document, by its first part; each further part changes
// members and says where the result is refused.
func TestDocuments(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) < 4 {
		t.Fatal("no testdata", files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var base map[string]any
			if err := json.Unmarshal(archive.Files[0].Data, &base); err != nil {
				t.Fatal(err)
			}
			name := base["schema"].(string)
			if err := Check(name, rewritten(t, archive.Files[0].Data, nil)); err != nil {
				t.Error(err)
			}
			for _, f := range archive.Files[1:] {
				changes := map[string]json.RawMessage{}
				if err := json.Unmarshal(f.Data, &changes); err != nil {
					t.Fatal(f.Name, err)
				}
				refusedAt(t, name, rewritten(t, archive.Files[0].Data, changes), f.Name)
			}
		})
	}
}

// rewritten returns text in canonical form with other values at some pointers; null
// removes one.
func rewritten(t *testing.T, text []byte, changes map[string]json.RawMessage) []byte {
	t.Helper()
	var root any
	if err := json.Unmarshal(text, &root); err != nil {
		t.Fatal(err)
	}
	for at, value := range changes {
		object := root.(map[string]any)
		steps := strings.Split(at, "/")[1:]
		for _, s := range steps[:len(steps)-1] {
			object = object[s].(map[string]any)
		}
		last := steps[len(steps)-1]
		if object[last] = value; string(value) == "null" {
			delete(object, last)
		}
	}
	text, err := json.Marshal(root)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := Canonical(text, MaxDocument)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// refusedAt checks that a document is refused at exactly the pointers listed.
func refusedAt(t *testing.T, name string, doc []byte, pointers string) {
	t.Helper()
	err := Check(name, doc)
	if pointers == "ok" {
		if err != nil {
			t.Error(err)
		}
		return
	}
	e, ok := errors.AsType[*wire.Error](err)
	if !ok || e.Code != wire.InvalidRequest {
		t.Errorf("%s: %v", pointers, err)
		return
	}
	if diff := cmp.Diff(strings.Fields(pointers), e.Pointers); diff != "" {
		t.Errorf("%s\n-want +got:\n%s", err, diff)
	}
}

// The bytes of a built-in schema never change: these are their CIDs.
func TestSchemasKeepTheirCIDs(t *testing.T) {
	t.Parallel()
	got := map[string]string{}
	for _, s := range Schemas() {
		got[s.Name] = s.CID
		if !isCID(s.CID) || CID(s.Text) != s.CID || !json.Valid(s.Text) {
			t.Errorf("%s: %s", s.Name, s.CID)
		}
	}
	want := map[string]string{
		"market/contract@v2.0.1": "bafkreicwekyat4flnue4maszqfdtrc5kgithluyhk47oowgu3jocnxwgem",
		"market/proposal@v1.0.0": "bafkreihyqr2owlrlv2herkdksuzlgnsqyxb7az63ocg3jv2lbzn245hdfq",
		"market/proposal@v2.1.0": "bafkreib4kcyw5yxazo46s25eevv2vorebqsncqvwkpb4fgvul5pmfx6dwm",
		"market/rfp@v1.0.0":      "bafkreie74d554gdedi3vxacyp6vnm5b5l2bizc3h4v4o4zzgl6ng2d4xva",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestCheckUnknownSchema(t *testing.T) {
	t.Parallel()
	if err := Check("market/rfp@v3.0.0", []byte("{}")); wire.CodeOf(err) != wire.NoCommonSchema {
		t.Error(err)
	}
}

func TestCurrencies(t *testing.T) {
	t.Parallel()
	for _, code := range []string{"EUR", "USD", "JPY", "KWD", "XAU", "ZWG"} {
		if !IsCurrency(code) {
			t.Errorf("%s is none", code)
		}
	}
	for _, code := range []string{"", "eur", "EU", "EURO", "DEM", "XXX", "XTS", "E R", "R U", "ISO", "SIX", "AED AFN"} {
		if IsCurrency(code) {
			t.Errorf("%q is one", code)
		}
	}
}

func TestTranslationLosses(t *testing.T) {
	t.Parallel()
	newer := proposal()
	newer.Details = json.RawMessage(`{"grade":"S235"}`)
	newer.Terms.Delivery = Delivery{By: time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC), Terms: "DAP"}
	doc, err := newer.Canonical()
	if err != nil {
		t.Fatal(err)
	}
	older, losses, err := translations().Translate(doc, SchemaProposal, SchemaProposalV1)
	if err != nil || len(losses) != 1 || losses[0].Pointer != "/details" {
		t.Fatal(losses, err)
	}
	if older, err = Canonical(older, MaxDocument); err != nil {
		t.Fatal(err)
	}
	back, err := ParseProposal(SchemaProposalV1, older)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := Diff(newer, back), []Change{{"/details", `{"grade":"S235"}`, ""}}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestDiff(t *testing.T) {
	t.Parallel()
	a, b := proposal(), proposal()
	b.Terms.Price.Amount = Decimal{"10.0"}
	if got := Diff(a, b); len(got) != 0 {
		t.Errorf("10 is not 10.0: %v", got)
	}
	b.Terms.Price.Amount, b.Note, b.Terms.Quantity = Decimal{"9"}, "last word", 3
	want := []Change{{"/note", "", `"last word"`}, {"/terms/price/amount", `"10"`, `"9"`}, {"/terms/quantity", "2", "3"}}
	if got := Diff(a, b); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func proposal() *Proposal {
	return &Proposal{
		Schema: SchemaProposal, RFP: Hash{1}, Seller: agentA, Buyer: agentB, ValidUntil: time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC),
		Terms: Terms{Price: Money{Decimal{"10"}, "EUR"}, Quantity: 2},
	}
}

func TestValidateDetails(t *testing.T) {
	t.Parallel()
	text := []byte(`{"type":"object","required":["grade"],"properties":{"grade":{"type":"string"}}}`)
	if err := ValidateDetails(text, json.RawMessage(`{"grade":"S235"}`)); err != nil {
		t.Error(err)
	}
	err := ValidateDetails(text, json.RawMessage(`{"grade":1}`))
	if e, ok := errors.AsType[*wire.Error](err); !ok || e.Code != wire.InvalidRequest || !slices.Equal(e.Pointers, []string{"/details/grade"}) {
		t.Error(err)
	}
	if err := ValidateDetails([]byte(`{"type":7}`), json.RawMessage(`{}`)); wire.CodeOf(err) != wire.InvalidArgument {
		t.Error(err)
	}
}

func TestHash(t *testing.T) {
	t.Parallel()
	h := Hash{0xab, 1}
	if got, err := ParseHash(h.String()); err != nil || got != h || len(h.ID()) != 32 {
		t.Error(got, err)
	}
	for _, bad := range []string{"", "AB", strings.ToUpper(h.String()), h.String() + "00", strings.Repeat("g", 64)} {
		if _, err := ParseHash(bad); wire.CodeOf(err) != wire.Malformed {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// What is read is written the same, whatever the document.
func FuzzDocument(f *testing.F) {
	doc, err := proposal().Canonical()
	if err != nil {
		f.Fatal(err)
	}
	for i := range names() {
		f.Add(doc, uint8(i))
	}
	f.Fuzz(func(t *testing.T, doc []byte, which uint8) {
		name := names()[int(which)%len(names())]
		err := Check(name, doc)
		if err != nil {
			if wire.CodeOf(err) == wire.Internal {
				t.Errorf("refused without a code: %v", err)
			}
			return
		}
		switch name {
		case SchemaRFP:
			_, err = ParseRFP(doc)
		case SchemaContract:
			_, err = ParseContract(doc)
		default:
			_, err = ParseProposal(name, doc)
		}
		if err != nil {
			t.Errorf("%s is checked but cannot be read: %v\n%s", name, err, doc)
		}
	})
}

func FuzzCanonical(f *testing.F) {
	f.Add([]byte(`{"b":[1,"\ud83d\ude00"],"a":null}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		once, err := Canonical(text, MaxDocument)
		if err != nil {
			return
		}
		twice, err := Canonical(once, 6*MaxDocument)
		if err != nil || string(twice) != string(once) {
			t.Errorf("%s becomes %s: %v", once, twice, err)
		}
		if !json.Valid(once) {
			t.Errorf("not JSON: %s", once)
		}
	})
}
