package load

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"time"
)

// A baseline is another program that does comparable work: what it stands on need
// not be linked into this one. They speak JSON, one value a line:
//
//	baseline:  {"name": "…", "ways": ["…"], "method": ["…"]}      once it is ready
//	this side: {"way": "…", "workers": 16, "time_ms": 1000, "payload": 256}
//	baseline:  {"sample": {…}}  or  {"error": "…"}
//	…                                                             until its input ends

// Greeting is what a baseline says of itself.
type Greeting struct {
	Name   string   `json:"name"`
	Ways   []string `json:"ways"`   // of doing the work
	Method []string `json:"method"` // what it does and promises
}

// Order asks a baseline for one sample.
type Order struct {
	Way     string `json:"way"`
	Workers int    `json:"workers"`
	TimeMs  int64  `json:"time_ms"`
	Payload int    `json:"payload"` // bytes
}

// Answer is the outcome of an order.
type Answer struct {
	Sample Sample `json:"sample"`
	Error  string `json:"error,omitempty"`
}

// ServeOrders is the baseline's end: it greets, and does what it is asked for
// until in ends.
func ServeOrders(ctx context.Context, in io.Reader, out io.Writer, g Greeting, do func(context.Context, Order) (Sample, error)) error {
	enc, dec := json.NewEncoder(out), json.NewDecoder(in)
	if err := enc.Encode(g); err != nil {
		return fmt.Errorf("greet: %w", err)
	}
	for {
		var o Order
		if err := dec.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read order: %w", err)
		}
		var a Answer
		var err error
		if a.Sample, err = do(ctx, o); err != nil {
			a.Error = err.Error()
		}
		if err := enc.Encode(a); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
	}
}

// Baseline is a baseline program that runs. It serves one caller at a time.
type Baseline struct {
	Greeting
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

// StartBaseline starts cmd, whose input and output must be free, and waits for its
// greeting.
func StartBaseline(cmd *exec.Cmd) (*Baseline, error) {
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start baseline %s: %w", cmd.Path, err)
	}
	b := &Baseline{cmd: cmd, in: in, out: json.NewDecoder(bufio.NewReader(out))}
	if err := b.out.Decode(&b.Greeting); err != nil {
		return nil, fmt.Errorf("start baseline %s: no greeting: %w", cmd.Path, errors.Join(err, b.Stop()))
	}
	return b, nil
}

// Sample has the baseline work in one of its ways.
func (b *Baseline) Sample(way string, workers int, d time.Duration, payload int) (Sample, error) {
	if err := json.NewEncoder(b.in).Encode(Order{way, workers, d.Milliseconds(), payload}); err != nil {
		return Sample{}, fmt.Errorf("ask %s: %w", b.Name, err)
	}
	var a Answer
	if err := b.out.Decode(&a); err != nil {
		return Sample{}, fmt.Errorf("ask %s: %w", b.Name, err)
	}
	if a.Error != "" {
		return Sample{}, fmt.Errorf("%s: %s", b.Name, a.Error)
	}
	return a.Sample, nil
}

// Stop ends the input of the baseline, and returns when it has ended.
func (b *Baseline) Stop() error { return errors.Join(b.in.Close(), b.cmd.Wait()) }
