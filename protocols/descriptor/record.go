package descriptor

import (
	"bytes"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/descriptor/descriptorpb"
	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

const (
	// Namespace is that of agent records among DHT keys.
	Namespace = "openmesh"
	// MaxValue bounds a DHT value, in bytes.
	MaxValue = MaxClaims*MaxRecord + 16

	maxAddrs = 32
)

// Record is a verified agent record.
type Record struct {
	Certificate *identity.Certificate
	Body        *descriptorpb.AgentRecord // shared, not to be changed
	Addrs       []multiaddr.Multiaddr     // without /p2p/
	Raw         []byte                    // signed envelope
}

// Expires returns when r stops being valid.
func (r *Record) Expires() time.Time { return time.Unix(r.Body.Expires, 0) }

// Claim returns what [Merge] needs to know of r.
func (r *Record) Claim() Claim {
	return Claim{r.Certificate.Agent, r.Certificate.Version, r.Body.Sequence}
}

// AddrInfo returns where r says that its agent's host is.
func (r *Record) AddrInfo() peer.AddrInfo {
	return peer.AddrInfo{ID: r.Certificate.Peer, Addrs: r.Addrs}
}

// SealRecord fills in agent, address and certificate of a copy of body and signs
// it with the host key that cert certifies.
func SealRecord(host crypto.PrivKey, cert *identity.Certificate, body *descriptorpb.AgentRecord) (*Record, error) {
	body = proto.CloneOf(body)
	body.Agent, body.Address, body.Certificate = string(cert.Agent), cert.Address.String(), cert.Raw
	addrs, err := checkRecord(body)
	if err != nil {
		return nil, wire.Errorf(wire.InvalidArgument, "seal agent record: %w", err)
	}
	raw, err := recordKind().seal(host, cert, body)
	if err != nil {
		return nil, err
	}
	return &Record{Certificate: cert, Body: body, Addrs: addrs, Raw: raw}, nil
}

// VerifyRecord returns the agent record in raw if all of it holds at now. Its
// errors are those of [Verify].
func VerifyRecord(raw []byte, v *identity.Verifier, now time.Time) (*Record, error) {
	body := new(descriptorpb.AgentRecord)
	key, err := recordKind().open(raw, body)
	if err != nil {
		return nil, err
	}
	cert, err := recordKind().signer(key, body, v, now)
	if err != nil {
		return nil, err
	}
	addrs, err := checkRecord(body)
	if err != nil {
		return nil, err
	}
	return &Record{Certificate: cert, Body: body, Addrs: addrs, Raw: raw}, nil
}

func checkRecord(b *descriptorpb.AgentRecord) ([]multiaddr.Multiaddr, error) {
	if len(b.Addrs) > maxAddrs || len(b.Mailboxes) > maxMailboxes {
		return nil, wire.Errorf(wire.Malformed, "agent record: too many addresses or mailboxes")
	}
	if err := words(b.Mailboxes...); err != nil {
		return nil, err
	}
	addrs := make([]multiaddr.Multiaddr, len(b.Addrs))
	for i, raw := range b.Addrs {
		a, err := multiaddr.NewMultiaddrBytes(raw)
		if err != nil {
			return nil, wire.Errorf(wire.Malformed, "agent record: address %d: %w", i, err)
		}
		addrs[i] = a
	}
	return addrs, nil
}

// AddressKey is the DHT key of an address within its realm.
func AddressKey(a identity.Address) string { return "/" + Namespace + "/" + a.Hex() }

// AgentKey is the DHT key of an agent id.
func AgentKey(id identity.AgentID) string { return "/" + Namespace + "/" + string(id) }

// Value is what the DHT holds under an address or agent id: the record of the
// agent that proves it, or, of an address that two agents prove, both.
type Value []*Record

// Marshal returns v as it is stored.
func (v Value) Marshal() []byte {
	var msg descriptorpb.AddressValue
	for _, r := range v {
		msg.Records = append(msg.Records, r.Raw)
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(&msg)
	if err != nil {
		panic(err) // bytes always marshal
	}
	return b
}

// Claims returns the claim of each record.
func (v Value) Claims() []Claim {
	cs := make([]Claim, len(v))
	for i, r := range v {
		cs[i] = r.Claim()
	}
	return cs
}

// Merge returns the records of v and o that stand.
func (v Value) Merge(o Value) Value {
	all := slices.Concat(v, o)
	out := make(Value, 0, MaxClaims)
	for _, i := range Merge(all.Claims()) {
		out = append(out, all[i])
	}
	return out
}

// Ambiguous returns wire.AmbiguousAddress, naming both agents, if v holds two.
func (v Value) Ambiguous() error {
	if len(v) < MaxClaims {
		return nil
	}
	return wire.Errorf(wire.AmbiguousAddress, "address %s is proved by %s and by %s", v[0].Certificate.Address, v[0].Certificate.Agent, v[1].Certificate.Agent).
		WithHint("use the agent id of the one you mean")
}

// VerifyValue returns the value in raw if it may stand under key at now: every
// record holds, is of the key's agent or address, and the records are as
// [Merge] leaves them. Its errors are those of [Verify].
func VerifyValue(key string, raw []byte, v *identity.Verifier, now time.Time) (Value, error) {
	if len(raw) > MaxValue {
		return nil, wire.Errorf(wire.TooLarge, "value of %d bytes, the limit is %d", len(raw), MaxValue)
	}
	var msg descriptorpb.AddressValue
	if err := proto.Unmarshal(raw, &msg); err != nil {
		return nil, wire.Errorf(wire.Malformed, "value: %w", err)
	}
	name, ok := strings.CutPrefix(key, "/"+Namespace+"/")
	if n := len(msg.Records); !ok || n == 0 || n > MaxClaims {
		return nil, wire.Errorf(wire.Malformed, "value of %d records under key %.80q", n, key)
	}
	var value Value
	for _, b := range msg.Records {
		r, err := VerifyRecord(b, v, now)
		if err != nil {
			return nil, err
		}
		if name != r.Certificate.Address.Hex() && name != string(r.Certificate.Agent) {
			return nil, wire.Errorf(wire.Unauthenticated, "record of %s under key %.80q", r.Certificate.Agent, key)
		}
		value = append(value, r)
	}
	if !bytes.Equal(value.Merge(nil).Marshal(), value.Marshal()) {
		return nil, wire.Errorf(wire.Malformed, "value: records of one agent, or out of order")
	}
	return value, nil
}
