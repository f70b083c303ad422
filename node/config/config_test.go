package config_test

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"openmesh/node/config"
	"openmesh/protocols/wire"
)

var update = flag.Bool("update", false, "write README.md anew")

const (
	alice = "did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK"
	bob   = "did:key:z6MkpTHR8VNsBxYAAWHut2Geadd9jSwuBV8xRoAnwWsdvktH"
	peer  = "/ip4/192.0.2.1/tcp/4747/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
)

// home returns a home with the given configuration file.
func home(t *testing.T, file string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, config.FileName), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func load(t *testing.T, file string, environ []string, flags map[string]string) *config.Config {
	t.Helper()
	c, err := config.Load(home(t, file), environ, flags)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// equal compares what two configurations say, not where they say it.
func equal(t *testing.T, got, want *config.Config) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(config.Config{})); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c, err := config.Load(dir, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"127.0.0.1:4780", "unix:" + filepath.Join(dir, "api.sock")}
	if !slices.Equal(c.API.Listen, want) {
		t.Errorf("api.listen = %q, want %q", c.API.Listen, want)
	}
	if got := c.Networking.Listen; len(got) != 10 || got[1].String() != "/ip4/0.0.0.0/udp/4747/quic-v1" {
		t.Errorf("networking.listen = %v", got)
	}
	if c.Session.DefaultTimeout != 120*time.Second || c.Session.MaxMessageBytes != 4<<20 || c.Identity.RotationInterval != 14*24*time.Hour {
		t.Errorf("session = %+v, identity = %+v", c.Session, c.Identity)
	}
	for _, k := range config.Keys() {
		if c.Set(k.Name) {
			t.Errorf("Set(%q) = true for a default", k.Name)
		}
	}
	if u := c.Unbuilt(); len(u) != 0 {
		t.Errorf("Unbuilt() = %q for defaults", u)
	}
}

