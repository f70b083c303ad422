//go:build unix

package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"openmesh/protocols/wire"
)

// lockHome makes this process the only daemon of a home, until unlock or its end.
// The error is wire.AlreadyExists if there is another.
func lockHome(home string) (unlock func() error, err error) {
	f, err := os.OpenFile(filepath.Join(home, "daemon.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock home: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		f.Close()
		return nil, wire.Errorf(wire.AlreadyExists, "another daemon runs on %s", home).
			WithHint("stop it, or give this one a home of its own with --home")
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock home: %w", err)
	}
	return f.Close, nil // which ends the lock
}
