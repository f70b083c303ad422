package node

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/Masterminds/semver/v3"
	"github.com/libp2p/go-libp2p/core/crypto"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/node/audit"
	"openmesh/node/audit/replay"
	"openmesh/node/automation"
	"openmesh/node/catalog"
	"openmesh/node/handlers"
	"openmesh/node/market"
	"openmesh/overlay/directory"
	"openmesh/overlay/topic"
	"openmesh/protocols/descriptor"
	"openmesh/protocols/identity"
	deal "openmesh/protocols/market"
	"openmesh/protocols/market/document"
	"openmesh/protocols/schema"
	"openmesh/protocols/schema/translate"
	"openmesh/protocols/wire"
)

// Capabilities that every agent has, without announcing them: how negotiations and
// schemas get from one to another.
const (
	serviceMarket = services + "/market"
	serviceSchema = catalog.Capability
)

// newMarket returns this agent's dealings.
func (n *Node) newMarket() *market.Engine {
	s := n.settings.Market
	return market.New(market.Config{
		Agent: n.cfg.Keys.Agent, Signer: n.signer, Verify: n.verifier.Verify, VerifyFrom: n.verifyFrom,
		DB: n.database, Log: n.audit, Peers: trading{n},
		Offers: n.offers, Details: n.checkDetails, Decide: n.decide,
		ProposalTTL: s.ProposalTTL, MaxOpen: s.MaxOpen, MaxRounds: s.MaxRounds, Reach: s.Reach,
		Observe: func(direction string, k deal.Kind, err error) { n.metrics.MarketMove(direction, k.String(), err) }, Logger: n.log.Named("market"),
	})
}

func (n *Node) signer() (crypto.PrivKey, *identity.Certificate) {
	return n.cfg.Keys.Host, n.cfg.Keys.Certificate
}

// verifyFrom verifies the certificate of what came over a session. It may be a former one,
// for the agent at the other end has proved to have the newest.
func (n *Node) verifyFrom(id string, cert []byte) (*identity.Certificate, error) {
	c, err := n.verifier.Verify(cert)
	if err == nil || !errors.Is(err, wire.KeyExpired) && !errors.Is(err, wire.KeySuperseded) {
		return c, err
	}
	s, _, missing := n.sessions.Find(id)
	if missing != nil || s == nil {
		return nil, err
	}
	return n.verifier.VerifyFormer(cert, s.Peer())
}

func (n *Node) auditConfig() audit.Config {
	return audit.Config{
		DB: n.database, Agent: n.cfg.Keys.Agent, Signer: n.signer, Related: replay.Related, Retention: n.settings.Audit.Retention,
		Log: n.log.Named("audit"),
	}
}

func (n *Node) topicConfig() topic.Config {
	return topic.Config{
		Host: n.host, Realm: n.verifier.Realm(), Key: n.cfg.Keys.Host, Certificate: n.cfg.Keys.Certificate, Verify: n.verifier.Verify,
		Relay:   slices.Contains(n.settings.Node.Roles, "backbone") || slices.Contains(n.settings.Node.Roles, "relay"),
		Metrics: n.metrics.Registry(), Log: n.log.Named("topic"),
	}
}

func (n *Node) catalogConfig() catalog.Config {
	return catalog.Config{
		BuiltIn: builtin(), Dir: orDefault(n.settings.Market.Schemas, filepath.Join(n.cfg.Home, "schemas")), Fetch: n.fetchSchema, Log: n.log.Named("schemas"),
	}
}

// deals are the contracts of this node's own market.
type deals struct{ n *Node }

// Terms implements [Deals].
func (d deals) Terms(ctx context.Context, id string) (Deal, error) {
	n, err := d.n.market.Contract(ctx, id)
	if err != nil {
		return Deal{}, err
	}
	a := n.Agreement()
	if a == nil || a.Conclude == nil {
		return Deal{}, wire.Errorf(wire.NotFound, "there is no contract %s", id)
	}
	used, err := d.n.market.Used(ctx, a.ID)
	t := a.Contract.Terms
	return Deal{
		ID: a.ID, Buyer: n.Buyer(), Seller: n.Seller(), Capability: t.Capability, Version: t.Version,
		ValidFrom: a.Contract.ValidFrom, ValidUntil: a.Contract.ValidUntil, Quantity: t.Quantity, Used: used, State: n.State(time.Now()).String(),
	}, err
}

