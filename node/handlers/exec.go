package handlers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"go.uber.org/zap"

	"openmesh/node/handlers/capability"
	"openmesh/protocols/wire"
)

const (
	// termGrace is how long a process group has between SIGTERM and SIGKILL.
	termGrace = 2 * time.Second

	maxSaid = 4 << 10 // bytes of standard error that are logged
	killed  = syscall.SIGKILL
)

// execHandler runs a command for each request, in a process group of its own.
type execHandler struct {
	command     []string
	dir         string
	env         []string
	slots       chan struct{} // one for each process that may run
	grace       time.Duration
	maxResponse int
	parts       bool // the lines of the output are parts
	log         *zap.Logger
}

func (r *Registry) newExec(e *capability.Exec) (*execHandler, error) {
	env, err := environment(e.Env, r.cfg.Getenv)
	if err != nil {
		return nil, err
	}
	return &execHandler{
		command: e.Command, dir: e.Dir, env: env, grace: termGrace, parts: e.Stream, log: r.cfg.Log,
		slots: make(chan struct{}, r.cfg.MaxProcesses), maxResponse: r.cfg.MaxResponse,
	}, nil
}

// environment inherits little: the daemon's own may hold secrets.
func environment(own map[string]string, getenv func(string) (string, bool)) ([]string, error) {
	var env []string
	for _, name := range []string{"PATH", "HOME", "LANG", "TZ"} {
		if v, ok := getenv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	for name, value := range own {
		v, err := capability.Expand(value, getenv)
		if err != nil {
			return nil, fmt.Errorf("env %s: %w", name, err)
		}
		env = append(env, name+"="+v)
	}
	return env, nil
}

// Handle runs the command. If it cannot be started, the error has the code
// [wire.HandlerUnavailable]; if it starts and does not exit with 0,
// [wire.HandlerFailed].
func (h *execHandler) Handle(ctx context.Context, req *Request) (*Response, error) {
	if h.parts {
		return h.stream(ctx, req)
	}
	p, err := h.start(ctx, req)
	if err != nil {
		return nil, err
	}
	defer func() { <-h.slots }()
	body, err := io.ReadAll(io.LimitReader(p, int64(h.maxResponse)+1))
	p.end()
	h.logSaid(req, p.said)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, ended(ctx, "run the handler")
	case err != nil:
		return nil, err
	case len(body) > h.maxResponse:
		return nil, tooLong(h.maxResponse)
	}
	return &Response{Body: emptyIsNull(body)}, nil
}

// slot waits until a process may run.
func (h *execHandler) slot(ctx context.Context) error {
	select {
	case h.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ended(ctx, "wait for a free process")
	}
}

func (h *execHandler) cmd(ctx context.Context, req *Request) *exec.Cmd {
	cmd := exec.CommandContext(ctx, h.command[0], h.command[1:]...)
	cmd.Dir, cmd.Env = h.dir, h.env[:len(h.env):len(h.env)]
	for _, f := range facts(ctx, req, "") {
		cmd.Env = append(cmd.Env, f.env+"="+f.value)
	}
	cmd.Stdin = bytes.NewReader(req.Body)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return kill(cmd.Process, syscall.SIGTERM) }
	cmd.WaitDelay = h.grace
	return cmd
}

// kill signals the whole process group, of which p is the leader.
func kill(p *os.Process, sig syscall.Signal) error {
	if err := syscall.Kill(-p.Pid, sig); !errors.Is(err, syscall.ESRCH) {
		return err
	}
	return os.ErrProcessDone
}

func start(cmd *exec.Cmd) error {
	if err := cmd.Start(); err != nil {
		return wire.Errorf(wire.HandlerUnavailable, "start the handler: %w", err).WithHint("Is the command of the capability file there and executable?")
	}
	return nil
}

// wait waits for the end of cmd. Descendants that outlive the grace, or that hold
// on to the output, are killed.
func wait(ctx context.Context, cmd *exec.Cmd) error {
	err := cmd.Wait()
	if ctx.Err() != nil || errors.Is(err, exec.ErrWaitDelay) {
		_ = kill(cmd.Process, killed) // fails if all have ended
	}
	if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return wire.Errorf(wire.HandlerFailed, "run the handler: %w", err)
	}
	return nil
}

// tail keeps the end of what is written.
type tail struct {
	b     []byte
	limit int
}

func (w *tail) Write(p []byte) (int, error) {
	w.b = append(w.b, p[max(0, len(p)-w.limit):]...)
	if over := len(w.b) - w.limit; over > 0 {
		w.b = append(w.b[:0], w.b[over:]...)
	}
	return len(p), nil
}
