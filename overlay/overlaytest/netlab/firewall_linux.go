package netlab

import (
	"fmt"
	"strings"
)

// Firewall stands between a host and the switch. Its rules add up, hold for both
// directions, and take effect at once: no connection is remembered, so they bite
// established flows too.
type Firewall struct {
	ns       *Namespace
	device   string
	dropped  []flow
	rejected []flow
	only     uint16 // TCP port of others; 0 for no such rule
	dead     bool   // the cable is pulled: no rule, and not healed
}

// flow is traffic of a protocol: with one of some ports at either end, or all.
type flow struct {
	proto string
	ports []uint16
}

// Firewall is the host's; at first it lets everything through.
func (h *Host) Firewall() *Firewall { return h.firewall }

// Drop loses packets of proto ("udp" or "tcp") that have one of the ports at
// either end, or all of it if no port is given. Nobody is told: the sender's
// writes succeed, as on a dead link.
func (f *Firewall) Drop(proto string, ports ...uint16) {
	f.ns.t.Helper()
	f.dropped = append(f.dropped, flow{proto, ports})
	f.apply()
}

// Reject refuses what Drop would lose: both ends are told as soon as they send,
// by a TCP reset or by ICMP "port unreachable".
func (f *Firewall) Reject(proto string, ports ...uint16) {
	f.ns.t.Helper()
	f.rejected = append(f.rejected, flow{proto, ports})
	f.apply()
}

// OnlyTCP loses all but TCP between this host and that port of others.
func (f *Firewall) OnlyTCP(port uint16) {
	f.ns.t.Helper()
	f.only = port
	f.apply()
}

// Heal removes all rules.
func (f *Firewall) Heal() {
	f.ns.t.Helper()
	f.dropped, f.rejected, f.only = nil, nil, 0
	f.apply()
}

// cut pulls the cable, or puts it back.
func (f *Firewall) cut(dead bool) {
	f.ns.t.Helper()
	f.dead = dead
	f.apply()
}

// apply replaces the rules in one step.
func (f *Firewall) apply() {
	f.ns.t.Helper()
	f.ns.run(f.ruleset(), "nft", "-f", "-")
}

// ruleset is what nft(8) reads. Packets are lost next to the wire, where the
// sender does not learn of it; they are refused in the host's stack, which is
// where answers can be made.
func (f *Firewall) ruleset() string {
	var b strings.Builder
	for _, family := range []string{"netdev", "inet"} { // naming a table first makes deleting it safe
		fmt.Fprintf(&b, "table %s netlab\ndelete table %s netlab\n", family, family)
	}
	var drops, rejects strings.Builder
	if f.dead {
		drops.WriteString("drop\n") // ARP too
	}
	for _, d := range f.dropped {
		d.write(&drops, "drop")
	}
	rejects.WriteString("tcp flags & rst != 0 accept\n") // the answers themselves
	for _, r := range f.rejected {
		r.write(&rejects, map[bool]string{true: "reject with tcp reset", false: "reject"}[r.proto == "tcp"])
	}
	fmt.Fprintf(&b, "table netdev netlab {\n")
	chain(&b, "ingress device "+f.device, drops.String()+f.exception("sport"))
	chain(&b, "egress device "+f.device, drops.String()+f.exception("dport"))
	fmt.Fprintf(&b, "}\ntable inet netlab {\n")
	chain(&b, "input", rejects.String())
	chain(&b, "output", rejects.String())
	b.WriteString("}\n")
	return b.String()
}

func chain(b *strings.Builder, hook, rules string) {
	name, _, _ := strings.Cut(hook, " ")
	fmt.Fprintf(b, "chain %s {\ntype filter hook %s priority 0\n%s}\n", name, hook, rules)
}

// exception lets nothing but f.only pass; end is which port of a packet is that
// of others. ARP is no IP and stays.
func (f *Firewall) exception(end string) string {
	if f.only == 0 {
		return ""
	}
	return fmt.Sprintf("tcp %s %d accept\nmeta protocol { ip, ip6 } drop\n", end, f.only)
}

func (w flow) write(b *strings.Builder, verdict string) {
	if len(w.ports) == 0 {
		fmt.Fprintf(b, "meta l4proto %s %s\n", w.proto, verdict)
		return
	}
	ports := strings.Trim(strings.Join(strings.Fields(fmt.Sprint(w.ports)), ", "), "[]")
	for _, end := range []string{"sport", "dport"} {
		fmt.Fprintf(b, "%s %s { %s } %s\n", w.proto, end, ports, verdict)
	}
}
