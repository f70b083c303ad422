package mailbox

import (
	"bufio"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/identity"
	"openmesh/protocols/mailbox/mailboxpb"
	"openmesh/protocols/wire"
)

// Collecting is a Collect in progress. Done and Later may be called by any goroutine,
// also while one is in Next.
type Collecting struct {
	recipient identity.AgentID
	stream    network.Stream
	in        *bufio.Reader
	sending   sync.Mutex
}

// Collect asks relay for the letters of the agent of certificate with a cursor
// above after (0: all that are not acknowledged), and for those to come. d must be
// the host that the certificate is for. A refusal comes with the first Next.
func Collect(ctx context.Context, d Dialer, relay peer.AddrInfo, certificate *identity.Certificate, after uint64) (*Collecting, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	st, err := open(ctx, d, relay)
	if err != nil {
		return nil, fmt.Errorf("collect from %s: %w", relay.ID, err)
	}
	c := &Collecting{recipient: certificate.Agent, stream: st, in: bufio.NewReader(st)}
	if err := c.send(&mailboxpb.Request{Request: &mailboxpb.Request_Collect{Collect: &mailboxpb.Collect{Certificate: certificate.Raw, After: after}}}); err != nil {
		st.Reset()
		return nil, fmt.Errorf("collect from %s: %w", relay.ID, err)
	}
	return c, nil
}

// Next waits for the next letter and returns it with its cursor. Nothing about
// the letter is verified yet: that is for [Open]. If the relay ended the stream,
// the error wraps its wire.Code; if the connection was lost, wire.Unreachable.
func (c *Collecting) Next() (*Letter, uint64, error) {
	l, cursor, err := c.next()
	if err != nil {
		return nil, 0, fmt.Errorf("collect from %s: %w", c.stream.Conn().RemotePeer(), refusal(err))
	}
	return l, cursor, nil
}

func (c *Collecting) next() (*Letter, uint64, error) {
	if err := c.stream.SetReadDeadline(time.Time{}); err != nil {
		return nil, 0, err
	}
	if _, err := c.in.Peek(1); err != nil {
		return nil, 0, err
	}
	if err := c.stream.SetReadDeadline(time.Now().Add(itemTime)); err != nil {
		return nil, 0, err
	}
	raw, err := wire.ReadFrame(c.in, maxSmall)
	if err != nil {
		return nil, 0, fmt.Errorf("item: %w", err)
	}
	l, cursor, err := parseItem(raw, c.recipient)
	if err != nil {
		return nil, 0, err
	}
	if l.Body, err = wire.ReadFrame(c.in, MaxBody); err != nil {
		return nil, 0, fmt.Errorf("letter: %w", err)
	}
	return l, cursor, nil
}

// parseItem reads what announces a letter. Errors: wire.Malformed.
func parseItem(raw []byte, recipient identity.AgentID) (*Letter, uint64, error) {
	var item mailboxpb.Item
	if err := proto.Unmarshal(raw, &item); err != nil {
		return nil, 0, wire.Errorf(wire.Malformed, "item: %w", err)
	}
	l, err := newLetter(string(recipient), item.Id, item.Expires)
	return &l, item.Cursor, err
}

// Done tells the relay to delete a letter.
func (c *Collecting) Done(cursor uint64) error {
	return c.send(&mailboxpb.Ack{Done: []uint64{cursor}})
}

// Later tells the relay to keep a letter for the next Collect and to send others
// meanwhile.
func (c *Collecting) Later(cursor uint64) error {
	return c.send(&mailboxpb.Ack{Later: []uint64{cursor}})
}

func (c *Collecting) send(m proto.Message) error {
	c.sending.Lock()
	defer c.sending.Unlock()
	if err := c.stream.SetWriteDeadline(time.Now().Add(requestTime)); err != nil {
		return fmt.Errorf("%w: %w", wire.Unreachable, err)
	}
	if err := send(c.stream, m); err != nil {
		return refusal(err)
	}
	return nil
}

// Close ends the Collect and makes Next return. What was acknowledged before
// still reaches the relay.
func (c *Collecting) Close() error { return c.stream.Close() }
