package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/protocols/wire"
)

const (
	maxData = 15 << 20 // bytes of a request; less than the local API takes

	// deadlineSlack is how much longer than the deadline the command waits for
	// the daemon to say that it passed.
	deadlineSlack = 3 * time.Second
)

func newCall(p *program) *cobra.Command {
	var req openmeshv1.CallRequest
	var stream bool
	cmd := &cobra.Command{
		Use: "call [TARGET] [DATA]", Short: "Send one request and wait for the response", Args: cobra.MaximumNArgs(2),
		Long: "Send one request and wait for the response. TARGET is a capability name, an address or an agent id.\n" +
			"DATA is JSON, @FILE or - for standard input; without it the request is {}. --timeout is the deadline\n" +
			"(default: session.default_timeout of the daemon's configuration, which is 2m if not set). at-least-once and\n" +
			"exactly-once requests are on disk before they are sent and survive a restart of either side; asked again with the same\n" +
			"--key, a request is answered as the first time. If who is called is away, they wait in its mailbox. With --through the\n" +
			"request goes over relays of which each knows its neighbours only.\n\n" +
			"A response that comes in parts is one array of them. With --stream each part is printed when it comes, on one\n" +
			"line; with --json as {\"part\": …}, and the last line says how the call went. The deadline is for all of it.\n\n" +
			"With --contract the call is made under a market contract, of which it uses one unit: it goes to the seller, and\n" +
			"TARGET may be left out. Then a single argument that is JSON, @FILE or - is DATA.",
		Example: `  openmesh call finance/fx-pricing '{"pair":"EURUSD"}'
  openmesh call 0:A91F.0000.7C2E @request.json --capability finance/fx-pricing --timeout 30s
  openmesh call shop/order @order.json --qos exactly-once --key order-17
  openmesh call text/write '{"about":"rain"}' --stream --timeout 10m
  openmesh call finance/fx-pricing '{"pair":"EURUSD"}' --through 0:11B0.93C4.0001,0:52AA.0110.93FF
  openmesh call --contract 5f0c1a7e '{"pair":"EURUSD"}'
  jq -n '{pair:"EURUSD"}' | openmesh call finance/fx-pricing - --json | jq .response`,
		ValidArgsFunction: p.completeCapability,
	}
	callFlags(cmd, &req)
	p.throughFlag(cmd, &req.Through)
	cmd.Flags().BoolVar(&stream, "stream", false, "print each part of the response as it comes")
	cmd.PreRunE = func(_ *cobra.Command, args []string) error { return p.prepareCall(&req, args) }
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if p.timeout > 0 {
			ctx, cancel := context.WithTimeout(cmd.Context(), p.timeout+deadlineSlack)
			defer cancel()
			cmd.SetContext(ctx)
		}
		if stream {
			return p.callStream(&req)(cmd, args)
		}
		return p.call(&req)(cmd, args)
	}
	return cmd
}

func callFlags(cmd *cobra.Command, req *openmeshv1.CallRequest) {
	flags := cmd.Flags()
	flags.StringVar(&req.Capability, "capability", "", "capability to call, where TARGET is an agent that offers several")
	flags.StringVar(&req.Version, "version", "", "semantic version range of the capability")
	flags.StringVar(&req.Qos, "qos", "", "delivery: "+strings.Join(qosModes, ", ")+" (default: this node's)")
	flags.Float64Var(&req.MinTrust, "min-trust", 0, "trust that the agent must have, 0 to 1; relays on the way are not held to it")
	flags.StringVar(&req.Contract, "contract", "", "market contract to call under: its id, or 6 digits of it or more")
	flags.StringVar(&req.IdempotencyKey, "key", "", "idempotency key: one per logical request (default: a new one)")
	flags.StringVar(&req.IdempotencyKey, "idempotency-key", "", "long for --key")
	// The daemon refuses these four and says what to do instead.
	flags.StringSliceVar(&req.Within, "within", nil, "jurisdictions that the path must stay within")
	flags.StringSliceVar(&req.AvoidDomains, "avoid-domain", nil, "organisations that the path must avoid")
	flags.StringVar(&req.Class, "class", "", "what the path is best at: "+strings.Join(pathClasses, ", "))
	flags.Uint32Var(&req.Multipath, "multipath", 0, "number of disjoint paths to send over")
	for _, hidden := range []string{"idempotency-key", "within", "avoid-domain", "class", "multipath"} {
		_ = flags.MarkHidden(hidden) // it is there
	}
	fixed(cmd, "qos", qosModes)
	fixed(cmd, "class", pathClasses)
}

