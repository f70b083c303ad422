package handlers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"go.uber.org/zap"

	"openmesh/protocols/wire"
)

// process is a command that runs. Its output is a pipe, so that it waits when nobody
// reads: os/exec would do that, and lose what it did not read in time.
type process struct {
	cmd   *exec.Cmd
	out   *os.File
	stop  context.CancelFunc
	said  *tail
	grace time.Duration

	ended chan struct{} // closed when the command has ended
	err   error         // how; to be read after that
}

// stream starts the command; the response has its lines as parts. Errors before
// the first part are those of Handle, and so are errors after it.
func (h *execHandler) stream(ctx context.Context, req *Request) (*Response, error) {
	p, err := h.start(ctx, req)
	if err != nil {
		return nil, err
	}
	return &Response{Produce: func(ctx context.Context, send func([]byte) error) error {
		defer func() { <-h.slots }()
		defer context.AfterFunc(ctx, p.stop)()
		err := sendLines(p, h.maxResponse, send)
		p.end()
		h.logSaid(req, p.said)
		if err != nil && ctx.Err() != nil {
			return ended(ctx, "run the handler")
		}
		return err
	}}, nil
}

// start starts the command in a slot, which it keeps if it has started.
func (h *execHandler) start(ctx context.Context, req *Request) (p *process, err error) {
	if err := h.slot(ctx); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			<-h.slots
		}
	}()
	out, in, err := os.Pipe()
	if err != nil {
		return nil, wire.Errorf(wire.HandlerUnavailable, "open a pipe for the handler: %w", err)
	}
	defer in.Close() // the command has its own
	running, stop := context.WithCancel(ctx)
	p = &process{cmd: h.cmd(running, req), out: out, stop: stop, said: &tail{limit: maxSaid}, grace: h.grace, ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = in, p.said
	if err := start(p.cmd); err != nil {
		stop()
		out.Close()
		return nil, err
	}
	go p.wait(running)
	return p, nil
}

func (p *process) wait(running context.Context) {
	p.err = wait(running, p.cmd)
	close(p.ended)
	p.hurry()
}

// hurry bounds how long a Read waits for what the command left behind: other
// processes may hold its output open for ever.
func (p *process) hurry() { _ = p.out.SetReadDeadline(time.Now().Add(p.grace)) } // fails only once it is closed

// Read reads what the command writes. Its end is io.EOF only if the command ended
// well.
func (p *process) Read(b []byte) (int, error) {
	select {
	case <-p.ended:
		p.hurry()
	default:
	}
	n, err := p.out.Read(b)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		_ = kill(p.cmd.Process, killed) // fails if all have ended
		n, err = readNow(p.out, b)
	case err != nil && err != io.EOF:
		err = fmt.Errorf("read what the handler writes: %w", err)
	}
	if err != io.EOF {
		return n, err
	}
	<-p.ended
	if p.err != nil {
		err = p.err
	}
	return n, err
}

// readNow reads what a pipe has. Without anything there, that is its end.
func readNow(f *os.File, b []byte) (n int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	failed := os.ErrDeadlineExceeded
	for errors.Is(failed, os.ErrDeadlineExceeded) { // again if hurry came between
		if err := f.SetReadDeadline(time.Time{}); err != nil {
			return 0, err
		}
		failed = raw.Read(func(fd uintptr) bool {
			for n, err = syscall.Read(int(fd), b); err == syscall.EINTR; n, err = syscall.Read(int(fd), b) {
			}
			return true
		})
	}
	if failed != nil {
		return 0, failed
	}
	if n <= 0 && (err == nil || err == syscall.EAGAIN) {
		return 0, io.EOF
	}
	return max(n, 0), err
}

// end ends the command if it has not, and waits for that.
func (p *process) end() {
	p.out.Close()
	p.stop()
	<-p.ended
}

// logSaid logs the end of what a command wrote to standard error.
func (h *execHandler) logSaid(req *Request, said *tail) {
	if len(said.b) > 0 {
		h.log.Debug("handler wrote to standard error", zap.String("capability", req.Capability), zap.ByteString("end", said.b))
	}
}
