package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain lets more tests run at a time than there are CPUs: those with daemons
// mostly wait. -parallel overrides it.
func TestMain(m *testing.M) {
	if err := flag.Set("test.parallel", strconv.Itoa(max(4, runtime.GOMAXPROCS(0)))); err != nil {
		panic(err) // the testing package has that flag
	}
	testscript.Main(m, map[string]func(){"openmesh": main})
}

// TestScripts runs testdata/script/*.txtar. Each script has a folder of its own, in
// which homes are folders too. Daemons started there listen on loopback, on free
// ports, and find each other by the file backbone.addrs. Beside the usual commands
// there are
//
//	exit CODE COMMAND…          the command must exit with this code
//	within TIME PATTERN COMMAND…  [!] within this time the command exits 0 and its standard
//	                            output matches PATTERN, or comes not to match it
//	json FILE PATH [VALUE]      FILE (or stdout, stderr) is one JSON document, in which the
//	                            dotted PATH exists, and is VALUE
//	let NAME FILE PATH          sets a variable to what is there
//	expand FILE…                replaces $NAME in the files
//	shapes HOME FILE            each line of FILE is a command and what it prints with --json:
//	                            see [shape]
//	mode OCTAL FILE             the file has this mode
//	mesh NAME…                  makes homes and runs their daemons; the first is the backbone
//	daemon NAME [FLAG…]         `openmesh --home NAME run FLAG…` runs in the background from
//	                            here to the end; its ready line is in the file NAME.ready
//	drain NAME                  SIGTERM for that daemon, which must exit 0
//	crash NAME                  SIGKILL for it
//	post NAME PROCEDURE [BODY]  calls that daemon's local API over TCP with its token, as
//	                            curl would, and prints the answer
//	handler NAME ANSWER [TIME]  an HTTP server that answers all requests so, after TIME; its
//	                            URL is in the variable NAME
//	heard NAME COUNT            it had that many requests; the last is in the file NAME.heard,
//	                            as {"header": {…}, "body": …}
//	unplug NAME                 it goes away
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("OPENMESH_HOME", env.Getenv("WORK")+"/home")
			for name, value := range loopback(env.WorkDir) {
				env.Setenv(name, value)
			}
			s := &stage{daemons: map[string]*daemon{}, handlers: map[string]*handlerServer{}}
			env.Values[stageKey{}] = s
			env.Defer(s.clear)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exit": cmdExit, "within": cmdWithin, "json": cmdJSON, "let": cmdLet, "expand": cmdExpand, "shapes": cmdShapes,
			"mode": cmdMode, "mesh": cmdMesh, "daemon": cmdDaemon, "drain": cmdDrain, "crash": cmdCrash, "post": cmdPost,
			"handler": cmdHandler, "heard": cmdHeard, "unplug": cmdUnplug,
		},
	})
}

func cmdExit(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exit CODE COMMAND...")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	if failed, ok := err.(*exec.ExitError); ok {
		code = failed.ExitCode()
	} else {
		ts.Check(err)
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

// busy is how much longer than on an idle machine things may take in a script.
const busy = 6

func cmdWithin(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 3 {
		ts.Fatalf("usage: [!] within TIME PATTERN COMMAND...")
	}
	limit, err := time.ParseDuration(args[0])
	ts.Check(err)
	pattern, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	for start := time.Now(); ; <-time.After(50 * time.Millisecond) {
		asked := time.Since(start)
		err := ts.Exec(args[2], args[3:]...)
		matches := err == nil && pattern.MatchString(ts.ReadFile("stdout"))
		if err == nil && matches != neg {
			ts.Logf("after %v", time.Since(start).Round(time.Millisecond))
			return
		}
		if asked > busy*limit {
			ts.Fatalf("not within %d times %s", busy, limit)
		}
	}
}

func cmdJSON(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || len(args) > 3 {
		ts.Fatalf("usage: json FILE PATH [VALUE]")
	}
	got, err := json.Marshal(find(ts, args[0], args[1]))
	ts.Check(err)
	if len(args) == 3 && string(got) != args[2] {
		ts.Fatalf("%s is %s, want %s", args[1], got, args[2])
	}
}

// find returns what is at a dotted path of the one JSON document in a file.
func find(ts *testscript.TestScript, file, path string) any {
	text := strings.TrimSuffix(ts.ReadFile(file), "\n")
	if strings.Contains(text, "\n") {
		ts.Fatalf("more than one line: %s", text)
	}
	var doc any
	ts.Check(json.Unmarshal([]byte(text), &doc))
	for _, name := range strings.Split(path, ".") {
		value, ok := member(doc, name)
		if !ok {
			ts.Fatalf("no %s in %s", path, text)
		}
		doc = value
	}
	return doc
}

// member returns the member of an object that has this name, or of an array
// that has this index.
func member(doc any, name string) (any, bool) {
	switch v := doc.(type) {
	case map[string]any:
		value, ok := v[name]
		return value, ok
	case []any:
		if i, err := strconv.Atoi(name); err == nil && i >= 0 && i < len(v) {
			return v[i], true
		}
	}
	return nil, false
}

func cmdLet(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: let NAME FILE PATH")
	}
	ts.Setenv(args[0], fmt.Sprint(find(ts, args[1], args[2])))
}

func cmdExpand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: expand FILE...")
	}
	for _, name := range args {
		text := os.Expand(ts.ReadFile(name), ts.Getenv)
		ts.Check(os.WriteFile(ts.MkAbs(name), []byte(text), 0o600))
	}
}

func cmdMode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: mode OCTAL FILE")
	}
	info, err := os.Lstat(ts.MkAbs(args[1]))
	ts.Check(err)
	if got := fmt.Sprintf("%04o", info.Mode().Perm()); got != args[0] {
		ts.Fatalf("%s has mode %s, want %s", args[1], got, args[0])
	}
}
