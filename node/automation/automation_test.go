package automation_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"openmesh/node/automation"
	"openmesh/node/automation/strategy"
	"openmesh/node/handlers"
	"openmesh/node/handlers/capability"
	"openmesh/protocols/identity"
	"openmesh/protocols/market"
	"openmesh/protocols/market/document"
	"openmesh/protocols/protocoltest"
	"openmesh/protocols/wire"
)

// talk is a negotiation that is being made.
type talk struct {
	t             *testing.T
	now           time.Time
	buyer, seller *protocoltest.Agent
	rfp           *market.Signed
	n             *market.Negotiation
}

func newTalk(t *testing.T, capability string) *talk {
	t.Helper()
	now := time.Now().UTC().Truncate(time.Second)
	k := &talk{t: t, now: now, buyer: protocoltest.NewAgent(t, identity.FirstPrivateRealm, now), seller: protocoltest.NewAgent(t, identity.FirstPrivateRealm, now)}
	rfp := &market.RFP{
		Schema: document.SchemaRFP, Buyer: k.buyer.Agent, Item: "rates", Quantity: 10, Price: market.PriceRange{Currency: "EUR"},
		Capability: capability, Deadline: now.Add(time.Hour), Created: now,
	}
	doc, err := rfp.Canonical()
	check(t, err)
	k.rfp = k.sign(k.buyer, market.Move{Kind: market.Request, Schema: document.SchemaRFP, Document: doc})
	return k
}

func (k *talk) sign(by *protocoltest.Agent, m market.Move) *market.Signed {
	k.t.Helper()
	m.Author, m.At = by.Agent, k.now
	s, err := market.Sign(m, by.Host, by.Certificate)
	check(k.t, err)
	return s
}

// offer makes an offer of one side.
func (k *talk) offer(by *protocoltest.Agent, kind market.Kind, price string) {
	k.t.Helper()
	if k.n == nil {
		n, err := market.NewNegotiation(k.rfp, k.seller.Agent)
		check(k.t, err)
		k.n = &n
	}
	amount, err := document.ParseDecimal(price)
	check(k.t, err)
	p := &market.Proposal{
		Schema: document.SchemaProposal, RFP: k.rfp.Hash, Seller: k.seller.Agent, Buyer: k.buyer.Agent, ValidUntil: k.now.Add(time.Hour),
		Terms: market.Terms{Price: market.Money{Amount: amount, Currency: "EUR"}, Quantity: 10},
	}
	doc, err := p.Canonical()
	check(k.t, err)
	to := k.seller.Agent
	if by == k.seller {
		to = k.buyer.Agent
	}
	m := k.sign(by, market.Move{Kind: kind, RFP: k.rfp.Hash, Prev: k.n.Head(), To: to, Schema: document.SchemaProposal, Document: doc})
	next, _, err := k.n.Next(m, k.now)
	check(k.t, err)
	k.n = &next
}

func (k *talk) event(self *protocoltest.Agent) automation.Event {
	k.t.Helper()
	e, err := automation.EventOf(self.Agent, k.rfp, k.n, k.now)
	check(k.t, err)
	return e
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// folder writes files, by name.
func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		check(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	return dir
}

func open(t *testing.T, files map[string]string, rules ...string) (*automation.Automation, *handlers.Registry) {
	t.Helper()
	r := handlers.New(handlers.Config{})
	t.Cleanup(r.Close)
	cfg := automation.Config{Dir: folder(t, files), Registry: r}
	for _, text := range rules {
		rule, err := strategy.ParseRule(text)
		check(t, err)
		cfg.Sell = append(cfg.Sell, rule)
	}
	a, problems := automation.New(cfg)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	return a, r
}

// A handler is asked with the situation as JSON, and its answer is the decision.
func TestHandlerDecides(t *testing.T) {
	t.Parallel()
	var asked atomic.Pointer[map[string]any]
	var header atomic.Pointer[http.Header]
	answer := `{"move":"amend","document":{"terms":{"price":{"amount":"11.50","currency":"EUR"}}},"reason":"for you"}`
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		in := map[string]any{}
		if err := json.Unmarshal(body, &in); err != nil {
			t.Errorf("%s: %v", body, err)
		}
		asked.Store(&in)
		header.Store(&r.Header)
		io.WriteString(w, answer)
	}))
	defer server.Close()
	a, _ := open(t, map[string]string{"a.yaml": "on: market.proposal\nhandler: {http: {url: '" + server.URL + "'}}\n"})
	k := newTalk(t, "finance/fx-pricing")
	k.offer(k.seller, market.Propose, "12.00")
	k.offer(k.buyer, market.Counter, "10.00")
	d, err := a.Decide(t.Context(), k.event(k.seller))
	check(t, err)
	if d.Kind != market.Amend || !strings.Contains(string(d.Document), "11.50") || d.Reason != "for you" {
		t.Errorf("%+v", d)
	}
	in := *asked.Load()
	for name, want := range map[string]any{
		"on": "market.proposal", "rfp": k.rfp.Hash.ID(), "proposal": k.n.ID(), "role": "seller", "state": "countered", "turn": "seller", "round": 2.0,
		"buyer": string(k.buyer.Agent), "seller": string(k.seller.Agent),
	} {
		if in[name] != want {
			t.Errorf("%s is %v, want %v", name, in[name], want)
		}
	}
	offered := in["offer"].(map[string]any)["terms"].(map[string]any)["price"].(map[string]any)["amount"]
	own := in["own"].(map[string]any)["terms"].(map[string]any)["price"].(map[string]any)["amount"]
	if offered != "10.00" || own != "12.00" || in["request"].(map[string]any)["item"] != "rates" || len(in["moves"].([]any)) != 4 {
		t.Errorf("%v", in)
	}
	if h := *header.Load(); h.Get("x-mesh-capability") != "market.proposal" || h.Get("x-mesh-caller-agent") != string(k.buyer.Agent) || h.Get("x-mesh-idempotency-key") == "" {
		t.Errorf("headers %v", h)
	}
}

