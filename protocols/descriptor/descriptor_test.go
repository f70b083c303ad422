package descriptor_test

import (
	"bytes"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/record"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/descriptor"
	"openmesh/protocols/descriptor/descriptorpb"
	"openmesh/protocols/identity"
	"openmesh/protocols/protocoltest"
	"openmesh/protocols/wire"
)

const lab = identity.FirstPrivateRealm

var now = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func verifier() *identity.Verifier {
	return identity.NewVerifier(lab, func() time.Time { return now })
}

// body is a descriptor that holds, for tests to break.
func body() *descriptorpb.Descriptor {
	return &descriptorpb.Descriptor{
		Capabilities: []*descriptorpb.Capability{{Name: "finance/fx-pricing", Version: "1.4.0", Tags: map[string]string{"asset": "fx"}}},
		Region:       "eu-central", Load: 0.25, Sequence: 7,
		Issued: now.Unix(), Expires: now.Add(time.Hour).Unix(),
	}
}

func TestSealVerify(t *testing.T) {
	t.Parallel()
	a := protocoltest.NewAgent(t, lab, now)
	sealed, err := descriptor.Seal(a.Host, a.Certificate, body())
	if err != nil {
		t.Fatal(err)
	}
	got, err := descriptor.Verify(sealed.Raw, verifier(), a.Certificate.Peer, now)
	if err != nil {
		t.Fatal(err)
	}
	if got.Certificate.Agent != a.Agent || !proto.Equal(got.Body, sealed.Body) || !bytes.Equal(got.Raw, sealed.Raw) {
		t.Errorf("Verify = %v of %s; want what was sealed", got.Body, got.Certificate.Agent)
	}
}

// What only a later version knows is signed with the rest and served on.
func TestUnknownFieldsSurvive(t *testing.T) {
	t.Parallel()
	a := protocoltest.NewAgent(t, lab, now)
	b := body()
	later := protowire.AppendString(protowire.AppendTag(nil, 999, protowire.BytesType), "from the future")
	b.ProtoReflect().SetUnknown(later)
	sealed, err := descriptor.Seal(a.Host, a.Certificate, b)
	if err != nil {
		t.Fatal(err)
	}
	got, err := descriptor.Verify(sealed.Raw, verifier(), "", now)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(got.Raw, later) || !bytes.Equal(got.Body.ProtoReflect().GetUnknown(), later) {
		t.Error("unknown field is lost")
	}
}

// Every way in which a descriptor may not hold, each signed as well as its
// author can.
func TestVerifyRefuses(t *testing.T) {
	t.Parallel()
	a, mallory := protocoltest.NewAgent(t, lab, now), protocoltest.NewAgent(t, lab, now)
	caps := func(cs ...*descriptorpb.Capability) func(*descriptorpb.Descriptor) {
		return func(d *descriptorpb.Descriptor) { d.Capabilities = cs }
	}
	one := func(name, version, visibility string) func(*descriptorpb.Descriptor) {
		return caps(&descriptorpb.Capability{Name: name, Version: version, Visibility: visibility})
	}
	for _, tc := range []struct {
		name string
		edit func(*descriptorpb.Descriptor)
		key  crypto.PrivKey // default: a's
		from peer.ID
		err  wire.Code
	}{
		{name: "signed by another", key: mallory.Host, err: wire.Unauthenticated},
		{name: "served by another", from: mallory.Certificate.Peer, err: wire.Unauthenticated},
		{name: "another's address", edit: func(d *descriptorpb.Descriptor) { d.Address = mallory.Certificate.Address.String() }, err: wire.Unauthenticated},
		{name: "another's agent id", edit: func(d *descriptorpb.Descriptor) { d.Agent = string(mallory.Agent) }, err: wire.Unauthenticated},
		{name: "another's certificate", edit: func(d *descriptorpb.Descriptor) { d.Certificate = mallory.Certificate.Raw }, err: wire.Unauthenticated},
		{name: "no certificate", edit: func(d *descriptorpb.Descriptor) { d.Certificate = nil }, err: wire.Unauthenticated},
		{name: "expired", edit: func(d *descriptorpb.Descriptor) { d.Issued, d.Expires = now.Unix()-60, now.Unix() }, err: wire.Replayed},
		{name: "of tomorrow", edit: func(d *descriptorpb.Descriptor) { d.Issued += 86400; d.Expires += 86400 }, err: wire.Replayed},
		{name: "for ever", edit: func(d *descriptorpb.Descriptor) { d.Expires = math.MaxInt64 }, err: wire.Malformed},
		{name: "sequence 0", edit: func(d *descriptorpb.Descriptor) { d.Sequence = 0 }, err: wire.Malformed},
		{name: "oversize", edit: func(d *descriptorpb.Descriptor) { d.DomainCertificate = make([]byte, descriptor.MaxDescriptor) }, err: wire.TooLarge},
		{name: "65 capabilities", edit: caps(make([]*descriptorpb.Capability, 65)...), err: wire.TooLarge},
		{name: "upper case name", edit: one("Finance", "1.0.0", ""), err: wire.Malformed},
		{name: "bad version", edit: one("finance", "1.0", ""), err: wire.Malformed},
		{name: "bad visibility", edit: one("finance", "1.0.0", "circle:"), err: wire.Malformed},
		{name: "twice the same", edit: caps(&descriptorpb.Capability{Name: "a", Version: "1.0.0"}, &descriptorpb.Capability{Name: "a", Version: "1.0.0"}), err: wire.Malformed},
		{name: "load not a number", edit: func(d *descriptorpb.Descriptor) { d.Load = math.NaN() }, err: wire.Malformed},
		{name: "a region like a book", edit: func(d *descriptorpb.Descriptor) { d.Region = strings.Repeat("x", 1000) }, err: wire.Malformed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := body()
			b.Agent, b.Address, b.Certificate = string(a.Agent), a.Certificate.Address.String(), a.Certificate.Raw
			if tc.edit != nil {
				tc.edit(b)
			}
			key := tc.key
			if key == nil {
				key = a.Host
			}
			raw := sealUnchecked(t, key, "openmesh-descriptor", "/openmesh/descriptor/v1", b)
			if _, err := descriptor.Verify(raw, verifier(), tc.from, now); !errors.Is(err, tc.err) {
				t.Errorf("Verify = %v; want %v", err, tc.err)
			}
		})
	}
}

