package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/protocols/wire"
)

// part is a part of a response, as call prints it with --stream and --json.
type part struct {
	Part json.RawMessage `json:"part"`
}

// streamed is how such a call went: its last line. It has no response.
type streamed struct {
	Parts    uint32 `json:"parts"`
	Response any    `json:"response,omitempty"` // in the place of that of answer
	answer
}

func answerOf(res *openmeshv1.CallResponse, response []byte) answer {
	return answer{
		Response: response, Agent: res.Agent, Address: res.Address, Session: res.Session, Request: res.Request,
		Attempts: res.Attempts, Suite: res.Suite, ElapsedMs: res.ElapsedMs, Trace: res.Trace, Warnings: append([]string{}, res.Warnings...),
		Path: answerPath{res.Path.GetKind(), res.Path.GetTransport(), append([]string{}, res.Path.GetHops()...)},
	}
}

// callStream prints each part of the response as it comes.
func (p *program) callStream(req *openmeshv1.CallRequest) func(*cobra.Command, []string) error {
	return p.ask(ownLimit, func(ctx context.Context, d *api.Client, _ []string) error {
		stream, err := d.Session.CallStream(ctx, req)
		if err != nil {
			return err
		}
		defer stream.Close()
		var final *openmeshv1.CallResponse
		for final == nil && stream.Receive() {
			if final = stream.Msg().GetFinal(); final != nil {
				break
			}
			if err := p.printPart([]byte(stream.Msg().GetJson())); err != nil {
				return err
			}
		}
		switch err := stream.Err(); {
		case err != nil:
			return err
		case final == nil:
			return wire.Errorf(wire.Internal, "the daemon did not say how the response ended")
		}
		return p.printFinal(final)
	})
}

// printPart prints a part on one line.
func (p *program) printPart(doc []byte) error {
	var line bytes.Buffer
	if err := json.Compact(&line, doc); err != nil {
		return wire.Errorf(wire.InvalidResponse, "a part of the response is not JSON")
	}
	if !p.json {
		return p.print(func(g *page) { g.line(line.String()) })
	}
	text, err := oneLine(part{line.Bytes()})
	if err == nil {
		_, err = p.out.Write(text)
	}
	return err
}

func (p *program) printFinal(res *openmeshv1.CallResponse) error {
	if p.json {
		text, err := oneLine(streamed{Parts: res.Parts, answer: answerOf(res, nil)})
		if err == nil {
			_, err = p.out.Write(text)
		}
		return err
	}
	came := "one document"
	if res.Parts > 0 {
		came = fmt.Sprintf("%d parts", res.Parts)
	}
	p.note("%s from %s, %s over %s, %s", came, res.Address, res.Path.GetKind(), res.Path.GetTransport(), milliseconds(res.ElapsedMs))
	return nil
}

// line prints a document as it is; on a terminal without what could steer it.
func (g *page) line(doc string) {
	if g.terminal {
		doc = printable(doc)
	}
	fmt.Fprintln(g.w, doc)
}
