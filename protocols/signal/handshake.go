package signal

import (
	"bytes"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"openmesh/protocols/identity"
	"openmesh/protocols/signal/signalpb"
	"openmesh/protocols/wire"
)

// Initiator is the state of the side that made an offer. It serves one
// [Initiator.Finish].
type Initiator struct {
	local     Local
	responder identity.AgentID
	terms     Terms
	keys      map[uint16]hpke.PrivateKey
	payload   []byte // of the offer
}

// NewOffer starts an exchange with the agent responder and returns the offer to
// send.
func NewOffer(local Local, responder identity.AgentID, terms Terms, now time.Time) (*Initiator, []byte, error) {
	if err := terms.Contract.checkMarket(); err != nil {
		return nil, nil, err
	}
	i := &Initiator{local: local, responder: responder, terms: terms, keys: make(map[uint16]hpke.PrivateKey)}
	m := &signalpb.Offer{
		Versions:    []uint32{Version},
		Initiator:   string(local.Certificate.Agent),
		Responder:   string(responder),
		Certificate: local.Certificate.Raw,
		Nonce:       newNonce(),
		Time:        now.UnixMilli(),
		Transports:  transportMessages(terms.Transports),
		Protocols:   protocolMessages(terms.Protocols),
		Contract:    terms.Contract.message(),
		Resume:      terms.Resume.bytes(),
		Begin:       terms.Begin,
	}
	for _, s := range terms.Suites {
		m.Suites = append(m.Suites, s.message())
		if _, ok := i.keys[s.KEM]; ok {
			continue
		}
		kem, err := hpke.NewKEM(s.KEM)
		if err != nil {
			return nil, nil, fmt.Errorf("make offer: %w", err)
		}
		key, err := kem.GenerateKey()
		if err != nil {
			return nil, nil, fmt.Errorf("make offer: %w", err)
		}
		i.keys[s.KEM] = key
		m.Keys = append(m.Keys, &signalpb.KemKey{Kem: uint32(s.KEM), PublicKey: key.PublicKey().Bytes()})
	}
	signed, payload, err := sign(local, offerDomain, nil, m)
	i.payload = payload
	return i, signed, err
}

// Finish verifies the reply to the offer and returns the session with the
// Confirm that opens its first channel. If the responder refused, the error
// wraps the refusal's code. The ephemeral keys are gone afterwards.
func (i *Initiator) Finish(reply []byte, v *identity.Verifier, now time.Time) (*Established, []byte, error) {
	defer clear(i.keys)
	var r signalpb.Reply
	if err := unmarshal(reply, &r); err != nil {
		return nil, nil, err
	}
	if ref := r.GetRefusal(); ref != nil {
		return nil, nil, i.terms.refusal(ref)
	}
	var a signalpb.Answer
	payload, err := decode(r.GetAnswer(), &a)
	if err != nil {
		return nil, nil, err
	}
	peer, err := i.checkAnswer(&a, v)
	if err != nil {
		return nil, nil, err
	}
	offerHash := sha256.Sum256(i.payload)
	if err := verify(peer, answerDomain, offerHash[:], r.GetAnswer()); err != nil {
		return nil, nil, err
	}
	est, transcript, err := i.establish(&a, payload, peer, now)
	if err != nil {
		return nil, nil, err
	}
	confirm, _, err := sign(i.local, confirmDomain, transcript[:], &signalpb.Confirm{Transcript: transcript[:]})
	return est, confirm, err
}

// checkAnswer checks what the signature does not: that the answer is one to this
// offer, from the right agent, and chose among what was offered.
func (i *Initiator) checkAnswer(a *signalpb.Answer, v *identity.Verifier) (*identity.Certificate, error) {
	peer, err := v.Verify(a.Certificate)
	if err != nil {
		return nil, err
	}
	offerHash := sha256.Sum256(i.payload)
	suite, ok := suiteOf(a.Suite)
	switch {
	case peer.Agent != i.responder || a.Responder != string(i.responder):
		return nil, wire.Errorf(wire.Unauthenticated, "answer is from %s, the offer was to %s", peer.Agent, i.responder)
	case !bytes.Equal(a.OfferHash, offerHash[:]):
		return nil, wire.Errorf(wire.Replayed, "answer is to another offer")
	case len(a.Nonce) != nonceSize || a.Version != Version:
		return nil, wire.Errorf(wire.Malformed, "answer: nonce or version")
	case !bytes.Equal(a.Resume, i.terms.Resume.bytes()):
		return nil, wire.Errorf(wire.Malformed, "answer: another session than the one to go on with")
	case !ok || !slices.Contains(i.terms.Suites, suite):
		return nil, wire.Errorf(wire.Unsupported, "answer chose suite %s, which was not offered", suite)
	}
	if err := checkOptions(a.Options); err != nil {
		return nil, err
	}
	if err := i.terms.checkProtocols(a.Protocols); err != nil {
		return nil, err
	}
	return peer, i.terms.Contract.checkAnswer(contractOf(a.Contract))
}

