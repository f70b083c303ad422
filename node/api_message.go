package node

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/proto"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/overlay/grpclink"
	"openmesh/protocols/identity"
	"openmesh/protocols/schema"
	"openmesh/protocols/session"
	"openmesh/protocols/session/delivery"
	"openmesh/protocols/session/delivery/inbox"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// maxRecipients bounds a multicast session.
const maxRecipients = 256

func (n sessionAPI) Open(ctx context.Context, r *openmeshv1.OpenSessionRequest) (*openmeshv1.SessionInfo, error) {
	want, err := wantOf(r)
	if err != nil {
		return nil, err
	}
	r, deal, err := n.citing(ctx, r, &want)
	if err != nil {
		return nil, fmt.Errorf("open session: %w", err)
	}
	switch {
	case len(r.Targets) == 0:
		return nil, wire.Errorf(wire.InvalidArgument, "open session: no target").WithHint("name an agent id, an address or a capability")
	case len(r.Targets) > maxRecipients:
		return nil, wire.Errorf(wire.InvalidArgument, "open session: %d targets, at most %d", len(r.Targets), maxRecipients)
	case len(r.Targets) > 1:
		return n.openMulticast(ctx, r, want)
	}
	s, err := n.openTarget(ctx, r.Targets[0], r, want)
	if err != nil {
		return nil, deal.explain(err, time.Now())
	}
	return n.sessionDetail(s.Info()), nil
}

// citing puts the market contract of a request into the session that it asks for,
// which is with the seller, and returns both.
func (n *Node) citing(ctx context.Context, r *openmeshv1.OpenSessionRequest, w *session.Want) (*openmeshv1.OpenSessionRequest, Deal, error) {
	if r.Contract == "" {
		return r, Deal{}, nil
	}
	d, err := n.purchase(ctx, r.Contract)
	switch {
	case err != nil:
		return nil, d, err
	case len(r.Targets) > 1:
		return nil, d, wire.Errorf(wire.InvalidArgument, "market contract %s has one seller, not %d", d.ID, len(r.Targets)).WithHint("leave the targets out")
	case len(r.Targets) == 1:
		if _, _, err = n.ofSeller(ctx, d, r.Targets[0], ""); err != nil {
			return nil, d, err
		}
	}
	r = proto.CloneOf(r)
	r.Targets, w.Contract.Market = []string{string(d.Seller)}, d.ID
	return r, d, nil
}

// wantOf is the session that a request asks for.
func wantOf(r *openmeshv1.OpenSessionRequest) (session.Want, error) {
	w := session.Want{Exclusive: true, Contract: signal.Contract{
		Ordered: r.Ordered, Persistent: r.Persistent,
		TTL: ms(r.TtlMs), AckTimeout: ms(uint64(r.AckTimeoutMs)), Keepalive: ms(uint64(r.KeepaliveMs)), RekeyInterval: ms(uint64(r.RekeyIntervalMs)),
		MaxMessageBytes: int(r.MaxMessageBytes), MaxPending: int(r.MaxPending), MessageRate: int(r.MessageRate), ByteRate: int(r.ByteRate),
	}}
	if r.Qos == "" {
		return w, nil
	}
	var err error
	w.Contract.QoS, err = signal.ParseQoS(r.Qos)
	return w, err
}

func ms(n uint64) time.Duration { return time.Duration(min(n, 1<<42)) * time.Millisecond }

// openTarget opens a session with whom the target names. Like a call it looks anew for who
// cannot be reached, and tries again: that agent may be elsewhere by now. A way that the
// caller has chosen is tried once.
func (n sessionAPI) openTarget(ctx context.Context, target string, r *openmeshv1.OpenSessionRequest, w session.Want) (*session.Session, error) {
	ctx, cancel := context.WithTimeout(ctx, n.settings.Session.DefaultTimeout)
	defer cancel()
	retries := n.settings.Session.Retry.Max
	if r.Via != "" || len(r.Through) > 0 || r.Transport != "" {
		retries = 0
	}
	wait := n.retryBackoff()
	var last error
	for {
		s, err := n.openOnce(ctx, target, r, w)
		if err == nil {
			return s, nil
		}
		code := wire.CodeOf(err)
		if last == nil || code != wire.NotFound && ctx.Err() == nil {
			last = err
		}
		if code != wire.Unreachable || retries == 0 || sleep(ctx, wait.NextBackOff()) != nil {
			return nil, last
		}
		retries--
	}
}

