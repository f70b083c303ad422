package main

import (
	"strings"
	"testing"
	"time"

	"openmesh/protocols/market"
	"openmesh/protocols/market/contract"
	"openmesh/protocols/market/markettest"
)

// dealFile is the export of a contract between two agents.
func dealFile(t *testing.T) string {
	t.Helper()
	buyer, seller := markettest.NewAgent(t, 1), markettest.NewAgent(t, 2)
	n, err := market.NewNegotiation(buyer.Post(t, markettest.NewRFP(buyer.ID, time.Hour)), seller.ID)
	if err != nil {
		t.Fatal(err)
	}
	for i, step := range []struct {
		by   *markettest.Agent
		kind market.Kind
	}{{seller, market.Propose}, {buyer, market.Accept}, {seller, market.Conclude}} {
		at := markettest.Start.Add(time.Duration(i+1) * time.Minute)
		if n, _, err = n.Next(step.by.Move(t, n, step.kind, at, markettest.Offer{}), at); err != nil {
			t.Fatal(err)
		}
	}
	file, err := contract.Export(n)
	if err != nil {
		t.Fatal(err)
	}
	return string(file)
}

// A file is judged where there is no home and no daemon.
func TestContractVerify(t *testing.T) {
	t.Parallel()
	deal := dealFile(t)
	for _, tc := range []struct {
		name, args, in, out, err string
		exit                     int
	}{
		{"a contract", "-", deal, `(?s)item\tsteel coil, 2 mm\nprice\t10.00 EUR × 40 = 400\S* EUR\nvalid\t2026-03-01T12:02:00Z until .*` +
			`signature\t✓ did:key:\S+, key version 1\nsignature\t✓ .*\nchecked\t.*\nverdict\tok\n$`, `^$`, exitDone},
		{"as JSON", "--json -", deal, `^{"ok":true,"contract":"[0-9a-f]{32}","parties":\["did:key:\S+","did:key:\S+"\],"signatures":\[{"agent":"did:key:\S+","ok":true,`, `^$`, exitDone},
		{"another price", "--json -", strings.Replace(deal, `"amount":"10.00"`, `"amount":"10.01"`, 1), `^{"ok":false,`,
			`^{"error":{"code":"malformed","message":"the file does not prove a contract: .*"pointers":\["/\S+"\]}}\n$`, exitFailed},
		{"two lines", "-", deal + "\n", `differs\tfrom byte \d+ on\nverdict\tfail\n$`, `^error: the file does not prove a contract`, exitFailed},
		{"nothing", "-", "", `verdict\tfail`, `hint: ask the other side for its export`, exitFailed},
		{"no file", "nowhere", "", `^$`, `^error: read FILE: open nowhere: `, exitUsage},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got := speak(t, "/nowhere", tc.in, append([]string{"market", "contract", "verify"}, strings.Fields(tc.args)...)...)
			got.check(t, tc.out, tc.err, tc.exit)
		})
	}
}

func TestAuditFilesWithoutDaemon(t *testing.T) {
	t.Parallel()
	for _, args := range []string{"verify -", "replay 3f9a20 --export -"} {
		got := speak(t, "/nowhere", "no export\n", append([]string{"audit"}, strings.Fields(args)...)...)
		got.check(t, `^$`, `^error: .*exported audit log`, exitFailed)
	}
}
