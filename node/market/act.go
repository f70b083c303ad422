package market

import (
	"bytes"
	"context"
	"slices"
	"time"

	"openmesh/node/audit"
	"openmesh/node/market/fill"
	"openmesh/node/store"
	deal "openmesh/protocols/market"
	"openmesh/protocols/market/document"
	"openmesh/protocols/wire"
)

// Done is what became of a move of this agent.
type Done struct {
	Negotiation deal.Negotiation
	Contract    string // its id, once this agent has signed it
	Delivered   bool   // the other side has answered; if not, it is sent until it does
}

// answered is how long a move waits for the answer of the other side.
const answered = 10 * time.Second

// Propose answers a request of another agent. The document is JSON of market/proposal; what
// it leaves out is as in the request.
func (e *Engine) Propose(ctx context.Context, rfp string, given []byte) (Done, error) {
	t, err := e.sells(ctx, rfp)
	if err != nil {
		return Done{}, err
	}
	return e.make(ctx, t, e.offering(t, deal.Propose, given))
}

// Decline rejects a request of another agent.
func (e *Engine) Decline(ctx context.Context, rfp, reason string) (Done, error) {
	t, err := e.sells(ctx, rfp)
	if err != nil {
		return Done{}, err
	}
	return e.make(ctx, t, ending(deal.Reject, reason))
}

// sells returns the negotiation in which this agent is the seller.
func (e *Engine) sells(ctx context.Context, rfp string) (*talk, error) {
	if err := e.await(ctx); err != nil {
		return nil, err
	}
	r, err := e.request(ctx, rfp)
	if err != nil {
		return nil, err
	}
	if r.sent {
		return nil, wire.Errorf(wire.IllegalTransition, "request %s is this agent's own: its sellers propose", r.id)
	}
	return e.talk(ctx, r, e.cfg.Agent)
}

// Offer counters the offer of the other side, or amends this agent's own. What the
// document leaves out is as in the offer that it answers or replaces.
func (e *Engine) Offer(ctx context.Context, id string, k deal.Kind, given []byte) (Done, error) {
	t, err := e.opened(ctx, id)
	if err != nil {
		return Done{}, err
	}
	return e.make(ctx, t, e.offering(t, k, given))
}

// builder makes the move that follows on a negotiation.
type builder func(deal.Negotiation) (deal.Move, error)

func (e *Engine) offering(t *talk, k deal.Kind, given []byte) builder {
	return func(n deal.Negotiation) (deal.Move, error) { return e.offerOf(t, n, k, given) }
}

// Accept accepts the offer of the other side: this agent signs the contract.
func (e *Engine) Accept(ctx context.Context, id, reason string) (Done, error) {
	t, err := e.opened(ctx, id)
	if err != nil {
		return Done{}, err
	}
	return e.make(ctx, t, accepting(t, reason))
}

func accepting(t *talk, reason string) builder {
	return func(n deal.Negotiation) (deal.Move, error) {
		if err := allowed(n, t.role(), deal.Accept); err != nil {
			return deal.Move{}, err
		}
		if t.request.isCancelled() {
			return deal.Move{}, wire.Errorf(wire.IllegalTransition, "request %s is cancelled", t.request.id)
		}
		if t.role() == deal.Buyer {
			if err := t.request.hold(t.id, n.Table().Offer().Terms.Quantity); err != nil {
				return deal.Move{}, err
			}
		}
		return deal.Move{Kind: deal.Accept, Schema: document.SchemaContract, Reason: reason}, nil
	}
}

// bind makes an acceptance sign the contract of the offer on the table, which names the
// checkpoints that both moves carry: this one c.
func (e *Engine) bind(n deal.Negotiation, by deal.Role, m *deal.Move, c *audit.Checkpoint) (err error) {
	key, own := e.cfg.Signer()
	ours, theirs := describe(c), (*deal.Checkpoint)(nil)
	if other, err := audit.ParseCheckpointBy(n.Table().Checkpoint, certificateOf(n.Table())); err == nil {
		theirs = describe(other)
	}
	buyer, seller, cps := own, n.Table().Certificate, deal.Checkpoints{Buyer: ours, Seller: theirs}
	if by == deal.Seller {
		buyer, seller, cps = seller, buyer, deal.Checkpoints{Buyer: theirs, Seller: ours}
	}
	if _, m.Document, err = n.Draft(buyer, seller, cps, m.At); err != nil {
		return err
	}
	m.ContractSignature, err = deal.SignContract(m.Document, key)
	return err
}

