package mailbox_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"openmesh/overlay/overlaytest"
	"openmesh/protocols/identity"
	"openmesh/protocols/mailbox"
	"openmesh/protocols/mailbox/mailboxpb"
	"openmesh/protocols/mailbox/mailboxtest"
	"openmesh/protocols/protocoltest"
	"openmesh/protocols/stream"
	"openmesh/protocols/wire"
)

// relay is one that serves until the test ends, and who may use it.
type relay struct {
	*testing.T
	net    *overlaytest.Net
	host   host.Host
	store  *mailboxtest.Memory
	verify *identity.Verifier
	info   peer.AddrInfo

	mu     sync.Mutex
	events []mailbox.Event
}

func newRelay(t *testing.T, change func(*mailbox.ServerConfig)) *relay {
	t.Helper()
	return newRelayOn(t, change, func(h host.Host) stream.Mux { return h })
}

// newRelayOn is newRelay with streams from what mux makes of the relay's host.
func newRelayOn(t *testing.T, change func(*mailbox.ServerConfig), mux func(host.Host) stream.Mux, opts ...libp2p.Option) *relay {
	t.Helper()
	r := &relay{T: t, net: overlaytest.NewNet(t, overlaytest.Latency), store: mailboxtest.NewMemory(), verify: identity.NewVerifier(mailboxtest.Lab, time.Now)}
	r.host = r.net.Host(opts...)
	r.info = overlaytest.Info(r.host)
	cfg := mailbox.ServerConfig{Store: r.store, Verifier: r.verify, Log: zap.NewNop(), Observe: func(e mailbox.Event) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if e.Kind != mailbox.Held {
			r.events = append(r.events, e)
		}
	}}
	if change != nil {
		change(&cfg)
	}
	r.serve(mux(r.host), cfg)
	return r
}

func (r *relay) serve(m stream.Mux, cfg mailbox.ServerConfig) {
	s := mailbox.NewServer(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.Run(ctx, m) }()
	r.Cleanup(func() { cancel(); <-done })
	synctest.Wait()
}

// agent returns one with its host.
func (r *relay) agent() (*mailboxtest.Identity, host.Host) {
	a := mailboxtest.NewIdentity(r, time.Now())
	return a, r.net.Host(libp2p.Identity(a.Host))
}

func (r *relay) ok(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

func (r *relay) code(what string, err error, want wire.Code) {
	r.Helper()
	if !errors.Is(err, want) {
		r.Errorf("%s: %v, want %v", what, err, want)
	}
}

func (r *relay) letter(from, to *mailboxtest.Identity, payload string) *mailbox.Letter {
	r.Helper()
	l, err := mailbox.Seal(from.Sender(), to.Cert, []byte(payload), time.Now(), time.Now().Add(time.Hour))
	r.ok(err)
	return l
}

func (r *relay) deposit(h host.Host, l *mailbox.Letter) error {
	_, err := mailbox.Deposit(r.Context(), h, r.info, l)
	return err
}

// next expects a letter with a payload, and returns its cursor.
func (r *relay) next(c *mailbox.Collecting, to *mailboxtest.Identity, want string) uint64 {
	r.Helper()
	l, cursor, err := c.Next()
	r.ok(err)
	_, got, err := mailbox.Open(to.Recipient(time.Now), l, time.Now())
	if err != nil || string(got) != want {
		r.Errorf("letter %q, %v; want %q", got, err, want)
	}
	return cursor
}

func TestProtocol(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		r := newRelay(t, nil)
		alice, ha := r.agent()
		bob, hb := r.agent()
		ctx := t.Context()

		one := r.letter(alice, bob, "one")
		r.code("to one who is not registered", r.deposit(ha, one), wire.NotFound)
		terms, err := mailbox.Register(ctx, hb, r.info, bob.Cert, 100*24*time.Hour)
		if err != nil || terms.Letters != 1000 || terms.Bytes != 64<<20 || terms.TTL != mailbox.MaxTTL || time.Until(terms.Expires) < 29*24*time.Hour || time.Until(terms.Expires) > mailbox.MaxLifetime {
			t.Errorf("Register() = %+v, %v", terms, err)
		}
		r.ok(hb.Network().ClosePeer(r.host.ID())) // bob is away

		until, err := mailbox.Deposit(ctx, ha, r.info, one)
		if err != nil || !until.Equal(one.Expires) {
			t.Errorf("Deposit() = %v, %v", until, err)
		}
		r.ok(r.deposit(ha, one)) // twice
		r.ok(r.deposit(ha, r.letter(alice, bob, "two")))

		c, err := mailbox.Collect(ctx, hb, r.info, bob.Cert, 0)
		r.ok(err)
		first := r.next(c, bob, "one")
		second := r.next(c, bob, "two")
		r.ok(r.deposit(ha, r.letter(alice, bob, "three"))) // is pushed
		third := r.next(c, bob, "three")
		if first >= second || second >= third {
			t.Errorf("cursors %d, %d, %d", first, second, third)
		}
		r.ok(c.Done(second))
		r.ok(c.Later(first))
		r.ok(c.Done(third + 1)) // nobody sent that
		r.ok(c.Close())
		time.Sleep(time.Second)
		if n := len(r.store.Letters(bob.Agent)); n != 2 {
			t.Errorf("%d letters are left, want 2", n)
		}

		c, err = mailbox.Collect(ctx, hb, r.info, bob.Cert, first)
		r.ok(err)
		r.next(c, bob, "three")
		c2, err := mailbox.Collect(ctx, hb, r.info, bob.Cert, 0)
		r.ok(err)
		r.next(c2, bob, "one")
		_, _, err = c.Next()
		r.code("the collector before", err, wire.AlreadyExists)
		r.ok(mailbox.Forget(ctx, hb, r.info, bob.Cert))
		r.code("forgotten", r.deposit(ha, one), wire.NotFound)
		r.count(mailbox.Deposited, 4)
		r.count(mailbox.Refused, 2)
		r.count(mailbox.Delivered, 1)
	})
}

