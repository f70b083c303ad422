package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"openmesh/node/api"
	"openmesh/protocols/wire"
)

func newMarket(p *program) *cobra.Command {
	return p.noun("market", "Negotiate work and sign contracts",
		newRFP(p), newProposals(p), newProposal(p), newPropose(p), newCounter(p), newAmend(p), newAccept(p), newReject(p),
		newWithdraw(p), newMarketContract(p), newSettle(p), newMarketWatch(p), newMarketSchema(p))
}

// subject is what a command of the market is about: which commands help a person
// whose command failed.
type subject struct {
	list, show string // commands; show is followed by the id that was given
	example    string // command that prints a valid document; empty: there is none
}

func aRequest() subject {
	return subject{list: "market rfp list --all", show: "market rfp show", example: "market rfp example"}
}

func aProposal() subject {
	return subject{list: "market proposals --all", show: "market show", example: "market propose example"}
}

func aContract() subject {
	return subject{list: "market contract list --all", show: "market contract show"}
}

func aSchema() subject {
	return subject{list: "market schema list", show: "market schema show", example: "market schema example"}
}

// asking makes an asking say what to do next where its error does not.
func (s subject) asking(do asking) asking {
	return func(ctx context.Context, d *api.Client, args []string) error { return s.advise(do(ctx, d, args), args) }
}

func (s subject) advise(err error, args []string) error {
	var failed *wire.Error
	if !errors.As(err, &failed) || failed.Hint != "" {
		return err
	}
	switch {
	case failed.Code == wire.NotFound:
		failed.Hint = "see what there is: openmesh " + s.list
	case failed.Code == wire.IllegalTransition && len(args) > 0:
		failed.Hint = "see its state, and whose turn it is: openmesh " + s.show + " " + args[0]
	case failed.Code == wire.InvalidRequest && s.example != "":
		failed.Hint = "compare with: openmesh " + s.example + "; amounts are text, in quotes"
	}
	return err
}
