package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"time"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
)

// numbered is a message's body: which one it is.
type numbered struct {
	N int `json:"n"`
}

func bodyOf(n int) string { return fmt.Sprintf(`{"n":%d}`, n) }
func keyOf(n int) string  { return fmt.Sprintf("message-%d", n) }

// visit is one request to the handler.
type visit struct {
	generation  int // of the daemon that made it
	at          time.Time
	redelivered bool
}

// ledger is the handler of a capability that outlives its daemon: an HTTP server
// that writes down every request.
type ledger struct {
	*httptest.Server
	generation atomic.Int64 // of the daemon that connects now
	arrived    func()       // a number came for the first time

	mu     sync.Mutex
	visits map[int][]visit
	wrong  []string // requests that should not be
}

type generationKey struct{}

func newLedger(arrived func()) *ledger {
	l := &ledger{arrived: arrived, visits: map[int][]visit{}}
	l.Server = httptest.NewUnstartedServer(l)
	l.Config.ConnContext = func(ctx context.Context, _ net.Conn) context.Context {
		return context.WithValue(ctx, generationKey{}, int(l.generation.Load()))
	}
	l.Start()
	return l
}

func (l *ledger) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet {
		return // of succeed
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the daemon died while it asked
	}
	var m numbered
	err = json.Unmarshal(body, &m)
	key := r.Header.Get("x-mesh-idempotency-key")
	l.mu.Lock()
	if err != nil || key != keyOf(m.N) {
		l.wrong = append(l.wrong, fmt.Sprintf("%q with key %q", body, key))
	}
	l.visits[m.N] = append(l.visits[m.N], visit{
		r.Context().Value(generationKey{}).(int), time.Now(), r.Header.Get("x-mesh-redelivered") == "true",
	})
	first := len(l.visits[m.N]) == 1
	l.mu.Unlock()
	if first {
		l.arrived()
	}
	select {
	case <-time.After(time.Duration(m.N%5) * time.Millisecond):
		_, _ = io.WriteString(w, bodyOf(m.N)) // unless the daemon died
	case <-r.Context().Done():
	}
}

// succeed is called when the daemon is dead, before the next one starts. What
// the dead one had connected is accepted before the answer to one more request.
func (l *ledger) succeed() error {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	resp, err := client.Get(l.URL)
	if err != nil {
		return err
	}
	l.generation.Add(1)
	return resp.Body.Close()
}

// repeats are the requests that were not the first with their number.
type repeats struct {
	all, unmarked, calm int // calm: the daemon that made it had made the one before
	most                int
}

func (l *ledger) repeats() (r repeats) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, visits := range l.visits {
		r.most = max(r.most, len(visits))
		for i, v := range visits[1:] {
			r.all++
			if !v.redelivered {
				r.unmarked++
			}
			if v.generation == visits[i].generation {
				r.calm++
			}
		}
	}
	return r
}

// first returns when each generation of the daemon made its first request.
func (l *ledger) first() map[int]time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	first := map[int]time.Time{}
	for _, visits := range l.visits {
		for _, v := range visits {
			if at, ok := first[v.generation]; !ok || v.at.Before(at) {
				first[v.generation] = v.at
			}
		}
	}
	return first
}

// reader is an application that takes messages out of a session's inbox. What it
// has done with them outlasts its own crashes; up to where it has read does not.
type reader struct {
	session string
	arrived func()
	random  *rand.Rand
	every   int // it crashes about once in so many reads; 0: never

	done    []*openmeshv1.ReceivedMessage
	crashes int
}

// run reads until it has done n messages.
func (r *reader) run(ctx context.Context, n int, daemon func() *api.Client) error {
	cursor, again := uint64(0), 0 // what was done before the last crash may come again
	for len(r.done) < n {
		batch, err := daemon().Session.Receive(ctx, &openmeshv1.ReceiveRequest{
			Session: r.session, Cursor: cursor, Consume: cursor > 0, Limit: 1 + r.random.Uint32N(300), WaitMs: 1000,
		})
		switch {
		case err != nil && ctx.Err() != nil:
			return fmt.Errorf("read message %d: %w", len(r.done)+1, ctx.Err())
		case err != nil && !down(err):
			return fmt.Errorf("read after %d: %w", cursor, err)
		case err != nil:
			pause(ctx, 10*time.Millisecond)
			continue
		}
		if r.crash() {
			cursor, again = 0, len(r.done)
			continue
		}
		if err := r.work(batch, again); err != nil {
			return err
		}
		if cursor = batch.Cursor; cursor >= uint64(again) {
			again = 0
		}
		if r.crash() {
			cursor, again = 0, len(r.done)
		}
	}
	return nil
}

func (r *reader) crash() bool {
	crash := r.every > 0 && r.random.IntN(r.every) == 0
	if crash {
		r.crashes++
	}
	return crash
}

// work does what is new in a batch.
func (r *reader) work(batch *openmeshv1.ReceiveResponse, again int) error {
	if len(batch.Gaps) > 0 {
		return fmt.Errorf("gaps %v after message %d", batch.Gaps, len(r.done))
	}
	for _, m := range batch.Messages {
		next := uint64(len(r.done)) + 1
		if m.Sequence <= uint64(again) {
			continue
		}
		if m.Sequence != next {
			return fmt.Errorf("message %d came, want %d", m.Sequence, next)
		}
		r.done = append(r.done, m)
		r.arrived()
	}
	return nil
}