func TestSpecFile(t *testing.T) {
	t.Parallel()
	file, err := os.ReadFile("testdata/spec.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c := load(t, string(file), nil, nil)
	if c.Node.ID != "agent-core-01" || c.Identity.VaultIntegration != "hashicorp-vault" ||
		c.Discovery.BackboneEndpoint != "mesh-backbone.internal:443" || c.Observability.AlertThresholds.TunnelFailureRate != 2 {
		t.Errorf("loaded %+v", c)
	}
	var unbuilt []string
	for _, sentence := range c.Unbuilt() {
		name, _, _ := strings.Cut(sentence, " ")
		unbuilt = append(unbuilt, name)
	}
	want := []string{"identity.rotation_interval", "identity.vault_integration", "discovery.backbone_endpoint",
		"capabilities.group_assignment", "capabilities.broadcast_scope"}
	if !slices.Equal(unbuilt, want) {
		t.Errorf("Unbuilt() names %q, want %q", unbuilt, want)
	}
}

func TestUnbuiltOnlyIfNeeded(t *testing.T) {
	t.Parallel()
	c := load(t, "identity: {vault_integration: none}\nsession: {qos: at-most-once, persistent: false}\n"+
		"storage: {url: \"\"}\npolicy: {manifests: []}\nmarket: {schemas: mine, proposal_ttl: 2h}\n"+
		"capabilities: {broadcast_scope: realm, max_broadcast_bytes: 64KiB}\nsignal: {max_message_bytes: 32KiB}\n", nil, nil)
	got := c.Unbuilt()
	if len(got) != 1 || !strings.HasPrefix(got[0], "signal.max_message_bytes (") || !strings.Contains(got[0], "config.yaml:7:29) has no effect yet: ") {
		t.Errorf("Unbuilt() = %q, want one sentence on signal.max_message_bytes in line 7", got)
	}
}

func TestPrecedence(t *testing.T) {
	t.Parallel()
	c := load(t, "networking: {max_tunnels: 1, connections_low: 11, keepalive_interval: 1s}\n",
		[]string{"OPENMESH_NETWORKING_MAX_TUNNELS=2", "OPENMESH_NETWORKING_CONNECTIONS_LOW=12", "OPENMESH_NODE_ROLES=agent, relay", "PATH=/bin"},
		map[string]string{"networking.max_tunnels": "3", "policy.circles": "ops=" + alice + "," + bob + ";dev="})
	if n := c.Networking; n.MaxTunnels != 3 || n.ConnectionsLow != 12 || n.KeepaliveInterval != time.Second || n.ConnectionsHigh != 320 {
		t.Errorf("networking = %+v", n)
	}
	if !slices.Equal(c.Node.Roles, []string{"agent", "relay"}) {
		t.Errorf("node.roles = %q", c.Node.Roles)
	}
	if diff := cmp.Diff(map[string][]string{"ops": {alice, bob}, "dev": {}}, c.Policy.Circles); diff != "" {
		t.Errorf("policy.circles (-want +got):\n%s", diff)
	}
	if !c.Set("node.roles") || !c.Set("networking.max_tunnels") || c.Set("networking.connections_high") {
		t.Error("Set does not tell what was set")
	}
}

func TestPaths(t *testing.T) {
	t.Parallel()
	dir := home(t, "networking: {bootstrap: ['@peers.txt', '"+peer+"'], relays: ['@/etc/relays']}\n"+
		"api: {listen: ['unix:$HOME/run/x.sock', '[::1]:0', ':1']}\npolicy: {manifests: [a/../b.yaml]}\nmarket: {schemas: s}\n")
	c, err := config.Load(dir, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := slices.Concat(c.Networking.Bootstrap, c.Networking.Relays, c.API.Listen, c.Policy.Manifests, []string{c.Market.Schemas})
	want := []string{"@" + dir + "/peers.txt", peer, "@/etc/relays", "unix:" + dir + "/run/x.sock", "[::1]:0", ":1", dir + "/b.yaml", dir + "/s"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("paths (-want +got):\n%s", diff)
	}
}

func TestUnreadableFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, config.FileName), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := config.Load(dir, nil, nil); err == nil || !strings.Contains(err.Error(), "read configuration") {
		t.Errorf("Load of a folder as file: %v", err)
	}
	if _, err := config.Load(home(t, strings.Repeat("#\n", 1<<20)), nil, nil); wire.CodeOf(err) != wire.TooLarge {
		t.Errorf("Load of 2 MiB: %v, want too_large", err)
	}
}

// Every key can be given in every way, and a template, a rendering and the
// variables mean the same.
func TestEveryKeyInEveryWay(t *testing.T) {
	t.Parallel()
	overrides := map[string]string{
		"node.id": "n1", "node.roles": "agent,relay,backbone", "node.realm": "64512", "node.region": "eu-central-1",
		"node.domain": "trading.example", "node.jurisdictions": "DE,US-CA", "identity.rotation_interval": "7d12h",
		"networking.listen": "/ip4/127.0.0.1/tcp/0", "networking.announce": "/dns4/a.example/udp/1/quic-v1",
		"networking.bootstrap": peer + ",@/p", "networking.nat_strategy": "none", "networking.relay_fallback": "false",
		"discovery.backbone_endpoint": "https://b.example/x", "capabilities.validation": "lenient",
		"observability.metrics_port": "0", "observability.metrics_host": "::1", "observability.alert_thresholds.tunnel_failure_rate": "0.5",
		"api.listen": "unix:/x y\"z.sock", "storage.url": "postgres://u@h/db", "policy.circles": "a=" + alice + ";b=" + bob,
		"session.qos": "exactly-once", "session.ordered": "true", "session.ttl": "1h30m", "session.max_message_bytes": "1234567",
		"session.retry.jitter": "0",
	}
	var environ []string
	names := map[string]bool{}
	for _, k := range config.Keys() {
		text, ok := overrides[k.Name]
		if !ok {
			text = k.Default
		}
		if names[k.Env()] {
			t.Errorf("two keys have the variable %s", k.Env())
		}
		names[k.Env()] = true
		environ = append(environ, k.Env()+"="+text)
	}
	dir := t.TempDir()
	want, err := config.Load(dir, nil, overrides)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name    string
		file    []byte
		environ []string
	}{
		{name: "environment", environ: environ},
		{name: "template", file: config.Template(overrides)},
		{name: "rendering", file: want.Render()},
	} {
		if err := os.WriteFile(filepath.Join(dir, config.FileName), tc.file, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := config.Load(dir, tc.environ, nil)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		equal(t, got, want)
		for name := range overrides {
			if !got.Set(name) {
				t.Errorf("%s: %s is not set", tc.name, name)
			}
		}
	}
}

