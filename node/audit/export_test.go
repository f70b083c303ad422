package audit_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"openmesh/node/audit"
	"openmesh/protocols/protocoltest"
	"openmesh/protocols/wire"
)

func (b *bench) export(ids ...string) string {
	b.Helper()
	var out bytes.Buffer
	if err := b.log.Export(b.Context(), &out, ids...); err != nil {
		b.Fatal(err)
	}
	return out.String()
}

// read verifies an export, and returns the notes of its entries.
func read(t *testing.T, export string, against ...[]byte) (audit.Report, []string) {
	t.Helper()
	var notes []string
	r, err := audit.ReadExport(strings.NewReader(export), func(e *audit.Entry) error { notes = append(notes, e.Note); return nil }, against...)
	if err != nil {
		t.Fatal(err)
	}
	return r, notes
}

func TestExport(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.fill(100)
	at100 := b.checkpoint()
	b.fill(17)
	for name, test := range map[string]struct {
		ids     []string
		entries int
		lines   int
	}{
		"all":       {nil, 117, 118},
		"a session": {[]string{"session-1"}, 24, 1 + 24 + 24 + 1}, // hashes up to the checkpoint, and from there
		"two":       {[]string{"session-1", "ref-2"}, 37, 1 + 37 + 31 + 1},
		"nothing":   {[]string{"no such"}, 0, 3},
	} {
		export := b.export(test.ids...)
		r, notes := read(t, export)
		if !r.OK || r.Entries != 117 || r.Agent != b.agent.Agent || len(notes) != test.entries || r.Root != b.verify().Root {
			t.Errorf("%s: %+v, %v; %d entries", name, r, r.Bad, len(notes))
		}
		if lines := strings.Count(export, "\n"); lines != test.lines {
			t.Errorf("%s: %d lines, want %d", name, lines, test.lines)
		}
	}
	for _, ids := range [][]string{nil, {"session-1"}, {"no such"}} {
		if r, _ := read(t, b.export(ids...), at100.Bytes()); !r.OK || r.Checkpoints != 2 {
			t.Errorf("of %q against a checkpoint: %+v", ids, r)
		}
	}
	if strings.Contains(b.export("session-1"), "payload 2\"") {
		t.Error("an export of one session has what was said in another")
	}
}

// stalled is what a client that stops reading is to an export: it takes some lines,
// and no more until it is let go.
type stalled struct {
	lines   int
	stopped func()
	letGo   <-chan struct{}
	got     bytes.Buffer
}

func (s *stalled) Write(b []byte) (int, error) {
	if s.lines--; s.lines == 0 {
		s.stopped()
		<-s.letGo
	}
	return s.got.Write(b)
}

