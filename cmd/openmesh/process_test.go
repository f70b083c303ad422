package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// loopback are the settings of daemons that share one machine and one folder.
func loopback(dir string) map[string]string {
	return map[string]string{
		"OPENMESH_NODE_REALM":                 "64512", // its addresses are found at once
		"OPENMESH_NETWORKING_LISTEN":          "/ip4/127.0.0.1/tcp/0,/ip4/127.0.0.1/udp/0/quic-v1",
		"OPENMESH_NETWORKING_BOOTSTRAP":       "@" + filepath.Join(dir, "backbone.addrs"),
		"OPENMESH_API_LISTEN":                 "127.0.0.1:0,unix:api.sock",
		"OPENMESH_OBSERVABILITY_METRICS_PORT": "0",
		"OPENMESH_DISCOVERY_CACHE_TTL":        "30s", // the least there is
	}
}

// daemon is a daemon in a process of its own.
type daemon struct {
	cmd   *exec.Cmd
	home  string
	ready readyLine
	log   string // file
}

// startDaemon runs `openmesh --home HOME run FLAG…` and waits until it serves.
func startDaemon(home string, env []string, flags ...string) (*daemon, error) {
	d := &daemon{home: home, log: home + ".log"}
	d.cmd = exec.Command("openmesh", append([]string{"--home", home, "--json", "run"}, flags...)...)
	d.cmd.Dir, d.cmd.Env = filepath.Dir(home), env
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	d.cmd.Stderr = log
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	// A daemon that neither serves nor ends is ended.
	watch := time.AfterFunc(patience, d.kill)
	defer watch.Stop()
	line, _ := bufio.NewReader(out).ReadBytes('\n') // empty if it ended
	if err := json.Unmarshal(line, &d.ready); err != nil || d.ready.Event != "ready" {
		d.crash()
		return nil, fmt.Errorf("daemon of %s said %q; its log:\n%s", home, line, d.logged())
	}
	return d, os.WriteFile(home+".ready", line, 0o600)
}

func (d *daemon) logged() string {
	text, err := os.ReadFile(d.log)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// drain ends the daemon as a service manager would.
func (d *daemon) drain() error {
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	if err := d.cmd.Wait(); err != nil {
		return fmt.Errorf("daemon of %s: %w; its log:\n%s", d.home, err, d.logged())
	}
	return nil
}

func (d *daemon) kill() { _ = d.cmd.Process.Kill() } // fails only if it has ended

// crash ends the daemon as the kernel would.
func (d *daemon) crash() {
	d.kill()
	_ = d.cmd.Wait() // it was killed: that is no news
}

// request asks the daemon's local API over TCP, as curl would; with a body it
// is a call of a procedure and presents the token.
func (d *daemon) request(path string, body []byte) (status int, answer []byte, err error) {
	method := http.MethodGet
	if body != nil {
		method = http.MethodPost
	}
	req, err := http.NewRequest(method, "http://"+d.ready.API+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	if body != nil {
		token, err := os.ReadFile(filepath.Join(d.home, "api.token"))
		if err != nil {
			return 0, nil, err
		}
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
		req.Header.Set("Content-Type", "application/json")
	}
	return fetch(req)
}

func fetch(req *http.Request) (status int, body []byte, err error) {
	client := http.Client{Timeout: patience}
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

// handlerServer is an application: an HTTP server that records what it is asked.
type handlerServer struct {
	*httptest.Server
	answer string
	delay  time.Duration

	mu    sync.Mutex
	heard []heardRequest
}

type heardRequest struct {
	Header map[string]string `json:"header"` // names in lower case
	Body   json.RawMessage   `json:"body"`
}

func newHandlerServer(answer string, delay time.Duration) *handlerServer {
	h := &handlerServer{answer: answer, delay: delay}
	h.Server = httptest.NewServer(h)
	return h
}

func (h *handlerServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the daemon gave up
	}
	req := heardRequest{map[string]string{}, body}
	for name := range r.Header {
		req.Header[strings.ToLower(name)] = r.Header.Get(name)
	}
	h.mu.Lock()
	h.heard = append(h.heard, req)
	h.mu.Unlock()
	select {
	case <-time.After(h.delay):
		_, _ = io.WriteString(w, h.answer) // if it is still wanted
	case <-r.Context().Done():
	}
}

// requests returns what was asked so far.
func (h *handlerServer) requests() []heardRequest {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]heardRequest(nil), h.heard...)
}

// unplug ends the server at once: nothing listens there any more.
func (h *handlerServer) unplug() {
	h.CloseClientConnections()
	h.Close()
}
