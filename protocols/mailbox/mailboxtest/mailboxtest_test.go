package mailboxtest_test

import (
	"testing"

	"openmesh/protocols/mailbox"
	"openmesh/protocols/mailbox/mailboxtest"
)

func TestMemory(t *testing.T) {
	t.Parallel()
	mailboxtest.Run(t, func(*testing.T) func(*testing.T) mailbox.Store {
		m := mailboxtest.NewMemory()
		return func(*testing.T) mailbox.Store { return m }
	})
}
