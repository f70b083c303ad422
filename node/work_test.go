package node_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"openmesh/node"
	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/node/handlers"
	"openmesh/node/handlers/capability"
	"openmesh/node/keys"
	"openmesh/protocols/descriptor"
	"openmesh/protocols/identity"
	"openmesh/protocols/session"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// deals are contracts in memory, of one agent.
type deals struct {
	mu    sync.Mutex
	all   map[string]node.Deal
	units map[string]bool // taken, by contract and key
	begun int
}

func newDeals(all ...node.Deal) *deals {
	d := &deals{all: map[string]node.Deal{}, units: map[string]bool{}}
	for _, one := range all {
		d.all[one.ID] = one
	}
	return d
}

func (d *deals) Terms(_ context.Context, contract string) (node.Deal, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for id, one := range d.all {
		if len(contract) >= 6 && strings.HasPrefix(id, contract) {
			return one, nil
		}
	}
	return node.Deal{}, wire.Errorf(wire.NotFound, "market contract %s", contract)
}

func (d *deals) find(contract string, buyer identity.AgentID) (node.Deal, error) {
	one, ok := d.all[contract]
	switch now := time.Now(); {
	case !ok || one.Buyer != buyer:
		return one, wire.Errorf(wire.NotFound, "market contract %s", contract)
	case one.State != "contracted" || now.Before(one.ValidFrom) || !now.Before(one.ValidUntil):
		return one, wire.Errorf(wire.Denied, "market contract %s is not in force", contract)
	}
	return one, nil
}

func (d *deals) Admit(_ context.Context, contract string, buyer identity.AgentID) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	one, err := d.find(contract, buyer)
	if err == nil && one.Used >= one.Quantity {
		err = wire.Errorf(wire.Denied, "market contract %s is used up", contract)
	}
	return err
}

func (d *deals) Begin(_ context.Context, contract, capability, key string, buyer identity.AgentID) (func(bool), error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	one, err := d.find(contract, buyer)
	unit := contract + " " + key
	switch {
	case err != nil:
		return nil, err
	case key == "":
		return nil, errors.New("a request without a name")
	case !descriptor.Covers(one.Capability, capability):
		return nil, wire.Errorf(wire.Denied, "market contract %s is for %s", contract, one.Capability)
	case !d.units[unit] && one.Used >= one.Quantity:
		return nil, wire.Errorf(wire.Denied, "market contract %s is used up", contract)
	case !d.units[unit]:
		d.units[unit] = true
		one.Used++
		d.all[contract] = one
	}
	d.begun++
	return func(ok bool) { d.end(contract, unit, ok) }, nil
}

func (d *deals) end(contract, unit string, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if one := d.all[contract]; !ok && d.units[unit] {
		delete(d.units, unit)
		one.Used--
		d.all[contract] = one
	}
	d.begun--
}

func (d *deals) change(contract string, f func(*node.Deal)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	one := d.all[contract]
	f(&one)
	d.all[contract] = one
}

// used is how many units are taken, of which none is being worked on.
func (d *deals) used(t *testing.T, contract string) int64 {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.begun != 0 {
		t.Errorf("%d units are being worked on", d.begun)
	}
	return d.all[contract].Used
}

// hex32 is an id of a contract.
func hex32(digits string) string { return strings.Repeat(digits, 16) }

// market is a seller and a buyer with a contract for 5 units of test/echo, and what
// each of them keeps of it.
type market struct {
	seller, buyer *running
	sold, bought  *deals
	id            string
}

// withDeals runs a node that keeps d; a backbone, unless there is one.
func withDeals(t *testing.T, d *deals, bootstrap *running) *running {
	t.Helper()
	flags := map[string]string{"node.roles": "backbone"}
	if bootstrap != nil {
		flags = map[string]string{"networking.bootstrap": bootstrap.Info().Addrs[0]}
	}
	home := t.TempDir()
	k, err := keys.Init(t.Context(), home, keys.InitOptions{Realm: lab, Passphrase: []byte("a passphrase"), Now: time.Now()})
	check(t, err)
	return startWith(t, node.Config{Home: home, Keys: k, Deals: d}, flags, nil)
}

func newMarket(t *testing.T) *market {
	t.Helper()
	m := &market{id: hex32("5f"), sold: newDeals(), bought: newDeals()}
	m.seller = withDeals(t, m.sold, nil)
	m.buyer = withDeals(t, m.bought, m.seller)
	now := time.Now()
	d := node.Deal{
		ID: m.id, Buyer: m.buyer.keys.Agent, Seller: m.seller.keys.Agent, Capability: "test/echo",
		ValidFrom: now.Add(-time.Hour), ValidUntil: now.Add(time.Hour), Quantity: 5, State: "contracted",
	}
	m.both(func(all *deals) { all.add(d) })
	return m
}

