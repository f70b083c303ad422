package handlers

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/Masterminds/semver/v3"
	"go.uber.org/zap"

	"openmesh/node/handlers/capability"
	"openmesh/protocols/schema"
	"openmesh/protocols/wire"
)

// Config is what a registry needs. The zero value will do.
type Config struct {
	// Lenient lets requests and responses that break their schema pass, if they
	// can be decoded. OnInvalid hears of them either way.
	Lenient           bool
	CorrelationHeader string // default x-mesh-trace-id
	MaxResponse       int    // bytes; default 4 MiB
	MaxCapabilities   int    // default 64
	MaxProcesses      int    // of one exec handler at a time; default 16

	// OnInvalid is called for each request (code [wire.InvalidRequest]) or
	// response ([wire.InvalidResponse]) that breaks its schema.
	OnInvalid func(capability string, err *wire.Error)
	// Proxy chooses proxies for HTTP handlers; nil: none, whatever the
	// environment says.
	Proxy  func(*http.Request) (*url.URL, error)
	Getenv func(name string) (string, bool) // default os.LookupEnv
	Log    *zap.Logger                      // default: none
}

func (c Config) withDefaults() Config {
	if c.CorrelationHeader == "" {
		c.CorrelationHeader = "x-mesh-trace-id"
	}
	if c.MaxResponse == 0 {
		c.MaxResponse = 4 << 20
	}
	if c.MaxCapabilities == 0 {
		c.MaxCapabilities = 64
	}
	if c.MaxProcesses == 0 {
		c.MaxProcesses = 16
	}
	if c.OnInvalid == nil {
		c.OnInvalid = func(string, *wire.Error) {}
	}
	if c.Getenv == nil {
		c.Getenv = os.LookupEnv
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	return c
}

// Registry is the set of capabilities that this agent offers, and serves them.
// Its methods may be called by many goroutines; those that serve take no lock.
type Registry struct {
	cfg       Config
	transport *http.Transport
	broker    *Broker

	entries atomic.Pointer[map[string]*entry] // the map is never changed, only replaced
	mu      sync.Mutex                        // held by who replaces it
	changed chan struct{}                     // closed on the next change; guarded by mu
}

// entry is a capability ready to be served.
type entry struct {
	capability        *capability.Capability
	version           *semver.Version
	request, response *schema.Schema
	handler           Handler
	lastRange         atomic.Pointer[rangeCheck]
}

// New returns an empty registry.
func New(cfg Config) *Registry {
	cfg = cfg.withDefaults()
	r := &Registry{cfg: cfg, transport: newTransport(cfg), broker: NewBroker(), changed: make(chan struct{})}
	r.entries.Store(&map[string]*entry{})
	return r
}

// Broker returns where applications pull the requests of api capabilities.
func (r *Registry) Broker() *Broker { return r.broker }

// Add offers c, whose file named the handler, in the place of one of the same
// name. Requests that are being served stay with the old one. Errors:
// [wire.ResourceExhausted] if there are too many, [wire.InvalidArgument] if the
// handler needs an environment variable that is not set.
func (r *Registry) Add(c *capability.Capability) error {
	h, err := r.Handler(c)
	if err != nil {
		return addError(c, err)
	}
	return r.AddHandler(c, h)
}

// Handler returns the handler that a file named, without offering anything. It
// bounds what it reads; time, and what the answer is to look like, are the
// caller's to mind. The errors are those of Add.
func (r *Registry) Handler(c *capability.Capability) (Handler, error) {
	switch {
	case c.HTTP != nil:
		return r.newHTTP(c.HTTP)
	case c.Exec != nil:
		return r.newExec(c.Exec)
	case c.API != nil:
		return r.broker, nil
	}
	return nil, wire.Errorf(wire.InvalidArgument, "it has no handler")
}

func addError(c *capability.Capability, err error) error {
	return wire.Errorf(wire.InvalidArgument, "add capability %s: %w", c.Name, err)
}

// AddHandler is like Add, with a handler of the caller's own, such as a
// [HandlerFunc]. Of c, only Name and Version must be set.
func (r *Registry) AddHandler(c *capability.Capability, h Handler) error {
	if err := capability.CheckName(c.Name); err != nil {
		return addError(c, err)
	}
	e := &entry{capability: c, handler: h}
	var err error
	if e.version, err = semver.StrictNewVersion(c.Version); err != nil {
		return addError(c, fmt.Errorf("version %q: %w", c.Version, err))
	}
	if e.request, err = c.Request.Compile(); err != nil {
		return addError(c, fmt.Errorf("request: %w", err))
	}
	if e.response, err = c.Response.Compile(); err != nil {
		return addError(c, fmt.Errorf("response: %w", err))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	next := maps.Clone(*r.entries.Load())
	next[c.Name] = e
	if len(next) > r.cfg.MaxCapabilities {
		return wire.Errorf(wire.ResourceExhausted, "add capability %s: there are %d already", c.Name, r.cfg.MaxCapabilities).
			WithHint("Remove one first: openmesh capability remove NAME")
	}
	r.replace(next)
	return nil
}

// replace is called with mu held.
func (r *Registry) replace(next map[string]*entry) {
	r.entries.Store(&next)
	close(r.changed)
	r.changed = make(chan struct{})
}

// Remove stops offering the capability called name, and reports whether there
// was one.
func (r *Registry) Remove(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := maps.Clone(*r.entries.Load())
	if _, ok := next[name]; !ok {
		return false
	}
	delete(next, name)
	r.replace(next)
	r.broker.drop(name)
	return true
}

// Get returns the capability called name.
func (r *Registry) Get(name string) (*capability.Capability, bool) {
	e, ok := (*r.entries.Load())[name]
	if !ok {
		return nil, false
	}
	return e.capability, true
}

// Accepts reports whether there is a capability called name, at a version in a
// semantic version range.
func (r *Registry) Accepts(name, versions string) bool {
	e, ok := (*r.entries.Load())[name]
	return ok && e.accepts(versions) == nil
}

// List returns all capabilities in the order of their names.
func (r *Registry) List() []*capability.Capability {
	entries := *r.entries.Load()
	list := make([]*capability.Capability, 0, len(entries))
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		list = append(list, entries[name].capability)
	}
	return list
}

// Changed returns a channel that is closed when the set next changes. Ask for
// the channel before reading the set, so as to miss nothing.
func (r *Registry) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

// Close gives back idle connections to HTTP handlers. The registry can still
// be used.
func (r *Registry) Close() { r.transport.CloseIdleConnections() }
