package schemas

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"openmesh/protocols/wire"
)

func TestOpen(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), Folder)
	core, logs := observer.New(zap.InfoLevel)
	if g := Open(dir, zap.New(core)); len(g.Translations()) != 0 || logs.Len() != 0 {
		t.Fatalf("no folder: %v, %v", g.Translations(), logs.All())
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"good.yaml": string(Example()), "bad.yaml": "translate: 1\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	g := Open(dir, zap.New(core))
	if !g.Has("market/proposal@v2.1.0", "market/proposal@v1.0.0") {
		t.Error("the good file is not there")
	}
	warned := logs.FilterMessage("translation left out").All()
	if len(warned) != 1 || !strings.Contains(warned[0].ContextMap()["error"].(string), "bad.yaml:1:") {
		t.Errorf("%v", logs.All())
	}
}

func TestCheckAndList(t *testing.T) {
	t.Parallel()
	example := Source{"e.yaml", Example()}
	r := Check(example)
	if !r.OK || r.From != "market/proposal@v1.0.0" || r.Steps != 16 || r.Examples != 2 || r.Lossless() {
		t.Errorf("%+v", r)
	}
	wrong := Source{"w.yaml", []byte("translate: {from: a@1.0.0, to: a@2.0.0}\nsteps: []\nexamples: [{from: 1, to: 2}]\n")}
	if r := Check(wrong); r.OK || r.To != "a@v2.0.0" || len(r.Problems) != 2 || !r.Lossless() {
		t.Errorf("%+v", r)
	}
	if r := Check(Source{"x", []byte("x")}); r.OK || r.File != "x" || r.From != "" {
		t.Errorf("%+v", r)
	}
	g, err := Gather([]Source{example})
	if err != nil || len(List(g)) != 1 || List(g)[0].File != "e.yaml" {
		t.Errorf("%v, %v", List(g), err)
	}
	if _, err := Gather([]Source{example, wrong}); wire.CodeOf(err) != wire.InvalidArgument {
		t.Error(err)
	}
}
