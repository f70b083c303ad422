package node

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	"openmesh/node/handlers"
	"openmesh/node/handlers/capability"
	"openmesh/node/schemas"
	"openmesh/protocols/descriptor/descriptorpb"
	"openmesh/protocols/schema"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// aligned is as much of a node as translates, with these files and schemas of
// the configuration.
func aligned(t *testing.T, named []string, files ...string) *Node {
	t.Helper()
	var sources []schemas.Source
	for i, f := range files {
		sources = append(sources, schemas.Source{Name: fmt.Sprintf("%d.yaml", i), Text: []byte(f)})
	}
	g, err := schemas.Gather(sources)
	if err != nil {
		t.Fatal(err)
	}
	natives, err := parseSchemas(named)
	if err != nil {
		t.Fatal(err)
	}
	return &Node{registry: handlers.New(handlers.Config{}), translations: g, schemas: natives, log: zap.NewNop()}
}

const (
	fxRequest  = "translate: {from: fx.request@1.4.0, to: fx.request@2.0.0}\nsteps: [{move: {from: /pair, to: /symbol}}]\n"
	fxResponse = "translate: {from: fx.response@1.4.0, to: fx.response@2.0.0}\nsteps: [{move: {from: /rate, to: /quote/rate}}]\n"
	note       = "translate: {from: note@1.0.0, to: note@2.0.0}\nsteps: [{drop: {at: /mood}}, {move: {from: /text, to: /body}}]\n"
)

// offer adds the capability fx 2.0.0 with a handler and protocols.
func (n *Node) offer(t *testing.T, visibility string, h handlers.HandlerFunc, protocols ...capability.Protocol) {
	t.Helper()
	c := &capability.Capability{Name: "fx", Version: "2.0.0", Visibility: visibility, Protocols: protocols}
	if err := n.registry.AddHandler(c, h); err != nil {
		t.Fatal(err)
	}
}

func echo(_ context.Context, req *handlers.Request) (*handlers.Response, error) {
	return &handlers.Response{Body: req.Body}, nil
}

func TestOfferedProtocols(t *testing.T) {
	t.Parallel()
	many := make([]string, 70)
	for i := range many {
		many[i] = fmt.Sprintf("s%03d@1.0.0", i)
	}
	own := capability.Protocol{Name: "note", Versions: []string{"1.0.0"}}
	for title, tc := range map[string]struct {
		named      []string
		visibility string
		protocols  []capability.Protocol
		want       []signal.AppProtocol
		left       int
	}{
		"nothing, whatever the files": {},
		"of a capability":             {protocols: []capability.Protocol{own}, want: []signal.AppProtocol{{Name: "note", Versions: []string{"1.0.0", "~2.0.0"}}}},
		"of the configuration":        {named: []string{"note@v2.0.0"}, want: []signal.AppProtocol{{Name: "note", Versions: []string{"2.0.0", "~1.0.0"}}}},
		"of both": {named: []string{"note@2.0.0", "a@1.0.0"}, protocols: []capability.Protocol{own},
			want: []signal.AppProtocol{{Name: "a", Versions: []string{"1.0.0"}}, {Name: "note", Versions: []string{"2.0.0", "1.0.0"}}}},
		"not of a private one":  {visibility: "private", protocols: []capability.Protocol{own}},
		"not of a circle's own": {visibility: "circle:friends", protocols: []capability.Protocol{own}},
		"too many":              {named: many, left: 7},
		"too long": {protocols: []capability.Protocol{{Name: strings.Repeat("x", maxOfferedBytes), Versions: []string{"1.0.0"}}, own}, left: 1,
			want: []signal.AppProtocol{{Name: "note", Versions: []string{"1.0.0", "~2.0.0"}}}},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			n := aligned(t, tc.named, note)
			n.offer(t, tc.visibility, echo, tc.protocols...)
			got, left := n.protocols()
			at := slices.IndexFunc(got, func(p signal.AppProtocol) bool { return p.Name == "market/proposal" })
			if at < 0 {
				t.Fatalf("%v: every agent speaks market/proposal", got)
			}
			if got = slices.Delete(got, at, at+1); len(got) == 0 {
				got = nil
			}
			if title == "too many" {
				tc.want = got[:min(len(got), maxOffered-1)]
			}
			if diff := cmp.Diff(tc.want, got); diff != "" || len(left) != tc.left {
				t.Errorf("left %v, -want +got:\n%s", left, diff)
			}
		})
	}
}

