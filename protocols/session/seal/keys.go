package seal

import (
	"crypto/hkdf"
	"crypto/hpke"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"openmesh/protocols/session/sessionpb"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// ErrStale reports a frame of an epoch whose keys are erased. It is no attack: it
// was long on its way.
var ErrStale = errors.New("frame of an epoch that is over")

// Config says whose keys they are and how long each epoch may last.
type Config struct {
	Session   signal.ID
	Suite     signal.Suite
	Initiator bool
	Epoch     uint32 // the first one

	Interval time.Duration // between epochs
	Frames   uint64        // in one epoch and direction; default 2^32
	Bytes    uint64        // in one epoch and direction; default 64 GiB
	Overlap  time.Duration // how long an old epoch is still opened; default 30 s, at most Interval
}

// Keys are the keys of a session, both directions, epoch by epoch, with the
// window against replays. Safe for concurrent use.
type Keys struct {
	cfg     Config
	sending atomic.Pointer[sealer]
	opening atomic.Pointer[[]*sealer] // newest first

	mu       sync.Mutex
	seen     replayFilter
	secret   [32]byte // of the newest epoch
	since    time.Time
	settled  bool            // the peer has shown that it holds the newest epoch
	proposal hpke.PrivateKey // of the initiator's change under way
	erased   bool
}

// New returns the keys of the first epoch, and erases secret.
func New(cfg Config, secret *[32]byte, now time.Time) (*Keys, error) {
	cfg.Frames, cfg.Bytes = orDefault(cfg.Frames, 1<<32), orDefault(cfg.Bytes, 64<<30)
	cfg.Interval = orDefault(cfg.Interval, 5*time.Minute)
	cfg.Overlap = min(orDefault(cfg.Overlap, 30*time.Second), cfg.Interval)
	k := &Keys{cfg: cfg, secret: *secret, since: now, settled: true}
	clear(secret[:])
	mine, theirs, err := k.derive(cfg.Epoch)
	if err != nil {
		return nil, err
	}
	k.sending.Store(mine)
	k.opening.Store(&[]*sealer{theirs})
	return k, nil
}

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

func (k *Keys) derive(epoch uint32) (mine, theirs *sealer, err error) {
	mine, theirs, err = deriveSealers(k.cfg.Suite, k.secret[:], epoch)
	if !k.cfg.Initiator {
		mine, theirs = theirs, mine
	}
	return mine, theirs, err
}

// Epoch returns the epoch that this side seals with.
func (k *Keys) Epoch() uint32 { return k.sending.Load().epoch }

// Seal appends a frame of type t to dst. Sequence must be used for one plaintext
// only. Plain is not changed and must not overlap with dst's room.
func (k *Keys) Seal(dst []byte, t Type, sequence uint64, plain []byte) []byte {
	s := k.sending.Load()
	return s.seal(dst, Header{t, k.cfg.Session, s.epoch, sequence}, plain)
}

// Open authenticates a frame, in place, and returns its plaintext. Nothing
// changes unless it is a new frame of this session. Errors: wire.Malformed,
// wire.Unsupported, wire.Unauthenticated, wire.Replayed, [ErrStale].
func (k *Keys) Open(frame []byte) (Header, []byte, error) {
	h, err := parseHeader(frame)
	if err != nil {
		return h, nil, err
	}
	if h.Session != k.cfg.Session {
		return h, nil, wire.Unauthenticated
	}
	epochs := *k.opening.Load()
	i := slices.IndexFunc(epochs, func(s *sealer) bool { return s.epoch == h.Epoch })
	if i < 0 && h.Epoch < epochs[0].epoch && h.Epoch >= k.cfg.Epoch {
		return h, nil, ErrStale
	}
	if i < 0 {
		return h, nil, wire.Unauthenticated
	}
	if !k.fresh(h.Sequence) {
		return h, nil, wire.Replayed
	}
	plain, err := epochs[i].open(frame, h.Sequence)
	if err != nil {
		return h, nil, err
	}
	if !k.mark(h) { // another channel brought it just now
		return h, nil, wire.Replayed
	}
	return h, plain, nil
}

func (k *Keys) fresh(sequence uint64) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !k.erased && k.seen.fresh(sequence)
}