// describe is what a contract says of a checkpoint.
func describe(c *audit.Checkpoint) *deal.Checkpoint {
	return document.NewCheckpoint(int64(c.Size), deal.Hash(c.Root), c.Bytes())
}

// End rejects the offer of the other side, or withdraws this agent's own.
func (e *Engine) End(ctx context.Context, id string, k deal.Kind, reason string) (Done, error) {
	t, err := e.opened(ctx, id)
	if wire.CodeOf(err) == wire.NotFound && k == deal.Reject { // of a request to which nothing was said
		if r, err := e.request(ctx, id); err == nil {
			return e.Decline(ctx, r.id, reason)
		}
	}
	if err != nil {
		return Done{}, err
	}
	return e.make(ctx, t, ending(k, reason))
}

func ending(k deal.Kind, reason string) builder {
	return func(deal.Negotiation) (deal.Move, error) { return deal.Move{Kind: k, Reason: reason}, nil }
}

// Settle says whether the work under a contract was done: deal.Fulfil or deal.Fail. The id
// is that of the negotiation or of the contract.
func (e *Engine) Settle(ctx context.Context, id string, k deal.Kind, reason string) (Done, error) {
	t, err := e.opened(ctx, id)
	if wire.CodeOf(err) == wire.NotFound {
		t, err = e.under(ctx, id)
	}
	if err != nil {
		return Done{}, err
	}
	return e.make(ctx, t, func(n deal.Negotiation) (deal.Move, error) {
		m := deal.Move{Kind: k, Reason: reason}
		m.Prev = n.Prev(k)
		return m, nil
	})
}

// cancel ends a negotiation because its request is cancelled.
func (e *Engine) cancel(ctx context.Context, t *talk, reason string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.usable(); err != nil {
		return err
	}
	return e.cancelHeld(ctx, t, reason)
}

// cancelHeld is cancel with t.mu held.
func (e *Engine) cancelHeld(ctx context.Context, t *talk, reason string) error {
	m, err := e.makeHeld(ctx, t, deal.Move{Kind: deal.Cancel, Reason: reason})
	if err == nil {
		e.tell(t, m)
		e.kick(t)
	}
	return err
}

func (e *Engine) opened(ctx context.Context, id string) (*talk, error) {
	if err := e.await(ctx); err != nil {
		return nil, err
	}
	return e.find(ctx, id)
}

// make makes a move of this agent's and waits for the answer, but not for long.
func (e *Engine) make(ctx context.Context, t *talk, build builder) (Done, error) {
	own, err := e.move(ctx, t, nil, build)
	if err != nil {
		return Done{}, err
	}
	delivered, refusal := e.waitFor(ctx, t, own.Hash)
	if refusal != 0 {
		return Done{}, wire.Errorf(refusal, "the other side would not have %s", own.Kind).WithHint("It stands here until it expires, or another move follows.")
	}
	d := Done{Negotiation: t.now(), Delivered: delivered}
	d.Contract = contractOf(d.Negotiation)
	if d.Contract == "" && own.Kind == deal.Accept {
		d.Contract = document.ContractID(own.Document)
	}
	return d, nil
}

// move makes a move of this agent's and has it sent. If head is given, it must still be
// the last move.
func (e *Engine) move(ctx context.Context, t *talk, head *deal.Hash, build builder) (*deal.Signed, error) {
	t.mu.Lock()
	n := t.now()
	m, err := deal.Move{}, t.usable()
	if err == nil && head != nil && n.Head() != *head {
		err = wire.Errorf(wire.IllegalTransition, "the other side has moved meanwhile")
	}
	if err == nil {
		m, err = build(n)
	}
	var own *deal.Signed
	if err == nil {
		own, err = e.makeHeld(ctx, t, m)
	}
	if err != nil {
		t.request.count(t.id, n) // what was held for it
		e.abandon(t)
		t.mu.Unlock()
		return nil, err
	}
	t.mu.Unlock()
	e.tell(t, own)
	e.kick(t)
	return own, nil
}

// makeHeld signs, checks and commits a move; t.mu is held.
func (e *Engine) makeHeld(ctx context.Context, t *talk, m deal.Move) (*deal.Signed, error) {
	n, now := t.now(), time.Now()
	if err := allowed(n, t.role(), m.Kind); err != nil {
		return nil, err
	}
	m.RFP, m.Author, m.To = t.request.move.Hash, e.cfg.Agent, t.peer()
	m.At = now.UTC().Truncate(time.Millisecond)
	if m.Prev.IsZero() {
		m.Prev = n.Head()
	}
	var b store.Batch
	c, err := e.cfg.Log.Promise(&b)
	if err != nil {
		return nil, err
	}
	m.Checkpoint = c.Bytes()
	if m.Kind == deal.Accept {
		if err := e.bind(n, t.role(), &m, c); err != nil {
			return nil, err
		}
	}
	own, err := e.sign(&b, m)
	if err != nil {
		return nil, err
	}
	next, _, err := n.Next(own, now)
	if err == nil {
		err = e.ownDetails(ctx, n, own)
	}
	if err != nil {
		return nil, err
	}
	return own, e.commit(ctx, t, next, "", &b, own)
}

