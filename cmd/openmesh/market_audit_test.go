package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	_ "modernc.org/sqlite"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	deal "openmesh/protocols/market"
)

// tampering is what somebody does to the database of an agent whose daemon is off, to
// have said something else.
type tampering struct {
	name     string
	do       []string // statements; @n is the entry, @end the number of entries
	against  bool     // with the contract that the other side holds
	ok       bool     // and that nobody can tell by the log alone
	index    int64    // of the first fault; at: that entry, before: it or an earlier one
	reason   string   // part of it
	anywhere bool     // the index may be lower
}

// at and end stand for the entry that is tampered with, and for the first one that is
// cut off.
const at, end = -1, -2

var tamperings = []tampering{
	{name: "nothing", ok: true},
	{name: "nothing, compared", against: true, ok: true},
	{name: "a payload changed", do: []string{"UPDATE audit_entries SET payload = substr(payload, 1, size - 1) || X'ff' WHERE idx = @n"}, index: at, reason: "payload is not the one that was recorded"},
	{
		name:  "a payload changed, and its digest",
		do:    []string{"UPDATE audit_entries SET payload = X'00', size = 1, digest = X'6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d' WHERE idx = @n"},
		index: at, reason: "not what was recorded",
	},
	{name: "what became of it changed", do: []string{"UPDATE audit_entries SET note = 'rejected' WHERE idx = @n"}, index: at, reason: "not what was recorded"},
	{name: "its time changed", do: []string{"UPDATE audit_entries SET at = at + 1 WHERE idx = @n"}, index: at, reason: "not what was recorded"},
	{name: "a payload taken away", do: []string{"UPDATE audit_entries SET payload = X'' WHERE idx = @n"}, index: at, reason: "payload is not the one that was recorded"},
	{name: "an entry removed", do: []string{"DELETE FROM audit_entries WHERE idx = @n"}, index: at, reason: "missing"},
	{
		name: "entries swapped",
		do: []string{
			"UPDATE audit_entries SET idx = -1 WHERE idx = @n", "UPDATE audit_entries SET idx = @n WHERE idx = @n + 1",
			"UPDATE audit_entries SET idx = @n + 1 WHERE idx = -1",
		},
		index: at, reason: "another order",
	},
	{
		name:  "hashes of the tree changed",
		do:    []string{"UPDATE audit_entries SET hashes = zeroblob(length(hashes)) WHERE idx = @n"},
		index: at, reason: "hash",
	},
	{name: "the end cut off", do: []string{"DELETE FROM audit_entries WHERE idx >= @end"}, index: end, reason: "cut off|rewritten", anywhere: true},
	{
		name: "the end cut off, and all that tells of it",
		do:   []string{"DELETE FROM audit_entries WHERE idx >= @end", "DELETE FROM audit_checkpoints", "DELETE FROM market_negotiations", "DELETE FROM market_requests"},
		ok:   true,
	},
	{
		name:    "the end cut off, and all that tells of it, compared",
		do:      []string{"DELETE FROM audit_entries WHERE idx >= @end", "DELETE FROM audit_checkpoints", "DELETE FROM market_negotiations", "DELETE FROM market_requests"},
		against: true, index: end, reason: "cut off|rewritten", anywhere: true,
	},
	{
		name:  "a checkpoint forged",
		do:    []string{"UPDATE audit_checkpoints SET text = replace(text, char(10) || size || char(10), char(10) || (size + 1) || char(10))"},
		index: 0, reason: "forged or damaged",
	},
	{name: "a checkpoint of another size", do: []string{"UPDATE audit_checkpoints SET text = X'00'"}, index: 0, reason: "forged or damaged"},
}

