package config

import "slices"

// check holds settings against each other. A rule that concerns a setting that
// is wrong by itself is left out.
func (r *reader) check(c *Config) {
	n, s := &c.Networking, &c.Session
	r.rule(n.ConnectionsLow < n.ConnectionsHigh, "networking.connections_low", "must be below", "networking.connections_high")
	r.rule(n.ConnectionsHigh <= n.MaxConnections, "networking.connections_high", "must not be above", "networking.max_connections")
	r.rule(n.NATStrategy != "relay" || n.RelayFallback, "networking.relay_fallback", "must be true for relay as", "networking.nat_strategy")
	r.rule(c.Discovery.CacheTTL <= c.Discovery.RegistrationTTL, "discovery.cache_ttl", "must not be above", "discovery.registration_ttl")
	r.rule(c.Relay.MaxCircuitsPerPeer <= c.Relay.MaxCircuits, "relay.max_circuits_per_peer", "must not be above", "relay.max_circuits")
	r.rule(c.Relay.MaxForwardsPerPeer <= c.Relay.MaxForwards, "relay.max_forwards_per_peer", "must not be above", "relay.max_forwards")
	r.rule(s.AckTimeout <= s.TTL, "session.ack_timeout", "must not be above", "session.ttl")
	r.rule(s.Retry.Initial <= s.Retry.MaxInterval, "session.retry.initial", "must not be above", "session.retry.max_interval")
	r.rule(c.Signal.RatePerPeer <= c.Signal.RateTotal, "signal.rate_per_peer", "must not be above", "signal.rate_total")
	r.rule(c.Mailbox.MaxBytes >= s.MaxMessageBytes, "mailbox.max_bytes", "must hold a message of", "session.max_message_bytes")
}

// rule reports that a does not go with b, where a was set, else where b was.
func (r *reader) rule(holds bool, a, relation, b string) {
	wrong := func(p *Problem) bool { return p.Key == a || p.Key == b }
	if holds || slices.ContainsFunc(r.problems, wrong) {
		return
	}
	at, ok := r.places[a]
	if !ok {
		at = r.places[b]
	}
	r.fail(at, a, "%s %s %s, which is %s", r.byName[a].show(), relation, b, r.byName[b].show())
}
