package forward

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hpke"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	mathrand "math/rand/v2"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"openmesh/protocols/wire"
)

const (
	encSize  = 1120 // of X25519 with ML-KEM-768
	tagSize  = 16
	slotSize = encSize + layerSize + tagSize
	slots    = MaxHops + 1
	restSize = (slots - 1) * slotSize

	// EnvelopeSize is that of every envelope, at every hop, in bytes.
	EnvelopeSize = slots * slotSize
)

const (
	envelopeInfo = "openmesh/forward/1.0.0 envelope"
	keysContext  = "openmesh/forward/1.0.0 keys"
)

func kdf() hpke.KDF   { return hpke.HKDFSHA256() }
func aead() hpke.AEAD { return hpke.AES256GCM() }

// keys are what the source shares with one hop of one path.
type keys struct {
	path        [16]byte // names the path at this hop, and at no other
	rest        [32]byte // encrypts the slots that are not the hop's
	status      [32]byte // seals the hop's own status
	wrap        [32]byte // encrypts a status that the hop passes on
	reset       [32]byte // authenticates the hop's own resets
	ahead, back uint32   // mask resets that the hop passes on
	records     [32]byte
}

// exporter is an HPKE context of either side.
type exporter interface {
	Export(context string, length int) ([]byte, error)
}

func exportKeys(e exporter) (*keys, error) {
	k := new(keys)
	var masks [8]byte
	parts := [][]byte{k.path[:], k.rest[:], k.status[:], k.wrap[:], k.reset[:], masks[:], k.records[:]}
	var size int
	for _, p := range parts {
		size += len(p)
	}
	b, err := e.Export(keysContext, size)
	if err != nil {
		return nil, err
	}
	defer clear(b)
	rest := b
	for _, p := range parts {
		rest = rest[copy(p, rest):]
	}
	k.ahead, k.back = binary.BigEndian.Uint32(masks[:]), binary.BigEndian.Uint32(masks[4:])
	return k, nil
}

// keystream XORs b with the first bytes of a stream that key is used for only once,
// from offset on.
func keystream(key *[32]byte, b []byte, offset int) {
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err) // the size is right
	}
	s := cipher.NewCTR(block, make([]byte, aes.BlockSize))
	skipped := make([]byte, offset)
	s.XORKeyStream(skipped, skipped)
	s.XORKeyStream(b, b)
}

func info(p peer.ID) []byte { return append([]byte(envelopeInfo), p...) }

// sealed is one hop's part of an envelope in the making.
type sealed struct {
	enc    []byte
	sender *hpke.Sender
	layer  []byte
}

// newEnvelope makes the envelope for the first hop of p, and the keys that the
// source shares with each relay and the target.
func newEnvelope(p Path, inner protocol.ID, now time.Time) (envelope []byte, shared []*keys, err error) {
	hops := p.all()
	parts := make([]sealed, len(hops))
	shared = make([]*keys, len(hops))
	for i, h := range hops {
		l := layer{protocol: inner, expires: expiry(now)}
		if i+1 < len(hops) {
			l = layer{next: hops[i+1].Peer, addrs: hops[i+1].Addrs, expires: l.expires}
		}
		if parts[i].layer, err = l.marshal(); err != nil {
			return nil, nil, err
		}
		key, err := h.key()
		if err != nil {
			return nil, nil, err
		}
		if parts[i].enc, parts[i].sender, err = hpke.NewSender(key, kdf(), aead(), info(h.Peer)); err != nil {
			return nil, nil, fmt.Errorf("encapsulate to %s: %w", h.Peer, err)
		}
		if shared[i], err = exportKeys(parts[i].sender); err != nil {
			return nil, nil, fmt.Errorf("export keys for %s: %w", h.Peer, err)
		}
	}
	envelope, err = assemble(parts, shared)
	return envelope, shared, err
}

// expiry is a little before MaxLife from now, and not the same for two hops.
func expiry(now time.Time) time.Time {
	return now.Add(MaxLife - mathrand.N(15*time.Second)).Truncate(time.Second)
}

// assemble seals the layers from the target's to the first hop's. What a hop finds
// behind its slot ends with what the hops before it have made of the zeros they
// appended: the filler, which the source works out first.
func assemble(parts []sealed, shared []*keys) ([]byte, error) {
	var filler []byte
	for _, k := range shared[:len(shared)-1] {
		filler = append(filler, make([]byte, slotSize)...)
		keystream(&k.rest, filler, EnvelopeSize-len(filler))
	}
	rest := make([]byte, restSize)
	rand.Read(rest)
	copy(rest[restSize-len(filler):], filler)
	for i := len(parts) - 1; ; i-- {
		box, err := parts[i].sender.Seal(rest, parts[i].layer)
		if err != nil {
			return nil, fmt.Errorf("seal layer: %w", err)
		}
		envelope := make([]byte, 0, EnvelopeSize)
		envelope = append(append(append(envelope, parts[i].enc...), box...), rest...)
		if i == 0 {
			return envelope, nil
		}
		rest = envelope[:restSize]
		keystream(&shared[i-1].rest, rest, 0)
	}
}

// opened is what a hop finds in its envelope. If err is not nil, it is why the
// layer is of no use, and the source can be told.
type opened struct {
	layer
	keys     *keys
	envelope []byte // for the next hop
	err      error
}

// openEnvelope opens the envelope of hop self with one of its keys. The error is
// wire.Unauthenticated: it is for another hop or key, or was changed.
func openEnvelope(private []hpke.PrivateKey, self peer.ID, envelope []byte) (*opened, error) {
	enc, box, rest := envelope[:encSize], envelope[encSize:slotSize], envelope[slotSize:]
	for _, key := range private {
		r, err := hpke.NewRecipient(enc, key, kdf(), aead(), info(self))
		if err != nil {
			continue
		}
		plain, err := r.Open(rest, box)
		if err != nil {
			continue
		}
		k, err := exportKeys(r)
		if err != nil {
			return nil, fmt.Errorf("export keys of an envelope: %w", err)
		}
		o := &opened{keys: k}
		o.layer, o.err = parseLayer(plain)
		if o.next != "" {
			o.envelope = append(make([]byte, 0, EnvelopeSize), rest...)[:EnvelopeSize]
			keystream(&k.rest, o.envelope, 0)
		}
		return o, nil
	}
	return nil, wire.Errorf(wire.Unauthenticated, "envelope does not open")
}
