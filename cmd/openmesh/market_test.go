package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/node/api/openmesh/v1/openmeshv1connect"
	"openmesh/protocols/wire"
)

// localAPI answers calls of the market and the log with what a test says: one
// answer, or the messages of a stream, or an error. Of several answers to the same
// procedure the last goes on.
type localAPI struct {
	answers map[string][]any // by procedure without its package

	mu    sync.Mutex
	asked map[string]proto.Message // the last request
}

func (l *localAPI) next(procedure string, req any) (any, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	name := strings.TrimPrefix(procedure, "/openmesh.v1.")
	l.asked[name] = req.(proto.Message)
	queue := l.answers[name]
	if len(queue) == 0 {
		return nil, failing(wire.Errorf(wire.Unsupported, "%s was not expected", name))
	}
	if len(queue) > 1 {
		l.answers[name] = queue[1:]
	}
	if failed, ok := queue[0].(*wire.Error); ok {
		return nil, failing(failed)
	}
	return queue[0], nil
}

// failing is an error as the local API has it.
func failing(err *wire.Error) error {
	out := connect.NewError(connect.CodeUnknown, err)
	if d, err := connect.NewErrorDetail(api.Describe(err)); err == nil {
		out.AddDetail(d)
	}
	return out
}

func (l *localAPI) WrapUnary(connect.UnaryFunc) connect.UnaryFunc {
	return func(_ context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		answer, err := l.next(req.Spec().Procedure, req.Any())
		if err != nil {
			return nil, err
		}
		return answer.(connect.AnyResponse), nil
	}
}

func (l *localAPI) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (l *localAPI) WrapStreamingHandler(connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(_ context.Context, conn connect.StreamingHandlerConn) error {
		var req proto.Message = new(openmeshv1.WatchMarketRequest)
		if strings.HasSuffix(conn.Spec().Procedure, "/Export") {
			req = new(openmeshv1.ExportAuditRequest)
		}
		if err := conn.Receive(req); err != nil {
			return err
		}
		for {
			answer, err := l.next(conn.Spec().Procedure, req)
			if end := new(connect.Error); errors.As(err, &end) && strings.HasSuffix(end.Message(), "done") {
				return nil
			}
			if err != nil {
				return err
			}
			if err := conn.Send(answer); err != nil {
				return err
			}
		}
	}
}

// done ends a stream.
func done() any { return wire.Errorf(wire.Internal, "done") }

