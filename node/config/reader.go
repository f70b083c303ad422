package config

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strings"

	"openmesh/node/config/form"
	"openmesh/node/nearest"
	"openmesh/protocols/wire"
)

const envPrefix = "OPENMESH_"

// Problem is one thing that is wrong with a configuration.
type Problem struct {
	Source       string // file name, "environment variable NAME" or "flag KEY"
	Line, Column int    // from 1, in a file; else 0
	Key          string // dotted; empty if the problem is not with a key
	Reason       string // what is wrong, and what is allowed
}

func (p *Problem) Error() string {
	where := form.Place{Source: p.Source, Line: p.Line, Column: p.Column}.String() + ": "
	if p.Key == "" {
		return where + p.Reason
	}
	return where + p.Key + ": " + p.Reason
}

// reader fills in a Config from its sources and collects what is wrong.
type reader struct {
	places   map[string]form.Place
	keys     []Key
	byName   map[string]Key
	sections map[string]bool
	problems []*Problem
}

func newReader(c *Config) *reader {
	r := &reader{places: c.places, keys: c.keys(), byName: map[string]Key{}, sections: map[string]bool{}}
	for _, k := range r.keys {
		r.byName[k.Name] = k
		for s := k.section(); s != ""; s, _, _ = cutLast(s) {
			r.sections[s] = true
		}
	}
	return r
}

// cutLast cuts s around its last dot; without one all of s comes after.
func cutLast(s string) (before, after string, found bool) {
	if i := strings.LastIndexByte(s, '.'); i >= 0 {
		return s[:i], s[i+1:], true
	}
	return "", s, false
}

func (r *reader) fail(at form.Place, key, format string, args ...any) {
	r.problems = append(r.problems, &Problem{at.Source, at.Line, at.Column, key, fmt.Sprintf(format, args...)})
}

// set gives a key its value. One that is wrong counts as set, too.
func (r *reader) set(k Key, v form.Value) {
	r.places[k.Name] = v.At
	k.read(v, func(v form.Value, why string) {
		shown := ""
		if v.Shape == form.Scalar && !k.secret {
			shown = quote(v.Text) + " "
		}
		r.fail(v.At, k.Name, "%s%s; allowed: %s", shown, why, k.Allowed)
	})
}

// quote shows at most the beginning of a text.
func quote(s string) string {
	const most = 100
	if len(s) > most {
		return fmt.Sprintf("%q…", s[:most])
	}
	return fmt.Sprintf("%q", s)
}

// environ reads the variables that belong to a key, in the given order.
//
// OPENMESH_… is not ours alone: OPENMESH_HOME and the like are the command's,
// and a cluster adds names for services that are called openmesh. So an unknown
// one is an error only where it can be taken for a key.
func (r *reader) environ(environ []string) {
	byEnv := map[string]Key{}
	for _, k := range r.keys {
		byEnv[k.Env()] = k
	}
	for _, entry := range environ {
		name, text, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, envPrefix) {
			continue
		}
		at := form.Place{Source: "environment variable " + name}
		if k, ok := byEnv[name]; ok {
			r.set(k, k.parse(text, at))
			continue
		}
		meant := nearest.Word(name, slices.Sorted(maps.Keys(byEnv)))
		if (meant != "" || r.inSection(name)) && !serviceLink.MatchString(entry) {
			r.fail(at, "", "unknown key%s", didYouMean(meant))
		}
	}
}

// serviceLink matches the variables by which Kubernetes and Docker tell about
// other services.
var serviceLink = regexp.MustCompile(`^\w+_(SERVICE_(HOST|PORT\w*)=|PORT(_\d+_(TCP|UDP|SCTP))?=\w+://|PORT_\d+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR)=)`)

func (r *reader) inSection(env string) bool {
	section, _, _ := strings.Cut(strings.ToLower(strings.TrimPrefix(env, envPrefix)), "_")
	return r.sections[section]
}

// flags reads settings by their dotted names.
func (r *reader) flags(flags map[string]string) {
	for _, name := range slices.Sorted(maps.Keys(flags)) {
		at := form.Place{Source: "flag " + name}
		if k, ok := r.byName[name]; ok {
			r.set(k, k.parse(flags[name], at))
			continue
		}
		r.unknown(at, name)
	}
}

// unknown refuses a name that is no key.
func (r *reader) unknown(at form.Place, name string) {
	if r.sections[name] {
		r.fail(at, name, "is a section; name a key in it, such as %s", r.firstIn(name))
		return
	}
	r.fail(at, name, "unknown key%s", didYouMean(r.suggest(name)))
}

func (r *reader) firstIn(section string) string {
	return r.keys[slices.IndexFunc(r.keys, func(k Key) bool { return strings.HasPrefix(k.Name, section+".") })].Name
}

// suggest returns the key or section that was probably meant, or "".
func (r *reader) suggest(name string) string {
	known := append(slices.Sorted(maps.Keys(r.byName)), slices.Sorted(maps.Keys(r.sections))...)
	if s := nearest.Word(name, known); s != "" {
		return s
	}
	// The right word in the wrong section.
	_, leaf, _ := cutLast(name)
	i := slices.IndexFunc(r.keys, func(k Key) bool { return k.leaf() == leaf })
	if i < 0 {
		return ""
	}
	return r.keys[i].Name
}

func didYouMean(name string) string {
	if name == "" {
		return ""
	}
	return "; did you mean " + name + "?"
}

// err joins the problems, those of a file in the order of its lines.
func (r *reader) err() error {
	if len(r.problems) == 0 {
		return nil
	}
	line := func(p *Problem) int { return cmp.Or(p.Line, math.MaxInt) }
	slices.SortStableFunc(r.problems, func(a, b *Problem) int {
		return cmp.Or(cmp.Compare(line(a), line(b)), cmp.Compare(a.Column, b.Column))
	})
	e := &wire.Error{Code: wire.InvalidArgument}
	var errs []error
	for _, p := range r.problems {
		errs = append(errs, p)
		if p.Key != "" {
			e.Pointers = append(e.Pointers, "/"+strings.ReplaceAll(p.Key, ".", "/"))
		}
	}
	e.Err = errors.Join(errs...)
	e.Message = "the configuration has errors:\n" + e.Err.Error()
	return e.WithHint("correct what is named above; `openmesh config example` prints a file that explains every key")
}
