package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/protocols/wire"
)

func auditEntry() *openmeshv1.AuditEntry {
	return &openmeshv1.AuditEntry{
		Index: 1 << 60, At: "2026-11-22T06:00:00Z", Kind: "market.accept", Direction: "sent", Agent: testAgent, Ref: testProposal, Hash: "00ff",
		Summary: "accepted", Size: 3, Json: `{"kind":"accept"}`, Payload: []byte{1, 2, 3},
	}
}

// Each command asks what it should, and says what it heard.
func TestAuditCommands(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name      string
		args      string
		procedure string
		answers   []any
		asked     proto.Message
		out, err  string // regular expressions
		exit      int
	}{
		{
			name: "list", args: "list --of b10c00 --kind market --from 7 --limit 9 --last", procedure: "List",
			answers: []any{connect.NewResponse(&openmeshv1.ListAuditResponse{Entries: []*openmeshv1.AuditEntry{auditEntry()}, Size: 40})},
			asked:   &openmeshv1.ListAuditRequest{From: 7, Limit: 9, Of: "b10c00", Kind: "market", Last: true},
			out:     `^INDEX\tAT\tKIND\tDIRECTION\tAGENT\tOF\tSUMMARY\n1152921504606846976\t2026\S+\tmarket.accept\tsent\tdid:key:\S+\tb10c0\w+\taccepted\n$`,
			err:     `^1 of 40 entries\n$`,
		},
		{
			name: "show", args: "--json show 1152921504606846976", procedure: "Show", answers: []any{connect.NewResponse(auditEntry())},
			asked: &openmeshv1.ShowAuditRequest{Index: 1 << 60},
			out:   `^{"index":1152921504606846976,.*"size":3,"pruned":false,"document":{"kind":"accept"},"payload":"AQID"}\n$`, err: `^$`,
		},
		{
			name: "show what was pruned", args: "show 3", procedure: "Show", answers: []any{connect.NewResponse(&openmeshv1.AuditEntry{Index: 3, Pruned: true})},
			out: `original\tremoved, as it was older than audit.retention`,
		},
		{name: "show nothing", args: "show last", err: `INDEX "last": want a number`, exit: exitUsage},
		{
			name: "verify", args: "verify", procedure: "Verify",
			answers: []any{connect.NewResponse(&openmeshv1.VerifyAuditResponse{Ok: true, Entries: 40, Root: "00ff", Checkpoints: 2, Expired: 1, Pruned: 1, Agent: testAgent})},
			asked:   &openmeshv1.VerifyAuditRequest{}, out: `(?s)entries\t40\nroot\t00ff\ncheckpoints\t2 compared\nexpired\t1 checkpoints.*\npruned\t1 originals.*verdict\tok\n$`, err: `^$`,
		},
		{
			name: "verify what was changed", args: "--json verify", procedure: "Verify",
			answers: []any{connect.NewResponse(&openmeshv1.VerifyAuditResponse{Entries: 40, Bad: &openmeshv1.AuditFault{Index: 7, Reason: "the payload was changed"}})},
			out:     `^{"ok":false,"entries":40,"root":"","bad":{"index":7,"reason":"the payload was changed"},`,
			err:     `^{"error":{"code":"malformed","message":"the log is not what it was: entry 7: the payload was changed"`, exit: exitFailed,
		},
		{
			name: "replay", args: "replay 3f9a20", procedure: "Replay",
			answers: []any{connect.NewResponse(&openmeshv1.ReplayAuditResponse{Ok: true, Outcome: "contracted", Steps: []*openmeshv1.ReplayStep{
				{Index: 4, Kind: "market.accept", Direction: "sent", Recorded: "accepted", Recomputed: "accepted", Ok: true},
			}})},
			asked: &openmeshv1.ReplayAuditRequest{Session: "3f9a20"}, out: `\nok\t4\t\tmarket.accept\tsent\t\taccepted\taccepted\n1 steps, outcome contracted\n$`, err: `^$`,
		},
		{
			name: "replay what differs", args: "replay 3f9a20", procedure: "Replay",
			answers: []any{connect.NewResponse(&openmeshv1.ReplayAuditResponse{Divergence: "entry 4: rejected", Outcome: "rejected"})},
			err:     `^error: the log does not replay: entry 4: rejected\nhint: see whether it was changed: openmesh audit verify\n$`, exit: exitFailed,
		},
		{
			name: "replay nothing", args: "replay 3f9a20", procedure: "Replay", answers: []any{wire.Errorf(wire.NotFound, "no entry is of 3f9a20")},
			err: `no entry is of 3f9a20`, exit: exitNotFound,
		},
		{
			name: "export", args: "export --of 3f9a20", procedure: "Export",
			answers: []any{&openmeshv1.ExportAuditResponse{Data: []byte("one\n")}, &openmeshv1.ExportAuditResponse{Data: []byte("two\n")}, done()},
			asked:   &openmeshv1.ExportAuditRequest{Of: "3f9a20"}, out: `^one\ntwo\n$`, err: `^$`,
		},
		{
			name: "checkpoint", args: "checkpoint", procedure: "Checkpoint",
			answers: []any{connect.NewResponse(&openmeshv1.AuditCheckpoint{Text: "openmesh/audit\n40\nAP8=\n\n— x y\n", Size: 40})},
			out:     "^openmesh/audit\n40\nAP8=\n\n— x y\n$", err: `^$`,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			local := &localAPI{answers: map[string][]any{"Audit/" + tc.procedure: tc.answers}}
			got := speak(t, local.serve(t), "", append([]string{"audit"}, strings.Fields(tc.args)...)...)
			got.check(t, tc.out, tc.err, tc.exit)
			local.check(t, "Audit/"+tc.procedure, tc.asked)
		})
	}
}