// serve runs the local API for a home until the test ends.
func (l *localAPI) serve(t *testing.T) (home string) {
	t.Helper()
	home, err := os.MkdirTemp("", "om") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(home) })
	l.asked = map[string]proto.Message{}
	mux := http.NewServeMux()
	mux.Handle(openmeshv1connect.NewMarketHandler(openmeshv1connect.UnimplementedMarketHandler{}, connect.WithInterceptors(l)))
	mux.Handle(openmeshv1connect.NewAuditHandler(openmeshv1connect.UnimplementedAuditHandler{}, connect.WithInterceptors(l)))
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Handler: mux, Protocols: protocols}
	socket, err := net.Listen("unix", filepath.Join(home, "api.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(socket) }()
	t.Cleanup(func() {
		server.Close()
		<-ended
	})
	return home
}

// spoken is what a command printed, and how it ended.
type spoken struct {
	out, err string
	exit     int
}

func speak(t *testing.T, home, in string, args ...string) spoken {
	t.Helper()
	var out, errs bytes.Buffer
	p := newProgram(strings.NewReader(in), &out, &errs, []string{"OPENMESH_HOME=" + home})
	exit := p.execute(t.Context(), args)
	return spoken{out.String(), errs.String(), exit}
}

const (
	testRFP      = "3f9a2000000000000000000000000001"
	testProposal = "b10c000000000000000000000000000b"
	testContract = "c0de00000000000000000000000000cc"
)

func request() *openmeshv1.RFP {
	return &openmeshv1.RFP{
		Rfp: testRFP, Buyer: testAgent, State: "open", Item: "pages", Quantity: 20, MinPrice: "2.00", MaxPrice: "12.50", Currency: "EUR",
		Capability: "text/translation", Deadline: "2026-11-23T06:00:00Z", Created: "2026-11-22T06:00:00Z", Direction: "sent", Asked: 2, Reached: 1,
		Json: `{"item":"pages","quantity":20}`,
	}
}

func negotiation() *openmeshv1.Proposal {
	return &openmeshv1.Proposal{
		Proposal: testProposal, Rfp: testRFP, Seller: testAgent, Buyer: "did:key:zBuyer", State: "countered", Round: 2, Turn: "seller",
		Price: "9.50", Currency: "EUR", Quantity: 20, Total: "190.00", Expires: "2026-11-22T07:00:00Z", Role: "seller", Offeror: "buyer", Unsent: 1,
		Json: `{"note":"<b>"}`,
		Moves: []*openmeshv1.Move{
			{Move: "propose", By: "seller", At: "2026-11-22T06:01:00Z", State: "proposed", Price: "11.00", Quantity: 20},
			{Move: "counter", By: "buyer", At: "2026-11-22T06:02:00Z", State: "countered", Price: "9.50", Quantity: 20,
				Changes: []*openmeshv1.Change{{Path: "/terms/price/amount", From: `"11.00"`, To: `"9.50"`}}},
			{Move: "amend", By: "seller", At: "2026-11-22T06:02:01Z", Superseded: true, Reason: "last word"},
		},
	}
}

func agreement() *openmeshv1.MarketContract {
	return &openmeshv1.MarketContract{
		Contract: testContract, Rfp: testRFP, Proposal: testProposal, Buyer: "did:key:zBuyer", Seller: testAgent, State: "contracted", Item: "pages",
		Price: "9.50", Currency: "EUR", Quantity: 20, Total: "190.00", Capability: "text/translation", Used: 3, Role: "buyer",
		ValidFrom: "2026-11-22T06:03:00Z", ValidUntil: "2026-12-22T06:03:00Z",
		Signatures:  []*openmeshv1.ContractSignature{{Agent: "did:key:zBuyer", Ok: true, KeyVersion: 2}, {Agent: testAgent, KeyVersion: 1}},
		Settlements: []*openmeshv1.Settlement{{Agent: "did:key:zBuyer", Outcome: "fulfilled", Reason: "all there", At: "2026-11-23T06:00:00Z"}},
	}
}

func moveTo(state string) any {
	return connect.NewResponse(&openmeshv1.MoveResponse{Proposal: testProposal, State: state, Round: 2, Contract: testContract, Delivered: true})
}

// Each command asks what it should, and says what it heard.
func TestMarketCommands(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name      string
		args, in  string
		procedure string
		answers   []any
		asked     proto.Message
		out, err  string // regular expressions
		exit      int
	}{
		{
			name: "post", args: "rfp post -", in: "item: pages\nquantity: 20\nprice: {max: \"12.50\"}\n", procedure: "PostRFP",
			answers: []any{connect.NewResponse(request())},
			asked:   &openmeshv1.PostRFPRequest{Json: `{"item": "pages", "quantity": 20, "price": {"max": "12.50"}}`},
			out:     `^request 3f9a2\S+ is open until 2026-11-23T06:00:00Z\n$`,
			err:     `2 providers of text/translation were found, 1 have the request; see: openmesh market proposals 3f9a2`,
		},
		{
			name: "post, before providers are found", args: "rfp post -", in: "item: pages", procedure: "PostRFP",
			answers: []any{connect.NewResponse(&openmeshv1.RFP{Rfp: testRFP, State: "open", Capability: "text/translation", Searching: true})},
			err:     `^providers of text/translation are being looked for, now and until the deadline; see: openmesh market proposals 3f9a2`,
		},
		{
			name: "post JSON", args: "--json rfp post -", in: "{\"quantity\":  20.0}", procedure: "PostRFP", answers: []any{connect.NewResponse(request())},
			asked: &openmeshv1.PostRFPRequest{Json: "{\"quantity\":  20.0}"},
			out:   `^{"rfp":"3f9a2\d+","buyer":.*"quantity":20,.*"document":{"item":"pages","quantity":20},"hash":"","searching":false,"awaited":0}\n$`, err: `^$`,
		},
		{
			name: "post what is no request", args: "rfp post -", in: "item: x", procedure: "PostRFP",
			answers: []any{&wire.Error{Code: wire.InvalidRequest, Message: "market/rfp@v1.0.0: price is missing", Pointers: []string{"/price"}}},
			err:     `^error: market/rfp.*\n  at /price\nhint: compare with: openmesh market rfp example`, exit: exitFailed,
		},
		{
			name: "list", args: "rfp list --received --all --limit 7", procedure: "ListRFPs",
			answers: []any{connect.NewResponse(&openmeshv1.ListRFPsResponse{Rfps: []*openmeshv1.RFP{request()}})},
			asked:   &openmeshv1.ListRFPsRequest{Direction: "received", All: true, Limit: 7},
			out:     `^RFP\tDIRECTION\t.*\n3f9a2\d+\tsent\tdid:key:\S+\topen\tpages\t20\t0\t2.00–12.50 EUR\ttext/translation\t0\t2026-11-23T06:00:00Z\n$`,
		},
		{
			name: "show a request", args: "rfp show 3f9a20", procedure: "ShowRFP", answers: []any{connect.NewResponse(request())},
			asked: &openmeshv1.ShowRFPRequest{Rfp: "3f9a20"},
			out:   `(?s)rfp\t3f9a2\d+\nstate\topen\n.*sent to\t2 agents, 1 have it\n\n{\n  "item": "pages",\n  "quantity": 20\n}\n$`,
		},
		{
			name: "no such request", args: "rfp show 3f9a20", procedure: "ShowRFP", answers: []any{wire.Errorf(wire.NotFound, "no request 3f9a20")},
			err: `hint: see what there is: openmesh market rfp list --all`, exit: exitNotFound,
		},
		{
			name: "cancel", args: "rfp cancel 3f9a20 --reason enough", procedure: "CancelRFP", answers: []any{connect.NewResponse(request())},
			asked: &openmeshv1.CancelRFPRequest{Rfp: "3f9a20", Reason: "enough"}, out: `^request 3f9a2\d+ is open\n$`,
		},
		{
			name: "proposals", args: "proposals 3f9a20", procedure: "ListProposals",
			answers: []any{connect.NewResponse(&openmeshv1.ListProposalsResponse{Proposals: []*openmeshv1.Proposal{negotiation()}})},
			asked:   &openmeshv1.ListProposalsRequest{Rfp: "3f9a20", Limit: 100},
			out:     `^PROPOSAL\tRFP\t.*\nb10c0\w+\t3f9a2\d+\tseller\tdid:\S+\tcountered\t2\tseller\t9.50\tEUR\t20\t2026-11-22T07:00:00Z\n$`,
		},
		{
			name: "show a negotiation", args: "show b10c00", procedure: "ShowProposal", answers: []any{connect.NewResponse(negotiation())},
			asked: &openmeshv1.ShowProposalRequest{Proposal: "b10c00"},
			out: `(?s)offer\t9.50 EUR × 20 = 190.00 EUR\n.*unanswered\t1 moves.*\n\nAT\tBY\tMOVE.*\tcounter\tcountered\t9.50\t20\t` +
				`/terms/price/amount: "11.00" → "9.50"\n.*\tamend \(superseded\)\t\t\t\tlast word\n\n{\n  "note": "<b>"\n}\n$`,
		},
		{
			name: "propose", args: "propose 3f9a20 -", in: `{"terms":{}}`, procedure: "Propose", answers: []any{moveTo("proposed")},
			asked: &openmeshv1.ProposeRequest{Rfp: "3f9a20", Json: `{"terms":{}}`},
			out:   `^proposal b10c0\w+ is proposed \(round 2\)\n$`, err: `^the other side is to move; follow it with: openmesh market watch --proposal b10c`,
		},
		{
			name: "counter by flags", args: "counter b10c00 --price 9.00 --quantity 10 --note <ok>", procedure: "Counter", answers: []any{moveTo("countered")},
			asked: &openmeshv1.OfferRequest{Proposal: "b10c00", Json: `{"note":"\u003cok\u003e","terms":{"price":{"amount":"9.00"},"quantity":10}}`},
			out:   `is countered`, err: `the other side is to move`,
		},
		{
			name: "amend by file", args: "amend b10c00 -", in: "note: better", procedure: "Amend", answers: []any{moveTo("amended")},
			asked: &openmeshv1.OfferRequest{Proposal: "b10c00", Json: `{"note": "better"}`}, out: `is amended`, err: `the other side is to move`,
		},
		{name: "counter with nothing", args: "counter b10c00", err: `^error: what changes\?`, exit: exitUsage},
		{name: "counter twice", args: "counter b10c00 - --price 1", err: `^error: FILE and flags`, exit: exitUsage},
		{name: "amend by what is no YAML", args: "amend b10c00 -", in: "a: [1", err: `^error: -:1:4: .*\nhint: FILE is JSON or YAML`, exit: exitUsage},
		{
			name: "accept", args: "--json accept b10c00 --reason fine", procedure: "Accept", answers: []any{moveTo("accepted")},
			asked: &openmeshv1.MoveRequest{Proposal: "b10c00", Reason: "fine"},
			out:   `^{"proposal":"b10c0\w+","state":"accepted","round":2,"contract":"c0de0\w+","delivered":true}\n$`, err: `^$`,
		},
		{
			name: "accept, heard later", args: "accept b10c00", procedure: "Accept",
			answers: []any{connect.NewResponse(&openmeshv1.MoveResponse{Proposal: testProposal, State: "accepted"})},
			err:     `^the other side has not answered yet.*\nthe contract is signed by both once the other side answers; see: openmesh market show b10c`,
		},
		{
			name: "accept one's own", args: "accept b10c00", procedure: "Accept", answers: []any{wire.Errorf(wire.IllegalTransition, "proposed: the offeror cannot accept")},
			err: `hint: see its state, and whose turn it is: openmesh market show b10c00\n$`, exit: exitFailed,
		},
		{
			name: "accept what policy forbids", args: "accept b10c00", procedure: "Accept", answers: []any{wire.Errorf(wire.Denied, "not this one").WithHint("ask")},
			err: `hint: ask\n$`, exit: exitDenied,
		},
		{name: "reject", args: "reject b10c00", procedure: "Reject", answers: []any{moveTo("rejected")}, asked: &openmeshv1.MoveRequest{Proposal: "b10c00"}, out: `is rejected`, err: `^$`},
		{name: "withdraw", args: "withdraw b10c00", procedure: "Withdraw", answers: []any{moveTo("withdrawn")}, out: `is withdrawn`, err: `^$`},
		{
			name: "settle", args: "settle c0de00 failed --reason late", procedure: "Settle", answers: []any{moveTo("failed")},
			asked: &openmeshv1.SettleRequest{Proposal: "c0de00", Outcome: "failed", Reason: "late"}, out: `is failed`,
		},
		{name: "settle somehow", args: "settle c0de00 well", err: `^error: outcome "well": want fulfilled or failed`, exit: exitUsage},
		{
			name: "contracts", args: "contract list --all", procedure: "ListContracts",
			answers: []any{connect.NewResponse(&openmeshv1.ListContractsResponse{Contracts: []*openmeshv1.MarketContract{agreement()}})},
			asked:   &openmeshv1.ListContractsRequest{All: true, Limit: 100}, out: `\nc0de0\w+\tbuyer\t.*\tcontracted\tpages\t190.00\tEUR\t3/20\t`,
		},
		{
			name: "a contract", args: "contract show c0de00", procedure: "ShowContract", answers: []any{connect.NewResponse(agreement())},
			asked: &openmeshv1.ShowContractRequest{Contract: "c0de00"},
			out: `(?s)buyer\tdid:key:zBuyer \(this agent\)\n.*price\t9.50 EUR × 20 = 190.00 EUR\n.*used\t3 of 20\n.*` +
				`signature\t✓ did:key:zBuyer, key version 2\nsignature\t✗ did:key:\S+, key version 1\n.*settlement\tdid:key:zBuyer says fulfilled, .* \(all there\)\n$`,
			err: `work under it with: openmesh call text/translation --contract c0de0`,
		},
		{
			name: "export a contract", args: "contract export c0de00", procedure: "ExportContract",
			answers: []any{connect.NewResponse(&openmeshv1.ExportContractResponse{Json: "{\"a\":\"\\u001b\"}\n"})},
			out:     `^{"a":"\\u001b"}\n$`,
		},
		{
			name: "watch", args: "watch --rfp 3f9a20", procedure: "Watch", asked: &openmeshv1.WatchMarketRequest{Rfp: "3f9a20"},
			answers: []any{
				&openmeshv1.MarketEvent{Event: "counter", Rfp: testRFP, Proposal: testProposal, From: testAgent, At: "2026-11-22T06:02:00Z", State: "countered", Price: "9.50", Round: 2},
				&openmeshv1.MarketEvent{Event: "contract", Rfp: testRFP, Proposal: testProposal, Contract: testContract, From: "did:key:z\x1b", At: "2026-11-22T06:03:00Z", State: "contracted"},
				done(),
			},
			out: `^2026-11-22T06:02:00Z\tcounter\t3f9a2\d+\tb10c0\w+\tdid:key:\S+\tcountered\t9.50, round 2\n` +
				`2026-11-22T06:03:00Z\tcontract\t3f9a2\d+\tb10c0\w+\tdid:key:z\\u001b\tcontracted\tcontract c0de0\w+\n$`,
		},
		{
			name: "watch in JSON", args: "--json watch --proposal b10c00", procedure: "Watch", asked: &openmeshv1.WatchMarketRequest{Proposal: "b10c00"},
			answers: []any{&openmeshv1.MarketEvent{Event: "posted", Rfp: testRFP, Round: 1}, done()},
			out:     `^{"event":"posted","rfp":"3f9a2\d+","proposal":"","contract":"","from":"","at":"","state":"","price":"","round":1,"turn":"","role":""}\n$`,
		},
		{
			name: "a schema", args: "schema show acme/widget@v1.0.0 --from did:key:z6Mk", procedure: "GetSchema",
			answers: []any{connect.NewResponse(&openmeshv1.MarketSchema{Name: "acme/widget@v1.0.0", Json: "{\n\t\"type\": \"object\"\n}"})},
			asked:   &openmeshv1.GetSchemaRequest{Schema: "acme/widget@v1.0.0", Agent: "did:key:z6Mk"}, out: "^{\n\t\"type\": \"object\"\n}$",
		},
		{
			name: "schemas", args: "schema list", procedure: "ListSchemas",
			answers: []any{connect.NewResponse(&openmeshv1.ListSchemasResponse{Schemas: []*openmeshv1.MarketSchema{{Name: "market/rfp@v1.0.0", Cid: "bafk", Source: "built-in"}}})},
			out:     `\nmarket/rfp@v1.0.0\tbafk\tbuilt-in\n$`,
		},
		{
			name: "add a schema", args: "schema add acme/widget@v1.0.0 -", in: "{}", procedure: "AddSchema",
			answers: []any{connect.NewResponse(&openmeshv1.MarketSchema{Name: "acme/widget@v1.0.0", Cid: "bafk"})},
			asked:   &openmeshv1.AddSchemaRequest{Name: "acme/widget@v1.0.0", Json: "{}"}, out: `^acme/widget@v1.0.0 is bafk\n$`,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			local := &localAPI{answers: map[string][]any{"Market/" + tc.procedure: tc.answers}}
			got := speak(t, local.serve(t), tc.in, append([]string{"market"}, strings.Fields(tc.args)...)...)
			got.check(t, tc.out, tc.err, tc.exit)
			local.check(t, "Market/"+tc.procedure, tc.asked)
		})
	}
}

