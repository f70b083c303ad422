package descriptor_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"
	"go.uber.org/zap"

	"openmesh/overlay/overlaytest"
	"openmesh/protocols/descriptor"
	"openmesh/protocols/descriptor/descriptorpb"
	"openmesh/protocols/identity"
	"openmesh/protocols/protocoltest"
	"openmesh/protocols/stream"
	"openmesh/protocols/wire"
)

// meet returns two connected agents' hosts.
func meet(t *testing.T) (a, b *protocoltest.Agent, ha, hb host.Host) {
	t.Helper()
	a, b = protocoltest.NewAgent(t, lab, time.Now()), protocoltest.NewAgent(t, lab, time.Now())
	net := overlaytest.NewNet(t, overlaytest.Latency)
	ha, hb = net.Host(libp2p.Identity(a.Host)), net.Host(libp2p.Identity(b.Host))
	if err := hb.Connect(t.Context(), overlaytest.Info(ha)); err != nil {
		t.Fatal(err)
	}
	return a, b, ha, hb
}

func TestServe(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		server, caller, hs, hc := meet(t)
		stranger := protocoltest.NewAgent(t, lab, time.Now())
		v := identity.NewVerifier(lab, time.Now)
		s := &descriptor.Server{
			Key: server.Host, Certificate: server.Certificate, Verifier: v, Log: zap.NewNop(),
			Body: func() *descriptorpb.Descriptor {
				return &descriptorpb.Descriptor{
					Sequence: 1, Issued: time.Now().Unix(), Expires: time.Now().Add(time.Hour).Unix(),
					Capabilities: []*descriptorpb.Capability{
						{Name: "open", Version: "1.0.0"},
						{Name: "ours", Version: "1.0.0", Visibility: "circle:ops"},
						{Name: "mine", Version: "1.0.0", Visibility: "private"},
					},
				}
			},
			Member: func(circle string, a identity.AgentID) bool { return circle == "ops" && a == caller.Agent },
		}
		run(t, func(ctx context.Context) { s.Run(ctx, hs) })
		for _, tc := range []struct {
			name        string
			certificate []byte
			want        []string
			err         error
		}{
			{name: "stranger", want: []string{"open"}},
			{name: "member", certificate: caller.Certificate.Raw, want: []string{"open", "ours"}},
			{name: "another's certificate", certificate: stranger.Certificate.Raw, err: wire.Unauthenticated},
			{name: "garbage", certificate: []byte("no certificate"), err: wire.Unauthenticated},
		} {
			d, err := descriptor.Fetch(t.Context(), hc, hs.ID(), tc.certificate, v)
			var got []string
			if err == nil {
				for _, c := range d.Body.Capabilities {
					got = append(got, c.Name)
				}
			}
			if !errors.Is(err, tc.err) || !slices.Equal(got, tc.want) {
				t.Errorf("%s: Fetch = %v, %v; want %v, %v", tc.name, got, err, tc.want, tc.err)
			}
		}
		lim := stream.Limits{Response: 1 << 20, Time: time.Second}
		if _, err := stream.Call(t.Context(), hc, hs.ID(), descriptor.Protocol, []byte{0xff}, lim); !errors.Is(err, wire.Malformed) {
			t.Errorf("garbage request: %v; want malformed", err)
		}
		if _, err := stream.Call(t.Context(), hc, hs.ID(), descriptor.Protocol, make([]byte, 1<<16), lim); !errors.Is(err, wire.TooLarge) {
			t.Errorf("oversize request: %v; want too_large", err)
		}
	})
}

// A peer that answers with what another agent signed, or with garbage, is caught.
func TestFetchFromLiar(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		liar, victim, hl, hv := meet(t)
		v := identity.NewVerifier(lab, time.Now)
		b := body()
		b.Issued, b.Expires = time.Now().Unix(), time.Now().Add(time.Hour).Unix()
		others, err := descriptor.Seal(victim.Host, victim.Certificate, b)
		if err != nil {
			t.Fatal(err)
		}
		b.Agent, b.Address, b.Certificate = string(victim.Agent), victim.Certificate.Address.String(), victim.Certificate.Raw
		for name, raw := range map[string][]byte{
			"another's descriptor": others.Raw,
			"signed by itself":     sealUnchecked(t, liar.Host, "openmesh-descriptor", "/openmesh/descriptor/v1", b),
			"garbage":              []byte("garbage"),
		} {
			ctx, cancel := context.WithCancel(t.Context())
			s := &stream.Server{Protocol: descriptor.Protocol, Service: "liar", Limits: stream.Limits{Request: 1 << 16, Response: 1 << 16, Time: time.Second}, Log: zap.NewNop(),
				Handler: func(context.Context, peer.ID, []byte) ([]byte, error) {
					return marshal(t, &descriptorpb.Response{Descriptor_: raw}), nil
				}}
			go s.Run(ctx, hl)
			synctest.Wait()
			if _, err := descriptor.Fetch(t.Context(), hv, hl.ID(), nil, v); !errors.Is(err, wire.Unauthenticated) {
				t.Errorf("%s: Fetch = %v; want unauthenticated", name, err)
			}
			cancel()
			synctest.Wait()
		}
	})
}

func TestWithdraw(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		_, _, hs, hc := meet(t)
		var who peer.ID
		var what []multihash.Multihash
		s := &descriptor.WithdrawServer{Realm: lab, Log: zap.NewNop(), Forget: func(p peer.ID, keys []multihash.Multihash) int {
			who, what = p, keys
			return len(keys)
		}}
		run(t, func(ctx context.Context) { s.Run(ctx, hs) })
		keys := []cid.Cid{descriptor.Key("a"), descriptor.Key("b")}
		n, err := descriptor.Withdraw(t.Context(), hc, hs.ID(), lab, keys)
		if err != nil || n != 2 || who != hc.ID() || len(what) != 2 || string(what[1]) != string(keys[1].Hash()) {
			t.Errorf("Withdraw = %d, %v; forgot %v of %s", n, err, what, who)
		}
		many := make([]cid.Cid, descriptor.MaxKeys+1)
		for i := range many {
			many[i] = keys[0]
		}
		if _, err := descriptor.Withdraw(t.Context(), hc, hs.ID(), lab, many); !errors.Is(err, wire.TooLarge) {
			t.Errorf("Withdraw of too many keys: %v; want too_large", err)
		}
		lim := stream.Limits{Response: 64, Time: time.Second}
		bad := marshal(t, &descriptorpb.Withdraw{Keys: [][]byte{[]byte("no multihash")}})
		if _, err := stream.Call(t.Context(), hc, hs.ID(), descriptor.WithdrawProtocol(lab), bad, lim); !errors.Is(err, wire.Malformed) {
			t.Errorf("bad key: %v; want malformed", err)
		}
	})
}

// run runs f until the test ends.
func run(t *testing.T, f func(context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); f(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	synctest.Wait()
}
