package bench

import (
	"context"
	"crypto/rand"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"go.uber.org/zap"

	"openmesh/node/bench/load"
	"openmesh/overlay"
	"openmesh/protocols/identity"
	"openmesh/protocols/session"
	"openmesh/protocols/session/seal"
	"openmesh/protocols/signal"
)

const (
	rekeyCallers = 4
	steady       = "steady"
	renewed      = "renewed"
)

// Rekey measures the change of a session's keys, for each suite: alone, and what
// it costs calls that go on meanwhile.
func Rekey(ctx context.Context, cfg Config) (*Report, error) {
	start := time.Now()
	cfg.defaults()
	r := cfg.report("rekey",
		"a change of keys alone is the work of both sides, in one process and without a wire: key generation, encapsulation, decapsulation, derivation",
		fmt.Sprintf("%d goroutines make calls of %d bytes in a session whose keys change every %s (%s), or not at all during the run (%s); calls are in a session of its own host", rekeyCallers, PayloadSize, cfg.Every, renewed, steady),
		"CPU is the time of user and system of both processes, for each call")
	if err := r.fill(ctx, cfg, []workload{{name: "change of keys, alone", unit: "changes/s", concurrency: 1, ways: rekeyAlone()}}); err != nil {
		return nil, err
	}
	for i, suite := range signal.Suites() {
		if err := rekeySuite(ctx, cfg, r, suite, filepath.Join(cfg.Home, fmt.Sprint(i))); err != nil {
			return nil, fmt.Errorf("measure %s: %w", suite, err)
		}
	}
	r.ElapsedS = time.Since(start).Seconds()
	return r, nil
}

// rekeyAlone changes the keys of two sides, suite by suite.
func rekeyAlone() (ways []way) {
	for _, suite := range signal.Suites() {
		ways = append(ways, way{name: suite.String(), each: func(context.Context) (load.Worker, error) {
			e, err := newEnds(suite)
			return load.Worker{Do: func(context.Context) error { return e.change(time.Now()) }}, err
		}})
	}
	return ways
}

// keyEnds are the keys of both sides of a session.
type keyEnds struct{ initiator, responder *seal.Keys }

func newEnds(suite signal.Suite) (e keyEnds, err error) {
	var secret [32]byte
	rand.Read(secret[:])
	other := secret
	cfg := seal.Config{Suite: suite, Initiator: true, Interval: time.Hour}
	if e.initiator, err = seal.New(cfg, &secret, time.Now()); err != nil {
		return e, err
	}
	cfg.Initiator = false
	e.responder, err = seal.New(cfg, &other, time.Now())
	return e, err
}

// change takes both sides to the next epoch. Each shows the other, with a frame,
// that it is there.
func (e keyEnds) change(now time.Time) error {
	m, err := e.initiator.Propose()
	if err != nil {
		return err
	}
	reply, err := e.responder.Answer(m, now)
	if err != nil {
		return err
	}
	if _, err := e.initiator.Answer(reply, now); err != nil {
		return err
	}
	epoch := uint64(e.initiator.Epoch())
	for _, way := range [][2]*seal.Keys{{e.initiator, e.responder}, {e.responder, e.initiator}} {
		if _, _, err := way[1].Open(way[0].Seal(nil, seal.Ping, epoch, payload)); err != nil {
			return fmt.Errorf("frame of epoch %d: %w", epoch, err)
		}
	}
	e.initiator.Sweep(now.Add(time.Hour)) // as if each epoch had been long
	e.responder.Sweep(now.Add(time.Hour))
	return nil
}

