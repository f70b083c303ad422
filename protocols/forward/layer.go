package forward

import (
	"encoding/binary"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/forward/forwardpb"
	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

// layer is what one hop is told: the next hop, if it is a relay, or the protocol,
// if it is the target.
type layer struct {
	expires  time.Time // whole seconds
	next     peer.ID
	addrs    []ma.Multiaddr
	protocol protocol.ID
}

// layerSize is that of a layer with length and padding.
const layerSize = 1024

// marshal returns the layer in layerSize bytes. Addresses that do not fit are left
// out, the last first.
func (l layer) marshal() ([]byte, error) {
	m := &forwardpb.Layer{Expires: l.expires.Unix(), Next: []byte(l.next), Protocol: string(l.protocol)}
	for _, a := range l.addrs[:min(len(l.addrs), MaxAddrs)] {
		m.Addrs = append(m.Addrs, a.Bytes())
	}
	for len(m.Addrs) > 0 && proto.Size(m) > layerSize-2 {
		m.Addrs = m.Addrs[:len(m.Addrs)-1]
	}
	b, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(make([]byte, 2, layerSize), m)
	if err != nil {
		return nil, wire.Errorf(wire.InvalidArgument, "make layer: %w", err)
	}
	if len(b) > layerSize {
		return nil, wire.Errorf(wire.TooLarge, "layer of %d bytes", len(b))
	}
	binary.BigEndian.PutUint16(b, uint16(len(b)-2))
	return b[:layerSize], nil
}

// parseLayer reads a layer of layerSize bytes and checks its shape. Its errors are
// wire.Malformed.
func parseLayer(b []byte) (layer, error) {
	bad := func(what string) (layer, error) { return layer{}, wire.Errorf(wire.Malformed, "layer: %s", what) }
	n := int(binary.BigEndian.Uint16(b))
	if n > len(b)-2 {
		return bad("length")
	}
	var m forwardpb.Layer
	if proto.Unmarshal(b[2:2+n], &m) != nil {
		return bad("not a message")
	}
	if (len(m.Next) > 0) == (m.Protocol != "") || len(m.Protocol) > maxProtocol || len(m.Addrs) > MaxAddrs {
		return bad("neither for a relay nor for a target")
	}
	l := layer{expires: time.Unix(m.Expires, 0), protocol: protocol.ID(m.Protocol)}
	if m.Protocol != "" {
		return l, nil
	}
	var err error
	if l.next, err = peer.IDFromBytes(m.Next); err != nil {
		return bad("peer id")
	}
	for _, raw := range m.Addrs {
		a, err := ma.NewMultiaddrBytes(raw)
		if err != nil {
			return bad("address")
		}
		l.addrs = append(l.addrs, a)
	}
	return l, nil
}

// fresh reports whether the layer is within its time at now, as clocks may differ.
func (l layer) fresh(now time.Time) error {
	if now.After(l.expires.Add(identity.ClockSkew)) || l.expires.After(now.Add(MaxLife+identity.ClockSkew)) {
		return wire.Errorf(wire.Replayed, "envelope expires at %s, it is %s", l.expires.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}