// What a handler does wrong decides nothing, and is told.
func TestHandlerAnswersNonsense(t *testing.T) {
	t.Parallel()
	var answer atomic.Pointer[string]
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text := *answer.Load()
		if text == "500" {
			w.WriteHeader(500)
		}
		if text == "parts" {
			w.Header().Set("Content-Type", "application/x-ndjson")
		}
		io.WriteString(w, text)
	}))
	defer server.Close()
	a, _ := open(t, map[string]string{"a.yaml": "on: market.rfp\nhandler: {http: {url: '" + server.URL + "'}}\n"})
	k := newTalk(t, "finance/fx-pricing")
	for text, want := range map[string]wire.Code{
		`{"move":"wait"}`: 0, `{}`: 0, `null`: 0, ``: 0, `{"move":"reject","reason":"no"}`: 0,
		`{"move":"accept"}`: wire.IllegalTransition, `{"move":"rfp"}`: wire.IllegalTransition, `{"move":"fulfil"}`: wire.IllegalTransition,
		`{"move":"buy"}`: wire.InvalidResponse, `{"moves":"wait"}`: wire.InvalidResponse, `[]`: wire.InvalidResponse, `wait`: wire.InvalidResponse,
		`{"move":"reject","reason":"` + strings.Repeat("x", 257) + `"}`:                     wire.InvalidResponse,
		`{"move":"propose","document":"` + strings.Repeat("x", automation.MaxAnswer) + `"}`: wire.InvalidResponse,
		"parts": wire.InvalidResponse, "500": wire.HandlerFailed,
	} {
		answer.Store(&text)
		d, err := a.Decide(t.Context(), k.event(k.seller))
		if (err == nil) != (want == 0) || err != nil && wire.CodeOf(err) != want {
			t.Errorf("%.60s: %v, want %s", text, err, want)
		}
		if (err != nil || !strings.Contains(text, "reject")) && (d.Kind != 0 || d.Document != nil) {
			t.Errorf("%.60s: %+v", text, d)
		}
		if err != nil && !strings.Contains(err.Error(), "a.yaml") {
			t.Errorf("it is not told which file: %v", err)
		}
	}
}

// Of the files for an occasion the one whose capability fits best is asked; where
// none is for it, the rules sell, and nobody buys.
func TestWhoDecides(t *testing.T) {
	t.Parallel()
	say := func(on, prefix, reason string) string {
		return "on: " + on + "\n" + prefix + "\nhandler: {exec: {command: [sh, -c, 'echo \"{\\\"move\\\":\\\"reject\\\",\\\"reason\\\":\\\"" + reason + "\\\"}\"']}}\n"
	}
	a, _ := open(t, map[string]string{
		"1.yaml": say("market.rfp", "capability: finance", "finance"), "2.yml": say("market.rfp", "capability: finance/fx-pricing", "fx"),
		"3.json": `{"on":"market.rfp","capability":"weather","handler":{"exec":{"command":["sh","-c","echo null"]}}}`,
		"readme": "not one of them", ".4.yaml": "nor this",
	}, "finance price=5 currency=EUR", "shop price=7 currency=EUR", "weather price=9 currency=EUR")
	for capability, want := range map[string]string{
		"finance/fx-pricing": "reject fx", "finance/loans": "reject finance", "finance": "reject finance",
		"shop/order": "propose", "weather": "wait", "other": "wait",
	} {
		k := newTalk(t, capability)
		d, err := a.Decide(t.Context(), k.event(k.seller))
		got := "wait"
		if d.Kind != 0 {
			got = strings.TrimSpace(d.Kind.String() + " " + d.Reason)
		}
		if err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", capability, got, err, want)
		}
	}
	k := newTalk(t, "shop/order")
	k.offer(k.seller, market.Propose, "7")
	if d, err := a.Decide(t.Context(), k.event(k.buyer)); err != nil || d.Kind != 0 {
		t.Errorf("the buyer: %+v, %v", d, err)
	}
	if d, err := a.Decide(t.Context(), k.event(k.seller)); err != nil || d.Kind != 0 {
		t.Errorf("out of turn: %+v, %v", d, err)
	}
	k.offer(k.buyer, market.Counter, "7")
	if d, err := a.Decide(t.Context(), k.event(k.seller)); err != nil || d.Kind != market.Accept {
		t.Errorf("the price is met: %+v, %v", d, err)
	}
}

