// Package deal is the part of the demo in which agents do business with each other
// who have no reason to trust each other:
//
//	buyer ── request ──► three sellers, who answer by themselves
//	      ◄─ offers ───
//	      ── counteroffer ──► one of them, who comes down a little
//	      ── acceptance ────► who signs, too: a contract
//	      ── work, cited ───► until all that was bought is used
//
// What was signed is then proven to a program that has the files and nothing else, and
// every log is verified and replayed. Each step asks the daemons of those who take part
// and fails unless what they say is what was promised.
package deal

import (
	"context"
	"fmt"
	"time"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
)

// Party is an agent, whose daemon runs.
type Party struct {
	Name  string
	Agent string // id
	API   *api.Client
	At    func(error) error // marks an error as one that happened there; nil stays nil
}

func (p *Party) errorf(format string, args ...any) error { return p.At(fmt.Errorf(format, args...)) }

// Report is told what a step saw.
type Report interface {
	Say(lines ...string)         // to people
	Fact(name string, value any) // to programs
}

// Alone runs the program in a folder, with these arguments and without home, daemon
// or environment. It returns what that printed and its exit code; the error is that it
// could not be run.
type Alone func(ctx context.Context, folder string, args ...string) (out []byte, code int, err error)

// Config is what a [Deal] needs.
type Config struct {
	Buyer   *Party
	Sellers []*Party // in the order of [Stalls]
	Passer  *Party   // who has no contract
	All     []*Party // who have logs, these among them
	Gone    *Tally   // of the logs of those who are there no more
	Folder  string   // for temporary files
	Alone   Alone
}

// Deal is a deal that is being made. Its methods are steps: Request, Haggle, Sign, Prove,
// Forge, Exclude, Work, Settle, Audit, ForgeLog, Replay; each is to be called once, when
// the one before has held.
type Deal struct {
	cfg      Config
	rfp      string // ids
	proposal string
	contract *openmeshv1.MarketContract
	proof    []byte // the contract as the seller exports it
}

// New returns a deal of which nothing is done yet.
func New(cfg Config) *Deal { return &Deal{cfg: cfg} }

// seller is the one whom the buyer comes to terms with.
func (d *Deal) seller() *Party { return d.cfg.Sellers[Chosen] }

func (d *Deal) nameOf(agent string) string {
	for _, p := range d.cfg.All {
		if p.Agent == agent {
			return p.Name
		}
	}
	return agent
}

// until asks again and again until the answer is nil, or ctx ends: then it returns the
// last answer.
func until(ctx context.Context, ask func() error) error {
	const pause = 25 * time.Millisecond
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		err := ask()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%w (gave up: %w)", err, ctx.Err())
		}
	}
}
