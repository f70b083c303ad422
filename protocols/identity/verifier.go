package identity

import (
	"crypto/sha256"
	"errors"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"openmesh/protocols/wire"
)

// A Verifier accepts certificates of one realm and remembers, for every agent,
// the highest version it has seen, so that a superseded key is refused even
// while its certificate has not expired. Safe for concurrent use.
type Verifier struct {
	realm Realm
	now   func() time.Time

	mu     sync.Mutex
	latest map[AgentID]seen                   // highest version by agent
	parsed map[[sha256.Size]byte]*Certificate // verified signatures
}

// seen is the highest version of an agent's certificates, and which it was.
type seen struct {
	version uint32
	peer    peer.ID
}

// The bounds of both maps. When one is full, an arbitrary entry goes. Forgetting
// a certificate costs a signature check; forgetting a version lets a superseded
// key pass until it expires, and takes an attacker maxAgents solved puzzles.
const (
	maxAgents       = 1 << 16
	maxCertificates = 1 << 12
)

// NewVerifier returns a verifier of certificates of realm r.
func NewVerifier(r Realm, now func() time.Time) *Verifier {
	return &Verifier{
		realm:  r,
		now:    now,
		latest: make(map[AgentID]seen),
		parsed: make(map[[sha256.Size]byte]*Certificate),
	}
}

// Realm returns the realm whose certificates v accepts.
func (v *Verifier) Realm() Realm { return v.realm }

// Verify returns the certificate in raw if its signature, puzzle and validity
// hold, it is of v's realm, and no later version of the agent's is known.
// Errors: wire.Malformed, wire.Unauthenticated, wire.KeyExpired,
// wire.KeySuperseded, wire.Denied for another realm.
func (v *Verifier) Verify(raw []byte) (*Certificate, error) {
	sum := sha256.Sum256(raw)
	v.mu.Lock()
	c := v.parsed[sum]
	v.mu.Unlock()
	if c == nil {
		var err error
		if c, err = ParseCertificate(raw); err != nil {
			return nil, err
		}
	}
	if c.Address.Realm != v.realm {
		return nil, wire.Errorf(wire.Denied, "certificate of realm %d, this is realm %d", c.Address.Realm, v.realm)
	}
	if err := c.Valid(v.now()); err != nil {
		return nil, err
	}
	return c, v.remember(sum, c)
}

// VerifyFormer is Verify for what comes from an agent that has just proved to hold the
// key of the certificate present: of the same agent, one with a lower version is good,
// too, though it has expired or been superseded. Present itself has to be valid and the
// newest: who stole a former key cannot vouch for what he signs with it. When the
// former key was good is for [Certificate.Valid] with the time of what it signed.
func (v *Verifier) VerifyFormer(raw []byte, present *Certificate) (*Certificate, error) {
	c, err := v.Verify(raw)
	if !errors.Is(err, wire.KeyExpired) && !errors.Is(err, wire.KeySuperseded) {
		return c, err
	}
	former, invalid := ParseCertificate(raw)
	if invalid != nil {
		return nil, invalid
	}
	if former.Agent != present.Agent || former.Version >= present.Version || present.Valid(v.now()) != nil || v.Current(present) != nil {
		return nil, err
	}
	return former, nil
}

// VerifyPeer is Verify, and checks that the certificate is that of peer p.
func (v *Verifier) VerifyPeer(raw []byte, p peer.ID) (*Certificate, error) {
	c, err := v.Verify(raw)
	if err != nil {
		return nil, err
	}
	if c.Peer != p {
		return nil, wire.Errorf(wire.Unauthenticated, "certificate is for peer %s, presented by %s", c.Peer, p)
	}
	return c, nil
}

// Current reports whether no later version than c's is known: wire.KeySuperseded
// if there is. Two certificates of one version for different keys are a fault of
// the agent's: the first one seen stands.
func (v *Verifier) Current(c *Certificate) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.current(c)
}

func (v *Verifier) current(c *Certificate) error {
	s, ok := v.latest[c.Agent]
	if ok && (c.Version < s.version || c.Version == s.version && c.Peer != s.peer) {
		return wire.Errorf(wire.KeySuperseded, "certificate version %d of %s is superseded by version %d", c.Version, c.Agent, s.version)
	}
	return nil
}

func (v *Verifier) remember(sum [sha256.Size]byte, c *Certificate) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.current(c); err != nil {
		return err
	}
	evict(v.latest, c.Agent, maxAgents)
	evict(v.parsed, sum, maxCertificates)
	v.latest[c.Agent] = seen{c.Version, c.Peer}
	v.parsed[sum] = c
	return nil
}

// evict makes room for key.
func evict[K comparable, V any](m map[K]V, key K, limit int) {
	if _, ok := m[key]; ok || len(m) < limit {
		return
	}
	for k := range m {
		delete(m, k)
		return
	}
}
