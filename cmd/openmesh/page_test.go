package main

import (
	"bytes"
	"testing"
	"time"
)

func TestPageOnTerminal(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	g := &page{w: &out, terminal: true, style: true}
	g.table([]string{"STATUS", "AGENT"}, [][]string{{"ok", g.id(testAgent)}, {"fail", "ünï\ncode"}})
	g.fields("agent", "a", "empty", "", "state", "expired")
	const want = "\x1b[2mSTATUS\x1b[0m  \x1b[2mAGENT\x1b[0m\n" +
		"\x1b[32mok\x1b[0m      z6Mkha…2doK\n" +
		"\x1b[31mfail\x1b[0m    ünï code\n" +
		"agent  a\n" +
		"state  \x1b[31mexpired\x1b[0m\n"
	if out.String() != want {
		t.Errorf("got  %q\nwant %q", out.String(), want)
	}
}

func TestWhen(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for stamp, want := range map[string]string{
		"2026-01-16T03:04:05Z":      "in 14d",
		"2026-01-02T02:04:05Z":      "60m ago",
		"2026-01-02T03:04:04.5Z":    "0s ago",
		"2026-01-03T04:04:05+01:00": "in 24h",
		"":                          "",
	} {
		if got := (&page{terminal: true}).when(stamp, now); got != want {
			t.Errorf("when(%q) = %q, want %q", stamp, got, want)
		}
		if got := (&page{}).when(stamp, now); got != stamp {
			t.Errorf("piped: when(%q) = %q", stamp, got)
		}
	}
}

func TestPrintable(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"plain\nünï 🙂":         "plain\nünï 🙂",
		"\x1b[2J":              `\u001b[2J`,
		"\u009b1m":             `\u009b1m`,
		"abc\u202ecba":         `abc\u202ecba`,
		"tag \U000e0001":       `tag \udb40\udc01`,
		"tab\tand return\rend": `tab\u0009and return\u000dend`,
	} {
		if got := printable(in); got != want {
			t.Errorf("printable(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestNumber(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		v        float64
		decimals int
		want     string
	}{{1, 2, "1"}, {0.5, 2, "0.5"}, {100, 0, "100"}, {1.005, 1, "1"}, {12.34, 1, "12.3"}} {
		if got := number(tc.v, tc.decimals); got != tc.want {
			t.Errorf("number(%v, %d) = %q, want %q", tc.v, tc.decimals, got, tc.want)
		}
	}
}