func (r *relay) count(kind mailbox.Kind, want int) {
	r.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, e := range r.events {
		if e.Kind == kind {
			n++
		}
	}
	if n != want {
		r.Errorf("%d events of kind %d, want %d", n, kind, want)
	}
}

// Each way to be refused a deposit, and its code.
func TestDepositRefused(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		blocked := peer.ID("")
		r := newRelay(t, func(c *mailbox.ServerConfig) {
			c.Limits = mailbox.Limits{Letters: 8, TTL: 30 * time.Minute, Total: 5 << 20}
			c.Allow = func(from peer.ID, _ identity.AgentID) error {
				if from == blocked {
					return wire.Denied
				}
				return nil
			}
		})
		alice, ha := r.agent()
		bob, hb := r.agent()
		carol, hc := r.agent()
		_, err := mailbox.Register(t.Context(), hb, r.info, bob.Cert, time.Hour)
		r.ok(err)
		with := func(f func(*mailbox.Letter)) *mailbox.Letter {
			l := r.letter(alice, bob, "hello")
			f(l)
			return l
		}
		for name, test := range map[string]struct {
			l    *mailbox.Letter
			want wire.Code
		}{
			"oversize":        {with(func(l *mailbox.Letter) { l.Body = make([]byte, mailbox.MaxBody+1) }), wire.TooLarge},
			"empty":           {with(func(l *mailbox.Letter) { l.Body = nil }), wire.Malformed},
			"expired":         {with(func(l *mailbox.Letter) { l.Expires = time.Now() }), wire.Replayed},
			"for a month":     {with(func(l *mailbox.Letter) { l.Expires = time.Now().Add(30 * 24 * time.Hour) }), wire.InvalidArgument},
			"to nobody":       {with(func(l *mailbox.Letter) { l.Recipient = "bob" }), wire.Malformed},
			"not registered":  {r.letter(alice, carol, "hello"), wire.NotFound},
			"large, likewise": {r.letter(alice, carol, string(make([]byte, 1<<20))), wire.NotFound},
		} {
			r.code(name, r.deposit(ha, test.l), test.want)
		}
		until, err := mailbox.Deposit(t.Context(), ha, r.info, r.letter(alice, bob, "1"))
		if err != nil || time.Until(until) > 30*time.Minute {
			t.Errorf("Deposit() = %v, %v; the relay keeps letters for half an hour", until, err)
		}
		r.ok(r.deposit(ha, r.letter(alice, bob, "2")))
		r.code("a quarter of the mailbox", r.deposit(ha, r.letter(alice, bob, "3")), wire.ResourceExhausted)
		blocked = hc.ID()
		r.code("policy", r.deposit(hc, r.letter(carol, bob, "x")), wire.Denied)
		blocked = ""
		r.ok(r.deposit(hc, r.letter(carol, bob, string(make([]byte, 3<<20)))))
		r.code("the relay is full", r.deposit(hc, r.letter(carol, bob, string(make([]byte, 3<<20)))), wire.ResourceExhausted)
		time.Sleep(time.Hour + time.Minute)
		r.code("registration over", r.deposit(hc, r.letter(carol, bob, "x")), wire.NotFound)
		if n := len(r.store.Letters(bob.Agent)); n != 0 {
			t.Errorf("%d letters are left an hour later", n)
		}
	})
}

