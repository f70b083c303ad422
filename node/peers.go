package node

import (
	"bufio"
	"bytes"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"go.uber.org/zap"

	"openmesh/policy"
	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

// peersOf returns a function that reads a list of multiaddrs with /p2p/; entries
// "@FILE" are files of such lines, read anew each time.
func (n *Node) peersOf(entries []string) func() []peer.AddrInfo {
	return func() []peer.AddrInfo {
		var addrs []ma.Multiaddr
		for _, e := range entries {
			lines := []string{e}
			if file, ok := strings.CutPrefix(e, "@"); ok {
				lines = n.readLines(file)
			}
			for _, line := range lines {
				a, err := ma.NewMultiaddr(line)
				if err != nil {
					n.log.Warn("not a multiaddr", zap.String("in", e), zap.Error(err))
					continue
				}
				addrs = append(addrs, a)
			}
		}
		infos, err := peer.AddrInfosFromP2pAddrs(addrs...)
		if err != nil {
			n.log.Warn("a multiaddr has no /p2p/ peer id", zap.Strings("in", entries), zap.Error(err))
		}
		return infos
	}
}

// maxPeerFile bounds a file of multiaddrs, in bytes.
const maxPeerFile = 1 << 20

func (n *Node) readLines(file string) []string {
	b, err := os.ReadFile(file)
	if err != nil || len(b) > maxPeerFile {
		n.log.Debug("file of multiaddrs not read", zap.String("file", file), zap.Error(err))
		return nil
	}
	var lines []string
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		if line := strings.TrimSpace(s.Text()); line != "" && !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	return lines
}

func loopbackOnly(addrs []ma.Multiaddr) bool {
	for _, a := range addrs {
		if !manet.IsIPLoopback(a) {
			return false
		}
	}
	return true
}

func parseCircles(m map[string][]string) (policy.Circles, error) {
	circles := make(policy.Circles, len(m))
	for name, ids := range m {
		for _, s := range ids {
			id, err := identity.ParseAgentID(s)
			if err != nil {
				return nil, wire.Errorf(wire.InvalidArgument, "policy.circles.%s: %w", name, err)
			}
			circles[name] = append(circles[name], id)
		}
	}
	return circles, nil
}

func realmMismatch(configured, proven identity.Realm) error {
	return wire.Errorf(wire.InvalidArgument, "node.realm is %d, but this home's identity is of realm %d", configured, proven).
		WithHint("set node.realm to %d, or make another home with: openmesh --home DIR init --realm %d", proven, configured)
}

func expiredKey(err error) error {
	return wire.Errorf(wire.KeyExpired, "this node's key certificate: %w", err).WithHint("make a new one with: openmesh key rotate")
}

// certificates remembers which agents the peers are that this node met. Safe for
// concurrent use.
type certificates struct {
	mu     sync.Mutex
	byPeer map[peer.ID]*identity.Certificate
}

// maxCertificates bounds the memory; when it is full an arbitrary one goes.
const maxCertificates = 4096

func newCertificates() *certificates {
	return &certificates{byPeer: make(map[peer.ID]*identity.Certificate)}
}

func (c *certificates) add(cert *identity.Certificate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for p := range c.byPeer {
		if len(c.byPeer) < maxCertificates {
			break
		}
		delete(c.byPeer, p)
	}
	c.byPeer[cert.Peer] = cert
}

func (c *certificates) of(p peer.ID) *identity.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.byPeer[p]
}

// limiter lets something happen once per interval and agent. Safe for concurrent
// use; it forgets all when it is full.
type limiter struct {
	interval time.Duration

	mu   sync.Mutex
	last map[identity.AgentID]time.Time
}

// maxLimited bounds the agents that a limiter remembers.
const maxLimited = 4096

func newLimiter(interval time.Duration) *limiter {
	return &limiter{interval: interval, last: make(map[identity.AgentID]time.Time)}
}

func (l *limiter) due(a identity.AgentID, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.last[a]) < l.interval {
		return false
	}
	if len(l.last) >= maxLimited {
		clear(l.last)
	}
	l.last[a] = now
	return true
}
