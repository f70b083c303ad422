package main

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
)

func newPropose(p *program) *cobra.Command {
	var req openmeshv1.ProposeRequest
	cmd := &cobra.Command{
		Use: "propose RFP FILE", Short: "Answer a request for proposals of another agent", Args: cobra.ExactArgs(2),
		Long: "Answer a request for proposals of another agent. FILE is YAML or JSON, or - for standard input;\n" +
			"`openmesh market propose example` prints one. RFP is the id of the request or a prefix that only it has.",
		Example:           "  openmesh market propose example > offer.yaml\n  openmesh market propose 3f9a20 offer.yaml",
		ValidArgsFunction: p.completeRFP,
		PreRunE: func(_ *cobra.Command, args []string) (err error) {
			req.Rfp = args[0]
			req.Json, err = p.readJSON(args[1])
			return err
		},
		RunE: p.ask(timeToReach, subject{list: aRequest().list, show: aRequest().show, example: aProposal().example}.asking(
			func(ctx context.Context, d *api.Client, _ []string) error {
				res, err := d.Market.Propose(ctx, &req)
				return p.moved(res, err)
			})),
	}
	cmd.AddCommand(newProposalExample(p))
	return cmd
}

func newProposalExample(p *program) *cobra.Command {
	return newExample(p, "Print a proposal to start from", func() []byte { return exampleProposal(time.Now()) })
}

// changing is a procedure that makes an offer of the one before.
type changing func(context.Context, *api.Client, *openmeshv1.OfferRequest) (*openmeshv1.MoveResponse, error)

func newCounter(p *program) *cobra.Command {
	return newOffer(p, "counter", "Answer an offer of the other side with another",
		func(ctx context.Context, d *api.Client, req *openmeshv1.OfferRequest) (*openmeshv1.MoveResponse, error) {
			return d.Market.Counter(ctx, req)
		})
}

func newAmend(p *program) *cobra.Command {
	return newOffer(p, "amend", "Replace this agent's own offer",
		func(ctx context.Context, d *api.Client, req *openmeshv1.OfferRequest) (*openmeshv1.MoveResponse, error) {
			return d.Market.Amend(ctx, req)
		})
}

// revision is what flags change about an offer.
type revision struct {
	price, note string
	quantity    uint64
	valid       limit
}

func newOffer(p *program, verb, short string, do changing) *cobra.Command {
	var req openmeshv1.OfferRequest
	var given revision
	cmd := &cobra.Command{
		Use: verb + " ID [FILE]", Short: short, Args: cobra.RangeArgs(1, 2),
		Long: short + ". FILE is a proposal in YAML or JSON, or - for standard input; flags do where\n" +
			"little changes. What neither says is as in the offer before.",
		Example:           "  openmesh market " + verb + " 3f9a20 --price 9.00\n  openmesh market " + verb + " 3f9a20 offer.yaml",
		ValidArgsFunction: p.completeProposal,
	}
	f := cmd.Flags()
	f.StringVar(&given.price, "price", "", "of one unit, such as 9.50, in the currency of the offer before")
	f.Uint64Var(&given.quantity, "quantity", 0, "number of units")
	f.StringVar(&given.note, "note", "", "for the other side")
	f.Var(&given.valid, "valid", "how long it can be accepted, such as 10m")
	cmd.AddCommand(newProposalExample(p))
	cmd.PreRunE = func(_ *cobra.Command, args []string) (err error) {
		req.Proposal = args[0]
		switch doc, some := given.document(time.Now()); {
		case len(args) == 2 && some:
			return usagef("FILE and flags: one of them says what the offer is")
		case len(args) == 2:
			req.Json, err = p.readJSON(args[1])
		case !some:
			return usagef("what changes? give FILE, --price, --quantity, --note or --valid")
		default:
			req.Json, err = doc, nil
		}
		return err
	}
	cmd.RunE = p.ask(timeToReach, aProposal().asking(func(ctx context.Context, d *api.Client, _ []string) error {
		res, err := do(ctx, d, &req)
		return p.moved(res, err)
	}))
	return cmd
}

// document is the part of a market/proposal that the flags say, and whether they
// say something.
func (o *revision) document(now time.Time) (string, bool) {
	terms, doc := map[string]any{}, map[string]any{}
	if o.price != "" {
		terms["price"] = map[string]any{"amount": o.price}
	}
	if o.quantity > 0 {
		terms["quantity"] = o.quantity
	}
	if len(terms) > 0 {
		doc["terms"] = terms
	}
	if o.note != "" {
		doc["note"] = o.note
	}
	if o.valid > 0 {
		doc["valid_until"] = now.Add(time.Duration(o.valid)).UTC().Truncate(time.Second).Format(time.RFC3339)
	}
	text, err := json.Marshal(doc)
	return string(text), err == nil && len(doc) > 0
}

