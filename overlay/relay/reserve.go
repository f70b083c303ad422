package relay

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/record"
	pbv2 "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/pb"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/util"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"go.uber.org/zap"

	"openmesh/protocols/wire"
)

// maxAddrs bounds the bytes of addresses in a reservation, which has to fit into
// maxMessage with its voucher.
const maxAddrs = 3 << 10

// readRequest reads a RESERVE or CONNECT message from a peer. It takes nothing
// from r beyond the message, and of a destination only its id: addresses are
// not dialled.
func readRequest(r io.Reader) (Request, error) {
	rd := util.NewDelimitedReader(r, maxMessage)
	defer rd.Close()
	var msg pbv2.HopMessage
	if err := rd.ReadMsg(&msg); err != nil {
		return Request{}, fmt.Errorf("read request: %w", err)
	}
	switch {
	case msg.Type == nil:
	case *msg.Type == pbv2.HopMessage_RESERVE:
		return Request{Kind: Reserve}, nil
	case *msg.Type == pbv2.HopMessage_CONNECT:
		dst, err := peer.IDFromBytes(msg.GetPeer().GetId())
		if err != nil {
			return Request{}, fmt.Errorf("read request: destination: %w", err)
		}
		return Request{Kind: Transit, Dst: dst}, nil
	}
	return Request{}, fmt.Errorf("read request: %w", wire.Malformed)
}

// answer sends a status, with the reservation if there is one.
func (r *Relay) answer(s network.Stream, status pbv2.Status, reservation *pbv2.Reservation) error {
	s.SetWriteDeadline(time.Now().Add(requestTime))
	msg := &pbv2.HopMessage{Type: pbv2.HopMessage_STATUS.Enum(), Status: status.Enum(), Reservation: reservation}
	if err := util.NewDelimitedWriter(s).WriteMsg(msg); err != nil {
		s.Reset()
		return fmt.Errorf("answer %s: %w", s.Conn().RemotePeer(), err)
	}
	return s.SetWriteDeadline(time.Time{})
}

func (r *Relay) refuse(s network.Stream, why Reason) Reason {
	if r.answer(s, reasonTable[why].status, nil) == nil {
		s.Close()
	}
	return why
}

func (r *Relay) reserve(s network.Stream, a *account) Reason {
	// To the second, as the message and the voucher have it.
	expires := time.Now().Add(r.cfg.ReservationTTL).Truncate(time.Second)
	if why := r.grant(s.Conn(), a, expires); why != accepted {
		return r.refuse(s, why)
	}
	reservation, err := describe(r.host, a.peer, expires)
	if err != nil {
		r.cfg.Log.Error("reservation cannot be told", zap.Error(err))
		reset(s, wire.Internal)
		return accepted
	}
	if r.answer(s, pbv2.Status_OK, reservation) == nil {
		s.Close()
	}
	return accepted
}

// grant keeps a slot until it expires or the peer is gone.
func (r *Relay) grant(c network.Conn, a *account, expires time.Time) Reason {
	r.mu.Lock()
	defer r.mu.Unlock()
	why := r.book.reserve(a, c.RemoteMultiaddr(), expires)
	if why != accepted {
		return why
	}
	r.host.ConnManager().Protect(a.peer, reservationTag)
	if a.expiry == nil {
		a.expiry = time.AfterFunc(time.Until(expires), func() { r.expired(a) })
	} else {
		a.expiry.Reset(time.Until(expires))
	}
	if !r.direct(a.peer) { // it may have gone before it had a slot to lose
		r.drop(a)
	}
	return accepted
}

// reservationTag and circuitTag protect connections from trimming: the quotas
// say how many there may be.
const (
	reservationTag = "relay.reservation"
	circuitTag     = "relay.circuit"
)

func (r *Relay) expired(a *account) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !time.Now().Before(a.reserved) { // not renewed since
		r.drop(a)
	}
}

func (r *Relay) disconnected(id peer.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a := r.book.accounts[id]; a != nil && !r.direct(id) {
		r.drop(a)
	}
}

// drop ends a reservation, if there is one.
func (r *Relay) drop(a *account) {
	if !r.book.unreserve(a) {
		return
	}
	a.expiry.Stop()
	r.host.ConnManager().Unprotect(a.peer, reservationTag)
}

// direct reports whether there is a connection to the peer that no other relay
// carries.
func (r *Relay) direct(id peer.ID) bool {
	return slices.ContainsFunc(r.host.Network().ConnsToPeer(id), func(c network.Conn) bool {
		return !c.IsClosed() && !isCircuit(c.RemoteMultiaddr())
	})
}

// describe returns what a reservation at h tells its holder: addresses of h,
// private ones, too, since a mesh may have no others, and a signed voucher.
func describe(h host.Host, holder peer.ID, expires time.Time) (*pbv2.Reservation, error) {
	envelope, err := record.Seal(&proto.ReservationVoucher{Relay: h.ID(), Peer: holder, Expiration: expires}, h.Peerstore().PrivKey(h.ID()))
	if err != nil {
		return nil, fmt.Errorf("seal voucher: %w", err)
	}
	voucher, err := envelope.Marshal()
	if err != nil {
		return nil, fmt.Errorf("seal voucher: %w", err)
	}
	unix := uint64(expires.Unix())
	return &pbv2.Reservation{Expire: &unix, Addrs: addresses(h.Addrs(), h.ID()), Voucher: voucher}, nil
}

// addresses returns the direct ones of addrs in full, as many as fit into
// maxAddrs, those first that reach farthest.
func addresses(addrs []ma.Multiaddr, id peer.ID) [][]byte {
	addrs = slices.DeleteFunc(slices.Clone(addrs), isCircuit)
	slices.SortStableFunc(addrs, func(a, b ma.Multiaddr) int { return cmp.Compare(nearness(a), nearness(b)) })
	full, err := peer.AddrInfoToP2pAddrs(&peer.AddrInfo{ID: id, Addrs: addrs})
	if err != nil {
		return nil
	}
	all, size := [][]byte(nil), 0
	for _, a := range full {
		if size+len(a.Bytes()) <= maxAddrs {
			all, size = append(all, a.Bytes()), size+len(a.Bytes())
		}
	}
	return all
}

func nearness(a ma.Multiaddr) int {
	switch {
	case manet.IsIPLoopback(a):
		return 2
	case manet.IsPublicAddr(a):
		return 0
	}
	return 1
}
