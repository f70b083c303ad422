package overlaytest

import (
	"testing"
	"time"

	"go.uber.org/goleak"
)

// patience is how long goroutines may take to end: pion's SCTP keeps one for each read
// deadline until that is past, though the stream is closed.
const patience = 2 * time.Minute

// NoneLeft fails the test if goroutines go on that were not there before.
func NoneLeft(t *testing.T, before goleak.Option) {
	t.Helper()
	for end := time.Now().Add(patience); ; {
		err := goleak.Find(before)
		switch {
		case err == nil:
			return
		case time.Now().After(end):
			t.Error(err)
			return
		}
	}
}