func TestTemplate(t *testing.T) {
	t.Parallel()
	dir := home(t, string(config.Template(nil)))
	got, err := config.Load(dir, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range config.Keys() {
		if got.Set(k.Name) {
			t.Errorf("the plain template sets %s", k.Name)
		}
	}
	// With its comment marks removed it says the same: the defaults.
	var lines []string
	for line := range strings.Lines(string(config.Template(nil))) {
		if i := strings.IndexByte(line, '#'); i >= 0 && !strings.HasPrefix(line[i:], "# ") {
			line = line[:i] + line[i+1:]
		}
		lines = append(lines, line)
	}
	if err := os.WriteFile(filepath.Join(dir, config.FileName), []byte(strings.Join(lines, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := config.Load(dir, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, all, got)
	if !all.Set("node.id") || !all.Set("signal.rate_total") {
		t.Error("a default in the template is not a setting with its mark removed")
	}
}

func TestTemplateRefusedLater(t *testing.T) {
	t.Parallel()
	dir := home(t, string(config.Template(map[string]string{"node.relm": "1", "node.realm": "many"})))
	_, err := config.Load(dir, nil, nil)
	for _, want := range []string{"node.relm: unknown key", `node.realm: "many" is not a whole number`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Load: %v, want %q in it", err, want)
		}
	}
}

func TestSecretsAreNeverShown(t *testing.T) {
	t.Parallel()
	c := load(t, "", nil, map[string]string{"storage.url": "postgres://u:hunter2@h/db?sslpassword=hunter2&x=1"})
	if c.Storage.URL != "postgres://u:hunter2@h/db?sslpassword=hunter2&x=1" {
		t.Errorf("storage.url = %s", c.Storage.URL)
	}
	if got := c.Render(); bytes.Contains(got, []byte("hunter2")) || !bytes.Contains(got, []byte("postgres://u:xxxxx@h/db")) {
		t.Errorf("Render() shows a password, or no URL:\n%s", got)
	}
	for _, file := range []string{
		"storage: {url: 'mysql://u:hunter2@h/db'}", "storage: {url: 'postgres://u:hunter2@h:port/db'}", "storage:\n  url: [hunter2]",
		"storage:\n  url: \"hunter2\n", "storage:\n  url: hunter2: x\n", "storage:\n  url: `hunter2`\n", "storage:\n  url: x\n hunter2: [\n",
	} {
		_, err := config.Load(home(t, file), nil, nil)
		if err == nil || strings.Contains(err.Error(), "hunter2") && !strings.Contains(file, " hunter2: [") {
			t.Errorf("Load(%q): %v, want an error without the password", file, err)
		}
	}
}

func TestReference(t *testing.T) {
	t.Parallel()
	want := config.Reference()
	if *update {
		if err := os.WriteFile("README.md", want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile("README.md")
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("README.md is not what the table says (%v): go test ./node/config -run Reference -update", err)
	}
}

func TestErrorIsStructured(t *testing.T) {
	t.Parallel()
	_, err := config.Load(home(t, "node:\n  realm: 65535\n"), nil, nil)
	var p *config.Problem
	if !errors.As(err, &p) || p.Line != 2 || p.Column != 10 || p.Key != "node.realm" || filepath.Base(p.Source) != config.FileName {
		t.Errorf("problem = %+v", p)
	}
	var e *wire.Error
	if !errors.As(err, &e) || e.Code != wire.InvalidArgument || e.Hint == "" || !slices.Equal(e.Pointers, []string{"/node/realm"}) {
		t.Errorf("error = %+v", e)
	}
}
