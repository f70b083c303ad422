package bench

import (
	"testing"
	"time"
)

// A log is added to, verified and run again.
func TestAudit(t *testing.T) {
	t.Parallel()
	cfg := Config{Home: t.TempDir(), Rounds: 2, Time: 10 * time.Millisecond, Senders: []int{1, 4}, Entries: 2000}
	r, err := Audit(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	wants(t, r, 4, 4)
	measured(t, r)
}
