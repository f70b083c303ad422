package node

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/node/handlers"
	"openmesh/node/observe"
	"openmesh/overlay/directory"
	"openmesh/overlay/directory/experience"
	"openmesh/protocols/descriptor"
	"openmesh/protocols/identity"
	"openmesh/protocols/schema"
	"openmesh/protocols/session"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// candidate is an agent that a call may go to.
type candidate struct {
	agent      identity.AgentID
	address    identity.Address
	peer       peer.AddrInfo
	capability string
	versions   []string // that it answers, by its descriptor; nil: not known

	mailbox *identity.Certificate // of an agent that has a mailbox
	mail    bool                  // leave the request there if the agent cannot be reached
	through []session.Chain       // only over one of these chains of relays
}

func candidateOf(row directory.Row) candidate {
	c := candidate{agent: row.Agent, address: row.Address, peer: peer.AddrInfo{ID: row.Peer}, capability: row.Name, versions: answeredBy(row.Capability)}
	if d := row.Descriptor; d != nil && len(d.Body.Mailboxes) > 0 {
		c.mailbox = d.Certificate
	}
	return c
}

func candidateAt(a directory.Agent, capability string) candidate {
	c := candidate{agent: a.ID, address: a.Address, peer: a.Peer, capability: capability}
	if len(a.Mailboxes) > 0 {
		c.mailbox = a.Certificate
	}
	return c
}

// Call sends one request to whom the target names and waits for the response. A
// request is sent to one agent after another only as long as none can have acted
// on it: delivery is at most once. A response in parts becomes a JSON array of at
// most session.max_message_bytes.
func (n *Node) Call(ctx context.Context, r *openmeshv1.CallRequest) (*openmeshv1.CallResponse, error) {
	return n.call(ctx, r, n.collect)
}

// call makes a call, of which take gets the answer.
func (n *Node) call(ctx context.Context, r *openmeshv1.CallRequest, take taker) (*openmeshv1.CallResponse, error) {
	start := time.Now()
	if err := n.checkCall(r); err != nil {
		return nil, err
	}
	r, deal, err := n.underContract(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("call: %w", err)
	}
	ctx, span := n.tracer.Start(ctx, "call "+orDefault(r.Capability, r.Target), trace.WithSpanKind(trace.SpanKindClient))
	defer span.End()
	key := r.IdempotencyKey
	if key == "" {
		key = rand.Text()
	}
	resp, err := n.callBy(ctx, r, key, start.Add(n.timeout(r)), take)
	if err != nil {
		n.countCall(r, observe.Failed)
		span.SetStatus(codes.Error, wire.CodeOf(err).String())
		return nil, callError(r, deal.explain(err, time.Now()))
	}
	n.countCall(r, observe.Delivered)
	if deal.ID != "" && n.market != nil {
		n.market.Spent(deal.ID, resp.Session+"/"+resp.Request)
	}
	if span.IsRecording() {
		span.SetAttributes(attribute.String("openmesh.agent", resp.Agent), attribute.String("openmesh.session", resp.Session))
	}
	resp.ElapsedMs = millis(time.Since(start))
	resp.Trace = trace.SpanContextFromContext(ctx).TraceID().String()
	return resp, nil
}

func (n *Node) timeout(r *openmeshv1.CallRequest) time.Duration {
	if r.TimeoutMs > 0 {
		return time.Duration(r.TimeoutMs) * time.Millisecond
	}
	return n.settings.Session.DefaultTimeout
}

// coarse is from how far ahead a deadline may be a second late.
const coarse = 30 * time.Second

