// Package market is an agent's dealings: it keeps the negotiations that package
// [openmesh/protocols/market] defines, sends and takes moves, and minds deadlines
// and quantities.
//
//	PostRFP ─▶ request ─▶ providers, now and as they appear ─▶ talk with each seller
//	                                                             │ own move: sign
//	  move of the other side ─▶ Receive ─ parse, verify ─────────┤
//	                                                             ▼
//	              audit entries and rows, one transaction ──▶ receipt, event, send
//
// # What is sent
//
// A move is committed before it is sent, and sent until the other side has answered it
// with a receipt, over restarts of both. Each attempt is a durable message of a
// session, to the capability openmesh/market; who is away finds it in its mailbox. A
// receipt has the moves of the answering side that follow the one received: the
// countersignature of an acceptance, or what a move lost against. So an answer that
// was lost comes with the next one.
//
// # Acceptance
//
// Who accepts signs the contract and is bound. The offeror's node answers at once:
// it signs too, or says that the offer had expired, or that the quantity is awarded.
// A buyer holds the quantity of an acceptance until then, so that no more is awarded
// than was asked for, whatever is accepted at the same time.
package market

import (
	"cmp"
	"context"
	"math"
	"sync"
	"time"
	"weak"

	"github.com/libp2p/go-libp2p/core/crypto"
	"go.uber.org/zap"

	"openmesh/node/audit"
	"openmesh/node/store"
	"openmesh/node/store/deals"
	"openmesh/protocols/identity"
	deal "openmesh/protocols/market"
)

// Reply is how a peer answered a move.
type Reply struct {
	Body    []byte // a receipt
	Session string // over which it came
}

// Peers is how an [Engine] reaches others.
type Peers interface {
	// Post sends a move as a durable message with a key: one that was posted before is
	// not sent again. It returns the answer, or ctx ends first.
	Post(ctx context.Context, to identity.AgentID, key string, move []byte) (Reply, error)

	// Providers finds agents that can serve a request, best first.
	Providers(ctx context.Context, r *deal.RFP, limit int) ([]identity.AgentID, error)

	// Broadcast tells a request to whoever listens for its capability.
	Broadcast(ctx context.Context, r *deal.RFP, move []byte)

	// Speaks returns the version of market/proposal to use with an agent, such as
	// market/proposal@v2.1.0.
	Speaks(to identity.AgentID) string
}

// Config is what an [Engine] needs.
type Config struct {
	Agent  identity.AgentID
	Signer func() (crypto.PrivKey, *identity.Certificate)
	Verify func(certificate []byte) (*identity.Certificate, error) // that it is of this realm, in force and not superseded

	// VerifyFrom is Verify for what came over a session, by its id, from the certificate's
	// agent: that may also be a former one of the agent's, see [deal.ParseFrom].
	VerifyFrom func(session string, certificate []byte) (*identity.Certificate, error)

	DB    *store.Store
	Log   *audit.Log
	Peers Peers

	// Offers reports whether this agent offers a capability, in a range of versions, to
	// another: requests for others are not kept.
	Offers func(buyer identity.AgentID, capability, versions string) bool

	// Details checks details of a document against the schema that it names; from is who
	// has that schema.
	Details func(ctx context.Context, from identity.AgentID, name, cid string, details []byte) error

	// Decide takes part in negotiations by itself; nil: people and programs do, over
	// the API.
	Decide Decider

	ProposalTTL time.Duration // how long an offer stands that does not say; default 24 h

	MaxOpen   int // requests of others that are kept at once, a quarter of one agent; default 10,000
	MaxRounds int // offers in one negotiation; default 64
	Reach     int // providers that a request is sent to; default 64

	Observe func(direction string, k deal.Kind, err error) // of moves; may be nil
	Logger  *zap.Logger
}

const (
	workers  = 128              // that wait for answers
	deciders = 32               // that wait for decisions
	hearers  = 32               // that look at what was broadcast
	patience = 15 * time.Second // for one answer, before others have their turn
	tick     = time.Second

	firstAsk, lastAsk     = 3 * time.Second, time.Minute // between searches for providers
	firstRetry, lastRetry = time.Second, 5 * time.Minute // between attempts to send
	lastLook              = time.Minute                  // between looks for the answer to a message that is on its way

	maxSellers = 1024 // negotiations under one request
	maxSkew    = identity.ClockSkew
)