// Admit implements [Deals].
func (d deals) Admit(ctx context.Context, id string, buyer identity.AgentID) error {
	return d.n.market.Admit(ctx, id, buyer)
}

// Begin implements [Deals].
func (d deals) Begin(ctx context.Context, id, capability, key string, buyer identity.AgentID) (func(bool), error) {
	return d.n.market.Begin(ctx, id, capability, key, buyer)
}

// loadAutomation reads who takes part in negotiations by itself.
func (n *Node) loadAutomation() {
	var problems []error
	n.automation, problems = automation.New(automation.Config{
		Dir: filepath.Join(n.cfg.Home, "automation"), Registry: n.registry, Sell: n.settings.Market.Sell,
	})
	for _, err := range problems {
		n.log.Error("automation left out", zap.Error(err))
	}
}

// decide implements [market.Decider].
func (n *Node) decide(ctx context.Context, rfp *deal.Signed, d *deal.Negotiation) (market.Decision, error) {
	ev, err := automation.EventOf(n.cfg.Keys.Agent, rfp, d, time.Now())
	if err != nil {
		return market.Decision{}, err
	}
	decision, err := n.automation.Decide(ctx, ev)
	return market.Decision(decision), err
}

// trading is how negotiations reach other agents.
type trading struct{ n *Node }

// Post implements [market.Peers].
func (t trading) Post(ctx context.Context, to identity.AgentID, key string, move []byte) (market.Reply, error) {
	deadline, _ := ctx.Deadline()
	r := &openmeshv1.CallRequest{
		Target: string(to), Capability: serviceMarket, Qos: "at-least-once", IdempotencyKey: key,
		Body: &openmeshv1.CallRequest_Protobuf{Protobuf: move},
	}
	resp, err := t.n.callBy(ctx, r, key, deadline, t.n.collect)
	if err != nil {
		return market.Reply{}, undelivered(err)
	}
	return market.Reply{Body: resp.GetProtobuf(), Session: resp.Session}, nil
}

// undelivered is the error of a move for which there is no receipt. Where directory,
// session or mailbox failed to find what they wanted, or one another's words, nobody has
// said anything about the move, and it may be sent again.
func undelivered(err error) error {
	if errors.Is(err, errAnswered) {
		return err
	}
	switch wire.CodeOf(err) {
	case wire.NotFound, wire.Malformed, wire.Replayed:
		return wire.Errorf(wire.Unreachable, "%w", err)
	}
	return err
}

// Providers implements [market.Peers].
func (t trading) Providers(ctx context.Context, r *deal.RFP, limit int) ([]identity.AgentID, error) {
	c := r.Constraints
	q := directory.Query{
		Capability: r.Capability, Version: r.Version, Tags: c.Tags, MaxLatency: time.Duration(c.MaxLatencyMS) * time.Millisecond,
		MinTrust: c.MinTrust.Float64(), MinUptime: c.MinUptime.Float64(), Limit: limit,
	}
	res, err := t.n.directory.Discover(ctx, q)
	if err != nil {
		return nil, err
	}
	var found []identity.AgentID
	for _, row := range res.Rows {
		if suits(row, c) && !slices.Contains(found, row.Agent) {
			found = append(found, row.Agent)
		}
	}
	return found, nil
}

// suits reports whether a provider is where a buyer wants it to be.
func suits(row directory.Row, c deal.Constraints) bool {
	d := row.Descriptor.Body
	in := func(wanted []string, have ...string) bool {
		return len(wanted) == 0 || slices.ContainsFunc(have, func(s string) bool { return slices.Contains(wanted, s) })
	}
	return in(c.Regions, row.Region) && in(c.Jurisdictions, d.Jurisdictions...) && in(c.Domains, d.Domain, row.Capability.Domain)
}

