package topic

import (
	"crypto/ed25519"
	"crypto/sha256"
	"time"

	pubsubpb "github.com/libp2p/go-libp2p-pubsub/pb"
	"google.golang.org/protobuf/proto"

	"openmesh/overlay/topic/topicpb"
	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

const (
	version  = 1
	bodyAt   = 1 + ed25519.SignatureSize // hops, signature, body
	signedAs = "openmesh/topic/1\x00"    // before the body, in what is signed
)

// id tells messages apart, for GossipSub. It covers all but the hops, so that a
// copy that came another way is the same message; and it covers the signature
// and the topic, so that nobody can spoil a message for those who have not seen
// it yet by sending its body with a bad signature, or on another topic.
func id(m *pubsubpb.Message) string {
	h := sha256.New()
	h.Write([]byte(m.GetTopic()))
	h.Write([]byte{0})
	if len(m.Data) > 0 {
		h.Write(m.Data[1:])
	}
	return string(h.Sum(nil))
}

// seal makes a message of ours. Errors: wire.InvalidArgument, wire.TooLarge.
func (g *Gossip) seal(topic string, payload []byte, ttl time.Duration) ([]byte, error) {
	if ttl < time.Millisecond || ttl > MaxLifetime {
		return nil, wire.Errorf(wire.InvalidArgument, "publish on %s: a lifetime of %v is not within (0, %v]", topic, ttl, MaxLifetime)
	}
	if len(payload) > MaxMessage {
		return nil, tooLarge(topic, len(payload))
	}
	now := time.Now()
	body, err := proto.Marshal(&topicpb.Broadcast{
		Version: version, Topic: topic, Certificate: g.cfg.Certificate.Raw, Payload: payload,
		Issued: now.UnixMilli(), Expires: now.Add(ttl).UnixMilli(), MaxHops: uint32(g.cfg.Limits.Hops),
	})
	if err != nil {
		return nil, wire.Errorf(wire.Internal, "publish on %s: %w", topic, err)
	}
	signature, err := g.cfg.Key.Sign(append([]byte(signedAs), body...))
	if err != nil {
		return nil, wire.Errorf(wire.Internal, "publish on %s: sign: %w", topic, err)
	}
	data := append(append([]byte{byte(g.cfg.Limits.Hops)}, signature...), body...)
	if len(data) > MaxMessage {
		return nil, tooLarge(topic, len(data))
	}
	return data, nil
}

func tooLarge(topic string, n int) error {
	return wire.Errorf(wire.TooLarge, "publish on %s: a message of %d bytes; the limit is %d", topic, n, MaxMessage).
		WithHint("Say where the rest can be had.")
}

// open checks a message of others. Errors that only a liar can cause have the
// codes of [lies]; wire.Replayed is outside of its time.
func (g *Gossip) open(topic string, data []byte, now time.Time) (*topicpb.Broadcast, *identity.Certificate, error) {
	if len(data) > MaxMessage || len(data) <= bodyAt {
		return nil, nil, wire.Errorf(wire.Malformed, "a broadcast of %d bytes", len(data))
	}
	b := new(topicpb.Broadcast)
	if err := proto.Unmarshal(data[bodyAt:], b); err != nil {
		return nil, nil, wire.Errorf(wire.Malformed, "broadcast: %w", err)
	}
	if err := checkBody(b, topic, now); err != nil {
		return nil, nil, err
	}
	cert, err := g.cfg.Verify(b.Certificate)
	if err != nil {
		return nil, nil, err
	}
	ok, err := cert.HostKey().Verify(append([]byte(signedAs), data[bodyAt:]...), data[1:bodyAt])
	if err != nil || !ok {
		return nil, nil, wire.Errorf(wire.Unauthenticated, "broadcast: the signature is not that of %s", cert.Agent)
	}
	return b, cert, nil
}

func checkBody(b *topicpb.Broadcast, topic string, now time.Time) error {
	issued, expires := time.UnixMilli(b.Issued), time.UnixMilli(b.Expires)
	switch {
	case b.Version != version:
		return wire.Errorf(wire.Unsupported, "broadcast of version %d", b.Version)
	case b.Topic != topic:
		return wire.Errorf(wire.Malformed, "broadcast on another topic than its own")
	case b.MaxHops == 0 || b.MaxHops > MaxHops:
		return wire.Errorf(wire.Malformed, "broadcast for %d hops", b.MaxHops)
	case b.Issued < 0 || !expires.After(issued) || expires.Sub(issued) > MaxLifetime:
		return wire.Errorf(wire.Malformed, "broadcast without a lifetime within (0, %v]", MaxLifetime)
	case !now.Before(expires) || now.Before(issued.Add(-identity.ClockSkew)):
		return wire.Errorf(wire.Replayed, "broadcast outside of its lifetime")
	}
	return nil
}
