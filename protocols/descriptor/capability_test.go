package descriptor_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"openmesh/protocols/descriptor"
	"openmesh/protocols/descriptor/descriptorpb"
)

// The golden vectors of capability keys, for other implementations: each line
// of testdata/keys.txt is a capability, and below it its names and their CIDs.
func TestGoldenKeys(t *testing.T) {
	t.Parallel()
	golden, err := os.ReadFile("testdata/keys.txt")
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for line := range strings.Lines(string(golden)) {
		if strings.HasPrefix(line, "\t") || strings.TrimSpace(line) == "" {
			continue
		}
		got.WriteString(line)
		f := strings.Fields(line)
		v, err := descriptor.ParseVisibility(f[2])
		if err != nil {
			t.Fatal(err)
		}
		names, err := descriptor.Names(f[0], f[1], v)
		if err != nil {
			t.Fatal(err)
		}
		keys, _ := descriptor.Keys(f[0], f[1], v)
		for i, n := range names {
			got.WriteString("\t" + n + " " + keys[i].String() + "\n")
		}
	}
	if got.String() != string(golden) {
		t.Errorf("keys are\n%s\nwant\n%s", got.String(), golden)
	}
}

func TestCheckName(t *testing.T) {
	t.Parallel()
	for name, ok := range map[string]bool{
		"finance": true, "finance/fx-pricing": true, "a/b/c/d/e": true, "0/-": true,
		strings.Repeat("x", 120): true, strings.Repeat("x", 121): false,
		"": false, "/": false, "a/": false, "/a": false, "a//b": false, "a/b/c/d/e/f": false,
		"Finance": false, "a b": false, "a@1": false, "é": false, "a.b": false,
	} {
		if err := descriptor.CheckName(name); (err == nil) != ok {
			t.Errorf("CheckName(%q) = %v; want ok %v", name, err, ok)
		}
	}
}

func TestCovers(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		prefix, name string
		want         bool
	}{
		{"finance", "finance", true},
		{"finance", "finance/fx", true},
		{"finance", "financial", false},
		{"finance/fx", "finance/fx-pricing", false},
		{"finance/fx", "finance", false},
	} {
		if got := descriptor.Covers(tc.prefix, tc.name); got != tc.want {
			t.Errorf("Covers(%q, %q) = %v", tc.prefix, tc.name, got)
		}
	}
}

func TestParseVisibility(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"": "public", "public": "public", "private": "private", "circle:ops": "circle:ops", "circle:a.b_c-9": "circle:a.b_c-9",
		"circle:": "", "circle:A": "", "circle:a/b": "", "secret": "", "circle:" + strings.Repeat("x", 65): "",
	} {
		v, err := descriptor.ParseVisibility(in)
		if (err == nil) != (want != "") || err == nil && v.String() != want {
			t.Errorf("ParseVisibility(%q) = %v, %v; want %q", in, v, err, want)
		}
	}
}

func TestView(t *testing.T) {
	t.Parallel()
	all := &descriptorpb.Descriptor{}
	for _, v := range []string{"public", "circle:ops", "circle:board", "private", ""} {
		all.Capabilities = append(all.Capabilities, &descriptorpb.Capability{Name: "a", Version: "1.0.0", Visibility: v})
	}
	for _, tc := range []struct{ circles, want []string }{
		{nil, []string{"public", ""}},
		{[]string{"ops"}, []string{"public", "circle:ops", ""}},
		{[]string{"ops", "board"}, []string{"public", "circle:ops", "circle:board", ""}},
	} {
		var got []string
		for _, c := range descriptor.View(all, func(c string) bool { return slices.Contains(tc.circles, c) }).Capabilities {
			got = append(got, c.Visibility)
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("a member of %v sees %q, want %q", tc.circles, got, tc.want)
		}
	}
	if len(all.Capabilities) != 5 || all.Capabilities[1].Visibility != "circle:ops" {
		t.Error("View changed what it was given")
	}
}
