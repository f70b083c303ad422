package signal_test

import (
	"crypto/sha256"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"openmesh/protocols/identity"
	"openmesh/protocols/protocoltest"
	"openmesh/protocols/signal"
	"openmesh/protocols/signal/signalpb"
	"openmesh/protocols/wire"
)

const lab = identity.FirstPrivateRealm

var now = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// party is one end of an exchange.
type party struct {
	agent *protocoltest.Agent
	signal.Local
	verifier *identity.Verifier
	terms    signal.Terms
}

func newParty(t testing.TB) *party {
	a := protocoltest.NewAgent(t, lab, now)
	return &party{
		agent:    a,
		Local:    signal.Local{Certificate: a.Certificate, Key: a.Host},
		verifier: identity.NewVerifier(lab, func() time.Time { return now }),
		terms:    signal.Terms{Suites: signal.Suites(), Contract: signal.DefaultContract()},
	}
}

func (p *party) id() identity.AgentID { return p.agent.Agent }

func (p *party) offer(t testing.TB, to *party) (*signal.Initiator, []byte) {
	t.Helper()
	i, offer, err := signal.NewOffer(p.Local, to.id(), p.terms, now)
	if err != nil {
		t.Fatal(err)
	}
	return i, offer
}

func (p *party) answer(offer []byte) (*signal.Pending, []byte, error) {
	return signal.Answer(p.Local, offer, p.verifier, p.terms, now, signal.Gate{
		Admit: func(*identity.Certificate, [32]byte) error { return nil },
		Begin: func(*identity.Certificate, signal.Contract) error { return nil },
	})
}

func (p *party) mustAnswer(t testing.TB, offer []byte) (*signal.Pending, []byte) {
	t.Helper()
	pending, reply, err := p.answer(offer)
	if err != nil {
		t.Fatal(err)
	}
	return pending, reply
}

func TestBothSidesAgree(t *testing.T) {
	t.Parallel()
	for _, suite := range signal.Suites() {
		t.Run(suite.String(), func(t *testing.T) {
			t.Parallel()
			a, b := newParty(t), newParty(t)
			a.terms.Suites = []signal.Suite{suite}
			a.terms.Contract.TTL = time.Minute
			b.terms.Contract.MaxPending = 7
			i, offer := a.offer(t, b)
			pending, reply := b.mustAnswer(t, offer)
			ours, confirm, err := i.Finish(reply, a.verifier, now)
			if err != nil {
				t.Fatal(err)
			}
			theirs, err := pending.Confirm(confirm)
			if err != nil {
				t.Fatal(err)
			}
			if ours.Secret != theirs.Secret || ours.Secret == [32]byte{} || ours.ID != theirs.ID {
				t.Errorf("secrets or ids differ: %v, %v", ours.ID, theirs.ID)
			}
			if ours.Peer.Agent != b.id() || theirs.Peer.Agent != a.id() || !ours.Initiator || theirs.Initiator {
				t.Errorf("identities: %s and %s", ours.Peer.Agent, theirs.Peer.Agent)
			}
			want := signal.DefaultContract()
			want.TTL, want.MaxPending = time.Minute, 7
			if ours.Contract != want || theirs.Contract != want || ours.Suite != suite || theirs.Suite != suite {
				t.Errorf("contract %+v, %+v; want %+v", ours.Contract, theirs.Contract, want)
			}
		})
	}
}

func TestHybridSuiteIsPreferred(t *testing.T) {
	t.Parallel()
	a, b := newParty(t), newParty(t)
	slices.Reverse(a.terms.Suites)
	_, offer := a.offer(t, b)
	pending, _ := b.mustAnswer(t, offer)
	if pending.Suite != signal.Suites()[0] {
		t.Errorf("chose %s", pending.Suite)
	}
}

// editOffer changes an offer on the way, as one who cannot sign for its sender.
func editOffer(t testing.TB, offer []byte, change func(*signalpb.Offer)) []byte {
	t.Helper()
	var s signalpb.Signed
	var o signalpb.Offer
	must(t, proto.Unmarshal(offer, &s))
	must(t, proto.Unmarshal(s.Payload, &o))
	change(&o)
	s.Payload = marshal(t, &o)
	return marshal(t, &s)
}

