package proof_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"

	"openmesh/node/audit"
	"openmesh/node/proof"
	"openmesh/node/store"
	"openmesh/protocols/identity"
	"openmesh/protocols/market"
	"openmesh/protocols/market/contract"
	"openmesh/protocols/market/document"
	"openmesh/protocols/market/markettest"
	"openmesh/protocols/protocoltest"
	"openmesh/protocols/wire"
)

// story is a deal as the buyer's log has it. The buyer's acceptance carries a
// checkpoint of the log, so that the seller can show it.
type story struct {
	buyer, seller *markettest.Agent
	n             market.Negotiation
	log           *audit.Log
}

func newStory(t *testing.T) *story {
	t.Helper()
	s := &story{buyer: agent(t), seller: agent(t)}
	s.log = logOf(t, s.buyer)
	now := time.Now().UTC().Truncate(time.Second)
	request := markettest.NewRFP(s.buyer.ID, time.Hour)
	request.Created, request.Deadline = now, now.Add(time.Hour)
	doc, err := request.Canonical()
	check(t, err)
	rfp := s.buyer.Sign(t, market.Move{Kind: market.Request, Author: s.buyer.ID, At: now, Schema: document.SchemaRFP, Document: doc})
	s.n, err = market.NewNegotiation(rfp, s.seller.ID)
	check(t, err)
	s.record(t, rfp, audit.Sent, "rfp")
	at := now.Add(time.Minute)
	s.apply(t, s.seller.Move(t, s.n, market.Propose, at, markettest.Offer{}), audit.Received)
	s.accept(t, at.Add(time.Minute))
	s.apply(t, s.seller.Move(t, s.n, market.Conclude, at.Add(2*time.Minute), markettest.Offer{}), audit.Received)
	return s
}

// agent returns one whose certificate is valid now, when checkpoints are made.
func agent(t *testing.T) *markettest.Agent {
	a := protocoltest.NewAgent(t, markettest.Realm, time.Now())
	return &markettest.Agent{ID: a.Agent, Root: a.Root, Host: a.Host, Certificate: a.Certificate}
}

func logOf(t *testing.T, a *markettest.Agent) *audit.Log {
	t.Helper()
	db, err := store.Open(t.Context(), store.Config{Path: filepath.Join(t.TempDir(), "db"), Owner: string(a.ID)})
	check(t, err)
	t.Cleanup(func() { db.Close() })
	l, err := audit.Open(t.Context(), audit.Config{DB: db, Agent: a.ID, Signer: func() (crypto.PrivKey, *identity.Certificate) { return a.Host, a.Certificate }})
	check(t, err)
	return l
}

func (s *story) accept(t *testing.T, at time.Time) {
	t.Helper()
	c, err := s.log.Checkpoint(t.Context())
	check(t, err)
	named := document.NewCheckpoint(int64(c.Size), document.Hash(c.Root), c.Bytes())
	_, doc, err := contract.Draft(s.n, s.buyer.Certificate, s.seller.Certificate, market.Checkpoints{Buyer: named}, at)
	check(t, err)
	signature, err := contract.Sign(doc, s.buyer.Host)
	check(t, err)
	s.apply(t, s.buyer.Sign(t, market.Move{
		Kind: market.Accept, RFP: s.n.RFP().Hash, Prev: s.n.Prev(market.Accept), Author: s.buyer.ID, To: s.seller.ID, At: at,
		Schema: document.SchemaContract, Document: doc, ContractSignature: signature, Checkpoint: c.Bytes(),
	}), audit.Sent)
}

func (s *story) apply(t *testing.T, m *market.Signed, direction string) {
	t.Helper()
	next, _, err := s.n.Next(m, m.At)
	check(t, err)
	s.n = next
	s.record(t, m, direction, next.State(m.At).String())
}

func (s *story) record(t *testing.T, m *market.Signed, direction, state string) {
	t.Helper()
	ref := s.n.ID()
	if m.Kind == market.Request {
		ref = m.Hash.ID()
	}
	_, _, err := s.log.Commit(t.Context(), "record", nil, audit.Entry{
		At: m.At, Kind: "market." + m.Kind.String(), Direction: direction, Agent: s.seller.ID, Ref: ref, Payload: m.Raw, Note: state,
	})
	check(t, err)
}