func TestServeVersion(t *testing.T) {
	t.Parallel()
	quote := func(_ context.Context, req *handlers.Request) (*handlers.Response, error) {
		if !strings.Contains(string(req.Body), "symbol") {
			return nil, wire.Errorf(wire.Internal, "the handler got %s", req.Body)
		}
		return &handlers.Response{Body: []byte(`{"quote":{"rate":7}}`)}, nil
	}
	for title, tc := range map[string]struct {
		files    []string
		span     string
		body     string
		encoding schema.Encoding
		handler  handlers.HandlerFunc
		want     string
		code     wire.Code
	}{
		"its own":               {span: "^2", body: `{"symbol":1}`, want: `{"quote":{"rate":7}}`},
		"any":                   {body: `{"symbol":1}`, want: `{"quote":{"rate":7}}`},
		"translated":            {files: []string{fxRequest, fxResponse}, span: "^1", body: `{"pair":1}`, want: `{"rate":7}`},
		"out of every range":    {files: []string{fxRequest, fxResponse}, span: "^1.5", body: `{"pair":1}`, code: wire.NoCommonSchema},
		"no file":               {span: "^1", body: `{"pair":1}`, code: wire.NoCommonSchema},
		"half the files":        {files: []string{fxRequest}, span: "^1", body: `{"pair":1}`, code: wire.NoCommonSchema},
		"no range":              {files: []string{fxRequest, fxResponse}, span: "one", body: `{}`, code: wire.Malformed},
		"request does not fit":  {files: []string{fxRequest, fxResponse}, span: "^1", body: `{"pair":1,"symbol":2}`, code: wire.InvalidRequest},
		"response does not fit": {files: []string{fxRequest, fxResponse}, span: "^1", body: `{"rate":1}`, handler: echoBoth, code: wire.InvalidResponse},
		"Protobuf":              {files: []string{fxRequest, fxResponse}, span: "^1", encoding: schema.Protobuf, code: wire.NoCommonSchema},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			n := aligned(t, nil, tc.files...)
			if tc.handler == nil {
				tc.handler = quote
			}
			n.offer(t, "", tc.handler)
			resp, err := n.serveVersion(t.Context(), &handlers.Request{Capability: "fx", Version: tc.span, Body: []byte(tc.body), Encoding: tc.encoding})
			if (err == nil) != (tc.code == 0) || err != nil && wire.CodeOf(err) != tc.code {
				t.Fatalf("%v, want %v", err, tc.code)
			}
			if err == nil && string(resp.Body) != tc.want {
				t.Errorf("got %s, want %s", resp.Body, tc.want)
			}
		})
	}
}

// echoBoth answers with a document that has what both versions call the rate.
func echoBoth(context.Context, *handlers.Request) (*handlers.Response, error) {
	return &handlers.Response{Body: []byte(`{"rate":1,"quote":{"rate":2}}`)}, nil
}

// Each part of a response is translated; one that does not fit ends it.
func TestServeVersionInParts(t *testing.T) {
	t.Parallel()
	n := aligned(t, nil, fxRequest, fxResponse)
	n.offer(t, "", func(context.Context, *handlers.Request) (*handlers.Response, error) {
		return &handlers.Response{Produce: func(_ context.Context, send func([]byte) error) error {
			for _, part := range []string{`{"quote":{"rate":1}}`, `{"quote":{"rate":2}}`, `{"rate":3}`, `{"quote":{"rate":4}}`} {
				if err := send([]byte(part)); err != nil {
					return err
				}
			}
			return nil
		}}, nil
	})
	resp, err := n.serveVersion(t.Context(), &handlers.Request{Capability: "fx", Version: "1.x", Body: []byte("{}")})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	err = resp.Produce(t.Context(), func(part []byte) error { got = append(got, string(part)); return nil })
	if diff := cmp.Diff([]string{`{"rate":1}`, `{"rate":2}`}, got); diff != "" || wire.CodeOf(err) != wire.InvalidResponse {
		t.Errorf("%v, -want +got:\n%s", err, diff)
	}
}

