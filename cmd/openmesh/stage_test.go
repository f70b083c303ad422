package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sync/errgroup"
)

// stage is what runs beside a script.
type stage struct {
	daemons  map[string]*daemon
	handlers map[string]*handlerServer
}

type stageKey struct{}

func stageOf(ts *testscript.TestScript) *stage { return ts.Value(stageKey{}).(*stage) }

func (s *stage) clear() {
	for _, d := range s.daemons {
		d.crash()
	}
	for _, h := range s.handlers {
		h.unplug()
	}
}

// passed are the variables of a script that its daemons see.
var passed = strings.Fields("PATH HOME WORK TMPDIR GOCOVERDIR OPENMESH_HOME OPENMESH_NODE_REALM OPENMESH_PASSPHRASE " +
	"OPENMESH_NETWORKING_LISTEN OPENMESH_NETWORKING_BOOTSTRAP OPENMESH_API_LISTEN OPENMESH_OBSERVABILITY_METRICS_PORT " +
	"OPENMESH_DISCOVERY_CACHE_TTL")

func environ(ts *testscript.TestScript) (env []string) {
	for _, name := range passed {
		if value := ts.Getenv(name); value != "" {
			env = append(env, name+"="+value)
		}
	}
	return env
}

func cmdMesh(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: mesh NAME...")
	}
	env := environ(ts)
	var homes errgroup.Group
	for i, name := range args {
		init := []string{"--home", ts.MkAbs(name), "init"}
		if i == 0 {
			init = append(init, "--role", "backbone")
		}
		homes.Go(func() error {
			cmd := exec.Command("openmesh", init...)
			cmd.Env = env
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("init %s: %w: %s", name, err, out)
			}
			return nil
		})
	}
	ts.Check(homes.Wait())
	for i, name := range args {
		flags := []string{name}
		if i == 0 {
			flags = append(flags, "--addrs-file", ts.MkAbs("backbone.addrs"))
		}
		cmdDaemon(ts, false, flags)
	}
}

func cmdDaemon(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: daemon NAME [FLAG...]")
	}
	d, err := startDaemon(ts.MkAbs(args[0]), environ(ts), args[1:]...)
	ts.Check(err)
	stageOf(ts).daemons[args[0]] = d
}

// leave takes a daemon off the stage.
func leave(ts *testscript.TestScript, args []string) *daemon {
	if len(args) != 1 || stageOf(ts).daemons[args[0]] == nil {
		ts.Fatalf("want the NAME of a daemon that runs")
	}
	d := stageOf(ts).daemons[args[0]]
	delete(stageOf(ts).daemons, args[0])
	return d
}

func cmdDrain(ts *testscript.TestScript, neg bool, args []string) { ts.Check(leave(ts, args).drain()) }
func cmdCrash(ts *testscript.TestScript, neg bool, args []string) { leave(ts, args).crash() }

func cmdPost(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || stageOf(ts).daemons[args[0]] == nil {
		ts.Fatalf("usage: post NAME PROCEDURE [BODY], of a daemon that runs")
	}
	body := strings.Join(args[2:], " ")
	status, answer, err := stageOf(ts).daemons[args[0]].request("/openmesh.v1."+args[1], []byte(body))
	ts.Check(err)
	fmt.Fprintln(ts.Stdout(), string(answer))
	if status != 200 {
		ts.Fatalf("%s answered %d: %s", args[1], status, answer)
	}
}

func cmdHandler(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || len(args) > 3 {
		ts.Fatalf("usage: handler NAME ANSWER [TIME]")
	}
	var delay time.Duration
	if len(args) == 3 {
		var err error
		delay, err = time.ParseDuration(args[2])
		ts.Check(err)
	}
	h := newHandlerServer(args[1], delay)
	stageOf(ts).handlers[args[0]] = h
	ts.Setenv(args[0], h.URL)
}

func cmdHeard(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 || stageOf(ts).handlers[args[0]] == nil {
		ts.Fatalf("usage: heard NAME COUNT, of a handler")
	}
	heard := stageOf(ts).handlers[args[0]].requests()
	if fmt.Sprint(len(heard)) != args[1] {
		ts.Fatalf("%s had %d requests, want %s", args[0], len(heard), args[1])
	}
	if len(heard) == 0 {
		return
	}
	last, err := json.Marshal(heard[len(heard)-1])
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".heard"), last, 0o600))
}

func cmdUnplug(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 || stageOf(ts).handlers[args[0]] == nil {
		ts.Fatalf("usage: unplug NAME, of a handler")
	}
	stageOf(ts).handlers[args[0]].unplug()
	delete(stageOf(ts).handlers, args[0])
}
