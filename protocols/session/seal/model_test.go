package seal

import (
	"errors"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"openmesh/protocols/session/sessionpb"
	"openmesh/protocols/wire"
)

// parcel is a frame on its way, or one that was.
type parcel struct {
	from, epoch int
	frame       []byte
	rekey       *sessionpb.Rekey // what is in it; nil: data
	opened      bool
}

// rekeying is a session whose frames rapid delivers in any order, late, twice or
// never. Side 0 is the initiator.
type rekeying struct {
	sides    [2]*Keys
	sequence [2]uint64
	way      []*parcel
	now      time.Time
}

// put seals a frame, and checks that the other side can open it at once: nobody
// seals with a key that its peer lacks.
func (m *rekeying) put(t *rapid.T, from int, rekey *sessionpb.Rekey) {
	k, peer := m.sides[from], m.sides[1-from]
	typ := Data
	if rekey != nil {
		typ = Rekey
	}
	m.sequence[from]++
	p := &parcel{from: from, epoch: int(k.Epoch()), rekey: rekey}
	p.frame = k.Seal(nil, typ, m.sequence[from], []byte("x"))
	opening := *peer.opening.Load()
	i := slices.IndexFunc(opening, func(s *sealer) bool { return int(s.epoch) == p.epoch })
	if i < 0 {
		t.Fatalf("side %d seals epoch %d, the other one opens up to %d", from, p.epoch, opening[0].epoch)
	}
	if _, err := opening[i].open(slices.Clone(p.frame), m.sequence[from]); err != nil {
		t.Fatalf("the sides hold different keys of epoch %d", p.epoch)
	}
	m.way = append(m.way, p)
}

func (m *rekeying) propose(t *rapid.T) {
	if !m.sides[0].Due(m.now) {
		t.Skip("not due")
	}
	msg, err := m.sides[0].Propose()
	if err != nil {
		t.Fatal(err)
	}
	m.put(t, 0, msg)
}

// deliver lets any frame arrive: the first time it opens, unless it is stale;
// later it never does.
func (m *rekeying) deliver(t *rapid.T) {
	if len(m.way) == 0 {
		t.Skip("nothing is on its way")
	}
	newest := rapid.Just(len(m.way) - 1) // often, so that changes come to an end
	p := m.way[rapid.OneOf(newest, rapid.IntRange(0, len(m.way)-1)).Draw(t, "frame")]
	k := m.sides[1-p.from]
	_, _, err := k.Open(slices.Clone(p.frame))
	switch {
	case errors.Is(err, ErrStale) && uint32(p.epoch) < k.newest():
		return
	case p.opened != errors.Is(err, wire.Replayed) || err != nil && !p.opened:
		t.Fatalf("frame of epoch %d, opened before: %t: %v", p.epoch, p.opened, err)
	case err != nil || p.rekey == nil:
		p.opened = true
		return
	}
	p.opened = true
	reply, err := k.Answer(p.rekey, m.now)
	if err != nil {
		t.Fatalf("rekey to epoch %d: %v", p.rekey.Epoch, err)
	}
	if reply != nil {
		m.put(t, 1, reply)
	}
}

// check holds after every step: the sides are in one epoch or in neighbouring
// ones, and what both hold is the same.
func (m *rekeying) check(t *rapid.T) {
	a, b := m.sides[0], m.sides[1]
	if d := int(b.newest()) - int(a.newest()); d < 0 || d > 1 {
		t.Fatalf("initiator in epoch %d, responder in %d", a.newest(), b.newest())
	}
	if (a.newest() == b.newest()) != (a.secret == b.secret) {
		t.Fatalf("epochs %d and %d, secrets equal: %t", a.newest(), b.newest(), a.secret == b.secret)
	}
	for i, k := range m.sides {
		if n := len(*k.opening.Load()); n > 3 { // the newest and those that overlap
			t.Fatalf("side %d holds %d epochs", i, n)
		}
	}
}

// The change of keys against any network: whatever is late, lost, doubled or out
// of order, both sides agree on the keys or stay with those that they have.
func TestRekeyAgainstModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := &rekeying{now: start}
		m.sides[0], m.sides[1] = newPair(t, Config{Interval: time.Minute})
		t.Repeat(map[string]func(*rapid.T){
			"":        m.check,
			"propose": m.propose,
			"deliver": m.deliver,
			"send":    func(t *rapid.T) { m.put(t, rapid.IntRange(0, 1).Draw(t, "side"), nil) },
			"wait": func(t *rapid.T) {
				m.now = m.now.Add(time.Duration(rapid.IntRange(1, 90).Draw(t, "seconds")) * time.Second)
				m.sides[0].Sweep(m.now)
				m.sides[1].Sweep(m.now)
			},
		})
	})
}
