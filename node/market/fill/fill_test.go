package fill_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"openmesh/node/market/fill"
	deal "openmesh/protocols/market"
	"openmesh/protocols/market/document"
	"openmesh/protocols/wire"
)

var base = deal.Proposal{
	Schema: document.SchemaProposal, Seller: "seller", Buyer: "buyer",
	Terms:      deal.Terms{Price: deal.Money{Amount: must("9.00"), Currency: "EUR"}, Quantity: 10},
	ValidUntil: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC), Note: "as agreed",
}

const none = `"rfp":"0000000000000000000000000000000000000000000000000000000000000000"`

func must(s string) deal.Decimal {
	d, err := document.ParseDecimal(s)
	if err != nil {
		panic(err)
	}
	return d
}

// What is given counts, what is left out stays, and what is null goes; whose deal it is
// nobody gives.
func TestOffer(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ given, want string }{
		"nothing":   {`{}`, `{"buyer":"buyer","note":"as agreed",` + none + `,"schema":"market/proposal@v2.1.0","seller":"seller","terms":{"price":{"amount":"9.00","currency":"EUR"},"quantity":10},"valid_until":"2030-01-02T03:04:05Z"}`},
		"price":     {`{"terms":{"price":{"amount":"8"}}}`, `{"buyer":"buyer","note":"as agreed",` + none + `,"schema":"market/proposal@v2.1.0","seller":"seller","terms":{"price":{"amount":"8","currency":"EUR"},"quantity":10},"valid_until":"2030-01-02T03:04:05Z"}`},
		"no note":   {`{"note":null}`, `{"buyer":"buyer",` + none + `,"schema":"market/proposal@v2.1.0","seller":"seller","terms":{"price":{"amount":"9.00","currency":"EUR"},"quantity":10},"valid_until":"2030-01-02T03:04:05Z"}`},
		"a seller":  {`{"seller":"somebody else","note":null}`, `{"buyer":"buyer",` + none + `,"schema":"market/proposal@v2.1.0","seller":"seller","terms":{"price":{"amount":"9.00","currency":"EUR"},"quantity":10},"valid_until":"2030-01-02T03:04:05Z"}`},
		"old":       {`{"schema":"market/proposal@v1.0.0","price":"7","note":null}`, `{"buyer":"buyer",` + none + `,"schema":"market/proposal@v2.1.0","seller":"seller","terms":{"price":{"amount":"7","currency":"EUR"},"quantity":10},"valid_until":"2030-01-02T03:04:05Z"}`},
		"a new one": {`{"region":"eu","note":null}`, `{"buyer":"buyer","region":"eu",` + none + `,"schema":"market/proposal@v2.1.0","seller":"seller","terms":{"price":{"amount":"9.00","currency":"EUR"},"quantity":10},"valid_until":"2030-01-02T03:04:05Z"}`},
	} {
		got, err := fill.Offer(base, []byte(tc.given))
		if diff := cmp.Diff(tc.want, string(got)); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", name, err, diff)
		}
	}
}

func TestRequest(t *testing.T) {
	t.Parallel()
	got, err := fill.Request([]byte(`{"item":"x","buyer":"somebody else"}`), "me", base.ValidUntil)
	const want = `{"buyer":"me","created":"2030-01-02T03:04:05Z","item":"x","schema":"market/rfp@v1.0.0"}`
	if err != nil || string(got) != want {
		t.Errorf("%s, %v", got, err)
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	for _, given := range []string{``, `null`, `[]`, `"text"`, `{} {}`, `{`} {
		if _, err := fill.Offer(base, []byte(given)); wire.CodeOf(err) != wire.InvalidArgument && given != "" {
			t.Errorf("%s: %v", given, err)
		}
		if _, err := fill.Request([]byte(given), "me", base.ValidUntil); wire.CodeOf(err) != wire.InvalidArgument {
			t.Errorf("%s: %v", given, err)
		}
	}
}
