package node

import (
	"cmp"
	"context"
	"slices"
	"time"

	"connectrpc.com/connect"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/node/catalog"
	"openmesh/node/market"
	deal "openmesh/protocols/market"
	"openmesh/protocols/market/contract"
	"openmesh/protocols/wire"
)

// marketAPI serves openmesh.v1.Market.
type marketAPI struct{ *Node }

// Lists have at most maxListed rows; defaultListed if the caller does not say.
const defaultListed, maxListed = 100, 1000

func listed(limit uint32) int { return min(int(cmp.Or(limit, defaultListed)), maxListed) }

func (n marketAPI) PostRFP(ctx context.Context, r *openmeshv1.PostRFPRequest) (*openmeshv1.RFP, error) {
	s, err := n.market.PostRFP(ctx, []byte(r.Json))
	if err != nil {
		return nil, err
	}
	return rfpDetail(s), nil
}

func (n marketAPI) ListRFPs(ctx context.Context, r *openmeshv1.ListRFPsRequest) (*openmeshv1.ListRFPsResponse, error) {
	d, ok := map[string]market.Direction{"": market.Both, "sent": market.Sent, "received": market.Received}[r.Direction]
	if !ok {
		return nil, wire.Errorf(wire.InvalidArgument, "direction %q: want sent or received", r.Direction)
	}
	all, err := n.market.Requests(ctx, d, r.All, listed(r.Limit))
	if err != nil {
		return nil, err
	}
	resp := &openmeshv1.ListRFPsResponse{Rfps: []*openmeshv1.RFP{}}
	for _, s := range all {
		resp.Rfps = append(resp.Rfps, rfpMessage(s))
	}
	return resp, nil
}

func (n marketAPI) ShowRFP(ctx context.Context, r *openmeshv1.ShowRFPRequest) (*openmeshv1.RFP, error) {
	s, err := n.market.Request(ctx, r.Rfp)
	if err != nil {
		return nil, err
	}
	return rfpDetail(s), nil
}

func (n marketAPI) CancelRFP(ctx context.Context, r *openmeshv1.CancelRFPRequest) (*openmeshv1.RFP, error) {
	s, err := n.market.CancelRFP(ctx, r.Rfp, r.Reason)
	if err != nil {
		return nil, err
	}
	return rfpDetail(s), nil
}

func rfpMessage(s market.RequestState) *openmeshv1.RFP {
	rfp := s.Move.Request()
	m := &openmeshv1.RFP{
		Rfp: s.Move.Hash.ID(), Buyer: string(rfp.Buyer), State: s.State, Item: rfp.Item, Quantity: uint64(rfp.Quantity),
		Awarded: uint64(s.Awarded), Reserved: uint64(s.Reserved), Currency: rfp.Price.Currency, Capability: rfp.Capability,
		Deadline: stamp(rfp.Deadline), Created: stamp(rfp.Created), Direction: "received",
		Asked: uint32(s.Asked), Reached: uint32(s.Reached), Proposals: uint32(s.Sellers), Hash: s.Move.Hash.String(),
		Searching: s.Searching, Awaited: uint32(s.Awaited),
	}
	if s.Sent {
		m.Direction = "sent"
	}
	m.MinPrice, m.MaxPrice = rfp.Price.Min.String(), rfp.Price.Max.String()
	return m
}

func rfpDetail(s market.RequestState) *openmeshv1.RFP {
	m := rfpMessage(s)
	m.Json = string(s.Move.Document)
	return m
}

func (n marketAPI) ListProposals(ctx context.Context, r *openmeshv1.ListProposalsRequest) (*openmeshv1.ListProposalsResponse, error) {
	all, err := n.market.Negotiations(ctx, r.Rfp, r.All, listed(r.Limit))
	if err != nil {
		return nil, err
	}
	resp := &openmeshv1.ListProposalsResponse{Proposals: []*openmeshv1.Proposal{}}
	for _, s := range all {
		resp.Proposals = append(resp.Proposals, n.proposalMessage(s))
	}
	return resp, nil
}

