package descriptor_test

import (
	"errors"
	"testing"
	"time"

	"github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/descriptor"
	"openmesh/protocols/descriptor/descriptorpb"
	"openmesh/protocols/protocoltest"
	"openmesh/protocols/wire"
)

func sealRecord(t testing.TB, a *protocoltest.Agent, edit func(*descriptorpb.AgentRecord)) *descriptor.Record {
	t.Helper()
	b := &descriptorpb.AgentRecord{
		Addrs:    [][]byte{multiaddr.StringCast("/ip4/192.0.2.1/udp/4747/quic-v1").Bytes()},
		Sequence: 1, Issued: now.Unix(), Expires: now.Add(time.Hour).Unix(),
	}
	if edit != nil {
		edit(b)
	}
	r, err := descriptor.SealRecord(a.Host, a.Certificate, b)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestVerifyValue(t *testing.T) {
	t.Parallel()
	a, b := protocoltest.NewAgent(t, lab, now), protocoltest.NewAgent(t, lab, now)
	ra, rb := sealRecord(t, a, nil), sealRecord(t, b, nil)
	newer := sealRecord(t, a, func(r *descriptorpb.AgentRecord) { r.Sequence = 2 })
	expired := sealRecord(t, a, func(r *descriptorpb.AgentRecord) { r.Issued, r.Expires = now.Unix()-9, now.Unix()-1 })
	byAddress, byAgent := descriptor.AddressKey(a.Certificate.Address), descriptor.AgentKey(a.Agent)
	flipped := descriptor.Value{ra}.Marshal()
	flipped[len(flipped)-1] ^= 1
	for _, tc := range []struct {
		name string
		key  string
		raw  []byte
		err  error
	}{
		{"under its address", byAddress, descriptor.Value{ra}.Marshal(), nil},
		{"under its agent id", byAgent, descriptor.Value{ra}.Marshal(), nil},
		{"under another's address", descriptor.AddressKey(b.Certificate.Address), descriptor.Value{ra}.Marshal(), wire.Unauthenticated},
		{"under another's agent id", descriptor.AgentKey(b.Agent), descriptor.Value{ra}.Marshal(), wire.Unauthenticated},
		{"with another's record", byAddress, descriptor.Value{ra, rb}.Marshal(), wire.Unauthenticated},
		{"twice the same agent", byAddress, descriptor.Value{ra, newer}.Marshal(), wire.Malformed},
		{"expired", byAddress, descriptor.Value{expired}.Marshal(), wire.Replayed},
		{"one bit off", byAddress, flipped, wire.Unauthenticated},
		{"no record", byAddress, nil, wire.Malformed},
		{"another namespace", "/pk/" + a.Certificate.Address.Hex(), descriptor.Value{ra}.Marshal(), wire.Malformed},
		{"oversize", byAddress, make([]byte, descriptor.MaxValue+1), wire.TooLarge},
		{"oversize record", byAddress, marshal(t, &descriptorpb.AddressValue{Records: [][]byte{make([]byte, descriptor.MaxRecord+1)}}), wire.TooLarge},
		{"a descriptor instead", byAddress, marshal(t, &descriptorpb.AddressValue{Records: [][]byte{sealBody(t, a)}}), wire.Unauthenticated},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v, err := descriptor.VerifyValue(tc.key, tc.raw, verifier(), now)
			if !errors.Is(err, tc.err) || err == nil && v[0].AddrInfo().ID != a.Certificate.Peer {
				t.Errorf("VerifyValue = %v, %v; want %v", v, err, tc.err)
			}
		})
	}
	if got := (descriptor.Value{ra}).Merge(descriptor.Value{newer}); len(got) != 1 || got[0] != newer {
		t.Errorf("Merge keeps sequence %d", got[0].Body.Sequence)
	}
}

func sealBody(t testing.TB, a *protocoltest.Agent) []byte {
	t.Helper()
	d, err := descriptor.Seal(a.Host, a.Certificate, body())
	if err != nil {
		t.Fatal(err)
	}
	return d.Raw
}

func marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSealRecordRefuses(t *testing.T) {
	t.Parallel()
	a := protocoltest.NewAgent(t, lab, now)
	for name, b := range map[string]*descriptorpb.AgentRecord{
		"bad address":        {Addrs: [][]byte{{1, 2, 3}}},
		"too many addresses": {Addrs: make([][]byte, 33)},
		"too many mailboxes": {Mailboxes: make([]string, 17)},
	} {
		if _, err := descriptor.SealRecord(a.Host, a.Certificate, b); !errors.Is(err, wire.InvalidArgument) {
			t.Errorf("%s: SealRecord = %v; want invalid_argument", name, err)
		}
	}
}
