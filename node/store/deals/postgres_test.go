//go:build unix

package deals_test

import (
	"testing"

	"openmesh/node/store"
	"openmesh/node/store/postgrestest"
)

func TestPostgres(t *testing.T) {
	t.Parallel()
	url := postgrestest.New(t).Database(t, "deals")
	test(t, store.Config{URL: url, Owner: "alice"}, store.Config{URL: url, Owner: "bob"})
}
