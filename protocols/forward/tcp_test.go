package forward

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"openmesh/protocols/wire"
)

// What the target does, by the first byte that it reads.
const (
	discards byte = iota + 1
	resets
	tells
)

// Over TCP with yamux, whose streams close and reset in other ways than those of
// QUIC: the end of one direction, refusals, and resets by either end.
func TestOverTCP(t *testing.T) {
	t.Parallel()
	told := make(chan error, 1)
	h, p := loopback(t, 2, func(c *Conn) {
		kind := make([]byte, 1)
		io.ReadFull(c, kind)
		switch kind[0] {
		case discards:
			io.Copy(io.Discard, c)
			c.Close()
		case resets:
			c.Reset(wire.KeyRevoked)
		case tells:
			c.Write(kind)
			_, err := c.Read(kind)
			told <- err
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	dial := func() *Conn {
		c, err := Dial(ctx, dialer{h}, p, echoProtocol)
		check(t, err)
		check(t, c.SetDeadline(time.Now().Add(30*time.Second)))
		return c
	}
	c := dial()
	_, err := io.Copy(c, io.MultiReader(bytes.NewReader([]byte{discards}), io.LimitReader(zeros{}, 3<<20)))
	check(t, err)
	check(t, c.CloseWrite())
	if rest, err := io.ReadAll(c); err != nil || len(rest) != 0 {
		t.Errorf("after the end: %d bytes, %v", len(rest), err)
	}
	check(t, c.Close())

	_, err = Dial(ctx, dialer{h}, p, "/unheard-of/1")
	wantFault(t, err, wire.Unsupported, 3, 3)

	c = dial()
	_, err = c.Write([]byte{resets})
	check(t, err)
	_, err = c.Read(make([]byte, 1))
	wantFault(t, err, wire.KeyRevoked, 3, 3)

	c = dial()
	_, err = c.Write([]byte{tells})
	check(t, err)
	_, err = c.Read(make([]byte, 1)) // a reset may overtake what was written before
	check(t, err)
	c.Reset(wire.TrustRevoked)
	select {
	case err := <-told:
		if !errors.Is(err, wire.TrustRevoked) {
			t.Errorf("the target learns %v", err)
		}
	case <-ctx.Done():
		t.Error("the target learns nothing")
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}
