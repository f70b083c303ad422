package signal

import (
	"fmt"
	"math"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

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
	Retry           Retry
	MessageRate     int // messages a second, per direction; 0: no limit
	ByteRate        int // bytes a second, per direction; 0: no limit

	// Market is the market contract that the work is done under, as 32 hex digits;
	// empty: none. The initiator cites it, and the answer cites the same.
	Market string
}

// marketDigits is the length of a market contract's id.
const marketDigits = 32

// CheckMarket reports wire.InvalidArgument if id is none of a market contract: 32
// digits, 0-9 and a-f.
func CheckMarket(id string) error {
	if len(id) != marketDigits || strings.Trim(id, "0123456789abcdef") != "" {
		return wire.Errorf(wire.InvalidArgument, "market contract %.40q: want %d hexadecimal digits", id, marketDigits)
	}
	return nil
}

// checkMarket reports wire.Malformed if c cites what is no market contract.
func (c Contract) checkMarket() error {
	if c.Market != "" && CheckMarket(c.Market) != nil {
		return wire.Errorf(wire.Malformed, "session contract: it cites market contract %.40q", c.Market)
	}
	return nil
}

// Retry is when a message without success is sent again: after Initial ×
// Multiplierⁿ, at most MaxInterval, varied by ± Jitter of itself. The zero value
// leaves it to the other side.
type Retry struct {
	Max         int // after the first attempt
	Initial     time.Duration
	Multiplier  float64
	MaxInterval time.Duration
	Jitter      float64 // 0 to 1
}

// DefaultContract holds the defaults of every term.
func DefaultContract() Contract {
	return Contract{
		QoS: AtMostOnce, TTL: 24 * time.Hour, AckTimeout: 10 * time.Second, Keepalive: 30 * time.Second,
		RekeyInterval: 5 * time.Minute, MaxMessageBytes: 4 << 20, MaxPending: 1024,
		Retry: Retry{Max: 5, Initial: 200 * time.Millisecond, Multiplier: 2, MaxInterval: 30 * time.Second, Jitter: 0.2},
	}
}

// Tighten returns the contract that a side whose own limits are c agrees to when
// offered o: of every term the stricter one. The promise itself (QoS, order) and the
// market contract are as offered; the promise is refused with wire.Unsupported if
// c's is weaker.
func (c Contract) Tighten(o Contract) (Contract, error) {
	if o.QoS > c.QoS {
		return Contract{}, wire.Errorf(wire.Unsupported, "session contract: %s offered, at most %s supported", o.QoS, c.QoS)
	}
	if err := o.checkMarket(); err != nil {
		return Contract{}, err
	}
	if o.QoS != 0 {
		c.QoS = o.QoS
	}
	c.Ordered, c.Market = o.Ordered, o.Market
	c.Persistent = c.Persistent && o.Persistent
	c.TTL = stricter(c.TTL, o.TTL)
	c.AckTimeout = stricter(c.AckTimeout, o.AckTimeout)
	c.Keepalive = max(stricter(c.Keepalive, o.Keepalive), minKeepalive)
	c.RekeyInterval = max(stricter(c.RekeyInterval, o.RekeyInterval), minRekey)
	c.MaxMessageBytes = max(stricter(c.MaxMessageBytes, o.MaxMessageBytes), minMessage)
	c.MaxPending = stricter(c.MaxPending, o.MaxPending)
	c.Retry = c.Retry.tighten(o.Retry)
	if o.Retry != (Retry{}) && !c.Retry.check() {
		return Contract{}, wire.Errorf(wire.Malformed, "session contract: retries were offered that make no sense")
	}
	c.MessageRate, c.ByteRate = stricter(c.MessageRate, o.MessageRate), stricter(c.ByteRate, o.ByteRate)
	return c, nil
}

// tighten returns the retries that burden the other side least: fewer and later.
func (r Retry) tighten(o Retry) Retry {
	if o == (Retry{}) {
		return r
	}
	return Retry{
		Max: min(r.Max, o.Max), Initial: max(r.Initial, o.Initial), Multiplier: max(r.Multiplier, o.Multiplier),
		MaxInterval: max(r.MaxInterval, o.MaxInterval), Jitter: max(r.Jitter, o.Jitter),
	}
}

// check reports whether r makes sense: what a peer says is used for timers.
func (r Retry) check() bool {
	return r.Max >= 0 && r.Max <= maxRetries && r.Initial >= time.Millisecond && r.Multiplier >= 1 && r.Multiplier <= 100 &&
		r.MaxInterval >= r.Initial && r.Jitter >= 0 && r.Jitter <= 1
}

// Floors that keep a peer from wearing this node out by strict terms.
const (
	minKeepalive = time.Second
	minRekey     = time.Second
	minMessage   = 1 << 10
	maxRetries   = 1000
)

func stricter[T int | time.Duration](ours, theirs T) T {
	if theirs == 0 || ours != 0 && ours < theirs {
		return ours
	}
	return theirs
}

