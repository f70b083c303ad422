package store_test

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"openmesh/node/store"
	"openmesh/protocols/session/delivery"
)

// BenchmarkEnqueue has some committers that each give a small message durably
// and wait for it, in a session of their own. Compare BenchmarkFsync. With the
// URL of a server in OPENMESH_BENCH_POSTGRES it measures that.
func BenchmarkEnqueue(b *testing.B) {
	for _, committers := range []int{1, 16, 64, 256} {
		b.Run(fmt.Sprint(committers), func(b *testing.B) {
			s, err := store.Open(b.Context(), store.Config{
				URL: os.Getenv("OPENMESH_BENCH_POSTGRES"), Path: filepath.Join(b.TempDir(), "openmesh.db"), Owner: b.Name() + rand.Text()})
			if err != nil {
				b.Fatal(err)
			}
			benchmarkEnqueue(b, s, committers)
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

func benchmarkEnqueue(b *testing.B, s delivery.Store, committers int) {
	body := make([]byte, 200)
	b.ReportAllocs()
	b.ResetTimer()
	var all sync.WaitGroup
	for c := range committers {
		all.Go(func() {
			done := make(chan error, 1)
			session := delivery.SessionID{0: byte(c), 1: 1}
			for n := uint64(c); n < uint64(b.N); n += uint64(committers) {
				m := &delivery.Message{Sequence: n + 1, Key: fmt.Sprintf("%d-%016x", c, n*0x9e3779b97f4a7c15), Capability: "finance/fx", Body: body}
				s.Commit(delivery.Enqueue{Session: session, Message: m}, true, func(err error) { done <- err })
				if err := <-done; err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
}

// BenchmarkFsync is what the disk takes for a page appended to a file, alone.
func BenchmarkFsync(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "file"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	page := make([]byte, 4096)
	for b.Loop() {
		if _, err := f.Write(page); err != nil {
			b.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
	}
}