func (s *story) export(t *testing.T) []byte {
	t.Helper()
	var out bytes.Buffer
	check(t, s.log.Export(context.Background(), &out))
	return out.Bytes()
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestVerifyContract(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	file, err := contract.Export(s.n)
	check(t, err)
	c := proof.VerifyContract(file)
	if !c.OK || c.Err() != nil || len(c.Parties) != 2 || c.Parties[0] != string(s.buyer.ID) || len(c.Signatures) != 2 ||
		!c.Signatures[0].OK || !c.Signatures[1].OK || c.Document.Terms.Total.String() != "400" && c.Document.Terms.Total.String() != "400.00" {
		t.Errorf("%+v, %v", c, c.Err())
	}
	for name, tc := range map[string]struct{ from, to, at string }{
		"price":  {`"amount":"10.00"`, `"amount":"11.00"`, "/"},
		"spaces": {`{"contract"`, `{ "contract"`, ""},
		"other":  {`openmesh-contract/1`, `openmesh-contract/2`, "/format"},
	} {
		bad := proof.VerifyContract([]byte(strings.Replace(string(file), tc.from, tc.to, 1)))
		if err := bad.Err(); bad.OK || wire.CodeOf(err) != wire.Malformed || !strings.HasPrefix(bad.Pointer, tc.at) || bad.Reason == "" {
			t.Errorf("%s: %+v, %v", name, bad, err)
		}
	}
	if empty := proof.VerifyContract(nil); empty.OK || empty.Parties == nil || empty.Signatures == nil {
		t.Errorf("%+v", empty)
	}
}

// The checkpoints of the golden contract are such as logs have.
func TestCheckpointsOfContracts(t *testing.T) {
	t.Parallel()
	file, err := os.ReadFile("../../protocols/market/contract/testdata/contract.json")
	check(t, err)
	c := proof.VerifyContract(file)
	if !c.OK {
		t.Fatal(c.Reason)
	}
	for agent, named := range map[identity.AgentID]*market.Checkpoint{
		c.Document.Buyer.Agent: c.Document.Checkpoints.Buyer, c.Document.Seller.Agent: c.Document.Checkpoints.Seller,
	} {
		found, err := proof.Checkpoints(agent, file)
		check(t, err)
		got, err := audit.ParseCheckpoint(found[0])
		if len(found) != 1 || err != nil || int64(got.Size) != named.Size || market.Hash(got.Root) != named.Root || got.Digest() != named.Text {
			t.Errorf("%d checkpoints of %s, %+v, %v; the contract names %+v", len(found), agent, got, err, named)
		}
	}
}

// A log holds against what others hold of it; a history that was made up does not.
func TestVerifyLog(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	deal, err := contract.Export(s.n)
	check(t, err)
	own := s.export(t)
	checkpoint, err := s.log.Checkpoint(t.Context())
	check(t, err)
	stranger := logOf(t, s.seller)
	foreign, err := stranger.Checkpoint(t.Context())
	check(t, err)
	other := &story{buyer: s.buyer, seller: s.seller, n: s.n, log: logOf(t, s.buyer)} // the same agent, another history
	for range 4 {
		other.record(t, s.n.RFP(), audit.Sent, "rfp")
	}
	text := checkpoint.Bytes()
	for _, tc := range []struct {
		name    string
		export  []byte
		against [][]byte
		entries uint64
		wrong   string // part of the reason or error
	}{
		{"as it is", own, nil, 4, ""},
		{"against all", own, [][]byte{deal, text, own}, 4, ""},
		{"another history", other.export(t), [][]byte{deal}, 4, "checkpoint"},
		{"changed", bytes.Replace(own, []byte(`"note":"accepted"`), []byte(`"note":"rejected"`), 1), nil, 4, "entry|leaf|hash"},
		{"forged", own, [][]byte{bytes.Replace(text, []byte("\n4\n"), []byte("\n3\n"), 1)}, 4, "forged"},
		{"of another", own, [][]byte{foreign.Bytes()}, 4, "is of the log of"},
		{"no export", []byte("{}"), nil, 0, "read an exported audit log"},
		{"against nothing", own, [][]byte{[]byte(`{"a":1}`)}, 0, "there is none of"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			res, err := proof.VerifyLog(bytes.NewReader(tc.export), tc.against...)
			said := res.GetBad().GetReason()
			if err != nil {
				said = err.Error()
			}
			if !regexp.MustCompile(tc.wrong).MatchString(said) || res.GetOk() != (tc.wrong == "") || tc.wrong == "" && res.GetEntries() != tc.entries {
				t.Errorf("%v, %v", res, err)
			}
		})
	}
}

