package config

import (
	"time"

	"openmesh/node/config/form"
)

func (c *Config) policyKeys() []Key {
	const none = "no manifest is in force"
	p := &c.Policy
	return []Key{
		key("policy.manifests", &p.Manifests, form.List(form.Path(), 0), "", "Files with domain manifests; a relative name is under the home.").unbuilt("", none),
		key("policy.circles", &p.Circles, form.Circles(), "", "Named sets of agents that may see and call what is visible to a circle only."),
		key("policy.max_manifest_bytes", &p.MaxManifestBytes, form.Size(form.KiB, 16*form.MiB), "256KiB", "Of a manifest.").unbuilt("", none),
		key("policy.max_rule_cost", &p.MaxRuleCost, form.Integer(100, 10000000), "10000", "CEL cost units of one evaluation of a rule.").unbuilt("", none),
	}
}

func (c *Config) relayKeys() []Key {
	r := &c.Relay
	return []Key{
		key("relay.services", &r.Services, form.List(form.OneOf("circuit", "forward", "mailbox"), 1), "circuit,forward,mailbox",
			"What it does for others: circuits to agents that cannot be reached, forwarded paths, mailboxes."),
		key("relay.max_reservations", &r.MaxReservations, form.Integer(1, 65536), "1024", "Peers that hold a slot."),
		key("relay.max_circuits_per_peer", &r.MaxCircuitsPerPeer, form.Integer(1, 65536), "16",
			"Circuits that one peer may open, a quarter of them to the same agent. Four times as many may lead to one agent, half of them from the same IP address."),
		key("relay.max_circuits", &r.MaxCircuits, form.Integer(1, 65536), "1024", "Open circuits of all peers."),
		key("relay.byte_rate", &r.ByteRate, form.Size(0, form.GiB), "0", "Bytes a second through this relay; 0 is no limit. It is shared equally among those who use it."),
		key("relay.byte_rate_per_peer", &r.ByteRatePerPeer, form.Size(0, form.GiB), "0", "Bytes a second of one peer, both directions; 0 is no limit."),
		key("relay.daily_bytes_per_peer", &r.DailyBytesPerPeer, form.Size(0, 1024*form.GiB), "0",
			"Bytes in 24 hours over circuits of one peer; beyond it they are closed. 0 is no limit."),
		key("relay.idle_timeout", &r.IdleTimeout, form.Duration(10*time.Second, 24*time.Hour), "5m", "A circuit or forwarded path that carries nothing for so long is closed."),
		key("relay.max_forwards", &r.MaxForwards, form.Integer(1, 65536), "1024", "Forwarded paths through this relay."),
		key("relay.max_forwards_per_peer", &r.MaxForwardsPerPeer, form.Integer(1, 65536), "16", "Forwarded paths of one neighbour."),
		key("relay.max_hops", &r.MaxHops, form.Integer(1, 4), "4", "Relays on a forwarded path of this agent's own."),
	}
}

func (c *Config) mailboxKeys() []Key {
	m := &c.Mailbox
	return []Key{
		key("mailbox.replicas", &m.Replicas, form.Integer(0, 4), "2", "At how many relays this agent has a mailbox; 0 is none."),
		key("mailbox.max_messages", &m.MaxMessages, form.Integer(1, 1000000), "1000", "Relay: messages kept for one recipient."),
		key("mailbox.max_bytes", &m.MaxBytes, form.Size(form.MiB, form.GiB), "64MiB", "Relay: size of the messages kept for one recipient."),
		key("mailbox.ttl", &m.TTL, form.Duration(time.Minute, 7*form.Day), "7d", "Relay: how long a message is kept."),
		key("mailbox.max_recipients", &m.MaxRecipients, form.Integer(1, 10000000), "10000", "Relay: agents that may have a mailbox."),
		key("mailbox.max_total_bytes", &m.MaxTotalBytes, form.Size(form.MiB, 1024*form.GiB), "16GiB", "Relay: size of all messages kept."),
	}
}

func (c *Config) marketKeys() []Key {
	m := &c.Market
	return []Key{
		key("market.schemas", &m.Schemas, form.Path(), "", "Folder of further JSON Schemas, in place of schemas under the home; a relative name is under the home."),
		key("market.proposal_ttl", &m.ProposalTTL, form.Duration(time.Minute, 30*form.Day), "24h",
			"How long this agent's first offer in a negotiation stands if it does not say; a later one that does not say keeps the time of the offer before it. The deadline of a request is for first offers: those made in time stand beyond it."),
		key("market.sell", &m.Sell, form.List(form.SellRule(), 0), "",
			"What this agent sells by itself, and how: it asks for price, goes down to floor in steps, and has its last word after so many rounds. Handlers in the home's folder automation come first."),
		key("market.max_open", &m.MaxOpen, form.Integer(1, 1000000), "10000", "Requests of other agents that are kept at once, a quarter of them of one agent. One more takes the place of the oldest about which nothing is negotiated."),
		key("market.max_rounds", &m.MaxRounds, form.Integer(1, 64), "64", "Offers in one negotiation, of both sides together."),
		key("market.reach", &m.Reach, form.Integer(1, 1024), "64", "Providers that a request of this agent is sent to."),
	}
}