// rekeySuite compares a session whose keys change with one whose keys do not.
func rekeySuite(ctx context.Context, cfg Config, r *Report, suite signal.Suite, home string) error {
	o, err := newOwner(ctx, home, cfg, suite)
	if err != nil {
		return err
	}
	defer o.leave()
	cpu := map[string][]float64{}
	var ways []way
	sessions := map[string]*session.Session{}
	for name, every := range map[string]time.Duration{steady: 24 * time.Hour, renewed: cfg.Every} {
		s, err := o.open(ctx, cfg.Server, every)
		if err != nil {
			return err
		}
		sessions[name] = s
		ways = append(ways, way{name: name, sample: func(ctx context.Context, workers int, d time.Duration) (load.Sample, error) {
			sample, took, err := withCPU(ctx, s, workers, d)
			cpu[name] = append(cpu[name], took)
			return sample, err
		}})
	}
	w := workload{name: fmt.Sprintf("calls, %d concurrent, %s", rekeyCallers, suite), unit: "calls/s", concurrency: rekeyCallers, ways: ways}
	if err := r.fill(ctx, cfg, []workload{w}); err != nil {
		return err
	}
	r.compare([]comparison{
		{"rate, renewed / steady, " + suite.String(), w.name, renewed, steady, perSecond, atLeast(0.9)},
		{"p99, renewed / steady, " + suite.String(), w.name, renewed, steady, p99, limit{}},
	})
	var ratios []float64
	for i := range cpu[renewed] {
		ratios = append(ratios, cpu[renewed][i]/cpu[steady][i])
	}
	r.judge("CPU of a call, renewed / steady, "+suite.String(), load.Median(ratios), limit{})
	if before, after := sessions[steady].Info().Epoch, sessions[renewed].Info().Epoch; after <= before {
		return fmt.Errorf("the keys did not change: epoch %d, steady %d", after, before)
	}
	return nil
}

// withCPU makes calls in s, and returns the CPU time of both sides for each of
// them, in µs.
func withCPU(ctx context.Context, s *session.Session, workers int, d time.Duration) (sample load.Sample, perCall float64, err error) {
	there, err := usageThere(ctx, s)
	if err != nil {
		return sample, 0, err
	}
	here, err := cpuTime()
	if err != nil {
		return sample, 0, err
	}
	begin := time.Now()
	each := func(context.Context) (load.Worker, error) {
		return load.Worker{Do: func(ctx context.Context) error { return call(ctx, s) }}, nil
	}
	if sample, err = load.Run(ctx, load.Config{Workers: workers, Time: d, New: each}); err != nil {
		return sample, 0, err
	}
	calls := sample.PerSecond * time.Since(begin).Seconds()
	hereAfter, err := cpuTime()
	if err != nil {
		return sample, 0, err
	}
	thereAfter, err := usageThere(ctx, s)
	return sample, load.Micros(hereAfter-here+thereAfter.CPU-there.CPU) / calls, err
}

// owner is an agent that has sessions, with one suite, and is nothing else: a
// node's sessions choose the suite themselves.
type owner struct {
	host     *overlay.Host
	sessions *session.Endpoint
	stop     context.CancelFunc
	done     sync.WaitGroup
}

func newOwner(ctx context.Context, home string, cfg Config, suite signal.Suite) (*owner, error) {
	k, err := newKeys(ctx, home)
	if err != nil {
		return nil, err
	}
	o := &owner{}
	if o.host, err = overlay.New(overlay.Config{Key: k.Host, Listen: cfg.Setup.listen(), Log: zap.NewNop()}); err != nil {
		return nil, err
	}
	local := signal.Local{Certificate: k.Certificate, Key: k.Host}
	o.sessions = session.New(session.Config{
		Host: o.host, Log: zap.NewNop(),
		Signal: signal.Config{
			Local: func() signal.Local { return local }, Verifier: identity.NewVerifier(realm, time.Now), Log: zap.NewNop(),
			Terms:   func() signal.Terms { return signal.Terms{Suites: []signal.Suite{suite}} },
			Timeout: 5 * time.Second,
		},
	})
	ctx, o.stop = context.WithCancel(ctx)
	o.done.Go(func() { o.sessions.Run(ctx) })
	return o, nil
}

func (o *owner) open(ctx context.Context, s Server, rekey time.Duration) (*session.Session, error) {
	at, err := peer.AddrInfoFromString(s.Node[0])
	if err != nil {
		return nil, err
	}
	o.host.Peerstore().AddAddrs(at.ID, at.Addrs, peerstore.PermanentAddrTTL)
	return o.sessions.Open(ctx, session.Target{Agent: identity.AgentID(s.Agent), Route: session.Route{Peer: at.ID}},
		session.Want{Exclusive: true, Contract: signal.Contract{RekeyInterval: rekey}})
}

func (o *owner) leave() {
	o.stop()
	o.done.Wait()
	o.host.Close()
}
