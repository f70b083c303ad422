package grpclink

import (
	"strings"
	"testing"

	ma "github.com/multiformats/go-multiaddr"
)

func TestAddresses(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ url, addr, canonical string }{
		{"https://1.2.3.4:4749", "/ip4/1.2.3.4/tcp/4749/tls/http", ""},
		{"https://[::1]:443/", "/ip6/::1/tcp/443/tls/http", "https://[::1]:443"},
		{"https://agent.example", "/dns/agent.example/tcp/443/tls/http", "https://agent.example:443"},
		{"https://[::ffff:1.2.3.4]:1", "/ip4/1.2.3.4/tcp/1/tls/http", "https://1.2.3.4:1"},
		{"http://1.2.3.4:1", "", ""}, {"https://", "", ""}, {"https://:1", "", ""}, {"https://a/b", "", ""}, {"https://u@a", "", ""},
		{"https://a:99999", "", ""}, {"https://a?b", "", ""}, {"https://a#b", "", ""}, {"1.2.3.4:5", "", ""}, {"", "", ""}, {"https://a%2fb", "", ""},
	} {
		a, err := ParseURL(tc.url)
		if tc.addr == "" {
			if err == nil {
				t.Errorf("%s is %s", tc.url, a)
			}
			continue
		}
		if tc.canonical == "" {
			tc.canonical = tc.url
		}
		if err != nil || a.String() != tc.addr || FormatURL(a) != tc.canonical || !IsAddr(a) {
			t.Errorf("%s is %v, %v; %s", tc.url, a, err, FormatURL(a))
		}
	}
	const peer = "/p2p/12D3KooWJbJFaZ1dwpuu9tQY3ELCKCpWMJc1dSRVbcMwhiLiFq7q"
	for addr, want := range map[string]string{
		"/dns4/a.example/tcp/443/tls/http":        "a.example:443",
		"/dns6/a.example/tcp/443/tls/http" + peer: "a.example:443",
		"/ip4/1.2.3.4/tcp/1":                      "",
		"/ip4/1.2.3.4/tcp/1/http":                 "",
		"/ip4/1.2.3.4/udp/1/tls/http":             "",
		"/dnsaddr/a.example/tcp/1/tls/http":       "",
		"/ip4/1.2.3.4/tcp/1/tls/ws":               "",
		peer:                                      "",
	} {
		if got, err := HostPort(ma.StringCast(addr)); got != want || (err == nil) != (want != "") {
			t.Errorf("HostPort(%s) = %q, %v", addr, got, err)
		}
	}
	if IsAddr(nil) {
		t.Error("nothing is an address")
	}
}

func FuzzParseURL(f *testing.F) {
	f.Add("https://a.example:443")
	f.Add("https://[::1%25eth0]:1")
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseURL(s)
		if err != nil {
			return
		}
		again, err := ParseURL(FormatURL(a))
		if err != nil || !again.Equal(a) || !strings.HasPrefix(FormatURL(a), "https://") {
			t.Errorf("%q is %s, written as %q: %v, %v", s, a, FormatURL(a), again, err)
		}
	})
}
