package deal

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"openmesh/node/automation/strategy"
)

// The story that is told must be what the rules of the sellers make of it.
func TestStalls(t *testing.T) {
	t.Parallel()
	stalls := Stalls()
	rules := map[string]strategy.Rule{}
	for _, s := range stalls {
		r, err := strategy.ParseRule(s.Rule())
		if err != nil {
			t.Fatalf("%s: %v", s.Rule(), err)
		}
		rules[s.Name] = r
		if s.Name != stalls[Chosen].Name && strings.HasPrefix(s.Region, wanted) && !cheaper(stalls[Chosen].Price, s.Price) {
			t.Errorf("%s is cheaper than the one that is chosen", s.Name)
		}
		if cheaper(limit, s.Price) {
			t.Errorf("%s asks more than the buyer would pay", s.Name)
		}
		if !strings.Contains(s.Terms(), s.Price) || !strings.Contains(s.Terms(), s.Region) {
			t.Errorf("%s: %s", s.Name, s.Terms())
		}
	}
	r := rules[stalls[Chosen].Name]
	price, _ := new(big.Rat).SetString(r.Price.String())
	step, _ := new(big.Rat).SetString(r.Step.String())
	if got := price.Sub(price, step).FloatString(2); got != agreed || !cheaper(bid, agreed) || cheaper(agreed, r.Floor.String()) {
		t.Errorf("comes down to %s from a floor of %s when %s is bid, and the story says %s", got, r.Floor, bid, agreed)
	}
	each, _ := new(big.Rat).SetString(agreed)
	if got := each.Mul(each, big.NewRat(int64(len(numbers())), 1)).FloatString(2); got != total {
		t.Errorf("comes to %s, and the story says %s", got, total)
	}
}

func TestFactor(t *testing.T) {
	t.Parallel()
	for number, want := range map[string]string{"2": "2", "12": "2 2 3", "97": "97", "8051": "83 97", "1000036000099": "1000003 1000033"} {
		got, err := Factor(fmt.Appendf(nil, `{"number":%q}`, number))
		if err != nil || fmt.Sprint(got["factors"]) != "["+want+"]" {
			t.Errorf("%s: %v, %v", number, got, err)
		}
		if err := check(number, strings.Fields(want)); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{`{`, `{}`, `{"number":"1"}`, `{"number":"-6"}`, `{"number":"1e3"}`, `{"number":"9999999999999"}`, `{"number":12}`} {
		if got, err := Factor([]byte(bad)); err == nil {
			t.Errorf("%s: %v", bad, got)
		}
	}
	for _, number := range numbers() {
		got, err := Factor(fmt.Appendf(nil, `{"number":%q}`, number))
		if err != nil {
			t.Fatal(err)
		}
		if err := check(number, got["factors"].([]string)); err != nil {
			t.Error(err)
		}
	}
}

// The buyer takes no wrong answer for a right one.
func TestCheck(t *testing.T) {
	t.Parallel()
	for _, factors := range []string{"", "12", "2 6", "2 2", "1 2 2 3", "2 2 x", "2 2 -3"} {
		if err := check("12", strings.Fields(factors)); err == nil {
			t.Errorf("12 = %s was believed", factors)
		}
	}
}

func TestCheaper(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		a, b string
		want bool
	}{{"8.90", "9.50", true}, {"9.50", "8.90", false}, {"9.50", "11.00", true}, {"11.00", "9.50", false}, {"9.50", "9.50", false}} {
		if got := cheaper(tc.a, tc.b); got != tc.want {
			t.Errorf("%s cheaper than %s: %t", tc.a, tc.b, got)
		}
	}
}

// Exactly one byte is another, and it is no other kind of character.
func TestChanged(t *testing.T) {
	t.Parallel()
	for _, b := range "0189AZaz+/=" {
		file := []byte(`{"x":"y","value":"` + string(b) + `"}`)
		got, err := changed(file, `"value":"`, len(`"value":"`))
		if err != nil || len(got) != len(file) {
			t.Fatalf("%s: %s, %v", file, got, err)
		}
		differ := 0
		for i := range file {
			if file[i] != got[i] {
				differ++
			}
		}
		if now := got[len(`{"x":"y","value":"`)]; differ != 1 || !strings.ContainsRune("012345678ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", rune(now)) {
			t.Errorf("%s became %s", file, got)
		}
	}
	for _, text := range []string{"z", `"}`} {
		if got, err := changed([]byte(`{"x":"y"}`), text, 5); err == nil {
			t.Errorf("%s: %s", text, got)
		}
	}
}

