package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"openmesh/node/store"
	"openmesh/protocols/session/delivery"
	"openmesh/protocols/wire"
)

// explain ends both daemons and says what their logs and stores tell of messages
// that are not delivered.
func (st *storm) explain() {
	st.t.Helper()
	st.a.kill()
	st.b.kill()
	for _, v := range []*victim{st.a, st.b} {
		lines := strings.Split(strings.TrimSpace((&daemon{log: v.home + ".log"}).logged()), "\n")
		st.t.Logf("the end of the log of %s:\n%s", filepath.Base(v.home), strings.Join(lines[max(0, len(lines)-40):], "\n"))
	}
	a, b := st.store(st.a), st.store(st.b)
	defer a.Close()
	defer b.Close()
	told := 0
	for n := 1; n <= st.messages && told < 5; n++ {
		if text := st.stored(a, b, n); text != "" {
			told++
			st.t.Log(text)
		}
	}
}

func (st *storm) store(v *victim) *store.Store {
	s, err := store.Open(st.t.Context(), store.Config{Path: filepath.Join(v.home, "openmesh.db"), Owner: v.agent})
	if err != nil {
		st.t.Fatal(err)
	}
	return s
}

// stored tells of a message that is not delivered, or never came, what the stores
// of sender and receiver know.
func (st *storm) stored(a, b *store.Store, n int) string {
	ctx := context.Background()
	id := sessionID(st.t, st.session)
	sequence, out, err := a.Outcome(ctx, id, keyOf(n))
	st.ledger.mu.Lock()
	visits := st.ledger.visits[n]
	st.ledger.mu.Unlock()
	came := len(visits) > 0 || st.capability == ""
	if err == nil && out.Status == delivery.Delivered && came {
		return ""
	}
	if wire.CodeOf(err) == wire.NotFound && !came {
		return "" // never accepted
	}
	floor, finished, errWindow := b.Window(ctx, id)
	_, cursor, errInbox := b.Inbox(ctx, id, 0, 1)
	answer, ok := finished[sequence]
	return fmt.Sprintf("message %d: the handler saw it: %v\n  sender: sequence %d, %+v, %v\n  receiver: floor %d, finished %v %+v, consumed %d, %v %v",
		n, visits, sequence, out, err, floor, ok, answer, cursor, errWindow, errInbox)
}

func sessionID(t *testing.T, text string) (id delivery.SessionID) {
	t.Helper()
	if n, err := hex.Decode(id[:], []byte(text)); err != nil || n != len(id) {
		t.Fatalf("session %q: %v", text, err)
	}
	return id
}

func numberOf(t *testing.T, key string) (n int) {
	t.Helper()
	if _, err := fmt.Sscanf(key, "message-%d", &n); err != nil {
		t.Fatalf("key %q: %v", key, err)
	}
	return n
}