// mark records a frame that opened, unless it was seen. One of the newest epoch
// shows that the peer holds that.
func (k *Keys) mark(h Header) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.erased || !k.seen.fresh(h.Sequence) {
		return false
	}
	k.seen.mark(h.Sequence)
	if h.Epoch == k.newest() && !k.settled {
		k.settle(time.Now())
	}
	return true
}

// settle ends a change of keys: both sides hold the newest epoch. k.mu is held.
func (k *Keys) settle(now time.Time) {
	k.settled = true
	epochs := *k.opening.Load()
	if k.Epoch() != epochs[0].epoch { // the responder: now it may seal with it too
		mine, _, err := k.derive(epochs[0].epoch)
		if err != nil {
			return // it was derived once already; keep sealing with the old one
		}
		k.sending.Store(mine)
	}
	for _, s := range epochs[1:] {
		if s.until.IsZero() {
			s.until = now.Add(k.cfg.Overlap)
		}
	}
}

// Sweep erases the old epochs whose overlap is over.
func (k *Keys) Sweep(now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	epochs := *k.opening.Load()
	if len(epochs) == 1 {
		return
	}
	kept := slices.Clone(epochs[:1])
	for _, s := range epochs[1:] {
		if s.until.IsZero() || now.Before(s.until) {
			kept = append(kept, s)
		}
	}
	k.opening.Store(&kept)
}

// Erase forgets the secret. Nothing opens any more, and there are no further
// epochs; what says that the session is over can still be sealed.
func (k *Keys) Erase() {
	k.mu.Lock()
	defer k.mu.Unlock()
	clear(k.secret[:])
	k.proposal, k.erased = nil, true
}

// Received returns the sequence number of the newest frame received and the gaps
// below it, the most recent first, at most limit; the last gap reaches down to 1
// if there are more.
func (k *Keys) Received(limit int) (newest uint64, missing []Range) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.seen.newest, k.seen.missing(limit)
}

