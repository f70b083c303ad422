// Package seal is how the frames of a session are sealed: header, keys, epochs,
// and the window against replays. It does no I/O.
//
// A frame is
//
//	version   1 byte      1
//	type      1 byte      data, ack, request, response, …: see [Type]
//	session   16 bytes
//	epoch     4 bytes     big-endian; counts key changes
//	sequence  8 bytes     big-endian; counts the frames of one direction from 1
//	sealed    …           AEAD of the plaintext; all before it is associated data
//
// Each direction and epoch has a key of its own, from the epoch's secret by
// HKDF-Expand (RFC 5869, SHA-256); the nonce is made as in TLS 1.3 (RFC 8446
// section 5.3):
//
//	key    32 bytes for "openmesh/session/v1/<initiator|responder>/<epoch>/key"
//	iv     12 bytes for "openmesh/session/v1/<initiator|responder>/<epoch>/iv"
//	nonce  iv XOR sequence, in its last 8 bytes
//
// The first epoch's secret comes from signaling. Each later one mixes a fresh
// encapsulation to a fresh key of the suite's KEM with the secret before it, so
// that who learns one secret learns neither the earlier ones nor, unless it is on
// the path at every change from then on, the later ones:
//
//	initiator                                responder
//	Rekey{epoch e+1, public key}  ──────▶    encapsulates; opens e and e+1, seals e
//	opens e and e+1, seals e+1    ◀──────    Rekey{epoch e+1, enc}
//	any frame of epoch e+1        ──────▶    seals e+1
//
//	secret(e+1) = HKDF-Extract(salt: secret(e),
//	                 IKM: Export("openmesh/session/v1/rekey/secret", 32))
//	with HPKE base mode (RFC 9180), info = "openmesh/session/v1/rekey" ‖ session ‖ e+1
//
// Both messages travel sealed in epoch e, so nobody outside can take part.
// Sequence numbers go on across epochs: a frame that is sent again after a change
// is sealed anew under its old number, and the window still knows it.
package seal
