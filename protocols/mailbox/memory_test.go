package mailbox_test

import (
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"

	"openmesh/overlay/overlaytest"
	"openmesh/protocols/mailbox"
	"openmesh/protocols/mailbox/mailboxtest"
	"openmesh/protocols/stream"
	"openmesh/protocols/wire"
)

// limited is a host whose streams of the mailbox protocol count against libp2p's
// limits for a computer with 8 GiB of memory.
type limited struct {
	host.Host
	t  *testing.T
	rm network.ResourceManager
}

func limit(t *testing.T, h host.Host) *limited {
	t.Helper()
	limits := rcmgr.DefaultLimits
	libp2p.SetDefaultServiceLimits(&limits)
	rm, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits.Scale(1<<30, 4096)), rcmgr.WithMetricsDisabled())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rm.Close() })
	return &limited{h, t, rm}
}

// limitedStream is a stream with a scope of its own.
type limitedStream struct {
	network.Stream
	scope network.StreamScope
}

func (s limitedStream) Scope() network.StreamScope { return s.scope }

// SetStreamHandler implements [stream.Mux].
func (l *limited) SetStreamHandler(id protocol.ID, handle network.StreamHandler) {
	l.Host.SetStreamHandler(id, func(st network.Stream) {
		scope, err := l.rm.OpenStream(st.Conn().RemotePeer(), network.DirInbound)
		if err == nil {
			err = scope.SetProtocol(id)
		}
		if err != nil {
			l.t.Errorf("stream: %v", err)
			st.Reset()
			return
		}
		defer scope.Done()
		handle(limitedStream{st, scope})
	})
}

// owner is an agent that collects its letters.
type owner struct {
	*mailboxtest.Identity
	host host.Host
	got  chan int   // sizes of payloads
	over chan error // why a Collect ended
}

func (r *relay) owner() *owner {
	r.Helper()
	o := &owner{got: make(chan int, 16), over: make(chan error, 16)}
	o.Identity, o.host = r.agent()
	_, err := mailbox.Register(r.Context(), o.host, r.info, o.Cert, time.Hour)
	r.ok(err)
	return o
}

func (r *relay) collect(o *owner) {
	r.Helper()
	c, err := mailbox.Collect(r.Context(), o.host, r.info, o.Cert, 0)
	r.ok(err)
	go func() {
		for {
			l, cursor, err := c.Next()
			if err != nil {
				o.over <- err
				return
			}
			_, payload, err := mailbox.Open(o.Recipient(time.Now), l, time.Now())
			if err != nil {
				r.Errorf("letter: %v", err)
			}
			o.got <- len(payload)
			c.Done(cursor)
		}
	}()
}

// wants expects that each owner has got one letter of a size.
func (r *relay) wants(size int, owners ...*owner) {
	r.Helper()
	missing := 0
	for _, o := range owners {
		select {
		case n := <-o.got:
			if n != size {
				r.Errorf("a letter of %d bytes, want %d", n, size)
			}
		case err := <-o.over:
			r.Errorf("a Collect ended: %v", err)
		default:
			missing++
		}
	}
	if missing > 0 {
		r.Errorf("%d of %d owners got no letter", missing, len(owners))
	}
}

// Many more owners collect than the relay has memory for at once, with small letters
// and with large ones: all get theirs, those that wait cost nothing, and a newer
// Collect takes over from an older one.
func TestManyCollect(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		count := 200
		if overlaytest.RaceEnabled {
			count = 60
		}
		var relayHost *limited
		r := newRelayOn(t, nil, func(h host.Host) stream.Mux { relayHost = limit(t, h); return relayHost },
			libp2p.ConnectionManager(connmgr.NullConnMgr{})) // the default one drops what is above 192
		alice := mailboxtest.NewIdentity(t, time.Now())
		leave := func(o *owner, payload int) {
			t.Helper()
			l := r.letter(alice, o.Identity, string(make([]byte, payload)))
			e := mailbox.Entry{Letter: *l, Depositor: "alice", Until: l.Expires}
			r.ok(r.store.Deposit(t.Context(), e, mailbox.Quota{Letters: 100, Bytes: 1 << 30}, time.Now()))
		}
		var owners []*owner
		for range count {
			o := r.owner()
			owners = append(owners, o)
			leave(o, 100)
			r.collect(o)
		}
		time.Sleep(10 * time.Second)
		r.wants(100, owners...)
		used := int64(-1)
		r.ok(relayHost.rm.ViewService("openmesh.mailbox", func(s network.ServiceScope) error { used = s.Stat().Memory; return nil }))
		if used != 0 {
			t.Errorf("those who wait take %d bytes of memory", used)
		}

		// All come again, and the relay does not know that the Collects before are dead.
		for _, o := range owners {
			r.collect(o)
		}
		time.Sleep(10 * time.Second)
		for _, o := range owners {
			if len(o.over) != 1 {
				t.Fatalf("%d Collects of an owner ended, want the first", len(o.over))
			}
			r.code("the Collect before", <-o.over, wire.AlreadyExists)
		}
		for _, o := range owners[:40] {
			leave(o, 1<<20)
		}
		time.Sleep(3 * time.Minute)
		r.wants(1<<20, owners[:40]...)
	})
}
