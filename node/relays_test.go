package node_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/node/handlers"
	"openmesh/node/handlers/capability"
	"openmesh/overlay/directory"
	"openmesh/protocols/session"
	"openmesh/protocols/session/delivery"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// relays starts a backbone and n relays.
func relays(t *testing.T, n int) (backbone *running, all []*running) {
	t.Helper()
	backbone = start(t)
	for range n {
		all = append(all, as(t, "relay", backbone, nil))
	}
	return backbone, all
}

// as starts a node with a role, which uses relays.
func as(t *testing.T, role string, backbone *running, relays []*running) *running {
	t.Helper()
	return startAs(t, settings(role, backbone, relays))
}

func settings(role string, backbone *running, relays []*running) map[string]string {
	flags := map[string]string{"node.roles": role, "networking.bootstrap": backbone.Info().Addrs[0]}
	var addrs []string
	for _, r := range relays {
		addrs = append(addrs, r.Info().Addrs[0])
	}
	if len(addrs) > 0 {
		flags["networking.relays"] = strings.Join(addrs, ",")
	}
	return flags
}

// A call goes over the relays that the caller names, and no other way; a chain that
// does not work is named, and the next one is taken.
func TestCallThroughRelays(t *testing.T) {
	t.Parallel()
	backbone, hops := relays(t, 3)
	a, b := start(t, backbone), start(t, backbone)
	b.offerEcho(t)
	a.finds(t, b)
	through := func(relays ...*running) string {
		var ids []string
		for _, r := range relays {
			ids = append(ids, string(r.keys.Agent))
		}
		return strings.Join(ids, ",")
	}
	call := func(chains ...string) (*openmeshv1.CallResponse, error) {
		return a.Call(t.Context(), &openmeshv1.CallRequest{
			Target: string(b.keys.Agent), Capability: "test/echo", TimeoutMs: uint32(patience.Milliseconds()), Through: chains,
			Body: &openmeshv1.CallRequest_Json{Json: `{"n":1}`},
		})
	}
	resp, err := call(through(hops...))
	check(t, err)
	var want []string
	for _, h := range hops {
		want = append(want, h.Info().Peer)
	}
	if resp.Path.Kind != "forwarded" || strings.Join(resp.Path.Hops, " ") != strings.Join(want, " ") {
		t.Errorf("path is %v, want %v", resp.Path, want)
	}
	if resp, err = call(); err != nil || resp.Path.Kind != "direct" {
		t.Errorf("without a chain: %v over %v", err, resp.GetPath())
	}
	if _, err := call(through(hops[0], hops[1], hops[2], a, backbone)); wire.CodeOf(err) != wire.InvalidArgument {
		t.Errorf("five relays: %v", err)
	}
	dead := hops[1]
	dead.stop()
	if resp, err = call(through(hops[2], dead), through(hops[2], hops[0])); err != nil || len(resp.Path.Hops) != 2 || resp.Path.Hops[1] != want[0] {
		t.Errorf("the second chain: %v over %v", err, resp.GetPath())
	}
	s := time.Now()
	_, err = a.Sessions().Open(t.Context(), a.targetThrough(t, b, hops[0], dead), wantOf())
	if err == nil || !strings.Contains(err.Error(), "relay 2 of 2 ("+want[1]) {
		t.Errorf("a dead relay: after %v, %v", time.Since(s), err)
	}
}

