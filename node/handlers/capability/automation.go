package capability

import (
	"fmt"
	"path/filepath"
	"slices"

	"github.com/goccy/go-yaml/ast"
)

// The occasions of an [Automation].
const (
	OnRequest     = "market.rfp"      // another agent asks for offers, and nothing was said yet
	OnNegotiation = "market.proposal" // it is this agent's turn to answer an offer
	OnContract    = "market.contract" // a contract is signed: the handler is told, and answers wait
)

// Automation is a handler that decides for this agent in negotiations, as its file
// tells it.
type Automation struct {
	On         string
	Capability string // that is negotiated about: a name or prefix; empty: any

	// Handler has just the handler, and the file's name.
	Handler *Capability
}

// ParseAutomation reads an automation file, YAML or JSON, as [Parse] reads a
// capability file:
//
//	on: market.rfp                # or market.proposal, market.contract
//	capability: finance           # or left out: any
//	handler: {exec: {command: [./quote.py]}}
func ParseAutomation(doc []byte, file string) (*Automation, error) {
	path, err := filepath.Abs(file)
	if err != nil {
		return nil, fmt.Errorf("locate %s: %w", file, err)
	}
	r := reader{document: document{file: file}, dir: filepath.Dir(path)}
	a := &Automation{Handler: &Capability{File: path}}
	if root := r.parse(doc); r.err == nil {
		r.automation(a, root)
	}
	if r.err != nil {
		return nil, r.err
	}
	return a, nil
}

func (r *reader) automation(a *Automation, root ast.Node) {
	f := r.mapping(root, "on", "capability", "handler")
	if r.err != nil {
		return
	}
	occasions := []string{OnRequest, OnNegotiation, OnContract}
	if a.On = r.word(root, f, "on"); !slices.Contains(occasions, a.On) {
		r.fail(f["on"], suggest(a.On, occasions), "unknown occasion %q", a.On)
	}
	if n, ok := f["capability"]; ok {
		a.Capability = r.text(n)
		if err := CheckName(a.Capability); err != nil {
			r.fail(n, "Such as finance/fx-pricing, or finance.", "%v", err)
		}
	}
	if f["handler"] == nil {
		r.fail(root, "One of http, exec, api; see: openmesh capability example", "field \"handler\" is missing")
		return
	}
	r.handler(a.Handler, f["handler"])
}
