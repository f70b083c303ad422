package forward

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"openmesh/overlay/overlaytest"
	"openmesh/protocols/wire"
)

// Over chains of each length: the circuit carries bytes, and each relay sees its
// neighbours, one envelope each way of the same size, and nothing to read.
func TestPath(t *testing.T) {
	for relays := 1; relays <= MaxHops; relays++ {
		t.Run(fmt.Sprint(relays), func(t *testing.T) {
			overlaytest.Run(t, func(t *testing.T) {
				m := newMesh(t, relays+2, nil)
				c := m.mustDial()
				secret := bytes.Repeat([]byte("nobody but the target reads this. "), 3000)
				go c.Write(secret)
				got := make([]byte, len(secret))
				_, err := io.ReadFull(c, got)
				check(t, err)
				if !bytes.Equal(got, secret) || c.Peer() != m.nodes[relays+1].Peer || c.Protocol() != echoProtocol || len(c.Hops()) != relays {
					t.Error("the circuit carries something else, or to somebody else")
				}
				check(t, c.CloseWrite())
				if rest, err := io.ReadAll(c); err != nil || len(rest) != 0 {
					t.Errorf("after the end: %d bytes, %v", len(rest), err)
				}
				check(t, c.Close())
				m.wantNoCircuits()
				for i := range relays {
					m.checkView(i+1, secret[:34])
				}
			})
		})
	}
}

// checkView checks what relay i, in the middle of a line, has seen of one circuit.
func (m *mesh) checkView(i int, secret []byte) {
	m.t.Helper()
	n := m.nodes[i]
	if len(n.views) != 2 || n.views[0].remote != m.nodes[i-1].Peer || n.views[1].remote != m.nodes[i+1].Peer {
		m.t.Fatalf("relay %d has %d streams, or to others than its neighbours", i, len(n.views))
	}
	before, after := n.views[0], n.views[1]
	if before.read.Len() != after.had.Len() || after.read.Len() != before.had.Len() {
		m.t.Errorf("relay %d read %d and %d bytes and wrote %d and %d", i, before.read.Len(), after.read.Len(), after.had.Len(), before.had.Len())
	}
	ahead, back := before.read.Bytes()[EnvelopeSize:], after.read.Bytes()[2+StatusSize:]
	if !bytes.Equal(ahead, after.had.Bytes()[EnvelopeSize:]) || !bytes.Equal(back, before.had.Bytes()[2+StatusSize:]) {
		m.t.Errorf("relay %d changed the records", i)
	}
	for _, b := range [][]byte{before.read.Bytes(), after.read.Bytes(), before.had.Bytes(), after.had.Bytes()} {
		if bytes.Contains(b, secret) || bytes.Contains(b, []byte(echoProtocol)) {
			m.t.Errorf("relay %d can read what passes", i)
		}
		for _, other := range m.nodes {
			if bytes.Contains(b, []byte(other.Peer)) {
				m.t.Errorf("relay %d sees the peer id of %s", i, other.Peer)
			}
		}
	}
}

// The setup costs one round trip along the chain where connections are there.
func TestSetupIsOneRoundTrip(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t, 5, nil)
		m.mustDial().Close()
		start := time.Now()
		c, err := m.dial(m.path(4))
		check(t, err)
		defer c.Close()
		if took := time.Since(start); took > 4*2*oneWay+20*time.Millisecond {
			t.Errorf("four streams of %v each took %v", 2*oneWay, took)
		}
	})
}