// Calls for an agent that is off wait in its mailboxes; one of them is lost. When it
// starts each is worked on once, and the caller learns the answer.
func TestCallByMail(t *testing.T) {
	t.Parallel()
	backbone, boxes := relays(t, 2)
	a, b := as(t, "agent", backbone, boxes), as(t, "agent", backbone, boxes)
	a.awaitMailboxes(t, b, 2)
	b.stop()
	for _, key := range []string{"1", "2", "3"} {
		_, err := a.Call(t.Context(), &openmeshv1.CallRequest{
			Target: string(b.keys.Agent), Capability: "test/echo", TimeoutMs: 3000, Qos: "at-least-once", IdempotencyKey: key,
			Body: &openmeshv1.CallRequest_Json{Json: `{"n":1}`},
		})
		if wire.CodeOf(err) != wire.DeadlineExceeded {
			t.Fatalf("call to one who is away: %v", err)
		}
	}
	boxes[0].stop()
	var worked atomic.Int32
	startIn(t, b.home, b.keys, settings("agent", backbone, boxes[1:]), func(r *running) {
		check(t, r.Registry().AddHandler(&capability.Capability{Name: "test/echo", Version: "1.0.0"},
			handlers.HandlerFunc(func(_ context.Context, req *handlers.Request) (*handlers.Response, error) {
				worked.Add(1)
				return &handlers.Response{Body: req.Body, Encoding: req.Encoding}, nil
			})))
	})
	sessions := a.Sessions().Sessions(false)
	s, _, err := a.Sessions().Find(sessions[0].ID.String())
	check(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for i, key := range []string{"1", "2", "3"} {
		seq, o, err := s.Lookup(ctx, key)
		if err == nil && o.Status == delivery.Pending {
			o, err = s.Outcome(ctx, seq)
		}
		if err != nil || o.Status != delivery.Delivered || string(o.Response) != `{"n":1}` {
			t.Errorf("call %d: %+v, %v", i+1, o, err)
		}
	}
	if n := worked.Load(); n != 3 {
		t.Errorf("worked on %d calls, want 3", n)
	}
}

// A session that has looked for its peer in vain for a while has a channel as soon as
// the peer connects.
func TestPeerConnectsWhileLookedFor(t *testing.T) {
	t.Parallel()
	backbone := start(t)
	flags := settings("agent", backbone, nil)
	flags["session.park_after"], flags["mailbox.replicas"] = "1s", "0" // parked, it is not what b goes on with by itself
	a, b := startAs(t, flags), startAs(t, flags)
	route := session.Route{Peer: b.keys.Peer, Addrs: b.info(t).Addrs}
	s, err := a.Sessions().Open(t.Context(), session.Target{Agent: b.keys.Agent, Route: route}, session.Want{Contract: signal.Contract{QoS: signal.AtLeastOnce}})
	check(t, err)
	await(t, func() bool {
		return len(s.Info().Channels) == 0 && a.Sessions().Stats().Channels+b.Sessions().Stats().Channels == 0
	})
	b.stop()
	_, err = s.Post(t.Context(), &delivery.Message{Capability: "test/echo", Encoding: 1, Body: []byte(`{}`)})
	check(t, err)
	select {
	case <-time.After(7 * time.Second): // it tries after about 0, 0.1, 0.4, 1, 2, 5 and 12 s
	case <-s.Done():
	}
	b = startIn(t, b.home, b.keys, flags, nil)
	check(t, b.Host().Connect(t.Context(), a.info(t)))
	before := time.Now()
	await(t, func() bool { return len(s.Info().Channels) > 0 })
	if took := time.Since(before); took > 4*time.Second {
		t.Errorf("a channel %v after the peer connected", took)
	}
}

// await waits until something holds.
func await(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for limit := time.After(patience); !ok(); {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatal("it did not come about")
		}
	}
}

func wantOf() session.Want {
	return session.Want{Contract: signal.Contract{QoS: signal.AtMostOnce}, Exclusive: true}
}

// targetThrough is agent to behind relays.
func (r *running) targetThrough(t *testing.T, to *running, relays ...*running) session.Target {
	t.Helper()
	var c session.Chain
	for _, hop := range relays {
		c = append(c, hop.keys.Agent)
	}
	return session.Target{Agent: to.keys.Agent, Route: session.Route{
		Peer: to.keys.Peer, Through: []session.Chain{c}, Target: to.keys.Certificate,
	}}
}

// awaitMailboxes waits until the directory, as r sees it, has n mailboxes of an agent.
func (r *running) awaitMailboxes(t *testing.T, of *running, n int) {
	t.Helper()
	target, err := directory.ParseTarget(string(of.keys.Agent))
	check(t, err)
	for deadline := time.Now().Add(patience); ; {
		found, err := r.Directory().Resolve(t.Context(), target)
		if err == nil && len(found.Mailboxes) >= n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("mailboxes of %s: %v, %v", of.keys.Agent, found.Mailboxes, err)
		}
		r.Directory().Doubt(of.keys.Agent, of.keys.Peer)
		select {
		case <-time.After(100 * time.Millisecond):
		case <-t.Context().Done():
		}
	}
}