// checkAnswer reports wire.PolicyViolation if answer loosens a term of offer or is
// under another market contract, and wire.Malformed if it leaves a term open.
func (c Contract) checkAnswer(answer Contract) error {
	open := answer.QoS == 0 || answer.QoS > ExactlyOnce || answer.TTL <= 0 || answer.AckTimeout <= 0 || answer.Keepalive < minKeepalive ||
		answer.RekeyInterval < minRekey || answer.MaxMessageBytes < minMessage || answer.MaxPending < 1 || !answer.Retry.check()
	if open {
		return wire.Errorf(wire.Malformed, "session contract: answer leaves a term open")
	}
	if answer.Market != c.Market {
		return wire.Errorf(wire.PolicyViolation, "session contract: market contract %.40q offered, %.40q in the answer", c.Market, answer.Market)
	}
	looser := c.QoS != 0 && answer.QoS != c.QoS || answer.Ordered != c.Ordered || answer.Persistent && !c.Persistent ||
		exceeds(answer.TTL, c.TTL) || exceeds(answer.AckTimeout, c.AckTimeout) ||
		exceeds(answer.Keepalive, max(c.Keepalive, minKeepalive)) && c.Keepalive != 0 ||
		exceeds(answer.RekeyInterval, c.RekeyInterval) ||
		exceeds(answer.MaxMessageBytes, c.MaxMessageBytes) || exceeds(answer.MaxPending, c.MaxPending) ||
		c.Retry != (Retry{}) && answer.Retry.tighten(c.Retry) != answer.Retry ||
		loosensRate(answer.MessageRate, c.MessageRate) || loosensRate(answer.ByteRate, c.ByteRate)
	if looser {
		return wire.Errorf(wire.PolicyViolation, "session contract: answer loosens the offer")
	}
	return nil
}

func exceeds[T int | time.Duration](answer, offer T) bool { return offer != 0 && answer > offer }

// loosensRate is exceeds for limits of which 0 is none.
func loosensRate(answer, offer int) bool { return offer != 0 && (answer == 0 || answer > offer) }

// Marshal serializes the contract, for [ParseContract].
func (c Contract) Marshal() []byte {
	b, err := proto.Marshal(c.message())
	if err != nil {
		panic(err) // numbers and digits always marshal
	}
	return b
}

// ParseContract reads what [Contract.Marshal] wrote; a term left open is an error.
func ParseContract(b []byte) (Contract, error) {
	var m signalpb.Contract
	if err := proto.Unmarshal(b, &m); err != nil {
		return Contract{}, wire.Errorf(wire.Malformed, "session contract: %w", err)
	}
	c := contractOf(&m)
	if err := c.checkMarket(); err != nil {
		return Contract{}, err
	}
	return c, c.checkAnswer(c)
}

func (r Retry) message() *signalpb.Retry {
	if r == (Retry{}) {
		return nil
	}
	return &signalpb.Retry{
		Max: clamp(r.Max), Initial: millis(r.Initial), Multiplier: clamp(int(r.Multiplier*1000 + 0.5)),
		MaxInterval: millis(r.MaxInterval), Jitter: clamp(int(r.Jitter*1000 + 0.5)),
	}
}

func retryOf(m *signalpb.Retry) Retry {
	if m == nil {
		return Retry{}
	}
	return Retry{
		Max: int(min(m.Max, math.MaxInt32)), Initial: time.Duration(m.Initial) * time.Millisecond, Multiplier: float64(m.Multiplier) / 1000,
		MaxInterval: time.Duration(m.MaxInterval) * time.Millisecond, Jitter: float64(m.Jitter) / 1000,
	}
}

func (c Contract) message() *signalpb.Contract {
	return &signalpb.Contract{
		Qos: signalpb.Contract_Qos(c.QoS), Ordered: c.Ordered, Persistent: c.Persistent,
		Ttl: millis(c.TTL), AckTimeout: millis(c.AckTimeout), Keepalive: millis(c.Keepalive),
		RekeyInterval: millis(c.RekeyInterval), MaxMessageBytes: clamp(c.MaxMessageBytes), MaxPending: clamp(c.MaxPending),
		Retry: c.Retry.message(), MessageRate: clamp(c.MessageRate), ByteRate: clamp(c.ByteRate),
		Market: c.Market,
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
		MaxPending: int(min(m.GetMaxPending(), math.MaxInt32)), Retry: retryOf(m.GetRetry()),
		MessageRate: int(min(m.GetMessageRate(), math.MaxInt32)), ByteRate: int(min(m.GetByteRate(), math.MaxInt32)),
		Market: m.GetMarket(),
	}
}

func millis(d time.Duration) uint32 { return clamp(int(d / time.Millisecond)) }

func clamp(n int) uint32 { return uint32(min(max(n, 0), math.MaxUint32)) }

// With returns c with the terms of o that are not zero in their place.
func (c Contract) With(o Contract) Contract {
	set(&c.QoS, o.QoS)
	set(&c.Ordered, o.Ordered)
	set(&c.Persistent, o.Persistent)
	set(&c.TTL, o.TTL)
	set(&c.AckTimeout, o.AckTimeout)
	set(&c.Keepalive, o.Keepalive)
	set(&c.RekeyInterval, o.RekeyInterval)
	set(&c.MaxMessageBytes, o.MaxMessageBytes)
	set(&c.MaxPending, o.MaxPending)
	set(&c.Retry, o.Retry)
	set(&c.MessageRate, o.MessageRate)
	set(&c.ByteRate, o.ByteRate)
	set(&c.Market, o.Market)
	return c
}

func set[T comparable](field *T, v T) {
	var zero T
	if v != zero {
		*field = v
	}
}
