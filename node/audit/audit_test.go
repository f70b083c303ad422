package audit_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"

	"openmesh/node/audit"
	"openmesh/node/store"
	"openmesh/protocols/identity"
	"openmesh/protocols/protocoltest"
	"openmesh/protocols/wire"
)

const realm = identity.MaxRealm // private use: its puzzle is easy

// bench is a log in a database of its own, and the agent whose it is.
type bench struct {
	testing.TB
	agent *protocoltest.Agent
	path  string // of the SQLite file, if URL is empty
	url   string
	db    *store.Store
	log   *audit.Log
}

func newBench(t testing.TB) *bench {
	return openBench(t, "", protocoltest.NewAgent(t, realm, time.Now()))
}

func openBench(t testing.TB, url string, agent *protocoltest.Agent) *bench {
	t.Helper()
	b := &bench{TB: t, agent: agent, path: filepath.Join(t.TempDir(), "openmesh.db"), url: url}
	b.open()
	t.Cleanup(func() { b.db.Close() })
	return b
}

func (b *bench) config() audit.Config {
	return audit.Config{
		DB: b.db, Agent: b.agent.Agent,
		Signer:  func() (crypto.PrivKey, *identity.Certificate) { return b.agent.Host, b.agent.Certificate },
		Related: func(e *audit.Entry) []string { return strings.Fields(strings.TrimPrefix(e.Note, "see ")) },
	}
}

func (b *bench) open() {
	b.Helper()
	db, err := store.Open(context.Background(), store.Config{Path: b.path, URL: b.url, Owner: string(b.agent.Agent)})
	if err != nil {
		b.Fatal(err)
	}
	b.db = db
	if b.log, err = audit.Open(context.Background(), b.config()); err != nil {
		b.Fatal(err)
	}
}

// reopen ends the process, as far as the log is concerned.
func (b *bench) reopen() {
	b.Helper()
	if err := b.db.Close(); err != nil {
		b.Fatal(err)
	}
	b.open()
}

// numbered is the n-th entry of a test.
func numbered(n int) audit.Entry {
	return audit.Entry{
		Kind: []string{"signal.offer", "market.propose", "session.state"}[n%3], Direction: []string{audit.Sent, audit.Received, audit.Local}[n%3],
		Agent: "did:key:peer", Session: fmt.Sprint("session-", n%5), Ref: fmt.Sprint("ref-", n%7),
		Payload: []byte(fmt.Sprint("payload ", n)), Note: fmt.Sprint("note ", n),
	}
}

func (b *bench) fill(n int) {
	b.Helper()
	for i := range n {
		b.log.Note(numbered(i))
	}
	b.commit() // which is behind them
}

func (b *bench) commit(entries ...audit.Entry) uint64 {
	b.Helper()
	first, _, err := b.log.Commit(context.Background(), "test", nil, entries...)
	if err != nil {
		b.Fatal(err)
	}
	return first
}

func (b *bench) verify(against ...[]byte) audit.Report {
	b.Helper()
	r, err := b.log.Verify(context.Background(), against...)
	if err != nil {
		b.Fatal(err)
	}
	if r.OK != (r.Bad == nil) {
		b.Fatalf("OK is %t, and the fault %v", r.OK, r.Bad)
	}
	return r
}

