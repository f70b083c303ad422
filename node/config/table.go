package config

import (
	"time"

	"openmesh/node/config/form"
)

// about returns the sentence that introduces a section of the table.
func about(section string) string {
	return map[string]string{
		"node":                           "Who this node is and what it does in its realm.",
		"identity":                       "The agent's keys.",
		"networking":                     "Addresses, NAT traversal and limits of connections.",
		"discovery":                      "The directory.",
		"capabilities":                   "What the agent offers, and broadcasts.",
		"observability":                  "Logs, metrics and traces.",
		"observability.alert_thresholds": "An alert is raised above these.",
		"api":                            "The local API that the command line uses.",
		"storage":                        "The node's database.",
		"policy":                         "What this node allows.",
		"relay":                          "What a node with the role relay does, and its quotas.",
		"mailbox":                        "Messages for agents that are away.",
		"market":                         "Negotiations.",
		"session":                        "Terms that this node offers by default, and limits of a session.",
		"session.retry":                  "Exponential backoff with jitter.",
		"signal":                         "Limits of inbound session set-up.",
		"audit":                          "The log of what the agent sent, received and decided.",
	}[section]
}

func (c *Config) nodeKeys() []Key {
	n := &c.Node
	return []Key{
		key("node.id", &n.ID, form.Label(), "", "A name for people, in `openmesh status` and in each line of the log."),
		key("node.address_format", &n.AddressFormat, form.OneOf("48bit"), "48bit", "How addresses are written."),
		key("node.roles", &n.Roles, form.List(form.OneOf("agent", "relay", "backbone"), 1), "agent",
			"What this node does: offers and calls, carries sealed traffic, serves the directory."),
		key("node.realm", &n.Realm, form.Integer[uint16](0, 65534), "0",
			"The mesh to be part of; 64512 and above are for private use. It is part of the address: changing it needs a new identity."),
		key("node.region", &n.Region, form.Word(), "", "Claim of a place, such as eu-central-1."),
		key("node.domain", &n.Domain, form.Domain(), "", "The organisation that the agent belongs to."),
		key("node.jurisdictions", &n.Jurisdictions, form.List(form.Jurisdiction(), 0), "", "Claim of the law that the node is under."),
	}
}

func (c *Config) identityKeys() []Key {
	i := &c.Identity
	return []Key{
		key("identity.algorithm", &i.Algorithm, form.OneOf("ed25519"), "ed25519", "Of the root key and the host key."),
		key("identity.rotation_interval", &i.RotationInterval, form.Duration(7*form.Day, 30*form.Day), "14d", "How long a host key is used.").
			unbuilt("", "the host key is rotated only by `openmesh key rotate`"),
		key("identity.backup_encryption", &i.BackupEncryption, form.OneOf("aes-256-gcm"), "aes-256-gcm", "How `openmesh key backup` seals its file."),
		key("identity.vault_integration", &i.VaultIntegration, form.OneOf("none", "hashicorp-vault"), "none", "Where the root key is kept.").
			unbuilt("none", "the root key is kept in the home, sealed by its passphrase"),
	}
}

func (c *Config) networkingKeys() []Key {
	n := &c.Networking
	const listen = "/ip4/0.0.0.0/tcp/4747,/ip4/0.0.0.0/udp/4747/quic-v1,/ip4/0.0.0.0/tcp/4748/ws," +
		"/ip4/0.0.0.0/udp/4747/quic-v1/webtransport,/ip4/0.0.0.0/udp/4748/webrtc-direct," +
		"/ip6/::/tcp/4747,/ip6/::/udp/4747/quic-v1,/ip6/::/tcp/4748/ws," +
		"/ip6/::/udp/4747/quic-v1/webtransport,/ip6/::/udp/4748/webrtc-direct"
	return []Key{
		key("networking.listen", &n.Listen, form.List(form.ListenAddr(), 0), listen, "Where peers connect to; port 0 is any free one. An empty list is nowhere: then this node is reached through relays only."),
		key("networking.grpc_listen", &n.GRPCListen, form.List(form.HostPort(), 0), "",
			"Where sessions are taken over gRPC, which looks like HTTPS, for peers whose network lets nothing else out; use port 443 on servers."),
		key("networking.announce", &n.Announce, form.List(form.AnnounceAddr(), 0), "", "Addresses to tell peers, instead of those found."),
		key("networking.bootstrap", &n.Bootstrap, form.List(form.PeerSource(), 0), "", "Peers to join the mesh by; a file is read again at each attempt."),
		key("networking.relays", &n.Relays, form.List(form.PeerSource(), 0), "", "Relays to be reached through; a file is read again at each attempt."),
		key("networking.nat_strategy", &n.NATStrategy, form.OneOf("stun-holepunch-relay", "holepunch-relay", "relay", "none"),
			"stun-holepunch-relay", "How to be reached behind a NAT: what is tried, in order."),
		key("networking.relay_fallback", &n.RelayFallback, form.Bool(), "true", "Carry traffic through a relay where no direct connection comes about."),
		key("networking.max_tunnels", &n.MaxTunnels, form.Integer(1, 65536), "256", "Concurrent channels of all sessions."),
		key("networking.keepalive_interval", &n.KeepaliveInterval, form.Duration(time.Second, 10*time.Minute), "30s",
			"Between pings on a channel; a dead one is noticed within twice that."),
		key("networking.handshake_timeout", &n.HandshakeTimeout, form.Duration(100*time.Millisecond, 5*time.Minute), "5s", "For connecting, and for setting a session up."),
		key("networking.max_connections", &n.MaxConnections, form.Integer(16, 65536), "1024", "Connections, at most; more are refused."),
		key("networking.connections_low", &n.ConnectionsLow, form.Integer(0, 65536), "160", "Idle connections are closed down to this many."),
		key("networking.connections_high", &n.ConnectionsHigh, form.Integer(1, 65536), "320", "Above this many, idle connections are closed."),
	}
}

