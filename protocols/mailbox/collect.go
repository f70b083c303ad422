package mailbox

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/identity"
	"openmesh/protocols/mailbox/mailboxpb"
	"openmesh/protocols/stream"
	"openmesh/protocols/wire"
)

const (
	readLetters = 32      // read from the store at a time
	readBytes   = 1 << 20 // or bytes, but always one letter
	readMost    = MaxBody // bytes, then: one letter may be as large
	recheck     = time.Minute
	noMemory    = 250 * time.Millisecond // until memory is asked for again
)

// outlet is a Collect in progress.
type outlet struct {
	cert  *identity.Certificate
	end   context.CancelCauseFunc
	wake  chan struct{} // holds one if there may be letters
	freed chan struct{} // holds one if letters were acknowledged
	after atomic.Uint64 // the last cursor sent

	mu     sync.Mutex
	flight map[uint64]int // size of letters sent and not acknowledged, by cursor
	bytes  int
}

// collect sends letters until the recipient closes its side, a newer Collect
// takes over, or the certificate holds no longer.
func (s *Server) collect(ctx context.Context, st network.Stream, in *bufio.Reader, c *mailboxpb.Collect) error {
	cert, _, err := s.admit(ctx, st.Conn().RemotePeer(), c.Certificate)
	if err != nil {
		return err
	}
	ctx, end := context.WithCancelCause(ctx)
	o := &outlet{cert: cert, end: end, wake: make(chan struct{}, 1), freed: make(chan struct{}, 1), flight: make(map[uint64]int)}
	o.after.Store(c.After)
	s.outlets.add(o)
	defer s.outlets.remove(o)

	context.AfterFunc(ctx, func() { // unblocks both loops
		st.ResetWithError(network.StreamErrorCode(wire.CodeOf(context.Cause(ctx))))
	})
	var acks sync.WaitGroup
	acks.Go(func() { end(s.takeAcks(ctx, st, in, o)) })
	end(s.sendLetters(ctx, st, o))
	acks.Wait()
	if err := context.Cause(ctx); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// sendLetters sends what is there and what comes.
func (s *Server) sendLetters(ctx context.Context, st network.Stream, o *outlet) error {
	for {
		limit, err := o.room(ctx)
		if err != nil {
			return err
		}
		if err := s.stillValid(o.cert); err != nil {
			return err
		}
		sent, err := s.sendSome(ctx, st, o, limit)
		if err != nil {
			return err
		}
		if sent > 0 {
			continue
		}
		select {
		case <-o.wake:
		case <-time.After(recheck):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// sendSome reads up to limit letters and sends them, and returns how many. Memory is
// held only while letters are in hand, and no more than theirs: most recipients
// wait most of the time.
func (s *Server) sendSome(ctx context.Context, st network.Stream, o *outlet, limit int) (int, error) {
	if err := reserve(ctx, st.Scope()); err != nil {
		return 0, err
	}
	held := readMost
	release := func(n int) {
		st.Scope().ReleaseMemory(n)
		held -= n
	}
	defer func() { release(held) }()
	entries, err := s.cfg.Store.Read(ctx, o.cert.Agent, o.after.Load(), limit, readBytes, s.cfg.Now())
	if err != nil {
		return 0, err
	}
	size := 0
	for _, e := range entries {
		size += len(e.Body)
	}
	release(max(held-size, 0))
	for i := range entries {
		e := &entries[i]
		o.depart(e)
		if err := sendItem(st, e); err != nil {
			return i, fmt.Errorf("%w: send letter: %w", wire.Unreachable, err)
		}
		o.after.Store(e.Cursor)
		release(min(len(e.Body), held))
		e.Body = nil
	}
	return len(entries), nil
}

// reserve waits for the memory of one read: whoever collects is not turned away
// because others are being sent theirs.
func reserve(ctx context.Context, scope network.StreamScope) error {
	for scope.ReserveMemory(readMost, network.ReservationPriorityMedium) != nil {
		select {
		case <-time.After(noMemory/2 + rand.N(noMemory)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// stillValid says whether a certificate that was verified may be used on.
func (s *Server) stillValid(c *identity.Certificate) error {
	if err := c.Valid(s.cfg.Now()); err != nil {
		return err
	}
	return s.cfg.Verifier.Current(c)
}

func sendItem(st network.Stream, e *Entry) error {
	if err := st.SetWriteDeadline(time.Now().Add(itemTime)); err != nil {
		return err
	}
	item, err := proto.Marshal(&mailboxpb.Item{Cursor: e.Cursor, Id: e.ID[:], Expires: e.Expires.Unix()})
	if err != nil {
		return err
	}
	// The frame of the body in two parts, so that the body is not there twice.
	if _, err := st.Write(binary.AppendUvarint(wire.AppendFrame(nil, item), uint64(len(e.Body)))); err != nil {
		return err
	}
	_, err = st.Write(e.Body)
	return err
}

// takeAcks reads what became of letters, and deletes those that are done. What
// has come in at one time is deleted in one go.
func (s *Server) takeAcks(ctx context.Context, st network.Stream, in *bufio.Reader, o *outlet) error {
	for {
		if err := st.SetReadDeadline(time.Time{}); err != nil {
			return err
		}
		if _, err := in.Peek(1); err == io.EOF {
			return io.EOF
		} else if err != nil {
			return fmt.Errorf("%w: %w", wire.Unreachable, err)
		}
		if err := st.SetReadDeadline(time.Now().Add(requestTime)); err != nil {
			return err
		}
		var done, later []uint64
		for more := true; more; more = in.Buffered() > 0 && len(done)+len(later) < maxFlight {
			ack, err := readAck(in)
			if err != nil {
				return err
			}
			done, later = append(done, o.flying(ack.Done)...), append(later, o.flying(ack.Later)...)
		}
		n, err := s.cfg.Store.Remove(ctx, o.cert.Agent, done)
		if err != nil {
			return err
		}
		if n > 0 {
			s.cfg.Observe(Event{Kind: Delivered, Count: n})
		}
		o.land(append(done, later...))
	}
}

func readAck(in *bufio.Reader) (*mailboxpb.Ack, error) {
	raw, err := wire.ReadFrame(in, maxAck)
	if err != nil {
		return nil, fmt.Errorf("ack: %w: %w", stream.ReadCode(err), err)
	}
	var ack mailboxpb.Ack
	if err := proto.Unmarshal(raw, &ack); err != nil {
		return nil, wire.Errorf(wire.Malformed, "ack: %w", err)
	}
	return &ack, nil
}

// room waits until there is room for any letter among those under way, and returns
// for how many.
func (o *outlet) room(ctx context.Context) (letters int, err error) {
	for {
		o.mu.Lock()
		n, ok := len(o.flight), o.bytes+readMost <= maxFlightBytes
		o.mu.Unlock()
		if n == 0 || n < maxFlight && ok {
			return min(maxFlight-n, readLetters), nil
		}
		select {
		case <-o.freed:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// depart begins the flight of a letter.
func (o *outlet) depart(e *Entry) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.flight[e.Cursor] = len(e.Body)
	o.bytes += len(e.Body)
}

// flying returns those of cursors that are under way: a recipient may speak of
// no others.
func (o *outlet) flying(cursors []uint64) []uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.DeleteFunc(cursors, func(c uint64) bool {
		_, ok := o.flight[c]
		return !ok
	})
}

// land ends the flight of letters.
func (o *outlet) land(cursors []uint64) {
	o.mu.Lock()
	for _, c := range cursors {
		o.bytes -= o.flight[c]
		delete(o.flight, c)
	}
	o.mu.Unlock()
	signal(o.freed)
}

// signal puts one into a channel that holds at most one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// outlets are the Collects in progress, one for each recipient.
type outlets struct {
	mu  sync.Mutex
	all map[identity.AgentID]*outlet
}

// add makes o the outlet of its recipient and ends the one before.
func (s *outlets) add(o *outlet) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.all[o.cert.Agent]; old != nil {
		old.end(wire.Errorf(wire.AlreadyExists, "%s collects on another stream", o.cert.Agent))
	}
	s.all[o.cert.Agent] = o
}

func (s *outlets) remove(o *outlet) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all[o.cert.Agent] == o {
		delete(s.all, o.cert.Agent)
	}
}

// wake tells a recipient's outlet, if it has one, that there may be letters.
func (s *outlets) wake(agent identity.AgentID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.all[agent]; o != nil {
		signal(o.wake)
	}
}

// wakeAfter is wake, if cursor is beyond what was sent.
func (s *outlets) wakeAfter(agent identity.AgentID, cursor uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.all[agent]; o != nil && cursor > o.after.Load() {
		signal(o.wake)
	}
}

func (s *outlets) agents() []identity.AgentID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.all))
}
