package forward

import (
	"context"
	"errors"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"openmesh/overlay/overlaytest"
	"openmesh/protocols/wire"
)

// What ends a circuit that stood, and what each end learns.
func TestEndings(t *testing.T) {
	for name, tc := range map[string]struct {
		change    func(i int, c *Config)
		end       func(m *mesh, c *Conn)
		code      wire.Code // at the source, by whom about whom
		place, by int
		target    wire.Code
		within    time.Duration
	}{
		"the target resets": {
			end:  func(m *mesh, c *Conn) { m.nodes[4].conns[0].Reset(wire.TrustRevoked) },
			code: wire.TrustRevoked, place: 4, by: 4, target: wire.SessionClosed,
		},
		"a relay crashes": {
			end:  func(m *mesh, c *Conn) { m.nodes[2].Host.Close() },
			code: wire.Unreachable, place: 2, by: 1, target: wire.Unreachable,
		},
		"the first relay crashes": {
			end:  func(m *mesh, c *Conn) { m.nodes[1].Host.Close() },
			code: wire.Unreachable, place: 1, by: 0, target: wire.Unreachable,
		},
		"the target crashes": {
			end:  func(m *mesh, c *Conn) { m.nodes[4].Host.Close() },
			code: wire.Unreachable, place: 4, by: 3, target: wire.Unreachable,
		},
		"a relay shuts down": {
			end:  func(m *mesh, c *Conn) { m.nodes[3].stop() },
			code: wire.Unreachable, place: 3, by: 3, target: wire.Unreachable,
		},
		"nothing passes": {
			change: func(i int, c *Config) {
				if c.Idle = time.Hour; i == 2 {
					c.Idle = time.Minute
				}
			},
			end:  func(m *mesh, c *Conn) {},
			code: wire.DeadlineExceeded, place: 2, by: 2, target: wire.Unreachable, within: 2 * time.Minute,
		},
	} {
		t.Run(name, func(t *testing.T) {
			overlaytest.Run(t, func(t *testing.T) {
				m := newMesh(t, 5, tc.change)
				c := m.mustDial()
				far := m.nodes[4].conns[0]
				start := time.Now()
				tc.end(m, c)
				_, err := c.Read(make([]byte, 1))
				wantFault(t, err, tc.code, tc.place, tc.by)
				if took := time.Since(start); took > tc.within+time.Second {
					t.Errorf("the source learns after %v", took)
				}
				time.Sleep(time.Second)
				if _, err := far.Read(make([]byte, 1)); !errors.Is(err, tc.target) {
					t.Errorf("the target learns %v, want %s", err, tc.target)
				}
				c.Abandon()
				m.wantNoCircuits()
			})
		})
	}
}

// A target that closes while the source still writes: the source learns it, over
// relays that let the other direction be.
func TestTargetReadsNoMore(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t, 4, func(i int, c *Config) {
			c.Accept = map[protocol.ID]func(*Conn){echoProtocol: func(c *Conn) {
				c.Write([]byte("that is all"))
				c.Close()
			}}
		})
		c, err := m.dial(m.path(3))
		check(t, err)
		if got, err := io.ReadAll(c); err != nil || string(got) != "that is all" {
			t.Errorf("read %q, %v", got, err)
		}
		check(t, c.SetWriteDeadline(time.Now().Add(time.Minute)))
		for err == nil {
			_, err = c.Write(make([]byte, 1000))
			time.Sleep(time.Second)
		}
		if !errors.Is(err, wire.SessionClosed) {
			t.Errorf("Write: %v", err)
		}
		check(t, c.Close())
		m.wantNoCircuits()
	})
}

// The source's code reaches the target and nobody else.
func TestSourceResets(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t, 4, nil)
		c := m.mustDial()
		c.Reset(wire.KeyRevoked)
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, wire.SessionClosed) {
			t.Errorf("Read after Reset: %v", err)
		}
		time.Sleep(time.Second)
		if _, err := m.nodes[3].conns[0].Read(make([]byte, 1)); !errors.Is(err, wire.KeyRevoked) {
			t.Errorf("the target learns %v", err)
		}
		m.wantNoCircuits()
	})
}

