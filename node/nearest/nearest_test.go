package nearest_test

import (
	"testing"

	"openmesh/node/nearest"
)

func TestWord(t *testing.T) {
	t.Parallel()
	words := []string{"handler", "request", "response", "networking.max_tunnels"}
	for in, want := range map[string]string{
		"handler":                "handler",
		"handlr":                 "handler",
		"reqest":                 "request",
		"networkin.max_tunels":   "networking.max_tunnels",
		"networking.max_tunnels": "networking.max_tunnels",
		"visibility":             "",
		"":                       "",
		"h":                      "",
	} {
		if got := nearest.Word(in, words); got != want {
			t.Errorf("Word(%q) = %q, want %q", in, got, want)
		}
	}
}
