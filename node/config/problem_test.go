package config_test

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"openmesh/node/config"
	"openmesh/protocols/wire"
)

// What is wrong in a file, the environment and flags: each line of want is one
// problem, all of them reported, with file names cut to their base.
func TestProblems(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name    string
		file    string
		environ []string
		flags   map[string]string
		want    []string
	}{
		{
			name:    "all at once, in the order of the lines",
			file:    "networking:\n  max_tunnels: 0\n  keepalive_intervall: 30s\n  relay_fallback: yes\nnode:\n  roles: [agent, king]\n",
			environ: []string{"OPENMESH_NODE_REALM=x"},
			flags:   map[string]string{"discovery.cache_ttl": "2m"},
			want: []string{
				`config.yaml:2:16: networking.max_tunnels: "0" is out of range; allowed: 1..65536`,
				`config.yaml:3:3: networking.keepalive_intervall: unknown key; did you mean networking.keepalive_interval?`,
				`config.yaml:4:19: networking.relay_fallback: "yes" is neither true nor false; allowed: true or false`,
				`config.yaml:6:18: node.roles: "king" is not known; allowed: one of agent, relay, backbone; at least one`,
				`environment variable OPENMESH_NODE_REALM: node.realm: "x" is not a whole number; allowed: 0..65534`,
				`flag discovery.cache_ttl: discovery.cache_ttl: "2m" is out of range; allowed: 30s..1m`,
			},
		},
		{
			name: "unknown keys",
			file: "netwroking: {max_tunnels: 1}\nnetworking: {log_level: info}\nnode.id: x\nnodes: 1\nzzz: 1\n<<: {a: 1}\n? x y\n: 1\n",
			want: []string{
				`config.yaml:1:1: netwroking: unknown key; did you mean networking?`,
				`config.yaml:2:14: networking.log_level: unknown key; did you mean observability.log_level?`,
				`config.yaml:3:1: node.id: write sections as maps, not with dots`,
				`config.yaml:4:1: nodes: unknown key; did you mean node?`,
				`config.yaml:5:1: zzz: unknown key`,
				`config.yaml:6:1: <<: unknown key`,
				`config.yaml:7:1: ? x y: unknown key`,
			},
		},
		{
			name: "rules of the market",
			file: "market:\n  max_rounds: 65\n  sell:\n    - finance price=12.00 currency=EUR\n    - finance price=12,00 currency=EUR\n    - finance price=1\n",
			want: []string{
				`config.yaml:2:15: market.max_rounds: "65" is out of range; allowed: 1..64`,
				`config.yaml:5:7: market.sell: "finance price=12,00 currency=EUR" has price "12,00", which is not an amount, such as 12.50; allowed: CAPABILITY price=12.00 currency=EUR [floor=9.00 step=0.50 rounds=5 region=eu-central valid=10m]`,
				`config.yaml:6:7: market.sell: "finance price=1" has no currency; allowed: CAPABILITY price=12.00 currency=EUR [floor=9.00 step=0.50 rounds=5 region=eu-central valid=10m]`,
			},
		},
		{
			name: "duplicates",
			file: "node: {id: a, id: b}\nnode:\n  id: c\npolicy: {circles: {a: [], a: []}}\nnetworking: {announce: [/ip4/192.0.2.1/tcp/1, /ip4/192.0.2.1/tcp/1]}\n",
			want: []string{
				`config.yaml:1:15: node.id: is there already, in line 1`,
				`config.yaml:2:1: node: is there already, in line 1`,
				`config.yaml:4:27: policy.circles: "a" is there twice; allowed: names of a-z, 0-9 and hyphens, at most 64; agent ids did:key:z6Mk…`,
				`config.yaml:5:47: networking.announce: "/ip4/192.0.2.1/tcp/1" is there twice; allowed: TCP or UDP, without /p2p, such as /dns4/a.example/tcp/4747`,
			},
		},
		{
			name: "wrong shapes",
			file: "node: 5\nidentity:\nnetworking: {listen: /ip4/0.0.0.0/tcp/1, max_tunnels: [1], announce: [[]], relay_fallback: }\n" +
				"storage: {url: {a: b}}\npolicy: {circles: [a]}\nsession: {qos: &x exactly-once, retry: [1]}\n",
			want: []string{
				`config.yaml:1:7: node: is a section; below it come its keys, such as node.id`,
				`config.yaml:3:22: networking.listen: "/ip4/0.0.0.0/tcp/1" is one value where a list is expected; allowed: IP with TCP or UDP, without /p2p, such as /ip4/0.0.0.0/tcp/4747`,
				`config.yaml:3:55: networking.max_tunnels: is a list where one value is expected; allowed: 1..65536`,
				`config.yaml:3:71: networking.announce: is a list where one value is expected; allowed: TCP or UDP, without /p2p, such as /dns4/a.example/tcp/4747`,
				`config.yaml:3:91: networking.relay_fallback: is nothing where one value is expected; allowed: true or false`,
				`config.yaml:4:16: storage.url: is a map where one value is expected; allowed: empty or postgres://…`,
				`config.yaml:5:19: policy.circles: is a list where a map of circles is expected; allowed: names of a-z, 0-9 and hyphens, at most 64; agent ids did:key:z6Mk…`,
				`config.yaml:6:16: session.qos: is an anchor, alias or tag where one value is expected; allowed: one of at-most-once, at-least-once, exactly-once`,
				`config.yaml:6:40: session.retry: is a section; below it come its keys, such as session.retry.max`,
			},
		},
		{
			name:  "settings that do not go together",
			file:  "networking:\n  connections_low: 900\n  connections_high: 800\n  max_connections: 700\nmailbox: {max_bytes: 1MiB}\nsignal: {rate_total: 0}\n",
			flags: map[string]string{"networking.nat_strategy": "relay", "networking.relay_fallback": "false", "session.ack_timeout": "10s", "session.ttl": "1s"},
			want: []string{
				`config.yaml:2:20: networking.connections_low: 900 must be below networking.connections_high, which is 800`,
				`config.yaml:3:21: networking.connections_high: 800 must not be above networking.max_connections, which is 700`,
				`config.yaml:5:22: mailbox.max_bytes: 1MiB must hold a message of session.max_message_bytes, which is 4MiB`,
				`config.yaml:6:22: signal.rate_total: "0" is out of range; allowed: 1..100000`,
				`flag networking.relay_fallback: networking.relay_fallback: false must be true for relay as networking.nat_strategy, which is relay`,
				`flag session.ack_timeout: session.ack_timeout: 10s must not be above session.ttl, which is 1s`,
			},
		},
		{name: "not YAML", file: "node:\n  id: [a\n", want: []string{`config.yaml:2:7: not YAML: sequence end token ']' not found`}},
		{name: "a tab", file: "node:\n\tid: a\n", want: []string{`config.yaml:2:1: not YAML: found character '	' that cannot start any token`}},
		{name: "not a map", file: "- a\n", want: []string{`config.yaml:1:1: a configuration is a map of sections, such as node: and networking:`}},
		{name: "two documents", file: "node: {id: a}\n---\nnode: {id: b}\n", want: []string{`config.yaml:3:5: a second document; a configuration is one`}},
		{
			name: "variables",
			environ: []string{
				"OPENMESH_HOME=/x", "OPENMESH_PASSPHRASE=x", "OPENMESH_SERVICE_HOST=10.0.0.1", "OPENMESH_RELAY_SERVICE_PORT_HTTP=1",
				"OPENMESH_RELAY_PORT=tcp://10.0.0.1:80", "OPENMESH_RELAY_PORT_80_TCP_ADDR=10.0.0.1", "OPENMESH_RELAY_PORT_80_TCP=tcp://10.0.0.1:80",
				"OPENMESH_NETWROKING_MAX_TUNNELS=1", "OPENMESH_NODE_NOSUCHTHING=1", "OPENMESH_OBSERVABILITY_METRIC_PORT=1",
			},
			want: []string{
				`environment variable OPENMESH_NETWROKING_MAX_TUNNELS: unknown key; did you mean OPENMESH_NETWORKING_MAX_TUNNELS?`,
				`environment variable OPENMESH_NODE_NOSUCHTHING: unknown key`,
				`environment variable OPENMESH_OBSERVABILITY_METRIC_PORT: unknown key; did you mean OPENMESH_OBSERVABILITY_METRICS_PORT?`,
			},
		},
		{
			name:  "flags",
			flags: map[string]string{"session": "1", "session.qoss": "1", "policy.circles": "x"},
			want: []string{
				`flag policy.circles: policy.circles: "x" is one value where a list is expected; allowed: names of a-z, 0-9 and hyphens, at most 64; agent ids did:key:z6Mk…`,
				`flag session: session: is a section; name a key in it, such as session.qos`,
				`flag session.qoss: session.qoss: unknown key; did you mean session.qos?`,
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			dir := home(t, tc.file)
			_, err := config.Load(dir, tc.environ, tc.flags)
			var e *wire.Error
			if !errors.As(err, &e) {
				t.Fatalf("Load: %v, want a wire.Error", err)
			}
			got := strings.Split(strings.ReplaceAll(e.Err.Error(), filepath.Clean(dir)+"/", ""), "\n")
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

// What each kind of value allows, by the key that has it.
func TestValues(t *testing.T) {
	t.Parallel()
	for key, tc := range map[string]struct{ good, bad []string }{
		"identity.rotation_interval":       {[]string{"7d", "30d", "168h", "7d1h30m"}, []string{"6d", "30d1s", "14", "14 d", "d", "-7d", "99999999d", "7d-1h", "1e3h", ""}},
		"networking.handshake_timeout":     {[]string{"100ms", "5m", "1.5s"}, []string{"99ms", "5m1s", "5", "0"}},
		"session.max_message_bytes":        {[]string{"1024", "1024B", "8MiB"}, []string{"4MB", "4mib", "-4KiB", "MiB", "9999999999GiB", "9MiB", "1023", "4.5MiB", "4BiB", ""}},
		"node.realm":                       {[]string{"0", "65534"}, []string{"65535", "-1", "0x1", "1_0", "99999999999999999999", ""}},
		"session.retry.multiplier":         {[]string{"1", "1.5", "10"}, []string{"0.99", ".inf", "inf", "NaN", "1e9", "x"}},
		"node.id":                          {[]string{"", "a", "Agent-1", strings.Repeat("a", 63)}, []string{"-a", "a-", "a.b", "a b", strings.Repeat("a", 64), "a\n"}},
		"node.domain":                      {[]string{"", "trading", "a.b-c"}, []string{"A", ".a", "a..b", "a."}},
		"node.jurisdictions":               {[]string{"", "DE", "US-CA,EU"}, []string{"de", "DEU", "DE,DE", "DE,,EU"}},
		"node.roles":                       {[]string{"agent", "relay,backbone"}, []string{"", "agent,agent", "Agent"}},
		"networking.listen":                {[]string{"", "/ip4/0.0.0.0/tcp/0", "/ip6/::/udp/1/quic-v1/webtransport", "/ip4/0.0.0.0/udp/1/webrtc-direct"}, []string{"/ip4/0.0.0.0/udp/1", "/ip4/0.0.0.0/tcp/443/tls/http", "/ip4/1.2.3.4", "/dns4/a/tcp/1", "/tcp/1", "1.2.3.4:5", peer, "/", "/ip4/300.0.0.1/tcp/1"}},
		"networking.grpc_listen":           {[]string{"", "0.0.0.0:443,[::]:443", ":0"}, []string{"443", "https://h:443", "h:443,h:443", "/ip4/0.0.0.0/tcp/443"}},
		"networking.announce":              {[]string{"/dns4/a.example/tcp/443/wss"}, []string{"/dns4/a.example", peer}},
		"networking.bootstrap":             {[]string{"", peer, "@f", "@f," + peer}, []string{"@", "f", "/ip4/1.2.3.4/tcp/1", "/ip4/1.2.3.4/tcp/1/p2p/x", "@a\x00"}},
		"discovery.backbone_endpoint":      {[]string{"", "h:443", "https://h/x", "[::1]:443"}, []string{"h", ":443", "h:x", "http://h", "https://", "https://u:p@h"}},
		"observability.correlation_header": {[]string{"x-mesh-trace-id", "X_y"}, []string{"", "a b", "a:b", "é"}},
		"observability.metrics_host":       {[]string{"::1", "0.0.0.0", "localhost"}, []string{"", "a b", "-a", "[::1]"}},
		"api.listen":                       {[]string{"127.0.0.1:0", ":1", "unix:a", "localhost:65535"}, []string{"", "127.0.0.1", "unix:", "a:65536", "a:-1", "a:http", "a b:1"}},
		"storage.url":                      {[]string{"", "postgres://h/d", "postgresql://u:p@h/d?x=y"}, []string{"sqlite://x", "h", "postgres://h:port/"}},
		"policy.circles":                   {[]string{"", "a=", "a=" + alice, "a=" + alice + ";b=" + alice + "," + bob}, []string{"A=", "=", "a=x", "a=" + alice + "," + alice, "a=;a=", "a=" + alice[:len(alice)-1], strings.Repeat("a", 65) + "="}},
	} {
		t.Run(key, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for _, text := range tc.good {
				if _, err := config.Load(dir, nil, map[string]string{key: text}); err != nil {
					t.Errorf("%q: %v", text, err)
				}
			}
			for _, text := range tc.bad {
				var p *config.Problem
				if _, err := config.Load(dir, nil, map[string]string{key: text}); !errors.As(err, &p) || p.Key != key {
					t.Errorf("%q: %v, want a problem with %s", text, err, key)
				}
			}
		})
	}
}
