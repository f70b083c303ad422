package signal_test

import (
	"bytes"
	"math"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"openmesh/protocols/signal"
	"openmesh/protocols/signal/signalpb"
	"openmesh/protocols/wire"
)

// edit is one change to one field of a message.
type edit struct {
	field string
	apply func(protoreflect.Message)
}

// edits lists changes to every field of m and of the messages in it: each is set
// to something else, emptied, shortened and lengthened.
func edits(m protoreflect.Message) (all []edit) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		name := string(fd.Name())
		add := func(what string, apply func(protoreflect.Message)) {
			all = append(all, edit{name + what, apply})
		}
		add(" cleared", func(m protoreflect.Message) { m.Clear(fd) })
		switch {
		case fd.IsList():
			add(" longer", func(m protoreflect.Message) { l := m.Mutable(fd).List(); l.Append(l.NewElement()) })
			for n := range m.Get(fd).List().Len() {
				add(" shorter", func(m protoreflect.Message) { m.Mutable(fd).List().Truncate(n) })
				if fd.Message() == nil {
					continue
				}
				for _, e := range edits(m.Get(fd).List().Get(n).Message()) {
					add("."+e.field, func(m protoreflect.Message) { e.apply(m.Mutable(fd).List().Get(n).Message()) })
				}
			}
		case fd.Message() != nil:
			for _, e := range edits(m.Get(fd).Message()) {
				add("."+e.field, func(m protoreflect.Message) { e.apply(m.Mutable(fd).Message()) })
			}
		default:
			add(" changed", func(m protoreflect.Message) { m.Set(fd, other(fd.Kind(), m.Get(fd))) })
		}
	}
	return all
}

// other is a value that is not v.
func other(k protoreflect.Kind, v protoreflect.Value) protoreflect.Value {
	switch k {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(!v.Bool())
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(v.String() + "x")
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes(append([]byte{1}, v.Bytes()...))
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(v.Enum() + 1)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(v.Int() + 1)
	}
	return protoreflect.ValueOfUint32(uint32(v.Uint()) + 1)
}

// rich gives a party terms in which every field is set.
func rich(t testing.TB) *party {
	p := newParty(t)
	p.terms.Contract.MessageRate, p.terms.Contract.ByteRate = 100, 1<<20
	p.terms.Contract.Market = strings.Repeat("a7", 16)
	p.terms.Transports = []signal.Transport{{Name: "tcp", Addrs: [][]byte{{4, 127, 0, 0, 1, 6, 1, 1}}}}
	p.terms.Protocols = []signal.AppProtocol{{Name: "market/proposal", Versions: []string{"v1.0.0", "v2.1.0"}}}
	return p
}

// Whoever is between the two and changes any field of an offer or an answer, down
// to the last term of the contract, breaks it: nobody goes on with what he made.
func TestEveryFieldIsSigned(t *testing.T) {
	t.Parallel()
	a, b := rich(t), rich(t)
	_, offer := a.offer(t, b)
	var o signalpb.Offer
	var signed signalpb.Signed
	must(t, proto.Unmarshal(offer, &signed))
	must(t, proto.Unmarshal(signed.Payload, &o))
	changes := edits(o.ProtoReflect())
	if len(changes) < 80 {
		t.Errorf("only %d changes were tried", len(changes))
	}
	for _, e := range changes {
		forged := editOffer(t, offer, func(o *signalpb.Offer) { e.apply(o.ProtoReflect()) })
		if bytes.Equal(forged, editOffer(t, offer, func(*signalpb.Offer) {})) {
			continue // it was empty already
		}
		if pending, _, err := b.answer(forged); err == nil {
			t.Errorf("offer with %s: answered with %+v", e.field, pending.Contract)
		}
	}
	_, reply := b.mustAnswer(t, offer)
	var m signalpb.Answer
	var r signalpb.Reply
	must(t, proto.Unmarshal(reply, &r))
	must(t, proto.Unmarshal(r.GetAnswer().Payload, &m))
	for _, e := range edits(m.ProtoReflect()) {
		i, offer := a.offer(t, b)
		_, reply := b.mustAnswer(t, offer)
		forged := editAnswer(t, reply, nil, nil, func(m *signalpb.Answer) { e.apply(m.ProtoReflect()) })
		if bytes.Equal(forged, editAnswer(t, reply, nil, nil, func(*signalpb.Answer) {})) {
			continue
		}
		if est, _, err := i.Finish(forged, a.verifier, now); err == nil {
			t.Errorf("answer with %s: accepted with %+v", e.field, est.Contract)
		}
	}
}