// resignOffer changes an offer and signs it anew as p.
func (p *party) resignOffer(t testing.TB, offer []byte, change func(*signalpb.Offer)) []byte {
	t.Helper()
	var s signalpb.Signed
	must(t, proto.Unmarshal(editOffer(t, offer, change), &s))
	s.Signature = p.signature(t, "openmesh-signal-offer-v1:", nil, s.Payload)
	return marshal(t, &s)
}

// editAnswer changes an answer; with a signer, it is signed anew as its own.
func editAnswer(t testing.TB, reply []byte, signer *party, offerHash []byte, change func(*signalpb.Answer)) []byte {
	t.Helper()
	var r signalpb.Reply
	var a signalpb.Answer
	must(t, proto.Unmarshal(reply, &r))
	must(t, proto.Unmarshal(r.GetAnswer().Payload, &a))
	change(&a)
	r.GetAnswer().Payload = marshal(t, &a)
	if signer != nil {
		r.GetAnswer().Signature = signer.signature(t, "openmesh-signal-answer-v1:", offerHash, r.GetAnswer().Payload)
	}
	return marshal(t, &r)
}

func (p *party) signature(t testing.TB, domain string, before, payload []byte) []byte {
	t.Helper()
	sig, err := p.Key.Sign(slices.Concat([]byte(domain), before, payload))
	must(t, err)
	return sig
}

func payloadHash(t testing.TB, signed []byte) []byte {
	t.Helper()
	var s signalpb.Signed
	must(t, proto.Unmarshal(signed, &s))
	h := sha256.Sum256(s.Payload)
	return h[:]
}