// A circuit that has gone silent: nobody was told, but a probe finds the dead hop.
func TestProbe(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t, 5, nil)
		m.mustDial().Close()
		echoes, err := Probe(t.Context(), m.nodes[0], m.path(4))
		check(t, err)
		for i, e := range echoes {
			if e.Err != nil || e.Peer != m.nodes[i+1].Peer || e.RTT < time.Duration(i+1)*2*oneWay {
				t.Errorf("hop %d: %+v", i+1, e)
			}
		}
		if Dead(echoes) != 0 || len(echoes) != 4 {
			t.Errorf("all answer, but %d", Dead(echoes))
		}
		m.net.Cut(m.nodes[3].Host, true)
		start := time.Now()
		echoes, err = Probe(t.Context(), m.nodes[0], m.path(4))
		check(t, err)
		if Dead(echoes) != 3 || time.Since(start) > aliveTime+time.Second {
			t.Errorf("hop %d is dead, says the probe after %v", Dead(echoes), time.Since(start))
		}
		wantFault(t, echoes[3].Err, wire.Unreachable, 3, 2)
	})
}

// A relay that changes what passes is noticed at both ends; one that cuts it, too.
func TestHostileRelay(t *testing.T) {
	for name, tc := range map[string]struct {
		after int // bytes that the relay has read before it bends what it reads
		want  error
	}{
		"the status":     {EnvelopeSize, wire.Unauthenticated},
		"what is echoed": {EnvelopeSize + 1 + StatusSize + 30, wire.Unauthenticated},
	} {
		t.Run(name, func(t *testing.T) {
			overlaytest.Run(t, func(t *testing.T) {
				m := newMesh(t, 4, nil)
				read := 0
				m.nodes[2].bend = func(b []byte) []byte {
					before := read
					read += len(b)
					if len(b) > 1 && before >= tc.after {
						b[len(b)-1] ^= 1
					}
					return b
				}
				c, err := m.dial(m.path(3))
				if err == nil {
					_, err = c.Write(make([]byte, 100))
					check(t, err)
					check(t, c.SetReadDeadline(time.Now().Add(time.Minute)))
					_, err = io.ReadFull(c, make([]byte, 100))
					c.Abandon()
				}
				if !errors.Is(err, tc.want) {
					t.Errorf("%v, want %v", err, tc.want)
				}
			})
		})
	}
}

func TestTruncation(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t, 4, nil)
		c := m.mustDial()
		// What a relay can do that closes its stream as if the target had.
		check(t, m.nodes[3].conns[0].stream.CloseWrite())
		if _, err := io.ReadAll(c); !errors.Is(err, io.ErrUnexpectedEOF) || !errors.Is(err, wire.Unreachable) {
			t.Errorf("a stream without an end: %v", err)
		}
		c.Abandon()
	})
}

// pacer counts, and refuses after a number of bytes.
type pacer struct {
	peers []peer.ID
	left  int
}

func (p *pacer) Pace(_ context.Context, id peer.ID, n int) error {
	if !slices.Contains(p.peers, id) {
		p.peers = append(p.peers, id)
	}
	if p.left -= n; p.left < 0 {
		return wire.Errorf(wire.ResourceExhausted, "quota")
	}
	return nil
}

func TestPacer(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		p := &pacer{left: 1000}
		m := newMesh(t, 4, func(i int, c *Config) {
			if i == 2 {
				c.Pacer = p
			}
		})
		c := m.mustDial()
		if want := 1000 - 2*(headerSize+5+tagSize); p.left != want || !slices.Equal(p.peers, []peer.ID{m.nodes[1].Peer}) {
			t.Errorf("%d bytes left of 1000, want %d; asked for by %v", p.left, want, p.peers)
		}
		_, err := c.Write(make([]byte, 2000))
		check(t, err)
		_, err = c.Read(make([]byte, 1))
		wantFault(t, err, wire.ResourceExhausted, 2, 2)
		m.wantNoCircuits()
	})
}

// A server that ends waits for those who took circuits, and refuses new ones.
func TestRunEnds(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		begun, let := make(chan struct{}), make(chan struct{})
		m := newMesh(t, 3, func(i int, c *Config) {
			c.Accept = map[protocol.ID]func(*Conn){echoProtocol: func(c *Conn) {
				close(begun)
				<-let
				c.Reset(wire.Cancelled)
			}}
		})
		c, err := m.dial(m.path(2))
		check(t, err)
		<-begun
		stopped := make(chan struct{})
		go func() { m.nodes[2].stop(); close(stopped) }()
		time.Sleep(time.Second)
		select {
		case <-stopped:
			t.Error("Run returned before the circuit's handler")
		default:
		}
		close(let)
		<-stopped
		_, err = c.Read(make([]byte, 1))
		wantFault(t, err, wire.Cancelled, 2, 2)
	})
}
