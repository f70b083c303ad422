package relay

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"openmesh/overlay/overlaytest"
)

// demand is what one peer wants of a pacer.
type demand struct {
	name  string
	ways  int           // that ask at once
	chunk int           // bytes asked for at a time
	every time.Duration // a way wants a chunk; 0: greedy
	want  float64       // bytes per second that it gets of the 100,000
}

// Shares at a rate of 100,000 bytes per second.
func TestPacerShares(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name    string
		demands []demand
	}{
		{"one alone has all", []demand{{"a", 1, 4096, 0, 100_000}}},
		{"what is not wanted is not used", []demand{{"a", 1, 1000, 100 * time.Millisecond, 10_000}}},
		{"equals", []demand{{"a", 1, 4096, 0, 50_000}, {"b", 1, 4096, 0, 50_000}}},
		{"many circuits give no more", []demand{{"flooder", 32, 4096, 0, 50_000}, {"b", 1, 4096, 0, 50_000}}},
		{"large chunks give no more", []demand{{"flooder", 1, 65536, 0, 50_000}, {"b", 1, 1024, 0, 50_000}}},
		{"who wants less than his share gets it", []demand{{"flooder", 32, 4096, 0, 70_000}, {"b", 1, 1000, 100 * time.Millisecond, 10_000}, {"c", 1, 2000, 100 * time.Millisecond, 20_000}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { checkShares(t, tc.demands) })
		})
	}
}

func checkShares(t *testing.T, demands []demand) {
	p := newPacer(Rate{BytesPerSecond: 100_000, Burst: 10_000})
	gone := make(chan struct{})
	got := make([]atomic.Int64, len(demands))
	var all sync.WaitGroup
	const seconds = 50
	start := time.Now()
	end := start.Add(seconds * time.Second)
	for i, d := range demands {
		for range d.ways {
			f, w := p.join(peer.ID(d.name)), newWaiter()
			all.Go(func() {
				for next := start; time.Now().Before(end) && f.take(d.chunk, w, gone); time.Sleep(time.Until(next)) {
					got[i].Add(int64(d.chunk))
					next = next.Add(d.every)
				}
				f.leave()
			})
		}
	}
	time.Sleep(time.Until(end))
	close(gone)
	all.Wait()
	for i, d := range demands {
		if rate := float64(got[i].Load()) / seconds; rate < 0.97*d.want || rate > 1.03*d.want {
			t.Errorf("%s got %.0f bytes per second, want %.0f", d.name, rate, d.want)
		}
	}
	if len(p.queue) != 0 || len(p.flows) != 0 {
		t.Errorf("%d waiters and %d flows left behind", len(p.queue), len(p.flows))
	}
}

// A burst passes at once, and only after a pause again.
func TestPacerBurst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPacer(Rate{BytesPerSecond: 1000})
		f, w := p.join("a"), newWaiter()
		for _, step := range []struct {
			size int
			wait time.Duration
		}{{600, 0}, {400, 0}, {100, 100 * time.Millisecond}, {2000, time.Second}, {500, 1500 * time.Millisecond}} {
			start := time.Now()
			f.take(step.size, w, nil)
			if d := time.Since(start); d < step.wait || d > step.wait+time.Microsecond {
				t.Errorf("%d bytes took %v, want %v", step.size, d, step.wait)
			}
		}
	})
}

// source is a circuit that is filled for a while.
type source struct {
	s        network.Stream
	received *atomic.Int64 // by its destination
	chunk    int
	every    time.Duration // 0: greedy
}

// fill opens a circuit from src to a new destination.
func (l *lab) fill(src host.Host, chunk int, every time.Duration) *source {
	l.Helper()
	n := new(atomic.Int64)
	dst := l.listener(func(s network.Stream) { io.Copy(count{n}, s) })
	return &source{s: l.mustConnect(src, dst.ID()), received: n, chunk: chunk, every: every}
}

func (s *source) run() {
	for b := make([]byte, s.chunk); ; time.Sleep(s.every) {
		if _, err := s.s.Write(b); err != nil {
			return
		}
	}
}

type count struct{ n *atomic.Int64 }

func (c count) Write(b []byte) (int, error) { c.n.Add(int64(len(b))); return len(b), nil }

// rates runs sources for some time and returns the bytes per second that arrived
// of each, once the burst is over.
func rates(sources []*source) []float64 {
	var all sync.WaitGroup
	defer all.Wait()
	for _, s := range sources {
		all.Go(s.run)
	}
	seconds := 8
	if overlaytest.RaceEnabled {
		seconds = 3
	}
	time.Sleep(3 * time.Second)
	before := make([]int64, len(sources))
	for i, s := range sources {
		before[i] = s.received.Load()
	}
	time.Sleep(time.Duration(seconds) * time.Second)
	r := make([]float64, len(sources))
	for i, s := range sources {
		r[i] = float64(s.received.Load()-before[i]) / float64(seconds)
		s.s.Reset()
	}
	return r
}

