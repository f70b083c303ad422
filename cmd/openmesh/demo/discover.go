package demo

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// expect checks that exactly these offers were found.
func (n *node) expect(f found, want []string) error {
	got := f.offers()
	if slices.Equal(got, want) {
		return nil
	}
	return n.errorf("found %d offers, want %d; missing: %q; not expected: %q",
		len(got), len(want), without(want, got), without(got, want))
}

// without returns what is in all and not in these.
func without(all, these []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(s string) bool { return slices.Contains(these, s) })
}

// joinLast: an agent that joins when all has been said finds everything at once.
func (m *mesh) joinLast(ctx context.Context, s *Step) error {
	n := m.consumer()
	if err := m.enter(ctx, n); err != nil {
		return err
	}
	f, err := n.discover(ctx, family, "")
	if err != nil {
		return err
	}
	want := offered(m.providers(), family)
	if err := n.expect(f, want); err != nil {
		return err
	}
	s.Facts["key"], s.Facts["found"], s.Facts["discover_ms"] = family, len(want), f.elapsedMs
	s.Say(fmt.Sprintf("%s came after all others, and its first question found all %d offers in %s", n.name, len(want), ms(f.elapsedMs)))
	return nil
}

func (m *mesh) discoverName(ctx context.Context, s *Step) error {
	return m.ask(ctx, s, sumName, "")
}

func (m *mesh) discoverPrefix(ctx context.Context, s *Step) error {
	return m.ask(ctx, s, path.Dir(sumName), "")
}

// ask lets the consumer discover, and checks and tells what it finds.
func (m *mesh) ask(ctx context.Context, s *Step, key, version string) error {
	n := m.consumer()
	f, err := n.discover(ctx, key, version)
	if err != nil {
		return err
	}
	if err := n.expect(f, offered(m.providers(), key)); err != nil {
		return err
	}
	rows := []map[string]any{}
	var who []string
	for _, r := range f.rows {
		if r.Reachability != "direct" {
			return n.errorf("reaches %s %s, want direct", r.Address, r.Reachability)
		}
		rows = append(rows, map[string]any{
			"agent": r.Agent, "address": r.Address, "name": r.Name, "version": r.Version,
			"latency_ms": r.LatencyMs, "reachability": r.Reachability, "key_version": r.KeyVersion,
		})
		who = append(who, fmt.Sprintf("%s has %s, %s away", m.nameOf(r.Agent), r.Version, ms(r.LatencyMs)))
	}
	s.Facts["by"], s.Facts["key"], s.Facts["discover_ms"], s.Facts["results"] = n.name, key, f.elapsedMs, rows
	s.Say(fmt.Sprintf("%s asked for %s: %s; in %s", n.name, strings.TrimSpace(key+" "+version), some(who), ms(f.elapsedMs)))
	return nil
}

// some joins the first few.
func some(all []string) string {
	const few = 2
	if len(all) > few {
		return fmt.Sprintf("%s and %d more", strings.Join(all[:few], ", "), len(all)-few)
	}
	return strings.Join(all, ", ")
}

func (m *mesh) nameOf(agent string) string {
	for _, n := range m.nodes() {
		if n.id.Agent == agent {
			return n.name
		}
	}
	return agent
}

// discoverVersion: a range finds what is in it, and nothing else.
func (m *mesh) discoverVersion(ctx context.Context, s *Step) error {
	const in, out = "^1.2", ">=2"
	if err := m.ask(ctx, s, sumName, in); err != nil {
		return err
	}
	n := m.consumer()
	f, err := n.discover(ctx, sumName, out)
	if err != nil {
		return err
	}
	if err := n.expect(f, []string{}); err != nil {
		return fmt.Errorf("version %s: %w", out, err)
	}
	s.Facts["range"], s.Facts["range_without_results"] = in, out
	s.Detail += fmt.Sprintf("; for %s: none, as it should be", out)
	return nil
}