// prepareCall completes the request and finds what is wrong with it before
// anything is sent.
func (p *program) prepareCall(req *openmeshv1.CallRequest, args []string) error {
	if req.Qos != "" {
		if err := oneOf("qos", req.Qos, qosModes); err != nil {
			return err
		}
	}
	if req.Class != "" {
		if err := oneOf("class", req.Class, pathClasses); err != nil {
			return err
		}
	}
	if err := checkChains(req.Through); err != nil {
		return err
	}
	deadline := p.timeout.Milliseconds() // 0: the daemon knows
	if p.timeout > 0 && deadline < 1 || deadline > math.MaxUint32 {
		return usagef("--timeout %s: want 1ms to %s", p.timeout, time.Duration(math.MaxUint32)*time.Millisecond)
	}
	target, data, err := p.callArgs(req.Contract != "", args)
	if err != nil {
		return err
	}
	req.Target, req.TimeoutMs = target, uint32(deadline)
	req.Body = &openmeshv1.CallRequest_Json{Json: data}
	return nil
}

// callArgs returns TARGET and DATA. Under a contract TARGET may be missing.
func (p *program) callArgs(contract bool, args []string) (target, data string, err error) {
	switch {
	case len(args) > 0 && !(contract && len(args) == 1 && isData(args[0])):
		target, args = args[0], args[1:]
	case !contract:
		return "", "", usagef("call: TARGET is missing: a capability, an address or an agent id; or --contract, whose seller is called")
	}
	if len(args) == 0 {
		return target, "{}", nil
	}
	data, err = p.readData(args[0])
	return target, data, err
}

// isData tells DATA from a TARGET.
func isData(arg string) bool {
	return arg == "-" || strings.HasPrefix(arg, "@") || json.Valid([]byte(arg)) || strings.ContainsAny(arg, "{[\"")
}

// readData returns the JSON that an argument gives, names (@FILE) or stands
// for (-).
func (p *program) readData(arg string) (string, error) {
	text := []byte(arg)
	var err error
	if file, ok := strings.CutPrefix(arg, "@"); ok {
		text, err = readFile(file, maxData)
	} else if arg == "-" {
		text, err = readAll(p.in, maxData)
	}
	if err != nil {
		return "", wire.Errorf(wire.InvalidArgument, "read DATA: %w", err)
	}
	var any json.RawMessage
	if err := json.Unmarshal(text, &any); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return "", usagef("DATA is not JSON: %w (at byte %d)", err, syntax.Offset)
		}
		return "", usagef("DATA is not JSON: %w", err)
	}
	return string(text), nil
}

// readFile reads a file of at most limit bytes.
func readFile(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAll(f, limit)
}

func readAll(r io.Reader, limit int64) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, limit+1))
	if int64(len(text)) > limit {
		return nil, wire.Errorf(wire.TooLarge, "more than %d bytes", limit)
	}
	return text, err
}

// answer is what call prints with --json. Response is the agent's document as
// it came: no number in it is read and written again.
type answer struct {
	Response  json.RawMessage `json:"response"`
	Agent     string          `json:"agent"`
	Address   string          `json:"address"`
	Session   string          `json:"session"`
	Request   string          `json:"request"`
	Attempts  uint32          `json:"attempts"`
	Path      answerPath      `json:"path"`
	Suite     string          `json:"suite"`
	ElapsedMs float64         `json:"elapsed_ms"`
	Trace     string          `json:"trace"`
	Warnings  []string        `json:"warnings"` // what translation lost
}

type answerPath struct {
	Kind      string   `json:"kind"`
	Transport string   `json:"transport"`
	Hops      []string `json:"hops"`
}

func (p *program) call(req *openmeshv1.CallRequest) func(*cobra.Command, []string) error {
	return p.ask(ownLimit, func(ctx context.Context, d *api.Client, _ []string) error {
		res, err := d.Session.Call(ctx, req)
		if err != nil {
			return err
		}
		response := []byte(res.GetJson())
		if !json.Valid(response) {
			return wire.Errorf(wire.InvalidResponse, "the response of %s is not JSON", res.Agent)
		}
		err = p.showValue(answerOf(res, response), func(g *page) { g.json(response) })
		p.warn(res.Warnings)
		p.note("%s, %s over %s, %s", res.Address, res.Path.GetKind(), res.Path.GetTransport(), milliseconds(res.ElapsedMs))
		return err
	})
}

// json prints a document indented; to programs every byte of it that matters.
func (g *page) json(doc []byte) {
	text := indented(doc)
	if g.terminal {
		text = printable(text)
	}
	_, _ = io.WriteString(g.w, text+"\n") // a buffer takes all
}