func (s spoken) check(t *testing.T, out, err string, exit int) {
	t.Helper()
	if s.exit != exit || !regexp.MustCompile(out).MatchString(s.out) || !regexp.MustCompile(err).MatchString(s.err) {
		t.Errorf("exit code %d\nstdout: %s\nstderr: %s", s.exit, s.out, s.err)
	}
}

func (l *localAPI) check(t *testing.T, procedure string, want proto.Message) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if want == nil {
		return
	}
	if diff := cmp.Diff(want, l.asked[procedure], protocmp.Transform()); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}
}

// Posting with --wait ends when all have answered, or with exit code 6.
func TestPostAndWait(t *testing.T) {
	t.Parallel()
	silent := proto.CloneOf(negotiation())
	silent.State = "rfp"
	list := func(all ...*openmeshv1.Proposal) any {
		return connect.NewResponse(&openmeshv1.ListProposalsResponse{Proposals: all})
	}
	second := proto.CloneOf(negotiation())
	second.Proposal, second.Price = "2ec00000000000000000000000000002", "5.00"
	state := func(searching bool, asked, awaited uint32) any {
		r := proto.CloneOf(request())
		r.Searching, r.Asked, r.Awaited = searching, asked, awaited
		return connect.NewResponse(r)
	}
	none, one, two := state(true, 0, 0), state(false, 1, 0), state(false, 2, 1)
	for _, tc := range []struct {
		name, args    string
		states, lists []any
		out, err      string
		exit          int
	}{
		{"an answer", "--wait=1m", []any{one}, []any{list(), list(silent), list(negotiation())}, `(?s)^request .* is open .*\nb10c0\w+\t`, `1 answered, as did all who were asked`, exitDone},
		{"as JSON", "--json --wait=1m", []any{one}, []any{list(negotiation())}, `^{"rfp":.*"document":{"item":"pages","quantity":20},"hash":"","searching":false,"awaited":0,"answers":\[{"proposal":"b10c.*}\]}\n$`, `^$`, exitDone},
		{"nobody", "--wait=1ms", []any{two}, []any{list(silent)}, `^request .* is open`, `nobody has answered .*\nhint: it stays open`, exitTimedOut},
		{
			"an answer before the search has ended", "--wait=1m", []any{none, none, two, state(false, 2, 0)},
			[]any{list(negotiation()), list(negotiation()), list(negotiation(), second)}, `\nb10c0.*\n2ec0`,
			`^request .* is open; providers of text/translation are being looked for, .*\n1 answered so far; providers are .*\n2 answered, as did all`, exitDone,
		},
		{
			"an answer of somebody who was not asked", "--wait=1m", []any{one, state(false, 1, 1), one},
			[]any{list(negotiation()), list(negotiation(), second)}, `\nb10c0.*\n2ec0`, `1 answered so far; 1 more were asked\n2 answered, as did all`, exitDone,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			local := &localAPI{answers: map[string][]any{
				"Market/PostRFP": tc.states[:1], "Market/ShowRFP": tc.states[min(1, len(tc.states)-1):], "Market/ListProposals": tc.lists,
			}}
			got := speak(t, local.serve(t), "{}", append([]string{"market", "rfp", "post", "-"}, strings.Fields(tc.args)...)...)
			got.check(t, tc.out, tc.err, tc.exit)
		})
	}
}

