package letters_test

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"openmesh/node/store"
	"openmesh/node/store/letters"
	"openmesh/protocols/mailbox"
	"openmesh/protocols/mailbox/mailboxtest"
)

func open(t testing.TB, c store.Config) *store.Store {
	t.Helper()
	db, err := store.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// An SQLite file has one relay: opened again is what that relay has.
func TestSQLite(t *testing.T) {
	t.Parallel()
	mailboxtest.Run(t, func(t *testing.T) func(*testing.T) mailbox.Store {
		s := letters.New(open(t, store.Config{Path: filepath.Join(t.TempDir(), "openmesh.db"), Owner: "relay"}))
		return func(*testing.T) mailbox.Store { return s }
	})
}

// Letters and registrations outlive the process, and their cursors go on.
func TestReopen(t *testing.T) {
	t.Parallel()
	c := store.Config{Path: filepath.Join(t.TempDir(), "openmesh.db"), Owner: "relay"}
	a := mailboxtest.Agent("a")
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	q := mailbox.Quota{Letters: 10, Bytes: 1000}
	last := uint64(0)
	for n := range 3 {
		db := open(t, c)
		s := letters.New(db)
		if n == 0 {
			if err := s.Register(t.Context(), a, 7, now.Add(time.Hour), 1); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Deposit(t.Context(), mailboxtest.Letter(a, n, 10, "d"), q, now); err != nil {
			t.Fatal(err)
		}
		got, err := s.Read(t.Context(), a, last, 10, 1000, now)
		if err != nil || len(got) != 1 || got[0].Cursor <= last || int(got[0].ID[0]) != n {
			t.Fatalf("opened %d times, after %d it has %+v, %v", n+1, last, got, err)
		}
		last = got[0].Cursor
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// BenchmarkDeposit has some depositors that each leave small letters and wait
// until each is on disk, for 64 recipients. With the URL of a server in
// OPENMESH_BENCH_POSTGRES it measures that.
func BenchmarkDeposit(b *testing.B) {
	for _, depositors := range []int{1, 16, 64} {
		b.Run(fmt.Sprint(depositors), func(b *testing.B) {
			s := letters.New(open(b, store.Config{URL: os.Getenv("OPENMESH_BENCH_POSTGRES"), Path: filepath.Join(b.TempDir(), "openmesh.db"), Owner: rand.Text()}))
			now := time.Now()
			run := rand.Text()
			for r := range 64 {
				if err := s.Register(b.Context(), mailboxtest.Agent(fmt.Sprint(run, r)), 1, now.Add(time.Hour), 1<<30); err != nil {
					b.Fatal(err)
				}
			}
			plenty := mailbox.Quota{Letters: 1 << 30, Bytes: 1 << 50}
			var next atomic.Int64
			var all sync.WaitGroup
			b.ResetTimer()
			for d := range depositors {
				all.Go(func() {
					for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
						e := mailboxtest.Letter(mailboxtest.Agent(fmt.Sprint(run, n%64)), int(n), 3200, fmt.Sprint("depositor ", d, n/1024))
						if err := s.Deposit(b.Context(), e, plenty, now); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			all.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "letters/s")
		})
	}
}