func (i *Initiator) establish(a *signalpb.Answer, payload []byte, peer *identity.Certificate, now time.Time) (*Established, hash, error) {
	suite, _ := suiteOf(a.Suite)
	transcript := transcriptOf(i.payload, payload)
	kdf, aead, err := suite.hpke()
	if err != nil {
		return nil, transcript, wire.Errorf(wire.Unsupported, "answer: %w", err)
	}
	r, err := hpke.NewRecipient(a.Enc, i.keys[suite.KEM], kdf, aead, hpkeInfo(i.payload))
	if err != nil {
		return nil, transcript, wire.Errorf(wire.Malformed, "answer: encapsulated key: %w", err)
	}
	secret, err := r.Export(secretContext(transcript), 32)
	if err != nil {
		return nil, transcript, fmt.Errorf("export session secret: %w", err)
	}
	est := established(transcript, peer, a, secret, now)
	est.Initiator, est.Transports = true, transportsOf(a.Transports)
	return est, transcript, nil
}

// Pending is the state of the side that answered. It serves one
// [Pending.Confirm].
type Pending struct {
	Established
	transcript hash
}

// Gate says who may have which session. The codes of its errors are what the
// initiator learns.
type Gate struct {
	// Admit is asked once an offer is known to be from its initiator, with the
	// SHA-256 of the payload.
	Admit func(c *identity.Certificate, offer [32]byte) error

	// Begin is asked, of a session that is to begin, what the offer's contract is.
	Begin func(c *identity.Certificate, offered Contract) error

	// Resume gives the contract that a session to go on with has with that agent,
	// or refuses; or nil if the session is to begin, which it may only if begin says
	// that the offer allows.
	Resume func(c *identity.Certificate, id ID, begin bool) (*Contract, error)
}

// Answer verifies an offer and returns the answer to send, with the session as
// it will be once the initiator has confirmed.
func Answer(local Local, offer []byte, v *identity.Verifier, terms Terms, now time.Time, gate Gate) (*Pending, []byte, error) {
	var signed signalpb.Signed
	if err := unmarshal(offer, &signed); err != nil {
		return nil, nil, err
	}
	var o signalpb.Offer
	payload, err := decode(&signed, &o)
	if err != nil {
		return nil, nil, err
	}
	peer, err := v.Verify(o.Certificate)
	if err != nil {
		return nil, nil, err
	}
	if err := verify(peer, offerDomain, nil, &signed); err != nil {
		return nil, nil, err
	}
	if err := checkOffer(&o, local, peer, now); err != nil {
		return nil, nil, err
	}
	if err := gate.Admit(peer, sha256.Sum256(payload)); err != nil {
		return nil, nil, err
	}
	if terms, err = gate.terms(&o, peer, terms); err != nil {
		return nil, nil, err
	}
	return answer(local, &o, payload, peer, terms, now)
}

// terms are those of the session that an offer is to begin or go on with.
func (g Gate) terms(o *signalpb.Offer, peer *identity.Certificate, terms Terms) (Terms, error) {
	offered := contractOf(o.Contract)
	if err := offered.checkMarket(); err != nil {
		return terms, err
	}
	if len(o.Resume) == 0 {
		return terms, g.Begin(peer, offered)
	}
	terms.Resume = ID(o.Resume)
	contract, err := g.Resume(peer, terms.Resume, o.Begin)
	switch {
	case err != nil:
		return terms, err
	case contract == nil && !o.Begin:
		return terms, wire.Errorf(wire.NotFound, "session %s to go on with", terms.Resume)
	case contract == nil:
		terms.Begin = true
		return terms, g.Begin(peer, offered)
	case contract.Market != offered.Market:
		return terms, wire.Errorf(wire.Denied, "session %s to go on with is under market contract %q, not %q", terms.Resume, contract.Market, offered.Market)
	}
	terms.Contract = *contract
	return terms, nil
}

