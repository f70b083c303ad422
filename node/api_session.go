package node

import (
	"context"
	"encoding/json"
	"time"

	"connectrpc.com/connect"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/node/handlers"
	"openmesh/node/keys"
	"openmesh/protocols/schema"
	"openmesh/protocols/session"
	"openmesh/protocols/wire"
)

// sessionAPI serves openmesh.v1.Session.
type sessionAPI struct{ *Node }

func (n sessionAPI) Call(ctx context.Context, r *openmeshv1.CallRequest) (*openmeshv1.CallResponse, error) {
	if err := checkJSON(r.GetJson()); err != nil {
		return nil, err
	}
	return n.Node.Call(ctx, r)
}

// CallStream sends parts as the client reads them.
func (n sessionAPI) CallStream(ctx context.Context, r *openmeshv1.CallRequest, out *connect.ServerStream[openmeshv1.CallPart]) error {
	if err := checkJSON(r.GetJson()); err != nil {
		return err
	}
	final, err := n.Node.CallStream(ctx, r, out.Send)
	if err != nil {
		return err
	}
	return out.Send(&openmeshv1.CallPart{Part: &openmeshv1.CallPart_Final{Final: final}})
}

func (n sessionAPI) List(_ context.Context, r *openmeshv1.ListSessionsRequest) (*openmeshv1.ListSessionsResponse, error) {
	resp := &openmeshv1.ListSessionsResponse{Sessions: []*openmeshv1.SessionInfo{}}
	resp.Sessions = append(resp.Sessions, n.multicastList()...)
	for _, i := range n.sessions.Sessions(r.All) {
		resp.Sessions = append(resp.Sessions, n.sessionMessage(i))
	}
	return resp, nil
}

func (n sessionAPI) Show(_ context.Context, r *openmeshv1.ShowSessionRequest) (*openmeshv1.SessionInfo, error) {
	if m, ok := n.multicast(r.Session); ok {
		return n.multicastMessage(m, true), nil
	}
	_, info, err := n.sessions.Find(r.Session)
	if err != nil {
		return nil, err
	}
	return n.sessionDetail(info), nil
}

// closeTime is how long Close lets requests in progress end.
const closeTime = 5 * time.Second

func (n sessionAPI) Close(ctx context.Context, r *openmeshv1.CloseSessionRequest) (*openmeshv1.SessionInfo, error) {
	if m, ok := n.multicast(r.Session); ok {
		ctx, cancel := context.WithTimeout(ctx, closeTime)
		defer cancel()
		err := n.closeMulticast(ctx, m, r.Terminate)
		return n.multicastMessage(m, true), err
	}
	s, info, err := n.sessions.Find(r.Session)
	if err != nil {
		return nil, err
	}
	if s == nil {
		return nil, wire.Errorf(wire.IllegalTransition, "session %s is %s already", info.ID, info.State)
	}
	if r.Terminate {
		s.Terminate(wire.Cancelled)
		return n.sessionDetail(s.Info()), nil
	}
	ctx, cancel := context.WithTimeout(ctx, closeTime)
	defer cancel()
	if err := s.Close(ctx); err != nil {
		return nil, err
	}
	return n.sessionDetail(s.Info()), nil
}

func (n *Node) sessionMessage(i session.Info) *openmeshv1.SessionInfo {
	m := &openmeshv1.SessionInfo{
		Session: i.ID.String(), Agent: string(i.Peer.Agent), Address: i.Peer.Address.String(), Kind: "unicast",
		State: i.State.String(), Qos: i.Contract.QoS.String(), Persistent: i.Contract.Persistent, Epoch: i.Epoch,
		Suite: i.Suite.String(), Unacked: uint32(i.Pending), Outbox: uint32(i.Outbox), Sent: float64(i.Sent), Received: float64(i.Received),
		Opened: stamp(i.Opened), Role: "responder", Channels: []*openmeshv1.Channel{},
	}
	if i.Initiator {
		m.Role = "initiator"
	}
	if i.Reason != 0 {
		m.Reason = i.Reason.String()
	}
	if !i.State.Done() {
		m.Expires = stamp(i.IdleAt)
		for _, c := range i.Channels {
			m.Channels = append(m.Channels, &openmeshv1.Channel{
				Kind: c.Path.Kind, Transport: c.Path.Transport, RttMs: millis(c.RTT), Loss: c.Loss, Addr: c.Path.Addr,
			})
		}
	}
	return m
}

