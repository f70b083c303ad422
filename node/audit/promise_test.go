package audit_test

import (
	"context"
	"testing"

	"openmesh/node/audit"
	"openmesh/node/store"
)

// A checkpoint that was promised is stored with the batch, and not before; from then
// on it is compared with.
func TestPromise(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.commit(numbered(0), numbered(1))
	var batch store.Batch
	c, err := b.log.Promise(&batch)
	if err != nil || c.Size != 2 {
		t.Fatalf("checkpoint over %d entries, %v; want 2", c.Size, err)
	}
	if parsed, err := audit.ParseCheckpoint(c.Bytes()); err != nil || parsed.Root != c.Root {
		t.Errorf("the checkpoint does not hold: %v", err)
	}
	if n := b.verify().Checkpoints; n != 0 {
		t.Errorf("%d checkpoints are stored before the batch, want 0", n)
	}
	if _, _, err := b.log.Commit(context.Background(), "test", &batch, numbered(2)); err != nil {
		t.Fatal(err)
	}
	if r := b.verify(); r.Checkpoints != 1 || r.Entries != 3 || !r.OK {
		t.Errorf("after the batch: %+v", r)
	}
}
