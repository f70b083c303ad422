package main

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"openmesh/node/config"
)

// setting is a flag that stands for a key of the configuration.
type setting struct {
	flag, key, usage string
	values           []string // for completion
}

// The flags of init and run. Whatever else there is goes by run's --set.
func settingFlags() []setting {
	return []setting{
		{"realm", "node.realm", "realm, 0 to 65534; from 64512 on for private use", nil},
		{"role", "node.roles", "role: agent, relay or backbone (repeatable)", roles},
		{"bootstrap", "networking.bootstrap", "multiaddr of a backbone node, or @FILE with one a line (repeatable)", nil},
		{"relay", "networking.relays", "multiaddr of a relay, or @FILE with one a line (repeatable)", nil},
		{"listen", "networking.listen", "multiaddr to listen on (repeatable)", nil},
		{"api-listen", "api.listen", "host:port or unix:PATH of the local API (repeatable)", nil},
		{"name", "node.id", "name of this node", nil},
		{"region", "node.region", "region that this node claims to be in", nil},
		{"domain", "node.domain", "organisation that this node belongs to", nil},
		{"metrics-port", "observability.metrics_port", "TCP port of the metrics; 0 is off", nil},
		{"log-level", "observability.log_level", "debug, info, warn or error", strings.Fields("debug info warn error")},
	}
}

// settings are the values of such flags.
type settings struct {
	values map[string]*[]string // by key
	set    []string             // key=value, of --set
}

// define adds the named flags to a command.
func (s *settings) define(cmd *cobra.Command, names ...string) {
	s.values = map[string]*[]string{}
	for _, f := range settingFlags() {
		if !slices.Contains(names, f.flag) {
			continue
		}
		s.values[f.key] = new([]string)
		cmd.Flags().Var(&listFlag{values: s.values[f.key], repeat: strings.Contains(f.usage, "(repeatable)")}, f.flag, f.usage)
		if f.values != nil {
			fixed(cmd, f.flag, f.values)
		}
	}
}

// defineSet adds --set.
func (s *settings) defineSet(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&s.set, "set", nil, "any key of the configuration, as key=value (repeatable)")
	var keys []string
	for _, k := range config.Keys() {
		keys = append(keys, k.Name+"=")
	}
	err := cmd.RegisterFlagCompletionFunc("set", cobra.FixedCompletions(keys, cobra.ShellCompDirectiveNoFileComp|cobra.ShellCompDirectiveNoSpace))
	if err != nil {
		panic("complete --set: " + err.Error()) // no such flag: a slip in this program
	}
}

// check finds values of --set that are no key=value.
func (s *settings) check() error {
	for _, pair := range s.set {
		if key, _, ok := strings.Cut(pair, "="); !ok || key == "" {
			return usagef("--set %q: want key=value", pair)
		}
	}
	return nil
}

// overrides returns the keys that the user gave, as config.Load takes them.
func (s *settings) overrides() map[string]string {
	out := map[string]string{}
	for key, values := range s.values {
		if len(*values) > 0 {
			out[key] = strings.Join(*values, ",")
		}
	}
	for _, pair := range s.set {
		key, value, _ := strings.Cut(pair, "=")
		out[key] = value
	}
	return out
}

// listFlag is a flag whose values stand in one list of the configuration, or
// that has one value of which the last counts. What it may be is for the
// configuration to say.
type listFlag struct {
	values *[]string
	repeat bool
}

func (f *listFlag) Set(text string) error {
	if !f.repeat {
		*f.values = nil
	}
	*f.values = append(*f.values, text)
	return nil
}

func (f *listFlag) String() string {
	if f.values == nil {
		return ""
	}
	return strings.Join(*f.values, ",")
}

// Type is the name of the value in help texts.
func (f *listFlag) Type() string { return "value" }