// What a responder must refuse, and with which code. The attacker e is an agent
// of the realm with keys of its own.
func TestOfferAttacks(t *testing.T) {
	t.Parallel()
	a, b, e := newParty(t), newParty(t), newParty(t)
	_, offer := a.offer(t, b)
	_, toE := a.offer(t, e)
	drop := func(o *signalpb.Offer) { o.Suites = o.Suites[2:] }
	liar := protocoltest.Liar(t, a.agent, now)
	l := &party{agent: liar, Local: signal.Local{Certificate: liar.Certificate, Key: liar.Host}, terms: a.terms}
	_, lie := l.offer(t, b)
	for _, tc := range []struct {
		name  string
		offer []byte
		want  wire.Code
	}{
		{"downgrade: hybrid suites removed on the way", editOffer(t, offer, drop), wire.Unauthenticated},
		{"downgrade: contract changed on the way", editOffer(t, offer, func(o *signalpb.Offer) { o.Contract.MaxPending = 1 }), wire.Unauthenticated},
		{"ephemeral key replaced on the way", editOffer(t, offer, func(o *signalpb.Offer) { o.Keys[0].PublicKey[0] ^= 1 }), wire.Unauthenticated},
		{"misdirected: an offer to another agent", toE, wire.Unauthenticated},
		{"misbinding: names a, certificate and signature of e", e.resignOffer(t, offer, func(o *signalpb.Offer) { o.Certificate = e.Certificate.Raw }), wire.Unauthenticated},
		{"stolen certificate: a's, signed by e", e.resignOffer(t, offer, func(*signalpb.Offer) {}), wire.Unauthenticated},
		{"signature of an answer", func() []byte {
			var s signalpb.Signed
			must(t, proto.Unmarshal(offer, &s))
			s.Signature = a.signature(t, "openmesh-signal-answer-v1:", nil, s.Payload)
			return marshal(t, &s)
		}(), wire.Unauthenticated},
		{"copied address: the nonce of another agent", lie, wire.Unauthenticated},
		{"old", a.resignOffer(t, offer, func(o *signalpb.Offer) { o.Time -= (identity.ClockSkew + time.Second).Milliseconds() }), wire.Replayed},
		{"from the future", a.resignOffer(t, offer, func(o *signalpb.Offer) { o.Time += (identity.ClockSkew + time.Second).Milliseconds() }), wire.Replayed},
		{"time at the edge of int64", a.resignOffer(t, offer, func(o *signalpb.Offer) { o.Time = -1 << 63 }), wire.Replayed},
		{"no nonce", a.resignOffer(t, offer, func(o *signalpb.Offer) { o.Nonce = nil }), wire.Malformed},
		{"short hybrid key", a.resignOffer(t, offer, func(o *signalpb.Offer) { o.Keys[0].PublicKey = o.Keys[0].PublicKey[:1215] }), wire.Malformed},
		{"long X25519 key", a.resignOffer(t, offer, func(o *signalpb.Offer) {
			o.Suites = o.Suites[2:]
			o.Keys[1].PublicKey = append(o.Keys[1].PublicKey, 0)
		}), wire.Malformed},
		{"low-order X25519 key", a.resignOffer(t, offer, func(o *signalpb.Offer) {
			o.Suites = o.Suites[2:]
			clear(o.Keys[1].PublicKey)
		}), wire.Malformed},
		{"no keys", a.resignOffer(t, offer, func(o *signalpb.Offer) { o.Keys = nil }), wire.Unsupported},
		{"unknown suites", a.resignOffer(t, offer, func(o *signalpb.Offer) {
			o.Suites = []*signalpb.Suite{{Kem: 0xffff, Kdf: 1, Aead: 2}, {Kem: 1 << 20}, nil}
		}), wire.Unsupported},
		{"unknown version", a.resignOffer(t, offer, func(o *signalpb.Offer) { o.Versions = []uint32{99} }), wire.Unsupported},
		{"unknown critical option", a.resignOffer(t, offer, func(o *signalpb.Offer) {
			o.Options = []*signalpb.Option{{Name: "from-the-future", Critical: true}}
		}), wire.Unsupported},
		{"a promise this node cannot keep", a.resignOffer(t, offer, func(o *signalpb.Offer) { o.Contract.Qos = signalpb.Contract_QOS_EXACTLY_ONCE }), wire.Unsupported},
		{"a thousand suites", a.resignOffer(t, offer, func(o *signalpb.Offer) { o.Suites = make([]*signalpb.Suite, 1000) }), wire.Malformed},
		{"garbage", []byte("GET / HTTP/1.1\r\n\r\n"), wire.Malformed},
		{"empty", nil, wire.Unauthenticated},
		{"oversize", make([]byte, signal.MaxMessage+1), wire.TooLarge},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			pending, _, err := b.answer(tc.offer)
			if err == nil || wire.CodeOf(err) != tc.want {
				t.Errorf("Answer = %v, %v; want %s", pending, err, tc.want)
			}
		})
	}
}

// What a newer peer may add must not break the exchange.
func TestUnknownFieldsAndOptionsAreIgnored(t *testing.T) {
	t.Parallel()
	a, b := newParty(t), newParty(t)
	_, offer := a.offer(t, b)
	_, _, err := b.answer(a.resignOffer(t, offer, func(o *signalpb.Offer) {
		o.Options = []*signalpb.Option{{Name: "from-the-future"}}
		o.ProtoReflect().SetUnknown([]byte{0xfa, 0x07, 0x01, 'x'})
	}))
	if err != nil {
		t.Error(err)
	}
}