func (n marketAPI) ShowProposal(ctx context.Context, r *openmeshv1.ShowProposalRequest) (*openmeshv1.Proposal, error) {
	s, err := n.market.Negotiation(ctx, r.Proposal)
	if err != nil {
		return nil, err
	}
	m := n.proposalMessage(s)
	if table := s.Negotiation.Table(); table != nil {
		doc, err := table.Offer().Canonical()
		if err != nil {
			return nil, err
		}
		m.Json = string(doc)
	}
	m.Moves = moveMessages(s.Negotiation)
	return m, nil
}

func (n marketAPI) proposalMessage(s market.NegotiationState) *openmeshv1.Proposal {
	now, d := time.Now(), s.Negotiation
	m := &openmeshv1.Proposal{
		Proposal: d.ID(), Rfp: d.RFP().Hash.ID(), Seller: string(d.Seller()), Buyer: string(d.Buyer()),
		State: d.State(now).String(), Round: uint32(d.Round()), Role: d.RoleOf(n.cfg.Keys.Agent).String(),
		Offeror: d.Offeror().String(), Unsent: uint32(s.Unsent), Contract: s.Contract,
	}
	if turn := d.Turn(now); turn != 0 {
		m.Turn = turn.String()
		m.Expires = stamp(d.Deadline())
	}
	if table := d.Table(); table != nil {
		t := table.Offer().Terms
		m.Price, m.Currency, m.Quantity, m.Total = t.Price.Amount.String(), t.Price.Currency, uint64(t.Quantity), t.Total().String()
	}
	return m
}

// moveMessages are all moves of a negotiation, with what each changed; those that lost
// against others come last.
func moveMessages(d deal.Negotiation) []*openmeshv1.Move {
	list := []*openmeshv1.Move{moveMessage(d, d.RFP())}
	var last *deal.Signed
	for _, m := range d.Moves() {
		msg := moveMessage(d, m)
		if m.Offer() != nil {
			if last != nil {
				for _, c := range deal.Diff(last.Offer(), m.Offer()) {
					msg.Changes = append(msg.Changes, &openmeshv1.Change{Path: c.Path, From: string(c.From), To: string(c.To)})
				}
			}
			last = m
		}
		list = append(list, msg)
	}
	for _, m := range d.Superseded() {
		msg := moveMessage(d, m)
		msg.Superseded, msg.State = true, ""
		list = append(list, msg)
	}
	return list
}

func moveMessage(d deal.Negotiation, m *deal.Signed) *openmeshv1.Move {
	msg := &openmeshv1.Move{
		Move: m.Kind.String(), By: d.RoleOf(m.Author).String(), At: stamp(m.At), State: d.StateAfter(m.Hash).String(),
		Hash: m.Hash.String(), Reason: m.Reason, Json: string(m.Document), Schema: m.Schema,
	}
	if m.Kind != deal.Request {
		msg.Prev = m.Prev.String()
	}
	if o := m.Offer(); o != nil {
		msg.Price, msg.Quantity = o.Terms.Price.Amount.String(), uint64(o.Terms.Quantity)
	}
	return msg
}

func (n marketAPI) Propose(ctx context.Context, r *openmeshv1.ProposeRequest) (*openmeshv1.MoveResponse, error) {
	if err := checkJSON(r.Json); err != nil {
		return nil, err
	}
	return moved(n.market.Propose(ctx, r.Rfp, []byte(r.Json)))
}

func (n marketAPI) Counter(ctx context.Context, r *openmeshv1.OfferRequest) (*openmeshv1.MoveResponse, error) {
	return n.offer(ctx, r, deal.Counter)
}

func (n marketAPI) Amend(ctx context.Context, r *openmeshv1.OfferRequest) (*openmeshv1.MoveResponse, error) {
	return n.offer(ctx, r, deal.Amend)
}

func (n marketAPI) offer(ctx context.Context, r *openmeshv1.OfferRequest, k deal.Kind) (*openmeshv1.MoveResponse, error) {
	if err := checkJSON(r.Json); err != nil {
		return nil, err
	}
	return moved(n.market.Offer(ctx, r.Proposal, k, []byte(r.Json)))
}