// both does something to what either side keeps.
func (m *market) both(f func(*deals)) { f(m.sold); f(m.bought) }

func (d *deals) add(one node.Deal) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all[one.ID] = one
}

// ask is a call under the contract.
func (m *market) ask(change func(*openmeshv1.CallRequest)) *openmeshv1.CallRequest {
	r := &openmeshv1.CallRequest{Contract: m.id, TimeoutMs: 20_000, Body: &openmeshv1.CallRequest_Json{Json: `{"n":1}`}}
	if change != nil {
		change(r)
	}
	return r
}

// A call under a contract goes to the seller, for what he sold, whatever of it the
// caller leaves out; each uses one unit, and the handler is told.
func TestCallUnderContract(t *testing.T) {
	t.Parallel()
	m := newMarket(t)
	told := make(chan [2]string, 10)
	check(t, m.seller.Registry().AddHandler(
		&capability.Capability{Name: "test/echo", Version: "1.0.0", ContractRequired: true},
		handlers.HandlerFunc(func(_ context.Context, req *handlers.Request) (*handlers.Response, error) {
			told <- [2]string{req.Contract, req.CallerAgent}
			return &handlers.Response{Body: req.Body}, nil
		})))
	for i, change := range []func(*openmeshv1.CallRequest){
		nil,
		func(r *openmeshv1.CallRequest) { r.Target = "test/echo" },
		func(r *openmeshv1.CallRequest) { r.Target, r.Contract = "test/echo@1", m.id[:6] },
		func(r *openmeshv1.CallRequest) { r.Target = string(m.seller.keys.Agent) },
		func(r *openmeshv1.CallRequest) { r.Target, r.Qos = m.seller.Info().Address, "exactly-once" },
	} {
		resp, err := m.buyer.Call(t.Context(), m.ask(change))
		if err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
		if resp.Agent != string(m.seller.keys.Agent) || resp.GetJson() != `{"n":1}` || m.sold.used(t, m.id) != int64(i+1) {
			t.Errorf("call %d: %v; %d used", i, resp, m.sold.used(t, m.id))
		}
		if got := <-told; got != [2]string{m.id, string(m.buyer.keys.Agent)} {
			t.Errorf("the handler was told %q", got)
		}
		info, err := m.buyer.client(t).Session.Show(t.Context(), &openmeshv1.ShowSessionRequest{Session: resp.Session})
		check(t, err)
		if info.Contract.Market != m.id {
			t.Errorf("the session is under %q", info.Contract.Market)
		}
	}
	if n := len(m.buyer.Sessions().Sessions(false)); n != 2 {
		t.Errorf("%d sessions, want one for each promise", n)
	}
	m.bought.change(m.id, func(d *node.Deal) { d.Used = 5 })
	_, err := m.buyer.Call(t.Context(), m.ask(nil))
	refusedWith(t, "used up", err, wire.Denied, "all 5 units")
}

// refusedWith checks an error's code and part of its hint.
func refusedWith(t *testing.T, what string, err error, code wire.Code, hint string) {
	t.Helper()
	var e *wire.Error
	if !errors.As(err, &e) {
		t.Errorf("%s: %v, want %s", what, err, code)
	} else if e.Code != code || !strings.Contains(e.Hint, hint) {
		t.Errorf("%s: %v, hint %q; want %s and a hint with %q", what, err, e.Hint, code, hint)
	}
}

// What makes no sense is refused before anything is sent.
func TestCallUnderContractMakesNoSense(t *testing.T) {
	t.Parallel()
	m := newMarket(t)
	m.seller.offerEcho(t)
	for name, tc := range map[string]struct {
		by     *running
		change func(*openmeshv1.CallRequest)
		want   wire.Code
		hint   string
	}{
		"no such contract":        {m.buyer, func(r *openmeshv1.CallRequest) { r.Contract = hex32("00") }, wire.NotFound, ""},
		"by the seller":           {m.seller, nil, wire.InvalidArgument, "the buyer"},
		"another capability":      {m.buyer, func(r *openmeshv1.CallRequest) { r.Target = "test/other" }, wire.InvalidArgument, "leave the target out"},
		"another with the seller": {m.buyer, func(r *openmeshv1.CallRequest) { r.Capability = "test/other" }, wire.InvalidArgument, "leave the target out"},
		"two capabilities":        {m.buyer, func(r *openmeshv1.CallRequest) { r.Target, r.Capability = "test/echo", "test/other" }, wire.InvalidArgument, "--capability"},
		"another agent":           {m.buyer, func(r *openmeshv1.CallRequest) { r.Target = m.buyer.Info().Address }, wire.InvalidArgument, "leave the target out"},
		"two versions":            {m.buyer, func(r *openmeshv1.CallRequest) { r.Target, r.Version = "test/echo@1", "^2" }, wire.InvalidArgument, "--version"},
	} {
		_, err := tc.by.Call(t.Context(), m.ask(tc.change))
		refusedWith(t, name, err, tc.want, tc.hint)
	}
	if n := len(m.seller.Sessions().Sessions(true)); n != 0 || m.sold.used(t, m.id) != 0 {
		t.Errorf("%d sessions", n)
	}
}

