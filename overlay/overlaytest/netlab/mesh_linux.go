package netlab

import "testing"

// Mesh is a lab as most tests of reaching each other want it: a backbone node and
// two relays with public addresses. Agents come to it as the test wants them:
//
//	m.Daemon(m.Router("home", netlab.Easy).Host("a"), "a", nil)
type Mesh struct {
	*Lab
	Backbone *Daemon
	Relays   [2]*Daemon
}

// NewMesh brings the public part up. The environment env is on top of what
// [Lab.Daemon] has.
func NewMesh(t testing.TB, link Link, env map[string]string) *Mesh {
	t.Helper()
	m := &Mesh{Lab: New(t)}
	m.Cloud(link)
	m.Backbone = m.Lab.Backbone(m.Host("backbone"), env)
	for i, name := range []string{"relay1", "relay2"} {
		m.Relays[i] = m.Relay(m.Host(name), env)
	}
	return m
}