// Once the buyer has changed its counteroffer an amendment is no answer.
func TestRuleAnswersAmendedCounteroffer(t *testing.T) {
	t.Parallel()
	a, _ := open(t, nil, "shop price=12.00 floor=9.00 step=0.50 currency=EUR rounds=3")
	k := newTalk(t, "shop")
	k.offer(k.seller, market.Propose, "12.00")
	k.offer(k.buyer, market.Counter, "9.50")
	k.offer(k.buyer, market.Amend, "10.00")
	d, err := a.Decide(t.Context(), k.event(k.seller))
	if err != nil || d.Kind != market.Counter || !strings.Contains(string(d.Document), `"amount":"11.50"`) {
		t.Errorf("%s %s, %v", d.Kind, d.Document, err)
	}
}

// A handler that does not answer is given up after half a minute, and more than so
// many are not asked at once.
func TestDecisionsAreBounded(t *testing.T) {
	k := newTalk(t, "shop")
	e := k.event(k.seller)
	dir := folder(t, map[string]string{"a.yaml": "on: market.rfp\nhandler: {api: {}}\n"})
	synctest.Test(t, func(t *testing.T) {
		r := handlers.New(handlers.Config{})
		a, problems := automation.New(automation.Config{Dir: dir, Registry: r})
		if problems != nil {
			t.Fatal(problems)
		}
		begin, errs := time.Now(), make(chan error, 2*automation.Concurrency)
		for range 2 * automation.Concurrency {
			go func() {
				_, err := a.Decide(context.Background(), e)
				errs <- err
			}()
		}
		synctest.Wait()
		for range automation.Concurrency {
			p, ok, err := r.Broker().Pull(t.Context(), []string{"market.rfp"}, time.Second)
			if err != nil || !ok || p.Request.Capability != "market.rfp" {
				t.Fatalf("%v, %v", ok, err)
			}
		}
		if _, ok, _ := r.Broker().Pull(t.Context(), nil, time.Second); ok {
			t.Error("one more was asked")
		}
		for range 2 * automation.Concurrency {
			if err := <-errs; err == nil {
				t.Error("decided")
			}
		}
		if took := time.Since(begin); took != automation.Timeout {
			t.Errorf("after %v", took)
		}
	})
}

// A program that pulls decides as one that is called.
func TestProgramPulls(t *testing.T) {
	t.Parallel()
	a, r := open(t, map[string]string{"a.yaml": "on: market.rfp\nhandler: {api: {}}\n"})
	go func() {
		p, ok, err := r.Broker().Pull(t.Context(), []string{"market.rfp"}, time.Minute)
		if err != nil || !ok {
			return
		}
		_ = r.Broker().Reply(t.Context(), p.ID, handlers.Reply{Response: &handlers.Response{Body: []byte(`{"move":"propose","document":{}}`)}})
	}()
	k := newTalk(t, "shop")
	if d, err := a.Decide(t.Context(), k.event(k.seller)); err != nil || d.Kind != market.Propose {
		t.Errorf("%+v, %v", d, err)
	}
}

// Files that are wrong are told of, and the others decide.
func TestLoadProblems(t *testing.T) {
	t.Parallel()
	dir := folder(t, map[string]string{
		"a.yaml": "on: market.rfp\nhandler: {api: {}}\n", "b.yaml": "on: never\nhandler: {api: {}}\n",
		"c.yaml": "on: market.rfp\nhandler: {http: {url: 'http://localhost', headers: {a: '${NOT_SET_ANYWHERE}'}}}\n",
		"d.yaml": strings.Repeat("#", capability.MaxDocument+1),
	})
	check(t, os.Mkdir(filepath.Join(dir, "e.yaml"), 0o700))
	r := handlers.New(handlers.Config{Getenv: func(string) (string, bool) { return "", false }})
	_, problems := automation.New(automation.Config{Dir: dir, Registry: r})
	if len(problems) != 4 {
		t.Fatalf("%v", problems)
	}
	for _, name := range []string{"b.yaml:1:5", "c.yaml", "d.yaml", "e.yaml"} {
		found := false
		for _, err := range problems {
			found = found || strings.Contains(err.Error(), name)
		}
		if !found {
			t.Errorf("no word of %s in %v", name, problems)
		}
	}
	if _, problems := automation.New(automation.Config{Dir: filepath.Join(dir, "none"), Registry: r}); problems != nil {
		t.Errorf("without a folder: %v", problems)
	}
}
