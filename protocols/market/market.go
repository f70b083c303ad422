// Package market is how two agents come to a contract: signed moves, and the machine
// that says which may follow which. It is pure: what is sent where, stored and timed
// is for who uses it.
//
//	Envelope{body, signature, certificate}        at most 64 KiB, canonical Protobuf
//	body        openmesh.market.v1.Move           what is said, by whom, to whom, when
//	signature   Ed25519(host key, "openmesh/market/move/1" ‖ 0 ‖ body)
//	hash        SHA-256("openmesh/market/move/1" ‖ 0 ‖ body)
//
// A request (rfp) is to everybody. With each seller that answers it there is one
// [Negotiation]; its moves form a chain, each with the hash of the one before:
//
//	rfp ◄─ propose ◄─ counter ◄─ amend ◄─ accept ◄─ contract ◄─┬─ fulfil (seller)
//	                                                            └─ fulfil (buyer)
//
// In an open negotiation one side is the offeror: whose request or offer is on the
// table. The other, the offeree, may answer it; the offeror may change it or take it
// back. [Table] is the whole machine. Expiry is computed, not stored: what is on the
// table expires at its deadline, and a move counts if its author's clock said that
// there was still time. Only an acceptance is judged by the offeror's clock as well:
// the offeror answers it with contract, expire or reject, and until then the acceptor
// is bound. So no contract is made that its offeror does not want, though clocks
// differ and moves cross.
//
// Moves cross when each side makes one before it has the other's. The offeror's
// counts and the other's is dropped: withdraw beats accept, amend beats counter. Both
// sides find the same, in whatever order moves reach them; see [Negotiation.Next].
//
// The contract is not written by anybody: it follows from request, offer and accept
// ([Negotiation.Draft]), and both sign the same bytes. Accept carries it with the
// acceptor's signature, contract adds the offeror's.
package market