// Nobody but an agent's certified host, with a key no older than the one that
// registered, gets at its mailbox.
func TestMailboxOfAnother(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		r := newRelay(t, nil)
		bob, hb := r.agent()
		mallory, hm := r.agent()
		ctx := t.Context()
		_, err := mailbox.Register(ctx, hm, r.info, bob.Cert, time.Hour)
		r.code("register for another", err, wire.Unauthenticated)
		_, err = mailbox.Register(ctx, hb, r.info, bob.Cert, time.Hour)
		r.ok(err)
		r.code("forget another", mailbox.Forget(ctx, hm, r.info, bob.Cert), wire.Unauthenticated)
		collect := func(h host.Host, cert *identity.Certificate) error {
			c, err := mailbox.Collect(ctx, h, r.info, cert, 0)
			r.ok(err)
			defer c.Close()
			_, _, err = c.Next()
			return err
		}
		r.code("collect for another", collect(hm, bob.Cert), wire.Unauthenticated)
		r.code("collect without a registration", collect(hm, mallory.Cert), wire.NotFound)

		open, err := mailbox.Collect(ctx, hb, r.info, bob.Cert, 0)
		r.ok(err)
		synctest.Wait()
		old := bob.Cert
		bob.Rotate(t, 2, time.Now().Add(-time.Minute), time.Now().Add(time.Hour))
		hb2 := r.net.Host(libp2p.Identity(bob.Host))
		_, err = mailbox.Register(ctx, hb2, r.info, bob.Cert, 24*time.Hour)
		r.ok(err)
		_, _, err = open.Next()
		r.code("collecting while the key is superseded", err, wire.KeySuperseded)
		// Another relay process on the same store, which has not seen the new key.
		second := r.net.Host()
		r.serve(second, mailbox.ServerConfig{Store: r.store, Verifier: identity.NewVerifier(mailboxtest.Lab, time.Now), Log: zap.NewNop()})
		r.info = overlaytest.Info(second)
		r.code("superseded at a relay that restarted", collect(hb, old), wire.KeySuperseded)

		open, err = mailbox.Collect(ctx, hb2, r.info, bob.Cert, 0)
		r.ok(err)
		start := time.Now()
		_, _, err = open.Next()
		if r.code("certificate expires while collecting", err, wire.KeyExpired); time.Since(start) > time.Hour+2*time.Minute {
			t.Errorf("it took %v", time.Since(start))
		}
	})
}

// A recipient that does not acknowledge gets 64 letters and no more; what it
// puts back makes room.
func TestWindow(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		r := newRelay(t, nil)
		bob, hb := r.agent()
		_, err := mailbox.Register(t.Context(), hb, r.info, bob.Cert, time.Hour)
		r.ok(err)
		for n := range 70 {
			e := mailboxtest.Letter(bob.Agent, n, 100, fmt.Sprint(n))
			e.Until, e.Expires = time.Now().Add(time.Hour), time.Now().Add(time.Hour)
			r.ok(r.store.Deposit(t.Context(), e, mailbox.Quota{Letters: 100, Bytes: 1 << 20}, time.Now()))
		}
		c, err := mailbox.Collect(t.Context(), hb, r.info, bob.Cert, 0)
		r.ok(err)
		came := make(chan uint64, 100)
		go func() {
			defer close(came)
			for {
				_, cursor, err := c.Next()
				if err != nil {
					return
				}
				came <- cursor
			}
		}()
		time.Sleep(10 * time.Second)
		if len(came) != 64 {
			t.Errorf("%d letters came, want 64", len(came))
		}
		r.ok(c.Later(<-came))
		r.ok(c.Done(<-came))
		r.ok(c.Done(<-came))
		time.Sleep(10 * time.Second)
		if len(came) != 61+3 {
			t.Errorf("%d letters came, want 64", len(came))
		}
		r.ok(c.Close())
		for range came {
		}
		if n := len(r.store.Letters(bob.Agent)); n != 68 {
			t.Errorf("%d letters are left, want 68", n)
		}
	})
}