// Engine is an agent's dealings. Safe for concurrent use.
type Engine struct {
	cfg       Config
	rows      *deals.Store
	jobs      *queue
	decisions *queue // to make: handlers may take their time, and what is sent does not wait for them
	heard     *queue // requests that were broadcast
	events    *events
	loaded    chan struct{}

	mu           sync.Mutex
	requests     map[string]*request              // open ones, by id
	known        map[string]weak.Pointer[request] // these and others that somebody works on
	talks        map[string]*talk                 // that are not over, by id
	negotiations map[string]weak.Pointer[talk]    // these and others that somebody works on
	open         map[string]int                   // how many of them, by request
	received     int                              // requests of others among them
	buyers       map[identity.AgentID]int         // how many are whose
	taking       map[string]chan struct{}         // requests that are being taken or read, by id
	dirty        map[*talk]struct{}               // changed in memory alone: a receipt came
	uses         map[string]*use                  // by contract
}

// New returns an engine that is not running.
func New(cfg Config) *Engine {
	cfg.ProposalTTL = cmp.Or(cfg.ProposalTTL, 24*time.Hour)
	cfg.MaxOpen = cmp.Or(cfg.MaxOpen, 10_000)
	cfg.MaxRounds = cmp.Or(cfg.MaxRounds, 64)
	cfg.Reach = cmp.Or(cfg.Reach, 64)
	if cfg.Observe == nil {
		cfg.Observe = func(string, deal.Kind, error) {}
	}
	return &Engine{
		cfg: cfg, rows: deals.New(cfg.DB), jobs: newQueue(), decisions: newQueue(), heard: newQueue(), events: newEvents(), loaded: make(chan struct{}),
		requests: make(map[string]*request), known: make(map[string]weak.Pointer[request]), talks: make(map[string]*talk), negotiations: make(map[string]weak.Pointer[talk]), open: make(map[string]int), taking: make(map[string]chan struct{}), buyers: make(map[identity.AgentID]int),
		dirty: make(map[*talk]struct{}), uses: make(map[string]*use),
	}
}

// Run brings back what is stored, and then sends, asks and minds deadlines until ctx
// ends.
func (e *Engine) Run(ctx context.Context) error {
	if err := e.load(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	close(e.loaded)
	var group sync.WaitGroup
	for range workers {
		group.Go(func() { e.jobs.work(ctx) })
	}
	for range deciders {
		group.Go(func() { e.decisions.work(ctx) })
	}
	for range hearers {
		group.Go(func() { e.heard.work(ctx) })
	}
	clock := time.NewTicker(tick)
	defer clock.Stop()
	for {
		select {
		case now := <-clock.C:
			e.sweep(ctx, now)
		case <-ctx.Done():
			e.jobs.close()
			e.decisions.close()
			e.heard.close()
			group.Wait()
			return e.flush(context.WithoutCancel(ctx))
		}
	}
}

// Loaded is closed once Run has brought back what is stored; before, Receive and all
// that acts wait for it.
func (e *Engine) Loaded() <-chan struct{} { return e.loaded }

func (e *Engine) await(ctx context.Context) error {
	select {
	case <-e.loaded:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// sweep does what is due.
func (e *Engine) sweep(ctx context.Context, now time.Time) {
	e.mu.Lock()
	var requests []*request
	for _, r := range e.requests {
		requests = append(requests, r)
	}
	e.clean()
	var talks []*talk
	for _, t := range e.talks {
		talks = append(talks, t)
	}
	e.mu.Unlock()
	for _, r := range requests {
		e.mind(ctx, r, now)
	}
	for _, t := range talks {
		e.mindTalk(ctx, t, now)
	}
	if err := e.flush(ctx); err != nil && ctx.Err() == nil {
		e.cfg.Logger.Warn("receipts not stored", zap.Error(err))
	}
}

// queue is work for a bounded number of goroutines; the queue itself is bounded by
// what is negotiated.
type queue struct {
	mu     sync.Mutex
	ready  *sync.Cond
	jobs   []func(context.Context)
	closed bool
}

func newQueue() *queue {
	q := new(queue)
	q.ready = sync.NewCond(&q.mu)
	return q
}

func (q *queue) add(job func(context.Context)) { q.addUpTo(math.MaxInt, job) }

// addUpTo adds a job unless most are waiting already.
func (q *queue) addUpTo(most int, job func(context.Context)) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.jobs) < most {
		q.jobs = append(q.jobs, job)
		q.ready.Signal()
	}
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.ready.Broadcast()
}

// work does jobs until the queue is closed.
func (q *queue) work(ctx context.Context) {
	for {
		q.mu.Lock()
		for len(q.jobs) == 0 && !q.closed {
			q.ready.Wait()
		}
		if q.closed {
			q.mu.Unlock()
			return
		}
		job := q.jobs[0]
		q.jobs[0] = nil
		q.jobs = q.jobs[1:]
		q.mu.Unlock()
		job(ctx)
	}
}
