package bench

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	"openmesh/node"
	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/node/handlers"
	"openmesh/node/handlers/capability"
)

const (
	// MarketSellers is how many sellers [Market] needs.
	MarketSellers = 3

	pairCapability  = "bench-pair/work" // that the first seller alone offers
	tradeCapability = "bench-trade/work"

	manyDeals = 1_000_000   // that one buyer may have under way with one seller
	moveSize  = 4 << 10     // bytes: about what a signed move has
	dealTime  = time.Minute // at most, of one negotiation
)

// Ways of [Market].
const (
	negotiated = "market"
	plain      = "messages"
)

// Market measures negotiations that end in a contract, with one seller and with
// three, and as many durable messages without a market.
func Market(ctx context.Context, cfg Config) (*Report, error) {
	start := time.Now()
	cfg.defaults()
	if len(cfg.Sellers) != MarketSellers {
		return nil, fmt.Errorf("%d sellers, want %d", len(cfg.Sellers), MarketSellers)
	}
	b, err := newBuyer(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer b.close()
	r := cfg.report("market",
		"buyer and sellers are processes on 127.0.0.1 with a database each, on the same disk; "+rotation,
		"what decides for buyer and seller speaks to its node through the local API, as programs do: that is in "+negotiated+", and not in "+plain,
		negotiated+": a request reaches every seller, each proposes; the buyer counters the last of them, that seller amends, the buyer accepts; it ends when both have signed the contract and the buyer has stored it. Losing proposals are left to expire, contracts are not settled",
		fmt.Sprintf(plain+": as many at-least-once calls between the same nodes, each after that which it depends on there: two with every seller at once, then three with one of them; of %d KiB, about what a move has; all sent by the buyer", moveSize>>10),
		fmt.Sprintf("a negotiation with one seller is %d durable messages, one with %d sellers %d", messages(1), MarketSellers, messages(MarketSellers)))
	r.Method = r.Method[1:] // there are more processes than two
	if err := r.fill(ctx, cfg, b.workloads(cfg.InFlight)); err != nil {
		return nil, err
	}
	r.compare(marketComparisons(cfg.InFlight))
	r.ElapsedS = time.Since(start).Seconds()
	return r, nil
}

// messages is how many moves of a negotiation are sent as messages of their own: a
// request and a proposal for each seller, counteroffer, amendment and acceptance. The
// countersignature is in the answer to the last.
func messages(sellers int) int { return 2*sellers + 3 }

func marketTable(sellers, inFlight int) string {
	if sellers == 1 {
		return fmt.Sprintf("negotiation, 1 seller, %d in flight", inFlight)
	}
	return fmt.Sprintf("negotiation, %d sellers, %d in flight", sellers, inFlight)
}

func marketComparisons(inFlight []int) (cs []comparison) {
	for _, sellers := range []int{1, MarketSellers} {
		for _, n := range inFlight {
			table := marketTable(sellers, n)
			cs = append(cs, comparison{table + ": rate, " + negotiated + " / " + plain, table, negotiated, plain, perSecond, limit{}})
			if n == 1 {
				cs = append(cs, comparison{table + ": p50, " + negotiated + " / " + plain, table, negotiated, plain, p50, limit{}})
			}
		}
	}
	return cs
}

// buyer is the asking side of [Market].
type buyer struct {
	*member
	api     *api.Client
	sellers []Server
	events  sync.WaitGroup
	stop    context.CancelFunc
	turn    atomic.Int64 // which seller gets the rest of the messages

	mu    sync.Mutex
	heard map[string]chan *openmeshv1.MarketEvent // by request
}

// newBuyer returns a buyer that has made a deal with all sellers: it knows them.
func newBuyer(ctx context.Context, cfg Config) (b *buyer, err error) {
	b = &buyer{sellers: cfg.Sellers, heard: make(map[string]chan *openmeshv1.MarketEvent)}
	if b.member, err = join(ctx, cfg.Home, cfg.Setup, cfg.Sellers[0].Node); err != nil {
		return nil, err
	}
	ctx, b.stop = context.WithCancel(ctx)
	if b.api, err = api.Dial(cfg.Home); err == nil {
		err = b.listen(ctx)
	}
	if err == nil {
		err = b.meet(ctx)
	}
	if err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

func (b *buyer) close() {
	b.stop()
	b.events.Wait()
	if b.api != nil {
		b.api.Close()
	}
	b.leave()
}

// meet waits until the directory knows all sellers, and deals with them once.
func (b *buyer) meet(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, dealTime)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for version, found := 0, 0; found < len(b.sellers); version++ {
		resp, err := b.api.Directory.Discover(ctx, &openmeshv1.DiscoverRequest{Capability: tradeCapability, Version: fmt.Sprintf(">=0.0.%d", version)})
		if err == nil {
			found = len(resp.Results)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("look for %d sellers, %d found: %w", len(b.sellers), found, errorOf(err, ctx.Err()))
		}
	}
	for _, deal := range []func(context.Context) error{b.with(1, b.negotiate), b.with(len(b.sellers), b.negotiate), b.with(len(b.sellers), b.exchange)} {
		if err := deal(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (b *buyer) with(sellers int, f func(context.Context, int) error) func(context.Context) error {
	return func(ctx context.Context) error { return f(ctx, sellers) }
}

func (b *buyer) workloads(inFlight []int) (ws []workload) {
	for _, sellers := range []int{1, len(b.sellers)} {
		for _, n := range inFlight {
			ws = append(ws, workload{name: marketTable(sellers, n), unit: "contracts/s", concurrency: n, ways: []way{
				{name: negotiated, do: b.with(sellers, b.negotiate)},
				{name: plain, do: b.with(sellers, b.exchange)},
			}})
		}
	}
	return ws
}

// listen has the events of negotiations sorted by request, until ctx ends.
func (b *buyer) listen(ctx context.Context) error {
	stream, err := watch(ctx, b.api)
	if err != nil {
		return err
	}
	b.events.Go(func() {
		defer stream.Close()
		for stream.Receive() {
			switch ev := stream.Msg(); ev.Event {
			case "propose", "amend", "contract":
				b.box(ev.Rfp) <- ev // which has room for all of a negotiation
			}
		}
	})
	return nil
}

// watch returns the events from now on.
func watch(ctx context.Context, c *api.Client) (*connect.ServerStreamForClient[openmeshv1.MarketEvent], error) {
	stream, err := c.Market.Watch(ctx, &openmeshv1.WatchMarketRequest{})
	if err == nil {
		stream.ResponseHeader() // comes when the node has begun
	}
	return stream, err
}

// box is where the events of a request go; the first may come before the answer to the
// call that posted it.
func (b *buyer) box(rfp string) chan *openmeshv1.MarketEvent {
	b.mu.Lock()
	defer b.mu.Unlock()
	ch := b.heard[rfp]
	if ch == nil {
		ch = make(chan *openmeshv1.MarketEvent, MarketSellers+2)
		b.heard[rfp] = ch
	}
	return ch
}

func (b *buyer) forget(rfp string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.heard, rfp)
}

// negotiate makes one contract.
func (b *buyer) negotiate(ctx context.Context, sellers int) error {
	ctx, cancel := context.WithTimeout(ctx, dealTime)
	defer cancel()
	rfp, err := b.api.Market.PostRFP(ctx, &openmeshv1.PostRFPRequest{Json: wanted(sellers)})
	if err != nil {
		return err
	}
	defer b.forget(rfp.Rfp)
	var proposal string
	for range sellers {
		if proposal, err = b.await(ctx, rfp.Rfp, "propose"); err != nil {
			return err
		}
	}
	if _, err := b.api.Market.Counter(ctx, &openmeshv1.OfferRequest{Proposal: proposal, Json: priced("8.00")}); err != nil {
		return err
	}
	if _, err := b.await(ctx, rfp.Rfp, "amend"); err != nil {
		return err
	}
	if _, err := b.api.Market.Accept(ctx, &openmeshv1.MoveRequest{Proposal: proposal}); err != nil {
		return err
	}
	_, err = b.await(ctx, rfp.Rfp, "contract")
	return err
}

// await waits for an event of a request, and returns the negotiation that it is of.
func (b *buyer) await(ctx context.Context, rfp, event string) (proposal string, err error) {
	select {
	case ev := <-b.box(rfp):
		if ev.Event != event {
			return "", fmt.Errorf("request %s: %s came, want %s", rfp, ev.Event, event)
		}
		return ev.Proposal, nil
	case <-ctx.Done():
		return "", fmt.Errorf("request %s: wait for %s: %w", rfp, event, ctx.Err())
	}
}

// wanted is a request for what so many sellers offer.
func wanted(sellers int) string {
	name := tradeCapability
	if sellers == 1 {
		name = pairCapability
	}
	return fmt.Sprintf(`{"item": "Work that is never done", "quantity": 20, "price": {"max": "12.50", "currency": "EUR"},
		"delivery": {"terms": "One file a page"}, "deadline": %q, "capability": %q}`, time.Now().UTC().Add(time.Hour).Format(time.RFC3339), name)
}

// priced is an offer at a price, and else as in the request or offer before.
func priced(amount string) string { return fmt.Sprintf(`{"terms": {"price": {"amount": %q}}}`, amount) }

// exchange sends as many messages as a negotiation has.
func (b *buyer) exchange(ctx context.Context, sellers int) error {
	group, all := errgroup.WithContext(ctx)
	for _, s := range b.sellers[:sellers] {
		group.Go(func() error { return b.send(all, s, 2) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return b.send(ctx, b.sellers[b.turn.Add(1)%int64(sellers)], 3)
}

// send sends durable messages, each when the one before it was answered.
func (b *buyer) send(ctx context.Context, to Server, n int) error {
	for range n {
		_, err := b.Call(ctx, &openmeshv1.CallRequest{
			Target: to.Agent, Capability: countCapability, Qos: "at-least-once", Body: &openmeshv1.CallRequest_Json{Json: move},
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// move is the body of a message in place of a move, in JSON.
var move = `"` + strings.Repeat("x", moveSize-2) + `"`

// serveSeller runs a seller. One that knows no other node serves the directory too.
func serveSeller(ctx context.Context, home string, setup Setup, ready func(Server) error) error {
	role := "agent"
	if len(setup.Bootstrap) == 0 {
		role = "backbone"
	}
	n, err := newNode(ctx, home, setup, []string{role}, setup.Bootstrap, nil)
	if err != nil {
		return err
	}
	if err := offerWork(n, setup); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return n.Run(ctx) })
	group.Go(func() error {
		select {
		case <-n.Ready():
			return sell(ctx, home, func() error { return ready(Server{Agent: n.Info().Agent, Node: n.Info().Addrs}) })
		case <-ctx.Done():
			return nil
		}
	})
	return group.Wait()
}

// offerWork gives the node its capabilities: what is traded, which nobody calls, and
// what takes messages.
func offerWork(n *node.Node, setup Setup) error {
	names := []string{tradeCapability, countCapability}
	if len(setup.Bootstrap) == 0 {
		names = append(names, pairCapability)
	}
	count := func(_ context.Context, r *handlers.Request) (*handlers.Response, error) {
		return &handlers.Response{Body: strconv.AppendInt(nil, int64(len(r.Body)), 10)}, nil
	}
	var errs []error
	for _, name := range names {
		errs = append(errs, n.Registry().AddHandler(&capability.Capability{Name: name, Version: "1.0.0"}, handlers.HandlerFunc(count)))
	}
	return errors.Join(errs...)
}

// sell answers requests with a proposal and counteroffers with an amendment, until ctx
// ends.
func sell(ctx context.Context, home string, ready func() error) error {
	c, err := api.Dial(home)
	if err != nil {
		return err
	}
	defer c.Close()
	stream, err := watch(ctx, c)
	if err != nil {
		return err
	}
	defer stream.Close()
	if err := ready(); err != nil {
		return err
	}
	group, moving := errgroup.WithContext(ctx)
	for moving.Err() == nil && stream.Receive() {
		switch ev := stream.Msg(); ev.Event {
		case "posted":
			group.Go(func() error {
				_, err := c.Market.Propose(moving, &openmeshv1.ProposeRequest{Rfp: ev.Rfp, Json: priced("9.00")})
				return err
			})
		case "counter":
			group.Go(func() error {
				_, err := c.Market.Amend(moving, &openmeshv1.OfferRequest{Proposal: ev.Proposal, Json: priced("8.50")})
				return err
			})
		}
	}
	err = group.Wait()
	if ctx.Err() != nil { // it was stopped, in the middle of whatever it did
		return nil
	}
	return errors.Join(err, stream.Err())
}
