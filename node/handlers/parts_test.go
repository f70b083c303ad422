package handlers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"openmesh/node/handlers/capability"
	"openmesh/protocols/schema"
	"openmesh/protocols/wire"
)

// gather calls Produce and returns the parts as text.
func gather(ctx context.Context, resp *Response) (parts []string, err error) {
	err = resp.Produce(ctx, func(part []byte) error {
		parts = append(parts, string(part))
		return nil
	})
	return parts, err
}

// produce serves a call and gathers its parts.
func produce(t *testing.T, r *Registry) ([]string, error) {
	t.Helper()
	resp, err := r.Serve(t.Context(), call())
	if err != nil {
		return nil, err
	}
	if resp.Produce == nil {
		t.Fatalf("one document: %s", resp.Body)
	}
	return gather(t.Context(), resp)
}

func TestLinesAndEvents(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 100)
	cut := func(s string) io.Reader {
		return io.MultiReader(strings.NewReader(s), iotest.ErrReader(io.ErrUnexpectedEOF))
	}
	for name, tc := range map[string]struct {
		split func(io.Reader, int, func([]byte) error) error
		in    io.Reader
		want  []string
		err   error
	}{
		"lines":            {sendLines, strings.NewReader("1\n\n {\"a\":2} \r\n[3]"), []string{"1", `{"a":2}`, "[3]"}, nil},
		"no lines":         {sendLines, strings.NewReader(""), nil, nil},
		"just so long":     {sendLines, strings.NewReader("1\n" + long + "\n2"), []string{"1", long, "2"}, nil},
		"too long":         {sendLines, strings.NewReader("1\n" + strings.Repeat(long, 2) + "\n2"), []string{"1"}, wire.InvalidResponse},
		"endless line":     {sendLines, endless{}, nil, wire.InvalidResponse},
		"cut line":         {sendLines, cut("1\n12"), []string{"1"}, io.ErrUnexpectedEOF},
		"events":           {sendEvents, strings.NewReader("\ufeffdata: 1\n\n: hello\nid: 7\nevent: x\ndata:{\"a\":\r\ndata:  2}\r\n\r\ndata\n\n\ndata: 3\n\n"), []string{"1", "{\"a\":\n 2}", "3"}, nil},
		"done":             {sendEvents, strings.NewReader("data: 1\n\ndata: [DONE]\n\ndata: 2\n\n"), []string{"1"}, nil},
		"event half there": {sendEvents, strings.NewReader("data: 1\n\ndata: 2\n"), []string{"1"}, nil},
		"event so long":    {sendEvents, strings.NewReader("data: " + long + "\n\n"), []string{long}, nil},
		"event too long":   {sendEvents, strings.NewReader("data: 1\n\n" + strings.Repeat("data: "+long[:30]+"\n", 4) + "\n"), []string{"1"}, wire.InvalidResponse},
		"cut event":        {sendEvents, cut("data: 1\n\ndata: 2\n\ndata: 3"), []string{"1", "2"}, io.ErrUnexpectedEOF},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got []string
			err := tc.split(iotest.OneByteReader(tc.in), 100, func(part []byte) error {
				got = append(got, string(part))
				return nil
			})
			if diff := cmp.Diff(tc.want, got); diff != "" || !errors.Is(err, tc.err) {
				t.Errorf("%v, want %v; -want +got:\n%s", err, tc.err, diff)
			}
		})
	}
	stop := errors.New("enough")
	if err := sendLines(endlessLines{}, 10, func([]byte) error { return stop }); err != stop {
		t.Errorf("sent on after %v", err)
	}
}

// endless is one line without end; endlessLines are many.
type (
	endless      struct{}
	endlessLines struct{}
)

func (endless) Read(p []byte) (int, error)      { p[0] = 'x'; return 1, nil }
func (endlessLines) Read(p []byte) (int, error) { return copy(p, "1\n1\n"), nil }

