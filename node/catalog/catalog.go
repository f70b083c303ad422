// Package catalog keeps the schemas of the documents that agents exchange: JSON
// Schemas (draft 2020-12), each known by its name and by the hash of its text.
//
//	built in       what the program brings
//	home/schemas/  market/rfp@v1.0.0.json …   put there by the operator, or by Add
//	home/schemas/.peers/  CID.json            fetched from peers, by their CID only
//
// A name with its version stands for one text for ever; another text for it is
// refused, or, as a file, left out. A CID is a CIDv1 (raw, sha2-256) of the text
// as it is, byte for byte.
//
// What a peer answers is believed only if it has the CID that was asked for, and
// used only if it is no trap: see [Catalog.Fetch]. Agents ask each other with the
// reserved [Capability].
package catalog

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
	"go.uber.org/zap"

	"openmesh/protocols/identity"
	"openmesh/protocols/schema"
	"openmesh/protocols/schema/translate"
	"openmesh/protocols/wire"
)

// Limits.
const (
	MaxSchema   = schema.MaxSchema // bytes of a schema
	MaxDocument = 64 << 10         // bytes of a document to validate
	MaxFiles    = 4096             // files in the folder; more are left out
	MaxPeers    = 256              // schemas kept of peers; the oldest go
)

// reread is how often the folder is read again at most, for what is missing.
const reread = time.Second

// Schema is a text with its name, such as market/rfp@v1.0.0.
type Schema struct {
	Name string
	Text []byte
}

// Source says where a schema is from.
type Source string

// The sources.
const (
	BuiltIn Source = "built-in"
	Folder  Source = "folder"
	Peer    Source = "peer"
)

// Entry is a schema of the catalog.
type Entry struct {
	Name   string // NAME@vVERSION; empty if it is from a peer
	CID    string
	Source Source
	Text   []byte // not to be changed

	compiled *schema.Schema
}

// Config is what a [Catalog] needs.
type Config struct {
	BuiltIn []Schema
	Dir     string // the folder schemas/ of the home; need not exist
	// Fetch asks another agent for the schema with a CID, and returns its text.
	// What it returns is not believed. Nil: nothing is fetched.
	Fetch func(ctx context.Context, agent identity.AgentID, id string) ([]byte, error)
	Log   *zap.Logger
}

// Catalog is a set of schemas. It is safe for concurrent use.
type Catalog struct {
	cfg Config

	mu     sync.Mutex
	names  map[string]*Entry // built in and of the folder, by name
	cids   map[string]*Entry // all, by CID; named ones before those of peers
	files  map[string]file   // of the folder, by path in it
	told   map[string]bool   // what was complained about once
	looked time.Time         // at the folder
}

// New opens a catalog. A file of the folder that cannot be used is logged and
// left out; an error means a bad built-in schema, or a folder that cannot be read.
func New(c Config) (*Catalog, error) {
	g := &Catalog{cfg: c, names: make(map[string]*Entry), cids: make(map[string]*Entry), files: make(map[string]file), told: make(map[string]bool)}
	for _, s := range c.BuiltIn {
		ref, err := parseName(s.Name)
		if err != nil {
			return nil, err
		}
		e, err := newEntry(ref.String(), BuiltIn, slices.Clone(s.Text))
		if err != nil {
			return nil, wire.Errorf(wire.Internal, "built-in schema %s: %w", s.Name, err)
		}
		if err := g.keep(e); err != nil {
			return nil, err
		}
	}
	if err := g.scan(); err != nil {
		return nil, wire.Errorf(wire.Internal, "read schemas: %w", err)
	}
	return g, nil
}

// CID returns the CIDv1 (raw, sha2-256) of a text, in base32.
func CID(text []byte) string {
	sum, err := multihash.Sum(text, multihash.SHA2_256, -1)
	if err != nil {
		panic(err) // sha2-256 is always there
	}
	return cid.NewCidV1(cid.Raw, sum).String()
}

// parseCID returns the one way to write a CID that [CID] returns.
func parseCID(s string) (string, bool) {
	const longest = 128
	if len(s) > longest {
		return "", false
	}
	c, err := cid.Decode(s)
	if err != nil {
		return "", false
	}
	p := c.Prefix()
	if p.Version != 1 || p.Codec != cid.Raw || p.MhType != multihash.SHA2_256 || p.MhLength != 32 {
		return "", false
	}
	return c.String(), true
}

// parseName reads NAME@vVERSION, or without the v. The segments of the name must
// do as folders. The error is wire.InvalidArgument.
func parseName(s string) (translate.Ref, error) {
	ref, err := translate.ParseRef(s)
	if err != nil {
		return ref, err
	}
	for segment := range strings.SplitSeq(ref.Name, "/") {
		if segment == "" || segment[0] == '.' || strings.HasSuffix(segment, ".") {
			return ref, wire.Errorf(wire.InvalidArgument, "schema name %.200q: a part of it is empty, or begins or ends with a dot", s).
				WithHint("Such as market/proposal@v1.0.0.")
		}
	}
	return ref, nil
}