// A responder may be tighter than the offer in every term, and looser in none.
func TestAnswerMayNotLoosen(t *testing.T) {
	t.Parallel()
	a, b := rich(t), rich(t)
	for name, loosen := range map[string]func(*signalpb.Contract){
		"qos weaker":              func(c *signalpb.Contract) { c.Qos = signalpb.Contract_QOS_AT_MOST_ONCE },
		"qos stronger":            func(c *signalpb.Contract) { c.Qos = signalpb.Contract_QOS_EXACTLY_ONCE },
		"order":                   func(c *signalpb.Contract) { c.Ordered = !c.Ordered },
		"persistence":             func(c *signalpb.Contract) { c.Persistent = true },
		"ttl":                     func(c *signalpb.Contract) { c.Ttl++ },
		"ack timeout":             func(c *signalpb.Contract) { c.AckTimeout++ },
		"keepalive":               func(c *signalpb.Contract) { c.Keepalive++ },
		"rekey interval":          func(c *signalpb.Contract) { c.RekeyInterval++ },
		"message size":            func(c *signalpb.Contract) { c.MaxMessageBytes++ },
		"pending":                 func(c *signalpb.Contract) { c.MaxPending++ },
		"retries":                 func(c *signalpb.Contract) { c.Retry.Max++ },
		"first retry":             func(c *signalpb.Contract) { c.Retry.Initial-- },
		"backoff":                 func(c *signalpb.Contract) { c.Retry.Multiplier-- },
		"longest wait":            func(c *signalpb.Contract) { c.Retry.MaxInterval-- },
		"jitter":                  func(c *signalpb.Contract) { c.Retry.Jitter-- },
		"message rate":            func(c *signalpb.Contract) { c.MessageRate++ },
		"byte rate":               func(c *signalpb.Contract) { c.ByteRate++ },
		"no market contract":      func(c *signalpb.Contract) { c.Market = "" },
		"another market contract": func(c *signalpb.Contract) { c.Market = strings.Repeat("b8", 16) },
		"no limit on rates":       func(c *signalpb.Contract) { c.MessageRate, c.ByteRate = 0, 0 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b := *a, *b
			a.terms.Contract.QoS, b.terms.Contract.QoS = signal.AtLeastOnce, signal.AtLeastOnce
			i, offer := a.offer(t, &b)
			_, reply := b.mustAnswer(t, offer)
			reply = editAnswer(t, reply, &b, payloadHash(t, offer), func(m *signalpb.Answer) { loosen(m.Contract) })
			if est, _, err := i.Finish(reply, a.verifier, now); wire.CodeOf(err) != wire.PolicyViolation {
				t.Errorf("Finish = %v, %v; want policy_violation", est, err)
			}
		})
	}
}

