//go:build linux

package netlab_test

import (
	"encoding/binary"
	"io"
	"net"
	"slices"
	"syscall"
	"testing"
	"time"

	"openmesh/overlay/overlaytest/netlab"
)

// A packet takes the time that the test says, and firewalls hold there too.
func TestDelay(t *testing.T) {
	t.Parallel()
	const oneWay = 20 * time.Millisecond
	lab := netlab.New(t)
	lab.Cloud(netlab.Link{Delay: oneWay})
	a, b := lab.Host("a"), lab.Host("b")
	echo(t, b.Listen(addr(b, 80)))
	flow := connect(t, a, "tcp", addr(b, 80))
	trips := roundTrips(t, flow, 20)
	if trips[0] < 2*oneWay || trips[len(trips)/2] > 2*oneWay+100*time.Millisecond {
		t.Errorf("there and back took %s to %s, want %s", trips[0], trips[len(trips)-1], 2*oneWay)
	}
	b.Firewall().Drop("tcp", 80)
	if got := outcome(exchange(flow, lost)); got != "dead" {
		t.Errorf("with the port dropped the flow is %s", got)
	}
}

// roundTrips has words echoed and returns how long each took, sorted.
func roundTrips(t *testing.T, flow net.Conn, n int) []time.Duration {
	t.Helper()
	var all []time.Duration
	for range n {
		start := time.Now()
		check(t, exchange(flow, soon))
		all = append(all, time.Since(start))
	}
	slices.Sort(all)
	return all
}

// Jitter makes trips differ and keeps packets in order.
func TestJitter(t *testing.T) {
	t.Parallel()
	const oneWay, jitter = 5 * time.Millisecond, 40 * time.Millisecond
	got := arrivals(t, netlab.Link{Delay: oneWay, Jitter: jitter}, 1000)
	if len(got) != 1000 || !slices.IsSorted(got) {
		t.Errorf("%d of 1000 packets came; in order: %t", len(got), slices.IsSorted(got))
	}
	lab := netlab.New(t)
	lab.Cloud(netlab.Link{Delay: oneWay, Jitter: jitter})
	a, b := lab.Host("a"), lab.Host("b")
	echoPackets(t, b, addr(b, 80))
	trips := roundTrips(t, connect(t, a, "udp", addr(b, 80)), 40)
	low, high := trips[4], trips[35] // 10 % and 90 %: 29 ms and 61 ms if all is even
	if low < 2*oneWay || low > 2*oneWay+jitter || high-low < jitter/4 {
		t.Errorf("most trips took %s to %s", low, high)
	}
}

// So many packets are lost as the test says: the same each time, unless the seed
// is another.
func TestLoss(t *testing.T) {
	t.Parallel()
	const sent, loss = 2000, 0.2
	link := netlab.Link{Delay: time.Millisecond, Loss: loss}
	first := arrivals(t, link, sent)
	if n := len(first); n < sent*0.75 || n > sent*0.85 {
		t.Errorf("%d of %d packets came, with a loss of %v", n, sent, loss)
	}
	if again := arrivals(t, link, sent); !slices.Equal(again, first) {
		t.Errorf("at first %d packets came, then %d, and not the same", len(first), len(again))
	}
	link.Seed = 1
	if other := arrivals(t, link, sent); slices.Equal(other, first) {
		t.Error("with another seed the same packets were lost")
	}
}

// arrivals sends numbered packets from one host to another in a lab of their own
// and returns those that come.
func arrivals(t *testing.T, link netlab.Link, n uint32) (got []uint32) {
	t.Helper()
	lab := netlab.New(t)
	lab.Cloud(link)
	a, b := open(t, lab.Host("a"), 1), open(t, lab.Host("b"), 1)
	check(t, b.SetReadBuffer(4<<20))
	for i := range n {
		_, err := a.WriteToUDPAddrPort(binary.BigEndian.AppendUint32(nil, i), b.addr)
		check(t, err)
	}
	for packet := make([]byte, 4); ; {
		check(t, b.SetReadDeadline(time.Now().Add(link.Delay+link.Jitter+2*lost)))
		if _, _, err := b.ReadFromUDPAddrPort(packet); err != nil {
			return got
		}
		got = append(got, binary.BigEndian.Uint32(packet))
	}
}

// BenchmarkCloud sends a TCP stream from one host to another, 1 MiB at a time, and
// reports what CPU time that takes, of all that is involved.
func BenchmarkCloud(b *testing.B) {
	for name, link := range map[string]netlab.Link{
		"no delay": {}, "20ms": {Delay: 20 * time.Millisecond},
		"single packets": {Loss: 1e-12}, "20ms 0.01%": {Delay: 20 * time.Millisecond, Loss: 0.0001},
	} {
		b.Run(name, func(b *testing.B) {
			lab := netlab.New(b)
			lab.Cloud(link)
			from, to := lab.Host("from"), lab.Host("to")
			listener := to.Listen(addr(to, 80))
			conn, err := from.Dial(b.Context(), "tcp", addr(to, 80))
			if err != nil {
				b.Fatal(err)
			}
			defer conn.Close()
			taken, err := listener.Accept()
			if err != nil {
				b.Fatal(err)
			}
			defer taken.Close()
			go io.Copy(writerOnly{conn}, endless{}) // until it is closed
			buf := make([]byte, 1<<20)
			b.SetBytes(int64(len(buf)))
			before := cpu()
			for b.Loop() {
				if _, err := io.ReadFull(taken, buf); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric((cpu()-before).Seconds()/b.Elapsed().Seconds(), "cores")
		})
	}
}

// writerOnly hides how else a connection could be filled.
type writerOnly struct{ io.Writer }

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// cpu is what the process has used.
func cpu() time.Duration {
	var used syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &used) // of oneself it does not fail
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
