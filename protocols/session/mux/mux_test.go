package mux

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"pgregory.net/rapid"

	"openmesh/protocols/wire"
)

// path carries frames one way between two muxes of a synctest bubble. Each takes
// a time of its own, so that they come in any order, several at once.
type path struct {
	to      *Mux
	broken  func(error) // told what the receiving mux says of a frame
	longest time.Duration

	mu     sync.Mutex
	room   *sync.Cond
	random *rand.Rand
	flying int // frames under way
	most   int // Send waits, and Post fails, from so many on
}

func newPath(random *rand.Rand, most int, longest time.Duration, broken func(error)) *path {
	p := &path{random: random, most: most, longest: longest, broken: broken}
	p.room = sync.NewCond(&p.mu)
	return p
}

func (p *path) send(t Type, parts ...[]byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.flying >= p.most {
		p.room.Wait()
	}
	p.launch(t, bytes.Join(parts, nil))
	return nil
}

func (p *path) post(t Type, payload []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.flying >= p.most {
		return false
	}
	p.launch(t, payload)
	return true
}

func (p *path) launch(t Type, payload []byte) {
	p.flying++
	time.AfterFunc(time.Duration(p.random.Int64N(int64(p.longest))), func() {
		if err := errors.Join(p.to.Receive(t, payload), p.to.check()); err != nil {
			p.broken(err)
		}
		clear(payload) // nothing of it may have been kept
		p.mu.Lock()
		defer p.mu.Unlock()
		p.flying--
		p.room.Broadcast()
	})
}

// check returns what is wrong with the mux's books.
func (m *Mux) check() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var credit, charged, held, marked uint64
	for id, s := range m.streams {
		in := &s.in
		if in.read > in.have || in.have > in.high || in.high > in.limit || in.limit-in.read > uint64(m.cfg.Window) {
			return fmt.Errorf("stream %d: read %d, have %d, high %d, limit %d", id, in.read, in.have, in.high, in.limit)
		}
		if in.ended && in.limit != in.final {
			return fmt.Errorf("stream %d: limit %d after the end at %d", id, in.limit, in.final)
		}
		credit, charged = credit+in.limit-in.read, charged+in.charged
		blocks := uint64(0)
		for _, b := range in.blocks {
			if b.data != nil {
				blocks++
			}
			if b.marks != nil {
				marked++
			}
		}
		if blocks > uint64(span(in.limit-in.read)) || blocks > 0 && in.read == in.high {
			return fmt.Errorf("stream %d: %d blocks for a credit of %d", id, blocks, in.limit-in.read)
		}
		held += blocks
	}
	if credit > uint64(m.cfg.SessionWindow) {
		return fmt.Errorf("credit of %d in all, at most %d", credit, m.cfg.SessionWindow)
	}
	if full := uint64(m.cfg.SessionWindow) - 2*uint64(m.cfg.MaxStreams)*m.floor; m.pool+charged != full {
		return fmt.Errorf("pool has %d, streams %d, in all not %d", m.pool, charged, full)
	}
	if marked > held {
		return fmt.Errorf("marks for %d blocks, of which %d are there", marked, held)
	}
	return nil
}

// bed is two muxes and what went wrong between them.
type bed struct {
	*Mux // the initiator's
	peer *Mux

	mu  sync.Mutex
	err error
}

func (b *bed) broken(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil && b.err == nil {
		b.err = err
	}
}

// newBed makes two muxes with the limits of cfg; what either opens is served by a
// goroutine.
func newBed(cfg Config, seed uint64, most int, serve func(*Stream)) *bed {
	b := new(bed)
	random := rand.New(rand.NewPCG(seed, 0))
	ends := [2]*Mux{}
	paths := [2]*path{}
	for i := range ends {
		paths[i] = newPath(rand.New(rand.NewPCG(seed, random.Uint64())), most, 50*time.Millisecond, b.broken)
		cfg.Initiator, cfg.Send, cfg.Post = i == 0, paths[i].send, paths[i].post
		cfg.Accept = func(s *Stream) { go serve(s) }
		ends[i] = New(cfg)
	}
	paths[0].to, paths[1].to = ends[1], ends[0]
	b.Mux, b.peer = ends[0], ends[1]
	return b
}