func (n *Node) sessionDetail(i session.Info) *openmeshv1.SessionInfo {
	m := n.sessionMessage(i)
	c := i.Contract
	m.Contract = &openmeshv1.Contract{
		Qos: c.QoS.String(), Ordered: c.Ordered, TtlMs: uint32(c.TTL.Milliseconds()), AckTimeoutMs: uint32(c.AckTimeout.Milliseconds()),
		KeepaliveMs: uint32(c.Keepalive.Milliseconds()), RekeyIntervalMs: uint32(c.RekeyInterval.Milliseconds()),
		MaxMessageBytes: uint32(c.MaxMessageBytes), MaxPending: uint32(c.MaxPending), Persistent: c.Persistent,
		MessageRate: uint32(c.MessageRate), ByteRate: uint32(c.ByteRate), Market: c.Market,
		Retry: &openmeshv1.Retry{
			Max: uint32(c.Retry.Max), InitialMs: uint32(c.Retry.Initial.Milliseconds()), Multiplier: c.Retry.Multiplier,
			MaxIntervalMs: uint32(c.Retry.MaxInterval.Milliseconds()), Jitter: c.Retry.Jitter,
		},
	}
	for _, p := range i.Protocols {
		m.Protocols = append(m.Protocols, &openmeshv1.AppProtocol{Name: p.Name, Version: p.Versions[0]})
	}
	for _, n := range i.Notices {
		direction := "received"
		if n.Sent {
			direction = "sent"
		}
		m.Notices = append(m.Notices, &openmeshv1.Notice{Direction: direction, Effect: n.Effect, Reason: n.Reason, At: stamp(n.At)})
	}
	for _, ev := range i.History {
		m.History = append(m.History, eventMessage(ev))
	}
	return m
}

func eventMessage(ev session.Event) *openmeshv1.SessionEvent {
	m := &openmeshv1.SessionEvent{
		Session: ev.Session.String(), Agent: string(ev.Agent), From: ev.From.String(), To: ev.To.String(), At: stamp(ev.At),
	}
	if ev.Reason != 0 {
		m.Reason = ev.Reason.String()
	}
	return m
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

func (n sessionAPI) Watch(ctx context.Context, _ *openmeshv1.WatchSessionsRequest, out *connect.ServerStream[openmeshv1.SessionEvent]) error {
	events, stop := n.events.watch()
	defer stop()
	if err := out.Send(nil); err != nil { // headers at once: the watch is on
		return err
	}
	for {
		select {
		case ev := <-events:
			if err := out.Send(eventMessage(ev)); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// The bounds of a Pull's wait.
const (
	defaultWait = 30 * time.Second
	maxWait     = 300 * time.Second
)

func (n sessionAPI) Pull(ctx context.Context, r *openmeshv1.PullRequest) (*openmeshv1.PullResponse, error) {
	wait := time.Duration(r.WaitMs) * time.Millisecond
	if wait == 0 {
		wait = defaultWait
	}
	if wait > maxWait {
		return nil, wire.Errorf(wire.InvalidArgument, "pull: wait_ms %d: want at most %d", r.WaitMs, maxWait.Milliseconds())
	}
	p, ok, err := n.registry.Broker().Pull(ctx, r.Capabilities, wait)
	if err != nil || !ok {
		return &openmeshv1.PullResponse{}, err
	}
	q := p.Request
	m := &openmeshv1.PullResponse{
		Id: p.ID, Capability: q.Capability, CallerAgent: q.CallerAgent, CallerAddress: q.CallerAddress,
		Session: q.Session, Request: q.RequestID, IdempotencyKey: q.IdempotencyKey, Traceparent: q.Traceparent,
		CorrelationId: q.CorrelationID, Deadline: stamp(q.Deadline), Redelivered: q.Redelivered, Contract: q.Contract,
	}
	if q.Encoding == schema.Protobuf {
		m.Body = &openmeshv1.PullResponse_Protobuf{Protobuf: q.Body}
	} else {
		m.Body = &openmeshv1.PullResponse_Json{Json: string(q.Body)}
	}
	return m, nil
}

func (n sessionAPI) Reply(ctx context.Context, r *openmeshv1.ReplyRequest) (*openmeshv1.ReplyResponse, error) {
	reply := handlers.Reply{More: r.More}
	switch b := r.Body.(type) {
	case *openmeshv1.ReplyRequest_Protobuf:
		reply.Response = &handlers.Response{Body: b.Protobuf, Encoding: schema.Protobuf}
	case *openmeshv1.ReplyRequest_Json:
		if err := checkJSON(b.Json); err != nil {
			return nil, err
		}
		reply.Response = &handlers.Response{Body: []byte(b.Json), Encoding: schema.JSON}
	}
	if r.Error != "" {
		reply.Err = wire.Errorf(wire.HandlerFailed, "the application says: %.1000s", r.Error)
	}
	if err := n.registry.Broker().Reply(ctx, r.Id, reply); err != nil {
		return nil, err
	}
	return &openmeshv1.ReplyResponse{}, nil
}

func checkJSON(s string) error {
	if s != "" && !json.Valid([]byte(s)) {
		return wire.Errorf(wire.InvalidArgument, "the body is not valid JSON").WithHint(`such as '{"key": "value"}'`)
	}
	return nil
}

// keyAPI serves openmesh.v1.Key.
type keyAPI struct{ *Node }

func (n keyAPI) Status(context.Context, *openmeshv1.KeyStatusRequest) (*openmeshv1.KeyStatusResponse, error) {
	r, err := keys.Status(n.cfg.Home, time.Now())
	if err != nil {
		return nil, err
	}
	return &openmeshv1.KeyStatusResponse{
		Agent: string(r.Agent), Address: r.Address.String(), Peer: r.Peer.String(), KeyVersion: r.Version,
		NotBefore: r.NotBefore.Format(time.RFC3339), NotAfter: r.NotAfter.Format(time.RFC3339),
		ExpiresInS: time.Until(r.NotAfter).Seconds(), State: r.State, Root: r.Root,
	}, nil
}