func TestRefusals(t *testing.T) {
	denied := wire.Errorf(wire.PolicyViolation, "not here")
	for name, tc := range map[string]struct {
		change    func(i int, c *Config)
		prepare   func(m *mesh)
		path      func(m *mesh) Path
		code      wire.Code
		place, by int
	}{
		"a hop that is no relay": {
			change: func(i int, c *Config) { c.Relay = i != 2 },
			code:   wire.Unsupported, place: 2, by: 2,
		},
		"a hop that does not forward at all": {
			prepare: func(m *mesh) { m.nodes[3].stop() },
			code:    wire.Unsupported, place: 3, by: 2,
		},
		"a target that does not speak the protocol": {
			change: func(i int, c *Config) {
				if i == 4 {
					c.Accept = nil
				}
			},
			code: wire.Unsupported, place: 4, by: 4,
		},
		"policy": {
			change: func(i int, c *Config) {
				c.Allow = func(from, to peer.ID) error {
					if i == 3 {
						return denied
					}
					return nil
				}
			},
			code: wire.PolicyViolation, place: 3, by: 3,
		},
		"a peer that asks for too much": {
			change: func(i int, c *Config) {
				c.Quota = func(peer.ID) Quota {
					if i == 2 {
						return Quota{}
					}
					return Quota{Circuits: 16}
				}
			},
			code: wire.ResourceExhausted, place: 2, by: 1,
		},
		"a hop with another key": {
			path: func(m *mesh) Path {
				p := m.path(4)
				p.Hops[1].Key = newHost(m.t).Key
				return p
			},
			code: wire.Unauthenticated, place: 2, by: 1,
		},
		"a path back to its source": {
			path: func(m *mesh) Path {
				p := m.path(4)
				p.Hops[1] = m.nodes[0].Hop
				return p
			},
			code: wire.InvalidArgument, place: 1, by: 1,
		},
		"a dead first relay": {
			prepare: func(m *mesh) { m.net.Cut(m.nodes[1].Host, true) },
			code:    wire.Unreachable, place: 1, by: 0,
		},
		"a dead relay in the middle": {
			prepare: func(m *mesh) { m.net.Cut(m.nodes[2].Host, true) },
			code:    wire.Unreachable, place: 2, by: 1,
		},
		"a relay that died on an open connection": {
			prepare: func(m *mesh) {
				m.mustDial().Close()
				m.wantNoCircuits()
				m.net.Cut(m.nodes[3].Host, true)
			},
			code: wire.Unreachable, place: 3, by: 2,
		},
		"a dead target": {
			prepare: func(m *mesh) { m.nodes[4].Host.Close() },
			code:    wire.Unreachable, place: 4, by: 3,
		},
	} {
		t.Run(name, func(t *testing.T) {
			overlaytest.Run(t, func(t *testing.T) {
				m := newMesh(t, 5, tc.change)
				if tc.prepare != nil {
					tc.prepare(m)
				}
				p := m.path(4)
				if tc.path != nil {
					p = tc.path(m)
				}
				start := time.Now()
				_, err := m.dial(p)
				wantFault(t, err, tc.code, tc.place, tc.by)
				if took := time.Since(start); took > dialTime+aliveTime+time.Second {
					t.Errorf("that took %v", took)
				}
				m.wantNoCircuits()
			})
		})
	}
}

// raw hands an envelope to the first relay and returns the status for the source.
func (m *mesh) raw(envelope []byte, shared []*keys) (status, int, error) {
	m.t.Helper()
	st, err := handOn(m.t.Context(), m.nodes[0], m.nodes[1].Peer, nil, envelope)
	if err != nil {
		return status{}, 0, err
	}
	defer st.Reset()
	cell, err := await(st)
	if err != nil {
		return status{}, 0, err
	}
	s, place, ok := peelStatus(shared, cell)
	if !ok {
		m.t.Error("a status of nobody")
	}
	return s, place + 1, nil
}