func (b *bench) checkpoint() *audit.Checkpoint {
	b.Helper()
	c, err := b.log.Checkpoint(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	return c
}

// tamper changes the file behind the node's back.
func (b *bench) tamper(statements ...string) {
	b.Helper()
	db, err := sql.Open("sqlite", b.path)
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	for _, s := range statements {
		if _, err := db.Exec(s); err != nil {
			b.Fatal(err)
		}
	}
}

func TestCommit(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var batch store.Batch
	batch.Add(`INSERT INTO documents (owner, bucket, key, value) VALUES ($1, $2, $3, $4)`, b.db.Owner(), []byte("deals"), []byte("a"), []byte("1"))
	batch.Add(`DELETE FROM documents WHERE key = $1`, []byte("none"))
	first, affected, err := b.log.Commit(t.Context(), "test", &batch, numbered(0), numbered(1))
	if first != 0 || !slices.Equal(affected, []int64{1, 0}) || err != nil {
		t.Fatalf("Commit() = %d, %v, %v", first, affected, err)
	}
	if v, err := b.db.Get(t.Context(), "deals", "a"); string(v) != "1" || err != nil {
		t.Errorf("the effect is %q, %v", v, err)
	}
	if first := b.commit(numbered(2)); first != 2 {
		t.Errorf("the next entry is %d", first)
	}
	b.reopen()
	e, err := b.log.Get(t.Context(), 1)
	want := numbered(1)
	if err != nil || string(e.Payload) != string(want.Payload) || e.Note != want.Note || e.Kind != want.Kind || e.Ref != want.Ref || time.Since(e.At) > time.Minute {
		t.Errorf("Get(1) = %+v, %v", e, err)
	}
	if _, err := b.log.Get(t.Context(), 3); !errors.Is(err, wire.NotFound) {
		t.Errorf("Get(3) = %v", err)
	}
	if r := b.verify(); !r.OK || r.Entries != 3 {
		t.Errorf("Verify() = %+v", r)
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for name, test := range map[string]struct {
		entry audit.Entry
		code  wire.Code
	}{
		"no kind":      {audit.Entry{Direction: audit.Sent}, wire.InvalidArgument},
		"no direction": {audit.Entry{Kind: "a.b", Direction: "up"}, wire.InvalidArgument},
		"too large":    {audit.Entry{Kind: "a.b", Direction: audit.Sent, Payload: make([]byte, audit.MaxPayload+1)}, wire.TooLarge},
	} {
		if _, _, err := b.log.Commit(t.Context(), "test", nil, test.entry); !errors.Is(err, test.code) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// What others may have a say in is made to fit instead.
	b.commit(audit.Entry{Kind: "a.b", Direction: audit.Local, Note: "\x00\xff" + strings.Repeat("ä", 2000), Ref: strings.Repeat("r", 1000)})
	b.log.Note(audit.Entry{Kind: "a.b", Direction: audit.Local, Payload: make([]byte, audit.MaxPayload+1)})
	b.commit()
	if r := b.verify(); !r.OK || r.Entries != 2 || r.Pruned != 1 {
		t.Errorf("Verify() = %+v", r)
	}
}

func TestList(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.fill(50)
	for name, test := range map[string]struct {
		filter audit.Filter
		want   []uint64
	}{
		"first":     {audit.Filter{Limit: 3}, []uint64{0, 1, 2}},
		"last":      {audit.Filter{Limit: 3, Last: true}, []uint64{47, 48, 49}},
		"from":      {audit.Filter{From: 48}, []uint64{48, 49}},
		"kind":      {audit.Filter{Kind: "market.propose", Limit: 2}, []uint64{1, 4}},
		"noun":      {audit.Filter{Kind: "market", Limit: 2, Last: true}, []uint64{46, 49}},
		"no prefix": {audit.Filter{Kind: "mark"}, nil},
		"session":   {audit.Filter{Of: []string{"session-4"}, Limit: 2}, []uint64{4, 9}},
		"ref":       {audit.Filter{Of: []string{"ref-6"}, From: 10}, []uint64{13, 20, 27, 34, 41, 48}},
		"several":   {audit.Filter{Of: []string{"ref-6", "session-4", "ref-5"}, Kind: "market", Last: true, Limit: 4}, []uint64{19, 34, 40, 49}},
	} {
		found, err := b.log.List(t.Context(), test.filter)
		var got []uint64
		for _, e := range found {
			got = append(got, e.Index)
		}
		if !slices.Equal(got, test.want) || err != nil {
			t.Errorf("%s: %v, %v; want %v", name, got, err, test.want)
		}
	}
}

func TestResolve(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.commit(audit.Entry{Kind: "a", Direction: audit.Local, Session: "abc1", Ref: "def"},
		audit.Entry{Kind: "a", Direction: audit.Local, Session: "abc2", Ref: "de"},
		audit.Entry{Kind: "a", Direction: audit.Local, Ref: "xyz", Note: "see def"})
	for prefix, want := range map[string]any{"abc1": "abc1", "abc": wire.InvalidArgument, "x": "xyz", "de": "de", "q": wire.NotFound, "": wire.InvalidArgument} {
		id, err := b.log.Resolve(t.Context(), prefix)
		if code, fails := want.(wire.Code); fails && !errors.Is(err, code) || !fails && (id != want || err != nil) {
			t.Errorf("Resolve(%q) = %q, %v; want %v", prefix, id, err, want)
		}
	}
	entries, err := b.log.Of(t.Context(), "xyz")
	if len(entries) != 2 || entries[0].Index != 0 || entries[1].Index != 2 || err != nil {
		t.Errorf("Of(xyz) = %+v, %v", entries, err)
	}
}

// All ids that are asked for are read, however many, and those that they bring in are
// all read or none.
func TestOfMany(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var ids []string
	for i := range 200 {
		e := audit.Entry{Kind: "a", Direction: audit.Local, Ref: fmt.Sprint("ref-", i), Note: "see request"}
		ids = append(ids, e.Ref)
		b.log.Note(e)
	}
	b.commit(audit.Entry{Kind: "a", Direction: audit.Local, Ref: "request"})
	entries, err := b.log.Of(t.Context(), ids...)
	if len(entries) != 201 || err != nil {
		t.Errorf("Of() %d ids and a related one: %d entries, %v", len(ids), len(entries), err)
	}
	if r, notes := read(t, b.export(ids...)); !r.OK || len(notes) != 201 {
		t.Errorf("export of %d ids and a related one: %d entries, %v", len(ids), len(notes), r.Bad)
	}
	for i := 0; i < 5000; i += 100 {
		note := ""
		for n := range 100 {
			note += fmt.Sprintf(" of-%d", i+n)
		}
		b.log.Note(audit.Entry{Kind: "a", Direction: audit.Local, Ref: "all", Note: note})
	}
	b.commit()
	if entries, err := b.log.Of(t.Context(), "all"); !errors.Is(err, wire.TooLarge) {
		t.Errorf("Of() one id that brings in 5000: %d entries, %v", len(entries), err)
	}
}

// A transaction that fails in the midst of others leaves no gap, and no entry
// without its effect; notes are not lost by it.
func TestFailure(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var all sync.WaitGroup
	var mu sync.Mutex
	committed := map[uint64]int{}
	for worker := range 10 {
		all.Go(func() {
			for n := worker * 30; n < worker*30+30; n++ {
				var batch store.Batch
				if n%40 == 0 {
					batch.Add(`INSERT INTO owners (agent, batch) SELECT agent, batch FROM owners WHERE id = $1`, b.db.Owner()) // is not unique
				}
				if n%3 == 1 {
					b.log.Note(numbered(n))
					continue
				}
				first, _, err := b.log.Commit(t.Context(), "test", &batch, numbered(n))
				mu.Lock()
				if err == nil {
					committed[first] = n
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	b.commit(numbered(1000))
	r := b.verify()
	if !r.OK {
		t.Fatal(r.Bad)
	}
	notes := 0
	seen := map[string]bool{}
	for i := range r.Entries {
		e, err := b.log.Get(t.Context(), i)
		if err != nil || seen[e.Note] {
			t.Fatalf("entry %d: %+v, %v", i, e, err)
		}
		seen[e.Note] = true
		if n, ok := committed[i]; ok && e.Note != numbered(n).Note {
			t.Errorf("entry %d is %s, and was promised to %d", i, e.Note, n)
		}
		if strings.HasSuffix(e.Kind, "propose") {
			notes++
		}
	}
	if notes != 100+1 {
		t.Errorf("%d notes of 100", notes-1)
	}
	if len(committed) < 50 || len(committed) > 195 {
		t.Errorf("%d were committed", len(committed))
	}
}

// A database that comes back without its last commits, as a standby that lagged
// behind: what is recorded from then on follows on what is there.
func TestSetback(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.fill(10)
	b.commit(numbered(10))
	b.tamper(`DELETE FROM audit_entries WHERE idx >= 7`, `UPDATE owners SET batch = batch - 1`)
	b.log.Note(numbered(11))
	for range 2 { // the first is made on what is lost
		if _, _, err := b.log.Commit(t.Context(), "test", nil, numbered(12)); err != nil && !errors.Is(err, wire.Internal) {
			t.Fatal(err)
		}
	}
	if r := b.verify(); !r.OK || r.Entries < 7+2 {
		t.Errorf("Verify() = %+v, %v", r, r.Bad)
	}
	notes := 0
	for i := uint64(7); i < b.log.Size(); i++ {
		if e, err := b.log.Get(t.Context(), i); err != nil || e.Note == numbered(11).Note {
			notes++
		}
	}
	if notes != 1 {
		t.Errorf("%d notes of one", notes)
	}
}

func TestRetention(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	old := time.Now().Add(-400 * 24 * time.Hour)
	for i := range 1500 {
		e := numbered(i)
		if e.At = old; i%2 == 0 {
			e.At = time.Now()
		}
		b.log.Note(e)
	}
	before := func() *audit.Checkpoint { b.commit(); return b.checkpoint() }()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.log.Run(ctx) }()
	for { // Run prunes at once
		if e, err := b.log.Get(t.Context(), 1499); err != nil {
			t.Fatal(err)
		} else if e.Omit {
			break
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, err := b.log.Prune(t.Context(), time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	if r := b.verify(before.Bytes()); !r.OK || r.Pruned != 750 || r.Checkpoints != 2 {
		t.Errorf("Verify() = %+v", r)
	}
	b.tamper(`UPDATE audit_entries SET payload = CAST('another' AS BLOB) WHERE idx = 3`)
	if r := b.verify(); r.OK || r.Bad.Index != 3 {
		t.Errorf("Verify() with another payload = %+v", r)
	}
}

func TestMain(m *testing.M) {
	if path := os.Getenv(child); path != "" {
		appendForever(path)
	}
	os.Exit(m.Run())
}