func TestAnswerAttacks(t *testing.T) {
	t.Parallel()
	a, b, e := newParty(t), newParty(t), newParty(t)
	a.terms.Contract.TTL = time.Minute
	_, otherOffer := a.offer(t, b)
	_, otherReply := b.mustAnswer(t, otherOffer)
	nothing := func(*signalpb.Answer) {}
	for _, tc := range []struct {
		name  string
		reply func(t *testing.T, offer, reply []byte) []byte
		want  wire.Code
	}{
		{"suite changed on the way", func(t *testing.T, _, reply []byte) []byte {
			return editAnswer(t, reply, nil, nil, func(a *signalpb.Answer) { a.Suite.Aead = uint32(signal.ChaCha20Poly1305) })
		}, wire.Unauthenticated},
		{"encapsulated key replaced on the way", func(t *testing.T, _, reply []byte) []byte {
			return editAnswer(t, reply, nil, nil, func(a *signalpb.Answer) { a.Enc[0] ^= 1 })
		}, wire.Unauthenticated},
		{"splice: answer to another offer of ours", func(*testing.T, []byte, []byte) []byte { return otherReply }, wire.Replayed},
		{"splice: relabelled for this offer", func(t *testing.T, offer, _ []byte) []byte {
			return editAnswer(t, otherReply, nil, nil, func(a *signalpb.Answer) { a.OfferHash = payloadHash(t, offer) })
		}, wire.Unauthenticated},
		{"another agent answers as itself", func(t *testing.T, offer, reply []byte) []byte {
			return editAnswer(t, reply, e, payloadHash(t, offer), func(a *signalpb.Answer) {
				a.Certificate, a.Responder = e.Certificate.Raw, string(e.id())
			})
		}, wire.Unauthenticated},
		{"another agent answers as b", func(t *testing.T, offer, reply []byte) []byte {
			return editAnswer(t, reply, e, payloadHash(t, offer), nothing)
		}, wire.Unauthenticated},
		{"suite that was not offered", func(t *testing.T, offer, reply []byte) []byte {
			return editAnswer(t, reply, b, payloadHash(t, offer), func(a *signalpb.Answer) { a.Suite.Aead = 1 })
		}, wire.Unsupported},
		{"looser contract", func(t *testing.T, offer, reply []byte) []byte {
			return editAnswer(t, reply, b, payloadHash(t, offer), func(a *signalpb.Answer) { a.Contract.Ttl = 3600_000 })
		}, wire.PolicyViolation},
		{"contract with an open term", func(t *testing.T, offer, reply []byte) []byte {
			return editAnswer(t, reply, b, payloadHash(t, offer), func(a *signalpb.Answer) { a.Contract.Ttl = 0 })
		}, wire.Malformed},
		{"short encapsulated key", func(t *testing.T, offer, reply []byte) []byte {
			return editAnswer(t, reply, b, payloadHash(t, offer), func(a *signalpb.Answer) { a.Enc = a.Enc[:10] })
		}, wire.Malformed},
		{"no encapsulated key", func(t *testing.T, offer, reply []byte) []byte {
			return editAnswer(t, reply, b, payloadHash(t, offer), func(a *signalpb.Answer) { a.Enc = nil })
		}, wire.Malformed},
		{"refusal with a code from the future", func(t *testing.T, _, _ []byte) []byte {
			return marshal(t, &signalpb.Reply{Reply: &signalpb.Reply_Refusal{Refusal: &signalpb.Refusal{Code: 1 << 30}}})
		}, wire.Denied},
		{"empty", func(*testing.T, []byte, []byte) []byte { return nil }, wire.Malformed},
		{"garbage", func(*testing.T, []byte, []byte) []byte { return []byte{0xff, 0xff} }, wire.Malformed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			i, offer := a.offer(t, b)
			_, reply := b.mustAnswer(t, offer)
			est, _, err := i.Finish(tc.reply(t, offer, reply), a.verifier, now)
			if err == nil || wire.CodeOf(err) != tc.want {
				t.Errorf("Finish = %v, %v; want %s", est, err, tc.want)
			}
		})
	}
}

// E puts its own name on a's ephemeral key, so that b would seal to a while
// believing it talks to e. B may answer e; a must not accept that answer.
func TestIdentityMisbindingByReplacedOffer(t *testing.T) {
	t.Parallel()
	a, b, e := newParty(t), newParty(t), newParty(t)
	i, offer := a.offer(t, b)
	stolen := e.resignOffer(t, offer, func(o *signalpb.Offer) {
		o.Initiator, o.Certificate = string(e.id()), e.Certificate.Raw
	})
	_, reply := b.mustAnswer(t, stolen)
	if est, _, err := i.Finish(reply, a.verifier, now); wire.CodeOf(err) != wire.Replayed {
		t.Errorf("Finish = %v, %v; want replayed", est, err)
	}
}