func TestNative(t *testing.T) {
	t.Parallel()
	for title, tc := range map[string]struct {
		named        []string
		name, doc    string
		enc          schema.Encoding
		want, wantAs string
		losses       int
		code         wire.Code
	}{
		"as it is":              {[]string{"note@1.0.0"}, "note@v1.0.0", `{"text":1}`, schema.JSON, `{"text":1}`, "note@v1.0.0", 0, 0},
		"translated":            {[]string{"note@2.0.0"}, "note@v1.0.0", `{"text":1,"mood":2}`, schema.JSON, `{"body":1}`, "note@v2.0.0", 1, 0},
		"back":                  {[]string{"note@1.0.0"}, "note@2.0.0", `{"body":1}`, schema.JSON, `{"text":1}`, "note@v1.0.0", 0, 0},
		"not declared":          {nil, "note@v1.0.0", `{"text":1}`, schema.JSON, `{"text":1}`, "note@v1.0.0", 0, 0},
		"no name":               {[]string{"note@2.0.0"}, "\x00@@", `{"text":1}`, schema.JSON, `{"text":1}`, "\x00@@", 0, 0},
		"no way":                {[]string{"note@2.0.0"}, "note@v3.0.0", `{"text":1}`, schema.JSON, `{"text":1}`, "note@v3.0.0", 0, wire.NoCommonSchema},
		"Protobuf":              {[]string{"note@2.0.0"}, "note@v1.0.0", "\x08\x01", schema.Protobuf, "\x08\x01", "note@v1.0.0", 0, wire.NoCommonSchema},
		"does not fit":          {[]string{"note@2.0.0"}, "note@v1.0.0", `{"text":1,"body":2}`, schema.JSON, `{"text":1,"body":2}`, "note@v1.0.0", 0, wire.InvalidRequest},
		"no JSON":               {[]string{"note@2.0.0"}, "note@v1.0.0", `{`, schema.JSON, `{`, "note@v1.0.0", 0, wire.InvalidRequest},
		"as it is, not checked": {[]string{"note@1.0.0"}, "note@v1.0.0", `{`, schema.JSON, `{`, "note@v1.0.0", 0, 0},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			doc, as, warnings, err := aligned(t, tc.named, note).native(tc.name, tc.enc, []byte(tc.doc))
			if string(doc) != tc.want || as != tc.wantAs || len(warnings) != tc.losses {
				t.Errorf("%s as %s, %q", doc, as, warnings)
			}
			if (err == nil) != (tc.code == 0) || err != nil && wire.CodeOf(err) != tc.code {
				t.Errorf("%v, want %v", err, tc.code)
			}
		})
	}
}

// What a provider says that it answers, its callers read.
func TestAnsweredInDescriptor(t *testing.T) {
	t.Parallel()
	n := aligned(t, nil, fxRequest, fxResponse)
	n.offer(t, "", echo, capability.Protocol{Name: "fx", Versions: []string{"9.0.0"}})
	c, _ := n.registry.Get("fx")
	if diff := cmp.Diff([]string{"2.0.0", "~1.4.0"}, answeredBy(n.capabilityMessage(c))); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if diff := cmp.Diff([]string{"3.0.0"}, answeredBy(&descriptorpb.Capability{Name: "fx", Version: "3.0.0"})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestSchemasOfConfiguration(t *testing.T) {
	t.Parallel()
	if _, err := parseSchemas([]string{"note@1.0.0-01"}); wire.CodeOf(err) != wire.InvalidArgument || !strings.Contains(err.Error(), "session.schemas") {
		t.Error(err)
	}
}
