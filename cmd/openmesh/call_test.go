package main

import (
	"strings"
	"testing"
)

// What call takes for TARGET and for DATA, with a contract and without.
func TestCallArgs(t *testing.T) {
	t.Parallel()
	p := newProgram(strings.NewReader(`{"from":"input"}`), nil, nil, nil)
	for _, tc := range []struct {
		contract     bool
		args         []string
		target, data string
		fails        string
	}{
		{false, nil, "", "", "TARGET is missing"},
		{false, []string{"shop/order"}, "shop/order", "{}", ""},
		{false, []string{"shop/order", "[1]"}, "shop/order", "[1]", ""},
		{false, []string{"{}"}, "{}", "{}", ""}, // no such target, as ever
		{true, nil, "", "{}", ""},
		{true, []string{"shop/order"}, "shop/order", "{}", ""},
		{true, []string{"0:A91F.0000.7C2E"}, "0:A91F.0000.7C2E", "{}", ""},
		{true, []string{`{"a":1}`}, "", `{"a":1}`, ""},
		{true, []string{"17"}, "", "17", ""},
		{true, []string{"-"}, "", `{"from":"input"}`, ""},
		{true, []string{`{"a":`}, "", "", "DATA is not JSON"},
		{true, []string{"@no/such/file"}, "", "", "read DATA"},
		{true, []string{"shop/order", "true"}, "shop/order", "true", ""},
	} {
		target, data, err := p.callArgs(tc.contract, tc.args)
		if tc.fails != "" {
			if err == nil || !strings.Contains(err.Error(), tc.fails) {
				t.Errorf("%v: %v, want %q", tc.args, err, tc.fails)
			}
			continue
		}
		if err != nil || target != tc.target || data != tc.data {
			t.Errorf("contract %v, %v: %q, %q, %v", tc.contract, tc.args, target, data, err)
		}
	}
}
