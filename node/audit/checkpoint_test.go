package audit

import (
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"

	"openmesh/node/store"
	"openmesh/protocols/identity"
	"openmesh/protocols/protocoltest"
	"openmesh/protocols/wire"
)

// newLog is a log in a database of its own, which is at path.
func newLog(t *testing.T, agent *protocoltest.Agent) (l *Log, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "openmesh.db")
	db, err := store.Open(t.Context(), store.Config{Path: path, Owner: string(agent.Agent)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	l, err = Open(t.Context(), Config{
		DB: db, Agent: agent.Agent, Signer: func() (crypto.PrivKey, *identity.Certificate) { return agent.Host, agent.Certificate },
	})
	if err != nil {
		t.Fatal(err)
	}
	return l, path
}

// expired is a log with one entry, of an agent whose certificate has expired.
func expired(t *testing.T) (*Log, *protocoltest.Agent) {
	t.Helper()
	agent := protocoltest.NewAgent(t, identity.MaxRealm, time.Now().Add(-48*time.Hour))
	l, _ := newLog(t, agent)
	if _, _, err := l.Commit(t.Context(), "test", nil, Entry{Kind: "market.accept", Direction: Sent}); err != nil {
		t.Fatal(err)
	}
	return l, agent
}

// Nothing is signed with a certificate that has expired, and the error says what to do.
func TestExpired(t *testing.T) {
	t.Parallel()
	l, _ := expired(t)
	for name, sign := range map[string]func() error{
		"checkpoint": func() error { _, err := l.Checkpoint(t.Context()); return err },
		"promise":    func() error { _, err := l.Promise(new(store.Batch)); return err },
		"export":     func() error { return l.Export(t.Context(), io.Discard) },
	} {
		err := sign()
		if e := (*wire.Error)(nil); !errors.As(err, &e) || e.Code != wire.KeyExpired || !strings.Contains(e.Hint, "key rotate") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if texts, err := l.checkpoints(t.Context()); len(texts) != 0 || err != nil {
		t.Errorf("%d checkpoints are stored, %v", len(texts), err)
	}
}

// A checkpoint that was signed too late and kept does not make the log a forged one;
// it is compared all the same. From others it is refused.
func TestSignedTooLate(t *testing.T) {
	t.Parallel()
	l, agent := expired(t)
	late := &Checkpoint{Agent: agent.Agent, Size: 1, Root: l.committed.root(), At: time.Now().UTC().Truncate(time.Millisecond), Certificate: agent.Certificate}
	keep := func() {
		t.Helper()
		if err := late.sign(agent.Host); err != nil {
			t.Fatal(err)
		}
		var b store.Batch
		b.Add(insertCheckpoint, l.db.Owner(), int64(late.Size), late.At.UnixMilli(), late.raw)
		if _, err := l.db.Exec(t.Context(), "test", &b); err != nil {
			t.Fatal(err)
		}
	}
	keep()
	if r, err := l.Verify(t.Context()); err != nil || !r.OK || r.Checkpoints != 1 || r.Expired != 1 {
		t.Errorf("Verify() = %+v, %v, %v", r, r.Bad, err)
	}
	if r, err := l.Verify(t.Context(), late.raw); err != nil || r.OK {
		t.Errorf("Verify() against it = %+v, %v", r, err)
	}
	late.Root, late.At = Hash{}, late.At.Add(time.Second)
	keep()
	if r, err := l.Verify(t.Context()); err != nil || r.OK || !strings.Contains(r.Bad.Reason, "another root") {
		t.Errorf("Verify() with another root = %+v, %v", r.Bad, err)
	}
}