func checkOffer(o *signalpb.Offer, local Local, peer *identity.Certificate, now time.Time) error {
	skew := now.Sub(time.UnixMilli(o.Time)).Abs()
	switch {
	case o.Initiator != string(peer.Agent):
		return wire.Errorf(wire.Unauthenticated, "offer names initiator %.70q, its certificate is of %s", o.Initiator, peer.Agent)
	case o.Responder != string(local.Certificate.Agent):
		return wire.Errorf(wire.Unauthenticated, "offer is to %.70q", o.Responder)
	case skew > identity.ClockSkew:
		return wire.Errorf(wire.Replayed, "offer is %v from this node's clock", skew)
	case len(o.Nonce) != nonceSize:
		return wire.Errorf(wire.Malformed, "offer: nonce of %d bytes", len(o.Nonce))
	case len(o.Suites) > maxSuites || len(o.Keys) > maxSuites || len(o.Transports) > maxLists || len(o.Protocols) > maxLists:
		return wire.Errorf(wire.Malformed, "offer: too many entries")
	case len(o.Resume) != 0 && len(o.Resume) != len(ID{}):
		return wire.Errorf(wire.Malformed, "offer: session id of %d bytes", len(o.Resume))
	case !slices.Contains(o.Versions, Version):
		return wire.Errorf(wire.Unsupported, "offer: no common protocol version")
	}
	return checkOptions(o.Options)
}

func answer(local Local, o *signalpb.Offer, payload []byte, peer *identity.Certificate, terms Terms, now time.Time) (*Pending, []byte, error) {
	contract, err := terms.Contract.Tighten(contractOf(o.Contract))
	if err != nil {
		return nil, nil, err
	}
	protocols, err := terms.commonProtocols(o.Protocols)
	if err != nil {
		return nil, nil, err
	}
	suite, key, err := chooseSuite(terms.Suites, o)
	if err != nil {
		return nil, nil, err
	}
	kdf, aead, err := suite.hpke()
	if err != nil {
		return nil, nil, err
	}
	enc, sender, err := hpke.NewSender(key, kdf, aead, hpkeInfo(payload))
	if err != nil {
		return nil, nil, wire.Errorf(wire.Malformed, "offer: ephemeral key: %w", err)
	}
	offerHash := sha256.Sum256(payload)
	m := &signalpb.Answer{
		Version: Version, OfferHash: offerHash[:], Responder: string(local.Certificate.Agent),
		Certificate: local.Certificate.Raw, Nonce: newNonce(), Suite: suite.message(), Enc: enc,
		Transports: transportMessages(terms.Transports), Protocols: protocols, Contract: contract.message(),
		Resume: terms.Resume.bytes(),
	}
	signed, answerPayload, err := sign(local, answerDomain, offerHash[:], m)
	if err != nil {
		return nil, nil, err
	}
	transcript := transcriptOf(payload, answerPayload)
	secret, err := sender.Export(secretContext(transcript), 32)
	if err != nil {
		return nil, nil, fmt.Errorf("export session secret: %w", err)
	}
	p := &Pending{*established(transcript, peer, m, secret, now), transcript}
	p.Transports, p.Begin = transportsOf(o.Transports), terms.Begin
	reply, err := replyWith(signed)
	return p, reply, err
}

// chooseSuite takes the responder's favourite among the suites offered.
func chooseSuite(ours []Suite, o *signalpb.Offer) (Suite, hpke.PublicKey, error) {
	for _, s := range ours {
		offered := slices.ContainsFunc(o.Suites, func(m *signalpb.Suite) bool { t, ok := suiteOf(m); return ok && t == s })
		i := slices.IndexFunc(o.Keys, func(k *signalpb.KemKey) bool { return k.Kem == uint32(s.KEM) })
		if !offered || i < 0 {
			continue
		}
		kem, err := hpke.NewKEM(s.KEM)
		if err != nil {
			continue
		}
		key, err := kem.NewPublicKey(o.Keys[i].PublicKey)
		if err != nil {
			return s, nil, wire.Errorf(wire.Malformed, "offer: ephemeral key of %d bytes for KEM %#04x: %w", len(o.Keys[i].PublicKey), s.KEM, err)
		}
		return s, key, nil
	}
	return Suite{}, nil, wire.Errorf(wire.Unsupported, "offer: no common suite")
}

