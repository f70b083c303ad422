package document

import (
	"embed"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"openmesh/protocols/schema"
	"openmesh/protocols/schema/translate"
)

//go:embed schemas
var files embed.FS

// Schema is a JSON Schema (2020-12) under a name.
type Schema struct {
	Name string // such as market/rfp@v1.0.0
	CID  string // of Text; see [CID]
	Text []byte
}

// prefix is that of all CIDs of schemas.
var prefix = cid.Prefix{Version: 1, Codec: cid.Raw, MhType: multihash.SHA2_256, MhLength: 32}

// CID returns the content identifier of a schema's text: CIDv1 (raw, sha2-256).
func CID(text []byte) string {
	c, err := prefix.Sum(text)
	if err != nil {
		panic(err) // sha2-256 is always there
	}
	return c.String()
}

// Schemas returns the built-in schemas, in the order of their names. Their bytes
// never change: another text is another version.
func Schemas() []Schema {
	var out []Schema
	for _, name := range names() {
		text, err := files.ReadFile(path.Join("schemas", fileOf(name)))
		if err != nil {
			panic(err) // embedded
		}
		out = append(out, Schema{name, CID(text), text})
	}
	return out
}

func names() []string {
	list := []string{SchemaRFP, SchemaProposal, SchemaProposalV1, SchemaContract}
	slices.Sort(list)
	return list
}

func fileOf(name string) string {
	return strings.TrimPrefix(name, "market/") + ".json"
}

// compiled holds the built-in schemas, ready for use, once one is needed.
var compiled = sync.OnceValue(func() map[string]*schema.Schema {
	out := map[string]*schema.Schema{}
	for _, s := range Schemas() {
		c, err := schema.CompileJSON(s.Text)
		if err != nil {
			panic(fmt.Sprintf("%s: %v", s.Name, err)) // embedded
		}
		out[s.Name] = c
	}
	return out
})

//go:embed schemas/proposal.yaml
var translation []byte

// Translation returns the file (of package translate) that leads from
// market/proposal@v2.1.0 to v1.0.0 and back.
func Translation() []byte { return slices.Clone(translation) }

var translations = sync.OnceValue(func() *translate.Registry {
	r := translate.NewRegistry()
	if err := r.Add(translation, "proposal.yaml"); err != nil {
		panic(err) // embedded
	}
	return r
})

// upgrade translates an offer of v1.0.0 to canonical v2.1.0. Nothing is lost.
func upgrade(doc []byte) ([]byte, error) {
	out, _, err := translations().Translate(doc, SchemaProposalV1, SchemaProposal)
	if err != nil {
		return nil, err
	}
	return Canonical(out, MaxDocument)
}