// Broadcast implements [market.Peers].
func (t trading) Broadcast(ctx context.Context, r *deal.RFP, move []byte) {
	topics, err := topic.Capabilities(t.n.verifier.Realm(), r.Capability)
	var all errgroup.Group
	for _, name := range topics {
		all.Go(func() error {
			return t.n.gossip.Publish(ctx, name, move, min(time.Until(r.Deadline), topic.MaxLifetime))
		})
	}
	if err = errors.Join(err, all.Wait()); err != nil {
		t.n.log.Debug("request not broadcast", zap.String("capability", r.Capability), zap.Error(err))
	}
}

// Speaks implements [market.Peers].
func (t trading) Speaks(to identity.AgentID) string {
	name, _, _ := strings.Cut(document.SchemaProposal, "@")
	if v, ok := t.n.sessions.Agreed(to, name); ok {
		return translate.Ref{Name: name, Version: v}.String()
	}
	return document.SchemaProposal
}

// offers reports whether this agent offers a capability to another.
func (n *Node) offers(buyer identity.AgentID, capability, versions string) bool {
	for _, c := range n.registry.List() {
		visible := orDefault(c.Visibility, "public") == "public" || circleOf(c) != "" && n.circles.Has(circleOf(c), buyer)
		if !visible || !descriptor.Covers(capability, c.Name) {
			continue
		}
		if versions == "" {
			return true
		}
		span, err := semver.NewConstraint(versions)
		if err != nil {
			return false
		}
		if v, err := semver.NewVersion(c.Version); err == nil && span.Check(v) {
			return true
		}
	}
	return false
}

// serveOwn answers what every agent answers. ok is false for other capabilities.
func (n *Node) serveOwn(ctx context.Context, req *handlers.Request) (resp *handlers.Response, ok bool, err error) {
	switch req.Capability {
	case serviceMarket:
		resp, err = n.serveMarket(ctx, req)
	case serviceSchema:
		resp, err = n.serveSchema(req)
	default:
		return nil, false, nil
	}
	return resp, true, err
}

func (n *Node) serveMarket(ctx context.Context, req *handlers.Request) (*handlers.Response, error) {
	if req.Encoding != schema.Protobuf {
		return nil, wire.Errorf(wire.Malformed, "a move in JSON")
	}
	receipt, err := n.market.Receive(ctx, identity.AgentID(req.CallerAgent), req.Session, req.Body)
	if err != nil {
		return nil, err
	}
	return &handlers.Response{Body: receipt.Encode(), Encoding: schema.Protobuf}, nil
}

func (n *Node) serveSchema(req *handlers.Request) (*handlers.Response, error) {
	body, err := n.catalog.Answer(req.Body)
	return &handlers.Response{Body: body, Encoding: schema.JSON}, err
}

// builtin are the schemas that every agent knows.
func builtin() (all []catalog.Schema) {
	for _, s := range document.Schemas() {
		all = append(all, catalog.Schema{Name: s.Name, Text: s.Text})
	}
	return all
}

// listen hears requests for the capabilities of this agent on their topics, as they come
// and go.
func (n *Node) listen(ctx context.Context) {
	subscribed := make(map[string]*topic.Subscription)
	check := time.NewTicker(time.Second)
	defer check.Stop()
	for {
		wanted := make(map[string]bool)
		for _, c := range n.registry.List() {
			if orDefault(c.Visibility, "public") != "public" {
				continue
			}
			if name, err := topic.Capability(n.verifier.Realm(), c.Name); err == nil {
				wanted[name] = true
			}
		}
		for name, s := range subscribed {
			if !wanted[name] {
				s.Leave()
				delete(subscribed, name)
			}
		}
		for name := range wanted {
			if subscribed[name] != nil {
				continue
			}
			s, err := n.gossip.Subscribe(name, n.heard)
			if err != nil {
				n.log.Warn("topic not listened to", zap.String("topic", name), zap.Error(err))
				continue
			}
			subscribed[name] = s
		}
		select {
		case <-check.C:
		case <-ctx.Done():
			for _, s := range subscribed {
				s.Leave()
			}
			return
		}
	}
}

// heard takes a request from a topic.
func (n *Node) heard(_ identity.AgentID, payload []byte) { n.market.Hear(payload) }
