package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	openmeshv1 "openmesh/node/api/openmesh/v1"
)

// remote are two agents that listen nowhere, as behind a firewall that lets nothing
// in, and the relays that lead to them:
//
//	quinn ──►┌ north ┐◄── ruth, whose handler is the desk
//	         └ south ┘
type remote struct {
	relays      [2]*node
	quinn, ruth *node
	series      *series // of the session whose relay is lost
}

func newRemote() *remote {
	return &remote{
		relays: [2]*node{{name: "north", role: "relay"}, {name: "south", role: "relay"}},
		quinn:  &node{name: "quinn", role: "agent", hidden: true},
		ruth:   &node{name: "ruth", role: "agent", hidden: true},
	}
}

func (r *remote) agents() []*node { return []*node{r.quinn, r.ruth} }
func (r *remote) nodes() []*node  { return slices.Concat(r.relays[:], r.agents()) }

// startRelays: two relays, and two agents that only these lead to.
func (m *mesh) startRelays(ctx context.Context, s *Step) error {
	r := m.remote
	if err := each(ctx, r.relays[:], m.enter); err != nil {
		return err
	}
	for _, n := range r.agents() {
		n.flags = []string{"--set", "networking.keepalive_interval=" + soonKeepalive.String()}
		for _, relay := range r.relays {
			n.flags = append(n.flags, "--relay", relay.addrs[0])
		}
	}
	if err := each(ctx, r.agents(), m.enter); err != nil {
		return err
	}
	s.Facts["relays"] = []string{r.relays[0].id.Peer, r.relays[1].id.Peer}
	s.Say("north and south carry what others send, sealed; quinn and ruth listen nowhere and know both")
	return nil
}

// reserve: both relays come to lead to both agents, and to keep letters for them.
func (m *mesh) reserve(ctx context.Context, s *Step) error {
	r := m.remote
	err := each(ctx, r.agents(), func(ctx context.Context, n *node) error { return n.relayed(ctx, r.relays[:]) })
	if err != nil {
		return err
	}
	r.ruth.offers = []offer{offerSum(m.desk.url)}
	if err := m.registerOffers(ctx, r.ruth); err != nil {
		return err
	}
	s.Facts["agents"], s.Facts["relays_of_each"] = []string{r.quinn.name, r.ruth.name}, len(r.relays)
	s.Say("quinn and ruth have no address but those through north and south, where each holds a slot and has a mailbox")
	return nil
}

// relayed waits until all these relays lead to the node and keep its letters, and no
// address of its own does.
func (n *node) relayed(ctx context.Context, relays []*node) error {
	return until(ctx, func(ctx context.Context) error {
		res, err := n.api.Node.Relays(ctx, &openmeshv1.RelaysRequest{})
		if err != nil {
			return n.at(err)
		}
		for _, relay := range relays {
			i := slices.IndexFunc(res.Relays, func(r *openmeshv1.Relay) bool { return r.Peer == relay.id.Peer })
			if i < 0 || !res.Relays[i].Reserved || !res.Relays[i].Mailbox {
				return n.errorf("has no slot or no mailbox at %s", relay.name)
			}
		}
		status, err := n.api.Node.Status(ctx, &openmeshv1.StatusRequest{})
		if err != nil {
			return n.at(err)
		}
		for _, addr := range status.Addrs {
			if !strings.Contains(addr, "/p2p-circuit") {
				return n.errorf("has the address %s, want none but those through relays", addr)
			}
		}
		return nil
	})
}

// callRelayed: an agent that cannot be connected to is found by the directory like
// any other, and called through one of its relays.
func (m *mesh) callRelayed(ctx context.Context, s *Step) error {
	path, err := m.remote.call(ctx, s, nil)
	if err != nil {
		return err
	}
	if path.Kind != "relayed" || len(path.Hops) != 1 || m.remote.relayOf(path.Hops[0]) == nil {
		return m.remote.quinn.errorf("called over a path of kind %s with the hops %v, want one of the relays", path.Kind, path.Hops)
	}
	s.Say(fmt.Sprintf("quinn called ruth: answered in %s through %s, which carries what it cannot read",
		ms(s.Facts["call_ms"].(float64)), m.remote.relayOf(path.Hops[0]).name))
	return nil
}

// callForwarded: a chain of relays of which each knows its neighbours only.
func (m *mesh) callForwarded(ctx context.Context, s *Step) error {
	north, south := m.remote.relays[0], m.remote.relays[1]
	path, err := m.remote.call(ctx, s, []string{north.id.Address + "," + south.id.Address})
	if err != nil {
		return err
	}
	if path.Kind != "forwarded" || !slices.Equal(path.Hops, []string{north.id.Peer, south.id.Peer}) {
		return m.remote.quinn.errorf("called over a path of kind %s with the hops %v, want those that were asked for", path.Kind, path.Hops)
	}
	s.Say(fmt.Sprintf("quinn called ruth over north and south: answered in %s; north knows quinn and south, south knows north and ruth",
		ms(s.Facts["call_ms"].(float64))))
	return nil
}

