// Package automation decides for this agent in negotiations: by handlers of its
// own, which files in the home's folder automation name, and by the rules of
// market.sell. Where neither has a say, people and programs decide over the API.
//
//	event ──► the file for that occasion whose capability fits best
//	            │ handler: the event as JSON (see [Event])
//	            │      ──► {"move": "amend", "document": {…}, "reason": "…"}
//	            └ none: the first rule that fits, if this agent sells
//
// A handler that fails, or does not answer within [Timeout], decides nothing: the
// negotiation waits for somebody else, or for its end.
package automation

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"openmesh/node/automation/strategy"
	"openmesh/node/handlers"
	"openmesh/node/handlers/capability"
	"openmesh/protocols/descriptor"
	"openmesh/protocols/market"
	"openmesh/protocols/schema"
	"openmesh/protocols/wire"
)

// Limits on decisions.
const (
	Timeout     = 30 * time.Second // of one, and of waiting for its turn
	Concurrency = 16               // that are made at once
	MaxAnswer   = 64 << 10         // bytes of a handler's answer
	MaxReason   = 256              // bytes of a reason, as in a move
	maxFiles    = 64
)

// Decision is a move to make; of kind 0 none.
type Decision = strategy.Decision

// Config is what an [Automation] needs.
type Config struct {
	Dir      string             // of the files; one that is not there has none
	Registry *handlers.Registry // makes the handlers; those of kind api are pulled there
	Sell     []strategy.Rule
}

// Automation decides. Its methods may be called by many goroutines.
type Automation struct {
	handlers []deciding
	sell     []strategy.Rule
	slots    chan struct{}
}

// deciding is the handler of a file.
type deciding struct {
	*capability.Automation
	handler handlers.Handler
}

// New returns the automation of a folder and of rules. What is wrong with files is
// returned besides, and does not keep the others from deciding.
func New(cfg Config) (*Automation, []error) {
	a := &Automation{sell: cfg.Sell, slots: make(chan struct{}, Concurrency)}
	files, problems := Load(cfg.Dir)
	for _, f := range files {
		h, err := cfg.Registry.Handler(f.Handler)
		if err != nil {
			problems = append(problems, fmt.Errorf("automation %s: %w", f.Handler.File, err))
			continue
		}
		a.handlers = append(a.handlers, deciding{f, h})
	}
	return a, problems
}

// Load reads the automation files of a folder (.yaml, .yml, .json), in the order of
// their names. A file that cannot be read is one of the errors.
func Load(dir string) (files []*capability.Automation, problems []error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, []error{fmt.Errorf("load automation: %w", err)}
	}
	for _, e := range entries {
		if !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(e.Name())) || e.Name()[0] == '.' {
			continue
		}
		if len(files) == maxFiles {
			return files, append(problems, fmt.Errorf("load automation: more than %d files in %s", maxFiles, dir))
		}
		f, err := load(filepath.Join(dir, e.Name()))
		if err != nil {
			problems = append(problems, fmt.Errorf("load automation: %w", err))
			continue
		}
		files = append(files, f)
	}
	return files, problems
}

func load(path string) (*capability.Automation, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > capability.MaxDocument || !info.Mode().IsRegular() {
		return nil, wire.Errorf(wire.InvalidArgument, "%s: no file of at most %d bytes", path, capability.MaxDocument)
	}
	doc, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return capability.ParseAutomation(doc, path)
}

// Decide says what to do about an event. The zero decision is to wait, and so is
// that of an error, which says what a handler did wrong.
func (a *Automation) Decide(ctx context.Context, e Event) (Decision, error) {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	if d, ok := a.handlerFor(e); ok {
		select {
		case a.slots <- struct{}{}:
			defer func() { <-a.slots }()
		case <-ctx.Done():
			return Decision{}, fmt.Errorf("%s of %s: wait for other decisions: %w", e.On, e.RFP, ctx.Err())
		}
		out, err := d.ask(ctx, e)
		if err != nil {
			return Decision{}, fmt.Errorf("%s of %s: %s: %w", e.On, e.RFP, filepath.Base(d.Handler.File), err)
		}
		return out, nil
	}
	if r, ok := strategy.Match(a.sell, e.Request); ok && e.sells() {
		return e.legal(strategy.Sell(r, e.Request, e.situation(), e.now))
	}
	return Decision{}, nil
}

// handlerFor returns the handler for an event, that of the longest prefix; of two,
// the first.
func (a *Automation) handlerFor(e Event) (deciding, bool) {
	var fitting []deciding
	for _, d := range a.handlers {
		if d.On == e.On && (d.Capability == "" || descriptor.Covers(d.Capability, e.Request.Capability)) {
			fitting = append(fitting, d)
		}
	}
	if fitting == nil {
		return deciding{}, false
	}
	return slices.MinFunc(fitting, func(x, y deciding) int { return cmp.Compare(len(y.Capability), len(x.Capability)) }), true
}

// ask has the handler decide.
func (d deciding) ask(ctx context.Context, e Event) (Decision, error) {
	body, err := json.Marshal(e)
	if err != nil {
		return Decision{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, d.Handler.Timeout())
	defer cancel()
	deadline, _ := ctx.Deadline()
	resp, err := d.handler.Handle(ctx, &handlers.Request{
		Capability: e.On, Body: body, Encoding: schema.JSON, CallerAgent: string(e.other()), Deadline: deadline, IdempotencyKey: e.key(),
	})
	switch {
	case err != nil:
		return Decision{}, err
	case resp.Produce != nil:
		parts := wire.Errorf(wire.InvalidResponse, "the answer comes in parts")
		_ = resp.Produce(ctx, func([]byte) error { return parts }) // it has to be called
		return Decision{}, parts
	}
	return e.read(resp.Body)
}

// answer is what a handler says.
type answer struct {
	Move     string          `json:"move"`
	Document json.RawMessage `json:"document"`
	Reason   string          `json:"reason"`
}

// read reads a handler's answer.
func (e Event) read(body []byte) (Decision, error) {
	if len(body) > MaxAnswer {
		return Decision{}, wire.Errorf(wire.InvalidResponse, "an answer of %d bytes, at most %d", len(body), MaxAnswer)
	}
	var said answer
	in := json.NewDecoder(bytes.NewReader(body))
	in.DisallowUnknownFields()
	if err := in.Decode(&said); err != nil {
		return Decision{}, wire.Errorf(wire.InvalidResponse, "the answer: %w", err).
			WithHint(`such as {"move": "amend", "document": {"terms": {"price": {"amount": "11.50", "currency": "EUR"}}}}, or {"move": "wait"}`)
	}
	if len(said.Reason) > MaxReason {
		return Decision{}, wire.Errorf(wire.InvalidResponse, "a reason of %d bytes, at most %d", len(said.Reason), MaxReason)
	}
	if said.Move == "" || said.Move == "wait" {
		return Decision{}, nil
	}
	k, err := market.ParseKind(said.Move)
	if err != nil {
		return Decision{}, wire.Errorf(wire.InvalidResponse, "move %.40q: want wait, %s", said.Move, e.allowed())
	}
	return e.legal(Decision{Kind: k, Document: said.Document, Reason: said.Reason})
}