// A signature of one sort of document does not pass for another's.
func TestDomainSeparation(t *testing.T) {
	t.Parallel()
	a := protocoltest.NewAgent(t, lab, now)
	b := body()
	b.Agent, b.Address, b.Certificate = string(a.Agent), a.Certificate.Address.String(), a.Certificate.Raw
	for _, tc := range []struct{ domain, codec string }{
		{"openmesh-agent-record", "/openmesh/descriptor/v1"},
		{"openmesh-descriptor", "/openmesh/agent-record/v1"},
	} {
		if _, err := descriptor.Verify(sealUnchecked(t, a.Host, tc.domain, tc.codec, b), verifier(), "", now); err == nil {
			t.Errorf("Verify accepts domain %s, codec %s", tc.domain, tc.codec)
		}
	}
}

// The key of an agent that has rotated is refused, though its certificate has
// not expired.
func TestSuperseded(t *testing.T) {
	t.Parallel()
	a := protocoltest.NewAgent(t, lab, now)
	old, err := descriptor.Seal(a.Host, a.Certificate, body())
	if err != nil {
		t.Fatal(err)
	}
	v := verifier()
	if _, err := v.Verify(a.Rotate(t, 2, now).Raw); err != nil {
		t.Fatal(err)
	}
	if _, err := descriptor.Verify(old.Raw, v, "", now); !errors.Is(err, wire.KeySuperseded) {
		t.Errorf("Verify = %v; want key_superseded", err)
	}
}

func TestSealRefusesForeignKey(t *testing.T) {
	t.Parallel()
	a, b := protocoltest.NewAgent(t, lab, now), protocoltest.NewAgent(t, lab, now)
	if _, err := descriptor.Seal(b.Host, a.Certificate, body()); !errors.Is(err, wire.InvalidArgument) {
		t.Errorf("Seal = %v; want invalid_argument", err)
	}
}

// rawRecord seals any message, as a liar would.
type rawRecord struct {
	domain, codec string
	msg           proto.Message
}

func (r rawRecord) Domain() string                 { return r.domain }
func (r rawRecord) Codec() []byte                  { return []byte(r.codec) }
func (r rawRecord) MarshalRecord() ([]byte, error) { return proto.Marshal(r.msg) }
func (r rawRecord) UnmarshalRecord([]byte) error   { return nil }

func sealUnchecked(t testing.TB, key crypto.PrivKey, domain, codec string, msg proto.Message) []byte {
	t.Helper()
	env, err := record.Seal(rawRecord{domain, codec, msg}, key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := env.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}
