package audit

import (
	"database/sql"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"openmesh/protocols/identity"
	"openmesh/protocols/protocoltest"
)

const (
	failing = `CREATE TRIGGER fail BEFORE INSERT ON audit_entries BEGIN SELECT RAISE(ABORT, 'the disk is full'); END`
	healed  = `DROP TRIGGER fail`
)

// outage is a log whose database can be made to fail.
func outage(t *testing.T) (l *Log, execute func(statement string)) {
	t.Helper()
	l, path := newLog(t, protocoltest.NewAgent(t, identity.MaxRealm, time.Now()))
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return l, func(statement string) {
		t.Helper()
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
}

// settled waits for the outcome of all that was given to the store.
func (l *Log) settled() (pending int, broken bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.flying > 0 {
		l.landed.Wait()
	}
	return l.pending, l.broken
}

// Notes that are more than one transaction takes are recorded all the same, once and
// in order, also if the database failed meanwhile.
func TestOutage(t *testing.T) {
	t.Parallel()
	large := make([]byte, MaxPayload)
	for name, test := range map[string]struct {
		notes   int
		payload []byte
	}{"large": {70, large}, "many": {2000, nil}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, execute := outage(t)
			execute(failing)
			var all []Entry
			for i := range test.notes {
				all = append(all, Entry{Kind: "session.state", Direction: Local, Note: fmt.Sprint(i), Payload: test.payload})
			}
			l.Note(all[:1]...)
			l.settled()
			for _, e := range all[1:50] {
				l.Note(e)
			}
			l.goOn(t.Context()) // in vain
			l.Note(all[50:]...)
			if pending, broken := l.settled(); pending != weight(all) || !broken {
				t.Fatalf("%d bytes are pending, broken: %t", pending, broken)
			}
			execute(healed)
			l.goOn(t.Context())
			if pending, broken := l.settled(); pending != 0 || broken {
				t.Errorf("%d bytes are still pending, broken: %t", pending, broken)
			}
			i := 0
			err := l.each(t.Context(), 0, maxIndex, func(s *stored) error {
				if i++; s.Note != fmt.Sprint(i-1) {
					return fmt.Errorf("entry %d is note %s", s.Index, s.Note)
				}
				return nil
			})
			if r, err2 := l.Verify(t.Context()); err != nil || err2 != nil || !r.OK || i != test.notes {
				t.Errorf("%d of %d notes, %v, %v, %v", i, test.notes, err, r.Bad, err2)
			}
		})
	}
}

// While the database fails, notes wait for room: however often it is tried again, no
// more are kept than the bound allows.
func TestOutageIsBounded(t *testing.T) {
	t.Parallel()
	l, execute := outage(t)
	execute(failing)
	payload := make([]byte, MaxPayload)
	var all sync.WaitGroup
	const callers, each = 8, 40
	for range callers {
		all.Go(func() {
			for range each {
				l.Note(Entry{Kind: "signal.offer", Direction: Received, Payload: payload})
			}
		})
	}
	for range 8 {
		l.goOn(t.Context())
		for broken := false; !broken; { // all of them are waiting in the end
			var pending int
			if pending, broken = l.settled(); pending > maxPending+2*MaxPayload {
				t.Fatalf("%d bytes are kept, at most %d may be", pending, maxPending)
			}
			runtime.Gosched()
		}
	}
	l.end(t.Context()) // lets them go
	all.Wait()
	if pending, _ := l.settled(); pending != 0 {
		t.Errorf("%d bytes are pending in the end", pending)
	}
}
