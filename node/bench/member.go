package bench

import (
	"context"
	"crypto/rand"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/zap"

	"openmesh/node"
	"openmesh/node/config"
	"openmesh/node/keys"
	"openmesh/protocols/identity"
	"openmesh/protocols/session"
)

// Setup is what the nodes of a benchmark are like, where they differ from the
// default. Client and server have the same.
type Setup struct {
	Transport string        `json:"transport"`            // quic, tcp or both
	ParkAfter time.Duration `json:"park_after,omitempty"` // session.park_after
	Sessions  int           `json:"sessions,omitempty"`   // session.max_sessions and max_per_agent
	Offers    int           `json:"offers,omitempty"`     // signal.rate_per_peer and rate_total
	Relay     bool          `json:"relay,omitempty"`      // be a relay, not the server
	Relays    []string      `json:"relays,omitempty"`     // multiaddrs, if the mesh has relays: the first one serves the directory
	Market    bool          `json:"market,omitempty"`     // be a seller, or the buyer
	Bootstrap []string      `json:"bootstrap,omitempty"`  // multiaddrs of the seller that serves the directory; empty: this one
}

// relayed reports whether nodes are reached through relays too.
func (s Setup) relayed() bool { return s.Relay || len(s.Relays) > 0 }

func (s Setup) listen() []ma.Multiaddr {
	quic, tcp := ma.StringCast("/ip4/127.0.0.1/udp/0/quic-v1"), ma.StringCast("/ip4/127.0.0.1/tcp/0")
	switch s.Transport {
	case "tcp":
		return []ma.Multiaddr{tcp}
	case "both":
		return []ma.Multiaddr{quic, tcp}
	}
	return []ma.Multiaddr{quic}
}

// newNode makes a node with an identity of its own in home, on loopback.
func newNode(ctx context.Context, home string, setup Setup, roles, bootstrap []string, data func(*session.Session, []byte)) (*node.Node, error) {
	k, err := newKeys(ctx, home)
	if err != nil {
		return nil, err
	}
	c, err := config.Load(home, nil, nil)
	if err != nil {
		return nil, err
	}
	c.Node.Realm, c.Node.Roles = uint16(realm), roles
	c.Networking.Listen, c.Networking.Bootstrap = setup.listen(), bootstrap
	c.Networking.NATStrategy, c.Networking.Relays = "none", setup.Relays
	if setup.relayed() {
		c.Networking.NATStrategy = "relay"
	}
	c.Observability.MetricsPort = 0
	c.API.Listen = []string{"unix:" + home + "/api.sock"}
	c.Signal.RatePerPeer, c.Signal.RateTotal = 1000, 1000
	if setup.Offers > 0 {
		c.Signal.RatePerPeer, c.Signal.RateTotal = setup.Offers, setup.Offers
	}
	if setup.Sessions > 0 {
		c.Session.MaxSessions, c.Session.MaxPerAgent = setup.Sessions, setup.Sessions
	}
	if setup.Market {
		c.Market.MaxOpen = manyDeals
	}
	if setup.ParkAfter > 0 {
		c.Session.ParkAfter = setup.ParkAfter
	}
	return node.New(node.Config{Home: home, Config: c, Keys: k, Log: zap.NewNop(), Version: "bench", Data: data})
}

func newKeys(ctx context.Context, home string) (*keys.Keys, error) {
	return keys.Init(ctx, home, keys.InitOptions{Realm: realm, Passphrase: []byte(rand.Text()), Now: time.Now()})
}

// member is a node that runs.
type member struct {
	*node.Node
	stop context.CancelFunc
	done sync.WaitGroup
	err  error // of Run
}

// join starts a node of the mesh that bootstrap is part of.
func join(ctx context.Context, home string, setup Setup, bootstrap []string) (*member, error) {
	n, err := newNode(ctx, home, setup, []string{"agent"}, bootstrap, nil)
	if err != nil {
		return nil, err
	}
	m := &member{Node: n}
	ctx, m.stop = context.WithCancel(ctx)
	ended := make(chan struct{})
	m.done.Go(func() {
		defer close(ended)
		m.err = n.Run(ctx)
	})
	select {
	case <-n.Ready():
		return m, nil
	case <-ended:
	case <-ctx.Done():
	}
	m.leave()
	return nil, fmt.Errorf("start node: %w", errorOf(m.err, ctx.Err()))
}

// leave stops the node and returns when it has stopped.
func (m *member) leave() {
	m.stop()
	m.done.Wait()
}

// errorOf is the first error that is one.
func errorOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// open opens a session of its own with the server; via, if given, is where to find
// it instead of at its own addresses.
func (m *member) open(ctx context.Context, s Server, w session.Want, via ...ma.Multiaddr) (*session.Session, error) {
	at, err := peer.AddrInfoFromString(s.Node[0])
	if err != nil {
		return nil, err
	}
	w.Exclusive = true
	if via == nil {
		via = at.Addrs
	}
	route := session.Route{Peer: at.ID, Addrs: via}
	return m.Sessions().Open(ctx, session.Target{Agent: identity.AgentID(s.Agent), Route: route}, w)
}

// call makes one call in a session, and checks the answer.
func call(ctx context.Context, s *session.Session) error {
	resp, _, err := s.Call(ctx, &session.Request{Capability: echoCapability, Encoding: session.JSON, Body: payload})
	if err != nil {
		return err
	}
	return sameSize(len(resp.Body))
}

// bulk sends total bytes as messages of a session. They are in order on its channel,
// so a call afterwards finds them counted.
func bulk(ctx context.Context, s *session.Session, total int) error {
	before, err := count(ctx, s)
	if err != nil {
		return err
	}
	chunk := make([]byte, ChunkSize)
	for sent := 0; sent < total; sent += ChunkSize {
		if err := s.Send(chunk); err != nil {
			return err
		}
	}
	after, err := count(ctx, s)
	if err != nil {
		return err
	}
	return counted(after-before, total)
}

// count asks the server how many bytes of messages it has received.
func count(ctx context.Context, s *session.Session) (int64, error) {
	resp, _, err := s.Call(ctx, &session.Request{Capability: countCapability, Encoding: session.JSON, Body: []byte("{}")})
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(string(resp.Body), 10, 64)
}
