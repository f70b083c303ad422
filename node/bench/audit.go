package bench

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"

	"openmesh/node/audit"
	"openmesh/node/audit/replay"
	"openmesh/node/bench/load"
	"openmesh/node/keys"
	"openmesh/node/store"
	"openmesh/protocols/identity"
	deal "openmesh/protocols/market"
	"openmesh/protocols/market/document"
)

const (
	entrySize = 1 << 10 // bytes of a payload
	toReplay  = 200     // negotiations in the log that are run again
	dealSteps = 6       // of each, with the request
)

// Ways of [Audit].
const (
	stored   = "put"
	appended = "append"
	hashed   = "hash"
	verified = "verify"
	parsed   = "parse"
	replayed = "replay"
)

// Audit measures the audit log: what recording takes beside storing as much, how fast a
// log is verified beside hashing as much, and how fast negotiations are run again
// beside checking their moves once.
func Audit(ctx context.Context, cfg Config) (r *Report, err error) {
	start := time.Now()
	cfg.defaults()
	l, err := newLedger(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	r = cfg.report("audit",
		fmt.Sprintf("one process with two SQLite databases on one disk; an entry has a payload of %d bytes; %s", entrySize, rotation),
		fmt.Sprintf(stored+": a document of %d bytes is stored under a name of its own; "+appended+": an entry is added to the log, with its place in the Merkle tree; both end when that is synced", entrySize),
		fmt.Sprintf(verified+": a log of %d entries is read and recomputed: payloads, leaves, tree, checkpoints; "+hashed+": SHA-256 over as many payloads, in memory", cfg.Entries),
		fmt.Sprintf(replayed+": the %d entries of a negotiation are read from that log and run again: signatures, documents, machine; "+parsed+": the same moves are checked once, in memory", dealSteps))
	r.Method, r.Transport = r.Method[1:], "" // there is one process
	if err := r.fill(ctx, cfg, l.workloads(cfg)); err != nil {
		return nil, err
	}
	r.compare(auditComparisons(cfg))
	r.ElapsedS = time.Since(start).Seconds()
	return r, nil
}

func appendTable(appenders int) string {
	if appenders == 1 {
		return "append, 1 appender"
	}
	return fmt.Sprintf("append, %d appenders", appenders)
}

func auditComparisons(cfg Config) (cs []comparison) {
	for _, n := range cfg.Senders {
		cs = append(cs, comparison{appendTable(n) + ": " + appended + " / " + stored, appendTable(n), appended, stored, perSecond, limit{}})
	}
	return append(cs,
		comparison{verified + " / " + hashed, verified, verified, hashed, perSecond, limit{}},
		comparison{replayed + " / " + parsed, replayed, replayed, parsed, perSecond, limit{}})
}

// ledger is two logs of one agent: one that grows, and one that is read.
type ledger struct {
	keys, peer  *keys.Keys
	stores      []*store.Store
	grows, kept *audit.Log
	count       atomic.Int64 // entries and documents, for their names
	next        int          // negotiation to run again
	deals       [][]*deal.Signed
	ids         []string // of the negotiations
}

func newLedger(ctx context.Context, cfg Config) (l *ledger, err error) {
	l = new(ledger)
	if err := l.open(ctx, cfg); err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

func (l *ledger) open(ctx context.Context, cfg Config) (err error) {
	if l.keys, err = newKeys(ctx, filepath.Join(cfg.Home, "agent")); err != nil {
		return err
	}
	if l.peer, err = newKeys(ctx, filepath.Join(cfg.Home, "peer")); err != nil {
		return err
	}
	if l.grows, err = l.newLog(ctx, filepath.Join(cfg.Home, "grows")); err != nil {
		return err
	}
	if l.kept, err = l.newLog(ctx, filepath.Join(cfg.Home, "kept")); err != nil {
		return err
	}
	for range toReplay {
		if err := l.negotiate(ctx); err != nil {
			return fmt.Errorf("make a negotiation: %w", err)
		}
	}
	for l.kept.Size() < uint64(cfg.Entries) {
		var entries []audit.Entry
		for range min(uint64(cfg.Entries)-l.kept.Size(), 1000) {
			entries = append(entries, l.entry())
		}
		if _, _, err := l.kept.Commit(ctx, "fill the log", nil, entries...); err != nil {
			return err
		}
	}
	_, err = l.kept.Checkpoint(ctx)
	return err
}

func (l *ledger) newLog(ctx context.Context, dir string) (*audit.Log, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	db, err := store.Open(ctx, store.Config{Path: filepath.Join(dir, "openmesh.db"), Owner: string(l.keys.Agent)})
	if err != nil {
		return nil, err
	}
	l.stores = append(l.stores, db)
	signer := func() (crypto.PrivKey, *identity.Certificate) { return l.keys.Host, l.keys.Certificate }
	return audit.Open(ctx, audit.Config{DB: db, Agent: l.keys.Agent, Signer: signer, Related: replay.Related})
}

func (l *ledger) close() (err error) {
	for _, db := range l.stores {
		err = errors.Join(err, db.Close())
	}
	return err
}

// entry is one of a session, with a payload that no other has.
func (l *ledger) entry() audit.Entry {
	n := l.count.Add(1)
	return audit.Entry{
		Kind: "signal.offer", Direction: audit.Received, Agent: l.peer.Agent, Session: strconv.FormatInt(n%1024, 16), Payload: l.body(n), Note: "accepted",
	}
}

func (l *ledger) body(n int64) []byte {
	return append(strconv.AppendInt(nil, n, 10), make([]byte, entrySize-20)...)
}

func (l *ledger) workloads(cfg Config) (ws []workload) {
	for _, n := range cfg.Senders {
		ws = append(ws, workload{name: appendTable(n), unit: "entries/s", concurrency: n, ways: []way{{name: stored, do: l.put}, {name: appended, do: l.add}}})
	}
	entries := int(l.kept.Size())
	return append(ws,
		workload{name: verified, unit: "entries/s", concurrency: 1, ways: []way{
			{name: hashed, sample: each(entries, l.hash)}, {name: verified, sample: each(entries, l.verify)}}},
		workload{name: replayed, unit: "entries/s", concurrency: 1, ways: []way{
			{name: parsed, sample: each(dealSteps, l.parse)}, {name: replayed, sample: each(dealSteps, l.replay)}}})
}

// each has an operation that works on so many entries counted as so many; its times are
// those of the whole operation.
func each(entries int, do func(context.Context) error) func(context.Context, int, time.Duration) (load.Sample, error) {
	return func(ctx context.Context, workers int, d time.Duration) (load.Sample, error) {
		s, err := load.Run(ctx, load.Config{Workers: workers, Time: d, New: func(context.Context) (load.Worker, error) { return load.Worker{Do: do}, nil }})
		s.PerSecond *= float64(entries)
		return s, err
	}
}

func (l *ledger) put(ctx context.Context) error {
	n := l.count.Add(1)
	return l.stores[0].Put(ctx, "bench", strconv.FormatInt(n, 10), l.body(n))
}

func (l *ledger) add(ctx context.Context) error {
	_, _, err := l.grows.Commit(ctx, "append", nil, l.entry())
	return err
}

func (l *ledger) hash(context.Context) error {
	body := l.body(0)
	for range l.kept.Size() {
		sum := sha256.Sum256(body)
		body[0] = sum[0]
	}
	return nil
}

func (l *ledger) verify(ctx context.Context) error {
	r, err := l.kept.Verify(ctx)
	if err == nil && !r.OK {
		err = r.Bad
	}
	return err
}

func (l *ledger) parse(context.Context) error {
	for _, m := range l.deals[l.turn()] {
		if _, err := deal.Parse(m.Raw); err != nil {
			return err
		}
	}
	return nil
}

func (l *ledger) replay(ctx context.Context) error {
	id := l.ids[l.turn()]
	entries, err := l.kept.Of(ctx, id)
	if err != nil {
		return err
	}
	if r := replay.Run(l.keys.Agent, id, entries); !r.OK || len(r.Steps) != dealSteps {
		return fmt.Errorf("replay %s: %d steps: %s", id, len(r.Steps), r.Divergence)
	}
	return nil
}

func (l *ledger) turn() int {
	l.next++
	return l.next % toReplay
}

// negotiate records a negotiation from the request to the contract; this agent buys.
func (l *ledger) negotiate(ctx context.Context) error {
	now := time.Now().UTC().Truncate(time.Millisecond)
	rfp, err := l.request(now)
	if err != nil {
		return err
	}
	n, err := deal.NewNegotiation(rfp, l.peer.Agent)
	if err != nil {
		return err
	}
	entries := []audit.Entry{{At: now, Kind: "market.rfp", Direction: audit.Sent, Ref: rfp.Hash.ID(), Payload: rfp.Raw, Note: deal.Requested.String()}}
	for _, k := range []deal.Kind{deal.Propose, deal.Counter, deal.Amend, deal.Accept, deal.Conclude} {
		m, err := l.move(n, k, now)
		if err != nil {
			return fmt.Errorf("%s: %w", k, err)
		}
		if n, _, err = n.Next(m, now); err != nil {
			return err
		}
		e := audit.Entry{At: now, Kind: "market." + k.String(), Direction: audit.Sent, Agent: l.peer.Agent, Ref: n.ID(), Payload: m.Raw, Note: n.StateAfter(m.Hash).String()}
		if m.Author == l.peer.Agent {
			e.Direction = audit.Received
		}
		entries = append(entries, e)
	}
	l.deals, l.ids = append(l.deals, append(n.Moves(), rfp)), append(l.ids, n.ID())
	_, _, err = l.kept.Commit(ctx, "record a negotiation", nil, entries...)
	return err
}

func (l *ledger) request(now time.Time) (*deal.Signed, error) {
	doc, err := (&deal.RFP{
		Schema: document.SchemaRFP, Buyer: l.keys.Agent, Item: fmt.Sprintf("Work %d that is never done", l.count.Add(1)), Quantity: 20,
		Price: deal.PriceRange{Currency: "EUR"}, Deadline: now.Add(time.Hour), Capability: tradeCapability, Created: now,
	}).Canonical()
	if err != nil {
		return nil, err
	}
	return deal.Sign(deal.Move{Kind: deal.Request, Author: l.keys.Agent, At: now, Schema: document.SchemaRFP, Document: doc}, l.keys.Host, l.keys.Certificate)
}

// move is a move of that kind by the side that may make it.
func (l *ledger) move(n deal.Negotiation, k deal.Kind, now time.Time) (*deal.Signed, error) {
	by, to := l.keys, l.peer
	if k == deal.Propose || k == deal.Amend || k == deal.Conclude {
		by, to = to, by
	}
	m := deal.Move{Kind: k, RFP: n.RFP().Hash, Prev: n.Head(), Author: by.Agent, To: to.Agent, At: now}
	var err error
	switch k {
	case deal.Accept:
		m.Schema = document.SchemaContract
		_, m.Document, err = n.Draft(l.keys.Certificate, l.peer.Certificate, deal.Checkpoints{}, now)
		if err == nil {
			m.ContractSignature, err = deal.SignContract(m.Document, by.Host)
		}
	case deal.Conclude:
		m.ContractSignature, err = deal.SignContract(n.Agreement().Document, by.Host)
	default:
		m.Schema = document.SchemaProposal
		m.Document, err = offerOf(n, now)
	}
	if err != nil {
		return nil, err
	}
	return deal.Sign(m, by.Host, by.Certificate)
}

func offerOf(n deal.Negotiation, now time.Time) ([]byte, error) {
	price, err := deal.ParseDecimal(fmt.Sprintf("%d.50", 9-n.Round()))
	if err != nil {
		return nil, err
	}
	return (&deal.Proposal{
		Schema: document.SchemaProposal, RFP: n.RFP().Hash, Seller: n.Seller(), Buyer: n.Buyer(), ValidUntil: now.Add(time.Hour),
		Terms: deal.Terms{Price: deal.Money{Amount: price, Currency: "EUR"}, Quantity: 20},
	}).Canonical()
}