// Clients that stop reading do not keep others from the database, however many.
func TestExportStalled(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.fill(20)
	letGo := make(chan struct{})
	var exports, stopped sync.WaitGroup
	clients := make([]*stalled, 16)
	for i := range clients {
		stopped.Add(1)
		clients[i] = &stalled{lines: 3, stopped: stopped.Done, letGo: letGo}
		exports.Go(func() {
			if err := b.log.Export(t.Context(), clients[i]); err != nil {
				t.Error(err)
			}
		})
	}
	free := make(chan struct{})
	go func() { stopped.Wait(); close(free) }()
	select {
	case <-free:
	case <-time.After(time.Minute):
		t.Error("exports wait for each other")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := b.log.Get(ctx, 7); err != nil {
		t.Errorf("while exports are stalled: %v", err)
	}
	close(letGo)
	exports.Wait()
	for _, c := range clients {
		if r, notes := read(t, c.got.String()); !r.OK || len(notes) != 20 {
			t.Errorf("an export that was stalled: %+v, %d entries", r, len(notes))
		}
	}
}

// Pages are cut by the size of payloads too, and nothing is lost at a cut.
func TestExportLarge(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	for i := range 20 {
		e := numbered(i)
		e.Payload = make([]byte, audit.MaxPayload*(i%3)/2)
		b.log.Note(e)
	}
	b.fill(1100)
	if r, notes := read(t, b.export()); !r.OK || len(notes) != 1120 || !b.verify().OK {
		t.Errorf("%+v, %d entries", r, len(notes))
	}
}

func TestExportOfNothing(t *testing.T) {
	t.Parallel()
	if r, notes := read(t, newBench(t).export()); !r.OK || len(notes) != 0 {
		t.Errorf("%+v", r)
	}
}

func TestExportTampered(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.fill(20)
	early := b.checkpoint().Bytes()
	b.fill(20)
	all, some := b.export(), b.export("session-1")
	other := newBench(t)
	other.fill(40)
	forger := openBench(t, "", b.agent)
	forger.fill(19)
	forger.commit(audit.Entry{Kind: "market.reject", Direction: audit.Sent})
	forger.fill(20)
	lines := func(s string) []string { return strings.SplitAfter(s, "\n") }
	for name, test := range map[string]struct {
		export string
		index  uint64
		reason string
	}{
		"payload":       {strings.Replace(all, payloadOf(all, 5), payloadOf(all, 6), 1), 5, "payload"},
		"note":          {strings.Replace(all, `"note 7"`, `"note 8"`, 1), 7, "not what was recorded"},
		"line removed":  {strings.Join(append(lines(all)[:9:9], lines(all)[10:]...), ""), 8, "missing"},
		"lines swapped": {strings.Join(append(lines(all)[:4:4], append([]string{lines(all)[5], lines(all)[4]}, lines(all)[6:]...)...), ""), 3, "missing"},
		"end removed":   {strings.Join(lines(all)[:31], ""), 30, "cut off"},
		"cut in a line": {all[:len(all)-20], 39, "cut off"},
		"hash":          {strings.Replace(some, `"subtrees":["`+hashesOf(some), `"subtrees":["`+strings.Repeat("0", 64), 1), 0, "another root"},
		"more":          {all + lines(other.export())[40], 40, "missing"},
		"checkpoint":    {strings.Replace(all, `\n40\n`, `\n41\n`, 1), 0, "forged"},
		"second head":   {strings.Replace(all, `{"entry":`, `{"checkpoint":"x","entry":`, 1), 0, "neither"},
		"no line":       {lines(all)[0] + "{}\n", 0, "neither"},
		"rewritten":     {forger.export(), 0, "rewritten"},
		"hidden":        {forger.export("session-1"), 0, "cannot be compared"},
	} {
		r, _ := read(t, test.export, early)
		if r.OK || r.Bad.Index != test.index || !strings.Contains(r.Bad.Reason, test.reason) {
			t.Errorf("%s: %v", name, r.Bad)
		}
	}
	head, body, _ := strings.Cut(all, "\n")
	for name, text := range map[string]string{
		"empty": "", "other": `{"format":"other"}` + "\n", "text": "hello\n", "long": `{"format":"` + strings.Repeat("x", 8<<20),
		"text after the head":       head + " hello\n" + body,
		"document after the head":   head + `{"entry":{}}` + "\n" + body,
		"text after an entry":       strings.Replace(all, "}}\n", "}} hello\n", 1),
		"document after an entry":   strings.Replace(all, "}}\n", "}}{}\n", 1),
		"bracket after an entry":    strings.Replace(all, "}}\n", "}}]\n", 1),
		"text after the last entry": strings.TrimSuffix(all, "\n") + "hello\n",
		"head with an entry":        strings.TrimSuffix(head, "}") + `,"entry":{}}` + "\n" + body,
		"empty line, and text":      all + "\nhello\n",
		"null":                      "null\n",
	} {
		if _, err := audit.ReadExport(strings.NewReader(text), nil); !errors.Is(err, wire.Malformed) && !errors.Is(err, wire.TooLarge) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// payloadOf is the base64 of an entry's payload, and hashesOf the first hash of
// entries that are not there.
func payloadOf(export string, index int) string {
	var l struct {
		Entry struct{ Payload json.RawMessage }
	}
	if err := json.Unmarshal([]byte(strings.Split(export, "\n")[1+index]), &l); err != nil {
		return err.Error()
	}
	return string(l.Entry.Payload)
}

func hashesOf(export string) string {
	_, after, _ := strings.Cut(export, `"subtrees":["`)
	return after[:64]
}

func FuzzReadExport(f *testing.F) {
	b := openBench(f, "", protocoltest.NewAgent(f, realm, time.Now()))
	b.fill(5)
	var all, some bytes.Buffer
	for _, err := range []error{b.log.Export(f.Context(), &all), b.log.Export(f.Context(), &some, "session-1")} {
		if err != nil {
			f.Fatal(err)
		}
	}
	f.Add(all.Bytes())
	f.Add(some.Bytes())
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := audit.ReadExport(bytes.NewReader(text), nil)
		if err != nil || !r.OK {
			return
		}
		first, _, _ := bytes.Cut(text, []byte("\n"))
		var head struct{ Checkpoint string }
		if err := json.Unmarshal(first, &head); err != nil {
			t.Fatal(err)
		}
		c, err := audit.ParseCheckpoint([]byte(head.Checkpoint))
		if err != nil || c.Agent != r.Agent || c.Size != r.Entries || c.Root != r.Root {
			t.Errorf("%+v, and the checkpoint is %v, %v", r, c, err)
		}
	})
}
