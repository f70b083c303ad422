package deal

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	openmeshv1 "openmesh/node/api/openmesh/v1"
)

// verdict is what `openmesh market contract verify` prints.
type verdict struct {
	OK         bool
	Contract   string
	Parties    []string
	Signatures []struct {
		Agent string
		OK    bool
	}
	Reason, Pointer string
	Offset          int // of the first byte that should be another; -1: see Pointer
}

// where is what a file was found wrong at.
func (v verdict) where() string {
	if v.Pointer != "" {
		return v.Pointer
	}
	if v.Offset >= 0 {
		return fmt.Sprintf("byte %d", v.Offset)
	}
	return ""
}

// Prove: the contract is verified by a program that has nothing but the file.
func (d *Deal) Prove(ctx context.Context, r Report) error {
	seller := d.seller()
	res, err := seller.API.Market.ExportContract(ctx, &openmeshv1.ShowContractRequest{Contract: d.contract.Contract})
	if err != nil {
		return seller.At(err)
	}
	d.proof = []byte(res.Json)
	v, err := d.verify(ctx, "deal.json", d.proof, true)
	if err != nil {
		return err
	}
	signed := 0
	for _, s := range v.Signatures {
		if s.OK && slices.Contains(v.Parties, s.Agent) {
			signed++
		}
	}
	if v.Contract != d.contract.Contract || signed != 2 || !slices.Equal(v.Parties, []string{d.cfg.Buyer.Agent, seller.Agent}) {
		return fmt.Errorf("the file of contract %s verifies as %s of %v with %d signatures", d.contract.Contract, v.Contract, v.Parties, signed)
	}
	r.Fact("contract", v.Contract)
	r.Fact("bytes", len(d.proof))
	r.Fact("signatures", signed)
	r.Say(fmt.Sprintf("%s exports the contract: a file of %d bytes, with every move that led to it", seller.Name, len(d.proof)),
		"openmesh market contract verify, in an empty folder, without identity, daemon or network: both signatures hold")
	return nil
}

// verify has a file verified that claims to be a contract, and checks whether that held.
func (d *Deal) verify(ctx context.Context, name string, file []byte, want bool) (v verdict, err error) {
	err = d.examine(ctx, name, file, want, &v, "market", "contract", "verify")
	if err == nil && v.OK != want {
		err = fmt.Errorf("the verdict on %s is %t (%s), want %t", name, v.OK, v.Reason, want)
	}
	return v, err
}

// examine writes a file into a folder where nothing else is, and runs the program there,
// which must exit with 0 if the file is good, else with 1, and leave nothing behind. What
// it prints is read into result.
func (d *Deal) examine(ctx context.Context, name string, file []byte, good bool, result any, args ...string) error {
	folder, err := os.MkdirTemp(d.cfg.Folder, "alone-")
	if err != nil {
		return fmt.Errorf("make an empty folder: %w", err)
	}
	defer os.RemoveAll(folder) // and if not now, then with all the demo's folder
	if err := os.WriteFile(filepath.Join(folder, name), file, 0o600); err != nil {
		return err
	}
	out, code, err := d.cfg.Alone(ctx, folder, append(args, name)...)
	if err != nil {
		return err
	}
	if want := map[bool]int{true: 0, false: 1}[good]; code != want {
		return fmt.Errorf("openmesh %v %s exited with %d, want %d: %.1000s", args, name, code, want, out)
	}
	if err := json.Unmarshal(out, result); err != nil {
		return fmt.Errorf("read what openmesh %v printed: %w", args, err)
	}
	left, err := os.ReadDir(folder)
	if err == nil && len(left) != 1 {
		err = fmt.Errorf("openmesh %v left something behind: %v", args, left)
	}
	return err
}

// Forge: whichever byte of the file is changed, it proves nothing any more.
func (d *Deal) Forge(ctx context.Context, r Report) error {
	forged := []map[string]any{}
	var lines []string
	for _, f := range d.forgeries() {
		file, err := changed(d.proof, f.text, f.at)
		if err != nil {
			return err
		}
		v, err := d.verify(ctx, "forged.json", file, false)
		if err != nil {
			return err
		}
		if v.where() == "" || v.Reason == "" {
			return fmt.Errorf("%s: the verdict does not say what is wrong, or where: %+v", f.what, v)
		}
		forged = append(forged, map[string]any{"what": f.what, "pointer": v.Pointer, "offset": v.Offset, "reason": v.Reason})
		lines = append(lines, fmt.Sprintf("%s: found out, at %s", f.what, v.where()))
	}
	r.Fact("forged", forged)
	r.Say(append(lines, "each with one byte changed; exit code 1")...)
	return nil
}

// forgery changes the byte at of the first place where text is in the file.
type forgery struct {
	what, text string
	at         int
}

func (d *Deal) forgeries() []forgery {
	const price, evidence, signature = `"amount":"`, `"moves":["`, `"value":"`
	return []forgery{
		{fmt.Sprintf("the price, 8%s instead of %s", agreed[1:], agreed), price + agreed, len(price)},
		{"a signature", signature, len(signature) + 10},
		{"a move that led to it", evidence, len(evidence) + 100},
	}
}

// changed returns a copy of file in which one digit or letter is another.
func changed(file []byte, text string, at int) ([]byte, error) {
	i := bytes.Index(file, []byte(text))
	if i < 0 || i+at >= len(file) {
		return nil, fmt.Errorf("%s is not in the file", text)
	}
	file = bytes.Clone(file)
	switch b := &file[i+at]; *b {
	case '1', 'A', 'a':
		*b++
	case '+', '/', '=', '0':
		*b = '1'
	default:
		*b--
	}
	return file, nil
}