func TestOldEnvelopes(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t, 4, nil)
		m.mustDial().Close()
		for name, tc := range map[string]struct {
			made time.Duration // ago
			want wire.Code
		}{
			"fresh":                    {0, 0},
			"expired":                  {5 * time.Minute, wire.Replayed},
			"for a time to come":       {-5 * time.Minute, wire.Replayed},
			"of a clock that is wrong": {time.Minute, 0},
		} {
			envelope, shared, err := newEnvelope(m.path(3), echoProtocol, time.Now().Add(-tc.made))
			check(t, err)
			if s, place, err := m.raw(envelope, shared); err != nil || s.code != tc.want || s.code != 0 && place != 1 {
				t.Errorf("%s: %+v of hop %d, %v", name, s, place, err)
			}
			if s, place, err := m.raw(envelope, shared); err != nil || s.code != wire.Replayed || place != 1 {
				t.Errorf("%s, again: %+v of hop %d, %v", name, s, place, err)
			}
		}
		// A relay may keep what it passed on, and send it again.
		kept := bytes.Clone(m.nodes[1].views[1].had.Bytes()[:EnvelopeSize])
		st, err := handOn(t.Context(), m.nodes[1], m.nodes[2].Peer, nil, kept)
		check(t, err)
		defer st.Reset()
		if _, err := await(st); err != nil {
			t.Errorf("no status to a replay: %v", err)
		}
		if len(m.nodes[3].views) != 3 {
			t.Errorf("the target has %d streams of 3 paths", len(m.nodes[3].views))
		}
	})
}

// A replay finds no way even when a target has restarted and forgotten: what is
// sent again does not open.
func TestReplayAfterRestart(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t, 3, nil)
		m.mustDial().Close()
		kept := bytes.Clone(m.nodes[1].views[1].had.Bytes())
		m.nodes[2].server.seen = seen{}
		st, err := handOn(t.Context(), m.nodes[1], m.nodes[2].Peer, nil, kept[:EnvelopeSize])
		check(t, err)
		defer st.Reset()
		_, err = await(st)
		check(t, err)
		_, err = st.Write(kept[EnvelopeSize:])
		check(t, err)
		rest, _ := io.ReadAll(st)
		if len(rest) > 0 {
			t.Errorf("the target answers with %d bytes", len(rest))
		}
	})
}

func TestLimits(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t, 3, func(i int, c *Config) {
			if i == 1 {
				c.PerPeer, c.Circuits = 3, 4
			}
		})
		for range 3 {
			defer m.mustDial().Close()
		}
		time.Sleep(time.Second) // the rate is another limit
		_, err := m.dial(m.path(2))
		wantFault(t, err, wire.ResourceExhausted, 1, 0)
		if u := m.nodes[1].server.Usage(); u.Circuits != 3 || u.Limit != 4 || u.Peers[m.nodes[0].Peer].Circuits != 3 || u.Bytes == 0 {
			t.Errorf("usage %+v", u)
		}
	})
}

// Streams that end without an envelope, or with one that nobody can open, cost their
// peer its own setups and nobody else's.
func TestSetupsOfNothing(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t, 4, func(i int, c *Config) {
			if i == 1 {
				c.PerPeer, c.PerSecond = 16, 4
			}
		})
		relay, flooder := m.nodes[1], m.nodes[3]
		for i := range 50 {
			st, err := flooder.NewStream(t.Context(), relay.Peer, relay.Host.Addrs(), Protocol)
			check(t, err)
			if i%2 == 0 {
				st.Write(make([]byte, EnvelopeSize))
				io.ReadAll(st)
			}
			st.Reset()
		}
		c, err := m.dial(m.path(2))
		check(t, err)
		m.exchange(c, "hello")
		check(t, c.Close())
	})
}

