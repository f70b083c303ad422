package node

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/node/handlers"
	"openmesh/node/handlers/capability"
	"openmesh/protocols/descriptor"
	"openmesh/protocols/identity"
	deal "openmesh/protocols/market"
	"openmesh/protocols/session"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// Work under a market contract is done in sessions that cite it. The buyer opens
// them, and the seller counts the requests that come there:
//
//	buyer                                     seller
//	Offer{contract{market: id}}  ───────────▶ Admit: a party, in force, not used up?
//	        request              ───────────▶ Begin: one unit of that capability
//	                                            handler
//	        response             ◀─────────── done: the handler failed? give it back

// Deals are the market contracts that this agent has signed, as sessions and
// calls need them. A contract's id is 32 hex digits. Errors are wire errors that
// say what to do; methods are safe for concurrent use.
type Deals interface {
	// Terms returns a contract of which this agent is a party. For people, a
	// prefix of at least 6 digits will do if it is unique. wire.NotFound: there
	// is none; wire.InvalidArgument: several begin like this.
	Terms(ctx context.Context, contract string) (Deal, error)

	// Admit reports whether buyer may open a session under a contract that this
	// agent sells. wire.NotFound: it is unknown, or another's; wire.Denied: it is
	// not in force, or used up.
	Admit(ctx context.Context, contract string, buyer identity.AgentID) error

	// Begin takes one unit of a contract that this agent sells, durably, for a
	// request of buyer; errors are those of Admit, and wire.Denied if the
	// contract's capability neither is the one asked for nor a prefix of it. The
	// key, never empty, names the request: it takes one unit, however often it
	// comes, until that is given back. done must be called once, with whether the
	// work was done: false gives the unit back.
	Begin(ctx context.Context, contract, capability, key string, buyer identity.AgentID) (done func(ok bool), err error)
}

// Deal is what a market contract says about the work done under it.
type Deal struct {
	ID                    string // 32 hex digits
	Buyer, Seller         identity.AgentID
	Capability            string
	Version               string // semver range; empty: any
	ValidFrom, ValidUntil time.Time
	Quantity, Used        int64  // units: requests
	State                 string // of the negotiation, such as "contracted"
}

// admitWork is asked when an agent offers a session that cites a market contract.
func (n *Node) admitWork(ctx context.Context, c *identity.Certificate, offered signal.Contract) error {
	return n.deals.Admit(ctx, offered.Market, c.Agent)
}

// cited is the market contract that a request of the other side is made under, or
// "", and the name of the request for it. Who opened the session is the buyer: what
// the seller asks of him there is outside of the contract. A message has the same
// name whenever it comes. Other requests come once: of what is asked twice, with
// whatever key, the work is done twice.
func cited(in *session.Inbound) (contract, key string) {
	contract = in.Session.Contract().Market
	switch {
	case contract == "" || in.Session.Opener():
		return "", ""
	case in.Message:
		return contract, in.Session.Names().Session + "/" + strconv.FormatUint(in.ID, 10)
	}
	return contract, rand.Text()
}

// work is what is done for one request; done tells the contract that it is made
// under how it ended, and is nil without one.
type work struct{ done func(ok bool) }

// beginWork takes a unit of the contract that a request is made under. What the
// capability does under a contract only it does for nothing else.
func (n *Node) beginWork(ctx context.Context, c *capability.Capability, req *handlers.Request, key string) (work, error) {
	switch {
	case req.Contract == "" && c.ContractRequired:
		return work{}, wire.Errorf(wire.Denied, "%s is done under a market contract only", c.Name)
	case req.Contract == "":
		return work{}, nil
	}
	done, err := n.deals.Begin(ctx, req.Contract, c.Name, key, identity.AgentID(req.CallerAgent))
	return work{done}, err
}

// end tells how the work ended. If the handler failed the unit is given back; not if
// the caller, whose context is ctx, gave up.
func (w work) end(ctx context.Context, err error) {
	if w.done != nil {
		w.done(err == nil || ctx.Err() != nil || wire.CodeOf(err) == wire.Cancelled)
	}
}

// producing is produce with which the work ends.
func (w work) producing(produce producer) producer {
	return func(ctx context.Context, send func([]byte) error) error {
		result := error(wire.Internal) // a panic's
		defer func() { w.end(ctx, result) }()
		result = produce(ctx, send)
		return result
	}
}

