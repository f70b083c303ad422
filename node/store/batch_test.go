package store_test

import (
	"database/sql"
	"errors"
	"slices"
	"testing"

	"openmesh/node/store"
)

// A change that fails breaks its chain: what follows it is not tried, whatever
// transaction it is in; other chains, and what stands alone, are.
func TestChain(t *testing.T) {
	t.Parallel()
	s := open(t, sqliteConfig(t))
	defer s.Close()
	put := func(key string) *store.Batch {
		var b store.Batch
		b.Add(`INSERT INTO documents (owner, bucket, key, value) VALUES ($1, $2, $3, $4)`, s.Owner(), []byte("b"), []byte(key), []byte("v"))
		return &b
	}
	type result struct {
		affected []int64
		err      error
	}
	done := make(chan result)
	submit := func(b *store.Batch, c *store.Chain) result {
		s.Submit("test", b, c, true, func(affected []int64, err error) { done <- result{affected, err} })
		return <-done
	}
	one, other := s.Chain(), s.Chain()
	if r := submit(store.Join(put("1"), new(store.Batch), put("2")), one); r.err != nil || !slices.Equal(r.affected, []int64{1, 1}) {
		t.Fatalf("a good change: %+v", r)
	}
	if r := submit(store.Join(put("3"), put("1")), one); r.err == nil || errors.Is(r.err, store.ErrBroken) {
		t.Errorf("a change that adds a row twice: %v", r.err)
	}
	if r := submit(put("4"), one); !errors.Is(r.err, store.ErrBroken) {
		t.Errorf("a change after it: %v", r.err)
	}
	for key, c := range map[string]*store.Chain{"5": other, "6": nil, "7": s.Chain()} {
		if r := submit(put(key), c); r.err != nil {
			t.Errorf("a change of another chain: %v", r.err)
		}
	}
	var keys []string
	err := s.Query(t.Context(), "test", func(rows *sql.Rows) error {
		var key []byte
		err := rows.Scan(&key)
		keys = append(keys, string(key))
		return err
	}, `SELECT key FROM documents WHERE owner = $1 ORDER BY key`, s.Owner())
	if want := []string{"1", "2", "5", "6", "7"}; !slices.Equal(keys, want) || err != nil {
		t.Errorf("stored are %v, want %v; %v", keys, want, err)
	}
}