// A first relay that is hostile in each of these ways costs the source a bounded
// time and an error with a name in it.
func TestHostileNextHop(t *testing.T) {
	for name, tc := range map[string]struct {
		answer func(st network.Stream)
		code   wire.Code
		within time.Duration
	}{
		"silent":            {func(st network.Stream) {}, wire.Unreachable, aliveTime},
		"says nothing more": {func(st network.Stream) { st.Write([]byte{waiting}) }, wire.Unreachable, aliveTime},
		"slow status":       {func(st network.Stream) { drip(st, settled, 0) }, wire.Unreachable, aliveTime + time.Second},
		"nonsense":          {func(st network.Stream) { st.Write([]byte("hello")) }, wire.Malformed, 0},
		"closes":            {func(st network.Stream) { st.Close() }, wire.Unreachable, 0},
		"resets":            {func(st network.Stream) { st.Reset() }, wire.Unreachable, 0},
		"unknown reset":     {func(st network.Stream) { st.ResetWithError(0xffffffff) }, wire.Unreachable, 0},
		"cut status": {func(st network.Stream) {
			st.Write(append([]byte{waiting, settled}, make([]byte, StatusSize-1)...))
			st.Close()
		}, wire.Unreachable, 0},
	} {
		t.Run(name, func(t *testing.T) {
			overlaytest.Run(t, func(t *testing.T) {
				m := newMesh(t, 4, nil)
				m.nodes[2].stop()
				m.nodes[2].Host.SetStreamHandler(Protocol, func(st network.Stream) {
					io.ReadFull(st, make([]byte, EnvelopeSize))
					tc.answer(st)
				})
				start := time.Now()
				_, err := m.dial(m.path(3))
				wantFault(t, err, tc.code, 2, 1)
				if took := time.Since(start); took > tc.within+time.Second {
					t.Errorf("that took %v", took)
				}
				m.wantNoCircuits()
			})
		})
	}
}

// drip sends first and then another byte each second, as long as it can.
func drip(st network.Stream, first, then byte) {
	_, err := st.Write([]byte{first})
	for err == nil {
		time.Sleep(time.Second)
		_, err = st.Write([]byte{then})
	}
}

// A hop that says for ever that it waits is not found, but costs a bounded time.
func TestWaitingForEver(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t, 4, nil)
		m.nodes[2].stop()
		m.nodes[2].Host.SetStreamHandler(Protocol, func(st network.Stream) { drip(st, waiting, waiting) })
		start := time.Now()
		_, err := m.dial(m.path(3))
		if took := time.Since(start); !errors.Is(err, wire.DeadlineExceeded) || took > answerTime+2*time.Second {
			t.Errorf("%v after %v", err, took)
		}
		m.wantNoCircuits()
	})
}

// A neighbour before that is hostile costs a relay a bounded time.
func TestHostileSource(t *testing.T) {
	for name, tc := range map[string]struct {
		say  func(st network.Stream)
		code wire.Code
	}{
		"silent": {func(st network.Stream) { st.Write(nil) }, wire.DeadlineExceeded},
		"slow":   {func(st network.Stream) { drip(st, 0, 0) }, wire.DeadlineExceeded},
		"half an envelope": {func(st network.Stream) {
			st.Write(make([]byte, EnvelopeSize/2))
			st.CloseWrite()
		}, wire.Malformed},
		"noise": {func(st network.Stream) { st.Write(make([]byte, 1<<20)) }, wire.Unauthenticated},
	} {
		t.Run(name, func(t *testing.T) {
			overlaytest.Run(t, func(t *testing.T) {
				m := newMesh(t, 2, nil)
				st, err := m.nodes[0].NewStream(t.Context(), m.nodes[1].Peer, m.nodes[1].Host.Addrs(), Protocol)
				check(t, err)
				defer st.Reset()
				start := time.Now()
				go tc.say(st)
				_, err = io.ReadAll(st)
				if resetOf(err) != uint32(tc.code) || time.Since(start) > sendTime+time.Second {
					t.Errorf("%v after %v, want %s", err, time.Since(start), tc.code)
				}
				m.wantNoCircuits()
			})
		})
	}
}

func TestSourceGivesUp(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t, 5, nil)
		m.nodes[4].stop()
		m.nodes[4].Host.SetStreamHandler(Protocol, func(st network.Stream) { st.Write([]byte{waiting}) })
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		_, err := Dial(ctx, m.nodes[0], m.path(4), echoProtocol)
		if !errors.Is(err, wire.DeadlineExceeded) {
			t.Errorf("Dial: %v", err)
		}
		time.Sleep(time.Second)
		m.wantNoCircuits()
	})
}
