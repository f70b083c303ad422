// Package config reads a node's configuration: the file config.yaml in its
// home, overridden by OPENMESH_* environment variables, overridden by flags.
//
//	defaults → $HOME/config.yaml → OPENMESH_NETWORKING_MAX_TUNNELS=… → networking.max_tunnels=…
//
// One table of keys ([Keys]) drives all three, the commented template
// ([Template]) and the reference (README.md, by [Reference]). Nothing is
// ignored: unknown keys, duplicates and bad values are errors that say where
// they are and what is allowed, all of them at once.
package config

import (
	"time"

	"github.com/multiformats/go-multiaddr"

	"openmesh/node/automation/strategy"
	"openmesh/node/config/form"
)

// Config is the effective configuration of a node, as [Load] returns it: every
// field is set and valid, every path absolute. README.md has the keys with
// their ranges.
type Config struct {
	Node          Node
	Identity      Identity
	Networking    Networking
	Discovery     Discovery
	Capabilities  Capabilities
	Observability Observability
	API           API
	Storage       Storage
	Policy        Policy
	Relay         Relay
	Mailbox       Mailbox
	Market        Market
	Session       Session
	Signal        Signal
	Audit         Audit

	places map[string]form.Place // of the keys that were set explicitly
}

// Node says who this node is and what it does in its realm.
type Node struct {
	ID            string   // a DNS label, or empty
	AddressFormat string   // "48bit"
	Roles         []string // of "agent", "relay", "backbone"; at least one
	Realm         uint16   // up to 65534
	Region        string   // a claim, such as "eu-central-1"; may be empty
	Domain        string   // the organisation; may be empty
	Jurisdictions []string // claims, such as "DE" or "US-CA"
}

// Identity is about the agent's keys.
type Identity struct {
	Algorithm        string        // "ed25519"
	RotationInterval time.Duration // of the host key
	BackupEncryption string        // "aes-256-gcm"
	VaultIntegration string        // "none" or "hashicorp-vault"
}

// Networking bounds and shapes the libp2p host.
type Networking struct {
	Listen            []multiaddr.Multiaddr
	GRPCListen        []string              // host:port; empty is off
	Announce          []multiaddr.Multiaddr // instead of the addresses found; may be empty
	Bootstrap         []string              // multiaddrs with /p2p/, or "@" and an absolute file name
	Relays            []string              // as Bootstrap
	NATStrategy       string                // "stun-holepunch-relay", "holepunch-relay", "relay" or "none"
	RelayFallback     bool
	MaxTunnels        int // concurrent channels
	KeepaliveInterval time.Duration
	HandshakeTimeout  time.Duration
	MaxConnections    int // hard limit; above ConnectionsHigh
	ConnectionsLow    int // trimming stops here
	ConnectionsHigh   int // trimming starts above this
}

// Discovery is about the directory.
type Discovery struct {
	BackboneEndpoint   string // host:port or an https URL; may be empty
	RegistrationTTL    time.Duration
	CacheTTL           time.Duration
	ConsistencyModel   string // "eventual"
	ProbeInterval      time.Duration
	MaxDescriptorBytes int
}

// Capabilities is about what the agent offers and about broadcasts.
type Capabilities struct {
	SchemaVersion     string // "v1" or "v2"
	Validation        string // "strict" or "lenient"
	GroupAssignment   string // "dynamic"
	BroadcastScope    string // "domain-limited" or "realm"
	Max               int    // capabilities of this agent
	MaxBroadcastBytes int
}

// Observability is about logs, metrics and traces.
type Observability struct {
	Tracing           string // "opentelemetry" or "none"
	CorrelationHeader string // an HTTP field name
	MetricsPort       int    // TCP; 0 is off
	MetricsHost       string // IP address or host name
	LogLevel          string // "debug", "info", "warn" or "error"
	LogFormat         string // "json", "console" or "auto"
	AlertThresholds   AlertThresholds
}

// AlertThresholds are the values above which an alert is raised.
type AlertThresholds struct {
	RelayUsagePct       float64 // percent of traffic
	TunnelFailureRate   float64 // percent of set-ups
	RegistryPartitionMS int     // milliseconds
}

