package deals_test

import (
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"openmesh/node/store"
	"openmesh/node/store/deals"
	"openmesh/protocols/wire"
)

func open(t *testing.T, c store.Config) (*store.Store, *deals.Store) {
	t.Helper()
	db, err := store.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db, deals.New(db)
}

func TestSQLite(t *testing.T) {
	t.Parallel()
	test(t, store.Config{Path: filepath.Join(t.TempDir(), "db"), Owner: "alice"}, store.Config{Path: filepath.Join(t.TempDir(), "db"), Owner: "bob"})
}

var at = time.UnixMilli(1_800_000_000_123).UTC()

// Each agent sees its own rows, as they were put last.
func test(t *testing.T, own, other store.Config) {
	db, s := open(t, own)
	_, theirs := open(t, other)
	exec := func(b *store.Batch) {
		t.Helper()
		if _, err := db.Exec(t.Context(), "test", b); err != nil {
			t.Fatal(err)
		}
	}
	requests := []deals.Request{
		{ID: "aa11", Sent: true, Created: at, Data: []byte("one")},
		{ID: "aa22", Created: at.Add(time.Second), Done: true, Data: []byte("two")},
		{ID: "aa33", Sent: true, Created: at.Add(-2 * time.Second), Done: true, Data: []byte("three")},
		{ID: "aa44", Sent: true, Created: at.Add(-time.Second), Done: true, Data: []byte("four")},
	}
	negotiations := []deals.Negotiation{
		{ID: "bb11", Request: "aa11", Created: at, Data: []byte{0}},
		{ID: "bb22", Request: "aa11", Contract: "cc11", Created: at.Add(time.Second), Done: true, Data: []byte{1}},
		{ID: "bb33", Request: "aa22", Contract: "cc22", Created: at.Add(2 * time.Second), Done: true, Data: []byte{2}},
	}
	var b store.Batch
	for _, r := range requests {
		s.PutRequest(&b, r)
	}
	for _, n := range negotiations {
		s.PutNegotiation(&b, deals.Negotiation{ID: n.ID, Request: n.Request, Created: n.Created, Data: []byte("before")})
		s.PutNegotiation(&b, n)
	}
	s.PutUse(&b, "cc11", "k1")
	s.PutUse(&b, "cc11", "k1")
	s.PutUse(&b, "cc11", "k2")
	s.DeleteUse(&b, "cc11", "k2")
	exec(&b)

	var got []deals.Request
	collectRequest := func(r deals.Request) error { got = append(got, r); return nil }
	check(t, s.Open(t.Context(), collectRequest))
	check(t, s.Requests(t.Context(), deals.Both, 10, collectRequest))
	if diff := cmp.Diff(requests[:2], got[:2]); diff != "" {
		t.Errorf("requests, open ones first: %s", diff)
	}
	for d, want := range map[deals.Direction][]string{
		deals.Both: {"aa22", "aa44", "aa33"}, deals.Sent: {"aa44", "aa33"}, deals.Received: {"aa22"},
	} {
		var ids []string
		check(t, s.Requests(t.Context(), d, 10, func(r deals.Request) error { ids = append(ids, r.ID); return nil }))
		if !slices.Equal(ids, want) {
			t.Errorf("direction %d: %v, want %v", d, ids, want)
		}
	}
	var found []string
	collect := func(n deals.Negotiation) error { found = append(found, n.ID); return nil }
	for _, tc := range []struct {
		name string
		read func() error
		want []string
	}{
		{"open", func() error { return s.OpenNegotiations(t.Context(), collect) }, []string{"bb11"}},
		{"over", func() error { return s.Negotiations(t.Context(), 10, collect) }, []string{"bb33", "bb22"}},
		{"over, limited", func() error { return s.Negotiations(t.Context(), 1, collect) }, []string{"bb33"}},
		{"contracts", func() error { return s.Contracts(t.Context(), 10, collect) }, []string{"bb33", "bb22"}},
		{"of a request", func() error { return s.Under(t.Context(), "aa11", collect) }, []string{"bb11", "bb22"}},
		{"another agent's", func() error { return theirs.OpenNegotiations(t.Context(), collect) }, nil},
	} {
		found = nil
		check(t, tc.read())
		if !slices.Equal(found, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, found, tc.want)
		}
	}
	if n, err := s.Negotiation(t.Context(), "bb22"); err != nil || cmp.Diff(negotiations[1], n) != "" {
		t.Errorf("by id: %+v, %v", n, err)
	}
	if n, err := s.Contract(t.Context(), "cc2"); err != nil || n.ID != "bb33" {
		t.Errorf("by a prefix of its contract's id: %+v, %v", n, err)
	}
	if _, err := s.Request(t.Context(), "aa"); wire.CodeOf(err) != wire.InvalidArgument {
		t.Errorf("by a prefix that two have: %v", err)
	}
	if _, err := theirs.Request(t.Context(), "aa11"); wire.CodeOf(err) != wire.NotFound {
		t.Errorf("of another agent: %v", err)
	}
	if keys, err := s.Uses(t.Context(), "cc11"); err != nil || len(keys) != 1 || !keys["k1"] {
		t.Errorf("uses: %v, %v", keys, err)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
