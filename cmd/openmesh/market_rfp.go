package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/protocols/wire"
)

// answersEvery is how often a waiting command looks for new proposals.
const answersEvery = 250 * time.Millisecond

func newRFP(p *program) *cobra.Command {
	return p.noun("rfp", "Requests for proposals",
		newRFPPost(p), newRFPList(p), newRFPShow(p), newRFPCancel(p),
		newExample(p, "Print a request for proposals to start from", func() []byte { return exampleRFP(time.Now()) }))
}

func newRFPPost(p *program) *cobra.Command {
	var req openmeshv1.PostRFPRequest
	var wait limit
	cmd := &cobra.Command{
		Use: "post FILE", Short: "Ask providers of a capability for proposals", Args: cobra.ExactArgs(1),
		Long: "Ask providers of a capability for proposals: those that the directory finds, now and until the deadline of the\n" +
			"request, and all who listen for it. FILE is YAML or JSON, or - for standard input; `openmesh market rfp example`\n" +
			"prints one.\n\n" +
			"With --wait the command waits until the search has ended and all whom it found have answered, or the time is\n" +
			"over, and lists the proposals; with --json they are the member answers. It exits 6 if there is none by then. The\n" +
			"request stays open.",
		Example: "  openmesh market rfp example > rfp.yaml\n  openmesh market rfp post rfp.yaml --wait=1m",
		PreRunE: func(_ *cobra.Command, args []string) (err error) {
			req.Json, err = p.readJSON(args[0])
			return err
		},
	}
	waitFlag(cmd, &wait, "wait for proposals and list them, 30s or as in --wait=5s")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return p.ask(timeToReach+time.Duration(wait), aRequest().asking(func(ctx context.Context, d *api.Client, _ []string) error {
			r, err := d.Market.PostRFP(ctx, &req)
			if err != nil {
				return err
			}
			if wait == 0 {
				p.note("%s; see: openmesh market proposals %s", askedFor(r), r.Rfp)
				return p.showPlain(r, func(g *page) { g.posted(r) })
			}
			return p.postAndWait(ctx, d, r, time.Duration(wait))
		}))(cmd, nil)
	}
	return cmd
}

// askedFor tells whom a request was sent to.
func askedFor(r *openmeshv1.RFP) string {
	switch {
	case r.Searching:
		return "providers of " + r.Capability + " are being looked for, now and until the deadline"
	case r.Asked == 0:
		return "no provider of " + r.Capability + " was found yet; the search goes on until the deadline"
	case r.Asked == 1:
		return fmt.Sprintf("1 provider of %s was found, %d has the request", r.Capability, r.Reached)
	}
	return fmt.Sprintf("%d providers of %s were found, %d have the request", r.Asked, r.Capability, r.Reached)
}

func (g *page) posted(r *openmeshv1.RFP) {
	g.text("request %s is %s until %s", r.Rfp, r.State, r.Deadline)
}

func (p *program) postAndWait(ctx context.Context, d *api.Client, posted *openmeshv1.RFP, wait time.Duration) error {
	p.note("request %s is %s; %s", posted.Rfp, posted.State, askedFor(posted))
	r, answers, err := p.awaitAnswers(ctx, d, posted.Rfp, wait)
	if err != nil {
		return err
	}
	r.Json = posted.Json
	if err := p.showAnswers(r, answers); err != nil || len(answers) > 0 {
		return err
	}
	return wire.Errorf(wire.DeadlineExceeded, "nobody has answered request %s within %s", r.Rfp, wait).
		WithHint("it stays open; look later: openmesh market proposals %s", r.Rfp)
}

