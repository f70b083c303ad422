package descriptor

import (
	"context"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/descriptor/descriptorpb"
	"openmesh/protocols/identity"
	"openmesh/protocols/stream"
	"openmesh/protocols/wire"
)

// Protocol is how an agent is asked for its descriptor.
const Protocol protocol.ID = "/openmesh/descriptor/1.0.0"

const (
	maxRequest  = identity.MaxCertificate + 16
	maxResponse = MaxDescriptor + 16
	callTime    = 5 * time.Second
)

func limits() stream.Limits {
	return stream.Limits{Request: maxRequest, Response: maxResponse, Time: callTime}
}

// Server answers with this agent's descriptor, as much of it as the caller may
// see.
type Server struct {
	Key         crypto.PrivKey        // host key
	Certificate *identity.Certificate // of Key

	// Body returns the whole descriptor, sequence and lifetime included.
	Body func() *descriptorpb.Descriptor
	// Member reports whether agent is a member of circle. Nil: nobody is.
	Member   func(circle string, agent identity.AgentID) bool
	Verifier *identity.Verifier
	Log      *zap.Logger
}

// Run serves m until ctx ends.
func (s *Server) Run(ctx context.Context, m stream.Mux) {
	(&stream.Server{Protocol: Protocol, Service: "openmesh.descriptor", Limits: limits(), Handler: s.handle, Log: s.Log}).Run(ctx, m)
}

func (s *Server) handle(_ context.Context, from peer.ID, raw []byte) ([]byte, error) {
	var req descriptorpb.Request
	if err := proto.Unmarshal(raw, &req); err != nil {
		return nil, wire.Errorf(wire.Malformed, "descriptor request: %w", err)
	}
	member := func(string) bool { return false }
	if len(req.Certificate) > 0 {
		cert, err := s.Verifier.VerifyPeer(req.Certificate, from)
		if err != nil {
			return nil, err
		}
		if s.Member != nil {
			member = func(circle string) bool { return s.Member(circle, cert.Agent) }
		}
	}
	d, err := Seal(s.Key, s.Certificate, View(s.Body(), member))
	if err != nil {
		return nil, err
	}
	return proto.Marshal(&descriptorpb.Response{Descriptor_: d.Raw})
}

// Fetch asks peer p for its descriptor and verifies it. certificate is the
// caller's own, sealed; without it p shows only what is public. Errors are
// those of [stream.Call] and of [Verify].
func Fetch(ctx context.Context, d stream.Dialer, p peer.ID, certificate []byte, v *identity.Verifier) (*Descriptor, error) {
	req, err := proto.Marshal(&descriptorpb.Request{Certificate: certificate})
	if err != nil {
		return nil, wire.Errorf(wire.Internal, "descriptor request: %w", err)
	}
	raw, err := stream.Call(ctx, d, p, Protocol, req, limits())
	if err != nil {
		return nil, err
	}
	var resp descriptorpb.Response
	if err := proto.Unmarshal(raw, &resp); err != nil {
		return nil, wire.Errorf(wire.Malformed, "descriptor response: %w", err)
	}
	return Verify(resp.Descriptor_, v, p, time.Now())
}