// The seller refuses work outside of the contract, whatever the buyer thinks of it;
// in a session that began in time, too.
func TestSellerRefusesWorkOutsideOfContract(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		sold   func(*node.Deal) // what the seller keeps
		change func(*openmeshv1.CallRequest)
		want   wire.Code
	}{
		"expired":            {func(d *node.Deal) { d.ValidUntil = time.Now().Add(-time.Second) }, nil, wire.Denied},
		"not begun":          {func(d *node.Deal) { d.ValidFrom = time.Now().Add(time.Minute) }, nil, wire.Denied},
		"failed":             {func(d *node.Deal) { d.State = "failed" }, nil, wire.Denied},
		"used up":            {func(d *node.Deal) { d.Used = d.Quantity }, nil, wire.Denied},
		"another buyer":      {func(d *node.Deal) { d.Buyer = d.Seller }, nil, wire.NotFound},
		"another capability": {func(d *node.Deal) { d.Capability = "test/other" }, nil, wire.Denied},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMarket(t)
			m.seller.offerEcho(t)
			worked := tc.change
			if name != "another capability" {
				m.sold.change(m.id, tc.sold)
				_, err := m.buyer.Call(t.Context(), m.ask(nil))
				refusedWith(t, "new session", err, tc.want, "market contract show "+m.id)
				if n := len(m.buyer.Sessions().Sessions(true)); n != 0 {
					t.Errorf("%d sessions", n)
				}
				m.sold.add(m.bought.all[m.id])
			}
			_, err := m.buyer.Call(t.Context(), m.ask(worked))
			check(t, err)
			m.sold.change(m.id, tc.sold)
			before := m.sold.used(t, m.id)
			for _, qos := range []string{"at-most-once"} {
				_, err = m.buyer.Call(t.Context(), m.ask(func(r *openmeshv1.CallRequest) { r.Qos = qos }))
				refusedWith(t, qos, err, tc.want, "market contract show "+m.id)
			}
			if used := m.sold.used(t, m.id); used != before {
				t.Errorf("%d units used, %d before", used, before)
			}
		})
	}
}

// A capability that asks for a contract does nothing without one for itself: in a
// session that cites none, or one of another agent's, or one that this side opened.
func TestContractRequired(t *testing.T) {
	t.Parallel()
	m := newMarket(t)
	var served atomic.Int32
	for _, r := range []*running{m.seller, m.buyer} {
		check(t, r.Registry().AddHandler(
			&capability.Capability{Name: "test/echo", Version: "1.0.0", ContractRequired: true},
			handlers.HandlerFunc(func(_ context.Context, req *handlers.Request) (*handlers.Response, error) {
				served.Add(1)
				return &handlers.Response{Body: req.Body}, nil
			})))
	}
	refusedWith(t, "without", m.buyer.call(t.Context(), m.seller), wire.Denied, "--contract ID")
	durable := m.ask(func(r *openmeshv1.CallRequest) { r.Contract, r.Target, r.Qos = "", "test/echo", "at-least-once" })
	durable.Target, durable.Capability = string(m.seller.keys.Agent), "test/echo"
	_, err := m.buyer.Call(t.Context(), durable)
	refusedWith(t, "durably without", err, wire.Denied, "--contract ID")

	mallory := newStranger(t, "/ip4/127.0.0.1/tcp/0", m.seller)
	target := session.Target{Agent: m.seller.keys.Agent, Route: session.Route{Peer: m.seller.info(t).ID}}
	e := mallory.endpoint(t)
	_, err = e.Open(t.Context(), target, session.Want{Contract: signal.Contract{Market: m.id}})
	if wire.CodeOf(err) != wire.NotFound {
		t.Errorf("a stranger's session under it: %v", err)
	}

	_, err = m.buyer.Call(t.Context(), m.ask(nil))
	check(t, err)
	if served.Load() != 1 {
		t.Errorf("%d requests were served", served.Load())
	}
	for _, i := range m.seller.Sessions().Sessions(false) {
		if i.Contract.Market == "" {
			continue
		}
		s, _, err := m.seller.Sessions().Find(i.ID.String())
		check(t, err)
		_, _, err = s.Call(t.Context(), &session.Request{Capability: "test/echo", Encoding: session.JSON, Body: []byte("{}")})
		if wire.CodeOf(err) != wire.Denied {
			t.Errorf("the seller asks the buyer: %v", err)
		}
	}
	rows, err := m.buyer.client(t).Directory.Discover(t.Context(), &openmeshv1.DiscoverRequest{Capability: "test/echo"})
	check(t, err)
	if len(rows.Results) == 0 || rows.Results[0].Contract != "required" {
		t.Errorf("discover shows %v", rows.Results)
	}
}