// What --against names is sent, and what cannot be read is said.
func TestAuditAgainst(t *testing.T) {
	t.Parallel()
	local := &localAPI{answers: map[string][]any{"Audit/Verify": {connect.NewResponse(&openmeshv1.VerifyAuditResponse{Ok: true})}}}
	home := local.serve(t)
	a, b := filepath.Join(home, "a"), filepath.Join(home, "b")
	for name, text := range map[string]string{a: "one", b: "two"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	speak(t, home, "", "audit", "verify", "--against", a, "--against", b).check(t, `verdict\tok`, `^$`, exitDone)
	local.check(t, "Audit/Verify", &openmeshv1.VerifyAuditRequest{Against: []string{"one", "two"}})
	speak(t, home, "", "audit", "verify", "--against", a+"x").check(t, `^$`, `^error: read .*ax: `, exitUsage)
}

// An export is in its file when all of it came, and not before.
func TestExportToFile(t *testing.T) {
	t.Parallel()
	local := &localAPI{answers: map[string][]any{"Audit/Export": {
		&openmeshv1.ExportAuditResponse{Data: []byte("one\n")}, wire.Errorf(wire.Internal, "the disk is gone"),
		&openmeshv1.ExportAuditResponse{Data: []byte("two\n")}, done(),
	}}}
	home := local.serve(t)
	file := filepath.Join(home, "log")
	if err := os.WriteFile(file, []byte("before"), 0o644); err != nil {
		t.Fatal(err)
	}
	speak(t, home, "", "audit", "export", "-o", file).check(t, `^$`, `the disk is gone`, exitFailed)
	if text, err := os.ReadFile(file); string(text) != "before" || err != nil {
		t.Errorf("half an export: %q, %v", text, err)
	}
	speak(t, home, "", "--json", "audit", "export", "-o", file).check(t, `^{"file":".*log","bytes":4}\n$`, `^$`, exitDone)
	text, err := os.ReadFile(file)
	if info, _ := os.Stat(file); string(text) != "two\n" || err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%q, %v, %v", text, info, err)
	}
	left, err := filepath.Glob(filepath.Join(home, ".openmesh-*"))
	if len(left) > 0 || err != nil {
		t.Errorf("left over: %v, %v", left, err)
	}
}
