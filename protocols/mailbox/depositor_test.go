package mailbox_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"openmesh/overlay/overlaytest"
	"openmesh/protocols/mailbox"
	"openmesh/protocols/wire"
)

// A letter is left with all relays, and who leaves it waits for one.
func TestDepositor(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		r := newRelay(t, nil)
		alice, ha := r.agent()
		bob, hb := r.agent()
		_, err := mailbox.Register(t.Context(), hb, r.info, bob.Cert, time.Hour)
		r.ok(err)
		gone, silent := r.net.Host(), r.net.Host()
		goneInfo, silentInfo := overlaytest.Info(gone), overlaytest.Info(silent)
		gone.Close()
		over := make(chan struct{})
		defer close(over)
		silent.SetStreamHandler(mailbox.Protocol, func(network.Stream) { <-over })
		receipts := make(chan mailbox.Receipt, 300)
		d := mailbox.NewDepositor(func(r mailbox.Receipt) { receipts <- r })
		leave := func(wait time.Duration, relays ...peer.AddrInfo) error {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			start := time.Now()
			err := d.Deposit(ctx, ha, relays, r.letter(alice, bob, "hello"))
			if took := time.Since(start); took > wait {
				t.Errorf("it took %v, want at most %v", took, wait)
			}
			return err
		}
		r.ok(leave(time.Second, goneInfo, silentInfo, r.info))
		time.Sleep(time.Minute)
		came := map[peer.ID]wire.Code{}
		for range 3 {
			one := <-receipts
			came[one.Relay] = wire.CodeOf(one.Err)
		}
		if want := map[peer.ID]wire.Code{goneInfo.ID: wire.Unreachable, silentInfo.ID: wire.Unreachable, r.info.ID: wire.CodeOf(nil)}; !maps.Equal(came, want) {
			t.Errorf("receipts %v, want %v", came, want)
		}
		r.code("no relay takes it", leave(time.Minute, goneInfo, silentInfo), wire.Unreachable)
		r.code("no relays", leave(0), wire.Unreachable)

		// Only so many go on behind one's back.
		for range 64 {
			r.ok(leave(time.Second, silentInfo, r.info))
		}
		start := time.Now()
		if r.ok(leave(time.Minute, silentInfo, r.info)); time.Since(start) < 10*time.Second {
			t.Error("more letters go on than may")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := d.Deposit(ctx, ha, []peer.AddrInfo{silentInfo}, r.letter(alice, bob, "x")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("given up: %v", err)
		}
		r.ok(leave(time.Second, silentInfo, r.info))
		start = time.Now()
		if d.Close(); time.Since(start) > time.Second {
			t.Errorf("it took %v to close", time.Since(start))
		}
	})
}

// Somebody with as many peer ids as fill a mailbox by quarters, and with many more,
// does not keep others from leaving their letters, large or small.
func TestThrowawayDepositors(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		r := newRelay(t, func(c *mailbox.ServerConfig) { c.Limits = mailbox.Limits{Letters: 100, Bytes: 1 << 20, PerPeer: 1000} })
		alice, ha := r.agent()
		bob, hb := r.agent()
		_, err := mailbox.Register(t.Context(), hb, r.info, bob.Cert, time.Hour)
		r.ok(err)
		for ids, want := range map[int]int{4: 7, 8: 2} { // letters that others find room for
			for _, size := range []int{100, 20_000} {
				for range ids {
					mallory, hm := r.agent()
					for r.deposit(hm, r.letter(mallory, bob, string(make([]byte, size)))) == nil {
					}
					hm.Close()
				}
				for n := range want {
					if err := r.deposit(ha, r.letter(alice, bob, fmt.Sprint(n))); err != nil {
						t.Errorf("%d depositors have left all they could, of %d bytes each; letter %d of another: %v", ids, size, n, err)
					}
				}
				r.ok(r.store.Forget(t.Context(), bob.Agent))
				_, err := mailbox.Register(t.Context(), hb, r.info, bob.Cert, time.Hour)
				r.ok(err)
			}
		}
	})
}
