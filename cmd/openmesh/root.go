package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// program is what all commands work with: the world around them and the global
// flags.
type program struct {
	in       io.Reader
	out, err io.Writer
	environ  []string

	home    string
	json    bool
	timeout time.Duration // 0: each command's own
}

func newProgram(in io.Reader, out, err io.Writer, environ []string) *program {
	return &program{in: in, out: out, err: err, environ: environ}
}

// group is a part of the command list.
type group struct {
	title        string
	constructors []func(*program) *cobra.Command
}

// commands is what the program can do: a new command is a constructor here.
func commands() []group {
	return []group{
		{"Daemon:", []func(*program) *cobra.Command{newInit, newRun, newDoctor, newDemo, newDemoHandler}},
		{"Look around:", []func(*program) *cobra.Command{newID, newStatus, newPeers, newRelays, newPing, newConnect, newVersion}},
		{"Work:", []func(*program) *cobra.Command{newCapability, newDiscover, newResolve, newCall, newSession, newSchema}},
		{"Deals:", []func(*program) *cobra.Command{newMarket, newAudit}},
		{"Identity and settings:", []func(*program) *cobra.Command{newKey, newConfig}},
		{"Measure:", []func(*program) *cobra.Command{newBench}},
	}
}

// root builds the whole command tree.
func (p *program) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "openmesh COMMAND",
		Short: "A mesh of agents: find them, reach them, work with them",
		Long: `OpenMesh connects agents: each has an identity, offers capabilities, and finds
and calls those of others over sealed sessions.

  openmesh init                            make an identity
  openmesh run                             run the daemon
  openmesh capability add FILE             offer something
  openmesh discover finance/fx-pricing     find who offers it
  openmesh call finance/fx-pricing '{"pair":"EURUSD"}'

Output is for people on a terminal; piped, tables are separated by tabs; with
--json it is one JSON document (one a line where a command streams).

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 daemon not running, 4 not found,
5 denied by policy or trust, 6 timed out.`,
		Args:          p.noSuchCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	for _, group := range commands() {
		root.AddGroup(&cobra.Group{ID: group.title, Title: group.title})
		for _, constructor := range group.constructors {
			cmd := constructor(p)
			cmd.GroupID = group.title
			root.AddCommand(cmd)
		}
	}
	p.globalFlags(root)
	root.SetUsageTemplate(strings.Replace(root.UsageTemplate(), // what Use says, it says a second time
		"{{if .HasAvailableSubCommands}}\n  {{.CommandPath}} [command]{{end}}", "", 1))
	root.SetIn(p.in)
	root.SetOut(p.out)
	root.SetErr(p.err)
	root.SetHelpCommand(newHelp(root))
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	p.finish(root)
	return root
}

// newHelp is cobra's help command, but for a topic that is not there, which is
// an error.
func newHelp(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND]", Short: "Help about any command",
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) (names []string, _ cobra.ShellCompDirective) {
			if cmd, _, err := root.Find(args); err == nil {
				for _, sub := range cmd.Commands() {
					names = append(names, sub.Name()+"\t"+sub.Short)
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return usagef("no command %q", strings.Join(args, " "))
			}
			return cmd.Help()
		},
	}
}

func (p *program) globalFlags(root *cobra.Command) {
	flags := root.PersistentFlags()
	flags.StringVar(&p.home, "home", "", "home of the agent (default $OPENMESH_HOME, else ~/.openmesh)")
	flags.BoolVar(&p.json, "json", false, "print JSON")
	flags.Var((*limit)(&p.timeout), "timeout", "give up after this time, such as 30s")
	root.RegisterFlagCompletionFunc("home", cobra.FixedCompletions(nil, cobra.ShellCompDirectiveFilterDirs))
}

// execute runs the command that args name and returns the exit code.
func (p *program) execute(ctx context.Context, args []string) int {
	root := p.root()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = errInterrupted
	}
	p.json = p.json || asksJSON(args)
	return p.report(cmd, err)
}

// asksJSON finds --json even behind what made the command line wrong.
func asksJSON(args []string) bool {
	if end := slices.Index(args, "--"); end >= 0 {
		args = args[:end]
	}
	return slices.Contains(args, "--json")
}

// finish makes all complaints about arguments and flags usage errors.
func (p *program) finish(cmd *cobra.Command) {
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	if args := cmd.Args; args != nil {
		cmd.Args = func(cmd *cobra.Command, given []string) error {
			if err := args(cmd, given); err != nil {
				return &usageError{err}
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		p.finish(sub)
	}
}

// noun is a command that only has subcommands.
func (p *program) noun(name, short string, subs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: name + " COMMAND", Short: short, Args: p.noSuchCommand}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var names []string
		for _, sub := range subs {
			names = append(names, sub.Name())
		}
		return &usageError{fmt.Errorf("%s needs a command: %s", cmd.CommandPath(), strings.Join(names, ", "))}
	}
	cmd.AddCommand(subs...)
	return cmd
}

func (p *program) noSuchCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	err := fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())
	cmd.SuggestionsMinimumDistance = 2 // edits
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		err = fmt.Errorf("%w: did you mean %s?", err, strings.Join(near, " or "))
	}
	return err
}

// homeDir returns the absolute path of the home.
func (p *program) homeDir() (string, error) {
	home := p.home
	if home == "" {
		home = p.getenv("OPENMESH_HOME")
	}
	if home == "" {
		user, err := os.UserHomeDir()
		if err != nil {
			return "", usagef("no home: set --home or OPENMESH_HOME (%w)", err)
		}
		home = filepath.Join(user, ".openmesh")
	}
	return filepath.Abs(home)
}

// getenv returns a variable of the environment, or nothing.
func (p *program) getenv(name string) string {
	for _, entry := range slices.Backward(p.environ) {
		if key, value, _ := strings.Cut(entry, "="); key == name {
			return value
		}
	}
	return ""
}

// isTerminal reports whether a stream is one that a person looks at or types in.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// limit is a flag of a time that is not negative.
type limit time.Duration

func (l *limit) Set(text string) error {
	d, err := time.ParseDuration(text)
	if err != nil {
		return errors.New("want a time such as 500ms, 30s or 2m")
	}
	if d <= 0 {
		return errors.New("want more than 0")
	}
	*l = limit(d)
	return nil
}

func (l *limit) String() string {
	if *l == 0 {
		return ""
	}
	return time.Duration(*l).String()
}

// Type is the name of the value in help texts.
func (l *limit) Type() string { return "duration" }
