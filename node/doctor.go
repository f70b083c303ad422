package node

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/overlay/nat"
)

// check examines one thing: status is ok, warn or fail; hint says what to do.
type check struct {
	name string
	run  func(*Node) (status, message, hint string)
}

// checks is what doctor looks at, in order.
var checks = []check{
	{"key", checkKey},
	{"home", checkHome},
	{"listen", checkListen},
	{"directory", checkDirectory},
	{"connections", checkConnections},
	{"nat", checkNAT},
	{"relays", checkRelays},
	{"mailboxes", checkMailboxes},
	{"capabilities", checkCapabilities},
	{"alerts", checkAlerts},
	{"configuration", checkConfiguration},
}

func (n nodeAPI) Doctor(context.Context, *openmeshv1.DoctorRequest) (*openmeshv1.DoctorResponse, error) {
	resp := &openmeshv1.DoctorResponse{Ok: true}
	for _, c := range checks {
		status, message, hint := c.run(n.Node)
		resp.Checks = append(resp.Checks, &openmeshv1.Check{Name: c.name, Status: status, Message: message, Hint: hint})
		resp.Ok = resp.Ok && status != "fail"
	}
	return resp, nil
}

func checkKey(n *Node) (status, message, hint string) {
	c := n.cfg.Keys.Certificate
	left := time.Until(c.NotAfter)
	message = fmt.Sprintf("key version %d is valid until %s", c.Version, c.NotAfter.Format(time.RFC3339))
	switch {
	case left <= 0:
		return "fail", message + ": it has expired", "openmesh key rotate, then restart the daemon"
	case left < 3*24*time.Hour:
		return "warn", message + ": it expires soon", "openmesh key rotate, then restart the daemon"
	}
	return "ok", message, ""
}

func checkHome(n *Node) (status, message, hint string) {
	info, err := os.Stat(n.cfg.Home)
	if err != nil {
		return "fail", err.Error(), "the home must be readable by the daemon"
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "warn", fmt.Sprintf("%s is open to other users (%s)", n.cfg.Home, info.Mode().Perm()), "chmod 700 " + n.cfg.Home
	}
	return "ok", n.cfg.Home + " is this user's only", ""
}

func checkListen(n *Node) (status, message, hint string) {
	addrs := n.host.Addresses()
	if len(addrs) == 0 {
		return "fail", "this node has no address", "set networking.listen or networking.announce"
	}
	return "ok", fmt.Sprintf("%d addresses, reachability %s", len(addrs), n.host.Reachability()), ""
}

func checkDirectory(n *Node) (status, message, hint string) {
	s := n.directory.Status()
	backbone := slices.Contains(n.settings.Node.Roles, "backbone")
	switch {
	case !s.Partitioned():
		return "ok", fmt.Sprintf("%d directory servers known", s.Servers), ""
	case backbone:
		return "ok", "this node serves the directory; no other server is in reach", ""
	case len(n.settings.Networking.Bootstrap) == 0:
		return "fail", "no directory server is in reach, and none is configured",
			"set networking.bootstrap to the multiaddr of a backbone node"
	}
	return "fail", fmt.Sprintf("no directory server in reach for %v: %v", time.Since(s.Lost).Round(time.Second), s.Why),
		"check that the nodes in networking.bootstrap run, and that this host may connect to them"
}

func checkConnections(n *Node) (status, message, hint string) {
	peers, limit := len(n.host.Network().Peers()), n.settings.Networking.MaxConnections
	channels, tunnels := n.sessions.Stats().Channels, n.settings.Networking.MaxTunnels
	message = fmt.Sprintf("%d peers of %d connections, %d channels of %d", peers, limit, channels, tunnels)
	if peers*10 > limit*9 || channels*10 > tunnels*9 {
		return "warn", message, "raise networking.max_connections or networking.max_tunnels"
	}
	return "ok", message, ""
}

func checkRelays(n *Node) (status, message, hint string) {
	net := n.settings.Networking
	held, private := len(n.host.Relays()), n.host.Reachability() != "public"
	switch {
	case !n.circuitsAllowed() && private:
		return "warn", "relays are not used: who cannot connect to this node directly does not reach it",
			"set networking.relay_fallback: true"
	case !n.circuitsAllowed():
		return "ok", "relays are not used", ""
	case held == 1:
		return "ok", "reachable through a relay; there is no second one if it fails", ""
	case held > 1:
		return "ok", fmt.Sprintf("reachable through %d relays", held), ""
	case !private:
		return "ok", "none is needed: this node is reachable", ""
	case len(net.Relays) == 0 && len(n.relays.all()) == 0:
		return "ok", "no relay is configured or found", ""
	}
	return "warn", "no relay has granted a reservation", "check that the nodes in networking.relays run with the role relay"
}

func checkNAT(n *Node) (status, message, hint string) {
	s := n.host.Standing()
	message = fmt.Sprintf("%s; reachability %s", s.Kind, s.Reachability)
	if s.Reachability != nat.Private || len(s.Help) == 0 {
		return "ok", message, strings.Join(s.Help, "; ")
	}
	if len(n.host.Relays()) == 0 {
		status = "warn"
	}
	return orDefault(status, "ok"), message, strings.Join(s.Help, "; ")
}

func checkMailboxes(n *Node) (status, message, hint string) {
	want := n.settings.Mailbox.Replicas
	have := len(n.post.names())
	switch {
	case want == 0 || !slices.Contains(n.settings.Node.Roles, "agent"):
		return "ok", "this node has none", ""
	case have > 0:
		return "ok", fmt.Sprintf("messages for this agent are kept at %d relays while it is away", have), ""
	case len(n.relays.with(serviceMailbox)) == 0:
		return "ok", "no relay is known: messages for this agent are not kept while it is away", "run a node with the role relay"
	}
	return "warn", "no relay keeps messages for this agent", "see the log of this node, and of the relays"
}

func checkCapabilities(n *Node) (status, message, hint string) {
	registered := n.directory.Registered()
	var waiting []string
	all := n.registry.List()
	for _, c := range all {
		if until := registered[c.Name+"@"+c.Version]; until.Before(time.Now()) && orDefault(c.Visibility, "public") != "private" {
			waiting = append(waiting, c.Name)
		}
	}
	if len(waiting) > 0 {
		return "warn", fmt.Sprintf("not registered yet: %v", waiting), "they will be once a directory server is in reach"
	}
	return "ok", fmt.Sprintf("%d offered and registered", len(all)), ""
}

func checkAlerts(n *Node) (status, message, hint string) {
	alerts := n.alerts.Current().Alerts
	if len(alerts) == 0 {
		return "ok", "no threshold is exceeded", ""
	}
	a := alerts[0]
	return "warn", fmt.Sprintf("%s is %.1f, above %.1f", a.Name, a.Value, a.Threshold), "see openmesh status and the log"
}

func checkConfiguration(n *Node) (status, message, hint string) {
	if s := n.settings.Unbuilt(); len(s) > 0 {
		return "warn", s[0], "remove the key, or wait for a version that has the feature"
	}
	return "ok", "every key that is set has an effect", ""
}