// Who rewrote its log cannot get out of being compared, however it writes the line that
// says whose log it is.
func TestVerifyLogHeads(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	deal, err := contract.Export(s.n)
	check(t, err)
	other := &story{buyer: s.buyer, seller: s.seller, n: s.n, log: logOf(t, s.buyer)}
	for range 4 {
		other.record(t, s.n.RFP(), audit.Sent, "rfp")
	}
	head, rest, _ := strings.Cut(string(other.export(t)), "\n")
	inner := strings.TrimSuffix(head, "}")
	for name, first := range map[string]string{
		"text after it":       head + " x",
		"an object after it":  head + "{}",
		"a line of its own":   "\n" + head,
		"spaces before it":    strings.Repeat(" ", 9<<10) + head,
		"spaces within":       inner + strings.Repeat(" ", 9<<10) + "}",
		"spaces after it":     head + strings.Repeat(" ", 9<<10),
		"another format":      strings.Replace(head, "-audit/1", "-audit/2", 1),
		"unknown members":     inner + `,"x":"` + strings.Repeat("x", 9<<10) + `"}`,
		"the checkpoint late": inner + `,"checkpoint":""}`,
		"two checkpoints":     inner + `,"Checkpoint":"x"}`,
		"an entry as well":    inner + `,"entry":{}}`,
		"as it should be":     head,
		"a space":             head + " ",
	} {
		res, err := proof.VerifyLog(strings.NewReader(first+"\n"+rest), deal)
		if res.GetOk() || err == nil && res.GetBad().GetReason() == "" || err != nil && wire.CodeOf(err) != wire.Malformed {
			t.Errorf("%s: %v, %v", name, res, err)
		}
	}
}

func TestReplayLog(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	own := s.export(t)
	for _, tc := range []struct {
		name, id  string
		export    []byte
		outcome   string
		divergent string // regular expression
		code      wire.Code
	}{
		{"a negotiation", s.n.ID(), own, "contracted", `^$`, 0},
		{"by prefix", s.n.ID()[:8], own, "contracted", `^$`, 0},
		{"a contract", s.n.Agreement().ID, own, "contracted", `^$`, 0},
		{"a request", s.n.RFP().Hash.ID(), own, "contracted", `^$`, 0},
		{"changed", s.n.ID(), bytes.Replace(own, []byte(`"note":"contracted"`), []byte(`"note":"fulfilled"`), 1), "", `^the export was changed: entry 3`, 0},
		{"unknown", "ffff0000", own, "", `^$`, wire.NotFound},
		{"everything", "", own, "", `^$`, wire.InvalidArgument},
		{"no export", s.n.ID(), []byte("{}"), "", `^$`, wire.Malformed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			res, err := proof.ReplayLog(bytes.NewReader(tc.export), tc.id)
			if tc.code != 0 || err != nil {
				if tc.code == 0 || wire.CodeOf(err) != tc.code {
					t.Errorf("%v", err)
				}
				return
			}
			if !regexp.MustCompile(tc.divergent).MatchString(res.Divergence) || res.Ok != (res.Divergence == "") || tc.outcome != "" && (res.Outcome != tc.outcome || len(res.Steps) != 4) {
				t.Errorf("%v", res)
			}
		})
	}
}