// A session opened by hand cites a contract as a call does, and what is sent in it
// uses units.
func TestOpenSessionUnderContract(t *testing.T) {
	t.Parallel()
	m := newMarket(t)
	m.seller.offerEcho(t)
	c := m.buyer.client(t).Session
	seller, other := string(m.seller.keys.Agent), string(m.buyer.keys.Agent)
	for name, r := range map[string]*openmeshv1.OpenSessionRequest{
		"two targets":        {Contract: m.id, Targets: []string{seller, other}},
		"not the seller":     {Contract: m.id, Targets: []string{other}},
		"another capability": {Contract: m.id, Targets: []string{"test/other"}},
	} {
		_, err := c.Open(t.Context(), r)
		refusedWith(t, name, err, wire.InvalidArgument, "out")
	}
	for _, targets := range [][]string{nil, {seller}, {"test/echo"}} {
		s, err := c.Open(t.Context(), &openmeshv1.OpenSessionRequest{Contract: m.id[:8], Targets: targets, Qos: "exactly-once"})
		check(t, err)
		if s.Contract.Market != m.id || s.Agent != seller {
			t.Errorf("%v: with %s under %q", targets, s.Agent, s.Contract.Market)
		}
		for range 2 { // the same message
			sent, err := c.Send(t.Context(), &openmeshv1.SendRequest{Session: s.Session, Capability: "test/echo", Key: "order-17", WaitMs: 20_000})
			check(t, err)
			if sent.Deliveries[0].Status != "delivered" {
				t.Errorf("%v", sent.Deliveries[0])
			}
		}
	}
	m.sold.settled(t, m.id, 3)
	for _, tc := range []struct {
		sold, bought func(*node.Deal)
		hint         string
	}{
		{func(d *node.Deal) { d.State = "failed" }, nil, "market contract show " + m.id},
		{nil, func(d *node.Deal) { d.State = "fulfilled" }, m.id + " is fulfilled"},
	} {
		for d, change := range map[*deals]func(*node.Deal){m.sold: tc.sold, m.bought: tc.bought} {
			if change != nil {
				d.change(m.id, change)
			}
		}
		_, err := c.Open(t.Context(), &openmeshv1.OpenSessionRequest{Contract: m.id})
		refusedWith(t, "settled", err, wire.Denied, tc.hint)
	}
}

// A unit is used by work that was done or that the caller gave up, and given back
// when the seller failed.
func TestUnitsOfFailedWork(t *testing.T) {
	t.Parallel()
	m := newMarket(t)
	m.both(func(d *deals) {
		d.change(m.id, func(one *node.Deal) { one.Capability, one.Quantity = "test/parts", 3 })
	})
	m.seller.offerParts(t, counting)
	for _, tc := range []struct {
		end  string
		want wire.Code
		used int64
	}{
		{"", 0, 1}, {"fail", wire.HandlerFailed, 1}, {"invalid", wire.InvalidResponse, 1}, {"hang", wire.DeadlineExceeded, 2},
	} {
		r := asking(m.seller, 3, tc.end)
		if r.Contract = m.id; tc.end == "hang" {
			r.TimeoutMs = 1500
		}
		_, _, err := m.buyer.stream(t, r)
		if err == nil && tc.want != 0 || err != nil && wire.CodeOf(err) != tc.want {
			t.Errorf("%q: %v, want %s", tc.end, err, tc.want)
		}
		m.sold.settled(t, m.id, tc.used)
	}
	bad := m.ask(nil) // breaks what the handler can read
	_, err := m.buyer.Call(t.Context(), bad)
	if wire.CodeOf(err) != wire.HandlerFailed {
		t.Errorf("%v", err)
	}
	m.sold.settled(t, m.id, 2)
}

// settled waits until so many units are used, and none is being worked on.
func (d *deals) settled(t *testing.T, contract string, want int64) {
	t.Helper()
	var used int64
	for range 200 {
		d.mu.Lock()
		used = d.all[contract].Used
		working := d.begun
		d.mu.Unlock()
		if used == want && working == 0 {
			return
		}
		<-time.After(20 * time.Millisecond)
	}
	t.Errorf("%d units are used, want %d", used, want)
}

// client speaks to a node's local API.
func (r *running) client(t *testing.T) *api.Client {
	t.Helper()
	c, err := api.Dial(r.home)
	check(t, err)
	t.Cleanup(c.Close)
	return c
}
