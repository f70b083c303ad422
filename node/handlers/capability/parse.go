package capability

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/Masterminds/semver/v3"
	"github.com/goccy/go-yaml/ast"
	"golang.org/x/net/http/httpguts"

	"openmesh/protocols/wire"
)

// Parse reads a capability file, YAML or JSON. The file's name is for errors
// and for relative paths; it is not opened. Protobuf sources that the document
// names are read and compiled. Errors are [*wire.Error] with code
// [wire.InvalidArgument] and begin with file:line:column.
func Parse(doc []byte, file string) (*Capability, error) {
	return parse(doc, file, func(_, dir, source, message string) ([]byte, error) {
		return ProtoSources(dir, source, message)
	})
}

// protoSource gives the descriptor set for the message of a side ("request"
// or "response") that comes from a source relative to dir.
type protoSource func(side, dir, source, message string) ([]byte, error)

func parse(doc []byte, file string, proto protoSource) (*Capability, error) {
	path, err := filepath.Abs(file)
	if err != nil {
		return nil, fmt.Errorf("locate %s: %w", file, err)
	}
	r := reader{document: document{file: file}, dir: filepath.Dir(path), proto: proto}
	c := &Capability{Document: bytes.Clone(doc), File: path}
	if root := r.parse(doc); r.err == nil {
		r.capability(c, root)
	}
	if r.err != nil {
		return nil, r.err
	}
	return c, nil
}

// reader fills a capability from a document.
type reader struct {
	document
	dir   string
	proto protoSource
}