// A letter that one relay takes is pushed by another of the same store.
func TestSharedStore(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		r := newRelay(t, nil)
		second := r.net.Host()
		r.serve(second, mailbox.ServerConfig{Store: r.store, Verifier: r.verify, Poll: time.Second, Log: zap.NewNop()})
		alice, ha := r.agent()
		bob, hb := r.agent()
		_, err := mailbox.Register(t.Context(), hb, r.info, bob.Cert, time.Hour)
		r.ok(err)
		c, err := mailbox.Collect(t.Context(), hb, overlaytest.Info(second), bob.Cert, 0)
		r.ok(err)
		synctest.Wait()
		start := time.Now()
		r.ok(r.deposit(ha, r.letter(alice, bob, "hello")))
		r.next(c, bob, "hello")
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("it took %v", d)
		}
	})
}

// A depositor far over its rate is refused, and the others do not notice.
func TestFlood(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		r := newRelay(t, func(c *mailbox.ServerConfig) { c.Limits = mailbox.Limits{PerPeer: 10, Rate: 100} })
		alice, ha := r.agent()
		bob, hb := r.agent()
		mallory, hm := r.agent()
		_, err := mailbox.Register(t.Context(), hb, r.info, bob.Cert, time.Hour)
		r.ok(err)
		refused, others := 0, 0
		for n := range 30 {
			for m := range 5 {
				if err := r.deposit(hm, r.letter(mallory, bob, fmt.Sprint(n, m))); errors.Is(err, wire.ResourceExhausted) {
					refused++
				}
			}
			if r.deposit(ha, r.letter(alice, bob, fmt.Sprint(n))) == nil {
				others++
			}
		}
		if refused < 50 || others < 30 {
			t.Errorf("%d of the flood were refused, %d of 30 others went through", refused, others)
		}
	})
}

// Peers that stall or send nonsense cost the relay little time, and no memory
// that they did not fill.
func TestHostileStreams(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		r := newRelay(t, func(c *mailbox.ServerConfig) { c.Limits.Receiving = mailbox.MaxBody })
		bob, hb := r.agent()
		alice, ha := r.agent()
		_, hm := r.agent()
		_, err := mailbox.Register(t.Context(), hb, r.info, bob.Cert, time.Hour)
		r.ok(err)
		r.ok(hm.Connect(t.Context(), r.info))
		big := frame(t, &mailboxpb.Request{Request: &mailboxpb.Request_Deposit{Deposit: &mailboxpb.Deposit{Recipient: string(bob.Agent), Id: make([]byte, 16), Expires: time.Now().Add(time.Hour).Unix(), Size: mailbox.MaxBody}}})
		huge := frame(t, &mailboxpb.Request{Request: &mailboxpb.Request_Deposit{Deposit: &mailboxpb.Deposit{Recipient: string(bob.Agent), Id: make([]byte, 16), Expires: time.Now().Add(time.Hour).Unix(), Size: math.MaxInt64}}})
		for name, test := range map[string]struct {
			attack protocoltest.Attack
			within time.Duration
		}{
			"silent":     {protocoltest.Silent, 11 * time.Second},
			"slowloris":  {protocoltest.Slowloris(time.Second), 11 * time.Second},
			"oversize":   {protocoltest.Oversize(1 << 40), time.Second},
			"garbage":    {protocoltest.Garbage(1 << 10), 11 * time.Second},
			"huge":       {protocoltest.Replayer(huge), time.Second},
			"other kind": {protocoltest.Replayer(frame(t, &mailboxpb.Request{})), time.Second},
			"other size": {protocoltest.Replayer(append(bytes.Clone(big), 5, 1, 2, 3, 4, 5)), time.Second},
			"no body":    {hangs(big), 31 * time.Second},
			"half body":  {hangs(append(binary.AppendUvarint(bytes.Clone(big), mailbox.MaxBody), 1, 2, 3)), 31 * time.Second},
		} {
			start := time.Now()
			err := test.attack.On(t.Context(), hm, r.host.ID(), mailbox.Protocol)
			if d := time.Since(start); err == nil || d > test.within {
				t.Errorf("%s: ended after %v with %v; want an error within %v", name, d, err, test.within)
			}
		}
		// Many announce a large letter and send nothing: there is still room.
		for range 10 {
			go hangs(append(binary.AppendUvarint(bytes.Clone(big), mailbox.MaxBody), 1)).On(t.Context(), hm, r.host.ID(), mailbox.Protocol)
		}
		time.Sleep(time.Second)
		r.ok(r.deposit(ha, r.letter(alice, bob, string(make([]byte, 3<<20)))))
		time.Sleep(time.Minute)
	})
}