func (c *Config) discoveryKeys() []Key {
	d := &c.Discovery
	return []Key{
		key("discovery.backbone_endpoint", &d.BackboneEndpoint, form.Endpoint(), "", "HTTPS endpoint that serves a signed bootstrap list.").
			unbuilt("", "peers to join by are those of networking.bootstrap"),
		key("discovery.registration_ttl", &d.RegistrationTTL, form.Duration(time.Minute, 48*time.Hour), "12h", "How long a registration lasts; it is renewed at half of it."),
		key("discovery.cache_ttl", &d.CacheTTL, form.Duration(30*time.Second, time.Minute), "45s", "How long answers of the directory are used again."),
		key("discovery.consistency_model", &d.ConsistencyModel, form.OneOf("eventual"), "eventual", "What the directory promises."),
		key("discovery.probe_interval", &d.ProbeInterval, form.Duration(time.Second, time.Hour), "30s", "Between measurements of a known provider."),
		key("discovery.max_descriptor_bytes", &d.MaxDescriptorBytes, form.Size(form.KiB, form.MiB), "32KiB", "Of a descriptor, sent or received.").
			unbuilt("32KiB", "the limit is 32KiB"),
	}
}

func (c *Config) capabilitiesKeys() []Key {
	p := &c.Capabilities
	return []Key{
		key("capabilities.schema_version", &p.SchemaVersion, form.OneOf("v1", "v2"), "v2", "Of the capability descriptions that are published.").
			unbuilt("v2", "descriptions have one form"),
		key("capabilities.validation", &p.Validation, form.OneOf("strict", "lenient"), "strict", "Refuse what breaks a schema, or warn only."),
		key("capabilities.group_assignment", &p.GroupAssignment, form.OneOf("dynamic"), "dynamic", "How agents come into groups.").
			unbuilt("", "there are no groups"),
		key("capabilities.broadcast_scope", &p.BroadcastScope, form.OneOf("domain-limited", "realm"), "domain-limited", "Who gets a broadcast.").
			unbuilt("realm", "requests for proposals go to all of the realm who listen for the capability, and nothing else is broadcast"),
		key("capabilities.max", &p.Max, form.Integer(1, 1024), "64", "Capabilities of this agent."),
		key("capabilities.max_broadcast_bytes", &p.MaxBroadcastBytes, form.Size(form.KiB, form.MiB), "64KiB", "Of a message on a topic.").
			unbuilt("64KiB", "the limit is 64KiB"),
	}
}

func (c *Config) observabilityKeys() []Key {
	o := &c.Observability
	a := &o.AlertThresholds
	return []Key{
		key("observability.tracing", &o.Tracing, form.OneOf("opentelemetry", "none"), "opentelemetry", "Traces go where OTEL_EXPORTER_OTLP_ENDPOINT says, if anywhere."),
		key("observability.correlation_header", &o.CorrelationHeader, form.FieldName(), "x-mesh-trace-id", "Header that carries the trace id to handlers."),
		key("observability.metrics_port", &o.MetricsPort, form.Integer(0, 65535), "9090", "TCP port for Prometheus; 0 turns it off."),
		key("observability.metrics_host", &o.MetricsHost, form.Host(), "127.0.0.1", "Where the metrics port listens."),
		key("observability.log_level", &o.LogLevel, form.OneOf("debug", "info", "warn", "error"), "info", "The least that is logged."),
		key("observability.log_format", &o.LogFormat, form.OneOf("auto", "json", "console"), "auto", "Auto is console on a terminal, JSON elsewhere."),
		key("observability.alert_thresholds.relay_usage_pct", &a.RelayUsagePct, form.Number(0, 100), "15", "Percent of traffic that goes through relays."),
		key("observability.alert_thresholds.tunnel_failure_rate", &a.TunnelFailureRate, form.Number(0, 100), "2", "Percent of channels that fail to come up."),
		key("observability.alert_thresholds.registry_partition_ms", &a.RegistryPartitionMS, form.Integer(100, 3600000), "5000",
			"Milliseconds without an answer from the directory."),
	}
}

func (c *Config) apiKeys() []Key {
	return []Key{
		key("api.listen", &c.API.Listen, form.List(form.APIAddr(), 1), "127.0.0.1:4780,unix:"+homeVar+"/api.sock",
			"Where the local API listens; port 0 is any free one, "+homeVar+" is the node's home."),
	}
}

func (c *Config) storageKeys() []Key {
	return []Key{
		key("storage.url", &c.Storage.URL, form.PostgresURL(), "", "Database, which several nodes may share; empty is SQLite, in openmesh.db under the home.").masked(),
	}
}
