package audit_test

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"openmesh/node/audit"
)

// BenchmarkCommit has some appenders that each commit an entry, with its payload of
// 1 KiB, and wait until it is on the disk.
func BenchmarkCommit(b *testing.B) {
	for _, appenders := range []int{1, 16, 64} {
		b.Run(fmt.Sprint(appenders), func(b *testing.B) {
			l := newBench(b).log
			b.ReportAllocs()
			b.ResetTimer()
			var all sync.WaitGroup
			for a := range appenders {
				all.Go(func() {
					for n := a; n < b.N; n += appenders {
						if _, _, err := l.Commit(b.Context(), "test", nil, large(n)); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			all.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
		})
	}
}

func large(n int) audit.Entry {
	e := numbered(n)
	e.Payload = []byte(strings.Repeat(string(e.Payload), 1<<10/len(e.Payload)))
	return e
}

// BenchmarkNote is what recording costs who does not wait.
func BenchmarkNote(b *testing.B) {
	l := newBench(b).log
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		l.Note(large(n))
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}

// BenchmarkVerify recomputes a log of 20,000 entries with payloads of 1 KiB.
func BenchmarkVerify(b *testing.B) {
	const entries = 20_000
	bench := newBench(b)
	for n := range entries {
		bench.log.Note(large(n))
	}
	bench.commit()
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if r := bench.verify(); !r.OK || r.Entries != entries {
			b.Fatal(r.Bad)
		}
	}
	b.ReportMetric(float64(b.N*entries)/b.Elapsed().Seconds(), "entries/s")
}

// BenchmarkExport writes that log as a file, and checks the file.
func BenchmarkExport(b *testing.B) {
	const entries = 5_000
	bench := newBench(b)
	for n := range entries {
		bench.log.Note(large(n))
	}
	bench.commit()
	b.ResetTimer()
	for range b.N {
		r, w := io.Pipe()
		go func() { w.CloseWithError(bench.log.Export(b.Context(), w)) }()
		if report, err := audit.ReadExport(r, nil); err != nil || !report.OK {
			b.Fatal(report.Bad, err)
		}
	}
	b.ReportMetric(float64(b.N*entries)/b.Elapsed().Seconds(), "entries/s")
}
