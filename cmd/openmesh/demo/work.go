package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"openmesh/cmd/openmesh/demo/deal"
	"openmesh/protocols/descriptor"
)

// maxWork bounds the bytes of a request and of an answer.
const maxWork = 1 << 20

// family is the prefix that all capabilities of the demo are under.
const family = "demo"

// offer is a capability: its name, what it takes and gives, and how it is served.
type offer struct {
	Name     string         `json:"name"`
	Version  string         `json:"version"`
	Tags     map[string]any `json:"tags"`
	Request  map[string]any `json:"request"`
	Response map[string]any `json:"response"`
	Contract string         `json:"contract,omitempty"` // required: it is done under a market contract only
	Handler  map[string]any `json:"handler"`
}

// kind is what an offer's handler is: http, exec or api.
func (o offer) kind() string {
	for k := range o.Handler {
		return k
	}
	return ""
}

// keys are the names under which the directory has the offer.
func (o offer) keys() ([]string, error) {
	return descriptor.Names(o.Name, o.Version, descriptor.Visibility{})
}

// The capabilities, and which job does each.
const (
	sumName     = family + "/math/sum"
	countName   = family + "/text/count"
	approveName = family + "/office/approve"
)

// object is a JSON Schema of an object with these properties, all required.
func object(properties map[string]any) map[string]any {
	var required []string
	for name := range properties {
		required = append(required, name)
	}
	slices.Sort(required)
	return map[string]any{"type": "object", "required": required, "properties": properties}
}

func typed(name string) map[string]any { return map[string]any{"type": name} }

func offerSum(url string) offer {
	return offer{
		Name: sumName, Version: "1.4.0", Tags: map[string]any{"work": "sum"},
		Request:  object(map[string]any{"numbers": map[string]any{"type": "array", "items": typed("number")}}),
		Response: object(map[string]any{"sum": typed("number")}),
		Handler:  map[string]any{"http": map[string]any{"url": url, "timeout": "10s"}},
	}
}

func offerCount(program string) offer {
	return offer{
		Name: countName, Version: "1.0.2", Tags: map[string]any{"work": "count"},
		Request:  object(map[string]any{"text": typed("string")}),
		Response: object(map[string]any{"words": typed("integer"), "bytes": typed("integer")}),
		Handler:  execHandler(program, countName),
	}
}

func offerApprove() offer {
	return offer{
		Name: approveName, Version: "2.1.0", Tags: map[string]any{"work": "approve"},
		Request:  object(map[string]any{"item": typed("string"), "amount": typed("number")}),
		Response: object(map[string]any{"approved": typed("boolean"), "reason": typed("string")}),
		Handler:  map[string]any{"api": map[string]any{}},
	}
}

// offerFactor is what is sold on the market.
func offerFactor(program string) offer {
	return offer{
		Name: deal.Capability, Version: "1.0.0", Tags: map[string]any{"work": "factor"}, Contract: "required",
		Request:  object(map[string]any{"number": typed("string")}),
		Response: object(map[string]any{"factors": map[string]any{"type": "array", "items": typed("string")}}),
		Handler:  execHandler(program, deal.Capability),
	}
}

func execHandler(program, name string) map[string]any {
	return map[string]any{"exec": map[string]any{"command": []string{program, HandlerCommand, name}, "timeout": "10s"}}
}

// HandlerCommand is the hidden command of the program that calls [Handle].
const HandlerCommand = "demo-handler"

// Handle is a demo's exec handler: it does the work of the named capability
// with the request on in, and writes the answer, with what the environment says
// of the caller, to out.
func Handle(name string, in io.Reader, out io.Writer, getenv func(string) string) error {
	body, err := io.ReadAll(io.LimitReader(in, maxWork))
	if err != nil {
		return fmt.Errorf("read request: %w", err)
	}
	answer, err := work(name, body)
	if err != nil {
		return err
	}
	answer["caller"], answer["session"], answer["key"] = getenv("MESH_CALLER_AGENT"), getenv("MESH_SESSION"), getenv("MESH_IDEMPOTENCY_KEY")
	return json.NewEncoder(out).Encode(answer)
}

// work does what the named capability is for.
func work(name string, body []byte) (map[string]any, error) {
	if name == deal.Capability {
		return deal.Factor(body)
	}
	var req struct {
		Numbers []float64
		Text    string
		Item    string
		Amount  float64
	}
	if err := json.Unmarshal(body, &req); err != nil {
		return nil, fmt.Errorf("read request: %w", err)
	}
	switch name {
	case sumName:
		var sum float64
		for _, n := range req.Numbers {
			sum += n
		}
		return map[string]any{"sum": sum}, nil
	case countName:
		return map[string]any{"words": len(strings.Fields(req.Text)), "bytes": len(req.Text)}, nil
	case approveName:
		const limit = 1000
		if req.Amount > limit {
			return map[string]any{"approved": false, "reason": fmt.Sprintf("%s: over the limit of %d", req.Item, limit)}, nil
		}
		return map[string]any{"approved": true, "reason": fmt.Sprintf("%s: within the limit of %d", req.Item, limit)}, nil
	}
	return nil, fmt.Errorf("no work is called %q", name)
}

// sighting is what an HTTP handler was told of a request besides its body.
type sighting struct {
	Caller, Address, Session, Key, Traceparent, Correlation, Capability string

	Redelivered bool // it may have been worked on before
	At          time.Time
}

// desk is the HTTP server that agents hand their requests to.
type desk struct {
	url    string
	server *http.Server
	done   chan struct{}

	mu   sync.Mutex
	seen []sighting
	held chan struct{} // not nil: answers wait until it is closed
}

// openDesk serves on a port of loopback until it is closed.
func openDesk() (*desk, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("open a port for the HTTP handler: %w", err)
	}
	d := &desk{url: "http://" + l.Addr().String() + "/sum", done: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /sum", d.sum)
	d.server = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second}
	go func() {
		defer close(d.done)
		_ = d.server.Serve(l) // always ends with an error: that it was closed
	}()
	return d, nil
}

func (d *desk) close() error {
	err := d.server.Close()
	<-d.done
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (d *desk) sum(w http.ResponseWriter, r *http.Request) {
	h := r.Header
	d.note(sighting{
		Caller: h.Get("x-mesh-caller-agent"), Address: h.Get("x-mesh-caller-address"), Session: h.Get("x-mesh-session"),
		Key: h.Get("x-mesh-idempotency-key"), Traceparent: h.Get("traceparent"), Correlation: h.Get("x-mesh-trace-id"),
		Capability: h.Get("x-mesh-capability"), Redelivered: h.Get("x-mesh-redelivered") == "true", At: time.Now(),
	})
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxWork))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	answer, err := work(sumName, body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	d.waitReleased(r.Context())
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer) // if the daemon went away, the call fails there
}

func (d *desk) note(s sighting) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seen = append(d.seen, s)
}

// hold lets all answers wait until release. Their requests are seen, and worked on.
func (d *desk) hold() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.held = make(chan struct{})
}

func (d *desk) release() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.held != nil {
		close(d.held)
		d.held = nil
	}
}

// waitReleased returns when answers need not wait, or nobody waits for this one.
func (d *desk) waitReleased(ctx context.Context) {
	d.mu.Lock()
	held := d.held
	d.mu.Unlock()
	if held == nil {
		return
	}
	select {
	case <-held:
	case <-ctx.Done():
	}
}

// sightings returns what has been seen so far, oldest first.
func (d *desk) sightings() []sighting {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.seen)
}
