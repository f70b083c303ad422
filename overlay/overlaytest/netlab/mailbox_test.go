//go:build linux

package netlab_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/overlay/overlaytest/netlab"
)

// office is a mesh in which ten agents call b, which has mailboxes at both relays.
type office struct {
	*netlab.Mesh
	b       *netlab.Daemon
	callers []*caller
	work    *counter // b's
}

// caller is an agent that calls b, with a number of its own.
type caller struct {
	*netlab.Daemon
	n       int
	qos     string
	session string // of its call
}

const (
	callerCount = 10
	outOfOffice = callerCount - 1 // the caller that is away when b is back
)

// Calls to an agent that is away wait in its mailboxes. When it is back, though one of
// the relays was destroyed meanwhile, each has been worked on once, and each caller
// learns its answer, by mail if it is away itself by then.
func TestMailboxes(t *testing.T) {
	t.Parallel()
	m := newOffice(t, nil)
	m.b.Stop()
	m.callAll(t)
	m.awaitLetters(t, m.Relays[0], callerCount)
	m.awaitLetters(t, m.Relays[1], callerCount)
	m.callers[outOfOffice].Stop()
	destroy(t, m.Relays[0])
	m.b.Restart()
	m.checkAnswers(t)
	m.checkAnswerByMail(t)
}

// Relays that share a database share the mailboxes: what one has taken another gives,
// though the first was destroyed and the second could not be reached before.
func TestMailboxesShared(t *testing.T) {
	t.Parallel()
	if os.Getenv(postgresEnv) == "" {
		t.Skipf("%s asks for no PostgreSQL", postgresEnv)
	}
	m := newOffice(t, map[string]string{"OPENMESH_STORAGE_URL": newPostgres(t)})
	m.b.Stop()
	m.Relays[1].Host.Link(false)
	m.callAll(t)
	m.awaitLetters(t, m.Relays[0], callerCount)
	m.callers[outOfOffice].Stop()
	destroy(t, m.Relays[0])
	m.Relays[1].Host.Link(true)
	m.b.Restart()
	m.checkAnswers(t)
	m.checkAnswerByMail(t)
}

// newOffice returns when all have their mailboxes, and half of the callers a session
// with b. The environment is that of the relays.
func newOffice(t *testing.T, env map[string]string) *office {
	t.Helper()
	lab := netlab.New(t)
	lab.Cloud(netlab.Link{Delay: 5 * time.Millisecond})
	m := &office{Mesh: &netlab.Mesh{Lab: lab}, work: newCounter()}
	m.Backbone = lab.Backbone(lab.Host("backbone"), nil)
	for i, name := range []string{"relay1", "relay2"} {
		m.Relays[i] = lab.Relay(lab.Host(name), maps.Clone(env))
	}
	host := lab.Host("b")
	m.b = lab.Daemon(host, "b", nil, "--capability", m.work.offer(t, lab, host))
	house := lab.Host("callers")
	for n := range callerCount {
		port := 5000 + n
		d := lab.Daemon(house, fmt.Sprint("caller", n), map[string]string{
			"OPENMESH_NETWORKING_LISTEN": fmt.Sprintf("/ip4/%[1]s/tcp/%[2]d,/ip4/%[1]s/udp/%[2]d/quic-v1", house.Addr, port),
		})
		m.callers = append(m.callers, &caller{Daemon: d, n: n, qos: []string{"at-least-once", "exactly-once"}[n*2/callerCount]})
	}
	awaitRelays(t, m.b, (*openmeshv1.Relay).GetMailbox, m.Relays[:]...)
	for _, c := range m.callers {
		awaitRelays(t, c.Daemon, (*openmeshv1.Relay).GetMailbox, m.Relays[:]...)
	}
	for i := 0; i < callerCount; i += 2 {
		if err := m.callers[i].call(m.b, callerCount+i/2, 20*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// call calls b with a number.
func (c *caller) call(b *netlab.Daemon, n int, atMost time.Duration) error {
	_, err := c.CLI("call", b.Ready.Agent, fmt.Sprintf(`{"n": %d}`, n), "--capability", capability,
		"--qos", c.qos, "--key", key(n), "--timeout", atMost.String())
	return err
}

// callAll has all callers call b, which is away: each is told that there was no answer
// in time.
func (m *office) callAll(t *testing.T) {
	t.Helper()
	errs := make([]error, callerCount)
	var all sync.WaitGroup
	for i, c := range m.callers {
		all.Go(func() { errs[i] = c.call(m.b, c.n, 8*time.Second) })
	}
	all.Wait()
	for i, c := range m.callers {
		var exit *exec.ExitError
		if !errors.As(errs[i], &exit) || exit.ExitCode() != 6 {
			t.Fatalf("caller %d: %v, want exit code 6", i, errs[i])
		}
		client := dial(t, c.Daemon)
		for _, s := range sessions(t, client, m.b) {
			if s.Qos == c.qos {
				c.session = s.Session
			}
		}
		if c.session == "" {
			t.Fatalf("caller %d has no session with b", i)
		}
	}
}

// awaitLetters waits until a relay keeps so many letters.
func (m *office) awaitLetters(t *testing.T, relay *netlab.Daemon, want uint32) {
	t.Helper()
	client := dial(t, relay)
	await(t, fmt.Sprintf("%s keeps %d letters", relay.Host.Name, want), 40*time.Second, func() bool {
		resp, err := client.Node.Relays(t.Context(), &openmeshv1.RelaysRequest{})
		check(t, err)
		return resp.GetUsage().GetLetters() == want
	})
}

// destroy ends a daemon at once and removes all that it had.
func destroy(t *testing.T, d *netlab.Daemon) {
	t.Helper()
	d.Kill()
	check(t, os.RemoveAll(d.Home))
}

// checkAnswers checks that all calls are worked on once, and that the callers that are
// there learn their answers.
func (m *office) checkAnswers(t *testing.T) {
	t.Helper()
	const numbers = callerCount + callerCount/2
	back := time.Now()
	m.work.await(numbers, 30*time.Second)
	t.Logf("all were worked on %s after b was back", round(time.Since(back)))
	for _, c := range m.callers[:outOfOffice] {
		c.checkAnswer(t)
	}
	t.Logf("all that were there had their answers %s after b was back", round(time.Since(back)))
	if missing, twice := m.work.faults(numbers); len(missing)+len(twice) > 0 {
		t.Errorf("lost %v, worked on more than once %v", missing, twice)
	}
	for n := range numbers {
		if times := m.work.times(n); times > 1 {
			t.Errorf("number %d was worked on %d times", n, times)
		}
	}
}

// checkAnswer checks that the caller learns its answer.
func (c *caller) checkAnswer(t *testing.T) {
	t.Helper()
	out, err := c.CLI("session", "outcome", c.session, key(c.n), "--wait=25s")
	if err != nil {
		t.Fatalf("caller %d: %v", c.n, err)
	}
	var got struct {
		Status   string
		Response *number
	}
	if err := json.Unmarshal(out, &got); err != nil || got.Status != "delivered" || got.Response == nil || got.Response.N != c.n {
		t.Errorf("caller %d: the outcome is %s: %v", c.n, out, err)
	}
}

// checkAnswerByMail has b go away once it has left the answer for the caller that was
// away, which then comes back and learns it.
func (m *office) checkAnswerByMail(t *testing.T) {
	t.Helper()
	m.awaitLetters(t, m.Relays[1], 1)
	m.b.Stop()
	away := m.callers[outOfOffice]
	away.Restart()
	away.checkAnswer(t)
}
