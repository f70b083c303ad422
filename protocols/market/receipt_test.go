package market

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"openmesh/protocols/wire"
)

func TestReceipt(t *testing.T) {
	t.Parallel()
	r := &Receipt{State: "withdrawn", Head: Hash{1, 2}, Code: wire.IllegalTransition, Moves: [][]byte{{1}, {2, 3}}}
	got, err := ParseReceipt(r.Encode())
	if diff := cmp.Diff(r, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	for name, bad := range map[string]*Receipt{
		"state":     {State: "sold"},
		"code":      {State: "proposed", Code: 7},
		"moves":     {State: "proposed", Moves: make([][]byte, MaxReceiptMoves+1)},
		"too large": {State: "proposed", Moves: [][]byte{make([]byte, maxReceipt)}},
	} {
		if _, err := ParseReceipt(bad.Encode()); err == nil {
			t.Errorf("%s: a bad receipt was read", name)
		}
	}
}

func FuzzReceipt(f *testing.F) {
	f.Add((&Receipt{State: "proposed", Moves: [][]byte{{1}}}).Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseReceipt(b)
		if err != nil {
			return
		}
		again, err := ParseReceipt(r.Encode())
		if diff := cmp.Diff(r, again); err != nil || diff != "" {
			t.Errorf("%v\n%s", err, diff)
		}
	})
}