func (n marketAPI) Accept(ctx context.Context, r *openmeshv1.MoveRequest) (*openmeshv1.MoveResponse, error) {
	return moved(n.market.Accept(ctx, r.Proposal, r.Reason))
}

func (n marketAPI) Reject(ctx context.Context, r *openmeshv1.MoveRequest) (*openmeshv1.MoveResponse, error) {
	return moved(n.market.End(ctx, r.Proposal, deal.Reject, r.Reason))
}

func (n marketAPI) Withdraw(ctx context.Context, r *openmeshv1.MoveRequest) (*openmeshv1.MoveResponse, error) {
	return moved(n.market.End(ctx, r.Proposal, deal.Withdraw, r.Reason))
}

func (n marketAPI) Settle(ctx context.Context, r *openmeshv1.SettleRequest) (*openmeshv1.MoveResponse, error) {
	kinds := map[string]deal.Kind{"fulfilled": deal.Fulfil, "failed": deal.Fail}
	k, ok := kinds[r.Outcome]
	if !ok {
		return nil, wire.Errorf(wire.InvalidArgument, "outcome %q: want fulfilled or failed", r.Outcome)
	}
	return moved(n.market.Settle(ctx, r.Proposal, k, r.Reason))
}

func moved(d market.Done, err error) (*openmeshv1.MoveResponse, error) {
	if err != nil {
		return nil, err
	}
	return &openmeshv1.MoveResponse{
		Proposal: d.Negotiation.ID(), State: d.Negotiation.State(time.Now()).String(), Round: uint32(d.Negotiation.Round()),
		Contract: d.Contract, Delivered: d.Delivered,
	}, nil
}

func (n marketAPI) ListContracts(ctx context.Context, r *openmeshv1.ListContractsRequest) (*openmeshv1.ListContractsResponse, error) {
	all, err := n.market.Contracts(ctx, r.All, listed(r.Limit))
	if err != nil {
		return nil, err
	}
	resp := &openmeshv1.ListContractsResponse{Contracts: []*openmeshv1.MarketContract{}}
	for _, d := range all {
		m, err := n.contractMessage(ctx, d)
		if err != nil {
			return nil, err
		}
		resp.Contracts = append(resp.Contracts, m)
	}
	return resp, nil
}

func (n marketAPI) ShowContract(ctx context.Context, r *openmeshv1.ShowContractRequest) (*openmeshv1.MarketContract, error) {
	d, err := n.market.Contract(ctx, r.Contract)
	if err != nil {
		return nil, err
	}
	m, err := n.contractMessage(ctx, d)
	if err == nil {
		m.Json = string(d.Agreement().Document)
	}
	return m, err
}

func (n marketAPI) ExportContract(ctx context.Context, r *openmeshv1.ShowContractRequest) (*openmeshv1.ExportContractResponse, error) {
	d, err := n.market.Contract(ctx, r.Contract)
	if err != nil {
		return nil, err
	}
	text, err := contract.Export(d)
	return &openmeshv1.ExportContractResponse{Json: string(text)}, err
}

func (n marketAPI) contractMessage(ctx context.Context, d deal.Negotiation) (*openmeshv1.MarketContract, error) {
	a := d.Agreement()
	if a == nil {
		return nil, wire.Errorf(wire.NotFound, "negotiation %s has no contract", d.ID())
	}
	used, err := n.market.Used(ctx, a.ID)
	if err != nil {
		return nil, err
	}
	c := a.Contract
	m := &openmeshv1.MarketContract{
		Contract: a.ID, Rfp: d.RFP().Hash.ID(), Proposal: d.ID(), Buyer: string(d.Buyer()), Seller: string(d.Seller()),
		State: d.State(time.Now()).String(), Item: c.Terms.Item, Price: c.Terms.Price.Amount.String(), Currency: c.Terms.Price.Currency,
		Quantity: uint64(c.Terms.Quantity), Total: c.Terms.Total.String(), Capability: c.Terms.Capability, Used: uint64(used),
		ValidFrom: stamp(c.ValidFrom), ValidUntil: stamp(c.ValidUntil), Role: d.RoleOf(n.cfg.Keys.Agent).String(),
	}
	for _, by := range []*deal.Signed{a.Accept, a.Conclude} {
		if by != nil {
			err := deal.VerifyContract(a.Document, by.ContractSignature, by.Certificate)
			m.Signatures = append(m.Signatures, &openmeshv1.ContractSignature{Agent: string(by.Author), Ok: err == nil, KeyVersion: by.Certificate.Version})
		}
	}
	for _, move := range d.Moves() {
		outcome := map[deal.Kind]string{deal.Fulfil: "fulfilled", deal.Fail: "failed"}[move.Kind]
		if outcome != "" {
			m.Settlements = append(m.Settlements, &openmeshv1.Settlement{Agent: string(move.Author), Outcome: outcome, Reason: move.Reason, At: stamp(move.At)})
		}
	}
	return m, nil
}

