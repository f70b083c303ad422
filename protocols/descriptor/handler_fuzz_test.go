package descriptor

import (
	"context"
	"testing"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/descriptor/descriptorpb"
	"openmesh/protocols/identity"
	"openmesh/protocols/protocoltest"
)

func FuzzParseWithdraw(f *testing.F) {
	seed, _ := proto.Marshal(&descriptorpb.Withdraw{Keys: [][]byte{Key("a").Hash()}})
	f.Add(seed)
	f.Fuzz(func(t *testing.T, raw []byte) {
		if keys, err := parseWithdraw(raw); err == nil && len(keys) > MaxKeys {
			t.Errorf("accepted %d keys", len(keys))
		}
	})
}

func FuzzRequest(f *testing.F) {
	now := time.Now()
	a := protocoltest.NewAgent(f, identity.FirstPrivateRealm, now)
	s := &Server{Key: a.Host, Certificate: a.Certificate, Log: zap.NewNop(),
		Verifier: identity.NewVerifier(identity.FirstPrivateRealm, func() time.Time { return now }),
		Member:   func(string, identity.AgentID) bool { return true },
		Body: func() *descriptorpb.Descriptor {
			return &descriptorpb.Descriptor{Sequence: 1, Issued: now.Unix(), Expires: now.Unix() + 9}
		}}
	seed, _ := proto.Marshal(&descriptorpb.Request{Certificate: a.Certificate.Raw})
	f.Add(seed)
	f.Fuzz(func(t *testing.T, raw []byte) {
		if resp, err := s.handle(context.Background(), "someone else", raw); err == nil && len(resp) > maxResponse {
			t.Errorf("response of %d bytes", len(resp))
		}
	})
}

func FuzzParseVisibility(f *testing.F) {
	f.Add("circle:ops")
	f.Fuzz(func(t *testing.T, s string) {
		v, err := ParseVisibility(s)
		if err != nil {
			return
		}
		if again, err := ParseVisibility(v.String()); err != nil || again != v {
			t.Errorf("ParseVisibility(%q) = %v, whose text reads as %v, %v", s, v, again, err)
		}
	})
}
