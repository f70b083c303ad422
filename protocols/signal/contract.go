package signal

import (
	"fmt"
	"math"
	"time"

	"openmesh/protocols/signal/signalpb"
	"openmesh/protocols/wire"
)

// QoS is a delivery promise. Values are on the wire: append only.
type QoS uint8

// The delivery promises, each stronger than the one before.
const (
	AtMostOnce QoS = iota + 1
	AtLeastOnce
	ExactlyOnce
)

var qosNames = [...]string{"", "at-most-once", "at-least-once", "exactly-once"}

func (q QoS) String() string {
	if int(q) < len(qosNames) {
		return qosNames[q]
	}
	return fmt.Sprintf("qos-%d", uint8(q))
}

// ParseQoS reads a name such as "at-most-once".
func ParseQoS(s string) (QoS, error) {
	for i, n := range qosNames[1:] {
		if n == s {
			return QoS(i + 1), nil
		}
	}
	return 0, wire.Errorf(wire.InvalidArgument, "qos %q: want at-most-once, at-least-once or exactly-once", s)
}

// Contract is the session contract: the terms both sides agreed to. In an
// offer, zero leaves a term to the responder; an agreed contract has no zero.
type Contract struct {
	QoS             QoS
	Ordered         bool
	Persistent      bool
	TTL             time.Duration // how long a message may wait for delivery
	AckTimeout      time.Duration
	Keepalive       time.Duration // a channel silent for twice this is dead
	RekeyInterval   time.Duration
	MaxMessageBytes int // plaintext of one message
	MaxPending      int // requests in flight, per direction
}

// DefaultContract holds the defaults of every term.
func DefaultContract() Contract {
	return Contract{
		QoS: AtMostOnce, TTL: 24 * time.Hour, AckTimeout: 10 * time.Second, Keepalive: 30 * time.Second,
		RekeyInterval: 5 * time.Minute, MaxMessageBytes: 4 << 20, MaxPending: 1024,
	}
}

// Tighten returns the contract that a side whose own limits are c agrees to when
// offered o: of every term the stricter one. The promise itself (QoS, order) is
// as offered; it is refused with wire.Unsupported if c's is weaker.
func (c Contract) Tighten(o Contract) (Contract, error) {
	if o.QoS > c.QoS {
		return Contract{}, wire.Errorf(wire.Unsupported, "session contract: %s offered, at most %s supported", o.QoS, c.QoS)
	}
	if o.QoS != 0 {
		c.QoS = o.QoS
	}
	c.Ordered = o.Ordered
	c.Persistent = c.Persistent && o.Persistent
	c.TTL = stricter(c.TTL, o.TTL)
	c.AckTimeout = stricter(c.AckTimeout, o.AckTimeout)
	c.Keepalive = max(stricter(c.Keepalive, o.Keepalive), minKeepalive)
	c.RekeyInterval = max(stricter(c.RekeyInterval, o.RekeyInterval), minRekey)
	c.MaxMessageBytes = max(stricter(c.MaxMessageBytes, o.MaxMessageBytes), minMessage)
	c.MaxPending = stricter(c.MaxPending, o.MaxPending)
	return c, nil
}

// Floors that keep a peer from wearing this node out by strict terms.
const (
	minKeepalive = time.Second
	minRekey     = time.Second
	minMessage   = 1 << 10
)

func stricter[T int | time.Duration](ours, theirs T) T {
	if theirs == 0 || ours != 0 && ours < theirs {
		return ours
	}
	return theirs
}

// checkAnswer reports wire.PolicyViolation if answer loosens a term of offer, and
// wire.Malformed if it leaves one open.
func (c Contract) checkAnswer(answer Contract) error {
	open := answer.QoS == 0 || answer.QoS > ExactlyOnce || answer.TTL <= 0 || answer.AckTimeout <= 0 || answer.Keepalive < minKeepalive ||
		answer.RekeyInterval < minRekey || answer.MaxMessageBytes < minMessage || answer.MaxPending < 1
	if open {
		return wire.Errorf(wire.Malformed, "session contract: answer leaves a term open")
	}
	looser := c.QoS != 0 && answer.QoS != c.QoS || answer.Ordered != c.Ordered || answer.Persistent && !c.Persistent ||
		exceeds(answer.TTL, c.TTL) || exceeds(answer.AckTimeout, c.AckTimeout) ||
		exceeds(answer.Keepalive, max(c.Keepalive, minKeepalive)) && c.Keepalive != 0 ||
		exceeds(answer.RekeyInterval, c.RekeyInterval) ||
		exceeds(answer.MaxMessageBytes, c.MaxMessageBytes) || exceeds(answer.MaxPending, c.MaxPending)
	if looser {
		return wire.Errorf(wire.PolicyViolation, "session contract: answer loosens the offer")
	}
	return nil
}

func exceeds[T int | time.Duration](answer, offer T) bool { return offer != 0 && answer > offer }

func (c Contract) message() *signalpb.Contract {
	return &signalpb.Contract{
		Qos: signalpb.Contract_Qos(c.QoS), Ordered: c.Ordered, Persistent: c.Persistent,
		Ttl: millis(c.TTL), AckTimeout: millis(c.AckTimeout), Keepalive: millis(c.Keepalive),
		RekeyInterval: millis(c.RekeyInterval), MaxMessageBytes: clamp(c.MaxMessageBytes), MaxPending: clamp(c.MaxPending),
	}
}

func contractOf(m *signalpb.Contract) Contract {
	q := QoS(0)
	if m.GetQos() > 0 && m.GetQos() <= math.MaxUint8 {
		q = QoS(m.GetQos())
	}
	ms := func(v uint32) time.Duration { return time.Duration(v) * time.Millisecond }
	return Contract{
		QoS: q, Ordered: m.GetOrdered(), Persistent: m.GetPersistent(),
		TTL: ms(m.GetTtl()), AckTimeout: ms(m.GetAckTimeout()), Keepalive: ms(m.GetKeepalive()),
		RekeyInterval: ms(m.GetRekeyInterval()), MaxMessageBytes: int(min(m.GetMaxMessageBytes(), math.MaxInt32)),
		MaxPending: int(min(m.GetMaxPending(), math.MaxInt32)),
	}
}

func millis(d time.Duration) uint32 { return clamp(int(d / time.Millisecond)) }

func clamp(n int) uint32 { return uint32(min(max(n, 0), math.MaxUint32)) }
