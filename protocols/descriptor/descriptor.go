// Package descriptor is what an agent says of itself, signed, and how others
// get to see it.
//
//	descriptor   capabilities, region, load, …   fetched from the agent itself
//	agent record addresses, mailboxes            a DHT value, there while the agent is not
//	capability   name, version                   provided in the DHT under its keys
//
// Descriptor and record are Protobuf messages in a libp2p signed envelope
// (libp2p/specs RFC 0002). The chain that a reader checks:
//
//	envelope ── signed by ──> host key ── certified by ──> root key = agent id
//	                             │                            │
//	                          peer id                    address (puzzle)
//
// Protocols, each one request frame and one response frame (package stream):
//
//	/openmesh/descriptor/1.0.0        Request → Response     [Server], [Fetch]
//	/openmesh/<realm>/withdraw/1.0.0  Withdraw → Withdrawn   [WithdrawServer], [Withdraw]
//
// Limits: descriptor 32 KiB, 64 capabilities; record 8 KiB; one call 5 s.
//
// What is visible to whom: public capabilities to everyone; those of a circle to
// callers who prove by their certificate that they are members; private ones to
// no one, they are called by whoever knows the address. A descriptor is
// therefore signed afresh for each caller.
package descriptor

import (
	"math"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/descriptor/descriptorpb"
	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

const (
	// MaxDescriptor bounds a sealed descriptor, in bytes.
	MaxDescriptor = 32 << 10
	// MaxRecord bounds a sealed agent record, in bytes.
	MaxRecord = 8 << 10
	// MaxCapabilities bounds how many capabilities an agent has.
	MaxCapabilities = 64
	// MaxLifetime bounds how long a descriptor or record may be valid.
	MaxLifetime = 7 * 24 * time.Hour

	maxMailboxes     = 16
	maxJurisdictions = 32
	maxWord          = 256 // bytes of a region, domain, mailbox, …
)

// Descriptor is a verified descriptor.
type Descriptor struct {
	Certificate *identity.Certificate    // of the signer: agent, address, peer, key version
	Body        *descriptorpb.Descriptor // what was signed; shared, not to be changed
	Raw         []byte                   // signed envelope; served again as it is, with fields unknown here
}

// Issued returns when d was signed.
func (d *Descriptor) Issued() time.Time { return time.Unix(d.Body.Issued, 0) }

// Expires returns when d stops being valid.
func (d *Descriptor) Expires() time.Time { return time.Unix(d.Body.Expires, 0) }

// Seal fills in agent, address and certificate of a copy of body and signs it
// with the host key that cert certifies. Errors: wire.InvalidArgument with what
// is wrong in body, wire.TooLarge.
func Seal(host crypto.PrivKey, cert *identity.Certificate, body *descriptorpb.Descriptor) (*Descriptor, error) {
	body = proto.CloneOf(body)
	body.Agent, body.Address, body.Certificate = string(cert.Agent), cert.Address.String(), cert.Raw
	if err := checkBody(body); err != nil {
		return nil, wire.Errorf(wire.InvalidArgument, "seal descriptor: %w", err)
	}
	raw, err := descriptorKind().seal(host, cert, body)
	if err != nil {
		return nil, err
	}
	return &Descriptor{Certificate: cert, Body: body, Raw: raw}, nil
}

// Verify returns the descriptor in raw if all of it holds at now: size,
// signature, certificate chain, agent, address, lifetime and the shape of every
// capability. The signer must be peer from, unless from is empty. Errors:
// wire.TooLarge, wire.Malformed, wire.Unauthenticated, wire.Replayed (outside
// its lifetime), and those of [identity.Verifier.Verify].
func Verify(raw []byte, v *identity.Verifier, from peer.ID, now time.Time) (*Descriptor, error) {
	body := new(descriptorpb.Descriptor)
	key, err := descriptorKind().open(raw, body)
	if err != nil {
		return nil, err
	}
	cert, err := descriptorKind().signer(key, body, v, now)
	if err != nil {
		return nil, err
	}
	if from != "" && cert.Peer != from {
		return nil, wire.Errorf(wire.Unauthenticated, "descriptor: of peer %s, presented by %s", cert.Peer, from)
	}
	if err := checkBody(body); err != nil {
		return nil, err
	}
	return &Descriptor{Certificate: cert, Body: body, Raw: raw}, nil
}

// checkBody checks the shape of what does not depend on signer or time.
func checkBody(b *descriptorpb.Descriptor) error {
	switch {
	case len(b.Capabilities) > MaxCapabilities:
		return wire.Errorf(wire.TooLarge, "descriptor: %d capabilities, the limit is %d", len(b.Capabilities), MaxCapabilities)
	case math.IsNaN(b.Load) || b.Load < 0 || b.Load > 1:
		return wire.Errorf(wire.Malformed, "descriptor: load %v is not within [0, 1]", b.Load)
	case len(b.Mailboxes) > maxMailboxes || len(b.Jurisdictions) > maxJurisdictions:
		return wire.Errorf(wire.Malformed, "descriptor: too many mailboxes or jurisdictions")
	}
	if err := words(b.Region, b.Domain, b.AgentVersion); err != nil {
		return err
	}
	if err := words(append(b.Mailboxes[:len(b.Mailboxes):len(b.Mailboxes)], b.Jurisdictions...)...); err != nil {
		return err
	}
	return CheckCapabilities(b.Capabilities)
}

func words(ws ...string) error {
	for _, w := range ws {
		if len(w) > maxWord {
			return wire.Errorf(wire.Malformed, "descriptor: a text of %d bytes, the limit is %d", len(w), maxWord)
		}
	}
	return nil
}

// View returns a copy of body with only the capabilities that a member of the
// circles for which member is true may see.
func View(body *descriptorpb.Descriptor, member func(circle string) bool) *descriptorpb.Descriptor {
	out := proto.CloneOf(body)
	out.Capabilities = out.Capabilities[:0]
	for _, c := range body.Capabilities {
		v, err := ParseVisibility(c.Visibility)
		if err != nil || v.Private || v.Circle != "" && !member(v.Circle) {
			continue
		}
		out.Capabilities = append(out.Capabilities, c)
	}
	return out
}
