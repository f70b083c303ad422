package market

import (
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/market/marketpb"
	"openmesh/protocols/wire"
)

// MaxReceiptMoves bounds the moves in a receipt.
const MaxReceiptMoves = 8

// maxReceipt bounds a receipt, in bytes.
const maxReceipt = MaxReceiptMoves*(MaxEnvelope+8) + 256

// Receipt answers a move.
type Receipt struct {
	State string    // at the answering side
	Head  Hash      // of the newest move there
	Code  wire.Code // why the move was refused; 0: it was not

	// Moves are envelopes of the answering side's moves that follow the one received, or
	// that it lost against.
	Moves [][]byte
}

// Encode returns the receipt as it is sent: openmesh.market.v1.Receipt.
func (r *Receipt) Encode() []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(&marketpb.Receipt{State: r.State, Head: r.Head[:], Code: uint32(r.Code), Moves: r.Moves})
	if err != nil {
		return nil // of invalid UTF-8 in a state, which there is not
	}
	return b
}

// ParseReceipt reads a receipt. The moves in it are to be parsed yet. Errors:
// wire.TooLarge, wire.Malformed.
func ParseReceipt(b []byte) (*Receipt, error) {
	if len(b) > maxReceipt {
		return nil, wire.Errorf(wire.TooLarge, "receipt of %d bytes", len(b))
	}
	var p marketpb.Receipt
	if err := proto.Unmarshal(b, &p); err != nil {
		return nil, wire.Errorf(wire.Malformed, "receipt: %w", err)
	}
	r := &Receipt{State: p.State, Code: wire.Code(p.Code), Moves: p.Moves}
	if _, err := ParseState(p.State); err != nil || len(p.Head) != len(r.Head) || len(p.Moves) > MaxReceiptMoves || r.Code != 0 && !r.Code.Known() {
		return nil, wire.Errorf(wire.Malformed, "receipt with state %.40q, %d bytes of head, code %d, %d moves", p.State, len(p.Head), p.Code, len(p.Moves))
	}
	r.Head = Hash(p.Head)
	return r, nil
}
