package directory_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"openmesh/overlay/directory"
	"openmesh/overlay/overlaytest"
	"openmesh/protocols/descriptor"
	"openmesh/protocols/descriptor/descriptorpb"
	"openmesh/protocols/identity"
	"openmesh/protocols/stream"
)

// serve replaces what n answers when asked for its descriptor.
func (n *node) serve(t *testing.T, answer func() []byte) {
	s := &stream.Server{
		Protocol: descriptor.Protocol, Service: "liar", Log: zap.NewNop(),
		Limits:  stream.Limits{Request: 1 << 16, Response: 1 << 20, Time: time.Second},
		Handler: func(context.Context, peer.ID, []byte) ([]byte, error) { return answer(), nil },
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.Run(ctx, n.host) }()
	t.Cleanup(func() { cancel(); <-done })
}

// Whatever a provider answers, an honest buyer finds the honest seller and
// nothing else.
func TestLyingProviders(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t)
		m.backbone(2)
		honest := m.node()
		fx := capability("finance/fx", "1.0.0")
		honest.offer(t, fx)
		body := func(sequence uint64, expires time.Time) *descriptorpb.Descriptor {
			return &descriptorpb.Descriptor{Sequence: sequence, Issued: time.Now().Unix(), Expires: expires.Unix(), Capabilities: []*descriptorpb.Capability{fx}}
		}
		seal := func(n *node, b *descriptorpb.Descriptor) []byte {
			d, err := descriptor.Seal(n.Host, n.Certificate, b)
			if err != nil {
				t.Fatal(err)
			}
			return respond(t, d.Raw)
		}
		victims := seal(honest, body(9, time.Now().Add(time.Hour)))
		for name, lie := range map[string]func(n *node) []byte{
			"nothing":              func(*node) []byte { return nil },
			"garbage":              func(*node) []byte { return []byte{0xff, 0xff} },
			"another's descriptor": func(*node) []byte { return victims },
			"expired":              func(n *node) []byte { return seal(n, body(9, time.Now().Add(time.Second))) },
			"not what it provides": func(n *node) []byte { b := body(9, time.Now().Add(time.Hour)); b.Capabilities = nil; return seal(n, b) },
			"oversize":             func(*node) []byte { return respond(t, make([]byte, descriptor.MaxDescriptor+1)) },
		} {
			liar := m.node()
			liar.offer(t, fx)
			wait(3 * time.Second)
			liar.serve(t, func() []byte { return nil })
			answer := lie(liar)
			wait(2 * time.Second) // for the one that expires
			liar.serve(t, func() []byte { return answer })
			buyer := m.node()
			if got, want := buyer.find(t, directory.Query{Capability: "finance"}), []string{honest.label("finance/fx", "1.0.0")}; !slices.Equal(got, want) {
				t.Errorf("%s: found %v, want %v", name, got, want)
			}
			liar.stop()
		}
	})
}

func respond(t *testing.T, raw []byte) []byte {
	b, err := proto.Marshal(&descriptorpb.Response{Descriptor_: raw})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A circle's capability is found by its members only: outsiders see it neither
// under its public name nor in the descriptor, though they find the agent by
// something else.
func TestCircle(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t)
		m.backbone(2)
		var member identity.AgentID
		seller := m.node(func(c *directory.Config) {
			c.Member = func(circle string, a identity.AgentID) bool { return circle == "ops" && a == member }
		})
		in := func(c *directory.Config) { c.Circles = func() []string { return []string{"ops"} } }
		insider, outsider, pretender := m.node(in), m.node(), m.node(in)
		member = insider.Agent.Agent
		seller.offer(t, capability("deploy/run", "1.0.0", func(c *descriptorpb.Capability) { c.Visibility = "circle:ops" }),
			capability("weather", "1.0.0"))
		wait(5 * time.Second)
		deploy := []string{seller.label("deploy/run", "1.0.0")}
		for _, tc := range []struct {
			who  string
			n    *node
			want []string
		}{{"member", insider, deploy}, {"outsider", outsider, nil}, {"who knows the circle's name", pretender, nil}} {
			if got := tc.n.find(t, directory.Query{Capability: "weather"}); len(got) != 1 {
				t.Errorf("%s finds %v of what is public", tc.who, got)
			}
			if got := tc.n.find(t, directory.Query{Capability: "deploy"}); !slices.Equal(got, tc.want) {
				t.Errorf("%s finds %v, want %v", tc.who, got, tc.want)
			}
		}
		a, err := outsider.Resolve(t.Context(), directory.Target{Agent: seller.Agent.Agent})
		if err != nil {
			t.Fatal(err)
		}
		d, err := outsider.Descriptor(t.Context(), a)
		if err != nil || len(d.Body.Capabilities) != 1 || d.Body.Capabilities[0].Name != "weather" {
			t.Errorf("the outsider sees %v, %v", d, err)
		}
	})
}

// An index that is not Kademlia, and lies: Resolve believes no value that does
// not hold.
func TestLyingIndex(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t)
		victim, mallory := m.node(), m.node()
		for name, value := range map[string][]byte{
			"garbage":           []byte("garbage"),
			"another's record":  record(t, mallory, time.Now().Add(time.Hour)),
			"an expired record": record(t, victim, time.Now().Add(time.Second)),
		} {
			wait(2 * time.Second)
			n := m.node(func(c *directory.Config) { c.Index = index{value: value} })
			if a, err := n.Resolve(t.Context(), directory.Target{Agent: victim.Agent.Agent}); err == nil {
				t.Errorf("%s: Resolve = %+v", name, a)
			}
		}
	})
}

func record(t *testing.T, n *node, expires time.Time) []byte {
	r, err := descriptor.SealRecord(n.Host, n.Certificate, &descriptorpb.AgentRecord{Sequence: 1, Issued: time.Now().Unix(), Expires: expires.Unix()})
	if err != nil {
		t.Fatal(err)
	}
	return descriptor.Value{r}.Marshal()
}

// index answers every search with value.
type index struct {
	directory.Index
	value []byte
}

func (i index) Search(context.Context, string) ([]byte, error)  { return i.value, nil }
func (i index) Put(context.Context, string, []byte) error       { return errors.New("no room") }
func (i index) Reach() (servers int, lost time.Time, why error) { return 1, time.Time{}, nil }
