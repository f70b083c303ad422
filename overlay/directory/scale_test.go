package directory_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"openmesh/overlay/directory"
	"openmesh/overlay/overlaytest"
)

// Every capability is found from every node, also from one that joins last, and
// in how many round trips.
func TestEveryoneFindsEverything(t *testing.T) {
	servers, nodes, capabilities := 12, 100, 20
	if overlaytest.RaceEnabled || testing.Short() {
		servers, nodes, capabilities = 5, 16, 8
	}
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t)
		all := m.backbone(servers)
		m.list(m.bootstrap()[:3]...) // the others have to be found
		for len(all) < nodes {
			all = append(all, m.node())
		}
		names := make(map[string]string) // capability → who offers it
		for i := range capabilities / 2 {
			n := all[i*7%nodes] // two each
			a, b := fmt.Sprintf("area-%d/skill-%d", i%4, i), fmt.Sprintf("area-%d/art-%d", i%4, i)
			n.offer(t, capability(a, "1.2.3"), capability(b, "1.2.3"))
			names[a], names[b] = n.label(a, "1.2.3"), n.label(b, "1.2.3")
		}
		wait(30 * time.Second)
		lookups := make(map[string][]time.Duration)
		for name, want := range names {
			lookups["first"] = append(lookups["first"], findEverywhere(t, all, name, want)...)
		}
		began := time.Now()
		last := m.node() // asks at once
		for name, want := range names {
			lookups["late joiner"] = append(lookups["late joiner"], findEverywhere(t, []*node{last}, name, want)...)
		}
		t.Logf("late joiner found all within %v of its start", time.Since(began))
		for kind, ds := range lookups {
			slices.Sort(ds)
			t.Logf("%s: %d lookups, round trips: median %.1f, worst %.1f", kind, len(ds), trips(ds[len(ds)/2]), trips(ds[len(ds)-1]))
		}
	})
}

func trips(d time.Duration) float64 { return float64(d) / float64(rtt) }

func findEverywhere(t *testing.T, from []*node, name, want string) (took []time.Duration) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i, n := range from {
		wg.Go(func() {
			res, err := n.Discover(t.Context(), directory.Query{Capability: name})
			if err != nil || !slices.Equal(labels(res.Rows), []string{want}) {
				t.Errorf("node %d found %v, %v; want %s", i, labels(res.Rows), err, want)
			}
			mu.Lock()
			defer mu.Unlock()
			took = append(took, res.Elapsed)
		})
	}
	wg.Wait()
	return took
}

// wait lets virtual time pass.
func wait(d time.Duration) { <-time.After(d) }
