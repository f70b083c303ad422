package demo

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// starter starts processes from one operating system thread that lives as long
// as the starter: on Linux a child that is to die with its parent dies with the
// thread that started it.
type starter struct{ work chan func() }

func newStarter() *starter {
	s := &starter{work: make(chan func())}
	go func() {
		runtime.LockOSThread()
		for do := range s.work {
			do()
		}
	}()
	return s
}

func (s *starter) start(cmd *exec.Cmd) error {
	done := make(chan error)
	s.work <- func() { done <- cmd.Start() }
	return <-done
}

// close ends the thread, and with it those children that are bound to it.
func (s *starter) close() { close(s.work) }

// process is a child that was started.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{} // closed when it has ended
	err   error         // how, once it has
}

func (s *starter) run(cmd *exec.Cmd) (*process, error) {
	if err := s.start(cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	p := &process{cmd: cmd, ended: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// alive reports whether the process has not ended.
func (p *process) alive() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// drain ends the process by SIGTERM and waits. The error is not nil if it did
// not exit with 0, or left something behind in its process group; once ctx ends
// it is killed.
func (p *process) drain(ctx context.Context) error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // fails only if it has ended, which is seen below
	select {
	case <-p.ended:
	case <-ctx.Done():
		p.kill()
		return fmt.Errorf("did not end on SIGTERM: %w", ctx.Err())
	}
	if p.err != nil {
		return fmt.Errorf("ended with %w", p.err)
	}
	if err := syscall.Kill(-p.cmd.Process.Pid, 0); err == nil {
		p.kill()
		return fmt.Errorf("left processes behind in group %d", p.cmd.Process.Pid)
	}
	return nil
}

// kill ends the process and its group at once.
func (p *process) kill() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // fails if all have ended
	<-p.ended
}

// firstLine starts cmd and returns the first line that it prints. If it ends
// before, or ctx does, that is an error and the process has ended.
func (s *starter) firstLine(ctx context.Context, cmd *exec.Cmd) (*process, []byte, error) {
	const longest = 64 << 10
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("make a pipe: %w", err)
	}
	defer r.Close()
	cmd.Stdout = w
	p, err := s.run(cmd)
	w.Close() // the child has its own
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Now()) }) // a pipe takes deadlines
	defer stop()
	line, err := bufio.NewReader(io.LimitReader(r, longest)).ReadBytes('\n')
	if err == nil {
		return p, line, nil
	}
	if ctx.Err() != nil {
		p.kill()
		return nil, nil, fmt.Errorf("not ready in time: %w", ctx.Err())
	}
	p.kill()
	return nil, nil, fmt.Errorf("ended before it was ready: %w", exitOf(p))
}

func exitOf(p *process) error {
	if p.err != nil {
		return p.err
	}
	return io.ErrUnexpectedEOF
}

// clean is the environment that children get: what it says of another home must
// not steer them.
func clean(environ []string) []string {
	var out []string
	for _, entry := range environ {
		if !strings.HasPrefix(entry, "OPENMESH_") {
			out = append(out, entry)
		}
	}
	return out
}