// Due reports whether it is time for the next epoch. Only the initiator changes
// keys.
func (k *Keys) Due(now time.Time) bool {
	if !k.cfg.Initiator {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.erased || !k.settled || k.proposal != nil {
		return false
	}
	return now.Sub(k.since) >= k.cfg.Interval || k.spent(k.sending.Load()) || k.spent((*k.opening.Load())[0])
}

func (k *Keys) spent(s *sealer) bool {
	return s.frames.Load() >= k.cfg.Frames || s.bytes.Load() >= k.cfg.Bytes
}

// Propose begins the change to the next epoch and returns the message to send.
// The caller has asked Due.
func (k *Keys) Propose() (*sessionpb.Rekey, error) {
	kem, err := hpke.NewKEM(k.cfg.Suite.KEM)
	if err != nil {
		return nil, fmt.Errorf("rekey: %w", err)
	}
	key, err := kem.GenerateKey()
	if err != nil {
		return nil, fmt.Errorf("rekey: %w", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.erased {
		return nil, wire.Errorf(wire.SessionClosed, "rekey: the keys are erased")
	}
	k.proposal = key
	return &sessionpb.Rekey{Epoch: k.newest() + 1, PublicKey: key.PublicKey().Bytes()}, nil
}

func (k *Keys) newest() uint32 { return (*k.opening.Load())[0].epoch }

// Answer takes the peer's part of a change of keys. The responder gets the reply
// to send; the initiator gets none, and should send something in the new epoch.
// An error means that the peer broke the protocol: wire.PolicyViolation or
// wire.Malformed.
func (k *Keys) Answer(m *sessionpb.Rekey, now time.Time) (*sessionpb.Rekey, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.erased {
		return nil, wire.Errorf(wire.SessionClosed, "rekey: the keys are erased")
	}
	if m.Epoch != k.newest()+1 || !k.settled {
		return nil, wire.Errorf(wire.PolicyViolation, "rekey to epoch %d while the newest is %d", m.Epoch, k.newest())
	}
	if k.cfg.Initiator {
		return nil, k.finish(m, now)
	}
	return k.encapsulate(m, now)
}

func (k *Keys) finish(m *sessionpb.Rekey, now time.Time) error {
	if k.proposal == nil {
		return wire.Errorf(wire.PolicyViolation, "rekey was not asked for")
	}
	kdf, aead, err := k.algorithms()
	if err != nil {
		return err
	}
	r, err := hpke.NewRecipient(m.Enc, k.proposal, kdf, aead, k.info(m.Epoch))
	k.proposal = nil
	if err != nil {
		return wire.Errorf(wire.Malformed, "rekey: encapsulated key: %w", err)
	}
	fresh, err := r.Export(rekeyContext, 32)
	if err != nil {
		return fmt.Errorf("rekey: %w", err)
	}
	mine, err := k.advance(m.Epoch, fresh, now)
	if err == nil {
		k.sending.Store(mine)
	}
	return err
}

func (k *Keys) encapsulate(m *sessionpb.Rekey, now time.Time) (*sessionpb.Rekey, error) {
	kdf, aead, err := k.algorithms()
	if err != nil {
		return nil, err
	}
	kem, err := hpke.NewKEM(k.cfg.Suite.KEM)
	if err != nil {
		return nil, fmt.Errorf("rekey: %w", err)
	}
	key, err := kem.NewPublicKey(m.PublicKey)
	if err != nil {
		return nil, wire.Errorf(wire.Malformed, "rekey: public key of %d bytes: %w", len(m.PublicKey), err)
	}
	enc, sender, err := hpke.NewSender(key, kdf, aead, k.info(m.Epoch))
	if err != nil {
		return nil, wire.Errorf(wire.Malformed, "rekey: public key: %w", err)
	}
	fresh, err := sender.Export(rekeyContext, 32)
	if err != nil {
		return nil, fmt.Errorf("rekey: %w", err)
	}
	if _, err := k.advance(m.Epoch, fresh, now); err != nil {
		return nil, err
	}
	return &sessionpb.Rekey{Epoch: m.Epoch, Enc: enc}, nil
}

const rekeyContext = "openmesh/session/v1/rekey/secret"

func (k *Keys) info(epoch uint32) []byte {
	return binary.BigEndian.AppendUint32(append([]byte("openmesh/session/v1/rekey"), k.cfg.Session[:]...), epoch)
}

// advance mixes fresh into the secret and opens the new epoch from now on; it
// returns the key to seal with. k.mu is held.
func (k *Keys) advance(epoch uint32, fresh []byte, now time.Time) (*sealer, error) {
	defer clear(fresh)
	mixed, err := hkdf.Extract(sha256.New, fresh, k.secret[:])
	if err != nil {
		return nil, fmt.Errorf("rekey: %w", err)
	}
	copy(k.secret[:], mixed)
	clear(mixed)
	mine, theirs, err := k.derive(epoch)
	if err != nil {
		return nil, err
	}
	epochs := append([]*sealer{theirs}, *k.opening.Load()...)
	k.opening.Store(&epochs)
	k.since, k.settled = now, false
	return mine, nil
}

func (k *Keys) algorithms() (hpke.KDF, hpke.AEAD, error) {
	kdf, err := hpke.NewKDF(k.cfg.Suite.KDF)
	if err != nil {
		return nil, nil, wire.Errorf(wire.Unsupported, "rekey: %w", err)
	}
	aead, err := hpke.NewAEAD(k.cfg.Suite.AEAD)
	return kdf, aead, err
}
