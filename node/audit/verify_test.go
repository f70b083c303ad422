package audit_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"openmesh/node/audit"
	"openmesh/protocols/protocoltest"
)

// What somebody with the file at hand may do to it, and where it is found.
func TestTampered(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		tamper []string
		index  uint64
		reason string
	}{
		"payload changed":   {[]string{`UPDATE audit_entries SET payload = CAST('other' AS BLOB) WHERE idx = 7`}, 7, "payload"},
		"payload and hash":  {[]string{`UPDATE audit_entries SET payload = payload || x'00', digest = zeroblob(32) WHERE idx = 7`}, 7, "payload"},
		"note changed":      {[]string{`UPDATE audit_entries SET note = 'accepted' WHERE idx = 11`}, 11, "not what was recorded"},
		"time changed":      {[]string{`UPDATE audit_entries SET at = at + 1 WHERE idx = 11`}, 11, "not what was recorded"},
		"kind changed":      {[]string{`UPDATE audit_entries SET kind = 'market.reject' WHERE idx = 1`}, 1, "not what was recorded"},
		"hash changed":      {[]string{`UPDATE audit_entries SET hashes = zeroblob(length(hashes)) WHERE idx = 12`}, 12, "not what was recorded"},
		"node hash changed": {[]string{`UPDATE audit_entries SET hashes = substr(hashes, 1, 32) || zeroblob(length(hashes) - 32) WHERE idx = 15`}, 15, "hashes of the tree"},
		"removed":           {[]string{`DELETE FROM audit_entries WHERE idx = 9`}, 9, "missing"},
		"first removed":     {[]string{`DELETE FROM audit_entries WHERE idx = 0`}, 0, "missing"},
		"removed, renumbered": {[]string{`DELETE FROM audit_entries WHERE idx = 9`,
			`UPDATE audit_entries SET idx = -idx WHERE idx > 9`, `UPDATE audit_entries SET idx = -idx - 1 WHERE idx < 0`}, 9, "entry 10: entries were put in another order"},
		"swapped": {[]string{`UPDATE audit_entries SET idx = -1 WHERE idx = 4`, `UPDATE audit_entries SET idx = 4 WHERE idx = 6`,
			`UPDATE audit_entries SET idx = 6 WHERE idx = -1`}, 4, "entry 6: entries were put in another order"},
		"end cut off":       {[]string{`DELETE FROM audit_entries WHERE idx >= 30`}, 30, "cut off"},
		"checkpoint forged": {[]string{`UPDATE audit_checkpoints SET text = CAST(replace(CAST(text AS TEXT), char(10) || '20' || char(10), char(10) || '19' || char(10)) AS BLOB) WHERE size = 20`}, 0, "forged"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			b.fill(20)
			b.checkpoint()
			b.fill(20)
			if r := b.verify(); !r.OK || r.Entries != 40 || r.Checkpoints != 1 {
				t.Fatalf("Verify() before = %+v", r)
			}
			b.tamper(test.tamper...)
			r := b.verify()
			if r.OK || r.Bad.Index != test.index || !strings.Contains(r.Bad.Reason, test.reason) {
				t.Errorf("Verify() = %v", r.Bad)
			}
		})
	}
}

// A log that its own agent made anew has only checkpoints of others against it.
func TestAgainst(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.fill(30)
	held := b.checkpoint().Bytes()
	b.fill(10)
	other := newBench(t)
	other.fill(5)
	rewritten := openBench(t, "", b.agent)
	rewritten.fill(29)
	rewritten.commit(audit.Entry{Kind: "market.accept", Direction: audit.Sent, Note: "never said"})
	short := openBench(t, "", b.agent)
	short.fill(29)
	forged := bytes.Replace(held, []byte("\n30\n"), []byte("\n31\n"), 1)
	for name, test := range map[string]struct {
		log     *bench
		against []byte
		ok      bool
		index   uint64
		reason  string
	}{
		"true":      {b, held, true, 0, ""},
		"rewritten": {rewritten, held, false, 0, "rewritten"},
		"cut off":   {short, held, false, 29, "cut off"},
		"forged":    {b, forged, false, 0, "forged"},
		"another's": {b, other.checkpoint().Bytes(), false, 0, "is of the log of"},
		"no such":   {b, []byte("hello"), false, 0, "forged"},
	} {
		r := test.log.verify(test.against)
		if r.OK != test.ok || !test.ok && (r.Bad.Index != test.index || !strings.Contains(r.Bad.Reason, test.reason)) {
			t.Errorf("%s: %v", name, r.Bad)
		}
	}
}

// A node goes on recording in a log that was tampered with, and what was done
// to it is still found.
func TestTamperedGoesOn(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.fill(13)
	b.tamper(`DELETE FROM audit_entries WHERE idx = 7`) // the hash of 0 to 7 is there
	b.reopen()
	b.fill(10)
	if r := b.verify(); r.OK || r.Bad.Index != 7 {
		t.Errorf("Verify() = %v", r.Bad)
	}
}

func TestCheckpoint(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	if c := b.checkpoint(); c.Size != 0 {
		t.Errorf("checkpoint of nothing: %s", c)
	}
	b.fill(100)
	c := b.checkpoint()
	parsed, err := audit.ParseCheckpoint(c.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	r := b.verify()
	if parsed.Size != 100 || parsed.Root != r.Root || parsed.Agent != b.agent.Agent || parsed.Digest() != c.Digest() || len(c.Bytes()) > audit.MaxCheckpoint {
		t.Errorf("parsed: %+v", parsed)
	}
	if again := b.checkpoint(); again.String() != c.String() {
		t.Error("the same log was signed again")
	}
	b.agent.Rotate(t, 2, time.Now())
	b.reopen()
	if again := b.checkpoint(); again.Root != c.Root {
		t.Errorf("after a rotation: %s", again)
	}
	if r := b.verify(c.Bytes()); !r.OK || r.Checkpoints < 3 {
		t.Errorf("Verify() = %+v", r)
	}
}

// Not one byte of a checkpoint can be changed.
func TestCheckpointHostile(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.fill(3)
	good := b.checkpoint().Bytes()
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if _, err := audit.ParseCheckpoint(bad); err == nil {
			t.Errorf("byte %d of %d was changed", i, len(good))
		}
	}
	liar := protocoltest.NewAgent(t, realm, time.Now())
	if _, err := audit.ParseCheckpoint(bytes.Replace(good, []byte(b.agent.Agent), []byte(liar.Agent), 2)); err == nil {
		t.Error("in another's name")
	}
}

func FuzzParseCheckpoint(f *testing.F) {
	b := newBench(f)
	b.fill(3)
	f.Add(b.checkpoint().Bytes())
	f.Add([]byte("openmesh/audit/x\n1\nx\ntime 1\ncertificate \n\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if c, err := audit.ParseCheckpoint(raw); err == nil && (c.Agent != c.Certificate.Agent || !bytes.Equal(c.Bytes(), raw)) {
			t.Errorf("%s, signed by %s", c, c.Certificate.Agent)
		}
	})
}
