package handlers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"openmesh/node/handlers/capability"
	"openmesh/protocols/schema"
	"openmesh/protocols/wire"
)

const (
	requestSchema  = `{"type":"object","required":["pair"],"properties":{"pair":{"type":"string","pattern":"^[A-Z]{6}$"},"note":{"type":"string"}}}`
	responseSchema = `{"type":"object","required":["rate"]}`
)

func priced() *capability.Capability {
	return &capability.Capability{
		Name: "fx", Version: "1.4.0",
		Request: capability.Schema{JSON: []byte(requestSchema)}, Response: capability.Schema{JSON: []byte(responseSchema)},
	}
}

// answering returns a handler that says body.
func answering(body string) HandlerFunc {
	return func(context.Context, *Request) (*Response, error) { return &Response{Body: []byte(body)}, nil }
}

func add(t testing.TB, r *Registry, c *capability.Capability, h Handler) {
	t.Helper()
	if err := r.AddHandler(c, h); err != nil {
		t.Fatal(err)
	}
}

func TestServe(t *testing.T) {
	t.Parallel()
	const good = `{"pair":"EURUSD"}`
	failing := func(err error) HandlerFunc {
		return func(context.Context, *Request) (*Response, error) { return nil, err }
	}
	ok := answering(`{"rate":1}`)
	for name, tc := range map[string]struct {
		req      Request
		handler  HandlerFunc
		strict   wire.Code // 0: served
		lenient  wire.Code
		pointers []string
	}{
		"good":             {Request{Body: []byte(good)}, ok, 0, 0, nil},
		"version":          {Request{Body: []byte(good), Version: "^1.2"}, ok, 0, 0, nil},
		"other version":    {Request{Body: []byte(good), Version: ">=2"}, ok, wire.Unsupported, wire.Unsupported, nil},
		"no version":       {Request{Body: []byte(good), Version: "new"}, ok, wire.Malformed, wire.Malformed, nil},
		"long version":     {Request{Body: []byte(good), Version: strings.Repeat("1 || ", 100)}, ok, wire.Malformed, wire.Malformed, nil},
		"no such":          {Request{Capability: "gold", Body: []byte(good)}, ok, wire.NotFound, wire.NotFound, nil},
		"bad request":      {Request{Body: []byte(`{"pair":"x","note":1}`)}, ok, wire.InvalidRequest, 0, []string{"/note", "/pair"}},
		"not JSON":         {Request{Body: []byte(`{`)}, ok, wire.InvalidRequest, wire.InvalidRequest, []string{""}},
		"not Protobuf":     {Request{Body: []byte(`{}`), Encoding: schema.Protobuf}, ok, wire.InvalidRequest, wire.InvalidRequest, []string{""}},
		"bad response":     {Request{Body: []byte(good)}, answering(`{}`), wire.InvalidResponse, 0, []string{"/rate"}},
		"response no JSON": {Request{Body: []byte(good)}, answering(`rate`), wire.InvalidResponse, wire.InvalidResponse, []string{""}},
		"long response":    {Request{Body: []byte(good)}, answering(`{"rate":"` + strings.Repeat("x", 1000) + `"}`), wire.InvalidResponse, wire.InvalidResponse, nil},
		"nil response":     {Request{Body: []byte(good)}, func(context.Context, *Request) (*Response, error) { return nil, nil }, wire.InvalidResponse, 0, []string{""}},
		"plain error":      {Request{Body: []byte(good)}, failing(errors.New("x")), wire.HandlerFailed, wire.HandlerFailed, nil},
		"coded error":      {Request{Body: []byte(good)}, failing(fmt.Errorf("x: %w", wire.Denied)), wire.Denied, wire.Denied, nil},
		"panic":            {Request{Body: []byte(good)}, func(context.Context, *Request) (*Response, error) { panic("x") }, wire.HandlerFailed, wire.HandlerFailed, nil},
	} {
		for _, lenient := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/lenient=%v", name, lenient), func(t *testing.T) {
				t.Parallel()
				want := tc.strict
				if lenient {
					want = tc.lenient
				}
				var seen [][]string
				r := New(Config{Lenient: lenient, MaxResponse: 500, OnInvalid: func(name string, err *wire.Error) { seen = append(seen, err.Pointers) }})
				called := false
				add(t, r, priced(), HandlerFunc(func(ctx context.Context, req *Request) (*Response, error) {
					called = true
					return tc.handler(ctx, req)
				}))
				req := tc.req
				if req.Capability == "" {
					req.Capability = "fx"
				}
				resp, err := r.Serve(t.Context(), &req)
				if want == 0 && (err != nil || resp.Encoding != schema.JSON) || want != 0 && wire.CodeOf(err) != want {
					t.Errorf("got %+v, %v, want %s", resp, err, want)
				}
				if want == wire.InvalidRequest && called {
					t.Error("it reached the handler")
				}
				if tc.pointers != nil && (len(seen) != 1 || !cmp.Equal(seen[0], tc.pointers)) {
					t.Errorf("saw %q, want %q", seen, tc.pointers)
				}
				var e *wire.Error
				if want != 0 && errors.As(err, &e) && !cmp.Equal(e.Pointers, tc.pointers) {
					t.Errorf("pointers %q, want %q", e.Pointers, tc.pointers)
				}
			})
		}
	}
}

