package replay_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"openmesh/node/audit"
	"openmesh/node/audit/replay"
	"openmesh/protocols/identity"
	deal "openmesh/protocols/market"
	"openmesh/protocols/market/markettest"
)

// dealt is a negotiation as the buyer recorded it; the request comes first.
type dealt struct {
	t             *testing.T
	buyer, seller *markettest.Agent
	n             deal.Negotiation
	now           time.Time
	entries       []audit.Entry
}

func newDealt(t *testing.T, by byte, moves ...string) *dealt {
	t.Helper()
	d := &dealt{t: t, buyer: markettest.NewAgent(t, by), seller: markettest.NewAgent(t, by+1), now: markettest.Start}
	rfp := d.buyer.Post(t, markettest.NewRFP(d.buyer.ID, 10*time.Minute))
	var err error
	if d.n, err = deal.NewNegotiation(rfp, d.seller.ID); err != nil {
		t.Fatal(err)
	}
	d.record(rfp, rfp.Hash.ID(), deal.Requested)
	for _, text := range moves {
		d.move(text)
	}
	return d
}

func (d *dealt) move(text string) {
	d.t.Helper()
	by, name, _ := strings.Cut(text, " ")
	agent := map[string]*markettest.Agent{"buyer": d.buyer, "seller": d.seller}[by]
	k, err := deal.ParseKind(name)
	if err != nil {
		d.t.Fatal(err)
	}
	d.now = d.now.Add(time.Second)
	m := agent.Move(d.t, d.n, k, d.now, markettest.Offer{})
	if d.n, _, err = d.n.Next(m, d.now); err != nil {
		d.t.Fatal(err)
	}
	d.record(m, d.n.ID(), d.n.StateAfter(m.Hash))
}

func (d *dealt) record(m *deal.Signed, ref string, state deal.State) {
	e := audit.Entry{
		Index: uint64(len(d.entries)), At: d.now, Kind: "market." + m.Kind.String(), Direction: audit.Received, Agent: m.Author,
		Ref: ref, Payload: m.Raw, Size: len(m.Raw), Note: state.String(),
	}
	if m.Author == d.buyer.ID {
		e.Direction, e.Agent = audit.Sent, d.seller.ID
	}
	d.entries = append(d.entries, e)
}

func (d *dealt) run(entries []audit.Entry) replay.Report {
	return replay.Run(d.buyer.ID, d.n.ID(), entries)
}

func TestNegotiation(t *testing.T) {
	t.Parallel()
	d := newDealt(t, 1, "seller propose", "buyer counter", "seller amend", "buyer accept", "seller contract", "buyer fulfil", "seller fulfil")
	other := newDealt(t, 5, "seller propose", "buyer reject")
	strange := clone(other.entries[:1])
	strange[0].Index = 99
	for name, id := range map[string]string{"negotiation": d.n.ID(), "contract": d.n.Agreement().ID, "request": d.n.RFP().Hash.ID()} {
		r := replay.Run(d.buyer.ID, id, slices.Concat(d.entries, strange))
		if !r.OK || len(r.Steps) != 8 || r.Outcome != "fulfilled" {
			t.Errorf("by the %s: %+v", name, r)
		}
	}
	if r := other.run(other.entries); !r.OK || r.Outcome != "rejected" {
		t.Errorf("Run() = %+v", r)
	}
	if ids := replay.IDs(&d.entries[4]); !slices.Equal(ids, []string{d.n.ID(), d.n.Agreement().ID}) {
		t.Errorf("ids of the acceptance: %v", ids)
	}
	related := replay.Related(&d.entries[3])
	if !slices.Equal(related, []string{d.n.RFP().Hash.ID()}) || replay.Related(&d.entries[0]) != nil {
		t.Errorf("related: %v", related)
	}
}

// Moves that crossed are in the log as they came; the one that lost stays in it.
func TestSuperseded(t *testing.T) {
	t.Parallel()
	d := newDealt(t, 1, "seller propose")
	before := d.n
	d.move("buyer counter")
	d.now = d.now.Add(time.Second)
	m := d.seller.Move(t, before, deal.Withdraw, d.now, markettest.Offer{})
	next, res, err := d.n.Next(m, d.now)
	if err != nil || len(res.Superseded) != 1 {
		t.Fatal(res, err)
	}
	d.n = next
	d.record(m, d.n.ID(), deal.Withdrawn)
	if r := d.run(d.entries); !r.OK || r.Outcome != "withdrawn" {
		t.Errorf("Run() = %+v", r)
	}
}

func TestNegotiationAltered(t *testing.T) {
	t.Parallel()
	d := newDealt(t, 1, "seller propose", "buyer counter", "seller amend", "buyer accept", "seller contract")
	other := newDealt(t, 5, "seller propose")
	for name, test := range map[string]struct {
		alter func(e []audit.Entry) []audit.Entry
		step  string
		why   string
	}{
		"request changed":     {func(e []audit.Entry) []audit.Entry { flip(&e[0]); return e }, "step 1, entry 0", "refused"},
		"request of another":  {func(e []audit.Entry) []audit.Entry { e[0].Payload = other.entries[0].Payload; return e }, "step 1, entry 0", "does not say"},
		"no request":          {func(e []audit.Entry) []audit.Entry { return e[1:] }, "step 1, entry 1", "does not have request"},
		"amount changed":      {func(e []audit.Entry) []audit.Entry { edit(&e[1], "10.00", "90.00"); return e }, "step 2, entry 1", "refused"},
		"move of another":     {func(e []audit.Entry) []audit.Entry { e[1].Payload = other.entries[1].Payload; return e }, "step 2, entry 1", "does not say"},
		"move left out":       {func(e []audit.Entry) []audit.Entry { return slices.Delete(e, 2, 3) }, "step 3, entry 3", "missing"},
		"moves swapped":       {func(e []audit.Entry) []audit.Entry { e[2].Index, e[3].Index = 3, 2; return e }, "step 3, entry 2", "missing"},
		"move twice":          {func(e []audit.Entry) []audit.Entry { e[3].Payload, e[3].Kind = e[1].Payload, e[1].Kind; return e }, "step 4, entry 3", "before"},
		"kind changed":        {func(e []audit.Entry) []audit.Entry { e[2].Kind = "market.accept"; return e }, "step 3, entry 2", "it is a counter"},
		"state changed":       {func(e []audit.Entry) []audit.Entry { e[4].Note = "contracted"; return e }, "step 5, entry 4", "accepted"},
		"direction changed":   {func(e []audit.Entry) []audit.Entry { e[2].Direction = audit.Received; return e }, "step 3, entry 2", "does not say"},
		"long before":         {func(e []audit.Entry) []audit.Entry { e[1].At = e[1].At.Add(-time.Hour); return e }, "step 2, entry 1", "in the future"},
		"original is missing": {func(e []audit.Entry) []audit.Entry { e[3].Payload, e[3].Omit = nil, true; return e }, "step 4, entry 3", "retention"},
	} {
		r := d.run(test.alter(clone(d.entries)))
		if r.OK || !strings.HasPrefix(r.Divergence, test.step) || !strings.Contains(r.Divergence, test.why) {
			t.Errorf("%s: %q", name, r.Divergence)
		}
	}
	if r := replay.Run(identity.AgentID("did:key:another"), d.n.ID(), d.entries); r.OK {
		t.Error("another's log")
	}
}

// edit changes what stands in an original.
func edit(e *audit.Entry, old, new string) {
	e.Payload = bytes.Replace(e.Payload, []byte(old), []byte(new), 1)
}
