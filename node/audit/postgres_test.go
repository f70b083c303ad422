//go:build unix

package audit_test

import (
	"runtime"
	"sync"
	"testing"
	"time"

	"openmesh/node/audit"
	"openmesh/node/store/postgrestest"
	"openmesh/protocols/protocoltest"
)

// The log on PostgreSQL, which two agents share.
func TestPostgres(t *testing.T) {
	t.Parallel()
	url := postgrestest.New(t).URL
	b := openBench(t, url, protocoltest.NewAgent(t, realm, time.Now()))
	other := openBench(t, url, protocoltest.NewAgent(t, realm, time.Now()))
	var all sync.WaitGroup
	for worker := range 16 {
		all.Go(func() {
			for n := range 20 {
				b.log.Note(numbered(n))
				b.commit(numbered(worker), numbered(n))
			}
		})
	}
	all.Wait()
	other.fill(7)
	held := b.checkpoint().Bytes()
	b.reopen()
	if r := b.verify(held); !r.OK || r.Entries != 960 || r.Checkpoints != 2 {
		t.Errorf("Verify() = %+v, %v", r, r.Bad)
	}
	if r := other.verify(); !r.OK || r.Entries != 7 {
		t.Errorf("Verify() of another owner = %+v", r)
	}
	if found, err := b.log.List(t.Context(), audit.Filter{Of: []string{"session-1", "ref-2"}, Kind: "market", Limit: 5}); len(found) != 5 || err != nil {
		t.Errorf("List() = %v, %v", found, err)
	}
	if id, err := b.log.Resolve(t.Context(), "session-3"); id != "session-3" || err != nil {
		t.Errorf("Resolve() = %q, %v", id, err)
	}
	if n, err := b.log.Prune(t.Context(), time.Now().Add(time.Hour)); n != 960 || err != nil {
		t.Errorf("Prune() = %d, %v", n, err)
	}
	if r, notes := read(t, b.export("ref-1")); !r.OK || len(notes) == 0 || b.verify().Pruned != 960 {
		t.Errorf("an export: %+v", r)
	}
}

// A server that crashes under a log that lives on: what was noted before is there, and
// what comes after follows on it.
func TestPostgresCrash(t *testing.T) {
	t.Parallel()
	server := postgrestest.New(t)
	if server.Ctl == nil {
		t.Skip("the server is not of this test")
	}
	b := openBench(t, server.URL, protocoltest.NewAgent(t, realm, time.Now()))
	for round := range uint64(2) {
		b.log.Note(numbered(0), numbered(1))
		for b.log.Size() < 3*round+2 {
			runtime.Gosched()
		}
		server.Ctl("stop", "-m", "immediate")
		server.Ctl("start")
		b.commit(numbered(2))
		r, err := b.log.Verify(t.Context())
		for tries := 0; err != nil && tries < 10; tries++ { // a connection that is read with may be one of before
			r, err = b.log.Verify(t.Context())
		}
		if !r.OK || r.Entries != 3*(round+1) {
			t.Fatalf("round %d: %+v, %v, %v", round, r, r.Bad, err)
		}
	}
}