func (c *Config) sessionKeys() []Key {
	s := &c.Session
	r := &s.Retry
	return []Key{
		key("session.qos", &s.QoS, form.OneOf("at-most-once", "at-least-once", "exactly-once"), "at-most-once", "Delivery guarantee of calls and sessions that name none."),
		key("session.ordered", &s.Ordered, form.Bool(), "false", "Hand messages over in the order sent."),
		key("session.ttl", &s.TTL, form.Duration(time.Second, 30*form.Day), "24h", "How long a message may wait for its delivery."),
		key("session.ack_timeout", &s.AckTimeout, form.Duration(100*time.Millisecond, 10*time.Minute), "10s", "Until a message without acknowledgement is sent again."),
		key("session.rekey_interval", &s.RekeyInterval, form.Duration(time.Second, 24*time.Hour), "5m", "Between fresh session keys."),
		key("session.max_message_bytes", &s.MaxMessageBytes, form.Size(form.KiB, 8*form.MiB), "4MiB", "Of one message."),
		key("session.max_pending", &s.MaxPending, form.Integer(1, 65536), "1024", "Requests without an answer yet."),
		key("session.idle_timeout", &s.IdleTimeout, form.Duration(time.Second, 7*form.Day), "10m", "A session that is not persistent is closed after so long without messages."),
		key("session.park_after", &s.ParkAfter, form.Duration(time.Second, 7*form.Day), "2m", "A session without messages gives its channels back after this, until it is used again."),
		key("session.persistent", &s.Persistent, form.Bool(), "false", "Let sessions survive a restart; those that deliver more than at-most-once always do."),
		key("session.retention", &s.Retention, form.Duration(time.Hour, 365*form.Day), "30d", "A persistent session is closed after so long without messages."),
		key("session.max_sessions", &s.MaxSessions, form.Integer(16, 10000000), "16384", "Sessions of this node, in use or not."),
		key("session.max_per_agent", &s.MaxPerAgent, form.Integer(1, 10000000), "256", "Sessions that one agent may open with this node."),
		key("session.message_rate", &s.MessageRate, form.Integer(0, 10000000), "0", "Messages a second in one session and direction; 0 is no limit."),
		key("session.byte_rate", &s.ByteRate, form.Integer(0, 2000000000), "0", "Bytes a second in one session and direction; 0 is no limit."),
		key("session.default_timeout", &s.DefaultTimeout, form.Duration(time.Second, 24*time.Hour), "2m", "Deadline of a request that names none."),
		key("session.schemas", &s.Schemas, form.List(form.SchemaVersion(), 0), "",
			"Schemas of messages that this agent's programs speak, besides those that its capabilities declare as protocols."),
		key("session.retry.max", &r.Max, form.Integer(0, 100), "5", "Retries after the first attempt."),
		key("session.retry.initial", &r.Initial, form.Duration(10*time.Millisecond, time.Minute), "200ms", "Wait before the first retry."),
		key("session.retry.multiplier", &r.Multiplier, form.Number(1, 10), "2", "How much longer each wait is."),
		key("session.retry.max_interval", &r.MaxInterval, form.Duration(10*time.Millisecond, time.Hour), "30s", "The longest wait."),
		key("session.retry.jitter", &r.Jitter, form.Number(0, 1), "0.2", "Random part of a wait, up or down."),
	}
}

func (c *Config) signalKeys() []Key {
	s := &c.Signal
	return []Key{
		key("signal.rate_per_peer", &s.RatePerPeer, form.Integer(1, 10000), "20", "Offers per second from one peer."),
		key("signal.rate_total", &s.RateTotal, form.Integer(1, 100000), "200", "Offers per second from all peers."),
		key("signal.max_message_bytes", &s.MaxMessageBytes, form.Size(form.KiB, form.MiB), "64KiB", "Of a signaling message.").
			unbuilt("64KiB", "the limit is 64KiB"),
	}
}

func (c *Config) auditKeys() []Key {
	return []Key{
		key("audit.retention", &c.Audit.Retention, form.Duration(form.Day, 3650*form.Day), "365d",
			"How long signed originals are kept; after it their hashes prove what they were, and what they said cannot be replayed."),
	}
}