// awaitAnswers waits for what the agents that have a request say to it.
func (p *program) awaitAnswers(
	ctx context.Context, d *api.Client, rfp string, wait time.Duration,
) (*openmeshv1.RFP, []*openmeshv1.Proposal, error) {
	over := time.After(wait)
	for told, last := 0, false; ; {
		r, err := d.Market.ShowRFP(ctx, &openmeshv1.ShowRFPRequest{Rfp: rfp})
		if err != nil {
			return nil, nil, err
		}
		res, err := d.Market.ListProposals(ctx, &openmeshv1.ListProposalsRequest{Rfp: rfp, All: true}) // who is not awaited is in it
		if err != nil {
			return nil, nil, err
		}
		answers := answered(res.Proposals)
		if len(answers) > told {
			told = len(answers)
			p.note("%s", answeredBy(told, r))
		}
		if last || r.State != "open" || told > 0 && !r.Searching && r.Awaited == 0 {
			return r, answers, nil
		}
		select {
		case <-over:
			last = true // what came meanwhile counts
		case <-time.After(answersEvery):
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

// answeredBy tells how many have answered, and who may yet.
func answeredBy(told int, r *openmeshv1.RFP) string {
	switch {
	case r.Searching:
		return fmt.Sprintf("%d answered so far; providers are still being looked for", told)
	case r.Awaited > 0:
		return fmt.Sprintf("%d answered so far; %d more were asked", told, r.Awaited)
	}
	return fmt.Sprintf("%d answered, as did all who were asked", told)
}

// answered leaves out negotiations in which the seller has not spoken.
func answered(all []*openmeshv1.Proposal) (out []*openmeshv1.Proposal) {
	for _, n := range all {
		if n.State != "rfp" {
			out = append(out, n)
		}
	}
	return out
}

func (p *program) showAnswers(r *openmeshv1.RFP, answers []*openmeshv1.Proposal) error {
	if !p.json {
		return p.print(func(g *page) {
			g.posted(r)
			g.negotiations(answers)
		})
	}
	doc, err := plain(r)
	if err != nil {
		return err
	}
	list, err := plain(&openmeshv1.ListProposalsResponse{Proposals: answers})
	if err != nil {
		return err
	}
	list = []byte(strings.TrimPrefix(string(list), `{"proposals":`))
	return p.document(append(append(doc[:len(doc)-1], `,"answers":`...), list...))
}

func newRFPList(p *program) *cobra.Command {
	var req openmeshv1.ListRFPsRequest
	var sent, received bool
	cmd := &cobra.Command{
		Use: "list", Short: "List requests for proposals, newest first", Args: cobra.NoArgs,
		Long: "List requests for proposals, newest first: those of this agent and those that reached it. One that reached it is\n" +
			"listed until its deadline, until what was negotiated about it has ended, or for 7 days if nothing was; with --all\n" +
			"also later. It can be answered until its deadline.",
	}
	cmd.Flags().BoolVar(&sent, "sent", false, "only those of this agent")
	cmd.Flags().BoolVar(&received, "received", false, "only those of others")
	cmd.Flags().BoolVar(&req.All, "all", false, "also those that have ended")
	cmd.Flags().Uint32Var(&req.Limit, "limit", 100, "number of requests, at most 1000")
	cmd.MarkFlagsMutuallyExclusive("sent", "received")
	cmd.RunE = p.ask(timeToLook, func(ctx context.Context, d *api.Client, _ []string) error {
		switch {
		case sent:
			req.Direction = "sent"
		case received:
			req.Direction = "received"
		}
		res, err := d.Market.ListRFPs(ctx, &req)
		if err != nil {
			return err
		}
		return p.showPlain(res, func(g *page) { g.requests(res.Rfps) })
	})
	return cmd
}

func (g *page) requests(all []*openmeshv1.RFP) {
	var rows [][]string
	for _, r := range all {
		rows = append(rows, []string{
			g.brief(r.Rfp), r.Direction, g.id(r.Buyer), r.State, r.Item, fmt.Sprint(r.Quantity), fmt.Sprint(r.Awarded), priceRange(r),
			r.Capability, fmt.Sprint(r.Proposals), g.when(r.Deadline, time.Now()),
		})
	}
	g.table(strings.Fields("RFP DIRECTION BUYER STATE ITEM QUANTITY AWARDED PRICE CAPABILITY PROPOSALS DEADLINE"), rows)
}

// brief shortens the id of something in the market where people read it. What is
// left can be given to any command.
func (g *page) brief(id string) string {
	const shown = 16
	if !g.terminal || len(id) <= shown {
		return id
	}
	return id[:shown]
}

func priceRange(r *openmeshv1.RFP) string {
	switch {
	case r.MinPrice == "" && r.MaxPrice == "":
		return "any " + r.Currency
	case r.MinPrice == "":
		return "up to " + r.MaxPrice + " " + r.Currency
	case r.MaxPrice == "":
		return "from " + r.MinPrice + " " + r.Currency
	}
	return r.MinPrice + "–" + r.MaxPrice + " " + r.Currency
}

func newRFPShow(p *program) *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show a request for proposals with its document", Args: cobra.ExactArgs(1),
		Long:              "Show a request for proposals with its document. ID is its id or a prefix that only it has.",
		ValidArgsFunction: p.completeRFP,
		RunE: p.ask(timeToLook, aRequest().asking(func(ctx context.Context, d *api.Client, args []string) error {
			r, err := d.Market.ShowRFP(ctx, &openmeshv1.ShowRFPRequest{Rfp: args[0]})
			if err != nil {
				return err
			}
			return p.showPlain(r, func(g *page) { g.request(r) })
		})),
	}
}

func (g *page) request(r *openmeshv1.RFP) {
	now := time.Now()
	pairs := []string{
		"rfp", r.Rfp, "state", r.State, "direction", r.Direction, "buyer", r.Buyer, "item", r.Item,
		"quantity", fmt.Sprintf("%d, %d under contract, %d reserved", r.Quantity, r.Awarded, r.Reserved),
		"price", priceRange(r), "capability", r.Capability, "deadline", g.when(r.Deadline, now), "created", g.when(r.Created, now),
		"proposals", fmt.Sprint(r.Proposals),
	}
	if r.Direction == "sent" {
		pairs = append(pairs, "sent to", fmt.Sprintf("%d agents, %d have it", r.Asked, r.Reached))
	}
	g.fields(append(pairs, "hash", r.Hash)...)
	g.attached(r.Json)
}

// attached prints the document of what was printed above it.
func (g *page) attached(doc string) {
	if doc != "" {
		g.text("")
		g.json([]byte(doc))
	}
}

func newRFPCancel(p *program) *cobra.Command {
	var req openmeshv1.CancelRFPRequest
	cmd := &cobra.Command{
		Use: "cancel ID", Short: "End a request for proposals", Args: cobra.ExactArgs(1),
		Long:              "End a request for proposals of this agent, and what is negotiated under it and not accepted yet.",
		ValidArgsFunction: p.completeRFP,
		RunE: p.ask(timeToReach, aRequest().asking(func(ctx context.Context, d *api.Client, args []string) error {
			req.Rfp = args[0]
			r, err := d.Market.CancelRFP(ctx, &req)
			if err != nil {
				return err
			}
			return p.showPlain(r, func(g *page) { g.text("request %s is %s", r.Rfp, r.State) })
		})),
	}
	reasonFlag(cmd, &req.Reason)
	return cmd
}

func reasonFlag(cmd *cobra.Command, reason *string) {
	cmd.Flags().StringVar(reason, "reason", "", "why, for the other side; at most 256 bytes")
}