// purchase is the contract that a call or session of this agent's is to cite, which
// makes this agent its buyer.
func (n *Node) purchase(ctx context.Context, contract string) (Deal, error) {
	d, err := n.deals.Terms(ctx, contract)
	if err == nil && d.Buyer != n.cfg.Keys.Agent {
		err = wire.Errorf(wire.InvalidArgument, "market contract %s: this agent is the seller", d.ID).
			WithHint("the buyer, %s, calls", d.Buyer)
	}
	return d, err
}

// underContract is a call as its contract has it: to the seller, for what he sold.
func (n *Node) underContract(ctx context.Context, r *openmeshv1.CallRequest) (*openmeshv1.CallRequest, Deal, error) {
	if r.Contract == "" {
		return r, Deal{}, nil
	}
	d, err := n.purchase(ctx, r.Contract)
	if err != nil {
		return nil, d, err
	}
	name, version, err := n.ofSeller(ctx, d, r.Target, r.Version)
	if err != nil {
		return nil, d, err
	}
	if r.Capability != "" && name != "" && r.Capability != name {
		return nil, d, wire.Errorf(wire.InvalidArgument, "target %s and capability %s name different things", r.Target, r.Capability).
			WithHint("leave out --capability")
	}
	r = proto.CloneOf(r)
	r.Capability = cmp.Or(r.Capability, name, d.Capability)
	if !descriptor.Covers(d.Capability, r.Capability) {
		return nil, d, d.otherThing(r.Capability)
	}
	r.Contract, r.Target, r.Version = d.ID, string(d.Seller), cmp.Or(version, d.Version)
	return r, d, nil
}

// ofSeller checks that a target, which may be empty, leads to the seller of d. If it
// names a capability, that is returned, with the range of versions.
func (n *Node) ofSeller(ctx context.Context, d Deal, target, version string) (name, span string, err error) {
	if target == "" {
		return "", version, nil
	}
	name, span, err = splitVersion(target, version)
	switch {
	case err != nil:
		return "", "", err
	case !isCapability(name):
		return "", version, n.isSeller(ctx, d, target)
	case !descriptor.Covers(d.Capability, name):
		return "", "", d.otherThing(name)
	}
	return name, span, nil
}

// isSeller checks that an agent id or address is that of the seller of d.
func (n *Node) isSeller(ctx context.Context, d Deal, target string) error {
	if target == string(d.Seller) {
		return nil
	}
	a, err := n.resolve(ctx, target)
	if err == nil && a.ID != d.Seller {
		err = wire.Errorf(wire.InvalidArgument, "target %s is not the seller of market contract %s", target, d.ID).
			WithHint("leave the target out, or name %s", d.Seller)
	}
	return err
}

func (d Deal) otherThing(name string) error {
	return wire.Errorf(wire.InvalidArgument, "market contract %s is for %s, not for %s", d.ID, d.Capability, name).
		WithHint("leave the target out")
}

// explain adds to the error of a call or session under d what this side knows of the reason:
// only its code came.
func (d Deal) explain(err error, now time.Time) error {
	if d.ID == "" {
		return err
	}
	switch wire.CodeOf(err) {
	case wire.Denied, wire.NotFound, wire.Unsupported:
	default:
		return err
	}
	hint := fmt.Sprintf("see what it allows with: openmesh market contract show %s", d.ID)
	switch {
	case d.State != deal.Contracted.String() && d.State != deal.Settling.String():
		hint = fmt.Sprintf("market contract %s is %s", d.ID, d.State)
	case now.Before(d.ValidFrom):
		hint = fmt.Sprintf("market contract %s begins at %s", d.ID, d.ValidFrom.UTC().Format(time.RFC3339))
	case !now.Before(d.ValidUntil):
		hint = fmt.Sprintf("market contract %s ran out at %s", d.ID, d.ValidUntil.UTC().Format(time.RFC3339))
	case d.Used >= d.Quantity:
		hint = fmt.Sprintf("all %d units of market contract %s are used", d.Quantity, d.ID)
	}
	return hinted(err, hint)
}

// unbound adds to the refusal of a request outside of contracts that there may be
// one to make.
func unbound(r *openmeshv1.CallRequest, err error) error {
	if r.Contract != "" || wire.CodeOf(err) != wire.Denied {
		return err
	}
	return hinted(err, "it may be done under a market contract only: agree on one (openmesh market rfp example), then call with --contract ID")
}

// hinted is err with a hint, if it has none.
func hinted(err error, hint string) error {
	var e *wire.Error
	if !errors.As(err, &e) {
		return &wire.Error{Code: wire.CodeOf(err), Message: err.Error(), Hint: hint, Err: err}
	}
	if e.Hint != "" {
		return err
	}
	named := *e
	named.Hint = hint
	return &named
}