func (n sessionAPI) openOnce(ctx context.Context, target string, r *openmeshv1.OpenSessionRequest, w session.Want) (*session.Session, error) {
	t, err := n.locate(ctx, target, r.Via, r.Through)
	if err != nil {
		return nil, err
	}
	if t.Agent == n.cfg.Keys.Agent {
		return nil, wire.Errorf(wire.InvalidArgument, "open session: %s is this agent itself", target)
	}
	t.Route.Transport = r.Transport
	s, err := n.sessions.Open(ctx, t, w)
	if err == nil {
		n.seen.add(s.Peer())
	} else if wire.CodeOf(err) == wire.Unreachable && t.Agent != "" {
		n.directory.Doubt(t.Agent, t.Route.Peer)
	}
	return s, err
}

// locate finds whom a target names, by the directory or where via says.
func (n sessionAPI) locate(ctx context.Context, target, via string, through []string) (session.Target, error) {
	if via != "" && len(through) > 0 {
		return session.Target{}, wire.Errorf(wire.InvalidArgument, "open session: via names an address, through relays").WithHint("leave one of them out")
	}
	if via != "" {
		return viaTarget(target, via)
	}
	if isCapability(target) {
		cs, err := n.candidates(ctx, &openmeshv1.CallRequest{Target: target})
		if err != nil {
			return session.Target{}, err
		}
		return n.targetOf(ctx, cs[0], through)
	}
	a, err := n.resolve(ctx, target)
	if err != nil {
		return session.Target{}, err
	}
	return n.targetOf(ctx, candidateAt(a, ""), through)
}

// targetOf is where a session with c leads, if it may be offered by mail.
func (n *Node) targetOf(ctx context.Context, c candidate, through []string) (t session.Target, err error) {
	c.mail = true
	if c.through, err = n.chains(ctx, through); err != nil {
		return t, err
	}
	return n.target(ctx, c)
}

// viaTarget is an agent at a place that the caller knows, without a look into the
// directory.
func viaTarget(target, via string) (session.Target, error) {
	agent, err := identity.ParseAgentID(target)
	if err != nil {
		return session.Target{}, wire.Errorf(wire.InvalidArgument, "open session: with via, the target must be an agent id: %w", err)
	}
	t := session.Target{Agent: agent}
	if strings.HasPrefix(via, "https://") {
		a, err := grpclink.ParseURL(via)
		if err != nil {
			return t, wire.Errorf(wire.InvalidArgument, "open session: via: %w", err).WithHint("such as https://host:4749")
		}
		t.Route.Addrs = []ma.Multiaddr{a}
		return t, nil
	}
	a, err := ma.NewMultiaddr(via)
	if err != nil {
		return t, wire.Errorf(wire.InvalidArgument, "open session: via: %w", err).WithHint("a multiaddr with /p2p/, or https://host:4749")
	}
	at, p := peer.SplitAddr(a)
	if p == "" && !grpclink.IsAddr(at) {
		return t, wire.Errorf(wire.InvalidArgument, "open session: via %s names no peer", via).WithHint("add /p2p/PEER")
	}
	t.Route.Peer, t.Route.Addrs = p, []ma.Multiaddr{at}
	return t, nil
}

func (n sessionAPI) Send(ctx context.Context, r *openmeshv1.SendRequest) (*openmeshv1.SendResponse, error) {
	if err := checkJSON(r.GetJson()); err != nil {
		return nil, err
	}
	members, err := n.recipients(r.Session)
	if err != nil {
		return nil, err
	}
	if len(members) == 1 { // errors are the caller's
		d, err := n.sendOne(ctx, members[0], r)
		return &openmeshv1.SendResponse{Deliveries: []*openmeshv1.Delivery{d}}, err
	}
	if r.Key == "" {
		r.Key = rand.Text() // one for all
	}
	resp := &openmeshv1.SendResponse{Deliveries: make([]*openmeshv1.Delivery, len(members))}
	var all sync.WaitGroup
	for i, m := range members {
		all.Go(func() {
			d, err := n.sendOne(ctx, m, r)
			if err != nil {
				d = failedDelivery(m.agent, m.id, r.Key, err)
			}
			resp.Deliveries[i] = d
		})
	}
	all.Wait()
	return resp, nil
}

