package signal_test

import (
	"slices"
	"strings"
	"testing"

	"openmesh/protocols/schema/translate"
	"openmesh/protocols/signal"
	"openmesh/protocols/signal/signalpb"
	"openmesh/protocols/wire"
)

func TestNoCommonSchemaNamesBothSides(t *testing.T) {
	t.Parallel()
	a, b := newParty(t), newParty(t)
	a.terms.Protocols = []signal.AppProtocol{{Name: "market/proposal", Versions: []string{"v1.0.0"}}, {Name: "a/only", Versions: []string{"v1"}}}
	b.terms.Protocols = []signal.AppProtocol{{Name: "market/proposal", Versions: []string{"v2.1.0"}}}
	i, offer := a.offer(t, b)
	_, _, err := b.answer(offer)
	const here = `no common schema version: we speak "market/proposal" ["v2.1.0"], the other side "market/proposal" ["v1.0.0"]`
	if wire.CodeOf(err) != wire.NoCommonSchema || err.Error() != here {
		t.Fatalf("Answer: %v", err)
	}
	const there = `no_common_schema: the other side refused the session: it speaks "market/proposal" ["v2.1.0"], we speak "market/proposal" ["v1.0.0"]`
	if _, _, err = i.Finish(signal.Refuse(err), a.verifier, now); wire.CodeOf(err) != wire.NoCommonSchema || err.Error() != there {
		t.Errorf("Finish: %v", err)
	}
	b.terms.Protocols[0].Versions = []string{"v0.9.0", "v1.0.0", "v2.1.0"}
	_, offer = a.offer(t, b)
	pending, _ := b.mustAnswer(t, offer)
	if got := pending.Protocols; len(got) != 1 || got[0].Versions[0] != "v1.0.0" {
		t.Errorf("chose %v", got)
	}
}

// What a refusal names is anybody's: it is not signed.
func TestRefusalIsBounded(t *testing.T) {
	t.Parallel()
	a, b := newParty(t), newParty(t)
	a.terms.Protocols = []signal.AppProtocol{{Name: "x", Versions: []string{"1.0.0"}}}
	ref := &signalpb.Refusal{Code: uint32(wire.NoCommonSchema)}
	for range 100 {
		ref.Protocols = append(ref.Protocols, &signalpb.AppProtocol{Name: "\x1b[2J" + strings.Repeat("n", 200), Versions: slices.Repeat([]string{"\a"}, 50)})
	}
	i, _ := a.offer(t, b)
	_, _, err := i.Finish(marshal(t, &signalpb.Reply{Reply: &signalpb.Reply_Refusal{Refusal: ref}}), a.verifier, now)
	if wire.CodeOf(err) != wire.NoCommonSchema || len(err.Error()) > 8192 || strings.ContainsAny(err.Error(), "\x1b\a") {
		t.Errorf("%d bytes: %v", len(err.Error()), err)
	}
}

// Versions are chosen as the terms say, on the answering side, and the initiator
// takes none that it did not offer.
func TestChoose(t *testing.T) {
	t.Parallel()
	speaks := func(versions ...string) []signal.AppProtocol {
		return []signal.AppProtocol{{Name: "x", Versions: versions}}
	}
	for _, tc := range []struct {
		name       string
		choose     func(ours, theirs []string) (string, bool)
		ours       []signal.AppProtocol
		theirs     []signal.AppProtocol
		change     func(*signalpb.Answer)
		want       wire.Code // 0: agreed
		wantChosen string
	}{
		{name: "highest common", ours: speaks("1.0.0", "2.0.0"), theirs: speaks("2.0.0", "1.0.0"), wantChosen: "2.0.0"},
		{name: "by translation", choose: translate.Choose, ours: speaks("1.0.0"), theirs: speaks("2.0.0", "~1.0.0"), wantChosen: "1.0.0"},
		{name: "by our translation", choose: translate.Choose, ours: speaks("1.0.0", "~2.0.0"), theirs: speaks("2.0.0"), wantChosen: "2.0.0"},
		{name: "a mark is no version without it", ours: speaks("1.0.0"), theirs: speaks("2.0.0", "~1.0.0"), want: wire.NoCommonSchema},
		{name: "not known there", ours: speaks("1.0.0")},
		{name: "never offered", ours: speaks("1.0.0"), theirs: speaks("1.0.0"),
			change: func(a *signalpb.Answer) { a.Protocols[0].Versions[0] = "3.0.0" }, want: wire.Unsupported},
		{name: "never offered, with translations", choose: translate.Choose, ours: speaks("1.0.0", "~2.0.0"), theirs: speaks("1.0.0"),
			change: func(a *signalpb.Answer) { a.Protocols[0].Versions[0] = "3.0.0" }, want: wire.Unsupported},
		{name: "written otherwise", choose: translate.Choose, ours: speaks("1.0.0"), theirs: speaks("1.0.0"),
			change: func(a *signalpb.Answer) { a.Protocols[0].Versions[0] = "v1.0.0" }, want: wire.Unsupported},
		{name: "of another protocol", ours: speaks("1.0.0"), theirs: speaks("1.0.0"),
			change: func(a *signalpb.Answer) { a.Protocols[0].Name = "y" }, want: wire.Unsupported},
		{name: "no version", ours: speaks("1.0.0"), theirs: speaks("1.0.0"),
			change: func(a *signalpb.Answer) { a.Protocols[0].Versions = nil }, want: wire.Malformed},
		{name: "two versions", ours: speaks("1.0.0", "2.0.0"), theirs: speaks("1.0.0", "2.0.0"),
			change: func(a *signalpb.Answer) { a.Protocols[0].Versions = []string{"1.0.0", "2.0.0"} }, want: wire.Malformed},
		{name: "twice", ours: speaks("1.0.0", "2.0.0"), theirs: speaks("1.0.0", "2.0.0"),
			change: func(a *signalpb.Answer) {
				a.Protocols = append(a.Protocols, &signalpb.AppProtocol{Name: "x", Versions: []string{"1.0.0"}})
			}, want: wire.Malformed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			a, b := newParty(t), newParty(t)
			a.terms.Protocols, a.terms.Choose, b.terms.Protocols, b.terms.Choose = tc.ours, tc.choose, tc.theirs, tc.choose
			i, offer := a.offer(t, b)
			_, reply, err := b.answer(offer)
			if err == nil {
				if tc.change != nil {
					reply = editAnswer(t, reply, b, payloadHash(t, offer), tc.change)
				}
				var est *signal.Established
				if est, _, err = i.Finish(reply, a.verifier, now); err == nil {
					var chosen string
					for _, p := range est.Protocols {
						chosen = p.Versions[0]
					}
					if chosen != tc.wantChosen {
						t.Errorf("chose %q, want %q", chosen, tc.wantChosen)
					}
				}
			}
			if (err == nil) != (tc.want == 0) || err != nil && wire.CodeOf(err) != tc.want {
				t.Errorf("%v, want %v", err, tc.want)
			}
		})
	}
}
