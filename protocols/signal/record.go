package signal

import (
	"bytes"
	"crypto/sha256"
	"slices"
	"time"

	"openmesh/protocols/identity"
	"openmesh/protocols/signal/signalpb"
	"openmesh/protocols/wire"
)

// MessageKind says which message of an exchange one is.
type MessageKind string

// The messages of an exchange.
const (
	KindOffer   MessageKind = "offer"
	KindAnswer  MessageKind = "answer"
	KindConfirm MessageKind = "confirm"
)

// Message is a signaling message as it was sent or received, with its signature,
// for a log of what was said.
type Message struct {
	Kind    MessageKind
	Sent    bool             // by this side
	Session ID               // zero: the exchange came to no session
	Agent   identity.AgentID // the other side
	Market  string           // the market contract that the session cites; empty: none
	Raw     []byte
	Err     error // of an offer that came to no session: why
}

// record tells of an exchange that came to a session, or of an offer alone.
func (c *Config) record(m ...Message) {
	if c.Record == nil {
		return
	}
	for _, one := range m {
		c.Record(one)
	}
}

// opened records an exchange of the side that made the offer.
func (c *Config) opened(responder identity.AgentID, offer, reply, confirm []byte, est *Established, err error) {
	if err != nil {
		c.record(Message{Kind: KindOffer, Sent: true, Agent: responder, Raw: offer, Err: err})
		return
	}
	m := Message{Session: est.ID, Agent: responder, Market: est.Contract.Market}
	c.record(m.with(KindOffer, true, offer), m.with(KindAnswer, false, reply), m.with(KindConfirm, true, confirm))
}

// answered records an offer of a side that has proved who it is, and the answer.
func (c *Config) answered(who *identity.Certificate, offer, reply []byte, p *Pending, err error) {
	switch {
	case who == nil:
	case err != nil:
		c.record(Message{Kind: KindOffer, Agent: who.Agent, Raw: offer, Err: err})
	default:
		m := Message{Session: p.ID, Agent: who.Agent, Market: p.Contract.Market}
		c.record(m.with(KindOffer, false, offer), m.with(KindAnswer, true, reply))
	}
}

func (m Message) with(kind MessageKind, sent bool, raw []byte) Message {
	m.Kind, m.Sent, m.Raw = kind, sent, raw
	return m
}

// Reviewed is what the messages of an exchange prove.
type Reviewed struct {
	ID                   ID
	Initiator, Responder *identity.Certificate
	Suite                Suite
	Offered, Agreed      Contract
	Resumed              bool // the id is not derived from the exchange
	At                   time.Time
	Confirmed            bool // the confirm was there too
}

// Flaw is what is wrong with a message of an exchange.
type Flaw struct {
	In  MessageKind
	Err error // a wire error
}

// Error implements error.
func (f *Flaw) Error() string { return string(f.In) + ": " + f.Err.Error() }

// Unwrap returns the wire error.
func (f *Flaw) Unwrap() error { return f.Err }

// Review validates an exchange again, long after it: both certificates and that
// they were valid at the offer's time, every signature over all that went before
// it, that the answer chose among what was offered and did not loosen the contract,
// and the session's id, which is derived from both messages. Confirm may be nil.
// Nothing secret is needed for it, or found by it.
//
// Errors are [*Flaw].
func Review(offer, reply, confirm []byte) (*Reviewed, error) {
	var o signalpb.Offer
	var a signalpb.Answer
	var signed signalpb.Signed
	if err := unmarshal(offer, &signed); err != nil {
		return nil, &Flaw{KindOffer, err}
	}
	offerPayload, err := decode(&signed, &o)
	if err != nil {
		return nil, &Flaw{KindOffer, err}
	}
	r := &Reviewed{At: time.UnixMilli(o.Time).UTC(), Offered: contractOf(o.Contract)}
	if r.Initiator, err = signatory(o.Certificate, o.Initiator, r.At); err == nil {
		err = verify(r.Initiator, offerDomain, nil, &signed)
	}
	if err != nil {
		return nil, &Flaw{KindOffer, err}
	}
	answerPayload, err := r.answer(&o, &a, offerPayload, reply)
	if err != nil {
		return nil, &Flaw{KindAnswer, err}
	}
	transcript := transcriptOf(offerPayload, answerPayload)
	if r.ID = idOf(transcript); len(a.Resume) == len(ID{}) {
		r.ID, r.Resumed = ID(a.Resume), true
	}
	if confirm == nil {
		return r, nil
	}
	p := Pending{Established: Established{Peer: r.Initiator}, transcript: transcript}
	if _, err := p.Confirm(confirm); err != nil {
		return nil, &Flaw{KindConfirm, err}
	}
	r.Confirmed = true
	return r, nil
}

// signatory is who signed a message at a time.
func signatory(certificate []byte, named string, at time.Time) (*identity.Certificate, error) {
	c, err := identity.ParseCertificate(certificate)
	if err != nil {
		return nil, err
	}
	if named != string(c.Agent) {
		return nil, wire.Errorf(wire.Unauthenticated, "it names %.70q, its certificate is of %s", named, c.Agent)
	}
	return c, c.Valid(at)
}

// answer checks the reply to an offer, and returns the payload of the answer in it.
func (r *Reviewed) answer(o *signalpb.Offer, a *signalpb.Answer, offerPayload, raw []byte) ([]byte, error) {
	var reply signalpb.Reply
	if err := unmarshal(raw, &reply); err != nil {
		return nil, err
	}
	payload, err := decode(reply.GetAnswer(), a)
	if err != nil {
		return nil, err
	}
	if r.Responder, err = signatory(a.Certificate, a.Responder, r.At); err != nil {
		return nil, err
	}
	offerHash := sha256.Sum256(offerPayload)
	if err := verify(r.Responder, answerDomain, offerHash[:], reply.GetAnswer()); err != nil {
		return nil, err
	}
	suite, ok := suiteOf(a.Suite)
	offered := slices.ContainsFunc(o.Suites, func(m *signalpb.Suite) bool { s, ok := suiteOf(m); return ok && s == suite })
	switch {
	case o.Responder != a.Responder:
		return nil, wire.Errorf(wire.Unauthenticated, "it is from %s, the offer was to %.70q", r.Responder.Agent, o.Responder)
	case !bytes.Equal(a.OfferHash, offerHash[:]):
		return nil, wire.Errorf(wire.Replayed, "it is to another offer")
	case a.Version != Version || !slices.Contains(o.Versions, a.Version):
		return nil, wire.Errorf(wire.Unsupported, "version %d was not offered", a.Version)
	case !ok || !offered:
		return nil, wire.Errorf(wire.Unsupported, "suite %s was not offered", suite)
	case len(a.Resume) > 0 && !bytes.Equal(a.Resume, o.Resume):
		return nil, wire.Errorf(wire.Malformed, "it is of another session than the one to go on with")
	}
	r.Suite, r.Agreed = suite, contractOf(a.Contract)
	return payload, r.Offered.checkAnswer(r.Agreed)
}
