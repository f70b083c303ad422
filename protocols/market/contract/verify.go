package contract

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"unicode/utf8"

	"openmesh/protocols/identity"
	"openmesh/protocols/market"
	"openmesh/protocols/market/document"
	"openmesh/protocols/schema"
	"openmesh/protocols/wire"
)

// Report is what an export proves.
type Report struct {
	OK         bool
	ID         string             // of the contract; 32 hexadecimal digits
	Contract   *market.Contract   // nil if it cannot be read
	Parties    []identity.AgentID // buyer, seller
	Signatures []Signature        // of buyer and seller, if the contract can be read
	Reason     string             // what is wrong, for a person; empty if OK
	Pointer    string             // JSON pointer to it; empty: see Offset
	Offset     int                // first byte that should be another; -1: see Pointer
}

// Signature is whether a party signed the contract in the file.
type Signature struct {
	Agent      identity.AgentID
	OK         bool
	KeyVersion uint32 // as the file says; 0: it has no signature of the agent
}

// fault is what is wrong, and where.
type fault struct {
	pointer string
	offset  int
	err     error
}

func (f *fault) Error() string { return f.err.Error() }
func (f *fault) Unwrap() error { return f.err }

// at is a fault at a JSON pointer, or at the one within it that err names.
func at(pointer string, err error) error {
	if e, ok := errors.AsType[*wire.Error](err); ok && len(e.Pointers) > 0 {
		pointer += e.Pointers[0]
	}
	return &fault{pointer, -1, err}
}

// VerifyFile checks an export with nothing but itself: it runs the negotiation again
// from the evidence, which checks every signature, certificate and move, and compares
// what that comes to with the file, byte by byte. Whether a certificate was
// superseded or revoked when it was used, a file cannot tell.
func VerifyFile(text []byte) Report {
	r := Report{Offset: -1}
	f, err := r.read(text)
	if err == nil {
		err = r.replay(f, text)
	}
	if err == nil {
		r.OK = true
		return r
	}
	r.Reason = err.Error()
	if f, ok := errors.AsType[*fault](err); ok {
		r.Pointer, r.Offset = f.pointer, f.offset
	}
	return r
}

//go:embed export.json
var exportSchema []byte

var shape = sync.OnceValue(func() *schema.Schema {
	s, err := schema.CompileJSON(exportSchema)
	if err != nil {
		panic(err) // embedded
	}
	return s
})

// read decodes the file, which has to be in canonical form.
func (r *Report) read(text []byte) (*file, error) {
	if len(text) > MaxFile {
		return nil, &fault{"", MaxFile, fmt.Errorf("the file is of more than %d bytes", MaxFile)}
	}
	body := bytes.TrimSuffix(text, []byte("\n"))
	want, err := document.Canonical(body, MaxFile)
	switch {
	case wire.CodeOf(err) == wire.Malformed:
		return nil, broken(body)
	case err != nil:
		return nil, at("", err)
	}
	if err := same(append(want, '\n'), text); err != nil {
		return nil, err
	}
	if pointers, err := shape().Validate(body, schema.JSON); err != nil {
		return nil, &fault{pointers[0], -1, fmt.Errorf("not an export of a contract: %w", err)}
	}
	f := new(file)
	if err := json.Unmarshal(body, f); err != nil {
		return nil, at("", err)
	}
	if r.Contract, err = document.ParseContract(f.Contract); err != nil {
		return nil, at("/contract", err)
	}
	r.ID = document.ContractID(f.Contract)
	r.Parties = []identity.AgentID{r.Contract.Buyer.Agent, r.Contract.Seller.Agent}
	return f, nil
}

// broken finds where text stops to be JSON in UTF-8.
func broken(text []byte) error {
	valid := len(text)
	for i := 0; i < valid; {
		c, n := utf8.DecodeRune(text[i:])
		if c == utf8.RuneError && n == 1 {
			valid = i
		}
		i += n
	}
	if e, ok := errors.AsType[*json.SyntaxError](json.Unmarshal(text, new(json.RawMessage))); ok {
		valid = min(valid, int(e.Offset)-1)
	}
	return &fault{"", max(valid, 0), fmt.Errorf("not JSON in UTF-8 from byte %d on", max(valid, 0))}
}

// same finds the first byte that is not as it should be.
func same(want, got []byte) error {
	if bytes.Equal(want, got) {
		return nil
	}
	i := 0
	for i < min(len(want), len(got)) && want[i] == got[i] {
		i++
	}
	return &fault{"", i, fmt.Errorf("not in canonical form from byte %d on", i)}
}

// replay runs the negotiation and exports it anew.
func (r *Report) replay(f *file, text []byte) error {
	envelopes, err := f.envelopes()
	if err != nil {
		return err
	}
	moves, err := parse(envelopes)
	r.verify(moves, f)
	if err != nil {
		return err
	}
	n, err := run(moves)
	if err != nil {
		return err
	}
	want, err := Export(n)
	if err != nil {
		return at("/evidence/moves", err)
	}
	if err := document.Same(want, text, MaxFile); err != nil {
		return at("", fmt.Errorf("not what the evidence comes to: %w", err))
	}
	return same(want, text)
}

// placeOf returns the place of the i-th envelope, of which the first is the request.
func placeOf(i int) string {
	if i == 0 {
		return "/evidence/rfp"
	}
	return "/evidence/moves/" + strconv.Itoa(i-1)
}

// envelopes returns those of the evidence, from the request on.
func (f *file) envelopes() (out [][]byte, err error) {
	for i, text := range append([]string{f.Evidence.RFP}, f.Evidence.Moves...) {
		raw, err := encoding.DecodeString(text)
		if err != nil {
			return nil, &fault{placeOf(i), -1, err}
		}
		out = append(out, raw)
	}
	return out, nil
}

// parse reads all that it can, nil in place of the others, and reports the first of
// those.
func parse(envelopes [][]byte) (moves []*market.Signed, first error) {
	for i, raw := range envelopes {
		m, err := market.Parse(raw)
		if err != nil && first == nil {
			first = &fault{placeOf(i), -1, err} // pointers of err are into its document
		}
		moves = append(moves, m)
	}
	return moves, first
}

// run applies moves to the first, the request, each at the time that it says itself.
func run(moves []*market.Signed) (market.Negotiation, error) {
	n, err := market.NewNegotiation(moves[0], moves[1].Author) // the first offer is the seller's
	if err != nil {
		return n, &fault{placeOf(1), -1, err}
	}
	for i, m := range moves[1:] {
		if n, _, err = n.Next(m, m.At); err != nil {
			return n, &fault{placeOf(i + 1), -1, err}
		}
	}
	return n, nil
}

// verify tells of each party whether the file has its signature over the contract in
// the file, under a key that a move of the evidence certifies.
func (r *Report) verify(moves []*market.Signed, f *file) {
	for _, agent := range r.Parties {
		s := Signature{Agent: agent}
		for _, given := range f.Signatures {
			value, err := encoding.DecodeString(given.Value)
			if given.Agent != agent || err != nil {
				continue
			}
			s.KeyVersion = given.KeyVersion
			s.OK = slices.ContainsFunc(moves, func(m *market.Signed) bool {
				return m != nil && m.Author == agent && m.Certificate.Version == given.KeyVersion &&
					Verify(f.Contract, value, m.Certificate) == nil
			})
		}
		r.Signatures = append(r.Signatures, s)
	}
}