// Each part is held to the schema and to the limit.
func TestPartsAreChecked(t *testing.T) {
	t.Parallel()
	good := `{"rate":1}`
	for name, tc := range map[string]struct {
		parts    []string
		fail     error
		strict   wire.Code
		lenient  wire.Code
		pointers []string
		passed   int // parts that reach the caller when strict
	}{
		"good":      {[]string{good, good}, nil, 0, 0, nil, 2},
		"none":      {nil, nil, 0, 0, nil, 0},
		"invalid":   {[]string{good, `{}`, good}, nil, wire.InvalidResponse, 0, []string{"/rate"}, 1},
		"not JSON":  {[]string{good, `rate`}, nil, wire.InvalidResponse, wire.InvalidResponse, []string{""}, 1},
		"too long":  {[]string{good, `{"rate":"` + strings.Repeat("x", 500) + `"}`}, nil, wire.InvalidResponse, wire.InvalidResponse, nil, 1},
		"fails":     {[]string{good, good}, errors.New("boom"), wire.HandlerFailed, wire.HandlerFailed, nil, 2},
		"says code": {[]string{good}, wire.Denied, wire.Denied, wire.Denied, nil, 1},
	} {
		for _, lenient := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/lenient=%v", name, lenient), func(t *testing.T) {
				t.Parallel()
				var seen [][]string
				r := New(Config{Lenient: lenient, MaxResponse: 500, OnInvalid: func(_ string, err *wire.Error) { seen = append(seen, err.Pointers) }})
				add(t, r, priced(), HandlerFunc(func(context.Context, *Request) (*Response, error) {
					return &Response{Produce: func(_ context.Context, send func([]byte) error) error {
						for _, p := range tc.parts {
							_ = send([]byte(p)) // one that does not mind
						}
						return tc.fail
					}}, nil
				}))
				resp, err := r.Serve(t.Context(), &Request{Capability: "fx", Body: []byte(`{"pair":"EURUSD"}`)})
				if err != nil || resp.Encoding != schema.JSON {
					t.Fatal(resp, err)
				}
				parts, err := gather(t.Context(), resp)
				want := tc.strict
				if lenient {
					want = tc.lenient
				}
				if want == 0 && err != nil || want != 0 && wire.CodeOf(err) != want {
					t.Errorf("ended with %v, want %s", err, want)
				}
				if !lenient && len(parts) != tc.passed || lenient && want == 0 && len(parts) != len(tc.parts) {
					t.Errorf("passed %q", parts)
				}
				if tc.pointers != nil && (len(seen) != 1 || !cmp.Equal(seen[0], tc.pointers)) {
					t.Errorf("saw %q, want %q", seen, tc.pointers)
				}
			})
		}
	}
}

// The handler's timeout is for all parts together, a panic is an error, and the
// context of Handle lives until the end.
func TestPartsEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var handling context.Context
		r := New(Config{})
		c := &capability.Capability{Name: "fx", Version: "1.0.0", HTTP: &capability.HTTP{Timeout: 10 * time.Second}}
		add(t, r, c, HandlerFunc(func(ctx context.Context, _ *Request) (*Response, error) {
			handling = ctx
			return &Response{Produce: func(ctx context.Context, send func([]byte) error) error {
				for {
					if err := send([]byte("1")); err != nil {
						return err
					}
					select {
					case <-time.After(3 * time.Second):
					case <-ctx.Done():
						return ctx.Err()
					}
				}
			}}, nil
		}))
		start := time.Now()
		parts, err := produce(t, r)
		if took := time.Since(start); wire.CodeOf(err) != wire.DeadlineExceeded || took != 10*time.Second || len(parts) != 4 {
			t.Errorf("%d parts and %v after %v", len(parts), err, took)
		}
		resp, err := r.Serve(t.Context(), call())
		if err != nil || handling.Err() != nil {
			t.Fatal(err, handling.Err())
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(4*time.Second, cancel)
		parts, err = gather(ctx, resp)
		if wire.CodeOf(err) != wire.Cancelled || len(parts) != 2 || handling.Err() == nil {
			t.Errorf("%d parts, %v, and the handler's context: %v", len(parts), err, handling.Err())
		}
		add(t, r, c, HandlerFunc(func(context.Context, *Request) (*Response, error) {
			return &Response{Produce: func(context.Context, func([]byte) error) error { panic("x") }}, nil
		}))
		if _, err := produce(t, r); wire.CodeOf(err) != wire.HandlerFailed {
			t.Errorf("a panic: %v", err)
		}
	})
}

// responder answers in parts of a content type.
func responder(media string, write func(w http.ResponseWriter, flush func(), hr *http.Request)) http.HandlerFunc {
	return func(w http.ResponseWriter, hr *http.Request) {
		_, _ = io.Copy(io.Discard, hr.Body) // or the server does not see the client go
		w.Header().Set("Content-Type", media)
		write(w, func() { _ = http.NewResponseController(w).Flush() }, hr)
	}
}

