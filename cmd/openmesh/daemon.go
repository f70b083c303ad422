package main

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"openmesh/node/api"
	"openmesh/protocols/wire"
)

// Commands give up after this time unless --timeout says otherwise. Looking at
// the daemon takes no network; finding and reaching others does.
const (
	timeToLook  = 10 * time.Second
	timeToReach = 60 * time.Second
	noLimit     = 0  // for commands that stream
	ownLimit    = -1 // for commands that bound their time themselves
)

// asking is the body of a command that speaks to the daemon.
type asking func(ctx context.Context, d *api.Client, args []string) error

// ask makes a command's body of one that needs the daemon: it finds the daemon,
// bounds the time and starts the trace.
func (p *program) ask(limit time.Duration, do asking) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) (err error) {
		d, err := p.dial()
		if err != nil {
			return err
		}
		defer d.Close()
		ctx, own := cmd.Context(), limit == ownLimit
		if limit := cmp.Or(p.timeout, limit); limit != noLimit && !own {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, limit)
			defer cancel()
		}
		ctx, end, err := p.startTrace(ctx, cmd.CommandPath())
		if err != nil {
			return err
		}
		defer func() { end(err) }()
		return do(ctx, d, args)
	}
}

// dial finds the daemon of the home.
func (p *program) dial() (*api.Client, error) {
	home, err := p.homeDir()
	if err != nil {
		return nil, err
	}
	d, err := api.Dial(home)
	var failed *wire.Error
	if errors.Is(err, api.ErrNotRunning) && errors.As(err, &failed) {
		failed.Hint = p.startHint(home)
	}
	return d, err
}

// startHint says how to get a daemon for the home, as it is.
func (p *program) startHint(home string) string {
	if _, err := os.Stat(filepath.Join(home, "keys")); err != nil {
		return "make an identity with: openmesh init; then start it with: openmesh run"
	}
	return "start it with: openmesh run"
}