// What a person gets is shorter, and relative to now.
func TestNegotiationsOnTerminal(t *testing.T) {
	t.Parallel()
	n := negotiation()
	n.Expires = time.Now().Add(5*time.Minute + 30*time.Second).Format(time.RFC3339)
	var out bytes.Buffer
	(&page{w: &out, terminal: true}).negotiations([]*openmeshv1.Proposal{n})
	_, row, _ := strings.Cut(out.String(), "\n")
	want := []string{testProposal[:16], testRFP[:16], "seller", "z6Mkha…2doK", "countered", "2", "you", "9.50", "EUR", "20", "in", "5m"}
	if diff := cmp.Diff(want, strings.Fields(row)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestMarketCompletion(t *testing.T) {
	t.Parallel()
	hostile := request()
	hostile.Item = "a\x1bb\nc"
	local := &localAPI{answers: map[string][]any{
		"Market/ListRFPs":      {connect.NewResponse(&openmeshv1.ListRFPsResponse{Rfps: []*openmeshv1.RFP{hostile}})},
		"Market/ListProposals": {connect.NewResponse(&openmeshv1.ListProposalsResponse{Proposals: []*openmeshv1.Proposal{negotiation()}})},
		"Market/ListContracts": {connect.NewResponse(&openmeshv1.ListContractsResponse{Contracts: []*openmeshv1.MarketContract{agreement()}})},
		"Market/ListSchemas":   {connect.NewResponse(&openmeshv1.ListSchemasResponse{Schemas: []*openmeshv1.MarketSchema{{Name: "market/rfp@v1.0.0", Source: "built-in"}}})},
	}}
	home := local.serve(t)
	for args, want := range map[string]string{
		"rfp show":         testRFP + "\tsent, a\\u001bb c\n",
		"accept":           testProposal + "\tcountered, 9.50 EUR\n",
		"watch --proposal": testProposal + "\tcountered, 9.50 EUR\n",
		"contract show":    testContract + "\tcontracted, pages\n",
		"settle c0de00":    "fulfilled\nfailed\n",
		"schema show":      "market/rfp@v1.0.0\tbuilt-in\n",
	} {
		words := append(append([]string{"__complete", "market"}, strings.Fields(args)...), "")
		if got := speak(t, home, "", words...); !strings.HasPrefix(got.out, want) {
			t.Errorf("%s: %q, want %q", args, got.out, want)
		}
	}
}