// callBy makes the call by a deadline. If there is a session with the agent, and
// time enough, it does without a timer of its own.
func (n *Node) callBy(ctx context.Context, r *openmeshv1.CallRequest, key string, deadline time.Time, take taker) (*openmeshv1.CallResponse, error) {
	attempt := 1
	if c, ok := n.inSession(r); ok && len(r.Through) == 0 && n.qos(r) == signal.AtMostOnce && time.Until(deadline) > coarse {
		a, err := n.callOne(ctx, c, r, key, deadline)
		if err == nil {
			return n.taken(ctx, a, deadline, take)
		}
		if !n.mayRetry(c, err) {
			return nil, err
		}
		attempt++
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	a, err := n.callCandidates(ctx, r, key, attempt)
	if err == nil {
		return n.taken(ctx, a, deadline, take)
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) && wire.CodeOf(err) != wire.DeadlineExceeded {
		err = wire.Errorf(wire.DeadlineExceeded, "%w", err).WithHint("a longer --timeout waits longer")
	}
	return nil, err
}

// callError names what was being done.
func callError(r *openmeshv1.CallRequest, err error) error {
	var e *wire.Error
	if errors.As(err, &e) {
		named := *e
		named.Message = fmt.Sprintf("call %s: %s", r.Target, e.Message)
		return &named
	}
	return fmt.Errorf("call %s: %w", r.Target, err)
}

// checkCall refuses what makes no sense, and terms that this version does not
// keep: a promise is never broken in silence.
func (n *Node) checkCall(r *openmeshv1.CallRequest) error {
	if r.Target == "" && r.Contract == "" {
		return wire.Errorf(wire.InvalidArgument, "call: no target").WithHint("name a capability, an address or an agent id; or a market contract, whose seller is called")
	}
	if r.Qos != "" {
		if _, err := signal.ParseQoS(r.Qos); err != nil {
			return err
		}
	}
	switch {
	case len(r.Within) > 0 || len(r.AvoidDomains) > 0:
		return unsupported("the path cannot be kept within jurisdictions, or away from domains").
			WithHint("nothing was sent. Leave that out, and choose yourself: the provider by discover --jurisdiction or --domain, the relays by --through")
	case r.Class != "" || r.Multipath > 1:
		return unsupported("there is no choice of path class, or of several paths at once").
			WithHint("nothing was sent. Leave that out: the best connection there is is taken, or relays of your choice with --through")
	}
	return nil
}

func unsupported(why string) *wire.Error {
	return wire.Errorf(wire.Unsupported, "call: not supported by this version: %s", why)
}

// callCandidates tries those whom the target names, and looks for them anew
// between rounds: who could not be reached may be elsewhere by now. Its first
// attempt has the number attempt.
func (n *Node) callCandidates(ctx context.Context, r *openmeshv1.CallRequest, key string, attempt int) (answer, error) {
	chains, err := n.chains(ctx, r.Through)
	if err != nil {
		return answer{}, err
	}
	var wait *backoff.ExponentialBackOff
	var last error
	for {
		candidates, err := n.candidates(ctx, r)
		if err != nil {
			return answer{}, cmp.Or(last, err)
		}
		for _, c := range candidates {
			c.through = chains
			c.mail = len(candidates) == 1 || last != nil // who can be reached is asked first
			a, err := n.callOne(ctx, c, r, key, time.Time{})
			if err == nil {
				a.response.Attempts = uint32(attempt)
				return a, nil
			}
			last = err
			if ctx.Err() != nil || !n.mayRetry(c, err) {
				return answer{}, err
			}
			attempt++
		}
		if wait == nil {
			wait = n.retryBackoff()
		}
		if attempt > n.settings.Session.Retry.Max+1 || sleep(ctx, wait.NextBackOff()) != nil {
			return answer{}, last
		}
	}
}

// mayRetry reports whether the request can go elsewhere, or to c again, after it
// failed with err.
func (n *Node) mayRetry(c candidate, err error) bool {
	code := wire.CodeOf(err)
	if code == wire.Unreachable {
		n.directory.Doubt(c.agent, c.peer.ID)
	}
	return code.Retry()
}

func (n *Node) retryBackoff() *backoff.ExponentialBackOff {
	r := n.settings.Session.Retry
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.Multiplier, b.MaxInterval, b.RandomizationFactor = r.Initial, r.Multiplier, r.MaxInterval, r.Jitter
	return b
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// maxCandidates bounds the agents that one call may try.
const maxCandidates = 8

// candidates finds whom the request may go to, best first.
func (n *Node) candidates(ctx context.Context, r *openmeshv1.CallRequest) ([]candidate, error) {
	if c, ok := n.inSession(r); ok {
		return []candidate{c}, nil
	}
	target, version, err := splitVersion(r.Target, r.Version)
	if err != nil {
		return nil, err
	}
	if !isCapability(target) {
		c, err := n.resolveTarget(ctx, r)
		return []candidate{c}, err
	}
	if r.Capability != "" && !descriptor.Covers(target, r.Capability) {
		return nil, wire.Errorf(wire.InvalidArgument, "target %s and capability %s name different things", r.Target, r.Capability).
			WithHint("leave out --capability")
	}
	name := orDefault(r.Capability, target)
	res, err := n.directory.Discover(ctx, directory.Query{Capability: name, Version: version, MinTrust: r.MinTrust, Limit: maxCandidates})
	if err != nil {
		return nil, err
	}
	var cs []candidate
	for _, row := range res.Rows {
		cs = append(cs, candidateOf(row))
	}
	if len(cs) == 0 && version != "" {
		if cs, err = n.elsewhere(ctx, name, version, r.MinTrust); err != nil {
			return nil, err
		}
	}
	if len(cs) == 0 {
		return nil, wire.Errorf(wire.NotFound, "no agent in reach offers %s", name).
			WithHint("look around with: openmesh discover %s", firstSegment(name))
	}
	return cs, nil
}

// inSession is the agent that the target names, if there is a session with it: it
// has proved who and where it is, and nothing need be looked up.
func (n *Node) inSession(r *openmeshv1.CallRequest) (candidate, bool) {
	if r.Capability == "" || r.MinTrust > 0 {
		return candidate{}, false
	}
	a := identity.AgentID(r.Target)
	if s := n.sessions.Session(a); s != nil {
		p := s.Peer()
		return candidate{agent: p.Agent, address: p.Address, peer: peer.AddrInfo{ID: p.Peer}, capability: r.Capability}, true
	}
	if isCapability(r.Target) {
		return candidate{}, false
	}
	c, route, ok := n.sessions.Reached(a)
	if !ok {
		return candidate{}, false
	}
	return candidate{agent: a, address: c.Address, peer: peer.AddrInfo{ID: c.Peer, Addrs: routeAddrs(route)}, capability: r.Capability}, true
}

// splitVersion takes NAME@MAJOR apart: the directory has a key of that form. An
// explicit range must not come on top.
func splitVersion(target, version string) (name, rest string, err error) {
	name, major, ok := strings.Cut(target, "@")
	if !ok {
		return target, version, nil
	}
	if _, err := strconv.ParseUint(major, 10, 32); err != nil || version != "" {
		return "", "", wire.Errorf(wire.InvalidArgument, "target %.140q: want NAME or NAME@MAJOR, such as finance/fx-pricing@1", target).
			WithHint("other ranges go with --version")
	}
	return name, "^" + major, nil
}

func isCapability(target string) bool { return descriptor.CheckName(target) == nil }

func firstSegment(name string) string {
	first, _, _ := strings.Cut(name, "/")
	return first
}

// resolveTarget finds the agent that an address or agent id names, and what to
// call there.
func (n *Node) resolveTarget(ctx context.Context, r *openmeshv1.CallRequest) (candidate, error) {
	a, err := n.resolve(ctx, r.Target)
	if err != nil {
		return candidate{}, err
	}
	if r.MinTrust > 0 {
		if t := n.directory.Experience(a.ID).Trust; t < r.MinTrust {
			return candidate{}, wire.Errorf(wire.Denied, "trust in %s is %.2f, below %.2f", a.ID, t, r.MinTrust)
		}
	}
	c := candidateAt(a, r.Capability)
	if c.capability == "" {
		c.capability, err = n.onlyCapability(ctx, a)
	}
	return c, err
}

func (n *Node) resolve(ctx context.Context, target string) (directory.Agent, error) {
	t, err := directory.ParseTarget(target)
	if err != nil {
		return directory.Agent{}, err
	}
	a, err := n.directory.Resolve(ctx, t)
	if err == nil && a.Certificate != nil {
		n.seen.add(a.Certificate)
	}
	return a, err
}

// onlyCapability is what an agent offers, if that is just one thing.
func (n *Node) onlyCapability(ctx context.Context, a directory.Agent) (string, error) {
	d, err := n.directory.Descriptor(ctx, a)
	if err != nil {
		return "", err
	}
	var names []string
	for _, c := range d.Body.Capabilities {
		names = append(names, c.Name)
	}
	switch len(names) {
	case 1:
		return names[0], nil
	case 0:
		return "", wire.Errorf(wire.NotFound, "%s shows this agent no capability", a.ID).
			WithHint("a private capability must be named with --capability")
	}
	return "", wire.Errorf(wire.InvalidArgument, "%s offers %d capabilities", a.ID, len(names)).
		WithHint("choose one with --capability: %s", strings.Join(names, ", "))
}

// callAgent sends the request to one agent. The deadline, if not zero, comes on top
// of that of ctx.
func (n *Node) callAgent(ctx context.Context, c candidate, r *openmeshv1.CallRequest, key string, deadline time.Time) (answer, error) {
	if c.agent == n.cfg.Keys.Agent {
		return n.callSelf(ctx, c, r, key)
	}
	if q := n.qos(r); q != signal.AtMostOnce {
		resp, err := n.callDurably(ctx, c, r, key, q)
		n.learn(c.agent, err)
		return whole(resp, unbound(r, err))
	}
	req := n.request(ctx, c, r, key)
	req.Deadline = deadline
	var resp *session.Response
	var id uint64
	want := session.Want{Contract: signal.Contract{QoS: signal.AtMostOnce, Market: r.Contract}}
	s, err := n.open(ctx, c, want)
	if err == nil {
		resp, id, err = s.Call(ctx, req)
		if id == 0 && wire.CodeOf(err) == wire.SessionClosed { // it ended before it took the request
			if s, err = n.open(ctx, c, want); err == nil {
				resp, id, err = s.Call(ctx, req)
			}
		}
	}
	n.learn(c.agent, err)
	if err != nil {
		return answer{}, unbound(r, err)
	}
	names := s.Names()
	out := &openmeshv1.CallResponse{
		Agent: names.Agent, Address: names.Address, Capability: c.capability, Attempts: 1,
		Session: names.Session, Request: strconv.FormatUint(id, 10), Suite: names.Suite, Path: pathMessage(s.Path()),
	}
	enc := schema.Encoding(resp.Encoding)
	if resp.Parts != nil {
		return answer{out, enc, partsOf(resp)}, nil
	}
	setBody(out, enc, resp.Body)
	return answer{response: out}, nil
}

// open returns a session with an agent, one that is there or a new one.
func (n *Node) open(ctx context.Context, c candidate, w session.Want) (*session.Session, error) {
	if w.Contract.QoS == signal.AtMostOnce && w.Contract.Market == "" && !w.Exclusive && c.through == nil {
		if s := n.sessions.Session(c.agent); s != nil && s.Ready() {
			return s, nil
		}
	}
	t, err := n.target(ctx, c)
	if err != nil {
		return nil, err
	}
	s, err := n.sessions.Open(ctx, t, w)
	if err == nil {
		n.seen.add(s.Peer())
	}
	return s, err
}

// target is where a session with c is to lead.
func (n *Node) target(ctx context.Context, c candidate) (session.Target, error) {
	t := session.Target{Agent: c.agent, Route: session.Route{Peer: c.peer.ID, Addrs: c.peer.Addrs}}
	if c.mail {
		t.Mailbox = c.mailbox
	}
	if c.through == nil {
		return t, nil
	}
	t.Route.Through = c.through
	if t.Route.Target = n.seen.of(c.peer.ID); t.Route.Target != nil {
		return t, nil
	}
	a, err := n.resolve(ctx, string(c.agent))
	t.Route.Target = a.Certificate
	return t, err
}

func (n *Node) request(ctx context.Context, c candidate, r *openmeshv1.CallRequest, key string) *session.Request {
	enc, body := bodyOf(r)
	req := &session.Request{
		Capability: c.capability, Version: r.Version, Encoding: session.Encoding(enc), Body: body, IdempotencyKey: key,
		CorrelationID: trace.SpanContextFromContext(ctx).TraceID().String(),
	}
	req.Traceparent, req.Tracestate = observe.Inject(ctx)
	return req
}

// callSelf serves a call of this agent's own capability, without a wire.
func (n *Node) callSelf(ctx context.Context, c candidate, r *openmeshv1.CallRequest, key string) (answer, error) {
	enc, body := bodyOf(r)
	req := &handlers.Request{
		Capability: c.capability, Version: r.Version, Body: body, Encoding: enc, IdempotencyKey: key,
		CallerAgent: string(c.agent), CallerAddress: c.address.String(),
		CorrelationID: trace.SpanContextFromContext(ctx).TraceID().String(),
	}
	req.Deadline, _ = ctx.Deadline()
	req.Traceparent, req.Tracestate = observe.Inject(ctx)
	resp, err := n.serveVersion(ctx, req)
	if err != nil {
		return answer{}, err
	}
	out := &openmeshv1.CallResponse{
		Agent: string(c.agent), Address: c.address.String(), Capability: c.capability,
		Path: &openmeshv1.Path{Kind: "direct", Transport: "local", Hops: []string{}},
	}
	if resp.Produce == nil {
		setBody(out, resp.Encoding, resp.Body)
	}
	return answer{out, resp.Encoding, resp.Produce}, nil
}

// learn takes note of how dealing with an agent went, for trust. What was this
// side's fault, or policy, says nothing about the agent. Successes count once a
// second, so that many small calls do not buy trust that one failure would not
// spend.
func (n *Node) learn(a identity.AgentID, err error) {
	if err == nil {
		if n.praised.due(a, time.Now()) {
			n.directory.Record(a, experience.Success)
		}
		return
	}
	switch wire.CodeOf(err) {
	case wire.Unreachable, wire.HandlerUnavailable, wire.HandlerFailed, wire.InvalidResponse, wire.SessionClosed,
		wire.Internal, wire.Unauthenticated, wire.DeadlineExceeded:
		n.directory.Record(a, experience.Failure)
	}
}

// pathOf says how a connection reaches its peer; a hole may have been punched for
// a direct one.
func (n *Node) pathOf(c network.Conn) session.Path {
	p := session.PathOf(c)
	if p.Kind == "direct" && n.host.Punched(c.RemotePeer()) {
		p.Kind = "holepunched"
	}
	return p
}

func pathMessage(p session.Path) *openmeshv1.Path {
	m := &openmeshv1.Path{Kind: p.Kind, Transport: p.Transport, Hops: strings.Fields(p.Hops)}
	if p.Kind == "relayed" {
		if relay := relayOf(p.Addr); relay != "" {
			m.Hops = append(m.Hops, relay)
		}
	}
	return m
}

// reach says how a peer is reached now, or would be.
func (n *Node) reach(p peer.ID) string {
	if r := n.host.Reach(p); r != "" {
		return r
	}
	if p == n.host.ID() {
		return "direct"
	}
	return "mailbox"
}

// relayOf returns the peer id of the relay in a circuit address.
func relayOf(addr string) string {
	a, err := ma.NewMultiaddr(addr)
	if err != nil {
		return ""
	}
	id, err := a.ValueForProtocol(ma.P_P2P)
	if err != nil {
		return ""
	}
	return id
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