// sendOne sends to one recipient and, if asked to, waits for the outcome.
func (n sessionAPI) sendOne(ctx context.Context, to recipient, r *openmeshv1.SendRequest) (*openmeshv1.Delivery, error) {
	s, info, err := n.sessions.Find(to.id)
	if err != nil {
		return nil, err
	}
	if s == nil {
		return nil, wire.Errorf(wire.SessionClosed, "session %s is %s", info.ID, info.State).WithHint("open another one with: openmesh session open %s", info.Peer.Agent)
	}
	began := time.Now()
	enc, body := schema.JSON, []byte(orDefault(r.GetJson(), "{}"))
	if b, ok := r.Body.(*openmeshv1.SendRequest_Protobuf); ok {
		enc, body = schema.Protobuf, b.Protobuf
	}
	m := n.message(ctx, r.Key, r.Capability, r.Version, enc, body)
	m.Schema = r.Schema
	warnings, err := n.outgoing(s, m)
	if err != nil {
		return nil, err
	}
	if r.TtlMs > 0 {
		m.Expires = began.Add(ms(r.TtlMs))
	}
	sequence, err := s.Post(ctx, m) // which gives it a key, if it has none
	if err != nil {
		return nil, err
	}
	o := delivery.Outcome{}
	if r.WaitMs > 0 {
		o = n.await(ctx, s, sequence, m.Key, r.WaitMs)
	}
	d := deliveryMessage(s, m.Key, sequence, o, began)
	d.Schema, d.Warnings = m.Schema, warnings
	return d, nil
}

// await waits for the outcome of a message for so many milliseconds; it may be
// pending still.
func (n sessionAPI) await(ctx context.Context, s *session.Session, sequence uint64, key string, wait uint32) delivery.Outcome {
	ctx, cancel := context.WithTimeout(ctx, ms(uint64(wait)))
	defer cancel()
	o, err := outcomeOf(ctx, s, sequence, key)
	if err != nil {
		return delivery.Outcome{}
	}
	return o
}

func (n sessionAPI) Outcome(ctx context.Context, r *openmeshv1.OutcomeRequest) (*openmeshv1.Delivery, error) {
	s, info, err := n.sessions.Find(r.Session)
	if err != nil {
		return nil, err
	}
	if s == nil {
		return n.recall(ctx, info, r.Key)
	}
	began := time.Now()
	sequence, o, err := s.Lookup(ctx, r.Key)
	if err != nil {
		return nil, err
	}
	if o.Status == delivery.Pending && r.WaitMs > 0 {
		o = n.await(ctx, s, sequence, r.Key, r.WaitMs)
	}
	return deliveryMessage(s, r.Key, sequence, o, began), nil
}

// recall tells the outcome of a message of a session that has ended.
func (n sessionAPI) recall(ctx context.Context, info session.Info, key string) (*openmeshv1.Delivery, error) {
	sequence, o, err := n.sessions.Recall(ctx, info.ID, key)
	if err != nil {
		return nil, err
	}
	d := outcomeMessage(key, sequence, o)
	d.Agent, d.Address, d.Session = string(info.Peer.Agent), info.Peer.Address.String(), info.ID.String()
	return d, nil
}

const (
	defaultBatch = 100
	maxBatch     = 1000
)

func (n sessionAPI) Receive(ctx context.Context, r *openmeshv1.ReceiveRequest) (*openmeshv1.ReceiveResponse, error) {
	s, info, err := n.sessions.Find(r.Session)
	if err != nil {
		return nil, err
	}
	if s == nil {
		return nil, wire.Errorf(wire.SessionClosed, "session %s is %s", info.ID, info.State)
	}
	wait := ms(uint64(r.WaitMs))
	if wait > maxWait || r.Limit > maxBatch {
		return nil, wire.Errorf(wire.InvalidArgument, "receive: wait_ms %d, limit %d: want at most %d and %d", r.WaitMs, r.Limit, maxWait.Milliseconds(), maxBatch)
	}
	if r.Consume {
		if err := s.Consume(ctx, r.Cursor); err != nil {
			return nil, err
		}
	}
	batch, err := readBatch(ctx, s, r.Cursor, int(orDefault(r.Limit, defaultBatch)), wait)
	if err != nil {
		return nil, err
	}
	return n.batchMessage(s, batch), nil
}

func readBatch(ctx context.Context, s *session.Session, cursor uint64, limit int, wait time.Duration) (inbox.Batch, error) {
	if wait == 0 {
		return s.Messages(ctx, cursor, limit, false)
	}
	waiting, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	b, err := s.Messages(waiting, cursor, limit, true)
	if err != nil && waiting.Err() != nil && ctx.Err() == nil { // nothing came
		return s.Messages(ctx, cursor, limit, false)
	}
	return b, err
}

func (n *Node) batchMessage(s *session.Session, b inbox.Batch) *openmeshv1.ReceiveResponse {
	resp := &openmeshv1.ReceiveResponse{Messages: []*openmeshv1.ReceivedMessage{}, Gaps: []*openmeshv1.Gap{}, Cursor: b.Cursor}
	for _, m := range b.Messages {
		resp.Messages = append(resp.Messages, n.inboxMessage(s, &m))
	}
	for _, g := range b.Gaps {
		resp.Gaps = append(resp.Gaps, &openmeshv1.Gap{From: g.From, To: g.To})
	}
	return resp
}