func TestConfirmAttacks(t *testing.T) {
	t.Parallel()
	a, b, e := newParty(t), newParty(t), newParty(t)
	exchange := func() (*signal.Pending, []byte) {
		i, offer := a.offer(t, b)
		pending, reply := b.mustAnswer(t, offer)
		_, confirm, err := i.Finish(reply, a.verifier, now)
		must(t, err)
		return pending, confirm
	}
	pending, confirm := exchange()
	_, other := exchange()
	forged := func() []byte {
		var s signalpb.Signed
		var c signalpb.Confirm
		must(t, proto.Unmarshal(confirm, &s))
		must(t, proto.Unmarshal(s.Payload, &c))
		s.Signature = e.signature(t, "openmesh-signal-confirm-v1:", c.Transcript, s.Payload)
		return marshal(t, &s)
	}()
	for name, c := range map[string][]byte{"of another session": other, "signed by another": forged, "empty": nil, "garbage": {0xff}} {
		if est, err := pending.Confirm(c); err == nil {
			t.Errorf("confirm %s accepted: %v", name, est)
		}
	}
	if _, err := pending.Confirm(confirm); err != nil {
		t.Error(err)
	}
}

func TestExpiredAndSupersededKeysAreRefused(t *testing.T) {
	t.Parallel()
	a, b := newParty(t), newParty(t)
	_, offer := a.offer(t, b)
	if _, err := b.verifier.Verify(a.agent.Rotate(t, 2, now).Raw); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.answer(offer); wire.CodeOf(err) != wire.KeySuperseded {
		t.Errorf("superseded key: %v", err)
	}
	i, offer := b.offer(t, a)
	_, reply := a.mustAnswer(t, offer)
	late := identity.NewVerifier(lab, func() time.Time { return a.Certificate.NotAfter })
	if _, _, err := i.Finish(reply, late, now); wire.CodeOf(err) != wire.KeyExpired {
		t.Errorf("expired key: %v", err)
	}
}

func FuzzAnswer(f *testing.F) {
	a, b := newParty(f), newParty(f)
	_, offer := a.offer(f, b)
	_, reply := b.mustAnswer(f, offer)
	f.Add(offer)
	f.Add(reply)
	f.Fuzz(func(t *testing.T, in []byte) {
		b.answer(in)
		var o signalpb.Offer // past the signature, any field may be anything
		if proto.Unmarshal(in, &o) == nil {
			o.Initiator, o.Responder, o.Certificate, o.Time = string(a.id()), string(b.id()), a.Certificate.Raw, now.UnixMilli()
			payload := marshal(t, &o)
			b.answer(marshal(t, &signalpb.Signed{Payload: payload, Signature: a.signature(t, "openmesh-signal-offer-v1:", nil, payload)}))
		}
	})
}

func FuzzFinish(f *testing.F) {
	a, b := newParty(f), newParty(f)
	_, offer := a.offer(f, b)
	pending, reply := b.mustAnswer(f, offer)
	f.Add(reply)
	f.Fuzz(func(t *testing.T, in []byte) {
		i, _ := a.offer(t, b)
		i.Finish(in, a.verifier, now)
		pending.Confirm(in)
		var m signalpb.Answer
		if proto.Unmarshal(in, &m) == nil {
			i, offer := a.offer(t, b)
			h := payloadHash(t, offer)
			m.OfferHash, m.Responder, m.Certificate = h, string(b.id()), b.Certificate.Raw
			payload := marshal(t, &m)
			s := &signalpb.Signed{Payload: payload, Signature: b.signature(t, "openmesh-signal-answer-v1:", h, payload)}
			i.Finish(marshal(t, &signalpb.Reply{Reply: &signalpb.Reply_Answer{Answer: s}}), a.verifier, now)
		}
	})
}

func BenchmarkExchange(bm *testing.B) {
	a, b := newParty(bm), newParty(bm)
	for bm.Loop() {
		i, offer := a.offer(bm, b)
		pending, reply := b.mustAnswer(bm, offer)
		_, confirm, err := i.Finish(reply, a.verifier, now)
		must(bm, err)
		_, err = pending.Confirm(confirm)
		must(bm, err)
	}
}

func marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	must(t, err)
	return b
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