// A relay keeps to its rates, and slows down without loss.
func TestRates(t *testing.T) {
	const limit = 200_000
	for _, tc := range []struct {
		name         string
		cfg          Config
		sources, out int     // circuits, and sources that they come from
		want         float64 // bytes per second together
	}{
		{"of all", Config{Rate: Rate{BytesPerSecond: limit}}, 3, 3, limit},
		{"of a peer", Config{RatePerPeer: Rate{BytesPerSecond: limit}}, 3, 1, limit},
		{"of each peer", Config{RatePerPeer: Rate{BytesPerSecond: limit}}, 3, 3, 3 * limit},
	} {
		t.Run(tc.name, func(t *testing.T) {
			overlaytest.Run(t, func(t *testing.T) {
				l := newLab(t, tc.cfg)
				var sources []*source
				var src host.Host
				for i := range tc.sources {
					if i < tc.out {
						src = l.peer()
					}
					sources = append(sources, l.fill(src, 16<<10, 0))
				}
				sum := 0.0
				for _, r := range rates(sources) {
					sum += r
				}
				if sum < 0.93*tc.want || sum > 1.07*tc.want {
					t.Errorf("%.0f bytes per second, want %.0f", sum, tc.want)
				}
			})
		})
	}
}

// One peer floods the relay over many circuits, both ways. Five others that want
// less than a sixth of the rate keep what they had before; five that want all
// they can get have an equal share with it.
func TestFlooder(t *testing.T) {
	const limit = 300_000
	for _, tc := range []struct {
		name  string
		every time.Duration // between chunks of 4 KiB of a normal peer
		least float64       // of what a normal peer had without the flooder
	}{
		{"modest peers", 100 * time.Millisecond, 0.9},
		{"greedy peers", 0, 0.9 * 5 / 6},
	} {
		t.Run(tc.name, func(t *testing.T) {
			overlaytest.Run(t, func(t *testing.T) {
				l := newLab(t, Config{Rate: Rate{BytesPerSecond: limit}})
				normals := func() (s []*source) {
					for range 5 {
						s = append(s, l.fill(l.peer(), 4<<10, tc.every))
					}
					return s
				}
				alone := rates(normals())
				flooded := rates(append(normals(), l.flood(12)...))
				for i := range alone {
					if kept := flooded[i] / alone[i]; kept < tc.least {
						t.Errorf("peer %d had %.0f bytes per second, and %.0f (%.0f %%) under the flood", i, alone[i], flooded[i], 100*kept)
					}
				}
			})
		})
	}
}

// flood returns greedy circuits from one peer to as many destinations, which
// send back all that they can.
func (l *lab) flood(circuits int) (s []*source) {
	l.Helper()
	flooder := l.peer()
	for range circuits {
		n := new(atomic.Int64)
		dst := l.listener(func(s network.Stream) {
			go io.Copy(s, zeros{})
			io.Copy(count{n}, s)
		})
		c := l.mustConnect(flooder, dst.ID())
		go io.Copy(io.Discard, c)
		s = append(s, &source{s: c, received: n, chunk: 64 << 10})
	}
	return s
}

// Under a flood from one peer to another, that one's rate still serves its other
// circuits.
func TestVictimOfFlooder(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		const limit = 200_000
		l := newLab(t, Config{RatePerPeer: Rate{BytesPerSecond: limit}})
		n := make(chan *atomic.Int64, 16)
		victim := l.listener(func(s network.Stream) { io.Copy(count{<-n}, s) })
		to := func(src host.Host) *source {
			received := new(atomic.Int64)
			n <- received
			return &source{s: l.mustConnect(src, victim.ID()), received: received, chunk: 16 << 10}
		}
		friend, flooder := l.peer(), l.peer()
		sources := []*source{to(friend)}
		for range 4 {
			sources = append(sources, to(flooder))
		}
		if got := rates(sources)[0]; got < 0.9*limit/2 || got > 1.1*limit/2 {
			t.Errorf("the friend gets %.0f bytes per second of %d, want half", got, limit)
		}
	})
}

func BenchmarkPacer(b *testing.B) {
	for _, rate := range []Rate{{}, {BytesPerSecond: 1 << 50}} {
		b.Run(fmt.Sprintf("rate=%d", rate.BytesPerSecond), func(b *testing.B) {
			f, w := newPacer(rate).join("a"), newWaiter()
			b.SetBytes(largeBuffer)
			for b.Loop() {
				f.take(largeBuffer, w, nil)
			}
		})
	}
}

// What passes by other means comes out of the same rates, and many ways of one peer
// get one share.
func TestPace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cfg := Config{Rate: Rate{BytesPerSecond: 100_000, Burst: 10_000}, RatePerPeer: Rate{BytesPerSecond: 60_000, Burst: 6000}}.withDefaults()
		r := &Relay{cfg: cfg, total: newPacer(cfg.Rate), book: newBook(cfg)}
		ctx, stop := context.WithTimeout(t.Context(), 50*time.Second)
		defer stop()
		var got [3]atomic.Int64
		var all sync.WaitGroup
		for i, ways := range []int{8, 1, 1} {
			for range ways {
				all.Go(func() {
					for r.Pace(ctx, peer.ID(fmt.Sprint("peer ", min(i, 1))), 4096) == nil {
						got[i].Add(4096)
					}
				})
			}
		}
		all.Wait()
		flooder, other := got[0].Load()/50, (got[1].Load()+got[2].Load())/50
		if flooder < 45_000 || flooder > 55_000 || other < 45_000 || other > 55_000 {
			t.Errorf("%d and %d bytes a second, want 50000 each", flooder, other)
		}
		for len(r.book.accounts) > 0 { // they go as others come
			delete(r.book.accounts, r.book.idle.Remove(r.book.idle.Back()).(*account).peer)
		}
		alone, quit := context.WithTimeout(t.Context(), 10*time.Second)
		defer quit()
		n := 0
		for r.Pace(alone, "alone", 4096) == nil {
			n += 4096
		}
		if n < 55*10_000 || n > 62*10_000 {
			t.Errorf("one alone got %d bytes in 10 s, want its own rate, 60000 a second", n)
		}
	})
}
