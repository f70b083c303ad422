package mailbox

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/sync/semaphore"

	"openmesh/protocols/wire"
)

const (
	behindBytes = 16 << 20  // of letters that go on to more relays
	behindLeast = 256 << 10 // what one counts at least
)

// Receipt tells what became of a letter at one relay.
type Receipt struct {
	Relay peer.ID
	Until time.Time // when the relay drops the letter, if Err is nil
	Err   error     // that of [Deposit]
}

// Depositor leaves letters with several relays each. It is safe for concurrent use.
type Depositor struct {
	told   func(Receipt)
	behind *semaphore.Weighted // bytes
	closed chan struct{}
	all    sync.WaitGroup // attempts, and who waits for them
}

// NewDepositor returns a depositor. told hears what became of each letter at each
// relay, unless who deposited gave up before; it must return soon.
func NewDepositor(told func(Receipt)) *Depositor {
	return &Depositor{told: told, behind: semaphore.NewWeighted(behindBytes), closed: make(chan struct{})}
}

// Deposit leaves a letter with all relays at once, and returns once one has it: the
// attempts at the others go on, unless there are too many such letters; then it waits
// for them. If none takes it the error joins theirs, and is wire.Unreachable if there
// are none.
func (p *Depositor) Deposit(ctx context.Context, d Dialer, relays []peer.AddrInfo, l *Letter) error {
	if len(relays) == 0 {
		return wire.Errorf(wire.Unreachable, "leave letter %s: the recipient has no mailbox", l.ID)
	}
	trying, cancel := context.WithCancel(context.WithoutCancel(ctx))
	receipts := make(chan Receipt, len(relays))
	for _, relay := range relays {
		p.all.Go(func() {
			until, err := Deposit(trying, d, relay, l)
			receipts <- Receipt{relay.ID, until, err}
		})
	}
	var errs []error
	for left := len(relays); left > 0; {
		select {
		case r := <-receipts:
			p.told(r)
			left--
			if errs = append(errs, r.Err); r.Err == nil && p.leave(receipts, left, cancel, len(l.Body)) {
				return nil
			}
		case <-ctx.Done():
			cancel()
			return taken(append(errs, ctx.Err()))
		}
	}
	cancel()
	return taken(errs)
}

// taken returns nil if one of the attempts at relays was without error.
func taken(errs []error) error {
	for _, err := range errs {
		if err == nil {
			return nil
		}
	}
	return errors.Join(errs...)
}

// leave has the attempts that are left go on behind the back of who deposited. It
// reports false if there are too many.
func (p *Depositor) leave(receipts <-chan Receipt, left int, cancel context.CancelFunc, size int) bool {
	weight := int64(max(size, behindLeast))
	if !p.behind.TryAcquire(weight) {
		return false
	}
	p.all.Go(func() {
		defer p.behind.Release(weight)
		defer cancel()
		for range left {
			select {
			case r := <-receipts:
				p.told(r)
			case <-p.closed:
				return
			}
		}
	})
	return true
}

// Close ends the attempts that go on, and waits until they have ended. Nothing may be
// deposited any more.
func (p *Depositor) Close() {
	close(p.closed)
	p.all.Wait()
}
