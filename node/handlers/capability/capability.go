// Package capability reads and keeps capability files: what an agent offers to
// others, with schemas, terms and the handler that does the work.
//
//	file ──Parse──► Capability ──► Store (a folder in the agent's home)
//
// [Example] is such a file. Whatever is wrong with one is told with its line
// and column, and once parsed a capability needs none of the files that its
// document names.
package capability

import (
	_ "embed"
	"fmt"
	"regexp"
	"time"

	"openmesh/protocols/schema"
)

// Limits on a capability.
const (
	MaxName     = 120       // bytes of a name
	MaxDocument = 128 << 10 // bytes of a capability file
)

// DefaultTimeout is how long a handler may take if its file says nothing.
const DefaultTimeout = 120 * time.Second

// Capability is one thing that this agent can do, as its file tells it. It is
// not changed once made.
type Capability struct {
	Name       string // see [CheckName]
	Version    string // semantic version, such as 1.4.0
	Domain     string
	Tags       map[string]string
	Visibility string // public, circle:<name> or private
	Request    Schema
	Response   Schema
	Protocols  []Protocol
	QoS        []string // at-most-once, at-least-once, exactly-once; empty: any. Told to others; no call is refused for it
	Price      *Price   // nil: none named

	// ContractRequired says that requests are taken under a market contract only.
	ContractRequired bool

	// At most one of the three; none for a handler that is a Go function.
	HTTP *HTTP
	Exec *Exec
	API  *API

	// Document is the file as it was written, and File its absolute path, from
	// whose folder relative paths go.
	Document []byte
	File     string
}

// Schema is the schema of a request or response, in one of two forms or, if
// zero, none: any JSON will do.
type Schema struct {
	JSON          []byte // JSON Schema 2020-12
	Message       string // full name of a Protobuf message,
	DescriptorSet []byte // and a serialized FileDescriptorSet that has it
}

// Compile makes the schema ready for validation. No schema is nil.
func (s Schema) Compile() (*schema.Schema, error) {
	switch {
	case s.Message != "":
		return schema.CompileProto(s.DescriptorSet, s.Message)
	case s.JSON != nil:
		return schema.CompileJSON(s.JSON)
	}
	return nil, nil
}

// Protocol is an application protocol and the versions spoken.
type Protocol struct {
	Name     string
	Versions []string
}

// Price is a hint, not an offer.
type Price struct {
	Amount   string // decimal
	Currency string // ISO 4217 or a token symbol
	Unit     string // what is paid for: call, second, megabyte, …
}

// HTTP is a handler behind a URL: POST, JSON in, JSON out. A response of content
// type application/x-ndjson or text/event-stream is one in parts: its lines, or the
// data of its events.
type HTTP struct {
	URL     string
	Timeout time.Duration
	// Headers are sent with each request. ${NAME} in a value stands for that
	// environment variable, so that secrets need not stand in files.
	Headers map[string]string
}

// Exec is a handler that is a command: JSON on standard input, JSON on
// standard output, exit status 0.
type Exec struct {
	Command []string // program and arguments; no shell
	Timeout time.Duration
	Dir     string            // absolute working directory
	Env     map[string]string // values as in [HTTP].Headers
	Stream  bool              // the response comes in parts: the lines of the output
}

// API is a handler that is an application which pulls requests.
type API struct{}

// Kind returns "http", "exec", "api" or "func".
func (c *Capability) Kind() string {
	switch {
	case c.HTTP != nil:
		return "http"
	case c.Exec != nil:
		return "exec"
	case c.API != nil:
		return "api"
	}
	return "func"
}

// Timeout returns how long the handler may take.
func (c *Capability) Timeout() time.Duration {
	switch {
	case c.HTTP != nil && c.HTTP.Timeout > 0:
		return c.HTTP.Timeout
	case c.Exec != nil && c.Exec.Timeout > 0:
		return c.Exec.Timeout
	}
	return DefaultTimeout
}

var namePattern = regexp.MustCompile(`^[a-z0-9-]+(/[a-z0-9-]+){0,4}$`)

// CheckName tells what is wrong with a capability's name: one to five parts
// of a-z, 0-9 and "-", parted by "/", together at most [MaxName] bytes.
func CheckName(name string) error {
	if len(name) > MaxName {
		return fmt.Errorf("name of %d bytes: at most %d", len(name), MaxName)
	}
	if !namePattern.MatchString(name) {
		return fmt.Errorf("name %q: one to five parts of a-z, 0-9 and -, parted by /", name)
	}
	return nil
}

//go:embed example.yaml
var example string

// Example returns a valid capability file, with comments, to start from.
func Example() []byte { return []byte(example) }