func TestRewritten(t *testing.T) {
	t.Parallel()
	entry := func(index int, kind, payload string) string {
		return fmt.Sprintf(`{"entry":{"index":%d,"kind":%q,"payload":%q}}`+"\n", index, kind, base64.StdEncoding.EncodeToString([]byte(payload)))
	}
	head := `{"format":"openmesh-audit/1","checkpoint":"…"}` + "\n"
	before := head + entry(0, "market.propose", "price 9.00") + entry(1, "market.amend", "price 9.25") + entry(2, "market.amend", "price 9.00")
	after := head + entry(0, "market.propose", "price 9.00") + entry(1, "market.amend", "price 9.25") + entry(2, "market.amend", "price 8.00")
	got, index, err := rewritten([]byte(before), "9.00", "8.00")
	if err != nil || index != 2 || !bytes.Equal(got, []byte(after)) {
		t.Errorf("entry %d, %v:\n%s", index, err, got)
	}
	for _, file := range []string{"", head, "no JSON\n", entry(0, "market.amend", "price 9.25")} {
		if _, _, err := rewritten([]byte(file), "9.00", "8.00"); err == nil {
			t.Errorf("%s was rewritten", file)
		}
	}
}

// A file is examined in a folder that has nothing else in it, and a program that says
// something else than it should, or leaves something there, has failed.
func TestExamine(t *testing.T) {
	t.Parallel()
	var folders []string
	for _, tc := range []struct {
		name  string
		out   string
		code  int
		leave bool
		good  bool
		want  string // part of the error; empty: none
	}{
		{"good", `{"ok":true}`, 0, false, true, ""},
		{"bad", `{"ok":false}`, 1, false, false, ""},
		{"bad, and not found out", `{"ok":true}`, 0, false, false, "exited with 0, want 1"},
		{"good, and refused", `{"ok":false}`, 1, false, true, "exited with 1, want 0"},
		{"usage", ``, 2, false, false, "exited with 2"},
		{"no JSON", `ok`, 0, false, true, "read what"},
		{"contradicts itself", `{"ok":false}`, 0, false, true, "the verdict"},
		{"leaves something", `{"ok":true}`, 0, true, true, "left something behind"},
	} {
		d := New(Config{Folder: t.TempDir(), Alone: func(_ context.Context, folder string, args ...string) ([]byte, int, error) {
			folders = append(folders, folder)
			file, err := readOnly(folder)
			if err != nil || file != "the file" || !slices.Equal(args, []string{"market", "contract", "verify", "deal.json"}) {
				t.Errorf("%s: ran %v with %q, %v", tc.name, args, file, err)
			}
			if tc.leave {
				err = leave(folder)
			}
			return []byte(tc.out), tc.code, err
		}})
		_, err := d.verify(t.Context(), "deal.json", []byte("the file"), tc.good)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
	if !slices.Equal(slices.Compact(slices.Sorted(slices.Values(folders))), slices.Sorted(slices.Values(folders))) {
		t.Errorf("a folder was used again: %v", folders)
	}
	fails := errors.New("no such program")
	d := New(Config{Folder: t.TempDir(), Alone: func(context.Context, string, ...string) ([]byte, int, error) { return nil, 0, fails }})
	if _, err := d.verify(t.Context(), "deal.json", nil, false); !errors.Is(err, fails) {
		t.Errorf("a program that cannot be run: %v", err)
	}
}

// readOnly returns what is in the only file of a folder.
func readOnly(folder string) (string, error) {
	all, err := os.ReadDir(folder)
	if err != nil {
		return "", err
	}
	if len(all) != 1 {
		return "", fmt.Errorf("%d files", len(all))
	}
	text, err := os.ReadFile(filepath.Join(folder, all[0].Name()))
	return string(text), err
}

func leave(folder string) error { return os.WriteFile(filepath.Join(folder, "more"), nil, 0o600) }