// discoverAlike: what is found depends neither on who asks nor on when it
// joined. All ask at the same time. The directory is eventually consistent: who
// could not reach a provider at once asks again, and the record tells.
func (m *mesh) discoverAlike(ctx context.Context, s *Step) error {
	want := offered(m.providers(), family)
	var mu sync.Mutex
	var slowest float64
	questions := map[string]int{}
	group, ctx := errgroup.WithContext(ctx)
	for _, n := range m.agents {
		group.Go(func() error {
			asked, start := 0, time.Now()
			err := until(ctx, func(ctx context.Context) error {
				asked++
				f, err := n.discover(ctx, family, "")
				if err != nil {
					return err
				}
				return n.expect(f, want)
			})
			mu.Lock()
			defer mu.Unlock()
			questions[n.name], slowest = asked, max(slowest, millis(time.Since(start)))
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	s.Facts["key"], s.Facts["found"], s.Facts["questions"], s.Facts["slowest_ms"] = family, len(want), questions, slowest
	s.Say(fmt.Sprintf("all %d agents asked at the same time and see the same %d offers, the slowest in %s%s",
		len(m.agents), len(want), ms(slowest), repeats(questions)))
	return nil
}

// repeats tells who had to ask more than once.
func repeats(questions map[string]int) string {
	var who []string
	for name, asked := range questions {
		if asked > 1 {
			who = append(who, name)
		}
	}
	if who == nil {
		return ""
	}
	slices.Sort(who)
	return fmt.Sprintf(" (asked more than once: %s)", some(who))
}

// leaver is the agent that goes and comes back. No other offers what it does:
// of a key that has providers, a node may believe for cacheTTL that there are no
// more.
func (m *mesh) leaver() *node { return m.offering(countName)[0] }

// leave: a provider that stops withdraws, and the directory forgets it. What a
// node has been told before, it may believe for cacheTTL.
func (m *mesh) leave(ctx context.Context, s *Step) error {
	gone := m.leaver()
	start := time.Now()
	if err := gone.stop(ctx); err != nil {
		return err
	}
	drained := time.Since(start)
	ctx, cancel := context.WithDeadline(ctx, start.Add(cacheTTL))
	defer cancel()
	if err := m.askAfresh(ctx, gone, false); err != nil {
		return err
	}
	took := millis(time.Since(start))
	s.Facts["agent"], s.Facts["drain_ms"], s.Facts["gone_ms"] = gone.name, millis(drained), took
	s.Facts["cache_ttl_ms"], s.Facts["exit_code"] = millis(cacheTTL), gone.proc.cmd.ProcessState.ExitCode()
	s.Say(fmt.Sprintf("%s got SIGTERM, withdrew and exited 0 in %s; gone from the directory after %s (who had asked before forgets within %s)",
		gone.name, ms(millis(drained)), ms(took), cacheTTL))
	return nil
}

// askAfresh lets two nodes ask, each under a key that it had no answer for
// while the leaver was there, until both find it or both do not.
func (m *mesh) askAfresh(ctx context.Context, leaver *node, there bool) error {
	group, ctx := errgroup.WithContext(ctx)
	for key, n := range map[string]*node{countName: m.backbone, path.Dir(countName): m.consumer()} {
		group.Go(func() error {
			return until(ctx, func(ctx context.Context) error {
				f, err := n.discover(ctx, key, "")
				if err == nil && f.has(leaver) != there {
					err = n.errorf("asked for %s: %s found is %t, want %t", key, leaver.name, !there, there)
				}
				return err
			})
		})
	}
	return group.Wait()
}

// has reports whether n is among those found.
func (f found) has(n *node) bool {
	for _, r := range f.rows {
		if r.Agent == n.id.Agent {
			return true
		}
	}
	return false
}

// comeBack: started on its home again, an agent is who it was, and is found and
// reached by those who knew it before.
func (m *mesh) comeBack(ctx context.Context, s *Step) error {
	n := m.leaver()
	start := time.Now()
	if err := m.enter(ctx, n); err != nil { // checks address, agent id and peer id
		return err
	}
	ready := time.Since(start)
	if err := m.askAfresh(ctx, n, true); err != nil {
		return err
	}
	back := time.Since(start)
	c, err := m.call(ctx, n.id.Address, countName, map[string]any{"text": "here again"})
	if err != nil {
		return err
	}
	if c.res.Agent != n.id.Agent || c.answer["words"] != 2.0 {
		return n.errorf("answered %v as %s", c.answer, c.res.Agent)
	}
	s.Facts["agent"], s.Facts["address"], s.Facts["ready_ms"], s.Facts["found_ms"] = n.name, n.id.Address, millis(ready), millis(back)
	s.Facts["call_ms"], s.Facts["session"] = c.res.ElapsedMs, c.res.Session
	s.Say(fmt.Sprintf("%s on its home again: still %s, found again after %s, called in %s over a new session",
		n.name, n.id.Address, ms(millis(back)), ms(c.res.ElapsedMs)))
	return nil
}