// ending is a procedure that answers an offer with a word.
type ending func(context.Context, *api.Client, *openmeshv1.MoveRequest) (*openmeshv1.MoveResponse, error)

func newAccept(p *program) *cobra.Command {
	return newAnswer(p, "accept", "Accept the offer of the other side",
		"Accept the offer of the other side: this agent signs the contract. The other side signs it too if its offer still\n"+
			"stands; until then neither is bound to anything but this.",
		func(ctx context.Context, d *api.Client, req *openmeshv1.MoveRequest) (*openmeshv1.MoveResponse, error) {
			return d.Market.Accept(ctx, req)
		})
}

func newReject(p *program) *cobra.Command {
	return newAnswer(p, "reject", "End a negotiation without agreement",
		"End a negotiation without agreement, because of the offer of the other side.",
		func(ctx context.Context, d *api.Client, req *openmeshv1.MoveRequest) (*openmeshv1.MoveResponse, error) {
			return d.Market.Reject(ctx, req)
		})
}

func newWithdraw(p *program) *cobra.Command {
	return newAnswer(p, "withdraw", "Take this agent's offer back",
		"Take this agent's offer back, which ends the negotiation. If it crosses an acceptance on its way, it is the\n"+
			"withdrawal that counts.",
		func(ctx context.Context, d *api.Client, req *openmeshv1.MoveRequest) (*openmeshv1.MoveResponse, error) {
			return d.Market.Withdraw(ctx, req)
		})
}

func newAnswer(p *program, verb, short, long string, do ending) *cobra.Command {
	var req openmeshv1.MoveRequest
	cmd := &cobra.Command{
		Use: verb + " ID", Short: short, Long: long, Args: cobra.ExactArgs(1),
		ValidArgsFunction: p.completeProposal,
		RunE: p.ask(timeToReach, aProposal().asking(func(ctx context.Context, d *api.Client, args []string) error {
			req.Proposal = args[0]
			res, err := do(ctx, d, &req)
			return p.moved(res, err)
		})),
	}
	reasonFlag(cmd, &req.Reason)
	return cmd
}

func newSettle(p *program) *cobra.Command {
	var req openmeshv1.SettleRequest
	outcomes := []string{"fulfilled", "failed"}
	cmd := &cobra.Command{
		Use: "settle ID fulfilled|failed", Short: "Say whether the work under a contract was done", Args: cobra.ExactArgs(2),
		Long: "Say whether the work under a contract was done. It is fulfilled when both sides say so, and failed when one\n" +
			"does. ID is that of the contract or of its negotiation.",
		Example: "  openmesh market settle 3f9a20 fulfilled\n  openmesh market settle 3f9a20 failed --reason 'page 7 is missing'",
		ValidArgsFunction: func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return outcomes, cobra.ShellCompDirectiveNoFileComp
			}
			return p.completeContract(cmd, args, typed)
		},
		PreRunE: func(_ *cobra.Command, args []string) error {
			req.Proposal, req.Outcome = args[0], args[1]
			if !slices.Contains(outcomes, req.Outcome) {
				return usagef("outcome %q: want %s", req.Outcome, strings.Join(outcomes, " or "))
			}
			return nil
		},
		RunE: p.ask(timeToReach, aContract().asking(func(ctx context.Context, d *api.Client, _ []string) error {
			res, err := d.Market.Settle(ctx, &req)
			return p.moved(res, err)
		})),
	}
	reasonFlag(cmd, &req.Reason)
	return cmd
}

// moved tells what became of a move, and what comes next.
func (p *program) moved(res *openmeshv1.MoveResponse, err error) error {
	if err != nil {
		return err
	}
	if err := p.showPlain(res, func(g *page) { g.text("proposal %s is %s (round %d)", res.Proposal, res.State, res.Round) }); err != nil {
		return err
	}
	if !res.Delivered {
		p.note("the other side has not answered yet; the move is sent until it does")
	}
	if next := nextStep(res); next != "" {
		p.note("%s", next)
	}
	return nil
}

func nextStep(res *openmeshv1.MoveResponse) string {
	switch res.State {
	case "proposed", "countered", "amended":
		return "the other side is to move; follow it with: openmesh market watch --proposal " + res.Proposal
	case "accepted":
		return "the contract is signed by both once the other side answers; see: openmesh market show " + res.Proposal
	case "contracted":
		return "both have signed; see: openmesh market contract show " + res.Contract
	case "settling":
		return "it is fulfilled once the other side says so too"
	}
	return ""
}