// Terms are used for timers, sizes and counts: those that make no sense do not get
// into a contract, whoever offers them.
func TestSenselessTermsAreRefusedOrBounded(t *testing.T) {
	t.Parallel()
	a, b := rich(t), rich(t)
	for name, tc := range map[string]struct {
		change func(*signalpb.Contract)
		want   wire.Code // 0: bounded
	}{
		"market contract of no digits": {func(c *signalpb.Contract) { c.Market = strings.Repeat("A7", 16) }, wire.Malformed},
		"market contract too long":     {func(c *signalpb.Contract) { c.Market += "a" }, wire.Malformed},
		"market contract like a path":  {func(c *signalpb.Contract) { c.Market = "../../" + c.Market[6:] }, wire.Malformed},
		"jitter over 1":                {func(c *signalpb.Contract) { c.Retry.Jitter = math.MaxUint32 }, wire.Malformed},
		"endless backoff":              {func(c *signalpb.Contract) { c.Retry.Multiplier = math.MaxUint32 }, wire.Malformed},
		"retries without end":          {func(c *signalpb.Contract) { c.Retry.Max = math.MaxUint32 }, 0},
		"first after last":             {func(c *signalpb.Contract) { c.Retry.Initial = math.MaxUint32 }, wire.Malformed},
		"keepalive of 1 ms":            {func(c *signalpb.Contract) { c.Keepalive = 1 }, 0},
		"rekey every ms":               {func(c *signalpb.Contract) { c.RekeyInterval = 1 }, 0},
		"messages of a byte":           {func(c *signalpb.Contract) { c.MaxMessageBytes = 1 }, 0},
		"endless everything": {func(c *signalpb.Contract) {
			c.Ttl, c.AckTimeout, c.Keepalive, c.RekeyInterval = math.MaxUint32, math.MaxUint32, math.MaxUint32, math.MaxUint32
			c.MaxMessageBytes, c.MaxPending, c.MessageRate, c.ByteRate = math.MaxUint32, math.MaxUint32, math.MaxUint32, math.MaxUint32
		}, 0},
		"nothing": {func(c *signalpb.Contract) { proto.Reset(c) }, 0},
	} {
		_, offer := a.offer(t, b)
		pending, _, err := b.answer(a.resignOffer(t, offer, func(o *signalpb.Offer) { tc.change(o.Contract) }))
		if tc.want != 0 {
			if wire.CodeOf(err) != tc.want {
				t.Errorf("%s: %v, want %s", name, err, tc.want)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		c, own := pending.Contract, b.terms.Contract
		if _, err := signal.ParseContract(c.Marshal()); err != nil {
			t.Errorf("%s: %+v: %v", name, c, err)
		}
		if c.Keepalive < time.Second || c.RekeyInterval < time.Second || c.MaxMessageBytes < 1<<10 || c.MaxPending > own.MaxPending ||
			c.TTL > own.TTL || c.MaxMessageBytes > own.MaxMessageBytes || c.Retry.Max > own.Retry.Max || c.ByteRate > own.ByteRate {
			t.Errorf("%s: the contract is %+v", name, c)
		}
	}
}

// An answer chooses one version of protocols that were offered; who trusts it on
// that would keep whatever a peer makes up.
func TestAnswerChoosesAmongProtocolsOffered(t *testing.T) {
	t.Parallel()
	a, b := rich(t), rich(t)
	proposal := func(versions ...string) *signalpb.AppProtocol {
		return &signalpb.AppProtocol{Name: "market/proposal", Versions: versions}
	}
	for name, tc := range map[string]struct {
		chosen []*signalpb.AppProtocol
		want   wire.Code
	}{
		"no version":           {[]*signalpb.AppProtocol{proposal()}, wire.Malformed},
		"two versions":         {[]*signalpb.AppProtocol{proposal("v1.0.0", "v2.1.0")}, wire.Malformed},
		"chosen twice":         {[]*signalpb.AppProtocol{proposal("v1.0.0"), proposal("v2.1.0")}, wire.Malformed},
		"empty one":            {[]*signalpb.AppProtocol{proposal("v1.0.0"), nil}, wire.Malformed},
		"version not offered":  {[]*signalpb.AppProtocol{proposal("v9.0.0")}, wire.Unsupported},
		"protocol not offered": {[]*signalpb.AppProtocol{{Name: "x", Versions: []string{"v1.0.0"}}}, wire.Unsupported},
	} {
		i, offer := a.offer(t, b)
		_, reply := b.mustAnswer(t, offer)
		reply = editAnswer(t, reply, b, payloadHash(t, offer), func(m *signalpb.Answer) { m.Protocols = tc.chosen })
		if est, _, err := i.Finish(reply, a.verifier, now); wire.CodeOf(err) != tc.want {
			t.Errorf("%s: Finish = %v, %v; want %s", name, est, err, tc.want)
		}
	}
}

// What is parsed as a contract leaves no term open, and is the same when written
// again.
func FuzzParseContract(f *testing.F) {
	f.Add(signal.DefaultContract().Marshal())
	f.Add(rich(f).terms.Contract.Marshal())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := signal.ParseContract(b)
		if err != nil {
			return
		}
		if c.QoS == 0 || c.QoS > signal.ExactlyOnce || c.TTL <= 0 || c.Keepalive < time.Second || c.MaxPending < 1 || c.Retry.Jitter > 1 {
			t.Errorf("%x is the contract %+v", b, c)
		}
		if again, err := signal.ParseContract(c.Marshal()); err != nil || again != c {
			t.Errorf("%+v is written and read as %+v, %v", c, again, err)
		}
		if own, err := signal.DefaultContract().Tighten(c); err == nil {
			if _, err := signal.ParseContract(own.Marshal()); err != nil {
				t.Errorf("%+v tightened by %+v: %v", signal.DefaultContract(), c, err)
			}
		}
	})
}

// A confirm of another exchange, whatever is in it and whoever signed it, opens
// no session.
func FuzzConfirm(f *testing.F) {
	a, b := newParty(f), newParty(f)
	i, offer := a.offer(f, b)
	pending, reply := b.mustAnswer(f, offer)
	_, confirm, err := i.Finish(reply, a.verifier, now)
	must(f, err)
	var s signalpb.Signed
	must(f, proto.Unmarshal(confirm, &s))
	f.Add(s.Payload[:len(s.Payload)-1], true)
	f.Add([]byte{}, false)
	f.Fuzz(func(t *testing.T, payload []byte, sign bool) {
		m := &signalpb.Signed{Payload: payload, Signature: s.Signature}
		if sign {
			m.Signature = a.signature(t, "openmesh-signal-confirm-v1:", nil, payload)
		}
		for _, in := range [][]byte{payload, marshal(t, m)} {
			if _, err := pending.Confirm(in); err == nil && !bytes.Equal(in, confirm) {
				t.Errorf("%x is taken for a confirm", in)
			}
		}
	})
}