func TestHTTPParts(t *testing.T) {
	t.Parallel()
	for media, lines := range map[string][2]string{
		"application/x-ndjson":             {"1\n", "{\"b\": 2}"},
		"text/event-stream; charset=utf-8": {"data: 1\n\n", "data: {\"b\": 2}\n\n"},
	} {
		t.Run(media, func(t *testing.T) {
			t.Parallel()
			next := make(chan struct{})
			r := server(t, Config{}, "", responder(media, func(w http.ResponseWriter, flush func(), _ *http.Request) {
				_, _ = io.WriteString(w, lines[0])
				flush()
				<-next // the first part comes before there is a second
				_, _ = io.WriteString(w, lines[1])
			}))
			resp, err := r.Serve(t.Context(), call())
			if err != nil {
				t.Fatal(err)
			}
			var parts []string
			err = resp.Produce(t.Context(), func(p []byte) error {
				if parts = append(parts, string(p)); len(parts) == 1 {
					close(next)
				}
				return nil
			})
			if diff := cmp.Diff([]string{"1", `{"b": 2}`}, parts); diff != "" || err != nil {
				t.Errorf("%v -want +got:\n%s", err, diff)
			}
		})
	}
}

func TestHTTPPartsDie(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		write func(http.ResponseWriter)
		want  wire.Code
	}{
		"cut":     {func(w http.ResponseWriter) { _, _ = io.WriteString(w, "1\n12"); panic(http.ErrAbortHandler) }, wire.HandlerFailed},
		"long":    {func(w http.ResponseWriter) { _, _ = io.WriteString(w, "1\n"+strings.Repeat("2", 2000)+"\n3\n") }, wire.InvalidResponse},
		"garbage": {func(w http.ResponseWriter) { _, _ = io.WriteString(w, "1\n<html>\n3\n") }, wire.InvalidResponse},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := server(t, Config{MaxResponse: 1000}, "", responder(ndjson, func(w http.ResponseWriter, flush func(), _ *http.Request) {
				defer flush()
				tc.write(w)
			}))
			parts, err := produce(t, r)
			// A connection that dies may take with it what was written just before.
			if wire.CodeOf(err) != tc.want || len(parts) > 1 || tc.want == wire.InvalidResponse && len(parts) != 1 {
				t.Errorf("%q and %v, want %s", parts, err, tc.want)
			}
		})
	}
}

// A caller that does not take its parts holds the handler up, and when it gives up
// the handler learns it.
func TestHTTPPartsAreNotReadAhead(t *testing.T) {
	t.Parallel()
	const enough = 64 << 20 // more than the buffers of a connection
	var written atomic.Int64
	over := make(chan struct{})
	r := server(t, Config{}, "", responder(ndjson, func(w http.ResponseWriter, _ func(), hr *http.Request) {
		defer close(over)
		line := `"` + strings.Repeat("x", 64<<10) + "\"\n"
		for written.Load() < enough {
			n, err := io.WriteString(w, line)
			if err != nil {
				return
			}
			written.Add(int64(n))
		}
	}))
	resp, err := r.Serve(t.Context(), call())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err = resp.Produce(ctx, func([]byte) error {
		select {
		case <-over:
			t.Error("the handler wrote all of it to a caller that reads nothing")
		case <-time.After(200 * time.Millisecond):
		}
		cancel()
		return ctx.Err()
	})
	wantCode(t, err, wire.Cancelled)
	<-over
	if n := written.Load(); n >= enough {
		t.Errorf("%d bytes written", n)
	}
}

// Parts that do not come can be given up too.
func TestHTTPPartsAreCancelled(t *testing.T) {
	t.Parallel()
	gone := make(chan struct{})
	r := server(t, Config{}, "", responder(eventStream, func(w http.ResponseWriter, flush func(), hr *http.Request) {
		_, _ = io.WriteString(w, "data: 1\n\n")
		flush()
		<-hr.Context().Done()
		close(gone)
	}))
	resp, err := r.Serve(t.Context(), call())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err = resp.Produce(ctx, func([]byte) error { cancel(); return nil })
	wantCode(t, err, wire.Cancelled)
	<-gone
}

// streaming is [command] with stream: true.
func streaming(t *testing.T, cfg Config, mode string, env map[string]string) *Registry {
	t.Helper()
	h := command(t, cfg, mode, env)
	h.parts = true
	r := New(cfg)
	add(t, r, &capability.Capability{Name: "fx", Version: "1.0.0"}, h)
	return r
}

func TestExecParts(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		count, exit int
		want        wire.Code
	}{{0, 0, 0}, {3, 0, 0}, {10_000, 0, 0}, {2, 3, wire.HandlerFailed}} {
		t.Run(fmt.Sprint(tc.count, tc.exit), func(t *testing.T) {
			t.Parallel()
			r := streaming(t, Config{}, "lines", map[string]string{"COUNT": strconv.Itoa(tc.count), "EXIT": strconv.Itoa(tc.exit)})
			parts, err := produce(t, r)
			if tc.want == 0 && err != nil || tc.want != 0 && wire.CodeOf(err) != tc.want {
				t.Errorf("ended with %v, want %s", err, tc.want)
			}
			if len(parts) != tc.count || tc.count > 0 && parts[tc.count-1] != strconv.Itoa(tc.count-1) {
				t.Errorf("%d parts", len(parts))
			}
		})
	}
}

