package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/node/config"
	"openmesh/node/keys"
	"openmesh/protocols/wire"
)

const (
	checkOK   = "ok"
	checkWarn = "warn"
	checkFail = "fail"
)

func newDoctor(p *program) *cobra.Command {
	return &cobra.Command{
		Use: "doctor", Short: "Find out what is wrong, and what to do", Args: cobra.NoArgs,
		Long: "Find out what is wrong, and what to do: first with the home, then, if the daemon runs, with the node\n" +
			"and its place in the mesh. Exit code 0 if nothing is wrong, 3 if the daemon does not run, else 1.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			home, err := p.homeDir()
			if err != nil {
				return err
			}
			checks := p.examineHome(home)
			d, dialErr := p.dial()
			checks = append(checks, check("daemon", dialErr, "running"))
			if dialErr == nil {
				defer d.Close()
				checks = append(checks, p.examineNode(cmd.Context(), d)...)
			}
			return p.diagnose(checks, dialErr)
		},
	}
}

// check is the outcome of one examination.
func check(name string, err error, fine string) *openmeshv1.Check {
	if err == nil {
		return &openmeshv1.Check{Name: name, Status: checkOK, Message: fine}
	}
	d := api.Describe(err)
	return &openmeshv1.Check{Name: name, Status: checkFail, Message: d.Message, Hint: d.Hint}
}

// examineHome checks what can be checked without the daemon.
func (p *program) examineHome(home string) []*openmeshv1.Check {
	cfg, err := config.Load(home, p.environ, nil)
	checks := []*openmeshv1.Check{check("config", err, "readable and valid")}
	if err == nil {
		for _, sentence := range cfg.Unbuilt() {
			checks = append(checks, &openmeshv1.Check{Name: "config", Status: checkWarn, Message: sentence, Hint: "leave it out"})
		}
	}
	status, err := keys.Status(home, time.Now())
	keyCheck := check("identity", err, fmt.Sprintf("%s, key valid until %s", status.Address, status.NotAfter.UTC().Format(time.RFC3339)))
	switch {
	case err != nil && wire.CodeOf(err) == wire.NotFound && keyCheck.Hint == "":
		keyCheck.Hint = "make one with: openmesh init"
	case err == nil && status.State == "expiring":
		keyCheck.Status, keyCheck.Hint = checkWarn, "rotate it with: openmesh key rotate"
	case err == nil && status.State != "valid":
		keyCheck.Status, keyCheck.Hint = checkFail, "check the clock; rotate the key with: openmesh key rotate"
		keyCheck.Message = "the key is " + status.State + ": " + keyCheck.Message
	}
	return append(checks, keyCheck)
}

// examineNode lets the daemon examine itself.
func (p *program) examineNode(ctx context.Context, d *api.Client) []*openmeshv1.Check {
	limit := timeToReach
	if p.timeout > 0 {
		limit = p.timeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	res, err := d.Node.Doctor(ctx, &openmeshv1.DoctorRequest{})
	if err != nil {
		return []*openmeshv1.Check{check("node", err, "")}
	}
	return res.Checks
}

// diagnose prints all checks and fails if one did.
func (p *program) diagnose(checks []*openmeshv1.Check, notRunning error) error {
	failed := 0
	for _, c := range checks {
		if c.Status == checkFail {
			failed++
		}
	}
	res := &openmeshv1.DoctorResponse{Checks: checks, Ok: failed == 0}
	if err := p.show(res, func(g *page) { printChecks(g, checks) }); err != nil {
		return err
	}
	if notRunning != nil {
		return notRunning
	}
	if failed > 0 {
		return wire.Errorf(wire.Internal, "%d of %d checks failed", failed, len(checks)).WithHint("each check above says what to do")
	}
	return nil
}

func printChecks(g *page, checks []*openmeshv1.Check) {
	var rows [][]string
	for _, c := range checks {
		rows = append(rows, []string{c.Status, c.Name, c.Message, c.Hint})
	}
	g.table([]string{"STATUS", "CHECK", "FOUND", "WHAT TO DO"}, rows)
}