func TestServeDeadlines(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := New(Config{})
		add(t, r, &capability.Capability{Name: "fx", Version: "1.0.0"}, HandlerFunc(func(ctx context.Context, _ *Request) (*Response, error) {
			<-ctx.Done()
			return nil, fmt.Errorf("gave up: %w", ctx.Err())
		}))
		for _, tc := range []struct{ given, want time.Duration }{{0, capability.DefaultTimeout}, {time.Second, time.Second}, {time.Hour, capability.DefaultTimeout}} {
			req := &Request{Capability: "fx", Body: []byte("1")}
			start := time.Now()
			if tc.given > 0 {
				req.Deadline = start.Add(tc.given)
			}
			_, err := r.Serve(t.Context(), req)
			wantCode(t, err, wire.DeadlineExceeded)
			if took := time.Since(start); took != tc.want {
				t.Errorf("took %v, want %v", took, tc.want)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		_, err := r.Serve(ctx, &Request{Capability: "fx", Body: []byte("1")})
		wantCode(t, err, wire.Cancelled)
	})
}

func TestServeProtobuf(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	source := `syntax = "proto3"; package fx; message Price { string pair = 1; int64 amount = 2; }`
	if err := os.WriteFile(filepath.Join(dir, "fx.proto"), []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	set, err := capability.ProtoSources(dir, "fx.proto", "fx.Price")
	if err != nil {
		t.Fatal(err)
	}
	price := capability.Schema{Message: "fx.Price", DescriptorSet: set}
	compiled, err := price.Compile()
	if err != nil {
		t.Fatal(err)
	}
	const text = `{"pair":"EURUSD","amount":"9007199254740993"}`
	binary, err := compiled.Convert([]byte(text), schema.JSON, schema.Protobuf)
	if err != nil {
		t.Fatal(err)
	}
	echo := HandlerFunc(func(_ context.Context, req *Request) (*Response, error) {
		if req.Encoding != schema.JSON || string(req.Body) != text {
			t.Errorf("the handler got %s %q", req.Encoding, req.Body)
		}
		return &Response{Body: req.Body}, nil
	})
	r := New(Config{})
	add(t, r, &capability.Capability{Name: "both", Version: "1.0.0", Request: price, Response: price}, echo)
	add(t, r, &capability.Capability{Name: "half", Version: "1.0.0", Request: price}, echo)
	for _, tc := range []struct {
		name      string
		sent      schema.Encoding
		body      string
		got       schema.Encoding
		wantBytes string
	}{
		{"both", schema.JSON, text, schema.JSON, text},
		{"both", schema.Protobuf, string(binary), schema.Protobuf, string(binary)},
		{"half", schema.Protobuf, string(binary), schema.JSON, text},
	} {
		resp, err := r.Serve(t.Context(), &Request{Capability: tc.name, Body: []byte(tc.body), Encoding: tc.sent})
		if err != nil || resp.Encoding != tc.got || string(resp.Body) != tc.wantBytes {
			t.Errorf("%s in %s: %+v, %v", tc.name, tc.sent, resp, err)
		}
	}
	_, err = r.Serve(t.Context(), &Request{Capability: "both", Body: []byte(`{"pair":"x","colour":1}`)})
	var e *wire.Error
	if !errors.As(err, &e) || e.Code != wire.InvalidRequest || !cmp.Equal(e.Pointers, []string{"/colour"}) {
		t.Errorf("%v", err)
	}
}

func TestServeAPI(t *testing.T) {
	t.Parallel()
	r := New(Config{})
	offer(t, r, "api: {}")
	done := make(chan outcome, 1)
	go func() {
		resp, err := r.Serve(context.Background(), call())
		done <- outcome{resp, err}
	}()
	p, ok, err := r.Broker().Pull(t.Context(), []string{"fx"}, time.Minute)
	if !ok || err != nil || p.Request.CallerAgent != "did:key:z6Mk" {
		t.Fatalf("%+v %v %v", p, ok, err)
	}
	if err := r.Broker().Reply(t.Context(), p.ID, Reply{Response: &Response{Body: []byte("[1]")}}); err != nil {
		t.Error(err)
	}
	if o := <-done; o.err != nil || string(o.resp.Body) != "[1]" {
		t.Errorf("%+v", o)
	}
}

func TestRegistry(t *testing.T) {
	t.Parallel()
	r := New(Config{MaxCapabilities: 2})
	changed := r.Changed()
	select {
	case <-changed:
		t.Error("changed before anything did")
	default:
	}
	add(t, r, &capability.Capability{Name: "b", Version: "1.0.0"}, answering("1"))
	<-changed
	add(t, r, &capability.Capability{Name: "a", Version: "1.0.0"}, answering("1"))
	wantCode(t, r.AddHandler(&capability.Capability{Name: "c", Version: "1.0.0"}, answering("1")), wire.ResourceExhausted)
	add(t, r, &capability.Capability{Name: "a", Version: "2.0.0"}, answering("2")) // in the place of the first
	if got := r.List(); len(got) != 2 || got[0].Version != "2.0.0" || got[1].Name != "b" {
		t.Errorf("%v", got)
	}
	if resp, err := r.Serve(t.Context(), &Request{Capability: "a", Body: []byte("0")}); err != nil || string(resp.Body) != "2" {
		t.Errorf("%v, %v", resp, err)
	}
	changed = r.Changed()
	if !r.Remove("a") || r.Remove("a") {
		t.Error("removed not once")
	}
	<-changed
	if _, ok := r.Get("a"); ok {
		t.Error("still there")
	}
	if c, ok := r.Get("b"); !ok || c.Name != "b" {
		t.Error("b is gone")
	}
}

func TestAddRefuses(t *testing.T) {
	t.Parallel()
	r := New(Config{Getenv: func(string) (string, bool) { return "", false }})
	for name, c := range map[string]*capability.Capability{
		"handler":  {Name: "a", Version: "1.0.0"},
		"name":     {Name: "A", Version: "1.0.0", API: &capability.API{}},
		"version":  {Name: "a", Version: "1", API: &capability.API{}},
		"request":  {Name: "a", Version: "1.0.0", API: &capability.API{}, Request: capability.Schema{JSON: []byte("{")}},
		"response": {Name: "a", Version: "1.0.0", API: &capability.API{}, Response: capability.Schema{Message: "x.Y"}},
		"header":   {Name: "a", Version: "1.0.0", HTTP: &capability.HTTP{Headers: map[string]string{"a": "${TOKEN}"}}},
		"env":      {Name: "a", Version: "1.0.0", Exec: &capability.Exec{Env: map[string]string{"A": "${TOKEN}"}}},
	} {
		if err := r.Add(c); wire.CodeOf(err) != wire.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(r.List()) != 0 {
		t.Errorf("%v", r.List())
	}
}

func TestRegistryConcurrently(t *testing.T) {
	t.Parallel()
	r := New(Config{})
	add(t, r, priced(), answering(`{"rate":1}`))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 200 {
				if i == 0 {
					add(t, r, &capability.Capability{Name: "x", Version: "1.0.0"}, answering("1"))
					r.Remove("x")
				}
				version := [...]string{"", "^1", "1.4.0"}[j%3]
				if _, err := r.Serve(t.Context(), &Request{Capability: "fx", Version: version, Body: []byte(`{"pair":"EURUSD"}`)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkServe(b *testing.B) {
	r := New(Config{})
	add(b, r, priced(), answering(`{"rate":"1.0842"}`))
	body := []byte(`{"pair":"EURUSD","note":"`)
	body = append(append(body, strings.Repeat("x", 256-len(body)-2)...), `"}`...)
	req := &Request{Capability: "fx", Version: "^1.2", Body: body, Encoding: schema.JSON}
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Serve(context.Background(), req); err != nil {
			b.Fatal(err)
		}
	}
}