// Whatever ends the call ends the process, and gives its slot back.
func TestExecPartsEnd(t *testing.T) {
	t.Parallel()
	enough := errors.New("enough")
	for name, tc := range map[string]struct {
		mode string
		send func(cancel func()) error
		want wire.Code
	}{
		"cancelled": {"flood", func(cancel func()) error { cancel(); return nil }, wire.Cancelled},
		"refused":   {"flood", func(func()) error { return enough }, wire.HandlerFailed},
		"too long":  {"flood", func(func()) error { return nil }, wire.InvalidResponse},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := Config{MaxProcesses: 1, Lenient: true}
			if name == "too long" {
				cfg.MaxResponse = 500
			}
			h := command(t, cfg, tc.mode, nil)
			h.parts = true
			for range 2 { // the second would wait for ever for a slot that was kept
				ctx, cancel := context.WithCancel(t.Context())
				resp, err := h.Handle(ctx, call())
				if err != nil {
					t.Fatal(err)
				}
				err = resp.Produce(ctx, func([]byte) error { return tc.send(cancel) })
				if code := wire.CodeOf(failure(ctx, err)); code != tc.want {
					t.Errorf("ended with %v, want %s", err, tc.want)
				}
				cancel()
			}
		})
	}
}

// A process that was left behind and holds on to the output ends with the call.
func TestExecPartsOrphan(t *testing.T) {
	t.Parallel()
	path, opened := pipe(t)
	h := command(t, Config{}, "orphan", map[string]string{"PIPE": path})
	h.grace, h.parts = 3*time.Second, true
	resp, err := h.Handle(t.Context(), call())
	if err != nil {
		t.Fatal(err)
	}
	p := testPipe{opened()}
	parts, err := gather(t.Context(), resp)
	if err != nil || !cmp.Equal(parts, []string{"{}"}) {
		t.Errorf("%q, %v", parts, err)
	}
	p.ended(t)
}

func TestBrokerParts(t *testing.T) {
	t.Parallel()
	boom := wire.Errorf(wire.HandlerFailed, "boom")
	reply := func(body string, more bool) Reply { return Reply{Response: &Response{Body: []byte(body)}, More: more} }
	for name, tc := range map[string]struct {
		last Reply
		want []string
		err  error
	}{
		"last part": {reply("3", false), []string{"1", "2", "3"}, nil},
		"nothing":   {Reply{}, []string{"1", "2"}, nil},
		"error":     {Reply{Err: boom, More: true}, []string{"1", "2"}, boom},
		"encoding":  {Reply{Response: &Response{Encoding: schema.Protobuf}}, []string{"1", "2"}, wire.HandlerFailed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := NewBroker()
				asked := ask(t.Context(), b, "a")
				p, _, err := b.Pull(t.Context(), []string{"a"}, time.Minute)
				if err != nil {
					t.Fatal(err)
				}
				wantCode(t, b.Reply(t.Context(), p.ID, Reply{More: true}), wire.InvalidArgument)
				wantCode(t, b.Reply(t.Context(), p.ID, Reply{}), wire.InvalidArgument)
				replied := make(chan error, 3)
				go func() {
					for _, r := range []Reply{reply("1", true), reply("2", true), tc.last} {
						replied <- b.Reply(t.Context(), p.ID, r)
					}
				}()
				resp := (<-asked).resp
				synctest.Wait()
				if len(replied) != 0 {
					t.Error("a reply returned before its part was taken")
				}
				parts, err := gather(t.Context(), resp)
				if !cmp.Equal(parts, tc.want) || !errors.Is(err, tc.err) {
					t.Errorf("%q, %v", parts, err)
				}
				for range 3 {
					if err := <-replied; err != nil {
						t.Error(err)
					}
				}
				wantCode(t, b.Reply(t.Context(), p.ID, one), wire.NotFound)
				empty(t, b)
			})
		})
	}
}

// An application learns with its next part that the caller has gone, and may give
// up waiting for a slow one.
func TestBrokerPartsGivenUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := NewBroker()
		asked := ask(t.Context(), b, "a")
		p, _, err := b.Pull(t.Context(), []string{"a"}, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		more := Reply{Response: &Response{Body: []byte("1")}, More: true}
		wantCode(t, b.Reply(short, p.ID, more), wire.DeadlineExceeded)
		resp := (<-asked).resp
		ctx, give := context.WithTimeout(t.Context(), time.Second)
		defer give()
		_, err = gather(ctx, resp)
		wantCode(t, err, wire.DeadlineExceeded)
		wantCode(t, b.Reply(t.Context(), p.ID, more), wire.NotFound)
		empty(t, b)
	})
}