// Confirm verifies the initiator's Confirm.
func (p *Pending) Confirm(confirm []byte) (*Established, error) {
	var signed signalpb.Signed
	if err := unmarshal(confirm, &signed); err != nil {
		return nil, err
	}
	var c signalpb.Confirm
	if _, err := decode(&signed, &c); err != nil {
		return nil, err
	}
	if !bytes.Equal(c.Transcript, p.transcript[:]) {
		return nil, wire.Errorf(wire.Unauthenticated, "confirm is of another exchange")
	}
	if err := verify(p.Peer, confirmDomain, p.transcript[:], &signed); err != nil {
		return nil, err
	}
	return &p.Established, nil
}

func established(transcript hash, peer *identity.Certificate, a *signalpb.Answer, secret []byte, now time.Time) *Established {
	suite, _ := suiteOf(a.Suite)
	e := &Established{
		ID: idOf(transcript), Peer: peer, Suite: suite, Contract: contractOf(a.Contract),
		Protocols: protocolsOf(a.Protocols), Secret: [32]byte(secret), At: now,
	}
	if len(a.Resume) == len(ID{}) {
		e.ID, e.Resumed = ID(a.Resume), true
	}
	clear(secret)
	return e
}

// sign serializes m and signs it; it returns the Signed message and its payload.
func sign(l Local, domain string, before []byte, m proto.Message) (signed, payload []byte, err error) {
	payload, err = proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, nil, fmt.Errorf("sign: %w", err)
	}
	sig, err := l.Key.Sign(signingInput(domain, before, payload))
	if err != nil {
		return nil, nil, fmt.Errorf("sign: %w", err)
	}
	signed, err = proto.Marshal(&signalpb.Signed{Payload: payload, Signature: sig})
	return signed, payload, err
}

func signingInput(domain string, before, payload []byte) []byte {
	return slices.Concat([]byte(domain), before, payload)
}

func verify(c *identity.Certificate, domain string, before []byte, s *signalpb.Signed) error {
	ok, err := c.HostKey().Verify(signingInput(domain, before, s.GetPayload()), s.GetSignature())
	if err != nil || !ok {
		return wire.Errorf(wire.Unauthenticated, "signature of %s does not hold", c.Agent)
	}
	return nil
}

func unmarshal(b []byte, m proto.Message) error {
	if len(b) > MaxMessage {
		return wire.Errorf(wire.TooLarge, "signaling message of %d bytes", len(b))
	}
	if err := proto.Unmarshal(b, m); err != nil {
		return wire.Errorf(wire.Malformed, "signaling message: %w", err)
	}
	return nil
}

func decode(s *signalpb.Signed, m proto.Message) (payload []byte, err error) {
	if s == nil {
		return nil, wire.Errorf(wire.Malformed, "signaling message: empty")
	}
	return s.Payload, unmarshal(s.Payload, m)
}

func replyWith(signedAnswer []byte) ([]byte, error) {
	var s signalpb.Signed
	if err := proto.Unmarshal(signedAnswer, &s); err != nil {
		return nil, err
	}
	return proto.Marshal(&signalpb.Reply{Reply: &signalpb.Reply_Answer{Answer: &s}})
}

// Refuse returns the reply that refuses an offer for the reason err wraps.
func Refuse(err error) []byte {
	m := &signalpb.Refusal{Code: uint32(wire.CodeOf(err))}
	var n *noCommonSchema
	if errors.As(err, &n) {
		m.Protocols = protocolMessages([]AppProtocol{n.ours})
	}
	b, err := proto.Marshal(&signalpb.Reply{Reply: &signalpb.Reply_Refusal{Refusal: m}})
	if err != nil {
		panic(err) // numbers and names always marshal
	}
	return b
}

func newNonce() []byte {
	b := make([]byte, nonceSize)
	rand.Read(b)
	return b
}

func checkOptions(options []*signalpb.Option) error {
	for _, o := range options {
		if o.GetCritical() {
			return wire.Errorf(wire.Unsupported, "unknown critical option %.40q", o.GetName())
		}
	}
	return nil
}