func newEntry(name string, from Source, text []byte) (*Entry, error) {
	compiled, err := schema.CompileJSON(text)
	if err != nil {
		return nil, err
	}
	return &Entry{Name: name, CID: CID(text), Source: from, Text: text, compiled: compiled}, nil
}

// keep adds a named entry; g.mu is held, or not needed yet. The error is
// wire.AlreadyExists.
func (g *Catalog) keep(e *Entry) error {
	if old := g.names[e.Name]; old != nil && old.CID != e.CID {
		return wire.Errorf(wire.AlreadyExists, "schema %s is there with another content (%s, %s)", e.Name, old.Source, old.CID).
			WithHint("A version of a schema never changes: give the new text a new version.")
	} else if old == nil {
		g.names[e.Name] = e
	}
	if old := g.cids[e.CID]; old == nil || old.Source == Peer {
		g.cids[e.CID] = e
	}
	return nil
}

// Add puts a schema into the folder. Adding the same again does nothing. Errors:
// wire.InvalidArgument if it is no JSON Schema or has no such name;
// wire.AlreadyExists if the name has another text.
func (g *Catalog) Add(name string, text []byte) (Entry, error) {
	ref, err := parseName(name)
	if err != nil {
		return Entry{}, err
	}
	e, err := newEntry(ref.String(), Folder, slices.Clone(text))
	if err != nil {
		return Entry{}, wire.Errorf(wire.InvalidArgument, "add schema %s: %w", ref, err).
			WithHint("It must be a JSON Schema of draft 2020-12, at most %d bytes.", MaxSchema)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.names[e.Name] == nil {
		g.read(fileOf(ref)) // the operator may have put it there meanwhile
	}
	if old := g.names[e.Name]; old != nil {
		return *old, g.keep(e)
	}
	if err := g.write(fileOf(ref), e.Text); err != nil {
		return Entry{}, wire.Errorf(wire.CodeOf(err), "add schema %s: %w", ref, err)
	}
	return *e, g.keep(e)
}

// Get returns a schema by its name, or by its CID. One that is not known is
// looked for in the folder. The error is wire.NotFound, or wire.InvalidArgument
// for what is neither name nor CID.
func (g *Catalog) Get(ref string) (Entry, error) {
	id, isCID := parseCID(ref)
	name := id
	if !isCID {
		r, err := parseName(ref)
		if err != nil {
			return Entry{}, err
		}
		name = r.String()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	e := g.find(name, isCID)
	if e == nil {
		g.rescan()
		e = g.find(name, isCID)
	}
	if e == nil && isCID {
		e = g.cached(id)
	}
	if e == nil {
		return Entry{}, wire.Errorf(wire.NotFound, "no schema %.200s", ref).
			WithHint("Put it into the folder schemas of the home as NAME@vVERSION.json, or add it.")
	}
	return *e, nil
}

func (g *Catalog) find(key string, isCID bool) *Entry {
	if isCID {
		return g.cids[key]
	}
	return g.names[key]
}

// List returns the schemas that have a name, in the order of their names.
func (g *Catalog) List() []Entry {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.rescan()
	all := make([]Entry, 0, len(g.names))
	for _, e := range g.names {
		all = append(all, *e)
	}
	slices.SortFunc(all, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Validate checks a JSON document against the schema with a name or CID. It
// fetches nothing. Errors: those of [Catalog.Get]; wire.TooLarge;
// wire.InvalidRequest with pointers to what is wrong; ctx's.
func (g *Catalog) Validate(ctx context.Context, ref string, doc []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(doc) > MaxDocument {
		return wire.Errorf(wire.TooLarge, "a document of %d bytes; the limit is %d", len(doc), MaxDocument)
	}
	e, err := g.Get(ref)
	if err != nil {
		return err
	}
	pointers, err := e.compiled.Validate(doc, schema.JSON)
	if err == nil {
		return nil
	}
	bad := wire.Errorf(wire.InvalidRequest, "the document does not fit %.200s: %w", ref, err)
	bad.Pointers = pointers
	return bad
}

// Serve returns the text of a schema that a peer asks for by its CID. Whoever
// knows a CID may have the text: it cannot be guessed. The error is
// wire.NotFound or wire.InvalidArgument.
func (g *Catalog) Serve(id string) ([]byte, error) {
	c, ok := parseCID(id)
	if !ok {
		return nil, errNoCID(id)
	}
	e, err := g.Get(c)
	return e.Text, err
}

func errNoCID(s string) error {
	return wire.Errorf(wire.InvalidArgument, "%.200q is no CIDv1 (raw, sha2-256)", s)
}

// missing reports whether err is that of a file that is not there.
func missing(err error) bool { return errors.Is(err, os.ErrNotExist) }
