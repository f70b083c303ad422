package descriptor

import (
	"context"
	"fmt"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multihash"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/descriptor/descriptorpb"
	"openmesh/protocols/identity"
	"openmesh/protocols/stream"
	"openmesh/protocols/wire"
)

// MaxKeys bounds how many keys one agent provides: every capability under each
// of its prefixes and its major version.
const MaxKeys = MaxCapabilities * (MaxSegments + 1)

// keySize is the size of a multihash of SHA-256.
const keySize = 34

// WithdrawProtocol is how a directory server of realm r is asked to forget what
// the caller provides. Kademlia has no message for it.
func WithdrawProtocol(r identity.Realm) protocol.ID {
	return protocol.ID(fmt.Sprintf("/openmesh/%d/withdraw/1.0.0", r))
}

func withdrawLimits() stream.Limits {
	return stream.Limits{Request: MaxKeys*(keySize+4) + 16, Response: 16, Time: callTime}
}

// WithdrawServer forgets provider records of those who ask for it, and of no
// one else.
type WithdrawServer struct {
	Realm identity.Realm
	// Forget deletes the records that provider has under keys and says how many
	// there were.
	Forget func(provider peer.ID, keys []multihash.Multihash) int
	Log    *zap.Logger
}

// Run serves m until ctx ends.
func (s *WithdrawServer) Run(ctx context.Context, m stream.Mux) {
	(&stream.Server{Protocol: WithdrawProtocol(s.Realm), Service: "openmesh.withdraw", Limits: withdrawLimits(), Handler: s.handle, Log: s.Log}).Run(ctx, m)
}

func (s *WithdrawServer) handle(_ context.Context, from peer.ID, raw []byte) ([]byte, error) {
	keys, err := parseWithdraw(raw)
	if err != nil {
		return nil, err
	}
	return proto.Marshal(&descriptorpb.Withdrawn{Count: uint32(s.Forget(from, keys))})
}

func parseWithdraw(raw []byte) ([]multihash.Multihash, error) {
	var req descriptorpb.Withdraw
	if err := proto.Unmarshal(raw, &req); err != nil {
		return nil, wire.Errorf(wire.Malformed, "withdraw: %w", err)
	}
	if len(req.Keys) > MaxKeys {
		return nil, wire.Errorf(wire.TooLarge, "withdraw: %d keys, the limit is %d", len(req.Keys), MaxKeys)
	}
	keys := make([]multihash.Multihash, len(req.Keys))
	for i, k := range req.Keys {
		h, err := multihash.Cast(k)
		if err != nil {
			return nil, wire.Errorf(wire.Malformed, "withdraw: key %d: %w", i, err)
		}
		keys[i] = h
	}
	return keys, nil
}

// Withdraw asks directory server p to forget that the caller provides keys, at
// most [MaxKeys]. It returns how many records p had. Errors are those of
// [stream.Call].
func Withdraw(ctx context.Context, d stream.Dialer, p peer.ID, r identity.Realm, keys []cid.Cid) (int, error) {
	var req descriptorpb.Withdraw
	for _, k := range keys {
		req.Keys = append(req.Keys, k.Hash())
	}
	raw, err := proto.Marshal(&req)
	if err != nil {
		return 0, wire.Errorf(wire.Internal, "withdraw: %w", err)
	}
	if raw, err = stream.Call(ctx, d, p, WithdrawProtocol(r), raw, withdrawLimits()); err != nil {
		return 0, err
	}
	var resp descriptorpb.Withdrawn
	if err := proto.Unmarshal(raw, &resp); err != nil {
		return 0, wire.Errorf(wire.Malformed, "withdraw response: %w", err)
	}
	return int(resp.Count), nil
}
