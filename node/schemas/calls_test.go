package schemas_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"openmesh/node/schemas"
)

// registryOf has translations given as "request 1.0.0 2.0.0".
func registryOf(t *testing.T, files ...string) *schemas.Registry {
	t.Helper()
	var sources []schemas.Source
	for i, f := range files {
		p := strings.Fields(f)
		text := fmt.Sprintf("translate: {from: fx.%s@%s, to: fx.%s@%s}\nsteps: []\n", p[0], p[1], p[0], p[2])
		sources = append(sources, schemas.Source{Name: fmt.Sprintf("%d.yaml", i), Text: []byte(text)})
	}
	g, err := schemas.Gather(sources)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	for title, tc := range map[string]struct {
		files []string
		want  string
	}{
		"no files":         {nil, "2.0.0"},
		"both documents":   {[]string{"request 1.0.0 2.0.0", "response 2.0.0 1.0.0"}, "2.0.0 ~1.0.0"},
		"request alone":    {[]string{"request 1.0.0 2.0.0"}, "2.0.0"},
		"response alone":   {[]string{"response 1.0.0 2.0.0"}, "2.0.0"},
		"chains, highest":  {[]string{"request 1.0.0 1.5.0", "request 1.5.0 2.0.0", "response 1.0.0 2.0.0", "response 1.5.0 1.0.0"}, "2.0.0 ~1.5.0 ~1.0.0"},
		"of another one":   {[]string{"request 1.0.0 3.0.0", "response 1.0.0 3.0.0"}, "2.0.0"},
		"not the same one": {[]string{"request 1.0.0 2.0.0", "response 1.1.0 2.0.0"}, "2.0.0"},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			g := registryOf(t, tc.files...)
			if diff := cmp.Diff(tc.want, strings.Join(schemas.Answers(g, "fx", "2.0.0"), " ")); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if known := schemas.Known(g, "fx"); (len(known) > 1) != (strings.Contains(tc.want, "~") || title == "of another one") {
				t.Errorf("known: %v", known)
			}
		})
	}
}

func TestMeet(t *testing.T) {
	t.Parallel()
	both := []string{"request 1.4.0 2.0.0", "response 1.4.0 2.0.0"}
	for title, tc := range map[string]struct {
		files        []string
		span, theirs string
		want         schemas.Bridge
	}{
		"as it is":                    {nil, "^2", "2.1.0", schemas.Bridge{Ours: "2.1.0", Theirs: "2.1.0"}},
		"they translate":              {nil, "^1", "2.0.0 ~1.4.0", schemas.Bridge{Ours: "1.4.0", Theirs: "1.4.0"}},
		"we translate":                {both, "^1", "2.0.0", schemas.Bridge{Ours: "1.4.0", Theirs: "2.0.0"}},
		"both could: they do":         {both, "^1", "2.0.0 ~1.1.0", schemas.Bridge{Ours: "1.1.0", Theirs: "1.1.0"}},
		"neither":                     {nil, "^1", "2.0.0", schemas.Bridge{}},
		"out of range":                {both, "^1.5", "2.0.0", schemas.Bridge{}},
		"not through two sides":       {both, "^1", "3.0.0 ~2.0.0", schemas.Bridge{}},
		"no versions":                 {both, "^1", "one ~ ~~1.4.0 1.4", schemas.Bridge{}},
		"no range":                    {both, "one", "2.0.0", schemas.Bridge{}},
		"a range that is a long text": {both, strings.Repeat(">", 1<<20), "2.0.0", schemas.Bridge{}},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			got, ok := schemas.Meet(registryOf(t, tc.files...), "fx", tc.span, strings.Fields(tc.theirs))
			if got != tc.want || ok != (tc.want != schemas.Bridge{}) {
				t.Errorf("%+v, %v", got, ok)
			}
		})
	}
}