// Watch sends events until the client goes.
func (n marketAPI) Watch(ctx context.Context, r *openmeshv1.WatchMarketRequest, out *connect.ServerStream[openmeshv1.MarketEvent]) error {
	all, stop := n.market.Watch()
	defer stop()
	if err := out.Send(nil); err != nil { // the headers: the client knows that it hears from now on
		return err
	}
	for {
		select {
		case ev := <-all:
			if m := n.eventMessage(ev); concerns(m, r) {
				if err := out.Send(m); err != nil {
					return err
				}
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// concerns reports whether a watcher wants to hear of an event.
func concerns(m *openmeshv1.MarketEvent, r *openmeshv1.WatchMarketRequest) bool {
	of := func(id, prefix string) bool { return len(id) >= len(prefix) && id[:len(prefix)] == prefix }
	return of(m.Rfp, r.Rfp) && of(m.Proposal, r.Proposal)
}

func (n marketAPI) eventMessage(ev market.Event) *openmeshv1.MarketEvent {
	m := &openmeshv1.MarketEvent{
		Event: ev.Event, Rfp: ev.RFP, Contract: ev.Contract, From: string(ev.From), At: ev.At.UTC().Format(time.RFC3339Nano),
	}
	if d := ev.Negotiation; d != nil {
		m.Proposal, m.State, m.Round = d.ID(), d.State(ev.At).String(), uint32(d.Round())
		m.Role = d.RoleOf(n.cfg.Keys.Agent).String()
		if turn := d.Turn(ev.At); turn != 0 {
			m.Turn = turn.String()
		}
		if table := d.Table(); table != nil {
			m.Price = table.Offer().Terms.Price.Amount.String()
		}
	}
	return m
}

func (n marketAPI) ListSchemas(context.Context, *openmeshv1.ListSchemasRequest) (*openmeshv1.ListSchemasResponse, error) {
	resp := &openmeshv1.ListSchemasResponse{Schemas: []*openmeshv1.MarketSchema{}}
	for _, e := range n.catalog.List() {
		m := schemaEntry(e)
		m.Json = ""
		resp.Schemas = append(resp.Schemas, m)
	}
	return resp, nil
}

func (n marketAPI) GetSchema(ctx context.Context, r *openmeshv1.GetSchemaRequest) (*openmeshv1.MarketSchema, error) {
	e, err := n.catalog.Get(r.Schema)
	if err != nil && r.Agent != "" && wire.CodeOf(err) == wire.NotFound {
		from, unknown := n.resolve(ctx, r.Agent)
		if unknown != nil {
			return nil, unknown
		}
		e, err = n.catalog.Fetch(ctx, from.ID, r.Schema)
	}
	if err != nil {
		return nil, err
	}
	return schemaEntry(e), nil
}

func (n marketAPI) AddSchema(_ context.Context, r *openmeshv1.AddSchemaRequest) (*openmeshv1.MarketSchema, error) {
	e, err := n.catalog.Add(r.Name, []byte(r.Json))
	if err != nil {
		return nil, err
	}
	return schemaEntry(e), nil
}

func schemaEntry(e catalog.Entry) *openmeshv1.MarketSchema {
	return &openmeshv1.MarketSchema{Name: e.Name, Cid: e.CID, Source: string(e.Source), Json: string(slices.Clone(e.Text))}
}
