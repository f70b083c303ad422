package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"openmesh/node/proof"
	"openmesh/protocols/wire"
)

func newContractVerify(p *program) *cobra.Command {
	return &cobra.Command{
		Use: "verify FILE", Short: "Check an exported contract", Args: cobra.ExactArgs(1),
		Long: "Check an exported contract with nothing but the file, or - for standard input: its form byte by byte, both\n" +
			"signatures, the certificates of the keys that made them, and every move from the request to the contract. No\n" +
			"daemon is needed. Exits 1 if something does not hold, and says where. Whether a key was revoked later, a file\n" +
			"cannot tell.",
		Example: "  openmesh market contract verify deal.json",
		RunE: func(_ *cobra.Command, args []string) error {
			file, err := p.readInput(args[0], proof.MaxContract)
			if err != nil {
				return wire.Errorf(wire.InvalidArgument, "read FILE: %w", err)
			}
			c := proof.VerifyContract(file)
			if err := p.showValue(c, func(g *page) { g.provenContract(c) }); err != nil {
				return err
			}
			return c.Err()
		},
	}
}

// readInput reads a file, or standard input, of at most limit bytes.
func (p *program) readInput(name string, limit int64) ([]byte, error) {
	if name == "-" {
		return readAll(p.in, limit)
	}
	return readFile(name, limit)
}

func (g *page) provenContract(c proof.Contract) {
	pairs := []string{"contract", c.Contract}
	if d := c.Document; d != nil {
		pairs = append(pairs, "buyer", string(d.Buyer.Agent), "seller", string(d.Seller.Agent), "item", d.Terms.Item,
			"price", fmt.Sprintf("%s %s × %d = %s %s", d.Terms.Price.Amount, d.Terms.Price.Currency, d.Terms.Quantity, d.Terms.Total, d.Terms.Price.Currency),
			"valid", stampOf(d.ValidFrom)+" until "+stampOf(d.ValidUntil))
	}
	for _, s := range c.Signatures {
		pairs = append(pairs, "signature", signature(s.Agent, s.KeyVersion, s.OK))
	}
	if c.OK {
		pairs = append(pairs, "checked", "form, signatures, certificates, and each move from the request to the contract")
	}
	if c.Offset >= 0 {
		pairs = append(pairs, "differs", fmt.Sprintf("from byte %d on", c.Offset))
	}
	g.fields(append(pairs, "verdict", verdictOf(c.OK))...)
}

func stampOf(t time.Time) string { return t.UTC().Format(time.RFC3339) }
