package protocoltest

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"openmesh/protocols/stream"
)

// Attack is what a hostile peer does with a stream that it has opened. It returns
// once the other side has ended the stream, or ctx has. The error is how.
type Attack func(ctx context.Context, s network.Stream) error

// Silent says nothing and waits.
func Silent(ctx context.Context, s network.Stream) error { return wait(ctx, s) }

// Slowloris announces a frame and sends it a byte at a time, one every interval.
func Slowloris(interval time.Duration) Attack {
	return func(ctx context.Context, s network.Stream) error {
		if _, err := s.Write(binary.AppendUvarint(nil, 1<<12)); err != nil {
			return err
		}
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if _, err := s.Write([]byte{0}); err != nil {
					return err
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// Oversize announces a frame of size bytes and sends of it what the other side
// takes.
func Oversize(size uint64) Attack {
	return func(ctx context.Context, s network.Stream) error {
		if _, err := s.Write(binary.AppendUvarint(nil, size)); err != nil {
			return err
		}
		chunk := make([]byte, 64<<10)
		for sent := uint64(0); sent < min(size, 64<<20); sent += uint64(len(chunk)) {
			if _, err := s.Write(chunk); err != nil {
				return err
			}
		}
		return wait(ctx, s)
	}
}

// Garbage sends n random bytes.
func Garbage(n int) Attack {
	return func(ctx context.Context, s network.Stream) error {
		b := make([]byte, n)
		rand.Read(b)
		return say(ctx, s, b)
	}
}

// Replayer sends what was recorded elsewhere, framing included.
func Replayer(recorded []byte) Attack {
	return func(ctx context.Context, s network.Stream) error { return say(ctx, s, recorded) }
}

func say(ctx context.Context, s network.Stream, b []byte) error {
	if _, err := s.Write(b); err != nil {
		return err
	}
	if err := s.CloseWrite(); err != nil {
		return err
	}
	return wait(ctx, s)
}

// wait reads until the other side ends the stream, or ctx ends.
func wait(ctx context.Context, s network.Stream) error {
	_, err := io.Copy(io.Discard, s)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// On opens a stream of protocol id to peer p and attacks on it.
func (a Attack) On(ctx context.Context, d stream.Dialer, p peer.ID, id protocol.ID) error {
	s, err := d.NewStream(ctx, p, id)
	if err != nil {
		return fmt.Errorf("open stream: %w", err)
	}
	defer context.AfterFunc(ctx, func() { s.Reset() })()
	defer s.Reset()
	return a(ctx, s)
}

// Storm does the same thing times times, parallel at a time, and returns how many
// of them had no error.
func Storm(times, parallel int, do func(i int) error) (succeeded int) {
	var mu sync.Mutex
	var all sync.WaitGroup
	next := make(chan int)
	for range parallel {
		all.Go(func() {
			for i := range next {
				if do(i) == nil {
					mu.Lock()
					succeeded++
					mu.Unlock()
				}
			}
		})
	}
	for i := range times {
		next <- i
	}
	close(next)
	all.Wait()
	return succeeded
}

// Liar returns an agent that claims victim's address: its certificate has the
// victim's nonce, under a root key of its own. Nobody may believe it.
func Liar(t testing.TB, victim *Agent, now time.Time) *Agent {
	t.Helper()
	a := NewAgent(t, victim.Certificate.Address.Realm, now)
	c := *a.Certificate
	c.Address, c.Nonce = victim.Certificate.Address, victim.Certificate.Nonce
	c.Raw = a.UncheckedCertificate(t, c)
	a.Certificate = &c
	return a
}
