// Command openmesh is the OpenMesh daemon and its command line. README.md is
// its reference.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	os.Exit(newProgram(os.Stdin, os.Stdout, os.Stderr, os.Environ()).execute(ctx, os.Args[1:]))
}
