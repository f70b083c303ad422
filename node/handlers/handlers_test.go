package handlers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"openmesh/node/handlers/capability"
	"openmesh/protocols/wire"
)

// TestMain lets the test binary be the command of an exec handler.
func TestMain(m *testing.M) {
	if mode := os.Getenv("CHILD"); mode != "" {
		if err := child(mode); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// child is what the command does.
func child(mode string) error {
	switch mode {
	case "echo":
		return echo()
	case "garbage":
		fmt.Print("rate: 1")
	case "silent":
	case "fail":
		fmt.Fprintln(os.Stderr, strings.Repeat("x", 8<<10), "the end")
		os.Exit(3)
	case "flood":
		for {
			if _, err := fmt.Println(strings.Repeat("x", 1000)); err != nil {
				return err
			}
		}
	case "block":
		return block()
	case "lines":
		return lineByLine()
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
		return block()
	case "orphan":
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "CHILD=stubborn")
		cmd.Stdout = os.Stdout
		if err := cmd.Start(); err != nil {
			return err
		}
		fmt.Print("{}")
	}
	return nil
}

// echo answers with all that the command was told.
func echo() error {
	body, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	env := map[string]string{}
	for _, v := range os.Environ() {
		name, value, _ := strings.Cut(v, "=")
		env[name] = value
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{"env": env, "body": json.RawMessage(body)})
}

// lineByLine answers in parts: as many as COUNT says, each once its request was
// read; then it exits as EXIT says, in the middle of a line if that is not 0.
func lineByLine() error {
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	count, err := strconv.Atoi(os.Getenv("COUNT"))
	if err != nil {
		return err
	}
	for i := range count {
		if _, err := fmt.Printf("%d\n", i); err != nil {
			return err
		}
	}
	code, err := strconv.Atoi(os.Getenv("EXIT"))
	if err == nil && code != 0 {
		fmt.Print("12")
		os.Exit(code)
	}
	return err
}

// block opens the pipe PIPE, says "up" in it, and lives until it is killed,
// which its reader can tell by the end of the pipe.
func block() error {
	pipe, err := os.OpenFile(os.Getenv("PIPE"), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer pipe.Close()
	if _, err := pipe.WriteString("up"); err != nil {
		return err
	}
	never := make(chan os.Signal, 1)
	signal.Notify(never, syscall.SIGUSR1) // or the runtime takes this for a deadlock
	<-never
	return nil
}

func call() *Request {
	return &Request{
		Capability: "fx", Body: []byte(`{"pair":"EURUSD"}`), Encoding: 1,
		CallerAgent: "did:key:z6Mk", CallerAddress: "0:A91F.0000.7C2E", Session: "s1", RequestID: "r1",
		IdempotencyKey: "k1", Traceparent: "00-11-22-01", Tracestate: "a=b", CorrelationID: "c1", Redelivered: true,
	}
}

func offer(t testing.TB, r *Registry, handler string) {
	t.Helper()
	c, err := capability.Parse([]byte("name: fx\nversion: 1.4.0\nhandler: {"+handler+"}\n"), "fx.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Add(c); err != nil {
		t.Fatal(err)
	}
}

func wantCode(t *testing.T, err error, want wire.Code) {
	t.Helper()
	if err == nil || !errors.Is(err, want) {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestFacts(t *testing.T) {
	t.Parallel()
	req := call()
	req.Session = "a\r\nx-admin: yes"
	req.CorrelationID = strings.Repeat("x", 2000)
	req.IdempotencyKey = ""
	got := map[string]string{}
	for _, f := range facts(context.Background(), req, "x-trace") {
		got[f.env] = f.value
	}
	want := map[string]string{
		"MESH_CALLER_AGENT": "did:key:z6Mk", "MESH_CALLER_ADDRESS": "0:A91F.0000.7C2E", "MESH_REQUEST": "r1",
		"MESH_TRACEPARENT": "00-11-22-01", "TRACEPARENT": "00-11-22-01", "TRACESTATE": "a=b",
		"MESH_CAPABILITY": "fx", "MESH_REDELIVERED": "true",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