// settled waits until nothing moves, and checks that nothing is left.
func (b *bed) settled() error {
	synctest.Wait()
	<-time.After(time.Second)
	synctest.Wait()
	for _, m := range []*Mux{b.Mux, b.peer} {
		b.broken(m.check())
		if n := m.Len(); n != 0 {
			b.broken(fmt.Errorf("%d streams are left", n))
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

// plan is what one stream carries. It travels as the stream's metadata.
type plan struct {
	Up, Down     uint32 // bytes
	Write, Read  uint32 // at a time
	PauseMs      uint32 // of both readers after each read
	Reverse      bool   // the responder opens it
	ResetAt      uint32 // the opener resets it after so many bytes; 0: never
	CloseReading bool   // the opener closes it instead of reading
}

func (p plan) meta() []byte {
	b, _ := binary.Append(nil, binary.BigEndian, p)
	return b
}

func parsePlan(meta []byte) (p plan) {
	binary.Decode(meta, binary.BigEndian, &p)
	return p
}

// content is what goes each way on a stream: each byte depends on its offset.
func content(id uint64, up bool, n uint32) []byte {
	b := make([]byte, n)
	seed := id * 2
	if up {
		seed++
	}
	for i := range b {
		b[i] = byte((uint64(i) + seed*7919) * 0x9e3779b97f4a7c15 >> 56)
	}
	return b
}

func writeAll(s *Stream, b []byte, atOnce uint32) error {
	for len(b) > 0 {
		n := min(len(b), int(atOnce))
		if k, err := s.Write(b[:n]); err != nil || k != n {
			return fmt.Errorf("wrote %d of %d: %w", k, n, err)
		}
		b = b[n:]
	}
	return nil
}

func readAll(s *Stream, p plan) ([]byte, error) {
	var got []byte
	buf := make([]byte, p.Read)
	for {
		n, err := s.Read(buf)
		got = append(got, buf[:n]...)
		if err == io.EOF {
			return got, nil
		}
		if err != nil {
			return got, err
		}
		if p.PauseMs > 0 {
			<-time.After(time.Duration(p.PauseMs) * time.Millisecond)
		}
	}
}

// serve does the acceptor's part of a plan.
func (b *bed) serve(s *Stream) {
	p := parsePlan(s.Meta())
	var both sync.WaitGroup
	both.Go(func() {
		err := writeAll(s, content(s.ID(), false, p.Down), p.Write)
		if err == nil {
			err = s.CloseWrite()
		}
		if p.ResetAt == 0 && !p.CloseReading {
			b.broken(err)
		}
	})
	got, err := readAll(s, p)
	want := content(s.ID(), true, p.Up)
	switch {
	case p.ResetAt > 0 && errors.Is(err, wire.Cancelled):
		want = want[:len(got)]
	case p.ResetAt > 0 || err != nil:
		b.broken(fmt.Errorf("accepted stream %d, plan %+v: %w", s.ID(), p, err))
	}
	if !bytes.Equal(got, want) {
		b.broken(fmt.Errorf("accepted stream %d carried something else: %d bytes of %d", s.ID(), len(got), len(want)))
	}
	both.Wait()
}

// run does the opener's part of a plan.
func (b *bed) run(p plan) error {
	m := b.Mux
	if p.Reverse {
		m = b.peer
	}
	s, err := m.Open(context.Background(), p.meta())
	if err != nil {
		return err
	}
	up := content(s.ID(), true, p.Up)
	if p.ResetAt > 0 {
		err := writeAll(s, up[:min(p.ResetAt, p.Up)], p.Write)
		s.Reset(wire.Cancelled)
		return err
	}
	if p.CloseReading {
		err := writeAll(s, up, p.Write)
		s.Close()
		return err
	}
	var written error
	var both sync.WaitGroup
	both.Go(func() {
		if written = writeAll(s, up, p.Write); written == nil {
			written = s.CloseWrite()
		}
	})
	got, err := readAll(s, p)
	both.Wait()
	if err == nil && !bytes.Equal(got, content(s.ID(), false, p.Down)) {
		err = fmt.Errorf("stream %d carried something else", s.ID())
	}
	return errors.Join(err, written)
}

func drawPlan(t *rapid.T) plan {
	size := rapid.OneOf(rapid.Just(uint32(0)), rapid.Uint32Range(1, 20), rapid.Uint32Range(1, 100_000))
	p := plan{
		Up: size.Draw(t, "up"), Down: size.Draw(t, "down"),
		Write: rapid.SampledFrom([]uint32{1 << 20, 100_000, 5000, 777}).Draw(t, "write"),
		Read:  rapid.SampledFrom([]uint32{1 << 20, 4096, 1000}).Draw(t, "read"),
	}
	p.PauseMs = rapid.SampledFrom([]uint32{0, 0, 0, 500}).Draw(t, "pause")
	p.Reverse = rapid.Bool().Draw(t, "reverse")
	switch rapid.IntRange(0, 5).Draw(t, "end") {
	case 0:
		p.ResetAt = rapid.Uint32Range(1, 50_000).Draw(t, "reset at")
	case 1:
		p.CloseReading = true
	}
	return p
}

// Whatever streams do, and however the paths mix their frames: each carries what
// was written, within its credit, and nothing is left in the end.
func TestStreamsOverReorderingPaths(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		plans := rapid.SliceOfN(rapid.Custom(drawPlan), 1, 12).Draw(r, "plans")
		seed := rapid.Uint64().Draw(r, "seed")
		most := rapid.SampledFrom([]int{1, 3, 1000}).Draw(r, "most frames under way")
		cfg := Config{MaxStreams: 16, SessionWindow: rapid.SampledFrom([]int{64, 64 << 10, 1 << 20}).Draw(r, "session window")}
		if cfg.SessionWindow == 64 { // a byte or two at a time: keep it short
			for i := range plans {
				plans[i].Up, plans[i].Down = plans[i].Up%100, plans[i].Down%100
			}
		}
		var err error
		synctest.Test(t, func(*testing.T) {
			var b *bed
			b = newBed(cfg, seed, most, func(s *Stream) { b.serve(s) })
			for _, p := range plans {
				go func() { b.broken(b.run(p)) }()
			}
			for range 100 {
				if b.streams() > 0 {
					<-time.After(time.Minute)
				}
			}
			err = b.settled()
			b.Close(0) // ends what is stuck
			b.peer.Close(0)
		})
		if err != nil {
			r.Fatal(err)
		}
	})
}

// streams returns how many there are, once nothing moves without time.
func (b *bed) streams() int {
	synctest.Wait()
	return b.Len() + b.peer.Len()
}

// As many streams as there may be whose reader does nothing, and one more that
// still has all it needs.
func TestSlowReadersHoldUpOnlyTheirOwnStreams(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const stuck = 63
		var b *bed
		b = newBed(Config{MaxStreams: stuck + 1}, 1, 100, func(s *Stream) {
			if len(s.Meta()) > 0 {
				b.serve(s)
			}
		})
		for range stuck {
			s, err := b.Open(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			go s.Write(make([]byte, 1<<20))
		}
		synctest.Wait()
		if err := b.run(plan{Up: 1 << 20, Down: 1 << 20, Write: 1 << 20, Read: 1 << 16}); err != nil {
			t.Error(err)
		}
		<-time.After(time.Second)
		if n := b.Len(); n != stuck {
			t.Errorf("%d streams, want %d", n, stuck)
		}
		b.Close(0)
		b.peer.Close(0)
		if err := b.settled(); err != nil {
			t.Error(err)
		}
	})
}

// A single stream gets the whole window, and many share.
func TestWindowsFollowThePool(t *testing.T) {
	t.Parallel()
	m := New(Config{Initiator: true})
	s := m.add(1)
	if s.in.limit != defaultWindow {
		t.Errorf("one stream: credit of %d", s.in.limit)
	}
	for id := uint64(3); id <= 511; id += 2 {
		s = m.add(id)
		if s.in.limit < m.floor {
			t.Fatalf("stream %d: credit of %d", id, s.in.limit)
		}
	}
	if err := m.check(); err != nil {
		t.Error(err)
	}
}

func TestIdleMuxCostsNearlyNothing(t *testing.T) {
	if size := unsafe.Sizeof(Mux{}); size > 192 {
		t.Errorf("a mux has %d bytes", size)
	}
	var m *Mux
	if n := testing.AllocsPerRun(100, func() { m = New(Config{}) }); n != 1 {
		t.Errorf("%g allocations", n)
	}
	m.add(1).drop(io.EOF)
	if m.streams != nil {
		t.Error("a mux without streams keeps a map")
	}
}
