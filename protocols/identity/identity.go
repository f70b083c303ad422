// Package identity says who an agent is, in terms that anyone can verify
// without asking anyone.
//
//	root key      Ed25519; names the agent for ever, signs certificates only
//	agent id      did:key of the root key: did:key:z6Mk…
//	address       48 bits, R:XXXX.XXXX.XXXX; a name for people, never a credential
//	host key      Ed25519; the libp2p identity, replaced at each rotation
//	certificate   binds host key to root key: version, peer id, validity, mailbox key
//
// An address is derived, not assigned:
//
//	d       = SHA-256("openmesh/address/v1" ‖ realm ‖ root public key ‖ nonce)
//	puzzle  : SHA-256(d ‖ "pow") starts with 20 zero bits (8 in private-use realms)
//	address = first 48 bits of SHA-256(d)
//
// realm is 2 bytes and nonce 8, both big-endian. The static puzzle is that of
// S/Kademlia (Baumgart, Mies 2007): finding a second root key for a given
// address costs 2^68 hashes instead of 2^48. Should it happen all the same,
// resolving the address fails and names both agents; every check is against
// the agent id.
package identity

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"strings"

	"github.com/multiformats/go-multibase"
)

// ErrInvalid reports a malformed agent id or address.
var ErrInvalid = errors.New("invalid identity")

// AgentID names an agent: the did:key form of its Ed25519 root public key
// (W3C did:key method, multicodec 0xed, base58btc).
type AgentID string

const didKey = "did:key:"

// maxAgentID bounds what ParseAgentID looks at; a valid id has 56 bytes.
const maxAgentID = 64

var ed25519Multicodec = [2]byte{0xed, 0x01}

// NewAgentID returns the id of the agent with the given root public key.
func NewAgentID(root ed25519.PublicKey) AgentID {
	s, err := multibase.Encode(multibase.Base58BTC, append(ed25519Multicodec[:], root...))
	if err != nil {
		panic(err) // base58btc is always there
	}
	return AgentID(didKey + s)
}

// ParseAgentID checks that s is a canonical agent id.
func ParseAgentID(s string) (AgentID, error) {
	id := AgentID(s)
	if _, err := id.PublicKey(); err != nil {
		return "", err
	}
	return id, nil
}

// PublicKey returns the root public key that id encodes.
func (id AgentID) PublicKey() (ed25519.PublicKey, error) {
	rest, ok := strings.CutPrefix(string(id), didKey)
	if !ok || len(id) > maxAgentID {
		return nil, fmt.Errorf("%w: agent id %.70q: want did:key:z6Mk…", ErrInvalid, string(id))
	}
	enc, b, err := multibase.Decode(rest)
	if err != nil || enc != multibase.Base58BTC || len(b) != 2+ed25519.PublicKeySize || [2]byte(b) != ed25519Multicodec {
		return nil, fmt.Errorf("%w: agent id %.70q: not an Ed25519 key in base58btc", ErrInvalid, string(id))
	}
	key := ed25519.PublicKey(b[2:])
	if NewAgentID(key) != id {
		return nil, fmt.Errorf("%w: agent id %.70q: not canonical", ErrInvalid, string(id))
	}
	return key, nil
}