// API is about the local API.
type API struct {
	Listen []string // host:port, or "unix:" and an absolute path; at least one
}

// Storage is about the node's database.
type Storage struct {
	URL string // postgres URL, with its password; empty is SQLite under the home
}

// Policy is about what this node allows.
type Policy struct {
	Manifests        []string            // absolute file names
	Circles          map[string][]string // circle → agent ids (did:key:z6Mk…)
	MaxManifestBytes int
	MaxRuleCost      int // CEL cost units of one evaluation
}

// Relay is what a node with the role relay does, and its quotas; 0 is no limit
// where a field says so.
type Relay struct {
	Services           []string // of "circuit", "forward" and "mailbox"
	MaxReservations    int
	MaxCircuitsPerPeer int
	MaxCircuits        int
	ByteRate           int // of all circuits and forwarded paths, a second; 0: no limit
	ByteRatePerPeer    int // 0: no limit
	DailyBytesPerPeer  int // of circuits; 0: no limit
	IdleTimeout        time.Duration
	MaxForwards        int // forwarded paths
	MaxForwardsPerPeer int
	MaxHops            int // relays on a forwarded path of this agent's own
}

// Mailbox is about messages for agents that are away: at how many relays this agent
// has a mailbox, and what a relay keeps for each recipient.
type Mailbox struct {
	Replicas      int
	MaxMessages   int
	MaxBytes      int
	TTL           time.Duration
	MaxRecipients int
	MaxTotalBytes int
}

// Market is about negotiations.
type Market struct {
	Schemas     string // absolute name of a folder, or empty
	ProposalTTL time.Duration
	Sell        []strategy.Rule // what this agent sells by itself; the first that fits counts
	MaxOpen     int             // requests of others that are kept
	MaxRounds   int             // offers in one negotiation
	Reach       int             // providers that a request is sent to
}

// Session are the terms that this node offers by default, and its limits.
type Session struct {
	QoS             string // "at-most-once", "at-least-once" or "exactly-once"
	Ordered         bool
	TTL             time.Duration
	AckTimeout      time.Duration
	RekeyInterval   time.Duration
	MaxMessageBytes int
	MaxPending      int // requests of one session
	IdleTimeout     time.Duration
	ParkAfter       time.Duration
	Persistent      bool
	Retention       time.Duration
	MaxSessions     int
	MaxPerAgent     int
	MessageRate     int // messages a second; 0 is no limit
	ByteRate        int // bytes a second; 0 is no limit
	Retry           Retry
	DefaultTimeout  time.Duration // of a request
	Schemas         []string      // name@VERSION of messages that this agent's programs speak
}

// Retry is exponential backoff: the wait before retry n (from 0) is
// Initial × Multiplierⁿ, at most MaxInterval, varied by ± Jitter of itself.
type Retry struct {
	Max         int
	Initial     time.Duration
	Multiplier  float64
	MaxInterval time.Duration
	Jitter      float64 // 0 to 1
}

// Signal bounds inbound session set-up.
type Signal struct {
	RatePerPeer     int // offers per second
	RateTotal       int // offers per second
	MaxMessageBytes int
}

// Set reports whether the file, the environment or a flag gave key (dotted) a
// value, be it the default one.
func (c *Config) Set(key string) bool {
	_, ok := c.places[key]
	return ok
}

// Unbuilt returns a sentence for the log for every key that was set explicitly
// to a value whose feature does not exist yet, in the order of [Keys].
func (c *Config) Unbuilt() []string {
	var sentences []string
	for _, k := range c.keys() {
		if c.Set(k.Name) && k.Unbuilt != "" && k.write().String() != k.idle {
			sentences = append(sentences, k.Name+" ("+c.places[k.Name].String()+") has no effect yet: "+k.Unbuilt+".")
		}
	}
	return sentences
}

// Audit is about the log of what the agent sent, received and decided.
type Audit struct {
	Retention time.Duration // of signed originals; their hashes stay for ever
}