// ownDetails checks details of an offer of this agent's, whose schema it has to have. Those
// of the offer that it answers or replaces were checked when that was made.
func (e *Engine) ownDetails(ctx context.Context, n deal.Negotiation, own *deal.Signed) error {
	if last, o := n.Table(), own.Offer(); o != nil && o.DetailsSchema != nil && last != nil {
		if was := last.Offer(); was.DetailsSchema != nil && *was.DetailsSchema == *o.DetailsSchema && bytes.Equal(was.Details, o.Details) {
			return nil
		}
	}
	return e.details(ctx, own)
}

// allowed refuses a move that the table does not have, before anything is signed.
func allowed(n deal.Negotiation, by deal.Role, k deal.Kind) error {
	now := time.Now()
	if slices.Contains(n.Legal(by, now), k) {
		return nil
	}
	err := wire.Errorf(wire.IllegalTransition, "%s by the %s in state %s", k, by, n.State(now))
	if legal := n.Legal(by, now); len(legal) > 0 {
		return err.WithHint("possible now: %v", legal)
	}
	if turn := n.Turn(now); turn != 0 {
		return err.WithHint("it is the %s's turn", turn)
	}
	return err
}

// sign signs a move with a checkpoint of this agent's log, which is stored with b.
func (e *Engine) sign(b *store.Batch, m deal.Move) (*deal.Signed, error) {
	key, cert := e.cfg.Signer()
	m.At = m.At.UTC().Truncate(time.Millisecond)
	if m.Checkpoint == nil {
		c, err := e.cfg.Log.Promise(b)
		if err != nil {
			return nil, err
		}
		m.Checkpoint = c.Bytes()
	}
	return deal.Sign(m, key, cert)
}

// waitFor waits until a move has been answered, but not for long. A code is that of a
// refusal.
func (e *Engine) waitFor(ctx context.Context, t *talk, h deal.Hash) (done bool, refusal wire.Code) {
	ctx, cancel := context.WithTimeout(ctx, answered)
	defer cancel()
	for {
		t.mu.Lock()
		waiting, changed := slices.Contains(t.unsent, h), t.changed
		if t.refused == h {
			refusal = t.reason
		}
		t.mu.Unlock()
		if !waiting {
			return true, refusal
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false, 0
		}
	}
}

// offerOf is the move that makes an offer.
func (e *Engine) offerOf(t *talk, n deal.Negotiation, k deal.Kind, given []byte) (deal.Move, error) {
	if err := allowed(n, t.role(), k); err != nil {
		return deal.Move{}, err
	}
	if n.Round() >= e.cfg.MaxRounds {
		return deal.Move{}, wire.Errorf(wire.ResourceExhausted, "%d offers were made already", n.Round()).WithHint("accept or reject")
	}
	base := deal.Proposal{
		Schema: document.SchemaProposal, RFP: t.request.move.Hash, Seller: n.Seller(), Buyer: n.Buyer(), ValidUntil: time.Now().UTC().Add(e.cfg.ProposalTTL).Truncate(time.Second),
		Terms: deal.Terms{
			Price: deal.Money{Currency: t.request.rfp.Price.Currency}, Quantity: t.request.rfp.Quantity, Delivery: t.request.rfp.Delivery,
		},
	}
	if last := n.Table(); last != nil {
		base = *last.Offer()
		if own := n.LastOffer(t.role()); k == deal.Amend && own != nil {
			base = *own.Offer()
		}
	}
	doc, err := fill.Offer(base, given)
	if err != nil {
		return deal.Move{}, err
	}
	schema := e.schemaFor(n, t)
	if doc, err = document.Rewrite(doc, document.SchemaProposal, schema); err != nil {
		return deal.Move{}, err
	}
	return deal.Move{Kind: k, Schema: schema, Document: doc}, nil
}

// schemaFor is the version of proposals that the other side has used, or speaks.
func (e *Engine) schemaFor(n deal.Negotiation, t *talk) string {
	if theirs := n.LastOffer(t.role().Other()); theirs != nil {
		return theirs.Schema
	}
	return e.cfg.Peers.Speaks(t.peer())
}