// hangs sends something and waits for what comes.
func hangs(b []byte) protocoltest.Attack {
	return func(ctx context.Context, s network.Stream) error {
		if _, err := s.Write(b); err != nil {
			return err
		}
		return protocoltest.Silent(ctx, s)
	}
}

func frame(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return wire.AppendFrame(nil, b)
}

// A recipient that sends an Ack that is none, or half of one, loses its stream.
func TestHostileRecipient(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		r := newRelay(t, nil)
		bob, hb := r.agent()
		_, err := mailbox.Register(t.Context(), hb, r.info, bob.Cert, time.Hour)
		r.ok(err)
		collect := frame(t, &mailboxpb.Request{Request: &mailboxpb.Request_Collect{Collect: &mailboxpb.Collect{Certificate: bob.Cert.Raw}}})
		for name, test := range map[string]struct {
			send []byte
			want wire.Code
		}{
			"oversize":   {[]byte{0xff, 0xff, 0x7f}, wire.TooLarge},
			"garbage":    {[]byte{2, 0xff, 0xff}, wire.Malformed},
			"half of it": {[]byte{20, 1}, wire.Malformed},
		} {
			st, err := hb.NewStream(t.Context(), r.host.ID(), mailbox.Protocol)
			r.ok(err)
			_, err = st.Write(append(bytes.Clone(collect), test.send...))
			r.ok(err)
			start := time.Now()
			_, err = bufio.NewReader(st).ReadByte()
			if err = stream.RemoteError(err); !errors.Is(err, test.want) || time.Since(start) > 11*time.Second {
				t.Errorf("%s: %v after %v, want %v", name, err, time.Since(start), test.want)
			}
		}
	})
}

// A relay that sends what is no letter is cut off.
func TestHostileRelay(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		r := newRelay(t, nil)
		bob, hb := r.agent()
		liar := r.net.Host()
		var answer []byte
		liar.SetStreamHandler(mailbox.Protocol, func(st network.Stream) {
			st.Write(answer)
			time.Sleep(time.Hour)
		})
		item := frame(t, &mailboxpb.Item{Cursor: 1, Id: make([]byte, 16), Expires: 1 << 30})
		for name, b := range map[string][]byte{
			"oversize item": {0xff, 0xff, 0x7f},
			"garbage":       {2, 0xff, 0xff},
			"no id":         frame(t, &mailboxpb.Item{Cursor: 1, Expires: 1 << 30}),
			"oversize body": append(bytes.Clone(item), 0xff, 0xff, 0xff, 0x7f),
			"half a letter": append(bytes.Clone(item), 100, 1),
		} {
			answer = b
			c, err := mailbox.Collect(t.Context(), hb, overlaytest.Info(liar), bob.Cert, 0)
			r.ok(err)
			start := time.Now()
			if _, _, err := c.Next(); err == nil || time.Since(start) > 3*time.Minute {
				t.Errorf("%s: Next() = %v after %v", name, err, time.Since(start))
			}
			c.Close()
		}
		answer = []byte{0xff, 0xff, 0x7f}
		_, err := mailbox.Deposit(t.Context(), hb, overlaytest.Info(liar), r.letter(bob, bob, "x"))
		if err == nil {
			t.Error("Deposit believed garbage")
		}
		time.Sleep(time.Hour)
	})
}