var (
	visibilityPattern = regexp.MustCompile(`^(public|private|circle:[A-Za-z0-9][A-Za-z0-9._-]{0,63})$`)
	contractPattern   = regexp.MustCompile(`^(optional|required)$`)
	decimalPattern    = regexp.MustCompile(`^[0-9]{1,30}(\.[0-9]{1,18})?$`)
	wordPattern       = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/-]{0,119}$`)
)

func (r *reader) capability(c *Capability, root ast.Node) {
	f := r.mapping(root, "name", "version", "domain", "tags", "visibility", "request", "response",
		"protocols", "qos", "price", "contract", "handler")
	if r.err != nil {
		return
	}
	c.Name = r.word(root, f, "name")
	if err := CheckName(c.Name); err != nil {
		r.fail(f["name"], "Such as finance/fx-pricing.", "%v", err)
	}
	c.Version = r.word(root, f, "version")
	r.version(f["version"], c.Version)
	c.Domain = r.matching(f["domain"], wordPattern, "", "a domain is letters, digits, dots and dashes")
	c.Visibility = r.matching(f["visibility"], visibilityPattern, "public", "one of: public, circle:<name>, private")
	c.Tags = r.tags(f["tags"])
	c.Request = r.schema("request", f["request"])
	c.Response = r.schema("response", f["response"])
	c.Protocols = r.protocols(f["protocols"])
	c.QoS = r.qos(f["qos"])
	c.Price = r.price(f["price"])
	c.ContractRequired = r.matching(f["contract"], contractPattern, "optional", "one of: optional, required") == "required"
	if f["handler"] == nil {
		r.fail(root, "One of http, exec, api; see: openmesh capability example", "field \"handler\" is missing")
		return
	}
	r.handler(c, f["handler"])
}

func (r *reader) version(n ast.Node, s string) {
	if _, err := semver.StrictNewVersion(s); err != nil {
		r.fail(n, "Three numbers, such as 1.4.0.", "version %q: %v", s, err)
	}
}

// matching is text in a certain form, or otherwise if it is not there.
func (r *reader) matching(n ast.Node, form *regexp.Regexp, otherwise, hint string) string {
	if n == nil {
		return otherwise
	}
	s := r.text(n)
	if !form.MatchString(s) {
		r.fail(n, strings.ToUpper(hint[:1])+hint[1:]+".", "%q is not allowed here", s)
	}
	return s
}

func (r *reader) tags(n ast.Node) map[string]string {
	const most, longestName, longest = 32, 64, 256
	tags := r.dictionary(n)
	for name, value := range tags {
		if len(tags) > most || name == "" || len(name) > longestName || len(value) > longest {
			r.fail(n, "", "at most %d tags, with names of 1 to %d and values of up to %d bytes", most, longestName, longest)
		}
	}
	return tags
}

// schema reads {proto, message}, or else a JSON Schema.
func (r *reader) schema(side string, n ast.Node) Schema {
	if n == nil {
		return Schema{}
	}
	var s Schema
	if m, ok := n.(ast.MapNode); ok && isProto(m) {
		f := r.mapping(n, "proto", "message")
		source := r.word(n, f, "proto")
		s.Message = r.word(n, f, "message")
		if r.err != nil {
			return s
		}
		var err error
		if s.DescriptorSet, err = r.proto(side, r.dir, source, s.Message); err != nil {
			r.fail(f["proto"], "", "%v", err)
		}
	} else {
		var b bytes.Buffer
		r.json(&b, n, 1)
		s.JSON = b.Bytes()
	}
	if r.err == nil {
		if _, err := s.Compile(); err != nil {
			r.fail(n, "", "%s: %v", side, err)
		}
	}
	return s
}

// isProto tells by the field proto, which is no JSON Schema keyword.
func isProto(m ast.MapNode) bool {
	for it := m.MapRange(); it.Next(); {
		if it.Key().GetToken().Value == "proto" {
			return true
		}
	}
	return false
}

func (r *reader) protocols(n ast.Node) []Protocol {
	var out []Protocol
	for _, e := range r.list(n) {
		f := r.mapping(e, "name", "versions")
		if r.err != nil {
			return nil
		}
		p := Protocol{Name: r.word(e, f, "name"), Versions: r.texts(f["versions"])}
		if !wordPattern.MatchString(p.Name) || len(p.Versions) == 0 {
			r.fail(e, "Such as {name: fx/quote, versions: [1.0.0]}.", "a protocol has a name and at least one version")
		}
		for i, v := range r.list(f["versions"]) {
			r.version(v, p.Versions[i])
		}
		out = append(out, p)
	}
	return out
}

func (r *reader) qos(n ast.Node) []string {
	modes := []string{"at-most-once", "at-least-once", "exactly-once"}
	var out []string
	for _, e := range r.list(n) {
		s := r.text(e)
		if !slices.Contains(modes, s) {
			r.fail(e, suggest(s, modes), "unknown delivery mode %q", s)
		}
		if slices.Contains(out, s) {
			r.fail(e, "", "%q is there twice", s)
		}
		out = append(out, s)
	}
	return out
}

func (r *reader) price(n ast.Node) *Price {
	if n == nil {
		return nil
	}
	f := r.mapping(n, "amount", "currency", "unit")
	if r.err != nil {
		return nil
	}
	p := &Price{Amount: r.word(n, f, "amount"), Currency: r.word(n, f, "currency"), Unit: r.word(n, f, "unit")}
	if !decimalPattern.MatchString(p.Amount) {
		r.fail(f["amount"], `Such as "0.002".`, "%q is not a decimal number", p.Amount)
	}
	for _, name := range []string{"currency", "unit"} {
		r.matching(f[name], wordPattern, "", "letters and digits, such as EUR or call")
	}
	return p
}

func (r *reader) handler(c *Capability, n ast.Node) {
	f := r.mapping(n, "http", "exec", "api", "mcp", "a2a")
	if r.err != nil {
		return
	}
	for _, kind := range []string{"mcp", "a2a"} {
		if at, ok := f[kind]; ok {
			r.fail(at, "Use http, exec or api.", "handler %s is not supported by this version", kind)
		}
	}
	if len(f) != 1 {
		r.fail(n, "One of http, exec, api.", "%d handlers instead of one", len(f))
	}
	for kind, at := range f {
		switch kind {
		case "http":
			c.HTTP = r.http(at)
		case "exec":
			c.Exec = r.exec(at)
		case "api":
			if fields := r.mapping(at); len(fields) > 0 {
				r.fail(at, "Write: api: {}", "the api handler has no fields")
			}
			c.API = &API{}
		}
	}
}

func (r *reader) http(n ast.Node) *HTTP {
	f := r.mapping(n, "url", "timeout", "headers")
	if r.err != nil {
		return nil
	}
	h := &HTTP{URL: r.word(n, f, "url"), Timeout: r.timeout(f["timeout"]), Headers: r.dictionary(f["headers"])}
	if err := checkURL(h.URL); err != nil {
		r.fail(f["url"], "Such as http://127.0.0.1:9000/price.", "%v", err)
	}
	for name, value := range h.Headers {
		if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
			r.fail(f["headers"], "", "header %q is not valid", name)
		}
		if strings.HasPrefix(strings.ToLower(name), "x-mesh-") {
			r.fail(f["headers"], "", "header %q: names with x-mesh- are set for each request", name)
		}
	}
	r.references(f["headers"], h.Headers)
	return h
}

// checkURL keeps the text of the URL, which may hold a password, out of errors.
func checkURL(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return errors.New("not a URL")
	case u.Scheme != "http" && u.Scheme != "https":
		return fmt.Errorf("scheme %q: http or https is wanted", u.Scheme)
	case u.Hostname() == "":
		return errors.New("URL without a host")
	case u.User != nil:
		return errors.New("a URL with a password: put it into headers as ${NAME}")
	}
	return nil
}

func (r *reader) exec(n ast.Node) *Exec {
	f := r.mapping(n, "command", "timeout", "dir", "env", "stream")
	if r.err != nil {
		return nil
	}
	e := &Exec{Command: r.texts(f["command"]), Timeout: r.timeout(f["timeout"]), Env: r.dictionary(f["env"]), Stream: r.flag(f["stream"])}
	if len(e.Command) == 0 || e.Command[0] == "" {
		r.fail(n, "Such as command: [./price.sh].", "exec needs a command")
	}
	e.Dir = r.text(f["dir"])
	if !filepath.IsAbs(e.Dir) {
		e.Dir = filepath.Join(r.dir, e.Dir)
	}
	for name, value := range e.Env {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.Contains(value, "\x00") {
			r.fail(f["env"], "", "variable %q is not valid", name)
		}
	}
	if slices.ContainsFunc(e.Command, func(s string) bool { return strings.Contains(s, "\x00") }) {
		r.fail(f["command"], "", "a zero byte in the command")
	}
	r.references(f["env"], e.Env)
	return e
}

// references finds a "${" that stands for nothing.
func (r *reader) references(n ast.Node, values map[string]string) {
	present := func(string) (string, bool) { return "", true }
	for name, value := range values {
		if _, err := Expand(value, present); err != nil {
			r.fail(n, "Such as ${FX_TOKEN}.", "%s: %v", name, err)
		}
	}
}

var referencePattern = regexp.MustCompile(`\$\{[^}]*\}?`)

// Expand replaces each ${NAME} in s, a header or variable of a capability file,
// by what lookup has for NAME. It is an error ([wire.InvalidArgument]) if that
// is nothing. The result may be a secret.
func Expand(s string, lookup func(string) (string, bool)) (string, error) {
	var failed error
	out := referencePattern.ReplaceAllStringFunc(s, func(ref string) string {
		name := strings.TrimSuffix(strings.TrimPrefix(ref, "${"), "}")
		if name == "" || !strings.HasSuffix(ref, "}") || strings.ContainsAny(name, "= \t${") {
			failed = errors.New("a ${ without NAME}")
			return ""
		}
		value, ok := lookup(name)
		if !ok && failed == nil {
			failed = wire.Errorf(wire.InvalidArgument, "environment variable %s is not set", name).
				WithHint("Set %s in the environment of the daemon and restart it.", name)
		}
		return value
	})
	return out, failed
}
