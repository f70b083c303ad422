package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"openmesh/node/api"
	"openmesh/protocols/wire"
)

// The exit codes of the program.
const (
	exitDone = iota
	exitFailed
	exitUsage
	exitNotRunning
	exitNotFound
	exitDenied
	exitTimedOut
)

// errInterrupted reports that the user gave up.
var errInterrupted = wire.Errorf(wire.Cancelled, "interrupted: %w", context.Canceled)

// usageError is a wrong command line.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// failure is an error as --json prints it.
type failure struct {
	Code     string   `json:"code"`
	Message  string   `json:"message"`
	Hint     string   `json:"hint"`
	Pointers []string `json:"pointers,omitempty"`
}

// report tells the user about an error of cmd and returns the exit code.
func (p *program) report(cmd *cobra.Command, err error) int {
	if err == nil {
		return exitDone
	}
	f := p.explain(cmd, err)
	if p.json {
		// There is nowhere left to say so if standard error is closed.
		if doc, err := oneLine(map[string]failure{"error": f}); err == nil {
			_, _ = p.err.Write(doc)
		}
		return exitCode(err)
	}
	style := p.style(p.err)
	fmt.Fprintf(p.err, "%s %s\n", style.red("error:"), printable(f.Message))
	for _, pointer := range f.Pointers {
		fmt.Fprintf(p.err, "  at %s\n", printable(pointer))
	}
	var usage *usageError
	if errors.As(err, &usage) {
		fmt.Fprintf(p.err, "usage: %s\n", cmd.UseLine())
	}
	if f.Hint != "" {
		fmt.Fprintf(p.err, "%s %s\n", style.yellow("hint:"), printable(f.Hint))
	}
	return exitCode(err)
}

// explain finds out what to say about an error.
func (p *program) explain(cmd *cobra.Command, err error) failure {
	var usage *usageError
	if errors.As(err, &usage) {
		return failure{
			Code: wire.InvalidArgument.String(), Message: strings.TrimSpace(err.Error()),
			Hint: "see: " + cmd.CommandPath() + " --help",
		}
	}
	d := api.Describe(err)
	f := failure{Code: d.Code, Message: d.Message, Hint: d.Hint, Pointers: d.Pointers}
	if f.Hint == "" && f.Code == wire.DeadlineExceeded.String() {
		f.Hint = "allow more time with --timeout"
	}
	return f
}

// exitCode says how the program ended because of err.
func exitCode(err error) int {
	var usage *usageError
	var message *undelivered
	switch {
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &message):
		return exitFailed
	case errors.Is(err, api.ErrNotRunning):
		return exitNotRunning
	}
	code, _ := wire.ParseCode(api.Describe(err).Code)
	switch code {
	case wire.InvalidArgument:
		return exitUsage
	case wire.NotFound:
		return exitNotFound
	case wire.Denied, wire.PolicyViolation, wire.TrustRevoked, wire.Unauthenticated,
		wire.KeyExpired, wire.KeySuperseded, wire.KeyRevoked:
		return exitDenied
	case wire.DeadlineExceeded:
		return exitTimedOut
	}
	return exitFailed
}