// Whoever changes a log finds that it tells of it, with the place and the reason, be it
// by what others hold.
func TestMarketAuditTampering(t *testing.T) {
	t.Parallel()
	tr := newTrade(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	seller := tr.sides[deal.Seller]
	held := filepath.Join(tr.dir, "contract.json")
	at := tr.dealOnRecord(ctx, held)
	seller.drain(t)
	file := filepath.Join(seller.home, "openmesh.db")
	original, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range tamperings {
		restore(t, file, original)
		size := tamper(t, file, at, tc.do)
		if err := seller.start(); err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		args := []string{"--json", "audit", "verify"}
		if tc.against {
			args = append(args, "--against", held)
		}
		said := speak(t, seller.home, "", args...)
		tc.check(t, said, at, size)
		seller.kill()
	}
}

// dealOnRecord makes a deal, keeps the contract as the buyer holds it, and returns the
// index of the entry in the seller's log with the buyer's acceptance.
func (tr *trade) dealOnRecord(ctx context.Context, file string) (index uint64) {
	tr.t.Helper()
	d, err := tr.post(ctx, "on record", stands)
	for _, s := range []step{{deal.Seller, deal.Propose}, {deal.Buyer, deal.Counter}, {deal.Seller, deal.Accept}} {
		if err == nil {
			_, err = d.move(ctx, s.by, s.move, stands)
		}
	}
	var end standing
	if err == nil {
		end, err = d.agree(ctx, deal.Contracted)
	}
	buyer, seller := tr.sides[deal.Buyer].api(), tr.sides[deal.Seller].api()
	var contract *openmeshv1.ExportContractResponse
	if err == nil {
		contract, err = buyer.Market.ExportContract(ctx, &openmeshv1.ShowContractRequest{Contract: end.contract})
	}
	if err == nil {
		err = os.WriteFile(file, []byte(contract.Json), 0o600)
	}
	var log *openmeshv1.ListAuditResponse
	if err == nil {
		log, err = seller.Audit.List(ctx, &openmeshv1.ListAuditRequest{Of: d.id, Kind: "market.counter"})
	}
	if err != nil || len(log.Entries) != 1 {
		tr.t.Fatalf("a deal: %v, %v", log, err)
	}
	return log.Entries[0].Index
}

// drain ends the daemon as a service manager would.
func (v *victim) drain(t *testing.T) {
	t.Helper()
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.daemon.drain(); err != nil {
		t.Fatal(err)
	}
	v.daemon = nil
}

func restore(t *testing.T, file string, original []byte) {
	t.Helper()
	for _, more := range []string{"-wal", "-shm"} {
		if err := os.Remove(file + more); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(file, original, 0o600); err != nil {
		t.Fatal(err)
	}
}

// tamper runs statements, each of which must change something, and returns how many
// entries there were.
func tamper(t *testing.T, file string, index uint64, statements []string) (size int64) {
	t.Helper()
	db, err := sql.Open("sqlite", file)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRow("SELECT count(*) FROM audit_entries").Scan(&size); err != nil {
		t.Fatal(err)
	}
	for _, s := range statements {
		res, err := db.Exec(s, sql.Named("n", index), sql.Named("end", index))
		if err != nil {
			t.Fatalf("%s: %v", s, err)
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			t.Fatalf("%s: %d rows, %v", s, n, err)
		}
	}
	return size
}

// check compares what the command said with what was done.
func (tc *tampering) check(t *testing.T, said spoken, index uint64, size int64) {
	t.Helper()
	var report struct {
		OK      bool
		Entries int64
		Bad     *struct {
			Index  int64
			Reason string
		}
	}
	if err := json.Unmarshal([]byte(said.out), &report); err != nil {
		t.Errorf("%s: %v in %s%s", tc.name, err, said.out, said.err)
		return
	}
	if tc.ok {
		if said.exit != exitDone || !report.OK || report.Bad != nil || tc.do == nil && report.Entries < size {
			t.Errorf("%s: exit code %d, %s%s", tc.name, said.exit, said.out, said.err)
		}
		return
	}
	want := tc.index
	if want < 0 {
		want = int64(index)
	}
	found := false
	for reason := range strings.SplitSeq(tc.reason, "|") {
		found = found || report.Bad != nil && strings.Contains(report.Bad.Reason, reason)
	}
	if said.exit != exitFailed || report.OK || !found || report.Bad.Index != want && !(tc.anywhere && report.Bad.Index < want) {
		t.Errorf("%s: exit code %d, %s%s; want entry %d, %s", tc.name, said.exit, said.out, said.err, want, tc.reason)
	}
	if !strings.Contains(said.err, "entry ") {
		t.Errorf("%s: %s", tc.name, said.err)
	}
}