// call lets quinn call ruth for a sum, and checks the answer.
func (r *remote) call(ctx context.Context, s *Step, through []string) (*openmeshv1.Path, error) {
	res, err := r.quinn.api.Session.Call(ctx, &openmeshv1.CallRequest{
		Target: r.ruth.id.Address, Capability: sumName, Through: through,
		Body: &openmeshv1.CallRequest_Json{Json: `{"numbers":[1,2,39.5]}`},
	})
	if err != nil {
		return nil, r.quinn.at(err)
	}
	var answer struct{ Sum float64 }
	if err := json.Unmarshal([]byte(res.GetJson()), &answer); err != nil || answer.Sum != 42.5 || res.Agent != r.ruth.id.Agent {
		return nil, r.quinn.errorf("was answered %q by %s, want a sum of 42.5 by ruth", res.GetJson(), res.Agent)
	}
	maps.Copy(s.Facts, map[string]any{
		"session": res.Session, "path": res.Path.GetKind(), "transport": res.Path.GetTransport(), "hops": res.Path.GetHops(),
		"suite": res.Suite, "call_ms": res.ElapsedMs,
	})
	return res.Path, nil
}

// relayOf returns the relay that an address leads through, or whose peer id it is;
// nil if it is none of these.
func (r *remote) relayOf(addr string) *node {
	for _, n := range r.relays {
		if strings.Contains(addr, n.id.Peer) {
			return n
		}
	}
	return nil
}

// relayLost: the relay that carries a session is killed. The session goes on through
// the other one.
func (m *mesh) relayLost(ctx context.Context, s *Step) (err error) {
	r := m.remote
	r.series, err = m.openSeries(ctx, r.quinn, r.ruth, &openmeshv1.OpenSessionRequest{
		Qos: "exactly-once", KeepaliveMs: uint32(soonKeepalive.Milliseconds()), AckTimeoutMs: uint32(soonAckTimeout.Milliseconds()),
	})
	if err != nil {
		return err
	}
	lost, err := r.carrier(ctx)
	if err != nil {
		return err
	}
	cut, err := r.series.interrupt(ctx, lost.kill)
	if err != nil {
		return err
	}
	now, err := r.carrier(ctx)
	if err != nil {
		return err
	}
	if now == lost {
		return r.quinn.errorf("has the session through %s, which was killed", lost.name)
	}
	if err := m.start(ctx, lost, m.backbone.addrs); err != nil { // for what follows
		return err
	}
	if err := r.series.once(); err != nil {
		return err
	}
	gap := r.series.gap(cut)
	if gap > maxGap {
		return r.quinn.errorf("nothing arrived for %s after %s was killed, with a keepalive of %s", gap, lost.name, soonKeepalive)
	}
	s.Facts["session"], s.Facts["sent"], s.Facts["delivered"] = r.series.session, r.series.last, r.series.last
	s.Facts["lost"], s.Facts["after"], s.Facts["gap_ms"] = lost.id.Peer, now.id.Peer, millis(gap)
	s.Say(fmt.Sprintf("quinn and ruth at work through %s, which was killed: the session went on through %s after %s", lost.name, now.name, ms(millis(gap))),
		fmt.Sprintf("%d numbers sent, each of them worked on exactly once", r.series.last))
	return nil
}

// carrier is the relay that quinn's session goes through now.
func (r *remote) carrier(ctx context.Context) (relay *node, err error) {
	err = until(ctx, func(ctx context.Context) error {
		i, err := r.quinn.session(ctx, r.series.session)
		if err != nil {
			return err
		}
		for at, c := range i.Channels {
			through := r.relayOf(c.Addr)
			if through == nil || c.Kind != "relayed" || at > 0 && through != relay {
				relay = nil
				break
			}
			relay = through
		}
		if relay == nil {
			return r.quinn.errorf("has the session over %v, want it through one relay", i.Channels)
		}
		return nil
	})
	return relay, err
}

// mailbox: what is said to an agent that is away waits at a relay, sealed, and reaches
// it when it comes, even if who said it has gone meanwhile.
func (m *mesh) mailbox(ctx context.Context, s *Step) error {
	const letters = 3
	r := m.remote
	keeper, err := r.carrier(ctx) // the relay that was not killed
	if err != nil {
		return err
	}
	if err := r.ruth.stop(ctx); err != nil {
		return err
	}
	before := r.series.last
	if err := r.series.send(ctx, before+letters); err != nil {
		return err
	}
	if err := keeper.keeps(ctx, letters); err != nil {
		return err
	}
	if err := r.quinn.stop(ctx); err != nil {
		return err
	}
	if err := m.start(ctx, r.ruth, m.backbone.addrs); err != nil {
		return err
	}
	if err := r.series.saw(ctx, before+letters); err != nil {
		return err
	}
	if err := m.start(ctx, r.quinn, m.backbone.addrs); err != nil {
		return err
	}
	if err := r.series.settle(ctx); err != nil {
		return err
	}
	if err := r.series.once(); err != nil {
		return err
	}
	s.Facts["session"], s.Facts["relay"], s.Facts["letters"] = r.series.session, keeper.id.Peer, letters
	s.Say(fmt.Sprintf("ruth off: %d calls of quinn wait at %s, sealed to ruth", letters, keeper.name),
		"quinn off, ruth on: ruth got them from its mailbox, and worked on each exactly once",
		"quinn on again: it has the answers")
	return nil
}

// keeps waits until the relay has so many letters, or more.
func (n *node) keeps(ctx context.Context, letters uint32) error {
	return until(ctx, func(ctx context.Context) error {
		res, err := n.api.Node.Relays(ctx, &openmeshv1.RelaysRequest{})
		if err == nil && res.Usage.GetLetters() < letters {
			err = fmt.Errorf("keeps %d letters, want %d", res.Usage.GetLetters(), letters)
		}
		return n.at(err)
	})
}
